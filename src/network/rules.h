/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The packet filter of the private namespace, as text for nft(8).
 *
 * Three tables. `bridge agentiso` pins each card to its port, MAC and address and lets it speak to the gateway only, so
 * nothing passes from card to card at layer 2. `ip agentiso` decides what passes the gateway: sets name the workspaces
 * that may reach the internet, each other, or open a port (policy-sets.h). `ip6 agentiso` drops all of IPv6.
 *
 * Membership is asked of every packet, also of established connections: taking a workspace out of a set cuts what it
 * was allowed before. What is refused is answered (a reset, or "prohibited"), so programs learn it at once.
 *
 * Everything is made of numbers, never of text that came from outside. Each text is one transaction.
 */

#include "base/buf.h"
#include "network/network.h"

#define RULES_BRIDGE "br-agentiso"
#define RULES_UPLINK "uplink0"
/* Bytes of the longest text. */
#define RULES_TEXT_MAX (1024UL * 1024)
/* nft sends a transaction as one message, which without privileges over the host must fit into the usual send buffer of
 * a socket (net.core.wmem_max, twice 208 KiB). */
#define RULES_CARDS_MAX 1024u
#define RULES_ELEMENTS_MAX 4096u
/* Connections to the internet, to other workspaces and to the gateway's names that one workspace may have at a time;
 * echoes that the gateway is asked for are counted with them. */
#define RULES_FLOWS_MAX 4096u
/* Echo requests to the gateway, of one workspace. */
#define RULES_ECHOES_PER_SECOND 1000u

struct rules_config {
        uint32_t network, gateway; /* IPv4, host byte order */
        unsigned prefix_len;
        uint8_t gateway_mac[6];
        const struct network_range *exceptions; /* of the private ranges: may be reached with the internet */
        size_t n_exceptions;
};

/* The comment of each table: a digest of everything that rules_base() would write. */
#define RULES_ID_LEN 32u
int rules_id(const struct rules_config *c, char ret[RULES_ID_LEN + 1]);
/* Replaces all tables, with empty sets. */
int rules_base(const struct rules_config *c, struct buf *out);
/* Whether the listing of all tables (`nft -t list ruleset`) says that they are the ones of rules_base(). */
bool rules_are_there(const struct rules_config *c, const char *listing);
/* Adds the n cards from this address on, both slots of each; at most RULES_CARDS_MAX at once. */
int rules_cards(uint32_t address, uint32_t n, struct buf *out);
