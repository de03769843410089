/* SPDX-License-Identifier: Apache-2.0 */
#include "network/user-filter.h"

#include <arpa/inet.h>
#include <netinet/if_ether.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <string.h>

#include "base/deadline.h"
#include "base/util.h"
#include "network/ranges.h"

#define IP_LEN sizeof(struct iphdr)
#define DNS_PORT 53
#define ANSWER_TTL 64
#define QUOTED 8u /* bytes behind the IP header that ICMP sends back (RFC 792) */
#define GROUP_BIT 1u

/* An IPv4 packet whose lengths are right. */
struct packet {
        const uint8_t *frame, *body;
        struct iphdr ip;
        size_t n; /* of the body */
};

void user_filter_init(struct user_filter *f, const struct network_range *network, uint32_t address) {
        *f = (struct user_filter){
                .address = address,
                .network = *network,
                .gateway = network->network + 1,
                .names = range_last_host(network->network, network->prefix_len),
        };
        card_mac(address, f->mac);
}

static bool take_answer(struct user_filter *f, int64_t now_ns) {
        if (now_ns >= f->answers_until_ns) {
                f->answers_until_ns = now_ns + NSEC_PER_SEC;
                f->n_answers = 0;
        }
        if (f->n_answers >= FILTER_ANSWERS_PER_SECOND)
                return false;
        f->n_answers++;
        return true;
}

/* --- ARP --- */

static bool arp_passes(const struct user_filter *f, const uint8_t *frame, size_t n) {
        struct ether_arp arp;
        uint32_t sender, target;

        if (n < ETH_HLEN + sizeof(arp))
                return false;
        memcpy(&arp, frame + ETH_HLEN, sizeof(arp));
        memcpy(&sender, arp.arp_spa, sizeof(sender));
        memcpy(&target, arp.arp_tpa, sizeof(target));
        target = ntohl(target);
        return ntohs(arp.ea_hdr.ar_hrd) == ARPHRD_ETHER && ntohs(arp.ea_hdr.ar_pro) == ETHERTYPE_IP &&
               arp.ea_hdr.ar_hln == ETH_ALEN && arp.ea_hdr.ar_pln == sizeof(uint32_t) &&
               (ntohs(arp.ea_hdr.ar_op) == ARPOP_REQUEST || ntohs(arp.ea_hdr.ar_op) == ARPOP_REPLY) &&
               memcmp(arp.arp_sha, f->mac, ETH_ALEN) == 0 && ntohl(sender) == f->address &&
               (target == f->gateway || target == f->names);
}

/* --- IPv4: form --- */

/* The header of the protocol behind. */
static bool has_good_body(const struct packet *p) {
        struct tcphdr tcp;
        struct udphdr udp;

        switch (p->ip.protocol) {
        case IPPROTO_TCP:
                if (p->n < sizeof(tcp))
                        return false;
                memcpy(&tcp, p->body, sizeof(tcp));
                return tcp.doff * 4u >= sizeof(tcp) && tcp.doff * 4u <= p->n;
        case IPPROTO_UDP:
                if (p->n < sizeof(udp))
                        return false;
                memcpy(&udp, p->body, sizeof(udp));
                return ntohs(udp.len) >= sizeof(udp) && ntohs(udp.len) <= p->n;
        default:
                return p->n >= QUOTED;
        }
}

/* Options in the header are for nobody here. Fragments are not either: libslirp 4.7 can be made to crash by how it puts
 * them together, and would keep them without a limit. */
static bool parse(const uint8_t *frame, size_t n, struct packet *p) {
        if (n < ETH_HLEN + IP_LEN)
                return false;
        *p = (struct packet){.frame = frame, .body = frame + ETH_HLEN + IP_LEN};
        memcpy(&p->ip, frame + ETH_HLEN, IP_LEN);
        const size_t total = ntohs(p->ip.tot_len);
        if (p->ip.version != IPVERSION || p->ip.ihl * 4u != IP_LEN || total < IP_LEN || total > n - ETH_HLEN)
                return false;
        p->n = total - IP_LEN;
        return !(ntohs(p->ip.frag_off) & (IP_OFFMASK | IP_MF)) && has_good_body(p);
}

/* --- IPv4: where it goes --- */

static bool is_echo(const struct packet *p) {
        return p->ip.protocol == IPPROTO_ICMP && p->body[0] == ICMP_ECHO;
}

static bool is_for_names(const struct packet *p) {
        struct udphdr ports; /* TCP has them at the same place */

        if (p->ip.protocol != IPPROTO_TCP && p->ip.protocol != IPPROTO_UDP)
                return false;
        memcpy(&ports, p->body, sizeof(ports));
        return ntohs(ports.dest) == DNS_PORT;
}

static bool is_host(const struct user_filter *f, uint32_t address) {
        for (size_t i = 0; i < f->n_host; i++)
                if (f->host[i] == address)
                        return true;
        return false;
}

static bool may_go(const struct user_filter *f, const struct packet *p) {
        const uint32_t to = ntohl(p->ip.daddr);

        if (to == f->gateway)
                return is_echo(p);
        if (to == f->names)
                return f->internet && is_for_names(p);
        if (!f->internet || range_has(&f->network, to) || is_host(f, to))
                return false;
        if (ranges_have(ranges_private, RANGES_PRIVATE, to) && !ranges_have(f->exceptions, f->n_exceptions, to))
                return false;
        return p->ip.protocol == IPPROTO_TCP || p->ip.protocol == IPPROTO_UDP || is_echo(p);
}

/* --- answers --- */

static uint32_t sum_of(const void *data, size_t n, uint32_t sum) {
        for (size_t i = 0; i < n; i += sizeof(uint16_t)) {
                uint16_t word = 0; /* an odd last byte has a zero behind it */

                memcpy(&word, (const uint8_t *) data + i, MIN(sizeof(word), n - i));
                sum += ntohs(word);
        }
        return sum;
}

static uint16_t checksum(uint32_t sum) {
        while (sum >> 16)
                sum = (sum & 0xffff) + (sum >> 16);
        return htons((uint16_t) ~sum);
}

/* What stands before the body of an answer, which is there already. */
static size_t put_head(const struct user_filter *f, const struct packet *p, uint32_t from, uint8_t protocol, size_t n,
                       uint8_t *answer) {
        struct iphdr ip = {
                .version = IPVERSION,
                .ihl = IP_LEN / 4,
                .tot_len = htons((uint16_t) (IP_LEN + n)),
                .ttl = ANSWER_TTL,
                .protocol = protocol,
                .saddr = htonl(from),
                .daddr = htonl(f->address),
        };

        ip.check = checksum(sum_of(&ip, sizeof(ip), 0));
        memcpy(answer, f->mac, ETH_ALEN);
        memcpy(answer + ETH_ALEN, p->frame, ETH_ALEN); /* whom the guest has asked */
        memcpy(answer + 2 * ETH_ALEN, &(uint16_t){htons(ETHERTYPE_IP)}, sizeof(uint16_t));
        memcpy(answer + ETH_HLEN, &ip, sizeof(ip));
        return ETH_HLEN + IP_LEN + n;
}

/* RFC 9293, 3.5.2; 0: there is none. */
static size_t put_reset(const struct user_filter *f, const struct packet *p, uint8_t *answer) {
        const uint32_t pseudo[] = {p->ip.daddr, p->ip.saddr, htonl(IPPROTO_TCP << 16 | sizeof(struct tcphdr))};
        struct tcphdr in, out;

        memcpy(&in, p->body, sizeof(in));
        if (in.rst)
                return 0;
        out = (struct tcphdr){.source = in.dest, .dest = in.source, .doff = sizeof(out) / 4, .rst = 1};
        if (in.ack)
                out.seq = in.ack_seq;
        else {
                out.ack = 1;
                out.ack_seq = htonl(ntohl(in.seq) + (uint32_t) (p->n - in.doff * 4u) + in.syn + in.fin);
        }
        out.check = checksum(sum_of(&out, sizeof(out), sum_of(pseudo, sizeof(pseudo), 0)));
        memcpy(answer + ETH_HLEN + IP_LEN, &out, sizeof(out));
        return put_head(f, p, ntohl(p->ip.daddr), IPPROTO_TCP, sizeof(out), answer);
}

static size_t put_prohibited(const struct user_filter *f, const struct packet *p, uint8_t *answer) {
        const size_t quoted = MIN(p->n, (size_t) QUOTED), n = sizeof(struct icmphdr) + IP_LEN + quoted;
        struct icmphdr icmp = {.type = ICMP_DEST_UNREACH, .code = ICMP_PKT_FILTERED};
        uint8_t *body = answer + ETH_HLEN + IP_LEN;

        memcpy(body + sizeof(icmp), p->frame + ETH_HLEN, IP_LEN + quoted);
        icmp.checksum = checksum(sum_of(body + sizeof(icmp), n - sizeof(icmp), sum_of(&icmp, sizeof(icmp), 0)));
        memcpy(body, &icmp, sizeof(icmp));
        return put_head(f, p, f->gateway, IPPROTO_ICMP, n, answer);
}

/* Nothing for what was meant for many, or for ICMP that is no question (RFC 1122, 3.2.2). */
static bool has_answer(const struct user_filter *f, const struct packet *p) {
        const uint32_t to = ntohl(p->ip.daddr);

        return !IN_MULTICAST(to) && to != INADDR_BROADCAST &&
               to != range_last_host(f->network.network, f->network.prefix_len) + 1 &&
               (p->ip.protocol != IPPROTO_ICMP || is_echo(p));
}

enum verdict user_filter_look(struct user_filter *f, const uint8_t *frame, size_t n, int64_t now_ns,
                              uint8_t answer[FILTER_ANSWER_MAX], size_t *ret_n) {
        struct packet p;

        if (n < ETH_HLEN || n > FILTER_FRAME_MAX || memcmp(frame + ETH_ALEN, f->mac, ETH_ALEN) != 0)
                return VERDICT_DROP;
        const uint16_t type = (uint16_t) (frame[2 * ETH_ALEN] << 8 | frame[2 * ETH_ALEN + 1]);
        if (type == ETHERTYPE_ARP)
                return arp_passes(f, frame, n) ? VERDICT_PASS : VERDICT_DROP;
        if (type != ETHERTYPE_IP || frame[0] & GROUP_BIT || !parse(frame, n, &p) || ntohl(p.ip.saddr) != f->address)
                return VERDICT_DROP;
        if (may_go(f, &p))
                return VERDICT_PASS;
        if (!has_answer(f, &p) || !take_answer(f, now_ns))
                return VERDICT_DROP;
        const size_t length = p.ip.protocol == IPPROTO_TCP ? put_reset(f, &p, answer) : put_prohibited(f, &p, answer);
        if (length == 0)
                return VERDICT_DROP;
        *ret_n = length;
        return VERDICT_ANSWER;
}
