/* SPDX-License-Identifier: Apache-2.0 */
/* The relay for names, between guests and servers that are sockets of this test. */

#include <signal.h>

#include "base/file.h"
#include "loopback.h"
#include "network/names.h"

/* A query for example.test, A: header, name, type, class. */
#define QUESTION "\7example\4test\0\0\1\0\1"
#define QUESTION_LEN (sizeof(QUESTION) - 1)
#define QUERY_LEN (12 + QUESTION_LEN)
#define ALL_GUESTS 4
#define SERVERS 2

struct world {
        struct names *names;
        char dir[64], conf[80];
        int server[SERVERS], server_tcp; /* on the first addresses of loopback */
        uint16_t server_port, port, tcp_port;
};

/* The servers have the same port on different addresses. */
static bool servers_open(struct world *w) {
        for (int tries = 0; tries < 20; tries++) {
                w->server[0] = bound(SOCK_DGRAM, LOOPBACK(1), 0);
                w->server_port = port_of(w->server[0]);
                w->server[1] = bound(SOCK_DGRAM, LOOPBACK(2), w->server_port);
                w->server_tcp = bound(SOCK_STREAM, LOOPBACK(1), w->server_port);
                if (w->server[1] >= 0 && w->server_tcp >= 0)
                        return true;
                close_fd(w->server[0]);
                close_fd(w->server[1]);
                close_fd(w->server_tcp);
        }
        return false;
}

static bool configure(struct world *w, const char *text) {
        return file_write_atomic(w->conf, text, strlen(text), 0600) == 0;
}

static bool world_start_limited(struct world *w, const char *conf, int64_t server_ms, int64_t message_ms,
                                int64_t connection_ms) {
        *w = (struct world){.dir = "/tmp/test-names-XXXXXX"};
        if (!mkdtemp(w->dir) || !servers_open(w))
                return false;
        snprintf(w->conf, sizeof(w->conf), "%s/resolv.conf", w->dir);
        if (conf && !configure(w, conf))
                return false;
        const struct names_config cfg = {.udp_fd = bound(SOCK_DGRAM, LOOPBACK(1), 0),
                                         .tcp_fd = bound(SOCK_STREAM, LOOPBACK(1), 0),
                                         .resolv_conf = w->conf,
                                         .server_port = w->server_port,
                                         .server_ms = server_ms,
                                         .message_ms = message_ms,
                                         .connection_ms = connection_ms};
        w->port = port_of(cfg.udp_fd);
        w->tcp_port = port_of(cfg.tcp_fd);
        return names_start(&cfg, &w->names) == 0;
}

static bool world_start(struct world *w, const char *conf, int64_t server_ms) {
        return world_start_limited(w, conf, server_ms, LIMIT_MS, LIMIT_MS);
}

static void world_end(struct world *w) {
        names_stop(w->names);
        for (int i = 0; i < SERVERS; i++)
                close_fd(w->server[i]);
        close_fd(w->server_tcp);
        rm_rf(w->dir);
}

/* A guest's socket for queries. */
static int guest_open(const struct world *w, uint32_t address) {
        const struct sockaddr_in in = loopback(LOOPBACK(1), w->port);
        int fd = bound(SOCK_DGRAM, address, 0);

        return connect(fd, (const struct sockaddr *) &in, sizeof(in)) < 0 ? close_fd(fd) : fd;
}

static void make_query(uint16_t id, uint8_t ret[QUERY_LEN]) {
        const uint8_t header[12] = {(uint8_t) (id >> 8), (uint8_t) id, 0x01 /* RD */, 0, 0, 1};

        memcpy(ret, header, sizeof(header));
        memcpy(ret + sizeof(header), QUESTION, QUESTION_LEN);
}

static bool ask(int guest, uint16_t id) {
        uint8_t query[QUERY_LEN];

        make_query(id, query);
        return send_all(guest, query, sizeof(query));
}

/* The id of the query that a server got next, which has all its bytes; -1. */
static int asked(int server, struct sockaddr_in *ret_from) {
        uint8_t got[512], want[QUERY_LEN];
        socklen_t len = sizeof(*ret_from);
        ssize_t n = recvfrom(server, got, sizeof(got), 0, (struct sockaddr *) ret_from, &len);

        if (n != (ssize_t) QUERY_LEN)
                return -1;
        const uint16_t id = (uint16_t) (got[0] << 8 | got[1]);
        make_query(id, want);
        return memcmp(got, want, sizeof(want)) == 0 ? id : -1;
}

/* An answer of n bytes, whose rest is made of the id. */
static void make_answer(uint16_t id, uint8_t *ret, size_t n) {
        memset(ret, id % 251, n);
        make_query(id, ret);
        ret[2] |= 0x80;
}

static void answer(int server, const struct sockaddr_in *to, uint16_t id, size_t n) {
        static uint8_t message[NAMES_MESSAGE_MAX];

        make_answer(id, message, n);
        (void) sendto(server, message, n, 0, (const struct sockaddr *) to, sizeof(*to));
}

/* The id of the answer that a guest got next, of n bytes and unchanged; -1. */
static int answered(int guest, size_t n) {
        static uint8_t got[NAMES_MESSAGE_MAX], want[NAMES_MESSAGE_MAX];

        if (recv(guest, got, sizeof(got), 0) != (ssize_t) n)
                return -1;
        const uint16_t id = (uint16_t) (got[0] << 8 | got[1]);
        make_answer(id, want, n);
        return memcmp(got, want, n) == 0 ? id : -1;
}

/* A query with this id goes to that server, and its answer to the guest. */
static bool works(struct world *w, int server, int guest, uint16_t id) {
        struct sockaddr_in from;

        if (!ask(guest, id) || asked(w->server[server], &from) != id)
                return false;
        answer(w->server[server], &from, id, 100);
        return answered(guest, 100) == id;
}

/* Whether the guest gets an answer that says that nobody knows, which has the question in it. */
static bool fails(int guest, uint16_t id) {
        uint8_t got[512], want[QUERY_LEN];

        make_query(id, want);
        want[2] |= 0x80;
        want[3] = 0x80 | 2; /* recursion available, SERVFAIL */
        return ask(guest, id) && recv(guest, got, sizeof(got), 0) == (ssize_t) sizeof(want) &&
               memcmp(got, want, sizeof(want)) == 0;
}

static void test_query_and_answer(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guest = guest_open(&w, LOOPBACK(1));
        struct sockaddr_in from;

        CHECK(works(&w, 0, guest, 0x1234));
        CHECK(ask(guest, 2)); /* the largest answer that fits into a datagram */
        CHECK_INT(asked(w.server[0], &from), 2);
        answer(w.server[0], &from, 2, 65507);
        CHECK_INT(answered(guest, 65507), 2);
        close(guest);
        world_end(&w);
}

static void test_many_queries_of_many_guests(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guests[ALL_GUESTS];
        struct sockaddr_in from[ALL_GUESTS];
        int ids[ALL_GUESTS];

        for (int i = 0; i < ALL_GUESTS; i++)
                guests[i] = guest_open(&w, LOOPBACK((unsigned) i + 1));
        for (int round = 0; round < 500; round++) {
                /* All with the same id in every second round; answered in another order. */
                for (int i = 0; i < ALL_GUESTS; i++) {
                        CHECK(ask(guests[i], (uint16_t) (round % 2 ? round : round * ALL_GUESTS + i)));
                        ids[i] = asked(w.server[0], &from[i]);
                }
                for (int i = ALL_GUESTS; i-- > 0;) {
                        for (int j = 0; j < i; j++)
                                CHECK(from[i].sin_port != from[j].sin_port); /* each has a socket of its own */
                        answer(w.server[0], &from[i], (uint16_t) ids[i], 40 + (size_t) i);
                }
                for (int i = 0; i < ALL_GUESTS; i++) {
                        CHECK_INT(ids[i], round % 2 ? round : round * ALL_GUESTS + i);
                        CHECK_INT(answered(guests[i], 40 + (size_t) i), ids[i]);
                }
        }
        for (int i = 0; i < ALL_GUESTS; i++)
                close(guests[i]);
        world_end(&w);
}

static void test_wrong_answers_are_ignored(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guest = guest_open(&w, LOOPBACK(1)), stranger = bound(SOCK_DGRAM, LOOPBACK(1), 0);
        uint8_t query[QUERY_LEN];
        struct sockaddr_in from;

        CHECK(ask(guest, 7));
        CHECK_INT(asked(w.server[0], &from), 7);
        answer(stranger, &from, 7, 50);    /* from somebody else */
        answer(w.server[1], &from, 7, 51); /* who is a server, but was not asked */
        answer(w.server[0], &from, 8, 52); /* of another query */
        make_query(7, query);              /* no answer at all */
        CHECK(sendto(w.server[0], query, sizeof(query), 0, (struct sockaddr *) &from, sizeof(from)) > 0);
        CHECK(sendto(w.server[0], query, 11, 0, (struct sockaddr *) &from, sizeof(from)) > 0);
        CHECK(sendto(w.server[0], query, 0, 0, (struct sockaddr *) &from, sizeof(from)) == 0);
        answer(w.server[0], &from, 7, 60);
        CHECK_INT(answered(guest, 60), 7);
        close(stranger);
        close(guest);
        world_end(&w);
}

static void test_only_queries_are_relayed(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guest = guest_open(&w, LOOPBACK(1));
        uint8_t message[QUERY_LEN];

        make_answer(1, message, sizeof(message));
        CHECK(send_all(guest, message, sizeof(message)));
        CHECK(send_all(guest, message, 11));
        CHECK(send_all(guest, message, 0));
        CHECK(works(&w, 0, guest, 2)); /* nothing else came to the server before it */
        close(guest);
        world_end(&w);
}

static void test_second_server(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\nnameserver 127.0.0.2\n", NAMES_SERVER_MS));
        int guest = guest_open(&w, LOOPBACK(1));
        struct sockaddr_in first, second;

        CHECK(ask(guest, 3));
        CHECK_INT(asked(w.server[0], &first), 3); /* and says nothing */
        CHECK_INT(asked(w.server[1], &second), 3);
        answer(w.server[0], &first, 3, 30); /* too late */
        answer(w.server[1], &second, 3, 40);
        CHECK_INT(answered(guest, 40), 3);
        CHECK(ask(guest, 4)); /* both say nothing */
        CHECK_INT(asked(w.server[0], &first), 4);
        CHECK_INT(asked(w.server[1], &second), 4);
        uint8_t got[512];
        CHECK_INT(recv(guest, got, sizeof(got), 0), QUERY_LEN);
        CHECK_INT(got[3] & 0xf, 2);
        close(guest);
        world_end(&w);
}

/* A server that is not there is noticed at once; neither does what else the file may hold matter. */
static void test_resolv_conf(void) {
        struct world w;
        REQUIRE(world_start(&w,
                            "# nameserver 127.0.0.1\n; a comment\n\nsearch example.test\noptions ndots:5 rotate\n"
                            "nameserver\nnameserver nonsense\nnameserver 300.1.1.1\nnameservers 127.0.0.2\n"
                            "nameserver ::1\n\t nameserver \t127.0.0.9 # gone\r\nnameserver 127.0.0.1",
                            LIMIT_MS));
        int guest = guest_open(&w, LOOPBACK(1));

        CHECK(works(&w, 0, guest, 1));
        CHECK(configure(&w, "nameserver 127.0.0.2\n"));
        CHECK(works(&w, 1, guest, 2));
        CHECK(configure(&w, "options edns0\n"));
        CHECK(fails(guest, 3));
        CHECK(configure(&w, "nameserver 127.0.0.9\n")); /* nobody is there */
        CHECK(fails(guest, 4));
        CHECK_INT(unlink(w.conf), 0);
        CHECK(fails(guest, 5));
        CHECK(configure(&w, "nameserver 127.0.0.1\n"));
        CHECK(works(&w, 0, guest, 6));
        close(guest);
        world_end(&w);
}

static void test_no_resolv_conf(void) {
        struct world w;
        REQUIRE(world_start(&w, NULL, LIMIT_MS));
        int guest = guest_open(&w, LOOPBACK(1));

        CHECK(fails(guest, 1));
        close(guest);
        world_end(&w);
}

/* A guest's newest queries stay, and others have their answers all the same. */
static void test_limit_of_a_guest(void) {
        enum { EXTRA = 50, N = NAMES_QUERIES_EACH_MAX + EXTRA };
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guest = guest_open(&w, LOOPBACK(1)), other = guest_open(&w, LOOPBACK(2)), n = 0;
        struct sockaddr_in from[N], from_other;

        CHECK(ask(other, 9999));
        CHECK_INT(asked(w.server[0], &from_other), 9999);
        for (int i = 0; i < N; i++) {
                CHECK(ask(guest, (uint16_t) i));
                CHECK_INT(asked(w.server[0], &from[i]), i);
        }
        for (int i = 0; i < N; i++)
                answer(w.server[0], &from[i], (uint16_t) i, 64);
        for (; n < (int) NAMES_QUERIES_EACH_MAX; n++)
                CHECK(answered(guest, 64) >= EXTRA);
        CHECK(works(&w, 0, guest, 20000)); /* no other answer came before this one */
        answer(w.server[0], &from_other, 9999, 64);
        CHECK_INT(answered(other, 64), 9999);
        close(guest);
        close(other);
        world_end(&w);
}

/* When all have too many, one who has few still gets in: somebody who has most lost the oldest. */
static void test_limit_of_all(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guests[ALL_GUESTS], modest = guest_open(&w, LOOPBACK(77)), lost = 0;
        struct sockaddr_in from[ALL_GUESTS][NAMES_QUERIES_EACH_MAX], from_modest;

        for (int i = 0; i < ALL_GUESTS; i++) {
                guests[i] = guest_open(&w, LOOPBACK((unsigned) i + 1));
                for (unsigned j = 0; j < NAMES_QUERIES_EACH_MAX; j++) {
                        CHECK(ask(guests[i], (uint16_t) j));
                        CHECK_INT(asked(w.server[0], &from[i][j]), j);
                }
        }
        CHECK(ask(modest, 1));
        CHECK_INT(asked(w.server[0], &from_modest), 1);
        answer(w.server[0], &from_modest, 1, 64);
        CHECK_INT(answered(modest, 64), 1);
        for (int i = 0; i < ALL_GUESTS; i++) {
                answer(w.server[0], &from[i][0], 0, 64);
                answer(w.server[0], &from[i][1], 1, 64);
                int first = answered(guests[i], 64);
                lost += first == 1;
                CHECK(first == 1 || (first == 0 && answered(guests[i], 64) == 1));
        }
        CHECK_INT(lost, 1);
        for (int i = 0; i < ALL_GUESTS; i++)
                close(guests[i]);
        close(modest);
        world_end(&w);
}

/* ---- over TCP ---- */

static bool send_framed(int fd, const uint8_t *message, size_t n) {
        static uint8_t framed[2 + NAMES_MESSAGE_MAX];

        framed[0] = (uint8_t) (n >> 8);
        framed[1] = (uint8_t) n;
        memcpy(framed + 2, message, n);
        return send_all(fd, framed, 2 + n);
}

/* Whether exactly this message comes next. */
static bool receives_framed(int fd, const uint8_t *message, size_t n) {
        static uint8_t got[2 + NAMES_MESSAGE_MAX];

        return recv(fd, got, 2 + n, MSG_WAITALL) == (ssize_t) (2 + n) && got[0] == n >> 8 && got[1] == (n & 0xff) &&
               memcmp(got + 2, message, n) == 0;
}

static bool ask_tcp(int guest, uint16_t id) {
        uint8_t query[QUERY_LEN];

        make_query(id, query);
        return send_framed(guest, query, sizeof(query));
}

static bool asked_tcp(int server, uint16_t id) {
        uint8_t query[QUERY_LEN];

        make_query(id, query);
        return receives_framed(server, query, sizeof(query));
}

/* The server's answer of n bytes comes to the guest. */
static bool answered_tcp(int server, int guest, uint16_t id, size_t n) {
        static uint8_t answer[NAMES_MESSAGE_MAX];

        make_answer(id, answer, n);
        return send_framed(server, answer, n) && receives_framed(guest, answer, n);
}

static void test_tcp(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.9\nnameserver 127.0.0.1\n", LIMIT_MS)); /* the first refuses */
        int guest = connected(LOOPBACK(1), w.tcp_port);

        CHECK(ask_tcp(guest, 5));
        int server = accepted(w.server_tcp);
        CHECK(asked_tcp(server, 5));
        CHECK(answered_tcp(server, guest, 5, NAMES_MESSAGE_MAX));
        CHECK(ask_tcp(guest, 6) && ask_tcp(guest, 7)); /* one after the other */
        CHECK(asked_tcp(server, 6));
        CHECK_INT(recv(server, &(char){0}, 1, MSG_DONTWAIT), -1);
        CHECK(answered_tcp(server, guest, 6, 100));
        CHECK(asked_tcp(server, 7));
        CHECK(answered_tcp(server, guest, 7, 100));

        close(server); /* which has had enough of this connection: it gets another one */
        CHECK(ask_tcp(guest, 8));
        server = accepted(w.server_tcp);
        CHECK(asked_tcp(server, 8));
        CHECK(answered_tcp(server, guest, 8, 100));
        shutdown(guest, SHUT_WR);
        CHECK(receives_end(server));
        CHECK(receives_end(guest));
        close(server);
        close(guest);
        world_end(&w);
}

static void test_tcp_without_a_server(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guest = connected(LOOPBACK(1), w.tcp_port);
        uint8_t failure[QUERY_LEN];

        /* One that answers another question than the one that was asked. */
        CHECK(ask_tcp(guest, 5));
        int server = accepted(w.server_tcp);
        CHECK(asked_tcp(server, 5));
        make_answer(6, failure, sizeof(failure));
        CHECK(send_framed(server, failure, sizeof(failure)));
        make_answer(5, failure, sizeof(failure));
        failure[3] = 0x80 | 2;
        CHECK(receives_framed(guest, failure, sizeof(failure)));
        close(server);
        close(guest);

        CHECK(configure(&w, ""));
        guest = connected(LOOPBACK(1), w.tcp_port);
        CHECK(ask_tcp(guest, 5));
        CHECK(receives_framed(guest, failure, sizeof(failure)));
        close(guest);
        world_end(&w);
}

/* ---- what is not asked in the host's name ---- */

/* A query whose header and question are changed at one place each; the question ends after its class. */
struct refused {
        size_t at, len;
        uint8_t value;
};

static const struct refused refused[] = {
        {2, QUERY_LEN, 5 << 3 | 1},      /* an update */
        {2, QUERY_LEN, 4 << 3},          /* a notification */
        {2, QUERY_LEN, 2 << 3},          /* the server's status */
        {5, QUERY_LEN, 0},               /* no question */
        {5, QUERY_LEN, 2},               /* two of them */
        {4, QUERY_LEN, 1},               /* 257 */
        {QUERY_LEN - 3, QUERY_LEN, 252}, /* AXFR */
        {QUERY_LEN - 3, QUERY_LEN, 251}, /* IXFR */
        {0, QUERY_LEN - 1, 0},           /* not all of a question */
        {0, QUERY_LEN - 5, 0},           /* not even a name */
        {12, QUERY_LEN, 0xc0},           /* a pointer, to nowhere */
        {12, QUERY_LEN, 0x3f},           /* a label without an end */
        {12, 12, 0},                     /* a header alone */
};

static size_t make_refused(const struct refused *how, uint8_t ret[QUERY_LEN], uint8_t ret_answer[QUERY_LEN]) {
        make_query(0, ret);
        if (how->at < how->len)
                ret[how->at] = how->value;
        memcpy(ret_answer, ret, QUERY_LEN);
        ret_answer[2] |= 0x80;
        ret_answer[3] = 0x80 | 5; /* recursion available, REFUSED */
        return how->len;
}

static void test_refused(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guest = guest_open(&w, LOOPBACK(1));
        uint8_t query[QUERY_LEN], want[QUERY_LEN], got[512];

        for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
                const size_t n = make_refused(&refused[i], query, want);
                CHECK(send_all(guest, query, n));
                CHECK_INT(recv(guest, got, sizeof(got), 0), n);
                CHECK(memcmp(got, want, n) == 0);
        }
        CHECK(works(&w, 0, guest, 1)); /* nothing came to the server before it */
        close(guest);
        world_end(&w);
}

static void test_refused_over_tcp(void) {
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guest = connected(LOOPBACK(1), w.tcp_port);
        uint8_t query[QUERY_LEN], want[QUERY_LEN];

        for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
                const size_t n = make_refused(&refused[i], query, want);
                CHECK(send_framed(guest, query, n));
                CHECK(receives_framed(guest, want, n));
        }
        CHECK(ask_tcp(guest, 1));
        int server = accepted(w.server_tcp);
        CHECK(asked_tcp(server, 1));
        CHECK(answered_tcp(server, guest, 1, 100));
        CHECK(send_framed(guest, want, QUERY_LEN)); /* an answer */
        CHECK(receives_reset(guest));
        CHECK(receives_end(server));
        close(server);
        close(guest);
        guest = connected(LOOPBACK(1), w.tcp_port);
        CHECK(send_framed(guest, query, 0)); /* no message at all */
        CHECK(receives_reset(guest));
        close(guest);
        world_end(&w);
}

/* ---- limits over TCP ---- */

static int connected_from(uint32_t address, uint16_t port) {
        const struct sockaddr_in from = loopback(address, 0), to = loopback(LOOPBACK(1), port);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        limit_waits(fd);
        if (bind(fd, (const struct sockaddr *) &from, sizeof(from)) < 0 ||
            connect(fd, (const struct sockaddr *) &to, sizeof(to)) < 0)
                return close_fd(fd);
        return fd;
}

/* Silent for too long, with nothing, half a length or half a query; and a server that says nothing. */
static void test_time_for_a_message(void) {
        struct world w;
        REQUIRE(world_start_limited(&w, "nameserver 127.0.0.1\n", LIMIT_MS, 200, 1000000));
        const size_t parts[] = {0, 1, 12};

        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
                int guest = connected(LOOPBACK(1), w.tcp_port);
                CHECK(send_all(guest,
                               "\0\100"
                               "0123456789",
                               parts[i]));
                CHECK(receives_reset(guest));
                close(guest);
        }
        int guest = connected(LOOPBACK(1), w.tcp_port);
        CHECK(ask_tcp(guest, 5));
        int server = accepted(w.server_tcp);
        uint8_t failure[QUERY_LEN];
        make_answer(5, failure, sizeof(failure));
        failure[3] = 0x80 | 2;
        CHECK(asked_tcp(server, 5));
        CHECK(receives_framed(guest, failure, sizeof(failure)));
        CHECK(receives_end(server));
        CHECK(receives_reset(guest));
        close(server);
        close(guest);
        world_end(&w);
}

static void test_time_for_a_connection(void) {
        struct world w;
        REQUIRE(world_start_limited(&w, "nameserver 127.0.0.1\n", LIMIT_MS, 1000000, 500));
        int guest = connected(LOOPBACK(1), w.tcp_port), server = -1;
        uint16_t id = 0;

        /* Busy all the time. */
        while (ask_tcp(guest, ++id)) {
                if (server < 0)
                        server = accepted(w.server_tcp);
                if (!asked_tcp(server, id) || !answered_tcp(server, guest, id, 100))
                        break;
        }
        CHECK(server >= 0);
        close(server);
        close(guest);
        guest = connected(LOOPBACK(1), w.tcp_port);
        CHECK(receives_reset(guest)); /* and silent */
        close(guest);
        world_end(&w);
}

/* Connects and asks, and the server has its question. */
static bool take_part(const struct world *w, uint32_t address, int *ret_guest, int *ret_server) {
        *ret_guest = connected_from(address, w->tcp_port);
        if (!ask_tcp(*ret_guest, 1))
                return false;
        *ret_server = accepted(w->server_tcp);
        return asked_tcp(*ret_server, 1);
}

static void test_limits_of_tcp(void) {
        enum { NEWCOMERS = 2, N = NAMES_CONNECTIONS_MAX + NEWCOMERS };
        struct world w;
        REQUIRE(world_start(&w, "nameserver 127.0.0.1\n", LIMIT_MS));
        int guests[N], servers[N];

        for (unsigned i = 0; i < NAMES_CONNECTIONS_MAX; i++) {
                if (i == NAMES_CONNECTIONS_EACH_MAX) { /* of one guest */
                        int one_more = connected_from(LOOPBACK(1), w.tcp_port);
                        CHECK(receives_reset(one_more));
                        close(one_more);
                }
                REQUIRE(take_part(&w, LOOPBACK(1 + i / NAMES_CONNECTIONS_EACH_MAX), &guests[i], &servers[i]));
        }
        /* Of all: those that have most lose their oldest, one after the other. */
        for (unsigned i = 0; i < NEWCOMERS; i++) {
                const unsigned k = NAMES_CONNECTIONS_MAX + i, victim = i * NAMES_CONNECTIONS_EACH_MAX;
                REQUIRE(take_part(&w, LOOPBACK(100 + i), &guests[k], &servers[k]));
                CHECK(receives_reset(guests[victim]));
                CHECK(receives_end(servers[victim]));
                CHECK(answered_tcp(servers[k], guests[k], 1, 100));
        }
        CHECK(answered_tcp(servers[1], guests[1], 1, 100)); /* it is older than the second that was ended */

        int guest = guest_open(&w, LOOPBACK(1)); /* UDP does not mind */
        CHECK(works(&w, 0, guest, 1));
        CHECK(ask(guest, 2)); /* under way when all ends */
        names_stop(w.names);
        w.names = NULL;
        for (unsigned i = 0; i < N; i++) {
                if (i != 0 && i != NAMES_CONNECTIONS_EACH_MAX) {
                        CHECK(receives_reset(guests[i]));
                        CHECK(receives_end(servers[i]));
                }
                close(guests[i]);
                close(servers[i]);
        }
        close(guest);
        world_end(&w);
}

int main(void) {
        signal(SIGPIPE, SIG_IGN);
        RUN(test_query_and_answer);
        RUN(test_many_queries_of_many_guests);
        RUN(test_wrong_answers_are_ignored);
        RUN(test_only_queries_are_relayed);
        RUN(test_second_server);
        RUN(test_resolv_conf);
        RUN(test_no_resolv_conf);
        RUN(test_limit_of_a_guest);
        RUN(test_limit_of_all);
        RUN(test_tcp);
        RUN(test_tcp_without_a_server);
        RUN(test_refused);
        RUN(test_refused_over_tcp);
        RUN(test_time_for_a_message);
        RUN(test_time_for_a_connection);
        RUN(test_limits_of_tcp);
        return tap_done();
}
