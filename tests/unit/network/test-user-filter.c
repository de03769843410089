/* SPDX-License-Identifier: Apache-2.0 */
/* What of a guest's frames gets past the filter of user networking, and what the guest is told. */
#include "frames.h"
#include "network/ranges.h"
#include "network/user-filter.h"
#include "tap.h"

#define NET 0x0a630000u /* 10.99.0.0/16 */
#define GUEST (NET + 2)
#define OTHER (NET + 3)
#define GATEWAY (NET + 1)
#define NAMES (NET + 0xfffe)
#define WEB 0xc633640au /* 198.51.100.10 */
#define HOST 0xc6336401u
#define PRIVATE 0x0a140005u /* 10.20.0.5 */
#define SECOND NSEC_PER_SEC

static struct user_filter filter;
static uint8_t guest_mac[6], gateway_mac[6] = {0x52, 0x55, 0x0a, 0x63, 0, 1}, answer[FILTER_ANSWER_MAX];
static size_t n_answer;
static int64_t now;

static void reset(bool internet) {
        const struct network_range network = {NET, 16};

        user_filter_init(&filter, &network, GUEST);
        card_mac(GUEST, guest_mac);
        filter.internet = internet;
        filter.host[filter.n_host++] = HOST;
}

static enum verdict look_at(const void *data, size_t n) {
        /* Of exactly this length, so that a sanitizer sees what reads beyond it. */
        uint8_t *copy = malloc(n + 1);

        memcpy(copy, data, n);
        copy = realloc(copy, n > 0 ? n : 1);
        enum verdict v = user_filter_look(&filter, copy, n, now, answer, &n_answer);
        free(copy);
        return v;
}

static enum verdict look(struct frame f) {
        return look_at(f.data, f.n);
}

static struct frame syn_to(uint32_t to, uint16_t port) {
        const struct segment s = {.source_port = 5000, .port = port, .seq = 1000, .syn = true};

        return tcp_frame(gateway_mac, guest_mac, GUEST, to, &s);
}

static struct frame udp_to(uint32_t to, uint16_t port) {
        return udp_frame(gateway_mac, guest_mac, GUEST, 5000, to, port, "text");
}

static struct frame icmp_to(uint32_t to, uint8_t type) {
        const struct icmphdr icmp = {.type = type};

        return ip_frame(gateway_mac, guest_mac, GUEST, to, IPPROTO_ICMP, &icmp, sizeof(icmp));
}

/* ---- where ---- */

static void test_off_is_nothing_but_the_gateway(void) {
        static const uint32_t everywhere[] = {WEB, HOST, PRIVATE, NAMES, OTHER, GATEWAY, INADDR_LOOPBACK, 0x08080808};

        reset(false);
        for (size_t i = 0; i < ARRAY_SIZE(everywhere); i++) {
                CHECK_INT(look(syn_to(everywhere[i], 80)), VERDICT_ANSWER);
                CHECK_INT(look(syn_to(everywhere[i], 53)), VERDICT_ANSWER);
                CHECK_INT(look(udp_to(everywhere[i], 53)), VERDICT_ANSWER);
                CHECK_INT(look(icmp_to(everywhere[i], ICMP_ECHO)),
                          everywhere[i] == GATEWAY ? VERDICT_PASS : VERDICT_ANSWER);
        }
}

static void test_on_is_the_internet(void) {
        reset(true);
        CHECK_INT(look(syn_to(WEB, 80)), VERDICT_PASS);
        CHECK_INT(look(udp_to(WEB, 123)), VERDICT_PASS);
        CHECK_INT(look(icmp_to(WEB, ICMP_ECHO)), VERDICT_PASS);
        CHECK_INT(look(syn_to(NAMES, 53)), VERDICT_PASS);
        CHECK_INT(look(udp_to(NAMES, 53)), VERDICT_PASS);
        CHECK_INT(look(udp_to(NAMES, 69)), VERDICT_ANSWER);
        CHECK_INT(look(syn_to(GATEWAY, 53)), VERDICT_ANSWER);
        CHECK_INT(look(udp_to(GATEWAY, 67)), VERDICT_ANSWER);
        CHECK_INT(look(ip_frame(gateway_mac, guest_mac, GUEST, WEB, IPPROTO_GRE, "12345678", 8)), VERDICT_ANSWER);
        CHECK_INT(look(icmp_to(WEB, ICMP_REDIRECT)), VERDICT_DROP);
}

static void test_private_ranges_and_the_host(void) {
        reset(true);
        for (size_t i = 0; i < RANGES_PRIVATE - 1; i++) {
                const struct network_range *r = &ranges_private[i];
                const uint32_t last = r->network | UINT32_MAX >> r->prefix_len;

                CHECK_INT(look(syn_to(r->network, 80)), VERDICT_ANSWER);
                CHECK_INT(look(syn_to(last, 80)), VERDICT_ANSWER);
                CHECK(!range_has(r, last + 1));
        }
        CHECK_INT(look(syn_to(0xf0000001u, 80)), VERDICT_ANSWER); /* 240.0.0.1 */
        CHECK_INT(look(syn_to(HOST, 80)), VERDICT_ANSWER);
        filter.exceptions[filter.n_exceptions++] = (struct network_range){0x0a000000u, 8};
        CHECK_INT(look(syn_to(PRIVATE, 80)), VERDICT_PASS);
        /* No exception opens the network of the workspaces or the host. */
        CHECK_INT(look(syn_to(OTHER, 80)), VERDICT_ANSWER);
        CHECK_INT(look(syn_to(GATEWAY, 80)), VERDICT_ANSWER);
        filter.host[filter.n_host++] = PRIVATE;
        CHECK_INT(look(syn_to(PRIVATE, 80)), VERDICT_ANSWER);
}

static void test_what_is_for_many_gets_no_answer(void) {
        reset(true);
        CHECK_INT(look(udp_to(0xe0000001u, 80)), VERDICT_DROP); /* 224.0.0.1 */
        CHECK_INT(look(udp_to(INADDR_BROADCAST, 67)), VERDICT_DROP);
        CHECK_INT(look(udp_to(NET + 0xffff, 67)), VERDICT_DROP);
        CHECK_INT(look(udp_frame(broadcast_mac, guest_mac, GUEST, 68, WEB, 67, "x")), VERDICT_DROP);
}

/* ---- who ---- */

static void test_forged_senders(void) {
        uint8_t other_mac[6];
        const struct segment s = {.source_port = 1, .port = 80, .syn = true};

        reset(true);
        card_mac(OTHER, other_mac);
        CHECK_INT(look(tcp_frame(gateway_mac, other_mac, GUEST, WEB, &s)), VERDICT_DROP);
        CHECK_INT(look(tcp_frame(gateway_mac, guest_mac, OTHER, WEB, &s)), VERDICT_DROP);
        CHECK_INT(look(tcp_frame(gateway_mac, guest_mac, GATEWAY, WEB, &s)), VERDICT_DROP);
        CHECK_INT(look(tcp_frame(gateway_mac, guest_mac, WEB, WEB, &s)), VERDICT_DROP);
}

static void test_arp(void) {
        uint8_t other_mac[6];

        reset(false);
        card_mac(OTHER, other_mac);
        CHECK_INT(look(arp_frame(broadcast_mac, guest_mac, ARPOP_REQUEST, guest_mac, GUEST, GATEWAY)), VERDICT_PASS);
        CHECK_INT(look(arp_frame(broadcast_mac, guest_mac, ARPOP_REQUEST, guest_mac, GUEST, NAMES)), VERDICT_PASS);
        CHECK_INT(look(arp_frame(gateway_mac, guest_mac, ARPOP_REPLY, guest_mac, GUEST, GATEWAY)), VERDICT_PASS);
        CHECK_INT(look(arp_frame(broadcast_mac, guest_mac, ARPOP_REQUEST, guest_mac, GUEST, OTHER)), VERDICT_DROP);
        CHECK_INT(look(arp_frame(broadcast_mac, guest_mac, ARPOP_REQUEST, guest_mac, GUEST, GUEST)), VERDICT_DROP);
        CHECK_INT(look(arp_frame(broadcast_mac, guest_mac, ARPOP_REQUEST, guest_mac, OTHER, GATEWAY)), VERDICT_DROP);
        CHECK_INT(look(arp_frame(broadcast_mac, guest_mac, ARPOP_REQUEST, other_mac, GUEST, GATEWAY)), VERDICT_DROP);
        CHECK_INT(look(arp_frame(broadcast_mac, guest_mac, 3, guest_mac, GUEST, GATEWAY)), VERDICT_DROP);
        struct frame cut = arp_frame(broadcast_mac, guest_mac, ARPOP_REQUEST, guest_mac, GUEST, GATEWAY);
        cut.n--;
        CHECK_INT(look(cut), VERDICT_DROP);
}

/* ---- form ---- */

static struct frame changed(struct frame f, size_t at, uint8_t value) {
        f.data[at] = value;
        return f;
}

static void test_other_kinds_of_frames(void) {
        struct frame f = syn_to(WEB, 80);

        reset(true);
        CHECK_INT(look(tagged(&f, ETHERTYPE_VLAN, 1)), VERDICT_DROP);
        CHECK_INT(look(changed(changed(f, 12, 0x86), 13, 0xdd)), VERDICT_DROP); /* IPv6 */
        CHECK_INT(look(changed(f, 14, 0x65)), VERDICT_DROP);                    /* that says so in its head */
        CHECK_INT(look(changed(f, 14, 0x46)), VERDICT_DROP);                    /* options */
        CHECK_INT(look(changed(f, 14, 0x44)), VERDICT_DROP);
}

static void test_lengths(void) {
        static uint8_t giant[FILTER_FRAME_MAX + 1];
        const struct frame whole[] = {syn_to(WEB, 80), udp_to(WEB, 80), icmp_to(WEB, ICMP_ECHO)};

        reset(true);
        for (size_t i = 0; i < ARRAY_SIZE(whole); i++) {
                for (size_t n = 0; n < whole[i].n; n++)
                        CHECK_INT(look_at(whole[i].data, n), VERDICT_DROP);
                /* Padding is none of its business. */
                memcpy(giant, whole[i].data, whole[i].n);
                CHECK_INT(look_at(giant, 60), VERDICT_PASS);
                CHECK_INT(look_at(giant, FILTER_FRAME_MAX), VERDICT_PASS);
                CHECK_INT(look_at(giant, sizeof(giant)), VERDICT_DROP);
        }
        /* Heads that are longer or shorter than what they stand before. */
        CHECK_INT(look(changed(syn_to(WEB, 80), 46, 0x40)), VERDICT_DROP);
        CHECK_INT(look(changed(syn_to(WEB, 80), 46, 0x60)), VERDICT_DROP);
        CHECK_INT(look(changed(udp_to(WEB, 80), 39, 7)), VERDICT_DROP);
        CHECK_INT(look(changed(udp_to(WEB, 80), 39, 13)), VERDICT_DROP);
        CHECK_INT(look(changed(syn_to(WEB, 80), 17, 19)), VERDICT_DROP);
}

static struct frame fragment(uint32_t to, uint8_t protocol, size_t n, unsigned offset, bool more) {
        static const uint8_t body[64] = {0, 53, 0, 53, 0, 64, [12] = 0x50};
        struct frame f = ip_frame(gateway_mac, guest_mac, GUEST, to, protocol, body, n);
        const uint16_t field = htons((uint16_t) (offset / 8 | (more ? IP_MF : 0)));

        memcpy(f.data + 20, &field, sizeof(field));
        return f;
}

static void test_fragments(void) {
        reset(true);
        CHECK_INT(look(fragment(WEB, IPPROTO_UDP, 64, 0, false)), VERDICT_PASS); /* a whole one */
        CHECK_INT(look(fragment(WEB, IPPROTO_UDP, 64, 0, true)), VERDICT_DROP);
        CHECK_INT(look(fragment(WEB, IPPROTO_UDP, 64, 64, false)), VERDICT_DROP);
        CHECK_INT(look(fragment(WEB, IPPROTO_TCP, 16, 8, true)), VERDICT_DROP);
        CHECK_INT(look(fragment(WEB, IPPROTO_ICMP, 64, 65528, false)), VERDICT_DROP);
}

/* ---- answers ---- */

static struct frame answered(struct frame f) {
        struct frame out = {.n = 0};

        n_answer = 0;
        if (look(f) == VERDICT_ANSWER) {
                memcpy(out.data, answer, n_answer);
                out.n = n_answer;
        }
        return out;
}

static bool sums_up(const void *data, size_t n, uint32_t sum) {
        return checksum(sum_of(data, n, sum)) == 0;
}

static void check_heads(const struct frame *f, uint32_t from) {
        struct iphdr ip;

        memcpy(&ip, f->data + 14, sizeof(ip));
        CHECK(memcmp(f->data, guest_mac, 6) == 0 && memcmp(f->data + 6, gateway_mac, 6) == 0);
        CHECK_INT(type_of(f), ETHERTYPE_IP);
        CHECK_INT(ntohs(ip.tot_len), f->n - 14);
        CHECK_INT(ntohl(ip.saddr), from);
        CHECK_INT(ntohl(ip.daddr), GUEST);
        CHECK(sums_up(f->data + 14, sizeof(ip), 0));
}

static struct tcphdr reset_of(const struct frame *f, uint32_t from) {
        const uint32_t pseudo[] = {htonl(from), htonl(GUEST), htonl((uint32_t) (IPPROTO_TCP << 16 | 20))};
        struct tcphdr tcp = {0};

        CHECK_INT(f->n, 54);
        check_heads(f, from);
        CHECK(sums_up(f->data + 34, 20, sum_of(pseudo, sizeof(pseudo), 0)));
        memcpy(&tcp, f->data + 34, sizeof(tcp));
        CHECK(tcp.rst);
        return tcp;
}

static void test_resets(void) {
        const struct segment data = {
                .source_port = 5000, .port = 80, .seq = 77, .ack = 0xfffffff0u, .has_ack = true, .text = "hello"};

        reset(false);
        now += SECOND;
        struct frame f = answered(syn_to(WEB, 80));
        struct tcphdr tcp = reset_of(&f, WEB);
        CHECK(tcp.ack && tcp.seq == 0);
        CHECK_INT(ntohl(tcp.ack_seq), 1001);
        CHECK_INT(ntohs(tcp.source), 80);
        CHECK_INT(ntohs(tcp.dest), 5000);

        f = answered(tcp_frame(gateway_mac, guest_mac, GUEST, WEB, &data));
        tcp = reset_of(&f, WEB);
        CHECK(!tcp.ack);
        CHECK_INT(ntohl(tcp.seq), 0xfffffff0u);
        /* No reset for a reset: two filters would never stop. */
        CHECK_INT(look(changed(syn_to(WEB, 80), 47, TH_RST)), VERDICT_DROP);
}

static void test_prohibited(void) {
        struct icmphdr icmp;

        reset(false);
        now += SECOND;
        const struct frame sent = udp_to(WEB, 80), f = answered(sent);
        REQUIRE(f.n == FILTER_ANSWER_MAX);
        check_heads(&f, GATEWAY);
        memcpy(&icmp, f.data + 34, sizeof(icmp));
        CHECK_INT(icmp.type, ICMP_DEST_UNREACH);
        CHECK_INT(icmp.code, ICMP_PKT_FILTERED);
        CHECK(sums_up(f.data + 34, f.n - 34, 0));
        CHECK(memcmp(f.data + 42, sent.data + 14, 28) == 0);
        CHECK_INT(look(icmp_to(WEB, ICMP_ECHOREPLY)), VERDICT_DROP);
        CHECK_INT(look(icmp_to(WEB, ICMP_DEST_UNREACH)), VERDICT_DROP);
}

static void test_answers_are_limited(void) {
        unsigned n = 0;

        reset(false);
        for (unsigned i = 0; i < 3 * FILTER_ANSWERS_PER_SECOND; i++)
                n += look(udp_to(WEB, 80)) == VERDICT_ANSWER;
        CHECK_INT(n, FILTER_ANSWERS_PER_SECOND);
        CHECK_INT(look(syn_to(WEB, 80)), VERDICT_DROP);
        now += SECOND;
        CHECK_INT(look(syn_to(WEB, 80)), VERDICT_ANSWER);
}

static void test_ranges(void) {
        CHECK(range_is_valid(&(struct network_range){0x0a000000u, 8}));
        CHECK(range_is_valid(&(struct network_range){0, 0}));
        CHECK(range_is_valid(&(struct network_range){WEB, 32}));
        CHECK(!range_is_valid(&(struct network_range){0x0a000001u, 8}));
        CHECK(!range_is_valid(&(struct network_range){WEB, 33}));
        CHECK_INT(range_last_host(NET, 16), NAMES);
        for (size_t i = 0; i < RANGES_PRIVATE; i++)
                CHECK(range_is_valid(&ranges_private[i]));
}

int main(void) {
        RUN(test_ranges);
        RUN(test_off_is_nothing_but_the_gateway);
        RUN(test_on_is_the_internet);
        RUN(test_private_ranges_and_the_host);
        RUN(test_what_is_for_many_gets_no_answer);
        RUN(test_forged_senders);
        RUN(test_arp);
        RUN(test_other_kinds_of_frames);
        RUN(test_lengths);
        RUN(test_fragments);
        RUN(test_resets);
        RUN(test_prohibited);
        RUN(test_answers_are_limited);
        return tap_done();
}
