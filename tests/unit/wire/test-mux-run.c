/* SPDX-License-Identifier: Apache-2.0 */
/* A guest's connection as the agent runs it: the hello that waits for the host's, a new host's handshake in the place
 * of a frame or in the middle of one, and what is left of secrets in memory. The host is a bare socket. */

#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/io.h"
#include "base/json.h"
#include "base/thread.h"
#include "tap.h"
#include "wire/handshake.h"
#include "wire/mux_internal.h"

#define LIMIT_MS 20000
#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define HELLO "{\"type\":\"hello\",\"version\":" TEXT(WIRE_VERSION) ",\"session\":\"told\"}"
#define PREAMBLE "agentiso-host-1\n0123456789abcdef"
#define SECRET "correct-horse-battery-staple"

struct guest {
        pthread_t thread;
        int fd, stop_fd;
        int host;         /* the socket's other end */
        struct buf bytes; /* early, then what is left */
        int result;

        pthread_mutex_t lock; /* guards the rest */
        pthread_cond_t cond;
        char session[16]; /* of the host's hello */
        int opened, lost_err;
        struct mux_stream *stream; /* the last that was opened */
};

static void guest_greeted(void *arg, json_t *theirs, json_t *ours) {
        struct guest *g = arg;
        LOCK(&g->lock);

        snprintf(g->session, sizeof(g->session), "%s", json_string_value(json_object_get(theirs, "session")));
        CHECK_INT(json_put(ours, "answer", json_string(g->session)), 0);
}

static void guest_opened(void *arg, struct mux_stream *s, json_t *request) {
        struct guest *g = arg;
        LOCK(&g->lock);

        json_decref(request);
        mux_stream_unref(g->stream);
        g->stream = s;
        g->opened++;
        pthread_cond_broadcast(&g->cond);
}

static void guest_lost(void *arg, int err) {
        struct guest *g = arg;
        LOCK(&g->lock);

        g->lost_err = err;
        pthread_cond_broadcast(&g->cond);
}

static void *guest_main(void *arg) {
        struct guest *g = arg;
        const struct mux_callbacks cb = {
                .greeted = guest_greeted, .opened = guest_opened, .lost = guest_lost, .arg = g};

        g->result = mux_run(g->fd, MUX_GUEST, &cb, g->stop_fd, &g->bytes, NULL);
        return NULL;
}

static void guest_start(struct guest *g, const void *early, size_t n) {
        int sv[2];

        *g = (struct guest){.stop_fd = eventfd(0, EFD_CLOEXEC), .bytes = BUF_INIT(1 << 20)};
        pthread_mutex_init(&g->lock, NULL);
        cond_init(&g->cond);
        if (g->stop_fd < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0 ||
            buf_append(&g->bytes, early, n) < 0)
                abort();
        g->fd = sv[0];
        g->host = sv[1];
        (void) fd_set_nonblock(g->host, true);
        if (thread_start(&g->thread, "guest", guest_main, g) < 0)
                abort();
}

/* Waits for its end, and makes it end in the end. */
static void guest_join(struct guest *g) {
        const deadline_t d = deadline_in_ms(LIMIT_MS);

        pthread_mutex_lock(&g->lock);
        while (g->lost_err == 0 && cond_wait_until(&g->cond, &g->lock, d) == 0)
                ;
        pthread_mutex_unlock(&g->lock);
        eventfd_write(g->stop_fd, 1);
        pthread_join(g->thread, NULL);
        CHECK_INT(g->result, 0);
}

static void guest_end(struct guest *g) {
        mux_stream_unref(g->stream);
        buf_free(&g->bytes);
        close_fd(g->host);
        close_fd(g->stop_fd);
        pthread_cond_destroy(&g->cond);
        pthread_mutex_destroy(&g->lock);
}

static bool host_write(struct guest *g, const void *data, size_t n) {
        const struct op op = op_timeout(LIMIT_MS);

        return write_full(g->host, data, n, &op) == 0;
}

static bool host_frame(struct guest *g, enum wire_kind kind, uint32_t stream, const void *payload, size_t n) {
        _cleanup_buf_ struct buf out = BUF_INIT(2 * WIRE_FRAME_MAX);

        return frame_encode(&out, kind, stream, payload, n, NULL, 0) == 0 && host_write(g, out.data, out.len);
}

static bool host_hello(struct guest *g) {
        return host_frame(g, WIRE_HELLO, 0, HELLO, strlen(HELLO));
}

/* The next frame's payload as text; NULL: none came. */
static char *host_read(struct guest *g, enum wire_kind kind) {
        const struct op op = op_timeout(LIMIT_MS);
        uint8_t head[WIRE_HEADER_LEN];

        if (read_full(g->host, head, sizeof(head), &op) < 0 || head[4] != kind)
                return NULL;
        const size_t n = ((size_t) head[2] << 8 | head[3]) - (WIRE_HEADER_LEN - 4);
        char *text = calloc(1, n + 1);
        if (text && read_full(g->host, text, n, &op) < 0) {
                free(text);
                return NULL;
        }
        return text;
}

/* Waits until a stream was opened, and takes it. */
static struct mux_stream *guest_stream(struct guest *g) {
        const deadline_t d = deadline_in_ms(LIMIT_MS);
        LOCK(&g->lock);

        while (!g->stream && cond_wait_until(&g->cond, &g->lock, d) == 0)
                ;
        return TAKE_PTR(g->stream);
}

/* ---- the hello ---- */

static void test_the_hello_waits_for_the_hosts(void) {
        _cleanup_free_ char *hello = NULL;
        struct guest g;
        char byte;

        guest_start(&g, NULL, 0);
        CHECK(recv(g.host, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
        CHECK(host_hello(&g));
        hello = host_read(&g, WIRE_HELLO);
        CHECK(hello && strstr(hello, "\"answer\":\"told\"") && strstr(hello, "\"version\":" TEXT(WIRE_VERSION)));
        close_fd(TAKE_FD(g.host));
        guest_join(&g);
        CHECK_INT(g.lost_err, -ENODATA);
        CHECK_INT(g.bytes.len, 0);
        guest_end(&g);
}

static void test_a_host_that_does_not_greet(void) {
        struct guest g;
        char byte;

        guest_start(&g, NULL, 0);
        CHECK(host_frame(&g, WIRE_PING, 0, "12345678", 8));
        guest_join(&g);
        CHECK_INT(g.lost_err, -EPROTO);
        CHECK_INT(read(g.host, &byte, 1), 0); /* nothing was said */
        guest_end(&g);
}

static void test_it_ends_when_it_is_told_to(void) {
        struct guest g;

        guest_start(&g, NULL, 0);
        CHECK(host_hello(&g));
        free(host_read(&g, WIRE_HELLO));
        CHECK_INT(eventfd_write(g.stop_fd, 1), 0);
        guest_join(&g);
        CHECK_INT(g.lost_err, -ESHUTDOWN);
        guest_end(&g);
}

/* ---- a new host ---- */

static void test_a_handshake_in_the_place_of_a_frame(void) {
        _cleanup_buf_ struct buf early = BUF_INIT(1024);
        struct guest g;

        /* Whether it comes alone, behind the end of a frame, or at once. */
        CHECK_INT(frame_encode(&early, WIRE_HELLO, 0, HELLO, strlen(HELLO), NULL, 0), 0);
        CHECK_INT(buf_append_str(&early, PREAMBLE), 0);
        for (int i = 0; i < 3; i++) {
                guest_start(&g, i == 0 ? NULL : early.data, i == 0 ? 0 : early.len - (i == 1 ? HANDSHAKE_LEN : 0));
                if (i == 0)
                        CHECK(host_write(&g, early.data, early.len));
                if (i == 1)
                        CHECK(host_write(&g, PREAMBLE, HANDSHAKE_LEN));
                guest_join(&g);
                CHECK_INT(g.lost_err, -EBADMSG);
                CHECK_STR(g.bytes.data, PREAMBLE);
                guest_end(&g);
        }
}

/* Much more than the handshake comes with it: all of it is there afterwards. */
static void test_all_that_is_left_is_handed_over(void) {
        const size_t n = 40000;
        _cleanup_free_ char *zeros = calloc(1, n + HANDSHAKE_LEN + 1);
        struct guest g;

        memcpy(zeros + n, PREAMBLE, HANDSHAKE_LEN);
        guest_start(&g, NULL, 0);
        CHECK(host_hello(&g));
        CHECK(host_write(&g, zeros, n + HANDSHAKE_LEN));
        guest_join(&g);
        CHECK_INT(g.lost_err, -EBADMSG);
        REQUIRE(g.bytes.len >= HANDSHAKE_LEN);
        CHECK_STR(g.bytes.data + g.bytes.len - HANDSHAKE_LEN, PREAMBLE);
        guest_end(&g);
}

/* The head of a frame of data, of n bytes, on the first stream. */
static void frame_head(size_t n, uint8_t head[WIRE_HEADER_LEN + 1]) {
        const size_t length = WIRE_HEADER_LEN - 4 + 1 + n;
        const uint8_t bytes[] = {
                0,         (uint8_t) (length >> 16), (uint8_t) (length >> 8), (uint8_t) length, WIRE_DATA, 0, 0, 0, 1,
                WIRE_CH_IN};

        memcpy(head, bytes, sizeof(bytes));
}

static void begin_stream(struct guest *g, struct mux_stream **ret) {
        guest_start(g, NULL, 0);
        CHECK(host_hello(g));
        CHECK(host_frame(g, WIRE_OPEN, 1, "{\"type\":\"x\"}", 12));
        *ret = guest_stream(g);
}

/* The old host was cut off in a frame. Its beginning never becomes one: no stream is given a byte of it. */
static void test_a_handshake_in_the_middle_of_a_frame(void) {
        static const size_t sent[] = {0, 1, 1000, 50000};
        uint8_t head[WIRE_HEADER_LEN + 1], piece[50000];
        const struct op op = op_timeout(LIMIT_MS);

        memset(piece, 'a', sizeof(piece));
        frame_head(sizeof(piece) + HANDSHAKE_LEN + 1, head);
        for (size_t i = 0; i < ARRAY_SIZE(sent); i++) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
                struct mux_stream *s;
                struct guest g;

                begin_stream(&g, &s);
                REQUIRE(s);
                CHECK(host_write(&g, head, sizeof(head)));
                CHECK(host_write(&g, piece, sent[i]));
                CHECK(host_write(&g, PREAMBLE, HANDSHAKE_LEN));
                guest_join(&g);
                CHECK_INT(g.lost_err, -EBADMSG);
                CHECK_STR(g.bytes.data, PREAMBLE);
                CHECK_INT(mux_recv(s, &op, &e), 0);
                CHECK_INT(e.kind, MUX_LOST);
                mux_stream_unref(s);
                guest_end(&g);
        }
}

/* In the head of a frame, whose length with what follows makes one that could be. */
static void test_a_handshake_in_the_head_of_a_frame(void) {
        static const uint8_t half[] = {0, 1};
        struct mux_stream *s;
        struct guest g;

        begin_stream(&g, &s);
        CHECK(host_write(&g, half, sizeof(half)));
        CHECK(host_write(&g, PREAMBLE, HANDSHAKE_LEN));
        guest_join(&g);
        CHECK_STR(g.bytes.data, PREAMBLE);
        mux_stream_unref(s);
        guest_end(&g);
}

/* A file that merely holds such bytes arrives as it is, though they are the last for now. */
static void test_data_that_look_like_a_handshake(void) {
        _cleanup_buf_ struct buf hello = BUF_INIT(1024);
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        const struct op op = op_timeout(LIMIT_MS);
        uint8_t head[WIRE_HEADER_LEN + 1];
        int sv[2];

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
        struct mux *m = mux_new(sv[0], MUX_GUEST, NULL);
        struct mux_stream *s = NULL;
        REQUIRE(m && frame_encode(&hello, WIRE_HELLO, 0, HELLO, strlen(HELLO), NULL, 0) == 0);
        pthread_mutex_lock(&m->lock);
        CHECK_INT(stream_new_locked(m, 1, WIRE_WINDOW, &s), 0);
        pthread_mutex_unlock(&m->lock);
        frame_head(2 * HANDSHAKE_LEN, head);
        CHECK_INT(write(sv[1], hello.data, hello.len), (ssize_t) hello.len);
        CHECK_INT(mux_input(m), 0);

        CHECK_INT(write(sv[1], head, sizeof(head)), sizeof(head));
        CHECK_INT(write(sv[1], PREAMBLE, HANDSHAKE_LEN), HANDSHAKE_LEN);
        CHECK_INT(mux_input(m), 0);
        CHECK_INT(mux_check_unfinished(m), 0);
        CHECK(m->quiet_due.at_ns <= deadline_in_ms(MUX_QUIET_MS).at_ns);
        /* Just in time; and again, behind more bytes, with the whole time. */
        CHECK_INT(write(sv[1], PREAMBLE, HANDSHAKE_LEN - 1), HANDSHAKE_LEN - 1);
        CHECK_INT(mux_input(m), 0);
        m->quiet_due = (deadline_t){monotonic_ns() - 1};
        CHECK_INT(mux_check_unfinished(m), 0);
        CHECK_INT(m->quiet_due.at_ns, DEADLINE_NEVER.at_ns);
        CHECK_INT(write(sv[1], "f", 1), 1);
        CHECK_INT(mux_input(m), 0);
        CHECK_INT(mux_check_unfinished(m), 0);
        REQUIRE(mux_recv(s, &op, &e) == 0 && e.kind == MUX_DATA);
        CHECK_INT(e.data.len, 2 * HANDSHAKE_LEN);
        CHECK(memcmp(e.data.data, PREAMBLE PREAMBLE, 2 * HANDSHAKE_LEN) == 0);

        /* What was never followed is one. */
        CHECK_INT(write(sv[1], head, sizeof(head)), sizeof(head));
        CHECK_INT(write(sv[1], PREAMBLE, HANDSHAKE_LEN), HANDSHAKE_LEN);
        CHECK_INT(mux_input(m), 0);
        CHECK_INT(mux_check_unfinished(m), 0);
        m->quiet_due = (deadline_t){monotonic_ns() - 1};
        CHECK_INT(mux_check_unfinished(m), -EBADMSG);
        mux_end(m, -EBADMSG);
        mux_stream_unref(s);
        mux_hold_drop(m);
        close_fd(sv[1]);
}

/* ---- secrets ---- */

static bool holds_secret(const struct buf *b) {
        return b->data && memmem(b->data, b->cap, SECRET, strlen(SECRET));
}

/* A host that has sent requests: at once, or after they had to wait among others. */
static void test_a_request_that_was_sent_is_wiped(void) {
        _cleanup_json_ json_t *request = json_pack("{s:s, s:s}", "type", "set_env", "value", SECRET);
        _cleanup_free_ char *filler = malloc(200000);
        _cleanup_buf_ struct buf got = BUF_INIT(4u << 20);
        struct op op = op_timeout(LIMIT_MS);
        struct mux_stream *s = NULL, *t = NULL;
        int sv[2], small = 4096;

        REQUIRE(filler && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
        REQUIRE(setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)) == 0);
        struct mux *m = mux_new(sv[0], MUX_HOST, NULL);
        REQUIRE(m && mux_open(m, request, &op, &s, NULL) == 0);
        CHECK(!holds_secret(&m->out));

        /* Nobody reads: the next ones wait, and the buffer grows under them. */
        memset(filler, 'x', 200000);
        CHECK_INT(mux_send_data(s, WIRE_CH_IN, filler, 200000, &op), 0);
        CHECK_INT(mux_open(m, request, &op, &t, NULL), 0);
        CHECK(holds_secret(&m->out));
        CHECK_INT(mux_send_data(t, WIRE_CH_IN, filler, 50000, &op), 0);
        while (mux_waiting_locked(m) > 0) {
                char piece[65536];
                ssize_t n = read(sv[1], piece, sizeof(piece));

                if (n > 0)
                        CHECK_INT(buf_append(&got, piece, (size_t) n), 0);
                pthread_mutex_lock(&m->lock);
                mux_flush_locked(m);
                pthread_mutex_unlock(&m->lock);
        }
        CHECK(holds_secret(&got) && !holds_secret(&m->out));
        mux_end(m, -ESHUTDOWN);
        mux_stream_unref(s);
        mux_stream_unref(t);
        mux_hold_drop(m);
        close_fd(sv[1]);
}

static void take_stream(void *arg, struct mux_stream *s, json_t *request) {
        json_decref(request);
        mux_stream_unref(s);
}

static void test_a_request_that_was_taken_in_is_wiped(void) {
        static const char hello[] = "{\"type\":\"hello\",\"session\":\"" SECRET "\"}",
                          request[] = "{\"type\":\"configure\",\"session\":\"" SECRET "\"}";
        const struct mux_callbacks cb = {.opened = take_stream};
        _cleanup_buf_ struct buf frames = BUF_INIT(4096);
        int sv[2];

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
        struct mux *m = mux_new(sv[0], MUX_GUEST, &cb);
        REQUIRE(m);
        CHECK_INT(frame_encode(&frames, WIRE_HELLO, 0, hello, sizeof(hello) - 1, NULL, 0), 0);
        CHECK_INT(frame_encode(&frames, WIRE_OPEN, 1, request, sizeof(request) - 1, NULL, 0), 0);
        CHECK_INT(write(sv[1], frames.data, frames.len), (ssize_t) frames.len);
        CHECK_INT(mux_input(m), 0);
        CHECK(m->decoder.in.data && !holds_secret(&m->decoder.in));
        mux_end(m, -ESHUTDOWN);
        mux_hold_drop(m);
        close_fd(sv[1]);
}

int main(void) {
        RUN(test_the_hello_waits_for_the_hosts);
        RUN(test_a_host_that_does_not_greet);
        RUN(test_it_ends_when_it_is_told_to);
        RUN(test_a_handshake_in_the_place_of_a_frame);
        RUN(test_all_that_is_left_is_handed_over);
        RUN(test_a_handshake_in_the_middle_of_a_frame);
        RUN(test_a_handshake_in_the_head_of_a_frame);
        RUN(test_data_that_look_like_a_handshake);
        RUN(test_a_request_that_was_sent_is_wiped);
        RUN(test_a_request_that_was_taken_in_is_wiped);
        return tap_done();
}
