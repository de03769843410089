/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What names a network card everywhere: the address of its workspace, and which of the workspace's two machines has it
 * (while a workspace is restored there are two). Name of the tap and MAC are made of that, so nothing has to remember
 * them, and the rules for a card can be there before the card is.
 */

#include <net/if.h>
#include <stdint.h>

#define CARD_SLOTS 2u
#define CARD_MAC_BYTES 6u

struct card {
        uint32_t address; /* IPv4, host byte order */
        uint32_t slot;    /* 0 or 1 */
};

/* "ag00000fa": the lower 24 bits of the address, then a or b for the slot. */
void card_name(const struct card *c, char ret[IF_NAMESIZE]);
/* Locally administered, unique in the network: 52:54:00 and the lower 24 bits of the address. Of both slots: the
 * machines are the same workspace. */
void card_mac(uint32_t address, uint8_t ret[CARD_MAC_BYTES]);
