/* SPDX-License-Identifier: Apache-2.0 */
/* What a connection writes. */
#include <string.h>

#include "wire/channel.h"
#include "wire/mux_internal.h"

/* Writing is over; what was to be written never will be. The thread reads on until the channel is empty. */
static void writing_failed_locked(struct mux *m, int err) {
        m->write_err = err;
        mux_out_free_locked(m);
        buf_free(&m->answers);
        pthread_cond_broadcast(&m->cond);
        mux_wake(m);
}

void mux_out_free_locked(struct mux *m) {
        if (m->out_secret)
                buf_wipe(&m->out);
        else
                buf_free(&m->out);
        m->out_sent = 0;
        m->out_secret = false;
}

/* Room for n more bytes. What may be a secret is moved by hand, because realloc() would leave a copy of it behind. */
static int out_room_locked(struct mux *m, size_t n) {
        struct buf larger = BUF_INIT(m->out.max);
        const size_t waiting = mux_waiting_locked(m);
        int r;

        if (!m->out_secret || m->out.cap - m->out.len >= n)
                return 0;
        r = buf_reserve(&larger, waiting + n);
        if (r == 0)
                r = buf_append(&larger, m->out.data + m->out_sent, waiting);
        if (r < 0)
                return r;
        mux_out_free_locked(m);
        m->out = larger;
        m->out_secret = true;
        return 0;
}

int mux_out_frame_locked(struct mux *m, enum wire_kind kind, uint32_t stream, const void *a, size_t a_len,
                         const void *b, size_t b_len) {
        int r = out_room_locked(m, WIRE_HEADER_LEN + a_len + b_len);

        if (r == 0)
                r = frame_encode(&m->out, kind, stream, a, a_len, b, b_len);
        if (r == 0 && (kind == WIRE_OPEN || kind == WIRE_HELLO))
                m->out_secret = true;
        return r;
}

/* Moves frames that waited for room to `out`. */
static void refill_locked(struct mux *m) {
        if (mux_waiting_locked(m) >= MUX_OUT_HIGH)
                return;
        if (m->answers.len > 0) {
                if (out_room_locked(m, m->answers.len) == 0 &&
                    buf_append(&m->out, m->answers.data, m->answers.len) == 0)
                        buf_clear(&m->answers);
                else
                        mux_lose_locked(m, -ENOBUFS);
        }
        if (m->credit_due)
                stream_credits_locked(m);
}

/* Moves what waits to the front. */
static void out_compact_locked(struct mux *m) {
        const size_t written = m->out_sent;

        buf_consume(&m->out, written);
        if (m->out_secret)
                explicit_bzero(m->out.data + m->out.len, written);
        m->out_sent = 0;
}

static void out_written_locked(struct mux *m, size_t n) {
        m->out_sent += n;
        if (m->out_sent == m->out.len) {
                if (m->out.cap > (m->side == MUX_GUEST ? MUX_KEEP_MAX_GUEST : MUX_KEEP_MAX)) {
                        mux_out_free_locked(m);
                } else {
                        out_compact_locked(m);
                        m->out_secret = false;
                }
        } else if (m->out_sent >= m->out.len - m->out_sent) {
                out_compact_locked(m);
        }
}

void mux_flush_locked(struct mux *m) {
        bool wrote = false;

        refill_locked(m);
        while (!m->lost && m->write_err == 0 && mux_waiting_locked(m) > 0) {
                ssize_t n = channel_write(m->fd, m->is_socket, m->out.data + m->out_sent, mux_waiting_locked(m));
                if (n == -EAGAIN)
                        break;
                if (n < 0) {
                        writing_failed_locked(m, (int) n);
                        return;
                }
                out_written_locked(m, (size_t) n);
                wrote = true;
                refill_locked(m);
        }
        if (wrote && mux_waiting_locked(m) < MUX_OUT_HIGH)
                pthread_cond_broadcast(&m->cond);
        if (m->room_wanted && mux_waiting_locked(m) < MUX_OUT_DATA_HIGH)
                stream_room_locked(m);
}

int mux_append_locked(struct mux *m, enum wire_kind kind, uint32_t stream, const void *a, size_t a_len, const void *b,
                      size_t b_len) {
        int r;

        if (m->lost || m->write_err != 0)
                return -ENOTCONN;

        bool waited = mux_waiting_locked(m) > 0;
        /* The limit is on what waits, not on what was written and is not moved away yet. */
        if (m->out_sent > 0 && m->out.len + WIRE_HEADER_LEN + a_len + b_len > WIRE_OUT_MAX)
                out_compact_locked(m);
        r = mux_out_frame_locked(m, kind, stream, a, a_len, b, b_len);
        if (r == -ENOBUFS) {
                mux_lose_locked(m, r);
                return -ENOTCONN;
        }
        if (r < 0 || waited)
                return r;

        mux_flush_locked(m);
        if (mux_waiting_locked(m) > 0)
                mux_wake(m);
        return 0;
}

int mux_answer_locked(struct mux *m, enum wire_kind kind, uint32_t stream, const void *payload, size_t len) {
        int r;

        if (m->lost || m->write_err != 0)
                return 0;
        if (mux_waiting_locked(m) < MUX_OUT_HIGH && m->answers.len == 0) {
                r = mux_append_locked(m, kind, stream, payload, len, NULL, 0);
                return r == -ENOTCONN ? 0 : r;
        }
        return frame_encode(&m->answers, kind, stream, payload, len, NULL, 0);
}
