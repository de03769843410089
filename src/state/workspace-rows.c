/* SPDX-License-Identifier: Apache-2.0 */
#include "state/db-internal.h"

static const char *const state_names[_WS_STATE_MAX] = {
        [WS_CREATING] = "creating", [WS_STARTING] = "starting", [WS_RUNNING] = "running",
        [WS_STOPPING] = "stopping", [WS_STOPPED] = "stopped",   [WS_DESTROYING] = "destroying",
};

#define WS(field, ...) COLUMN(struct ws_row, field, __VA_ARGS__)
#define HAS_PROC offsetof(struct ws_row, has_proc)

static const struct column columns[] = {
        WS(id, "id", .flags = COLUMN_FIXED | COLUMN_UUID),
        WS(name, "name"),
        WS(state, "state", .names = state_names, .max = _WS_STATE_MAX - 1),
        WS(base_image, "base_image", .flags = COLUMN_FIXED),
        WS(vcpus, "vcpus", .flags = COLUMN_FIXED, .min = 1),
        WS(memory_mb, "memory_mb", .flags = COLUMN_FIXED, .min = 1),
        WS(disk_gb, "disk_gb", .min = 1),
        WS(allow_internet, "allow_internet"),
        WS(allow_inter_vm, "allow_inter_vm"),
        WS(allowed_ports, "allowed_ports", .flags = COLUMN_NULL),
        WS(address, "address", .flags = COLUMN_FIXED),
        WS(mac, "mac", .flags = COLUMN_FIXED),
        WS(owner, "owner", .flags = COLUMN_EMPTY),
        WS(pooled, "pooled"),
        WS(disk, "disk", .flags = COLUMN_UUID),
        WS(parent, "parent", .flags = COLUMN_UUID | COLUMN_EMPTY),
        WS(memory_base, "memory_base", .flags = COLUMN_UUID | COLUMN_EMPTY),
        WS(slot, "slot", .max = 1),
        WS(network_ns, "network_ns"),
        WS(session, "session", .flags = COLUMN_NULL),
        WS(origin.workspace_id, "origin_id", .flags = COLUMN_FIXED | COLUMN_UUID | COLUMN_EMPTY),
        WS(origin.workspace_name, "origin_name", .flags = COLUMN_FIXED | COLUMN_NULL),
        WS(origin.snapshot_name, "origin_snapshot", .flags = COLUMN_FIXED | COLUMN_NULL),
        WS(created_ms, "created_ms"),
        WS(started_ms, "started_ms"),
        WS(proc.pid, "proc_pid", .flags = COLUMN_GIVEN, .min = 2, .given = HAS_PROC), /* 1 is never ours */
        WS(proc.start_ticks, "proc_start", .given = HAS_PROC),
        WS(proc.boot_id, "proc_boot", .flags = COLUMN_UUID, .given = HAS_PROC),
        WS(last_error, "last_error", .flags = COLUMN_NULL | COLUMN_EMPTY | COLUMN_ANY_BYTES, .max = ROW_REASON_MAX),
};

static int taken(struct db *db, const void *of, struct error *err) {
        const struct ws_row *row = of;
        char id[UUID_LEN + 1];

        if (db_row_holder(db, &db_workspaces, row, "name", "name", id)) {
                int r = error_set(err, ERROR_CONFLICT, "There is a workspace named \"%s\" already: %s", row->name, id);
                error_hint(err, "Use that one, or choose another name.");
                return r;
        }
        if (db_row_holder(db, &db_workspaces, row, "address", "address", id))
                return error_set(err, ERROR_CONFLICT, "The address of the new workspace is in use by %s", id);
        if (db_row_holder(db, &db_workspaces, row, "disk", "disk", id))
                return error_set(err, ERROR_CONFLICT, "The disk %s is that of workspace %s", row->disk, id);
        return error_set(err, ERROR_CONFLICT, "Workspace %s or its MAC %s exists already", row->id, row->mac);
}

const struct table db_workspaces = {
        .name = "workspaces",
        .what = "workspace",
        .columns = columns,
        .n_columns = ARRAY_SIZE(columns),
        .row_size = sizeof(struct ws_row),
        .stmts = STMT_WORKSPACES,
        .taken = taken,
};

const char *ws_state_name(enum ws_state s) {
        return (unsigned) s < _WS_STATE_MAX ? state_names[s] : "unknown";
}

int ws_state_parse(const char *name, enum ws_state *ret) {
        for (int i = 0; i < _WS_STATE_MAX; i++)
                if (str_eq(name, state_names[i])) {
                        *ret = (enum ws_state) i;
                        return 0;
                }
        return -EINVAL;
}

void ws_row_clear(struct ws_row *r) {
        db_row_clear(&db_workspaces, r);
}

int ws_row_copy(struct ws_row *to, const struct ws_row *from) {
        struct ws_row copy;
        int r = db_row_copy(&db_workspaces, &copy, from);
        if (r >= 0)
                *to = copy;
        return r;
}

void ws_rows_clear(struct ws_rows *r) {
        db_row_list_free(&db_workspaces, r->v, r->n);
        *r = (struct ws_rows){0};
}

int db_ws_list(struct db *db, struct ws_rows *ret, struct error *err) {
        void *rows = NULL;
        size_t n = 0;
        int r = db_row_list(db, &db_workspaces, &rows, &n, err);
        if (r >= 0)
                *ret = (struct ws_rows){rows, n};
        return r;
}

static int insert(struct db *db, const void *row, struct error *err) {
        return db_row_insert(db, &db_workspaces, row, err);
}

static int update(struct db *db, const void *row, struct error *err) {
        return db_row_update(db, &db_workspaces, row, err);
}

static int delete (struct db *db, const void *id, struct error *err) {
        return db_row_delete(db, &db_workspaces, id, err);
}

int db_ws_insert(struct db *db, const struct ws_row *row, struct error *err) {
        return db_commit(db, "store the workspace", insert, row, err);
}

int db_ws_update(struct db *db, const struct ws_row *row, struct error *err) {
        return db_commit(db, "store the workspace", update, row, err);
}

int db_ws_delete(struct db *db, const char *id, struct error *err) {
        return db_commit(db, "remove the workspace", delete, id, err);
}
