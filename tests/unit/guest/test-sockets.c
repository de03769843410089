/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that end with the network they went over, and those that do not. */
#include "network_fixture.h"

#include <sys/resource.h>

#include "guest/sockets.h"

#define ADDRESS "10.99.0.7"
#define MANY 3000 /* more than one round */

/* A connection: both ends. */
struct ends {
        int client, server;
};

static int listen_at(const char *address, uint16_t *ret_port) {
        struct sockaddr_in at = {.sin_family = AF_INET};
        socklen_t len = sizeof(at);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        inet_pton(AF_INET, address, &at.sin_addr);
        if (bind(fd, (struct sockaddr *) &at, len) < 0 || listen(fd, 64) < 0 ||
            getsockname(fd, (struct sockaddr *) &at, &len) < 0)
                abort();
        *ret_port = ntohs(at.sin_port);
        return fd;
}

/* mapped: by a socket of IPv6. */
static int dial(int type, const char *address, uint16_t port, bool mapped) {
        struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
        struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
        int fd = socket(mapped ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, 0);

        inet_pton(AF_INET, address, &v4.sin_addr);
        v6.sin6_addr.s6_addr[10] = v6.sin6_addr.s6_addr[11] = 0xff;
        memcpy(&v6.sin6_addr.s6_addr[12], &v4.sin_addr, sizeof(v4.sin_addr));
        if (connect(fd, mapped ? (struct sockaddr *) &v6 : (struct sockaddr *) &v4, mapped ? sizeof(v6) : sizeof(v4)) <
            0)
                abort();
        return fd;
}

static struct ends make(int listening, const char *address, uint16_t port, bool mapped) {
        struct ends e = {.client = dial(SOCK_STREAM, address, port, mapped)};

        e.server = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
        return e;
}

static void drop(struct ends *e) {
        close(e->client);
        close(e->server);
}

static bool goes_on(const struct ends *e) {
        char c = 0;

        return send(e->client, "x", 1, MSG_NOSIGNAL) == 1 && recv(e->server, &c, 1, 0) == 1 && c == 'x' &&
               send(e->server, "y", 1, MSG_NOSIGNAL) == 1 && recv(e->client, &c, 1, 0) == 1 && c == 'y';
}

static bool is_ended(int fd) {
        int failed = 0;
        socklen_t len = sizeof(failed);

        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &len) == 0 && failed == ECONNABORTED;
}

static bool has_failed(int fd) {
        int failed = 0;
        socklen_t len = sizeof(failed);

        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &len) == 0 && failed != 0;
}

static void begin_at(const char *address) {
        struct net_args n = net_of(address, 32, "10.99.0.1", 7);

        configure(&n);
}

static void test_reset(void) {
        struct net_args n = net_of(ADDRESS, 32, "10.99.0.1", 7);
        uint16_t port = 0, udp_port = 9;

        begin_at(ADDRESS);
        const int listening = listen_at("0.0.0.0", &port);
        struct ends within = make(listening, "127.0.0.1", port, false), over = make(listening, ADDRESS, port, false);
        struct ends mapped = make(listening, ADDRESS, port, true),
                    within_mapped = make(listening, "127.0.0.1", port, true);
        const int asks = dial(SOCK_DGRAM, "198.51.100.1", udp_port, false);
        const int asks_within = dial(SOCK_DGRAM, "127.0.0.1", port, false);
        const int asks_mapped = dial(SOCK_DGRAM, "198.51.100.1", udp_port, true);

        n.reset = true;
        configure(&n);
        CHECK(is_ended(over.client) && is_ended(over.server));
        CHECK(is_ended(mapped.client) && is_ended(mapped.server));
        CHECK(is_ended(asks) && is_ended(asks_mapped));
        CHECK(goes_on(&within) && goes_on(&within_mapped));
        CHECK(!is_ended(asks_within));
        struct ends later = make(listening, ADDRESS, port, false);
        CHECK(goes_on(&later));
        drop(&within), drop(&over), drop(&mapped), drop(&within_mapped), drop(&later);
        close(asks), close(asks_within), close(asks_mapped), close(listening);
}

/* Somebody that never answers, which is what a program would wait for. */
static void test_half_open(void) {
        struct net_args n = net_of(ADDRESS, 32, "10.99.0.1", 7);
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        begin_at(ADDRESS);
        inet_pton(AF_INET, "198.51.100.1", &to.sin_addr);
        REQUIRE(connect(fd, (struct sockaddr *) &to, sizeof(to)) < 0 && errno == EINPROGRESS);
        n.reset = true;
        configure(&n);
        CHECK(is_ended(fd));
        close(fd);
}

static void test_another_address(void) {
        struct net_args other = net_of("10.99.0.8", 32, "10.99.0.1", 8), wider = net_of(ADDRESS, 24, NULL, 7);
        uint16_t port = 0;

        begin_at(ADDRESS);
        const int listening = listen_at("0.0.0.0", &port);
        struct ends within = make(listening, "127.0.0.1", port, false), over = make(listening, ADDRESS, port, false);
        struct ends mapped = make(listening, ADDRESS, port, true);
        begin_at(ADDRESS);
        configure(&wider);
        CHECK(goes_on(&over));
        configure(&other);
        CHECK(is_ended(over.client) && is_ended(over.server) && is_ended(mapped.client));
        CHECK(goes_on(&within));
        struct ends later = make(listening, "10.99.0.8", port, false);
        CHECK(goes_on(&later));
        drop(&within), drop(&over), drop(&mapped), drop(&later);
        close(listening);
}

static void test_many(void) {
        const struct rlimit files = {.rlim_cur = 3 * MANY, .rlim_max = 3 * MANY};
        static struct ends all[MANY];
        const struct sockets_over over = {.all = true};
        unsigned ended = 0, wrong = 0;
        uint16_t port = 0;

        REQUIRE(setrlimit(RLIMIT_NOFILE, &files) == 0);
        begin_at(ADDRESS);
        const int listening = listen_at(ADDRESS, &port);
        for (size_t i = 0; i < MANY; i++)
                all[i] = make(listening, ADDRESS, port, false);
        int64_t t0 = monotonic_ns();
        CHECK_INT(sockets_end(&over, -1, &ended, NULL), 0);
        printf("# %u sockets ended in %.1f ms\n", ended, (double) (monotonic_ns() - t0) / (double) NSEC_PER_MSEC);
        /* The other end of each may have ended by what the first one still said: the address is there. */
        CHECK(ended >= MANY && ended <= 2 * MANY);
        for (size_t i = 0; i < MANY; i++) {
                wrong += !has_failed(all[i].client) || !has_failed(all[i].server);
                drop(&all[i]);
        }
        CHECK_INT(wrong, 0);
        t0 = monotonic_ns();
        CHECK_INT(sockets_end(&over, -1, &ended, NULL), 0);
        printf("# nothing to end: %.2f ms\n", (double) (monotonic_ns() - t0) / (double) NSEC_PER_MSEC);
        CHECK_INT(ended, 0);
        close(listening);
}

static bool kernel_can(void) {
        const struct sockets_over over = {.all = true};
        uint16_t port = 0;
        unsigned ended;

        begin_at(ADDRESS);
        const int listening = listen_at(ADDRESS, &port);
        struct ends e = make(listening, ADDRESS, port, false);
        int r = sockets_end(&over, -1, &ended, NULL);
        drop(&e);
        close(listening);
        return r != -EOPNOTSUPP && r != -ENOENT;
}

int main(void) {
        if (!network_begin())
                return geteuid() != 0 ? 0 : 1;
        if (!kernel_can()) {
                printf("1..0 # SKIP the kernel cannot end sockets (INET_DIAG_DESTROY)\n");
                return 0;
        }
        RUN(test_reset);
        RUN(test_half_open);
        RUN(test_another_address);
        RUN(test_many);
        return tap_done();
}
