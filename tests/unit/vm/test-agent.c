/* SPDX-License-Identifier: Apache-2.0 */
/* The host's agent client against a guest that lies, stalls or dies: the connection, and files. Commands and jobs have
 * tests of their own. */
#include "base/io.h"
#include "base/thread.h"
#include "talk.h"
#include "tap.h"
#include "wire/frame.h"

static void test_errors_of_the_guest(void) {
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_script));
        script = "{\"type\":\"error\",\"code\":\"not_found\",\"message\":\"/x: no such file\",\"hint\":\"Look.\"}";
        CHECK_INT(agent_mount_root(agent, patience(), &e), -ENOENT);
        CHECK_INT(e.code, ERROR_NOT_FOUND);
        CHECK_STR(error_message(&e), "/x: no such file");
        CHECK_STR(e.hint, "Look.");
        /* Our own rules are not the guest's to speak for. */
        script = "{\"type\":\"error\",\"code\":\"rate_limited\",\"message\":\"pay\"}";
        CHECK(agent_mount_root(agent, patience(), &e) < 0);
        CHECK_INT(e.code, ERROR_INTERNAL);
        script = "{\"type\":\"error\",\"code\":\"conflict\",\"message\":\"a\\u001b[2Jb\\n\\u007fc\\u009bd\"}";
        CHECK(agent_mount_root(agent, patience(), &e) < 0);
        CHECK_STR(error_message(&e), "a [2Jb\n c  d");
        end();
}

static void play_stall(struct mux_stream *s, const json_t *request) {
        until_closed(s);
}

static void test_deadline_and_cancel(void) {
        struct op op = op_timeout(100);
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_stall));
        CHECK_INT(agent_mount_root(agent, &op, &e), -ETIMEDOUT);
        CHECK_INT(e.code, ERROR_TIMEOUT);
        op = *patience();
        op.cancel = cancel_new();
        cancel_fire(op.cancel);
        CHECK_INT(agent_mount_root(agent, &op, &e), -ECANCELED);
        CHECK_INT(e.code, ERROR_CANCELLED);
        cancel_unref(op.cancel);
        end();
}

static void *hang_up_later(void *arg) {
        const struct op op = op_timeout(100);

        (void) wait_fd(-1, 0, &op);
        hang_up();
        return NULL;
}

static void test_lost_connection(void) {
        _cleanup_error_ struct error e = ERROR_INIT;
        pthread_t thread;

        REQUIRE(begin(play_stall));
        REQUIRE(thread_start(&thread, "hang-up", hang_up_later, NULL) >= 0);
        CHECK(agent_mount_root(agent, patience(), &e) < 0);
        CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        pthread_join(thread, NULL);
        CHECK(agent_is_lost(agent));
        error_clear(&e);
        CHECK(agent_mount_root(agent, patience(), &e) < 0);
        CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        end();
}

/* A guest that says more than its answer: which of it is true cannot be known. */
static void test_more_than_an_answer(void) {
        static const char *const lies[] = {
                "{\"type\":\"ok\"}\n{\"type\":\"ok\"}",
                "{\"type\":\"ok\"}\n!late",
                "{\"type\":\"ok\"}\n.",
                "{\"type\":\"ok\"}\n{\"type\":\"error\",\"code\":\"internal\",\"message\":\"no\"}",
                "{\"type\":\"ok\"}\n{\"no\":\"type\"}",
                "!early\n{\"type\":\"ok\"}",
                ".\n{\"type\":\"ok\"}",
                "{\"type\":\"exit\"}",
        };
        int64_t ns = 0;

        REQUIRE(begin(play_script));
        for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
                _cleanup_error_ struct error e = ERROR_INIT;

                script = lies[i];
                CHECK_INT(agent_mount_root(agent, patience(), &e), -EPROTO);
                CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        }
        script = "{\"type\":\"ok\"}";
        CHECK_INT(agent_mount_root(agent, patience(), NULL), 0);
        CHECK(!agent_is_lost(agent));
        CHECK_INT(agent_ping(agent, patience(), &ns, NULL), 0);
        end();
}

static void play_close_with_reason(struct mux_stream *s, const json_t *request) {
        _cleanup_error_ struct error e = ERROR_INIT;

        tell(s, "{\"type\":\"ok\"}");
        error_set(&e, ERROR_INTERNAL, "second\033[2J thoughts");
        mux_close(s, &e);
}

static void test_reason_behind_an_answer(void) {
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_close_with_reason));
        CHECK_INT(agent_mount_root(agent, patience(), &e), -EPROTO);
        CHECK(strstr(error_message(&e), "second [2J thoughts"));
        end();
}

static void play_no_close(struct mux_stream *s, const json_t *request) {
        tell(s, "{\"type\":\"ok\"}");
        until_closed(s);
}

static void test_stream_that_stays_open(void) {
        const struct op op = op_timeout(100);

        REQUIRE(begin(play_no_close));
        CHECK_INT(agent_mount_root(agent, &op, NULL), -ETIMEDOUT);
        /* This one waits for us to close. */
        CHECK_INT(agent_shutdown(agent, patience(), NULL), 0);
        end();
}

/* --- frames beside the multiplexer --- */

static bool write_raw(const void *data, size_t n) {
        return write_full(guest_raw_fd(), data, n, patience()) >= 0;
}

static void test_frames_that_belong_to_nobody(void) {
        static const uint8_t kinds[] = {WIRE_MSG, WIRE_DATA, WIRE_EOF, WIRE_CREDIT, WIRE_CLOSE, 77};
        static const uint32_t streams[] = {8, 9999, 0x80000001};
        _cleanup_buf_ struct buf frames = BUF_INIT(1 << 20);
        int64_t ns = 0;

        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
                for (size_t k = 0; k < ARRAY_SIZE(streams); k++)
                        CHECK_INT(frame_encode(&frames, kinds[i], streams[k], "\1junk", 5, NULL, 0), 0);
        REQUIRE(begin(play_script));
        script = "{\"type\":\"ok\"}";
        for (unsigned i = 0; i < 3; i++) {
                CHECK(write_raw(frames.data, frames.len));
                CHECK_INT(agent_mount_root(agent, patience(), NULL), 0);
        }
        CHECK_INT(agent_ping(agent, patience(), &ns, NULL), 0);
        end();
}

static void test_half_a_frame(void) {
        static const uint8_t half[] = {0, 0, 200, 0, WIRE_DATA, 0, 0, 0, 1, 'x'};
        struct op op;

        REQUIRE(begin(play_stall));
        CHECK(write_raw(half, sizeof(half)));
        op = op_timeout(100);
        CHECK_INT(agent_mount_root(agent, &op, NULL), -ETIMEDOUT);
        op = *patience();
        op.cancel = cancel_new();
        cancel_fire(op.cancel);
        CHECK_INT(agent_mount_root(agent, &op, NULL), -ECANCELED);
        cancel_unref(op.cancel);
        end();
}

static void test_frame_of_impossible_length(void) {
        static const uint8_t huge[] = {0xff, 0xff, 0xff, 0xf0, WIRE_DATA, 0, 0, 0, 1};
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_stall));
        CHECK(write_raw(huge, sizeof(huge)));
        CHECK(agent_mount_root(agent, patience(), &e) < 0);
        CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        CHECK(agent_is_lost(agent));
        end();
}

/* --- files, played --- */

static void test_read_refuses_lies(void) {
        static const char *const lies[] = {
                "{\"type\":\"ok\",\"size\":-1}",
                "{\"type\":\"ok\"}",
                "{\"type\":\"ok\",\"size\":4}\n!toomuch\n{\"type\":\"end\",\"bytes\":7,\"truncated\":false}",
                "{\"type\":\"ok\",\"size\":4}\n!abc\n{\"type\":\"end\",\"bytes\":4,\"truncated\":false}",
                "{\"type\":\"ok\",\"size\":4}\n!abc\n{\"type\":\"end\",\"bytes\":3}",
                "{\"type\":\"ok\",\"size\":4}\n!abc",
                "!abc",
        };
        const struct agent_read_args args = {.path = "/x", .limit = 4};

        REQUIRE(begin(play_script));
        for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
                _cleanup_buf_ struct buf out = BUF_INIT(100);
                struct agent_read_result r = {0};

                buf_append_str(&out, "kept");
                script = lies[i];
                CHECK_INT(agent_file_read(agent, &args, patience(), &out, &r, NULL), -EPROTO);
                CHECK_STR(out.data, "kept");
        }
        script = "{\"type\":\"ok\",\"size\":9}\n!abcd\n{\"type\":\"end\",\"bytes\":4,\"truncated\":true}";
        _cleanup_buf_ struct buf out = BUF_INIT(3);
        struct agent_read_result r = {0};
        CHECK_INT(agent_file_read(agent, &args, patience(), &out, &r, NULL), -EFBIG);
        out.max = 4;
        CHECK_INT(agent_file_read(agent, &args, patience(), &out, &r, NULL), 0);
        CHECK_STR(out.data, "abcd");
        CHECK(r.size == 9 && r.bytes == 4 && r.truncated);
        end();
}

#define ENTRY "{\"name\":\"a\",\"kind\":\"file\",\"size\":1,\"permissions\":\"0644\",\"modified_ms\":0"

static void test_list_refuses_lies(void) {
        static const char *const lies[] = {
                "!" ENTRY "}",
                "!no json\n",
                "{\"type\":\"end\",\"count\":1,\"truncated\":false}",
                "{\"type\":\"end\",\"count\":0}",
        };
        json_t *got = NULL;
        bool truncated = false;

        REQUIRE(begin(play_script));
        for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
                script = lies[i];
                CHECK_INT(agent_file_list(agent, "/", false, 10, patience(), &got, &truncated, NULL), -EPROTO);
        }
        end();
}

/* More entries than were asked for. */
static void play_endless_list(struct mux_stream *s, const json_t *request) {
        while (mux_send_data(s, WIRE_CH_OUT, ENTRY "}\n", strlen(ENTRY "}\n"), patience()) >= 0)
                ;
}

static void play_endless_name(struct mux_stream *s, const json_t *request) {
        static char block[65536];

        memset(block, 'x', sizeof(block));
        while (mux_send_data(s, WIRE_CH_OUT, block, sizeof(block), patience()) >= 0)
                ;
}

static void test_endless_lists_are_bounded(void) {
        guest_play plays[] = {play_endless_list, play_endless_name};
        json_t *got = NULL;
        bool truncated = false;

        for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
                REQUIRE(begin(plays[i]));
                CHECK_INT(agent_file_list(agent, "/", false, 1000, patience(), &got, &truncated, NULL), -EPROTO);
                end();
        }
}

int main(void) {
        RUN(test_errors_of_the_guest);
        RUN(test_deadline_and_cancel);
        RUN(test_lost_connection);
        RUN(test_more_than_an_answer);
        RUN(test_reason_behind_an_answer);
        RUN(test_stream_that_stays_open);
        RUN(test_frames_that_belong_to_nobody);
        RUN(test_half_a_frame);
        RUN(test_frame_of_impossible_length);
        RUN(test_read_refuses_lies);
        RUN(test_list_refuses_lies);
        RUN(test_endless_lists_are_bounded);
        return tap_done();
}
