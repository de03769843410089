/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The daemon's life: state directory and lock, store, core, socket, then a loop that accepts clients until a signal
 * ends it. Its end touches no workspace: the next daemon finds them all (workspace.h). Machines of the pool, which are
 * nobody's, end with it.
 */

#include "daemon/config.h"

#define DAEMON_BACKLOG 128
/* Limits of finishing what a crash left half done, and of ending the calls of all clients. */
#define DAEMON_RECOVER_MS 120000
#define DAEMON_CLOSE_MS 5000

/* Runs until SIGTERM, SIGINT or SIGHUP. Call before any thread is started: it blocks these signals for all. */
int daemon_run(const struct config *cfg, struct error *err);
