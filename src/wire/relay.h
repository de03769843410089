/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A stream and a connected socket, each with what comes from the other (WIRE_REQ_RELAY): the same on both sides.
 *
 * One thread moves both directions and waits in one poll(). It reads from the socket only what the stream has credit
 * for, and takes from the stream only when the socket has taken all that came before. So it never keeps more than one
 * piece of each direction, whoever is slow stops whoever sends, and no other stream notices.
 *
 * The end of one direction is passed on as such, as EOF and as shutdown(2); the other one goes on. When a side breaks,
 * so does the other: the stream by mux_close() with a reason, which is the caller's to give, the socket by a reset.
 */

#include "wire/mux.h"

/* What comes from the socket is sent on from_fd; what comes on to_fd is written to the socket, which stays the
 * caller's. 0: both directions have ended; 1: one side has ended its direction, and then closed, so that it takes no
 * more of the other one. -ECONNRESET: the socket broke; -EPIPE: the peer closed the stream before its end, or for a
 * reason, or is lost (-ENOTCONN); -EPROTO: it sent what does not belong into a relay; -ECANCELED, -ETIMEDOUT: of op.
 * After these, closing the socket resets its connection, unless all that was due to it was written. */
int relay_stream(struct mux_stream *s, int fd, enum wire_channel to_fd, enum wire_channel from_fd, const struct op *op);
