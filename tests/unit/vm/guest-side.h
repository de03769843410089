/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The far end of an agent's channel, in this process: a guest that the test plays. */

#include <jansson.h>

#include "wire/mux.h"

/* What a played guest does with a stream; on a thread of its own. The stream is let go afterwards. */
typedef void (*guest_play)(struct mux_stream *s, const json_t *request);

struct guest_side;

/* What it makes of the host's hello (`theirs`) and puts into its own. */
typedef void (*guest_greet)(json_t *theirs, json_t *ours);

/* Answers the handshake on fd (taken) and serves it until guest_side_stop(). */
struct guest_side *guest_side_start(int fd, guest_play play);
/* The same; its hello waits for the host's. */
struct guest_side *guest_side_start_greeting(int fd, guest_play play, guest_greet greet);
/* The same with callbacks for what the host opens, instead of a play. */
struct guest_side *guest_side_start_with(int fd, const struct mux_callbacks *cb);
/* Breaks the connection. */
void guest_side_hang_up(struct guest_side *g);
void guest_side_stop(struct guest_side *g);
