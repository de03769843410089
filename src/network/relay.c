/* SPDX-License-Identifier: Apache-2.0 */
#include "network/relay.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "base/io.h"

/* Buffers that are read in a row before cancel and the other direction are looked at again. */
#define TURN_READS 8

/* From one socket to the other. */
struct direction {
        int from, to;
        char *buf;
        size_t start, len; /* what is in it */
        bool done;         /* `from` has no more, and `to` was told so */
        bool moved;        /* since it was last looked at */
};

static bool wants_read(const struct direction *d) {
        return !d->done && d->len == 0;
}

static bool would_block(int err) {
        return err == EAGAIN || err == EINTR;
}

/* A reset after the peer's end of data is EPIPE to the kernel. */
static int failure(int err) {
        return would_block(err) ? 0 : err == EPIPE ? -ECONNRESET : -err;
}

/* 1: `to` took everything; 0: it has no room; a negative errno. */
static int drain(struct direction *d) {
        while (d->len > 0) {
                ssize_t n = send(d->to, d->buf + d->start, d->len, MSG_NOSIGNAL | MSG_DONTWAIT);
                if (n < 0)
                        return failure(errno);
                d->start += (size_t) n;
                d->len -= (size_t) n;
                d->moved = true;
        }
        return 1;
}

/* Tells `to` that no more comes. A socket that is gone already will say so itself where it is still needed. */
static int finish(struct direction *d) {
        if (shutdown(d->to, SHUT_WR) < 0 && errno != ENOTCONN)
                return -errno;
        d->done = true;
        return 0;
}

/* Moves what can be moved now. */
static int pump(struct direction *d) {
        for (int i = 0; i < TURN_READS && !d->done; i++) {
                int r = drain(d);
                if (r <= 0)
                        return r;
                ssize_t n = recv(d->from, d->buf, RELAY_BUFFER, MSG_DONTWAIT);
                if (n < 0)
                        return failure(errno);
                if (n == 0)
                        return finish(d);
                d->start = 0;
                d->len = (size_t) n;
        }
        return 0;
}

/* What poll() is asked of one socket, which `out` reads and `in` writes. */
static void expect(struct pollfd *p, const struct direction *out, const struct direction *in, bool hung_up) {
        p->events = (short) ((wants_read(out) ? POLLIN : 0) | (in->len > 0 ? POLLOUT : 0));
        /* Closed in both directions with bytes of it still under way here: poll() would report that all the time. */
        p->fd = hung_up && p->events == 0 ? -1 : out->from;
}

/* Looks at a socket of which nothing is wanted now: a reset, or closed in both directions. */
static int unexpected(const struct pollfd *p, bool *hung_up) {
        if (p->events != 0 || p->revents == 0)
                return 0;
        if (p->revents & POLLNVAL)
                return -EBADF;

        int err = 0;
        socklen_t len = sizeof(err);
        if (p->revents & POLLERR) {
                if (getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
                        return -errno;
                return err != 0 ? failure(err) : -ECONNRESET;
        }
        *hung_up = true;
        return 0;
}

static int relay(struct direction d[2], const struct op *op, int64_t idle_ms) {
        bool hung_up[2] = {false, false};
        deadline_t idle = idle_ms > 0 ? deadline_in_ms(idle_ms) : DEADLINE_NEVER;

        while (!d[0].done || !d[1].done) {
                struct pollfd p[] = {{0}, {0}, {.fd = op ? cancel_fd(op->cancel) : -1, .events = POLLIN}};
                int r = op_check(op);
                if (r < 0)
                        return r;
                for (int i = 0; i < 2; i++)
                        expect(&p[i], &d[i], &d[1 - i], hung_up[i]);

                if (poll(p, ARRAY_SIZE(p), deadline_poll_ms(op ? deadline_min(idle, op->deadline) : idle)) < 0) {
                        if (errno == EINTR)
                                continue;
                        return -errno;
                }
                for (int i = 0; i < 2; i++) {
                        r = unexpected(&p[i], &hung_up[i]);
                        if (r < 0)
                                return r;
                }
                for (int i = 0; i < 2; i++) {
                        r = pump(&d[i]);
                        if (r < 0)
                                return r;
                }
                if (d[0].moved || d[1].moved) {
                        d[0].moved = d[1].moved = false;
                        if (idle_ms > 0)
                                idle = deadline_in_ms(idle_ms);
                } else if (deadline_passed(idle)) {
                        return -ETIMEDOUT;
                }
        }
        return 0;
}

/* From now on a close() is a reset. */
static void set_abort(int fd) {
        const struct linger linger = {.l_onoff = 1, .l_linger = 0};

        (void) setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

/* Options only: a socket that is not TCP does without them. */
static void set_number(int fd, int level, int option, int value) {
        (void) setsockopt(fd, level, option, &value, sizeof(value));
}

int relay_run(int a, int b, const struct op *op, int64_t idle_ms) {
        _cleanup_free_ char *buffers = malloc((size_t) 2 * RELAY_BUFFER);
        struct direction d[2] = {
                {.from = a, .to = b, .buf = buffers},
                {.from = b, .to = a, .buf = buffers ? buffers + RELAY_BUFFER : NULL},
        };

        /* The peers decide what belongs together, and have waited for it already. */
        set_number(a, IPPROTO_TCP, TCP_NODELAY, 1);
        set_number(b, IPPROTO_TCP, TCP_NODELAY, 1);
        int r = buffers ? relay(d, op, idle_ms) : -ENOMEM;
        if (r < 0) {
                set_abort(a);
                set_abort(b);
        }
        return r;
}

void relay_keepalive(int fd) {
        set_number(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
        set_number(fd, IPPROTO_TCP, TCP_KEEPIDLE, RELAY_KEEPALIVE_IDLE_SECS);
        set_number(fd, IPPROTO_TCP, TCP_KEEPINTVL, RELAY_KEEPALIVE_EVERY_SECS);
        set_number(fd, IPPROTO_TCP, TCP_KEEPCNT, RELAY_KEEPALIVE_TRIES);
}

void relay_reset(int fd) {
        set_abort(fd);
        close_fd(fd);
}
