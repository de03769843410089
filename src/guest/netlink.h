/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The machine's network card, by rtnetlink(7). */

#include "base/deadline.h"
#include "base/error.h"
#include "guest/args.h"

/* Gives the first card (the lowest index that has a device, so no bridge or tunnel of the workload) the MAC and this
 * IPv4 address and no other, brings it up and sets the default route. Waits for the card until the deadline. Can be
 * repeated, for a copy of a machine that runs on. */
int net_configure(const struct net_args *n, const struct op *op, struct error *err);
