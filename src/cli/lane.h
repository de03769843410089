/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One direction of the proxy, cut into lines.
 *
 * A lane holds the line at hand until it is complete, so that a peer that dies in mid-line leaves nothing half said at
 * the other side. A line of more than LANE_HOLD bytes goes through in pieces instead: memory stays bounded whatever
 * the length. Lines are scanned for their messages (scan.h) on the way.
 */

#include "base/buf.h"
#include "cli/scan.h"

/* Above the greatest message that the daemon sends (1 MiB), so that only a client's uploads pass in pieces. */
#define LANE_HOLD (2u * 1024u * 1024u)

struct lane_ops {
        /* A message in the line at hand. */
        scan_fn message;
        /* A line or a piece of one, to be passed on; `ends`: with its newline. */
        void (*piece)(void *arg, const char *data, size_t n, bool ends);
};

struct lane {
        struct buf line;
        struct scan scan;
        bool in_line; /* bytes of a line have come that is not complete */
        bool passing; /* ... and some of them were passed on */
};

#define LANE_INIT ((struct lane){.line = BUF_INIT(LANE_HOLD), .scan = {.base = 1}})

void lane_free(struct lane *l);
/* Takes bytes in. -ENOMEM. */
int lane_feed(struct lane *l, const char *data, size_t n, const struct lane_ops *ops, void *arg);
/* The source ended or is another one now: forgets the line at hand. */
void lane_reset(struct lane *l);
