/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection with a peer that sends anything and an application that does anything.
 *
 * No thread: this file does the steps of the mux thread itself, over a socket pair. The first byte chooses the side
 * (bit 0), whether a good hello comes first (bit 1), and whether ours waits for it (bit 2). Then one byte after the
 * other says what happens: below 0x80, so many plus one of the following bytes arrive from the peer; from there on the
 * application acts (see act()). In the end the accounts must balance, and all that was written must be whole frames.
 */

#include <string.h>
#include <sys/socket.h>

#include "base/json.h"
#include "fuzz.h"
#include "wire/mux_internal.h"

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define STREAMS_MAX 64u
#define STEPS_MAX 4096u

struct world {
        struct mux *m;
        int peer;
        struct frame_decoder seen; /* what the peer reads */
        struct mux_stream *streams[STREAMS_MAX];
        size_t n;
        bool over; /* the connection ended */
};

static void opened(void *arg, struct mux_stream *s, json_t *request) {
        struct world *w = arg;

        ASSERT(json_is_object(request));
        json_decref(request);
        if (w->n < STREAMS_MAX)
                w->streams[w->n++] = s;
        else
                mux_stream_unref(s);
}

static void greeted(void *arg, json_t *theirs, json_t *ours) {
        ASSERT(json_is_object(theirs) && json_is_object(ours));
        ASSERT(json_object_set_new(ours, "agent", json_string("fuzz")) == 0);
}

static void world_start(struct world *w, uint8_t flags) {
        static const char hello[] = "{\"type\":\"hello\",\"version\":" TEXT(WIRE_VERSION) "}";
        struct mux_callbacks cb = {.opened = opened, .greeted = flags & 4 ? greeted : NULL, .arg = w};
        int sv[2];

        *w = (struct world){0};
        ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv) == 0);
        w->peer = sv[1];
        w->m = mux_new(sv[0], flags & 1 ? MUX_GUEST : MUX_HOST, &cb);
        ASSERT(w->m && (w->m->own_hello = json_object()));
        frame_decoder_init(&w->seen);
        if (flags & 2) {
                _cleanup_buf_ struct buf out = BUF_INIT(256);

                ASSERT(frame_encode(&out, WIRE_HELLO, 0, hello, sizeof(hello) - 1, NULL, 0) == 0);
                ASSERT(write(w->peer, out.data, out.len) == (ssize_t) out.len);
        }
}

/* What the thread does when the channel is readable and writable. */
static void turn(struct world *w) {
        int r = 0;

        pthread_mutex_lock(&w->m->lock);
        mux_flush_locked(w->m);
        bool go_on = !w->m->lost && w->m->answers.len <= MUX_ANSWERS_MAX;
        pthread_mutex_unlock(&w->m->lock);
        if (!w->over)
                r = mux_process(w->m);
        if (r == 0 && go_on && !w->over)
                r = mux_input(w->m);
        if (r >= 0 && !w->over)
                r = mux_check_unfinished(w->m);
        if (r < 0 || (!w->over && mux_is_lost(w->m))) {
                mux_end(w->m, r);
                w->over = true;
        }
}

/* The peer reads something: whole frames of known kinds, whatever it did. */
static void peer_reads(struct world *w) {
        uint8_t piece[65536];
        struct frame f;
        int r;

        ssize_t n = read(w->peer, piece, sizeof(piece));
        if (n <= 0)
                return;
        ASSERT(frame_decoder_feed(&w->seen, piece, (size_t) n) == 0);
        while ((r = frame_decoder_next(&w->seen, &f)) == 1)
                ASSERT(f.kind >= WIRE_HELLO && f.kind <= WIRE_PONG);
        ASSERT(r == 0);
}

static void receive(struct mux_stream *s) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        struct op op = op_timeout(60000);

        /* Only when it does not wait. A broken message makes it look again: the stream is closed then. */
        if (s->queue_taken == s->queue.len && !s->sent_close && !s->got_close && !s->mux->lost)
                return;
        ASSERT(mux_recv(s, &op, &e) == 0);
        ASSERT((e.kind == MUX_MSG) == (e.msg != NULL));
        ASSERT((e.kind == MUX_DATA) == (e.data.len > 0));
}

static void send_data(struct world *w, struct mux_stream *s, size_t n) {
        static const char zeros[WIRE_DATA_CHUNK];
        struct op op = op_timeout(60000);

        if (s->tx_credit >= n && mux_waiting_locked(w->m) < MUX_OUT_DATA_HIGH)
                (void) mux_send_data(s, WIRE_CH_OUT, zeros, n, &op);
}

static void open_stream(struct world *w) {
        _cleanup_json_ json_t *request = json_pack("{s:s}", "type", "x");
        struct op op = op_timeout(60000);

        if (w->n < STREAMS_MAX && mux_waiting_locked(w->m) < MUX_OUT_HIGH &&
            mux_open(w->m, request, &op, &w->streams[w->n], NULL) == 0)
                w->n++;
}

static void act(struct world *w, uint8_t what) {
        _cleanup_error_ struct error e = ERROR_INIT;
        struct mux_stream *s = w->n > 0 ? w->streams[what % w->n] : NULL;

        if (what >= 0xf0)
                peer_reads(w);
        else if (what >= 0xe8)
                open_stream(w);
        else if (!s)
                return;
        else if (what >= 0xd8) {
                w->streams[what % w->n] = w->streams[w->n - 1];
                w->n--;
                mux_stream_unref(s);
        } else if (what >= 0xd0) {
                error_set(&e, ERROR_CONFLICT, "because");
                mux_close(s, what & 1 ? &e : NULL);
        } else if (what >= 0xb0)
                send_data(w, s, what & 1 ? 10 : 60000);
        else
                receive(s);
}

/* For every stream: what the peer may still send, what waits and what was taken make up the window. */
static void check_accounts(struct world *w) {
        size_t messages = 0;

        for (size_t i = 0; i < w->n; i++) {
                struct mux_stream *s = w->streams[i];
                size_t data = 0;
                struct record head;

                for (size_t at = s->queue_taken; at < s->queue.len; at += sizeof(head) + record_stored(&head)) {
                        memcpy(&head, s->queue.data + at, sizeof(head));
                        data += head.kind == MUX_DATA ? head.len : 0;
                        messages += head.kind == MUX_MSG ? head.len : 0;
                }
                if (!s->sent_close)
                        ASSERT(data + s->rx_credit + s->rx_returned == s->window);
                ASSERT(s->tx_credit <= s->window && s->messages <= WIRE_MESSAGES_MAX);
        }
        ASSERT(w->m->message_bytes == messages);
        ASSERT(w->m->out.len <= WIRE_OUT_MAX && w->m->n_streams <= WIRE_STREAMS_MAX);
}

static void world_stop(struct world *w) {
        check_accounts(w);
        if (!w->over)
                mux_end(w->m, -ENODATA);
        while (w->n > 0) {
                receive(w->streams[--w->n]);
                mux_stream_unref(w->streams[w->n]);
        }
        ASSERT(w->m->n_streams == 0 && w->m->message_bytes == 0);
        ASSERT(atomic_load(&w->m->holds) == 1);
        mux_hold_drop(w->m);
        frame_decoder_free(&w->seen);
        close_fd(w->peer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct world w;

        if (size < 1)
                return 0;
        world_start(&w, data[0]);
        size_t at = 1;
        for (unsigned step = 0; step < STEPS_MAX && at < size; step++) {
                uint8_t what = data[at++];

                if (what < 0x80) {
                        size_t n = MIN((size_t) what + 1, size - at);
                        /* What does not fit, or comes after the end, is lost: garbage as good as any. */
                        if (send(w.peer, data + at, n, MSG_NOSIGNAL) < 0)
                                (void) what;
                        at += n;
                } else {
                        act(&w, what);
                }
                turn(&w);
        }
        world_stop(&w);
        return 0;
}
