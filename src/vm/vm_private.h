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
#define VM_STDERR_LOG "stderr.log"

/* Numbers of the listening sockets in QEMU. */
#define VM_FD_QMP 3
#define VM_FD_AGENT 4
#define VM_FD_CONSOLE 5

#define VM_STDERR_READ_MAX (64u * 1024u) /* bytes of stderr.log that are looked at: its end */

struct vm {
        unsigned refs; /* atomic */
        char *id, *dir;
        struct proc_id proc;
        int pidfd;
        struct vm_callbacks cb;

        /* Only for the watcher, until it is joined. */
        struct console_log console;
        int console_fd;
        pthread_t watcher;
        bool watched;          /* the watcher was started */
        struct cancel *let_go; /* fired: the watcher ends, QEMU goes on */

        pthread_mutex_t lock; /* guards all below */
        pthread_cond_t changed;
        bool announce;    /* vm_launch() has succeeded: `exited` is to be called */
        bool exited;      /* QEMU is gone and reaped */
        int exit_code;    /* -1: unknown or by signal */
        int exit_signal;  /* 0: none or unknown */
        bool guest_reset; /* QEMU ended because the guest reset itself, as a panicking kernel does */
        bool connecting;  /* somebody makes a connection to the agent */
        struct agent *agent;
        struct qmp *qmp;
};

/* watch.c: starts and ends the thread that follows the console and waits for the end of QEMU. */
int vm_watch_start(struct vm *vm);
void vm_watch_end(struct vm *vm);
/* Removes what leads nowhere once QEMU is gone: its sockets and its pid file. */
void vm_remove_files(const char *dir);
/* Waits until QEMU is gone. 0, -ETIMEDOUT, -ECANCELED. */
int vm_wait_exit(struct vm *vm, const struct op *op);
