/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Reads along in a stream of JSON-RPC lines without keeping them.
 *
 * A proxy must know which requests are open, but a message can have 16 MiB. The scanner sees the bytes as they pass,
 * in pieces of any size, and remembers only what it needs of each message: the raw text of "id" and "method", and of
 * "params"."requestId". It is no validator: bytes that are no JSON give no message or a useless one, never an error;
 * the daemon judges them. A batch (an array of messages) gives one message for each of its objects. A key that is
 * spelled with escapes is not recognised.
 */

#include "base/util.h"

/* Bytes of a raw value that is kept, with its quotes; a longer one counts as absent. */
#define SCAN_VALUE_MAX 256u

/* Raw JSON texts, NUL-terminated, in the exact spelling of the sender; empty when absent. */
struct scan_message {
        char id[SCAN_VALUE_MAX + 1]; /* a string or an integer */
        char method[SCAN_VALUE_MAX + 1];
        char request_id[SCAN_VALUE_MAX + 1]; /* of params: what notifications/cancelled is about */
};

typedef void (*scan_fn)(void *arg, const struct scan_message *m);

struct scan {
        unsigned depth;
        unsigned base; /* depth of the members of a message: 1, or 2 inside a batch */
        bool in_string, escaped, expect_key, in_params;
        char key[16]; /* of the member at hand, without quotes; empty when longer */
        size_t key_len;
        char *value; /* where the value at hand goes: a field of message, or NULL */
        size_t value_len;
        bool reading_key;
        struct scan_message message;
};

/* Begins a new line. */
void scan_reset(struct scan *s);
/* Feeds bytes of the line at hand; fn runs at the end of each message in it. */
void scan_feed(struct scan *s, const char *data, size_t n, scan_fn fn, void *arg);

static inline bool scan_is_request(const struct scan_message *m) {
        return m->id[0] && m->method[0];
}
static inline bool scan_is_response(const struct scan_message *m) {
        return m->id[0] && !m->method[0];
}
