/* SPDX-License-Identifier: Apache-2.0 */
#include "base/deadline.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/str.h"

/* A progress message is one line for a person. */
#define PROGRESS_MAX 200

static int64_t clock_ns(clockid_t clock) {
        struct timespec ts;

        clock_gettime(clock, &ts);
        return (int64_t) ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

int64_t monotonic_ns(void) {
        return clock_ns(CLOCK_MONOTONIC);
}

int64_t realtime_ms(void) {
        return clock_ns(CLOCK_REALTIME) / NSEC_PER_MSEC;
}

deadline_t deadline_in_ms(int64_t ms) {
        int64_t now = monotonic_ns();

        if (ms < 0)
                ms = 0;
        if (ms > (INT64_MAX - now) / NSEC_PER_MSEC)
                return DEADLINE_NEVER;
        return (deadline_t){.at_ns = now + ms * NSEC_PER_MSEC};
}

deadline_t deadline_min(deadline_t a, deadline_t b) {
        return a.at_ns < b.at_ns ? a : b;
}

bool deadline_passed(deadline_t d) {
        return d.at_ns != INT64_MAX && monotonic_ns() >= d.at_ns;
}

int deadline_poll_ms(deadline_t d) {
        if (d.at_ns == INT64_MAX)
                return -1;

        int64_t now = monotonic_ns();
        if (d.at_ns <= now)
                return 0;
        /* Rounded up: a wait that ends a moment early would only be repeated with 0, as a busy loop. */
        int64_t left = d.at_ns - now;
        int64_t ms = left / NSEC_PER_MSEC + (left % NSEC_PER_MSEC > 0);
        return (int) MIN(ms, (int64_t) INT_MAX);
}

struct timespec deadline_timespec(deadline_t d) {
        return (struct timespec){.tv_sec = (time_t) (d.at_ns / NSEC_PER_SEC),
                                 .tv_nsec = (long) (d.at_ns % NSEC_PER_SEC)};
}

struct op op_timeout(int64_t ms) {
        return (struct op){.deadline = deadline_in_ms(ms)};
}

struct op op_sub(const struct op *op, int64_t ms) {
        struct op sub = op ? *op : OP_INIT_NEVER;

        sub.deadline = deadline_min(sub.deadline, deadline_in_ms(ms));
        return sub;
}

void op_progress(const struct op *op, const char *fmt, ...) {
        if (!op || !op->progress)
                return;

        char line[PROGRESS_MAX + 1];
        va_list ap;
        va_start(ap, fmt);
        int n = vsnprintf(line, sizeof(line), fmt, ap);
        va_end(ap);
        if (n < 0)
                return;
        if ((size_t) n >= sizeof(line))
                line[utf8_floor(line, PROGRESS_MAX)] = 0;
        op->progress(op->progress_arg, line);
}

int op_check(const struct op *op) {
        if (!op)
                return 0;
        if (cancel_fired(op->cancel))
                return -ECANCELED;
        return deadline_passed(op->deadline) ? -ETIMEDOUT : 0;
}

/*
 * A cancel wins over a ready fd, so that a peer which never stops sending cannot outlast it. A ready fd wins over the
 * deadline, so that a deadline of 0 ms asks "is it ready?" as with poll(2); loops that a peer can feed for ever
 * therefore call op_check() each time round.
 */
int wait_fd(int fd, short events, const struct op *op) {
        deadline_t deadline = op ? op->deadline : DEADLINE_NEVER;
        struct pollfd p[] = {
                {.fd = fd, .events = events},
                {.fd = op ? cancel_fd(op->cancel) : -1, .events = POLLIN},
        };

        for (;;) {
                if (poll(p, ARRAY_SIZE(p), deadline_poll_ms(deadline)) < 0) {
                        if (errno == EINTR)
                                continue;
                        return -errno;
                }
                if (p[1].revents)
                        return -ECANCELED;
                if (p[0].revents & POLLNVAL)
                        return -EBADF;
                if (p[0].revents)
                        return p[0].revents;
                if (deadline_passed(deadline))
                        return -ETIMEDOUT;
        }
}
