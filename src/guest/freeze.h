/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Freezing the file systems, so that the disk can be copied as it is (FIFREEZE).
 *
 * All that the agent sees on block devices are frozen, if they allow it, the last that was mounted first: one that lies
 * in a file of another must be written back into that. Whoever writes to them waits until they thaw. The agent must
 * not: while they are frozen it writes to none of them, except for requests that ask for it, each on its own thread.
 *
 * A machine must never stay frozen. A thread thaws it when the time is over or the connection is lost on which the host
 * asked for it; WIRE_REQ_CONFIGURE thaws whatever a saved state has frozen.
 */

#include "base/error.h"
#include "base/thread.h"

#define FREEZER_MAX 64 /* file systems that are frozen */

struct connection;

enum freezer_state {
        FREEZER_IDLE,
        FREEZER_AT_WORK, /* freezing or thawing */
        FREEZER_FROZEN,
};

struct freezer {
        pthread_mutex_t lock; /* guards what follows, and connection.lost */
        pthread_cond_t changed;
        enum freezer_state state;
        bool watched;             /* its thread runs */
        struct connection *owner; /* a reference, while it is not idle */
        deadline_t until;         /* never, before they are frozen */
        int fds[FREEZER_MAX];     /* one on each, in the order of freezing */
        size_t n;
};

void freezer_init(struct freezer *f);
/* Thaws; waits for the thread. */
void freezer_free(struct freezer *f);
/* Writes back and freezes. *ret_frozen: whether the root file system is frozen; else nothing is. -EEXIST: they are
 * frozen already. */
int freezer_freeze(struct freezer *f, struct connection *owner, int64_t max_ms, bool *ret_frozen, struct error *err);
/* -ENOENT: nothing was frozen, or something that was had thawed before. */
int freezer_thaw(struct freezer *f);
/* A connection is lost. Does not wait. */
void freezer_lost(struct freezer *f, struct connection *c);
