/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Killing everything that a command started where there is no cgroup for it: its process group, its session, and the
 * descendants of those, found in /proc. A process that left the session and lost its parent is not found; that is what
 * the cgroup is for.
 */

#include "guest/reap.h"

/* `leader` leads the session. Kills in rounds until a round finds nobody. 0 or -ETIMEDOUT. *ret_processes (may be
 * NULL): how many were found at first. */
int tree_kill(struct child *leader, deadline_t deadline, size_t *ret_processes);
