/* SPDX-License-Identifier: Apache-2.0 */
#include "state/db-internal.h"

static const char *const state_names[_SNAP_STATE_MAX] = {
        [SNAP_CREATING] = "creating",
        [SNAP_READY] = "ready",
        [SNAP_DELETING] = "deleting",
};

static const char *const memory_names[_SNAP_MEMORY_MAX] = {
        [SNAP_MEMORY_NONE] = "none",
        [SNAP_MEMORY_TEMPLATE] = "template",
        [SNAP_MEMORY_PAGES] = "pages",
        [SNAP_MEMORY_WHOLE] = "whole",
};

#define SNAP(field, ...) COLUMN(struct snap_row, field, __VA_ARGS__)

static const struct column columns[] = {
        SNAP(id, "id", .flags = COLUMN_FIXED | COLUMN_UUID),
        SNAP(workspace, "workspace", .flags = COLUMN_FIXED | COLUMN_UUID | COLUMN_EMPTY),
        SNAP(name, "name", .flags = COLUMN_NULL),
        SNAP(state, "state", .names = state_names, .max = _SNAP_STATE_MAX - 1),
        SNAP(has_disk, "has_disk"),
        SNAP(memory, "memory", .names = memory_names, .max = _SNAP_MEMORY_MAX - 1),
        SNAP(parent, "parent", .flags = COLUMN_UUID | COLUMN_EMPTY),
        SNAP(memory_base, "memory_base", .flags = COLUMN_UUID | COLUMN_EMPTY),
        SNAP(key, "memory_key", .flags = COLUMN_NULL),
        SNAP(base_image, "base_image", .flags = COLUMN_NULL),
        SNAP(vcpus, "vcpus"),
        SNAP(memory_mb, "memory_mb"),
        SNAP(disk_gb, "disk_gb"),
        SNAP(session, "session", .flags = COLUMN_NULL),
        SNAP(created_ms, "created_ms", .flags = COLUMN_FIXED),
        SNAP(used_ms, "used_ms"),
        SNAP(pause_us, "pause_us"),
        SNAP(file_bytes, "file_bytes"),
};

static int taken(struct db *db, const void *of, struct error *err) {
        const struct snap_row *row = of;
        char id[UUID_LEN + 1];

        if (!db_row_holder(db, &db_snapshots, row, "workspace", "name", id))
                return error_set(err, ERROR_CONFLICT, "Snapshot %s exists already", row->id);
        int r = error_set(err, ERROR_CONFLICT, "There is a snapshot named \"%s\" already: %s", row->name, id);
        error_hint(err, "Delete that one, or choose another name.");
        return r;
}

const struct table db_snapshots = {
        .name = "snapshots",
        .what = "snapshot",
        .columns = columns,
        .n_columns = ARRAY_SIZE(columns),
        .row_size = sizeof(struct snap_row),
        .stmts = STMT_SNAPSHOTS,
        .taken = taken,
};

const char *snap_state_name(enum snap_state s) {
        return (unsigned) s < _SNAP_STATE_MAX ? state_names[s] : "unknown";
}

const char *snap_memory_name(enum snap_memory m) {
        return (unsigned) m < _SNAP_MEMORY_MAX ? memory_names[m] : "unknown";
}

void snap_row_clear(struct snap_row *r) {
        db_row_clear(&db_snapshots, r);
}

int snap_row_copy(struct snap_row *to, const struct snap_row *from) {
        struct snap_row copy;
        int r = db_row_copy(&db_snapshots, &copy, from);
        if (r >= 0)
                *to = copy;
        return r;
}

void snap_rows_clear(struct snap_rows *r) {
        db_row_list_free(&db_snapshots, r->v, r->n);
        *r = (struct snap_rows){0};
}

int db_snap_list(struct db *db, struct snap_rows *ret, struct error *err) {
        void *rows = NULL;
        size_t n = 0;
        int r = db_row_list(db, &db_snapshots, &rows, &n, err);
        if (r >= 0)
                *ret = (struct snap_rows){rows, n};
        return r;
}

struct snap_update {
        const struct snap_row *row;
        const struct ws_row *ws; /* NULL: only the snapshot */
};

static int insert(struct db *db, const void *row, struct error *err) {
        return db_row_insert(db, &db_snapshots, row, err);
}

static int update(struct db *db, const void *of, struct error *err) {
        const struct snap_update *u = of;
        int r = db_row_update(db, &db_snapshots, u->row, err);
        return r < 0 || !u->ws ? r : db_row_update(db, &db_workspaces, u->ws, err);
}

static int delete (struct db *db, const void *id, struct error *err) {
        return db_row_delete(db, &db_snapshots, id, err);
}

int db_snap_insert(struct db *db, const struct snap_row *row, struct error *err) {
        return db_commit(db, "store the snapshot", insert, row, err);
}

int db_snap_update(struct db *db, const struct snap_row *row, const struct ws_row *ws, struct error *err) {
        struct snap_update u = {row, ws};
        return db_commit(db, "store the snapshot", update, &u, err);
}

int db_snap_delete(struct db *db, const char *id, struct error *err) {
        return db_commit(db, "remove the snapshot", delete, id, err);
}
