/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Child processes.
 *
 * The daemon has many threads, so it never forks without exec: children start through posix_spawn with an explicit
 * list of fds; every other fd is O_CLOEXEC. A process that must be found again after a restart is remembered as a
 * `struct proc_id`: pid, start time in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)) and boot id
 * together name one process for ever, so that a stranger under a recycled pid is never signalled.
 */

#include <sys/types.h>

#include "base/buf.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/util.h"

struct fd_map {
        int from; /* fd in the parent */
        int to;   /* number in the child, at most 127, each once; -EINVAL otherwise */
};

struct spawn {
        char *const *argv;        /* argv[0] is looked up in PATH when it has no slash */
        char *const *env;         /* NULL: the parent's */
        const struct fd_map *fds; /* 0, 1, 2 that are not listed are /dev/null */
        size_t n_fds;
        bool new_session;    /* setsid(): outlives the parent's terminal and process group */
        const char *workdir; /* NULL: unchanged */
};

/* Starts a child with default signal dispositions and an empty signal mask. */
int process_spawn(const struct spawn *s, pid_t *ret_pid, struct error *err);

struct process_result {
        int exit_code; /* -1 when a signal ended it */
        int signal;    /* 0 when it exited */
};

/* Waits for a child; -ETIMEDOUT or -ECANCELED leaves it running. */
int process_wait(pid_t pid, const struct op *op, struct process_result *ret);
/* SIGTERM, then SIGKILL after grace_ms, then reaps. For children only. */
void process_end(pid_t pid, int64_t grace_ms);

/*
 * Runs a program to its end with /dev/null as standard input and gathers what it prints. `out` and `err_out` may be
 * NULL (discarded); their limits bound the memory, what is beyond is dropped. The child gets a session of its own; on
 * deadline or cancel it is killed with all of its process group. A process that it leaves behind is not waited for.
 * A non-zero exit is an error that carries the last lines of its standard error.
 */
int process_run(char *const *argv, const struct op *op, struct buf *out, struct buf *err_out, struct error *err);
/* The same with n bytes as standard input: a file in memory, so the child may read it when and as often as it likes. */
int process_run_input(char *const *argv, const void *input, size_t n, const struct op *op, struct buf *out,
                      struct buf *err_out, struct error *err);

#define BOOT_ID_LEN 36

struct proc_id {
        pid_t pid;
        uint64_t start_ticks;
        char boot_id[BOOT_ID_LEN + 1];
};

/* Fills the identity of a live process. -ESRCH. */
int proc_id_read(pid_t pid, struct proc_id *ret);
/* A pidfd of exactly this process; -ESRCH when it is gone or the pid belongs to a stranger. */
int proc_id_open(const struct proc_id *id);
/* Finds a process among whose arguments `option` is followed by `value`. -ESRCH when there is none. */
int proc_id_find(const char *option, const char *value, struct proc_id *ret);
/* SIGKILL to exactly this process, and waits up to wait_ms for its end. 0 also when it was gone; -ETIMEDOUT. */
int proc_id_kill(const struct proc_id *id, int64_t wait_ms);
/* Reads the id of the running boot into a buffer of BOOT_ID_LEN + 1 bytes. */
int boot_id_read(char *ret);
/* pidfd_open(2) and pidfd_send_signal(2), which glibc 2.36 has but older headers lack. */
int pidfd_of(pid_t pid);
int pidfd_signal(int pidfd, int sig);
