/* SPDX-License-Identifier: Apache-2.0 */
/* The helper over its socket, in the namespaces of a holder. */
#include <arpa/inet.h>

#include "fixture.h"

static char dir[] = "/tmp/test-helper-XXXXXX";
static struct holder holder;
static struct helper_process helper;

static void test_setup(void) {
        CHECK_INT(ask(helper.socket, HELPER_NAMES, &(int){SOCK_DGRAM}, sizeof(int)), -EINVAL); /* no gateway yet */
        REQUIRE(ask_setup(helper.socket) == 0);
        CHECK(says(&holder, "ip -o addr", "10.99.0.1/16"));
        CHECK(says(&holder, "nft list ruleset", "192.168.7.0/24"));
        CHECK(says(&holder, "cat /proc/sys/net/ipv4/ip_forward", "1"));
        CHECK(says(&holder, "cat /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", "7200\n"));
}

static bool status_has(pid_t pid, const char *line) {
        _cleanup_free_ char *text = NULL;
        char path[64];

        snprintf(path, sizeof(path), "/proc/%d/status", (int) pid);
        return file_read_all(path, 65536, &text, NULL) == 0 && strstr(text, line);
}

/* CAP_NET_ADMIN, CAP_NET_BIND_SERVICE and CAP_NET_RAW; nft gets no more. */
static void test_privileges(void) {
        CHECK(status_has(helper.pid, "\nCapPrm:\t0000000000003400\n"));
        CHECK(status_has(helper.pid, "\nCapEff:\t0000000000003400\n"));
        CHECK(status_has(helper.pid, "\nCapBnd:\t0000000000003400\n"));
        CHECK(status_has(helper.pid, "\nNoNewPrivs:\t1\n"));
}

static void test_cards_and_policy(void) {
        static struct {
                struct helper_policy p;
                struct helper_machine machines[2];
                uint32_t host[1];
        } body = {
                .p = {.n = 2, .n_host = 1},
                .machines = {{.address = NET + 2, .internet = 1, .n_ports = 1, .ports = {80}},
                             {.address = NET + 3, .inter_vm = 1}},
                .host = {0xc0000201u},
        };

        CHECK_INT(ask_cards(helper.socket, NET + 2, 4), 0);
        CHECK_INT(ask_cards(helper.socket, NET + 2, 4), 0);
        CHECK(says(&holder, "nft list set bridge agentiso cards", "\"ag630005b\" . 52:54:00:63:00:05 . 10.99.0.5"));
        CHECK_INT(ask(helper.socket, HELPER_POLICY, &body, sizeof(body)), 0);
        CHECK(says(&holder, "nft list set ip agentiso internet", "{ 10.99.0.2 }"));
        CHECK(says(&holder, "nft list set ip agentiso inter_vm", "{ 10.99.0.3 }"));
        CHECK(says(&holder, "nft list set ip agentiso host", "{ 192.0.2.1 }"));
        CHECK(says(&holder, "nft -n list set ip agentiso open_ports", "10.99.0.2 . 6 . 80"));

        /* What somebody has changed behind its back is put right. */
        CHECK(says(&holder, "nft flush set ip agentiso internet && echo done", "done"));
        body.machines[0].internet = 0;
        CHECK_INT(ask(helper.socket, HELPER_POLICY, &body, sizeof(body)), 0);
        CHECK(says(&holder, "nft list set ip agentiso inter_vm", "{ 10.99.0.3 }"));
        CHECK(says(&holder, "nft list set ip agentiso internet | grep -c elements || true", "0"));
}

/* As many as there may be, in a user namespace, whose sockets have small buffers. */
static void test_many_cards(void) {
        CHECK_INT(ask_cards(helper.socket, NET + 0x1000, NETWORK_MACHINES_MAX), 0);
        CHECK(says(&holder, "nft get element bridge agentiso ports '{ \"ag631fffb\" . 52:54:00:63:1f:ff }'",
                   "ag631fffb"));
}

static void test_taps(void) {
        int a = -1, b = -1;

        REQUIRE(ask_tap(helper.socket, NET + 2, 0, true, &a) == 0);
        CHECK(a >= 0);
        CHECK(says(&holder, "ip -o link show ag630002a", "master br-agentiso"));
        CHECK_INT(ask_tap(helper.socket, NET + 2, 0, true, &b), -EBUSY);
        CHECK(strstr(answer_text, "ag630002a is in use"));
        CHECK_INT(ask(helper.socket, HELPER_ATTACH, &(struct card){NET + 2, 1}, sizeof(struct card)), -ENODEV);
        REQUIRE(ask_tap(helper.socket, NET + 2, 1, false, &b) == 0);
        CHECK(says(&holder, "ip -o link show ag630002a", "master br-agentiso"));
        CHECK_INT(ask(helper.socket, HELPER_ATTACH, &(struct card){NET + 2, 1}, sizeof(struct card)), 0);
        CHECK(says(&holder, "ip -o link show ag630002b", "master br-agentiso"));
        close_fd(a);
        close_fd(b);
        CHECK(says(&holder, "ip -o link show | grep -c ag6300 || true", "0"));
        CHECK_INT(ask(helper.socket, HELPER_ATTACH, &(struct card){NET + 2, 1}, sizeof(struct card)), -ENODEV);
}

static void test_sockets(void) {
        struct sockaddr_in address = {0};
        socklen_t len = sizeof(address);
        int types[] = {SOCK_STREAM, SOCK_DGRAM};

        for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
                int plain = -1, names = -1, type = 0, listens = 0;
                len = sizeof(type);
                REQUIRE(ask_fd(helper.socket, HELPER_SOCKET, &types[i], sizeof(int), &plain) == 0);
                CHECK_INT(getsockopt(plain, SOL_SOCKET, SO_TYPE, &type, &len), 0);
                CHECK_INT(type, types[i]);
                CHECK(fcntl(plain, F_GETFL) & O_NONBLOCK);
                CHECK(fcntl(plain, F_GETFD) & FD_CLOEXEC);
                REQUIRE(ask_fd(helper.socket, HELPER_NAMES, &types[i], sizeof(int), &names) == 0);
                len = sizeof(address);
                CHECK_INT(getsockname(names, (struct sockaddr *) &address, &len), 0);
                CHECK_INT(ntohl(address.sin_addr.s_addr), GATEWAY);
                CHECK_INT(ntohs(address.sin_port), 53);
                len = sizeof(listens);
                CHECK_INT(getsockopt(names, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len), 0);
                CHECK_INT(listens, types[i] == SOCK_STREAM);
                CHECK_INT(ask(helper.socket, HELPER_NAMES, &types[i], sizeof(int)), -EADDRINUSE);
                close_fd(plain);
                close_fd(names);
        }
        CHECK_INT(ask(helper.socket, HELPER_FORGET, &(uint32_t){NET + 2}, sizeof(uint32_t)), 0);
}

static void test_uplink(void) {
        const int wait_ms = HELPER_UPLINK_MS;
        _cleanup_free_ char *out = output_in(&holder, "ip link add uplink0 type veth peer name far0 && "
                                                      "ip link set uplink0 up && ip link set far0 up && "
                                                      "ip addr add 198.51.100.2/24 dev uplink0");

        REQUIRE(out);
        CHECK_INT(ask(helper.socket, HELPER_UPLINK, &wait_ms, sizeof(wait_ms)), 0);
}

/* Each is answered, and the next request works. */
static void test_malformed(void) {
        static const struct {
                uint32_t op;
                size_t length;
        } wrong[] = {
                {HELPER_SETUP, 0},
                {HELPER_SETUP, sizeof(struct helper_setup) - 1},
                {HELPER_SETUP, sizeof(struct helper_setup) + 3},
                {HELPER_CARDS, 4},
                {HELPER_CARDS, sizeof(struct helper_cards) + 1},
                {HELPER_TAP, sizeof(struct card)},
                {HELPER_ATTACH, sizeof(struct card) + 4},
                {HELPER_POLICY, 3},
                {HELPER_POLICY, sizeof(struct helper_policy) + 4},
                {HELPER_FORGET, 3},
                {HELPER_SOCKET, 0},
                {HELPER_NAMES, 8},
                {HELPER_UPLINK, 1},
                {HELPER_UPLINK, 0},
                {_HELPER_OP_MAX, 0},
                {UINT32_MAX, 100},
        };
        static const uint8_t zeros[256];

        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                CHECK_INT(ask(helper.socket, wrong[i].op, zeros, wrong[i].length), -EBADMSG);
                CHECK_STR(answer_text, "the request is malformed");
        }
        const struct helper_setup bad_setups[] = {
                {NET, GATEWAY, 0, 0}, {NET, GATEWAY, 33, 0}, {NET + 5, GATEWAY, 16, 0},      {NET, 0x0a640001u, 16, 0},
                {NET, NET, 16, 0},    {NET, GATEWAY, 16, 7}, {NET, GATEWAY, 16, UINT32_MAX},
        };
        for (size_t i = 0; i < ARRAY_SIZE(bad_setups); i++)
                CHECK_INT(ask(helper.socket, HELPER_SETUP, &bad_setups[i], sizeof(bad_setups[i])), -EBADMSG);
        CHECK_INT(ask_cards(helper.socket, NET, 0), -EBADMSG);
        CHECK_INT(ask_cards(helper.socket, NET, NETWORK_MACHINES_MAX + 1), -EBADMSG);
        CHECK_INT(ask_cards(helper.socket, UINT32_MAX, 2), -EBADMSG);
        CHECK_INT(ask_tap(helper.socket, NET + 2, 2, true, NULL), -EBADMSG);
        CHECK_INT(ask(helper.socket, HELPER_SOCKET, &(int){SOCK_RAW}, sizeof(int)), -EBADMSG);
        const struct helper_policy too_many = {.n = UINT32_MAX, .n_host = 2};
        CHECK_INT(ask(helper.socket, HELPER_POLICY, &too_many, sizeof(too_many)), -EBADMSG);
        const struct {
                struct helper_policy p;
                struct helper_machine m;
        } bad_ports = {{1, 0}, {.address = NET + 2, .n_ports = NETWORK_PORTS_MAX + 1}};
        CHECK_INT(ask(helper.socket, HELPER_POLICY, &bad_ports, sizeof(bad_ports)), -EBADMSG);
        CHECK_INT(ask_cards(helper.socket, NET + 2, 1), 0);
}

/* A request that is too long has no end that could be found. */
static void test_too_long(void) {
        struct helper_process other = helper_start(&holder);
        const struct helper_request q = {.op = HELPER_CARDS, .length = HELPER_BODY_MAX + 1};

        CHECK_INT(write(other.socket, &q, sizeof(q)), sizeof(q));
        CHECK_INT(exit_status(other.pid), 1);
        close_fd(other.socket);
}

static void test_without_descriptors(void) {
        _cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        int pair[2];

        CHECK_INT(exit_status(start_child(helper_run, &null, 1, -1)), 1);
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        CHECK_INT(exit_status(start_child(helper_run, (int[]){pair[1], -1, null}, 3, -1)), 1);
        close_fd(pair[0]);
        close_fd(pair[1]);
}

/* The next helper finds everything as it was, and nothing changes for a tap that is in use. */
static void test_another_helper(void) {
        static const char look[] = "ip -o link | grep -o 'link.ether [^ ]*'; ip -o addr; ip neigh; bridge fdb show br "
                                   "br-agentiso; nft list ruleset";
        int tap = -1;

        REQUIRE(ask_tap(helper.socket, NET + 3, 0, true, &tap) == 0);
        CHECK_INT(ask_setup(helper.socket), 0);
        _cleanup_free_ char *before = output_in(&holder, look);
        CHECK_INT(kill(helper.pid, SIGKILL), 0);
        CHECK_INT(helper_end(&helper), 128 + SIGKILL);
        helper = helper_start(&holder);
        REQUIRE(ask_setup(helper.socket) == 0);
        _cleanup_free_ char *after = output_in(&holder, look);
        REQUIRE(before && after);
        CHECK_STR(after, before);
        CHECK(strstr(after, "10.99.0.3 "));
        CHECK(says(&holder, "ip -o link show ag630003a", "master br-agentiso"));

        /* Tables that are not all there are made anew. */
        CHECK(says(&holder, "nft delete table ip6 agentiso && echo done", "done"));
        CHECK_INT(ask_setup(helper.socket), 0);
        CHECK(says(&holder, "nft list ruleset", "table ip6 agentiso {"));
        CHECK(says(&holder, "nft list set ip agentiso inter_vm | grep -c elements || true", "0"));
        close_fd(tap);
}

static void test_ends_with_its_socket(void) {
        CHECK_INT(helper_end(&helper), 0);
        helper = helper_start(&holder);
        const struct helper_request half = {.op = HELPER_CARDS, .length = sizeof(struct helper_cards)};
        CHECK_INT(write(helper.socket, &half, sizeof(half)), sizeof(half));
        CHECK_INT(helper_end(&helper), 0);
}

int main(void) {
        SKIP_WITHOUT_NAMESPACES();
        if (!mkdtemp(dir))
                return 1;
        _cleanup_free_ char *path = path_join(dir, "netns");
        int lock = path ? file_lock(path) : -1;
        if (lock < 0 || holder_start(lock, &holder) < 0)
                return 1;
        helper = helper_start(&holder);
        RUN(test_setup);
        RUN(test_privileges);
        RUN(test_cards_and_policy);
        RUN(test_many_cards);
        RUN(test_taps);
        RUN(test_sockets);
        RUN(test_uplink);
        RUN(test_malformed);
        RUN(test_too_long);
        RUN(test_without_descriptors);
        RUN(test_another_helper);
        RUN(test_ends_with_its_socket);
        holder_end(&holder);
        close_fd(lock);
        rm_rf(dir);
        return tap_done();
}
