/* SPDX-License-Identifier: Apache-2.0 */
/* One connection against a peer that is a bare socket and sends what it likes. */

#include <fcntl.h>
#include <sys/socket.h>

#include "base/io.h"
#include "base/json.h"
#include "base/str.h"
#include "base/thread.h"
#include "tap.h"
#include "wire/mux_internal.h"

#define LIMIT_MS 20000

struct rig {
        struct mux *m;
        int peer;
        struct frame_decoder d;
        pthread_mutex_t lock; /* guards the rest */
        pthread_cond_t cond;
        int lost_err;
        int opened;
};

static void rig_lost(void *arg, int err) {
        struct rig *g = arg;
        LOCK(&g->lock);

        g->lost_err = err;
        pthread_cond_broadcast(&g->cond);
}

static void rig_opened(void *arg, struct mux_stream *s, json_t *request) {
        struct rig *g = arg;

        pthread_mutex_lock(&g->lock);
        g->opened++;
        pthread_mutex_unlock(&g->lock);
        json_decref(request);
        mux_stream_unref(s);
}

static bool peer_write(struct rig *g, const void *data, size_t n) {
        struct op op = op_timeout(LIMIT_MS);

        return write_full(g->peer, data, n, &op) == 0;
}

static bool peer_frame(struct rig *g, int kind, uint32_t stream, const void *payload, size_t n) {
        _cleanup_buf_ struct buf out = BUF_INIT(2 * WIRE_FRAME_MAX);

        return frame_encode(&out, (enum wire_kind) kind, stream, payload, n, NULL, 0) == 0 &&
               peer_write(g, out.data, out.len);
}

static bool peer_text(struct rig *g, int kind, uint32_t stream, const char *text) {
        return peer_frame(g, kind, stream, text, strlen(text));
}

/* The next frame that the mux sends; false when none comes. */
static bool peer_next(struct rig *g, struct frame *f) {
        struct op op = op_timeout(LIMIT_MS);
        char piece[65536];

        for (;;) {
                int r = frame_decoder_next(&g->d, f);
                if (r != 0)
                        return r == 1;
                if (wait_fd(g->peer, POLLIN, &op) < 0)
                        return false;
                ssize_t n = read(g->peer, piece, sizeof(piece));
                if (n <= 0 || frame_decoder_feed(&g->d, piece, (size_t) n) < 0)
                        return false;
        }
}

static bool peer_expect(struct rig *g, enum wire_kind kind, uint32_t stream, struct frame *ret) {
        struct frame f = {0};

        if (!peer_next(g, &f) || f.kind != kind || f.stream != stream) {
                printf("# got kind %d of stream %u\n", f.kind, f.stream);
                return false;
        }
        if (ret)
                *ret = f;
        return true;
}

static bool rig_start(struct rig *g, enum mux_side side, const char *hello) {
        struct mux_callbacks cb = {.opened = side == MUX_GUEST ? rig_opened : NULL, .lost = rig_lost, .arg = g};
        int sv[2];

        *g = (struct rig){.peer = -1};
        pthread_mutex_init(&g->lock, NULL);
        cond_init(&g->cond);
        frame_decoder_init(&g->d);
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
                return false;
        g->peer = sv[1];
        (void) fd_set_nonblock(g->peer, true);
        if (mux_start(sv[0], side, NULL, 0, NULL, &cb, &g->m, NULL) < 0)
                return false;
        return peer_expect(g, WIRE_HELLO, 0, NULL) && (!hello || peer_text(g, WIRE_HELLO, 0, hello));
}

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define HELLO "{\"type\":\"hello\",\"version\":" TEXT(WIRE_VERSION) "}"

/* The errno with which the connection ended. */
static int rig_wait_lost(struct rig *g) {
        deadline_t d = deadline_in_ms(LIMIT_MS);
        LOCK(&g->lock);

        while (g->lost_err == 0 && cond_wait_until(&g->cond, &g->lock, d) == 0)
                ;
        return g->lost_err;
}

static void rig_stop(struct rig *g) {
        mux_unref(g->m);
        close_fd(g->peer);
        frame_decoder_free(&g->d);
        pthread_cond_destroy(&g->cond);
        pthread_mutex_destroy(&g->lock);
}

/* A stream that we opened; the peer has seen it. Its id is 1 for the first. */
static struct mux_stream *rig_open(struct rig *g) {
        _cleanup_json_ json_t *request = json_pack("{s:s}", "type", "x");
        struct op op = op_timeout(LIMIT_MS);
        struct mux_stream *s = NULL;

        CHECK_INT(mux_open(g->m, request, &op, &s, NULL), 0);
        CHECK(peer_expect(g, WIRE_OPEN, s->id, NULL));
        return s;
}

/* The connection lives: a ping of the peer comes back, behind everything sent before. */
static void check_alive(struct rig *g) {
        struct frame f;

        CHECK(peer_text(g, WIRE_PING, 0, "are you there?"));
        CHECK(peer_expect(g, WIRE_PONG, 0, &f));
        CHECK(f.payload_len == 14 && memcmp(f.payload, "are you there?", 14) == 0);
        CHECK(!mux_is_lost(g->m));
}

static void check_recv(struct mux_stream *s, enum mux_event_kind want, struct mux_event *e) {
        struct op op = op_timeout(LIMIT_MS);

        CHECK_INT(mux_recv(s, &op, e), 0);
        CHECK_INT(e->kind, want);
}

/* The stream was ended for both sides, with an error; the connection was not. */
static void check_aborted(struct rig *g, struct mux_stream *s, const char *why) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        struct op op = op_timeout(LIMIT_MS);
        struct frame f;

        REQUIRE(peer_expect(g, WIRE_CLOSE, s->id, &f));
        CHECK(memmem(f.payload, f.payload_len, why, strlen(why)) != NULL);
        do
                REQUIRE(mux_recv(s, &op, &e) == 0);
        while (e.kind == MUX_DATA || e.kind == MUX_MSG);
        CHECK_INT(e.kind, MUX_CLOSED);
        CHECK(error_is_set(&e.error) && strstr(e.error.message, why) != NULL);
        CHECK_INT(mux_send_data(s, WIRE_CH_IN, "x", 1, &op), -EPIPE);
        check_alive(g);
}

/* The same for what only shows when it is taken: the events before it come first. */
static void check_aborted_when_taken(struct rig *g, struct mux_stream *s, const char *why) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

        check_recv(s, MUX_MSG, &e);
        check_recv(s, MUX_CLOSED, &e);
        check_aborted(g, s, why);
}

static void test_bad_lengths(void) {
        static const char *const lengths[] = {"\0\0\0\0", "\0\0\0\4", "\0\x10\0\1", "agen"};

        for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
                struct rig g;

                REQUIRE(rig_start(&g, MUX_HOST, HELLO));
                struct mux_stream *s = rig_open(&g);
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
                CHECK(peer_write(&g, lengths[i], 4));
                CHECK_INT(rig_wait_lost(&g), -EBADMSG);
                check_recv(s, MUX_LOST, &e);
                mux_stream_unref(s);
                rig_stop(&g);
        }
}

static void test_hello_must_be_first(void) {
        static const char *const hellos[] = {"", "[]", "{\"type\":\"hi\"}", "{\"type\":\"hello\",\"type\":\"hello\"}"};
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, NULL));
        CHECK(peer_text(&g, WIRE_PING, 0, "x"));
        CHECK_INT(rig_wait_lost(&g), -EPROTO);
        rig_stop(&g);
        for (size_t i = 0; i < ARRAY_SIZE(hellos); i++) {
                REQUIRE(rig_start(&g, MUX_GUEST, hellos[i]));
                CHECK_INT(rig_wait_lost(&g), -EPROTO);
                rig_stop(&g);
        }
}

static void test_version(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op_timeout(LIMIT_MS);
        json_t *hello = NULL;
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, "{\"type\":\"hello\",\"version\":7}"));
        CHECK(mux_hello(g.m, &op, &hello, &err) < 0);
        CHECK_INT(err.code, ERROR_UNSUPPORTED);
        CHECK_STR(err.message,
                  "The guest agent speaks version 7 of the protocol, this side speaks version " TEXT(WIRE_VERSION) ".");
        CHECK(hello == NULL);
        rig_stop(&g);

        REQUIRE(rig_start(&g, MUX_HOST, "{\"type\":\"hello\",\"version\":\"1\"}"));
        CHECK(mux_hello(g.m, &op, &hello, &err) < 0);
        rig_stop(&g);
}

static void test_credit_overrun(void) {
        _cleanup_free_ char *data = calloc(1, WIRE_WINDOW + 2);
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        struct mux_stream *s = rig_open(&g), *other = rig_open(&g);
        data[0] = WIRE_CH_OUT;
        for (int i = 0; i < 4; i++)
                CHECK(peer_frame(&g, WIRE_DATA, s->id, data, 1 + WIRE_WINDOW / 4));
        CHECK(peer_frame(&g, WIRE_DATA, s->id, data, 1)); /* no bytes: nothing */
        check_alive(&g);
        CHECK(peer_frame(&g, WIRE_DATA, s->id, data, 2));
        check_aborted(&g, s, "more data than its credit allows");
        mux_stream_unref(s);

        CHECK(peer_frame(&g, WIRE_DATA, other->id, data, 1 + WIRE_WINDOW + 1));
        check_aborted(&g, other, "more data than its credit allows");
        mux_stream_unref(other);
        rig_stop(&g);
}

/* Credit is given back when a quarter of the window was taken, not before. */
static void test_credit_returned(void) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        _cleanup_free_ char *data = calloc(1, WIRE_WINDOW);
        struct frame f;
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        struct mux_stream *s = rig_open(&g);
        data[0] = WIRE_CH_OUT;
        CHECK(peer_frame(&g, WIRE_DATA, s->id, data, 1 + WIRE_WINDOW / 8));
        check_recv(s, MUX_DATA, &e);
        check_alive(&g);
        CHECK(peer_frame(&g, WIRE_DATA, s->id, data, 1 + WIRE_WINDOW / 8));
        check_recv(s, MUX_DATA, &e);
        CHECK(peer_expect(&g, WIRE_CREDIT, s->id, &f));
        CHECK(f.payload_len == 4 && memcmp(f.payload, "\0\2\0\0", 4) == 0);
        mux_stream_unref(s);
        rig_stop(&g);
}

static void test_message_limit(void) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        struct mux_stream *s = rig_open(&g);
        for (unsigned i = 0; i < WIRE_MESSAGES_MAX; i++)
                CHECK(peer_text(&g, WIRE_MSG, s->id, "{\"type\":\"x\"}"));
        check_alive(&g);
        check_recv(s, MUX_MSG, &e);
        CHECK(peer_text(&g, WIRE_MSG, s->id, "{\"type\":\"x\"}"));
        check_alive(&g);
        CHECK(peer_text(&g, WIRE_MSG, s->id, "{\"type\":\"x\"}"));
        check_aborted(&g, s, "too many messages");
        mux_stream_unref(s);
        rig_stop(&g);
}

/* Great messages on many streams are bounded together; what is dropped is given back to the others. */
static void test_message_bytes(void) {
        const size_t n = WIRE_FRAME_MAX - 5;
        _cleanup_free_ char *big = malloc(n);
        struct mux_stream *s[5];
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        memset(big, ' ', n);
        for (size_t i = 0; i < ARRAY_SIZE(s); i++)
                s[i] = rig_open(&g);
        for (size_t i = 0; i < 4; i++)
                CHECK(peer_frame(&g, WIRE_MSG, s[i]->id, big, n));
        check_alive(&g);
        CHECK(peer_frame(&g, WIRE_MSG, s[4]->id, big, n));
        check_aborted(&g, s[4], "too many messages");
        for (size_t i = 0; i < ARRAY_SIZE(s); i++)
                mux_stream_unref(s[i]);
        CHECK_INT(g.m->message_bytes, 0);
        rig_stop(&g);
}

static void test_broken_messages(void) {
        static const char *const texts[] = {"",
                                            "{",
                                            "[1]",
                                            "\"x\"",
                                            "{}",
                                            "{\"type\":1}",
                                            "{\"type\":\"a\",\"type\":\"b\"}",
                                            "{\"type\":\"\xff\"}",
                                            "{\"type\":\"x\",\"a\":[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}"};
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
                struct mux_stream *s = rig_open(&g);

                CHECK(peer_text(&g, WIRE_MSG, s->id, "{\"type\":\"fine\"}"));
                CHECK(peer_text(&g, WIRE_MSG, s->id, texts[i]));
                check_aborted_when_taken(&g, s, "no JSON object");
                mux_stream_unref(s);
        }
        rig_stop(&g);
}

static void test_broken_stream_frames(void) {
        static const struct {
                int kind;
                const char *payload;
                size_t len;
                const char *why;
        } t[] = {
                {WIRE_DATA, "", 0, "no known channel"},
                {WIRE_DATA, "\5abc", 4, "no known channel"},
                {WIRE_DATA, "\xff", 1, "no known channel"},
                {WIRE_EOF, "", 0, "no known channel"},
                {WIRE_EOF, "\5", 1, "no known channel"},
                {WIRE_EOF, "\1\1", 2, "no known channel"},
                {WIRE_CREDIT, "\0\0\0", 3, "no number"},
                {WIRE_CREDIT, "\0\0\0\1", 4, "more credit"},
                {WIRE_CREDIT, "\xff\xff\xff\xff", 4, "more credit"},
                {WIRE_OPEN, "{\"type\":\"x\"}", 12, "twice"},
        };
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
                struct mux_stream *s = rig_open(&g);

                CHECK(peer_frame(&g, t[i].kind, s->id, t[i].payload, t[i].len));
                check_aborted(&g, s, t[i].why);
                mux_stream_unref(s);
        }
        struct mux_stream *s = rig_open(&g);
        CHECK(peer_frame(&g, WIRE_EOF, s->id, "\1", 1));
        CHECK(peer_frame(&g, WIRE_DATA, s->id, "\2x", 2));
        check_alive(&g);
        CHECK(peer_frame(&g, WIRE_DATA, s->id, "\1x", 2));
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        check_recv(s, MUX_EOF, &e);
        check_recv(s, MUX_DATA, &e);
        check_aborted(&g, s, "behind the end");
        mux_stream_unref(s);
        rig_stop(&g);
}

/* What is not known is passed over, also on streams that were never there or are gone. */
static void test_unknown(void) {
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        for (int kind = 0; kind < 256; kind++)
                if (kind != WIRE_OPEN)
                        CHECK(peer_text(&g, kind, 0x7ffffff1, "{\"type\":\"x\"}"));
        for (int kind = 10; kind < 256; kind++)
                CHECK(peer_frame(&g, kind, 0, NULL, 0));
        CHECK(peer_text(&g, WIRE_HELLO, 0, HELLO));
        CHECK(peer_text(&g, WIRE_OPEN, 0, "{\"type\":\"x\"}"));
        CHECK(peer_text(&g, WIRE_PONG, 0, "12345678"));
        CHECK(peer_text(&g, WIRE_PONG, 0, "1"));
        char ping[65] = {0};
        CHECK(peer_frame(&g, WIRE_PING, 0, ping, sizeof(ping)));
        check_alive(&g);

        struct mux_stream *s = rig_open(&g);
        uint32_t id = s->id;
        mux_stream_unref(s);
        CHECK(peer_expect(&g, WIRE_CLOSE, id, NULL));
        CHECK(peer_frame(&g, WIRE_DATA, id, "\1x", 2)); /* was on its way */
        CHECK(peer_frame(&g, WIRE_CLOSE, id, NULL, 0));
        CHECK(peer_frame(&g, WIRE_CLOSE, id, NULL, 0));
        CHECK(peer_frame(&g, WIRE_DATA, id, "\1x", 2));
        check_alive(&g);
        rig_stop(&g);
}

static void test_open_refused(void) {
        struct frame f;
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        CHECK(peer_text(&g, WIRE_OPEN, 2, "{\"type\":\"x\"}"));
        CHECK(peer_expect(&g, WIRE_CLOSE, 2, &f));
        CHECK(memmem(f.payload, f.payload_len, "unsupported", 11) != NULL);
        CHECK(peer_text(&g, WIRE_OPEN, 3, "{\"type\":\"x\"}"));
        CHECK(peer_expect(&g, WIRE_CLOSE, 3, &f));
        CHECK(memmem(f.payload, f.payload_len, "invalid_argument", 16) != NULL);
        check_alive(&g);
        rig_stop(&g);

        REQUIRE(rig_start(&g, MUX_GUEST, HELLO));
        CHECK(peer_text(&g, WIRE_OPEN, 1, "{\"no\":\"type\"}"));
        CHECK(peer_expect(&g, WIRE_CLOSE, 1, &f));
        CHECK(memmem(f.payload, f.payload_len, "invalid_argument", 16) != NULL);
        /* rig_opened() drops each stream, so we close it; the peer does not, and at last there are too many. */
        for (unsigned i = 0; i < WIRE_STREAMS_MAX; i++) {
                CHECK(peer_text(&g, WIRE_OPEN, 3 + 2 * i, "{\"type\":\"x\"}"));
                CHECK(peer_expect(&g, WIRE_CLOSE, 3 + 2 * i, &f));
                CHECK_INT(f.payload_len, 0);
        }
        CHECK(peer_text(&g, WIRE_OPEN, 9999, "{\"type\":\"x\"}"));
        CHECK(peer_expect(&g, WIRE_CLOSE, 9999, &f));
        CHECK(memmem(f.payload, f.payload_len, "quota_exceeded", 14) != NULL);
        CHECK(peer_frame(&g, WIRE_CLOSE, 3, NULL, 0));
        CHECK(peer_text(&g, WIRE_OPEN, 9999, "{\"type\":\"x\"}"));
        CHECK(peer_expect(&g, WIRE_CLOSE, 9999, &f));
        CHECK_INT(f.payload_len, 0);
        check_alive(&g);
        CHECK_INT(g.opened, WIRE_STREAMS_MAX + 1);
        rig_stop(&g);
}

/* The window of a request: within its limits, and as binding as the common one. */
static void test_windows(void) {
        static const char *const wrong[] = {"0", "4095", "524289", "-1", "\"4096\""};
        static const char data[1 + WIRE_WINDOW_MIN + 1] = {WIRE_CH_OUT};
        _cleanup_json_ json_t *request = json_pack("{s:s, s:i}", "type", "x", "window", (int) WIRE_WINDOW_MIN);
        struct op op = op_timeout(LIMIT_MS);
        struct mux_stream *s = NULL;
        struct frame f;
        struct rig g;

        REQUIRE(rig_start(&g, MUX_GUEST, HELLO));
        for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
                _cleanup_free_ char *text = str_printf("{\"type\":\"x\",\"window\":%s}", wrong[i]);

                CHECK(peer_text(&g, WIRE_OPEN, 1 + 2 * i, text));
                CHECK(peer_expect(&g, WIRE_CLOSE, 1 + 2 * i, &f));
                CHECK(memmem(f.payload, f.payload_len, "invalid_argument", 16) != NULL);
        }
        check_alive(&g);
        CHECK_INT(g.opened, 0);
        rig_stop(&g);

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        REQUIRE(mux_open(g.m, request, &op, &s, NULL) == 0);
        CHECK(peer_expect(&g, WIRE_OPEN, s->id, &f));
        CHECK(peer_frame(&g, WIRE_DATA, s->id, data, 1 + WIRE_WINDOW_MIN));
        check_alive(&g);
        CHECK(peer_frame(&g, WIRE_DATA, s->id, data, 2));
        check_aborted(&g, s, "more data than its credit allows");
        CHECK(mux_stream_broken(s));
        mux_stream_unref(s);
        (void) json_object_set_new(request, "window", json_integer(WIRE_WINDOW + 1));
        CHECK_INT(mux_open(g.m, request, &op, &s, NULL), -EINVAL);
        rig_stop(&g);
}

static void test_close_reasons(void) {
        static const struct {
                const char *payload;
                enum error_code code;
                const char *text;
        } t[] = {
                {"{\"type\":\"error\",\"code\":\"no_space\",\"message\":\"disk full\",\"hint\":\"h\"}", ERROR_NO_SPACE,
                 "disk full"},
                {"{\"type\":\"error\",\"code\":7}", ERROR_INTERNAL, "without a message"},
                {"{\"code\":\"nonsense\",\"message\":\"m\"}", ERROR_INTERNAL, "m"},
                {"[]", ERROR_INTERNAL, "without a message"},
                {"{", ERROR_INTERNAL, "cannot be read"},
        };
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
                struct mux_stream *s = rig_open(&g);

                CHECK(peer_text(&g, WIRE_CLOSE, s->id, t[i].payload));
                check_recv(s, MUX_CLOSED, &e);
                CHECK_INT(e.error.code, t[i].code);
                CHECK(e.error.message && strstr(e.error.message, t[i].text));
                check_recv(s, MUX_CLOSED, &e);
                CHECK_INT(e.error.code, t[i].code);
                CHECK(peer_frame(&g, WIRE_DATA, s->id, "\1x", 2)); /* behind its close: nothing */
                uint32_t id = s->id;
                mux_stream_unref(s);
                CHECK(peer_expect(&g, WIRE_CLOSE, id, NULL));
        }
        check_alive(&g);
        rig_stop(&g);
}

/* A reason that no WIRE_CLOSE holds still gives its code. */
static void test_long_reason(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *text = calloc(1, 100001);
        struct frame f;
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        struct mux_stream *s = rig_open(&g);
        memset(text, 'x', 100000);
        error_set(&err, ERROR_NOT_FOUND, "%s", text);
        mux_close(s, &err);
        CHECK(peer_expect(&g, WIRE_CLOSE, s->id, &f));
        CHECK(f.payload_len <= MUX_REASON_MAX);
        CHECK(memmem(f.payload, f.payload_len, "not_found", 9) != NULL);
        mux_stream_unref(s);
        rig_stop(&g);
}

static void test_gone_in_mid_frame(void) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        struct mux_stream *s = rig_open(&g);
        CHECK(peer_frame(&g, WIRE_DATA, s->id, "\1whole", 6));
        CHECK(peer_write(&g, "\0\0\0\x20\4\0\0\0\1\1half", 14));
        g.peer = close_fd(g.peer);
        check_recv(s, MUX_DATA, &e);
        CHECK_STR(e.data.data, "whole");
        check_recv(s, MUX_LOST, &e);
        CHECK_INT(rig_wait_lost(&g), -ENODATA);
        mux_stream_unref(s);
        rig_stop(&g);
}

/* What the peer says behind a frame that it does not end would all belong to that frame: after a while the connection
 * is ended. Frames that come to their end one after the other, each torn in two, are no reason. */
static void test_a_frame_without_end(void) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        struct mux_stream *s = rig_open(&g);
        for (int i = 0; i < 3; i++) {
                CHECK(peer_write(&g, "\0\0\0\x09\4\0\0\0\1\1a", 11));
                CHECK(peer_write(&g, "bc", 2));
                check_recv(s, MUX_DATA, &e);
        }
        CHECK(peer_write(&g, "\0\7\0\0\4\0\0\0\1\1half", 14));
        int64_t began = monotonic_ns();
        CHECK(peer_frame(&g, WIRE_DATA, s->id, "\1swallowed", 10));
        CHECK_INT(rig_wait_lost(&g), -EPROTO);
        CHECK(monotonic_ns() - began >= (WIRE_FRAME_MS - 1000) * NSEC_PER_MSEC);
        check_recv(s, MUX_LOST, &e);
        mux_stream_unref(s);
        rig_stop(&g);
}

/* The peer sends, closes and is gone; our own write fails first. What it sent is still there. */
static void test_write_fails_before_reading(void) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        struct op op = op_timeout(LIMIT_MS);
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        struct mux_stream *s = rig_open(&g);
        pthread_mutex_lock(&g.m->lock); /* so that the thread does not read yet */
        CHECK(peer_frame(&g, WIRE_DATA, s->id, "\1last words", 11));
        g.peer = close_fd(g.peer);
        CHECK_INT(mux_append_locked(g.m, WIRE_PING, 0, "x", 1, NULL, 0), 0);
        CHECK(g.m->write_err != 0);
        pthread_mutex_unlock(&g.m->lock);
        CHECK_INT(mux_send_data(s, WIRE_CH_IN, "x", 1, &op), -ENOTCONN);
        check_recv(s, MUX_DATA, &e);
        CHECK_STR(e.data.data, "last words");
        check_recv(s, MUX_LOST, &e);
        CHECK(rig_wait_lost(&g) < 0);
        mux_stream_unref(s);
        rig_stop(&g);
}

/* A frame that is overdue ends the connection, but not when it was this process that did not run. */
static void test_overdue_or_overslept(void) {
        static const char half[] = {0, 0, 0, 20, WIRE_HELLO, 0};
        int sv[2];

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
        struct mux *m = mux_new(sv[0], MUX_HOST, NULL);
        REQUIRE(m && write(sv[1], half, sizeof(half)) == sizeof(half));
        CHECK_INT(mux_input(m), 0);
        CHECK_INT(mux_check_unfinished(m), 0);
        m->frame_due = (deadline_t){monotonic_ns() - MUX_OVERSLEPT_MS * NSEC_PER_MSEC};
        CHECK_INT(mux_check_unfinished(m), 0);
        CHECK(!deadline_passed(m->frame_due) && m->frame_due.at_ns <= deadline_in_ms(MUX_GRACE_MS).at_ns);
        m->frame_due = (deadline_t){monotonic_ns()};
        CHECK_INT(mux_check_unfinished(m), -EPROTO);
        mux_hold_drop(m);
        close_fd(sv[1]);
}

/* Whoever closes with a reason lets go of the stream afterwards: the peer is told once. */
static void test_one_close(void) {
        _cleanup_error_ struct error reason = ERROR_INIT;
        struct frame f;
        struct rig g;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        struct mux_stream *s = rig_open(&g);
        const uint32_t id = s->id;
        error_set(&reason, ERROR_TIMEOUT, "too late");
        CHECK(!mux_stream_ready(s));
        mux_close(s, &reason);
        CHECK(mux_stream_ready(s));
        mux_stream_unref(s);
        REQUIRE(peer_expect(&g, WIRE_CLOSE, id, &f));
        CHECK(memmem(f.payload, f.payload_len, "\"timeout\"", 9));
        check_alive(&g);
        rig_stop(&g);
}

static size_t memory_of_out(struct mux *m) {
        LOCK(&m->lock);
        return m->out.len + m->answers.len;
}

/* A peer that asks without end and never reads is stopped, not served: nothing grows, the connection stays. */
static void flood(int kind, uint32_t stream, const char *payload) {
        _cleanup_buf_ struct buf out = BUF_INIT(4u * 1024 * 1024);
        struct rig g;
        size_t sent = 0;

        REQUIRE(rig_start(&g, MUX_GUEST, HELLO));
        while (out.len < 60000)
                CHECK_INT(frame_encode(&out, (enum wire_kind) kind, stream, payload, strlen(payload), NULL, 0), 0);
        for (;;) {
                struct op op = op_timeout(300);
                size_t at = sent % out.len;

                if (wait_fd(g.peer, POLLOUT, &op) < 0)
                        break;
                ssize_t n = write(g.peer, out.data + at, out.len - at);
                REQUIRE(n > 0 || errno == EAGAIN);
                sent += n > 0 ? (size_t) n : 0;
                REQUIRE(sent < 64u * 1024 * 1024);
        }
        CHECK(memory_of_out(g.m) <= 2u * MUX_OUT_HIGH + 2u * MUX_ANSWERS_MAX);
        CHECK(!mux_is_lost(g.m));

        /* It reads at last: everything is answered, in frames that are whole, and the rest of what it sends is taken.
         */
        size_t at = sent % out.len;
        struct frame f = {0};
        CHECK_INT(frame_encode(&out, WIRE_PING, 0, "end", 3, NULL, 0), 0);
        while (f.kind != WIRE_PONG || f.payload_len != 3) {
                ssize_t n = at < out.len ? write(g.peer, out.data + at, out.len - at) : 0;

                if (n > 0)
                        at += (size_t) n;
                else
                        REQUIRE(peer_next(&g, &f));
        }
        rig_stop(&g);
}

static void test_flood_of_pings(void) {
        flood(WIRE_PING, 0, "0123456789012345678901234567890123456789");
}

static void test_flood_of_opens(void) {
        flood(WIRE_OPEN, 2, "{\"type\":\"x\"}");
}

/* Closes cannot wait for room: whoever lets too many of them pile up loses the connection. */
static void test_out_is_bounded(void) {
        _cleanup_free_ char *big = calloc(1, WIRE_FRAME_MAX);
        struct rig g;
        int r = 0;

        REQUIRE(rig_start(&g, MUX_HOST, HELLO));
        pthread_mutex_lock(&g.m->lock);
        for (int i = 0; i < 10 && r == 0; i++)
                r = mux_append_locked(g.m, WIRE_CLOSE, 9, big, WIRE_FRAME_MAX - 5, NULL, 0);
        pthread_mutex_unlock(&g.m->lock);
        CHECK_INT(r, -ENOTCONN);
        CHECK_INT(rig_wait_lost(&g), -ENOBUFS);
        rig_stop(&g);
}

/* Bytes that were read behind the handshake come first. */
static void test_early_bytes(void) {
        _cleanup_buf_ struct buf early = BUF_INIT(1024);
        _cleanup_json_ json_t *hello = NULL;
        struct op op = op_timeout(LIMIT_MS);
        struct mux *m = NULL;
        int sv[2];

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
        CHECK_INT(frame_encode(&early, WIRE_HELLO, 0, HELLO, strlen(HELLO), NULL, 0), 0);
        CHECK_INT(mux_start(sv[0], MUX_GUEST, early.data, early.len, NULL, NULL, &m, NULL), 0);
        CHECK_INT(mux_hello(m, &op, &hello, NULL), 0);
        mux_unref(m);
        close_fd(sv[1]);
}

/* The fd is taken over also when nothing can be started with it. */
static void test_start_fails(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *early = calloc(1, 2 * WIRE_FRAME_MAX);
        struct mux *m = NULL;
        int sv[2];
        char byte;

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
        CHECK_INT(mux_start(sv[0], MUX_GUEST, early, 2 * WIRE_FRAME_MAX, NULL, NULL, &m, &err), -ENOBUFS);
        CHECK(error_is_set(&err) && m == NULL);
        CHECK_INT(read(sv[1], &byte, 1), 0);
        close_fd(sv[1]);
}

int main(void) {
        RUN(test_bad_lengths);
        RUN(test_hello_must_be_first);
        RUN(test_version);
        RUN(test_credit_overrun);
        RUN(test_credit_returned);
        RUN(test_message_limit);
        RUN(test_message_bytes);
        RUN(test_broken_messages);
        RUN(test_broken_stream_frames);
        RUN(test_unknown);
        RUN(test_open_refused);
        RUN(test_windows);
        RUN(test_close_reasons);
        RUN(test_long_reason);
        RUN(test_gone_in_mid_frame);
        RUN(test_a_frame_without_end);
        RUN(test_overdue_or_overslept);
        RUN(test_one_close);
        RUN(test_write_fails_before_reading);
        RUN(test_flood_of_pings);
        RUN(test_flood_of_opens);
        RUN(test_out_is_bounded);
        RUN(test_early_bytes);
        RUN(test_start_fails);
        return tap_done();
}
