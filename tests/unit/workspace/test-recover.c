/* SPDX-License-Identifier: Apache-2.0 */
/* Start-up over what an earlier daemon left, with no machine alive. */
#include "workspace/fixture.h"

static int restart(struct fixture *f, struct error *err) {
        struct op op = op_timeout(30000);
        fixture_close(f);
        int r = fixture_open(f, err);
        return r < 0 ? r : core_recover(f->core, &op, err);
}

static void test_every_state(void) {
        _cleanup_fixture_ struct fixture f = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        char ids[_WS_STATE_MAX][UUID_LEN + 1];
        REQUIRE(fixture_prepare(&f, NULL) == 0 && fixture_open(&f, NULL) == 0);
        for (int s = 0; s < _WS_STATE_MAX; s++)
                REQUIRE(fixture_leave(&f, ws_state_name((enum ws_state) s), (enum ws_state) s, (unsigned) s + 2, false,
                                      ids[s]) == 0);
        CHECK_INT(restart(&f, &err), 0);
        CHECK_STR(error_is_set(&err) ? error_message(&err) : "", "");

        static const struct {
                enum ws_state was;
                const char *reason; /* NULL: none */
        } stay[] = {
                {WS_STARTING, "The daemon ended while"},
                {WS_RUNNING, "The VM ended while the daemon was not running"},
                {WS_STOPPING, NULL},
                {WS_STOPPED, NULL},
        };
        for (size_t i = 0; i < ARRAY_SIZE(stay); i++) {
                _cleanup_ws_view_ struct ws_view view = {0};
                CHECK_INT(ws_get(f.core, ws_state_name(stay[i].was), NULL, &view, NULL), 0);
                CHECK_INT(view.row.state, WS_STOPPED);
                if (stay[i].reason)
                        CHECK(view.row.last_error && strstr(view.row.last_error, stay[i].reason));
                else
                        CHECK(!view.row.last_error);
        }
        _cleanup_ws_view_ struct ws_view view = {0};
        CHECK_INT(ws_get(f.core, "creating", NULL, &view, NULL), -ENOENT);
        CHECK_INT(ws_get(f.core, "destroying", NULL, &view, NULL), -ENOENT);
        CHECK_INT(fixture_count(&f, "vms"), 4);
        CHECK_INT(fixture_count(&f, "disks"), 4);
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(f.db, &rows, NULL), 0);
        CHECK_INT(rows.n, 4);
}

/* A crash may come at any moment: between the row and the folder, between folder and disk. */
static void test_half_made_and_half_gone(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1];
        REQUIRE(fixture_prepare(&f, NULL) == 0 && fixture_open(&f, NULL) == 0);
        REQUIRE(fixture_leave(&f, "bare-creating", WS_CREATING, 2, true, id) == 0);
        REQUIRE(fixture_leave(&f, "bare-destroying", WS_DESTROYING, 3, true, id) == 0);
        REQUIRE(fixture_leave(&f, "folder-only", WS_CREATING, 4, true, id) == 0);
        _cleanup_free_ char *dir = str_printf("%s/vms/%s", f.state_dir, id);
        REQUIRE(mkdir_p(dir, 0700) == 0);
        REQUIRE(fixture_leave(&f, "disk-only", WS_DESTROYING, 5, false, id) == 0);
        _cleanup_free_ char *gone = str_printf("%s/vms/%s", f.state_dir, id);
        REQUIRE(rm_rf(gone) == 0);
        CHECK_INT(restart(&f, NULL), 0);
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(f.db, &rows, NULL), 0);
        CHECK_INT(rows.n, 0);
        CHECK_INT(fixture_count(&f, "vms"), 0);
        CHECK_INT(fixture_count(&f, "disks"), 0);
}

static void test_garbage(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1], stray[UUID_LEN + 1];
        REQUIRE(fixture_prepare(&f, NULL) == 0 && fixture_open(&f, NULL) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, false, id) == 0);
        REQUIRE(fixture_leave(&f, "stray", WS_STOPPED, 3, false, stray) == 0);
        REQUIRE(db_ws_delete(f.db, stray, NULL) == 0);
        /* What does not look like ours is not touched. */
        _cleanup_free_ char *note = str_printf("%s/vms/NOTE", f.state_dir);
        REQUIRE(file_write_atomic(note, "mine", 4, 0600) == 0);
        CHECK_INT(restart(&f, NULL), 0);
        CHECK_INT(fixture_count(&f, "vms"), 2);
        CHECK_INT(fixture_count(&f, "disks"), 1);
        CHECK(access(note, F_OK) == 0);
        _cleanup_ws_view_ struct ws_view view = {0};
        CHECK_INT(ws_get(f.core, "alpha", NULL, &view, NULL), 0);
}

/* A folder in the place of a disk is what no removal expects. It does not keep the daemon from the others. */
static void test_what_cannot_be_removed(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1], stray[UUID_LEN + 1], good[UUID_LEN + 1];
        REQUIRE(fixture_prepare(&f, NULL) == 0 && fixture_open(&f, NULL) == 0);
        REQUIRE(fixture_leave(&f, "bad", WS_DESTROYING, 2, true, id) == 0 && uuid_new(stray) == 0);
        REQUIRE(fixture_leave(&f, "good", WS_STOPPING, 3, false, good) == 0);
        _cleanup_free_ char *disk = str_printf("%s/%s.qcow2", f.disks, id);
        _cleanup_free_ char *garbage = str_printf("%s/%s.qcow2", f.disks, stray);
        REQUIRE(mkdir_p(disk, 0700) == 0 && mkdir_p(garbage, 0700) == 0);
        CHECK_INT(restart(&f, NULL), 0);
        _cleanup_ws_view_ struct ws_view view = {0};
        CHECK_INT(ws_get(f.core, "good", NULL, &view, NULL), 0);
        CHECK_INT(view.row.state, WS_STOPPED);

        /* Once it can be removed, the next one who wants it does so. */
        struct op op = op_timeout(30000);
        struct ws_started started;
        _cleanup_ws_view_ struct ws_view none = {0};
        REQUIRE(rm_rf(disk) == 0);
        CHECK_INT(ws_start(f.core, "bad", &op, &none, &started, NULL), -ENOENT);
        CHECK_INT(ws_get(f.core, "bad", NULL, &none, NULL), -ENOENT);
}

/* Somebody lost state.db: the disks are all that is left of the work, so they stay. */
static void test_lost_store(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1];
        REQUIRE(fixture_prepare(&f, NULL) == 0 && fixture_open(&f, NULL) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, false, id) == 0);
        REQUIRE(db_ws_delete(f.db, id, NULL) == 0);
        CHECK_INT(restart(&f, NULL), 0);
        CHECK_INT(fixture_count(&f, "vms"), 1);
        CHECK_INT(fixture_count(&f, "disks"), 1);
}

static void test_second_recovery_changes_nothing(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1];
        REQUIRE(fixture_prepare(&f, NULL) == 0 && fixture_open(&f, NULL) == 0);
        for (int s = 0; s < _WS_STATE_MAX; s++)
                REQUIRE(fixture_leave(&f, ws_state_name((enum ws_state) s), (enum ws_state) s, (unsigned) s + 2, false,
                                      id) == 0);
        _cleanup_(ws_rows_clear) struct ws_rows first = {0}, second = {0};
        CHECK_INT(restart(&f, NULL), 0);
        CHECK_INT(db_ws_list(f.db, &first, NULL), 0);
        CHECK_INT(restart(&f, NULL), 0);
        CHECK_INT(db_ws_list(f.db, &second, NULL), 0);
        REQUIRE(first.n == 4 && second.n == 4);
        for (size_t i = 0; i < first.n; i++) {
                CHECK_STR(second.v[i].id, first.v[i].id);
                CHECK_INT(second.v[i].state, first.v[i].state);
                CHECK(str_eq(second.v[i].last_error, first.v[i].last_error));
        }
        CHECK_INT(fixture_count(&f, "vms"), 4);
        CHECK_INT(fixture_count(&f, "disks"), 4);
}

/* A process under a pid that was QEMU's once is a stranger: it is left alone. */
static void test_recycled_pid(void) {
        _cleanup_fixture_ struct fixture f = {0};
        _cleanup_ws_view_ struct ws_view view = {0};
        char id[UUID_LEN + 1];
        pid_t pid = -1;
        char *argv[] = {(char *) "sleep", (char *) "60", NULL};
        struct spawn spawn = {.argv = argv};
        REQUIRE(fixture_prepare(&f, NULL) == 0 && fixture_open(&f, NULL) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_RUNNING, 2, false, id) == 0);
        REQUIRE(process_spawn(&spawn, &pid, NULL) == 0);
        {
                _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
                REQUIRE(db_ws_list(f.db, &rows, NULL) == 0 && rows.n == 1);
                rows.v[0].has_proc = true;
                CHECK_INT(proc_id_read(pid, &rows.v[0].proc), 0);
                rows.v[0].proc.start_ticks++;
                CHECK_INT(db_ws_update(f.db, &rows.v[0], NULL), 0);
        }
        CHECK_INT(restart(&f, NULL), 0);
        CHECK_INT(ws_get(f.core, "alpha", NULL, &view, NULL), 0);
        CHECK_INT(view.row.state, WS_STOPPED);
        struct op op = op_timeout(0);
        struct process_result result;
        CHECK_INT(process_wait(pid, &op, &result), -ETIMEDOUT);
        process_end(pid, 0);
}

int main(void) {
        RUN(test_every_state);
        RUN(test_half_made_and_half_gone);
        RUN(test_garbage);
        RUN(test_what_cannot_be_removed);
        RUN(test_lost_store);
        RUN(test_second_recovery_changes_nothing);
        RUN(test_recycled_pid);
        return tap_done();
}
