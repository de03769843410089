/* SPDX-License-Identifier: Apache-2.0 */
#include "network/links.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "network/netlink.h"
#include "network/rules.h"

/* Bytes of a request. */
#define REQUEST_MAX 512

/* ---- settings ---- */

static int write_setting(const char *name, const char *value) {
        char path[128];

        snprintf(path, sizeof(path), "/proc/sys/net/%s", name);
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        return write(fd, value, strlen(value)) < 0 ? -errno : 0;
}

/* A container may have it read-only, with the right value. */
static bool is_forwarding(void) {
        char value = '0';
        _cleanup_close_ int fd = open("/proc/sys/net/ipv4/ip_forward", O_RDONLY | O_CLOEXEC);

        return fd >= 0 && read(fd, &value, 1) == 1 && value == '1';
}

int links_settings(struct error *err) {
        /* A new interface gets the values of `default`. A connection that conntrack_forget() has cut must not come to
         * life again with its next packet (tcp_loose); and what conntrack takes for invalid is answered with a reset,
         * so a segment that is only late must not be (tcp_be_liberal). What is refused is answered each time
         * (icmp_ratemask): it goes to whoever has asked, and nowhere else. A connection whose end nobody saw is given
         * up after two hours, not five days. The packet filter of IP must not see a frame that the bridge passes on
         * (bridge-nf). */
        static const struct {
                const char *name, *value;
        } wanted[] = {
                {"ipv4/conf/all/send_redirects", "0"},
                {"ipv4/conf/default/send_redirects", "0"},
                {"ipv4/conf/all/accept_redirects", "0"},
                {"ipv4/conf/default/accept_redirects", "0"},
                {"ipv6/conf/all/disable_ipv6", "1"},
                {"ipv6/conf/default/disable_ipv6", "1"},
                {"netfilter/nf_conntrack_tcp_loose", "0"},
                {"netfilter/nf_conntrack_tcp_be_liberal", "1"},
                {"bridge/bridge-nf-call-iptables", "0"},
                {"bridge/bridge-nf-call-ip6tables", "0"},
                {"bridge/bridge-nf-call-arptables", "0"},
                {"ipv4/icmp_ratemask", "0"},
                {"netfilter/nf_conntrack_tcp_timeout_established", "7200"},
        };

        /* Writing it resets the others of its kind, so it comes first, and only when it changes something. */
        int r = is_forwarding() ? 0 : write_setting("ipv4/ip_forward", "1");
        if (r < 0) {
                error_set_errno(err, r, "cannot set net.ipv4.ip_forward in the workspaces' network namespace");
                error_hint(err, "/proc/sys must be writable: in a container, run it privileged.");
                return r;
        }
        for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
                (void) write_setting(wanted[i].name, wanted[i].value); /* the packet filter stands behind them */
        return 0;
}

/* ---- requests ---- */

static struct nlmsghdr *link_request(void *buffer, uint16_t type, unsigned index) {
        struct nlmsghdr *h = mnl_nlmsg_put_header(buffer);

        h->nlmsg_type = type;
        struct ifinfomsg *body = mnl_nlmsg_put_extra_header(h, sizeof(*body));
        *body = (struct ifinfomsg){.ifi_family = AF_UNSPEC, .ifi_index = (int) index};
        return h;
}

static int set_up(struct netlink *nl, unsigned index, bool up, const struct op *op) {
        char buffer[REQUEST_MAX];
        struct nlmsghdr *h = link_request(buffer, RTM_NEWLINK, index);
        struct ifinfomsg *body = mnl_nlmsg_get_payload(h);

        body->ifi_flags = up ? IFF_UP : 0;
        body->ifi_change = IFF_UP;
        return netlink_ask(nl, h, op);
}

/* An index, or a negative errno. */
static int index_of(const char *name) {
        unsigned index = if_nametoindex(name);

        return index > 0 ? (int) index : -errno;
}

/* ---- the bridge ---- */

static int make_bridge(struct netlink *nl, const struct links_gateway *gateway, const struct op *op) {
        char buffer[REQUEST_MAX];
        struct nlmsghdr *h = link_request(buffer, RTM_NEWLINK, 0);
        uint8_t mac[CARD_MAC_BYTES];

        card_mac(gateway->address, mac);
        /* The MAC of a bridge that is there is left alone: setting it, even to the same value, would drop all its
         * neighbours. */
        h->nlmsg_flags |= NLM_F_CREATE | NLM_F_EXCL;
        mnl_attr_put_strz(h, IFLA_IFNAME, RULES_BRIDGE);
        mnl_attr_put(h, IFLA_ADDRESS, sizeof(mac), mac);
        struct nlattr *info = mnl_attr_nest_start(h, IFLA_LINKINFO);
        mnl_attr_put_strz(h, IFLA_INFO_KIND, "bridge");
        struct nlattr *data = mnl_attr_nest_start(h, IFLA_INFO_DATA);
        mnl_attr_put_u32(h, IFLA_BR_STP_STATE, 0);
        mnl_attr_put_u8(h, IFLA_BR_MCAST_SNOOPING, 0);
        mnl_attr_nest_end(h, data);
        mnl_attr_nest_end(h, info);
        int r = netlink_ask(nl, h, op);
        return r == -EEXIST ? 0 : r;
}

struct addresses {
        unsigned index;           /* of the link they belong to */
        struct links_gateway one; /* the last one; address 0: none */
};

static int see_address(const struct nlmsghdr *h, void *arg) {
        const struct ifaddrmsg *body = mnl_nlmsg_get_payload(h);
        struct addresses *list = arg;
        const struct nlattr *a;

        if (h->nlmsg_type != RTM_NEWADDR || body->ifa_index != list->index)
                return 0;
        netlink_for_each(a, h, sizeof(*body)) {
                if (mnl_attr_get_type(a) == IFA_LOCAL && mnl_attr_validate(a, MNL_TYPE_U32) == 0)
                        list->one = (struct links_gateway){ntohl(mnl_attr_get_u32(a)), body->ifa_prefixlen};
        }
        return 0;
}

static int address_of(struct netlink *nl, unsigned index, const struct op *op, struct links_gateway *ret) {
        char buffer[REQUEST_MAX];
        struct nlmsghdr *h = mnl_nlmsg_put_header(buffer);
        struct addresses list = {.index = index};

        h->nlmsg_type = RTM_GETADDR;
        struct ifaddrmsg *body = mnl_nlmsg_put_extra_header(h, sizeof(*body));
        *body = (struct ifaddrmsg){.ifa_family = AF_INET};
        int r = netlink_dump(nl, h, see_address, &list, op);
        if (r >= 0)
                *ret = list.one;
        return r;
}

static int add_address(struct netlink *nl, unsigned index, const struct links_gateway *gateway, const struct op *op) {
        char buffer[REQUEST_MAX];
        struct nlmsghdr *h = mnl_nlmsg_put_header(buffer);

        h->nlmsg_type = RTM_NEWADDR;
        h->nlmsg_flags = NLM_F_CREATE | NLM_F_EXCL;
        struct ifaddrmsg *body = mnl_nlmsg_put_extra_header(h, sizeof(*body));
        *body = (struct ifaddrmsg){
                .ifa_family = AF_INET,
                .ifa_prefixlen = (uint8_t) gateway->prefix_len,
                .ifa_index = index,
        };
        mnl_attr_put_u32(h, IFA_LOCAL, htonl(gateway->address));
        mnl_attr_put_u32(h, IFA_ADDRESS, htonl(gateway->address));
        return netlink_ask(nl, h, op);
}

static int set_address(struct netlink *nl, unsigned index, const struct links_gateway *wanted, const struct op *op,
                       struct error *err) {
        struct links_gateway found;

        int r = address_of(nl, index, op, &found);
        if (r >= 0 && found.address == 0)
                r = add_address(nl, index, wanted, op);
        else if (r >= 0 && (found.address != wanted->address || found.prefix_len != wanted->prefix_len)) {
                error_set(err, ERROR_CONFLICT, "the bridge " RULES_BRIDGE " belongs to another network");
                error_hint(err, "Stop all workspaces with `agentiso stop --all`; the network is then made anew.");
                return -EEXIST;
        }
        return r < 0 ? error_set_errno(err, r, "cannot give the bridge " RULES_BRIDGE " its address") : 0;
}

/* The last choice for what no other route has. Without an uplink the kernel would find no way for such a packet and
 * drop it before the rules see it, and a guest whose connection was cut while it was silent would never be told. On its
 * way to this interface the rules refuse it. */
static int add_last_route(struct netlink *nl, unsigned index, const struct op *op) {
        char buffer[REQUEST_MAX];
        struct nlmsghdr *h = mnl_nlmsg_put_header(buffer);
        const struct rtmsg body = {
                .rtm_family = AF_INET,
                .rtm_table = RT_TABLE_MAIN,
                .rtm_protocol = RTPROT_STATIC,
                .rtm_scope = RT_SCOPE_LINK,
                .rtm_type = RTN_UNICAST,
        };

        h->nlmsg_type = RTM_NEWROUTE;
        h->nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE;
        memcpy(mnl_nlmsg_put_extra_header(h, sizeof(body)), &body, sizeof(body));
        mnl_attr_put_u32(h, RTA_OIF, index);
        mnl_attr_put_u32(h, RTA_PRIORITY, UINT32_MAX);
        return netlink_ask(nl, h, op);
}

int links_bridge(struct netlink *nl, const struct links_gateway *gateway, const struct op *op, struct error *err) {
        int r = make_bridge(nl, gateway, op);
        int index = r < 0 ? r : index_of(RULES_BRIDGE);

        if (index < 0)
                return error_set_errno(err, index, "cannot make the bridge " RULES_BRIDGE);
        r = set_address(nl, (unsigned) index, gateway, op, err);
        if (r < 0)
                return r;
        const int loopback = index_of("lo");
        if (loopback < 0 || (r = set_up(nl, (unsigned) index, true, op)) < 0 ||
            (r = set_up(nl, (unsigned) loopback, true, op)) < 0 ||
            (r = add_last_route(nl, (unsigned) loopback, op)) < 0)
                return error_set_errno(err, loopback < 0 ? loopback : r, "cannot put up the bridge " RULES_BRIDGE);
        return 0;
}

/* ---- taps ---- */

static int open_tap(const char *name) {
        struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};

        _cleanup_close_ int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
                return -errno;
        memcpy(request.ifr_name, name, strlen(name));
        return ioctl(fd, TUNSETIFF, &request) < 0 ? -errno : TAKE_FD(fd);
}

/* Where there is no IPv6 there is no such setting; where it cannot be written, the packet filter drops IPv6. */
static void turn_off_ipv6(const char *name) {
        char setting[sizeof("ipv6/conf//disable_ipv6") + IF_NAMESIZE];

        snprintf(setting, sizeof(setting), "ipv6/conf/%s/disable_ipv6", name);
        (void) write_setting(setting, "1");
}

static struct nlmsghdr *neighbour_request(void *buffer, const struct ndmsg *body, uint32_t address) {
        struct nlmsghdr *h = mnl_nlmsg_put_header(buffer);
        uint8_t mac[CARD_MAC_BYTES];

        h->nlmsg_type = RTM_NEWNEIGH;
        h->nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE;
        memcpy(mnl_nlmsg_put_extra_header(h, sizeof(*body)), body, sizeof(*body));
        card_mac(address, mac);
        mnl_attr_put(h, NDA_LLADDR, sizeof(mac), mac);
        return h;
}

/* The address is at the card's MAC, for ever. */
static int add_neighbour(struct netlink *nl, uint32_t address, const struct op *op) {
        char buffer[REQUEST_MAX];
        int bridge = index_of(RULES_BRIDGE);
        const struct ndmsg body = {.ndm_family = AF_INET, .ndm_ifindex = bridge, .ndm_state = NUD_PERMANENT};

        if (bridge < 0)
                return bridge;
        struct nlmsghdr *h = neighbour_request(buffer, &body, address);
        mnl_attr_put_u32(h, NDA_DST, htonl(address));
        return netlink_ask(nl, h, op);
}

int links_tap(struct netlink *nl, const struct card *card, const struct op *op, int *ret_fd, struct error *err) {
        char name[IF_NAMESIZE];

        card_name(card, name);
        _cleanup_close_ int fd = open_tap(name);
        if (fd == -EBUSY) {
                error_set(err, ERROR_CONFLICT, "the tap %s is in use", name);
                return -EBUSY;
        }
        if (fd < 0) {
                int r = error_set_errno(err, fd, "cannot make the tap %s with /dev/net/tun", name);
                if (r == -ENOENT || r == -ENODEV || r == -ENXIO)
                        error_hint(err, "Load the kernel module tun: `modprobe tun`.");
                else if (r == -EACCES)
                        error_hint(err, "This user must be allowed to open /dev/net/tun; its usual mode is 0666.");
                return r;
        }
        turn_off_ipv6(name);
        int r = add_neighbour(nl, card->address, op);
        if (r < 0)
                return error_set_errno(err, r, "cannot make the tap %s known", name);
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* ---- on the bridge and off it ---- */

static int set_master(struct netlink *nl, unsigned index, unsigned master, const struct op *op) {
        char buffer[REQUEST_MAX];
        struct nlmsghdr *h = link_request(buffer, RTM_NEWLINK, index);

        mnl_attr_put_u32(h, IFLA_MASTER, master);
        return netlink_ask(nl, h, op);
}

static int isolate(struct netlink *nl, unsigned index, const struct op *op) {
        static const struct {
                uint16_t flag;
                uint8_t on;
        } wanted[] = {
                {IFLA_BRPORT_ISOLATED, 1},    {IFLA_BRPORT_LEARNING, 0},    {IFLA_BRPORT_UNICAST_FLOOD, 0},
                {IFLA_BRPORT_MCAST_FLOOD, 0}, {IFLA_BRPORT_BCAST_FLOOD, 0},
        };
        char buffer[REQUEST_MAX];
        struct nlmsghdr *h = link_request(buffer, RTM_SETLINK, index);
        struct ifinfomsg *body = mnl_nlmsg_get_payload(h);

        body->ifi_family = AF_BRIDGE;
        struct nlattr *port = mnl_attr_nest_start(h, IFLA_PROTINFO);
        for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
                mnl_attr_put_u8(h, wanted[i].flag, wanted[i].on);
        mnl_attr_nest_end(h, port);
        return netlink_ask(nl, h, op);
}

/* The card's MAC is at this port, whichever had it before. */
static int add_entry(struct netlink *nl, unsigned index, uint32_t address, const struct op *op) {
        char buffer[REQUEST_MAX];
        const struct ndmsg body = {
                .ndm_family = AF_BRIDGE,
                .ndm_ifindex = (int) index,
                .ndm_state = NUD_NOARP,
                .ndm_flags = NTF_MASTER,
        };

        return netlink_ask(nl, neighbour_request(buffer, &body, address), op);
}

/* A tap that is up without being on the bridge would be an interface of the namespace like any other, and its frames
 * would not pass the bridge's rules: it is down first. */
static int detach(struct netlink *nl, unsigned index, const struct op *op) {
        int r = set_up(nl, index, false, op);

        return r < 0 ? r : set_master(nl, index, 0, op);
}

/* Both are on the bridge for a moment: a failure to put the new one there must leave the old one as it was. */
static int change_ports(struct netlink *nl, const struct card *card, unsigned index, const struct op *op) {
        const struct card other = {.address = card->address, .slot = card->slot == 0};
        char other_name[IF_NAMESIZE];
        int r, bridge = index_of(RULES_BRIDGE);

        if (bridge < 0)
                return bridge;
        if ((r = set_master(nl, index, (unsigned) bridge, op)) < 0)
                return r;
        if ((r = isolate(nl, index, op)) < 0 || (r = set_up(nl, index, true, op)) < 0 ||
            (r = add_entry(nl, index, card->address, op)) < 0) {
                (void) detach(nl, index, op);
                return r;
        }
        card_name(&other, other_name);
        int other_index = index_of(other_name);
        r = other_index < 0 ? 0 : detach(nl, (unsigned) other_index, op);
        return r == -ENODEV ? 0 : r; /* it has just ended */
}

int links_attach(struct netlink *nl, const struct card *card, const struct op *op, struct error *err) {
        char name[IF_NAMESIZE];

        card_name(card, name);
        int index = index_of(name);
        if (index < 0) {
                error_set(err, ERROR_NOT_FOUND, "there is no tap %s", name);
                return -ENODEV;
        }
        int r = change_ports(nl, card, (unsigned) index, op);
        if (r == -EXFULL) {
                error_set(err, ERROR_QUOTA_EXCEEDED, "the bridge " RULES_BRIDGE " has no room for another card");
                error_hint(err, "The kernel allows 1023 of them at a time; stop some workspaces.");
                return r;
        }
        return r < 0 ? error_set_errno(err, r, "cannot put the tap %s on the bridge " RULES_BRIDGE, name) : 0;
}

/* ---- waiting ---- */

static int is_ready(struct netlink *nl, const char *name, const struct op *op) {
        struct ifreq request = {0};
        struct links_gateway address = {0};
        int index = index_of(name);

        if (index < 0)
                return 0;
        _cleanup_close_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return -errno;
        memcpy(request.ifr_name, name, strlen(name));
        if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
                return errno == ENODEV ? 0 : -errno;
        if (!(request.ifr_flags & IFF_UP) || !(request.ifr_flags & IFF_RUNNING))
                return 0;
        int r = address_of(nl, (unsigned) index, op, &address);
        return r < 0 ? r : address.address != 0;
}

int links_wait(struct netlink *nl, const char *name, const struct op *op) {
        _cleanup_netlink_ struct netlink news = {0};

        /* The news first: what happens after the look is then heard of. */
        int r = netlink_open(NETLINK_ROUTE, RTMGRP_LINK | RTMGRP_IPV4_IFADDR, &news);
        while (r >= 0) {
                int ready = is_ready(nl, name, op);

                if (ready != 0)
                        return MIN(ready, 0);
                r = netlink_wait(&news, op);
        }
        return r;
}
