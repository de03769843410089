/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of snapshots, alone and together with their workspace's. */
#include "state/sample.h"
#include "state/scratch.h"

#define WORKSPACE "0b7f6c1e-1111-4000-8000-000000000001"
#define OTHER "0b7f6c1e-1111-4000-8000-000000000002"
#define PARENT "11111111-2222-4333-8444-555555555555"
#define BASE "22222222-2222-4333-8444-555555555555"

/* A store of its own for each test. */
struct store {
        char *dir, *path;
        struct db *db;
};

static bool store_open(struct store *s) {
        s->dir = scratch_new();
        s->path = s->dir ? path_join(s->dir, "state.db") : NULL;
        return s->path && db_open(s->path, &s->db, NULL) == 0;
}

static void store_close(struct store *s) {
        db_close(s->db);
        free(s->path);
        scratch_remove(&s->dir);
}
#define _cleanup_store_ _cleanup_(store_close)

static void check_same_snap(const struct snap_row *got, const struct snap_row *want) {
        CHECK_STR(got->id, want->id);
        CHECK_STR(got->workspace, want->workspace);
        CHECK_STR(got->name, want->name);
        CHECK_INT(got->state, want->state);
        CHECK_INT(got->has_disk, want->has_disk);
        CHECK_INT(got->memory, want->memory);
        CHECK_STR(got->parent, want->parent);
        CHECK_STR(got->memory_base, want->memory_base);
        CHECK_STR(got->key, want->key);
        CHECK_STR(got->base_image, want->base_image);
        CHECK_INT(got->vcpus, want->vcpus);
        CHECK_INT(got->memory_mb, want->memory_mb);
        CHECK_INT(got->disk_gb, want->disk_gb);
        CHECK_STR(got->session, want->session);
        CHECK_INT(got->created_ms, want->created_ms);
        CHECK_INT(got->used_ms, want->used_ms);
        CHECK_INT(got->pause_us, want->pause_us);
        CHECK_INT(got->file_bytes, want->file_bytes);
}

static void check_snaps(struct db *db, const struct snap_row *const *want, size_t n) {
        _cleanup_(snap_rows_clear) struct snap_rows rows = {0};
        CHECK_INT(db_snap_list(db, &rows, NULL), 0);
        REQUIRE(rows.n == n);
        for (size_t i = 0; i < n; i++)
                check_same_snap(&rows.v[i], want[i]);
}
#define CHECK_SNAPS(db, ...)                                              \
        do {                                                              \
                const struct snap_row *const _want[] = {__VA_ARGS__};     \
                check_snaps(db, _want, sizeof(_want) / sizeof(_want[0])); \
        } while (0)

/* Another value in everything that an update writes. */
static void change_all(struct snap_row *row) {
        str_replace(&row->name, "later");
        row->state = SNAP_DELETING;
        row->memory = SNAP_MEMORY_PAGES;
        snprintf(row->parent, sizeof(row->parent), "%s", PARENT);
        snprintf(row->memory_base, sizeof(row->memory_base), "%s", BASE);
        str_replace(&row->key, "5b2f");
        str_replace(&row->base_image, "another");
        row->vcpus = 8;
        row->memory_mb = 8192;
        row->disk_gb = 100;
        str_replace(&row->session, "c0ffee");
        row->used_ms = 1700000009999;
        row->pause_us = 3141;
        row->file_bytes = 123456789012345;
}

static void test_round_trip(void) {
        _cleanup_store_ struct store s = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_snap_row_ struct snap_row row = make_snap(WORKSPACE, "before"), plain = {0};
        REQUIRE(store_open(&s));
        CHECK_INT(snap_row_copy(&plain, &row), 0);
        CHECK_INT(db_snap_insert(s.db, &row, &err), 0);
        CHECK_SNAPS(s.db, &row);
        change_all(&row);
        CHECK_INT(db_snap_update(s.db, &row, NULL, &err), 0);
        db_close(TAKE_PTR(s.db));
        REQUIRE(db_open(s.path, &s.db, &err) == 0);
        CHECK_SNAPS(s.db, &row);

        /* Back, but for what an update leaves as it is. */
        _cleanup_snap_row_ struct snap_row back = {0};
        CHECK_INT(snap_row_copy(&back, &plain), 0);
        snprintf(back.workspace, sizeof(back.workspace), "%s", OTHER);
        back.created_ms = 1;
        CHECK_INT(db_snap_update(s.db, &back, NULL, &err), 0);
        CHECK_SNAPS(s.db, &plain);

        /* A template: whole from the beginning, and of no workspace, disk or image. */
        _cleanup_snap_row_ struct snap_row template = make_snap("", NULL);
        template.has_disk = false;
        template.memory = SNAP_MEMORY_TEMPLATE;
        template.disk_gb = 0;
        template.state = SNAP_CREATING;
        str_replace(&template.key, "77aa");
        str_replace(&template.session, "0123");
        str_replace(&template.base_image, NULL);
        CHECK_INT(db_snap_insert(s.db, &template, &err), 0);
        CHECK_SNAPS(s.db, &plain, &template);
        template.memory = SNAP_MEMORY_WHOLE;
        template.state = SNAP_READY;
        CHECK_INT(db_snap_update(s.db, &template, NULL, &err), 0);
        CHECK_SNAPS(s.db, &plain, &template);
        CHECK_STR(error_is_set(&err) ? error_message(&err) : "", "");
}

static void test_copy(void) {
        _cleanup_snap_row_ struct snap_row row = make_snap(WORKSPACE, "before"), copy = {0};
        change_all(&row);
        CHECK_INT(snap_row_copy(&copy, &row), 0);
        check_same_snap(&copy, &row);
        CHECK(copy.name != row.name && copy.key != row.key && copy.base_image != row.base_image &&
              copy.session != row.session);
        snap_row_clear(&copy);
        CHECK(!copy.name && !copy.key && !copy.base_image && !copy.session && !*copy.id);
}

static void test_names(void) {
        _cleanup_store_ struct store s = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_snap_row_ struct snap_row first = make_snap(WORKSPACE, "before"),
                                           same = make_snap(WORKSPACE, "before"),
                                           elsewhere = make_snap(OTHER, "before"), none = make_snap(WORKSPACE, NULL),
                                           none_either = make_snap(WORKSPACE, NULL);
        REQUIRE(store_open(&s));
        CHECK_INT(db_snap_insert(s.db, &first, &err), 0);
        CHECK_INT(db_snap_insert(s.db, &elsewhere, &err), 0);
        CHECK_INT(db_snap_insert(s.db, &none, &err), 0);
        CHECK_INT(db_snap_insert(s.db, &none_either, &err), 0);

        CHECK_INT(db_snap_insert(s.db, &same, &err), -EEXIST);
        CHECK_INT(err.code, ERROR_CONFLICT);
        CHECK(strstr(error_message(&err), first.id));
        CHECK(strstr(error_message(&err), "before"));
        CHECK(err.hint);
        CHECK_INT(db_snap_insert(s.db, &first, &err), -EEXIST);
        CHECK(strstr(error_message(&err), first.id));
        /* Nor does one take the name later. */
        str_replace(&none.name, "before");
        CHECK_INT(db_snap_update(s.db, &none, NULL, &err), -EEXIST);
        CHECK(strstr(error_message(&err), first.id));
        str_replace(&none.name, NULL);
        CHECK_SNAPS(s.db, &first, &elsewhere, &none, &none_either);

        /* One that is deleted while something stands on it gives its name away. */
        str_replace(&first.name, NULL);
        first.state = SNAP_DELETING;
        CHECK_INT(db_snap_update(s.db, &first, NULL, &err), 0);
        CHECK_INT(db_snap_insert(s.db, &same, &err), 0);
        CHECK_SNAPS(s.db, &first, &elsewhere, &none, &none_either, &same);

        CHECK_INT(db_snap_delete(s.db, elsewhere.id, &err), 0);
        CHECK_INT(db_snap_delete(s.db, elsewhere.id, &err), -ENOENT);
        CHECK_INT(err.code, ERROR_NOT_FOUND);
        CHECK(strstr(error_message(&err), elsewhere.id));
        CHECK_INT(db_snap_update(s.db, &elsewhere, NULL, &err), -ENOENT);
        CHECK_SNAPS(s.db, &first, &none, &none_either, &same);
}

static void check_workspace(struct db *db, size_t i, const struct ws_row *want) {
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(db, &rows, NULL), 0);
        REQUIRE(rows.n > i);
        CHECK_STR(rows.v[i].id, want->id);
        CHECK_STR(rows.v[i].name, want->name);
        CHECK_STR(rows.v[i].parent, want->parent);
        CHECK_STR(rows.v[i].disk, want->disk);
}

/* Two rows are written, or none, whichever of them it is that does not go. */
static void test_both_or_neither(void) {
        _cleanup_store_ struct store s = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ws_row_ struct ws_row ws = make_row("alpha", 10), beta = make_row("beta", 11), next = {0};
        REQUIRE(store_open(&s));
        CHECK_INT(db_ws_insert(s.db, &ws, &err), 0);
        CHECK_INT(db_ws_insert(s.db, &beta, &err), 0);
        _cleanup_snap_row_ struct snap_row snap = make_snap(ws.id, "before"), other = make_snap(ws.id, "other"),
                                           snap_next = {0};
        snap.state = SNAP_CREATING;
        CHECK_INT(db_snap_insert(s.db, &snap, &err), 0);
        CHECK_INT(db_snap_insert(s.db, &other, &err), 0);

        CHECK_INT(ws_row_copy(&next, &ws), 0);
        CHECK_INT(snap_row_copy(&snap_next, &snap), 0);
        snap_next.state = SNAP_READY;
        memcpy(next.parent, snap.id, sizeof(snap.id));
        uuid_new(next.disk);

        /* The workspace's new name is taken. */
        str_replace(&next.name, "beta");
        CHECK_INT(db_snap_update(s.db, &snap_next, &next, &err), -EEXIST);
        CHECK(strstr(error_message(&err), beta.id));
        CHECK_SNAPS(s.db, &snap, &other);
        check_workspace(s.db, 0, &ws);
        str_replace(&next.name, "alpha");
        /* It makes no sense. */
        next.slot = 9;
        CHECK(db_snap_update(s.db, &snap_next, &next, &err) < 0);
        CHECK(strstr(error_message(&err), "slot"));
        CHECK_SNAPS(s.db, &snap, &other);
        next.slot = 1;
        /* The workspace is gone. */
        _cleanup_ws_row_ struct ws_row gone = make_row("gone", 12);
        CHECK_INT(db_snap_update(s.db, &snap_next, &gone, &err), -ENOENT);
        CHECK(strstr(error_message(&err), "workspace"));
        CHECK_SNAPS(s.db, &snap, &other);
        /* The snapshot's new name is taken. */
        str_replace(&snap_next.name, "other");
        CHECK_INT(db_snap_update(s.db, &snap_next, &next, &err), -EEXIST);
        CHECK(strstr(error_message(&err), other.id));
        CHECK_SNAPS(s.db, &snap, &other);
        check_workspace(s.db, 0, &ws);
        str_replace(&snap_next.name, "before");
        /* The snapshot is gone. */
        _cleanup_snap_row_ struct snap_row gone_snap = make_snap(ws.id, NULL);
        CHECK_INT(db_snap_update(s.db, &gone_snap, &next, &err), -ENOENT);
        CHECK(strstr(error_message(&err), "snapshot"));
        check_workspace(s.db, 0, &ws);

        error_clear(&err);
        CHECK_INT(db_snap_update(s.db, &snap_next, &next, &err), 0);
        CHECK_SNAPS(s.db, &snap_next, &other);
        check_workspace(s.db, 0, &next);
        check_workspace(s.db, 1, &beta);
        CHECK(!error_is_set(&err));
}

static void test_strange_rows_are_refused(void) {
        _cleanup_store_ struct store s = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_snap_row_ struct snap_row row = make_snap(WORKSPACE, "before");
        REQUIRE(store_open(&s));
        CHECK_INT(db_snap_insert(s.db, &row, &err), 0);
        static const struct {
                const char *column, *sql;
        } changes[] = {
                {"id", "id = 'me'"},
                {"workspace", "workspace = '../../etc'"},
                {"name", "name = ''"},
                {"name", "name = printf('%.*c', 5000, 'x')"},
                {"state", "state = 'levitating'"},
                {"has_disk", "has_disk = 2"},
                {"memory", "memory = 'some'"},
                {"parent", "parent = printf('%.*c', 37, 'x')"},
                {"memory_base", "memory_base = 'x'"},
                {"memory_key", "memory_key = CAST(x'616200' AS TEXT)"},
                {"base_image", "base_image = CAST(x'ff' AS TEXT)"},
                {"vcpus", "vcpus = -1"},
                {"memory_mb", "memory_mb = 4294967296"},
                {"session", "session = printf('%.*c', 5000, 'x')"},
                {"pause_us", "pause_us = -1"},
                {"file_bytes", "file_bytes = -1"},
        };
        for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
                _cleanup_free_ char *sql = str_printf("UPDATE snapshots SET %s", changes[i].sql);
                struct snap_rows rows = {0};
                meddle(s.path, sql);
                CHECK(db_snap_list(s.db, &rows, &err) < 0);
                CHECK_INT(rows.n, 0);
                CHECK_INT(err.code, ERROR_INTERNAL);
                CHECK(strstr(error_message(&err), "makes no sense"));
                CHECK(strstr(error_message(&err), "snapshot"));
                const char *last = strrchr(error_message(&err), ' ');
                CHECK_STR(last ? last + 1 : NULL, changes[i].column);
                meddle(s.path, "DELETE FROM snapshots");
                CHECK_INT(db_snap_insert(s.db, &row, &err), 0);
        }
        CHECK_SNAPS(s.db, &row);
}

/* When the disk is full, snapshots can still be finished and deleted, with and without their workspace. */
static void test_full_disk(void) {
        _cleanup_scratch_ char *dir = scratch_small(4096);
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *ballast = path_join(dir, "ballast");
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_db_ struct db *db = NULL;
        _cleanup_ws_row_ struct ws_row ws = make_row("alpha", 10);
        _cleanup_snap_row_ struct snap_row row = make_snap(ws.id, "before"), doomed = make_snap(ws.id, "doomed"),
                                           before = {0};
        REQUIRE(db_open(path, &db, &err) == 0);
        CHECK_INT(db_ws_insert(db, &ws, &err), 0);
        CHECK_INT(db_snap_insert(db, &row, &err), 0);
        CHECK_INT(db_snap_insert(db, &doomed, &err), 0);
        scratch_fill(ballast);

        /* What does not fit leaves no trace in either row. */
        CHECK_INT(snap_row_copy(&before, &row), 0);
        ws.last_error = str_printf("%1000000d", 1);
        uuid_new(ws.parent);
        row.state = SNAP_DELETING;
        CHECK(db_snap_update(db, &row, &ws, &err) < 0);
        CHECK_INT(err.code, ERROR_NO_SPACE);
        CHECK(err.hint);
        CHECK_SNAPS(db, &before, &doomed);
        free(TAKE_PTR(ws.last_error));
        error_clear(&err);

        int r = 0;
        for (unsigned i = 0; i < 500 && r == 0; i++) {
                row.state = i % 2 ? SNAP_READY : SNAP_CREATING;
                row.used_ms = i;
                ws.slot = i % 2;
                r = i % 3 ? db_snap_update(db, &row, &ws, &err) : db_snap_update(db, &row, NULL, &err);
        }
        CHECK_INT(r, 0);
        CHECK_INT(db_snap_delete(db, doomed.id, &err), 0);
        CHECK_STR(error_is_set(&err) ? error_message(&err) : "", "");
        CHECK_SNAPS(db, &row);
        CHECK(unlink(ballast) == 0);
        db_close(TAKE_PTR(db));
        CHECK_INT(db_open(path, &db, &err), 0);
        REQUIRE(db);
        CHECK_SNAPS(db, &row);
        check_workspace(db, 0, &ws);
}

static void test_state_names(void) {
        static const char *const states[_SNAP_STATE_MAX] = {"creating", "ready", "deleting"};
        static const char *const memories[_SNAP_MEMORY_MAX] = {"none", "template", "pages", "whole"};
        for (int i = 0; i < _SNAP_STATE_MAX; i++)
                CHECK_STR(snap_state_name((enum snap_state) i), states[i]);
        for (int i = 0; i < _SNAP_MEMORY_MAX; i++)
                CHECK_STR(snap_memory_name((enum snap_memory) i), memories[i]);
        CHECK_STR(snap_state_name(_SNAP_STATE_MAX), "unknown");
        CHECK_STR(snap_memory_name(_SNAP_MEMORY_MAX), "unknown");
}

int main(void) {
        RUN(test_round_trip);
        RUN(test_copy);
        RUN(test_names);
        RUN(test_both_or_neither);
        RUN(test_strange_rows_are_refused);
        RUN(test_state_names);
        RUN_ROOT(test_full_disk);
        return tap_done();
}
