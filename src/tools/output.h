/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Bytes of a guest as text in a result.
 *
 * A result must stay below RESULT_BUDGET bytes as JSON. A record stands in a message twice, as structuredContent and
 * as a JSON text inside a JSON string, where a newline takes 2 + 3 bytes and a control character 6 + 7; plain text
 * stands there once. The cost of a text is therefore counted as the message will have it, and what does not fit is cut.
 */

#include <jansson.h>

#include "base/buf.h"
#include "vm/agent.h"

#define RESULT_BUDGET (1000u * 1000u) /* bytes of a message for texts; a message has at most 1 MiB */

enum text_place {
        TEXT_ONCE,  /* plain text of a content item */
        TEXT_TWICE, /* a string inside a record */
};

/* Bytes that s takes in a message. Invalid bytes count as the U+FFFD that will stand for them. */
size_t text_cost(enum text_place place, const char *s, size_t n);
/* The longest beginning, or end, of s that costs at most budget; cut between characters. */
size_t text_fit_head(enum text_place place, const char *s, size_t n, size_t budget);
size_t text_fit_tail(enum text_place place, const char *s, size_t n, size_t budget);

struct output {
        struct buf text; /* valid UTF-8 without NUL */
        size_t invalid;  /* byte sequences that were replaced */
        bool cut;        /* a part is missing, marked in the text */
};
void output_clear(struct output *o);
#define _cleanup_output_ _cleanup_(output_clear)

/* Makes text of a captured output, at the cost of at most budget in a record. 0, -ENOMEM. */
int output_from_capture(const struct agent_capture *c, size_t budget, struct output *ret);
/* What all of a captured output would cost in a record. */
size_t output_cost(const struct agent_capture *c);
/* The last part of a log, from the beginning of a line on. */
int output_from_log(const struct buf *log, size_t budget, struct output *ret);
