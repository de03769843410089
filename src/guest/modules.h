/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Kernel modules of the initramfs: /modules/order has a line "<group> <file>" for each, in the order of loading.
 *
 * The disk's driver is loaded at the start, because that is slow (the kernel checks its signature), but gets no device
 * before the root is mounted: until then it knows nothing of the disk, and a memory image fits any.
 */

#include "base/error.h"
#include "base/util.h"

#define MODULES_ORDER_MAX (64UL * 1024)

/* Loads the modules of one group. root_fd: the root folder of the initramfs. A group without modules is no error, nor
 * is a module that is loaded already. A loaded module's file is removed: it lies in memory. */
int modules_load(int root_fd, const char *group, struct error *err);
/* The same without giving the drivers the virtio devices that are there. While it runs, no other driver gets one. Where
 * the bus does not allow that, nothing is loaded. */
int modules_park(int root_fd, const char *group, struct error *err);
/* Gives the drivers that are loaded the virtio devices that have none. */
void modules_attach(void);
