/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixture.h"

static json_t *command(const char *text) {
        json_t *o = json_of("{\"type\":\"exec\"}");

        json_object_set_new(o, "command", json_string(text));
        return o;
}

static json_t *command_with(const char *text, const char *key, json_t *value) {
        json_t *o = command(text);

        json_object_set_new(o, key, value);
        return o;
}

/* Whether a process of this name-tag still runs: its arguments hold `tag`. */
static bool runs(const char *tag) {
        _cleanup_free_ char *check = str_printf("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | "
                                                "grep -q '[s]leep %s'",
                                                tag);
        _cleanup_outcome_ struct outcome o;

        ask(command(check), NULL, 0, &o);
        return member_int(o.last, "exit_code") == 0;
}

static bool wait_for_file(const char *name) {
        for (int i = 0; i < 500; i++) {
                if (access(in_folder(name), F_OK) == 0)
                        return true;
                poll(NULL, 0, 10);
        }
        return false;
}

static void test_streams_and_exit_code(void) {
        _cleanup_outcome_ struct outcome o;

        ask(command("echo out; echo err >&2; exit 7"), NULL, 0, &o);
        CHECK_STR(o.out.data, "out\n");
        CHECK_STR(o.err_out.data, "err\n");
        CHECK(o.out_eof && o.err_eof);
        CHECK_STR(member_str(o.first, "type"), "started");
        CHECK(member_int(o.first, "pid") > 1);
        CHECK_STR(member_str(o.last, "type"), "exit");
        CHECK_INT(member_int(o.last, "exit_code"), 7);
        CHECK(!json_object_get(o.last, "signal"));
        CHECK_INT(member_int(o.last, "timed_out"), 0);
        CHECK_INT(member_int(o.last, "leftover"), 0);
        CHECK(member_int(o.last, "duration_ms") >= 0);
}

static void test_signal(void) {
        _cleanup_outcome_ struct outcome o;

        ask(command("kill -SEGV $$"), NULL, 0, &o);
        CHECK_INT(member_int(o.last, "signal"), SIGSEGV);
        CHECK(!json_object_get(o.last, "exit_code"));
}

static void test_environment(void) {
        _cleanup_outcome_ struct outcome o, p;

        ask(command_with("echo \"$PATH|$HOME|$USER|$TERM|$X y\"", "env", json_of("{\"X\":\"a b\",\"TERM\":\"vt100\"}")),
            NULL, 0, &o);
        CHECK_STR(o.out.data, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin|/root|root|vt100|a b y\n");
        ask(command("cat; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l; umask"), NULL, 0, &p);
        CHECK_STR(p.out.data, "/dev/null\n4\n0022\n"); /* 0, 1, 2 and ls's own */
}

static void test_environment_refused(void) {
        static const char *const names[] = {"PATH", "IFS", "ENV", "BASH_ENV", "LD_PRELOAD", "1A", "A-B", "", "A=B"};

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_outcome_ struct outcome o;
                json_t *env = json_object();

                json_object_set_new(env, names[i], json_string("x"));
                ask(command_with("true", "env", env), NULL, 0, &o);
                CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
                CHECK(o.error.message && strstr(o.error.message, names[i]));
        }
}

static void test_workdir(void) {
        _cleanup_outcome_ struct outcome o, p, q;

        ask(command_with("pwd", "workdir", json_string(folder)), NULL, 0, &o);
        CHECK(o.out.len > 0 && strncmp(o.out.data, folder, strlen(folder)) == 0);
        ask(command_with("pwd", "workdir", json_string("/no/such/place")), NULL, 0, &p);
        CHECK_INT(p.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(p.error.message && strstr(p.error.message, "/no/such/place"));
        CHECK(!p.first);
        ask(command_with("pwd", "workdir", json_string("relative")), NULL, 0, &q);
        CHECK_INT(q.error.code, ERROR_INVALID_ARGUMENT);
}

static void test_timeout_kills_the_tree(void) {
        _cleanup_outcome_ struct outcome o;
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

/* The host does not read: that must not delay the killing. */
static void test_timeout_with_full_window(void) {
        _cleanup_stream_ struct mux_stream *s =
                open_request(command_with("sleep 4712 & yes", "timeout_ms", json_integer(300)));
        _cleanup_outcome_ struct outcome o;

        for (int i = 0; i < 100 && runs("4712"); i++)
                poll(NULL, 0, 50);
        CHECK(!runs("4712"));
        gather(s, &o);
        CHECK_INT(member_int(o.last, "timed_out"), 1);
        CHECK(o.out.len >= WIRE_WINDOW);
}

static void test_cancel_kills_the_tree(void) {
        struct mux_stream *s = open_request(command("sleep 4713 & sleep 4713"));
        struct op op = patience();

        CHECK_INT(mux_expect_msg(s, WIRE_MSG_STARTED, &op, NULL, NULL), 0);
        CHECK(runs("4713"));
        mux_stream_unref(s);
        for (int i = 0; i < 100 && runs("4713"); i++)
                poll(NULL, 0, 50);
        CHECK(!runs("4713"));
}

static void test_stdin(void) {
        size_t n = 3 << 20;
        _cleanup_free_ char *data = malloc(n);
        _cleanup_outcome_ struct outcome o, p;
        struct op op = patience();
        _cleanup_stream_ struct mux_stream *s = NULL;

        for (size_t i = 0; i < n; i++)
                data[i] = (char) (i * 7 + i / 1000);
        ask(command_with("wc -c", "stdin", json_true()), data, n, &o);
        CHECK_STR(o.out.data, "3145728\n");

        s = open_request(command_with("cat", "stdin", json_true()));
        CHECK_INT(mux_send_data(s, WIRE_CH_IN, data, 100000, &op), 0);
        CHECK_INT(mux_send_eof(s, WIRE_CH_IN, &op), 0);
        gather(s, &p);
        REQUIRE(p.out.len == 100000);
        CHECK(memcmp(p.out.data, data, 100000) == 0);
}

/* More input than anybody takes: the command ends as if there were none. */
static void test_stdin_not_read(void) {
        _cleanup_free_ char *data = calloc(1, 1 << 20);
        _cleanup_stream_ struct mux_stream *s =
                open_request(command_with("sleep 0.3; echo done", "stdin", json_true()));
        _cleanup_outcome_ struct outcome o;
        struct op op = op_timeout(100);

        CHECK_INT(mux_send_data(s, WIRE_CH_IN, data, 1 << 20, &op), -ETIMEDOUT);
        gather(s, &o);
        CHECK_STR(o.out.data, "done\n");
        CHECK_INT(member_int(o.last, "exit_code"), 0);
}

static void test_stdin_not_read_cancel(void) {
        _cleanup_free_ char *data = calloc(1, 1 << 20);
        struct mux_stream *s = open_request(command_with("sleep 4714", "stdin", json_true()));
        struct op op = op_timeout(100);

        CHECK_INT(mux_send_data(s, WIRE_CH_IN, data, 1 << 20, &op), -ETIMEDOUT);
        CHECK(runs("4714"));
        mux_stream_unref(s);
        for (int i = 0; i < 100 && runs("4714"); i++)
                poll(NULL, 0, 50);
        CHECK(!runs("4714"));
}

static void test_background_process_lives_on(void) {
        _cleanup_outcome_ struct outcome o;
        _cleanup_free_ char *text = str_printf("(sleep 0.5; echo late; echo late; touch %s/alive) & echo now", folder);
        int64_t start = monotonic_ns();

        ask(command(text), NULL, 0, &o);
        CHECK((monotonic_ns() - start) / NSEC_PER_MSEC < 450);
        CHECK_STR(o.out.data, "now\n");
        CHECK(o.out_eof && o.err_eof);
        CHECK_INT(member_int(o.last, "leftover"), 1);
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        CHECK(wait_for_file("alive"));
}

static void test_background_process_that_prints_for_ever(void) {
        _cleanup_outcome_ struct outcome o;
        int64_t start = monotonic_ns();

        ask(command("(sleep 0.2; exec yes) & echo $!"), NULL, 0, &o);
        CHECK((monotonic_ns() - start) / NSEC_PER_MSEC < 5000);
        CHECK_INT(member_int(o.last, "leftover"), 1);
        if (o.out.data)
                kill((pid_t) strtol(o.out.data, NULL, 10), SIGKILL);
}

static void test_8_mib_on_both_streams(void) {
        _cleanup_outcome_ struct outcome o;
        bool ordered = true;

        ask(command("seq 1 1200000 & seq 1 1200000 >&2; wait"), NULL, 0, &o);
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        CHECK_INT(o.out.len, 8488896);
        CHECK_INT(o.err_out.len, 8488896);
        if (o.out.len == o.err_out.len)
                ordered = memcmp(o.out.data, o.err_out.data, o.out.len) == 0;
        CHECK(ordered);
        CHECK(o.out.len > 8 && memcmp(o.out.data + o.out.len - 8, "1200000\n", 8) == 0);
}

static void *one_of_many(void *arg) {
        _cleanup_free_ char *text = str_printf("echo %d; sleep 0.2; exit %d", *(int *) arg, *(int *) arg);
        _cleanup_free_ char *want = str_printf("%d\n", *(int *) arg);
        _cleanup_outcome_ struct outcome o;

        ask(command(text), NULL, 0, &o);
        *(int *) arg = str_eq(o.out.data, want) && member_int(o.last, "exit_code") == *(int *) arg ? 0 : 1;
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

static void test_lost_connection_kills_nothing(void) {
        _cleanup_free_ char *text = str_printf("sleep 0.3; head -c 1000000 /dev/zero; touch %s/went-on", folder);
        struct mux_stream *s = open_request(command(text));
        struct op op = patience();

        CHECK_INT(mux_expect_msg(s, WIRE_MSG_STARTED, &op, NULL, NULL), 0);
        mux_shutdown(host, -ESHUTDOWN);
        mux_stream_unref(s);
        disconnect_host();
        connect_host();
        CHECK(wait_for_file("went-on"));
}

static void test_lost_connection_keeps_the_timeout(void) {
        struct mux_stream *s = open_request(command_with("sleep 4715", "timeout_ms", json_integer(500)));
        struct op op = patience();

        CHECK_INT(mux_expect_msg(s, WIRE_MSG_STARTED, &op, NULL, NULL), 0);
        mux_shutdown(host, -ESHUTDOWN);
        mux_stream_unref(s);
        disconnect_host();
        connect_host();
        for (int i = 0; i < 100 && runs("4715"); i++)
                poll(NULL, 0, 50);
        CHECK(!runs("4715"));
}

static void test_command_too_long(void) {
        _cleanup_free_ char *text = malloc(140001);
        _cleanup_outcome_ struct outcome o;

        memset(text, 'x', 140000);
        text[140000] = '\0';
        ask(command(text), NULL, 0, &o);
        CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(o.error.hint && strstr(o.error.hint, "file_write"));
}

static void test_requests(void) {
        _cleanup_outcome_ struct outcome o, p, q, r;

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
        _cleanup_outcome_ struct outcome o;

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
        RUN(test_workdir);
        RUN(test_timeout_kills_the_tree);
        RUN(test_timeout_with_full_window);
        RUN(test_cancel_kills_the_tree);
        RUN(test_stdin);
        RUN(test_stdin_not_read);
        RUN(test_stdin_not_read_cancel);
        RUN(test_background_process_lives_on);
        RUN(test_background_process_that_prints_for_ever);
        RUN(test_8_mib_on_both_streams);
        RUN(test_50_at_once);
        RUN(test_lost_connection_kills_nothing);
        RUN(test_lost_connection_keeps_the_timeout);
        RUN(test_command_too_long);
        RUN(test_requests);
        RUN(test_no_root_yet);
        return fixture_end();
}
