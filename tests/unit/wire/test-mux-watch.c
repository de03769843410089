/* SPDX-License-Identifier: Apache-2.0 */
/* Streams that are waited for in poll(), and how much can be sent without a wait. */
#include <poll.h>
#include <sys/socket.h>

#include "base/json.h"
#include "tap.h"
#include "wire/mux_internal.h"

#define LIMIT_MS 60000
#define WINDOW (4 * WIRE_WINDOW_MIN)

/* Host and guest, and one stream between them. */
static struct mux *host, *guest;
static struct mux_stream *ours, *theirs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards theirs */
static pthread_cond_t came;

static void opened(void *arg, struct mux_stream *s, json_t *request) {
        json_decref(request);
        LOCK(&lock);
        theirs = s;
        pthread_cond_broadcast(&came);
}

static bool begin(void) {
        _cleanup_json_ json_t *request = json_pack("{s:s, s:i}", "type", "x", "window", (int) WINDOW);
        const struct mux_callbacks cb = {.opened = opened};
        struct op op = op_timeout(LIMIT_MS);
        int sv[2];

        cond_init(&came);
        theirs = NULL;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0 ||
            mux_start(sv[0], MUX_HOST, NULL, 0, NULL, NULL, &host, NULL) < 0 ||
            mux_start(sv[1], MUX_GUEST, NULL, 0, NULL, &cb, &guest, NULL) < 0 ||
            mux_open(host, request, &op, &ours, NULL) < 0)
                return false;
        LOCK(&lock);
        while (!theirs && cond_wait_until(&came, &lock, op.deadline) == 0)
                ;
        return theirs != NULL;
}

static void end(void) {
        mux_stream_unref(TAKE_PTR(ours));
        mux_stream_unref(TAKE_PTR(theirs));
        mux_unref(TAKE_PTR(host));
        mux_unref(TAKE_PTR(guest));
        pthread_cond_destroy(&came);
}

static bool told(int watch, int ms) {
        struct pollfd p = {.fd = watch, .events = POLLIN};

        return poll(&p, 1, ms) == 1;
}

/* Takes at least n bytes, as the other side's application. */
static void take(struct mux_stream *s, size_t n) {
        struct op op = op_timeout(LIMIT_MS);

        for (size_t got = 0; got < n;) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

                REQUIRE(mux_recv(s, &op, &e) == 0 && e.kind == MUX_DATA);
                got += e.data.len;
        }
}

static void test_room_is_the_credit(void) {
        static const char zeros[WINDOW];
        struct op op = op_timeout(LIMIT_MS);

        REQUIRE(begin());
        const int watch = mux_watch(ours);
        CHECK(watch >= 0 && mux_watch(ours) == watch);
        CHECK_INT(mux_send_room(ours), WINDOW);
        CHECK_INT(mux_send_data(ours, WIRE_CH_IN, zeros, WINDOW - 1, &op), 0);
        CHECK_INT(mux_send_room(ours), 1);
        CHECK_INT(mux_send_data(ours, WIRE_CH_IN, zeros, 1, &op), 0);
        mux_watch_clear(ours);
        CHECK_INT(mux_send_room(ours), 0);
        CHECK(!told(watch, 0));
        take(theirs, WINDOW);
        CHECK(told(watch, LIMIT_MS));
        CHECK(mux_send_room(ours) >= (int) WINDOW / 4);
        end();
}

static void test_news(void) {
        struct op op = op_timeout(LIMIT_MS);

        REQUIRE(begin());
        const int watch = mux_watch(theirs);
        CHECK(told(watch, 0)); /* what came before is to be looked at as well */
        mux_watch_clear(theirs);
        CHECK(!told(watch, 0) && !mux_stream_ready(theirs));
        CHECK_INT(mux_send_data(ours, WIRE_CH_IN, "x", 1, &op), 0);
        CHECK(told(watch, LIMIT_MS) && mux_stream_ready(theirs));
        take(theirs, 1);
        mux_watch_clear(theirs);
        CHECK(!told(watch, 0));
        mux_close(ours, NULL);
        CHECK(told(watch, LIMIT_MS) && mux_stream_ready(theirs) && !mux_stream_broken(theirs));
        CHECK_INT(mux_send_room(theirs), -EPIPE);
        end();
}

static void test_broken(void) {
        _cleanup_error_ struct error why = ERROR_INIT;

        REQUIRE(begin());
        int watch = mux_watch(theirs);
        mux_watch_clear(theirs);
        error_set(&why, ERROR_CONFLICT, "because");
        mux_close(ours, &why);
        CHECK(told(watch, LIMIT_MS) && mux_stream_broken(theirs));
        end();

        REQUIRE(begin());
        watch = mux_watch(theirs);
        mux_watch_clear(theirs);
        mux_shutdown(host, -ESHUTDOWN);
        CHECK(told(watch, LIMIT_MS));
        CHECK(mux_stream_broken(theirs));
        CHECK_INT(mux_send_room(theirs), -ENOTCONN);
        end();
}

/* A channel that takes nothing makes others wait as well; whoever watches hears when it does again. */
static void test_room_in_the_channel(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_json_ json_t *request = json_pack("{s:s}", "type", "x");
        static const char zeros[WIRE_DATA_CHUNK];
        static char scratch[65536];
        int sv[2];

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
        REQUIRE(mux_start(sv[0], MUX_HOST, NULL, 0, NULL, NULL, &host, NULL) == 0);
        REQUIRE(mux_open(host, request, &op, &ours, NULL) == 0);
        const int watch = mux_watch(ours);
        /* Each stream has its own credit; more of them until the channel is full. */
        struct mux_stream *more[8];
        for (size_t i = 0; i < ARRAY_SIZE(more); i++) {
                REQUIRE(mux_open(host, request, &op, &more[i], NULL) == 0);
                while (mux_send_room(more[i]) > 0)
                        REQUIRE(mux_send_data(more[i], WIRE_CH_IN, zeros, (size_t) mux_send_room(more[i]), &op) == 0);
        }
        mux_watch_clear(ours);
        CHECK_INT(mux_send_room(ours), 0);
        CHECK(!told(watch, 0));
        while (!told(watch, 0)) {
                struct pollfd p[] = {{.fd = sv[1], .events = POLLIN}, {.fd = watch, .events = POLLIN}};
                REQUIRE(poll(p, ARRAY_SIZE(p), LIMIT_MS) > 0);
                REQUIRE(!p[0].revents || read(sv[1], scratch, sizeof(scratch)) > 0);
        }
        CHECK(mux_send_room(ours) > 0);
        close(sv[1]);
        for (size_t i = 0; i < ARRAY_SIZE(more); i++)
                mux_stream_unref(more[i]);
        mux_stream_unref(TAKE_PTR(ours));
        mux_unref(TAKE_PTR(host));
}

int main(void) {
        RUN(test_room_is_the_credit);
        RUN(test_news);
        RUN(test_broken);
        RUN(test_room_in_the_channel);
        return tap_done();
}
