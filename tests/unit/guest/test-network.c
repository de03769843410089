/* SPDX-License-Identifier: Apache-2.0 */
/* The card's address and route, and what leaves by it. */
#include "network_fixture.h"

#include <net/ethernet.h>
#include <netinet/if_ether.h>
#include <netinet/ip.h>
#include <stdatomic.h>

#include "base/file.h"
#include "base/str.h"
#include "base/thread.h"

/* The card's whole address, or "". */
static const char *address_of_card(void) {
        static char text[40];
        struct ifreq a = {.ifr_name = "card0"}, m = {.ifr_name = "card0"};
        char address[INET_ADDRSTRLEN];
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        bool ok = ioctl(fd, SIOCGIFADDR, &a) == 0 && ioctl(fd, SIOCGIFNETMASK, &m) == 0;

        close(fd);
        inet_ntop(AF_INET, &((struct sockaddr_in *) &a.ifr_addr)->sin_addr, address, sizeof(address));
        snprintf(text, sizeof(text), "%s/%d", address,
                 __builtin_popcount(((struct sockaddr_in *) &m.ifr_netmask)->sin_addr.s_addr));
        return ok ? text : "";
}

/* Gateways of all default routes, each with a blank behind it. */
static const char *default_routes(void) {
        static char text[200];
        _cleanup_free_ char *table = NULL;
        char *rest = NULL;

        text[0] = '\0';
        if (file_read_all("/proc/thread-self/net/route", 1 << 16, &table, NULL) < 0)
                abort();
        for (char *line = strtok_r(table, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
                struct in_addr gateway;
                char one[INET_ADDRSTRLEN + 1];

                if (sscanf(line, "card0 00000000 %x", &gateway.s_addr) != 1)
                        continue;
                inet_ntop(AF_INET, &gateway, one, sizeof(one));
                snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s ", one);
        }
        return text;
}

/* ---- frames ---- */

/* MAC (its last byte) and address of the sender of a frame; false for one that has none of IPv4. */
static bool sender_of(const uint8_t *frame, size_t n, uint8_t *ret_mac, struct in_addr *ret) {
        const struct ether_header *eth = (const struct ether_header *) frame;
        const struct ether_arp *arp = (const struct ether_arp *) (eth + 1);
        const struct iphdr *ip = (const struct iphdr *) (eth + 1);

        *ret_mac = eth->ether_shost[ETH_ALEN - 1];
        if (n >= sizeof(*eth) + sizeof(*arp) && eth->ether_type == htons(ETHERTYPE_ARP))
                memcpy(ret, arp->arp_spa, sizeof(*ret));
        else if (n >= sizeof(*eth) + sizeof(*ip) && eth->ether_type == htons(ETHERTYPE_IP))
                memcpy(ret, &ip->saddr, sizeof(*ret));
        else
                return false;
        return true;
}

/* Waits for a question of the card for the MAC of an address. */
static bool asks_for(const char *address, const struct net_args *as) {
        struct pollfd p = {.fd = card_fd, .events = POLLIN};
        struct in_addr wanted;
        uint8_t frame[2048];

        inet_pton(AF_INET, address, &wanted);
        while (poll(&p, 1, PATIENCE_MS) > 0) {
                ssize_t n = read(card_fd, frame, sizeof(frame));
                const struct ether_header *eth = (const struct ether_header *) frame;
                const struct ether_arp *arp = (const struct ether_arp *) (eth + 1);

                if (n >= (ssize_t) (sizeof(*eth) + sizeof(*arp)) && eth->ether_type == htons(ETHERTYPE_ARP))
                        return memcmp(arp->arp_tpa, &wanted, sizeof(wanted)) == 0 &&
                               memcmp(arp->arp_spa, &as->address, sizeof(as->address)) == 0 &&
                               memcmp(arp->arp_sha, as->mac, sizeof(as->mac)) == 0;
        }
        return false;
}

static void send_to(const char *address) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        inet_pton(AF_INET, address, &to.sin_addr);
        CHECK_INT(sendto(fd, "x", 1, 0, (struct sockaddr *) &to, sizeof(to)), 1);
        close(fd);
}

/* ---- tests ---- */

static void test_alone_in_its_network(void) {
        struct net_args n = net_of("10.99.0.7", 32, "10.99.0.1", 7);

        configure(&n);
        CHECK_STR(address_of_card(), "10.99.0.7/32");
        CHECK_STR(default_routes(), "10.99.0.1 ");
        send_to("198.51.100.1");
        CHECK(asks_for("10.99.0.1", &n));
}

static void test_in_a_network(void) {
        struct net_args n = net_of("10.99.1.8", 24, "10.99.1.1", 8);

        configure(&n);
        CHECK_STR(address_of_card(), "10.99.1.8/24");
        CHECK_STR(default_routes(), "10.99.1.1 ");
        send_to("198.51.100.1");
        CHECK(asks_for("10.99.1.1", &n));
        send_to("10.99.1.77");
        CHECK(asks_for("10.99.1.77", &n));
}

static void test_again_and_without_gateway(void) {
        struct net_args n = net_of("10.99.0.7", 32, "10.99.0.1", 7), none = net_of("10.99.0.7", 32, NULL, 7);

        configure(&n);
        configure(&n);
        CHECK_STR(default_routes(), "10.99.0.1 ");
        n = net_of("10.99.0.7", 32, "10.99.0.2", 7);
        configure(&n);
        CHECK_STR(default_routes(), "10.99.0.2 ");
        n.reset = true;
        configure(&n);
        CHECK_STR(address_of_card(), "10.99.0.7/32");
        CHECK_STR(default_routes(), "10.99.0.2 ");
        configure(&none);
        CHECK_STR(default_routes(), "");
}

static void test_no_such_card(void) {
        struct net_args n = net_of("10.99.0.7", 32, "10.99.0.1", 7);

        CHECK_INT(net_configure_card(card + 1000, &n, -1, NULL), -ENODEV);
}

/* A workload that never stops sending, and what arrives of it. */
static atomic_bool enough;
static unsigned mixed, seen;

static void *send_always(void *arg) {
        const struct sockaddr_in to = {
                .sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_BROADCAST)};
        const int on = 1, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        if (setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof(on)) < 0 ||
            setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "card0", 6) < 0)
                abort();
        while (!enough)
                if (sendto(fd, "x", 1, 0, (const struct sockaddr *) &to, sizeof(to)) < 0)
                        sched_yield();
        close(fd);
        return NULL;
}

/* Here the last bytes of MAC and address are the same, or there is no address. */
static void look_at(const uint8_t *frame, size_t n) {
        struct in_addr from;
        uint8_t mac;

        if (!sender_of(frame, n, &mac, &from) || from.s_addr == 0)
                return;
        seen++;
        mixed += (ntohl(from.s_addr) & 0xff) != mac;
}

static void *look_always(void *arg) {
        struct pollfd p = {.fd = card_fd, .events = POLLIN};
        uint8_t frame[2048];

        while (poll(&p, 1, enough ? 0 : 10) > 0 || !enough) {
                ssize_t n = read(card_fd, frame, sizeof(frame));
                if (n > 0)
                        look_at(frame, (size_t) n);
        }
        return NULL;
}

static void test_no_address_with_another_mac(void) {
        pthread_t sender, looker;

        if (thread_start(&sender, "sender", send_always, NULL) < 0 ||
            thread_start(&looker, "looker", look_always, NULL) < 0)
                abort();
        for (uint8_t i = 0; i < 200; i++) {
                _cleanup_free_ char *address = str_printf("10.99.0.%u", 20u + i);
                struct net_args n = net_of(address, 32, "10.99.0.1", (uint8_t) (20 + i));

                n.reset = i % 2;
                configure(&n);
        }
        enough = true;
        pthread_join(sender, NULL);
        pthread_join(looker, NULL);
        CHECK(seen > 0);
        CHECK_INT(mixed, 0);
}

int main(void) {
        if (!network_begin())
                return geteuid() != 0 ? 0 : 1;
        RUN(test_alone_in_its_network);
        RUN(test_in_a_network);
        RUN(test_again_and_without_gateway);
        RUN(test_no_such_card);
        RUN(test_no_address_with_another_mac);
        return tap_done();
}
