/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the files that implement agent.h share. */

#include "vm/agent.h"
#include "wire/mux.h"

#define AGENT_TEXT_MAX 4096u /* bytes of an error text of the guest that are shown */
/* The guest keeps the times that a request sets and reports in time; only if it does not do so within this time after
 * them (killing thousands of processes takes a while on a loaded host) does our own deadline end the call. */
#define AGENT_MARGIN_MS 10000

struct agent {
        unsigned refs;   /* atomic */
        unsigned relays; /* atomic; under way */
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
/* The last message was taken: now the guest has to close the stream. Anything else that it still sends is a protocol
 * error. A connection that is lost behind the last message is as good as closed. */
int agent_end(struct mux_stream *s, const char *doing, const struct op *op, struct error *err);
/* One question (owned; NULL: out of memory) and its "ok", which is the last message. *ret is owned; ret may be NULL. */
int agent_ask(struct agent *a, json_t *request, const char *doing, const struct op *op, json_t **ret,
              struct error *err);
/* Sends bytes and, when `last`, the end of them. That the guest has closed the stream meanwhile is no error here: its
 * reason comes with agent_next(). */
int agent_send(struct mux_stream *s, const void *data, size_t n, bool last, const char *doing, const struct op *op,
               struct error *err);
/* A number of a message that must be there and not negative. */
int agent_get_count(const json_t *msg, const char *key, uint64_t *ret, struct error *err);
/* Whether a message is of this type. */
bool agent_is(const json_t *msg, const char *type);
/* Makes a text of the guest fit for people: of at most `max` bytes, and harmless on a terminal. NULL is allowed. */
void agent_tame(char *text, size_t max);

/* agent_exec.c: the parts of a request that say what to run. 0 or -ENOMEM. */
int agent_put_command(json_t *request, const struct agent_exec_args *args);

/* agent_output.c: output of commands, see the end of the requests in wire.h. */

/* Bytes as they came; the message behind them says how they belong together. */
struct agent_received {
        struct buf out, err; /* .max: what was asked for */
};
void agent_received_free(struct agent_received *r);
#define _cleanup_received_ _cleanup_(agent_received_free)

/* Takes output until a message comes that is no progress, which is handed out (owned). `progress`: lines of progress
 * are expected, and go to op's progress. */
int agent_receive(struct mux_stream *s, const char *doing, bool progress, const struct op *op,
                  struct agent_received *received, json_t **ret, struct error *err);

/* Where reading began, in bytes, or AGENT_WHOLE: all, of which only the middle may be missing. */
#define AGENT_WHOLE (-1)
/* Fills out, err and duration_ms of a result, moving the bytes there. `final`: nothing can be written any more, so a
 * whole output has to be complete. The error is a detail for agent_protocol_error(), or -ENOMEM. */
int agent_take_outputs(struct agent_received *received, const json_t *msg, int64_t out_offset, int64_t err_offset,
                       bool final, struct agent_exec_result *ret, struct error *err);
/* Fills exit_code, signal, timed_out and leftover of a result from a message about a command that has ended. The error
 * is a detail. */
int agent_parse_end(const json_t *msg, struct agent_exec_result *ret, struct error *err);
/* A job's number. The error is a detail. */
int agent_get_job_id(const json_t *msg, uint64_t *ret, struct error *err);
