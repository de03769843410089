/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Kernel modules of the initramfs: /modules/order has a line "<group> <file>" for each, in the order of loading. A
 * group is loaded when it is needed: `disk` only when the root is mounted, so that a memory image taken before fits any
 * disk.
 */

#include "base/error.h"
#include "base/util.h"

#define MODULES_ORDER_MAX (64UL * 1024)

/* Loads the modules of one group. root_fd: the root folder of the initramfs. A group without modules is no error, nor
 * is a module that is loaded already. A loaded module's file is removed: it lies in memory. */
int modules_load(int root_fd, const char *group, struct error *err);
