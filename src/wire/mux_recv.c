/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "wire/mux_internal.h"

/* The queue */

/* The block of the record at an offset. */
static char *block_of(const struct mux_stream *s, size_t at) {
        char *block;

        memcpy(&block, s->queue.data + at + sizeof(struct record), sizeof(block));
        return block;
}

void stream_queue_drop_locked(struct mux_stream *s) {
        struct record head;

        for (size_t at = s->queue_taken; at < s->queue.len; at += sizeof(head) + record_stored(&head)) {
                memcpy(&head, s->queue.data + at, sizeof(head));
                if (head.kind == MUX_MSG)
                        s->mux->message_bytes -= head.len;
                if (head.block)
                        free(block_of(s, at));
        }
        buf_free(&s->queue);
        s->queue_taken = s->queue_merge = 0;
        s->messages = 0;
}

/* Moves the queue to the front of its buffer once as much was taken as is left. */
static void queue_compact_locked(struct mux_stream *s) {
        if (s->queue_taken == 0 || s->queue_taken < s->queue.len - s->queue_taken)
                return;
        s->queue_merge = s->queue_merge > s->queue_taken ? s->queue_merge - s->queue_taken : 0;
        buf_consume(&s->queue, s->queue_taken);
        s->queue_taken = 0;
}

/* Appends to the last record if that is data of the same channel and stays handy. 1: done. */
static int queue_merge_locked(struct mux_stream *s, uint8_t channel, const void *data, uint32_t n) {
        struct record head;
        int r;

        if (s->queue_merge <= s->queue_taken)
                return 0;
        size_t at = s->queue_merge - 1;
        memcpy(&head, s->queue.data + at, sizeof(head));
        if (head.channel != channel || head.block || head.len + n > WIRE_DATA_CHUNK)
                return 0;

        r = buf_append(&s->queue, data, n);
        if (r < 0)
                return r;
        head.len += n;
        memcpy(s->queue.data + at, &head, sizeof(head));
        return 1;
}

static int queue_block_locked(struct mux_stream *s, uint8_t channel, const void *data, uint32_t n) {
        struct record head = {.len = n, .kind = MUX_DATA, .channel = channel, .block = 1};
        int r = buf_reserve(&s->queue, sizeof(head) + sizeof(char *));
        _cleanup_free_ char *block = r < 0 ? NULL : malloc((size_t) n + 1);

        if (!block)
                return r < 0 ? r : -ENOMEM;
        memcpy(block, data, n);
        block[n] = 0;
        r = buf_append(&s->queue, &head, sizeof(head));
        if (r == 0)
                r = buf_append(&s->queue, &block, sizeof(block));
        if (r < 0)
                return r;
        s->queue_merge = 0;
        TAKE_PTR(block);
        return 0;
}

static int queue_append_locked(struct mux_stream *s, enum mux_event_kind kind, uint8_t channel, const void *data,
                               size_t n) {
        struct record head = {.len = (uint32_t) n, .kind = (uint8_t) kind, .channel = channel};
        int r;

        queue_compact_locked(s);
        if (kind == MUX_DATA && n >= MUX_BLOCK_MIN)
                return queue_block_locked(s, channel, data, head.len);
        if (kind == MUX_DATA) {
                r = queue_merge_locked(s, channel, data, head.len);
                if (r != 0)
                        return r < 0 ? r : 0;
        }
        r = buf_reserve(&s->queue, sizeof(head) + n);
        if (r < 0)
                return r;

        s->queue_merge = kind == MUX_DATA ? s->queue.len + 1 : 0;
        r = buf_append(&s->queue, &head, sizeof(head));
        if (r == 0)
                r = buf_append(&s->queue, data, n);
        return r;
}

static bool queue_empty(const struct mux_stream *s) {
        return s->queue_taken == s->queue.len;
}

/* Takes the first record: its head, and its bytes in *ret. */
static int queue_take_locked(struct mux_stream *s, struct record *head, struct buf *ret) {
        int r;

        memcpy(head, s->queue.data + s->queue_taken, sizeof(*head));
        *ret = BUF_INIT(WIRE_FRAME_MAX);
        if (head->block) {
                ret->data = block_of(s, s->queue_taken);
                ret->len = ret->cap = head->len;
        } else {
                r = buf_append(ret, s->queue.data + s->queue_taken + sizeof(*head), head->len);
                if (r < 0)
                        return r;
        }

        s->queue_taken += sizeof(*head) + record_stored(head);
        if (queue_empty(s)) {
                s->queue_taken = s->queue_merge = 0;
                if (s->queue.cap > MUX_KEEP_MAX)
                        buf_free(&s->queue);
                else
                        buf_clear(&s->queue);
        }
        return 0;
}

/* Frames of the peer: each returns what the peer did wrong, or NULL. */

static const char *take_message(struct mux_stream *s, const struct frame *f) {
        struct mux *m = s->mux;

        if (s->messages >= WIRE_MESSAGES_MAX || f->payload_len > MUX_MESSAGE_BYTES_MAX - m->message_bytes)
                return "too many messages wait to be read";
        if (queue_append_locked(s, MUX_MSG, 0, f->payload, f->payload_len) < 0)
                return "no memory for a message";
        s->messages++;
        m->message_bytes += f->payload_len;
        return NULL;
}

static const char *take_data(struct mux_stream *s, const struct frame *f) {
        if (f->payload_len < 1 || f->payload[0] >= _WIRE_CH_MAX)
                return "data for no known channel";

        uint8_t channel = f->payload[0];
        size_t n = f->payload_len - 1;
        if (s->rx_eof & (1u << channel))
                return "data behind the end of a channel";
        if (n > s->rx_credit)
                return "more data than its credit allows";
        if (n == 0)
                return NULL; /* it costs the peer nothing, so it must not cost us a record */
        if (queue_append_locked(s, MUX_DATA, channel, f->payload + 1, n) < 0)
                return "no memory for data";
        s->rx_credit -= (uint32_t) n;
        return NULL;
}

static const char *take_eof(struct mux_stream *s, const struct frame *f) {
        if (f->payload_len != 1 || f->payload[0] >= _WIRE_CH_MAX)
                return "an end of no known channel";

        uint8_t channel = f->payload[0];
        if (s->rx_eof & (1u << channel))
                return "the end of a channel twice";
        if (queue_append_locked(s, MUX_EOF, channel, NULL, 0) < 0)
                return "no memory for an end of data";
        s->rx_eof |= 1u << channel;
        return NULL;
}

static const char *take_credit(struct mux_stream *s, const struct frame *f) {
        const uint8_t *p = f->payload;

        if (f->payload_len != 4)
                return "a credit that is no number";
        uint32_t n = (uint32_t) p[0] << 24 | (uint32_t) p[1] << 16 | (uint32_t) p[2] << 8 | p[3];
        if (n > s->window - s->tx_credit)
                return "more credit than the window";
        s->tx_credit += n;
        return NULL;
}

/* May free the stream. */
static void take_close_locked(struct mux_stream *s, const struct frame *f) {
        _cleanup_json_ json_t *reason = NULL;

        s->got_close = true;
        if (f->payload_len > 0) {
                if (json_parse((const char *) f->payload, f->payload_len, MUX_REASON_MAX, WIRE_JSON_DEPTH_MAX, &reason,
                               NULL) == 0)
                        wire_error_from_json(reason, &s->close_error);
                else
                        error_set(&s->close_error, ERROR_INTERNAL,
                                  "The %s closed the stream for a reason that cannot be read.", mux_peer_name(s->mux));
        }
        stream_wake_locked(s);
        if (s->sent_close)
                stream_remove_locked(s);
}

void stream_input_locked(struct mux_stream *s, const struct frame *f) {
        const char *wrong = NULL;

        if (s->got_close)
                return;
        if (f->kind == WIRE_CLOSE) {
                take_close_locked(s, f);
                return;
        }
        if (s->sent_close)
                return; /* on its way when we closed */

        switch (f->kind) {
        case WIRE_MSG:
                wrong = take_message(s, f);
                break;
        case WIRE_DATA:
                wrong = take_data(s, f);
                break;
        case WIRE_EOF:
                wrong = take_eof(s, f);
                break;
        case WIRE_CREDIT:
                wrong = take_credit(s, f);
                break;
        default:
                break;
        }
        if (wrong)
                stream_abort_locked(s, wrong);
        else
                stream_news_locked(s);
}

/* Receiving */

void stream_credits_locked(struct mux *m) {
        m->credit_due = false;
        for (size_t i = 0; i < MUX_BUCKETS; i++) {
                for (struct mux_stream *s = m->buckets[i]; s; s = s->next) {
                        uint32_t n = s->rx_returned;
                        const uint8_t be[] = {(uint8_t) (n >> 24), (uint8_t) (n >> 16), (uint8_t) (n >> 8),
                                              (uint8_t) n};

                        if (!s->rx_credit_due || s->sent_close || s->got_close)
                                continue;
                        if (mux_out_frame_locked(m, WIRE_CREDIT, s->id, be, sizeof(be), NULL, 0) < 0) {
                                m->credit_due = true; /* no memory just now: with the next write */
                                return;
                        }
                        s->rx_credit += n;
                        s->rx_returned = 0;
                        s->rx_credit_due = false;
                }
        }
}

/*
 * The application took n bytes. Credit goes back in quarters of the window: until then the peer has at least the
 * others, so it cannot be waiting for ours, and small output does not cost one frame in each direction.
 */
static void give_back_locked(struct mux_stream *s, uint32_t n) {
        struct mux *m = s->mux;

        s->rx_returned += n;
        if (s->rx_returned < s->window / 4)
                return;
        s->rx_credit_due = true;
        m->credit_due = true;
        if (m->lost || m->write_err != 0)
                return;
        mux_flush_locked(m);
        if (mux_waiting_locked(m) > 0)
                mux_wake(m);
}

void mux_event_clear(struct mux_event *e) {
        buf_free(&e->data);
        json_decref(e->msg);
        error_clear(&e->error);
        *e = MUX_EVENT_INIT;
}

/* What a stream yields when its queue is empty. False: nothing, yet. */
static bool final_event_locked(struct mux_stream *s, struct mux_event *ret) {
        if (s->sent_close || s->got_close) {
                ret->kind = MUX_CLOSED;
                if (error_is_set(&s->close_error)) {
                        error_set(&ret->error, s->close_error.code, "%s", error_message(&s->close_error));
                        if (s->close_error.hint)
                                error_hint(&ret->error, "%s", s->close_error.hint);
                }
                return true;
        }
        if (s->mux->lost) {
                ret->kind = MUX_LOST;
                return true;
        }
        return false;
}

bool mux_stream_broken(struct mux_stream *s) {
        LOCK(&s->mux->lock);
        return s->mux->lost || error_is_set(&s->close_error);
}

bool mux_stream_ready(struct mux_stream *s) {
        LOCK(&s->mux->lock);
        return !queue_empty(s) || s->sent_close || s->got_close || s->mux->lost;
}

static int next_event_locked(struct waiter *w, struct mux_event *ret) {
        struct mux_stream *s = w->s;
        struct record head;
        int r;

        while (queue_empty(s)) {
                if (final_event_locked(s, ret))
                        return 0;
                r = waiter_sleep(w, &s->cond);
                if (r < 0)
                        return r;
        }
        r = queue_take_locked(s, &head, &ret->data);
        if (r < 0)
                return r;
        ret->kind = (enum mux_event_kind) head.kind;
        ret->channel = (enum wire_channel) head.channel;
        if (ret->kind == MUX_MSG) {
                s->messages--;
                s->mux->message_bytes -= head.len;
        } else if (ret->kind == MUX_DATA) {
                give_back_locked(s, head.len);
        }
        return 0;
}

/* Turns the text of a message into JSON, outside the lock. -EBADMSG: the stream was aborted for it. */
static int parse_message(struct mux_stream *s, struct mux_event *e) {
        _cleanup_json_ json_t *msg = NULL;
        const char *type;

        int r = json_parse(e->data.data, e->data.len, WIRE_FRAME_MAX, WIRE_JSON_DEPTH_MAX, &msg, NULL);
        if (r == 0)
                r = json_get_str(msg, "type", &type, NULL);
        if (r < 0) {
                LOCK(&s->mux->lock);
                stream_abort_locked(s, "a message that is no JSON object with a \"type\"");
                return -EBADMSG;
        }
        buf_free(&e->data);
        e->msg = TAKE_PTR(msg);
        return 0;
}

/* A deadline that has passed wins over an event that is there: otherwise a peer that never stops sending would keep a
 * caller who only looks at the results beyond any deadline. */
static int wait_event(struct mux_stream *s, const struct op *op, struct mux_event *ret) {
        struct waiter w;

        int r = op_check(op);
        if (r < 0)
                return r;
        waiter_begin(&w, s->mux, s, op);
        pthread_mutex_lock(&s->mux->lock);
        r = next_event_locked(&w, ret);
        pthread_mutex_unlock(&s->mux->lock);
        waiter_end(&w);
        return r;
}

/* The caller's deadline, or the end of the grace that it was given. */
static struct op with_grace(const struct mux_stream *s, const struct op *op) {
        struct op limited = op ? *op : OP_INIT_NEVER;

        if (limited.deadline.at_ns == s->overslept.at_ns)
                limited.deadline = s->grace;
        return limited;
}

/* Whether the deadline passed while this process did not run. Then it gets a grace, but no second one. */
static bool give_grace(struct mux_stream *s, const struct op *op) {
        if (!op || s->mux->side != MUX_HOST || op->deadline.at_ns == s->overslept.at_ns || !mux_overslept(op->deadline))
                return false;
        s->overslept = op->deadline;
        s->grace = deadline_in_ms(MUX_GRACE_MS);
        return true;
}

int mux_recv(struct mux_stream *s, const struct op *op, struct mux_event *ret) {
        for (;;) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
                const struct op limited = with_grace(s, op);

                int r = wait_event(s, &limited, &e);
                if (r < 0 && r != -ECANCELED && give_grace(s, op))
                        continue;
                if (r < 0)
                        return r;

                if (e.kind == MUX_MSG && parse_message(s, &e) < 0)
                        continue;
                mux_event_clear(ret);
                *ret = e;
                e = MUX_EVENT_INIT;
                return 0;
        }
}
