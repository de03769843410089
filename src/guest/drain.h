/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Pipes that nobody listens to any more.
 *
 * `server &` leaves a process behind that holds the standard output of a command that is over. Closing the reading end
 * would kill it with SIGPIPE at its next line, leaving it full would block it for ever; so one thread reads these
 * pipes and drops what comes, until the last writer is gone.
 */

#include "base/util.h"

#define DRAINS_MAX 1024 /* pipes beyond these are closed: their writers get SIGPIPE */

struct drainer;

int drainer_new(struct drainer **ret);
/* Ends the thread and closes what is left. Accepts NULL. */
void drainer_free(struct drainer *d);
/* Takes over a non-blocking fd; -1 is ignored. */
void drainer_add(struct drainer *d, int fd);
