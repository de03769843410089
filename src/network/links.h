/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The bridge, the taps and what the kernel knows of them, by rtnetlink(7), in the network namespace of the caller.
 *
 * Nothing is learned from packets: which port has a card's MAC is a static entry of the bridge, which MAC has an
 * address a permanent neighbour. A port is isolated and nothing is flooded to it, so a frame for an unknown MAC goes
 * nowhere.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "network/card.h"

struct netlink;

struct links_gateway {
        uint32_t address; /* IPv4, host byte order; its card_mac() is the bridge's MAC */
        unsigned prefix_len;
};

/* Settings of the namespace: forwarding on; redirects and IPv6 off, and connections that are seen from their beginning
 * only, as far as /proc/sys can be written. */
int links_settings(struct error *err);
/* Makes the bridge with the gateway's address, and the loopback interface, and puts them up; what has no other route
 * goes to the latter, by the rules, which refuse it. Changes nothing of a bridge that is there, and fails when that one
 * has another address (-EEXIST, conflict). */
int links_bridge(struct netlink *nl, const struct links_gateway *gateway, const struct op *op, struct error *err);

/* A new tap for a card, with its neighbour, on no bridge, and down until it is on one: its frames go nowhere. Lives as
 * long as a copy of its descriptor is open. -EBUSY: there is one that is in use. */
int links_tap(struct netlink *nl, const struct card *card, const struct op *op, int *ret_fd, struct error *err);
/* Puts the card on the bridge, and up, and the one of the other slot down and off it. -ENODEV: there is no such tap. */
int links_attach(struct netlink *nl, const struct card *card, const struct op *op, struct error *err);

/* Waits until there is a link of this name, up and running, with an IPv4 address. */
int links_wait(struct netlink *nl, const char *name, const struct op *op);
