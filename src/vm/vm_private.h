/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the files that implement vm.h share. */

#include <pthread.h>

#include "vm/console.h"
#include "vm/qmp.h"
#include "vm/vm.h"

/* Files of a VM, in its folder. */
#define VM_QMP_SOCKET "qmp.sock"
#define VM_AGENT_SOCKET "agent.sock"
#define VM_CONSOLE_SOCKET "con.sock"
#define VM_PIDFILE "qemu.pid"
#define VM_STDERR_FIFO "stderr.fifo"
#define VM_MEMORY_IMAGE "memory.img"
#define VM_STDERR_LOG "stderr.log"
#define VM_STDERR_LOG_OLD "stderr.log.1"

/* Numbers of the listening sockets in QEMU. */
#define VM_FD_QMP 3
#define VM_FD_AGENT 4
#define VM_FD_CONSOLE 5
#define VM_FD_NET 6

#define VM_STDERR_KEEP (64u * 1024u) /* bytes of stderr kept: one file of this size and an older one */
/* Free space on the file system of the disk with which a VM that ran out of it goes on. */
#define VM_RESUME_FREE_BYTES (64u * 1024u * 1024u)
#define VM_RESUME_MS 5000 /* between two looks at the free space, and for QEMU to answer */

/* How QEMU's saving or loading of a state goes, as its events say. */
enum vm_migration { VM_MIGRATION_UNDER_WAY, VM_MIGRATION_COMPLETED, VM_MIGRATION_FAILED, VM_MIGRATION_CANCELLED };

struct vm {
        unsigned refs;              /* atomic */
        char *id, *dir, *disk_path; /* disk_path NULL: no disk */
        enum vm_memory_kind memory;
        char *memory_path; /* NULL: anonymous */
        uint64_t memory_bytes;
        struct proc_id proc;
        int pidfd;
        int pages_error; /* why the pages could not be laid over QEMU's memory at the launch, or 0 */
        struct vm_callbacks cb;

        /* Only for the watcher, until it is joined. */
        struct capped_log console, said; /* what the guest, what QEMU says */
        int console_fd, said_fd;
        pthread_t watcher;
        bool watched;          /* the watcher was started */
        struct cancel *let_go; /* fired: the watcher ends, QEMU goes on */
        int wake_fd;           /* eventfd: the watcher must look at disk_full again */

        pthread_mutex_t lock; /* guards all below */
        pthread_cond_t changed;
        bool announce;    /* vm_launch() has succeeded: `exited` is to be called */
        bool exited;      /* QEMU is gone and reaped */
        int exit_code;    /* -1: unknown or by signal */
        int exit_signal;  /* 0: none or unknown */
        bool guest_reset; /* QEMU ended because the guest reset itself, as a panicking kernel does */
        bool disk_full;   /* QEMU has paused the guest, because the host had no room for what it wrote */
        bool connecting;  /* somebody makes a connection to the agent */
        bool asking;      /* somebody makes a connection to QEMU */
        bool saving;      /* somebody saves the state: one at a time, because the guest stands still for it */
        enum vm_migration migration;
        char *session; /* the agent's secret; NULL: none */
        struct agent *agent;
        struct qmp *qmp;
};

/* watch.c: starts and ends the thread that follows the console and waits for the end of QEMU. */
int vm_watch_start(struct vm *vm);
void vm_watch_end(struct vm *vm);
/* Removes what leads nowhere once QEMU is gone: its sockets, its FIFO and its pid file. */
void vm_remove_files(const char *dir);
/* Opens our end of the FIFO that QEMU has as its standard error. */
int vm_open_said(const char *dir);

/* vm.c: the current connection to QEMU, made anew if it was lost. *ret is a reference. One maker at a time; others wait
 * for it under their own op. */
int vm_qmp(struct vm *vm, const struct op *op, struct qmp **ret, struct error *err);

/* turn.c: the right to let a machine go on, of which there are few at once. -ETIMEDOUT, -ECANCELED. */
int vm_turn_take(const struct op *op);
void vm_turn_give(void);

/* state.c: lets a guest go on from the state of the spec, in a QEMU that waits for it. */
int vm_load_state(struct vm *vm, const struct vm_spec *spec, const struct op *op, struct error *err);

/* disk_full.c: a VM that finds no room on the host. Call without locks. */

/* QEMU has paused the guest. */
void vm_note_disk_full(struct vm *vm);
bool vm_is_disk_full(struct vm *vm);
/* Lets the guest go on if there is room again. Whether it still stands still. */
bool vm_stands_still(struct vm *vm, const struct op *op);
int vm_fail_disk_full(struct error *err);

/* Waits until QEMU is gone. 0, -ETIMEDOUT, -ECANCELED. */
int vm_wait_exit(struct vm *vm, const struct op *op);
