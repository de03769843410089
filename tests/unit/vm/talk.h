/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* A host's agent client that is connected to a played guest, and what such a guest says. One pair at a time. */

#include "guest-side.h"
#include "vm/agent.h"

extern struct agent *agent;

/* An operation with all the time that a working answer can need. */
const struct op *patience(void);

bool begin(guest_play play);
void end(void);
void hang_up(void);
/* The guest's end of the channel, to write to beside its multiplexer. */
int guest_raw_fd(void);

/* Stops this process for `ms`, and puts bytes into the channel meanwhile. False when they did not all fit. */
bool stopped_for(int64_t ms, const struct buf *late);

void tell(struct mux_stream *s, const char *text);
void send_text(struct mux_stream *s, enum wire_channel ch, const char *text);
void until_closed(struct mux_stream *s);

/* What play_script() says, each in a line: a message; "!text" is data on OUT, "?text" on ERR, "+text" a line on NEWS,
 * "." the end of both, "=text" data on IN, which is not the guest's to send. */
extern const char *script;
void play_script(struct mux_stream *s, const json_t *request);
/* The same, after it has put a copy of the request into seen_request() and of what came on IN into seen_input(), until
 * the end of IN. */
void play_listener(struct mux_stream *s, const json_t *request);
const json_t *seen_request(void);
const struct buf *seen_input(void);
bool seen_input_end(void);
