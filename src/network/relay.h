/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Copies between two connected stream sockets, so that their peers notice as little as possible of what is between
 * them: the end of one direction is passed on while the other goes on, a reset is passed on as a reset, and a peer that
 * does not read stops the one that writes. One buffer per direction; it is read into only when it is empty, so no more
 * than that is ever under way here.
 */

#include "base/deadline.h"

/* Bytes of a direction that were read and not written yet. */
#define RELAY_BUFFER (64U * 1024)

/* A connection without traffic is asked for a sign of life after so long, so often, and then counts as dead. */
#define RELAY_KEEPALIVE_IDLE_SECS 60
#define RELAY_KEEPALIVE_EVERY_SECS 15
#define RELAY_KEEPALIVE_TRIES 4

/*
 * Relays on the calling thread until both directions have ended (0), or one side failed (its errno, -ECONNRESET for a
 * reset), or op ended (-ECANCELED, -ETIMEDOUT), or nothing was moved for idle_ms (-ETIMEDOUT; 0: no limit). The
 * sockets stay the caller's, who closes them. After anything but 0 that is a reset for both peers.
 */
int relay_run(int a, int b, const struct op *op, int64_t idle_ms);

/* Has the kernel find out when the peer is gone without a word. For the side that accepts connections, also
 * on its listening socket: they inherit it. */
void relay_keepalive(int fd);
/* Closes a connection with a reset. */
void relay_reset(int fd);
