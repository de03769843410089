/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The machine's network card, by rtnetlink(7). */

#include <linux/netlink.h>

#include "base/deadline.h"
#include "base/error.h"
#include "guest/args.h"

/* At the start: brings the first card up without an address, and turns IPv6 off on it. So much less is to be done when
 * the machine, or a copy of it, is given its address. */
void net_prepare(void);
/* Gives the first card (the lowest index that has a device, so no bridge or tunnel of the workload) the MAC and this
 * IPv4 address and no other, brings it up and sets the default route. Waits for the card until the deadline. Can be
 * repeated, for a copy of a machine that runs on: at no moment a packet leaves with an address and a MAC that do not
 * belong together. Connections that are over by it are ended (sockets.h); that this fails is said on the console. */
int net_configure(const struct net_args *n, int initramfs_fd, const struct op *op, struct error *err);
/* The same with a card that is there. -ENODEV: it is not. */
int net_configure_card(unsigned card, const struct net_args *n, int initramfs_fd, struct error *err);

/* Sends a request on a socket of netlink(7), of whatever family, and reads the answers, which come at once. each() sees
 * every message of a dump; without it the kernel says whether it did it. */
int netlink_ask(int fd, struct nlmsghdr *request, void (*each)(const struct nlmsghdr *h, void *arg), void *arg);
