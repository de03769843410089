/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/eventfd.h>

#include "base/io.h"
#include "base/json.h"
#include "wire/channel.h"
#include "wire/mux_internal.h"

static void waiter_cancelled(void *arg) {
        struct waiter *w = arg;
        LOCK(&w->m->lock);

        w->cancelled = true;
        pthread_cond_broadcast(&w->m->cond);
        if (w->s)
                pthread_cond_broadcast(&w->s->cond);
}

void waiter_begin(struct waiter *w, struct mux *m, struct mux_stream *s, const struct op *op) {
        *w = (struct waiter){
                .m = m,
                .s = s,
                .deadline = op ? op->deadline : DEADLINE_NEVER,
                .cancel = op ? op->cancel : NULL,
                .hook = {.fn = waiter_cancelled, .arg = w},
        };
        cancel_hook(w->cancel, &w->hook);
}

void waiter_end(struct waiter *w) {
        cancel_unhook(w->cancel, &w->hook);
}

int waiter_sleep(struct waiter *w, pthread_cond_t *cond) {
        if (w->cancelled)
                return -ECANCELED;
        int r = cond_wait_until(cond, &w->m->lock, w->deadline);
        return r == -ETIMEDOUT ? w->m->timeout_err : r;
}

int waiter_room(struct waiter *w, size_t mark) {
        struct mux *m = w->m;

        while (!m->lost && m->write_err == 0 && mux_waiting_locked(m) >= mark) {
                int r = waiter_sleep(w, &m->cond);
                if (r < 0)
                        return r;
        }
        return m->lost || m->write_err != 0 ? -ENOTCONN : 0;
}

static void mux_destroy(struct mux *m) {
        frame_decoder_free(&m->decoder);
        mux_out_free_locked(m);
        buf_free(&m->answers);
        json_decref(m->hello);
        json_decref(m->own_hello);
        close_fd(m->fd);
        close_fd(m->wake_fd);
        pthread_cond_destroy(&m->cond);
        pthread_mutex_destroy(&m->lock);
        free(m);
}

void mux_hold_drop(struct mux *m) {
        if (atomic_fetch_sub(&m->holds, 1) == 1)
                mux_destroy(m);
}

struct mux *mux_new(int fd, enum mux_side side, const struct mux_callbacks *cb) {
        _cleanup_close_ int wake_fd = -1;
        struct mux *m;

        wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (wake_fd < 0)
                return NULL;
        m = calloc(1, sizeof(*m));
        if (!m)
                return NULL;

        atomic_init(&m->refs, 1);
        atomic_init(&m->holds, 1);
        m->side = side;
        if (cb)
                m->cb = *cb;
        m->is_socket = channel_is_socket(fd);
        m->fd = fd;
        m->wake_fd = TAKE_FD(wake_fd);
        m->out = BUF_INIT(WIRE_OUT_MAX);
        m->answers = BUF_INIT(WIRE_OUT_MAX);
        m->next_id = side == MUX_HOST ? 1 : 2;
        m->timeout_err = -ETIMEDOUT;
        m->stop_fd = -1;
        frame_decoder_init(&m->decoder);
        m->frame_due = m->quiet_due = DEADLINE_NEVER;
        pthread_mutex_init(&m->lock, NULL);
        cond_init(&m->cond);
        return m;
}

int mux_send_hello(struct mux *m) {
        _cleanup_json_ json_t *hello = TAKE_PTR(m->own_hello);
        _cleanup_(buf_wipe) struct buf text = {0};
        int r;

        r = json_put(hello, "type", json_string("hello"));
        if (r == 0)
                r = json_put(hello, "version", json_integer(WIRE_VERSION));
        if (r == 0)
                r = mux_secret_text(hello, MUX_HELLO_MAX, &text);
        if (r < 0)
                return r;
        LOCK(&m->lock);
        return mux_append_locked(m, WIRE_HELLO, 0, text.data, text.len, NULL, 0);
}

/* Before the thread runs, unless it has to wait for the peer's. */
static int prepare_hello(struct mux *m, json_t *extra) {
        m->own_hello = extra ? json_copy(extra) : json_object();
        if (!m->own_hello)
                return -ENOMEM;
        return m->cb.greeted ? 0 : mux_send_hello(m);
}

/* All but somebody who takes in what comes. */
static int prepare(int fd, enum mux_side side, const void *early, size_t early_len, json_t *hello,
                   const struct mux_callbacks *cb, struct mux **ret, struct error *err) {
        _cleanup_close_ int owned = fd;
        struct mux *m;
        int r;

        r = fd_set_nonblock(fd, true);
        if (r < 0)
                return error_set_errno(err, r, "Cannot use the channel to the peer");
        m = mux_new(fd, side, cb);
        if (!m)
                return error_set_errno(err, errno, "Cannot start a connection");
        (void) TAKE_FD(owned);

        r = frame_decoder_feed(&m->decoder, early, early_len);
        if (r == 0)
                r = prepare_hello(m, hello);
        if (r < 0) {
                error_set_errno(err, r, "Cannot start the connection to the %s", mux_peer_name(m));
                mux_hold_drop(m);
                return r;
        }
        *ret = m;
        return 0;
}

int mux_start(int fd, enum mux_side side, const void *early, size_t early_len, json_t *hello,
              const struct mux_callbacks *cb, struct mux **ret, struct error *err) {
        struct mux *m;
        int r = prepare(fd, side, early, early_len, hello, cb, &m, err);

        if (r < 0)
                return r;
        atomic_fetch_add(&m->holds, 1);
        r = thread_start(&m->thread, "mux", mux_thread, m);
        if (r < 0) {
                error_set_errno(err, r, "Cannot start a thread for the connection to the %s", mux_peer_name(m));
                mux_hold_drop(m);
                mux_hold_drop(m);
                return r;
        }
        *ret = m;
        return 0;
}

int mux_run(int fd, enum mux_side side, const struct mux_callbacks *cb, int stop_fd, struct buf *bytes,
            struct error *err) {
        struct mux *m;
        int r = prepare(fd, side, bytes->data, bytes->len, NULL, cb, &m, err);

        buf_wipe(bytes);
        if (r < 0)
                return r;
        m->stop_fd = stop_fd;
        mux_serve(m);
        /* Streams that somebody still holds keep the rest of it. */
        buf_consume(&m->decoder.in, m->decoder.consumed);
        *bytes = m->decoder.in;
        frame_decoder_init(&m->decoder);
        mux_hold_drop(m);
        return 0;
}

struct mux *mux_ref(struct mux *m) {
        atomic_fetch_add(&m->refs, 1);
        return m;
}

/*
 * On the mux thread itself (in a callback) it cannot join: the thread is left to end alone, as soon as the callback
 * returns. The memory stays until thread and streams have let go of it.
 */
void mux_unref(struct mux *m) {
        if (!m || atomic_fetch_sub(&m->refs, 1) > 1)
                return;
        mux_shutdown(m, -ESHUTDOWN);
        if (mux_on_own_thread(m))
                pthread_detach(pthread_self());
        else
                pthread_join(m->thread, NULL);
        mux_hold_drop(m);
}

void mux_lose_locked(struct mux *m, int err) {
        if (m->lost)
                return;
        m->lost = true;
        m->lost_err = err;
        pthread_cond_broadcast(&m->cond);
        for (size_t i = 0; i < MUX_BUCKETS; i++)
                for (struct mux_stream *s = m->buckets[i]; s; s = s->next)
                        stream_wake_locked(s);
        mux_wake(m);
}

void mux_shutdown(struct mux *m, int err) {
        LOCK(&m->lock);
        mux_lose_locked(m, err);
}

bool mux_is_lost(struct mux *m) {
        LOCK(&m->lock);
        return m->lost;
}

void mux_set_timeout_error(struct mux *m, int err) {
        LOCK(&m->lock);
        m->timeout_err = err;
}

const char *mux_peer_name(const struct mux *m) {
        return m->side == MUX_HOST ? "guest agent" : "host";
}

/* Fills err for a wait on the connection that ended with r; returns r. */
static int wait_error(struct mux *m, int r, const char *what, struct error *err) {
        switch (r) {
        case -ETIMEDOUT:
                error_set(err, ERROR_TIMEOUT, "The %s did not %s in time.", mux_peer_name(m), what);
                break;
        case -ECANCELED:
                error_set(err, ERROR_CANCELLED, "Cancelled while waiting for the %s.", mux_peer_name(m));
                break;
        case -ENOTCONN:
                error_set(err, ERROR_GUEST_UNREACHABLE, "The connection to the %s was lost.", mux_peer_name(m));
                break;
        default:
                error_set_errno(err, r, "Cannot reach the %s", mux_peer_name(m));
                break;
        }
        return r;
}

static int wait_hello(struct mux *m, const struct op *op, json_t **ret) {
        struct waiter w;
        int r = 0;

        waiter_begin(&w, m, NULL, op);
        pthread_mutex_lock(&m->lock);
        while (r == 0 && !m->hello)
                r = m->lost ? -ENOTCONN : waiter_sleep(&w, &m->cond);
        if (r == 0) {
                *ret = json_deep_copy(m->hello);
                if (!*ret)
                        r = -ENOMEM;
        }
        pthread_mutex_unlock(&m->lock);
        waiter_end(&w);
        return r;
}

int mux_hello(struct mux *m, const struct op *op, json_t **ret, struct error *err) {
        _cleanup_json_ json_t *hello = NULL;
        int64_t version;
        int r;

        r = op_check(op);
        if (r == 0)
                r = wait_hello(m, op, &hello);
        if (r < 0)
                return wait_error(m, r, "say hello", err);

        r = json_get_int(hello, "version", &version, err);
        if (r < 0) {
                error_prefix(err, "The hello of the %s", mux_peer_name(m));
                return r;
        }
        if (version != WIRE_VERSION) {
                r = error_set(err, ERROR_UNSUPPORTED,
                              "The %s speaks version %lld of the protocol, this side speaks version %d.",
                              mux_peer_name(m), (long long) version, WIRE_VERSION);
                error_hint(err, "Restart the workspace, so that its agent comes from this installation.");
                return r;
        }
        *ret = TAKE_PTR(hello);
        return 0;
}

/* Pings are numbered; the peer answers in order, so the highest number that came back covers all before. */
static int ping(struct mux *m, const struct op *op) {
        struct waiter w;
        uint64_t number = 0;
        int r;

        waiter_begin(&w, m, NULL, op);
        pthread_mutex_lock(&m->lock);
        r = waiter_room(&w, MUX_OUT_HIGH);
        if (r == 0) {
                number = ++m->ping_sent;
                r = mux_append_locked(m, WIRE_PING, 0, &number, sizeof(number), NULL, 0);
        }
        while (r == 0 && m->ping_answered < number)
                r = m->lost ? -ENOTCONN : waiter_sleep(&w, &m->cond);
        pthread_mutex_unlock(&m->lock);
        waiter_end(&w);
        return r;
}

int mux_ping(struct mux *m, const struct op *op, int64_t *ret_ns, struct error *err) {
        int64_t start = monotonic_ns();
        int r;

        r = op_check(op);
        if (r == 0)
                r = ping(m, op);
        if (r < 0)
                return wait_error(m, r, "answer a ping", err);
        *ret_ns = monotonic_ns() - start;
        return 0;
}
