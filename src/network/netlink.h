/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Requests to the kernel over netlink(7), each with its answers, under an op. */

#include <libmnl/libmnl.h>

#include "base/deadline.h"

struct netlink {
        struct mnl_socket *socket;
        unsigned seq; /* of the newest request */
};

/* Loops over attributes: libmnl's own macros convert a long to an int. */
#define NETLINK_BYTES_TO(end, a) ((int) ((const char *) (end) - (const char *) (a)))
#define netlink_for_each(a, h, offset)                      \
        for ((a) = mnl_nlmsg_get_payload_offset(h, offset); \
             mnl_attr_ok(a, NETLINK_BYTES_TO(mnl_nlmsg_get_payload_tail(h), a)); (a) = mnl_attr_next(a))
#define netlink_for_each_nested(a, nest)                                                                           \
        for ((a) = mnl_attr_get_payload(nest); mnl_attr_ok(a, NETLINK_BYTES_TO(nest, a) + mnl_attr_get_len(nest)); \
             (a) = mnl_attr_next(a))

/* bus: NETLINK_ROUTE and so on. groups: multicast groups to hear of, a mask. */
int netlink_open(int bus, unsigned groups, struct netlink *ret);
void netlink_close(struct netlink *nl);
#define _cleanup_netlink_ _cleanup_(netlink_close)

/* Sends a request and waits for the kernel's word on it: 0, or its negative errno. */
int netlink_ask(struct netlink *nl, struct nlmsghdr *request, const struct op *op);
/* Asks for a dump. each() sees every message, some of them twice when what is dumped changes meanwhile; after a
 * negative return it sees no more, and that is returned. */
typedef int (*netlink_each_t)(const struct nlmsghdr *message, void *arg);
int netlink_dump(struct netlink *nl, struct nlmsghdr *request, netlink_each_t each, void *arg, const struct op *op);
/* Waits for messages of the groups and throws away those that are there. */
int netlink_wait(struct netlink *nl, const struct op *op);
