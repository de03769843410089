/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How the server, its sessions and their calls hang together.
 *
 * A session is one connection; its reader thread runs session_main() and answers everything that is quick. A call is
 * one running tool on a thread of its own; it keeps its session alive. The server holds the lists of both.
 *
 * Lock order: server->lock, then call->lock, then the lock of a connection. No lock is held while a handler, the core
 * or a client is waited for, nor while a cancel token is fired.
 */

#include <pthread.h>
#include <stdatomic.h>

#include "base/str.h"
#include "mcp/batch.h"
#include "mcp/conn.h"
#include "mcp/registry.h"
#include "mcp/rpc.h"
#include "mcp/server.h"

#define PROGRESS_TEXT_MAX 200u /* bytes of a progress message */
#define PROGRESS_MIN_MS 100    /* between two messages that a handler reports */
#define EOF_GRACE_MS 500       /* for running calls when a client has sent its last message */
#define FLUSH_MS 300           /* for queued answers when a connection ends */

struct session;
struct call;

struct mcp_server {
        struct core *core; /* borrowed */
        struct registry registry;
        pthread_t ticker;

        pthread_mutex_t lock;   /* guards the rest, and the links and counts of sessions and calls */
        pthread_cond_t changed; /* something below changed */
        struct session *sessions;
        size_t n_sessions;
        struct call *calls;
        size_t n_calls;
        bool closing;
};

struct session {
        atomic_uint refs;
        struct mcp_server *server;
        struct conn *conn;
        char owner[UUID_LEN + 1];
        const char *version;           /* of the legacy era, NULL before initialize; reader thread only */
        size_t n_calls;                /* server->lock: in the list */
        size_t n_unanswered;           /* server->lock: whose answer is not yet queued */
        bool closing;                  /* server->lock: no more calls */
        struct session *next, **pprev; /* server->lock */
};

struct call {
        struct session *session; /* a reference */
        const struct tool_entry *entry;
        struct rpc_message message; /* the request, owned */
        const json_t *args;         /* inside message; NULL when absent */
        const json_t *token;        /* progress token inside message, or NULL */
        bool modern;
        struct batch *batch; /* a reference, or NULL */
        struct cancel *cancel;
        int64_t started_ns;

        struct call *next, **pprev; /* server->lock */
        bool cancelled;             /* server->lock: its token has been or is being fired */

        pthread_mutex_t lock; /* guards the rest */
        bool silent;          /* answered or cancelled: nothing more may be sent for it */
        uint64_t beats;
        int64_t last_beat_ns;
        char progress[PROGRESS_TEXT_MAX + 1]; /* what the handler said last, or "" */
};

/* session.c */
void *session_main(void *arg);
void session_unref(struct session *s);
DEFINE_CLEANUP(struct session *, session_unref)
/* Sends an answer, into the batch if there is one. Takes text; NULL (out of memory) ends the connection. */
void session_reply(struct session *s, struct batch *batch, char *text, size_t len);
void session_error(struct session *s, struct batch *batch, const char *id, int code, const char *message, json_t *data);
/* Sends a result (taken); decorated for the modern era. */
void session_result(struct session *s, struct batch *batch, const char *id, json_t *result, bool modern);
/* Adds what every result of the modern era has. */
int decorate_modern(json_t *result);

/* call.c */
/* Starts a tool on a thread of its own; takes the message over. */
void call_start(struct session *s, struct rpc_message *m, const struct tool_entry *entry, bool modern,
                struct batch *batch);
/* Cancels the running call with that id, if there is one. */
void call_cancel(struct session *s, const json_t *id);
/* Cancels all calls of a session and lets no new one begin. */
void calls_end(struct session *s);
/* Waits until all calls of a session are answered. 0, -ETIMEDOUT. */
int calls_wait(struct session *s, deadline_t deadline);
/* Sends the periodic progress of all calls. */
void *ticker_main(void *server);

/* dispatch.c */
/* Checks arguments and access, runs the handler; the result of tools/call, owned. NULL when out of memory. */
json_t *dispatch_run(struct mcp_server *server, const char *owner, const struct tool_entry *entry, const json_t *args,
                     const struct op *op);
/* The result for an error. */
json_t *dispatch_error_result(const struct error *e);
