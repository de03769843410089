/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <sys/socket.h>

#include "base/io.h"
#include "base/thread.h"
#include "tap.h"
#include "wire/frame.h"
#include "wire/handshake.h"

#define LIMIT_MS 20000

/*
 * A guest as the agent is: looks for a preamble, answers, takes frames; a length that cannot be sends it back to
 * looking. What it gets wrong on purpose is said by the fields.
 */
struct guest {
        int fd;
        bool in_old_frame;   /* it starts in the middle of a frame of the greatest length */
        size_t swallow;      /* so many bytes never arrive */
        const void *garbage; /* sent before the first answer */
        size_t garbage_len;
        int old_answers; /* answer so many preambles with a wrong nonce */
        int answers;     /* result: how many preambles were answered */
        pthread_t thread;
};

static void guest_feed(struct guest *g, struct handshake_scanner *s, struct frame_decoder *d, bool *framing,
                       const uint8_t *p, size_t n) {
        uint8_t answer[HANDSHAKE_LEN];
        struct op op = op_timeout(LIMIT_MS);
        struct frame f;
        size_t used;

        if (*framing) {
                int r = frame_decoder_feed(d, p, n);
                while (r >= 0 && (r = frame_decoder_next(d, &f)) == 1)
                        ;
                if (r < 0) {
                        frame_decoder_free(d);
                        *framing = false;
                }
                return;
        }
        if (handshake_scan(s, p, n, &used, answer) == 0)
                return;
        if (g->old_answers-- > 0)
                answer[HANDSHAKE_LEN - 1] ^= 1;
        (void) write_full(g->fd, answer, sizeof(answer), &op);
        (void) write_full(g->fd, "FRAMES", 6, &op);
        g->answers++;
        *framing = true;
        guest_feed(g, s, d, framing, p + used, n - used);
}

static void *guest_main(void *arg) {
        struct guest *g = arg;
        struct handshake_scanner s = {0};
        struct op op = op_timeout(LIMIT_MS);
        struct frame_decoder d;
        bool framing = g->in_old_frame;
        uint8_t piece[65536];

        frame_decoder_init(&d);
        if (g->in_old_frame)
                (void) frame_decoder_feed(&d, "\0\x10\0\0\3", 5);
        if (g->garbage)
                (void) write_full(g->fd, g->garbage, g->garbage_len, &op);
        while (wait_fd(g->fd, POLLIN, &op) > 0) {
                ssize_t n = read(g->fd, piece, sizeof(piece));
                if (n <= 0)
                        break;
                size_t lost = MIN(g->swallow, (size_t) n);
                g->swallow -= lost;
                guest_feed(g, &s, &d, &framing, piece + lost, (size_t) n - lost);
        }
        frame_decoder_free(&d);
        return NULL;
}

/* Runs the host against g. On success the bytes behind the answer must all be there. */
static int run(struct guest *g, struct op *op, struct error *err) {
        _cleanup_close_ int host = -1;
        int sv[2], r;
        char behind[6];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv) < 0)
                return -errno;
        host = sv[0];
        g->fd = sv[1];
        r = thread_start(&g->thread, "guest", guest_main, g);
        if (r == 0) {
                r = handshake_host(host, op, err);
                if (r == 0) {
                        CHECK_INT(read_full(host, behind, sizeof(behind), op), 0);
                        CHECK(memcmp(behind, "FRAMES", 6) == 0);
                }
                host = close_fd(host);
                pthread_join(g->thread, NULL);
        }
        close_fd(g->fd);
        return r;
}

static void test_plain(void) {
        struct op op = op_timeout(LIMIT_MS);
        struct guest g = {0};

        CHECK_INT(run(&g, &op, NULL), 0);
        CHECK_INT(g.answers, 1);
}

static void test_stale_bytes_from_guest(void) {
        struct op op = op_timeout(LIMIT_MS);
        /* Among them an old answer and the beginning of one, so that the real one starts inside a partial match. */
        static const char stale[] =
                "\0\0\0\x20{\"type\":\"exit\"}agentiso-guest1\nAAAABBBBCCCCDDDDagentiso-guest1\nxxagenti"
                "agentiso-gagentiso-guest1\n";
        struct guest g = {.garbage = stale, .garbage_len = sizeof(stale) - 1};

        CHECK_INT(run(&g, &op, NULL), 0);
        CHECK_INT(g.answers, 1);
}

static void test_guest_in_old_frame(void) {
        struct op op = op_timeout(LIMIT_MS);
        struct guest g = {.in_old_frame = true};

        CHECK_INT(run(&g, &op, NULL), 0);
        CHECK(g.answers >= 1);
}

static void test_dropped_bytes(void) {
        for (size_t n = 1; n <= 33; n += 8) {
                struct op op = op_timeout(LIMIT_MS);
                struct guest g = {.swallow = n};

                CHECK_INT(run(&g, &op, NULL), 0);
        }
}

static void test_old_nonce(void) {
        struct op op = op_timeout(LIMIT_MS);
        struct guest g = {.old_answers = 2};
        _cleanup_error_ struct error err = ERROR_INIT;

        /* The bytes behind a wrong answer are garbage like it; behind the right one they are kept. */
        CHECK_INT(run(&g, &op, &err), 0);
        CHECK(g.answers >= 3);
}

static void test_endless_garbage(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *garbage = calloc(1, HANDSHAKE_SKIP_MAX + 65536);
        struct guest g = {.garbage = garbage, .garbage_len = HANDSHAKE_SKIP_MAX + 65536};

        REQUIRE(garbage);
        memset(garbage, 'a', g.garbage_len); /* each byte could begin the answer */
        CHECK_INT(run(&g, &op, &err), -EPROTO);
        CHECK_INT(err.code, ERROR_GUEST_UNREACHABLE);
        CHECK(err.hint != NULL);
}

static void test_silence(void) {
        int sv[2];
        struct op op = op_timeout(700); /* long enough for a second try, which fills the socket */
        _cleanup_error_ struct error err = ERROR_INIT;
        int64_t start = monotonic_ns();

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv) == 0);
        CHECK_INT(handshake_host(sv[0], &op, &err), -ETIMEDOUT);
        CHECK_INT(err.code, ERROR_TIMEOUT);
        CHECK(monotonic_ns() - start < 5 * NSEC_PER_SEC);

        /* Nobody has read the first try, so there is no second one behind it. */
        char bytes[2 * HANDSHAKE_LEN];
        CHECK_INT(read(sv[1], bytes, sizeof(bytes)), HANDSHAKE_LEN);
        close_fd(sv[0]);
        close_fd(sv[1]);
}

static void test_peer_gone(void) {
        int sv[2];
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_error_ struct error err = ERROR_INIT;

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv) == 0);
        close_fd(sv[1]);
        CHECK(handshake_host(sv[0], &op, &err) < 0);
        CHECK_INT(err.code, ERROR_GUEST_UNREACHABLE);
        close_fd(sv[0]);
}

static void *fire(void *arg) {
        cancel_fire(arg);
        return NULL;
}

static void test_cancel(void) {
        _cleanup_cancel_ struct cancel *c = cancel_new();
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op_timeout(LIMIT_MS);
        pthread_t thread;
        int sv[2];

        REQUIRE(c && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv) == 0);
        op.cancel = c;
        REQUIRE(thread_start(&thread, "cancel", fire, c) == 0);
        CHECK_INT(handshake_host(sv[0], &op, &err), -ECANCELED);
        CHECK_INT(err.code, ERROR_CANCELLED);
        pthread_join(thread, NULL);
        close_fd(sv[0]);
        close_fd(sv[1]);
}

static void test_scanner_pieces(void) {
        static const char stream[] = "noise\0agentiagentiso-host-1\n0123456789abcdefREST";
        const size_t end = sizeof(stream) - 1 - 4;

        /* Whatever the pieces are, the preamble is found, and not one byte behind it is taken. */
        for (size_t piece = 1; piece < sizeof(stream); piece++) {
                struct handshake_scanner s = {0};
                uint8_t answer[HANDSHAKE_LEN];
                size_t at = 0, used = 0;
                int found = 0;

                while (at < sizeof(stream) - 1 && found == 0) {
                        found = handshake_scan(&s, stream + at, MIN(piece, sizeof(stream) - 1 - at), &used, answer);
                        at += used;
                }
                CHECK_INT(found, 1);
                CHECK_INT(at, end);
                CHECK(memcmp(answer, "agentiso-guest1\n0123456789abcdef", HANDSHAKE_LEN) == 0);
        }
}

int main(void) {
        RUN(test_plain);
        RUN(test_stale_bytes_from_guest);
        RUN(test_guest_in_old_frame);
        RUN(test_dropped_bytes);
        RUN(test_old_nonce);
        RUN(test_endless_garbage);
        RUN(test_silence);
        RUN(test_peer_gone);
        RUN(test_cancel);
        RUN(test_scanner_pieces);
        return tap_done();
}
