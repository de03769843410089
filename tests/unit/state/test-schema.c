/* SPDX-License-Identifier: Apache-2.0 */
/* Migrations, walked with tables of our own: a later one, a failing one, a file of the future. And the released ones,
 * with a file as the first version left it. */
#include <sys/stat.h>

#include "state/db-internal.h"
#include "state/sample.h"
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

/* What the first version wrote: its schema, and the newer of two workspaces says that it is the older one. */
static const char version_1[] =
        "PRAGMA journal_mode = WAL;"
        "BEGIN;"
        "CREATE TABLE workspaces (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE,"
        "  state TEXT NOT NULL, base_image TEXT NOT NULL, vcpus INTEGER NOT NULL CHECK (vcpus > 0),"
        "  memory_mb INTEGER NOT NULL CHECK (memory_mb > 0), disk_gb INTEGER NOT NULL CHECK (disk_gb > 0),"
        "  allow_internet INTEGER NOT NULL CHECK (allow_internet IN (0, 1)), address INTEGER NOT NULL UNIQUE,"
        "  mac TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, created_ms INTEGER NOT NULL, started_ms INTEGER NOT NULL,"
        "  proc_pid INTEGER, proc_start INTEGER, proc_boot TEXT, last_error TEXT,"
        "  CHECK ((proc_pid IS NULL) = (proc_start IS NULL) AND (proc_pid IS NULL) = (proc_boot IS NULL))) STRICT;"
        "INSERT INTO workspaces VALUES (3, '11111111-2222-4333-8444-555555555555', 'alpha', 'running', 'debian-dev', 2,"
        "  512, 10, 1, 4294967294, '52:54:00:00:00:0a', 'somebody', 1700000000123, 1700000001000, 4711, 123456789012,"
        "  '8d2c1f6e-1111-4222-8333-444455556666', NULL);"
        "INSERT INTO workspaces VALUES (7, '22222222-2222-4333-8444-555555555555', 'beta', 'stopped', 'debian-dev', 1,"
        "  256, 5, 0, 11, '52:54:00:00:00:0b', 'somebody', 1600000000000, 0, NULL, NULL, NULL, 'it ended');"
        "PRAGMA application_id = 1634167155; PRAGMA user_version = 1;"
        "COMMIT;";

static void check_migrated(struct db *db) {
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(db, &rows, NULL), 0);
        REQUIRE(rows.n == 2);
        const struct ws_row *alpha = &rows.v[0], *beta = &rows.v[1];
        CHECK_STR(alpha->id, "11111111-2222-4333-8444-555555555555");
        CHECK_STR(alpha->name, "alpha");
        CHECK_INT(alpha->state, WS_RUNNING);
        CHECK_STR(alpha->base_image, "debian-dev");
        CHECK_INT(alpha->vcpus, 2);
        CHECK_INT(alpha->memory_mb, 512);
        CHECK_INT(alpha->disk_gb, 10);
        CHECK(alpha->allow_internet);
        CHECK_INT(alpha->address, 4294967294);
        CHECK_STR(alpha->mac, "52:54:00:00:00:0a");
        CHECK_STR(alpha->owner, "somebody");
        CHECK_INT(alpha->created_ms, 1700000000123);
        CHECK_INT(alpha->started_ms, 1700000001000);
        CHECK(alpha->has_proc);
        CHECK_INT(alpha->proc.pid, 4711);
        CHECK_INT(alpha->proc.start_ticks, 123456789012);
        CHECK_STR(alpha->proc.boot_id, "8d2c1f6e-1111-4222-8333-444455556666");
        CHECK(!alpha->last_error);
        CHECK_STR(beta->name, "beta");
        CHECK_INT(beta->state, WS_STOPPED);
        CHECK(!beta->allow_internet);
        CHECK_INT(beta->created_ms, 1600000000000);
        CHECK(!beta->has_proc);
        CHECK_STR(beta->last_error, "it ended");
        for (size_t i = 0; i < rows.n; i++) {
                const struct ws_row *row = &rows.v[i];
                CHECK_STR(row->disk, row->id);
                CHECK_STR(row->parent, "");
                CHECK_STR(row->memory_base, "");
                CHECK_INT(row->slot, 0);
                CHECK(!row->pooled);
                CHECK(!row->allow_inter_vm && !row->allowed_ports);
                CHECK(!row->session);
                CHECK_STR(row->origin.workspace_id, "");
                CHECK(!row->origin.workspace_name && !row->origin.snapshot_name);
        }
        _cleanup_(snap_rows_clear) struct snap_rows snaps = {0};
        CHECK_INT(db_snap_list(db, &snaps, NULL), 0);
        CHECK_INT(snaps.n, 0);
}

static void test_version_1_with_rows(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *copy = str_printf("%s.v1.bak", path);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_db_ struct db *db = NULL;
        meddle(path, version_1);
        CHECK_INT(db_open(path, &db, &err), 0);
        REQUIRE(db);
        check_migrated(db);
        CHECK_INT(ask(path, "PRAGMA user_version"), 3);
        CHECK_INT(ask(copy, "PRAGMA user_version"), 1);
        CHECK_INT(ask(copy, "SELECT count(*) FROM workspaces"), 2);

        /* The rows can be used, what must be unique still is, and a new one comes last. */
        _cleanup_ws_row_ struct ws_row row = make_row("beta", 12);
        CHECK_INT(db_ws_insert(db, &row, &err), -EEXIST);
        CHECK(strstr(error_message(&err), "22222222-2222-4333-8444-555555555555"));
        str_replace(&row.name, "gamma");
        CHECK_INT(db_ws_insert(db, &row, &err), 0);
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(db, &rows, &err), 0);
        REQUIRE(rows.n == 3);
        CHECK_STR(rows.v[2].name, "gamma");
        rows.v[1].slot = 1;
        CHECK_INT(db_ws_update(db, &rows.v[1], &err), 0);

        /* Opened again, nothing is done to it. */
        db_close(TAKE_PTR(db));
        CHECK(unlink(copy) == 0);
        CHECK_INT(db_open(path, &db, &err), 0);
        CHECK_INT(ask(path, "SELECT slot FROM workspaces WHERE name = 'beta'"), 1);
        struct stat st;
        CHECK(stat(copy, &st) < 0);
}

/* A migration that fails after it has copied the rows: the file is that of the first version, and opens when the cause
 * is gone. */
static void test_version_1_with_a_stranger(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_db_ struct db *db = NULL;
        meddle(path, version_1);
        meddle(path, "CREATE TABLE snapshots (photo BLOB)");
        CHECK(db_open(path, &db, &err) < 0);
        CHECK(!db);
        CHECK(strstr(error_message(&err), "chema version 2"));
        CHECK(strstr(error_message(&err), "snapshots"));
        CHECK_INT(ask(path, "PRAGMA user_version"), 1);
        CHECK_INT(ask(path, "SELECT count(*) FROM workspaces"), 2);
        CHECK_INT(ask(path, "SELECT count(*) FROM sqlite_schema WHERE name = 'workspaces_2'"), 0);
        meddle(path, "DROP TABLE snapshots");
        CHECK_INT(db_open(path, &db, &err), 0);
        REQUIRE(db);
        check_migrated(db);
}

/* The schema itself refuses what makes no sense, whoever writes it. */
static void test_constraints(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_db_ struct db *db = NULL;
        _cleanup_ws_row_ struct ws_row row = make_row("alpha", 12);
        _cleanup_snap_row_ struct snap_row snap = make_snap(row.id, "before"), memory = make_snap(row.id, "with");
        REQUIRE(db_open(path, &db, NULL) == 0);
        CHECK_INT(db_ws_insert(db, &row, NULL), 0);
        CHECK_INT(db_snap_insert(db, &snap, NULL), 0);
        CHECK_INT(db_snap_insert(db, &memory, NULL), 0);
        static const char *const changes[] = {
                "UPDATE workspaces SET slot = 2",
                "UPDATE workspaces SET pooled = 2",
                "UPDATE workspaces SET pooled = 1",
                "UPDATE workspaces SET disk = NULL",
                "UPDATE workspaces SET origin_name = 'nobody'",
                "UPDATE workspaces SET proc_pid = 5",
                "UPDATE snapshots SET has_disk = 2",
                "UPDATE snapshots SET memory_base = 'x'",
                "UPDATE snapshots SET base_image = NULL",
                "UPDATE snapshots SET pause_us = -1",
                "UPDATE snapshots SET name = 'same'",
        };
        for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                CHECK(db_exec(db, changes[i], "try it", &err) < 0);
                if (!strstr(error_message(&err), "constraint failed"))
                        tap_fail(__FILE__, __LINE__, changes[i]);
        }
}

int main(void) {
        RUN(test_migration_keeps_a_copy);
        RUN(test_failed_migration_changes_nothing);
        RUN(test_newer_file_is_refused);
        RUN(test_released_schema);
        RUN(test_version_1_with_rows);
        RUN(test_version_1_with_a_stranger);
        RUN(test_constraints);
        return tap_done();
}
