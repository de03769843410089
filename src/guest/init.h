/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What PID 1 does first: file systems of the kernel, limits, loopback. */

#include "base/error.h"
#include "base/util.h"

#define CGROUP_MOUNT "/sys/fs/cgroup"

/* proc, sys, dev, dev/pts, dev/shm, run, cgroup v2. What is mounted already stays. */
int init_mounts(struct error *err);
/* Limits of the agent and settings of the kernel; each for itself is not vital. */
void init_limits(void);
int init_loopback(void);
