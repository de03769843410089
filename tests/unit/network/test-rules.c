/* SPDX-License-Identifier: Apache-2.0 */
/* The texts of the packet filter, in a real nft. What they do to packets: test-packets.c. */
#include "fixture.h"
#include "network/policy-sets.h"
#include "network/rules.h"

static const struct network_range exceptions[] = {{0xc0a80700u, 24}, {0xc0a80780u, 25}}; /* the second in the first */

static struct rules_config config_of(void) {
        struct rules_config c = {
                .network = NET, .gateway = GATEWAY, .prefix_len = 16, .exceptions = exceptions, .n_exceptions = 2};

        card_mac(GATEWAY, c.gateway_mac);
        return c;
}

static int load(const struct buf *text) {
        char *const argv[] = {(char *) "nft", (char *) "-f", (char *) "-", NULL};
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op_timeout(60000);

        int r = process_run_input(argv, text->data, text->len, &op, NULL, NULL, &err);
        if (r < 0)
                printf("# %s\n", error_message(&err));
        return r;
}

static char *list(const char *what) {
        char *const argv[] = {(char *) "sh", (char *) "-c", (char *) what, NULL};
        struct buf out = BUF_INIT(64 << 20);
        struct op op = op_timeout(60000);

        (void) process_run(argv, &op, &out, NULL, NULL); /* without output, a check says so */
        return buf_steal(&out);
}

static void check_lists(const char *command, const char *text, bool there) {
        _cleanup_free_ char *out = list(command);
        bool found = out && strstr(out, text);

        if (found != there)
                printf("# `nft` says: %s\n# about: %s\n", out ? out : "(nothing)", text);
        CHECK_INT(found, there);
}

static void test_tables(void) {
        _cleanup_buf_ struct buf text = BUF_INIT(RULES_TEXT_MAX);
        struct rules_config c = config_of();

        REQUIRE(rules_base(&c, &text) == 0);
        REQUIRE(load(&text) == 0);
        static const char *const wanted[] = {
                "table bridge agentiso {",
                "table ip agentiso {",
                "table ip6 agentiso {",
                "hook prerouting priority dstnat; policy drop;",
                "ether type { 8021q, 8021ad } drop",
                "iifname . ether saddr @ports ether type { ip, arp } accept",
                "ether daddr 52:54:00:63:00:01",
                "ct state invalid jump refuse",
                "add @flows { ip saddr ct count over 4096 } jump refuse",
                "icmp type echo-request update @echoes { ip saddr limit rate 1000/second",
                "oifname \"uplink0\" masquerade fully-random",
        };
        for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
                check_lists("nft list ruleset", wanted[i], true);
        check_lists("nft list set ip agentiso exceptions", "elements = { 192.168.7.0/24 }", true);
        check_lists("nft list set ip agentiso refused", "100.64.0.0/10", true);
        /* All hooks of all families end in a drop. */
        check_lists("nft list ruleset | grep hook | grep -v postrouting | grep -v 'policy drop'", "hook", false);
}

/* Once more: in one transaction, and known again afterwards. */
static void test_known_again(void) {
        _cleanup_buf_ struct buf text = BUF_INIT(RULES_TEXT_MAX);
        struct rules_config c = config_of();

        _cleanup_free_ char *there = list("nft -t list ruleset");
        REQUIRE(there);
        CHECK(rules_are_there(&c, there));
        c.n_exceptions = 1; /* another text */
        CHECK(!rules_are_there(&c, there));
        REQUIRE(rules_base(&c, &text) == 0 && load(&text) == 0);
        _cleanup_free_ char *changed = list("nft -t list ruleset");
        REQUIRE(changed);
        CHECK(rules_are_there(&c, changed));
        _cleanup_free_ char *damaged = list("nft delete table ip6 agentiso; nft -t list ruleset");
        REQUIRE(damaged);
        CHECK(!rules_are_there(&c, damaged));
        CHECK(!rules_are_there(&c, ""));
        REQUIRE(load(&text) == 0);
}

static void test_cards(void) {
        _cleanup_buf_ struct buf text = BUF_INIT(RULES_TEXT_MAX);

        REQUIRE(rules_cards(NET + 2, 2, &text) == 0);
        REQUIRE(load(&text) == 0);
        CHECK_INT(load(&text), 0); /* for those that have them */
        const char *const elements[] = {
                "\"ag630002a\" . 52:54:00:63:00:02 . 10.99.0.2",
                "\"ag630002b\" . 52:54:00:63:00:02 . 10.99.0.2",
                "\"ag630003a\" . 52:54:00:63:00:03 . 10.99.0.3",
                "\"ag630003b\" . 52:54:00:63:00:03 . 10.99.0.3",
        };
        for (size_t i = 0; i < ARRAY_SIZE(elements); i++)
                check_lists("nft list set bridge agentiso cards", elements[i], true);
        check_lists("nft list set bridge agentiso ports", "\"ag630003b\" . 52:54:00:63:00:03", true);
        check_lists("nft list set bridge agentiso cards", "630004", false);
}

static int loads; /* transactions */

static int load_one(const struct buf *text, void *arg) {
        loads++;
        return load(text);
}

static void test_policy(void) {
        static const uint16_t ports[] = {80, 443}, other_ports[] = {443, 22, 443};
        const struct network_policy some[] = {
                {.address = NET + 2, .internet = true, .ports = ports, .n_ports = 2},
                {.address = NET + 3, .inter_vm = true},
                {.address = NET + 4},
        };
        const struct network_policy others[] = {
                {.address = NET + 2, .inter_vm = true, .ports = other_ports, .n_ports = 3},
                {.address = NET + 3, .inter_vm = true},
        };
        const uint32_t host[] = {0xc0000201u, 0xcb007105u};
        _cleanup_policy_sets_ struct policy_sets first = {0}, second = {0}, none = {0};

        REQUIRE(policy_sets_make(some, 3, host, 2, &first) == 0);
        REQUIRE(policy_sets_make(others, 2, host + 1, 1, &second) == 0);
        REQUIRE(policy_sets_make(NULL, 0, NULL, 0, &none) == 0);
        REQUIRE(policy_sets_change(NULL, &first, load_one, NULL) == 0);
        check_lists("nft list set ip agentiso internet", "elements = { 10.99.0.2 }", true);
        check_lists("nft list set ip agentiso inter_vm", "elements = { 10.99.0.3 }", true);
        check_lists("nft list set ip agentiso host", "192.0.2.1", true);
        check_lists("nft list set ip agentiso host", "203.0.113.5", true);
        check_lists("nft -n list set ip agentiso open_ports", "10.99.0.2 . 6 . 443", true);
        check_lists("nft -n list set ip agentiso open_ports", "10.99.0.2 . 17 . 80", true);

        REQUIRE(policy_sets_change(&first, &second, load_one, NULL) == 0);
        check_lists("nft list set ip agentiso internet", "elements", false);
        check_lists("nft list set ip agentiso inter_vm", "10.99.0.2", true);
        check_lists("nft list set ip agentiso inter_vm", "10.99.0.3", true);
        check_lists("nft list set ip agentiso host", "elements = { 203.0.113.5 }", true);
        check_lists("nft -n list set ip agentiso open_ports", "10.99.0.2 . 17 . 80", false);
        check_lists("nft -n list set ip agentiso open_ports", "10.99.0.2 . 6 . 443", true);
        check_lists("nft -n list set ip agentiso open_ports", "10.99.0.2 . 17 . 22", true);

        loads = 0;
        REQUIRE(policy_sets_change(&second, &second, load_one, NULL) == 0);
        CHECK_INT(loads, 0);                                            /* nothing to do */
        CHECK(policy_sets_change(&first, &second, load_one, NULL) < 0); /* what is not there cannot be taken out */

        REQUIRE(policy_sets_change(NULL, &none, load_one, NULL) == 0);
        for (enum policy_set set = 0; set < _POLICY_SET_MAX; set++) {
                static const char *const listings[_POLICY_SET_MAX] = {
                        "nft list set ip agentiso internet", "nft list set ip agentiso inter_vm",
                        "nft list set ip agentiso open_ports", "nft list set ip agentiso host"};
                check_lists(listings[set], "elements", false);
        }
}

static int64_t since_ms(int64_t *t) {
        const int64_t now = monotonic_ns(), ms = (now - *t) / NSEC_PER_MSEC;

        *t = now;
        return ms;
}

/* nft takes the most there can be, without privileges over the host; a change is small then, too. */
static void test_the_most(void) {
        _cleanup_free_ struct network_policy *all = calloc(NETWORK_MACHINES_MAX, sizeof(*all));
        _cleanup_buf_ struct buf cards = BUF_INIT(RULES_TEXT_MAX);
        _cleanup_policy_sets_ struct policy_sets most = {0}, less = {0};
        uint16_t ports[NETWORK_PORTS_MAX];

        REQUIRE(all);
        for (uint16_t i = 0; i < NETWORK_PORTS_MAX; i++)
                ports[i] = (uint16_t) (60000 + i);
        for (uint32_t i = 0; i < NETWORK_MACHINES_MAX; i++)
                all[i] = (struct network_policy){NET + 10 + i, true, true, ports, NETWORK_PORTS_MAX};
        int64_t t = monotonic_ns();
        for (uint32_t i = 0; i < NETWORK_MACHINES_MAX; i += RULES_CARDS_MAX) {
                buf_clear(&cards);
                REQUIRE(rules_cards(NET + 10 + i, RULES_CARDS_MAX, &cards) == 0);
                CHECK_INT(load(&cards), 0);
        }
        printf("# %u cards: %lld ms\n", NETWORK_MACHINES_MAX, (long long) since_ms(&t));
        REQUIRE(policy_sets_make(all, NETWORK_MACHINES_MAX, NULL, 0, &most) == 0);
        loads = 0;
        CHECK_INT(policy_sets_change(NULL, &most, load_one, NULL), 0);
        printf("# %u policies: %d transactions, %lld ms\n", NETWORK_MACHINES_MAX, loads, (long long) since_ms(&t));
        check_lists("nft get element ip agentiso open_ports '{ 10.99.16.9 . udp . 60031 }'", "10.99.16.9", true);

        REQUIRE(policy_sets_make(all, NETWORK_MACHINES_MAX - 1, NULL, 0, &less) == 0);
        loads = 0;
        t = monotonic_ns();
        CHECK_INT(policy_sets_change(&most, &less, load_one, NULL), 0);
        CHECK_INT(loads, 1);
        printf("# one policy less: %lld ms\n", (long long) since_ms(&t));
        check_lists("nft get element ip agentiso open_ports '{ 10.99.16.9 . udp . 60031 }' 2>&1", "Error", true);
        check_lists("nft get element ip agentiso open_ports '{ 10.99.16.8 . udp . 60031 }'", "10.99.16.8", true);
}

int main(void) {
        SKIP_WITHOUT_NAMESPACES();
        if (!leave_for_namespace())
                return 1;
        RUN(test_tables);
        RUN(test_known_again);
        RUN(test_cards);
        RUN(test_policy);
        RUN(test_the_most);
        return tap_done();
}
