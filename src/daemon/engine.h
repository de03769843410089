/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The core with all that it borrows, opened over one state directory under its lock. Used by the daemon, and by
 * `agentiso stop --all` when no daemon runs.
 */

#include "daemon/config.h"
#include "daemon/probe.h"

struct engine {
        int lock;
        struct db *db;
        struct storage *storage;
        struct probe *probe;
        struct network *net;
        struct core *core;
};

#define ENGINE_INIT ((struct engine){.lock = -1})

/* Opens everything but does not recover yet; borrows cfg. On failure nothing is left open. */
int engine_open(struct engine *e, const struct config *cfg, struct error *err);
/* Closes what is open; VMs run on, and their network as long as there are any. */
void engine_close(struct engine *e);
/* Leaves everything as it is because threads still use it: the process ends now, and the next daemon finds all of it as
 * after a kill. */
void engine_abandon(struct engine *e);
#define _cleanup_engine_ _cleanup_(engine_close)
