/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Waiting for a device without asking again and again: the kernel tells of each on a netlink socket. */

#include "base/deadline.h"
#include "base/util.h"

/* Open it before what makes the device appear, so that nothing is missed. An fd or a negative errno. */
int uevent_open(void);
/* Waits until there(arg) is true; it is asked at once and after each event. 0, -ETIMEDOUT, -ECANCELED. */
int uevent_wait(int fd, bool (*there)(void *arg), void *arg, const struct op *op);
