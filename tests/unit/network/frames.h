/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Ethernet frames that a guest could send, made by hand, and what comes back. */

#include <arpa/inet.h>
#include <net/ethernet.h>
#include <netinet/if_ether.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/uio.h>

#include "base/io.h"
#include "network/card.h"

#define VNET_HEADER 10
#define FRAME_MAX 2048

struct frame {
        uint8_t data[FRAME_MAX];
        size_t n;
};

static const uint8_t broadcast_mac[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

static inline void frame_begin(struct frame *f, const uint8_t *to, const uint8_t *from, uint16_t type) {
        memcpy(f->data, to, 6);
        memcpy(f->data + 6, from, 6);
        f->data[12] = (uint8_t) (type >> 8);
        f->data[13] = (uint8_t) type;
        f->n = 14;
}

static inline void frame_put(struct frame *f, const void *data, size_t n) {
        memcpy(f->data + f->n, data, n);
        f->n += n;
}

static inline struct frame arp_frame(const uint8_t *to, const uint8_t *from, uint16_t what, const uint8_t *sender_mac,
                                     uint32_t sender, uint32_t target) {
        const uint32_t addresses[] = {htonl(sender), htonl(target)};
        const uint8_t head[] = {0, 1, 8, 0, 6, 4, (uint8_t) (what >> 8), (uint8_t) what};
        struct frame f;

        frame_begin(&f, to, from, ETHERTYPE_ARP);
        frame_put(&f, head, sizeof(head));
        frame_put(&f, sender_mac, 6);
        frame_put(&f, &addresses[0], 4);
        frame_put(&f, (uint8_t[6]){0}, 6);
        frame_put(&f, &addresses[1], 4);
        return f;
}

static inline uint32_t sum_of(const void *data, size_t n, uint32_t sum) {
        const uint8_t *p = data;

        for (size_t i = 0; i + 1 < n; i += 2)
                sum += (uint32_t) (p[i] << 8 | p[i + 1]);
        return n % 2 ? sum + (uint32_t) (p[n - 1] << 8) : sum;
}

static inline uint16_t checksum(uint32_t sum) {
        while (sum >> 16)
                sum = (sum & 0xffff) + (sum >> 16);
        return htons((uint16_t) ~sum);
}

static inline struct frame ip_frame(const uint8_t *to, const uint8_t *from, uint32_t source, uint32_t destination,
                                    uint8_t protocol, const void *payload, size_t n) {
        struct iphdr ip = {
                .version = 4,
                .ihl = 5,
                .tot_len = htons((uint16_t) (sizeof(ip) + n)),
                .ttl = 64,
                .protocol = protocol,
                .saddr = htonl(source),
                .daddr = htonl(destination),
        };
        struct frame f;

        ip.check = checksum(sum_of(&ip, sizeof(ip), 0));
        frame_begin(&f, to, from, ETHERTYPE_IP);
        frame_put(&f, &ip, sizeof(ip));
        frame_put(&f, payload, n);
        return f;
}

static inline struct frame udp_frame(const uint8_t *to, const uint8_t *from, uint32_t source, uint16_t source_port,
                                     uint32_t destination, uint16_t port, const char *text) {
        uint8_t payload[256];
        const struct udphdr udp = {
                /* no checksum: IPv4 allows it */
                .source = htons(source_port),
                .dest = htons(port),
                .len = htons((uint16_t) (sizeof(udp) + strlen(text))),
        };

        memcpy(payload, &udp, sizeof(udp));
        memcpy(payload + sizeof(udp), text, strlen(text));
        return ip_frame(to, from, source, destination, IPPROTO_UDP, payload, sizeof(udp) + strlen(text));
}

struct segment {
        uint16_t source_port, port;
        uint32_t seq, ack;
        bool syn, has_ack;
        const char *text;
};

static inline struct frame tcp_frame(const uint8_t *to, const uint8_t *from, uint32_t source, uint32_t destination,
                                     const struct segment *s) {
        uint8_t payload[256];
        const size_t text = s->text ? strlen(s->text) : 0, n = sizeof(struct tcphdr) + text;
        struct tcphdr tcp = {
                .source = htons(s->source_port),
                .dest = htons(s->port),
                .seq = htonl(s->seq),
                .ack_seq = htonl(s->ack),
                .doff = 5,
                .syn = s->syn,
                .ack = s->has_ack,
                .psh = text > 0,
                .window = htons(64000),
        };
        const uint32_t pseudo[] = {htonl(source), htonl(destination), htonl((uint32_t) (IPPROTO_TCP << 16 | n))};

        memcpy(payload, &tcp, sizeof(tcp));
        if (text > 0)
                memcpy(payload + sizeof(tcp), s->text, text);
        tcp.check = checksum(sum_of(payload, n, sum_of(pseudo, sizeof(pseudo), 0)));
        memcpy(payload, &tcp, sizeof(tcp));
        return ip_frame(to, from, source, destination, IPPROTO_TCP, payload, n);
}

/* An 802.1Q tag (or another of its kind) around what there is. */
static inline struct frame tagged(const struct frame *f, uint16_t kind, uint16_t vlan) {
        struct frame out;

        memcpy(out.data, f->data, 12);
        memcpy(out.data + 12, (uint16_t[]){htons(kind), htons(vlan)}, 4);
        memcpy(out.data + 16, f->data + 12, f->n - 12);
        out.n = f->n + 4;
        return out;
}

static inline bool frame_send(int tap, const struct frame *f) {
        const uint8_t header[VNET_HEADER] = {0};
        const struct iovec parts[] = {{(void *) (uintptr_t) header, VNET_HEADER}, {(void *) (uintptr_t) f->data, f->n}};

        return writev(tap, parts, 2) == (ssize_t) (VNET_HEADER + f->n);
}

/* The next frame: 0, or -ETIMEDOUT when none came in ms milliseconds. */
static inline int frame_receive(int tap, struct frame *f, int64_t ms) {
        struct op op = op_timeout(ms);
        uint8_t bytes[VNET_HEADER + FRAME_MAX];

        int r = wait_fd(tap, POLLIN, &op);
        if (r < 0)
                return r;
        ssize_t n = read(tap, bytes, sizeof(bytes));
        if (n < VNET_HEADER)
                return n < 0 ? -errno : -EBADMSG;
        f->n = (size_t) n - VNET_HEADER;
        memcpy(f->data, bytes + VNET_HEADER, f->n);
        return 0;
}

/* ---- what a frame is ---- */

static inline uint16_t type_of(const struct frame *f) {
        return (uint16_t) (f->data[12] << 8 | f->data[13]);
}

struct packet {
        uint32_t source, destination;
        uint8_t protocol;
        uint16_t source_port, port; /* of TCP and UDP; of ICMP: type and code */
        bool reset, syn;
        char text[128]; /* what UDP carries */
};

static inline bool packet_of(const struct frame *f, struct packet *ret) {
        struct iphdr ip;
        struct udphdr udp;
        struct tcphdr tcp;
        const uint8_t *body = f->data + 14 + sizeof(ip);

        if (type_of(f) != ETHERTYPE_IP || f->n < 14 + sizeof(ip) + 8)
                return false;
        memcpy(&ip, f->data + 14, sizeof(ip));
        memcpy(&udp, body, sizeof(udp));
        *ret = (struct packet){.source = ntohl(ip.saddr), .destination = ntohl(ip.daddr), .protocol = ip.protocol};
        if (ip.protocol == IPPROTO_ICMP) {
                ret->source_port = body[0];
                ret->port = body[1];
                return true;
        }
        ret->source_port = ntohs(udp.source);
        ret->port = ntohs(udp.dest);
        if (ip.protocol == IPPROTO_UDP) {
                const size_t n = (size_t) ntohs(ip.tot_len) - sizeof(ip) - sizeof(udp);
                memcpy(ret->text, body + sizeof(udp), MIN(n, sizeof(ret->text) - 1));
        }
        if (ip.protocol == IPPROTO_TCP) {
                memcpy(&tcp, body, sizeof(tcp));
                ret->reset = tcp.rst;
                ret->syn = tcp.syn;
        }
        return true;
}
