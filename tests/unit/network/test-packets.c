/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the rules do to packets. The test has the taps of two workspaces and is both of them, with any frame it likes;
 * it is the uplink, too.
 *
 * That nothing arrives is shown without waiting: after what must not pass, the gateway sends something that does, and
 * that has to be the next frame at the victim. Everything runs on one processor, so that nothing is overtaken.
 */
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include "fixture.h"
#include "frames.h"
#include "network/rules.h"

#define A (NET + 2)
#define B (NET + 3)
#define SERVER 0xc633640au /* 198.51.100.10, on the internet */
#define UPLINK 0xc6336402u /* 198.51.100.2, our side */
#define HOST_ADDRESS 0xc6336463u
#define WAIT_MS 10000

static struct holder holder;
static struct helper_process helper;
static int tap_a = -1, tap_b = -1, uplink = -1, udp = -1;
static uint8_t mac_a[6], mac_b[6], gateway_mac[6];
static const uint8_t far_mac[6] = {2, 0, 0, 0, 0, 1};
static uint8_t uplink_mac[6];

/* ---- the two workspaces ---- */

static int policy(const struct helper_machine *a, const struct helper_machine *b) {
        struct {
                struct helper_policy p;
                struct helper_machine machines[2];
                uint32_t host[1];
        } body = {.p = {.n = 2, .n_host = 1}, .machines = {*a, *b}, .host = {HOST_ADDRESS}};

        body.machines[0].address = A;
        body.machines[1].address = B;
        return ask(helper.socket, HELPER_POLICY, &body, sizeof(body));
}

static const struct helper_machine nothing = {0}, inter_vm = {.inter_vm = 1}, internet = {.internet = 1},
                                   port_80 = {.n_ports = 1, .ports = {80}};

static void drain(int tap) {
        struct frame f;

        while (frame_receive(tap, &f, 0) == 0)
                ;
}

/* A datagram of the gateway's to a workspace. */
static bool mark(uint32_t to, const char *text) {
        const struct sockaddr_in address = {
                .sin_family = AF_INET, .sin_port = htons(7777), .sin_addr.s_addr = htonl(to)};

        return sendto(udp, text, strlen(text), 0, (const struct sockaddr *) &address, sizeof(address)) ==
               (ssize_t) strlen(text);
}

/* How many frames have come since; -1: the mark itself did not arrive. */
static int frames_before_mark(int tap, uint32_t address) {
        static unsigned number;
        char text[32];
        struct frame f;
        struct packet p;

        snprintf(text, sizeof(text), "mark %u", ++number);
        if (!mark(address, text))
                return -1;
        for (int n = 0; frame_receive(tap, &f, WAIT_MS) == 0; n++) {
                if (packet_of(&f, &p) && p.source == GATEWAY && str_eq(p.text, text))
                        return n;
                printf("# arrived: type %04x, %zu bytes\n", type_of(&f), f.n);
        }
        return -1;
}

static struct frame arp_for(uint32_t target) {
        return arp_frame(broadcast_mac, mac_a, ARPOP_REQUEST, mac_a, A, target);
}

/* Asks for the gateway at the end: whatever came before has been dealt with when the answer is there. */
static bool a_is_answered(void) {
        struct frame f = arp_for(GATEWAY);

        if (!frame_send(tap_a, &f))
                return false;
        while (frame_receive(tap_a, &f, WAIT_MS) == 0)
                if (type_of(&f) == ETHERTYPE_ARP)
                        return memcmp(f.data + 22, gateway_mac, 6) == 0;
        return false;
}

/* A sends a frame, and nothing of it comes to B. */
static bool nothing_at_b(struct frame f) {
        return frame_send(tap_a, &f) && a_is_answered() && frames_before_mark(tap_b, B) == 0;
}

/* The next IPv4 packet at a tap. */
static bool next_packet(int tap, struct packet *ret) {
        struct frame f;

        while (frame_receive(tap, &f, WAIT_MS) == 0)
                if (packet_of(&f, ret))
                        return true;
        return false;
}

static bool send_udp(uint32_t to, uint16_t port, const char *text) {
        const struct frame f = udp_frame(gateway_mac, mac_a, A, 5000, to, port, text);

        drain(tap_a);
        return frame_send(tap_a, &f);
}

static bool send_echo(int tap, const uint8_t *mac, uint32_t from, uint16_t id) {
        struct icmphdr echo = {.type = ICMP_ECHO, .un.echo.id = htons(id)};

        echo.checksum = checksum(sum_of(&echo, sizeof(echo), 0));
        const struct frame f = ip_frame(gateway_mac, mac, from, GATEWAY, IPPROTO_ICMP, &echo, sizeof(echo));
        drain(tap);
        return frame_send(tap, &f);
}

static bool is_echoed(int tap) {
        struct packet p = {0};

        return next_packet(tap, &p) && p.protocol == IPPROTO_ICMP && p.source_port == ICMP_ECHOREPLY;
}

#define CHECK_PROHIBITED()                                    \
        do {                                                  \
                struct packet _p = {0};                       \
                CHECK(next_packet(tap_a, &_p));               \
                CHECK_INT(_p.protocol, IPPROTO_ICMP);         \
                CHECK_INT(_p.source_port, ICMP_DEST_UNREACH); \
                CHECK_INT(_p.port, ICMP_PKT_FILTERED);        \
        } while (0)

/* ---- layer 2 ---- */

static void test_gateway_answers(void) {
        const struct icmphdr echo = {.type = ICMP_ECHO, .checksum = htons(0xf7ff)};
        struct frame f;
        struct packet p;

        CHECK(a_is_answered());
        f = ip_frame(gateway_mac, mac_a, A, GATEWAY, IPPROTO_ICMP, &echo, sizeof(echo));
        CHECK(frame_send(tap_a, &f) && next_packet(tap_a, &p));
        CHECK_INT(p.protocol, IPPROTO_ICMP);
        CHECK_INT(p.source_port, ICMP_ECHOREPLY);
        CHECK_INT(p.source, GATEWAY);
}

static void test_arp_for_the_peer(void) {
        struct frame f = arp_for(B);

        CHECK(nothing_at_b(f));
        /* And nobody answers for it. */
        CHECK(frame_send(tap_a, &f));
        CHECK_INT(frames_before_mark(tap_a, A), 0);
        CHECK(nothing_at_b(arp_frame(mac_b, mac_a, ARPOP_REQUEST, mac_a, A, B)));
        CHECK(nothing_at_b(arp_frame(mac_b, mac_a, ARPOP_REPLY, mac_a, A, B)));
}

/* Another one claims to be the gateway, or the peer. */
static void test_arp_spoofing(void) {
        CHECK(nothing_at_b(arp_frame(broadcast_mac, mac_a, ARPOP_REPLY, mac_a, GATEWAY, GATEWAY)));
        CHECK(nothing_at_b(arp_frame(broadcast_mac, mac_a, ARPOP_REQUEST, mac_a, GATEWAY, GATEWAY)));
        CHECK(nothing_at_b(arp_frame(mac_b, mac_a, ARPOP_REPLY, mac_a, GATEWAY, B)));
        CHECK(nothing_at_b(arp_frame(gateway_mac, mac_a, ARPOP_REPLY, mac_a, B, GATEWAY)));
        CHECK(nothing_at_b(arp_frame(broadcast_mac, mac_a, ARPOP_REQUEST, mac_a, B, GATEWAY)));
        CHECK(nothing_at_b(arp_frame(broadcast_mac, gateway_mac, ARPOP_REPLY, gateway_mac, GATEWAY, B)));
        CHECK(says(&holder, "ip neigh show 10.99.0.3", "52:54:00:63:00:03 PERMANENT"));
        CHECK(says(&holder, "bridge fdb show dev ag630003a", "52:54:00:63:00:03 master br-agentiso static"));
}

static void test_frames_for_the_peer(void) {
        static const uint8_t multicast_mac[6] = {1, 0, 0x5e, 0, 0, 1}, ipv6_mac[6] = {0x33, 0x33, 0, 0, 0, 1},
                             tree_mac[6] = {1, 0x80, 0xc2, 0, 0, 0}, unknown_mac[6] = {2, 9, 9, 9, 9, 9};

        CHECK(nothing_at_b(udp_frame(mac_b, mac_a, A, 5000, B, 80, "by its MAC")));
        CHECK(nothing_at_b(udp_frame(broadcast_mac, mac_a, A, 5000, B, 80, "broadcast MAC")));
        CHECK(nothing_at_b(udp_frame(broadcast_mac, mac_a, A, 68, 0xffffffffu, 67, "DHCP")));
        CHECK(nothing_at_b(udp_frame(broadcast_mac, mac_a, 0, 68, 0xffffffffu, 67, "DHCP without an address")));
        CHECK(nothing_at_b(udp_frame(broadcast_mac, mac_a, A, 5000, NET | 0xffff, 80, "broadcast")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, mac_a, A, 5000, NET | 0xffff, 80, "broadcast by the gateway")));
        CHECK(nothing_at_b(udp_frame(multicast_mac, mac_a, A, 5353, 0xe0000001u, 5353, "multicast")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, mac_a, A, 5353, 0xe00000fbu, 5353, "multicast by the gateway")));
        CHECK(nothing_at_b(udp_frame(unknown_mac, mac_a, A, 5000, B, 80, "flooded")));
        struct frame f = {0};
        const uint8_t *const targets[] = {mac_b, ipv6_mac, broadcast_mac, gateway_mac, tree_mac, multicast_mac};
        const uint16_t types[] = {ETHERTYPE_IPV6, 0x88cc, 0x8863, 0x0026, 0x8902};
        for (size_t i = 0; i < ARRAY_SIZE(targets); i++)
                for (size_t j = 0; j < ARRAY_SIZE(types); j++) {
                        frame_begin(&f, targets[i], mac_a, types[j]);
                        f.data[14] = 0x60;
                        f.n = 80;
                        CHECK(nothing_at_b(f));
                }
}

static void test_tags(void) {
        const uint16_t kinds[] = {ETHERTYPE_VLAN, 0x88a8, 0x9100};

        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
                for (uint16_t vlan = 0; vlan < 3; vlan++) {
                        const struct frame inner = udp_frame(mac_b, mac_a, A, 5000, B, 80, "tagged");
                        const struct frame arp = arp_for(GATEWAY), once = tagged(&inner, ETHERTYPE_VLAN, 1);

                        CHECK(nothing_at_b(tagged(&inner, kinds[i], vlan)));
                        CHECK(nothing_at_b(tagged(&once, kinds[i], vlan)));
                        /* Not even the gateway hears it. */
                        const struct frame f = tagged(&arp, kinds[i], vlan);
                        drain(tap_a);
                        CHECK(frame_send(tap_a, &f));
                        CHECK_INT(frames_before_mark(tap_a, A), 0);
                }
        }
}

/* Neither the peer nor the gateway hears it, with an allowed way open. */
static void test_forged_sources(void) {
        static const uint8_t other_mac[6] = {0x52, 0x54, 0, 0x63, 0, 9};

        CHECK_INT(policy(&inter_vm, &inter_vm), 0);
        CHECK(nothing_at_b(udp_frame(gateway_mac, other_mac, A, 5000, B, 80, "forged MAC")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, mac_b, B, 5000, B, 80, "the peer's MAC and address")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, mac_b, A, 5000, B, 80, "the peer's MAC")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, gateway_mac, GATEWAY, 5000, B, 80, "the gateway")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, mac_a, NET + 9, 5000, B, 80, "forged address")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, mac_a, B, 5000, B, 80, "the peer's address")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, mac_a, GATEWAY, 5000, B, 80, "the gateway's address")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, mac_a, 0x7f000001u, 5000, B, 80, "loopback")));
        CHECK(nothing_at_b(udp_frame(gateway_mac, mac_a, SERVER, 5000, B, 80, "from outside")));
        CHECK_INT(policy(&nothing, &nothing), 0);
        CHECK(says(&holder, "bridge fdb show dev ag630003a", "52:54:00:63:00:03 master br-agentiso static"));
}

/* ---- through the gateway ---- */

static void test_denied_by_default(void) {
        struct packet p;

        CHECK(send_udp(B, 80, "peer"));
        CHECK_PROHIBITED();
        CHECK_INT(frames_before_mark(tap_b, B), 0);
        CHECK(send_udp(SERVER, 80, "internet"));
        CHECK_PROHIBITED();
        CHECK(send_udp(GATEWAY, 53, "names"));
        CHECK_PROHIBITED();
        CHECK(send_udp(GATEWAY, 9, "gateway"));
        CHECK_PROHIBITED();
        CHECK(send_udp(UPLINK, 9, "the uplink's address"));
        CHECK_PROHIBITED();
        CHECK(send_udp(0x7f000001u, 9, "loopback"));
        CHECK_INT(frames_before_mark(tap_a, A), 0); /* the kernel itself drops it */

        const struct segment syn = {.source_port = 5000, .port = 22, .seq = 1, .syn = true};
        const uint32_t targets[] = {B, SERVER, GATEWAY};
        for (size_t i = 0; i < ARRAY_SIZE(targets); i++) {
                const struct frame f = tcp_frame(gateway_mac, mac_a, A, targets[i], &syn);
                CHECK(frame_send(tap_a, &f) && next_packet(tap_a, &p));
                CHECK(p.protocol == IPPROTO_TCP && p.reset);
                CHECK_INT(p.source, targets[i]);
        }
        CHECK_INT(frames_before_mark(tap_b, B), 0);
        CHECK_INT(frame_receive(uplink, &(struct frame){0}, 0), -ETIMEDOUT);
}

static void check_arrives_at_b(uint16_t port, const char *text) {
        struct packet p = {0};

        CHECK(send_udp(B, port, text));
        CHECK(next_packet(tap_b, &p));
        CHECK_STR(p.text, text);
        CHECK_INT(p.source, A);
        CHECK_INT(p.port, port);
}

static void test_inter_vm(void) {
        CHECK_INT(policy(&inter_vm, &nothing), 0);
        CHECK(send_udp(B, 80, "one"));
        CHECK_PROHIBITED();
        CHECK_INT(policy(&nothing, &inter_vm), 0);
        CHECK(send_udp(B, 80, "one"));
        CHECK_PROHIBITED();
        CHECK_INT(frames_before_mark(tap_b, B), 0);
        CHECK_INT(policy(&inter_vm, &inter_vm), 0);
        check_arrives_at_b(80, "both");
        CHECK_INT(policy(&inter_vm, &nothing), 0);
        CHECK(send_udp(B, 80, "the same flow, taken back"));
        CHECK_PROHIBITED();
        CHECK_INT(frames_before_mark(tap_b, B), 0);
        CHECK_INT(policy(&nothing, &nothing), 0);
}

static void test_open_port(void) {
        const struct frame answer = udp_frame(gateway_mac, mac_b, B, 80, A, 5000, "answer"),
                           question = udp_frame(gateway_mac, mac_b, B, 80, A, 5001, "question");
        struct packet p;

        CHECK_INT(policy(&nothing, &port_80), 0);
        CHECK(send_udp(B, 81, "closed"));
        CHECK_PROHIBITED();
        CHECK_INT(frames_before_mark(tap_b, B), 0);
        check_arrives_at_b(80, "open");
        drain(tap_a);
        CHECK(frame_send(tap_b, &answer) && next_packet(tap_a, &p));
        CHECK_STR(p.text, "answer");
        /* The other way only answers pass. */
        CHECK(frame_send(tap_b, &question) && next_packet(tap_b, &p));
        CHECK_INT(p.protocol, IPPROTO_ICMP);
        CHECK_INT(frames_before_mark(tap_a, A), 0);
        CHECK_INT(policy(&nothing, &nothing), 0);
        CHECK(send_udp(B, 80, "closed again"));
        CHECK_PROHIBITED();
        CHECK_INT(frames_before_mark(tap_b, B), 0);
        CHECK(frame_send(tap_b, &answer));
        CHECK_INT(frames_before_mark(tap_a, A), 0);
        drain(tap_b);
}

static void test_names(void) {
        const int type = SOCK_DGRAM;
        struct op op = op_timeout(WAIT_MS);
        char text[32] = "";
        _cleanup_close_ int names = -1;

        REQUIRE(ask_fd(helper.socket, HELPER_NAMES, &type, sizeof(type), &names) == 0);
        CHECK(send_udp(GATEWAY, 53, "no"));
        CHECK_PROHIBITED();
        CHECK_INT(policy(&internet, &nothing), 0);
        CHECK(send_udp(GATEWAY, 53, "yes"));
        CHECK(wait_fd(names, POLLIN, &op) > 0);
        CHECK_INT(recv(names, text, sizeof(text) - 1, 0), 3);
        CHECK_STR(text, "yes");
        CHECK(send_udp(GATEWAY, 54, "another port"));
        CHECK_PROHIBITED();
        CHECK_INT(policy(&nothing, &nothing), 0);
        CHECK(send_udp(GATEWAY, 53, "no"));
        CHECK_PROHIBITED();
        CHECK_INT(recv(names, text, sizeof(text), MSG_DONTWAIT), -1);
}

/* ---- the uplink ---- */

static void check_leaves(uint32_t to, const char *text, uint16_t *ret_port) {
        struct packet p = {0};

        CHECK(send_udp(to, 80, text));
        CHECK(next_packet(uplink, &p));
        CHECK_STR(p.text, text);
        CHECK_INT(p.source, UPLINK);
        CHECK_INT(p.destination, to);
        if (ret_port)
                *ret_port = p.source_port;
}

static void test_internet(void) {
        const uint32_t refused[] = {0x0a000001u, 0x0a630004u,  0xac100001u, 0xc0a80001u, 0x64400001u,
                                    0xa9fea9feu, HOST_ADDRESS, B,           0xe0000005u, 0xffffffffu};
        uint16_t port = 0;
        struct packet p;

        CHECK_INT(policy(&internet, &nothing), 0);
        check_leaves(SERVER, "out", &port);
        struct frame f = udp_frame(uplink_mac, far_mac, SERVER, 80, UPLINK, port, "back");
        drain(tap_a);
        CHECK(frame_send(uplink, &f) && next_packet(tap_a, &p));
        CHECK_STR(p.text, "back");
        CHECK_INT(p.source, SERVER);
        for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
                CHECK(send_udp(refused[i], 80, "private"));
        check_leaves(0xc0a80701u, "an exception", NULL); /* and nothing before it */
        CHECK_INT(frames_before_mark(tap_b, B), 0);

        /* From outside nobody gets in, by whatever address. */
        const uint32_t inside[] = {A, B, GATEWAY, UPLINK};
        drain(tap_a);
        for (size_t i = 0; i < ARRAY_SIZE(inside); i++) {
                f = udp_frame(uplink_mac, far_mac, SERVER, 80, inside[i], 81, "in");
                CHECK(frame_send(uplink, &f));
        }
        CHECK_INT(frames_before_mark(tap_a, A), 0);
        CHECK_INT(frames_before_mark(tap_b, B), 0);

        CHECK_INT(policy(&nothing, &nothing), 0);
        CHECK(send_udp(SERVER, 80, "the same flow"));
        CHECK_PROHIBITED();
        f = udp_frame(uplink_mac, far_mac, SERVER, 80, UPLINK, port, "late");
        drain(tap_a);
        CHECK(frame_send(uplink, &f));
        CHECK_INT(frames_before_mark(tap_a, A), 0);
        CHECK_INT(frame_receive(uplink, &f, 0), -ETIMEDOUT);
}

/* A TCP connection of A's to the server, established. */
static bool open_connection(uint16_t source_port, uint16_t *ret_port) {
        const struct segment syn = {.source_port = source_port, .port = 80, .seq = 100, .syn = true};
        struct frame f = tcp_frame(gateway_mac, mac_a, A, SERVER, &syn);
        struct packet p;

        drain(tap_a);
        if (!frame_send(tap_a, &f) || !next_packet(uplink, &p) || !p.syn)
                return false;
        *ret_port = p.source_port;
        const struct segment both = {80, p.source_port, 500, 101, true, true, NULL};
        f = tcp_frame(uplink_mac, far_mac, SERVER, UPLINK, &both);
        if (!frame_send(uplink, &f) || !next_packet(tap_a, &p) || !p.syn || p.source != SERVER)
                return false;
        const struct segment ack = {source_port, 80, 101, 501, false, true, NULL};
        f = tcp_frame(gateway_mac, mac_a, A, SERVER, &ack);
        return frame_send(tap_a, &f) && next_packet(uplink, &p) && !p.reset;
}

/* A reset leaves by the uplink, as if it came from A: from its port there, to the server, with sums that are right. */
static void check_told(uint16_t port) {
        struct frame f = {0};
        struct packet p = {0};

        CHECK(frame_receive(uplink, &f, WAIT_MS) == 0 && packet_of(&f, &p));
        CHECK(p.protocol == IPPROTO_TCP && p.reset);
        CHECK_INT(p.source, UPLINK);
        CHECK_INT(p.source_port, port);
        CHECK_INT(p.destination, SERVER);
        CHECK_INT(p.port, 80);
        CHECK_INT(f.n, 14 + sizeof(struct iphdr) + sizeof(struct tcphdr));
        const uint8_t *ip = f.data + 14, *tcp = ip + sizeof(struct iphdr);
        const uint32_t pseudo = sum_of(ip + 12, 8, IPPROTO_TCP + sizeof(struct tcphdr));
        CHECK_INT(checksum(sum_of(ip, sizeof(struct iphdr), 0)), 0);
        CHECK_INT(checksum(sum_of(tcp, sizeof(struct tcphdr), pseudo)), 0);
}

/* Nobody chooses the port under which a connection goes out, so nobody can ask for one that was another's. */
static void test_ports_are_random(void) {
        const uint32_t address = A;
        uint16_t ports[3] = {0};

        CHECK_INT(policy(&internet, &nothing), 0);
        for (uint16_t i = 0; i < ARRAY_SIZE(ports); i++)
                REQUIRE(open_connection((uint16_t) (5900 + i), &ports[i]));
        CHECK(ports[0] != 5900 || ports[1] != 5901 || ports[2] != 5902);
        CHECK_INT(ask(helper.socket, HELPER_FORGET, &address, sizeof(address)), 0);
        CHECK_INT(policy(&nothing, &nothing), 0);
        drain(uplink);
}

static void test_forgotten(void) {
        const struct segment data = {6000, 80, 101, 501, false, true, "hello"};
        const uint32_t address = A, other = B;
        uint16_t port = 0;
        struct packet p = {0};

        CHECK_INT(policy(&internet, &nothing), 0);
        REQUIRE(open_connection(6000, &port));
        struct frame f = tcp_frame(gateway_mac, mac_a, A, SERVER, &data);
        CHECK_INT(ask(helper.socket, HELPER_FORGET, &other, sizeof(other)), 0); /* another's */
        CHECK(frame_send(tap_a, &f) && next_packet(uplink, &p) && p.protocol == IPPROTO_TCP);
        CHECK(!p.reset);
        CHECK_INT(frame_receive(uplink, &f, 0), -ETIMEDOUT);
        CHECK_INT(ask(helper.socket, HELPER_FORGET, &address, sizeof(address)), 0);
        check_told(port);
        drain(tap_a);
        /* The server's answer reaches nobody, and A learns that its connection is gone. */
        const struct segment late = {80, port, 501, 106, false, true, "late"};
        const struct frame from_server = tcp_frame(uplink_mac, far_mac, SERVER, UPLINK, &late);
        CHECK(frame_send(uplink, &from_server));
        CHECK_INT(frames_before_mark(tap_a, A), 0);
        f = tcp_frame(gateway_mac, mac_a, A, SERVER, &data);
        CHECK(frame_send(tap_a, &f) && next_packet(tap_a, &p));
        CHECK(p.protocol == IPPROTO_TCP && p.reset);
        CHECK_INT(frame_receive(uplink, &f, 0), -ETIMEDOUT);
        CHECK(open_connection(6001, &port)); /* a new one works */
        CHECK_INT(policy(&nothing, &nothing), 0);
}

/* More than the uplink's interface can hold: none is lost on somebody who reads. */
static void test_many_forgotten(void) {
        enum { N = 3000 };
        static bool told[65536];
        const uint32_t address = A;
        struct frame f;
        struct packet p = {0};
        uint16_t port = 0;
        unsigned resets = 0;

        CHECK_INT(policy(&internet, &nothing), 0);
        CHECK_INT(ask(helper.socket, HELPER_FORGET, &address, sizeof(address)), 0);
        drain(uplink);
        for (uint16_t i = 0; i < N; i++)
                REQUIRE(open_connection((uint16_t) (20000 + i), &port));
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0)
                _exit(ask(helper.socket, HELPER_FORGET, &address, sizeof(address)) == 0 ? 0 : 1);
        while (resets < N && frame_receive(uplink, &f, WAIT_MS) == 0) {
                if (!packet_of(&f, &p) || !p.reset || told[p.source_port])
                        continue;
                told[p.source_port] = true;
                resets++;
        }
        CHECK_INT(resets, N);
        CHECK_INT(exit_status(pid), 0);
        CHECK_INT(policy(&nothing, &nothing), 0);
}

/* With the helper gone and another one in its place, a connection goes on, before the policy is told again and after.
 */
static void test_connections_outlive_the_helper(void) {
        const struct segment data = {6100, 80, 101, 501, false, true, "hello"};
        struct packet p = {0};
        uint16_t port = 0;

        CHECK_INT(policy(&internet, &nothing), 0);
        REQUIRE(open_connection(6100, &port));
        const struct frame f = tcp_frame(gateway_mac, mac_a, A, SERVER, &data);
        CHECK_INT(kill(helper.pid, SIGKILL), 0);
        CHECK_INT(helper_end(&helper), 128 + SIGKILL);
        CHECK(frame_send(tap_a, &f) && next_packet(uplink, &p) && p.source_port == port);
        helper = helper_start(&holder);
        REQUIRE(ask_setup(helper.socket) == 0);
        CHECK(frame_send(tap_a, &f) && next_packet(uplink, &p) && p.source_port == port);
        CHECK_INT(ask_cards(helper.socket, A, 2), 0);
        CHECK_INT(policy(&internet, &nothing), 0);
        CHECK(frame_send(tap_a, &f) && next_packet(uplink, &p) && p.source_port == port);
        CHECK_INT(policy(&nothing, &nothing), 0);
}

/* One workspace cannot use up the room for connections. */
static void test_many_flows(void) {
        const uint32_t address = A;
        struct packet p = {0};
        unsigned passed = 0;

        CHECK_INT(ask(helper.socket, HELPER_FORGET, &address, sizeof(address)), 0);
        CHECK_INT(policy(&internet, &internet), 0);
        drain(uplink);
        for (uint16_t i = 0; i <= RULES_FLOWS_MAX; i++) {
                struct frame f = udp_frame(gateway_mac, mac_a, A, (uint16_t) (10000 + i), SERVER, 80, "flow");
                CHECK(frame_send(tap_a, &f));
                passed += frame_receive(uplink, &f, 0) == 0;
        }
        CHECK_INT(passed, RULES_FLOWS_MAX);
        CHECK(send_echo(tap_a, mac_a, A, 1)); /* would be one more */
        CHECK_PROHIBITED();
        CHECK(send_echo(tap_b, mac_b, B, 1) && is_echoed(tap_b));
        const struct frame f = udp_frame(gateway_mac, mac_b, B, 5000, SERVER, 80, "another's");
        CHECK(frame_send(tap_b, &f) && next_packet(uplink, &p));
        CHECK_STR(p.text, "another's");
        CHECK_INT(policy(&nothing, &nothing), 0);
        CHECK_INT(ask(helper.socket, HELPER_FORGET, &address, sizeof(address)), 0);
        drain(uplink);
}

/* Whoever asks too often is refused, and nobody else. */
static void test_many_echoes(void) {
        const uint32_t address = A;
        struct packet p = {0};
        unsigned sent = 0;

        drain(tap_a);
        do {
                CHECK(send_echo(tap_a, mac_a, A, (uint16_t) ++sent));
                CHECK(next_packet(tap_a, &p));
        } while (p.source_port == ICMP_ECHOREPLY && sent < 2 * RULES_FLOWS_MAX);
        CHECK_INT(p.source_port, ICMP_DEST_UNREACH);
        CHECK(send_echo(tap_b, mac_b, B, 2) && is_echoed(tap_b));
        CHECK_INT(ask(helper.socket, HELPER_FORGET, &address, sizeof(address)), 0);
}

/* What the namespace's own sockets send does not leave by the uplink. */
static void test_nothing_of_our_own_leaves(void) {
        const struct sockaddr_in server = {
                .sin_family = AF_INET, .sin_port = htons(80), .sin_addr.s_addr = htonl(SERVER)};
        _cleanup_close_ int tcp = -1;

        drain(uplink);
        REQUIRE(ask_fd(helper.socket, HELPER_SOCKET, &(int){SOCK_STREAM}, sizeof(int), &tcp) == 0);
        CHECK(connect(tcp, (const struct sockaddr *) &server, sizeof(server)) < 0);
        CHECK_INT(sendto(udp, "out", 3, 0, (const struct sockaddr *) &server, sizeof(server)), -1);
        CHECK_INT(frame_receive(uplink, &(struct frame){0}, 0), -ETIMEDOUT);
}

/* The other machine of the workspace takes over: the first is heard no more, and hears nothing. */
static void test_the_other_slot(void) {
        const struct card second = {A, 1}, first = {A, 0};
        const struct frame f = arp_for(GATEWAY);
        struct frame answer;
        _cleanup_close_ int other = -1;

        REQUIRE(ask_tap(helper.socket, A, 1, false, &other) == 0);
        drain(tap_a);
        CHECK(!frame_send(other, &f));
        CHECK_INT(frames_before_mark(tap_a, A), 0); /* what comes for A goes to the first */
        CHECK_INT(frame_receive(other, &answer, 0), -ETIMEDOUT);
        CHECK_INT(ask(helper.socket, HELPER_ATTACH, &second, sizeof(second)), 0);
        CHECK(!frame_send(tap_a, &f));
        CHECK_INT(frames_before_mark(other, A), 0);
        CHECK(frame_send(other, &f) && frame_receive(other, &answer, WAIT_MS) == 0);
        CHECK_INT(type_of(&answer), ETHERTYPE_ARP);
        CHECK_INT(frame_receive(tap_a, &answer, 0), -ETIMEDOUT);
        CHECK_INT(ask(helper.socket, HELPER_ATTACH, &first, sizeof(first)), 0);
        CHECK(a_is_answered());
}

/* ---- the stage ---- */

/* In a child that joins the namespaces: a tap that is called like the uplink. */
static void make_uplink(int sock) {
        struct ifreq request = {.ifr_name = RULES_UPLINK, .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
        bool inside = (holder.user_ns < 0 || setns(holder.user_ns, CLONE_NEWUSER) == 0) &&
                      setns(holder.net_ns, CLONE_NEWNET) == 0;
        int fd = inside ? open("/dev/net/tun", O_RDWR | O_NONBLOCK) : -1;

        if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0 || ioctl(fd, SIOCGIFHWADDR, &request) < 0)
                _exit(1);
        _exit(send_with_fd(sock, request.ifr_hwaddr.sa_data, 6, fd) == 6 ? 0 : 1);
}

static bool open_uplink(void) {
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return false;
        pid_t pid = fork();
        if (pid == 0)
                make_uplink(pair[1]);
        const int wait_ms = HELPER_UPLINK_MS;
        bool made = exit_status(pid) == 0 && recv_with_fd(pair[0], uplink_mac, 6, &uplink) == 6;
        close_fd(pair[0]);
        close_fd(pair[1]);
        _cleanup_free_ char *out =
                made ? output_in(&holder, "sysctl -qw net.ipv6.conf.uplink0.disable_ipv6=1 2>/dev/null; "
                                          "ip addr add 198.51.100.2/24 dev uplink0 && ip link set uplink0 up && "
                                          "ip route add default via 198.51.100.1 && "
                                          "for a in 1 10 99; do ip neigh add 198.51.100.$a lladdr 02:00:00:00:00:01 "
                                          "dev uplink0 nud permanent; done && echo up")
                     : NULL;
        return out && str_eq(out, "up\n") && ask(helper.socket, HELPER_UPLINK, &wait_ms, sizeof(wait_ms)) == 0;
}

static bool open_stage(int lock) {
        cpu_set_t one;

        CPU_ZERO(&one);
        CPU_SET(sched_getcpu(), &one);
        if (sched_setaffinity(0, sizeof(one), &one) < 0 || holder_start(lock, &holder) < 0)
                return false;
        card_mac(A, mac_a);
        card_mac(B, mac_b);
        card_mac(GATEWAY, gateway_mac);
        helper = helper_start(&holder);
        return ask_setup(helper.socket) == 0 && ask_cards(helper.socket, A, 2) == 0 &&
               ask_tap(helper.socket, A, 0, true, &tap_a) == 0 && ask_tap(helper.socket, B, 0, true, &tap_b) == 0 &&
               ask_fd(helper.socket, HELPER_SOCKET, &(int){SOCK_DGRAM}, sizeof(int), &udp) == 0 && open_uplink();
}

int main(void) {
        char dir[] = "/tmp/test-packets-XXXXXX";

        SKIP_WITHOUT_NAMESPACES();
        if (!mkdtemp(dir))
                return 1;
        _cleanup_free_ char *path = path_join(dir, "netns");
        int lock = path ? file_lock(path) : -1;
        if (lock < 0 || !open_stage(lock)) {
                printf("Bail out! no network to try: %s\n", answer_text);
                return 1;
        }
        RUN(test_gateway_answers);
        RUN(test_arp_for_the_peer);
        RUN(test_arp_spoofing);
        RUN(test_frames_for_the_peer);
        RUN(test_tags);
        RUN(test_forged_sources);
        RUN(test_denied_by_default);
        RUN(test_inter_vm);
        RUN(test_open_port);
        RUN(test_names);
        RUN(test_internet);
        RUN(test_nothing_of_our_own_leaves);
        RUN(test_ports_are_random);
        RUN(test_forgotten);
        RUN(test_many_forgotten);
        RUN(test_connections_outlive_the_helper);
        RUN(test_many_flows);
        RUN(test_many_echoes);
        RUN(test_the_other_slot);
        helper_end(&helper);
        holder_end(&holder);
        close_fd(lock);
        rm_rf(dir);
        return tap_done();
}
