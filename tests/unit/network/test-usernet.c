/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process of user networking, from outside: the test is QEMU and its guest on one side, the daemon on another, and
 * plays the internet and the host.
 *
 * The test's process is in a network namespace of its own, the host's, with the address 198.51.100.1; a child is the
 * internet in another one. That nothing gets out is shown without waiting: the gateway's answer to an echo says that
 * what was sent before has been dealt with, and the internet reports its connections in the order in which they came.
 */
#include <linux/netlink.h>
#include <sched.h>
#include <sys/prctl.h>

#include "fixture.h"
#include "frames.h"
#include "loopback.h"
#include "network/user-protocol.h"
#include "network/usernet.h"

#define GUEST (NET + 2)
#define WEB 0xc633640au    /* 198.51.100.10, on the internet */
#define SECOND 0xc633640bu /* 198.51.100.11, likewise */
#define HOST 0xc6336401u
#define PRIVATE 0x0a140005u /* 10.20.0.5, which the internet has, too */
#define PORT 7
#define WAIT_MS 10000
#define OPEN 'o'
#define CLOSED 'c'
#define FLOOD_PORTS 1500
#define ROUNDS 20000

/* What the internet has seen. */
struct report {
        uint32_t what, address; /* its own, of a connection */
};

static char dir[] = "/tmp/test-usernet-XXXXXX";
static int reports = -1, qemu = -1, host_tcp = -1, host_udp = -1;
static uint8_t guest_mac[6], gateway_mac[6];

/* ---- the internet ---- */

static void report(int out, uint32_t what, int connection) {
        struct sockaddr_in local;
        socklen_t n = sizeof(local);

        getsockname(connection, (struct sockaddr *) &local, &n);
        const struct report r = {what, ntohl(local.sin_addr.s_addr)};
        if (write(out, &r, sizeof(r)) != sizeof(r))
                _exit(1);
}

/* Sends back what it gets. */
static void serve(int listener, int out) {
        struct pollfd polls[64] = {{.fd = listener, .events = POLLIN}};
        size_t n = 1;
        char text[256];

        while (poll(polls, n, -1) > 0) {
                for (size_t i = 1; i < n; i++) {
                        if (!polls[i].revents)
                                continue;
                        ssize_t got = recv(polls[i].fd, text, sizeof(text), 0);
                        if (got > 0 && send(polls[i].fd, text, (size_t) got, MSG_NOSIGNAL) == got)
                                continue;
                        report(out, CLOSED, polls[i].fd);
                        close(polls[i].fd);
                        polls[i--] = polls[--n];
                }
                if (polls[0].revents && n < ARRAY_SIZE(polls)) {
                        polls[n] = (struct pollfd){.fd = accept(listener, NULL, NULL), .events = POLLIN};
                        report(out, OPEN, polls[n++].fd);
                }
        }
        _exit(1);
}

static int run(const char *command) {
        int status = system(command);

        if (status != 0)
                printf("# `%s` ended with %d\n", command, status);
        return status;
}

/* In a namespace of its own; `go` says that its end of the cable is there. */
static void be_the_internet(int ready, int go, int out) {
        char byte;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (unshare(CLONE_NEWNET) < 0 || write(ready, "", 1) != 1 || read(go, &byte, 1) != 1 ||
            run("ip link set lo up && ip link set up1 up && ip addr add 198.51.100.10/24 dev up1 && "
                "ip addr add 198.51.100.11/24 dev up1 && ip addr add 10.20.0.5/32 dev lo") != 0)
                _exit(1);
        int listener = bound(SOCK_STREAM, INADDR_ANY, PORT);
        if (listener < 0 || write(ready, "", 1) != 1)
                _exit(1);
        serve(listener, out);
}

static bool make_internet(void) {
        int ready[2], go[2], out[2];
        char byte;

        if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(go, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
                return false;
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0)
                be_the_internet(ready[1], go[0], out[1]);
        close(ready[1]);
        close(out[1]);
        reports = out[0];
        _cleanup_free_ char *command = str_printf(
                "ip link set lo up && ip link add up0 type veth peer name up1 netns %d && "
                "ip addr add 198.51.100.1/24 dev up0 && ip link set up0 up && ip route add default via 198.51.100.10",
                (int) pid);
        return read(ready[0], &byte, 1) == 1 && run(command) == 0 && write(go[1], "", 1) == 1 &&
               read(ready[0], &byte, 1) == 1;
}

static bool next_report(uint32_t what, uint32_t address) {
        const struct op op = op_timeout(WAIT_MS);
        struct report r = {0};

        if (read_full(reports, &r, sizeof(r), &op) < 0)
                return false;
        if (r.what != what || r.address != address)
                printf("# the internet says %c %08x\n", (int) r.what, r.address);
        return r.what == what && r.address == address;
}

static bool host_saw_nothing(void) {
        char byte;

        return accept(host_tcp, NULL, NULL) < 0 && errno == EAGAIN && recv(host_udp, &byte, 1, MSG_DONTWAIT) < 0 &&
               errno == EAGAIN;
}

/* ---- QEMU ---- */

static bool send_bytes(const void *data, size_t n) {
        const struct op op = op_timeout(WAIT_MS);

        return write_full(qemu, data, n, &op) == 0;
}

static bool send_frame(struct frame f) {
        const uint32_t length = htonl((uint32_t) f.n);

        return send_bytes(&length, sizeof(length)) && send_bytes(f.data, f.n);
}

/* The next frame; the guest answers questions for its own address on the way. */
static bool receive_frame(struct frame *f) {
        const struct op op = op_timeout(WAIT_MS);
        uint32_t length;

        for (;;) {
                if (read_full(qemu, &length, sizeof(length), &op) < 0 || ntohl(length) > FRAME_MAX)
                        return false;
                f->n = ntohl(length);
                if (read_full(qemu, f->data, f->n, &op) < 0)
                        return false;
                if (type_of(f) != ETHERTYPE_ARP || f->data[21] != ARPOP_REQUEST)
                        return true;
                uint32_t asker, asked;
                memcpy(&asker, f->data + 28, 4);
                memcpy(&asked, f->data + 38, 4);
                if (ntohl(asked) == GUEST &&
                    !send_frame(arp_frame(f->data + 6, guest_mac, ARPOP_REPLY, guest_mac, GUEST, ntohl(asker))))
                        return false;
        }
}

static bool start(void) {
        const struct usernet_config cfg = {
                .program = "/proc/self/exe", .dir = dir, .network = {NET, 16}, .address = GUEST};
        _cleanup_error_ struct error err = ERROR_INIT;

        qemu = close_fd(qemu);
        int r = usernet_start(&cfg, &qemu, &err);
        if (r < 0)
                printf("# %s\n", error_message(&err));
        return r >= 0 && fd_set_nonblock(qemu, true) >= 0;
}

/* The process, which was left to us. */
static pid_t process(void) {
        _cleanup_free_ char *path = str_printf("/proc/self/task/%d/children", (int) getpid()), *text = NULL;
        pid_t last = -1;

        if (file_read_all(path, 4096, &text, NULL) < 0)
                return -1;
        for (char *at = text, *end; *at; at = end) { /* the internet is the other one */
                last = (pid_t) strtol(at, &end, 10);
                end += strspn(end, " ");
        }
        return last;
}

static bool end(void) {
        pid_t pid = process();

        qemu = close_fd(qemu);
        return exit_status(pid) == 0;
}

static int set(bool internet) {
        const struct op op = op_timeout(WAIT_MS);

        return usernet_set(dir, internet, NULL, 0, &op, NULL);
}

/* ---- the guest ---- */

static bool learn_gateway(void) {
        struct frame f;

        if (!send_frame(arp_frame(broadcast_mac, guest_mac, ARPOP_REQUEST, guest_mac, GUEST, GATEWAY)) ||
            !receive_frame(&f) || type_of(&f) != ETHERTYPE_ARP)
                return false;
        memcpy(gateway_mac, f.data + 22, 6);
        return true;
}

static struct frame echo_to(uint32_t to, uint16_t number) {
        struct icmphdr echo = {.type = ICMP_ECHO, .un.echo.sequence = htons(number)};

        echo.checksum = checksum(sum_of(&echo, sizeof(echo), 0));
        return ip_frame(gateway_mac, guest_mac, GUEST, to, IPPROTO_ICMP, &echo, sizeof(echo));
}

/* How many packets the guest got before the gateway's answer, the last of them in *ret; -1: there is no answer. */
static int packets_before_echo(struct packet *ret) {
        static uint16_t number;
        struct frame f;
        struct packet p;

        if (!send_frame(echo_to(GATEWAY, ++number)))
                return -1;
        for (int n = 0; receive_frame(&f); n++) {
                if (!packet_of(&f, &p))
                        continue;
                if (p.protocol == IPPROTO_ICMP && p.source_port == ICMP_ECHOREPLY && f.data[41] == (uint8_t) number)
                        return n;
                *ret = p;
        }
        return -1;
}

static struct frame segment_to(uint32_t to, const struct segment *s) {
        return tcp_frame(gateway_mac, guest_mac, GUEST, to, s);
}

static bool is_reset(const struct frame f, uint32_t from) {
        struct packet p = {0};

        return send_frame(f) && packets_before_echo(&p) == 1 && p.reset && p.source == from;
}

static bool is_refused(uint32_t to, uint16_t port) {
        static uint16_t source = 20000;
        const struct segment s = {.source_port = source++, .port = port, .seq = 1, .syn = true};

        return is_reset(segment_to(to, &s), to);
}

static bool is_prohibited(uint32_t to, uint16_t port) {
        struct packet p = {0};

        return send_frame(udp_frame(gateway_mac, guest_mac, GUEST, 5000, to, port, "x")) &&
               packets_before_echo(&p) == 1 && p.protocol == IPPROTO_ICMP && p.source_port == ICMP_DEST_UNREACH &&
               p.port == ICMP_PKT_FILTERED && p.source == GATEWAY;
}

struct connection {
        uint32_t to;
        struct segment next;
};

static uint32_t number_at(const struct frame *f, size_t at) {
        uint32_t number;

        memcpy(&number, f->data + at, sizeof(number));
        return ntohl(number);
}

#define IP_LENGTH_AT (14 + 2)
#define PORT_AT (14 + 20 + 2)
#define SEQ_AT (14 + 20 + 4)
#define TEXT_AT (14 + 20 + 20)

/* The next segment of this connection; an answer to another may come late. */
static bool next_segment(const struct connection *c, struct frame *f) {
        uint16_t port;

        do {
                if (!receive_frame(f))
                        return false;
                memcpy(&port, f->data + PORT_AT, sizeof(port));
        } while (f->n < TEXT_AT || f->data[23] != IPPROTO_TCP || ntohs(port) != c->next.source_port);
        return true;
}

/* By the IP header: a short frame is filled up. */
static size_t text_length(const struct frame *f) {
        uint16_t length;

        memcpy(&length, f->data + IP_LENGTH_AT, sizeof(length));
        return ntohs(length) < 40 ? 0 : ntohs(length) - 40u;
}

static bool open_connection(uint32_t to, struct connection *c) {
        static uint16_t source = 10000;
        struct frame f;
        struct packet p;

        *c = (struct connection){to, {.source_port = source++, .port = PORT, .seq = 1000, .syn = true}};
        if (!send_frame(segment_to(to, &c->next)) || !next_segment(c, &f) || !packet_of(&f, &p) || !p.syn || p.reset ||
            p.source != to)
                return false;
        c->next.syn = false;
        c->next.has_ack = true;
        c->next.seq++;
        c->next.ack = number_at(&f, SEQ_AT) + 1;
        return send_frame(segment_to(to, &c->next)) && next_report(OPEN, to);
}

/* Says something and hears the same. */
static bool talk(struct connection *c, const char *text) {
        const size_t n = strlen(text);
        struct frame f;

        c->next.text = text;
        if (!send_frame(segment_to(c->to, &c->next)))
                return false;
        c->next.text = NULL;
        c->next.seq += (uint32_t) n;
        do {
                if (!next_segment(c, &f))
                        return false;
        } while (text_length(&f) != n || number_at(&f, SEQ_AT) != c->next.ack);
        c->next.ack += (uint32_t) n;
        return memcmp(f.data + TEXT_AT, text, n) == 0 && send_frame(segment_to(c->to, &c->next));
}

/* ---- tests ---- */

static const uint32_t never[] = {HOST, INADDR_LOOPBACK, PRIVATE, GATEWAY, NET + 3};

static bool nothing_is_reached(void) {
        bool all = true;

        for (size_t i = 0; i < ARRAY_SIZE(never); i++)
                all = all && is_refused(never[i], PORT) && is_prohibited(never[i], PORT);
        return all && host_saw_nothing();
}

static void test_off_at_first(void) {
        struct connection c;

        REQUIRE(start() && learn_gateway());
        CHECK(is_refused(WEB, PORT));
        CHECK(is_prohibited(WEB, PORT));
        CHECK(is_prohibited(NET + 0xfffe, 53));
        CHECK(nothing_is_reached());
        /* The first connection that the internet sees is one that was allowed. */
        CHECK_INT(set(true), 0);
        CHECK(open_connection(SECOND, &c));
        CHECK(end());
        CHECK(next_report(CLOSED, SECOND));
}

static void test_the_internet_and_nothing_else(void) {
        struct connection c, second;
        struct packet p;

        REQUIRE(start() && learn_gateway());
        REQUIRE(set(true) == 0 && open_connection(WEB, &c));
        CHECK(talk(&c, "there and back"));
        CHECK(open_connection(SECOND, &second) && talk(&second, "to another") && talk(&c, "again"));
        CHECK(nothing_is_reached());
        /* Forged senders hear nothing, and nobody hears them. */
        uint8_t other_mac[6];
        card_mac(NET + 3, other_mac);
        const struct segment s = {.source_port = 1, .port = PORT, .syn = true};
        CHECK(send_frame(tcp_frame(gateway_mac, other_mac, GUEST, WEB, &s)));
        CHECK(send_frame(tcp_frame(gateway_mac, guest_mac, NET + 3, WEB, &s)));
        CHECK_INT(packets_before_echo(&p), 0);
        CHECK(talk(&c, "still there"));
        CHECK(end());
        struct report first = {0}, last = {0};
        const struct op op = op_timeout(WAIT_MS);
        REQUIRE(read_full(reports, &first, sizeof(first), &op) == 0 &&
                read_full(reports, &last, sizeof(last), &op) == 0);
        CHECK(first.what == CLOSED && last.what == CLOSED && first.address + last.address == WEB + SECOND);
}

static void test_exceptions(void) {
        const struct network_range range = {0x0a140000u, 16};
        const struct op op = op_timeout(WAIT_MS);
        struct connection c;

        REQUIRE(start() && learn_gateway());
        CHECK_INT(usernet_set(dir, true, &range, 1, &op, NULL), 0);
        REQUIRE(open_connection(PRIVATE, &c));
        CHECK(talk(&c, "by exception"));
        /* Without it the connection is over. */
        CHECK_INT(set(true), 0);
        CHECK(next_report(CLOSED, PRIVATE));
        CHECK(is_reset(segment_to(PRIVATE, &c.next), PRIVATE));
        CHECK(is_refused(PRIVATE, PORT));
        CHECK(end());
}

static void test_switching_off_cuts(void) {
        struct connection c;

        REQUIRE(start() && learn_gateway() && set(true) == 0);
        REQUIRE(open_connection(WEB, &c) && talk(&c, "before"));
        CHECK_INT(set(false), 0);
        CHECK(next_report(CLOSED, WEB));
        c.next.text = "after";
        CHECK(is_reset(segment_to(WEB, &c.next), WEB));
        CHECK(is_refused(WEB, PORT));
        /* On again is not as if nothing had been. */
        CHECK_INT(set(true), 0);
        CHECK(is_reset(segment_to(WEB, &c.next), WEB));
        CHECK(open_connection(WEB, &c) && talk(&c, "anew"));
        CHECK(end());
        CHECK(next_report(CLOSED, WEB));
}

static void test_an_address_that_the_host_gets(void) {
        struct connection c;

        REQUIRE(start() && learn_gateway() && set(true) == 0);
        REQUIRE(open_connection(WEB, &c) && talk(&c, "before"));
        REQUIRE(run("ip addr add 198.51.100.10/32 dev up0") == 0);
        CHECK(is_refused(WEB, PORT));
        c.next.text = "after";
        CHECK(is_reset(segment_to(WEB, &c.next), WEB));
        CHECK(host_saw_nothing());
        REQUIRE(run("ip addr del 198.51.100.10/32 dev up0") == 0);
        CHECK(end());
        CHECK(next_report(CLOSED, WEB));
}

/* A request as it stands; what is answered, or 1 when the connection ends without that. */
static int ask_raw(const void *data, size_t n) {
        _cleanup_free_ char *path = path_join(dir, USERNET_SOCKET);
        const struct op op = op_timeout(WAIT_MS);
        struct usernet_answer a;

        _cleanup_close_ int fd = unix_connect(path, &op);
        if (fd < 0 || write_full(fd, data, n, &op) < 0 || shutdown(fd, SHUT_WR) < 0)
                return -EIO;
        return read_full(fd, &a, sizeof(a), &op) < 0 ? 1 : a.result;
}

static void test_wrong_requests(void) {
        struct {
                struct usernet_request q;
                struct network_range ranges[NETWORK_EXCEPTIONS_MAX];
        } body = {.q = {USERNET_VERSION + 1, 1, 0}};
        struct network_range many[NETWORK_EXCEPTIONS_MAX + 1] = {0};
        const struct op op = op_timeout(WAIT_MS);

        REQUIRE(start() && learn_gateway());
        CHECK_INT(ask_raw(&body, sizeof(body.q)), -EPROTONOSUPPORT);
        body.q = (struct usernet_request){USERNET_VERSION, 2, 0};
        CHECK_INT(ask_raw(&body, sizeof(body.q)), -EINVAL);
        body.q = (struct usernet_request){USERNET_VERSION, 1, NETWORK_EXCEPTIONS_MAX + 1};
        CHECK_INT(ask_raw(&body, sizeof(body)), -EINVAL);
        body.q = (struct usernet_request){USERNET_VERSION, 1, UINT32_MAX};
        CHECK_INT(ask_raw(&body, sizeof(body.q)), -EINVAL);
        body.q = (struct usernet_request){USERNET_VERSION, 1, 1};
        body.ranges[0] = (struct network_range){0x0a000001u, 8};
        CHECK_INT(ask_raw(&body, sizeof(body.q) + sizeof(body.ranges[0])), -EINVAL);
        body.ranges[0] = (struct network_range){0, 33};
        CHECK_INT(ask_raw(&body, sizeof(body.q) + sizeof(body.ranges[0])), -EINVAL);
        /* Parts of a request. */
        CHECK_INT(ask_raw(&body, 0), 1);
        CHECK_INT(ask_raw(&body, 5), 1);
        CHECK_INT(ask_raw(&body, sizeof(body.q) + 3), 1);
        CHECK_INT(usernet_set(dir, true, many, ARRAY_SIZE(many), &op, NULL), -EINVAL);
        CHECK(is_refused(WEB, PORT));
        /* The most that there may be. */
        CHECK_INT(usernet_set(dir, false, many, NETWORK_EXCEPTIONS_MAX, &op, NULL), 0);
        CHECK(end());
}

/* It comes in two parts, and the process looks at the first alone. */
static void test_a_request_in_parts(void) {
        const struct {
                struct usernet_request q;
                struct network_range range;
        } body = {{USERNET_VERSION, 1, 1}, {0x0a140000u, 16}};
        const size_t parts[] = {4, sizeof(body.q), sizeof(body.q) + 4};
        _cleanup_free_ char *path = path_join(dir, USERNET_SOCKET);
        const struct op op = op_timeout(WAIT_MS);

        REQUIRE(start() && learn_gateway());
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
                struct usernet_answer a = {.result = 1};
                struct packet p;
                _cleanup_close_ int fd = unix_connect(path, &op);

                REQUIRE(write_full(fd, &body, parts[i], &op) == 0);
                CHECK_INT(packets_before_echo(&p), 0); /* it has been through its loop: once to greet, */
                CHECK_INT(packets_before_echo(&p), 0); /* once to hear */
                REQUIRE(write_full(fd, (const char *) &body + parts[i], sizeof(body) - parts[i], &op) == 0);
                CHECK_INT(read_full(fd, &a, sizeof(a), &op), 0);
                CHECK_INT(a.result, 0);
        }
        CHECK(end());
}

/* Whoever says nothing is not waited for without end. */
static void test_a_silent_asker(void) {
        _cleanup_free_ char *path = path_join(dir, USERNET_SOCKET);
        const struct op op = op_timeout(WAIT_MS);

        REQUIRE(start() && learn_gateway());
        _cleanup_close_ int silent = unix_connect(path, &op);
        REQUIRE(silent >= 0);
        CHECK_INT(set(true), 0);
        CHECK(end());
}

static void test_wrong_frames(void) {
        static uint8_t long_frame[70000];
        struct packet p;

        REQUIRE(start() && learn_gateway() && set(true) == 0);
        for (size_t n = 0; n < 60; n++) {
                const uint32_t length = htonl((uint32_t) n);
                CHECK(send_bytes(&length, sizeof(length)) && send_bytes(long_frame, n));
        }
        const uint32_t giant = htonl(65536);
        CHECK(send_bytes(&giant, sizeof(giant)) && send_bytes(long_frame, 65536));
        CHECK_INT(packets_before_echo(&p), 0);
        /* A frame in pieces. */
        const struct frame echo = echo_to(GATEWAY, 0);
        const uint32_t length = htonl((uint32_t) echo.n);
        CHECK(send_bytes(&length, 1) && send_bytes((const char *) &length + 1, 3) && send_bytes(echo.data, 10));
        CHECK(send_bytes(echo.data + 10, echo.n - 10));
        CHECK_INT(packets_before_echo(&p), 1);
        CHECK(end());
}

/* Frames that are right but for some bytes; the same in each run. */
static void test_damaged_frames(void) {
        uint32_t random = 4711;
        struct packet p;

        REQUIRE(start() && learn_gateway() && set(true) == 0);
        const struct segment s = {.source_port = 9, .port = PORT, .seq = 1, .syn = true};
        const struct frame good[] = {
                segment_to(WEB, &s),
                udp_frame(gateway_mac, guest_mac, GUEST, 9, WEB, PORT, "datagram"),
                echo_to(WEB, 1),
                arp_frame(broadcast_mac, guest_mac, ARPOP_REQUEST, guest_mac, GUEST, GATEWAY),
        };
        for (unsigned i = 0; i < ROUNDS; i++) {
                struct frame f = good[i % ARRAY_SIZE(good)];
                for (unsigned j = 0; j <= i % 3; j++) {
                        random = random * 1664525u + 1013904223u;
                        f.data[12 + (random >> 16) % (f.n - 12)] = (uint8_t) (random >> 8);
                }
                if (i % 7 == 0)
                        f.n -= (random >> 20) % (f.n - 1);
                REQUIRE(send_frame(f));
                if (i % 64 == 0)
                        REQUIRE(packets_before_echo(&p) >= 0);
        }
        CHECK(packets_before_echo(&p) >= 0);
        CHECK(end());
        /* Some of them were good enough to reach the internet. */
        struct report r;
        REQUIRE(fd_set_nonblock(reports, true) == 0);
        const struct op op = op_timeout(WAIT_MS);
        for (int open = 0; read_full(reports, &r, sizeof(r), &op) == 0;)
                if ((open += r.what == OPEN ? 1 : -1) == 0)
                        break;
}

/* A guest that takes up all sockets cannot keep its internet. */
static void test_a_flood_of_flows(void) {
        struct packet p;

        REQUIRE(start() && learn_gateway() && set(true) == 0);
        for (uint16_t i = 0; i < FLOOD_PORTS; i++) {
                REQUIRE(send_frame(udp_frame(gateway_mac, guest_mac, GUEST, (uint16_t) (20000 + i), WEB, PORT, "x")));
                if (i % 50 == 0)
                        REQUIRE(packets_before_echo(&p) >= 0);
        }
        CHECK_INT(set(false), 0);
        CHECK(packets_before_echo(&p) >= 0);
        CHECK(is_refused(WEB, PORT));
        CHECK(end());
}

static bool status_says(pid_t pid, const char *line) {
        _cleanup_free_ char *path = str_printf("/proc/%d/status", (int) pid), *text = NULL;

        return file_read_all(path, 65536, &text, NULL) == 0 && strstr(text, line);
}

static void test_has_no_privileges(void) {
        REQUIRE(start());
        CHECK(status_says(process(), "\nCapEff:\t0000000000000000\n"));
        CHECK(status_says(process(), "\nCapPrm:\t0000000000000000\n"));
        CHECK(status_says(process(), "\nNoNewPrivs:\t1\n"));
        CHECK(getsid(process()) != getsid(0));
        CHECK(end());
}

static void test_ends_with_qemu(void) {
        const uint32_t wrong = htonl(80000);

        REQUIRE(start());
        CHECK(end());
        CHECK_INT(set(false), 0);
        CHECK_INT(set(true), -ESRCH);
        /* What QEMU never says. */
        REQUIRE(start());
        pid_t pid = process();
        CHECK(send_bytes(&wrong, sizeof(wrong)));
        CHECK_INT(exit_status(pid), 0);
        /* One that was killed. */
        REQUIRE(start() && set(true) == 0);
        pid = process();
        kill(pid, SIGKILL);
        CHECK_INT(exit_status(pid), 128 + SIGKILL);
        CHECK_INT(set(true), -ESRCH);
        CHECK_INT(set(false), 0);
}

/* A machine is started anew while the process of the former one still runs. */
static void test_takes_the_place_of_another(void) {
        struct connection c;

        REQUIRE(start() && learn_gateway());
        int former = TAKE_FD(qemu);
        pid_t former_pid = process();
        REQUIRE(start() && learn_gateway() && set(true) == 0);
        CHECK(open_connection(WEB, &c) && talk(&c, "of the new one"));
        int newer = qemu;
        qemu = former;
        CHECK(is_refused(WEB, PORT));
        close(former);
        CHECK_INT(exit_status(former_pid), 0);
        qemu = newer;
        CHECK_INT(set(true), 0);
        CHECK(end());
        CHECK(next_report(CLOSED, WEB));
}

static void test_says_why_it_does_not_start(void) {
        struct usernet_config cfg = {.program = "/proc/self/exe", .dir = dir, .network = {NET, 16}, .address = HOST};
        _cleanup_error_ struct error err = ERROR_INIT;
        int fd = -1;

        CHECK(usernet_start(&cfg, &fd, &err) < 0);
        CHECK(strstr(error_message(&err), "198.51.100.1 in 10.99.0.0/16"));
        cfg.program = "/bin/false";
        CHECK(usernet_start(&cfg, &fd, &err) < 0);
        cfg.program = "/nowhere/agentiso";
        CHECK(usernet_start(&cfg, &fd, &err) < 0);
        CHECK(strstr(error_message(&err), "/nowhere/agentiso"));
        CHECK_INT(fd, -1);
}

int main(int argc, char **argv) {
        if (argc == 7 && str_eq(argv[1], "netns") && str_eq(argv[2], "user"))
                return usernet_run(argv[3], argv[4], argv[5]);
        extend_path();
        if (!namespaces_work() || run("command -v ip >/dev/null") != 0) {
                printf("1..0 # SKIP no network namespace can be made here\n");
                return 0;
        }
        if (!mkdtemp(dir) || !leave_for_namespace() || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0 || !make_internet())
                return 1;
        host_tcp = bound(SOCK_STREAM, INADDR_ANY, PORT);
        host_udp = bound(SOCK_DGRAM, INADDR_ANY, PORT);
        if (fd_set_nonblock(host_tcp, true) < 0)
                return 1;
        card_mac(GUEST, guest_mac);
        RUN(test_says_why_it_does_not_start);
        RUN(test_off_at_first);
        RUN(test_the_internet_and_nothing_else);
        RUN(test_exceptions);
        RUN(test_switching_off_cuts);
        RUN(test_an_address_that_the_host_gets);
        RUN(test_wrong_requests);
        RUN(test_a_request_in_parts);
        RUN(test_a_silent_asker);
        RUN(test_wrong_frames);
        RUN(test_damaged_frames);
        RUN(test_a_flood_of_flows);
        RUN(test_has_no_privileges);
        RUN(test_ends_with_qemu);
        RUN(test_takes_the_place_of_another);
        rm_rf(dir);
        return tap_done();
}
