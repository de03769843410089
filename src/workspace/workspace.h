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

/* The warm pool: machines of the default shape that wait, ready, for a create (pool.c). */
struct core_pool {
        unsigned size;        /* 0: none */
        unsigned memory_mb;   /* what all of them together may take, as their guests see it */
        unsigned min_free_mb; /* of the host's memory: below it they are given up */
};

struct core_config {
        const char *state_dir; /* vms/, disks/ and snapshots/ are below it */
        const char *image_dir;
        const char *default_image;
        unsigned default_vcpus, default_memory_mb, default_disk_gb;
        struct core_limits limits;
        struct core_transfer transfer;
        struct core_pool pool;
        unsigned max_snapshots;   /* that a workspace may have */
        uint64_t templates_bytes; /* that templates may take on the disk; 0: there are none */
        uint64_t reserve_bytes;   /* that must stay free where the snapshots are */
        uint32_t network;         /* IPv4 network of the workspaces, host byte order, e.g. 10.99.0.0 */
        unsigned prefix_len;      /* e.g. 16 */
        struct network *net;      /* borrowed; NULL: machines get a card that reaches nothing */
        uint32_t forward_bind;    /* IPv4 address of the host, host byte order, that port forwards listen on */
        bool default_allow_internet;
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
/* Whether any machine runs, or may run. */
bool core_has_machines(struct core *core);
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
        const bool *allow_internet; /* NULL: the configured default */
};

/* What a machine was made of. */
enum ws_start_kind {
        WS_START_BOOT,     /* a kernel that booted */
        WS_START_TEMPLATE, /* the memory of one that had booted before */
        WS_START_POOL,     /* such a machine that was waiting already */
        WS_START_SNAPSHOT, /* the memory of a workspace */
};
/* "boot", "template", "pool", "snapshot". */
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

/*
 * Snapshots (snapshot.c says how they are kept). A snapshot is named by its workspace and its own name.
 */
struct snap_view {
        struct snap_row row;
        char *parent_name;         /* the nearest older snapshot with a name on which it stands; NULL: none */
        uint64_t used_bytes;       /* what its disk and its memory take alone */
        uint64_t referenced_bytes; /* with all that they stand on */
        struct strv forks;         /* names of the workspaces that were forked from it and stand on it */
};
void snap_view_clear(struct snap_view *v);
#define _cleanup_snap_view_ _cleanup_(snap_view_clear)
struct snap_views {
        struct snap_view *v; /* oldest first */
        size_t n;
};
void snap_views_clear(struct snap_views *l);
#define _cleanup_snap_views_ _cleanup_(snap_views_clear)

/* Of a running or a stopped workspace; with memory only of a running one. The workspace goes on. conflict: the name is
 * taken. quota_exceeded: it has as many as it may. no_space before anything is begun. */
int ws_snapshot_create(struct core *core, const char *ref, const char *name, bool include_memory, const struct op *op,
                       struct snap_view *ret, struct error *err);
int ws_snapshot_list(struct core *core, const char *ref, struct snap_views *ret, struct error *err);
/* The workspace has again the disk that it had then, and, if the snapshot has memory and disk_only is not set, its
 * processes go on from that instant. Other snapshots stay. It runs afterwards if it ran before, or if it has memory. A
 * restore that fails leaves it as it was. *ret_memory: processes went on. */
int ws_snapshot_restore(struct core *core, const char *ref, const char *name, bool disk_only, const struct op *op,
                        struct ws_view *ret, struct ws_started *ret_started, bool *ret_memory, struct error *err);
/* conflict while forks stand on it, naming them. What newer snapshots or the workspace itself need of it stays on the
 * disk, without a name; *ret_freed: bytes that are free now. */
int ws_snapshot_delete(struct core *core, const char *ref, const char *name, const struct op *op, uint64_t *ret_freed,
                       struct error *err);

#define WS_FORKS_MAX 20u
struct ws_fork_args {
        const char *snapshot_name; /* NULL: as it is at this instant, with memory if it runs */
        bool disk_only;            /* not the memory that the snapshot has */
        unsigned count;            /* 1 to WS_FORKS_MAX */
        const char *new_name;      /* for a count of 1; NULL: fork- and 8 hexadecimal digits */
        const char *name_prefix;   /* for more: prefix-1 and so on; NULL: worker */
};
struct ws_fork {
        char *name; /* that it has or was to have */
        int r;      /* 0, or why it failed: error */
        struct ws_view view;
        struct error error;
        struct ws_started started;
};
struct ws_forks {
        struct ws_fork *v; /* in the order of their names' numbers */
        size_t n;
        char *snapshot_name; /* NULL: a live fork */
        int64_t pause_us;    /* for which the source stood still; 0: it did not */
};
void ws_forks_clear(struct ws_forks *f);
#define _cleanup_ws_forks_ _cleanup_(ws_forks_clear)
/* Makes running workspaces that go on where the source, or its snapshot, is; they belong to the owner. 0 also when some
 * or all of them fail, each with its own error. Cancelled: none of them is left. */
int ws_fork(struct core *core, const char *ref, const struct ws_fork_args *args, const char *owner, const struct op *op,
            struct ws_forks *ret, struct error *err);

/*
 * The network (network.c, forwards.c).
 */
struct ws_policy_change {
        const bool *allow_internet, *allow_inter_vm; /* NULL: as it is */
        const char *allowed_ports;                   /* policy.h; NULL: as it is */
};
/* In force when it returns; otherwise nothing has changed. */
int ws_set_policy(struct core *core, const char *ref, const struct ws_policy_change *change, const struct op *op,
                  struct ws_view *ret, struct error *err);

#define WS_FORWARDS_MAX 64u /* of a workspace */
struct ws_forward {
        uint16_t guest_port, host_port;
        bool listening; /* false: somebody else has the host port for now */
};
/* host_port 0: one that is free. conflict: the host port is taken, or the guest's is forwarded already. */
int ws_forward_add(struct core *core, const char *ref, uint16_t guest_port, uint16_t host_port, const struct op *op,
                   struct ws_forward *ret, struct error *err);
int ws_forward_remove(struct core *core, const char *ref, uint16_t guest_port, const struct op *op,
                      struct ws_forward *ret, struct error *err);
/* Of a workspace, oldest first; the array is the caller's to free. */
int ws_forward_list(struct core *core, const char *ref, struct ws_forward **ret, size_t *ret_n, struct error *err);
/* The address that they listen on, dotted quad. */
void core_forward_bind(const struct core *core, char ret[16]);

/* Templates (template.c), as `agentiso status` and `agentiso image warm` show them. */
struct core_template {
        char id[UUID_LEN + 1];
        char *base_image; /* NULL: fits any disk */
        unsigned vcpus, memory_mb, disk_gb;
        uint64_t bytes; /* on the disk */
        int64_t created_ms, used_ms;
};
struct core_templates {
        struct core_template *v;
        size_t n;
};
void core_templates_clear(struct core_templates *l);
int core_templates_list(struct core *core, struct core_templates *ret, struct error *err);
/* Makes the templates of this shape (NULL and 0: the defaults) if they are not there, and waits for them. *ret_built:
 * how many were made. unsupported: there are none by configuration. */
int core_warm(struct core *core, const char *base_image, unsigned vcpus, unsigned memory_mb, const struct op *op,
              unsigned *ret_built, struct error *err);
/* Machines that wait in the pool, and how many there should be. */
void core_pool_state(struct core *core, unsigned *ret_ready, unsigned *ret_wanted);
/* Ends all machines that wait: for an orderly end of the daemon. */
void core_pool_drain(struct core *core);

/* The agent of a running workspace, connected; a reference. not_running (with workspace_start as the hint, and with
 * the reason if it ended by itself) when it is stopped; waits while it is being started. */
int ws_agent(struct core *core, const char *ref, const struct op *op, struct agent **ret, struct error *err);

/* The console and QEMU's standard error, also of stopped workspaces; a log that was never written is empty. */
int ws_logs(struct core *core, const char *ref, unsigned max_lines, struct buf *console, struct buf *qemu_stderr,
            struct error *err);
