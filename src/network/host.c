/* SPDX-License-Identifier: Apache-2.0 */
/* What the rules must know of the host: its own addresses, which no guest may reach by way of the internet. */
#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "base/util.h"
#include "network/host.h"

int host_addresses(uint32_t *ret, size_t max, size_t *ret_n) {
        struct ifaddrs *list;
        size_t n = 0;

        if (getifaddrs(&list) < 0)
                return -errno;
        for (const struct ifaddrs *i = list; i && n < max; i = i->ifa_next)
                if (i->ifa_addr && i->ifa_addr->sa_family == AF_INET)
                        ret[n++] = ntohl(((const struct sockaddr_in *) (const void *) i->ifa_addr)->sin_addr.s_addr);
        freeifaddrs(list);
        *ret_n = n;
        return 0;
}

int host_watch(void) {
        const struct sockaddr_nl to = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_IFADDR};

        _cleanup_close_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
        if (fd < 0 || bind(fd, (const struct sockaddr *) &to, sizeof(to)) < 0)
                return -errno;
        return TAKE_FD(fd);
}
