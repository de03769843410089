/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * User networking: the way out for machines where no network namespace can be made (network.h, NETWORK_USER).
 *
 * A small process for each machine, `agentiso netns user`, has the other end of the socket that QEMU's `-netdev stream`
 * speaks on. Each frame of the guest passes a filter (user-filter.h), and what passes goes to libslirp, which makes
 * ordinary sockets of the host out of it. There are no other workspaces on this network, and nobody reaches the guest.
 *
 * The process has no privileges, outlives the daemon, and ends with QEMU: by the end of the socket. It begins with
 * everything off. Any daemon of the same user says what the machine may do, over a socket in the machine's folder. What
 * is taken away is gone when usernet_set() returns: connections that run are cut, their sockets closed.
 *
 * If the process crashes, QEMU and its guest go on without a network until the machine is started again: QEMU cannot be
 * given another one. usernet_set() then says so.
 */

#include "network/network.h"

#define USERNET_SOCKET "net.sock"
#define USERNET_LOG "net.log"

struct usernet_config {
        const char *program; /* agentiso itself */
        const char *dir;     /* of the machine, exists; the socket and the log are made in it */
        struct network_range network;
        uint32_t address; /* of the guest */
};

/* Starts the process. *ret_qemu_fd: QEMU's end. It runs until all copies of that are closed. */
int usernet_start(const struct usernet_config *cfg, int *ret_qemu_fd, struct error *err);
/* What the machine with this folder may do from now on. Nothing is always granted, also when the process has ended. */
int usernet_set(const char *dir, bool internet, const struct network_range *exceptions, size_t n, const struct op *op,
                struct error *err);
