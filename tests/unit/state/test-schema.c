/* SPDX-License-Identifier: Apache-2.0 */
/* Migrations, walked with tables of our own: a later one, a failing one, a file of the future. */
#include <sys/stat.h>

#include "state/db-internal.h"
#include "state/scratch.h"

#define V1 "CREATE TABLE t (a TEXT NOT NULL) STRICT; INSERT INTO t VALUES ('old');"
#define V2 "ALTER TABLE t ADD COLUMN b INTEGER NOT NULL DEFAULT 7;"
#define V3_BROKEN "UPDATE t SET a = 'half'; INSERT INTO nowhere VALUES (1);"
#define V3 "UPDATE t SET a = 'new';"

static int open_with(const char *path, unsigned n, const char *third, struct db **ret, struct error *err) {
        const char *const sql[] = {V1, V2, third};
        struct migrations m = {sql, n};
        return db_open_schema(path, &m, ret, err);
}

static int64_t ask(const char *path, const char *sql) {
        sqlite3 *conn = NULL;
        sqlite3_stmt *stmt = NULL;
        int64_t v = -1;
        if (sqlite3_open(path, &conn) == SQLITE_OK && sqlite3_prepare_v2(conn, sql, -1, &stmt, NULL) == SQLITE_OK &&
            sqlite3_step(stmt) == SQLITE_ROW)
                v = sqlite3_column_int64(stmt, 0);
        sqlite3_finalize(stmt);
        sqlite3_close(conn);
        return v;
}

static void test_migration_keeps_a_copy(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *copy = str_printf("%s.v1.bak", path);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct db *db = NULL;
        struct stat st;

        CHECK_INT(open_with(path, 1, NULL, &db, &err), 0);
        db_close(TAKE_PTR(db));
        CHECK(stat(copy, &st) < 0); /* nothing to copy for a new file */

        CHECK_INT(open_with(path, 3, V3, &db, &err), 0);
        db_close(TAKE_PTR(db));
        CHECK_INT(ask(path, "PRAGMA user_version"), 3);
        CHECK_INT(ask(path, "SELECT b FROM t WHERE a = 'new'"), 7);
        CHECK(stat(copy, &st) == 0 && (st.st_mode & 0777) == 0600);
        CHECK_INT(ask(copy, "PRAGMA user_version"), 1);
        CHECK_INT(ask(copy, "SELECT count(*) FROM t WHERE a = 'old'"), 1);

        /* Up to date: nothing is done, the copy stays. */
        CHECK(unlink(copy) == 0);
        CHECK_INT(open_with(path, 3, V3, &db, &err), 0);
        db_close(TAKE_PTR(db));
        CHECK(stat(copy, &st) < 0);

        /* The copy is what an older program opens. */
        _cleanup_free_ char *v2 = path_join(dir, "two.db"), *v2_copy = str_printf("%s.v2.bak", v2);
        CHECK_INT(open_with(v2, 2, NULL, &db, &err), 0);
        db_close(TAKE_PTR(db));
        CHECK_INT(open_with(v2, 3, V3, &db, &err), 0);
        db_close(TAKE_PTR(db));
        CHECK_INT(open_with(v2_copy, 2, NULL, &db, &err), 0);
        db_close(TAKE_PTR(db));
}

static void test_failed_migration_changes_nothing(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        struct db *db = NULL;

        CHECK_INT(open_with(path, 2, NULL, &db, &err), 0);
        db_close(TAKE_PTR(db));
        CHECK(open_with(path, 3, V3_BROKEN, &db, &err) < 0);
        CHECK(!db);
        CHECK(strstr(error_message(&err), "chema version 3"));
        CHECK_INT(ask(path, "PRAGMA user_version"), 2);
        CHECK_INT(ask(path, "SELECT count(*) FROM t WHERE a = 'old'"), 1);
        CHECK_INT(open_with(path, 3, V3, &db, &err), 0);
        db_close(TAKE_PTR(db));
}

static void test_newer_file_is_refused(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        struct db *db = NULL;

        CHECK_INT(open_with(path, 3, V3, &db, &err), 0);
        db_close(TAKE_PTR(db));
        CHECK(open_with(path, 2, NULL, &db, &err) < 0);
        CHECK(!db);
        CHECK_INT(err.code, ERROR_UNSUPPORTED);
        CHECK(strstr(error_message(&err), "chema version 3"));
        CHECK(err.hint && strstr(err.hint, "state.db.v2.bak"));
        CHECK_INT(ask(path, "PRAGMA user_version"), 3);
}

static void test_released_schema(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        struct db *db = NULL;
        CHECK_INT(db_open(path, &db, NULL), 0);
        REQUIRE(db);
        int64_t v = 0;
        CHECK_INT(db_query_int(db, "PRAGMA synchronous", &v, NULL), 0);
        CHECK_INT(v, 2); /* FULL: what was acknowledged survives a power cut */
        CHECK_INT(db_query_int(db, "PRAGMA foreign_keys", &v, NULL), 0);
        CHECK_INT(v, 1);
        db_close(db);
        CHECK_INT(ask(path, "SELECT count(*) FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite%'"
                            " AND strict = 0"),
                  0);
}

int main(void) {
        RUN(test_migration_keeps_a_copy);
        RUN(test_failed_migration_changes_nothing);
        RUN(test_newer_file_is_refused);
        RUN(test_released_schema);
        return tap_done();
}
