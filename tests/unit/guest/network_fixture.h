/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* A network namespace of our own with a card, whose other end is a descriptor that has the frames. */

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest/init.h"
#include "guest/netlink.h"
#include "tap.h"

#define PATIENCE_MS 60000

static unsigned card;
static int card_fd = -1;

/* False: said why in TAP. */
static bool network_begin(void) {
        struct ifreq req = {.ifr_name = "card0", .ifr_flags = IFF_TAP | IFF_NO_PI};

        if (geteuid() != 0) {
                printf("1..0 # SKIP only root can make network cards\n");
                return false;
        }
        if (unshare(CLONE_NEWNET) == 0) /* first: the card is made where the file was opened */
                card_fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
        if (card_fd < 0 || ioctl(card_fd, TUNSETIFF, &req) < 0 || init_loopback() < 0) {
                printf("Bail out! no network of our own: %s\n", strerror(errno));
                return false;
        }
        card = if_nametoindex("card0");
        return true;
}

static struct net_args net_of(const char *address, unsigned prefix_len, const char *gateway, uint8_t mac) {
        struct net_args n = {.prefix_len = (uint8_t) prefix_len, .has_gateway = gateway, .has_mac = true};

        memcpy(n.mac, (uint8_t[]){2, 0, 0, 0, 0, mac}, sizeof(n.mac));
        if (inet_pton(AF_INET, address, &n.address) != 1 || (gateway && inet_pton(AF_INET, gateway, &n.gateway) != 1))
                abort();
        return n;
}

static void configure(const struct net_args *n) {
        _cleanup_error_ struct error err = ERROR_INIT;

        CHECK_INT(net_configure_card(card, n, -1, &err), 0);
        if (error_is_set(&err))
                printf("# %s\n", error_message(&err));
}
