/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* A small MCP client for the commands that ask the daemon something: one connection, one call at a time. */

#include <jansson.h>

#include "base/deadline.h"
#include "base/error.h"
#include "daemon/config.h"

/* Bytes of one message from the daemon. */
#define CLIENT_LINE_MAX (16u * 1024u * 1024u)
/* Limit of a command's whole conversation. */
#define CLIENT_MS 30000

struct client;

/* Connects and initializes. -ENOENT or -ECONNREFUSED: no daemon runs (not_running). */
int client_open(const struct config *cfg, const struct op *op, struct client **ret, struct error *err);
/* The same, but when no daemon runs one is started, which stays. */
int client_open_or_start(const struct config *cfg, const struct op *op, struct client **ret, struct error *err);
void client_close(struct client *c); /* accepts NULL */
DEFINE_CLEANUP(struct client *, client_close)
#define _cleanup_client_ _cleanup_(client_closep)

/* Whether client_open() failed because no daemon runs. */
static inline bool client_no_daemon(int r) {
        return r == -ENOENT || r == -ECONNREFUSED;
}

/* Calls a tool; takes over args. *ret is its structuredContent, owned. A failed tool gives its code and text. The
 * progress that the daemon reports is passed on to op's. */
int client_call(struct client *c, const char *tool, json_t *args, const struct op *op, json_t **ret, struct error *err);
/* The same for one of the methods of tools/host.c. unsupported: a daemon from before an upgrade does not know it. */
int client_ask(struct client *c, const char *method, json_t *args, const struct op *op, json_t **ret,
               struct error *err);
/* The process at the other end. */
int client_daemon_pid(const struct config *cfg, pid_t *ret);
