/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Ports of the host that lead into workspaces.
 *
 * One thread waits for all listening sockets and starts a thread for each connection, which calls `serve`: that one
 * connects to the guest and relays. So this module knows nothing of guests, and a slow one holds up nobody else.
 *
 * The connections that a forward has at a time share a cancel token. To cut them, the forward lets go of the token, so
 * that the next connection gets a new one, the token is fired, and whoever cuts waits until they are gone.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "base/str.h"

#define FORWARDS_MAX 1024u
#define FORWARD_CONNECTIONS_MAX 1024u     /* of all forwards together */
#define FORWARD_CONNECTIONS_EACH_MAX 256u /* of one workspace: all its forwards together */
#define FORWARD_BACKLOG 512
#define FORWARD_HOST_PORT_MIN 1024u

struct forwards;

struct forwards_config {
        uint32_t bind; /* IPv4, host byte order */
        /* Serves one connection (non-blocking, fd is the callee's) until it ends or op does, which is when the forward
         * is removed or cut. On a thread of its own; no lock is held. */
        void (*serve)(void *arg, const char *id, uint16_t guest_port, int fd, const struct op *op);
        void *arg;
};

struct forward_info {
        char id[UUID_LEN + 1];
        uint16_t guest_port, host_port;
        unsigned open;           /* connections now */
        uint64_t total, refused; /* since the forward was added; refused: over a limit, or no resources */
};

int forwards_new(const struct forwards_config *cfg, struct forwards **ret, struct error *err);
/* Ends all connections and returns when they are gone. Accepts NULL. */
void forwards_free(struct forwards *f);

/* Listens on host_port, or on one that the kernel chooses (0), for the workspace `id`. */
int forwards_add(struct forwards *f, const char *id, uint16_t guest_port, uint16_t host_port, uint16_t *ret_host_port,
                 struct error *err);

/* These two wait for threads that are in `serve`: hold no lock that it takes. */

/* Stops listening and ends the connections; returns when they are gone. -ENOENT: there is no such forward. */
int forwards_remove(struct forwards *f, uint16_t host_port);
/* Ends the connections of a workspace that are there now, and returns when they are gone. Its ports stay. */
void forwards_cut(struct forwards *f, const char *id);

/* The forwards of a workspace (NULL: all) by host port, as an array to be freed. -ENOMEM. */
int forwards_list(struct forwards *f, const char *id, struct forward_info **ret, size_t *ret_n);
