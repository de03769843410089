/* SPDX-License-Identifier: Apache-2.0 */
/* The relay between two TCP connections on loopback: whatever the peers at its ends do to each other. */

#include <poll.h>

#include "base/thread.h"
#include "loopback.h"
#include "network/relay.h"

#define MIB (1024UL * 1024)
#define BULK (64 * MIB)
#define SMALL_BUFFER (4 * 1024)
#define LARGE_BUFFER (200 * 1024)
/* More than all buffers between the two ends can hold when they are small. */
#define STALLED_MAX (4 * MIB)

struct relayed {
        int a, b;           /* the peers */
        int near_a, near_b; /* what the relay has */
        int64_t idle_ms;
        struct cancel *cancel;
        pthread_t thread;
        int result;
};

/* Two ends of a connection, with socket buffers of this size (0: as the kernel has them). */
static bool tcp_pair(int *ret_peer, int *ret_near, int size) {
        int listener = bound(SOCK_STREAM, LOOPBACK(1), 0);
        const struct sockaddr_in in = loopback(LOOPBACK(1), port_of(listener));

        *ret_peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        limit_waits(*ret_peer);
        for (int i = 0; i < 2 && size > 0; i++) {
                setsockopt(i == 0 ? listener : *ret_peer, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
                setsockopt(i == 0 ? listener : *ret_peer, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        }
        bool ok = connect(*ret_peer, (const struct sockaddr *) &in, sizeof(in)) == 0;
        *ret_near = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        close(listener);
        return ok && *ret_near >= 0;
}

static void *relay_main(void *arg) {
        struct relayed *r = arg;
        struct op op = op_timeout(6L * LIMIT_MS);

        op.cancel = r->cancel;
        r->result = relay_run(r->near_a, r->near_b, &op, r->idle_ms);
        close(r->near_a);
        close(r->near_b);
        return NULL;
}

static bool relay_start_sized(struct relayed *r, int size_a, int size_b, int64_t idle_ms) {
        *r = (struct relayed){.idle_ms = idle_ms, .cancel = cancel_new(), .result = 1};
        return r->cancel && tcp_pair(&r->a, &r->near_a, size_a) && tcp_pair(&r->b, &r->near_b, size_b) &&
               thread_start(&r->thread, "relay", relay_main, r) == 0;
}

static bool relay_start(struct relayed *r, bool small, int64_t idle_ms) {
        const int size = small ? SMALL_BUFFER : 0;

        return relay_start_sized(r, size, size, idle_ms);
}

/* What relay_run() returned. */
static int relay_end(struct relayed *r) {
        pthread_join(r->thread, NULL);
        close_fd(r->a);
        close_fd(r->b);
        cancel_unref(r->cancel);
        return r->result;
}

/* Whatever the number of reads is that bring all of it, the end that was there from the beginning is passed on. */
static void test_the_end_is_there_already(void) {
        static char data[RELAY_BUFFER];

        for (size_t n = 1; n <= 20; n++) {
                struct relayed r = {.cancel = cancel_new(), .result = 1};
                size_t got = 0;
                ssize_t k;

                REQUIRE(r.cancel && tcp_pair(&r.a, &r.near_a, 0) && tcp_pair(&r.b, &r.near_b, 0));
                for (size_t i = 0; i < n; i++)
                        CHECK(send_all(r.a, data, sizeof(data)));
                shutdown(r.a, SHUT_WR);
                shutdown(r.b, SHUT_WR);
                REQUIRE(thread_start(&r.thread, "relay", relay_main, &r) == 0);
                while ((k = recv(r.b, data, sizeof(data), 0)) > 0)
                        got += (size_t) k;
                CHECK_INT(k, 0);
                CHECK_INT(got, n * RELAY_BUFFER);
                cancel_fire(r.cancel); /* of a relay that waits for ever */
                CHECK_INT(relay_end(&r), 0);
        }
}

/* A stream of bytes that is different at each place, and its checksum (FNV-1a over words). */
struct stream {
        int fd;
        uint64_t state, sum;
        size_t n;
};

static void stream_fill(struct stream *s, uint64_t *words, size_t n) {
        for (size_t i = 0; i < n; i++) {
                s->state ^= s->state << 13;
                s->state ^= s->state >> 7;
                s->state ^= s->state << 17;
                words[i] = s->state;
        }
}

static void stream_sum(struct stream *s, const uint64_t *words, size_t n) {
        for (size_t i = 0; i < n; i++)
                s->sum = (s->sum ^ words[i]) * 0x100000001b3ULL;
}

static void *stream_write(void *arg) {
        struct stream *s = arg;
        uint64_t words[8192];

        for (size_t left = BULK; left > 0; left -= sizeof(words)) {
                stream_fill(s, words, ARRAY_SIZE(words));
                stream_sum(s, words, ARRAY_SIZE(words));
                if (!send_all(s->fd, words, sizeof(words)))
                        break;
                s->n += sizeof(words);
        }
        shutdown(s->fd, SHUT_WR);
        return NULL;
}

/* Until the end of data. */
static void *stream_read(void *arg) {
        struct stream *s = arg;
        uint64_t words[8192];
        ssize_t n;

        while ((n = recv(s->fd, words, sizeof(words), MSG_WAITALL)) > 0) {
                stream_sum(s, words, (size_t) n / sizeof(words[0]));
                s->n += (size_t) n;
        }
        return NULL;
}

static void check_same(const struct stream *sent, const struct stream *got) {
        CHECK_INT(sent->n, BULK);
        CHECK_INT(got->n, BULK);
        CHECK(sent->sum == got->sum);
}

static void test_bulk_both_ways(void) {
        struct relayed r;
        REQUIRE(relay_start(&r, false, 0));
        struct stream s[] = {{.fd = r.a, .state = 1}, {.fd = r.b}, {.fd = r.b, .state = 2}, {.fd = r.a}};
        pthread_t threads[4];

        for (int i = 0; i < 4; i++)
                CHECK_INT(thread_start(&threads[i], "bulk", i % 2 == 0 ? stream_write : stream_read, &s[i]), 0);
        for (int i = 0; i < 4; i++)
                pthread_join(threads[i], NULL);
        check_same(&s[0], &s[1]);
        check_same(&s[2], &s[3]);
        CHECK_INT(relay_end(&r), 0);
}

static void half_close(bool swap) {
        struct relayed r;
        REQUIRE(relay_start(&r, false, 0));
        const int client = swap ? r.b : r.a, server = swap ? r.a : r.b;

        CHECK(send_all(client, "request", 7));
        shutdown(client, SHUT_WR);
        CHECK(receives(server, "request"));
        CHECK(receives_end(server));
        for (int i = 0; i < 3; i++) { /* the other direction goes on, back and forth in time */
                CHECK(send_all(server, "answer", 6));
                CHECK(receives(client, "answer"));
        }
        shutdown(server, SHUT_WR);
        CHECK(receives_end(client));
        CHECK_INT(relay_end(&r), 0);
}

static void test_half_close(void) {
        half_close(false);
        half_close(true);
}

static void *stream_write_and_close(void *arg) {
        struct stream *s = arg;

        stream_write(s);
        close(s->fd);
        return NULL;
}

/* What was sent right before a close arrives, however much it is. */
static void test_nothing_lost_at_the_end(void) {
        struct relayed r;
        REQUIRE(relay_start(&r, false, 0));
        struct stream out = {.fd = r.a, .state = 7}, in = {.fd = r.b};
        pthread_t writer;

        shutdown(r.b, SHUT_WR);
        CHECK(receives_end(r.a));
        REQUIRE(thread_start(&writer, "writer", stream_write_and_close, &out) == 0);
        r.a = -1;
        stream_read(&in);
        pthread_join(writer, NULL);
        check_same(&out, &in);
        CHECK_INT(relay_end(&r), 0);
}

/* Writes until nothing more is taken; how much that was. */
static size_t fill(struct stream *s) {
        struct pollfd p = {.fd = s->fd, .events = POLLOUT};
        uint64_t words[128];

        while (s->n < BULK && poll(&p, 1, 300) > 0) {
                stream_fill(s, words, ARRAY_SIZE(words));
                stream_sum(s, words, ARRAY_SIZE(words));
                if (!send_all(s->fd, words, sizeof(words)))
                        break;
                s->n += sizeof(words);
        }
        return s->n;
}

static void test_slow_reader(void) {
        struct relayed r;
        REQUIRE(relay_start(&r, true, 0));
        struct stream out = {.fd = r.a, .state = 3}, in = {.fd = r.b};

        CHECK(fill(&out) < STALLED_MAX);
        CHECK(out.n > 0);
        /* The other direction does not mind. */
        CHECK(send_all(r.b, "news", 4));
        CHECK(receives(r.a, "news"));
        shutdown(r.a, SHUT_WR);
        stream_read(&in);
        CHECK_INT(in.n, out.n);
        CHECK(in.sum == out.sum);
        shutdown(r.b, SHUT_WR);
        CHECK_INT(relay_end(&r), 0);
}

/* One end is closed in both directions, the other does not read: what is left is kept, and waiting costs nothing. */
static void test_waits_without_spinning(void) {
        struct relayed r;
        REQUIRE(relay_start_sized(&r, LARGE_BUFFER, SMALL_BUFFER, 0));
        struct stream out = {.fd = r.a, .state = 5}, in = {.fd = r.b};
        uint64_t words[1024];

        /* More than fits behind the relay; the rest, and the end of data, fit in before it. */
        while (out.n < LARGE_BUFFER) {
                stream_fill(&out, words, ARRAY_SIZE(words));
                stream_sum(&out, words, ARRAY_SIZE(words));
                REQUIRE(send_all(r.a, words, sizeof(words)));
                out.n += sizeof(words);
        }
        shutdown(r.a, SHUT_WR);
        shutdown(r.b, SHUT_WR);
        CHECK(receives_end(r.a));
        CHECK(busy_ms(300) < 100);
        stream_read(&in);
        CHECK_INT(in.n, out.n);
        CHECK(in.sum == out.sum);
        CHECK_INT(relay_end(&r), 0);
}

static void test_reset(void) {
        struct relayed r;

        for (int i = 0; i < 2; i++) {
                REQUIRE(relay_start(&r, false, 0));
                close_with_reset(i == 0 ? r.a : r.b);
                *(i == 0 ? &r.a : &r.b) = -1;
                CHECK(receives_reset(i == 0 ? r.b : r.a));
                CHECK_INT(relay_end(&r), -ECONNRESET);
        }
}

/* Also from an end of which the relay wants nothing at that moment. */
static void test_reset_while_stalled(void) {
        struct relayed r;
        REQUIRE(relay_start(&r, true, 0));
        struct stream out = {.fd = r.a, .state = 9};
        char c;

        fill(&out);
        close_with_reset(r.a);
        r.a = -1;
        pthread_join(r.thread, NULL);
        CHECK_INT(r.result, -ECONNRESET);
        while (recv(r.b, &c, 1, 0) > 0)
                ;
        CHECK_INT(errno, ECONNRESET);
        close(r.b);
        cancel_unref(r.cancel);
}

static void test_reset_after_end_of_data(void) {
        struct relayed r;
        REQUIRE(relay_start(&r, false, 0));

        shutdown(r.a, SHUT_WR);
        CHECK(receives_end(r.b));
        close_with_reset(r.a);
        r.a = -1;
        /* To a socket that has seen the end of data already, a reset is EPIPE. */
        struct pollfd p = {.fd = r.b};
        int err = 0;
        socklen_t len = sizeof(err);
        CHECK(poll(&p, 1, LIMIT_MS) == 1 && p.revents & POLLERR);
        CHECK_INT(getsockopt(r.b, SOL_SOCKET, SO_ERROR, &err, &len), 0);
        CHECK_INT(err, EPIPE);
        CHECK_INT(relay_end(&r), -ECONNRESET);
}

static void test_cancel(void) {
        struct relayed r;
        REQUIRE(relay_start(&r, false, 0));

        CHECK(send_all(r.a, "x", 1));
        CHECK(receives(r.b, "x"));
        cancel_fire(r.cancel);
        CHECK(receives_reset(r.a));
        CHECK(receives_reset(r.b));
        CHECK_INT(relay_end(&r), -ECANCELED);
}

static void test_idle_limit(void) {
        struct relayed r;
        REQUIRE(relay_start(&r, false, 50));

        CHECK(receives_reset(r.a));
        CHECK(receives_reset(r.b));
        CHECK_INT(relay_end(&r), -ETIMEDOUT);
}

int main(void) {
        RUN(test_bulk_both_ways);
        RUN(test_half_close);
        RUN(test_the_end_is_there_already);
        RUN(test_nothing_lost_at_the_end);
        RUN(test_slow_reader);
        RUN(test_waits_without_spinning);
        RUN(test_reset);
        RUN(test_reset_while_stalled);
        RUN(test_reset_after_end_of_data);
        RUN(test_cancel);
        RUN(test_idle_limit);
        return tap_done();
}
