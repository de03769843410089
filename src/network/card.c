/* SPDX-License-Identifier: Apache-2.0 */
#include "network/card.h"

#include <stdio.h>
#include <string.h>

#define UNIQUE_BITS 0xffffffu

void card_name(const struct card *c, char ret[IF_NAMESIZE]) {
        snprintf(ret, IF_NAMESIZE, "ag%06x%c", c->address & UNIQUE_BITS, c->slot == 0 ? 'a' : 'b');
}

void card_mac(uint32_t address, uint8_t ret[CARD_MAC_BYTES]) {
        const uint8_t mac[CARD_MAC_BYTES] = {
                0x52, 0x54, 0x00, (uint8_t) (address >> 16), (uint8_t) (address >> 8), (uint8_t) address,
        };

        memcpy(ret, mac, sizeof(mac));
}
