/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Bounded capture of an output of any length.
 *
 * The first half of the allowance keeps the beginning, the rest is a ring that always holds the newest bytes: what an
 * agent needs of a long output is how it began and how it ended. Memory grows with what arrives and never beyond the
 * allowance; every byte is counted, kept or not.
 */

#include "vm/agent.h"

struct capture {
        struct buf head;  /* .max is its share of the allowance */
        struct buf tail;  /* a ring once it is full; .max is its share */
        size_t tail_next; /* where the next byte goes, once the ring is full: its oldest byte */
        uint64_t total;   /* bytes fed */
};

void capture_init(struct capture *c, size_t max);
void capture_free(struct capture *c);
#define _cleanup_capture_ _cleanup_(capture_free)

/* Takes n more bytes. 0 or -ENOMEM. */
int capture_feed(struct capture *c, const void *data, size_t n);
/* Hands over what was captured, the tail in its right order, and leaves the capture empty. */
void capture_take(struct capture *c, struct agent_capture *ret);
