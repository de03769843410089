/* SPDX-License-Identifier: Apache-2.0 */
#include "state/db-internal.h"

#define PORT_MAX 65535

#define FORWARD(field, ...) COLUMN(struct forward_row, field, __VA_ARGS__)

static const struct column columns[] = {
        FORWARD(id, "id", .flags = COLUMN_FIXED | COLUMN_UUID),
        FORWARD(workspace, "workspace", .flags = COLUMN_FIXED | COLUMN_UUID),
        FORWARD(guest_port, "guest_port", .flags = COLUMN_FIXED, .min = 1, .max = PORT_MAX),
        FORWARD(host_port, "host_port", .min = 1, .max = PORT_MAX),
        FORWARD(created_ms, "created_ms", .flags = COLUMN_FIXED),
};

static int taken(struct db *db, const void *of, struct error *err) {
        const struct forward_row *row = of;
        char id[UUID_LEN + 1];

        if (db_row_holder(db, &db_forwards, row, "host_port", "host_port", id))
                return error_set(err, ERROR_CONFLICT, "Host port %u is that of another port forward", row->host_port);
        return error_set(err, ERROR_CONFLICT, "Guest port %u of workspace %s is forwarded already", row->guest_port,
                         row->workspace);
}

const struct table db_forwards = {
        .name = "port_forwards",
        .what = "port forward",
        .columns = columns,
        .n_columns = ARRAY_SIZE(columns),
        .row_size = sizeof(struct forward_row),
        .stmts = STMT_FORWARDS,
        .taken = taken,
};

static int insert(struct db *db, const void *row, struct error *err) {
        return db_row_insert(db, &db_forwards, row, err);
}

static int delete (struct db *db, const void *id, struct error *err) {
        return db_row_delete(db, &db_forwards, id, err);
}

int db_forward_insert(struct db *db, const struct forward_row *row, struct error *err) {
        return db_commit(db, "store the port forward", insert, row, err);
}

int db_forward_delete(struct db *db, const char *id, struct error *err) {
        return db_commit(db, "remove the port forward", delete, id, err);
}

void forward_rows_clear(struct forward_rows *r) {
        db_row_list_free(&db_forwards, r->v, r->n);
        *r = (struct forward_rows){0};
}

int db_forward_list(struct db *db, struct forward_rows *ret, struct error *err) {
        void *rows = NULL;
        size_t n = 0;
        int r = db_row_list(db, &db_forwards, &rows, &n, err);
        if (r >= 0)
                *ret = (struct forward_rows){rows, n};
        return r;
}
