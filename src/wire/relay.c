/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/relay.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

struct relay {
        struct mux_stream *stream;
        int fd;
        enum wire_channel to_fd, from_fd;
        const struct op *op;
        struct mux_event taken;          /* data on its way to the socket */
        size_t written;                  /* of these, bytes */
        bool stream_ended, socket_ended; /* its direction: nothing more comes from there, and the other side knows */
        bool hung_up;                    /* poll() says so whatever it is asked for */
};

static bool waits_for_socket(const struct relay *x) {
        return x->taken.data.len > x->written;
}

/* ---- from the stream to the socket ---- */

/* The socket broke. One that has said its end and takes no more was closed: that is its right. */
static int broken(const struct relay *x) {
        return x->socket_ended ? 1 : -ECONNRESET;
}

static int socket_error(const struct relay *x, int err) {
        return err == EAGAIN || err == EINTR ? 0 : broken(x);
}

/* Writes what the socket takes of the data at hand. */
static int write_taken(struct relay *x) {
        if (!waits_for_socket(x))
                return 0;
        ssize_t n = send(x->fd, x->taken.data.data + x->written, x->taken.data.len - x->written,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
                return socket_error(x, errno);
        x->written += (size_t) n;
        if (!waits_for_socket(x)) {
                mux_event_clear(&x->taken);
                x->written = 0;
        }
        return 0;
}

static int take_event(struct relay *x) {
        mux_event_clear(&x->taken);
        x->written = 0;
        int r = mux_recv(x->stream, x->op, &x->taken);
        if (r < 0)
                return r;
        switch (x->taken.kind) {
        case MUX_DATA:
                return x->taken.channel == x->to_fd ? write_taken(x) : -EPROTO;
        case MUX_EOF:
                if (x->taken.channel != x->to_fd)
                        return -EPROTO;
                x->stream_ended = true;
                /* It fails only when the connection is gone, which the next look at it shows. */
                (void) shutdown(x->fd, SHUT_WR);
                return 0;
        case MUX_CLOSED:
                return x->stream_ended && !error_is_set(&x->taken.error) ? 1 : -EPIPE;
        case MUX_LOST:
                return -ENOTCONN;
        case MUX_MSG:
                break;
        }
        return -EPROTO;
}

/* One piece, so that each direction has its turn. */
static int serve_socket(struct relay *x) {
        int r = write_taken(x);

        if (r != 0)
                return r;
        return !waits_for_socket(x) && mux_stream_ready(x->stream) ? take_event(x) : 0;
}

/* ---- from the socket to the stream ---- */

static int serve_stream(struct relay *x, size_t room) {
        char piece[WIRE_DATA_CHUNK];

        ssize_t n = recv(x->fd, piece, MIN(room, sizeof(piece)), MSG_DONTWAIT);
        if (n < 0)
                return socket_error(x, errno);
        x->socket_ended = n == 0;
        int r = n > 0 ? mux_send_data(x->stream, x->from_fd, piece, (size_t) n, x->op)
                      : mux_send_eof(x->stream, x->from_fd, x->op);
        return r == -EPIPE ? 0 : r; /* what the peer said before it closed the stream comes first */
}

/* ---- both ---- */

/* What the socket is asked for, and whether at all. */
static short wanted(const struct relay *x, size_t room) {
        short events = 0;

        if (!x->socket_ended && room > 0)
                events |= POLLIN;
        if (waits_for_socket(x))
                events |= POLLOUT;
        return events;
}

/* Sleeps until something can be done; *ret: what the socket is ready for. */
static int wait_turn(struct relay *x, int watch, size_t room, short *ret) {
        const short events = wanted(x, room);
        const bool more = !waits_for_socket(x) && mux_stream_ready(x->stream);
        struct pollfd p[] = {
                /* Also asked for nothing it tells of an error; but a hang-up it would tell of without end. */
                {.fd = events == 0 && x->hung_up ? -1 : x->fd, .events = events},
                {.fd = watch, .events = POLLIN},
                {.fd = cancel_fd(x->op->cancel), .events = POLLIN},
        };

        if (poll(p, ARRAY_SIZE(p), more ? 0 : deadline_poll_ms(x->op->deadline)) < 0)
                return errno == EINTR ? 0 : -errno;
        if (p[1].revents)
                mux_watch_clear(x->stream);
        x->hung_up |= (p[0].revents & POLLHUP) != 0;
        *ret = p[0].revents;
        return p[0].revents & POLLERR && !(events & p[0].revents) ? broken(x) : op_check(x->op);
}

static int step(struct relay *x, int watch) {
        short ready = 0;

        /* A socket that takes nothing must not keep what is broken from ending. */
        if (waits_for_socket(x) && mux_stream_broken(x->stream))
                return -EPIPE;
        int room = x->socket_ended ? 0 : mux_send_room(x->stream);
        if (room < 0 && !mux_stream_ready(x->stream))
                return room;
        int r = wait_turn(x, watch, room > 0 ? (size_t) room : 0, &ready);
        if (r == 0)
                r = serve_socket(x);
        if (r == 0 && room > 0 && ready & (POLLIN | POLLHUP | POLLERR))
                r = serve_stream(x, (size_t) room);
        return r;
}

int relay_stream(struct mux_stream *s, int fd, enum wire_channel to_fd, enum wire_channel from_fd,
                 const struct op *op) {
        struct relay x = {.stream = s, .fd = fd, .to_fd = to_fd, .from_fd = from_fd, .op = op, .taken = MUX_EVENT_INIT};
        const struct linger at_once = {.l_onoff = 1};
        const int on = 1;

        const int watch = mux_watch(s);
        int r = watch < 0 ? watch : 0;
        /* What comes in pieces goes on in pieces; other sockets than TCP do so anyway. */
        (void) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        while (r == 0 && !(x.socket_ended && x.stream_ended))
                r = step(&x, watch);
        if (r < 0 && !x.stream_ended)
                (void) setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
        mux_event_clear(&x.taken);
        return r;
}
