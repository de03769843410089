/* SPDX-License-Identifier: Apache-2.0 */
/* The host's agent client against a guest that lies, stalls or dies, and against the real request handlers. */
#include <sys/socket.h>

#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "base/thread.h"
#include "guest-side.h"
#include "tap.h"
#include "vm/agent.h"

#define PATIENCE_MS 60000

static const struct op *patience(void) {
        static _Thread_local struct op op;

        op = op_timeout(PATIENCE_MS);
        return &op;
}

static struct guest_side *guest;
static struct agent *agent;

static bool begin(guest_play play) {
        int fds[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                return false;
        guest = guest_side_start(fds[1], play);
        return agent_open(fds[0], patience(), &agent, NULL) >= 0;
}

static void end(void) {
        agent_unref(agent);
        guest_side_stop(guest);
}

/* --- how a played guest speaks --- */

static void tell(struct mux_stream *s, const char *text) {
        _cleanup_json_ json_t *msg = NULL;

        if (json_parse(text, strlen(text), 1 << 16, 16, &msg, NULL) < 0)
                abort();
        (void) mux_send_msg(s, msg, patience());
}

static void send_text(struct mux_stream *s, enum wire_channel ch, const char *text) {
        (void) mux_send_data(s, ch, text, strlen(text), patience());
}

static void until_closed(struct mux_stream *s) {
        for (;;) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

                if (mux_recv(s, patience(), &e) < 0 || e.kind == MUX_CLOSED || e.kind == MUX_LOST)
                        return;
        }
}

static int run(const char *command, size_t max, struct agent_exec_result *ret, struct error *e) {
        const struct agent_exec_args args = {.command = command, .max_output = max};

        return agent_exec(agent, &args, patience(), ret, e);
}

/* --- exec, played --- */

static void play_exec(struct mux_stream *s, const json_t *request) {
        tell(s, "{\"type\":\"started\",\"pid\":7}");
        send_text(s, WIRE_CH_OUT, "hello ");
        send_text(s, WIRE_CH_ERR, "oops");
        send_text(s, WIRE_CH_OUT, "world");
        (void) mux_send_eof(s, WIRE_CH_OUT, patience());
        (void) mux_send_eof(s, WIRE_CH_ERR, patience());
        tell(s, "{\"type\":\"exit\",\"exit_code\":3,\"timed_out\":false,\"duration_ms\":12,\"leftover\":true}");
}

static void test_exec_result(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        REQUIRE(begin(play_exec));
        REQUIRE(run("x", 100, &r, NULL) == 0);
        CHECK_STR(r.out.head.data, "hello world");
        CHECK_STR(r.err.head.data, "oops");
        CHECK_INT(r.exit_code, 3);
        CHECK_INT(r.signal, 0);
        CHECK_INT(r.duration_ms, 12);
        CHECK(r.leftover && !r.timed_out);
        end();
}

static void test_exec_keeps_head_and_tail(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        REQUIRE(begin(play_exec));
        REQUIRE(run("x", 4, &r, NULL) == 0);
        CHECK_STR(r.out.head.data, "he");
        CHECK_STR(r.out.tail.data, "ld");
        CHECK_INT(r.out.total, 11);
        CHECK(r.out.truncated && !r.err.truncated);
        end();
}

static const char *script; /* messages of a lying guest, each in a line; "!text" is data on OUT */

static void play_script(struct mux_stream *s, const json_t *request) {
        _cleanup_free_ char *copy = strdup(script);
        char *save = NULL;

        for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                if (*line == '!')
                        send_text(s, WIRE_CH_OUT, line + 1);
                else
                        tell(s, line);
        }
}

static void test_exec_refuses_lies(void) {
        static const char *const lies[] = {
                "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1}",
                "{\"type\":\"started\"}\n{\"type\":\"started\"}",
                "{\"type\":\"started\"}\n{\"type\":\"exit\",\"duration_ms\":1}",
                "{\"type\":\"started\"}\n{\"type\":\"exit\",\"exit_code\":1,\"signal\":9,\"duration_ms\":1}",
                "{\"type\":\"started\"}\n{\"type\":\"exit\",\"exit_code\":256,\"duration_ms\":1}",
                "{\"type\":\"started\"}\n{\"type\":\"exit\",\"exit_code\":\"0\",\"duration_ms\":1}",
                "{\"type\":\"started\"}\n{\"type\":\"exit\",\"signal\":99,\"duration_ms\":1}",
                "{\"type\":\"started\"}\n{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":-1}",
                "{\"type\":\"started\"}\n!then nothing",
                "!output of nothing",
        };

        REQUIRE(begin(play_script));
        for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
                _cleanup_exec_result_ struct agent_exec_result r = {0};
                _cleanup_error_ struct error e = ERROR_INIT;

                script = lies[i];
                CHECK_INT(run("x", 100, &r, &e), -EPROTO);
                CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        }
        _cleanup_exec_result_ struct agent_exec_result none = {0};
        script = "{\"no\":\"type\"}";
        CHECK(run("x", 100, &none, NULL) < 0);
        /* Only those calls failed. */
        CHECK(!agent_is_lost(agent));
        int64_t ns = 0;
        CHECK_INT(agent_ping(agent, patience(), &ns, NULL), 0);
        end();
}

static void test_errors_of_the_guest(void) {
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_script));
        script = "{\"type\":\"error\",\"code\":\"not_found\",\"message\":\"/x: no such file\",\"hint\":\"Look.\"}";
        CHECK_INT(agent_mount_root(agent, patience(), &e), -ENOENT);
        CHECK_INT(e.code, ERROR_NOT_FOUND);
        CHECK_STR(error_message(&e), "/x: no such file");
        CHECK_STR(e.hint, "Look.");
        /* Our own rules are not the guest's to speak for. */
        script = "{\"type\":\"error\",\"code\":\"quota_exceeded\",\"message\":\"pay\"}";
        CHECK(agent_mount_root(agent, patience(), &e) < 0);
        CHECK_INT(e.code, ERROR_INTERNAL);
        script = "{\"type\":\"error\",\"code\":\"conflict\",\"message\":\"a\\u001b[2Jb\\n\\u007fc\"}";
        CHECK(agent_mount_root(agent, patience(), &e) < 0);
        CHECK_STR(error_message(&e), "a [2Jb\n c");
        end();
}

static void play_stall(struct mux_stream *s, const json_t *request) {
        tell(s, "{\"type\":\"started\"}");
        until_closed(s);
}

static void test_deadline_and_cancel(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        struct op op = op_timeout(100);
        const struct agent_exec_args args = {.command = "x", .max_output = 10};
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_stall));
        CHECK_INT(agent_exec(agent, &args, &op, &r, &e), -ETIMEDOUT);
        CHECK_INT(e.code, ERROR_TIMEOUT);
        op = *patience();
        op.cancel = cancel_new();
        cancel_fire(op.cancel);
        CHECK_INT(agent_exec(agent, &args, &op, &r, &e), -ECANCELED);
        CHECK_INT(e.code, ERROR_CANCELLED);
        cancel_unref(op.cancel);
        end();
}

static void *hang_up_later(void *arg) {
        const struct op op = op_timeout(100);

        (void) wait_fd(-1, 0, &op);
        guest_side_hang_up(guest);
        return NULL;
}

static void test_lost_connection(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        pthread_t thread;

        REQUIRE(begin(play_stall));
        REQUIRE(thread_start(&thread, "hang-up", hang_up_later, NULL) >= 0);
        CHECK(run("x", 10, &r, &e) < 0);
        CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        pthread_join(thread, NULL);
        CHECK(agent_is_lost(agent));
        error_clear(&e);
        CHECK(run("x", 10, &r, &e) < 0);
        CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        end();
}

/* Writes more than a window before it reads any input, then ends without having read it. */
static void play_deaf(struct mux_stream *s, const json_t *request) {
        static char block[4 * WIRE_WINDOW];

        tell(s, "{\"type\":\"started\"}");
        (void) mux_send_data(s, WIRE_CH_OUT, block, sizeof(block), patience());
        tell(s, "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1}");
}

static void test_input_that_nobody_reads(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_free_ char *data = calloc(1, 8 * WIRE_WINDOW);
        const struct agent_exec_args args = {
                .command = "x", .max_output = 10, .stdin_data = data, .stdin_len = 8 * WIRE_WINDOW};

        REQUIRE(begin(play_deaf));
        CHECK_INT(agent_exec(agent, &args, patience(), &r, NULL), 0);
        CHECK_INT(r.out.total, 4 * WIRE_WINDOW);
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

/* --- the real handlers --- */

static char folder[] = "/tmp/agentiso-vm-test-XXXXXX";

static const char *in_folder(const char *name) {
        static char path[200];

        snprintf(path, sizeof(path), "%s/%s", folder, name);
        return path;
}

static void test_real_exec(void) {
        _cleanup_json_ json_t *env = json_pack("{s:s}", "GREETING", "hi there");
        const struct agent_exec_args args = {
                .command = "echo \"$GREETING\"; pwd; cat >&2; exit 4",
                .workdir = "/tmp",
                .env = env,
                .stdin_data = "input",
                .stdin_len = 5,
                .timeout_ms = 30000,
                .max_output = 1000,
        };
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_error_ struct error e = ERROR_INIT;

        if (agent_exec(agent, &args, patience(), &r, &e) < 0)
                printf("# %s\n", error_message(&e));
        CHECK_STR(r.out.head.data, "hi there\n/tmp\n");
        CHECK_STR(r.err.head.data, "input");
        CHECK_INT(r.exit_code, 4);
}

static void test_real_timeout(void) {
        const struct agent_exec_args args = {.command = "echo part; sleep 60", .timeout_ms = 300, .max_output = 100};
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        CHECK_INT(agent_exec(agent, &args, patience(), &r, NULL), 0);
        CHECK(r.timed_out);
        CHECK_STR(r.out.head.data, "part\n");
}

static void test_real_big_input(void) {
        const size_t n = 3u << 20;
        _cleanup_free_ char *data = calloc(1, n);
        const struct agent_exec_args args = {
                .command = "cat", .stdin_data = data, .stdin_len = n, .timeout_ms = 30000, .max_output = 10};
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        CHECK_INT(agent_exec(agent, &args, patience(), &r, NULL), 0);
        CHECK_INT(r.out.total, n);
}

static void test_real_files(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(1000);
        _cleanup_json_ json_t *list = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;
        struct agent_read_result got = {0};
        uint64_t written = 0, replaced = 0, other = 0;
        bool truncated = true;

        CHECK_INT(agent_file_write(agent, in_folder("sub/f"), "one\ntwo\ntwo\n", 12, "0600", false, patience(),
                                   &written, NULL),
                  0);
        CHECK_INT(written, 12);
        CHECK_INT(agent_file_edit(agent, in_folder("sub/f"), "two", 3, "2", 1, false, patience(), &replaced, &other,
                                  NULL),
                  0);
        CHECK(replaced == 1 && other == 1);
        struct agent_read_args args = {.path = in_folder("sub/f"), .limit = 100, .start_line = 2, .line_count = 1};
        CHECK_INT(agent_file_read(agent, &args, patience(), &out, &got, &e), 0);
        CHECK_STR(out.data, "2\n");
        CHECK(got.truncated && got.size == 10);
        args.limit = 5;
        args.start_line = 1;
        args.line_count = 0;
        buf_clear(&out);
        CHECK_INT(agent_file_read(agent, &args, patience(), &out, &got, &e), 0);
        CHECK_STR(out.data, "one\n2");
        CHECK(got.truncated && got.bytes == 5);
        CHECK_INT(agent_file_list(agent, folder, true, 10, patience(), &list, &truncated, &e), 0);
        CHECK_INT(json_array_size(list), 2);
        CHECK(!truncated);
        const json_t *f = json_array_get(list, 1);
        CHECK_STR(json_string_value(json_object_get(f, "name")), "sub/f");
        CHECK_STR(json_string_value(json_object_get(f, "permissions")), "0600");
        CHECK_INT(json_string_length(json_object_get(f, "modified")), TIME_TEXT_LEN);

        args.path = in_folder("absent");
        CHECK_INT(agent_file_read(agent, &args, patience(), &out, &got, &e), -ENOENT);
        CHECK_INT(e.code, ERROR_NOT_FOUND);
        CHECK(agent_file_write(agent, "/proc/nothing", "x", 1, NULL, false, patience(), &written, &e) < 0);
}

static void test_names_that_are_not_utf8(void) {
        _cleanup_json_ json_t *list = NULL;
        bool truncated = false;
        _cleanup_free_ char *path = str_printf("%s/odd/a\xff", folder), *dir = str_printf("%s/odd", folder);
        CHECK_INT(mkdir_p(dir, 0700), 0);
        CHECK_INT(file_write_atomic(path, "", 0, 0600), 0);
        REQUIRE(agent_file_list(agent, dir, false, 10, patience(), &list, &truncated, NULL) == 0);
        const json_t *f = json_array_get(list, 0);
        CHECK_STR(json_string_value(json_object_get(f, "name")), "a\xef\xbf\xbd");
        CHECK_STR(json_string_value(json_object_get(f, "name_base64")), "Yf8=");
}

int main(void) {
        RUN(test_exec_result);
        RUN(test_exec_keeps_head_and_tail);
        RUN(test_exec_refuses_lies);
        RUN(test_errors_of_the_guest);
        RUN(test_deadline_and_cancel);
        RUN(test_lost_connection);
        RUN(test_input_that_nobody_reads);
        RUN(test_read_refuses_lies);
        RUN(test_list_refuses_lies);
        RUN(test_endless_lists_are_bounded);

        if (!mkdtemp(folder) || !begin(NULL))
                return 1;
        RUN(test_real_exec);
        RUN(test_real_timeout);
        RUN(test_real_big_input);
        RUN(test_real_files);
        RUN(test_names_that_are_not_utf8);
        end();
        rm_rf(folder);
        return tap_done();
}
