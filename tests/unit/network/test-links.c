/* SPDX-License-Identifier: Apache-2.0 */
/* Bridge, taps and entries, as iproute2 shows them. */
#include "fixture.h"
#include "network/links.h"
#include "network/netlink.h"
#include "network/rules.h"

static struct netlink nl;
static const struct links_gateway gateway = {GATEWAY, 16};

static char *output_of(const char *command) {
        char *const argv[] = {(char *) "sh", (char *) "-c", (char *) command, NULL};
        struct buf out = BUF_INIT(1 << 20);
        struct op op = op_timeout(10000);

        (void) process_run(argv, &op, &out, NULL, NULL);
        return out.len > 0 ? buf_steal(&out) : strdup("");
}

static void check_says(const char *command, const char *text, bool wanted) {
        _cleanup_free_ char *out = output_of(command);
        bool found = strstr(out, text);

        if (found != wanted)
                printf("# `%s` says: %s\n# about: %s\n", command, out, text);
        CHECK_INT(found, wanted);
}

static int tap(uint32_t address, uint32_t slot) {
        const struct card card = {address, slot};
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op_timeout(10000);
        int fd = -1;

        int r = links_tap(&nl, &card, &op, &fd, &err);
        if (r < 0)
                printf("# %s\n", error_message(&err));
        return r < 0 ? r : fd;
}

static int attach(uint32_t address, uint32_t slot) {
        const struct card card = {address, slot};
        struct op op = op_timeout(10000);

        return links_attach(&nl, &card, &op, NULL);
}

static void test_bridge(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op_timeout(10000);

        CHECK_INT(links_settings(&err), 0);
        REQUIRE(links_bridge(&nl, &gateway, &op, &err) == 0);
        check_says("ip -d link show br-agentiso", "52:54:00:63:00:01", true);
        check_says("ip -d link show br-agentiso", "mcast_snooping 0", true);
        check_says("ip -d link show br-agentiso", "stp_state 0", true);
        check_says("ip -o addr show br-agentiso", "inet 10.99.0.1/16", true);
        check_says("ip -o addr show br-agentiso", "inet6", false);
        check_says("ip link show br-agentiso", ",UP", true);
        check_says("ip link show lo", ",UP", true);
        check_says("ip route show default", "dev lo", true);
        check_says("cat /proc/sys/net/ipv4/ip_forward", "1", true);
        check_says("cat /proc/sys/net/ipv4/conf/*/send_redirects", "1", false);
        check_says("cat /proc/sys/net/ipv4/conf/all/accept_redirects", "0", true);
}

static void test_bridge_again(void) {
        const struct links_gateway other = {GATEWAY, 24};
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op_timeout(10000);

        _cleanup_close_ int fd = tap(NET + 9, 0);
        REQUIRE(fd >= 0);
        CHECK_INT(attach(NET + 9, 0), 0);
        _cleanup_free_ char *before = output_of(
                "ip -o link | grep -o 'link.ether [^ ]*'; ip -o addr; ip neigh; bridge fdb show br br-agentiso");
        CHECK_INT(links_bridge(&nl, &gateway, &op, &err), 0);
        _cleanup_free_ char *after = output_of(
                "ip -o link | grep -o 'link.ether [^ ]*'; ip -o addr; ip neigh; bridge fdb show br br-agentiso");
        CHECK_STR(after, before);
        CHECK(strstr(after, "10.99.0.9 "));
        CHECK_INT(links_bridge(&nl, &other, &op, &err), -EEXIST);
        CHECK_INT(err.code, ERROR_CONFLICT);
        CHECK(err.hint && strstr(err.hint, "stop --all"));
}

static void test_tap(void) {
        int fd = tap(NET + 2, 0);

        REQUIRE(fd >= 0);
        check_says("ip link show ag630002a", ",UP", false); /* not before it is on the bridge */
        check_says("ip -d link show ag630002a", "persist off", true);
        check_says("ip -d link show ag630002a", "vnet_hdr on", true);
        check_says("ip -d link show ag630002a", "master", false);
        check_says("ip neigh show 10.99.0.2", "dev br-agentiso lladdr 52:54:00:63:00:02 PERMANENT", true);
        check_says("cat /proc/sys/net/ipv6/conf/ag630002a/disable_ipv6 || echo 1", "1", true);
        CHECK_INT(tap(NET + 2, 0), -EBUSY);
        close_fd(fd);
        check_says("ip -o link", "ag630002a", false); /* it went with its descriptor */
        fd = tap(NET + 2, 0);
        CHECK(fd >= 0);
        close_fd(fd);
}

static void test_attach(void) {
        _cleanup_close_ int a = tap(NET + 2, 0), b = -1;

        CHECK_INT(attach(NET + 2, 1), -ENODEV);
        REQUIRE(a >= 0);
        CHECK_INT(attach(NET + 2, 0), 0);
        check_says("ip -o link show ag630002a", "master br-agentiso", true);
        check_says("ip -o link show ag630002a", ",UP", true);
        static const char *const flags[] = {"isolated on", "learning off", "flood off", "mcast_flood off",
                                            "bcast_flood off"};
        for (size_t i = 0; i < ARRAY_SIZE(flags); i++)
                check_says("bridge -d link show dev ag630002a", flags[i], true);
        check_says("bridge fdb show dev ag630002a", "52:54:00:63:00:02 master br-agentiso static", true);
        CHECK_INT(attach(NET + 2, 0), 0); /* it is there */
        check_says("bridge fdb show dev ag630002a", "52:54:00:63:00:02 master br-agentiso static", true);

        /* The other machine takes over, and back. */
        b = tap(NET + 2, 1);
        REQUIRE(b >= 0);
        check_says("ip -o link show ag630002b", "master", false);
        CHECK_INT(attach(NET + 2, 1), 0);
        check_says("ip -o link show ag630002a", "master", false);
        check_says("ip -o link show ag630002a", ",UP", false);
        check_says("ip -o link show ag630002b", "master br-agentiso", true);
        check_says("ip -o link show ag630002b", ",UP", true);
        check_says("bridge fdb show dev ag630002b", "52:54:00:63:00:02 master br-agentiso static", true);
        check_says("bridge fdb show dev ag630002a", "52:54:00:63:00:02", false);
        check_says("bridge -d link show dev ag630002b", "isolated on", true);
        CHECK_INT(attach(NET + 2, 0), 0);
        check_says("bridge fdb show dev ag630002a", "52:54:00:63:00:02 master br-agentiso static", true);
        check_says("ip -o link show ag630002b", "master", false);
        check_says("ip neigh show 10.99.0.2", "PERMANENT", true);
}

static void test_wait(void) {
        struct op soon = op_timeout(50), op = op_timeout(10000);

        CHECK_INT(links_wait(&nl, RULES_UPLINK, &soon), -ETIMEDOUT);
        CHECK_INT(links_wait(&nl, "lo", &op), 0);
        /* In the background it comes, bit by bit. */
        free(output_of("(ip link add uplink0 type bridge; ip addr add 198.51.100.2/24 dev uplink0; "
                       "ip link set uplink0 up; ip link add d0 type bridge; "
                       "ip link add v0 type veth peer name v1; ip link set v0 master uplink0; "
                       "ip link set v0 up; ip link set v1 up) >/dev/null 2>&1 &"));
        CHECK_INT(links_wait(&nl, RULES_UPLINK, &op), 0);
}

int main(void) {
        SKIP_WITHOUT_NAMESPACES();
        if (!leave_for_namespace() || netlink_open(NETLINK_ROUTE, 0, &nl) < 0)
                return 1;
        RUN(test_bridge);
        RUN(test_bridge_again);
        RUN(test_tap);
        RUN(test_attach);
        RUN(test_wait);
        netlink_close(&nl);
        return tap_done();
}
