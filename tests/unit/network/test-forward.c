/* SPDX-License-Identifier: Apache-2.0 */
/* Port forwards on loopback. The workspace's guest is a listener of this test, to which `serve` relays. */

#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>

#include "base/thread.h"
#include "loopback.h"
#include "network/forward.h"
#include "network/relay.h"

#define ALPHA "11111111-1111-4111-8111-111111111111"
#define BETA "22222222-2222-4222-8222-222222222222"
/* Any number more. */
#define NAMED "%08u-3333-4333-8333-333333333333"
#define MANY 200
#define CLIENTS 1000
/* Descriptors that the test of all connections needs, and some. */
#define FDS_NEEDED (2 * FORWARD_CONNECTIONS_MAX + 256)

struct world {
        struct forwards *forwards;
        int guest; /* listens */
        atomic_int serving;
        atomic_int strange; /* calls with what nobody asked for */
        bool hold;          /* keep connections without a guest */
};

static void serve(void *arg, const char *id, uint16_t guest_port, int fd, const struct op *op) {
        struct world *w = arg;

        w->serving++;
        /* A dead peer is found out: the socket came with that. */
        int keepalive = 0;
        socklen_t len = sizeof(keepalive);
        getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &keepalive, &len);
        if ((strcmp(id, ALPHA) != 0 && strcmp(id, BETA) != 0 && !strstr(id, "-3333-")) || !keepalive)
                w->strange++;
        if (w->hold) {
                (void) wait_fd(fd, POLLIN, op);
                relay_reset(fd);
        } else {
                int guest = connected(LOOPBACK(1), guest_port);
                (void) relay_run(fd, guest, op, 0);
                close_fd(guest);
                close_fd(fd);
        }
        w->serving--;
}

static bool world_start(struct world *w, bool hold) {
        *w = (struct world){.guest = bound(SOCK_STREAM, LOOPBACK(1), 0), .hold = hold};
        const struct forwards_config cfg = {.bind = LOOPBACK(1), .serve = serve, .arg = w};
        return w->guest >= 0 && forwards_new(&cfg, &w->forwards, NULL) == 0;
}

static void world_end(struct world *w) {
        forwards_free(w->forwards);
        CHECK_INT(w->serving, 0);
        CHECK_INT(w->strange, 0);
        close(w->guest);
}

/* A new forward to the guest; 0 if there is none. */
static uint16_t forward(struct world *w, const char *id) {
        uint16_t port = 0;

        CHECK_INT(forwards_add(w->forwards, id, port_of(w->guest), 0, &port, NULL), 0);
        return port;
}

static struct forward_info info_of(struct world *w, uint16_t port) {
        _cleanup_free_ struct forward_info *list = NULL;
        size_t n = 0;

        CHECK_INT(forwards_list(w->forwards, NULL, &list, &n), 0);
        for (size_t i = 0; i < n; i++)
                if (list[i].host_port == port)
                        return list[i];
        return (struct forward_info){0};
}

/* Waits until a forward has as many connections: nothing tells of it, so it asks again. */
static bool becomes_open(struct world *w, uint16_t port, unsigned n) {
        const struct op op = op_timeout(LIMIT_MS);

        while (info_of(w, port).open != n) {
                const struct op pause = op_sub(&op, 5);
                if (op_check(&op) < 0)
                        return false;
                (void) wait_fd(-1, 0, &pause);
        }
        return true;
}

/* Likewise for the callbacks: a connection is open a moment before its thread runs. */
static bool becomes_serving(const struct world *w, int n) {
        const struct op op = op_timeout(LIMIT_MS);

        while (w->serving != n) {
                const struct op pause = op_sub(&op, 5);
                if (op_check(&op) < 0)
                        return false;
                (void) wait_fd(-1, 0, &pause);
        }
        return true;
}

static void test_one_connection(void) {
        struct world w;
        REQUIRE(world_start(&w, false));
        const uint16_t port = forward(&w, ALPHA);

        CHECK(port >= FORWARD_HOST_PORT_MIN);
        int client = connected(LOOPBACK(1), port), guest = accepted(w.guest);
        CHECK(send_all(client, "ping", 4));
        shutdown(client, SHUT_WR);
        CHECK(receives(guest, "ping"));
        CHECK(receives_end(guest));
        const struct forward_info info = info_of(&w, port);
        CHECK_STR(info.id, ALPHA);
        CHECK_INT(info.guest_port, port_of(w.guest));
        CHECK_INT(info.open, 1);
        CHECK_INT(info.total, 1);
        CHECK(send_all(guest, "pong", 4));
        close(guest);
        CHECK(receives(client, "pong"));
        CHECK(receives_end(client));
        close(client);
        CHECK(becomes_open(&w, port, 0));
        world_end(&w);
}

static void test_many_connections(void) {
        struct world w;
        REQUIRE(world_start(&w, false));
        const uint16_t port = forward(&w, ALPHA);
        int clients[MANY], guests[MANY];
        char text[16];

        for (int i = 0; i < MANY; i++) {
                clients[i] = connected(LOOPBACK(1), port);
                snprintf(text, sizeof(text), "client %07d", i);
                CHECK(send_all(clients[i], text, 14));
        }
        for (int i = 0; i < MANY; i++)
                guests[i] = accepted(w.guest);
        CHECK_INT(info_of(&w, port).open, MANY);
        for (int i = 0; i < MANY; i++) { /* each gets back what its own client sent */
                CHECK_INT(recv(guests[i], text, 14, MSG_WAITALL), 14);
                CHECK(send_all(guests[i], text, 14));
                shutdown(guests[i], SHUT_WR);
        }
        for (int i = 0; i < MANY; i++) {
                snprintf(text, sizeof(text), "client %07d", i);
                CHECK(receives(clients[i], text));
                CHECK(receives_end(clients[i]));
                close(clients[i]);
                close(guests[i]);
        }
        CHECK(becomes_open(&w, port, 0));
        CHECK_INT(info_of(&w, port).total, MANY);
        world_end(&w);
}

static void test_limit_of_a_workspace(void) {
        struct world w;
        REQUIRE(world_start(&w, true));
        const uint16_t port = forward(&w, ALPHA), second = forward(&w, ALPHA), other = forward(&w, BETA);
        int clients[FORWARD_CONNECTIONS_EACH_MAX];

        for (size_t i = 0; i < ARRAY_SIZE(clients); i++)
                CHECK((clients[i] = connected(LOOPBACK(1), port)) >= 0);
        int refused = connected(LOOPBACK(1), port);
        CHECK(receives_reset(refused));
        close(refused);
        CHECK_INT(info_of(&w, port).open, FORWARD_CONNECTIONS_EACH_MAX);
        CHECK_INT(info_of(&w, port).refused, 1);
        refused = connected(LOOPBACK(1), second); /* one more forward is not more room */
        CHECK(receives_reset(refused));
        close(refused);
        CHECK_INT(info_of(&w, second).refused, 1);

        int served = connected(LOOPBACK(1), other); /* another workspace has room of its own */
        CHECK(becomes_open(&w, other, 1));
        close(served);
        close(clients[0]);
        CHECK(becomes_open(&w, port, FORWARD_CONNECTIONS_EACH_MAX - 1));
        clients[0] = connected(LOOPBACK(1), second);
        CHECK(becomes_open(&w, second, 1));
        refused = connected(LOOPBACK(1), port);
        CHECK(receives_reset(refused));
        close(refused);
        for (size_t i = 0; i < ARRAY_SIZE(clients); i++)
                close(clients[i]);
        world_end(&w);
}

static void test_limit_of_all(void) {
        static int clients[FORWARD_CONNECTIONS_MAX];
        struct world w;
        REQUIRE(world_start(&w, true));
        char id[UUID_LEN + 1] = "";
        uint16_t port = 0;

        for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
                if (i % FORWARD_CONNECTIONS_EACH_MAX == 0) {
                        snprintf(id, sizeof(id), NAMED, (unsigned) i);
                        port = forward(&w, id);
                }
                CHECK((clients[i] = connected(LOOPBACK(1), port)) >= 0);
        }
        CHECK(becomes_serving(&w, FORWARD_CONNECTIONS_MAX));
        port = forward(&w, BETA);
        int refused = connected(LOOPBACK(1), port);
        CHECK(receives_reset(refused));
        CHECK_INT(info_of(&w, port).refused, 1);
        close(refused);
        forwards_cut(w.forwards, id);
        CHECK_INT(w.serving, FORWARD_CONNECTIONS_MAX - FORWARD_CONNECTIONS_EACH_MAX);
        int served = connected(LOOPBACK(1), port);
        CHECK(becomes_open(&w, port, 1));
        close(served);
        for (size_t i = 0; i < ARRAY_SIZE(clients); i++)
                close(clients[i]);
        world_end(&w);
}

static void test_limit_of_forwards(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct world w;
        REQUIRE(world_start(&w, true));
        uint16_t port = 0;

        for (unsigned i = 0; i < FORWARDS_MAX; i++)
                port = forward(&w, ALPHA);
        CHECK(forwards_add(w.forwards, ALPHA, 80, 0, &port, &err) < 0);
        CHECK_INT(err.code, ERROR_QUOTA_EXCEEDED);
        CHECK_INT(forwards_remove(w.forwards, port), 0);
        forward(&w, ALPHA);
        world_end(&w);
}

static void test_conflicts(void) {
        struct world w;
        REQUIRE(world_start(&w, true));
        const uint16_t ours = forward(&w, ALPHA);
        int foreign = bound(SOCK_STREAM, LOOPBACK(1), 0);
        const struct {
                uint16_t port;
                enum error_code code;
                const char *says, *says_too;
        } cases[] = {
                {ours, ERROR_CONFLICT, ALPHA, "already"},
                {port_of(foreign), ERROR_CONFLICT, "another program", "127.0.0.1"},
                {80, ERROR_INVALID_ARGUMENT, "80", "1024"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                uint16_t port = 7;
                char number[8];

                snprintf(number, sizeof(number), "%u", cases[i].port);
                CHECK(forwards_add(w.forwards, BETA, 80, cases[i].port, &port, &err) < 0);
                CHECK_INT(err.code, cases[i].code);
                CHECK(strstr(error_message(&err), number) != NULL);
                CHECK(strstr(error_message(&err), cases[i].says) != NULL);
                CHECK(strstr(error_message(&err), cases[i].says_too) != NULL);
                CHECK_INT(port, 7);
        }
        close(foreign);
        world_end(&w);
}

static void test_bind_address_of_another_host(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        const struct forwards_config cfg = {.bind = 0xc0000201 /* 192.0.2.1 */, .serve = serve};
        struct forwards *f;
        uint16_t port;

        REQUIRE(forwards_new(&cfg, &f, NULL) == 0);
        CHECK_INT(forwards_add(f, ALPHA, 80, 0, &port, &err), -error_code_errno(ERROR_UNSUPPORTED));
        CHECK(strstr(error_message(&err), "192.0.2.1") != NULL);
        CHECK(err.hint && strstr(err.hint, "127.0.0.1"));
        forwards_free(f);
}

static void test_remove(void) {
        _cleanup_free_ struct forward_info *list = NULL;
        struct world w;
        REQUIRE(world_start(&w, false));
        const uint16_t port = forward(&w, ALPHA), other = forward(&w, ALPHA);
        int clients[20], guests[20], kept = connected(LOOPBACK(1), other), kept_guest = accepted(w.guest);
        size_t n = 0;

        for (int i = 0; i < 20; i++) {
                clients[i] = connected(LOOPBACK(1), port);
                guests[i] = accepted(w.guest);
                CHECK(send_all(clients[i], "x", 1));
                CHECK(receives(guests[i], "x"));
        }
        CHECK_INT(w.serving, 21);
        CHECK_INT(forwards_remove(w.forwards, port), 0);
        CHECK_INT(w.serving, 1);
        for (int i = 0; i < 20; i++) {
                CHECK(receives_reset(clients[i]));
                CHECK(receives_reset(guests[i]));
                close(clients[i]);
                close(guests[i]);
        }
        CHECK_INT(connected(LOOPBACK(1), port), -1);
        CHECK_INT(forwards_remove(w.forwards, port), -ENOENT);
        CHECK(send_all(kept, "still", 5));
        CHECK(receives(kept_guest, "still"));

        CHECK_INT(forwards_list(w.forwards, ALPHA, &list, &n), 0);
        CHECK(n == 1 && list[0].host_port == other);
        uint16_t again = 0; /* the port can be had again at once */
        CHECK_INT(forwards_add(w.forwards, BETA, port_of(w.guest), port, &again, NULL), 0);
        CHECK_INT(again, port);
        world_end(&w);
        CHECK(receives_reset(kept));
        close(kept);
        close(kept_guest);
}

static void test_cut(void) {
        struct world w;
        REQUIRE(world_start(&w, false));
        const uint16_t ports[] = {forward(&w, ALPHA), forward(&w, ALPHA), forward(&w, BETA)};
        int clients[3], guests[3];

        for (int i = 0; i < 3; i++) {
                clients[i] = connected(LOOPBACK(1), ports[i]);
                guests[i] = accepted(w.guest);
        }
        forwards_cut(w.forwards, ALPHA);
        CHECK_INT(w.serving, 1);
        CHECK(receives_reset(clients[0]));
        CHECK(receives_reset(clients[1]));
        CHECK(send_all(clients[2], "beta", 4));
        CHECK(receives(guests[2], "beta"));
        for (int i = 0; i < 2; i++) { /* the ports lead to the guest as before */
                close(clients[i]);
                close(guests[i]);
                clients[i] = connected(LOOPBACK(1), ports[i]);
                guests[i] = accepted(w.guest);
                CHECK(send_all(guests[i], "again", 5));
                CHECK(receives(clients[i], "again"));
        }
        forwards_cut(w.forwards, "nobody");
        CHECK_INT(w.serving, 3);
        for (int i = 0; i < 3; i++) {
                close(clients[i]);
                close(guests[i]);
        }
        world_end(&w);
}

/* Sends until nothing is taken any more, for a moment at least. */
static void fill(int fd) {
        static const char much[65536];
        struct pollfd room = {.fd = fd, .events = POLLOUT};

        while (poll(&room, 1, 300) > 0)
                if (send(fd, much, sizeof(much), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN)
                        return;
}

/* Clients that never send, guests that never read, and both that never read: they stay, at no cost, and take up the
 * workspace's room only; a cut waits for none of them. */
static void test_those_that_do_nothing(void) {
        static int clients[FORWARD_CONNECTIONS_EACH_MAX], guests[FORWARD_CONNECTIONS_EACH_MAX];
        struct world w;
        REQUIRE(world_start(&w, false));
        const uint16_t port = forward(&w, ALPHA), other = forward(&w, BETA);

        for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
                clients[i] = connected(LOOPBACK(1), port);
                guests[i] = accepted(w.guest);
        }
        fill(clients[0]);
        fill(clients[1]);
        fill(guests[1]);
        CHECK(busy_ms(300) < 100);
        CHECK_INT(w.serving, FORWARD_CONNECTIONS_EACH_MAX);
        int refused = connected(LOOPBACK(1), port);
        CHECK(receives_reset(refused));
        close(refused);
        int served = connected(LOOPBACK(1), other), guest = accepted(w.guest);
        CHECK(send_all(served, "x", 1));
        CHECK(receives(guest, "x"));

        const int64_t begin = monotonic_ns();
        forwards_cut(w.forwards, ALPHA);
        printf("# cut in %lld us\n", (long long) (monotonic_ns() - begin) / 1000);
        CHECK_INT(w.serving, 1);
        for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
                CHECK(i == 1 || receives_reset(clients[i])); /* that one has bytes to read first */
                close(clients[i]);
                close(guests[i]);
        }
        close(served);
        close(guest);
        world_end(&w);
}

static bool receives_end_or_reset(int fd) {
        char c;
        ssize_t n = recv(fd, &c, 1, 0);

        return n == 0 || (n < 0 && errno == ECONNRESET);
}

struct toggle {
        struct world *world;
        uint16_t port;
        sem_t turn; /* one for each client */
};

/* Cuts, removes and adds while others connect. */
static void *toggle_main(void *arg) {
        struct toggle *t = arg;

        for (int i = 0; i < CLIENTS; i++) {
                uint16_t port;

                sem_wait(&t->turn);
                forwards_cut(t->world->forwards, ALPHA);
                if (i % 4 == 0 && forwards_remove(t->world->forwards, t->port) == 0)
                        CHECK_INT(forwards_add(t->world->forwards, ALPHA, 80, t->port, &port, NULL), 0);
        }
        return NULL;
}

static void test_changes_while_clients_connect(void) {
        struct world w;
        REQUIRE(world_start(&w, true));
        struct toggle t[] = {{.world = &w, .port = forward(&w, ALPHA)}, {.world = &w}};
        pthread_t threads[2];
        int reached = 0;

        t[1].port = t[0].port;
        for (int i = 0; i < 2; i++) {
                sem_init(&t[i].turn, 0, 0);
                REQUIRE(thread_start(&threads[i], "toggle", toggle_main, &t[i]) == 0);
        }
        for (int i = 0; i < CLIENTS; i++) {
                sem_post(&t[i % 2].turn);
                sem_post(&t[1 - i % 2].turn);
                int client = connected(LOOPBACK(1), t[0].port);
                if (client < 0)
                        continue; /* nobody listened just then */
                reached++;
                /* Served, cut or refused. When the listener went in the middle, only one who sends is told. */
                (void) send_all(client, "x", 1);
                CHECK(receives_end_or_reset(client));
                close(client);
        }
        for (int i = 0; i < 2; i++)
                pthread_join(threads[i], NULL);
        CHECK(reached > 0);
        int client = connected(LOOPBACK(1), t[0].port);
        CHECK(becomes_open(&w, t[0].port, 1));
        close(client);
        world_end(&w);
}

/* Without descriptors a connection waits, without costing anything, and is served when there are some. */
static void test_no_descriptors(void) {
        struct world w;
        REQUIRE(world_start(&w, true));
        const uint16_t port = forward(&w, ALPHA);
        const struct sockaddr_in in = loopback(LOOPBACK(1), port);
        int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct rlimit old, none;

        limit_waits(client);
        REQUIRE(getrlimit(RLIMIT_NOFILE, &old) == 0);
        none = (struct rlimit){.rlim_cur = (rlim_t) client + 1, .rlim_max = old.rlim_max};
        REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
        CHECK_INT(connect(client, (const struct sockaddr *) &in, sizeof(in)), 0);
        CHECK(busy_ms(300) < 100);
        CHECK_INT(w.serving, 0);
        REQUIRE(setrlimit(RLIMIT_NOFILE, &old) == 0);
        CHECK(becomes_open(&w, port, 1));
        close(client);
        world_end(&w);
}

int main(void) {
        struct rlimit limit;

        signal(SIGPIPE, SIG_IGN);
        if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_max < FDS_NEEDED) {
                printf("Bail out! %d open files must be allowed\n", (int) FDS_NEEDED);
                return 1;
        }
        limit.rlim_cur = MAX(limit.rlim_cur, (rlim_t) FDS_NEEDED);
        setrlimit(RLIMIT_NOFILE, &limit);
        RUN(test_one_connection);
        RUN(test_many_connections);
        RUN(test_limit_of_a_workspace);
        RUN(test_limit_of_all);
        RUN(test_limit_of_forwards);
        RUN(test_conflicts);
        RUN(test_bind_address_of_another_host);
        RUN(test_remove);
        RUN(test_cut);
        RUN(test_those_that_do_nothing);
        RUN(test_changes_while_clients_connect);
        RUN(test_no_descriptors);
        return tap_done();
}
