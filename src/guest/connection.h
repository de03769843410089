/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One connection of a host, and whether that host may give orders.
 *
 * A machine that goes on from a saved state goes on with the agent of the machine that was saved. The secret that its
 * host gives it then (WIRE_REQ_CONFIGURE) is what tells the two apart: a host that was connected to the other one, or
 * takes this machine for another, has not got it, and is refused whatever it asks but WIRE_REQ_INFO. The host says what
 * it has in its hello. The connection on which the secret was given has it, too.
 */

#include <stdatomic.h>

#include "guest/agent.h"

struct connection {
        struct agent *agent;
        atomic_uint refs;
        char session[WIRE_SESSION_LEN]; /* what its host has; zeros: nothing. Guarded by agent.lock */
        bool lost;                      /* guarded by freezer.lock */
};

/* With one reference; NULL when out of memory. */
struct connection *connection_new(struct agent *a);
struct connection *connection_ref(struct connection *c);
void connection_unref(struct connection *c); /* accepts NULL */
DEFINE_CLEANUP(struct connection *, connection_unref)
#define _cleanup_connection_ _cleanup_(connection_unrefp)

/* What its mux calls. It must outlive that. */
struct mux_callbacks connection_callbacks(struct connection *c);
bool connection_trusted(struct connection *c);
/* Gives the agent another secret (WIRE_SESSION_LEN characters), which this connection has. */
void connection_set_session(struct connection *c, const char *session);
