/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the workspaces may do as the contents of the packet filter's sets, and the way from some contents to others.
 *
 * Only the difference is written, so a change costs the same however many workspaces there are, and what stays allowed
 * is never out of a set, not even for a moment.
 */

#include "base/buf.h"
#include "network/network.h"

enum policy_set {
        POLICY_INTERNET,
        POLICY_INTER_VM,
        POLICY_OPEN_PORTS,
        POLICY_HOST,
        _POLICY_SET_MAX,
};

struct policy_sets {
        /* Sorted, each once. An element: the address, and the port in the lower 16 bits. */
        uint64_t *elements[_POLICY_SET_MAX];
        size_t n[_POLICY_SET_MAX];
};

/* host: the host's own addresses, which nobody may reach. */
int policy_sets_make(const struct network_policy *list, size_t n, const uint32_t *host, size_t n_host,
                     struct policy_sets *ret);
void policy_sets_clear(struct policy_sets *s);
#define _cleanup_policy_sets_ _cleanup_(policy_sets_clear)

/* Hands texts to load(), each a transaction of at most RULES_ELEMENTS_MAX elements: first what goes, then what comes.
 * from == NULL: nobody knows what the sets have, so they are emptied in the first transaction. Ends with the first
 * failure of load(). */
int policy_sets_change(const struct policy_sets *from, const struct policy_sets *to,
                       int (*load)(const struct buf *text, void *arg), void *arg);
