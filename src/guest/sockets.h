/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Ends connections of the workload that are over, by sock_diag(7) and its SOCK_DESTROY: their programs see ECONNABORTED
 * at once, where they would wait for an answer for minutes. TCP, and UDP sockets that are connected.
 *
 * Sockets that listen stay, and so do connections within the machine, over its loopback. Those of containers with a
 * network namespace of their own are not seen.
 *
 * The kernel's modules for that are loaded only when there is something to end, and stay.
 */

#include <netinet/in.h>

#include "base/error.h"

#define SOCKETS_ENDED_MAX 65536u /* at once */

/* Which ones: those with a local address of the list, or all. */
struct sockets_over {
        bool all;
        const struct in_addr *local;
        size_t n_local;
};

/* initramfs_fd: where the modules are, or -1. *ret_ended: how many were asked to end. -EOPNOTSUPP: this kernel cannot.
 */
int sockets_end(const struct sockets_over *over, int initramfs_fd, unsigned *ret_ended, struct error *err);
