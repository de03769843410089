/* SPDX-License-Identifier: Apache-2.0 */
#include "network/ranges.h"

#define QUAD(a, b, c, d) ((uint32_t) (a) << 24 | (uint32_t) (b) << 16 | (uint32_t) (c) << 8 | (uint32_t) (d))

/*
 * RFC 6890 (special purpose), RFC 1918, RFC 6598, RFC 3927, multicast and what is reserved. 198.18.0.0/15 (benchmarks)
 * and 192.88.99.0/24 (6to4) are of that list, too.
 */
const struct network_range ranges_private[RANGES_PRIVATE] = {
        {QUAD(0, 0, 0, 0), 8},      {QUAD(10, 0, 0, 0), 8},    {QUAD(100, 64, 0, 0), 10}, {QUAD(127, 0, 0, 0), 8},
        {QUAD(169, 254, 0, 0), 16}, {QUAD(172, 16, 0, 0), 12}, {QUAD(192, 0, 0, 0), 24},  {QUAD(192, 88, 99, 0), 24},
        {QUAD(192, 168, 0, 0), 16}, {QUAD(198, 18, 0, 0), 15}, {QUAD(224, 0, 0, 0), 3},
};

static uint32_t mask_of(unsigned prefix_len) {
        return prefix_len == 0 ? 0 : UINT32_MAX << (32 - prefix_len);
}

bool range_has(const struct network_range *r, uint32_t address) {
        return (address & mask_of(r->prefix_len)) == r->network;
}

bool ranges_have(const struct network_range *list, size_t n, uint32_t address) {
        for (size_t i = 0; i < n; i++)
                if (range_has(&list[i], address))
                        return true;
        return false;
}

bool range_is_valid(const struct network_range *r) {
        return r->prefix_len <= 32 && (r->network & ~mask_of(r->prefix_len)) == 0;
}
