/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the files that implement agent.h share. */

#include "vm/agent.h"
#include "wire/mux.h"

#define AGENT_TEXT_MAX 4096u /* bytes of an error text of the guest that are shown */

struct agent {
        unsigned refs; /* atomic */
        struct mux *mux;
};

/* Turns the negative errno of a mux call into an error for the user; `doing` completes "... while <doing>". */
int agent_error(int r, const char *doing, struct error *err);
/* An answer that the protocol does not allow: ends this call only. Returns -EPROTO. */
int agent_protocol_error(const char *doing, struct error *detail, struct error *err);

/* Opens a stream for a request (borrowed; NULL: out of memory). */
int agent_request(struct agent *a, json_t *request, const char *doing, const struct op *op, struct mux_stream **ret,
                  struct error *err);
/* The next message, data or end of data. An error message of the guest, a closed stream and a lost connection are
 * errors. */
int agent_next(struct mux_stream *s, const char *doing, const struct op *op, struct mux_event *ret, struct error *err);
/* The next event, which has to be a message of this type; *ret is owned. */
int agent_expect(struct mux_stream *s, const char *type, const char *doing, const struct op *op, json_t **ret,
                 struct error *err);
/* Sends bytes and, when `last`, the end of them. That the guest has closed the stream meanwhile is no error here: its
 * reason comes with agent_next(). */
int agent_send(struct mux_stream *s, const void *data, size_t n, bool last, const char *doing, const struct op *op,
               struct error *err);
/* A number of a message that must be there and not negative. */
int agent_get_count(const json_t *msg, const char *key, uint64_t *ret, struct error *err);
/* Whether a message is of this type. */
bool agent_is(const json_t *msg, const char *type);
