/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/thread.h"
#include "state/db-internal.h"

#define WS_ROWS_MAX 65536u /* far above any limit of workspaces: more is not our file */

const char *const db_stmt_sql[_STMT_MAX] = {
        [STMT_WS_INSERT] = "INSERT INTO workspaces (id, state, owner, started_ms, proc_pid, proc_start, proc_boot,"
                           " last_error, allow_internet, name, base_image, vcpus, memory_mb, disk_gb, address, mac,"
                           " created_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,"
                           " ?17)",
        [STMT_WS_UPDATE] = "UPDATE workspaces SET state = ?2, owner = ?3, started_ms = ?4, proc_pid = ?5,"
                           " proc_start = ?6, proc_boot = ?7, last_error = ?8, allow_internet = ?9 WHERE id = ?1",
        [STMT_WS_DELETE] = "DELETE FROM workspaces WHERE id = ?1",
        [STMT_WS_LIST] = "SELECT id, state, owner, started_ms, proc_pid, proc_start, proc_boot, last_error,"
                         " allow_internet, name, base_image, vcpus, memory_mb, disk_gb, address, mac, created_ms"
                         " FROM workspaces ORDER BY seq",
        [STMT_WS_BY_NAME] = "SELECT id FROM workspaces WHERE name = ?1",
        [STMT_WS_BY_ADDRESS] = "SELECT id FROM workspaces WHERE address = ?1",
};

/* Places in the statements above. */
enum {
        COL_ID,
        COL_STATE,
        COL_OWNER,
        COL_STARTED_MS,
        COL_PROC_PID,
        COL_PROC_START,
        COL_PROC_BOOT,
        COL_LAST_ERROR,
        COL_ALLOW_INTERNET,
        COL_NAME,
        COL_BASE_IMAGE,
        COL_VCPUS,
        COL_MEMORY_MB,
        COL_DISK_GB,
        COL_ADDRESS,
        COL_MAC,
        COL_CREATED_MS,
};
#define PARAM(column) ((column) + 1)

static const char *const state_names[_WS_STATE_MAX] = {
        [WS_CREATING] = "creating", [WS_STARTING] = "starting", [WS_RUNNING] = "running",
        [WS_STOPPING] = "stopping", [WS_STOPPED] = "stopped",   [WS_DESTROYING] = "destroying",
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
        free(r->name);
        free(r->base_image);
        free(r->owner);
        free(r->last_error);
        *r = (struct ws_row){0};
}

int ws_row_copy(struct ws_row *to, const struct ws_row *from) {
        _cleanup_ws_row_ struct ws_row copy = *from;
        copy.name = copy.base_image = copy.owner = copy.last_error = NULL;
        if (str_replace(&copy.name, from->name) < 0 || str_replace(&copy.base_image, from->base_image) < 0 ||
            str_replace(&copy.owner, from->owner) < 0 || str_replace(&copy.last_error, from->last_error) < 0)
                return -ENOMEM;
        *to = copy;
        copy = (struct ws_row){0};
        return 0;
}

void ws_rows_clear(struct ws_rows *r) {
        for (size_t i = 0; i < r->n; i++)
                ws_row_clear(&r->v[i]);
        free(r->v);
        *r = (struct ws_rows){0};
}

/* Texts are bound without a copy: the row outlives the step. A NULL text binds as NULL, which NOT NULL columns refuse.
 * True when one could not be bound. */
static bool bind_mutable(sqlite3_stmt *s, const struct ws_row *row) {
        int bad = sqlite3_bind_text(s, PARAM(COL_ID), row->id, -1, SQLITE_STATIC);
        bad |= sqlite3_bind_text(s, PARAM(COL_STATE), ws_state_name(row->state), -1, SQLITE_STATIC);
        bad |= sqlite3_bind_text(s, PARAM(COL_OWNER), row->owner, -1, SQLITE_STATIC);
        bad |= sqlite3_bind_int64(s, PARAM(COL_STARTED_MS), row->started_ms);
        if (row->has_proc) {
                bad |= sqlite3_bind_int64(s, PARAM(COL_PROC_PID), row->proc.pid);
                bad |= sqlite3_bind_int64(s, PARAM(COL_PROC_START), (int64_t) row->proc.start_ticks);
                bad |= sqlite3_bind_text(s, PARAM(COL_PROC_BOOT), row->proc.boot_id, -1, SQLITE_STATIC);
        }
        bad |= sqlite3_bind_text(s, PARAM(COL_LAST_ERROR), row->last_error, -1, SQLITE_STATIC);
        bad |= sqlite3_bind_int(s, PARAM(COL_ALLOW_INTERNET), row->allow_internet);
        return bad;
}

static bool bind_fixed(sqlite3_stmt *s, const struct ws_row *row) {
        int bad = sqlite3_bind_text(s, PARAM(COL_NAME), row->name, -1, SQLITE_STATIC);
        bad |= sqlite3_bind_text(s, PARAM(COL_BASE_IMAGE), row->base_image, -1, SQLITE_STATIC);
        bad |= sqlite3_bind_int64(s, PARAM(COL_VCPUS), row->vcpus);
        bad |= sqlite3_bind_int64(s, PARAM(COL_MEMORY_MB), row->memory_mb);
        bad |= sqlite3_bind_int64(s, PARAM(COL_DISK_GB), row->disk_gb);
        bad |= sqlite3_bind_int64(s, PARAM(COL_ADDRESS), row->address);
        bad |= sqlite3_bind_text(s, PARAM(COL_MAC), row->mac, -1, SQLITE_STATIC);
        bad |= sqlite3_bind_int64(s, PARAM(COL_CREATED_MS), row->created_ms);
        return bad;
}

/* Ends the use of a kept statement: its locks are let go and the bound texts forgotten. */
static void stmt_done(sqlite3_stmt **s) {
        sqlite3_reset(*s);
        sqlite3_clear_bindings(*s);
}
#define _cleanup_stmt_ _cleanup_(stmt_done)

/*
 * Runs a bound statement that writes. When the disk is full, what the write-ahead log holds goes into the database and
 * the log is written from its start again, which takes no new space: so workspaces can still be stopped and destroyed,
 * which is what makes room.
 */
static int step_write(struct db *db, sqlite3_stmt *s) {
        int rc = sqlite3_step(s);
        bool full =
                (rc & 0xff) == SQLITE_FULL || ((rc & 0xff) == SQLITE_IOERR && sqlite3_system_errno(db->conn) == ENOSPC);
        if (!full)
                return rc;
        sqlite3_reset(s);
        if (sqlite3_wal_checkpoint_v2(db->conn, NULL, SQLITE_CHECKPOINT_RESTART, NULL, NULL) != SQLITE_OK)
                return rc;
        return sqlite3_step(s);
}

/* The id in the first column of a lookup; "" when there is none. */
static void lookup_id(sqlite3_stmt *bound, char ret[UUID_LEN + 1]) {
        const char *id = sqlite3_step(bound) == SQLITE_ROW ? (const char *) sqlite3_column_text(bound, 0) : NULL;
        snprintf(ret, UUID_LEN + 1, "%s", id ? id : "");
}

static int fail_taken(struct db *db, const struct ws_row *row, struct error *err) {
        char id[UUID_LEN + 1];
        {
                _cleanup_stmt_ sqlite3_stmt *s = db->stmts[STMT_WS_BY_NAME];
                sqlite3_bind_text(s, 1, row->name, -1, SQLITE_STATIC);
                lookup_id(s, id);
        }
        if (*id) {
                int r = error_set(err, ERROR_CONFLICT, "There is a workspace named \"%s\" already: %s", row->name, id);
                error_hint(err, "Use that one, or choose another name.");
                return r;
        }
        {
                _cleanup_stmt_ sqlite3_stmt *s = db->stmts[STMT_WS_BY_ADDRESS];
                sqlite3_bind_int64(s, 1, row->address);
                lookup_id(s, id);
        }
        if (*id)
                return error_set(err, ERROR_CONFLICT, "The address of the new workspace is in use by %s", id);
        return error_set(err, ERROR_CONFLICT, "Workspace %s or its MAC %s exists already", row->id, row->mac);
}

int db_ws_insert(struct db *db, const struct ws_row *row, struct error *err) {
        LOCK(&db->lock);
        int rc;
        {
                _cleanup_stmt_ sqlite3_stmt *s = db->stmts[STMT_WS_INSERT];
                bool bound = !bind_mutable(s, row) && !bind_fixed(s, row);
                rc = bound ? step_write(db, s) : sqlite3_errcode(db->conn);
                if (rc != SQLITE_DONE && rc != SQLITE_CONSTRAINT_UNIQUE)
                        return db_fail(db, rc, "store the workspace", err);
        }
        if (rc != SQLITE_DONE)
                return fail_taken(db, row, err);
        /* The database file grows now, while there is room, and not when step_write() needs it to. It does not
         * matter if it fails: the row is safe in the log. */
        (void) sqlite3_wal_checkpoint_v2(db->conn, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
        return 0;
}

/* Runs a bound statement that must change exactly one row. */
static int step_one(struct db *db, sqlite3_stmt *s, const char *id, const char *what, struct error *err) {
        int rc = step_write(db, s);
        if (rc != SQLITE_DONE)
                return db_fail(db, rc, what, err);
        if (sqlite3_changes(db->conn) != 1)
                return error_set(err, ERROR_NOT_FOUND, "The state store has no workspace %s", id);
        return 0;
}

int db_ws_update(struct db *db, const struct ws_row *row, struct error *err) {
        LOCK(&db->lock);
        _cleanup_stmt_ sqlite3_stmt *s = db->stmts[STMT_WS_UPDATE];
        if (bind_mutable(s, row))
                return db_fail(db, sqlite3_errcode(db->conn), "store the workspace", err);
        return step_one(db, s, row->id, "store the workspace", err);
}

int db_ws_delete(struct db *db, const char *id, struct error *err) {
        LOCK(&db->lock);
        _cleanup_stmt_ sqlite3_stmt *s = db->stmts[STMT_WS_DELETE];
        int rc = sqlite3_bind_text(s, 1, id, -1, SQLITE_STATIC);
        if (rc != SQLITE_OK)
                return db_fail(db, rc, "remove the workspace", err);
        return step_one(db, s, id, "remove the workspace", err);
}

static const char *text(sqlite3_stmt *s, int column) {
        return (const char *) sqlite3_column_text(s, column);
}

/* Copies a text into a fixed field; -EINVAL when it is not there or does not fit. */
static int fixed_text(sqlite3_stmt *s, int column, char *to, size_t size) {
        const char *from = text(s, column);
        if (!from || strlen(from) >= size)
                return -EINVAL;
        memcpy(to, from, strlen(from) + 1);
        return 0;
}

static int small_number(sqlite3_stmt *s, int column, unsigned *ret) {
        int64_t v = sqlite3_column_int64(s, column);
        if (v < 0 || v > UINT32_MAX)
                return -EINVAL;
        *ret = (unsigned) v;
        return 0;
}

static int read_proc(sqlite3_stmt *s, struct ws_row *row) {
        row->has_proc = sqlite3_column_type(s, COL_PROC_PID) != SQLITE_NULL;
        if (!row->has_proc)
                return 0;
        int64_t pid = sqlite3_column_int64(s, COL_PROC_PID);
        if (pid <= 1 || pid > INT32_MAX)
                return -EINVAL;
        row->proc.pid = (pid_t) pid;
        row->proc.start_ticks = (uint64_t) sqlite3_column_int64(s, COL_PROC_START);
        return fixed_text(s, COL_PROC_BOOT, row->proc.boot_id, sizeof(row->proc.boot_id));
}

/* The row under the cursor. -EINVAL: not as this program writes it; -ENOMEM. */
static int read_row(sqlite3_stmt *s, struct ws_row *ret) {
        _cleanup_ws_row_ struct ws_row row = {
                .allow_internet = sqlite3_column_int(s, COL_ALLOW_INTERNET),
                .created_ms = sqlite3_column_int64(s, COL_CREATED_MS),
                .started_ms = sqlite3_column_int64(s, COL_STARTED_MS),
        };
        if (fixed_text(s, COL_ID, row.id, sizeof(row.id)) < 0 || !uuid_valid(row.id) ||
            fixed_text(s, COL_MAC, row.mac, sizeof(row.mac)) < 0 ||
            ws_state_parse(text(s, COL_STATE), &row.state) < 0 || small_number(s, COL_VCPUS, &row.vcpus) < 0 ||
            small_number(s, COL_MEMORY_MB, &row.memory_mb) < 0 || small_number(s, COL_DISK_GB, &row.disk_gb) < 0 ||
            small_number(s, COL_ADDRESS, &row.address) < 0 || read_proc(s, &row) < 0)
                return -EINVAL;
        if (str_replace(&row.name, text(s, COL_NAME)) < 0 ||
            str_replace(&row.base_image, text(s, COL_BASE_IMAGE)) < 0 ||
            str_replace(&row.owner, text(s, COL_OWNER)) < 0 ||
            str_replace(&row.last_error, text(s, COL_LAST_ERROR)) < 0)
                return -ENOMEM;
        *ret = row;
        row = (struct ws_row){0};
        return 0;
}

static int rows_add(struct ws_rows *rows, size_t *cap, sqlite3_stmt *s) {
        if (rows->n >= WS_ROWS_MAX)
                return -E2BIG;
        if (rows->n == *cap) {
                size_t grown = *cap ? *cap * 2 : 16;
                struct ws_row *v = reallocarray(rows->v, grown, sizeof(*v));
                if (!v)
                        return -ENOMEM;
                rows->v = v;
                *cap = grown;
        }
        int r = read_row(s, &rows->v[rows->n]);
        if (r >= 0)
                rows->n++;
        return r;
}

int db_ws_list(struct db *db, struct ws_rows *ret, struct error *err) {
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        size_t cap = 0;
        LOCK(&db->lock);
        _cleanup_stmt_ sqlite3_stmt *s = db->stmts[STMT_WS_LIST];

        for (;;) {
                int rc = sqlite3_step(s);
                if (rc == SQLITE_DONE)
                        break;
                if (rc != SQLITE_ROW)
                        return db_fail(db, rc, "read the workspaces", err);
                int r = rows_add(&rows, &cap, s);
                if (r == -EINVAL) {
                        const char *id = text(s, COL_ID);
                        r = error_set(err, ERROR_INTERNAL,
                                      "The state store %s has a row for workspace \"%s\" that makes "
                                      "no sense",
                                      db->path, id ? id : "");
                        error_hint(err, "It was written by another program or another version. Put back a copy of it.");
                        return r;
                }
                if (r < 0)
                        return error_set_errno(err, -r, "Cannot read the workspaces of %s", db->path);
        }
        *ret = rows;
        rows = (struct ws_rows){0};
        return 0;
}
