/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The answers to one JSON-RPC batch (2025-03-26 only). Each request of the batch that is not yet answered holds a
 * reference; the last one sends all answers as one array. An array that would grow over RPC_MESSAGE_MAX goes out in
 * pieces: clients are killed by lines that are too long.
 */

#include "mcp/conn.h"

struct batch;

struct batch *batch_new(struct conn *conn); /* NULL when out of memory */
struct batch *batch_ref(struct batch *b);   /* accepts NULL */
void batch_unref(struct batch *b);          /* accepts NULL */
DEFINE_CLEANUP(struct batch *, batch_unref)
#define _cleanup_batch_ _cleanup_(batch_unrefp)

/* Takes text (malloc'ed). */
void batch_add(struct batch *b, char *text, size_t len);
