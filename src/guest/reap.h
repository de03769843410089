/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Children and orphans.
 *
 * PID 1 inherits every orphan and must wait for it; the commands that it started itself it must not lose. One thread
 * therefore does all the waiting: it looks at who ended without reaping (WNOWAIT), then, under the registry's lock,
 * reaps and either hands the status to the registered child or drops it. fork and registration happen under the same
 * lock, so a child that ends at once is still found, and a signal is sent under it too, so that it never reaches a
 * stranger under a recycled pid.
 */

#include <sys/types.h>

#include "base/deadline.h"
#include "base/util.h"

struct reaper;
struct child;

struct child_result {
        int exit_code;    /* -1 when a signal ended it */
        int signal;       /* 0 when it exited */
        int64_t ended_ns; /* monotonic_ns() when it was reaped */
};

/* SIGCHLD must be blocked in the calling thread, and in all others. One reaper a process. */
int reaper_new(struct reaper **ret);
/* Ends the thread; children must have been released. Accepts NULL. */
void reaper_free(struct reaper *r);

/*
 * Forks. In the child returns 0 (only async-signal-safe calls from there on); in the parent the pid, and *ret is a
 * handle to release. cgroup_fd: folder of a cgroup v2 that the child is born in, or -1.
 */
pid_t reaper_fork(struct reaper *r, int cgroup_fd, struct child **ret);
/* Waits until this process has no children, which for PID 1 means that nothing else runs. 0 or -ETIMEDOUT. */
int reaper_wait_alone(struct reaper *r, deadline_t deadline);

pid_t child_pid(const struct child *c);
/* Becomes readable when the child has ended; never read it. */
int child_fd(const struct child *c);
/* False while it still runs. */
bool child_ended(struct child *c, struct child_result *ret);
/* Signals the child's process group. -ESRCH when the child has been reaped. */
int child_signal_group(struct child *c, int sig);
/* Drops the handle; a child that still runs is reaped as an orphan. Accepts NULL. */
void child_release(struct child *c);
