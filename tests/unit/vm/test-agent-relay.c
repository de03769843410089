/* SPDX-License-Identifier: Apache-2.0 */
/* Connections through the agent, against the guest's real request handlers: the test is the client and the program. */
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>

#include "base/io.h"
#include "base/thread.h"
#include "guest-real.h"
#include "tap.h"
#include "vm/agent.h"
#include "wire/wire.h"

#define PATIENCE_MS 60000
#define MANY 200
#define BULK (64u << 20)
#define HELD_MAX (32u << 20) /* far more than windows and socket buffers hold, far less than BULK */
#define PIECE 40000u

static struct agent *agent;
static struct guest_real *guest;

static const struct op *patience(void) {
        static _Thread_local struct op op;

        op = op_timeout(PATIENCE_MS);
        return &op;
}

/* ---- sockets whose waits are limited ---- */

static int limited(int fd) {
        const struct timeval limit = {.tv_sec = PATIENCE_MS / 1000};

        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0 ||
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0)
                abort();
        return fd;
}

static int listen_on(int family, uint16_t *ret_port) {
        struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
        struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        struct sockaddr *any = family == AF_INET ? (struct sockaddr *) &v4 : (struct sockaddr *) &v6;
        socklen_t len = family == AF_INET ? sizeof(v4) : sizeof(v6);
        int fd = limited(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));

        if (bind(fd, any, len) < 0) {
                close(fd);
                return -errno;
        }
        if (listen(fd, MANY) < 0 || getsockname(fd, any, &len) < 0)
                abort();
        *ret_port = ntohs(family == AF_INET ? v4.sin_port : v6.sin6_port);
        return fd;
}

/* A TCP connection: the client's end, and the accepted one. */
static void connect_pair(int *ret_client, int *ret_accepted) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        uint16_t port = 0;
        _cleanup_close_ int listening = listen_on(AF_INET, &port);

        to.sin_port = htons(port);
        *ret_client = limited(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        if (connect(*ret_client, (struct sockaddr *) &to, sizeof(to)) < 0)
                abort();
        *ret_accepted = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (*ret_accepted < 0)
                abort();
}

static bool say(int fd, const char *text) {
        return send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t) strlen(text);
}

/* All that comes until the end, at most 99 bytes; NULL when there was none. */
static const char *hear(int fd) {
        static char text[100];
        size_t n = 0;

        for (;;) {
                ssize_t k = recv(fd, text + n, sizeof(text) - 1 - n, 0);
                if (k < 0)
                        return NULL;
                n += (size_t) k;
                text[n] = '\0';
                if (k == 0 || n == sizeof(text) - 1)
                        return text;
        }
}

/* Exactly so many. */
static bool hears(int fd, const char *text) {
        char got[100];

        return recv(fd, got, strlen(text), MSG_WAITALL) == (ssize_t) strlen(text) &&
               memcmp(got, text, strlen(text)) == 0;
}

static bool is_reset(int fd) {
        char scratch[65536];
        ssize_t n;

        while ((n = recv(fd, scratch, sizeof(scratch), 0)) > 0)
                ;
        return n < 0 && errno == ECONNRESET;
}

static void reset(int *fd) {
        const struct linger now = {.l_onoff = 1};

        setsockopt(*fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
        *fd = close_fd(*fd);
}

/* ---- a relay ---- */

struct link {
        int client, accepted, program;
        uint16_t port;
        struct cancel *cancel;
        pthread_t thread;
        int result;
        struct error error;
};

static void *relay_main(void *arg) {
        struct link *l = arg;
        struct op op = *patience();

        op.cancel = l->cancel;
        l->result = agent_relay(agent, l->port, l->accepted, &op, &l->error);
        l->accepted = close_fd(l->accepted);
        return NULL;
}

/* What is to be made is waited for by accepting it. */
static void link_begin_to(struct link *l, uint16_t port) {
        *l = (struct link){.port = port, .program = -1, .cancel = cancel_new()};
        connect_pair(&l->client, &l->accepted);
        if (!l->cancel || thread_start(&l->thread, "relay", relay_main, l) < 0)
                abort();
}

static void link_begin_at(struct link *l, int listening, uint16_t port) {
        link_begin_to(l, port);
        l->program = limited(accept4(listening, NULL, NULL, SOCK_CLOEXEC));
}

static void link_begin(struct link *l) {
        uint16_t port = 0;
        _cleanup_close_ int listening = listen_on(AF_INET, &port);

        link_begin_at(l, listening, port);
}

static int link_end(struct link *l) {
        pthread_join(l->thread, NULL);
        l->client = close_fd(l->client);
        l->program = close_fd(l->program);
        cancel_unref(l->cancel);
        error_clear(&l->error);
        return l->result;
}

/* The agent does other things meanwhile. */
static bool agent_answers(void) {
        const struct agent_exec_args args = {.command = "echo here", .timeout_ms = 30000, .max_output = 100};
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        return agent_exec(agent, &args, patience(), &r, NULL) == 0 && r.out.head.len == 5;
}

/* ---- many bytes ---- */

struct flow {
        int fd;
        size_t n;
        uint32_t seed;
        bool ok;
        pthread_t thread;
};

static uint8_t pattern(uint32_t seed, size_t i) {
        return (uint8_t) ((uint32_t) (i + seed) * 2654435761u >> 13);
}

static void *send_main(void *arg) {
        struct flow *f = arg;
        uint8_t piece[PIECE];

        f->ok = true;
        for (size_t at = 0; f->ok && at < f->n; at += sizeof(piece)) {
                size_t now = MIN(f->n - at, sizeof(piece));
                for (size_t i = 0; i < now; i++)
                        piece[i] = pattern(f->seed, at + i);
                f->ok = write_full(f->fd, piece, now, patience()) >= 0;
        }
        return NULL;
}

static void *receive_main(void *arg) {
        struct flow *f = arg;
        uint8_t piece[PIECE];
        ssize_t n = 1;

        f->ok = true;
        for (size_t at = 0; f->ok && at < f->n; at += (size_t) MAX(n, 0)) {
                n = recv(f->fd, piece, MIN(f->n - at, sizeof(piece)), 0);
                f->ok = n > 0;
                for (ssize_t i = 0; f->ok && i < n; i++)
                        f->ok = piece[i] == pattern(f->seed, at + (size_t) i);
        }
        return NULL;
}

static void flow_begin(struct flow *f, void *(*run)(void *) ) {
        if (thread_start(&f->thread, "flow", run, f) < 0)
                abort();
}

static bool flow_end(struct flow *f) {
        pthread_join(f->thread, NULL);
        return f->ok;
}

static void test_many_bytes_both_ways(void) {
        struct link l;
        link_begin(&l);
        struct flow up = {.fd = l.client, .n = BULK}, up_end = {.fd = l.program, .n = BULK};
        struct flow down = {.fd = l.program, .n = BULK, .seed = 99}, down_end = {.fd = l.client, .n = BULK, .seed = 99};

        flow_begin(&up, send_main);
        flow_begin(&up_end, receive_main);
        flow_begin(&down, send_main);
        flow_begin(&down_end, receive_main);
        CHECK(flow_end(&up));
        CHECK(flow_end(&down));
        CHECK(flow_end(&up_end));
        CHECK(flow_end(&down_end));
        shutdown(l.client, SHUT_WR);
        shutdown(l.program, SHUT_WR);
        CHECK_STR(hear(l.program), "");
        CHECK_STR(hear(l.client), "");
        CHECK_INT(link_end(&l), 0);
}

/* ---- ends ---- */

static void test_the_client_ends_first(void) {
        struct link l;

        link_begin(&l);
        CHECK(say(l.client, "question") && shutdown(l.client, SHUT_WR) == 0);
        CHECK_STR(hear(l.program), "question");
        CHECK(say(l.program, "answer"));
        l.program = close_fd(l.program);
        CHECK_STR(hear(l.client), "answer");
        CHECK_INT(link_end(&l), 0);
}

static void test_the_program_ends_first(void) {
        struct link l;

        link_begin(&l);
        CHECK(say(l.program, "greeting") && shutdown(l.program, SHUT_WR) == 0);
        CHECK_STR(hear(l.client), "greeting");
        CHECK(say(l.client, "more"));
        CHECK(hears(l.program, "more"));
        CHECK(say(l.client, " of it") && shutdown(l.client, SHUT_WR) == 0);
        CHECK_STR(hear(l.program), " of it");
        CHECK_INT(link_end(&l), 0);
}

/* It answers and goes, without having read all: what it said still arrives. */
static void test_the_program_does_not_read_all(void) {
        struct link l;

        link_begin(&l);
        CHECK(say(l.client, "a lot") && hears(l.program, "a"));
        CHECK(say(l.program, "too large") && shutdown(l.program, SHUT_WR) == 0);
        CHECK_STR(hear(l.client), "too large");
        l.program = close_fd(l.program);
        while (say(l.client, "more")) /* until that is noticed */
                ;
        CHECK_INT(link_end(&l), 0);
}

static void test_the_program_resets(void) {
        struct link l;

        link_begin(&l);
        CHECK(say(l.program, "x") && hears(l.client, "x"));
        reset(&l.program);
        CHECK(is_reset(l.client));
        CHECK_INT(link_end(&l), -ECONNABORTED);
}

static void test_the_client_resets(void) {
        struct link l;

        link_begin(&l);
        CHECK(say(l.client, "x") && hears(l.program, "x"));
        reset(&l.client);
        CHECK(is_reset(l.program));
        CHECK_INT(link_end(&l), -ECONNRESET);
}

static void test_cancelled(void) {
        struct link l;

        link_begin(&l);
        CHECK(say(l.client, "x") && hears(l.program, "x"));
        cancel_fire(l.cancel);
        CHECK(is_reset(l.program));
        CHECK(is_reset(l.client));
        CHECK_INT(link_end(&l), -ECANCELED);
}

/* ---- who listens ---- */

static void test_nobody_listens(void) {
        _cleanup_close_ int client = -1, accepted = -1;
        _cleanup_error_ struct error err = ERROR_INIT;
        uint16_t port = 0;
        int listening = listen_on(AF_INET, &port);
        char c = 0;

        close(listening);
        connect_pair(&client, &accepted);
        CHECK(say(client, "x"));
        CHECK_INT(agent_relay(agent, port, accepted, patience(), &err), -ECONNREFUSED);
        CHECK_INT(err.code, ERROR_NOT_FOUND);
        CHECK(strstr(error_message(&err), "listens on port"));
        CHECK(wait_fd(accepted, POLLIN, patience()) > 0 && recv(accepted, &c, 1, 0) == 1 && c == 'x');
        CHECK_INT(agent_relay(agent, 0, accepted, patience(), &err), -EINVAL);
        CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
}

static void test_only_ipv6(void) {
        uint16_t port = 0;
        _cleanup_close_ int listening = listen_on(AF_INET6, &port);
        struct link l;

        if (listening < 0) {
                printf("# no IPv6 here: left out\n");
                return;
        }
        link_begin_at(&l, listening, port);
        CHECK(say(l.client, "six") && hears(l.program, "six"));
        l.client = close_fd(l.client);
        CHECK_STR(hear(l.program), "");
        l.program = close_fd(l.program);
        CHECK_INT(link_end(&l), 0);
}

/* ---- many, and slow ones ---- */

static void test_many_at_once(void) {
        static struct link all[WIRE_RELAYS_MAX];
        _cleanup_close_ int client = -1, accepted = -1;
        _cleanup_error_ struct error err = ERROR_INIT;
        uint16_t port = 0;
        int listening = listen_on(AF_INET, &port), wrong = 0;
        char text[20];

        for (unsigned i = 0; i < WIRE_RELAYS_MAX; i++)
                link_begin_at(&all[i], listening, port);
        for (unsigned i = 0; i < WIRE_RELAYS_MAX; i++) {
                snprintf(text, sizeof(text), "number %u", i);
                wrong += !say(all[i].client, text);
        }
        CHECK(agent_answers());
        connect_pair(&client, &accepted);
        CHECK_INT(agent_relay(agent, port, accepted, patience(), &err), -error_code_errno(ERROR_QUOTA_EXCEEDED));
        CHECK_INT(err.code, ERROR_QUOTA_EXCEEDED);
        for (unsigned i = WIRE_RELAYS_MAX; i-- > 0;) {
                snprintf(text, sizeof(text), "number %u", i);
                wrong += !hears(all[i].program, text) || !say(all[i].program, text);
                wrong += !hears(all[i].client, text);
                all[i].client = close_fd(all[i].client);
                all[i].program = close_fd(all[i].program);
        }
        for (unsigned i = 0; i < WIRE_RELAYS_MAX; i++)
                wrong += link_end(&all[i]) != 0;
        CHECK_INT(wrong, 0);
        close(listening);
}

/* Sends until nothing is taken any more, for a moment at least. */
static size_t fill(int fd, uint32_t seed) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        size_t n = 0;

        while (n < BULK && poll(&p, 1, 300) > 0) {
                uint8_t byte[1000];
                for (size_t i = 0; i < sizeof(byte); i++)
                        byte[i] = pattern(seed, n + i);
                ssize_t k = send(fd, byte, sizeof(byte), MSG_DONTWAIT | MSG_NOSIGNAL);
                if (k < 0 && errno != EAGAIN)
                        return BULK;
                n += (size_t) MAX(k, 0);
        }
        return n;
}

/* Whoever does not read stops whoever sends, and nobody else; nothing is lost. */
static void check_slow(bool program_is_slow) {
        struct link l, other;

        link_begin(&l);
        const int from = program_is_slow ? l.client : l.program, to = program_is_slow ? l.program : l.client;
        const size_t held = fill(from, 7);
        CHECK(held > 0 && held < HELD_MAX);
        CHECK(agent_answers());
        link_begin(&other);
        CHECK(say(other.client, "quick") && hears(other.program, "quick"));
        CHECK(say(other.program, "too") && hears(other.client, "too"));
        other.client = close_fd(other.client);
        other.program = close_fd(other.program);
        CHECK_INT(link_end(&other), 0);
        /* The other direction is as quick as ever. */
        CHECK(say(to, "back") && hears(from, "back"));
        struct flow rest = {.fd = to, .n = held, .seed = 7};
        flow_begin(&rest, receive_main);
        CHECK(flow_end(&rest));
        l.client = close_fd(l.client);
        l.program = close_fd(l.program);
        CHECK_INT(link_end(&l), 0);
}

static void test_slow_client(void) {
        check_slow(false);
}

static void test_slow_program(void) {
        check_slow(true);
}

/* The agent's side ends its relays, too, also one whose program does not read: otherwise stopping it would hang. */
static void test_lost(void) {
        struct link idle, stuck;

        link_begin(&idle);
        link_begin(&stuck);
        CHECK(say(idle.client, "x") && hears(idle.program, "x"));
        CHECK(fill(stuck.client, 0) < HELD_MAX);
        guest_real_stop(guest);
        CHECK(is_reset(idle.client));
        CHECK(is_reset(idle.program));
        CHECK(is_reset(stuck.client));
        CHECK_INT(link_end(&idle), -ENOTCONN);
        CHECK_INT(link_end(&stuck), -ENOTCONN);
}

int main(void) {
        int fds[2];

        signal(SIGPIPE, SIG_IGN);
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                return 1;
        guest = guest_real_start(fds[1]);
        if (agent_open(fds[0], NULL, patience(), &agent, NULL) < 0)
                return 1;
        RUN(test_many_bytes_both_ways);
        RUN(test_the_client_ends_first);
        RUN(test_the_program_ends_first);
        RUN(test_the_program_does_not_read_all);
        RUN(test_the_program_resets);
        RUN(test_the_client_resets);
        RUN(test_cancelled);
        RUN(test_nobody_listens);
        RUN(test_only_ipv6);
        RUN(test_many_at_once);
        RUN(test_slow_client);
        RUN(test_slow_program);
        RUN(test_lost);
        agent_unref(agent);
        return tap_done();
}
