/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The state store: one SQLite database (WAL, STRICT tables, foreign keys, user_version migrations). It is the truth;
 * memory is a cache of it. Nobody else writes SQL.
 *
 * A workspace's row carries the intent of what is being done to it as its state (creating, starting, ...): it is
 * written before anything outside the store is made, so start-up can finish or undo it (workspace/recover.c).
 *
 * One connection under one lock; every call is one short transaction. No call waits on anything but the disk.
 * A database of an older schema is copied to <path>.v<N>.bak before it is migrated; one of a newer schema or a damaged
 * one is refused with what to do, never reset.
 */

#include "base/error.h"
#include "base/process.h"
#include "base/str.h"

struct db;

int db_open(const char *path, struct db **ret, struct error *err);
void db_close(struct db *db); /* accepts NULL */
DEFINE_CLEANUP(struct db *, db_close)
#define _cleanup_db_ _cleanup_(db_closep)

enum ws_state {
        WS_CREATING,
        WS_STARTING,
        WS_RUNNING,
        WS_STOPPING,
        WS_STOPPED,
        WS_DESTROYING,
        _WS_STATE_MAX,
};
/* "creating", "running", ...: as stored and as shown. */
const char *ws_state_name(enum ws_state s);
int ws_state_parse(const char *name, enum ws_state *ret);

#define MAC_LEN 17

struct ws_row {
        char id[UUID_LEN + 1];
        char *name;
        enum ws_state state;
        char *base_image;
        unsigned vcpus, memory_mb, disk_gb;
        bool allow_internet;
        uint32_t address; /* IPv4 in host byte order, from the configured network; unique */
        char mac[MAC_LEN + 1];
        char *owner;        /* id of the client connection that owns it */
        int64_t created_ms; /* CLOCK_REALTIME */
        int64_t started_ms; /* 0: not running */
        bool has_proc;
        struct proc_id proc; /* QEMU, when has_proc */
        char *last_error;    /* why it stopped by itself, or NULL */
};
void ws_row_clear(struct ws_row *r);
#define _cleanup_ws_row_ _cleanup_(ws_row_clear)
int ws_row_copy(struct ws_row *to, const struct ws_row *from);

/* Inserts a row; -EEXIST (conflict) when the name or the address is taken: err names the id that has the name. */
int db_ws_insert(struct db *db, const struct ws_row *row, struct error *err);
/* Writes the mutable part of a row: state, owner, started_ms, proc, last_error, allow_internet. */
int db_ws_update(struct db *db, const struct ws_row *row, struct error *err);
int db_ws_delete(struct db *db, const char *id, struct error *err);

struct ws_rows {
        struct ws_row *v;
        size_t n;
};
void ws_rows_clear(struct ws_rows *r);
/* All rows, oldest first. */
int db_ws_list(struct db *db, struct ws_rows *ret, struct error *err);
/* Writes a consistent copy of the database. */
int db_backup(struct db *db, const char *path, struct error *err);
