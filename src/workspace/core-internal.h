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
 * Lock order: commit_lock, then lock. A token's lock (base/deadline.h) is taken before both. The store has its own lock
 * below commit_lock. vm_unref() joins a thread whose callback takes `lock`: it is called with none of them held.
 */

#include <pthread.h>

#include "base/thread.h"
#include "base/waiter.h"
#include "workspace/workspace.h"

#define WS_MEMORY_MB_MIN 128             /* the kernel and a root file system need about 100 */
#define WS_NAME_MAX 128                  /* bytes of a name */
#define WS_NAME_TRIES 8                  /* for a random name that is free */
#define OWNERS_MAX 4096                  /* live clients */
#define LAST_WORDS_MAX 2000u             /* bytes of console that are kept with the reason of a crash */
#define TAIL_READ_MAX (CONSOLE_KEEP * 3) /* of a log: each byte may become a replacement character of three */
#define QEMU_END_MS 10000                /* until a killed process must be gone */
#define QEMU_DYING_MS 500                /* between the loss of a connection and the end of the process */
#define RECOVER_BOOT_MS 5000             /* for all workspaces together whose boot a crash cut short */

struct workspace {
        struct core *core;
        char id[UUID_LEN + 1]; /* never changes, as dir */
        char *dir;

        /* All of this is guarded by core->lock. */
        struct ws_row row; /* as the store has it; written by lifecycle.c only */
        struct vm *vm;     /* owned; written by whoever has the claim, who may read it without the lock */
        unsigned refs;     /* of the registry and of the threads that work on it */
        bool busy;         /* claimed */
        bool gone;         /* its row is deleted: only its last users know it any more */
        struct workspace *next;
};

struct owner {
        char id[UUID_LEN + 1];
        struct owner *next;
};

struct core {
        /* These never change. */
        struct core_config cfg; /* its texts point at the copies that follow */
        char *vms_dir, *image_dir, *default_image, *transfer_dir;
        struct db *db;
        struct storage *storage;
        const struct platform *platform;
        pthread_t reaper;
        bool has_reaper;

        pthread_mutex_t commit_lock; /* makes one change of a row at a time: memory, store, memory */
        pthread_mutex_t lock;        /* guards what follows, and the workspaces as said above */
        pthread_cond_t changed;      /* a claim was let go, a workspace is gone, an op was cancelled */
        pthread_cond_t reap;         /* wakes the reaper */
        bool reap_wanted, closing;
        struct workspace *first; /* oldest first */
        size_t n_workspaces;
        struct owner *owners;
        size_t n_owners;
};

/* registry.c: finding, claiming, letting go. */

/* A workspace for a row, which is taken over; not in the registry yet, one reference, claimed when busy. */
int workspace_new(struct core *core, struct ws_row *row, bool busy, struct workspace **ret);
void registry_add_locked(struct core *core, struct workspace *ws);
/* Takes it out for good: those who wait for it get not_found. */
void registry_remove(struct workspace *ws);
/* By id or name; NULL. */
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

/* boot.c */

/* Starts QEMU, mounts, gives the guest its identity; the workspace then has its VM. On failure nothing runs. */
int workspace_boot(struct workspace *ws, const struct op *op, struct error *err);
/* Takes up a QEMU that runs already. */
int workspace_attach(struct workspace *ws, const struct proc_id *proc, struct error *err);
/* The part of a boot after the agent serves: idempotent. */
int workspace_prepare_guest(struct workspace *ws, struct vm *vm, const struct op *op, struct error *err);
/* What a guest may call itself: at most 63 letters, digits and inner dashes. */
#define HOSTNAME_LEN 63
void hostname_of(const char *name, char ret[HOSTNAME_LEN + 1]);

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
