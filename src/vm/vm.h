/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One QEMU process and the ways to talk to it.
 *
 * A VM has a folder (`dir`, 0700) with everything by which a later daemon finds it again: the sockets qmp.sock,
 * agent.sock and con.sock (console), stderr.fifo (QEMU's standard error), the logs console.log and stderr.log (each
 * with an older one beside it, and bounded), and qemu.pid. The daemon makes the sockets, connects to them, and hands
 * the listening ends to QEMU: there is nothing to wait or poll for, and a QEMU that fails to start closes them, which
 * ends every wait at once. QEMU runs in a session of its own and outlives the daemon.
 *
 * A watcher thread per VM copies console and standard error into the capped logs and waits on a pidfd: when QEMU ends,
 * it calls `exited` once. While no daemon is connected QEMU drops what finds no reader, so that a guest that floods
 * them fills neither disk nor memory and never blocks on it.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "base/process.h"
#include "base/str.h"
#include "vm/agent.h"
#include "vm/platform.h"

/* The name of the block device that has the disk, in QEMU and so in saved states. */
#define VM_DISK_DEVICE "disk0"
#define CONSOLE_KEEP (256u * 1024u) /* bytes of console kept: one file of this size and an older one */
#define CONSOLE_TAIL_LINES 20u      /* lines shown in errors */
#define VM_AGENT_STOP_MS 5000       /* for the guest's own shutdown, then QMP quit */
#define VM_QUIT_MS 2000             /* for QMP quit, then SIGKILL */
#define VM_AGENT_CONNECT_MS 15000   /* for a new connection to the agent of a running VM */

/* Where guest memory lives; state.h says what for. */
enum vm_memory_kind {
        VM_MEMORY_ANONYMOUS, /* memory of QEMU that nobody else sees */
        VM_MEMORY_SHARED,    /* a new file, made by the launch: a template in the making */
        VM_MEMORY_PRIVATE,   /* copy on write of a file that never changes: needs a state to go on from */
};

/* What a file with a saved state holds. */
enum vm_state_kind {
        VM_STATE_NONE,     /* no state: the guest boots */
        VM_STATE_TEMPLATE, /* devices; the memory is in a file of its own. For VM_MEMORY_PRIVATE */
        VM_STATE_DEVICES,  /* the same, of a machine whose memory was private. For VM_MEMORY_PRIVATE */
        VM_STATE_FULL,     /* devices and memory. For VM_MEMORY_ANONYMOUS */
};

enum vm_net {
        VM_NET_NONE,
        VM_NET_USER_RESTRICTED, /* a card that reaches nothing: QEMU's user networking with restrict=on */
        VM_NET_TAP,             /* a card on the tap that the spec has open */
        VM_NET_STREAM,          /* a card on the socket that the spec has open; platform_has_stream() */
};

struct vm_spec {
        const char *id;  /* for log lines and QEMU's -name */
        const char *dir; /* exists */
        unsigned vcpus, memory_mb;
        enum vm_memory_kind memory;
        const char *memory_path; /* absolute; of the file, unless the memory is anonymous */
        enum vm_state_kind state;
        const char *state_path;  /* of the file to go on from; only read at the launch */
        const char *pages_path;  /* for VM_STATE_DEVICES: pages (memory.h) that are laid over the memory first. NULL:
                                    memory_path has all of it */
        const char *session;     /* secret of the agent in that state; NULL: it has none */
        const char *disk_path;   /* absolute; NULL: no disk */
        const char *disk_format; /* "qcow2" or "raw" */
        enum vm_net net;
        int net_fd;          /* for VM_NET_TAP and VM_NET_STREAM, at the launch only; it stays the caller's */
        const char *mac;     /* of the card */
        const char *network; /* for VM_NET_USER_RESTRICTED, of all workspaces, e.g. "10.99.0.0"; QEMU's resolver has its
                                last address */
        unsigned prefix_len; /* 8 to 29 */
        const char *gateway; /* e.g. "10.99.0.1" */
};

struct vm_callbacks {
        /* QEMU was started as this process and does nothing yet that must survive: remember it. */
        int (*spawned)(void *arg, const struct proc_id *proc, struct error *err);
        /* QEMU ended, by itself or by vm_stop(); on the watcher thread, once, perhaps before vm_launch() or vm_attach()
         * has returned. Not called for a launch that failed. */
        void (*exited)(void *arg);
        void *arg;
};

struct vm;

/* The arguments of QEMU for a spec: pure, for the launch and for its golden test. -EINVAL: an address of the network is
 * missing or wrong, or memory and state do not go together. */
int vm_argv(const struct platform *p, const struct vm_spec *spec, struct strv *ret);

/* Starts QEMU and waits until the agent serves: boots the guest, or lets it go on from a saved state. On failure
 * nothing is left running, nor is a memory file that was made; err has the console's last lines. A guest that goes on
 * from a state has the clock, the entropy and the identity of the moment at which it was saved: agent_configure()
 * before anybody uses it. Machines that go on wait for their turn under op: few at once, because more of them would
 * take longer for all. Where QEMU's memory cannot be written, a fork by pages gets a memory file of its own: slower,
 * and only its whole state can be saved. `spawned` is then called twice, the second process being the one. */
int vm_launch(const struct platform *p, const struct vm_spec *spec, const struct vm_callbacks *cb, const struct op *op,
              struct vm **ret, struct error *err);
/* Takes up a VM that an earlier daemon left running, and lets it go on if that one had stopped it to save its state.
 * -ESRCH (not_running) when that process is gone, or never got as far as having a guest: it is then killed. The agent
 * is connected by the first vm_agent(). */
int vm_attach(const struct vm_spec *spec, const struct proc_id *proc, const struct vm_callbacks *cb, struct vm **ret,
              struct error *err);
/* Finds a QEMU that was started for this folder, by the command lines in /proc: for start-up, when a crash came
 * between the start and its record. -ESRCH when there is none. */
int vm_find(const char *dir, struct proc_id *ret);

struct vm *vm_ref(struct vm *vm);
/* The last reference lets go of the VM without stopping it. Not from inside a callback. Accepts NULL. */
void vm_unref(struct vm *vm);
DEFINE_CLEANUP(struct vm *, vm_unref)
#define _cleanup_vm_ _cleanup_(vm_unrefp)

struct proc_id vm_proc(struct vm *vm);
bool vm_has_exited(struct vm *vm);
/* Whether QEMU still answers. One that was just killed has not exited yet, but is not going to do anything any more:
 * its end is waited for, for a moment. */
bool vm_is_alive(struct vm *vm, const struct op *op);
/* Appends how QEMU ended, as a phrase: "QEMU was killed by signal 9 (Killed)". Nothing while it runs. */
int vm_describe_exit(struct vm *vm, struct buf *out);
/* The current connection to the agent, made anew if it was lost. *ret is a reference. One maker at a time; others
 * wait for it under their own op. no_space while the machine stands still because the host's disk is full. */
int vm_agent(struct vm *vm, const struct op *op, struct agent **ret, struct error *err);

/* After agent_configure() has given the agent a new secret: the one for connections from now on (copied). vm_launch()
 * and vm_attach() take it from the spec. */
int vm_set_session(struct vm *vm, const char *session);
/* Tells the guest that its disk, which was made larger (or whose overlay is), has this size. */
int vm_disk_resize(struct vm *vm, uint64_t bytes, const struct op *op, struct error *err);

/* Agent shutdown, then QMP quit, then SIGKILL; returns when the process is gone. 0, or -ETIMEDOUT or -ECANCELED when op
 * ends before (the process is then killed all the same). */
int vm_stop(struct vm *vm, const struct op *op, struct error *err);
/* SIGKILL, then waits for the end. */
void vm_kill(struct vm *vm);

/* The last lines of a VM's console as sanitised UTF-8, also of one that is gone. -ENOENT: it never ran. */
int vm_console_tail(const char *dir, unsigned max_lines, struct buf *out);
/* What QEMU wrote to its standard error. */
int vm_stderr_tail(const char *dir, unsigned max_lines, struct buf *out);
/* Private and shared resident memory of a process in bytes, from smaps_rollup. */
int vm_memory(const struct proc_id *proc, uint64_t *ret_private, uint64_t *ret_shared);
