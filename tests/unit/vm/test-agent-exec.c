/* SPDX-License-Identifier: Apache-2.0 */
/* Running commands in a guest that lies, floods or stalls. */
#include <stdatomic.h>

#include "base/json.h"
#include "base/thread.h"
#include "talk.h"
#include "tap.h"
#include "wire/frame.h"

#define NONE ",\"out\":{\"head\":0,\"cut\":0,\"total\":0},\"err\":{\"head\":0,\"cut\":0,\"total\":0}}"
#define DONE "{\"type\":\"exit\",\"exit_code\":0,\"timed_out\":false,\"leftover\":false,\"duration_ms\":1" NONE
#define PROGRESS(text) "+" text "\n"

static int run_args(const struct agent_exec_args *args, struct agent_exec_result *ret, struct error *e) {
        return agent_exec(agent, args, patience(), ret, e);
}

static int run(size_t max, struct agent_exec_result *ret, struct error *e) {
        return run_args(&(struct agent_exec_args){.command = "x", .max_output = max}, ret, e);
}

static int64_t seen_int(const char *key) {
        const json_t *v = json_object_get(seen_request(), key);

        return json_is_integer(v) ? json_integer_value(v) : -1;
}

/* --- what is asked --- */

static void ignore_progress(void *arg, const char *message) {
}

static void test_request(void) {
        _cleanup_json_ json_t *env = json_pack("{s:s}", "A", "b");
        struct agent_exec_args args = {.command = "ls", .max_output = 77};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        struct op op = *patience();

        REQUIRE(begin(play_listener));
        script = DONE;
        CHECK_INT(run_args(&args, &r, NULL), 0);
        CHECK_STR(json_string_value(json_object_get(seen_request(), "type")), "exec");
        CHECK_STR(json_string_value(json_object_get(seen_request(), "command")), "ls");
        CHECK_INT(seen_int("max_output"), 77);
        CHECK(json_is_false(json_object_get(seen_request(), "stdin")));
        CHECK_INT(json_object_size(seen_request()), 4);

        args.workdir = "/tmp";
        args.env = env;
        args.timeout_ms = 5000;
        args.yield_ms = 300;
        op.progress = ignore_progress;
        CHECK_INT(agent_exec(agent, &args, &op, &r, NULL), 0);
        CHECK_STR(json_string_value(json_object_get(seen_request(), "workdir")), "/tmp");
        CHECK(json_equal(json_object_get(seen_request(), "env"), env));
        CHECK_INT(seen_int("timeout_ms"), 5000);
        CHECK_INT(seen_int("yield_ms"), 300);
        CHECK_INT(seen_int("progress_ms"), 1000);
        CHECK_INT(json_object_size(seen_request()), 9);
        end();
}

/* --- standard input --- */

static void test_input(void) {
        const size_t n = 3 * WIRE_WINDOW + 5;
        _cleanup_free_ char *data = malloc(n);
        struct agent_exec_args args = {.command = "x", .stdin_data = data, .stdin_len = n, .max_output = 10};
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        for (size_t i = 0; i < n; i++)
                data[i] = (char) (i * 7 + i / 251);
        REQUIRE(begin(play_listener));
        script = DONE;
        CHECK_INT(run_args(&args, &r, NULL), 0);
        CHECK(json_is_true(json_object_get(seen_request(), "stdin")));
        CHECK(seen_input_end());
        REQUIRE(seen_input()->len == n);
        CHECK(memcmp(seen_input()->data, data, n) == 0);
        end();
}

static void test_input_that_is_too_large(void) {
        _cleanup_free_ char *data = calloc(1, WIRE_STDIN_MAX + 1);
        const struct agent_exec_args args = {
                .command = "x", .stdin_data = data, .stdin_len = WIRE_STDIN_MAX + 1, .max_output = 10};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_listener));
        script = DONE;
        CHECK(run_args(&args, &r, &e) < 0);
        CHECK_INT(e.code, ERROR_INVALID_ARGUMENT);
        CHECK(!seen_request());
        end();
}

/* A guest that answers and closes without taking any input, of which there is more than its credit allows to send. */
static void test_input_that_nobody_takes(void) {
        const size_t n = 8 * WIRE_WINDOW;
        _cleanup_free_ char *data = calloc(1, n);
        const struct agent_exec_args args = {.command = "x", .stdin_data = data, .stdin_len = n, .max_output = 10};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_script));
        script = "{\"type\":\"error\",\"code\":\"not_found\",\"message\":\"/x: no such directory\"}";
        CHECK_INT(run_args(&args, &r, &e), -ENOENT);
        CHECK_INT(e.code, ERROR_NOT_FOUND);
        CHECK_STR(error_message(&e), "/x: no such directory");
        script = "!hello\n{\"type\":\"exit\",\"exit_code\":4,\"duration_ms\":1,"
                 "\"out\":{\"head\":5,\"cut\":0,\"total\":5},\"err\":{\"head\":0,\"cut\":0,\"total\":0}}";
        CHECK_INT(run_args(&args, &r, NULL), 0);
        CHECK_STR(r.out.head.data, "hello");
        CHECK_INT(r.exit_code, 4);
        end();
}

static void play_silence(struct mux_stream *s, const json_t *request) {
        const struct op op = op_timeout(3000);

        /* Takes nothing, so that no credit is given, until the stream is closed; a connection that ends first leaves it
         * open. */
        while (!mux_stream_closed(s) && op_check(&op) == 0) {
                const struct op pause = op_sub(&op, 5);

                (void) wait_fd(-1, 0, &pause);
        }
}

static void test_input_to_a_silent_guest(void) {
        const size_t n = 8 * WIRE_WINDOW;
        _cleanup_free_ char *data = calloc(1, n);
        const struct agent_exec_args args = {.command = "x", .stdin_data = data, .stdin_len = n, .max_output = 10};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        struct op op = op_timeout(100);

        REQUIRE(begin(play_silence));
        CHECK_INT(agent_exec(agent, &args, &op, &r, NULL), -ETIMEDOUT);
        op = *patience();
        op.cancel = cancel_new();
        cancel_fire(op.cancel);
        CHECK_INT(agent_exec(agent, &args, &op, &r, NULL), -ECANCELED);
        cancel_unref(op.cancel);
        end();
}

/* --- results --- */

static void test_result(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        REQUIRE(begin(play_script));
        script = "!hello \n?oops\n!world\n.\n"
                 "{\"type\":\"exit\",\"exit_code\":3,\"timed_out\":false,\"duration_ms\":12,\"leftover\":true,"
                 "\"out\":{\"head\":11,\"cut\":0,\"total\":15},\"err\":{\"head\":2,\"cut\":0,\"total\":4}}";
        REQUIRE(run(11, &r, NULL) == 0);
        CHECK_STR(r.out.head.data, "hello world");
        CHECK_STR(r.err.head.data, "oops");
        CHECK_INT(r.out.total, 15);
        CHECK(r.out.cut == 0 && r.out.tail.len == 0 && r.err.tail.len == 0);
        CHECK_INT(r.exit_code, 3);
        CHECK_INT(r.signal, 0);
        CHECK_INT(r.duration_ms, 12);
        CHECK_INT(r.job_id, 0);
        CHECK(r.leftover && !r.timed_out);
        agent_exec_result_clear(&r);

        script = "{\"type\":\"exit\",\"signal\":9,\"timed_out\":true,\"duration_ms\":12,\"leftover\":false" NONE;
        REQUIRE(run(10, &r, NULL) == 0);
        CHECK_INT(r.exit_code, -1);
        CHECK_INT(r.signal, 9);
        CHECK(r.timed_out && !r.leftover);
        end();
}

static void test_head_and_tail(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        REQUIRE(begin(play_script));
        script = "!begEND\n?x\n{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1,"
                 "\"out\":{\"head\":3,\"cut\":1000000000000,\"total\":1000000000006},"
                 "\"err\":{\"head\":0,\"cut\":4,\"total\":5}}";
        REQUIRE(run(6, &r, NULL) == 0);
        CHECK_STR(r.out.head.data, "beg");
        CHECK_STR(r.out.tail.data, "END");
        CHECK_INT(r.out.cut, 1000000000000);
        CHECK_INT(r.out.total, 1000000000006);
        CHECK_INT(r.err.head.len, 0);
        CHECK_STR(r.err.tail.data, "x");
        CHECK(r.err.cut == 4 && r.err.total == 5);
        end();
}

static void test_yield(void) {
        const struct agent_exec_args args = {.command = "x", .yield_ms = 100, .max_output = 100};
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        REQUIRE(begin(play_script));
        script = "!so far\n{\"type\":\"yielded\",\"job_id\":7,\"duration_ms\":100,"
                 "\"out\":{\"head\":6,\"cut\":0,\"total\":9},\"err\":{\"head\":0,\"cut\":0,\"total\":0}}";
        REQUIRE(run_args(&args, &r, NULL) == 0);
        CHECK_INT(r.job_id, 7);
        CHECK_STR(r.out.head.data, "so far");
        CHECK_INT(r.out.total, 9);
        CHECK_INT(r.duration_ms, 100);
        agent_exec_result_clear(&r);
        /* Done before it had to yield. */
        script = DONE;
        REQUIRE(run_args(&args, &r, NULL) == 0);
        CHECK_INT(r.job_id, 0);
        CHECK_INT(r.exit_code, 0);
        end();
}

/* --- progress --- */

static char lines[8][256];
static unsigned n_lines;

static void note_line(void *arg, const char *message) {
        if (n_lines < ARRAY_SIZE(lines))
                snprintf(lines[n_lines], sizeof(lines[0]), "%s", message);
        n_lines++;
}

static void test_progress(void) {
        const struct agent_exec_args args = {.command = "x", .max_output = 100};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        struct op op = *patience();
        char text[1000], want[201];

        op.progress = note_line;
        REQUIRE(begin(play_script));
        n_lines = 0;
        script = PROGRESS("[1/2] one") "!ab\n" PROGRESS("") PROGRESS(
                "%s\033[31mred\t\007\xc2\x9b\xc3\xa9\177") "!c\n"
                                                           "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":"
                                                           "1,"
                                                           "\"out\":{\"head\":3,\"cut\":0,\"total\":3},\"err\":"
                                                           "{\"head\":0,\"cut\":0,\"total\":0}}";
        REQUIRE(agent_exec(agent, &args, &op, &r, NULL) == 0);
        CHECK_STR(r.out.head.data, "abc");
        CHECK_INT(n_lines, 2);
        CHECK_STR(lines[0], "[1/2] one");
        CHECK_STR(lines[1], "%s [31mred    \xc3\xa9 ");

        /* Long ones are cut between two characters. */
        size_t at = (size_t) snprintf(text, sizeof(text), "+a");
        for (unsigned i = 0; i < 300; i++)
                at += (size_t) snprintf(text + at, sizeof(text) - at, "\xc3\xa9");
        snprintf(text + at, sizeof(text) - at, "\n%s", DONE);
        snprintf(want, sizeof(want), "a");
        for (size_t i = 1; i + 2 <= 200; i += 2)
                snprintf(want + i, sizeof(want) - i, "\xc3\xa9");
        n_lines = 0;
        script = text;
        agent_exec_result_clear(&r);
        REQUIRE(agent_exec(agent, &args, &op, &r, NULL) == 0);
        CHECK_INT(n_lines, 1);
        CHECK_STR(lines[0], want);
        end();
}

static void play_endless_progress(struct mux_stream *s, const json_t *request) {
        while (mux_send_data(s, WIRE_CH_NEWS, "still here\n", 11, patience()) >= 0)
                ;
}

/* However fast they come, the deadline ends the call. */
static void test_flood_of_progress(void) {
        const struct agent_exec_args args = {.command = "x", .max_output = 100};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        struct op op = op_timeout(300);

        op.progress = note_line;
        REQUIRE(begin(play_endless_progress));
        int64_t start = monotonic_ns();
        CHECK(agent_exec(agent, &args, &op, &r, NULL) < 0);
        CHECK(monotonic_ns() - start < 20 * NSEC_PER_SEC);
        end();
}

/* --- lies --- */

#define LONG_EXIT(out)                                                      \
        "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1,\"out\":" out \
        ",\"err\":{\"head\":0,\"cut\":0,\"total\":0}}"
#define EMPTY "{\"head\":0,\"cut\":0,\"total\":0}"

static const char *const lies[] = {
        /* How it ended. */
        "{\"type\":\"exit\",\"duration_ms\":1" NONE,
        "{\"type\":\"exit\",\"exit_code\":1,\"signal\":9,\"duration_ms\":1" NONE,
        "{\"type\":\"exit\",\"exit_code\":256,\"duration_ms\":1" NONE,
        "{\"type\":\"exit\",\"exit_code\":-1,\"duration_ms\":1" NONE,
        "{\"type\":\"exit\",\"exit_code\":4294967296,\"duration_ms\":1" NONE,
        "{\"type\":\"exit\",\"exit_code\":0.5,\"duration_ms\":1" NONE,
        "{\"type\":\"exit\",\"exit_code\":\"0\",\"duration_ms\":1" NONE,
        "{\"type\":\"exit\",\"signal\":65,\"duration_ms\":1" NONE,
        "{\"type\":\"exit\",\"signal\":0,\"duration_ms\":1" NONE,
        "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":-1" NONE,
        "{\"type\":\"exit\",\"exit_code\":0" NONE,
        "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1,\"timed_out\":1" NONE,
        "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1,\"leftover\":\"no\"" NONE,
        /* What it wrote. */
        "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1}",
        "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1,\"out\":" EMPTY "}",
        "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1,\"out\":" EMPTY ",\"err\":[0,0,0]}",
        "!abc\n" LONG_EXIT("{\"head\":4,\"cut\":0,\"total\":4}"),
        "!abc\n" LONG_EXIT("{\"head\":3,\"cut\":0,\"total\":2}"),
        "!abc\n" LONG_EXIT("{\"head\":3,\"cut\":0,\"total\":4}"),
        "!abc\n" LONG_EXIT("{\"head\":1,\"cut\":3,\"total\":5}"),
        "!abc\n" LONG_EXIT("{\"head\":-1,\"cut\":0,\"total\":3}"),
        "!abc\n" LONG_EXIT("{\"head\":0,\"cut\":-1,\"total\":3}"),
        "!abc\n" LONG_EXIT("{\"head\":0,\"cut\":9223372036854775807,\"total\":9223372036854775807}"),
        "!abc\n" LONG_EXIT("{\"head\":9223372036854775807,\"cut\":0,\"total\":3}"),
        "!abc\n" LONG_EXIT("{\"head\":3,\"cut\":0,\"total\":-3}"),
        "!abc\n" LONG_EXIT("{\"head\":\"3\",\"cut\":0,\"total\":3}"),
        "!abc\n" LONG_EXIT("{\"head\":3,\"total\":3}"),
        "!abcdefghijk\n" LONG_EXIT("{\"head\":11,\"cut\":0,\"total\":11}"),
        "?abcdefghijk\n" DONE,
        "=abc\n" DONE,
        /* Out of order, or at the wrong time. */
        LONG_EXIT("{\"head\":3,\"cut\":0,\"total\":3}") "\n!abc",
        LONG_EXIT("{\"head\":0,\"cut\":0,\"total\":3}") "\n!abc",
        "{\"type\":\"started\"}\n" DONE,
        "{\"type\":\"ok\"}",
        PROGRESS("nobody asked") DONE,
        "{\"type\":\"yielded\",\"job_id\":1,\"duration_ms\":1" NONE,
        "!then nothing",
        ".",
        "",
};

static void check_lie(const char *lie, int64_t yield_ms) {
        const struct agent_exec_args args = {.command = "x", .yield_ms = yield_ms, .max_output = 10};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_error_ struct error e = ERROR_INIT;

        script = lie;
        int k = run_args(&args, &r, &e);
        if (k != -EPROTO || e.code != ERROR_GUEST_UNREACHABLE)
                printf("# %s\n# gave %d, %s\n", lie, k, error_message(&e));
        CHECK_INT(k, -EPROTO);
        CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        CHECK(!r.out.head.data && !r.err.head.data);
}

static void test_lies(void) {
        static const char *const yields[] = {
                "{\"type\":\"yielded\",\"duration_ms\":1" NONE,
                "{\"type\":\"yielded\",\"job_id\":0,\"duration_ms\":1" NONE,
                "{\"type\":\"yielded\",\"job_id\":-1,\"duration_ms\":1" NONE,
                "{\"type\":\"yielded\",\"job_id\":\"1\",\"duration_ms\":1" NONE,
                "{\"type\":\"yielded\",\"job_id\":1" NONE,
                "{\"type\":\"yielded\",\"job_id\":1,\"duration_ms\":1}",
        };
        int64_t ns = 0;

        REQUIRE(begin(play_script));
        for (size_t i = 0; i < ARRAY_SIZE(lies); i++)
                check_lie(lies[i], 0);
        for (size_t i = 0; i < ARRAY_SIZE(yields); i++)
                check_lie(yields[i], 100);
        /* Only those calls failed. */
        CHECK(!agent_is_lost(agent));
        CHECK_INT(agent_ping(agent, patience(), &ns, NULL), 0);
        end();
}

static atomic_bool said;

static void play_script_and_say_so(struct mux_stream *s, const json_t *request) {
        play_script(s, request);
        atomic_store(&said, true);
}

/* Holds the call up until all that the guest had to say has arrived. */
static void wait_for_all(void *arg, const char *message) {
        int64_t ns = 0;

        for (const struct op limit = *patience(); !atomic_load(&said) && op_check(&limit) == 0;) {
                const struct op pause = op_timeout(5);

                (void) wait_fd(-1, 0, &pause);
        }
        CHECK_INT(agent_ping(agent, patience(), &ns, NULL), 0);
}

/* What has come behind the last message when that is taken makes it doubtful. */
static void test_more_than_a_last_message(void) {
        static const char *const more[] = {
                PROGRESS("x") DONE "\n!late",
                PROGRESS("x") DONE "\n.",
                PROGRESS("x") DONE "\n" DONE,
                PROGRESS("x") DONE "\n{\"type\":\"error\",\"code\":\"internal\",\"message\":\"late\"}",
                PROGRESS("x") "{\"type\":\"yielded\",\"job_id\":1,\"duration_ms\":1" NONE "\n" DONE,
        };
        const struct agent_exec_args args = {.command = "x", .yield_ms = 100, .max_output = 10};

        REQUIRE(begin(play_script_and_say_so));
        for (size_t i = 0; i < ARRAY_SIZE(more); i++) {
                _cleanup_exec_result_ struct agent_exec_result r = {0};
                struct op op = *patience();

                op.progress = wait_for_all;
                atomic_store(&said, false);
                script = more[i];
                CHECK_INT(agent_exec(agent, &args, &op, &r, NULL), -EPROTO);
        }
        end();
}

/* What the multiplexer refuses ends the call too, though with its own words. */
static void test_broken_messages(void) {
        static const char *const broken[] = {
                "{\"no\":\"type\"}",
                "{\"type\":5}",
        };

        REQUIRE(begin(play_script));
        for (size_t i = 0; i < ARRAY_SIZE(broken); i++) {
                _cleanup_exec_result_ struct agent_exec_result r = {0};
                _cleanup_error_ struct error e = ERROR_INIT;

                script = broken[i];
                CHECK(run(100, &r, &e) < 0);
                CHECK(error_is_set(&e));
        }
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        script = DONE;
        CHECK_INT(run(100, &r, NULL), 0);
        end();
}

static void play_endless_output(struct mux_stream *s, const json_t *request) {
        static char block[65536];

        while (mux_send_data(s, WIRE_CH_OUT, block, sizeof(block), patience()) >= 0)
                ;
}

static void test_endless_output(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_endless_output));
        CHECK_INT(run(WIRE_OUTPUT_MAX, &r, &e), -EPROTO);
        CHECK(strstr(error_message(&e), "more than 524288 bytes"));
        end();
}

/* --- time --- */

/* "wait" ends when the test lets go of it; the others do what the script says. */
static atomic_bool let_go;

static void play_wait_or_lie(struct mux_stream *s, const json_t *request) {
        const char *command = json_string_value(json_object_get(request, "command"));

        if (!command || strcmp(command, "wait") != 0) {
                play_script(s, request);
                return;
        }
        send_text(s, WIRE_CH_OUT, "undisturbed");
        while (!atomic_load(&let_go)) {
                const struct op pause = op_timeout(5);

                (void) wait_fd(-1, 0, &pause);
        }
        tell(s, LONG_EXIT("{\"head\":11,\"cut\":0,\"total\":11}"));
}

static void *run_wait(void *arg) {
        const struct agent_exec_args args = {.command = "wait", .max_output = 100};

        return agent_exec(agent, &args, patience(), arg, NULL) == 0 ? arg : NULL;
}

static void test_neighbours_go_on(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        pthread_t thread;
        void *done = NULL;

        atomic_store(&let_go, false);
        REQUIRE(begin(play_wait_or_lie));
        REQUIRE(thread_start(&thread, "neighbour", run_wait, &r) == 0);
        for (size_t i = 0; i < ARRAY_SIZE(lies); i++)
                check_lie(lies[i], 0);
        atomic_store(&let_go, true);
        pthread_join(thread, &done);
        CHECK(done);
        CHECK_STR(r.out.head.data, "undisturbed");
        end();
}

static atomic_int close_code;

/* Notes why the host closed the stream. */
static void note_close(struct mux_stream *s) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

        atomic_store(&close_code, ERROR_INTERNAL);
        while (mux_recv(s, patience(), &e) == 0 && e.kind != MUX_CLOSED && e.kind != MUX_LOST)
                ;
        if (e.kind == MUX_CLOSED)
                atomic_store(&close_code, (int) e.error.code);
}

static void play_stall(struct mux_stream *s, const json_t *request) {
        send_text(s, WIRE_CH_OUT, "begun");
        note_close(s);
}

static void play_done(struct mux_stream *s, const json_t *request) {
        tell(s, DONE);
        note_close(s);
}

/* Ends the conversation when the guest has the host's close. */
static void end_in_order(void) {
        int64_t ns = 0;

        CHECK_INT(agent_ping(agent, patience(), &ns, NULL), 0);
        end();
}

/* The guest waits for the host to close the stream: it then knows that its answer was taken. */
static void test_the_host_closes_first(void) {
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        REQUIRE(begin(play_done));
        CHECK_INT(run(10, &r, NULL), 0);
        end_in_order();
        CHECK_INT(atomic_load(&close_code), ERROR_NONE);
}

static void test_deadline(void) {
        const struct agent_exec_args args = {.command = "x", .yield_ms = 10, .max_output = 10};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct op op = op_timeout(100);

        REQUIRE(begin(play_stall));
        CHECK_INT(agent_exec(agent, &args, &op, &r, &e), -ETIMEDOUT);
        CHECK_INT(e.code, ERROR_TIMEOUT);
        CHECK(e.hint && strstr(e.hint, "exec_background with action list"));
        /* Told of it, the guest lets the command go on. */
        end_in_order();
        CHECK_INT(atomic_load(&close_code), ERROR_TIMEOUT);
}

static void cancel_it(void *arg, const char *message) {
        cancel_fire(arg);
}

static void play_progress_and_stall(struct mux_stream *s, const json_t *request) {
        send_text(s, WIRE_CH_NEWS, "running\n");
        note_close(s);
}

static void test_cancel(void) {
        const struct agent_exec_args args = {.command = "x", .yield_ms = 10000, .max_output = 10};
        _cleanup_cancel_ struct cancel *cancel = cancel_new();
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct op op = *patience();

        REQUIRE(cancel && begin(play_progress_and_stall));
        op.cancel = cancel;
        op.progress = cancel_it;
        op.progress_arg = cancel;
        CHECK_INT(agent_exec(agent, &args, &op, &r, &e), -ECANCELED);
        CHECK_INT(e.code, ERROR_CANCELLED);
        /* A close without a reason: the guest kills the command. */
        end_in_order();
        CHECK_INT(atomic_load(&close_code), ERROR_NONE);
}

/* --- a host that did not run while the time passed --- */

#define SHORT_MS 200
#define STOPPED_MS 800

/* The answer comes while this process is stopped. */
static void play_answer_to_a_stopped_host(struct mux_stream *s, const json_t *request) {
        static const char last[] = LONG_EXIT("{\"head\":30000,\"cut\":0,\"total\":30000}");
        static const char bytes[30000] = "output";
        _cleanup_buf_ struct buf late = BUF_INIT(2 * sizeof(bytes));
        const uint8_t channel = WIRE_CH_OUT;

        CHECK_INT(frame_encode(&late, WIRE_DATA, 1, &channel, 1, bytes, sizeof(bytes)), 0);
        CHECK_INT(frame_encode(&late, WIRE_MSG, 1, last, strlen(last), NULL, 0), 0);
        CHECK(stopped_for(STOPPED_MS, &late));
        until_closed(s);
}

static void test_answer_to_a_stopped_host(void) {
        const struct agent_exec_args args = {.command = "x", .max_output = 30000};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        const struct op op = op_timeout(SHORT_MS);

        REQUIRE(begin(play_answer_to_a_stopped_host));
        CHECK_INT(agent_exec(agent, &args, &op, &r, NULL), 0);
        CHECK_INT(r.exit_code, 0);
        CHECK_INT(r.out.head.len, 30000);
        end();
}

static void play_stop_then_flood(struct mux_stream *s, const json_t *request) {
        CHECK(stopped_for(STOPPED_MS, &BUF_INIT(0)));
        play_endless_progress(s, request);
}

static void play_stop_then_stall(struct mux_stream *s, const json_t *request) {
        CHECK(stopped_for(STOPPED_MS, &BUF_INIT(0)));
        until_closed(s);
}

/* The time that such a host gives to the guest is short, however much that sends. */
static void test_a_stopped_host_does_not_wait_for_ever(void) {
        static const guest_play plays[] = {play_stop_then_flood, play_stop_then_stall};
        const struct agent_exec_args args = {.command = "x", .max_output = 10};

        for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
                _cleanup_exec_result_ struct agent_exec_result r = {0};
                struct op op = op_timeout(SHORT_MS);
                int64_t start = monotonic_ns();

                op.progress = ignore_progress;
                REQUIRE(begin(plays[i]));
                CHECK_INT(agent_exec(agent, &args, &op, &r, NULL), -ETIMEDOUT);
                CHECK(monotonic_ns() - start < 10 * NSEC_PER_SEC);
                end();
        }
}

struct timed {
        struct agent_exec_args args;
        int status;
        int64_t ns;
};

static void *run_timed(void *arg) {
        struct timed *t = arg;
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        int64_t start = monotonic_ns();

        t->status = run_args(&t->args, &r, NULL);
        t->ns = monotonic_ns() - start;
        return NULL;
}

/* A guest that keeps neither the timeout nor the time to yield: ended ten seconds behind the first of them. */
static void test_guest_that_forgets_the_time(void) {
        struct timed calls[] = {
                {.args = {.command = "x", .timeout_ms = 1}},
                {.args = {.command = "x", .yield_ms = 1}},
                {.args = {.command = "x", .timeout_ms = 1, .yield_ms = 3600000}},
                {.args = {.command = "x", .timeout_ms = 3600000, .yield_ms = 1, .stdin_data = "y", .stdin_len = 1}},
        };
        pthread_t threads[ARRAY_SIZE(calls)];

        REQUIRE(begin(play_stall));
        for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
                calls[i].args.max_output = 100;
                REQUIRE(thread_start(&threads[i], "timed", run_timed, &calls[i]) == 0);
        }
        for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
                pthread_join(threads[i], NULL);
                CHECK_INT(calls[i].status, -ETIMEDOUT);
                CHECK(calls[i].ns >= 10 * NSEC_PER_SEC && calls[i].ns < 30 * NSEC_PER_SEC);
        }
        end();
}

int main(void) {
        RUN(test_request);
        RUN(test_input);
        RUN(test_input_that_is_too_large);
        RUN(test_input_that_nobody_takes);
        RUN(test_input_to_a_silent_guest);
        RUN(test_result);
        RUN(test_head_and_tail);
        RUN(test_yield);
        RUN(test_progress);
        RUN(test_flood_of_progress);
        RUN(test_lies);
        RUN(test_more_than_a_last_message);
        RUN(test_broken_messages);
        RUN(test_endless_output);
        RUN(test_neighbours_go_on);
        RUN(test_the_host_closes_first);
        RUN(test_deadline);
        RUN(test_cancel);
        RUN(test_answer_to_a_stopped_host);
        RUN(test_a_stopped_host_does_not_wait_for_ever);
        RUN(test_guest_that_forgets_the_time);
        return tap_done();
}
