/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/netlink.h"

#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/io.h"
#include "guest/console.h"
#include "guest/sockets.h"
#include "guest/uevent.h"

#define ADDRESSES_MAX 64 /* of one card that are removed at once */
#define ANSWER_MAX (32UL * 1024)

/* ---- messages ---- */

struct message {
        struct nlmsghdr h;
        union {
                struct ifinfomsg link;
                struct ifaddrmsg addr;
                struct rtmsg route;
        };
        char attributes[128];
};

static void message_init(struct message *m, uint16_t type, uint16_t flags, size_t body) {
        *m = (struct message){.h = {.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags}};
        m->h.nlmsg_len = (uint32_t) NLMSG_LENGTH(body);
}

static void put_attribute(struct message *m, uint16_t type, const void *data, size_t n) {
        struct rtattr *a = (struct rtattr *) ((char *) m + NLMSG_ALIGN(m->h.nlmsg_len));

        a->rta_type = type;
        a->rta_len = (uint16_t) RTA_LENGTH(n);
        memcpy(RTA_DATA(a), data, n);
        m->h.nlmsg_len = (uint32_t) (NLMSG_ALIGN(m->h.nlmsg_len) + RTA_ALIGN(a->rta_len));
}

int netlink_ask(int fd, struct nlmsghdr *request, void (*each)(const struct nlmsghdr *h, void *arg), void *arg) {
        _cleanup_free_ char *answer = malloc(ANSWER_MAX);
        struct op op = op_timeout(2000);

        if (!answer)
                return -ENOMEM;
        if (!each)
                request->nlmsg_flags |= NLM_F_ACK;
        if (send(fd, request, request->nlmsg_len, 0) < 0)
                return -errno;
        for (;;) {
                int r = wait_fd(fd, POLLIN, &op);
                ssize_t n = r < 0 ? r : recv(fd, answer, ANSWER_MAX, 0);

                if (n < 0)
                        return r < 0 ? r : -errno;
                size_t left = (size_t) n;
                for (struct nlmsghdr *h = (struct nlmsghdr *) answer; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
                        if (h->nlmsg_type == NLMSG_DONE)
                                return 0;
                        if (h->nlmsg_type == NLMSG_ERROR)
                                return ((struct nlmsgerr *) NLMSG_DATA(h))->error;
                        if (each)
                                each(h, arg);
                }
        }
}

static int open_rtnetlink(void) {
        int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);

        return fd < 0 ? -errno : fd;
}

/* ---- the card ---- */

static unsigned first_card(void) {
        struct if_nameindex *list = if_nameindex();
        unsigned best = 0;

        for (struct if_nameindex *i = list; i && i->if_index; i++) {
                char path[64];

                snprintf(path, sizeof(path), "/sys/class/net/%.20s/device", i->if_name);
                if ((best == 0 || i->if_index < best) && access(path, F_OK) == 0)
                        best = i->if_index;
        }
        if (list)
                if_freenameindex(list);
        return best;
}

static atomic_uint prepared; /* the card that net_prepare() has found; 0: none */

static bool card_there(void *arg) {
        unsigned *card = arg;

        *card = first_card();
        return *card != 0;
}

static int wait_card(unsigned *ret, const struct op *op) {
        _cleanup_close_ int uevents = -1;

        if (card_there(ret))
                return 0;
        uevents = uevent_open();
        return uevents < 0 ? uevents : uevent_wait(uevents, card_there, ret, op);
}

/* The network is IPv4 only; an address made from a MAC that a copy of the machine no longer has would be a wrong one.
 */
static void disable_ipv6(unsigned card) {
        char name[IF_NAMESIZE], path[80];
        _cleanup_close_ int fd = -1;

        if (!if_indextoname(card, name))
                return;
        snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd >= 0 && write(fd, "1", 1) < 0)
                return; /* a kernel without IPv6 has nothing to disable */
}

static int set_link(int fd, unsigned card, const struct net_args *n) {
        struct message m;

        message_init(&m, RTM_NEWLINK, 0, sizeof(m.link));
        m.link.ifi_index = (int) card;
        m.link.ifi_flags = m.link.ifi_change = IFF_UP;
        if (n->has_mac)
                put_attribute(&m, IFLA_ADDRESS, n->mac, sizeof(n->mac));
        return netlink_ask(fd, &m.h, NULL, NULL);
}

/* ---- addresses ---- */

struct found {
        unsigned card;
        bool ipv6; /* there are some of IPv6 */
        size_t n;
        struct {
                struct in_addr address;
                uint8_t prefix_len;
        } list[ADDRESSES_MAX];
};

static void take_address(const struct nlmsghdr *h, void *arg) {
        const struct ifaddrmsg *a = NLMSG_DATA(h);
        struct found *f = arg;
        size_t left = IFA_PAYLOAD(h);

        if (h->nlmsg_type != RTM_NEWADDR || a->ifa_index != f->card)
                return;
        f->ipv6 |= a->ifa_family == AF_INET6;
        if (a->ifa_family != AF_INET)
                return;
        for (const struct rtattr *t = IFA_RTA(a); RTA_OK(t, left) && f->n < ADDRESSES_MAX; t = RTA_NEXT(t, left))
                if (t->rta_type == IFA_LOCAL && RTA_PAYLOAD(t) == sizeof(struct in_addr)) {
                        memcpy(&f->list[f->n].address, RTA_DATA(t), sizeof(struct in_addr));
                        f->list[f->n++].prefix_len = a->ifa_prefixlen;
                }
}

static int change_address(int fd, unsigned card, uint16_t type, struct in_addr address, uint8_t prefix_len) {
        struct message m;

        message_init(&m, type, type == RTM_NEWADDR ? NLM_F_CREATE | NLM_F_REPLACE : 0, sizeof(m.addr));
        m.addr.ifa_family = AF_INET;
        m.addr.ifa_prefixlen = prefix_len;
        m.addr.ifa_index = card;
        put_attribute(&m, IFA_LOCAL, &address, sizeof(address));
        put_attribute(&m, IFA_ADDRESS, &address, sizeof(address));
        if (type == RTM_NEWADDR && prefix_len < 31) {
                struct in_addr broadcast = {.s_addr = address.s_addr | htonl(UINT32_MAX >> prefix_len)};
                put_attribute(&m, IFA_BROADCAST, &broadcast, sizeof(broadcast));
        }
        return netlink_ask(fd, &m.h, NULL, NULL);
}

/* Takes away all addresses but the one that it shall have: connections over that go on. `reset`: that one, too. What is
 * gone is left in f. */
static int remove_addresses(int fd, const struct net_args *n, struct found *f) {
        struct message m;
        size_t gone = 0;

        message_init(&m, RTM_GETADDR, NLM_F_DUMP, sizeof(m.addr));
        m.addr.ifa_family = AF_UNSPEC;
        int r = netlink_ask(fd, &m.h, take_address, f);
        if (r == 0 && f->ipv6) /* the workload has turned it on */
                disable_ipv6(f->card);
        for (size_t i = 0; r == 0 && i < f->n; i++) {
                if (!n->reset && f->list[i].address.s_addr == n->address.s_addr &&
                    f->list[i].prefix_len == n->prefix_len)
                        continue;
                r = change_address(fd, f->card, RTM_DELADDR, f->list[i].address, f->list[i].prefix_len);
                /* Removing an address takes its secondary ones along. */
                if (r == -EADDRNOTAVAIL)
                        r = 0;
                f->list[gone++] = f->list[i];
        }
        f->n = gone;
        return r;
}

/* Without this the programs would wait for their peers for minutes. That is no reason to leave the machine without a
 * network. */
static void end_connections(const struct net_args *n, const struct found *gone, int initramfs_fd) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct in_addr local[ADDRESSES_MAX];
        struct sockets_over over = {.all = n->reset, .local = local};
        unsigned ended;

        for (size_t i = 0; i < gone->n; i++)
                if (gone->list[i].address.s_addr != n->address.s_addr) /* with another prefix it is still ours */
                        local[over.n_local++] = gone->list[i].address;
        if ((over.all || over.n_local > 0) && sockets_end(&over, initramfs_fd, &ended, &err) < 0)
                console_say("connections that are over go on: %s", error_message(&err));
}

static int set_default_route(int fd, unsigned card, const struct net_args *n) {
        struct message m;
        int r;

        message_init(&m, n->has_gateway ? RTM_NEWROUTE : RTM_DELROUTE,
                     n->has_gateway ? NLM_F_CREATE | NLM_F_REPLACE : 0, sizeof(m.route));
        m.route.rtm_family = AF_INET;
        m.route.rtm_table = RT_TABLE_MAIN;
        m.route.rtm_protocol = n->has_gateway ? RTPROT_STATIC : RTPROT_UNSPEC;
        m.route.rtm_scope = n->has_gateway ? RT_SCOPE_UNIVERSE : RT_SCOPE_NOWHERE;
        m.route.rtm_type = n->has_gateway ? RTN_UNICAST : RTN_UNSPEC;
        if (n->has_gateway) {
                /* The address may have no network around it that holds the gateway. */
                m.route.rtm_flags = RTNH_F_ONLINK;
                put_attribute(&m, RTA_GATEWAY, &n->gateway, sizeof(n->gateway));
        }
        put_attribute(&m, RTA_OIF, &card, sizeof(card));
        r = netlink_ask(fd, &m.h, NULL, NULL);
        return r == -ESRCH && !n->has_gateway ? 0 : r;
}

void net_prepare(void) {
        static const struct net_args as_it_is;
        _cleanup_close_ int fd = open_rtnetlink();
        unsigned card = first_card();

        if (fd < 0 || card == 0)
                return;
        disable_ipv6(card);
        if (set_link(fd, card, &as_it_is) == 0)
                prepared = card;
}

/*
 * The old address goes before the MAC changes, and the new one comes behind it: so nothing is ever sent with one that
 * belongs to the other. In between the machine has no address, and what its ended connections still say goes nowhere.
 */
static int configure_card(int fd, unsigned card, const struct net_args *n, int initramfs_fd, struct error *err) {
        struct found gone = {.card = card};
        int r = remove_addresses(fd, n, &gone);

        if (r < 0)
                return r == -ENODEV ? r : error_set_errno(err, r, "network: cannot take the old address away");
        end_connections(n, &gone, initramfs_fd);
        r = set_link(fd, card, n);
        if (r < 0)
                return r == -ENODEV
                               ? r
                               : error_set_errno(err, r, "network: cannot set the MAC address or bring the card up");
        r = change_address(fd, card, RTM_NEWADDR, n->address, n->prefix_len);
        if (r < 0)
                return error_set_errno(err, r, "network: cannot set the address");
        r = set_default_route(fd, card, n);
        return r < 0 ? error_set_errno(err, r, "network: cannot set the default route") : 0;
}

int net_configure_card(unsigned card, const struct net_args *n, int initramfs_fd, struct error *err) {
        _cleanup_close_ int fd = open_rtnetlink();

        if (fd < 0)
                return error_set_errno(err, fd, "network: cannot talk to the kernel");
        return configure_card(fd, card, n, initramfs_fd, err);
}

int net_configure(const struct net_args *n, int initramfs_fd, const struct op *op, struct error *err) {
        unsigned card = prepared;
        int r = card ? net_configure_card(card, n, initramfs_fd, err) : -ENODEV;

        if (r != -ENODEV)
                return r;
        r = wait_card(&card, op);
        if (r < 0)
                return error_set_errno(err, r, "network: no card");
        disable_ipv6(card);
        r = net_configure_card(card, n, initramfs_fd, err);
        return r == -ENODEV ? error_set_errno(err, r, "network: the card is gone") : r;
}
