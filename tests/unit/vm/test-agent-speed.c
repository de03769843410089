/* SPDX-License-Identifier: Apache-2.0 */
/* The least speed of a transfer: linked with a copy of it that waits one second where the real one waits a minute. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"
#include "talk.h"
#include "tap.h"

#define CHUNK (64u * 1024u)
#define MIB (1024u * 1024u)

static int scratch(void) {
        int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

        if (fd < 0)
                abort();
        return fd;
}

static void pass_ms(int64_t ms) {
        const struct op op = op_timeout(ms);

        (void) wait_fd(-1, 0, &op);
}

/* A file in pieces, with a pause behind each. */
struct pieces {
        unsigned n;
        size_t len;
        int64_t pause_ms;
};
static struct pieces pieces;

static void play_pieces(struct mux_stream *s, const json_t *request) {
        static const char bytes[CHUNK];
        const unsigned size = pieces.n * (unsigned) pieces.len;
        _cleanup_free_ char *head = str_printf(
                "{\"type\":\"ok\",\"size\":%u,\"allocated\":%u,\"mode\":\"0644\",\"kind\":\"file\"}", size, size);
        _cleanup_free_ char *last = str_printf("{\"type\":\"end\",\"bytes\":%u,\"truncated\":false}", size);

        tell(s, head);
        for (unsigned i = 0; i < pieces.n; i++) {
                if (mux_send_data(s, WIRE_CH_OUT, bytes, pieces.len, patience()) < 0)
                        return;
                pass_ms(pieces.pause_ms);
        }
        (void) mux_send_eof(s, WIRE_CH_OUT, patience());
        tell(s, last);
}

static int download(const struct pieces *p, const struct op *op, struct error *err) {
        _cleanup_close_ int fd = scratch();
        struct agent_transfer t = {0};

        pieces = *p;
        if (!begin(play_pieces))
                abort();
        int r = agent_download(agent, "/x", fd, 8 * MIB, 8 * MIB, op, &t, err);
        end();
        return r;
}

static void test_a_guest_that_drips(void) {
        _cleanup_error_ struct error err = ERROR_INIT;

        CHECK_INT(download(&(struct pieces){.n = 30, .len = 1, .pause_ms = 100}, patience(), &err), -ETIMEDOUT);
        CHECK_INT(err.code, ERROR_TIMEOUT);
        CHECK(strstr(error_message(&err), "moved less than 64 KiB in 1 s"));
}

static void test_a_guest_that_is_slow(void) {
        CHECK_INT(download(&(struct pieces){.n = 8, .len = CHUNK, .pause_ms = 200}, patience(), NULL), 0);
}

/* Longer than the guest may take for all of it. */
static void take_time(void *arg, const char *message) {
        if (*message == '1')
                pass_ms(1300);
}

/* What the host itself needs does not count. */
static void test_a_host_that_is_slow(void) {
        struct op op = *patience();

        op.progress = take_time;
        CHECK_INT(download(&(struct pieces){.n = 33, .len = CHUNK / 2, .pause_ms = 10}, &op, NULL), 0);
}

static struct cancel *test_over;

/* Takes nothing until the test is over. */
static void play_asleep(struct mux_stream *s, const json_t *request) {
        struct op op = *patience();

        op.cancel = test_over;
        (void) wait_fd(-1, 0, &op);
}

static void test_a_guest_that_takes_nothing(void) {
        _cleanup_cancel_ struct cancel *cancel = test_over = cancel_new();
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int fd = scratch();
        struct agent_transfer t = {0};

        if (ftruncate(fd, MIB) < 0 || pwrite(fd, "x", 1, 0) != 1)
                abort();
        for (unsigned at = 0; at < MIB; at += 4096)
                if (pwrite(fd, "x", 1, at) != 1)
                        abort();
        REQUIRE(cancel && begin(play_asleep));
        CHECK_INT(agent_upload(agent, fd, "/x", 0644, patience(), &t, &err), -ETIMEDOUT);
        CHECK(strstr(error_message(&err), "moved less than 64 KiB in 1 s"));
        cancel_fire(cancel);
        end();
}

int main(void) {
        RUN(test_a_guest_that_drips);
        RUN(test_a_guest_that_is_slow);
        RUN(test_a_host_that_is_slow);
        RUN(test_a_guest_that_takes_nothing);
        return tap_done();
}
