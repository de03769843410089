/* SPDX-License-Identifier: Apache-2.0 */
/* The store over real SQLite files: rows, conflicts, threads, damage, a full disk. */
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>

#include "base/thread.h"
#include "state/db.h"
#include "state/scratch.h"

static struct ws_row make_row(const char *name, uint32_t address) {
        struct ws_row row = {
                .name = strdup(name),
                .base_image = strdup("debian-dev"),
                .owner = strdup("0b7f6c1e-0000-4000-8000-000000000001"),
                .vcpus = 2,
                .memory_mb = 512,
                .disk_gb = 10,
                .address = address,
                .created_ms = 1700000000123,
        };
        uuid_new(row.id);
        snprintf(row.mac, sizeof(row.mac), "52:54:00:00:%02x:%02x", (address >> 8) & 0xff, address & 0xff);
        return row;
}

static void test_round_trip(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ws_row_ struct ws_row row = make_row("alpha", 0xfffffffe);
        {
                _cleanup_db_ struct db *db = NULL;
                CHECK_INT(db_open(path, &db, &err), 0);
                REQUIRE(db);
                CHECK_INT(db_ws_insert(db, &row, &err), 0);

                row.state = WS_RUNNING;
                row.started_ms = 1700000001000;
                row.has_proc = true;
                row.proc = (struct proc_id){.pid = 4711, .start_ticks = 123456789012ull};
                snprintf(row.proc.boot_id, sizeof(row.proc.boot_id), "8d2c1f6e-1111-4222-8333-444455556666");
                row.last_error = strdup("a 'quoted' \"text\"\nwith lines");
                row.allow_internet = true;
                CHECK_INT(db_ws_update(db, &row, &err), 0);
        }
        /* What was acknowledged is there after the connection is gone. */
        _cleanup_db_ struct db *db = NULL;
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_open(path, &db, &err), 0);
        REQUIRE(db);
        CHECK_INT(db_ws_list(db, &rows, &err), 0);
        REQUIRE(rows.n == 1);
        CHECK_STR(rows.v[0].id, row.id);
        CHECK_STR(rows.v[0].name, "alpha");
        CHECK_INT(rows.v[0].state, WS_RUNNING);
        CHECK_STR(rows.v[0].base_image, "debian-dev");
        CHECK_INT(rows.v[0].vcpus, 2);
        CHECK_INT(rows.v[0].memory_mb, 512);
        CHECK_INT(rows.v[0].disk_gb, 10);
        CHECK(rows.v[0].allow_internet);
        CHECK_INT(rows.v[0].address, 0xfffffffe);
        CHECK_STR(rows.v[0].mac, row.mac);
        CHECK_STR(rows.v[0].owner, row.owner);
        CHECK_INT(rows.v[0].created_ms, 1700000000123);
        CHECK_INT(rows.v[0].started_ms, 1700000001000);
        CHECK(rows.v[0].has_proc);
        CHECK_INT(rows.v[0].proc.pid, 4711);
        CHECK_INT(rows.v[0].proc.start_ticks, 123456789012);
        CHECK_STR(rows.v[0].proc.boot_id, row.proc.boot_id);
        CHECK_STR(rows.v[0].last_error, row.last_error);

        /* Without a process and a reason again: the kept statement has forgotten the old values. */
        row.has_proc = false;
        free(TAKE_PTR(row.last_error));
        CHECK_INT(db_ws_update(db, &row, &err), 0);
        ws_rows_clear(&rows);
        CHECK_INT(db_ws_list(db, &rows, &err), 0);
        REQUIRE(rows.n == 1);
        CHECK(!rows.v[0].has_proc);
        CHECK(!rows.v[0].last_error);
}

static void test_order_and_delete(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_db_ struct db *db = NULL;
        REQUIRE(db_open(path, &db, &err) == 0);

        /* The later one says that it is older: the clock was set back between them. */
        _cleanup_ws_row_ struct ws_row first = make_row("zeta", 10), second = make_row("alpha", 11);
        second.created_ms = first.created_ms - 1000;
        CHECK_INT(db_ws_insert(db, &first, &err), 0);
        CHECK_INT(db_ws_insert(db, &second, &err), 0);
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(db, &rows, &err), 0);
        REQUIRE(rows.n == 2);
        CHECK_STR(rows.v[0].name, "zeta");
        CHECK_STR(rows.v[1].name, "alpha");

        CHECK_INT(db_ws_delete(db, first.id, &err), 0);
        CHECK_INT(db_ws_delete(db, first.id, &err), -ENOENT);
        CHECK_INT(err.code, ERROR_NOT_FOUND);
        CHECK_INT(db_ws_update(db, &first, &err), -ENOENT);
        /* Name and address are free again. */
        CHECK_INT(uuid_new(first.id), 0);
        CHECK_INT(db_ws_insert(db, &first, &err), 0);
}

static void test_conflicts(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_db_ struct db *db = NULL;
        REQUIRE(db_open(path, &db, &err) == 0);

        _cleanup_ws_row_ struct ws_row a = make_row("alpha", 10), same_name = make_row("alpha", 11),
                                       same_address = make_row("beta", 10);
        CHECK_INT(db_ws_insert(db, &a, &err), 0);
        CHECK_INT(db_ws_insert(db, &same_name, &err), -EEXIST);
        CHECK_INT(err.code, ERROR_CONFLICT);
        CHECK(strstr(error_message(&err), a.id));
        CHECK_INT(db_ws_insert(db, &same_address, &err), -EEXIST);
        CHECK(strstr(error_message(&err), a.id));
        /* A refused row leaves nothing, and the store goes on. */
        snprintf(same_address.mac, sizeof(same_address.mac), "52:54:00:00:00:ff");
        same_address.address = 12;
        CHECK_INT(db_ws_insert(db, &same_address, &err), 0);
}

#define RACERS 50

struct racer {
        struct db *db;
        pthread_barrier_t *start;
        unsigned i;
        int result;
};

static void *race(void *arg) {
        struct racer *racer = arg;
        _cleanup_ws_row_ struct ws_row row = make_row("only-one", 100 + racer->i);
        _cleanup_error_ struct error err = ERROR_INIT;
        pthread_barrier_wait(racer->start);
        racer->result = db_ws_insert(racer->db, &row, &err);
        return NULL;
}

static void test_insert_race(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_db_ struct db *db = NULL;
        REQUIRE(db_open(path, &db, NULL) == 0);

        struct racer racers[RACERS];
        pthread_t threads[RACERS];
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, RACERS);
        for (unsigned i = 0; i < RACERS; i++) {
                racers[i] = (struct racer){.db = db, .start = &start, .i = i};
                REQUIRE(thread_start(&threads[i], "racer", race, &racers[i]) == 0);
        }
        unsigned won = 0, refused = 0;
        for (unsigned i = 0; i < RACERS; i++) {
                pthread_join(threads[i], NULL);
                won += racers[i].result == 0;
                refused += racers[i].result == -EEXIST;
        }
        pthread_barrier_destroy(&start);
        CHECK_INT(won, 1);
        CHECK_INT(refused, RACERS - 1);
}

static void test_files_are_private(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        mode_t old = umask(0);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        {
                _cleanup_db_ struct db *db = NULL;
                _cleanup_ws_row_ struct ws_row row = make_row("alpha", 10);
                CHECK_INT(db_open(path, &db, NULL), 0);
                REQUIRE(db);
                CHECK_INT(db_ws_insert(db, &row, NULL), 0);
                static const char *const names[] = {"state.db", "state.db-wal", "state.db-shm"};
                for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                        _cleanup_free_ char *file = path_join(dir, names[i]);
                        struct stat st;
                        CHECK(stat(file, &st) == 0 && (st.st_mode & 0777) == 0600);
                }
        }
        /* One that was opened to others is closed to them again. */
        struct stat st;
        CHECK(chmod(path, 0644) == 0);
        _cleanup_db_ struct db *db = NULL;
        CHECK_INT(db_open(path, &db, NULL), 0);
        CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
        umask(old);
}

/* Overwrites part of the file; the store must say so and leave it as it is. */
static void check_refused(const char *path, off_t at, const char *what) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct stat before, after;
        char noise[4096];
        memset(noise, 0xa5, sizeof(noise));
        int fd = open(path, O_RDWR);
        CHECK(fd >= 0 && pwrite(fd, noise, sizeof(noise), at) == (ssize_t) sizeof(noise));
        close(fd);
        CHECK(stat(path, &before) == 0);

        struct db *db = NULL;
        CHECK(db_open(path, &db, &err) < 0);
        CHECK(!db);
        CHECK_INT(err.code, ERROR_INTERNAL);
        CHECK(strstr(error_message(&err), "damaged"));
        CHECK(strstr(error_message(&err), path));
        CHECK(err.hint && strstr(err.hint, "copy"));
        CHECK(stat(path, &after) == 0 && after.st_size == before.st_size);
        printf("# %s: %s\n", what, error_message(&err));
}

static void test_damage_is_refused(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        {
                _cleanup_db_ struct db *db = NULL;
                REQUIRE(db_open(path, &db, NULL) == 0);
                for (unsigned i = 0; i < 100; i++) {
                        char name[16];
                        snprintf(name, sizeof(name), "ws-%u", i);
                        _cleanup_ws_row_ struct ws_row row = make_row(name, 100 + i);
                        CHECK_INT(db_ws_insert(db, &row, NULL), 0);
                }
        }
        check_refused(path, 4096, "second page");
        check_refused(path, 0, "header");
}

static void test_foreign_file_is_refused(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        sqlite3 *other = NULL;
        CHECK_INT(sqlite3_open(path, &other), SQLITE_OK);
        CHECK_INT(sqlite3_exec(other, "CREATE TABLE bookmarks (url TEXT)", NULL, NULL, NULL), SQLITE_OK);
        sqlite3_close(other);

        struct db *db = NULL;
        CHECK(db_open(path, &db, &err) < 0);
        CHECK_INT(err.code, ERROR_CONFLICT);
        CHECK(err.hint && strstr(err.hint, "state_dir"));
}

static void test_strange_rows_are_refused(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ws_row_ struct ws_row row = make_row("alpha", 10);
        _cleanup_db_ struct db *db = NULL;
        REQUIRE(db_open(path, &db, NULL) == 0);
        REQUIRE(db_ws_insert(db, &row, NULL) == 0);

        static const char *const changes[] = {
                "UPDATE workspaces SET state = 'levitating'",
                "UPDATE workspaces SET state = 'stopped', id = '../../etc'",
        };
        for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
                sqlite3 *other = NULL;
                CHECK_INT(sqlite3_open(path, &other), SQLITE_OK);
                CHECK_INT(sqlite3_exec(other, changes[i], NULL, NULL, NULL), SQLITE_OK);
                sqlite3_close(other);
                struct ws_rows rows = {0};
                CHECK(db_ws_list(db, &rows, &err) < 0);
                CHECK_INT(rows.n, 0);
                CHECK(strstr(error_message(&err), "makes no sense"));
        }
}

static void test_backup(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *copy = path_join(dir, "copy.db");
        _cleanup_ws_row_ struct ws_row row = make_row("alpha", 10), later = make_row("later", 11);
        _cleanup_db_ struct db *db = NULL, *other = NULL;
        REQUIRE(db_open(path, &db, NULL) == 0);
        CHECK_INT(db_ws_insert(db, &row, NULL), 0);
        CHECK_INT(db_backup(db, copy, NULL), 0);
        CHECK_INT(db_ws_insert(db, &later, NULL), 0);

        struct stat st;
        CHECK(stat(copy, &st) == 0 && (st.st_mode & 0777) == 0600);
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_open(copy, &other, NULL), 0);
        REQUIRE(other);
        CHECK_INT(db_ws_list(other, &rows, NULL), 0);
        CHECK_INT(rows.n, 1);
        /* Over an older copy. */
        db_close(TAKE_PTR(other));
        CHECK_INT(db_backup(db, copy, NULL), 0);
        ws_rows_clear(&rows);
        CHECK_INT(db_open(copy, &other, NULL), 0);
        REQUIRE(other);
        CHECK_INT(db_ws_list(other, &rows, NULL), 0);
        CHECK_INT(rows.n, 2);
}

static void test_full_disk(void) {
        _cleanup_scratch_ char *dir = scratch_small(4096);
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *ballast = path_join(dir, "ballast");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ws_row_ struct ws_row row = make_row("alpha", 10), doomed = make_row("doomed", 11);
        {
                _cleanup_db_ struct db *db = NULL;
                REQUIRE(db_open(path, &db, &err) == 0);
                CHECK_INT(db_ws_insert(db, &row, &err), 0);
                CHECK_INT(db_ws_insert(db, &doomed, &err), 0);
                scratch_fill(ballast);

                /* What does not fit is refused and leaves no trace. */
                size_t huge = 8u << 20;
                row.last_error = calloc(1, huge + 1);
                REQUIRE(row.last_error);
                memset(row.last_error, 'x', huge);
                CHECK(db_ws_update(db, &row, &err) < 0);
                CHECK_INT(err.code, ERROR_NO_SPACE);
                CHECK(err.hint);
                printf("# %s\n", error_message(&err));
                free(TAKE_PTR(row.last_error));
                error_clear(&err);
        }
        /* Stopping and destroying goes on, however often, also after a restart: that is what makes room again. */
        {
                _cleanup_db_ struct db *db = NULL;
                scratch_fill(ballast);
                CHECK_INT(db_open(path, &db, &err), 0);
                REQUIRE(db);
                scratch_fill(ballast);
                int r = 0;
                for (unsigned i = 0; i < 500 && r == 0; i++) {
                        row.state = i % 2 ? WS_RUNNING : WS_STOPPING;
                        r = db_ws_update(db, &row, &err);
                }
                CHECK_INT(r, 0);
                CHECK_INT(db_ws_delete(db, doomed.id, &err), 0);
                CHECK_STR(error_is_set(&err) ? error_message(&err) : "", "");
        }
        CHECK(unlink(ballast) == 0);
        _cleanup_db_ struct db *db = NULL;
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_open(path, &db, NULL), 0);
        REQUIRE(db);
        CHECK_INT(db_ws_list(db, &rows, NULL), 0);
        REQUIRE(rows.n == 1);
        CHECK_INT(rows.v[0].state, WS_RUNNING);
        CHECK(!rows.v[0].last_error);
}

static void test_open_on_a_full_disk(void) {
        _cleanup_scratch_ char *dir = scratch_small(64);
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *ballast = path_join(dir, "ballast");
        _cleanup_error_ struct error err = ERROR_INIT;
        struct db *db = NULL;
        scratch_fill(ballast);
        CHECK(db_open(path, &db, &err) < 0);
        CHECK(!db);
        CHECK_INT(err.code, ERROR_NO_SPACE);
        printf("# %s\n", error_message(&err));
}

static void test_state_names(void) {
        for (int i = 0; i < _WS_STATE_MAX; i++) {
                enum ws_state s = _WS_STATE_MAX;
                CHECK_INT(ws_state_parse(ws_state_name((enum ws_state) i), &s), 0);
                CHECK_INT(s, i);
        }
        enum ws_state s;
        CHECK_INT(ws_state_parse("Running", &s), -EINVAL);
        CHECK_INT(ws_state_parse(NULL, &s), -EINVAL);
}

int main(void) {
        RUN(test_round_trip);
        RUN(test_order_and_delete);
        RUN(test_conflicts);
        RUN(test_insert_race);
        RUN(test_files_are_private);
        RUN(test_damage_is_refused);
        RUN(test_foreign_file_is_refused);
        RUN(test_strange_rows_are_refused);
        RUN(test_backup);
        RUN(test_state_names);
        RUN_ROOT(test_full_disk);
        RUN_ROOT(test_open_on_a_full_disk);
        return tap_done();
}
