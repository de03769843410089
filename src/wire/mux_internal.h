/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Inside the multiplexer: what mux.c (connection), mux_io.c (its thread), mux_stream.c (streams: life and sending) and
 * mux_recv.c (streams: queue and receiving) share.
 *
 * Writing. A frame is appended whole to `out`, under the lock; a caller's deadline can therefore never tear one. If
 * nothing waited before, the appender also tries to write, so that a small frame costs one system call and no change
 * of thread; what does not fit is left to the I/O thread. Senders wait while `out` is above a mark: bulk data above
 * MUX_OUT_DATA_HIGH, requests and messages above MUX_OUT_HIGH, so that bulk cannot hold up a question.
 *
 * Why two honest sides cannot block each other: neither ever stops reading because of what its own application
 * sends. What is read goes into the queues of the streams, which credit and the message limits bound, and the I/O
 * thread waits for nobody. Reading pauses only while more than MUX_ANSWERS_MAX bytes of *answers* wait: frames that
 * the peer made us produce without any work of the application (pongs, refused streams). They wait in a buffer of
 * their own while `out` is full. An honest peer has at most WIRE_STREAMS_MAX streams to be refused and a ping for each
 * of its callers under way and stays far below; one that asks and never reads only stops itself. Credit frames are not
 * kept as bytes at all but as one mark per stream, and become bytes when `out` has room.
 *
 * What is left is WIRE_CLOSE, which mux_close() appends without waiting: one per stream, at most MUX_REASON_MAX bytes.
 * The sum of all this for an honest peer is below WIRE_OUT_MAX; whoever drives `out` beyond it loses the connection
 * with -ENOBUFS.
 *
 * A guest that begins a frame and does not end it would keep everything that it says later inside that frame. The host
 * therefore ends a connection on which a frame has not become complete within WIRE_FRAME_MS; the next one begins with a
 * handshake, which finds its place again.
 *
 * A host that is new, because the guest goes on from a saved state, begins with a handshake, too. Where a frame is
 * expected, that is a length that cannot be, and ends the connection. But if the old host had begun a frame, the
 * handshake would become part of it. A guest therefore looks whether the bytes of an unfinished frame end with one: it
 * is one if nothing follows for MUX_QUIET_MS. A host says nothing before it is answered, while the rest of a frame that
 * merely holds such bytes is on its way.
 *
 * Memory of a stream's queue. Events are kept as records in one buffer, not as objects: a peer that sends single bytes
 * on alternating channels costs 8 bytes for each, and JSON is parsed only when it is taken, by the thread that takes
 * it. A large piece of data lies in a block of its own, which the receiver takes over without another copy.
 *
 * References. `refs` counts what mux_ref() gave out; when it falls to 0 the connection ends. `holds` counts who needs
 * the memory: the users together, the thread, each stream. A stream is freed when its user references are gone and
 * both sides have closed it (or the connection is gone).
 */

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/thread.h"
#include "wire/frame.h"
#include "wire/mux.h"

#define MUX_OUT_DATA_HIGH (256u * 1024u)
#define MUX_OUT_HIGH (1024u * 1024u)
#define MUX_ANSWERS_MAX (128u * 1024u)
#define MUX_MESSAGE_BYTES_MAX (4u * 1024u * 1024u) /* messages that wait on all streams of a connection together */
#define MUX_HELLO_MAX (64u * 1024u)
#define MUX_REASON_MAX 4096u /* payload of a WIRE_CLOSE */
#define MUX_PING_MAX 64u
#define MUX_READ_CHUNK (64u * 1024u)
#define MUX_KEEP_MAX (128u * 1024u)       /* capacity that an empty buffer may keep */
#define MUX_KEEP_MAX_GUEST (512u * 1024u) /* the same in a guest, which has one connection */
#define MUX_BUCKETS 64u
#define MUX_QUIET_MS 50 /* far below HANDSHAKE_RETRY_MS */

/* The head of a queued event. `len` bytes follow, or, with `block`, a pointer to them. */
struct record {
        uint32_t len;
        uint8_t kind; /* MUX_MSG, MUX_DATA, MUX_EOF */
        uint8_t channel;
        uint16_t block;
};
#define MUX_BLOCK_MIN (16u * 1024u) /* bytes of data from which on they get a block */

/* Bytes of the queue behind a head. */
static inline size_t record_stored(const struct record *head) {
        return head->block ? sizeof(char *) : head->len;
}

#define MUX_QUEUE_MAX (2u * (WIRE_WINDOW * (1u + sizeof(struct record)) + MUX_MESSAGE_BYTES_MAX + MUX_OUT_HIGH))

struct mux {
        atomic_uint refs;
        atomic_uint holds;
        enum mux_side side;
        struct mux_callbacks cb;
        bool is_socket;
        int wake_fd; /* eventfd: the thread must look at the state again */
        int stop_fd; /* readable: the connection is to end; borrowed, or -1 */
        pthread_t thread;
        struct frame_decoder decoder; /* these four: only for the I/O thread */
        deadline_t frame_due;         /* when the frame that has begun must be complete; never: none has */
        deadline_t quiet_due;         /* when what looks like a handshake in it is one; never: nothing does */
        size_t quiet_len;             /* bytes in the decoder then */

        /* Guards everything below and all fields of the streams. Held for one non-blocking write at most. */
        pthread_mutex_t lock;
        pthread_cond_t cond; /* room in `out`, hello, pong, lost */
        int fd;              /* closed (-1) by the I/O thread when it ends */
        bool lost;
        int lost_err;
        int write_err; /* writing failed; reading goes on until the channel is empty */
        int timeout_err;

        struct buf out;
        size_t out_sent;    /* bytes at the front of `out` that are written */
        struct buf answers; /* whole frames that go to `out` when it has room */
        bool credit_due;    /* some stream has credit to return */
        bool room_wanted;   /* somebody who watches a stream wants to hear of room in `out` */
        bool out_secret;    /* something in `out`, or behind its end, is to be overwritten */

        json_t *hello;     /* the peer's */
        json_t *own_hello; /* what ours says, while it waits for the peer's */
        uint64_t ping_sent;
        uint64_t ping_answered;

        size_t message_bytes;
        uint32_t next_id;
        size_t n_streams;
        struct mux_stream *buckets[MUX_BUCKETS];
};

struct mux_stream {
        struct mux *mux; /* a hold */
        uint32_t id;
        unsigned refs;
        bool in_table;
        struct mux_stream *next; /* in its bucket */
        pthread_cond_t cond;     /* events, credit, closed, lost */

        bool sent_close;
        bool got_close;
        struct error close_error; /* the peer's reason, or what the peer did wrong */

        uint32_t window; /* the greatest credit, in each direction */
        uint32_t tx_credit;
        unsigned tx_eof; /* bit per channel */

        uint32_t rx_credit;   /* bytes that the peer may still send */
        uint32_t rx_returned; /* bytes taken by the application that the peer does not know of yet */
        bool rx_credit_due;
        unsigned rx_eof;
        deadline_t overslept, grace; /* only for the receiver: the last deadline that got a grace, and its end */
        int watch_fd;                /* eventfd; -1: nobody watches */
        bool watch_told;             /* it is readable */
        bool room_wanted;            /* its watcher waits for room in `out` */
        unsigned messages;           /* in the queue */
        struct buf queue;            /* records */
        size_t queue_taken;          /* bytes at the front of `queue` that were taken */
        size_t queue_merge;          /* offset + 1 of the last record if it is data, else 0 */
};

/*
 * A process that was stopped, or starved, finds its deadlines passed and the answers in the channel: nothing has read
 * them. A wait that ended so long behind its deadline did not run at its time, and the host gives it once more a
 * moment, for the thread to take in what is there.
 */
#define MUX_OVERSLEPT_MS 250
#define MUX_GRACE_MS 2000

static inline bool mux_overslept(deadline_t d) {
        return d.at_ns < DEADLINE_NEVER.at_ns && monotonic_ns() - d.at_ns >= MUX_OVERSLEPT_MS * NSEC_PER_MSEC;
}

/* One caller's wait: hooks the cancel token, so that it wakes what the caller sleeps on. Begin before taking the lock
 * and end after releasing it (lock order: token, then mux). */
struct waiter {
        struct mux *m;
        struct mux_stream *s; /* or NULL */
        deadline_t deadline;
        struct cancel *cancel;
        struct cancel_hook hook;
        bool cancelled;
};
void waiter_begin(struct waiter *w, struct mux *m, struct mux_stream *s, const struct op *op);
void waiter_end(struct waiter *w);
/* Lock held; released while it sleeps. 0: woken, look again. -ETIMEDOUT or what stands for it, -ECANCELED. */
int waiter_sleep(struct waiter *w, pthread_cond_t *cond);
/* Lock held. Sleeps until fewer than `mark` bytes wait to be written. Also -ENOTCONN. */
int waiter_room(struct waiter *w, size_t mark);

/* mux.c. _locked: with the lock held. */
/* A connection without its thread; takes fd over. NULL with errno, and fd untouched, when that fails. */
struct mux *mux_new(int fd, enum mux_side side, const struct mux_callbacks *cb);
void mux_hold_drop(struct mux *m);
void mux_lose_locked(struct mux *m, int err);
const char *mux_peer_name(const struct mux *m);
/* Our WIRE_HELLO, the first frame. Without the lock. */
int mux_send_hello(struct mux *m);

/* mux_io.c */
/* Does what the thread of a connection does, until it is lost. */
void mux_serve(struct mux *m);
void *mux_thread(void *arg);
/* Reads once and takes in what came. 0; 1: nothing was there; negative: the connection is over. */
int mux_input(struct mux *m);
/* Takes in the frames that the decoder holds. */
int mux_process(struct mux *m);
/* Looks at a frame that has begun. -EPROTO: the guest's is overdue; -EBADMSG: a new host's handshake is in it. */
int mux_check_unfinished(struct mux *m);
/* Everything after the last frame: marks it lost, closes the channel, runs the callback. */
void mux_end(struct mux *m, int err);
bool mux_on_own_thread(const struct mux *m);
void mux_wake(struct mux *m);

/* mux_out.c */
static inline void buf_wipe(struct buf *b) {
        if (b->data)
                explicit_bzero(b->data, b->cap);
        buf_free(b);
}
static inline size_t mux_waiting_locked(const struct mux *m) {
        return m->out.len - m->out_sent;
}
/* Appends a frame to `out`, and no more. */
int mux_out_frame_locked(struct mux *m, enum wire_kind kind, uint32_t stream, const void *a, size_t a_len,
                         const void *b, size_t b_len);
void mux_out_free_locked(struct mux *m);
/* Appends a frame and tries to write it. -EMSGSIZE, -ENOMEM, or -ENOTCONN; over WIRE_OUT_MAX it ends the connection. */
int mux_append_locked(struct mux *m, enum wire_kind kind, uint32_t stream, const void *a, size_t a_len, const void *b,
                      size_t b_len);
/* Queues a frame that the peer provoked. */
int mux_answer_locked(struct mux *m, enum wire_kind kind, uint32_t stream, const void *payload, size_t len);
void mux_flush_locked(struct mux *m);

/* mux_stream.c */
struct mux_stream *stream_find_locked(struct mux *m, uint32_t id);
/* A stream in the table with one user reference; -EMFILE, -ENOMEM. */
int stream_new_locked(struct mux *m, uint32_t id, uint32_t window, struct mux_stream **ret);
/* The credit that a request asks for. The error is for whoever sent it. */
int stream_window(const json_t *request, uint32_t *ret, struct error *err);
/* Takes it out of the table. This may free it, so the caller needs a hold on the mux besides the stream's. */
void stream_remove_locked(struct mux_stream *s);
/* The connection is over: empties the table. */
void stream_table_clear_locked(struct mux *m);
/* Wakes whoever waits for anything of this stream. */
void stream_wake_locked(struct mux_stream *s);
/* Wakes whoever receives on this stream, or waits for its credit. */
void stream_news_locked(struct mux_stream *s);
/* Tells those that watch a stream and wait for room in `out`. */
void stream_room_locked(struct mux *m);
/* Closes it with an error for both sides, because of what the peer sent. What is queued can still be taken. */
void stream_abort_locked(struct mux_stream *s, const char *why);
/* The text of a request or hello, in a buffer that is wiped afterwards. */
int mux_secret_text(const json_t *msg, size_t max, struct buf *ret);
/* The payload for a WIRE_CLOSE, at most MUX_REASON_MAX bytes; empty when there is no reason or no memory. */
void stream_reason(const struct error *reason, struct buf *ret);

/* mux_recv.c */
/* Takes a frame of the peer for this stream. May free the stream, if nobody holds it. */
void stream_input_locked(struct mux_stream *s, const struct frame *f);
void stream_queue_drop_locked(struct mux_stream *s);
/* Appends the credit frames that are due to `out`. */
void stream_credits_locked(struct mux *m);
