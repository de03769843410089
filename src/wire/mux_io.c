/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/json.h"
#include "wire/channel.h"
#include "wire/handshake.h"
#include "wire/mux_internal.h"

/* The connection whose thread this is: known without a lock, also before thread_start() has returned. */
static _Thread_local const struct mux *own_mux;

bool mux_on_own_thread(const struct mux *m) {
        return own_mux == m;
}

void mux_wake(struct mux *m) {
        /* It fails only when the counter is full: then it is readable anyway. */
        (void) eventfd_write(m->wake_fd, 1);
}

static void refuse_locked(struct mux *m, uint32_t stream, enum error_code code, const char *why) {
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_buf_ struct buf text = BUF_INIT(MUX_REASON_MAX);

        error_set(&e, code, "%s", why);
        stream_reason(&e, &text);
        int r = mux_answer_locked(m, WIRE_CLOSE, stream, text.data, text.len);
        if (r < 0)
                mux_lose_locked(m, r);
}

static int take_hello(struct mux *m, const struct frame *f) {
        _cleanup_json_ json_t *hello = NULL;
        const char *type;

        if (f->kind != WIRE_HELLO || f->stream != 0)
                return -EPROTO;
        if (json_parse((const char *) f->payload, f->payload_len, MUX_HELLO_MAX, WIRE_JSON_DEPTH_MAX, &hello, NULL) <
                    0 ||
            json_get_str(hello, "type", &type, NULL) < 0 || strcmp(type, "hello") != 0)
                return -EPROTO;

        if (m->cb.greeted) {
                m->cb.greeted(m->cb.arg, hello, m->own_hello);
                int r = mux_send_hello(m);
                if (r < 0)
                        return r;
        }
        LOCK(&m->lock);
        m->hello = TAKE_PTR(hello);
        pthread_cond_broadcast(&m->cond);
        return 0;
}

/* Whether the peer may open a stream with this id. */
static bool is_peers_id(const struct mux *m, uint32_t id) {
        return id != 0 && (id % 2 == 1) == (m->side == MUX_GUEST);
}

/* The new stream in *ret, or NULL if it was refused. */
static void open_locked(struct mux *m, const struct frame *f, json_t *request, struct mux_stream **ret) {
        struct mux_stream *known = stream_find_locked(m, f->stream);
        uint32_t window = WIRE_WINDOW;
        const char *type;
        int r;

        *ret = NULL;
        if (known) {
                stream_abort_locked(known, "it opened the stream twice");
                return;
        }
        if (!is_peers_id(m, f->stream)) {
                refuse_locked(m, f->stream, ERROR_INVALID_ARGUMENT, "This number of a stream is not yours to open.");
                return;
        }
        if (!m->cb.opened) {
                refuse_locked(m, f->stream, ERROR_UNSUPPORTED, "This side takes no requests.");
                return;
        }
        if (json_get_str(request, "type", &type, NULL) < 0) {
                refuse_locked(m, f->stream, ERROR_INVALID_ARGUMENT, "A request is a JSON object with a \"type\".");
                return;
        }
        if (stream_window(request, &window, NULL) < 0) {
                refuse_locked(m, f->stream, ERROR_INVALID_ARGUMENT, "This \"window\" of a request is not possible.");
                return;
        }
        r = stream_new_locked(m, f->stream, window, ret);
        if (r == -EMFILE)
                refuse_locked(m, f->stream, ERROR_QUOTA_EXCEEDED, "Too many streams are open on this connection.");
        else if (r < 0)
                refuse_locked(m, f->stream, ERROR_INTERNAL, "Out of memory.");
}

static void take_open(struct mux *m, const struct frame *f) {
        _cleanup_json_ json_t *request = NULL;
        struct mux_stream *s;

        if (f->stream == 0)
                return;
        /* Not worth parsing when nobody takes it. What is wrong with it open_locked() finds: request is NULL then. */
        if (m->cb.opened)
                (void) json_parse((const char *) f->payload, f->payload_len, WIRE_FRAME_MAX, WIRE_JSON_DEPTH_MAX,
                                  &request, NULL);
        pthread_mutex_lock(&m->lock);
        open_locked(m, f, request, &s);
        pthread_mutex_unlock(&m->lock);
        if (s)
                m->cb.opened(m->cb.arg, s, TAKE_PTR(request));
}

static int take_ping(struct mux *m, const struct frame *f) {
        if (f->stream != 0 || f->payload_len > MUX_PING_MAX)
                return 0;
        LOCK(&m->lock);
        return mux_answer_locked(m, WIRE_PONG, 0, f->payload, f->payload_len);
}

static void take_pong(struct mux *m, const struct frame *f) {
        uint64_t number;

        if (f->stream != 0 || f->payload_len != sizeof(number))
                return;
        memcpy(&number, f->payload, sizeof(number));
        LOCK(&m->lock);
        if (number > m->ping_sent || number <= m->ping_answered)
                return;
        m->ping_answered = number;
        pthread_cond_broadcast(&m->cond);
}

static int take_frame(struct mux *m, const struct frame *f) {
        if (!m->hello) { /* only this thread sets it */
                int r = take_hello(m, f);
                frame_wipe(f);
                return r;
        }

        switch (f->kind) {
        case WIRE_OPEN:
                take_open(m, f);
                frame_wipe(f);
                return 0;
        case WIRE_PING:
                return take_ping(m, f);
        case WIRE_PONG:
                take_pong(m, f);
                return 0;
        case WIRE_MSG:
        case WIRE_DATA:
        case WIRE_EOF:
        case WIRE_CREDIT:
        case WIRE_CLOSE: {
                LOCK(&m->lock);
                struct mux_stream *s = stream_find_locked(m, f->stream);
                if (s)
                        stream_input_locked(s, f);
                return 0;
        }
        default: /* of a later version: passed over */
                return 0;
        }
}

/* Whether nothing more is taken in: the peer lets too many answers wait (mux_internal.h), or it is over. */
static bool paused(struct mux *m) {
        LOCK(&m->lock);
        return m->lost || m->answers.len > MUX_ANSWERS_MAX;
}

int mux_process(struct mux *m) {
        struct frame f;
        int r = 0;

        while (r == 0 && !paused(m)) {
                r = frame_decoder_next(&m->decoder, &f);
                if (r <= 0)
                        return r;
                m->frame_due = DEADLINE_NEVER;
                r = take_frame(m, &f);
        }
        return r;
}

/* Whether a new host has begun a handshake in the middle of the old one's frame. Then only that is left. */
static int check_quiet(struct mux *m) {
        struct frame_decoder *d = &m->decoder;

        if (paused(m) || !handshake_ends(d->in.data + d->consumed, frame_decoder_pending(d))) {
                m->quiet_due = DEADLINE_NEVER;
                return 0;
        }
        if (m->quiet_due.at_ns == DEADLINE_NEVER.at_ns || m->quiet_len != d->in.len) {
                m->quiet_due = deadline_in_ms(MUX_QUIET_MS);
                m->quiet_len = d->in.len;
                return 0;
        }
        if (!deadline_passed(m->quiet_due))
                return 0;
        d->consumed = d->in.len - HANDSHAKE_LEN;
        return -EBADMSG;
}

static int check_frame_due(struct mux *m) {
        if (paused(m))
                m->frame_due = DEADLINE_NEVER;
        else if (m->frame_due.at_ns == DEADLINE_NEVER.at_ns)
                m->frame_due = deadline_in_ms(WIRE_FRAME_MS);
        else if (mux_overslept(m->frame_due))
                m->frame_due = deadline_in_ms(MUX_GRACE_MS);
        else if (deadline_passed(m->frame_due))
                return -EPROTO;
        return 0;
}

int mux_check_unfinished(struct mux *m) {
        if (frame_decoder_pending(&m->decoder) == 0)
                m->frame_due = m->quiet_due = DEADLINE_NEVER;
        else if (m->side == MUX_GUEST)
                return check_quiet(m);
        else
                return check_frame_due(m);
        return 0;
}

int mux_input(struct mux *m) {
        void *room;
        int r = frame_decoder_room(&m->decoder, MUX_READ_CHUNK, &room);

        if (r < 0)
                return r;
        ssize_t n = channel_read_all(m->fd, m->is_socket, room, MUX_READ_CHUNK);
        if (n == -EAGAIN)
                return 1;
        if (n <= 0)
                return n == 0 ? -ENODATA : (int) n;
        frame_decoder_filled(&m->decoder, (size_t) n);
        return mux_process(m);
}

/* What the thread has to wait for, and whether at all: with writing broken it only empties the channel. Negative: the
 * connection was ended by somebody. */
static int wanted_events(struct mux *m, short *ret, int *ret_timeout) {
        LOCK(&m->lock);
        if (m->lost)
                return -ESHUTDOWN;
        *ret = 0;
        *ret_timeout = m->write_err != 0 ? 0 : deadline_poll_ms(deadline_min(m->frame_due, m->quiet_due));
        if (m->answers.len <= MUX_ANSWERS_MAX)
                *ret |= POLLIN;
        if (mux_waiting_locked(m) > 0)
                *ret |= POLLOUT;
        return 0;
}

static int io_step(struct mux *m) {
        struct pollfd p[] = {{.fd = m->fd}, {.fd = m->wake_fd, .events = POLLIN}, {.fd = m->stop_fd, .events = POLLIN}};
        eventfd_t count;
        int r, timeout, write_err;

        r = wanted_events(m, &p[0].events, &timeout);
        if (r < 0)
                return r;
        if (poll(p, ARRAY_SIZE(p), timeout) < 0)
                return errno == EINTR ? 0 : -errno;
        if (p[1].revents)
                (void) eventfd_read(m->wake_fd, &count);
        if (p[2].revents)
                return -ESHUTDOWN;

        pthread_mutex_lock(&m->lock);
        if (p[0].revents & POLLOUT)
                mux_flush_locked(m);
        write_err = m->write_err;
        pthread_mutex_unlock(&m->lock);

        /* Frames that were left in the decoder by a pause come first; only an emptied decoder is fed again. */
        r = mux_process(m);
        if (r < 0)
                return r;
        if (!(p[0].events & POLLIN))
                return p[0].revents & (POLLHUP | POLLERR) ? -ECONNRESET : 0;
        if (write_err == 0 && !(p[0].revents & ~POLLOUT))
                return 0;
        if (paused(m))
                return 0;
        r = mux_input(m);
        if (r == 1) {
                if (write_err != 0)
                        return write_err;
                return p[0].revents & (POLLHUP | POLLERR) ? -ECONNRESET : 0;
        }
        return r;
}

void mux_end(struct mux *m, int err) {
        pthread_mutex_lock(&m->lock);
        mux_lose_locked(m, err);
        err = m->lost_err;
        m->fd = close_fd(m->fd);
        mux_out_free_locked(m);
        buf_free(&m->answers);
        stream_table_clear_locked(m);
        pthread_mutex_unlock(&m->lock);

        if (m->cb.lost)
                m->cb.lost(m->cb.arg, err);
}

void mux_serve(struct mux *m) {
        int r;

        own_mux = m;
        r = mux_process(m); /* what came behind the handshake */
        while (r == 0) {
                r = io_step(m);
                if (r == 0)
                        r = mux_check_unfinished(m);
        }
        mux_end(m, r);
        own_mux = NULL;
}

void *mux_thread(void *arg) {
        struct mux *m = arg;

        mux_serve(m);
        mux_hold_drop(m);
        return NULL;
}
