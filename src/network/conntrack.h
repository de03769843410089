/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The connections that the kernel follows in this network namespace. */

#include "network/netlink.h"

struct conntrack {
        struct netlink dumper, deleter; /* two: entries are deleted in the middle of a dump */
        int raw;                        /* sends the resets; needs CAP_NET_RAW */
};

int conntrack_open(struct conntrack *ret);
void conntrack_close(struct conntrack *c);
#define _cleanup_conntrack_ _cleanup_(conntrack_close)

/* Forgets all connections in which an IPv4 address (host byte order) has a part, before or after a translation.
 *
 * A TCP connection whose source was translated has its other end in the uplink's process, which knows nothing of this
 * and would give it to whoever is translated to the same port next: it is told with a reset. Without an uplink there is
 * nobody to tell. */
int conntrack_forget(struct conntrack *c, uint32_t address, const struct op *op);
