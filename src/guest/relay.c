/* SPDX-License-Identifier: Apache-2.0 */

/*
 * WIRE_REQ_RELAY: a connection of the host to a program that listens on the machine's own loopback. A thread each, that
 * of the request: relay_stream() waits for both sides at once.
 *
 * It moves what the workload says, so it has the workload's priority.
 */

#include "wire/relay.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include "guest/agent.h"
#include "guest/priority.h"

#define CONNECT_MS 10000 /* for a program whose queue of connections is full */

/* Until the connection is made, has failed, or the host has gone. */
static int wait_connected(struct request *req, int fd, const struct op *op) {
        const int watch = mux_watch(req->stream);
        int failed = 0;
        socklen_t len = sizeof(failed);

        if (watch < 0)
                return watch;
        for (;;) {
                struct pollfd p[] = {{.fd = fd, .events = POLLOUT}, {.fd = watch, .events = POLLIN}};

                mux_watch_clear(req->stream);
                if (mux_stream_closed(req->stream) || mux_stream_broken(req->stream))
                        return -ECANCELED;
                if (poll(p, ARRAY_SIZE(p), deadline_poll_ms(op->deadline)) < 0 && errno != EINTR)
                        return -errno;
                if (p[0].revents)
                        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &len) < 0 ? -errno : -failed;
                int r = op_check(op);
                if (r < 0)
                        return r;
        }
}

static int connect_to(struct request *req, const struct sockaddr *address, socklen_t len, const struct op *op,
                      int *ret) {
        _cleanup_close_ int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        if (fd < 0)
                return -errno;
        if (connect(fd, address, len) < 0) {
                int r = errno == EINPROGRESS ? wait_connected(req, fd, op) : -errno;
                if (r < 0)
                        return r;
        }
        *ret = TAKE_FD(fd);
        return 0;
}

static int connect_loopback(struct request *req, uint16_t port, int *ret) {
        const struct sockaddr_in v4 = {
                .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        const struct sockaddr_in6 v6 = {
                .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
        const struct op op = op_timeout(CONNECT_MS);

        int r = connect_to(req, (const struct sockaddr *) &v4, sizeof(v4), &op, ret);
        if (r != -ECONNREFUSED)
                return r;
        r = connect_to(req, (const struct sockaddr *) &v6, sizeof(v6), &op, ret);
        /* A machine without IPv6 has nobody who listens on it. */
        return r == -EADDRNOTAVAIL || r == -EAFNOSUPPORT || r == -ENETUNREACH ? -ECONNREFUSED : r;
}

static int connect_program(struct request *req, uint16_t port, int *ret, struct error *err) {
        int r = connect_loopback(req, port, ret);

        if (r == -ECONNREFUSED) {
                error_set(err, ERROR_NOT_FOUND, "Nothing in the machine listens on port %u", port);
                error_hint(err, "Start the program that shall; ss -ltn shows what listens.");
                return r;
        }
        return r < 0 ? error_set_errno(err, r, "Cannot connect to port %u in the machine", port) : 0;
}

/* The host learns by the reason that it did not end well. */
static void close_broken(struct request *req, int r) {
        _cleanup_error_ struct error reason = ERROR_INIT;

        error_set(&reason, ERROR_CONFLICT,
                  r == -ECONNRESET ? "The program in the machine reset the connection"
                                   : "The relay in the machine cannot go on");
        mux_close(req->stream, &reason);
}

static int relay(struct request *req, struct error *err) {
        _cleanup_close_ int fd = -1;
        const struct op op = OP_INIT_NEVER;
        uint16_t port = 0;

        int r = relay_args_parse(req->args, &port, err);
        if (r == 0)
                r = connect_program(req, port, &fd, err);
        if (r < 0)
                return r;
        r = request_send(req, WIRE_MSG_OK, NULL);
        if (r == 0)
                r = relay_stream(req->stream, fd, WIRE_CH_IN, WIRE_CH_OUT, &op);
        if (r < 0)
                close_broken(req, r);
        return 1;
}

int handle_relay(struct request *req, struct error *err) {
        struct agent *a = req->agent;
        int r;

        if (atomic_fetch_add(&a->relays, 1) >= (int) WIRE_RELAYS_MAX) {
                r = error_set(err, ERROR_QUOTA_EXCEEDED,
                              "%u connections to the machine's ports are open, which is the limit", WIRE_RELAYS_MAX);
        } else {
                const int before = getpriority(PRIO_PROCESS, 0);

                priority_set(PRIORITY_NORMAL);
                r = relay(req, err);
                priority_set(before); /* the thread goes on with other requests */
        }
        atomic_fetch_sub(&a->relays, 1);
        return r;
}
