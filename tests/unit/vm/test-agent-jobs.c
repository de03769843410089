/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs and the environment, with a guest that lies, floods or stalls. */
#include <signal.h>

#include "base/json.h"
#include "base/thread.h"
#include "talk.h"
#include "tap.h"

#define OUT(head, cut, total) "{\"head\":" #head ",\"cut\":" #cut ",\"total\":" #total "}"
#define NOTHING ",\"out\":" OUT(0, 0, 0) ",\"err\":" OUT(0, 0, 0) "}"
#define RUNNING "{\"type\":\"job\",\"running\":true,\"pty\":false,\"duration_ms\":5"
#define ENDED "{\"type\":\"job\",\"running\":false,\"pty\":false,\"duration_ms\":5,\"exit_code\":0"

static const char *seen_str(const char *key) {
        return json_string_value(json_object_get(seen_request(), key));
}

static int64_t seen_int(const char *key) {
        const json_t *v = json_object_get(seen_request(), key);

        return json_is_integer(v) ? json_integer_value(v) : -1;
}

static int read_at(int64_t out_offset, int64_t err_offset, struct agent_job *ret, struct error *e) {
        const struct agent_job_read_args args = {
                .job_id = 7, .wait_ms = 1500, .out_offset = out_offset, .err_offset = err_offset, .max_output = 10};

        return agent_job_read(agent, &args, patience(), ret, e);
}

/* Each way to ask, so that all of them can be given the same lies. */
static int ask_start(struct error *e) {
        uint64_t id = 0;

        return agent_job_start(agent, &(struct agent_exec_args){.command = "x"}, NULL, patience(), &id, e);
}

static int ask_read(struct error *e) {
        _cleanup_(agent_job_clear) struct agent_job job = {0};

        return read_at(-1, -1, &job, e);
}

static int ask_read_on(struct error *e) {
        _cleanup_(agent_job_clear) struct agent_job job = {0};

        return read_at(100, 0, &job, e);
}

static int ask_write(struct error *e) {
        uint64_t written = 0;

        return agent_job_write(agent, 7, "abc", 3, false, 1500, patience(), &written, e);
}

static int ask_kill(struct error *e) {
        uint64_t processes = 0;
        bool running = false;

        return agent_job_kill(agent, 7, SIGTERM, patience(), &running, &processes, e);
}

static int ask_resize(struct error *e) {
        return agent_job_resize(agent, 7, &(struct agent_terminal){80, 24}, patience(), e);
}

static int ask_list(struct error *e) {
        _cleanup_json_ json_t *jobs = NULL;
        uint64_t total = 0;

        return agent_job_list(agent, 2, patience(), &jobs, &total, e);
}

static int ask_set_env(struct error *e) {
        _cleanup_json_ json_t *vars = json_pack("{s:s}", "TOKEN", "hunter2");
        uint64_t total = 0;

        return agent_set_env(agent, vars, NULL, patience(), &total, e);
}

typedef int (*asker)(struct error *e);

static const asker all[] = {ask_start, ask_read, ask_read_on, ask_write, ask_kill, ask_resize, ask_list, ask_set_env};

static void check_lies(asker ask, const char *const *lies, size_t n) {
        int64_t ns = 0;

        REQUIRE(begin(play_script));
        for (size_t i = 0; i < n; i++) {
                _cleanup_error_ struct error e = ERROR_INIT;

                script = lies[i];
                int r = ask(&e);
                if (r != -EPROTO || e.code != ERROR_GUEST_UNREACHABLE)
                        printf("# %s\n# gave %d, %s\n", lies[i], r, error_message(&e));
                CHECK_INT(r, -EPROTO);
                CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
                CHECK(!strstr(error_message(&e), "hunter2"));
        }
        /* Only those calls failed. */
        CHECK(!agent_is_lost(agent));
        CHECK_INT(agent_ping(agent, patience(), &ns, NULL), 0);
        end();
}

/* --- what no request may be answered --- */

static void test_lies_about_anything(void) {
        static const char *const lies[] = {
                "",
                "!data",
                ".",
                "{\"type\":\"started\"}",
                "{\"type\":\"exit\",\"exit_code\":0,\"duration_ms\":1" NOTHING,
                "{\"type\":\"progress\",\"line\":\"x\"}\n{\"type\":\"ok\"}",
        };

        for (size_t i = 0; i < ARRAY_SIZE(all); i++)
                check_lies(all[i], lies, ARRAY_SIZE(lies));
}

static void test_errors(void) {
        REQUIRE(begin(play_script));
        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                _cleanup_error_ struct error e = ERROR_INIT;

                script = "{\"type\":\"error\",\"code\":\"not_found\",\"message\":\"No job 7\",\"hint\":\"List them.\"}";
                CHECK_INT(all[i](&e), -ENOENT);
                CHECK_STR(error_message(&e), "No job 7");
                CHECK_STR(e.hint, "List them.");
                script = "{\"no\":\"type\"}";
                CHECK(all[i](&e) < 0);
        }
        end();
}

static void play_stall(struct mux_stream *s, const json_t *request) {
        until_closed(s);
}

static void test_lost_connection(void) {
        REQUIRE(begin(play_stall));
        hang_up();
        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                _cleanup_error_ struct error e = ERROR_INIT;

                CHECK(all[i](&e) < 0);
                CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        }
        end();
}

/* --- starting --- */

static void test_start(void) {
        _cleanup_json_ json_t *env = json_pack("{s:s}", "A", "b");
        struct agent_exec_args args = {.command = "make", .workdir = "/src", .env = env, .timeout_ms = 9000};
        struct agent_terminal terminal = {.cols = 80};
        uint64_t id = 0;

        REQUIRE(begin(play_listener));
        script = "{\"type\":\"ok\",\"job_id\":7,\"pid\":300}";
        CHECK_INT(agent_job_start(agent, &args, NULL, patience(), &id, NULL), 0);
        CHECK_INT(id, 7);
        CHECK_STR(seen_str("type"), "job_start");
        CHECK_STR(seen_str("command"), "make");
        CHECK_STR(seen_str("workdir"), "/src");
        CHECK(json_equal(json_object_get(seen_request(), "env"), env));
        CHECK_INT(seen_int("timeout_ms"), 9000);
        CHECK(json_is_false(json_object_get(seen_request(), "pty")));
        CHECK_INT(json_object_size(seen_request()), 6);

        args = (struct agent_exec_args){.command = "top"};
        CHECK_INT(agent_job_start(agent, &args, &terminal, patience(), &id, NULL), 0);
        CHECK(json_is_true(json_object_get(seen_request(), "pty")));
        CHECK_INT(seen_int("cols"), 80);
        CHECK_INT(json_object_size(seen_request()), 4);
        terminal = (struct agent_terminal){.rows = 24};
        CHECK_INT(agent_job_start(agent, &args, &terminal, patience(), &id, NULL), 0);
        CHECK_INT(seen_int("rows"), 24);
        CHECK(!json_object_get(seen_request(), "cols"));
        end();
}

static void test_start_lies(void) {
        static const char *const lies[] = {
                "{\"type\":\"ok\"}",
                "{\"type\":\"ok\",\"job_id\":0}",
                "{\"type\":\"ok\",\"job_id\":-7}",
                "{\"type\":\"ok\",\"job_id\":\"7\"}",
                "{\"type\":\"ok\",\"job_id\":7.5}",
                "{\"type\":\"ok\",\"job_id\":7}\n{\"type\":\"ok\",\"job_id\":8}",
        };

        check_lies(ask_start, lies, ARRAY_SIZE(lies));
}

/* --- reading --- */

static void test_read_all(void) {
        _cleanup_(agent_job_clear) struct agent_job job = {0};

        REQUIRE(begin(play_listener));
        script = "!begEND\n?oops\n{\"type\":\"job\",\"running\":true,\"pty\":true,\"duration_ms\":5,"
                 "\"out\":" OUT(3, 90, 100) ",\"err\":" OUT(4, 0, 4) "}";
        REQUIRE(read_at(-1, -1, &job, NULL) == 0);
        CHECK_STR(seen_str("type"), "job_read");
        CHECK_INT(seen_int("job_id"), 7);
        CHECK_INT(seen_int("wait_ms"), 1500);
        CHECK_INT(seen_int("max_output"), 10);
        CHECK_INT(json_object_size(seen_request()), 4);
        CHECK(job.running && job.pty);
        CHECK_INT(job.result.exit_code, -1);
        CHECK_INT(job.result.job_id, 7);
        CHECK_INT(job.result.duration_ms, 5);
        CHECK_STR(job.result.out.head.data, "beg");
        CHECK_STR(job.result.out.tail.data, "END");
        CHECK(job.result.out.cut == 90 && job.result.out.total == 100);
        CHECK_STR(job.result.err.head.data, "oops");
        end();
}

static void test_read_on(void) {
        _cleanup_(agent_job_clear) struct agent_job job = {0};

        REQUIRE(begin(play_listener));
        /* 100 to 149 are not kept any more; the other stream has nothing new. */
        script = "!ten bytes.\n{\"type\":\"job\",\"running\":false,\"pty\":false,\"duration_ms\":5,\"signal\":15,"
                 "\"timed_out\":true,\"leftover\":true,\"out\":" OUT(0, 50, 1000) ",\"err\":" OUT(0, 0, 4) "}";
        REQUIRE(read_at(100, 4, &job, NULL) == 0);
        CHECK_INT(seen_int("out_offset"), 100);
        CHECK_INT(seen_int("err_offset"), 4);
        CHECK(!job.running && !job.pty);
        CHECK_INT(job.result.exit_code, -1);
        CHECK_INT(job.result.signal, 15);
        CHECK(job.result.timed_out && job.result.leftover);
        CHECK_INT(job.result.out.head.len, 0);
        CHECK_STR(job.result.out.tail.data, "ten bytes.");
        CHECK(job.result.out.cut == 50 && job.result.out.total == 1000);
        CHECK_INT(job.result.err.head.len + job.result.err.tail.len, 0);
        agent_job_clear(&job);

        /* An offset behind the end: nothing is there. */
        script = ENDED ",\"out\":" OUT(0, 0, 99) ",\"err\":" OUT(0, 0, 4) "}";
        REQUIRE(read_at(100, 5, &job, NULL) == 0);
        CHECK_INT(job.result.exit_code, 0);
        CHECK_INT(job.result.out.total, 99);
        end();
}

#define READ_LIES                                                                                                   \
        "{\"type\":\"ok\"}", "{\"type\":\"job\",\"pty\":false,\"duration_ms\":5" NOTHING,                           \
                "{\"type\":\"job\",\"running\":1,\"pty\":false,\"duration_ms\":5" NOTHING,                          \
                "{\"type\":\"job\",\"running\":true,\"duration_ms\":5" NOTHING,                                     \
                "{\"type\":\"job\",\"running\":false,\"pty\":false,\"duration_ms\":5" NOTHING,                      \
                "{\"type\":\"job\",\"running\":true,\"pty\":false" NOTHING,                                         \
                "{\"type\":\"job\",\"running\":true,\"pty\":false,\"duration_ms\":-5" NOTHING,                      \
                RUNNING ",\"exit_code\":0" NOTHING, RUNNING ",\"signal\":9" NOTHING, ENDED ",\"signal\":9" NOTHING, \
                RUNNING "}", RUNNING ",\"out\":5,\"err\":" OUT(0, 0, 0) "}",                                        \
                RUNNING ",\"out\":" OUT(1, 0, 1) ",\"err\":" OUT(0, 0, 0) "}",                                      \
                "!abc\n" RUNNING ",\"out\":" OUT(4, 0, 500) ",\"err\":" OUT(0, 0, 0) "}",                           \
                "!abc\n" RUNNING ",\"out\":" OUT(3, 0, 2) ",\"err\":" OUT(0, 0, 0) "}",                             \
                "!abc\n" RUNNING                                                                                    \
                ",\"out\":" OUT(3, 9223372036854775807, 9223372036854775807) ",\"err\":" OUT(0, 0, 0) "}",          \
                "!abcdefghijk\n" RUNNING ",\"out\":" OUT(11, 0, 500) ",\"err\":" OUT(0, 0, 0) "}",                  \
                "?abcdefghijk\n" RUNNING ",\"out\":" OUT(0, 0, 0) ",\"err\":" OUT(11, 0, 500) "}",                  \
                "=abc\n" RUNNING NOTHING, RUNNING NOTHING "\n!late", RUNNING NOTHING "\n" RUNNING NOTHING

static void test_read_lies(void) {
        static const char *const lies[] = {
                READ_LIES,
                /* Nobody can write any more, so what was written has to be here. */
                "!abc\n" ENDED ",\"out\":" OUT(3, 0, 4) ",\"err\":" OUT(0, 0, 0) "}",
        };
        static const char *const lies_on[] = {
                READ_LIES,
                /* Behind offset 100. */
                "!abc\n" RUNNING ",\"out\":" OUT(3, 0, 102) ",\"err\":" OUT(0, 0, 0) "}",
                "!abc\n" RUNNING ",\"out\":" OUT(3, 50, 150) ",\"err\":" OUT(0, 0, 0) "}",
                RUNNING ",\"out\":" OUT(0, 1, 100) ",\"err\":" OUT(0, 0, 0) "}",
        };

        check_lies(ask_read, lies, ARRAY_SIZE(lies));
        check_lies(ask_read_on, lies_on, ARRAY_SIZE(lies_on));
}

/* --- writing --- */

static void test_write(void) {
        const size_t n = WIRE_JOB_WRITE_MAX;
        _cleanup_free_ char *data = calloc(1, n + 1);
        _cleanup_error_ struct error e = ERROR_INIT;
        uint64_t written = 0;

        REQUIRE(begin(play_listener));
        script = "{\"type\":\"ok\",\"written\":2}";
        CHECK_INT(agent_job_write(agent, 7, "abc", 3, true, 1500, patience(), &written, NULL), 0);
        CHECK_INT(written, 2);
        CHECK_STR(seen_str("type"), "job_write");
        CHECK_INT(seen_int("job_id"), 7);
        CHECK_INT(seen_int("wait_ms"), 1500);
        CHECK(json_is_true(json_object_get(seen_request(), "eof")));
        CHECK_STR(seen_input()->data, "abc");
        CHECK(seen_input_end());

        /* Nothing but the end. */
        script = "{\"type\":\"ok\",\"written\":0}";
        CHECK_INT(agent_job_write(agent, 7, NULL, 0, true, 1500, patience(), &written, NULL), 0);
        CHECK(written == 0 && seen_input()->len == 0 && seen_input_end());

        script = "{\"type\":\"ok\",\"written\":1048576}";
        CHECK_INT(agent_job_write(agent, 7, data, n, false, 1500, patience(), &written, NULL), 0);
        CHECK(json_is_false(json_object_get(seen_request(), "eof")));
        CHECK(written == n && seen_input()->len == n);
        CHECK(agent_job_write(agent, 7, data, n + 1, false, 1500, patience(), &written, &e) < 0);
        CHECK_INT(e.code, ERROR_INVALID_ARGUMENT);
        end();
}

/* A guest that answers before it has taken what is sent. */
static void test_write_that_is_answered_early(void) {
        const size_t n = WIRE_JOB_WRITE_MAX;
        _cleanup_free_ char *data = calloc(1, n);
        _cleanup_error_ struct error e = ERROR_INIT;
        uint64_t written = 0;

        REQUIRE(begin(play_script));
        script = "{\"type\":\"ok\",\"written\":65536}";
        CHECK_INT(agent_job_write(agent, 7, data, n, false, 1500, patience(), &written, NULL), 0);
        CHECK_INT(written, 65536);
        script = "{\"type\":\"error\",\"code\":\"conflict\",\"message\":\"The job 7 has ended\"}";
        CHECK(agent_job_write(agent, 7, data, n, false, 1500, patience(), &written, &e) < 0);
        CHECK_STR(error_message(&e), "The job 7 has ended");
        end();
}

static void test_write_lies(void) {
        static const char *const lies[] = {
                "{\"type\":\"ok\"}",
                "{\"type\":\"ok\",\"written\":4}",
                "{\"type\":\"ok\",\"written\":-1}",
                "{\"type\":\"ok\",\"written\":true}",
                "{\"type\":\"ok\",\"written\":3}\n!abc",
        };

        check_lies(ask_write, lies, ARRAY_SIZE(lies));
}

/* --- signals and terminals --- */

static void test_kill_and_resize(void) {
        uint64_t processes = 0;
        bool running = false;

        REQUIRE(begin(play_listener));
        script = "{\"type\":\"ok\",\"running\":true,\"processes\":3}";
        CHECK_INT(agent_job_kill(agent, 7, SIGTERM, patience(), &running, &processes, NULL), 0);
        CHECK_STR(seen_str("type"), "job_kill");
        CHECK_INT(seen_int("job_id"), 7);
        CHECK_INT(seen_int("signal"), SIGTERM);
        CHECK(running && processes == 3);
        script = "{\"type\":\"ok\"}";
        CHECK_INT(agent_job_resize(agent, 7, &(struct agent_terminal){132, 50}, patience(), NULL), 0);
        CHECK_STR(seen_str("type"), "job_resize");
        CHECK_INT(seen_int("cols"), 132);
        CHECK_INT(seen_int("rows"), 50);
        end();
}

static void test_kill_lies(void) {
        static const char *const lies[] = {
                "{\"type\":\"ok\",\"running\":true}",
                "{\"type\":\"ok\",\"processes\":1}",
                "{\"type\":\"ok\",\"running\":0,\"processes\":1}",
                "{\"type\":\"ok\",\"running\":true,\"processes\":-1}",
                "{\"type\":\"ok\",\"running\":true,\"processes\":\"1\"}",
        };

        check_lies(ask_kill, lies, ARRAY_SIZE(lies));
}

/* --- listing --- */

#define JOB(id, command, state)                                                \
        "{\"job_id\":" #id ",\"command\":\"" command "\",\"pty\":false," state \
        ",\"started_ms\":1000,\"duration_ms\":20,\"out_total\":30,\"err_total\":40}"
#define LIST(total, jobs) "{\"type\":\"ok\",\"total\":" #total ",\"jobs\":[" jobs "]}"
#define GOING "\"running\":true,\"timed_out\":false,\"leftover\":false"
#define GONE "\"running\":false,\"exit_code\":3,\"timed_out\":false,\"leftover\":true"
#define SHOT "\"running\":false,\"signal\":9,\"timed_out\":true,\"leftover\":false"

static void check_entry(const json_t *entry, const char *want) {
        _cleanup_json_ json_t *expected = NULL;
        _cleanup_free_ char *got = json_dumps(entry, 0);

        REQUIRE(json_parse(want, strlen(want), 1 << 16, 4, &expected, NULL) == 0);
        CHECK(json_equal(entry, expected));
        if (!json_equal(entry, expected))
                printf("# %s\n", got);
}

static void test_list(void) {
        _cleanup_json_ json_t *jobs = NULL;
        uint64_t total = 0;

        REQUIRE(begin(play_listener));
        script = LIST(9, JOB(5, "sleep 9", GOING) "," JOB(6, "a\\nb\\u001b[2J\\u009b", GONE) "," JOB(8, "", SHOT));
        REQUIRE(agent_job_list(agent, 1000, patience(), &jobs, &total, NULL) == 0);
        CHECK_STR(seen_str("type"), "job_list");
        CHECK_INT(seen_int("max"), WIRE_JOB_LIST_MAX);
        CHECK_INT(total, 9);
        REQUIRE(json_array_size(jobs) == 3);
        check_entry(json_array_get(jobs, 0),
                    "{\"job_id\":5,\"command\":\"sleep 9\",\"running\":true,\"pty\":false,\"exit_code\":null,"
                    "\"timed_out\":false,\"left_running\":false,\"started_at\":\"1970-01-01T00:00:01.000Z\","
                    "\"duration_ms\":20,\"stdout_bytes\":30,\"stderr_bytes\":40}");
        check_entry(json_array_get(jobs, 1),
                    "{\"job_id\":6,\"command\":\"a\\nb [2J  \",\"running\":false,\"pty\":false,\"exit_code\":3,"
                    "\"timed_out\":false,\"left_running\":true,\"started_at\":\"1970-01-01T00:00:01.000Z\","
                    "\"duration_ms\":20,\"stdout_bytes\":30,\"stderr_bytes\":40}");
        CHECK_INT(json_integer_value(json_object_get(json_array_get(jobs, 2), "exit_code")), 137);
        CHECK_INT(json_integer_value(json_object_get(json_array_get(jobs, 2), "signal")), 9);
        end();
}

static void test_list_bounds_what_it_shows(void) {
        _cleanup_json_ json_t *jobs = NULL;
        char text[4096], command[1001] = "a";
        uint64_t total = 0;

        for (size_t i = 1; i + 2 < sizeof(command); i += 2)
                memcpy(command + i, "\xc3\xa9", 3);
        snprintf(
                text, sizeof(text),
                "{\"type\":\"ok\",\"total\":1,\"jobs\":[{\"job_id\":1,\"command\":\"%s\",\"pty\":true,\"running\":true,"
                "\"started_ms\":%lld,\"duration_ms\":1,\"out_total\":0,\"err_total\":0}]}",
                command, (long long) INT64_MAX);
        REQUIRE(begin(play_script));
        script = text;
        REQUIRE(agent_job_list(agent, 1, patience(), &jobs, &total, NULL) == 0);
        const json_t *job = json_array_get(jobs, 0);
        CHECK_INT(json_string_length(json_object_get(job, "command")), WIRE_JOB_COMMAND_SHOWN - 1);
        CHECK_STR(json_string_value(json_object_get(job, "started_at")), "9999-12-31T23:59:59.999Z");
        end();
}

static void test_list_lies(void) {
        static const char *const lies[] = {
                "{\"type\":\"ok\"}",
                "{\"type\":\"ok\",\"total\":0}",
                "{\"type\":\"ok\",\"jobs\":[]}",
                "{\"type\":\"ok\",\"total\":-1,\"jobs\":[]}",
                "{\"type\":\"ok\",\"total\":1,\"jobs\":{}}",
                LIST(5, "7"),
                LIST(5, "{}"),
                LIST(5, "[]"),
                LIST(0, JOB(1, "x", GOING)),
                LIST(5, JOB(1, "x", GOING) "," JOB(2, "x", GOING) "," JOB(3, "x", GOING)),
                LIST(5, JOB(0, "x", GOING)),
                LIST(5, JOB(-1, "x", GOING)),
                LIST(5, JOB("1", "x", GOING)),
                LIST(5, JOB(1, "x", "\"running\":true,\"exit_code\":1")),
                LIST(5, JOB(1, "x", "\"running\":false")),
                LIST(5, JOB(1, "x", "\"running\":false,\"exit_code\":1,\"signal\":2")),
                LIST(5, JOB(1, "x", "\"running\":false,\"exit_code\":1000")),
                LIST(5, JOB(1, "x", "\"running\":false,\"exit_code\":1,\"timed_out\":\"yes\"")),
                LIST(5, "{\"job_id\":1,\"command\":null,\"pty\":false," GOING
                        ",\"started_ms\":1,\"duration_ms\":2,\"out_total\":3,\"err_total\":4}"),
                LIST(5, "{\"job_id\":1,\"command\":\"x\",\"pty\":false," GOING
                        ",\"started_ms\":\"now\",\"duration_ms\":2,\"out_total\":3,\"err_total\":4}"),
                LIST(5, "{\"job_id\":1,\"command\":\"x\",\"pty\":false," GOING
                        ",\"started_ms\":1,\"duration_ms\":-2,\"out_total\":3,\"err_total\":4}"),
                LIST(5, "{\"job_id\":1,\"command\":\"x\",\"pty\":false," GOING
                        ",\"started_ms\":1,\"duration_ms\":2,\"out_total\":-3,\"err_total\":4}"),
                LIST(5, "{\"job_id\":1,\"command\":\"x\",\"pty\":false," GOING
                        ",\"started_ms\":1,\"duration_ms\":2,\"out_total\":3}"),
                LIST(5, "{\"job_id\":1,\"command\":\"x\"," GOING
                        ",\"started_ms\":1,\"duration_ms\":2,\"out_total\":3,\"err_total\":4}"),
        };

        check_lies(ask_list, lies, ARRAY_SIZE(lies));
}

/* --- environment --- */

static void test_set_env(void) {
        _cleanup_json_ json_t *vars = json_pack("{s:s, s:s}", "A", "1", "B", ""), *unset = json_pack("[s]", "C");
        uint64_t total = 0;

        REQUIRE(begin(play_listener));
        script = "{\"type\":\"ok\",\"total\":256}";
        CHECK_INT(agent_set_env(agent, vars, NULL, patience(), &total, NULL), 0);
        CHECK_INT(total, 256);
        CHECK_STR(seen_str("type"), "set_env");
        CHECK(json_equal(json_object_get(seen_request(), "vars"), vars));
        CHECK(!json_object_get(seen_request(), "unset"));
        CHECK_INT(agent_set_env(agent, vars, unset, patience(), &total, NULL), 0);
        CHECK(json_equal(json_object_get(seen_request(), "unset"), unset));
        end();
}

static void test_set_env_lies(void) {
        static const char *const lies[] = {
                "{\"type\":\"ok\"}",
                "{\"type\":\"ok\",\"total\":-1}",
                "{\"type\":\"ok\",\"total\":257}",
                "{\"type\":\"ok\",\"total\":\"hunter2\"}",
        };

        check_lies(ask_set_env, lies, ARRAY_SIZE(lies));
}

/* No error of ours shows a value. */
static void test_set_env_keeps_secrets(void) {
        _cleanup_free_ char *value = malloc(WIRE_FRAME_MAX + 1);
        _cleanup_json_ json_t *vars = json_object();
        _cleanup_error_ struct error e = ERROR_INIT;
        struct op op = op_timeout(50);
        uint64_t total = 0;

        memset(value, 'x', WIRE_FRAME_MAX);
        memcpy(value, "hunter2", 7);
        value[WIRE_FRAME_MAX] = '\0';
        REQUIRE(begin(play_stall));
        CHECK_INT(json_put(vars, "TOKEN", json_string(value)), 0);
        CHECK_INT(agent_set_env(agent, vars, NULL, patience(), &total, &e), -EINVAL);
        CHECK(!strstr(error_message(&e), "hunter2") && strlen(error_message(&e)) < 200);
        CHECK_INT(json_put(vars, "TOKEN", json_string("hunter2")), 0);
        CHECK_INT(agent_set_env(agent, vars, NULL, &op, &total, &e), -ETIMEDOUT);
        CHECK(!strstr(error_message(&e), "hunter2"));
        end();
}

/* --- time --- */

static void test_deadline_and_cancel(void) {
        const struct agent_job_read_args read = {
                .job_id = 1, .wait_ms = WIRE_JOB_WAIT_MAX_MS, .out_offset = -1, .err_offset = -1, .max_output = 10};
        _cleanup_(agent_job_clear) struct agent_job job = {0};
        struct op op = op_timeout(50);
        uint64_t n = 0;

        REQUIRE(begin(play_stall));
        CHECK_INT(agent_job_read(agent, &read, &op, &job, NULL), -ETIMEDOUT);
        op = op_timeout(50);
        CHECK_INT(agent_job_write(agent, 1, "x", 1, false, WIRE_JOB_WAIT_MAX_MS, &op, &n, NULL), -ETIMEDOUT);
        op = *patience();
        op.cancel = cancel_new();
        cancel_fire(op.cancel);
        CHECK_INT(agent_job_read(agent, &read, &op, &job, NULL), -ECANCELED);
        CHECK_INT(agent_job_write(agent, 1, "x", 1, false, WIRE_JOB_WAIT_MAX_MS, &op, &n, NULL), -ECANCELED);
        cancel_unref(op.cancel);
        end();
}

struct timed {
        asker ask;
        int status;
        int64_t ns;
};

static void *run_timed(void *arg) {
        struct timed *t = arg;
        int64_t start = monotonic_ns();

        t->status = t->ask(NULL);
        t->ns = monotonic_ns() - start;
        return NULL;
}

/* A guest that does not keep the time to wait, 1.5 s here: ended ten seconds behind it. */
static void test_guest_that_forgets_the_time(void) {
        struct timed calls[] = {{.ask = ask_read}, {.ask = ask_read_on}, {.ask = ask_write}};
        pthread_t threads[ARRAY_SIZE(calls)];

        REQUIRE(begin(play_stall));
        for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
                REQUIRE(thread_start(&threads[i], "timed", run_timed, &calls[i]) == 0);
        for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
                pthread_join(threads[i], NULL);
                CHECK_INT(calls[i].status, -ETIMEDOUT);
                CHECK(calls[i].ns >= 11 * NSEC_PER_SEC && calls[i].ns < 40 * NSEC_PER_SEC);
        }
        end();
}

int main(void) {
        RUN(test_lies_about_anything);
        RUN(test_errors);
        RUN(test_lost_connection);
        RUN(test_start);
        RUN(test_start_lies);
        RUN(test_read_all);
        RUN(test_read_on);
        RUN(test_read_lies);
        RUN(test_write);
        RUN(test_write_that_is_answered_early);
        RUN(test_write_lies);
        RUN(test_kill_and_resize);
        RUN(test_kill_lies);
        RUN(test_list);
        RUN(test_list_bounds_what_it_shows);
        RUN(test_list_lies);
        RUN(test_set_env);
        RUN(test_set_env_lies);
        RUN(test_set_env_keeps_secrets);
        RUN(test_deadline_and_cancel);
        RUN(test_guest_that_forgets_the_time);
        return tap_done();
}
