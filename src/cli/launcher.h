/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Starts a daemon in a session of its own, with its log in <state_dir>/daemon.log. The daemon's lock decides who stays
 * when several clients start one at the same moment: the others end at once, and their clients find the winner's
 * socket.
 */

#include "base/error.h"
#include "base/process.h"
#include "daemon/config.h"

/* A daemon.log of this size is renamed to daemon.log.1 before the next start. */
#define DAEMON_LOG_MAX (10 * 1024 * 1024)
/* Lines of the log that tell why a start failed. */
#define DAEMON_LOG_TAIL_LINES 5u
/* How long a start may take until the socket answers. */
#define LAUNCHER_START_MS 10000
/* Pause between attempts to connect meanwhile: doubled from the first to the last value. */
#define LAUNCHER_RETRY_MIN_MS 5
#define LAUNCHER_RETRY_MAX_MS 100

struct launcher {
        pid_t pid;        /* 0: none started, or it has ended and was reaped */
        int pidfd;        /* -1 */
        char *log_path;   /* owned */
        off_t log_offset; /* where the log of this start begins */
};

#define LAUNCHER_INIT ((struct launcher){.pidfd = -1})

/* Lets go of the daemon, which runs on. */
void launcher_clear(struct launcher *l);
int launcher_start(struct launcher *l, const struct config *cfg, struct error *err);
/* Whether the started daemon has ended; reaps it then. */
bool launcher_has_ended(struct launcher *l);
/* Whether a daemon, not necessarily ours, holds the lock: then its socket is about to answer. */
bool launcher_somebody_lives(const struct config *cfg);
/* Sets an error that quotes the last lines the started daemon has logged. */
int launcher_explain(const struct launcher *l, const char *what, struct error *err);
/* The two ways in which a start fails. */
#define LAUNCHER_CANNOT_START "the agentiso daemon cannot be started"
#define LAUNCHER_NO_ANSWER "the agentiso daemon did not answer within 10 seconds"
