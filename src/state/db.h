/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The state store: one SQLite database (WAL, STRICT tables, foreign keys, user_version migrations). It is the truth;
 * memory is a cache of it. Nobody else writes SQL.
 *
 * A workspace's row carries the intent of what is being done to it as its state (creating, starting, ...): it is
 * written before anything outside the store is made, so start-up can finish or undo it (workspace/recover.c).
 *
 * Every change is one short transaction, or part of one with those that other threads make at the same time: calls at
 * once cost little more than one. A change lasts when its call returns. No call waits on anything but the disk.
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

/* Where a fork comes from; the source may be gone by now. */
struct ws_origin {
        char workspace_id[UUID_LEN + 1]; /* "" : no fork */
        char *workspace_name;
        char *snapshot_name; /* NULL: it was forked as it ran */
};

struct ws_row {
        char id[UUID_LEN + 1];
        char *name;
        enum ws_state state;
        char *base_image;
        unsigned vcpus, memory_mb, disk_gb;
        bool allow_internet;
        bool allow_inter_vm;
        char *allowed_ports; /* that others may reach, ascending, as text: "80,443"; NULL: none */
        uint32_t address;    /* IPv4 in host byte order, from the configured network; unique */
        char mac[MAC_LEN + 1];
        char *owner;                    /* id of the client connection that owns it; "" for one of the warm pool */
        bool pooled;                    /* of the warm pool: nobody has it yet */
        char disk[UUID_LEN + 1];        /* its disk in the storage; a restore gives it another */
        char parent[UUID_LEN + 1];      /* snapshot that the disk stands on, "": a base image */
        char memory_base[UUID_LEN + 1]; /* snapshot whose memory file the running machine maps, "": none */
        unsigned slot;                  /* 0 or 1: which of the workspace's two folders its VM is in */
        uint64_t network_ns;            /* inode of the network namespace that its card is in; 0: user networking */
        char *session;                  /* secret of its agent, as the last configuration gave it; NULL: none yet */
        struct ws_origin origin;
        int64_t created_ms; /* CLOCK_REALTIME */
        int64_t started_ms; /* 0: not running */
        bool has_proc;
        struct proc_id proc; /* QEMU, when has_proc */
        char *last_error;    /* why it stopped by itself, or NULL */
};
void ws_row_clear(struct ws_row *r);
#define _cleanup_ws_row_ _cleanup_(ws_row_clear)
int ws_row_copy(struct ws_row *to, const struct ws_row *from);

/* Inserts a row; -EEXIST (conflict) when the name, the address or the disk is taken: err names the id that has it. */
int db_ws_insert(struct db *db, const struct ws_row *row, struct error *err);
/* Writes the mutable part of a row: all but id, base_image, vcpus, memory_mb, address, mac, origin. created_ms is of
 * it: for its owner, a machine of the pool comes into being when it is handed out. -EEXIST (conflict) when its new name
 * is taken: err names the id that has it. */
int db_ws_update(struct db *db, const struct ws_row *row, struct error *err);
int db_ws_delete(struct db *db, const char *id, struct error *err);

struct ws_rows {
        struct ws_row *v;
        size_t n;
};
void ws_rows_clear(struct ws_rows *r);
/* All rows, oldest first. */
int db_ws_list(struct db *db, struct ws_rows *ret, struct error *err);

/*
 * Snapshots. One is the content of a disk at an instant (a node in the storage, of the same id), the state of a machine
 * (files in the folder of that id), or both. A template is a snapshot that belongs to no workspace. A snapshot without
 * a name is one that nobody asked for: a live fork made it, or it was deleted while something still stands on it.
 */
enum snap_state {
        SNAP_CREATING, /* not acknowledged: undone after a crash */
        SNAP_READY,
        SNAP_DELETING, /* goes as soon as nothing stands on it */
        _SNAP_STATE_MAX,
};
/* What it has of a machine. */
enum snap_memory {
        SNAP_MEMORY_NONE,
        SNAP_MEMORY_TEMPLATE, /* devices, and a whole memory file */
        SNAP_MEMORY_PAGES,    /* devices, and the pages by which the memory differs from that of memory_base */
        SNAP_MEMORY_WHOLE,    /* one file of devices and memory */
        _SNAP_MEMORY_MAX,
};
/* "creating", "ready", "deleting"; "none", "template", "pages", "whole": as stored. */
const char *snap_state_name(enum snap_state s);
const char *snap_memory_name(enum snap_memory m);

struct snap_row {
        char id[UUID_LEN + 1];
        char workspace[UUID_LEN + 1]; /* "" : a template */
        char *name;                   /* unique in its workspace; NULL: see above */
        enum snap_state state;
        bool has_disk;
        enum snap_memory memory;
        char parent[UUID_LEN + 1];      /* snapshot that its disk stands on, "": a base image, or no disk */
        char memory_base[UUID_LEN + 1]; /* for SNAP_MEMORY_PAGES; else "" */
        char *key;                      /* what its memory fits (vm_template_key(), hashed); NULL without memory */
        char *base_image;               /* NULL: a template that fits any disk */
        unsigned vcpus, memory_mb, disk_gb;
        char *session;       /* of the agent in its memory; NULL: none */
        int64_t created_ms;  /* CLOCK_REALTIME */
        int64_t used_ms;     /* likewise: a machine was last made of it */
        int64_t pause_us;    /* for which the machine stood still */
        uint64_t file_bytes; /* of its folder, when it was made */
};
void snap_row_clear(struct snap_row *r);
#define _cleanup_snap_row_ _cleanup_(snap_row_clear)
int snap_row_copy(struct snap_row *to, const struct snap_row *from);

/* -EEXIST (conflict) when the workspace has a snapshot of that name: err names its id. */
int db_snap_insert(struct db *db, const struct snap_row *row, struct error *err);
/* Writes all but id, workspace and created_ms. With `ws`: its mutable part too, both or neither. -EEXIST as above, and
 * as db_ws_update(). */
int db_snap_update(struct db *db, const struct snap_row *row, const struct ws_row *ws, struct error *err);
int db_snap_delete(struct db *db, const char *id, struct error *err);

struct snap_rows {
        struct snap_row *v;
        size_t n;
};
void snap_rows_clear(struct snap_rows *r);
/* All rows, oldest first. */
int db_snap_list(struct db *db, struct snap_rows *ret, struct error *err);

/* Ports of the host that lead into workspaces. */
struct forward_row {
        char id[UUID_LEN + 1];
        char workspace[UUID_LEN + 1];
        unsigned guest_port, host_port; /* unique: the guest's in its workspace, the host's among all */
        int64_t created_ms;             /* CLOCK_REALTIME */
};

/* -EEXIST (conflict): one of the ports is taken. */
int db_forward_insert(struct db *db, const struct forward_row *row, struct error *err);
int db_forward_delete(struct db *db, const char *id, struct error *err);

struct forward_rows {
        struct forward_row *v;
        size_t n;
};
void forward_rows_clear(struct forward_rows *r);
/* All rows, oldest first. */
int db_forward_list(struct db *db, struct forward_rows *ret, struct error *err);

/* Writes a consistent copy of the database. */
int db_backup(struct db *db, const char *path, struct error *err);
