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
#include "base/error.h"
#include "vm/agent.h"

#define RESULT_BUDGET (1000u * 1000u) /* bytes of a message for texts; a message has at most 1 MiB */
#define OUTPUT_READ_MIN 4u            /* bytes that a read from an offset asks for at least: one character */

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
        bool cut;        /* a part is missing, marked in the text with the number of bytes */
        uint64_t next;   /* offset of the byte behind those that the text stands for: where to read on */
};
void output_clear(struct output *o);
#define _cleanup_output_ _cleanup_(output_clear)

struct output_form {
        size_t budget;   /* what the text may cost in a record */
        bool strip_ansi; /* without the control sequences of terminals (ansi.h) */
        bool open;       /* more may be written: a character or sequence that is not finished waits for the next read */
};

/*
 * Makes text of what is known of a command's output. 0, -ENOMEM.
 *
 * output_whole(): of the output from its beginning; what is too long loses its middle.
 * output_from(): of what was read from an offset on. What is too long loses its end, and `next` stands before it, so
 * that a reader who goes on from there misses nothing but what the guest itself has dropped. An offset past the end
 * gives nothing, and `next` is the end.
 */
int output_whole(const struct agent_output *c, const struct output_form *form, struct output *ret);
int output_from(const struct agent_output *c, uint64_t offset, const struct output_form *form, struct output *ret);

/* What all of it would cost in a record; an upper bound where sequences are stripped. */
size_t output_cost(const struct agent_output *c);
/* Divides a budget among n texts, none more than its cost: what a short one leaves is shared by the others. */
void output_share(size_t budget, const size_t *costs, size_t n, size_t *ret);

/* Message and hint of an error that stands in a record, cut to what they may cost; NULL when out of memory. */
json_t *output_error(const struct error *e, size_t budget);

/* The last part of a log, from the beginning of a line on. */
int output_from_log(const struct buf *log, size_t budget, struct output *ret);
