/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The core: workspaces and what can be done to them. Knows nothing of MCP.
 *
 * Every workspace has a state from a table of allowed moves (lifecycle.c). A state ending in -ing marks an operation
 * in progress: it is written to the store before the operation begins, and whoever wants the workspace meanwhile waits
 * for a settled state under his own op. The registry lock guards the table of workspaces and their rows; it is held
 * for moments only, never across a wait on a VM, a child process or a client.
 *
 * All functions take a reference to a workspace as an id or a name (`ref`). All are thread safe.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "state/db.h"
#include "storage/storage.h"
#include "vm/vm.h"

struct core;

struct core_limits {
        unsigned max_vcpus, max_memory_mb, max_disk_gb;
        unsigned max_workspaces; /* that exist, running or not */
};

/* Files between the host and a guest (tools/transfer.c). */
struct core_transfer {
        const char *dir;        /* of the host; NULL: none */
        uint64_t max_bytes;     /* of one file */
        uint64_t reserve_bytes; /* that a download must leave free */
};

struct core_config {
        const char *state_dir; /* vms/ and disks/ are below it */
        const char *image_dir;
        const char *default_image;
        unsigned default_vcpus, default_memory_mb, default_disk_gb;
        struct core_limits limits;
        struct core_transfer transfer;
        uint32_t network;    /* IPv4 network of the workspaces, host byte order, e.g. 10.99.0.0 */
        unsigned prefix_len; /* e.g. 16 */
        int64_t boot_timeout_ms;
        /* Gives the platform when a VM is to be started, waiting under op while it is still being found out, or the
         * error that says what is missing. NULL: the platform passed to core_open() is used. */
        int (*get_platform)(void *arg, const struct op *op, const struct platform **ret, struct error *err);
        void *get_platform_arg;
};

/* Loads the registry from the store; borrows db, storage and platform, which must outlive it. */
int core_open(const struct core_config *cfg, struct db *db, struct storage *storage, const struct platform *platform,
              struct core **ret, struct error *err);
/* Finishes or undoes what a crash left half done, re-attaches running VMs, removes what has no row. Call once, before
 * serving. */
int core_recover(struct core *core, const struct op *op, struct error *err);
/* Lets go of all VMs without stopping them. */
void core_close(struct core *core);
DEFINE_CLEANUP(struct core *, core_close)

/* As it was configured; never changes. */
const struct core_transfer *core_transfer(const struct core *core);

/* A copy of what is known of a workspace, for callers. */
struct ws_view {
        struct ws_row row;
        char address[16]; /* dotted quad */
        bool owned;       /* by the owner that asked */
        bool orphaned;    /* its owner is gone */
};
void ws_view_clear(struct ws_view *v);
#define _cleanup_ws_view_ _cleanup_(ws_view_clear)

/*
 * Owners: a client connection, from core_owner_add() to core_owner_gone(). What a gone owner had is orphaned and is
 * adopted by the next owner that uses it. An owner's id is random and never used again, so after a restart of the
 * daemon everything is orphaned.
 */
int core_owner_add(struct core *core, char ret_id[UUID_LEN + 1]);
void core_owner_gone(struct core *core, const char *owner);
/* Checks that `owner` may act on the workspace: 0 if it owns it; an orphan is adopted when `adopt` (*ret_adopted set)
 * and refused otherwise; not_owner when another live owner has it; not_found with the nearest name. *ret_id receives
 * the id that ref stands for. */
int ws_authorize(struct core *core, const char *ref, const char *owner, bool adopt, char ret_id[UUID_LEN + 1],
                 bool *ret_adopted, struct error *err);

struct ws_create_args {
        const char *name;       /* NULL: ws- and 8 hexadecimal digits */
        const char *base_image; /* NULL and 0: the configured defaults */
        unsigned vcpus, memory_mb, disk_gb;
        bool allow_internet;
};

enum ws_start_kind { WS_START_BOOT };
const char *ws_start_kind_name(enum ws_start_kind k);

struct ws_started {
        enum ws_start_kind kind;
        int64_t boot_time_ms; /* from the call until the workspace could be used */
        bool already;         /* it was in the wanted state before */
};

/* Makes a disk, boots, hands out. On failure or cancel nothing of it is left. */
int ws_create(struct core *core, const struct ws_create_args *args, const char *owner, const struct op *op,
              struct ws_view *ret, struct ws_started *ret_started, struct error *err);
int ws_start(struct core *core, const char *ref, const struct op *op, struct ws_view *ret,
             struct ws_started *ret_started, struct error *err);
/* Stops through the agent, then by force; *ret_already: it was stopped. */
int ws_stop(struct core *core, const char *ref, const struct op *op, struct ws_view *ret, bool *ret_already,
            struct error *err);
/* Stops at once and removes disk, folder and row. *ret shows what it was. Not undone by a cancel once begun. */
int ws_destroy(struct core *core, const char *ref, const struct op *op, struct ws_view *ret, struct error *err);

/* `owner` NULL: owned is false throughout. */
int ws_get(struct core *core, const char *ref, const char *owner, struct ws_view *ret, struct error *err);
struct ws_views {
        struct ws_view *v;
        size_t n;
};
void ws_views_clear(struct ws_views *l);
/* All workspaces, oldest first; those being created or destroyed are left out. */
int ws_list(struct core *core, const char *owner, struct ws_views *ret, struct error *err);

struct ws_usage {
        uint64_t disk_used_bytes, disk_virtual_bytes;
        uint64_t memory_private_bytes, memory_shared_bytes; /* 0 when not running */
        int64_t uptime_secs;                                /* 0 when not running */
};
int ws_usage(struct core *core, const char *ref, struct ws_usage *ret, struct error *err);

/* The agent of a running workspace, connected; a reference. not_running (with workspace_start as the hint, and with
 * the reason if it ended by itself) when it is stopped; waits while it is being started. */
int ws_agent(struct core *core, const char *ref, const struct op *op, struct agent **ret, struct error *err);

/* The console and QEMU's standard error, also of stopped workspaces; a log that was never written is empty. */
int ws_logs(struct core *core, const char *ref, unsigned max_lines, struct buf *console, struct buf *qemu_stderr,
            struct error *err);
