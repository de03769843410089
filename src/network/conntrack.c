/* SPDX-License-Identifier: Apache-2.0 */
#include "network/conntrack.h"

#include <arpa/inet.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

/* Bytes of a request to delete an entry. */
#define DELETE_MAX 1024
/* The uplink's interface holds 1000 packets that were not read yet, and drops what is more. After so many resets its
 * process gets a moment. */
#define RESETS_AT_ONCE 64
#define RESETS_PAUSE_MS 1
#define RESET_TTL 64
#define WORDS_PER_HEADER(type) (sizeof(type) / sizeof(uint32_t))

struct forget {
        struct conntrack *of;
        const struct op *op;
        uint32_t address; /* network byte order */
        unsigned resets;  /* sent so far */
};

/* A direction of a connection, in network byte order. */
struct direction {
        uint32_t source, destination;
        uint16_t source_port, port;
        uint8_t protocol;
};

static struct nlmsghdr *request(void *buffer, unsigned type) {
        struct nlmsghdr *h = mnl_nlmsg_put_header(buffer);

        h->nlmsg_type = (uint16_t) ((NFNL_SUBSYS_CTNETLINK << 8) | type);
        struct nfgenmsg *body = mnl_nlmsg_put_extra_header(h, sizeof(*body));
        *body = (struct nfgenmsg){.nfgen_family = AF_INET, .version = NFNETLINK_V0};
        return h;
}

/* ---- what an entry says ---- */

static void read_addresses(const struct nlattr *nest, struct direction *d) {
        const struct nlattr *a;

        netlink_for_each_nested(a, nest) {
                if (mnl_attr_validate(a, MNL_TYPE_U32) < 0)
                        continue;
                if (mnl_attr_get_type(a) == CTA_IP_V4_SRC)
                        d->source = mnl_attr_get_u32(a);
                else if (mnl_attr_get_type(a) == CTA_IP_V4_DST)
                        d->destination = mnl_attr_get_u32(a);
        }
}

static void read_ports(const struct nlattr *nest, struct direction *d) {
        const struct nlattr *a;

        netlink_for_each_nested(a, nest) {
                const uint16_t type = mnl_attr_get_type(a);

                if (type == CTA_PROTO_NUM && mnl_attr_validate(a, MNL_TYPE_U8) == 0)
                        d->protocol = mnl_attr_get_u8(a);
                else if (type == CTA_PROTO_SRC_PORT && mnl_attr_validate(a, MNL_TYPE_U16) == 0)
                        d->source_port = mnl_attr_get_u16(a);
                else if (type == CTA_PROTO_DST_PORT && mnl_attr_validate(a, MNL_TYPE_U16) == 0)
                        d->port = mnl_attr_get_u16(a);
        }
}

/* What is not there is left 0. */
static void read_direction(const struct nlattr *tuple, struct direction *d) {
        const struct nlattr *a;

        netlink_for_each_nested(a, tuple) {
                if (mnl_attr_get_type(a) == CTA_TUPLE_IP)
                        read_addresses(a, d);
                else if (mnl_attr_get_type(a) == CTA_TUPLE_PROTO)
                        read_ports(a, d);
        }
}

static bool names_address(const struct direction *d, uint32_t address) {
        return d->source == address || d->destination == address;
}

/* ---- a reset for the uplink ---- */

struct reset {
        struct iphdr ip;
        struct tcphdr tcp;
};

/* The Internet checksum of whole words (RFC 1071), and of what was summed up before. */
static uint16_t checksum(const void *data, size_t n_words, uint64_t sum) {
        for (size_t i = 0; i < n_words; i++) {
                uint32_t word;

                memcpy(&word, (const char *) data + i * sizeof(word), sizeof(word));
                sum += word;
        }
        while (sum >> 16)
                sum = (sum & 0xffff) + (sum >> 16);
        return (uint16_t) ~sum;
}

/* From where the server's answers go to. */
static struct reset make_reset(const struct direction *reply) {
        struct reset m = {
                .ip = {.version = 4,
                       .ihl = WORDS_PER_HEADER(struct iphdr),
                       .tot_len = htons(sizeof(m)),
                       .ttl = RESET_TTL,
                       .protocol = IPPROTO_TCP,
                       .saddr = reply->destination,
                       .daddr = reply->source},
                .tcp = {.source = reply->port, .dest = reply->source_port, .doff = WORDS_PER_HEADER(struct tcphdr)},
        };
        const uint64_t pseudo =
                (uint64_t) m.ip.saddr + m.ip.daddr + htonl((uint32_t) (IPPROTO_TCP << 16 | sizeof(m.tcp)));

        m.tcp.rst = 1;
        m.ip.check = checksum(&m.ip, WORDS_PER_HEADER(m.ip), 0);
        m.tcp.check = checksum(&m.tcp, WORDS_PER_HEADER(m.tcp), pseudo);
        return m;
}

/* pasta takes a reset whatever its sequence number is. Goes before the entry is deleted: as long as that is there,
 * nobody else has the port, so whatever has it next comes to pasta later. */
static int tell_uplink(struct forget *f, const struct direction *reply) {
        const struct reset m = make_reset(reply);
        const struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = reply->source};

        /* It fails when the uplink is gone, and all that it knew. */
        (void) sendto(f->of->raw, &m, sizeof(m), MSG_DONTWAIT, (const struct sockaddr *) &to, sizeof(to));
        if (++f->resets % RESETS_AT_ONCE != 0)
                return 0;
        const struct op moment = op_sub(f->op, RESETS_PAUSE_MS);
        (void) wait_fd(-1, 0, &moment);
        return op_check(f->op);
}

/* ---- forgetting ---- */

/* What names an entry: its first direction, its number, and its zone. */
static int delete_entry(struct forget *f, const struct nlmsghdr *entry) {
        char buffer[DELETE_MAX];
        struct nlmsghdr *h = request(buffer, IPCTNL_MSG_CT_DELETE);
        const struct nlattr *a;

        netlink_for_each(a, entry, sizeof(struct nfgenmsg)) {
                uint16_t type = mnl_attr_get_type(a);

                if (type != CTA_TUPLE_ORIG && type != CTA_ID && type != CTA_ZONE)
                        continue;
                if (h->nlmsg_len + MNL_ALIGN(a->nla_len) > sizeof(buffer))
                        return -EMSGSIZE;
                memcpy(mnl_nlmsg_get_payload_tail(h), a, a->nla_len);
                h->nlmsg_len += MNL_ALIGN(a->nla_len);
        }
        int r = netlink_ask(&f->of->deleter, h, f->op);
        return r == -ENOENT ? 0 : r; /* it ended by itself */
}

static int look_at(const struct nlmsghdr *entry, void *arg) {
        struct forget *f = arg;
        struct direction first = {0}, reply = {0};
        const struct nlattr *a;
        uint32_t status = 0;

        netlink_for_each(a, entry, sizeof(struct nfgenmsg)) {
                const uint16_t type = mnl_attr_get_type(a);

                if (type == CTA_TUPLE_ORIG)
                        read_direction(a, &first);
                else if (type == CTA_TUPLE_REPLY)
                        read_direction(a, &reply);
                else if (type == CTA_STATUS && mnl_attr_validate(a, MNL_TYPE_U32) == 0)
                        status = ntohl(mnl_attr_get_u32(a));
        }
        if (!names_address(&first, f->address) && !names_address(&reply, f->address))
                return 0;
        int r = status & IPS_SRC_NAT && reply.protocol == IPPROTO_TCP ? tell_uplink(f, &reply) : 0;
        return r < 0 ? r : delete_entry(f, entry);
}

int conntrack_open(struct conntrack *ret) {
        _cleanup_conntrack_ struct conntrack c = {.raw = -1};

        int r = netlink_open(NETLINK_NETFILTER, 0, &c.dumper);
        if (r >= 0)
                r = netlink_open(NETLINK_NETFILTER, 0, &c.deleter);
        if (r < 0)
                return r;
        c.raw = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_RAW); /* with IP_HDRINCL */
        if (c.raw < 0)
                return -errno;
        *ret = c;
        c = (struct conntrack){.raw = -1};
        return 0;
}

void conntrack_close(struct conntrack *c) {
        netlink_close(&c->dumper);
        netlink_close(&c->deleter);
        c->raw = close_fd(c->raw);
}

int conntrack_forget(struct conntrack *c, uint32_t address, const struct op *op) {
        struct forget f = {.of = c, .op = op, .address = htonl(address)};
        char buffer[64];

        return netlink_dump(&c->dumper, request(buffer, IPCTNL_MSG_CT_GET), look_at, &f, op);
}
