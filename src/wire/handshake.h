/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How the two sides find each other on a channel with an unknown past.
 *
 * The host sends a preamble: 16 bytes of magic and 16 random bytes (the nonce). The guest, which is looking for that
 * magic in whatever arrives, answers with its own magic and the same nonce; the host throws away everything before
 * exactly that answer, which old bytes cannot contain. From there on both speak frames, WIRE_HELLO first.
 *
 * Lost bytes: the host repeats the preamble, with a new nonce each time, after HANDSHAKE_RETRY_MS and then at growing
 * intervals (a guest that needs longer than the interval would otherwise always answer the last but one), but not while
 * the other end has not even read the last try. A guest that is in the middle of an old frame finds a preamble there if
 * nothing follows it for a moment (mux_internal.h). Should it miss that, it would swallow preambles as payload; from
 * the second try on the host therefore first sends WIRE_FRAME_MAX + 16 zero bytes: they complete any frame, and a zero
 * length, which no frame has, then throws the guest's decoder back to looking for the magic.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "base/util.h"

#define HANDSHAKE_LEN 32
#define HANDSHAKE_RETRY_MS 250
#define HANDSHAKE_SKIP_MAX (16u * 1024u * 1024u) /* bytes of garbage the host passes over before it gives up */

/* Host side: until the guest has answered. The fd is non-blocking. No byte behind the answer is read. -EPROTO after
 * HANDSHAKE_SKIP_MAX bytes. */
int handshake_host(int fd, const struct op *op, struct error *err);

/* Whether the last of n bytes are a whole preamble. */
bool handshake_ends(const void *data, size_t n);

/* Guest side, incremental, no I/O: feed bytes; 1 when a preamble is complete and *answer has the bytes to send back;
 * 0: more. *ret_used says how many of the n bytes were taken: the rest are frames already. */
struct handshake_scanner {
        uint8_t window[HANDSHAKE_LEN];
        size_t have;
};
int handshake_scan(struct handshake_scanner *s, const void *data, size_t n, size_t *ret_used,
                   uint8_t answer[HANDSHAKE_LEN]);
