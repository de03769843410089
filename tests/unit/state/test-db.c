/* SPDX-License-Identifier: Apache-2.0 */
/* The store over real SQLite files: rows of workspaces, conflicts, threads, damage, a full disk. */
#include <fcntl.h>
#include <sys/stat.h>

#include "base/thread.h"
#include "state/sample.h"
#include "state/scratch.h"

#define PARENT "11111111-2222-4333-8444-555555555555"
#define BASE "22222222-2222-4333-8444-555555555555"
#define SOURCE "33333333-2222-4333-8444-555555555555"

static void check_same_row(const struct ws_row *got, const struct ws_row *want) {
        CHECK_STR(got->id, want->id);
        CHECK_STR(got->name, want->name);
        CHECK_INT(got->state, want->state);
        CHECK_STR(got->base_image, want->base_image);
        CHECK_INT(got->vcpus, want->vcpus);
        CHECK_INT(got->memory_mb, want->memory_mb);
        CHECK_INT(got->disk_gb, want->disk_gb);
        CHECK_INT(got->allow_internet, want->allow_internet);
        CHECK_INT(got->allow_inter_vm, want->allow_inter_vm);
        CHECK_STR(got->allowed_ports, want->allowed_ports);
        CHECK_INT(got->address, want->address);
        CHECK_STR(got->mac, want->mac);
        CHECK_STR(got->owner, want->owner);
        CHECK_INT(got->pooled, want->pooled);
        CHECK_STR(got->disk, want->disk);
        CHECK_STR(got->parent, want->parent);
        CHECK_STR(got->memory_base, want->memory_base);
        CHECK_INT(got->slot, want->slot);
        CHECK_INT(got->network_ns, want->network_ns);
        CHECK_STR(got->session, want->session);
        CHECK_STR(got->origin.workspace_id, want->origin.workspace_id);
        CHECK_STR(got->origin.workspace_name, want->origin.workspace_name);
        CHECK_STR(got->origin.snapshot_name, want->origin.snapshot_name);
        CHECK_INT(got->created_ms, want->created_ms);
        CHECK_INT(got->started_ms, want->started_ms);
        CHECK_INT(got->has_proc, want->has_proc);
        CHECK_INT(got->proc.pid, want->proc.pid);
        CHECK_INT(got->proc.start_ticks, want->proc.start_ticks);
        CHECK_STR(got->proc.boot_id, want->proc.boot_id);
        CHECK_STR(got->last_error, want->last_error);
}

static void check_only_row(struct db *db, const struct ws_row *want) {
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(db, &rows, NULL), 0);
        REQUIRE(rows.n == 1);
        check_same_row(&rows.v[0], want);
}

/* Another value in everything that an update writes. */
static void change_all(struct ws_row *row) {
        str_replace(&row->name, "beta");
        row->state = WS_RUNNING;
        row->disk_gb = 20;
        row->allow_internet = true;
        row->allow_inter_vm = true;
        str_replace(&row->allowed_ports, "80,443");
        str_replace(&row->owner, "0b7f6c1e-0000-4000-8000-000000000002");
        row->pooled = false;
        uuid_new(row->disk);
        snprintf(row->parent, sizeof(row->parent), "%s", PARENT);
        snprintf(row->memory_base, sizeof(row->memory_base), "%s", BASE);
        row->slot = 1;
        row->network_ns = 4026532000;
        str_replace(&row->session, "c0ffee");
        row->created_ms = 1700000000999;
        row->started_ms = 1700000001000;
        row->has_proc = true;
        row->proc = (struct proc_id){.pid = 4711, .start_ticks = 123456789012ull};
        snprintf(row->proc.boot_id, sizeof(row->proc.boot_id), "8d2c1f6e-1111-4222-8333-444455556666");
        str_replace(&row->last_error, "a 'quoted' \"text\"\nwith lines and a \xff");
}

static void test_round_trip(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ws_row_ struct ws_row row = make_row("alpha", 0xfffffffe), plain = {0};
        CHECK_INT(ws_row_copy(&plain, &row), 0);
        {
                _cleanup_db_ struct db *db = NULL;
                CHECK_INT(db_open(path, &db, &err), 0);
                REQUIRE(db);
                CHECK_INT(db_ws_insert(db, &row, &err), 0);
                check_only_row(db, &row);
                change_all(&row);
                CHECK_INT(db_ws_update(db, &row, &err), 0);
        }
        /* What was acknowledged is there after the connection is gone. */
        _cleanup_db_ struct db *db = NULL;
        CHECK_INT(db_open(path, &db, &err), 0);
        REQUIRE(db);
        check_only_row(db, &row);

        /* Without a process, a session and a reason again: the kept statement has forgotten the old values. */
        CHECK_INT(db_ws_update(db, &plain, &err), 0);
        check_only_row(db, &plain);
}

/* All of a row can be there from the beginning; what an update must not change stays. */
static void test_fork_row(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_db_ struct db *db = NULL;
        _cleanup_ws_row_ struct ws_row row = make_row("fork", 10), other = {0};
        REQUIRE(db_open(path, &db, &err) == 0);
        change_all(&row);
        row.origin = (struct ws_origin){.workspace_id = SOURCE, .workspace_name = strdup("source")};
        row.origin.snapshot_name = strdup("before");
        CHECK_INT(db_ws_insert(db, &row, &err), 0);
        check_only_row(db, &row);

        CHECK_INT(ws_row_copy(&other, &row), 0);
        check_same_row(&other, &row);
        CHECK(other.session != row.session && other.origin.workspace_name != row.origin.workspace_name &&
              other.origin.snapshot_name != row.origin.snapshot_name);
        str_replace(&other.base_image, "another");
        other.vcpus = 7;
        other.memory_mb = 777;
        other.address = 11;
        snprintf(other.mac, sizeof(other.mac), "52:54:00:00:00:ff");
        snprintf(other.origin.workspace_id, sizeof(other.origin.workspace_id), "%s", PARENT);
        str_replace(&other.origin.workspace_name, "another");
        str_replace(&other.origin.snapshot_name, NULL);
        CHECK_INT(db_ws_update(db, &other, &err), 0);
        check_only_row(db, &row);
}

/* One of the pool has no owner; it gets one together with its name and its time when it is handed out. */
static void test_pool_row(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_db_ struct db *db = NULL;
        _cleanup_ws_row_ struct ws_row row = make_row("pool-1", 10);
        REQUIRE(db_open(path, &db, &err) == 0);
        row.pooled = true;
        CHECK(db_ws_insert(db, &row, &err) < 0);
        CHECK(strstr(error_message(&err), "pooled"));
        str_replace(&row.owner, "");
        CHECK_INT(db_ws_insert(db, &row, &err), 0);
        check_only_row(db, &row);
        change_all(&row);
        CHECK_INT(db_ws_update(db, &row, &err), 0);
        check_only_row(db, &row);
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
                                       same_address = make_row("beta", 10), same_disk = make_row("gamma", 13);
        CHECK_INT(db_ws_insert(db, &a, &err), 0);
        CHECK_INT(db_ws_insert(db, &same_name, &err), -EEXIST);
        CHECK_INT(err.code, ERROR_CONFLICT);
        CHECK(strstr(error_message(&err), a.id));
        CHECK(strstr(error_message(&err), "alpha"));
        CHECK_INT(db_ws_insert(db, &same_address, &err), -EEXIST);
        CHECK(strstr(error_message(&err), a.id));
        CHECK(strstr(error_message(&err), "address"));
        memcpy(same_disk.disk, a.disk, sizeof(a.disk));
        CHECK_INT(db_ws_insert(db, &same_disk, &err), -EEXIST);
        CHECK(strstr(error_message(&err), a.id));
        CHECK(strstr(error_message(&err), "disk"));
        CHECK_INT(db_ws_insert(db, &a, &err), -EEXIST);
        CHECK(strstr(error_message(&err), a.id));
        /* A refused row leaves nothing, and the store goes on. */
        snprintf(same_address.mac, sizeof(same_address.mac), "52:54:00:00:00:ff");
        same_address.address = 12;
        CHECK_INT(db_ws_insert(db, &same_address, &err), 0);
}

static void test_rename(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_db_ struct db *db = NULL;
        _cleanup_ws_row_ struct ws_row a = make_row("alpha", 10), b = make_row("beta", 11), moved = {0};
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        REQUIRE(db_open(path, &db, &err) == 0);
        CHECK_INT(db_ws_insert(db, &a, &err), 0);
        CHECK_INT(db_ws_insert(db, &b, &err), 0);
        CHECK_INT(ws_row_copy(&moved, &b), 0);
        str_replace(&moved.name, "alpha");
        moved.state = WS_STOPPED;
        CHECK_INT(db_ws_update(db, &moved, &err), -EEXIST);
        CHECK_INT(err.code, ERROR_CONFLICT);
        CHECK(strstr(error_message(&err), a.id));
        CHECK(err.hint);
        str_replace(&moved.name, "beta");
        memcpy(moved.disk, a.disk, sizeof(a.disk));
        CHECK_INT(db_ws_update(db, &moved, &err), -EEXIST);
        CHECK(strstr(error_message(&err), a.id));
        CHECK_INT(db_ws_list(db, &rows, &err), 0);
        REQUIRE(rows.n == 2);
        check_same_row(&rows.v[0], &a);
        check_same_row(&rows.v[1], &b);
        /* The name is free once the other one has let it go. */
        str_replace(&a.name, "gamma");
        str_replace(&b.name, "alpha");
        CHECK_INT(db_ws_update(db, &a, &err), 0);
        CHECK_INT(db_ws_update(db, &b, &err), 0);
}

/* Makes a change to a copy of a row and tries to store that. */
#define CHECK_NOT_WRITTEN(db, good, change, what)                         \
        do {                                                              \
                _cleanup_error_ struct error err = ERROR_INIT;            \
                _cleanup_ws_row_ struct ws_row row = {0};                 \
                CHECK_INT(ws_row_copy(&row, good), 0);                    \
                change;                                                   \
                CHECK(db_ws_update(db, &row, &err) < 0);                  \
                CHECK_INT(err.code, ERROR_INTERNAL);                      \
                CHECK(strstr(error_message(&err), "its " what " makes")); \
                CHECK(strstr(error_message(&err), row.id));               \
                check_only_row(db, good);                                 \
        } while (0)

/* What could not be read again is not written. */
static void test_strange_rows_are_not_written(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *huge = str_printf("%5000d", 1);
        _cleanup_db_ struct db *db = NULL;
        _cleanup_ws_row_ struct ws_row good = make_row("alpha", 10);
        REQUIRE(db_open(path, &db, NULL) == 0);
        CHECK_INT(db_ws_insert(db, &good, NULL), 0);

        CHECK_NOT_WRITTEN(db, &good, str_replace(&row.name, huge), "name");
        CHECK_NOT_WRITTEN(db, &good, str_replace(&row.name, ""), "name");
        CHECK_NOT_WRITTEN(db, &good, str_replace(&row.name, "\xff"), "name");
        CHECK_NOT_WRITTEN(db, &good, str_replace(&row.owner, NULL), "owner");
        CHECK_NOT_WRITTEN(db, &good, row.state = _WS_STATE_MAX, "state");
        CHECK_NOT_WRITTEN(db, &good, row.slot = 2, "slot");
        CHECK_NOT_WRITTEN(db, &good, *row.disk = 0, "disk");
        CHECK_NOT_WRITTEN(db, &good, memcpy(row.parent, "../../etc", 10), "parent");
        CHECK_NOT_WRITTEN(db, &good, row.disk_gb = 0, "disk_gb");
        CHECK_NOT_WRITTEN(db, &good, row.has_proc = true, "proc_pid");
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

        static const struct {
                const char *column, *sql;
        } changes[] = {
                {"state", "state = 'levitating'"},
                {"id", "id = '../../etc'"},
                {"id", "id = '0b7f6c1e-0000-4000-8000-000000000001-and-more'"},
                {"name", "name = ''"},
                {"name", "name = printf('%.*c', 5000, 'x')"},
                {"name", "name = CAST(x'616200' AS TEXT)"}, /* a NUL inside */
                {"name", "name = CAST(x'6162ff' AS TEXT)"},
                {"mac", "mac = '52:54:00:00:00:0a:0b'"},
                {"slot", "slot = 2"},
                {"pooled", "pooled = -1"},
                {"allow_internet", "allow_internet = 2"},
                {"allow_inter_vm", "allow_inter_vm = 2"},
                {"allowed_ports", "allowed_ports = ''"},
                {"vcpus", "vcpus = 4294967296"},
                {"address", "address = -1"},
                {"disk", "disk = ''"},
                {"parent", "parent = 'somewhere'"},
                {"memory_base", "memory_base = '0b7f6c1e-0000-4000-8000-00000000000'"},
                {"session", "session = printf('%.*c', 5000, 'x')"},
                {"origin_id", "origin_id = 'x'"},
                {"proc_pid", "proc_pid = 1, proc_start = 1, proc_boot = '8d2c1f6e-1111-4222-8333-444455556666'"},
                {"proc_boot", "proc_pid = 2, proc_start = 1, proc_boot = printf('%.*c', 37, 'x')"},
                {"proc_start", "proc_pid = 2, proc_boot = '8d2c1f6e-1111-4222-8333-444455556666'"},
                {"proc_boot", "proc_boot = '8d2c1f6e-1111-4222-8333-444455556666'"},
                {"last_error", "last_error = printf('%.*c', 2000000, 'x')"},
        };
        for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
                _cleanup_free_ char *sql = str_printf("UPDATE workspaces SET %s", changes[i].sql);
                struct ws_rows rows = {0};
                meddle(path, sql);
                CHECK(db_ws_list(db, &rows, &err) < 0);
                CHECK_INT(rows.n, 0);
                CHECK_INT(err.code, ERROR_INTERNAL);
                CHECK(strstr(error_message(&err), "makes no sense"));
                const char *colon = strrchr(error_message(&err), ' ');
                CHECK_STR(colon ? colon + 1 : NULL, changes[i].column);
                CHECK(err.hint);
                meddle(path, "DELETE FROM workspaces");
                CHECK_INT(db_ws_insert(db, &row, &err), 0);
        }
        /* And the row as it was is read again. */
        check_only_row(db, &row);
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
                size_t huge = 1u << 20;
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

/* The file has grown while there was room, so the log can be written into it when there is none. */
static void test_full_disk_after_growth(void) {
        _cleanup_scratch_ char *dir = scratch_small(6144);
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *ballast = path_join(dir, "ballast");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ws_row_ struct ws_row row = make_row("small", 10);
        _cleanup_db_ struct db *db = NULL;
        char doomed[UUID_LEN + 1] = "";
        REQUIRE(db_open(path, &db, &err) == 0);
        CHECK_INT(db_ws_insert(db, &row, &err), 0);
        for (unsigned i = 0; i < 12; i++) { /* together more than a MiB, by which the file grows */
                char name[16];
                snprintf(name, sizeof(name), "ws-%u", i);
                _cleanup_ws_row_ struct ws_row large = make_row(name, 100 + i);
                CHECK_INT(db_ws_insert(db, &large, &err), 0);
                large.last_error = str_printf("%100000u", i);
                CHECK_INT(db_ws_update(db, &large, &err), 0);
                memcpy(doomed, large.id, sizeof(doomed));
        }
        scratch_fill(ballast);
        int r = 0;
        for (unsigned i = 0; i < 1000 && r == 0; i++) {
                row.started_ms = i;
                r = db_ws_update(db, &row, &err);
        }
        CHECK_INT(r, 0);
        CHECK_INT(db_ws_delete(db, doomed, &err), 0);
        CHECK_STR(error_is_set(&err) ? error_message(&err) : "", "");
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
        RUN(test_fork_row);
        RUN(test_pool_row);
        RUN(test_order_and_delete);
        RUN(test_conflicts);
        RUN(test_rename);
        RUN(test_strange_rows_are_not_written);
        RUN(test_insert_race);
        RUN(test_files_are_private);
        RUN(test_damage_is_refused);
        RUN(test_foreign_file_is_refused);
        RUN(test_strange_rows_are_refused);
        RUN(test_backup);
        RUN(test_state_names);
        RUN_ROOT(test_full_disk);
        RUN_ROOT(test_full_disk_after_growth);
        RUN_ROOT(test_open_on_a_full_disk);
        return tap_done();
}
