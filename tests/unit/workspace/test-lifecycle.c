/* SPDX-License-Identifier: Apache-2.0 */
/* The pure parts of the core: the table of moves, addresses, host names. */
#include "tap.h"
#include "workspace/core-internal.h"

static void test_every_move(void) {
        /* Rows: from; columns: to; in the order of the enum. */
        static const char *const allowed[_WS_STATE_MAX] = {
                /*                 creating starting running stopping stopped destroying */
                [WS_CREATING] = "..x..x", [WS_STARTING] = "..x.xx", [WS_RUNNING] = "...xxx",
                [WS_STOPPING] = "....xx", [WS_STOPPED] = ".xx..x",  [WS_DESTROYING] = "......",
        };
        for (int from = 0; from < _WS_STATE_MAX; from++)
                for (int to = 0; to < _WS_STATE_MAX; to++) {
                        bool want = allowed[from][to] == 'x',
                             got = ws_move_allowed((enum ws_state) from, (enum ws_state) to);
                        CHECK_INT(got, want);
                        if (got != want)
                                printf("# from %s to %s\n", ws_state_name((enum ws_state) from),
                                       ws_state_name((enum ws_state) to));
                }
        CHECK(!ws_move_allowed(_WS_STATE_MAX, WS_RUNNING));
        CHECK(!ws_move_allowed(WS_RUNNING, _WS_STATE_MAX));
}

static void test_addresses(void) {
        uint32_t network = 0x0a630000, used[8], got = 0;
        size_t n = 0;
        CHECK_INT(address_capacity(29), 4);
        CHECK_INT(address_capacity(30), 0);
        CHECK_INT(address_capacity(16), 65532);
        for (unsigned i = 0; i < 4; i++) {
                CHECK_INT(address_pick(network, 29, used, n, &got), 0);
                CHECK_INT(got, network + 2 + i); /* not .0, not the gateway .1 */
                used[n++] = got;
        }
        CHECK_INT(address_pick(network, 29, used, n, &got), -ENOSPC); /* .6 is the resolver, .7 broadcast */
        used[2] = used[3];
        n = 3;
        CHECK_INT(address_pick(network, 29, used, n, &got), 0);
        CHECK_INT(got, network + 4); /* one in the middle that was given back */
        /* Addresses of a network that was configured before do not count. */
        used[0] = 0xc0a80002;
        CHECK_INT(address_pick(network, 29, used, 1, &got), 0);
        CHECK_INT(got, network + 2);
}

static void test_texts(void) {
        char mac[MAC_LEN + 1], text[16];
        address_mac(0x0a63fffe, mac);
        CHECK_STR(mac, "52:54:00:63:ff:fe");
        address_text(0x0a630102, text);
        CHECK_STR(text, "10.99.1.2");
        address_text(0xffffffff, text);
        CHECK_STR(text, "255.255.255.255");
}

static void test_host_names(void) {
        static const struct {
                const char *name, *host;
        } cases[] = {
                {"web", "web"},
                {"ws-0a1b2c3d", "ws-0a1b2c3d"},
                {"my_team.member-1", "my-team-member-1"},
                {"..x..", "x"},
                {"---", "workspace"},
                {"._-", "workspace"},
                {"", "workspace"},
                {"aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggggggggg",
                 "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggg"},
                {"aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgg-gggg",
                 "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgg"},
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                char host[HOSTNAME_LEN + 1];
                hostname_of(cases[i].name, host);
                CHECK_STR(host, cases[i].host);
        }
}

int main(void) {
        RUN(test_every_move);
        RUN(test_addresses);
        RUN(test_texts);
        RUN(test_host_names);
        return tap_done();
}
