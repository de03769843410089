/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Jobs: every command is one.
 *
 * job_start.c makes the process, job_run.c has the job's thread, job.c what requests do with it, jobs.c the registry.
 * A request that waits for its command (WIRE_REQ_EXEC) holds a reference to a job that is not listed; a job that nobody
 * waits for is in the registry (`jobs.h`) and has an id.
 *
 * The thread moves what the command prints to the spools, so a command never waits for a reader, and keeps the timeout.
 * The command is over when its shell has ended and its output is closed or has gone quiet: a process left behind may
 * keep the pipes open for ever. Such a process lives on, and what it still prints is dropped (drain.h).
 *
 * Requests wait for news of a job with a cancel token each: the thread fires the tokens of those that want to know.
 * They wait in mux_recv() under that token, so they notice just as soon that the host has closed their stream.
 *
 * Locks: jobs.lock before job.lock before that of a token; none is held across a wait. Spools have their own.
 */

#include <pthread.h>
#include <stdatomic.h>

#include "base/deadline.h"
#include "base/error.h"
#include "guest/cgroup.h"
#include "guest/job_args.h"
#include "guest/reap.h"
#include "guest/spool.h"
#include "guest/workers.h"
#include "wire/wire.h"

#define JOB_KILL_MAX_MS 5000 /* for a killed tree to be gone */
#define JOB_COLS_DEFAULT 80
#define JOB_ROWS_DEFAULT 24

struct agent;

/* What somebody waits for. */
enum job_news {
        JOB_NEWS_END = 1,
        JOB_NEWS_OUTPUT = 2,
        JOB_NEWS_INPUT = 4, /* room in its standard input, or another writer is through */
};

struct job_waiter {
        struct cancel *token; /* owned */
        unsigned news;
        struct job_waiter *next, **pprev; /* pprev NULL: not in the list */
};

struct job_end {
        int exit_code; /* -1 when a signal ended it */
        int signal;    /* 0 when it exited by itself */
        bool timed_out, leftover;
};

struct job_stream {
        int fd;   /* only the thread's; -1: closed or given up */
        int must; /* bytes that were in the pipe when the shell ended: these are always kept */
        struct spool spool;
        atomic_uint_fast64_t given; /* bytes of it that were given to somebody who asked for all */
};

enum { JOB_OUT, JOB_ERR, JOB_STREAMS };

struct job {
        struct work work; /* of its thread */
        struct agent *agent;
        atomic_uint refs;
        bool pty;
        char command[WIRE_JOB_COMMAND_SHOWN + 1]; /* its beginning */
        int64_t started_ms;                       /* realtime */
        int64_t started_ns;
        deadline_t deadline;
        size_t input_bytes; /* of agent.inputs; given back when it has ended */
        struct job_stream stream[JOB_STREAMS];
        atomic_int newest;    /* the stream that was written last */
        pid_t pid;            /* of its shell, as it was */
        atomic_bool given_up; /* even SIGKILL did not end it: the thread stops */

        pthread_mutex_t lock; /* guards what follows */
        int wake_fd;          /* eventfd: the thread must look again; -1 once it is over */
        struct child *child;  /* NULL once the job has ended and nobody uses it */
        unsigned child_users;
        struct cgroup cgroup;
        int in_fd;      /* its standard input, or its terminal; -1: closed */
        bool writing;   /* a request is at it */
        bool want_room; /* that request waits for room */
        bool ended, timed_out;
        struct job_end end;
        int64_t duration_ms; /* when it has ended */
        struct job_waiter *waiters;

        uint64_t id; /* guarded by jobs.lock as the links are; 0: not listed. Set once */
        struct job *next, *prev;
};

struct job_spec {
        const struct command_args *command;
        int stdin_fd; /* borrowed; -1: a pipe for job_write() if stdin_pipe, else /dev/null */
        bool stdin_pipe;
        size_t input_bytes; /* taken from agent.inputs; the job gives them back, also on failure */
        bool pty;
        int64_t cols, rows; /* -1: the default */
};

/* Starts the command and its thread; *ret is a reference. */
int job_start(struct agent *a, const struct job_spec *spec, struct job **ret, struct error *err);
struct job *job_ref(struct job *j);
void job_unref(struct job *j); /* accepts NULL */
DEFINE_CLEANUP(struct job *, job_unref)
#define _cleanup_job_ _cleanup_(job_unrefp)

/* False while it runs. */
bool job_ended(struct job *j, struct job_end *ret);
int64_t job_duration_ms(struct job *j);
uint64_t job_id(struct job *j);

/* Registers for news, with a token that fires once. Whoever waits for the end gets it at once if that has come; all
 * other news are looked for after this call. 0 or -ENOMEM. */
int job_waiter_begin(struct job *j, unsigned news, struct job_waiter *w);
void job_waiter_end(struct job *j, struct job_waiter *w);

/* The newest line that is not blank of what it printed, cleaned, at most max bytes. 0: there is none. */
size_t job_newest_line(struct job *j, char *ret, size_t max);

/* Writes without waiting: the bytes that were taken, -EAGAIN when none could be, -EPIPE when the input is closed. Only
 * between job_write_begin() and job_write_end(). */
ssize_t job_write(struct job *j, const void *data, size_t n);
/* Claims the input; false when another request has it. */
bool job_write_begin(struct job *j);
void job_write_end(struct job *j);
/* Closes the input, or sends the end-of-file character to the terminal. 0, -EAGAIN, -EPIPE. */
int job_write_eof(struct job *j);
/* Asks for JOB_NEWS_INPUT when there is room. */
void job_want_room(struct job *j);

/* A size of 0 is left as it is. -ENOTTY, -EPIPE. */
int job_resize(struct job *j, unsigned cols, unsigned rows);

/* Sends a signal to all processes of the job; for SIGKILL waits until they are gone, JOB_KILL_MAX_MS at most, and
 * gives -ETIMEDOUT when they are not. *ret_processes (may be NULL): how many there were. */
int job_signal(struct job *j, int sig, size_t *ret_processes);
/* Kills everything; when that does not end the job, its thread gives it up. */
void job_destroy(struct job *j);

/* For the files of the job alone. */

/* Starts the thread, which ends with the job. */
int job_run(struct job *j);
/* Gives back what a running job has of the agent's limits. */
void job_leave(struct job *j);
void job_wake(struct job *j, unsigned news);
void job_wake_thread(struct job *j);
void job_set_end(struct job *j, const struct job_end *end, int64_t duration_ms);
void job_child_put(struct job *j);
/* Lets the cgroup of an ended job go once it is empty; what was left behind keeps it. */
void job_settle(struct job *j);
