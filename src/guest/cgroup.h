/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One cgroup (version 2) for each command, so that everything it started is found, whatever session or parent it has
 * given itself: <mount>/agentiso/exec-<n>. The folder goes when the command is over; one that still holds a process
 * left behind is kept in a list and tried again when the next one goes. The parent's limits keep back some threads and
 * memory for the agent.
 *
 * A few folders are made before they are needed, when another one goes: the start of a command then does not wait for
 * it. Used ones are not used again: a command may have frozen its own, or put limits on it.
 */

#include <dirent.h>

#include "base/deadline.h"
#include "base/thread.h"
#include "base/util.h"

#define CGROUP_NAME_MAX 31
#define CGROUPS_STALE_MAX 512 /* left-over folders that are remembered */
#define CGROUPS_SPARE_MAX 4   /* folders that wait to be used */
#define CGROUPS_SCAN_MAX 64   /* entries looked at, when one goes, in search of those that are not remembered */
/* For the kernel and the agent: of kernel.threads-max, never more than half; of the memory in bytes, never more than a
 * sixteenth. */
#define CGROUPS_THREADS_RESERVED UINT64_C(640)
#define CGROUPS_MEMORY_RESERVED (UINT64_C(32) << 20)
#define CGROUP_DEPTH_MAX 16 /* of the cgroups that a command may have made in its own */

struct cgroup {
        int fd; /* its folder */
        char name[CGROUP_NAME_MAX + 1];
};
#define CGROUP_INIT ((struct cgroup){.fd = -1})

struct cgroups {
        int fd;               /* <mount>/agentiso; -1: there are no cgroups here */
        pthread_mutex_t lock; /* guards what follows */
        uint64_t next;
        size_t n_stale;
        char stale[CGROUPS_STALE_MAX][CGROUP_NAME_MAX + 1];
        uint64_t lost_max; /* greatest number of those that the list had no room for; 0: there are none */
        bool lost_busy;    /* the scan has met one that could not go yet */
        DIR *lost_scan;    /* owned; NULL: begins anew */
        size_t n_spare;
        struct cgroup spare[CGROUPS_SPARE_MAX];
};
#define CGROUPS_INIT ((struct cgroups){.fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER})

/* 0, or a negative errno: then .fd stays -1. */
int cgroups_open(struct cgroups *g, const char *mount);
void cgroups_close(struct cgroups *g);

int cgroup_create(struct cgroups *g, struct cgroup *ret);
/* The same, but none that was made before: those can have been removed. */
int cgroup_make(struct cgroups *g, struct cgroup *ret);
/* Whether a process is in it or below. */
bool cgroup_holds(const struct cgroup *c, pid_t pid);
/* Whether there is cgroup.kill (Linux 5.14). */
bool cgroup_can_kill(const struct cgroup *c);
/* Kills every process in it and below and waits until none is left. -EOPNOTSUPP: there is no cgroup.kill. */
int cgroup_kill(const struct cgroup *c, deadline_t deadline);
/* Sends a signal to every process in it and below, or none for 0. Returns how many there were. */
size_t cgroup_signal(const struct cgroup *c, int sig);
/* Waits until no process is in it or below: 0 or -ETIMEDOUT. */
int cgroup_wait_empty(const struct cgroup *c, deadline_t deadline);
/* Removes the folder, now or when its last process is gone. */
void cgroup_release(struct cgroups *g, struct cgroup *c);
