/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The agent's threads run before the workload, so that a machine whose CPUs are all busy still answers. Threads inherit
 * it from main(). Those that move what commands print have the priority of the commands: printing without end must not
 * become a way to keep the others from running.
 */

#include <sys/resource.h>

#define PRIORITY_AGENT (-10) /* nice values, see setpriority(2) */
#define PRIORITY_NORMAL 0

/* Of the calling thread alone. Async-signal-safe. Without the right to, it stays as it is. */
static inline void priority_set(int nice) {
        (void) setpriority(PRIO_PROCESS, 0, nice);
}
