/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of workspace/ share.
 *
 * An operation on a workspace first *claims* it: one operation at a time has it, others wait under their own op. The
 * one that has the claim moves the workspace through the states of lifecycle.c, each move being in the store before
 * what it announces is done. When an operation fails because the store does, the workspace stays in the state that the
 * store knows, and the next one to claim it *settles* it: what was begun is undone or finished, exactly as after a
 * crash.
 *
 * Whatever only reads (list, info, the agent for a command) takes no claim.
 *
 * Snapshots are claimed by nobody: an operation that uses one *pins* it, so that its files stay.
 *
 * Lock order: snap_lock, then a workspace's commit_lock, then lock. A token's lock (base/deadline.h) is taken before
 * all of them. The store has its own lock below. vm_unref() joins a thread whose callback takes `lock`: it is called
 * with none of them held.
 */

#include <pthread.h>
#include <stdatomic.h>

#include "base/thread.h"
#include "base/waiter.h"
#include "network/forward.h"
#include "network/network.h"
#include "vm/state.h"
#include "workspace/workspace.h"

#define WS_MEMORY_MB_MIN 128             /* the kernel and a root file system need about 100 */
#define WS_NAME_MAX 128                  /* bytes of a name */
#define WS_NAME_TRIES 8                  /* for a random name that is free */
#define WS_NAMES_SHOWN 100u              /* names among which the nearest one is looked for */
#define OWNERS_MAX 4096                  /* live clients */
#define LAST_WORDS_MAX 2000u             /* bytes of console that are kept with the reason of a crash */
#define TAIL_READ_MAX (CONSOLE_KEEP * 3) /* of a log: each byte may become a replacement character of three */
#define QEMU_END_MS 10000                /* until a killed process must be gone */
#define QEMU_DYING_MS 500                /* between the loss of a connection and the end of the process */
#define RECOVER_BOOT_MS 5000             /* for all workspaces together whose boot a crash cut short */
#define RESUME_MS 20000                  /* for a machine that goes on from a state; longer, and it is booted instead */
#define SLOTS 2                          /* folders for VMs that a workspace has: a restore starts the second one */
#define GIB ((uint64_t) 1 << 30)

struct workspace {
        struct core *core;
        char id[UUID_LEN + 1]; /* never changes, as dirs */
        char *dirs[SLOTS];     /* of its VM, by slot; the second one is below the first */

        pthread_mutex_t commit_lock; /* makes one change of the row at a time: memory, store, memory */
        struct machine *recording;   /* being started by whoever has the claim, for the row to know; or NULL */
        bool disk_unsure; /* for whoever has the claim: the storage may not know on which file the machine writes */

        /* All of this is guarded by core->lock. */
        struct ws_row row; /* as the store has it; written by lifecycle.c only */
        struct vm *vm;     /* owned; written by whoever has the claim, who may read it without the lock */
        unsigned refs;     /* of the registry and of the threads that work on it */
        bool busy;         /* claimed */
        bool card_unsure;  /* its card may not be on the network: tidy.c */
        bool gone;         /* its row is deleted: only its last users know it any more */
        struct workspace *next;
};

struct owner {
        char id[UUID_LEN + 1];
        struct owner *next;
};

struct snapshot {
        struct core *core;
        char id[UUID_LEN + 1];      /* never changes, as dir */
        char *dir;                  /* of its files, if it has memory */
        pthread_mutex_t image_lock; /* one thread at a time makes the whole memory of its pages */

        /* These are guarded by core->lock. */
        struct snap_row row;   /* as the store has it */
        unsigned pins;         /* operations that use it */
        unsigned timeouts;     /* of machines that were to go on from it, in a row */
        uint64_t failed_sweep; /* the last sweep that could not remove it */
        struct snapshot *next;
};

struct core {
        /* These never change. */
        struct core_config cfg; /* its texts point at the copies that follow */
        char *vms_dir, *snapshots_dir, *image_dir, *default_image, *transfer_dir;
        struct db *db;
        struct storage *storage;
        const struct platform *platform;
        pthread_t reaper;
        bool has_reaper;

        atomic_bool has_namespace;        /* network.c: found out before the first machine starts, as the next */
        atomic_bool has_user_net;         /* each machine has a process of its own for its network (usernet.h) */
        struct forwards *forwards;        /* forwards.c */
        struct tidier *tidier;            /* tidy.c */
        struct template_builder *builder; /* template.c */
        struct pool *pool;                /* pool.c */

        pthread_mutex_t snap_lock; /* makes one change of the snapshots at a time: memory, store, memory */
        pthread_mutex_t lock;      /* guards what follows, the workspaces and the snapshots as said above */
        pthread_cond_t changed;    /* a claim was let go, a workspace is gone, an op was cancelled */
        pthread_cond_t reap;       /* wakes the reaper */
        bool reap_wanted, closing;
        struct workspace *first; /* oldest first */
        size_t n_workspaces;
        struct snapshot *snapshots; /* oldest first */
        uint64_t n_sweeps;
        unsigned n_foreground; /* operations that somebody waits for and that start machines */
        struct owner *owners;
        size_t n_owners;
        uint64_t policy_wanted, policy_applied; /* generations: core_apply_policy() */
        bool policy_busy;
        struct forward_row *forward_rows; /* as the store has them */
        size_t n_forward_rows;
};

/* registry.c: finding, claiming, letting go. */

/* A workspace for a row, which is taken over; not in the registry yet, one reference, claimed when busy. */
int workspace_new(struct core *core, struct ws_row *row, bool busy, struct workspace **ret);
void registry_add_locked(struct core *core, struct workspace *ws);
/* Takes it out for good: those who wait for it get not_found. */
void registry_remove(struct workspace *ws);
/* By id or name; NULL. One of the pool is nobody's yet, and is not found. */
struct workspace *registry_find_locked(struct core *core, const char *ref);
int registry_not_found_locked(struct core *core, const char *ref, struct error *err);

void workspace_drop(struct workspace *ws); /* a reference; accepts NULL */
DEFINE_CLEANUP(struct workspace *, workspace_drop)
#define _cleanup_workspace_ _cleanup_(workspace_dropp)

/* Waits until nobody else has it, and claims it. It may be in any state. */
int workspace_claim(struct core *core, const char *ref, const struct op *op, struct workspace **ret, struct error *err);
/* The same, and settles it: it is running with a live VM, or stopped. */
int workspace_claim_settled(struct core *core, const char *ref, const struct op *op, struct workspace **ret,
                            struct error *err);
/* Lets go of the claim and of the reference; accepts NULL. */
void workspace_release(struct workspace *ws);
DEFINE_CLEANUP(struct workspace *, workspace_release)
#define _cleanup_claim_ _cleanup_(workspace_releasep)
/* Waits until nobody has a claim on it, without claiming it; called with the lock, and a waiter on core->changed. The
 * caller has a reference. 0, -ENOENT (gone), or err says whom we waited for. */
int workspace_wait_locked(struct workspace *ws, struct cond_waiter *waiter, struct error *err);

/* A copy of the row. -ENOMEM with err. */
int workspace_row(struct workspace *ws, struct ws_row *ret, struct error *err);
enum ws_state workspace_state(struct workspace *ws);

/* lifecycle.c: the table of moves, and changes of a row: store first, then memory. */

bool ws_move_allowed(enum ws_state from, enum ws_state to);
/* Changes the row by a function that edits a copy of it; a negative errno from it, with or without err, changes
 * nothing. */
typedef int (*row_edit)(struct ws_row *row, void *arg, struct error *err);
int workspace_change(struct workspace *ws, row_edit edit, void *arg, struct error *err);
/* Moves to a state. To running: the start time is now. To stopped: no process, no start time, and last_error as given
 * (NULL: none). A move that is not in the table is a defect of ours: internal. */
int workspace_move(struct workspace *ws, enum ws_state to, const char *last_error, struct error *err);
int workspace_set_proc(struct workspace *ws, const struct proc_id *proc, struct error *err);
/* Gives an orphan a new owner; -EPERM (without err) when somebody else was faster. */
int workspace_adopt(struct workspace *ws, const char *owner, struct error *err);

/* owners.c */
bool owner_alive_locked(struct core *core, const char *owner);

/* address.c: pure. */

/* The lowest host address of the network that is not in used[]; not one of the gateway (the first), the resolver and
 * the broadcast address (the last two). -ENOSPC. */
int address_pick(uint32_t network, unsigned prefix_len, const uint32_t *used, size_t n_used, uint32_t *ret);
uint32_t address_gateway(uint32_t network);
/* How many workspaces the network has room for. */
uint32_t address_capacity(unsigned prefix_len);
/* A locally administered MAC that is unique in the network: 52:54:00 and the lower 24 bits of the address. */
void address_mac(uint32_t address, char ret[MAC_LEN + 1]);
void address_text(uint32_t address, char ret[16]);

/* network.c: the card of a machine, and what its workspace may do. */

struct ws_policy {
        bool allow_internet, allow_inter_vm;
        const char *allowed_ports; /* as in the row; NULL: none */
};
/* Waits until it is known whether there is a namespace; core_platform() does that. An error only when the
 * configuration insists on one that cannot be had. */
int core_net_wait(struct core *core, const struct op *op, struct error *err);
/* The platform is known: it decides what there is without a namespace. */
void core_note_platform(struct core *core, const struct platform *p);
enum vm_net core_net(const struct core *core);
/* The other side of a machine's card, for VM_NET_TAP and VM_NET_STREAM, else -1. dir: the machine's folder, which is
 * there. attached: the tap is on the bridge at once. */
int core_card(struct core *core, const struct card *card, const char *dir, bool attached, const struct op *op, int *ret,
              struct error *err);
/* Whether the guest has a gateway and a name server: not in user networking, unless it may reach the internet. */
bool core_has_gateway(const struct core *core, const struct ws_row *row);
/* Puts what the row says in force for the machine in this folder, in user networking; else it is in force already. */
int core_open_card(struct core *core, const struct ws_row *row, const char *dir, const struct op *op,
                   struct error *err);
/* Has taps made for the next workspaces, in the background. */
void core_expect_cards(struct core *core);
/* The card of the machine that the workspace has now is on the network in place of that of the former one. */
void workspace_change_cards(struct workspace *ws);
/* Puts its card on the network, if it is not there. */
int workspace_attach_card(struct workspace *ws, const struct op *op, struct error *err);
/* The way to the internet is there, if there can be one. */
int core_have_uplink(struct core *core, const struct op *op, struct error *err);
/* Puts what the rows say in force. */
int core_apply_policy(struct core *core, const struct op *op, struct error *err);
bool policy_is_default(const struct ws_row *row);
bool policy_has_wishes(const struct ws_policy *p);
/* unsupported: there is no network that could be opened in this way. */
int core_check_policy(struct core *core, const struct ws_policy *p, const struct op *op, struct error *err);
/* Changes row and rules of a claimed workspace; on failure both are as before. */
int workspace_set_policy(struct workspace *ws, const struct ws_policy *p, const struct op *op, struct error *err);
/* Has done in the background what the network of the machines that run needs after a start. */
void core_recover_network(struct core *core);

/* tidy.c: what is left to be done on the network. */

int tidy_open(struct core *core, struct error *err);
void tidy_close(struct core *core);
void core_tidy_soon(struct core *core);
/* The workspace that has it goes: nobody gets it before its rules and its connections are gone. */
void core_retire_address(struct core *core, uint32_t address);
/* How many such addresses there are. */
size_t core_retired_locked(const struct core *core);
/* Those, and those of all workspaces, with room for more behind them; owned, NULL: out of memory. */
uint32_t *core_used_addresses_locked(const struct core *core, size_t room, size_t *ret_n);
/* What a row says is not what is in force: seen to in the background. */
void core_policy_changed(struct core *core);
/* Rules are not in force that should be: of an address that somebody else had, perhaps. */
bool core_policy_pending(struct core *core);

/* forwards.c */

int core_forwards_open(struct core *core, struct error *err);
/* Ends all connections; what serves them uses the workspaces. */
void core_forwards_close(struct core *core);
/* Listens where rows promise it. */
void core_recover_forwards(struct core *core);
/* Whether a row's port is not listened on: somebody else had it. */
bool core_forwards_wanted(struct core *core);
/* Tries those again. */
void core_retry_forwards(struct core *core);
/* Ends the connections of a workspace whose machine goes; the ports stay. */
void workspace_cut_forwards(struct workspace *ws);
bool workspace_has_forwards(struct workspace *ws);
/* Its rows and ports go. */
int workspace_drop_forwards(struct workspace *ws, struct error *err);

/* create.c: coming into being, for creates, forks and the pool. */

struct birth {
        const char *name;        /* NULL: name_prefix and 8 hexadecimal digits */
        const char *name_prefix; /* e.g. "ws" */
        const char *base_image, *owner;
        unsigned vcpus, memory_mb, disk_gb;
        struct ws_policy policy;
        bool pooled;
        const char *parent;             /* snapshot that the disk will stand on; NULL: none */
        const struct ws_origin *origin; /* NULL: no fork */
};
int workspace_check_name(const char *name, struct error *err);
int check_range(const char *what, unsigned value, unsigned min, unsigned max, struct error *err);
/* Reserves name, address and place, first in memory, then in the store, and makes the folder. The workspace is creating
 * and claimed. */
int workspace_reserve(struct core *core, const struct birth *b, struct workspace **ret, struct error *err);
/* Undoes a creation that failed or was cancelled; what cannot be undone now keeps its row and is undone later. */
void workspace_abandon(struct workspace *ws);
/* A machine of an image, on a new disk, in the fastest way there is. The workspace was reserved; it is running then. */
int workspace_build(struct workspace *ws, const struct image *image, const struct op *op, enum ws_start_kind *ret,
                    struct error *err);
/* Its machine is there: what it may do is put in force, and it is running. */
int workspace_born(struct workspace *ws, const struct op *op, struct error *err);

/* machine.c: a VM for a workspace, of whatever it begins with. */

/* The files that a machine goes on from; zeros: it boots. */
struct start_files {
        enum vm_memory_kind memory;
        enum vm_state_kind state;
        char *memory_path, *state_path, *pages_path; /* owned */
        char memory_base[UUID_LEN + 1];              /* for the row: the snapshot whose memory file that is */
        char *session;                               /* owned: of the agent in it */
        bool root_mounted;
        unsigned disk_gb; /* that its guest believes in; 0: it has not seen its disk yet */
};
void start_files_clear(struct start_files *f);
#define _cleanup_start_files_ _cleanup_(start_files_clear)

struct machine_args {
        const struct start_files *from; /* NULL: boots */
        const char *disk;               /* id of its disk, "": as the row says */
        unsigned slot;                  /* the folder that it gets, and the card */
        bool record; /* the row shall have the process as soon as it exists; otherwise *ret says what it should have */
};
/* What a row must know of a machine. */
struct machine {
        struct vm *vm;
        struct snapshot *pin; /* of memory_base, owned, until the row has that; NULL: the row has it */
        struct proc_id proc;
        char disk[UUID_LEN + 1], memory_base[UUID_LEN + 1], session[SESSION_LEN + 1];
        unsigned slot;
        uint64_t network_ns; /* network_id() of its card; 0: user networking */
};
/* Starts QEMU, mounts the root file system, gives the guest its identity. On failure nothing runs. */
int machine_start(struct workspace *ws, const struct machine_args *args, const struct op *op, struct machine *ret,
                  struct error *err);
/* Writes that into a row. */
int machine_to_row(const struct machine *m, struct ws_row *row);
/* Takes up a QEMU that runs already; the workspace then has its VM. */
int workspace_attach(struct workspace *ws, const struct proc_id *proc, struct error *err);
/* What is left of a start after the agent serves, for one that a crash cut short. */
int workspace_prepare_guest(struct workspace *ws, struct vm *vm, const struct op *op, struct error *err);
/* Gives a guest that has its identity another name, the network of its row, and the clock and the entropy of now. cut:
 * its connections end. */
int workspace_rename_guest(struct workspace *ws, const char *name, bool cut, const struct op *op, struct error *err);
void workspace_set_vm(struct workspace *ws, struct vm *vm);
/* Puts a disk in order that a freeze left half done, before anything is built on it or a machine starts on it. */
int workspace_settle_disk(struct workspace *ws, const struct op *op, struct error *err);
/* The folder of the VM that it has now (borrowed). */
const char *workspace_vm_dir(struct workspace *ws);
/* What a guest may call itself: at most 63 letters, digits and inner dashes. */
#define HOSTNAME_LEN 63
void hostname_of(const char *name, char ret[HOSTNAME_LEN + 1]);
int core_platform(struct core *core, const struct op *op, const struct platform **ret, struct error *err);

/* start-stop.c */

/* A machine on the disk that the workspace has: of a template that fits any disk, else by a boot. It then has its VM.
 * With `disk` (an id) and without `record`: as machine_start() has it. */
int workspace_bring_up(struct workspace *ws, const struct machine_args *args, const struct op *op, struct machine *ret,
                       enum ws_start_kind *ret_kind, struct error *err);

/* snapshots.c: the registry of snapshots, and their end. */

int snapshots_load(struct core *core, struct error *err);
void snapshots_free(struct core *core);
struct snapshot *snapshot_find_locked(struct core *core, const char *id);
struct snapshot *snapshot_by_name_locked(struct core *core, const char *workspace, const char *name);
void snapshot_pin_locked(struct snapshot *s);
void snapshot_unpin(struct snapshot *s); /* accepts NULL */
DEFINE_CLEANUP(struct snapshot *, snapshot_unpin)
#define _cleanup_snapshot_ _cleanup_(snapshot_unpinp)
/* Stores a row (taken over; SNAP_CREATING) and makes the folder. The snapshot is pinned. */
int snapshot_new(struct core *core, struct snap_row *row, struct snapshot **ret, struct error *err);
/* Removes its files; the folder stays. */
int snapshot_empty(struct snapshot *s, struct error *err);
/* A copy of the row. */
int snapshot_row(struct snapshot *s, struct snap_row *ret, struct error *err);
/* Stores a row (taken over) in place of the one that the snapshot has. With ws: in the same transaction its disk stands
 * on the snapshot. */
int snapshot_commit(struct snapshot *s, struct snap_row *next, struct workspace *ws, struct error *err);
/* Notes that a machine was made of it. */
void snapshot_note_use(struct snapshot *s);
/* Makes the pages last that others' memory is made of, of this snapshot and those below it. */
int snapshot_sync_memory(struct core *core, const char *id, struct error *err);
/* Takes name and life from it; it goes when nothing stands on it any more, at best at once. */
int snapshot_retire(struct snapshot *s, struct error *err);
/* Removes what nobody needs any more of snapshots that nobody has a name for. */
void snapshots_sweep(struct core *core);
/* Names of the workspaces, other than its own, whose disks stand on it and on no newer snapshot that has a name. */
int snapshot_forks_locked(struct snapshot *s, struct strv *ret);
/* The files of a snapshot for a machine of it. whole: one memory file that machines share, made if it is not there yet;
 * otherwise each machine gets the pages laid over the memory that they belong to. */
int snapshot_files(struct snapshot *s, bool whole, const struct op *op, struct start_files *ret, struct error *err);
#define SNAPSHOT_STATE "state"
#define SNAPSHOT_PAGES "pages"
#define SNAPSHOT_MEMORY "ram"
#define TEMPLATE_VM "vm" /* folder of the machine of which a template is being made */

/* template.c, template-build.c */

int templates_open(struct core *core, struct error *err);
void templates_close(struct core *core);
/* The template of this shape, pinned; NULL: there is none, and one is being made. image NULL: for any disk. */
struct snapshot *template_get(struct core *core, const struct platform *p, const struct image *image, unsigned vcpus,
                              unsigned memory_mb, unsigned disk_gb);
/* No machine came of it: it is given up, and another one made. If the host may be to blame (it took too long, there was
 * no room), only after that happened again. */
void template_failed(struct snapshot *s, const struct error *why);
void template_worked(struct snapshot *s);
/* What a machine's memory fits: its QEMU and its shape, hashed. Owned. */
int machine_key(struct core *core, const struct platform *p, unsigned vcpus, unsigned memory_mb, char **ret,
                struct error *err);

/* pool.c */

int pool_open(struct core *core, struct error *err);
void pool_stop(struct core *core); /* ends its thread */
void pool_close(struct core *core);
/* A machine of the pool that is what is asked for, as the workspace of this name and owner, claimed and running. NULL:
 * there is none. */
struct workspace *pool_take(struct core *core, const struct birth *b, const struct image *image, const struct op *op);
/* Something was made or has gone: the pool may have to be filled. */
void pool_wake(struct core *core);
/* Somebody makes workspaces: the pool is worth while from now on. */
void pool_want(struct core *core);
/* Gives up one machine that waits, to make room for a workspace. Whether there is room now. */
bool pool_give_up(struct core *core);

/* An operation that somebody waits for: background work lets it go first. */
void foreground_begin(struct core *core); /* template.c */
void foreground_end(struct core *core);

/* settle.c: ends of VMs, wanted and not. */

/* Gives up the workspace's VM: kills it, or only lets go of one that has ended. Also one that is only in the row. */
void workspace_kill_vm(struct workspace *ws);
/* Kills a QEMU of an earlier daemon; without effect when it is gone. */
void end_process(const struct proc_id *proc);
/* Brings a claimed workspace to running (with a live VM) or stopped. -ENOENT: it was to be removed, and is. */
int workspace_settle(struct workspace *ws, struct error *err);
void *reaper_main(void *arg);
/* The callback of vm.h. */
void workspace_vm_exited(void *arg);

/* destroy.c */

/* Removes the VM, the disk, the folder, the row, in this order, so that the row is there until all else is gone. */
int workspace_erase(struct workspace *ws, struct error *err);

/* view.c */
int workspace_view(struct workspace *ws, const char *owner, struct ws_view *ret, struct error *err);
int workspace_view_locked(struct workspace *ws, const char *owner, struct ws_view *ret);
