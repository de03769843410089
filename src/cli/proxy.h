/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The proxy between a client's stdio and the daemon: one thread, one poll loop, nothing that waits elsewhere.
 *
 *     client --in--> lane up --> to_daemon --> socket
 *     client <--out-- to_client <-- lane down <-- socket
 *
 * Reading stops while the queue behind it is full, so memory is bounded both ways. The link to the daemon is down,
 * starting or up. It is brought up at the start and, after a loss, by the next message of the client (so that
 * `agentiso stop` is not undone by an idle client). A daemon that dies is survived:
 *
 * - requests of which it may have seen a byte are answered with an error, as nobody knows what came of them;
 * - lines of which it has seen nothing wait in to_daemon for the next daemon;
 * - the next daemon first gets the client's initialize and notifications/initialized again, and the answer to a
 *   repeated initialize is swallowed.
 *
 * Offsets (`queued`, `written`) count the bytes of the client's stream to the daemon since the start.
 */

#include "base/buf.h"
#include "base/deadline.h"
#include "cli/lane.h"
#include "cli/launcher.h"
#include "cli/pending.h"

/* Bytes read at a time, and how full a queue may be before reading behind it stops. */
#define PROXY_CHUNK (64u * 1024u)
/* Limit of a queue: what one read can add to a queue that is not full (a held line), and all error answers at once. */
#define PROXY_QUEUE_MAX (8u * 1024u * 1024u)
/* After a failed start, requests are refused at once for so long, not by one more start each. */
#define PROXY_PAUSE_MS 1000
/* After the end of the input, how long open requests may take to be answered. */
#define PROXY_DRAIN_MS 800
/* Daemons lost in a row without an answer from any, after which it is given up until the next message. */
#define PROXY_LOSSES_MAX 3u

enum link_state { LINK_DOWN, LINK_STARTING, LINK_UP };

/* Bytes on their way out: a buffer whose head is consumed without moving the rest each time. */
struct queue {
        struct buf buf;
        size_t head;
};

struct proxy {
        const char *config_path;
        struct config config;

        int in, out, signals; /* borrowed */
        bool out_is_pipe;
        bool ending;      /* no more input; finish until end_by */
        bool left;        /* the client does not read any more, or a second signal came */
        bool half_closed; /* the daemon knows that nothing more comes */
        deadline_t end_by;

        enum link_state link;
        int daemon; /* the socket; -1 unless LINK_UP */
        struct launcher launcher;
        deadline_t start_by, retry_at, pause_until;
        int64_t retry_ms;
        unsigned losses;
        struct error why_down; /* of the last failed start */

        struct lane up, down;
        struct queue replay, to_daemon, to_client;
        uint64_t queued, written;
        uint64_t line_begin; /* offset of the client's line at hand */
        bool mid_line;       /* the last byte written to this daemon was not the end of a line */
        bool drop_line;      /* the rest of the client's line at hand goes nowhere */
        bool line_is_initialize, line_is_initialized;
        bool swallow_line; /* the daemon's line at hand answers a repeated initialize */
        struct pending pending;
        char *initialize, *initialized; /* the client's own lines, owned; NULL: not seen */
        char initialize_id[SCAN_VALUE_MAX + 1];
        uint64_t initialize_begin, initialized_begin;
        bool swallow_initialize; /* the answer to the repeated initialize is still to come */
};

/* Runs until the client leaves: end of input, a signal from the signalfd, or an output that nobody reads. */
void proxy_run(struct proxy *p);
void proxy_init(struct proxy *p, const char *config_path, int in, int out, int signals);
void proxy_clear(struct proxy *p);

/* link.c: the connection to the daemon. */

/* Brings the link up, or begins to. Call when it is down and there is something to send. */
void link_begin(struct proxy *p);
/* Goes on with a start when its time has come. */
void link_tick(struct proxy *p);
/* The daemon has gone: answers what it may have seen and keeps the rest for the next one. */
void link_lost(struct proxy *p);

/* Answers a request whose line was dropped in part. */
void link_refuse_dropped(struct proxy *p, const char *id);

/* Queues. */
size_t queue_len(const struct queue *q);
const char *queue_data(const struct queue *q);
int queue_append(struct queue *q, const void *data, size_t n);
void queue_consume(struct queue *q, size_t n);
void queue_clear(struct queue *q);
