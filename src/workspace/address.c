/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "workspace/core-internal.h"

/* Not for workspaces: the network itself, the gateway (the first host), the resolver of QEMU's user networking (the
 * last host), the broadcast address. */
#define GATEWAY 1u
#define FIRST_HOST 2u
#define RESERVED 4u

uint32_t address_gateway(uint32_t network) {
        return network + GATEWAY;
}

uint32_t address_capacity(unsigned prefix_len) {
        uint32_t all = prefix_len == 0 ? UINT32_MAX : (uint32_t) 1 << (32 - prefix_len);
        return all > RESERVED ? all - RESERVED : 0;
}

static bool is_used(uint32_t address, const uint32_t *used, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (used[i] == address)
                        return true;
        return false;
}

int address_pick(uint32_t network, unsigned prefix_len, const uint32_t *used, size_t n_used, uint32_t *ret) {
        uint32_t capacity = address_capacity(prefix_len);
        /* Among n + 1 candidates one is free. */
        for (uint32_t i = 0; i < capacity && i <= n_used; i++) {
                uint32_t candidate = network + FIRST_HOST + i;
                if (!is_used(candidate, used, n_used)) {
                        *ret = candidate;
                        return 0;
                }
        }
        return -ENOSPC;
}

void address_mac(uint32_t address, char ret[MAC_LEN + 1]) {
        snprintf(ret, MAC_LEN + 1, "52:54:00:%02x:%02x:%02x", (address >> 16) & 0xff, (address >> 8) & 0xff,
                 address & 0xff);
}

void address_text(uint32_t address, char ret[16]) {
        snprintf(ret, 16, "%u.%u.%u.%u", (address >> 24) & 0xff, (address >> 16) & 0xff, (address >> 8) & 0xff,
                 address & 0xff);
}
