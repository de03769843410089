/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixture.h"

static void check_extent(const json_t *msg, const char *key, int64_t head, int64_t cut, int64_t total) {
        const json_t *o = json_object_get(msg, key);

        CHECK_INT(member_int(o, "head"), head);
        CHECK_INT(member_int(o, "cut"), cut);
        CHECK_INT(member_int(o, "total"), total);
}

static void test_streams_and_exit_code(void) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(command("echo out; echo err >&2; exit 7"), NULL, 0, &o);
        CHECK_STR(o.out.data, "out\n");
        CHECK_STR(o.err_out.data, "err\n");
        check_extent(o.last, "out", 4, 0, 4);
        check_extent(o.last, "err", 4, 0, 4);
        CHECK(o.first == o.last);
        CHECK_STR(member_str(o.last, "type"), "exit");
        CHECK_INT(member_int(o.last, "exit_code"), 7);
        CHECK(!json_object_get(o.last, "signal"));
        CHECK_INT(member_int(o.last, "timed_out"), 0);
        CHECK_INT(member_int(o.last, "leftover"), 0);
        CHECK(member_int(o.last, "duration_ms") >= 0);
}

static void test_signal(void) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(command("kill -SEGV $$"), NULL, 0, &o);
        CHECK_INT(member_int(o.last, "signal"), SIGSEGV);
        CHECK(!json_object_get(o.last, "exit_code"));
}

static void test_environment(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        ask(command_with("echo \"$PATH|$HOME|$USER|$TERM|$X y\"", "env", json_of("{\"X\":\"a b\",\"TERM\":\"vt100\"}")),
            NULL, 0, &o);
        CHECK_STR(o.out.data, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin|/root|root|vt100|a b y\n");
        ask(command("cat; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l; umask"), NULL, 0, &p);
        CHECK_STR(p.out.data, "/dev/null\n4\n0022\n"); /* 0, 1, 2 and ls's own */
}

static void test_environment_refused(void) {
        static const char *const names[] = {"PATH", "IFS", "ENV", "BASH_ENV", "LD_PRELOAD", "1A", "A-B", "", "A=B"};

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_outcome_ struct outcome o = {0};
                json_t *env = json_object();

                json_object_set_new(env, names[i], json_string("x"));
                ask(command_with("true", "env", env), NULL, 0, &o);
                CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
                CHECK(o.error.message && strstr(o.error.message, names[i]));
        }
}

static void test_variable_too_long(void) {
        _cleanup_free_ char *value = calloc(1, 128 << 10);
        _cleanup_outcome_ struct outcome o = {0}, p = {0};
        json_t *env = json_object(), *less = json_object();

        /* With its name, the equals sign and the NUL behind it, a page of 128 KiB is full. */
        memset(value, 'x', (128 << 10) - 3);
        json_object_set_new(less, "L", json_string(value));
        value[(128 << 10) - 3] = 'x';
        json_object_set_new(env, "L", json_string(value));
        ask(command_with("echo ${#L}", "env", less), NULL, 0, &p);
        CHECK_STR(p.out.data, "131069\n");
        ask(command_with("echo ${#L}", "env", env), NULL, 0, &o);
        CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(o.error.message && strstr(o.error.message, "env: L is longer"));
}

static void test_workdir(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0};

        ask(command_with("pwd", "workdir", json_string(folder)), NULL, 0, &o);
        CHECK(o.out.len > 0 && strncmp(o.out.data, folder, strlen(folder)) == 0);
        ask(command_with("pwd", "workdir", json_string("/no/such/place")), NULL, 0, &p);
        CHECK_INT(p.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(p.error.message && strstr(p.error.message, "/no/such/place"));
        CHECK(p.error.hint && strstr(p.error.hint, "mkdir -p"));
        CHECK(!p.first);
        ask(command_with("pwd", "workdir", json_string("relative")), NULL, 0, &q);
        CHECK_INT(q.error.code, ERROR_INVALID_ARGUMENT);
}

static void test_timeout_kills_the_tree(void) {
        _cleanup_outcome_ struct outcome o = {0};
        int64_t start = monotonic_ns();

        ask(command_with("echo partial; setsid sleep 4711.1 & sh -c 'sleep 4711.2 & sleep 4711.3' & sleep 4711.4",
                         "timeout_ms", json_integer(400)),
            NULL, 0, &o);
        CHECK_STR(o.out.data, "partial\n");
        CHECK_INT(member_int(o.last, "timed_out"), 1);
        CHECK_INT(member_int(o.last, "signal"), SIGKILL);
        CHECK((monotonic_ns() - start) / NSEC_PER_MSEC < 5000);
        CHECK(!runs("4711"));
}

static void test_timeout_of_a_flood(void) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(command_with("sleep 4712 & yes", "timeout_ms", json_integer(300)), NULL, 0, &o);
        CHECK_INT(member_int(o.last, "timed_out"), 1);
        CHECK_INT(o.out.len, WIRE_OUTPUT_MAX);
        CHECK(!runs("4712"));
}

static void test_close_kills_the_tree(void) {
        struct mux_stream *s = open_request(command("sleep 4713 & sleep 4713"));

        CHECK(wait_runs("4713", true));
        mux_stream_unref(s);
        CHECK(wait_runs("4713", false));
}

/* A small one goes through a pipe, a large one through memory; to the command both are files that end. */
static void test_stdin(void) {
        static const size_t sizes[] = {0, 1, 65535, 65536, 65537, 3 << 20};
        _cleanup_free_ char *data = malloc(3 << 20);

        for (size_t i = 0; i < 3 << 20; i++)
                data[i] = (char) (i * 7 + i / 1000);
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                _cleanup_free_ char *want = str_printf("%zu\n", sizes[i]);
                _cleanup_outcome_ struct outcome o = {0};

                ask(command_with("wc -c", "stdin", json_true()), data, sizes[i], &o);
                CHECK_STR(o.out.data, want);
        }
        for (size_t n = 65000; n <= 130000; n += 65000) {
                _cleanup_outcome_ struct outcome o = {0};

                ask(command_with("cat", "stdin", json_true()), data, n, &o);
                CHECK_INT(o.out.len, n);
                CHECK(o.out.len == n && memcmp(o.out.data, data, n) == 0);
        }
        CHECK_INT(agent.inputs.used, 0);
}

static void test_stdin_not_read(void) {
        _cleanup_free_ char *data = calloc(1, 4 << 20);
        _cleanup_outcome_ struct outcome o = {0};

        ask(command_with("echo done", "stdin", json_true()), data, 4 << 20, &o);
        CHECK_STR(o.out.data, "done\n");
        CHECK_INT(member_int(o.last, "exit_code"), 0);
}

static void test_stdin_too_large(void) {
        size_t most = agent.inputs.max;
        _cleanup_free_ char *data = calloc(1, WIRE_STDIN_MAX + 1);
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        ask(command_with("true", "stdin", json_true()), data, WIRE_STDIN_MAX + 1, &o);
        CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(o.error.hint && strstr(o.error.hint, "file_write"));
        agent.inputs.max = 1 << 20;
        ask(command_with("true", "stdin", json_true()), data, 2 << 20, &p);
        agent.inputs.max = most;
        CHECK_INT(p.error.code, ERROR_NO_SPACE);
        CHECK(p.error.hint && strstr(p.error.hint, "file_write"));
        CHECK_INT(agent.inputs.used, 0);
}

/* The command does not start before its input is whole; a host that leaves before that leaves nothing behind. */
static void test_stdin_never_whole(void) {
        struct mux_stream *s = open_request(command_with("sleep 4714", "stdin", json_true()));
        _cleanup_free_ char *data = calloc(1, 1 << 20);
        struct op op = patience();

        CHECK_INT(mux_send_data(s, WIRE_CH_IN, data, 1 << 20, &op), 0);
        CHECK(!runs("4714"));
        mux_stream_unref(s);
        for (int i = 0; i < 500 && agent.inputs.used > 0; i++)
                poll(NULL, 0, 10);
        CHECK_INT(agent.inputs.used, 0);
}

static void test_background_process_lives_on(void) {
        _cleanup_outcome_ struct outcome o = {0};
        _cleanup_free_ char *text = str_printf("(sleep 0.5; echo late; echo late; touch %s/alive) & echo now", folder);
        int64_t start = monotonic_ns();

        ask(command(text), NULL, 0, &o);
        CHECK((monotonic_ns() - start) / NSEC_PER_MSEC < 450);
        CHECK_STR(o.out.data, "now\n");
        CHECK_INT(member_int(o.last, "leftover"), 1);
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        CHECK(wait_for_file("alive"));
}

static void test_background_process_that_prints_for_ever(void) {
        _cleanup_outcome_ struct outcome o = {0};
        int64_t start = monotonic_ns();

        ask(command("(sleep 0.2; exec yes) & echo $!"), NULL, 0, &o);
        CHECK((monotonic_ns() - start) / NSEC_PER_MSEC < 5000);
        CHECK_INT(member_int(o.last, "leftover"), 1);
        if (o.out.data)
                kill((pid_t) strtol(o.out.data, NULL, 10), SIGKILL);
}

/* What is in the pipe when the shell ends is kept, unless a process left behind reads it itself; that one must not hold
 * the command up for ever. */
static void test_background_process_that_reads_the_output(void) {
        _cleanup_outcome_ struct outcome o = {0};
        _cleanup_free_ char *pids = NULL, *text = NULL;
        int64_t start = monotonic_ns();

        text = str_printf("yes >&2 & y=$!; (exec 3< /proc/self/fd/1; while :; do dd bs=65536 count=1 <&3 of=/dev/null "
                          "2> /dev/null; done) & echo $y $! > %s/pids; sleep 0.3; head -c 60000 /dev/zero",
                          folder);
        ask(command(text), NULL, 0, &o);
        CHECK((monotonic_ns() - start) / NSEC_PER_MSEC < 20000);
        CHECK_INT(member_int(o.last, "leftover"), 1);
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        pids = content("pids");
        for (char *p = pids, *end; strtol(p, &end, 10) > 1; p = end)
                kill((pid_t) strtol(p, NULL, 10), SIGKILL);
}

/* Head and tail of each are kept, joined in `data`. */
static void check_seq(const struct buf *data, const json_t *msg, const char *key) {
        CHECK_INT(data->len, WIRE_OUTPUT_MAX);
        check_extent(msg, key, WIRE_OUTPUT_MAX / 2, 8488896 - WIRE_OUTPUT_MAX, 8488896);
        CHECK(data->len > 8 && memcmp(data->data, "1\n2\n3\n", 6) == 0);
        CHECK(data->len > 8 && memcmp(data->data + data->len - 8, "1200000\n", 8) == 0);
}

static void test_8_mib_on_both_streams(void) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(command("seq 1 1200000 & seq 1 1200000 >&2; wait"), NULL, 0, &o);
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        check_seq(&o.out, o.last, "out");
        check_seq(&o.err_out, o.last, "err");
}

static void test_max_output(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        ask(command_with("printf 0123456789; printf ab >&2", "max_output", json_integer(4)), NULL, 0, &o);
        CHECK_STR(o.out.data, "0189");
        CHECK_STR(o.err_out.data, "ab");
        check_extent(o.last, "out", 2, 6, 10);
        check_extent(o.last, "err", 2, 0, 2);
        ask(command_with("printf 0123456789", "max_output", json_integer(0)), NULL, 0, &p);
        CHECK_INT(p.out.len, 0);
        check_extent(p.last, "out", 0, 10, 10);
}

/* The lines that an exec tells while it runs, and its end. */
static void gather_progress(json_t *request, struct buf *lines, struct outcome *o) {
        _cleanup_stream_ struct mux_stream *s = NULL;
        struct op op = patience();

        json_object_set_new(request, "progress_ms", json_integer(100));
        s = open_request(request);
        *lines = BUF_INIT(1 << 20);
        *o = (struct outcome){0};
        for (;;) {
                _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;

                if (mux_recv(s, &op, &ev) < 0 || ev.kind == MUX_CLOSED || ev.kind == MUX_LOST)
                        return;
                if (ev.kind == MUX_DATA && ev.channel == WIRE_CH_NEWS)
                        buf_append(lines, ev.data.data, ev.data.len);
                if (ev.kind == MUX_MSG) {
                        take_message(o, ev.msg);
                        return;
                }
        }
}

static void test_progress(void) {
        _cleanup_buf_ struct buf lines = {0}, none = {0};
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        gather_progress(
                command("echo first; echo 'on err' >&2; sleep 0.4; printf 'a\\033[1;31mb\\033[0m\\tc\\n\\n \\n'; "
                        "sleep 0.4; printf '10%%\\r20%%\\r'; sleep 0.4; printf '\\377%0200d' 5; sleep 0.4"),
                &lines, &o);
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        REQUIRE(lines.data);
        CHECK(strncmp(lines.data, "on err\nab c\n20%\n", 16) == 0);
        CHECK(utf8_valid(lines.data, lines.len));
        CHECK_INT(lines.len, 16 + 160 + 1);
        gather_progress(command("sleep 0.3"), &none, &p);
        CHECK_INT(none.len, 0);
}

static void *one_of_many(void *arg) {
        _cleanup_free_ char *text = str_printf("echo %d; sleep 0.2; exit %d", *(int *) arg, *(int *) arg);
        _cleanup_free_ char *want = str_printf("%d\n", *(int *) arg);
        _cleanup_outcome_ struct outcome o = {0};

        ask(command(text), NULL, 0, &o);
        *(int *) arg = str_eq(o.out.data, want) && member_int(o.last, "exit_code") == *(int *) arg &&
                                       member_int(o.last, "leftover") == 0
                               ? 0
                               : 1;
        return NULL;
}

static void test_50_at_once(void) {
        pthread_t t[50];
        int n[50], failures = 0;

        for (int i = 0; i < 50; i++) {
                n[i] = i + 1;
                REQUIRE(thread_start(&t[i], "one", one_of_many, &n[i]) == 0);
        }
        for (int i = 0; i < 50; i++) {
                pthread_join(t[i], NULL);
                failures += n[i];
        }
        CHECK_INT(failures, 0);
}

static void test_command_too_long(void) {
        _cleanup_free_ char *text = malloc(140001);
        _cleanup_outcome_ struct outcome o = {0};

        memset(text, 'x', 140000);
        text[140000] = '\0';
        ask(command(text), NULL, 0, &o);
        CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(o.error.hint && strstr(o.error.hint, "file_write"));
}

static void test_requests(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0}, r = {0};

        ask(json_of("{\"type\":\"dance\"}"), NULL, 0, &o);
        CHECK_INT(o.error.code, ERROR_UNSUPPORTED);
        CHECK(o.error.message && strstr(o.error.message, "dance"));
        ask(json_of("{\"type\":\"exec\"}"), NULL, 0, &p);
        CHECK_INT(p.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(p.error.message && strstr(p.error.message, "command"));
        ask(json_of("{\"type\":\"info\"}"), NULL, 0, &q);
        CHECK_INT(member_int(q.last, "root_mounted"), 1);
        CHECK(member_int(q.last, "boot_ns") > 0);
        ask(json_of("{\"type\":\"shutdown\"}"), NULL, 0, &r);
        CHECK_INT(r.error.code, ERROR_UNSUPPORTED);
}

static void test_no_root_yet(void) {
        _cleanup_outcome_ struct outcome o = {0};

        agent.root = ROOT_NONE;
        ask(command("true"), NULL, 0, &o);
        agent.root = ROOT_MOUNTED;
        CHECK_INT(o.error.code, ERROR_NOT_RUNNING);
}

int main(void) {
        fixture_begin();
        RUN(test_streams_and_exit_code);
        RUN(test_signal);
        RUN(test_environment);
        RUN(test_environment_refused);
        RUN(test_variable_too_long);
        RUN(test_workdir);
        RUN(test_timeout_kills_the_tree);
        RUN(test_timeout_of_a_flood);
        RUN(test_close_kills_the_tree);
        RUN(test_stdin);
        RUN(test_stdin_not_read);
        RUN(test_stdin_too_large);
        RUN(test_stdin_never_whole);
        RUN(test_background_process_lives_on);
        RUN(test_background_process_that_prints_for_ever);
        RUN(test_background_process_that_reads_the_output);
        RUN(test_8_mib_on_both_streams);
        RUN(test_max_output);
        RUN(test_progress);
        RUN(test_50_at_once);
        RUN(test_command_too_long);
        RUN(test_requests);
        RUN(test_no_root_yet);
        return fixture_end();
}
