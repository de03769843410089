/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Which addresses are the internet, for the packet filter (rules.h) and for user networking (user-filter.h) alike. */

#include "network/network.h"

/* Ranges that are never the internet; exceptions are made by the configuration. */
#define RANGES_PRIVATE 11u
extern const struct network_range ranges_private[RANGES_PRIVATE];

bool range_has(const struct network_range *r, uint32_t address);
bool ranges_have(const struct network_range *list, size_t n, uint32_t address);
/* Its length is possible, and no bit behind it is set. */
bool range_is_valid(const struct network_range *r);

/* The last address of a network that a host can have: the one before the broadcast address. User networking has its
 * name server there, out of the way of guests. */
static inline uint32_t range_last_host(uint32_t network, unsigned prefix_len) {
        return (network | (UINT32_MAX >> prefix_len)) - 1;
}
