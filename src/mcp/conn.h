/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Lines over a stream socket: one JSON-RPC message a line, in both directions.
 *
 * Reading is raw read(2) into a buffer of our own, on the thread that calls conn_read(). A line may end in \n or \r\n,
 * blank lines are passed over, the last line needs no \n. A line longer than MCP_LINE_MAX is reported once, when it
 * crosses the limit, and thrown away up to the next newline.
 *
 * Writing never makes the caller wait: a message goes out at once when the socket takes it, otherwise into a queue that
 * a writer thread empties. What a client that does not read can make us keep is bounded in three ways: progress is
 * dropped first, both what is queued and what is new; reading stops while more than CONN_QUEUE_MAX bytes wait, so no
 * new request begins; and a client that takes nothing for MCP_WRITE_STALL_MS loses the connection. Responses are never
 * dropped while the connection lives.
 *
 * The lock guards the queue and the state of the connection. Nobody waits for the socket while holding it.
 */

#include "base/deadline.h"
#include "base/error.h"

#define CONN_QUEUE_MAX (4u * 1024u * 1024u) /* queued bytes above which no more is read */
#define CONN_PROGRESS_MAX (64u * 1024u)     /* queued bytes above which progress is dropped */

struct conn;

enum conn_kind { CONN_RESPONSE, CONN_PROGRESS };

struct conn_handler {
        /* One line without its end; text[len] is NUL and the text may be changed in place. */
        void (*line)(void *arg, char *text, size_t len);
        /* A line went past MCP_LINE_MAX. */
        void (*oversized)(void *arg);
        void *arg;
};

/* Takes the socket over, also on failure, and starts the writer thread. */
int conn_new(int fd, struct conn **ret, struct error *err);
struct conn *conn_ref(struct conn *c);
/* The last reference frees it; conn_close() must have come before. Accepts NULL. */
void conn_unref(struct conn *c);
DEFINE_CLEANUP(struct conn *, conn_unref)
#define _cleanup_conn_ _cleanup_(conn_unrefp)

/* Reads until the end. 0: the client will send no more but may still read; -ECONNRESET: it is gone altogether;
 * -ECANCELED: conn_stop(). */
int conn_read(struct conn *c, const struct conn_handler *h);

/* Queues one message (a newline is added); takes text (malloc'ed, with a NUL at len), also on failure. Never blocks.
 * -ENOTCONN when the connection is over, -ENOBUFS for dropped progress. */
int conn_send(struct conn *c, enum conn_kind kind, char *text, size_t len);

/* Makes conn_read() return and everything after it fail. From any thread. */
void conn_stop(struct conn *c);
/* Writes out what is queued, for as long as op allows, then ends the connection and joins the writer. Once. */
void conn_close(struct conn *c, const struct op *op);
