/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection through the agent. It may last as long as it likes, so op has no deadline; but an agent that keeps
 * silent must not keep it for ever: the beginning and the end have limits of their own, and in between the client's
 * hang-up ends it.
 */
#include "base/json.h"
#include "vm/agent_private.h"
#include "wire/relay.h"

/* Until the guest has connected to the program. A client that has nothing more to say may wait for an answer, or be
 * gone without anybody knowing: a shorter time is enough for it. */
#define OPEN_MS 10000
#define OPEN_SILENT_MS 3000
#define END_MS 2000 /* until the guest has closed what ended in both directions */

static const char connecting[] = "connecting to a port of the machine", relaying[] = "relaying a connection";

static int client_broke(struct error *err) {
        return error_set_errno(err, ECONNRESET, "The client broke the connection");
}

/* Until the guest has something to say, or the client is gone (-ECONNRESET). */
static int wait_answer(struct mux_stream *s, int fd, const struct op *op) {
        const int watch = mux_watch(s);
        struct op waiting = *op;
        short asked = POLLRDHUP;

        if (watch < 0)
                return watch;
        for (;;) {
                struct pollfd p[] = {
                        {.fd = fd, .events = asked},
                        {.fd = watch, .events = POLLIN},
                        {.fd = cancel_fd(op->cancel), .events = POLLIN},
                };

                mux_watch_clear(s);
                if (mux_stream_ready(s))
                        return 0;
                int r = op_check(&waiting);
                if (r < 0)
                        return r;
                if (poll(p, ARRAY_SIZE(p), deadline_poll_ms(waiting.deadline)) < 0 && errno != EINTR)
                        return -errno;
                if (p[0].revents & (POLLHUP | POLLERR))
                        return -ECONNRESET;
                if (p[0].revents & POLLRDHUP) {
                        waiting = op_sub(op, OPEN_SILENT_MS);
                        asked = 0;
                }
        }
}

/* Until the guest is connected. -ECONNREFUSED: nobody listens there. */
static int open_relay(struct agent *a, uint16_t port, int fd, const struct op *whole, struct mux_stream **ret,
                      struct error *err) {
        const struct op opening = op_sub(whole, OPEN_MS), *op = &opening;
        _cleanup_json_ json_t *request = json_pack("{s:s, s:i, s:i}", "type", WIRE_REQ_RELAY, "port", (int) port,
                                                   "window", (int) WIRE_RELAY_WINDOW);
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_json_ json_t *ok = NULL;
        _cleanup_error_ struct error answer = ERROR_INIT;

        int r = agent_request(a, request, connecting, op, &s, err);
        if (r < 0)
                return r;
        r = wait_answer(s, fd, op);
        if (r < 0)
                return r == -ECONNRESET ? client_broke(err) : agent_error(r, connecting, err);
        r = agent_expect(s, WIRE_MSG_OK, connecting, op, &ok, &answer);
        if (r < 0) {
                bool refused = answer.code == ERROR_NOT_FOUND;

                error_move(err, &answer);
                return refused ? -ECONNREFUSED : r;
        }
        *ret = TAKE_PTR(s);
        return 0;
}

/* All was relayed, which an agent that does not close the stream in time does not change. */
static int await_close(struct mux_stream *s, const struct op *op, struct error *err) {
        _cleanup_error_ struct error late = ERROR_INIT;
        const struct op ending = op_sub(op, END_MS);

        int r = agent_end(s, relaying, &ending, &late);
        if (r < 0 && deadline_passed(ending.deadline) && op_check(op) >= 0)
                return 0;
        error_move(err, &late);
        return r;
}

/* What relay_stream() has come to, as it is told; the guest learns it by the stream's end. */
static int finish(struct agent *a, struct mux_stream *s, int r, const struct op *op, struct error *err) {
        _cleanup_error_ struct error reason = ERROR_INIT;

        if (r == 0)
                return await_close(s, op, err);
        error_set(&reason, ERROR_CANCELLED, "The connection was ended on the host");
        mux_close(s, &reason);
        if (r > 0)
                return 0;
        if (r == -EPIPE)
                r = agent_is_lost(a) ? -ENOTCONN : -ECONNABORTED;
        if (r == -ECONNABORTED)
                return error_set_errno(err, r, "The program in the machine broke the connection");
        if (r == -ECONNRESET)
                return client_broke(err);
        return r == -EPROTO ? agent_protocol_error(relaying, NULL, err) : agent_error(r, relaying, err);
}

static int relay(struct agent *a, uint16_t port, int fd, const struct op *op, struct error *err) {
        _cleanup_stream_ struct mux_stream *s = NULL;

        int r = open_relay(a, port, fd, op, &s, err);
        return r < 0 ? r : finish(a, s, relay_stream(s, fd, WIRE_CH_OUT, WIRE_CH_IN, op), op, err);
}

int agent_relay(struct agent *a, uint16_t port, int fd, const struct op *op, struct error *err) {
        int r;

        if (__atomic_add_fetch(&a->relays, 1, __ATOMIC_RELAXED) > WIRE_RELAYS_MAX) {
                r = error_set(err, ERROR_QUOTA_EXCEEDED,
                              "%u connections to ports of this workspace are open, the limit", WIRE_RELAYS_MAX);
                error_hint(err, "Close some of them.");
        } else {
                r = relay(a, port, fd, op, err);
        }
        __atomic_sub_fetch(&a->relays, 1, __ATOMIC_RELAXED);
        return r;
}
