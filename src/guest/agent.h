/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * agentiso-guest: the one program inside a machine that the host talks to.
 *
 * It is PID 1 from the initramfs on. main.c brings the machine up (init.c: mounts, modules.c: drivers), then channel.c
 * waits for the host on a virtio-serial port or on vsock and runs a mux for each connection. Each request gets a
 * thread (dispatch.c), which runs one handler top to bottom. mount_root (root.c) pivots into the disk; nothing in the
 * disk's file system is needed by the agent itself.
 *
 * Children: only job_start.c starts any, always through reap.c, whose thread is the only one that waits for processes.
 * Commands, whoever waits for them or not, are jobs (job.h).
 *
 * The workload runs as root beside the agent. It can hurt its own machine; it must not be able to end the agent by
 * accident (out of memory, out of pids, a flood on the console), nor to make it grow.
 */

#include <stdatomic.h>

#include "base/json.h"
#include "base/thread.h"
#include "guest/args.h"
#include "guest/cgroup.h"
#include "guest/drain.h"
#include "guest/env.h"
#include "guest/freeze.h"
#include "guest/jobs.h"
#include "guest/reap.h"
#include "guest/workers.h"
#include "wire/mux.h"
#include "wire/wire.h"

#define AGENT_EXECS_MAX 200          /* commands that run at the same time, whether somebody waits for them or not */
#define AGENT_INPUTS_SHARE 8u        /* of the memory may be input that commands have not read, 1/8 */
#define AGENT_MEMORY_MIN (64u << 20) /* assumed where the system does not say how much there is */

enum root_state {
        ROOT_NONE,     /* still in the initramfs */
        ROOT_MOUNTING, /* a request is at it */
        ROOT_MOUNTED,
};

struct agent {
        struct reaper *reaper;
        struct drainer *drainer;
        struct cgroups cgroups;
        atomic_int execs; /* running commands */
        atomic_int relays;
        struct jobs jobs;
        struct env_store env;
        struct budget inputs; /* input on its way to commands, and what they are given in memory */
        struct freezer freezer;
        struct workers request_workers, job_workers;
        int initramfs_fd; /* root folder of the initramfs: modules are loaded from there. -1: none */
        int null_fd;      /* /dev/null, whatever the workload puts in its place */
        int boot_id_fd;   /* the file that stands for the boot id; -1: the kernel's does */
        pthread_mutex_t
                fork_lock; /* held while the agent has a command's side of its pipes open: a child that is forked
                            * for another command would be born with them, and hold them until it runs exec */
        pthread_mutex_t files_lock; /* makes the replacing of a file and the read before it one step; held across file
                                     * I/O, never across a wait for the peer */
        pthread_mutex_t lock;       /* guards what follows */
        pthread_cond_t idle;        /* requests became 0 */
        unsigned requests;          /* under way */
        enum root_state root;
        bool has_session; /* of connection.h */
        char session[WIRE_SESSION_LEN];
        char machine_id[MACHINE_ID_LEN + 1]; /* given last; empty: none yet */
};

/* Blocks SIGCHLD in the calling thread (the threads started later inherit it) and starts reaper and drainer.
 * cgroup_mount: a cgroup v2 mount point, or NULL to live without. */
int agent_init(struct agent *a, const char *cgroup_mount, struct error *err);
/* Waits for the threads of all requests: end the connections before. */
void agent_free(struct agent *a);

bool agent_root_mounted(struct agent *a);

/* One request on its own thread. */
struct request {
        struct work work;
        struct agent *agent;
        struct connection *connection; /* a reference */
        struct mux_stream *stream;     /* owned */
        json_t *args;                  /* owned; the WIRE_OPEN message */
        json_t *reply;                 /* owned; members that a handler wants in the "ok" message */
};

/* What a handler does: 0 when the answer is in r->reply, or 1 when it has sent everything itself; a negative errno with
 * err set is sent as the error. */
typedef int (*request_handler)(struct request *r, struct error *err);

int handle_info(struct request *r, struct error *err);
int handle_mount_root(struct request *r, struct error *err);
int handle_configure(struct request *r, struct error *err);
int handle_freeze(struct request *r, struct error *err);
int handle_thaw(struct request *r, struct error *err);
int handle_sync(struct request *r, struct error *err);
int handle_exec(struct request *r, struct error *err);
int handle_job_start(struct request *r, struct error *err);
int handle_job_read(struct request *r, struct error *err);
int handle_job_write(struct request *r, struct error *err);
int handle_job_kill(struct request *r, struct error *err);
int handle_job_resize(struct request *r, struct error *err);
int handle_job_list(struct request *r, struct error *err);
int handle_set_env(struct request *r, struct error *err);
int handle_file_read(struct request *r, struct error *err);
int handle_file_write(struct request *r, struct error *err);
int handle_file_edit(struct request *r, struct error *err);
int handle_file_list(struct request *r, struct error *err);
int handle_relay(struct request *r, struct error *err);
int handle_shutdown(struct request *r, struct error *err);

/* Sends {type, ...members}; members is taken (NULL: none). */
int request_send(struct request *r, const char *type, json_t *members);
/* Waits for a token under the stream, so that the host's leaving ends it: -ECANCELED: the token fired; -ETIMEDOUT;
 * -EPIPE: the host has closed the stream, which cancels; -ENOTCONN: the connection is lost, or the host has closed the
 * stream because it ran out of time, and what it asked for is to go on. What else comes is passed over. token: or NULL.
 */
int request_wait(struct request *r, struct cancel *token, deadline_t deadline);
/* Runs a request of this connection; takes both. */
void dispatch_opened(struct connection *c, struct mux_stream *stream, json_t *request);
