/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The machine's network card, by rtnetlink(7). */

#include "base/deadline.h"
#include "base/error.h"
#include "guest/args.h"

/* At the start: brings the first card up without an address, and turns IPv6 off on it. So much less is to be done when
 * the machine, or a copy of it, is given its address. */
void net_prepare(void);
/* Gives the first card (the lowest index that has a device, so no bridge or tunnel of the workload) the MAC and this
 * IPv4 address and no other, brings it up and sets the default route. Waits for the card until the deadline. Can be
 * repeated, for a copy of a machine that runs on. */
int net_configure(const struct net_args *n, const struct op *op, struct error *err);
