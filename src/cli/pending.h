/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The requests of the client that have no response yet, and where in the stream to the daemon the line of each begins:
 * by that, a request that a dead daemon may have seen is told from one that can go to the next daemon as it is.
 */

#include "base/util.h"

/* Requests that are tracked at a time. One more is passed on all the same, but gets no answer if the daemon dies. */
#define PENDING_MAX 4096u

struct pending_request {
        char *id;       /* raw JSON, owned */
        uint64_t begin; /* offset of its line in the stream */
};

struct pending {
        struct pending_request *v;
        size_t n, cap;
};

void pending_free(struct pending *p);
#define _cleanup_pending_ _cleanup_(pending_free)
void pending_add(struct pending *p, const char *id, uint64_t begin);
bool pending_has(const struct pending *p, const char *id);
/* Forgets a request; an unknown id is ignored. */
void pending_remove(struct pending *p, const char *id);
/* Takes the oldest request that began before `before` out of the table, passing over the one with the id `keep` (may
 * be NULL). Returns its id, owned by the caller, or NULL. */
char *pending_take_before(struct pending *p, uint64_t before, const char *keep);
