/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Deadlines, cancel tokens and the wait that honours both.
 *
 * A deadline is a point of CLOCK_MONOTONIC, so it is passed down unchanged and the whole of an operation ends in time,
 * not each of its steps. A cancel token is an eventfd that becomes readable once and stays so; it can be polled
 * beside another fd, and code that waits on a condition variable hooks a wake-up function to it. `struct op` bundles
 * what every call that can take long is given: deadline, cancel token, progress sink.
 */

#include <poll.h>
#include <time.h>

#include "base/util.h"

#define NSEC_PER_SEC 1000000000LL
#define NSEC_PER_MSEC 1000000LL
#define MSEC_PER_SEC 1000LL

typedef struct deadline {
        int64_t at_ns; /* CLOCK_MONOTONIC; INT64_MAX: never */
} deadline_t;

#define DEADLINE_NEVER ((deadline_t){.at_ns = INT64_MAX})

int64_t monotonic_ns(void);
/* CLOCK_REALTIME in milliseconds since the epoch. */
int64_t realtime_ms(void);

/* The point `ms` milliseconds from now; negative counts as 0. */
deadline_t deadline_in_ms(int64_t ms);
/* The earlier of the two. */
deadline_t deadline_min(deadline_t a, deadline_t b);
bool deadline_passed(deadline_t d);
/* Milliseconds left, rounded up, never negative, for poll(): -1 means no limit; at most INT_MAX. */
int deadline_poll_ms(deadline_t d);
struct timespec deadline_timespec(deadline_t d);

struct cancel;

/* A hook runs once, in the thread that cancels (or at once, in the caller, if the token has fired already). It must
 * not block and must not call back into the token. */
struct cancel_hook {
        void (*fn)(void *arg);
        void *arg;
        struct cancel_hook *next, **pprev; /* private to cancel.c */
};

/* A token with one reference; NULL when out of memory or fds. */
struct cancel *cancel_new(void);
struct cancel *cancel_ref(struct cancel *c);
void cancel_unref(struct cancel *c); /* accepts NULL */
DEFINE_CLEANUP(struct cancel *, cancel_unref)
#define _cleanup_cancel_ _cleanup_(cancel_unrefp)

/* Fires the token: idempotent, from any thread. */
void cancel_fire(struct cancel *c);
/* Whether it fired; false for NULL. */
bool cancel_fired(struct cancel *c);
/* The fd that becomes readable when it fires; -1 for NULL. Only for poll: never read it. */
int cancel_fd(struct cancel *c);
/* Adds and removes a hook; both accept a NULL token. After cancel_unhook() returns, the hook does not run any more.
 * Take the token's lock before any lock that fn takes: never call these with such a lock held. */
void cancel_hook(struct cancel *c, struct cancel_hook *hook);
void cancel_unhook(struct cancel *c, struct cancel_hook *hook);

struct op {
        deadline_t deadline;
        struct cancel *cancel; /* borrowed; NULL: cannot be cancelled */
        /* Reports what is being done to whoever waits: one short line. NULL: nobody listens. Never blocks. */
        void (*progress)(void *arg, const char *message);
        void *progress_arg;
};

#define OP_INIT_NEVER ((struct op){.deadline = {.at_ns = INT64_MAX}})

/* An operation without cancel or progress that ends in ms milliseconds. */
struct op op_timeout(int64_t ms);
/* The same operation with an earlier deadline: for one step of it. */
struct op op_sub(const struct op *op, int64_t ms);
void op_progress(const struct op *op, const char *fmt, ...) _printf_(2, 3);
/* 0, -ECANCELED or -ETIMEDOUT: for loops that do not wait. */
int op_check(const struct op *op);

/* Waits until one of `events` is there on fd. Returns the revents (> 0), -ETIMEDOUT, -ECANCELED, or another negative
 * errno. A negative fd waits for deadline or cancel alone. */
int wait_fd(int fd, short events, const struct op *op);
