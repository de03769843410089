/* SPDX-License-Identifier: Apache-2.0 */
#include "network/rules.h"

#include <nettle/sha2.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "network/card.h"
#include "network/ranges.h"

/* Bytes of the tables' text, with the most exceptions. */
#define BASE_TEXT_MAX (64UL * 1024)
#define TABLES 3
#define COMMENT "comment \"agentiso %s\""

/* The addresses of an IPv4 address's four bytes, for printf. */
#define QUAD "%u.%u.%u.%u"
#define QUAD_OF(a) ((a) >> 24) & 0xff, ((a) >> 16) & 0xff, ((a) >> 8) & 0xff, (a) &0xff
#define MAC "%02x:%02x:%02x:%02x:%02x:%02x"
#define MAC_OF(m) (m)[0], (m)[1], (m)[2], (m)[3], (m)[4], (m)[5]

/*
 * Layer 2. 8021q is named because a tag that the kernel has taken off a frame hides from `meta protocol`, not from
 * `ether type`. A bridge hands link-local frames (spanning tree and the like) to input, too, which drops them.
 */
static int bridge_table(const struct rules_config *c, const char *id, struct buf *out) {
        return buf_printf(
                out,
                "table bridge agentiso\n"
                "delete table bridge agentiso\n"
                "table bridge agentiso {\n"
                "  " COMMENT "\n"
                "  set ports { type ifname . ether_addr; }\n"
                "  set cards { type ifname . ether_addr . ipv4_addr; }\n"
                "  chain prerouting {\n"
                "    type filter hook prerouting priority -300; policy drop;\n"
                "    ether type { 8021q, 8021ad } drop\n"
                "    iifname . ether saddr @ports ether type { ip, arp } accept\n"
                "  }\n"
                "  chain input {\n"
                "    type filter hook input priority 0; policy drop;\n"
                "    ether type ip ether daddr " MAC " iifname . ether saddr . ip saddr @cards accept\n"
                "    ether type arp arp operation request arp daddr ip " QUAD
                " iifname . arp saddr ether . arp saddr ip @cards accept\n"
                "  }\n"
                "  chain forward { type filter hook forward priority 0; policy drop; }\n"
                "  chain output {\n"
                "    type filter hook output priority 0; policy drop;\n"
                "    ether type ip oifname . ether daddr . ip daddr @cards accept\n"
                "    ether type arp arp operation reply oifname . arp daddr ether . arp daddr ip @cards accept\n"
                "  }\n"
                "}\n",
                id, MAC_OF(c->gateway_mac), QUAD_OF(c->gateway));
}

static int elements(const struct network_range *list, size_t n, struct buf *out) {
        int r = 0;

        for (size_t i = 0; r >= 0 && i < n; i++)
                r = buf_printf(out, "%s " QUAD "/%u", i == 0 ? " elements = {" : ",", QUAD_OF(list[i].network),
                               list[i].prefix_len);
        return r < 0 ? r : buf_printf(out, "%s }\n", n > 0 ? " }" : "");
}

static int sets(const struct rules_config *c, struct buf *out) {
        int r = buf_append_str(out, "  set internet { type ipv4_addr; }\n"
                                    "  set inter_vm { type ipv4_addr; }\n"
                                    "  set open_ports { type ipv4_addr . inet_proto . inet_service; }\n"
                                    "  set host { type ipv4_addr; }\n"
                                    "  set flows { type ipv4_addr; size 65536; flags dynamic; }\n"
                                    "  set echoes { type ipv4_addr; size 65536; flags dynamic,timeout; timeout 1m; }\n"
                                    "  set refused { type ipv4_addr; flags interval;");
        if (r >= 0)
                r = elements(ranges_private, RANGES_PRIVATE, out);
        if (r >= 0)
                r = buf_append_str(out, "  set exceptions { type ipv4_addr; flags interval; auto-merge;");
        return r < 0 ? r : elements(c->exceptions, c->n_exceptions, out);
}

/* Answers of a guest to the daemon's own connections (port forwards), echo, and names while it has the internet. By the
 * uplink nothing of our own leaves but resets (conntrack.h, and what `refuse` says to a server). */
static int input_chains(const struct rules_config *c, struct buf *out) {
        return buf_printf(
                out,
                "  chain input {\n"
                "    type filter hook input priority 0; policy drop;\n"
                "    iifname \"" RULES_BRIDGE "\" jump from_guest\n"
                "  }\n"
                "  chain from_guest {\n"
                "    ct direction reply ct state established,related accept\n"
                "    ip daddr != " QUAD " jump refuse\n"
                "    icmp type echo-request update @echoes { ip saddr limit rate %u/second } jump count_flow\n"
                "    ip saddr @internet meta l4proto { tcp, udp } th dport 53 jump count_flow\n"
                "    jump refuse\n"
                "  }\n"
                "  chain output {\n"
                "    type filter hook output priority 0; policy drop;\n"
                "    oifname \"" RULES_BRIDGE "\" accept\n"
                "    oifname \"" RULES_UPLINK "\" tcp flags & rst == rst accept\n"
                "  }\n",
                QUAD_OF(c->gateway), RULES_ECHOES_PER_SECOND);
}

/* Between guests: both allow it, or the one that is asked has opened the port. What belongs to no connection is the
 * rest of one that was cut (HELPER_FORGET). All guests have one address outside: which port is whose, none can choose
 * or foresee. */
static int forward_chains(struct buf *out) {
        return buf_printf(
                out,
                "  chain forward {\n"
                "    type filter hook forward priority 0; policy drop;\n"
                "    ct state invalid jump refuse\n"
                "    iifname \"" RULES_BRIDGE "\" oifname \"" RULES_BRIDGE "\" jump between\n"
                "    iifname \"" RULES_BRIDGE "\" oifname \"" RULES_UPLINK "\" jump out\n"
                "    iifname \"" RULES_UPLINK "\" oifname \"" RULES_BRIDGE "\" jump back\n"
                "    iifname \"" RULES_BRIDGE "\" jump refuse\n"
                "  }\n"
                "  chain between {\n"
                "    ip saddr @inter_vm ip daddr @inter_vm jump count_flow\n"
                "    ct direction original ip daddr . meta l4proto . th dport @open_ports jump count_flow\n"
                "    ct direction reply ct state established ip saddr . meta l4proto . th sport @open_ports accept\n"
                "    jump refuse\n"
                "  }\n"
                "  chain out {\n"
                "    ip saddr != @internet jump refuse\n"
                "    ip daddr @host jump refuse\n"
                "    ip daddr @refused ip daddr != @exceptions jump refuse\n"
                "    jump count_flow\n"
                "  }\n"
                "  chain count_flow {\n"
                "    ct state new add @flows { ip saddr ct count over %u } jump refuse\n"
                "    accept\n"
                "  }\n"
                "  chain back {\n"
                "    ip daddr @internet ct state established,related accept\n"
                "    jump refuse\n"
                "  }\n"
                "  chain refuse {\n"
                "    meta l4proto tcp reject with tcp reset\n"
                "    reject with icmp admin-prohibited\n"
                "  }\n"
                "  chain postrouting {\n"
                "    type nat hook postrouting priority 100; policy accept;\n"
                "    oifname \"" RULES_UPLINK "\" masquerade fully-random\n"
                "  }\n",
                RULES_FLOWS_MAX);
}

static int tables(const struct rules_config *c, const char *id, struct buf *out) {
        int r = bridge_table(c, id, out);

        if (r >= 0)
                r = buf_printf(out,
                               "table ip agentiso\ndelete table ip agentiso\ntable ip agentiso {\n"
                               "  " COMMENT "\n",
                               id);
        if (r >= 0)
                r = sets(c, out);
        if (r >= 0)
                r = forward_chains(out);
        if (r >= 0)
                r = input_chains(c, out);
        if (r < 0)
                return r;
        return buf_printf(out,
                          "}\n"
                          "table ip6 agentiso\ndelete table ip6 agentiso\ntable ip6 agentiso {\n"
                          "  " COMMENT "\n"
                          "  chain input { type filter hook input priority 0; policy drop; }\n"
                          "  chain forward { type filter hook forward priority 0; policy drop; }\n"
                          "  chain output { type filter hook output priority 0; policy drop; }\n"
                          "}\n",
                          id);
}

int rules_id(const struct rules_config *c, char ret[RULES_ID_LEN + 1]) {
        _cleanup_buf_ struct buf text = BUF_INIT(BASE_TEXT_MAX);
        uint8_t digest[RULES_ID_LEN / 2];
        struct sha256_ctx hash;

        int r = tables(c, "", &text);
        if (r < 0)
                return r;
        sha256_init(&hash);
        sha256_update(&hash, text.len, (const uint8_t *) text.data);
        sha256_digest(&hash, sizeof(digest), digest);
        for (size_t i = 0; i < sizeof(digest); i++)
                snprintf(ret + 2 * i, 3, "%02x", digest[i]);
        return 0;
}

int rules_base(const struct rules_config *c, struct buf *out) {
        char id[RULES_ID_LEN + 1];
        int r = rules_id(c, id);

        return r < 0 ? r : tables(c, id, out);
}

bool rules_are_there(const struct rules_config *c, const char *listing) {
        char id[RULES_ID_LEN + 1], comment[sizeof(COMMENT) + RULES_ID_LEN];
        int n = 0;

        if (rules_id(c, id) < 0)
                return false;
        snprintf(comment, sizeof(comment), COMMENT, id);
        for (const char *at = listing; (at = strstr(at, comment)); at += strlen(comment))
                n++;
        return n == TABLES;
}

/* ---- cards ---- */

/* Each set is filled by one command: nft is many times slower with a command for each element. */
static int add_ports(uint32_t address, uint32_t n, struct buf *out) {
        int r = buf_append_str(out, "add element bridge agentiso ports {");

        for (uint32_t i = 0; r >= 0 && i < n * CARD_SLOTS; i++) {
                const struct card card = {.address = address + i / CARD_SLOTS, .slot = i % CARD_SLOTS};
                char name[IF_NAMESIZE];
                uint8_t mac[CARD_MAC_BYTES];

                card_name(&card, name);
                card_mac(card.address, mac);
                r = buf_printf(out, "%s \"%s\" . " MAC, i == 0 ? "" : ",", name, MAC_OF(mac));
        }
        return r < 0 ? r : buf_append_str(out, " }\n");
}

static int add_cards(uint32_t address, uint32_t n, struct buf *out) {
        int r = buf_append_str(out, "add element bridge agentiso cards {");

        for (uint32_t i = 0; r >= 0 && i < n * CARD_SLOTS; i++) {
                const struct card card = {.address = address + i / CARD_SLOTS, .slot = i % CARD_SLOTS};
                char name[IF_NAMESIZE];
                uint8_t mac[CARD_MAC_BYTES];

                card_name(&card, name);
                card_mac(card.address, mac);
                r = buf_printf(out, "%s \"%s\" . " MAC " . " QUAD, i == 0 ? "" : ",", name, MAC_OF(mac),
                               QUAD_OF(card.address));
        }
        return r < 0 ? r : buf_append_str(out, " }\n");
}

int rules_cards(uint32_t address, uint32_t n, struct buf *out) {
        int r = n > 0 ? add_ports(address, n, out) : 0;

        return r < 0 || n == 0 ? r : add_cards(address, n, out);
}
