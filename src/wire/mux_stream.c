/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/eventfd.h>

#include "base/json.h"
#include "wire/mux_internal.h"

static struct mux_stream **bucket_of(struct mux *m, uint32_t id) {
        return &m->buckets[(id >> 1) % MUX_BUCKETS]; /* each side's ids step by two */
}

struct mux_stream *stream_find_locked(struct mux *m, uint32_t id) {
        for (struct mux_stream *s = *bucket_of(m, id); s; s = s->next)
                if (s->id == id)
                        return s;
        return NULL;
}

int stream_window(const json_t *request, uint32_t *ret, struct error *err) {
        int64_t window = WIRE_WINDOW;
        int r = json_opt_int(request, "window", &window, err);

        if (r < 0)
                return r;
        if (window < WIRE_WINDOW_MIN || window > WIRE_WINDOW)
                return error_set(err, ERROR_INVALID_ARGUMENT, "\"window\" is %lld; it must be %u to %u",
                                 (long long) window, WIRE_WINDOW_MIN, WIRE_WINDOW);
        *ret = (uint32_t) window;
        return 0;
}

int stream_new_locked(struct mux *m, uint32_t id, uint32_t window, struct mux_stream **ret) {
        struct mux_stream **bucket = bucket_of(m, id);
        struct mux_stream *s;

        if (m->n_streams >= WIRE_STREAMS_MAX)
                return -EMFILE;
        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;

        atomic_fetch_add(&m->holds, 1);
        s->mux = m;
        s->id = id;
        s->refs = 1;
        s->in_table = true;
        s->window = s->tx_credit = s->rx_credit = window;
        s->watch_fd = -1;
        s->queue = BUF_INIT(MUX_QUEUE_MAX);
        cond_init(&s->cond);
        s->next = *bucket;
        *bucket = s;
        m->n_streams++;
        *ret = s;
        return 0;
}

/* Without user references and outside the table: nobody else can reach it. */
static void stream_free(struct mux_stream *s) {
        struct mux *m = s->mux;

        buf_free(&s->queue);
        error_clear(&s->close_error);
        close_fd(s->watch_fd);
        pthread_cond_destroy(&s->cond);
        free(s);
        mux_hold_drop(m);
}

void stream_remove_locked(struct mux_stream *s) {
        struct mux_stream **p = bucket_of(s->mux, s->id);

        if (!s->in_table)
                return;
        while (*p != s)
                p = &(*p)->next;
        *p = s->next;
        s->next = NULL;
        s->in_table = false;
        s->mux->n_streams--;
        if (s->refs == 0)
                stream_free(s);
}

void stream_table_clear_locked(struct mux *m) {
        for (size_t i = 0; i < MUX_BUCKETS; i++)
                while (m->buckets[i])
                        stream_remove_locked(m->buckets[i]);
}

void stream_news_locked(struct mux_stream *s) {
        pthread_cond_broadcast(&s->cond);
        if (s->watch_fd < 0 || s->watch_told)
                return;
        s->watch_told = true;
        (void) eventfd_write(s->watch_fd, 1);
}

void stream_wake_locked(struct mux_stream *s) {
        stream_news_locked(s);
        pthread_cond_broadcast(&s->mux->cond); /* a sender may wait there for room */
}

void stream_room_locked(struct mux *m) {
        m->room_wanted = false;
        for (size_t i = 0; i < MUX_BUCKETS; i++)
                for (struct mux_stream *s = m->buckets[i]; s; s = s->next)
                        if (s->room_wanted) {
                                s->room_wanted = false;
                                stream_news_locked(s);
                        }
}

/* Closing */

void stream_reason(const struct error *reason, struct buf *ret) {
        _cleanup_json_ json_t *json = NULL;
        _cleanup_json_ json_t *brief = NULL;

        buf_clear(ret);
        if (!error_is_set(reason))
                return;
        json = wire_error_to_json(reason);
        if (!json || json_write(json, ret) == 0)
                return;

        /* Too long: the code alone still says what to do. */
        buf_clear(ret);
        brief = wire_error_to_json(&(struct error){.code = reason->code});
        if (brief && json_write(brief, ret) < 0)
                buf_clear(ret);
}

/* Frees nothing as long as the caller's reference is counted. */
static void close_locked(struct mux_stream *s, const struct buf *reason) {
        struct mux *m = s->mux;

        if (s->sent_close)
                return;
        s->sent_close = true;
        /* A peer that is never told would wait for ever; without memory the connection is the lesser loss. */
        if (mux_append_locked(m, WIRE_CLOSE, s->id, reason->data, reason->len, NULL, 0) == -ENOMEM)
                mux_lose_locked(m, -ENOMEM);
        stream_wake_locked(s);
        if (s->got_close)
                stream_remove_locked(s);
}

void stream_abort_locked(struct mux_stream *s, const char *why) {
        _cleanup_buf_ struct buf text = BUF_INIT(MUX_REASON_MAX);
        struct mux *m = s->mux;

        if (s->sent_close)
                return;
        error_set(&s->close_error, ERROR_INTERNAL, "A stream was ended because of what the %s sent: %s.",
                  mux_peer_name(m), why);
        stream_reason(&s->close_error, &text);
        s->sent_close = s->got_close = true;
        /* As an answer: a peer must not fill `out` by provoking these. */
        int r = mux_answer_locked(m, WIRE_CLOSE, s->id, text.data, text.len);
        if (r < 0)
                mux_lose_locked(m, r);
        stream_wake_locked(s);
        stream_remove_locked(s); /* frees nothing: without references it would have been closed already */
}

void mux_close(struct mux_stream *s, const struct error *reason) {
        _cleanup_buf_ struct buf text = BUF_INIT(MUX_REASON_MAX);

        stream_reason(reason, &text);
        LOCK(&s->mux->lock);
        stream_queue_drop_locked(s);
        close_locked(s, &text);
}

struct mux_stream *mux_stream_ref(struct mux_stream *s) {
        LOCK(&s->mux->lock);
        s->refs++;
        return s;
}

void mux_stream_unref(struct mux_stream *s) {
        bool gone = false;

        if (!s)
                return;
        pthread_mutex_t *lock = &s->mux->lock;
        pthread_mutex_lock(lock);
        if (s->refs == 1) {
                stream_queue_drop_locked(s);
                /* The table may keep the stream for as long as the peer keeps silent. */
                s->watch_fd = close_fd(s->watch_fd);
                close_locked(s, &BUF_INIT(0));
                gone = !s->in_table;
        }
        s->refs--;
        pthread_mutex_unlock(lock);
        /* Otherwise the table frees it, once the peer has closed it too. */
        if (gone)
                stream_free(s);
}

/* Sending */

#define MESSAGE_MAX (WIRE_FRAME_MAX - WIRE_HEADER_LEN)

/* Why nothing can be sent any more, or 0. */
static int ended_locked(const struct mux_stream *s) {
        if (s->sent_close || s->got_close)
                return -EPIPE;
        return s->mux->lost || s->mux->write_err != 0 ? -ENOTCONN : 0;
}

/* Waits until a frame may be sent. Lock held. */
static int sendable_locked(struct waiter *w, size_t mark, bool credit) {
        struct mux_stream *s = w->s;
        struct mux *m = w->m;

        for (;;) {
                int r = ended_locked(s);
                if (r < 0)
                        return r;
                if (credit && s->tx_credit == 0)
                        r = waiter_sleep(w, &s->cond);
                else if (mux_waiting_locked(m) >= mark)
                        r = waiter_sleep(w, &m->cond);
                else
                        return 0;
                if (r < 0)
                        return r;
        }
}

/* An id of ours that is not in use. There is always one: the table is smaller than the space of ids by far. */
static uint32_t next_id_locked(struct mux *m) {
        for (;;) {
                uint32_t id = m->next_id;

                m->next_id += 2; /* wraps to 0 for the guest, which is no stream, and to 1 for the host */
                if (id != 0 && !stream_find_locked(m, id))
                        return id;
        }
}

static int open_locked(struct waiter *w, const struct buf *text, uint32_t window, struct mux_stream **ret) {
        struct mux *m = w->m;
        struct mux_stream *s;
        int r;

        r = waiter_room(w, MUX_OUT_HIGH);
        if (r < 0)
                return r;
        r = stream_new_locked(m, next_id_locked(m), window, &s);
        if (r < 0)
                return r;
        r = mux_append_locked(m, WIRE_OPEN, s->id, text->data, text->len, NULL, 0);
        if (r < 0) {
                stream_remove_locked(s);
                s->refs = 0;
                stream_free(s);
                return r;
        }
        *ret = s;
        return 0;
}

/* The text of a message. -EMSGSIZE when no frame can hold it. */
static int message_text(json_t *msg, struct buf *ret) {
        int r;

        *ret = BUF_INIT(MESSAGE_MAX);
        r = json_write(msg, ret);
        return r == -ENOBUFS ? -EMSGSIZE : r;
}

/* All of its memory at once: a buffer that grew would have left pieces of it behind. */
int mux_secret_text(const json_t *msg, size_t max, struct buf *ret) {
        size_t len = json_dumpb(msg, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY);

        if (len == 0)
                return -ENOMEM;
        if (len > max)
                return -EMSGSIZE;
        *ret = BUF_INIT(max);
        int r = buf_reserve(ret, len);
        return r < 0 ? r : json_write(msg, ret);
}

int mux_open(struct mux *m, json_t *request, const struct op *op, struct mux_stream **ret, struct error *err) {
        _cleanup_(buf_wipe) struct buf text = {0};
        uint32_t window = WIRE_WINDOW;
        struct waiter w;

        int r = stream_window(request, &window, err);
        if (r < 0)
                return r;
        r = op_check(op);
        if (r == 0)
                r = mux_secret_text(request, MESSAGE_MAX, &text);
        if (r == 0) {
                waiter_begin(&w, m, NULL, op);
                pthread_mutex_lock(&m->lock);
                r = open_locked(&w, &text, window, ret);
                pthread_mutex_unlock(&m->lock);
                waiter_end(&w);
        }
        switch (r) {
        case 0:
                return 0;
        case -EMFILE:
                error_set(err, ERROR_QUOTA_EXCEEDED, "%u requests to the %s are under way already, which is the limit.",
                          WIRE_STREAMS_MAX, mux_peer_name(m));
                error_hint(err, "Wait until some of them have ended.");
                return r;
        case -ENOTCONN:
                error_set(err, ERROR_GUEST_UNREACHABLE, "The connection to the %s was lost.", mux_peer_name(m));
                return r;
        case -EMSGSIZE:
                error_set(err, ERROR_INVALID_ARGUMENT, "The request is larger than %u bytes.",
                          WIRE_FRAME_MAX - WIRE_HEADER_LEN);
                return r;
        default:
                return error_set_errno(err, r, "Cannot send a request to the %s", mux_peer_name(m));
        }
}

int mux_send_msg(struct mux_stream *s, json_t *msg, const struct op *op) {
        _cleanup_buf_ struct buf text = {0};
        struct mux *m = s->mux;
        struct waiter w;
        int r;

        r = op_check(op);
        if (r == 0)
                r = message_text(msg, &text);
        if (r < 0)
                return r;
        waiter_begin(&w, m, s, op);
        pthread_mutex_lock(&m->lock);
        r = sendable_locked(&w, MUX_OUT_HIGH, false);
        if (r == 0)
                r = mux_append_locked(m, WIRE_MSG, s->id, text.data, text.len, NULL, 0);
        pthread_mutex_unlock(&m->lock);
        waiter_end(&w);
        return r;
}

/* Sends the beginning of n bytes, as much as one frame and the credit allow. */
static int send_chunk(struct waiter *w, uint8_t channel, const void *data, size_t n, size_t *ret_sent) {
        struct mux_stream *s = w->s;
        int r;

        LOCK(&w->m->lock);
        if (s->tx_eof & (1u << channel))
                return -EINVAL;
        r = sendable_locked(w, MUX_OUT_DATA_HIGH, true);
        if (r < 0)
                return r;
        n = MIN(n, (size_t) WIRE_DATA_CHUNK);
        n = MIN(n, (size_t) s->tx_credit);
        r = mux_append_locked(w->m, WIRE_DATA, s->id, &channel, 1, data, n);
        if (r < 0)
                return r;
        s->tx_credit -= (uint32_t) n;
        *ret_sent = n;
        return 0;
}

bool mux_stream_closed(struct mux_stream *s) {
        LOCK(&s->mux->lock);
        return s->got_close;
}

int mux_watch(struct mux_stream *s) {
        LOCK(&s->mux->lock);
        if (s->watch_fd < 0) {
                s->watch_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
                s->watch_told = s->watch_fd >= 0;
        }
        return s->watch_fd < 0 ? -errno : s->watch_fd;
}

void mux_watch_clear(struct mux_stream *s) {
        eventfd_t count;
        LOCK(&s->mux->lock);

        if (!s->watch_told)
                return;
        (void) eventfd_read(s->watch_fd, &count);
        s->watch_told = false;
}

int mux_send_room(struct mux_stream *s) {
        struct mux *m = s->mux;
        LOCK(&m->lock);

        int r = ended_locked(s);
        if (r < 0 || s->tx_credit == 0)
                return r;
        if (mux_waiting_locked(m) >= MUX_OUT_DATA_HIGH) {
                s->room_wanted = m->room_wanted = true;
                return 0;
        }
        return (int) MIN(s->tx_credit, WIRE_DATA_CHUNK);
}

int mux_send_data(struct mux_stream *s, enum wire_channel ch, const void *data, size_t n, const struct op *op) {
        const uint8_t *p = data;
        struct waiter w;
        int r = 0;

        waiter_begin(&w, s->mux, s, op);
        while (r == 0 && n > 0) {
                size_t sent = 0;

                r = op_check(op); /* also when nothing ever blocks */
                if (r == 0)
                        r = send_chunk(&w, (uint8_t) ch, p, n, &sent);
                if (r == 0) {
                        p += sent;
                        n -= sent;
                }
        }
        waiter_end(&w);
        return r;
}

int mux_send_eof(struct mux_stream *s, enum wire_channel ch, const struct op *op) {
        struct mux *m = s->mux;
        uint8_t channel = (uint8_t) ch;
        struct waiter w;
        int r;

        r = op_check(op);
        if (r < 0)
                return r;
        waiter_begin(&w, m, s, op);
        pthread_mutex_lock(&m->lock);
        r = s->tx_eof & (1u << channel) ? -EINVAL : sendable_locked(&w, MUX_OUT_HIGH, false);
        if (r == 0)
                r = mux_append_locked(m, WIRE_EOF, s->id, &channel, 1, NULL, 0);
        if (r == 0)
                s->tx_eof |= 1u << channel;
        pthread_mutex_unlock(&m->lock);
        waiter_end(&w);
        return r;
}
