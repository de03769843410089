/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Streams over one channel, the same code on both sides.
 *
 * One thread per connection polls the channel, decodes frames and puts them into the queue of their stream; it also
 * writes what could not be written at once. Callers on any thread send and receive on streams with blocking calls
 * under an op. No lock is held while anybody waits. What the peer can make us keep is bounded: WIRE_WINDOW bytes (or
 * the "window" of the request) and WIRE_MESSAGES_MAX messages per stream, WIRE_STREAMS_MAX streams. A peer that breaks
 * a stream's bounds loses that stream (closed with an error on both sides); one that breaks framing loses the
 * connection.
 *
 * When the connection ends, each stream yields what it still holds, then MUX_LOST.
 *
 * Requests and hellos may hold secrets: their texts are overwritten once they are sent, or taken in.
 */

#include <jansson.h>

#include "base/buf.h"
#include "base/deadline.h"
#include "base/error.h"
#include "wire/wire.h"

struct mux;
struct mux_stream;

enum mux_side { MUX_HOST, MUX_GUEST };

struct mux_callbacks {
        /* The peer's hello came; what this puts into `ours` goes with our own, which waits for this. Both are borrowed,
         * and may be changed. Called on the mux thread, once, before `opened`. NULL: our hello does not wait. */
        void (*greeted)(void *arg, json_t *theirs, json_t *ours);
        /* The peer opened a stream. Called on the mux thread: take the stream (one reference) and the request (owned)
         * to a thread of your own. NULL: such streams are refused with an `unsupported` error. */
        void (*opened)(void *arg, struct mux_stream *stream, json_t *request);
        /* The connection ended; err is a negative errno (-ENODATA: the peer closed it). Called once, last. */
        void (*lost)(void *arg, int err);
        void *arg;
};

/*
 * Starts the connection on fd (taken over also on failure; made non-blocking). `early` are bytes that were read
 * behind the handshake. hello: extra members for our WIRE_HELLO or NULL (borrowed).
 */
int mux_start(int fd, enum mux_side side, const void *early, size_t early_len, json_t *hello,
              const struct mux_callbacks *cb, struct mux **ret, struct error *err);
/*
 * The same on the calling thread, which takes in what the peer sends until the connection is lost, or stop_fd (may be
 * -1) is readable. bytes: what was read behind the handshake, and then what is left behind the last frame, where the
 * peer's next handshake may be. 0 if there was a connection, however it ended.
 */
int mux_run(int fd, enum mux_side side, const struct mux_callbacks *cb, int stop_fd, struct buf *bytes,
            struct error *err);
struct mux *mux_ref(struct mux *m);
/* The last reference closes the connection and joins its thread, so hold no lock that a callback takes. From inside a
 * callback it does not join: the thread then ends by itself after the callback. Accepts NULL. */
void mux_unref(struct mux *m);
DEFINE_CLEANUP(struct mux *, mux_unref)
#define _cleanup_mux_ _cleanup_(mux_unrefp)

/* Ends the connection now; streams see MUX_LOST, `lost` runs. From any thread. */
void mux_shutdown(struct mux *m, int err);
bool mux_is_lost(struct mux *m);
/* What waits give whose deadline passes, from now on: another errno than -ETIMEDOUT, when it is known why the peer does
 * not answer. */
void mux_set_timeout_error(struct mux *m, int err);
/* Waits for the peer's WIRE_HELLO, checks the version; *ret is owned. */
int mux_hello(struct mux *m, const struct op *op, json_t **ret, struct error *err);
/* A ping over the channel and back: round trip in nanoseconds. */
int mux_ping(struct mux *m, const struct op *op, int64_t *ret_ns, struct error *err);

/* Opens a stream with a request (borrowed), whose "window", if it has one, is the stream's credit in each direction,
 * WIRE_WINDOW_MIN to WIRE_WINDOW. -EMFILE when WIRE_STREAMS_MAX are open, -ENOTCONN when lost. */
int mux_open(struct mux *m, json_t *request, const struct op *op, struct mux_stream **ret, struct error *err);

struct mux_stream *mux_stream_ref(struct mux_stream *s);
/* The last reference closes the stream (WIRE_CLOSE without a reason) if that has not happened. Accepts NULL. */
void mux_stream_unref(struct mux_stream *s);
DEFINE_CLEANUP(struct mux_stream *, mux_stream_unref)
#define _cleanup_stream_ _cleanup_(mux_stream_unrefp)

int mux_send_msg(struct mux_stream *s, json_t *msg, const struct op *op);
/* Sends n bytes in chunks, waiting for credit. -EPIPE once the peer has closed the stream, -ENOTCONN when lost. */
int mux_send_data(struct mux_stream *s, enum wire_channel ch, const void *data, size_t n, const struct op *op);
int mux_send_eof(struct mux_stream *s, enum wire_channel ch, const struct op *op);
/* Closes the stream, with an error for the peer or NULL. Never blocks. Idempotent. */
void mux_close(struct mux_stream *s, const struct error *reason);

enum mux_event_kind {
        MUX_MSG,    /* msg */
        MUX_DATA,   /* channel, data */
        MUX_EOF,    /* channel */
        MUX_CLOSED, /* the peer closed it; error is set if it gave a reason. Repeats. */
        MUX_LOST,   /* the connection is gone. Repeats. */
};

struct mux_event {
        enum mux_event_kind kind;
        enum wire_channel channel;
        struct buf data;    /* owned */
        json_t *msg;        /* owned */
        struct error error; /* owned */
};
#define MUX_EVENT_INIT ((struct mux_event){.kind = MUX_LOST})
void mux_event_clear(struct mux_event *e);
#define _cleanup_mux_event_ _cleanup_(mux_event_clear)

/* The next event in the order in which the peer sent them; credit is renewed for data that was taken. What *ret held
 * before is released (start with MUX_EVENT_INIT). 0, -ETIMEDOUT (also when an event is there but the deadline has
 * passed, so that a peer that never stops sending cannot outlast it), -ECANCELED, -ENOMEM. One receiver per stream at
 * a time. A deadline that passed while the host's process did not run gets a grace of 2 s, once. */
int mux_recv(struct mux_stream *s, const struct op *op, struct mux_event *ret);
/* Whether mux_recv() has something to give without a wait. */
bool mux_stream_ready(struct mux_stream *s);
/* Whether the peer has closed the stream: for a receiver that has reason not to take what waits before MUX_CLOSED. */
bool mux_stream_closed(struct mux_stream *s);
/* Whether the stream has ended as it should not: the peer closed it for a reason, or the connection is gone. */
bool mux_stream_broken(struct mux_stream *s);

/*
 * For whoever waits for a stream beside other descriptors, in poll(): a descriptor (the stream's own) that becomes
 * readable when there may be something to receive, or room to send. mux_watch_clear() first, then look at the stream
 * with mux_stream_ready() and mux_send_room(), then poll.
 */
int mux_watch(struct mux_stream *s);
void mux_watch_clear(struct mux_stream *s);
/* How many bytes the only sender of this stream can send now, at most WIRE_DATA_CHUNK, without a wait for credit, and
 * hardly one for the channel. 0: none yet. -EPIPE, -ENOTCONN: none ever. */
int mux_send_room(struct mux_stream *s);

/* Helpers for one question and one answer. Turns {type:"error"} and a lost connection into err (guest_unreachable for
 * the latter, timeout for a passed deadline); *ret (owned, may be NULL) is the "ok" message. */
int mux_call(struct mux *m, json_t *request, const struct op *op, json_t **ret, struct error *err);
/* The next message, passing over nothing: an error if it is not a message of that type. */
int mux_expect_msg(struct mux_stream *s, const char *type, const struct op *op, json_t **ret, struct error *err);
/* Fills a {type:"error"} message and reads it back. */
json_t *wire_error_to_json(const struct error *e);
void wire_error_from_json(const json_t *msg, struct error *ret);
