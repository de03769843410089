/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The way to the host.
 *
 * Two transports, the same above a file descriptor: the virtio-serial port named WIRE_PORT_NAME, and a vsock listener
 * on WIRE_VSOCK_PORT. Both are served if both are there. One connection at a time on each: after the handshake it
 * belongs to a mux until that loses it; a newer vsock connection replaces an older one.
 *
 * The port stays open all the time; a mux gets a duplicate. While no host is connected, read(2) on the port gives 0 and
 * poll(2) says POLLHUP without end, so a poll loop would spin. The port is therefore watched edge-triggered: the kernel
 * wakes the waiters of a port when the host comes or goes and when data arrive, and only then.
 *
 * If the host goes and another comes before the mux has looked, or because the machine goes on from a saved state, the
 * mux meets a handshake where it expects a frame, or in the middle of one (mux_internal.h). That ends the connection,
 * with all that its host had asked for, and the handshake is answered as the beginning of the next one.
 */

#include "guest/agent.h"

#define CHANNEL_HANDSHAKE_MS 10000 /* for a vsock connection to say who it is */

/* What was found; -1: not there. */
struct channels {
        int port_fd;
        int listen_fd;
};
#define CHANNELS_INIT ((struct channels){.port_fd = -1, .listen_fd = -1})

/* Waits for a transport until the deadline. */
int channels_open(struct channels *c, int uevent_fd, const struct op *op, struct error *err);
/* Starts serving; the threads never end. */
int channels_serve(struct channels *c, struct agent *a, struct error *err);

/* Serves one connection after the other on a port that stays open (not blocking), until `other` (may be -1) becomes
 * readable. 0, or why the port is of no use. */
int channel_serve_port(struct agent *a, int port, int other);
/* Serves one connection on fd (owned) from handshake to loss, for as long as it lives or until `other` (may be -1)
 * becomes readable. 0 or why it ended. */
int channel_serve_once(struct agent *a, int fd, int other, const struct op *handshake);
