/* SPDX-License-Identifier: Apache-2.0 */

/* Jobs, without cgroups and, where this machine has them and lets us, with them. */

#include <signal.h>
#include <sys/stat.h>

#include "job_fixture.h"

/* ---- reading ---- */

static void test_from_start_to_end(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, l = {0};
        int64_t id = start_job("echo one; echo two >&2; exit 7");
        const json_t *entry;

        REQUIRE(id > 0);
        REQUIRE(read_end(id, &o));
        CHECK_STR(o.out.data, "one\n");
        CHECK_STR(o.err_out.data, "two\n");
        CHECK_STR(member_str(o.last, "type"), "job");
        CHECK_INT(member_int(o.last, "exit_code"), 7);
        CHECK(!json_object_get(o.last, "signal"));
        CHECK_INT(member_int(o.last, "timed_out"), 0);
        CHECK_INT(member_int(o.last, "leftover"), 0);
        CHECK_INT(member_int(o.last, "pty"), 0);
        CHECK(member_int(o.last, "duration_ms") >= 0);
        /* As often as one likes, and from anywhere. */
        ask(read_request(id, 0, 2, 4), NULL, 0, &p);
        CHECK_STR(p.out.data, "e\n");
        CHECK_INT(p.err_out.len, 0);
        entry = listed(&l, "echo one; echo two");
        REQUIRE(entry);
        CHECK_INT(member_int(entry, "job_id"), id);
        CHECK_INT(member_int(entry, "running"), 0);
        CHECK_INT(member_int(entry, "exit_code"), 7);
        CHECK_INT(member_int(entry, "out_total"), 4);
        CHECK(member_int(entry, "started_ms") > 1600000000000);
}

static void test_a_read_waits_for_output(void) {
        int64_t id = start_job("read x; echo \"got $x\"; sleep 4800");
        _cleanup_stream_ struct mux_stream *s = open_request(read_request(id, 60000, 0, 0));
        _cleanup_outcome_ struct outcome o = {0};
        int64_t start = monotonic_ns();

        type_in(id, "it\n");
        gather(s, &o);
        CHECK_STR(o.out.data, "got it\n");
        CHECK_INT(member_int(o.last, "running"), 1);
        CHECK((monotonic_ns() - start) / NSEC_PER_MSEC < 30000);
        kill_job(id);
}

static void test_a_read_waits_for_the_end(void) {
        int64_t id = start_job("read x; exit 3");
        _cleanup_stream_ struct mux_stream *s = open_request(read_request(id, 60000, 0, 0));
        _cleanup_outcome_ struct outcome o = {0};

        type_in(id, "\n");
        gather(s, &o);
        CHECK_INT(member_int(o.last, "exit_code"), 3);
}

static void test_a_read_waits_no_longer_than_asked(void) {
        int64_t id = start_job("echo here; sleep 4801"), start;
        _cleanup_outcome_ struct outcome o = {0};

        CHECK(wait_output(id, "here"));
        start = monotonic_ns();
        ask(read_request(id, 200, 5, 0), NULL, 0, &o);
        CHECK((monotonic_ns() - start) / NSEC_PER_MSEC >= 200);
        CHECK_INT(o.out.len, 0);
        CHECK_INT(member_int(o.last, "running"), 1);
        kill_job(id);
}

/* Who names no offset gets all of it, and waits for what nobody was given. */
static void test_a_read_without_offset_waits_for_news(void) {
        int64_t id = start_job("echo old; read x; echo \"new $x\"; sleep 4803");
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0};
        struct mux_stream *s;
        struct op op = op_timeout(200);

        CHECK(wait_output(id, "old"));
        ask(read_request(id, 200, -1, -1), NULL, 0, &o);
        CHECK_STR(o.out.data, "old\n");
        s = open_request(read_request(id, 60000, -1, -1));
        {
                _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;
                CHECK_INT(mux_recv(s, &op, &ev), -ETIMEDOUT);
        }
        type_in(id, "it\n");
        gather(s, &p);
        mux_stream_unref(s);
        CHECK_STR(p.out.data, "old\nnew it\n");
        /* An offset behind the end is told at once. */
        ask(read_request(id, 60000, 1000, 0), NULL, 0, &q);
        CHECK_INT(q.out.len, 0);
        CHECK_INT(member_int(q.last, "running"), 1);
        kill_job(id);
}

/* The host leaves while it waits: its request ends, the job does not. */
static void test_a_read_that_is_closed(void) {
        int64_t id = start_job("read x; echo on");
        struct mux_stream *s = open_request(read_request(id, 60000, 0, 0));
        _cleanup_outcome_ struct outcome o = {0};

        mux_stream_unref(s);
        type_in(id, "\n");
        REQUIRE(read_end(id, &o));
        CHECK_STR(o.out.data, "on\n");
}

/* It neither stops nor fills the memory. */
static void test_300_mib(void) {
        int64_t id = start_job("head -c 314572800 /dev/zero; echo end");
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        REQUIRE(read_end(id, &o));
        CHECK_INT(total(o.last, "out"), 314572804);
        CHECK_INT(o.out.len, WIRE_OUTPUT_MAX);
        CHECK(o.out.len > 4 && memcmp(o.out.data + o.out.len - 4, "end\n", 4) == 0);
        ask(read_request(id, 0, SPOOL_HEAD_MAX, 0), NULL, 0, &p);
        CHECK_INT(member_int(json_object_get(p.last, "out"), "head"), 0);
        CHECK_INT(member_int(json_object_get(p.last, "out"), "cut"), 314572804 - SPOOL_HEAD_MAX - SPOOL_RING_MAX);
        CHECK(agent.jobs.spools.bytes.used < 4 * (SPOOL_HEAD_MAX + SPOOL_RING_MAX));
}

static void test_unknown_jobs(void) {
        static const char *const requests[] = {
                "{\"type\":\"job_read\",\"job_id\":424242,\"wait_ms\":0,\"max_output\":10}",
                "{\"type\":\"job_kill\",\"job_id\":424242,\"signal\":9}",
                "{\"type\":\"job_resize\",\"job_id\":424242,\"cols\":80,\"rows\":24}",
                "{\"type\":\"job_write\",\"job_id\":424242,\"eof\":false,\"wait_ms\":0}",
        };

        for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
                _cleanup_outcome_ struct outcome o = {0};

                ask(json_of("%s", requests[i]), NULL, 0, &o);
                CHECK_INT(o.error.code, ERROR_NOT_FOUND);
                CHECK(o.error.message && strstr(o.error.message, "424242") && strstr(o.error.message, "from 1 to"));
                CHECK(o.error.hint && strstr(o.error.hint, "list"));
        }
}

/* ---- exec and jobs ---- */

static void test_an_exec_that_ended_is_not_listed(void) {
        _cleanup_outcome_ struct outcome o = {0}, l = {0};

        ask(command("true never-listed"), NULL, 0, &o);
        CHECK(!listed(&l, "never-listed"));
}

static void test_yield(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0};
        json_t *request =
                command_with("echo before; cat; read x < gate; echo after; exit 9", "yield_ms", json_integer(300));
        int64_t id;

        json_object_set_new(request, "stdin", json_true());
        json_object_set_new(request, "workdir", json_string(folder));
        REQUIRE(mkfifo(in_folder("gate"), 0600) == 0);
        ask(request, "input\n", 6, &o);
        CHECK_STR(o.out.data, "before\ninput\n");
        CHECK_STR(member_str(o.last, "type"), "yielded");
        CHECK_INT(total(o.last, "out"), 13);
        id = member_int(o.last, "job_id");
        REQUIRE(id > 0);
        {
                _cleanup_outcome_ struct outcome opened = {0};
                ask(command_with("echo > gate", "workdir", json_string(folder)), NULL, 0, &opened);
        }
        REQUIRE(read_end(id, &p));
        CHECK_STR(p.out.data, "before\ninput\nafter\n");
        CHECK_INT(member_int(p.last, "exit_code"), 9);
}

/* What it has not read when it yields is still there for it. */
static void test_yield_keeps_the_input(void) {
        size_t n = 2 << 20;
        _cleanup_free_ char *data = calloc(1, n);
        _cleanup_outcome_ struct outcome o = {0}, p = {0};
        json_t *request = command_with("sleep 0.4; wc -c", "yield_ms", json_integer(50));

        json_object_set_new(request, "stdin", json_true());
        ask(request, data, n, &o);
        REQUIRE(str_eq(member_str(o.last, "type"), "yielded"));
        CHECK(agent.inputs.used == n);
        REQUIRE(read_end(member_int(o.last, "job_id"), &p));
        CHECK_STR(p.out.data, "2097152\n");
        CHECK_INT(agent.inputs.used, 0);
}

static void test_timeout_after_the_yield(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0};
        json_t *request = command_with("setsid sleep 4810 & echo up; sleep 4810", "yield_ms", json_integer(100));

        json_object_set_new(request, "timeout_ms", json_integer(500));
        ask(request, NULL, 0, &o);
        REQUIRE(str_eq(member_str(o.last, "type"), "yielded"));
        REQUIRE(read_end(member_int(o.last, "job_id"), &p));
        CHECK_INT(member_int(p.last, "timed_out"), 1);
        CHECK_INT(member_int(p.last, "signal"), SIGKILL);
        CHECK(!runs("4810"));
}

static void test_close_kills_an_exec_and_what_it_started(void) {
        struct mux_stream *s = open_request(command("setsid sleep 4811 & sh -c 'sleep 4811 & sleep 4811'"));
        _cleanup_outcome_ struct outcome l = {0};

        CHECK(wait_runs("4811", true));
        mux_stream_unref(s);
        CHECK(wait_runs("4811", false));
        CHECK(!listed(&l, "setsid sleep 4811 & sh"));
}

static void test_a_lost_connection_keeps_an_exec(void) {
        _cleanup_free_ char *text = str_printf("echo lost-exec; touch %s/began; while [ ! -e %s/go ]; do sleep 0.02; "
                                               "done; echo kept; exit 4",
                                               folder, folder);
        struct mux_stream *s = open_request(command(text));
        _cleanup_outcome_ struct outcome l = {0}, o = {0};
        json_t *entry = NULL;

        CHECK(wait_for_file("began"));
        reconnect_host();
        mux_stream_unref(s);
        for (int i = 0; i < 200 && !entry; i++) {
                if (i > 0) {
                        outcome_clear(&l);
                        poll(NULL, 0, 10);
                }
                entry = listed(&l, "lost-exec");
        }
        REQUIRE(entry);
        CHECK_INT(member_int(entry, "running"), 1);
        CHECK(!json_object_get(entry, "exit_code"));
        REQUIRE(file_write_atomic(in_folder("go"), "", 0, 0600) == 0);
        REQUIRE(read_end(member_int(entry, "job_id"), &o));
        CHECK_STR(o.out.data, "lost-exec\nkept\n");
        CHECK_INT(member_int(o.last, "exit_code"), 4);
}

/* ---- writing ---- */

static void test_write_and_end_of_file(void) {
        int64_t id = start_job("wc -l");
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0}, again = {0};

        type_in(id, "a\nb\n");
        write_to(id, "c\n", 2, true, 1000, &o);
        CHECK_INT(member_int(o.last, "written"), 2);
        REQUIRE(read_end(id, &p));
        CHECK(p.out.data && strtol(p.out.data, NULL, 10) == 3);
        write_to(id, "d\n", 2, false, 1000, &q);
        CHECK_INT(q.error.code, ERROR_CONFLICT);
        CHECK(q.error.message && strstr(q.error.message, "has ended"));
        write_to(id, "", 0, true, 1000, &again);
        CHECK_INT(again.error.code, ERROR_CONFLICT);
}

static void test_a_closed_input(void) {
        int64_t id = start_job("exec < /dev/null; echo closed; sleep 4820");
        _cleanup_outcome_ struct outcome o = {0};

        CHECK(wait_output(id, "closed"));
        write_to(id, "x", 1, false, 1000, &o);
        CHECK_INT(o.error.code, ERROR_CONFLICT);
        CHECK(o.error.message && strstr(o.error.message, "closed"));
        kill_job(id);
}

static void test_a_job_that_does_not_read(void) {
        _cleanup_free_ char *data = calloc(1, 300000);
        int64_t id = start_job("sleep 4821");
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        write_to(id, data, 300000, true, 100, &o);
        CHECK(member_int(o.last, "written") > 0 && member_int(o.last, "written") < 300000);
        write_to(id, data, 300000, false, 0, &p);
        CHECK_INT(member_int(p.last, "written"), 0);
        CHECK_INT(agent.inputs.used, 0);
        kill_job(id);
}

/* A megabyte goes through as the job reads; another writer waits for its turn. */
static void test_two_writers(void) {
        size_t n = WIRE_JOB_WRITE_MAX;
        _cleanup_free_ char *data = calloc(1, n);
        int64_t id = start_job("sleep 0.2; wc -c");
        _cleanup_stream_ struct mux_stream *a = NULL, *b = NULL;
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0}, end = {0};
        struct op op = patience();

        a = open_request(json_of("{\"type\":\"job_write\",\"job_id\":%lld,\"wait_ms\":20000}", (long long) id));
        b = open_request(json_of("{\"type\":\"job_write\",\"job_id\":%lld,\"wait_ms\":20000}", (long long) id));
        CHECK_INT(mux_send_data(a, WIRE_CH_IN, data, n, &op), 0);
        CHECK_INT(mux_send_data(b, WIRE_CH_IN, data, n, &op), 0);
        CHECK_INT(mux_send_eof(a, WIRE_CH_IN, &op), 0);
        CHECK_INT(mux_send_eof(b, WIRE_CH_IN, &op), 0);
        gather(a, &o);
        gather(b, &p);
        CHECK_INT(member_int(o.last, "written"), n);
        CHECK_INT(member_int(p.last, "written"), n);
        write_to(id, "", 0, true, 1000, &q);
        REQUIRE(read_end(id, &end));
        CHECK_STR(end.out.data, "2097152\n");
}

static void test_a_write_that_is_closed(void) {
        _cleanup_free_ char *data = calloc(1, 300000);
        int64_t id = start_job("read x; sleep 4822");
        struct mux_stream *s =
                open_request(json_of("{\"type\":\"job_write\",\"job_id\":%lld,\"wait_ms\":60000}", (long long) id));
        _cleanup_outcome_ struct outcome o = {0};
        struct op op = patience();

        CHECK_INT(mux_send_data(s, WIRE_CH_IN, data, 300000, &op), 0);
        CHECK_INT(mux_send_eof(s, WIRE_CH_IN, &op), 0);
        mux_stream_unref(s);
        /* The next one gets its turn. */
        write_to(id, "x", 1, false, 0, &o);
        CHECK(o.last != NULL);
        kill_job(id);
        CHECK_INT(agent.inputs.used, 0);
}

/* ---- signals ---- */

static void test_kill_reaches_everything(void) {
        int64_t id = start_job("setsid sleep 4830 & sh -c 'trap \"\" TERM INT HUP; sleep 4830' & echo up; sleep 4830");
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        CHECK(wait_output(id, "up"));
        signal_job(id, SIGKILL, &o);
        CHECK_INT(member_int(o.last, "running"), 0);
        CHECK(member_int(o.last, "processes") >= 3);
        CHECK(!runs("4830"));
        REQUIRE(read_end(id, &p));
        CHECK_INT(member_int(p.last, "signal"), SIGKILL);
        CHECK_INT(member_int(p.last, "timed_out"), 0);
}

static void test_a_signal_that_is_handled(void) {
        int64_t id = start_job("trap 'echo caught; exit 5' TERM; echo up; while :; do sleep 0.05; done");
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        CHECK(wait_output(id, "up"));
        signal_job(id, SIGTERM, &o);
        CHECK(member_int(o.last, "processes") >= 1);
        REQUIRE(read_end(id, &p));
        CHECK_INT(member_int(p.last, "exit_code"), 5);
        CHECK(p.out.data && strstr(p.out.data, "caught"));
}

static void test_a_signal_to_an_ended_job(void) {
        int64_t id = start_job("exit 0");
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        REQUIRE(read_end(id, &o));
        signal_job(id, SIGKILL, &p);
        CHECK_INT(member_int(p.last, "running"), 0);
        CHECK_INT(member_int(p.last, "processes"), 0);
}

/* Only the cgroup still knows what an ended job has left behind, whatever session it is in. */
static void test_what_was_left_behind(void) {
        int64_t id = start_job("setsid sleep 4831 > /dev/null 2>&1 & setsid sleep 4831 & echo up; exit 0");
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0};

        REQUIRE(read_end(id, &o));
        CHECK_INT(member_int(o.last, "leftover"), 1);
        CHECK_STR(o.out.data, "up\n");
        CHECK(runs("4831"));
        signal_job(id, SIGTERM, &p);
        CHECK_INT(member_int(p.last, "processes"), 2);
        CHECK(wait_runs("4831", false));
        signal_job(id, SIGKILL, &q);
        CHECK_INT(member_int(q.last, "processes"), 0);
}

/* ---- terminals ---- */

static void test_terminal(void) {
        int64_t id = start_on_terminal("tty; echo $TERM; stty size; read x; echo \"got $x\"; stty size; exit 6");
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        CHECK(wait_output(id, "/dev/pts/"));
        CHECK(wait_output(id, "xterm-256color\r\n24 80\r\n"));
        ask(json_of("{\"type\":\"job_resize\",\"job_id\":%lld,\"cols\":132,\"rows\":50}", (long long) id), NULL, 0, &o);
        CHECK_STR(member_str(o.last, "type"), "ok");
        type_in(id, "typed\n");
        REQUIRE(read_end(id, &p));
        /* The terminal shows what is typed. */
        CHECK(p.out.data && strstr(p.out.data, "typed\r\ngot typed\r\n50 132\r\n"));
        CHECK_INT(p.err_out.len, 0);
        CHECK_INT(member_int(p.last, "pty"), 1);
        CHECK_INT(member_int(p.last, "exit_code"), 6);
        CHECK_INT(member_int(p.last, "leftover"), 0);
}

static void test_terminal_of_a_size(void) {
        json_t *request = start_request("stty size; sleep 0.1; printf last >&2");
        _cleanup_outcome_ struct outcome o = {0};
        int64_t id;

        json_object_set_new(request, "pty", json_true());
        json_object_set_new(request, "cols", json_integer(100));
        id = start_job_of(request);
        REQUIRE(read_end(id, &o));
        CHECK_STR(o.out.data, "24 100\r\nlast");
}

/* The shell closes it, and opens it again by its name each time. */
static void test_terminal_that_is_closed_for_a_while(void) {
        int64_t id =
                start_on_terminal("stty -opost; exec < /dev/null > /dev/null 2>&1; sleep 0.3; "
                                  "echo hello > /dev/tty; sleep 0.3; seq 1 100000 > /dev/tty; echo bye > /dev/tty");
        _cleanup_outcome_ struct outcome o = {0};

        REQUIRE(read_end(id, &o));
        CHECK(o.out.data && strncmp(o.out.data, "hello\n1\n2\n", 10) == 0);
        CHECK_INT(total(o.last, "out"), 6 + 588895 + 4);
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        CHECK_INT(member_int(o.last, "leftover"), 0);
}

/* Nobody has it open: the agent must not use its CPU up in looking at it, nor forget the timeout. */
static void test_timeout_with_a_closed_terminal(void) {
        json_t *request = start_request("exec < /dev/null > /dev/null 2>&1; sleep 4841");
        struct timespec before, after;
        _cleanup_outcome_ struct outcome o = {0};

        json_object_set_new(request, "pty", json_true());
        json_object_set_new(request, "timeout_ms", json_integer(1000));
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
        REQUIRE(read_end(start_job_of(request), &o));
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
        CHECK_INT(member_int(o.last, "timed_out"), 1);
        CHECK((after.tv_sec - before.tv_sec) * NSEC_PER_SEC + after.tv_nsec - before.tv_nsec < NSEC_PER_SEC / 2);
}

static void test_end_of_file_on_a_terminal(void) {
        int64_t id = start_on_terminal("cat; echo done");
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        type_in(id, "line\n");
        CHECK(wait_output(id, "line\r\nline\r\n"));
        write_to(id, "", 0, true, 1000, &o);
        CHECK_INT(member_int(o.last, "written"), 0);
        REQUIRE(read_end(id, &p));
        CHECK(p.out.data && strstr(p.out.data, "done"));
}

static void test_interrupt_on_a_terminal(void) {
        int64_t id = start_on_terminal("trap 'echo caught; exit 3' INT; echo up; while :; do sleep 0.05; done");
        _cleanup_outcome_ struct outcome o = {0};

        CHECK(wait_output(id, "up"));
        type_in(id, "\003");
        REQUIRE(read_end(id, &o));
        CHECK_INT(member_int(o.last, "exit_code"), 3);
}

static void test_resize_needs_a_terminal(void) {
        int64_t id = start_job("sleep 4840");
        _cleanup_outcome_ struct outcome o = {0};

        ask(json_of("{\"type\":\"job_resize\",\"job_id\":%lld,\"cols\":80,\"rows\":24}", (long long) id), NULL, 0, &o);
        CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(o.error.hint && strstr(o.error.hint, "pty: true"));
        kill_job(id);
}

/* ---- bounds ---- */

static void test_a_used_up_budget(void) {
        size_t most = agent.jobs.spools.bytes.max;
        int64_t old = start_job("head -c 2000000 /dev/zero"), id;
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0};

        REQUIRE(read_end(old, &o));
        CHECK_INT(o.out.len, WIRE_OUTPUT_MAX);
        /* No room but what ended jobs give up: theirs is lost, that of the new one is kept. */
        agent.jobs.spools.bytes.max = 512u << 10;
        id = start_job("seq 1 50000; sleep 4850");
        CHECK(wait_output(id, "\n50000\n"));
        ask(read_request(old, 0, -1, -1), NULL, 0, &p);
        CHECK_INT(p.out.len, 0);
        CHECK_INT(total(p.last, "out"), 2000000);
        kill_job(id);
        /* None at all: nothing waits, and the newest is kept. */
        agent.jobs.spools.bytes.max = 0;
        id = start_job("seq 1 500000");
        REQUIRE(read_end(id, &q));
        CHECK_INT(member_int(q.last, "exit_code"), 0);
        CHECK(q.out.len >= 7 && memcmp(q.out.data + q.out.len - 7, "500000\n", 7) == 0);
        CHECK(q.out.len <= 2 * SPOOL_PIECE_MIN);
        agent.jobs.spools.bytes.max = most;
}

static void test_too_many_at_once(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0};
        int64_t id = start_job("sleep 4851"), next;

        agent.execs += AGENT_EXECS_MAX - 1;
        ask(start_request("true"), NULL, 0, &o);
        CHECK_INT(o.error.code, ERROR_QUOTA_EXCEEDED);
        CHECK(o.error.message && strstr(o.error.message, "200"));
        ask(command("true"), NULL, 0, &p);
        CHECK_INT(p.error.code, ERROR_QUOTA_EXCEEDED);
        kill_job(id);
        next = start_job("echo room");
        REQUIRE(read_end(next, &q));
        CHECK_STR(q.out.data, "room\n");
        agent.execs -= AGENT_EXECS_MAX - 1;
        CHECK_INT(agent.execs, 0);
}

static void test_old_jobs_are_forgotten(void) {
        int64_t first = start_job("echo first"), runner = start_job("sleep 4852"), last = 0;
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, l = {0};

        REQUIRE(read_end(first, &o));
        for (int i = 0; i < JOBS_FINISHED_MAX; i++) {
                _cleanup_outcome_ struct outcome end = {0};

                last = start_job("exit 0");
                REQUIRE(read_end(last, &end));
        }
        ask(read_request(first, 0, -1, -1), NULL, 0, &p);
        CHECK_INT(p.error.code, ERROR_NOT_FOUND);
        CHECK(p.error.message && strstr(p.error.message, "any more"));
        CHECK_INT(agent.jobs.finished.n, JOBS_FINISHED_MAX);
        ask(json_of("{\"type\":\"job_list\",\"max\":3}"), NULL, 0, &l);
        CHECK_INT(member_int(l.last, "total"), JOBS_FINISHED_MAX + 1);
        REQUIRE(json_array_size(json_object_get(l.last, "jobs")) == 3);
        CHECK_INT(member_int(json_array_get(json_object_get(l.last, "jobs"), 0), "job_id"), runner);
        CHECK_INT(member_int(json_array_get(json_object_get(l.last, "jobs"), 2), "job_id"), last);
        kill_job(runner);
}

/* ---- the environment ---- */

static void set_env(json_t *vars, json_t *unset, struct outcome *o) {
        json_t *request = json_of("{\"type\":\"set_env\"}");

        json_object_set_new(request, "vars", vars);
        if (unset)
                json_object_set_new(request, "unset", unset);
        ask(request, NULL, 0, o);
}

static void check_echo(const char *text, const char *own, const char *want) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(command_with(text, "env", json_of("%s", own)), NULL, 0, &o);
        CHECK_STR(o.out.data, want);
}

static void test_set_env(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0}, r = {0};

        set_env(json_of("{\"A\":\"1\",\"B\":\"two words\",\"TERM\":\"vt52\"}"), NULL, &o);
        CHECK_INT(member_int(o.last, "total"), 3);
        check_echo("echo \"$A|$B|$TERM\"", "{}", "1|two words|vt52\n");
        check_echo("echo \"$A|$B|$TERM\"", "{\"A\":\"own\",\"TERM\":\"own\"}", "own|two words|own\n");
        set_env(json_of("{\"A\":\"changed\",\"C\":\"3\",\"D\":\"4\"}"), json_of("[\"B\",\"D\",\"NOT_SET\"]"), &p);
        CHECK_INT(member_int(p.last, "total"), 3);
        check_echo("echo \"$A|${B-gone}|$C|${D-gone}\"; env | grep -c ^A=", "{}", "changed|gone|3|gone\n1\n");
        set_env(json_of("{}"), json_of("[\"A\",\"C\",\"TERM\"]"), &q);
        CHECK_INT(member_int(q.last, "total"), 0);
        check_echo("echo \"${A-gone}|$TERM\"", "{}", "gone|dumb\n");
        set_env(json_of("{\"A\":\"1\"}"), json_of("[\"A\"]"), &r);
        CHECK_INT(member_int(r.last, "total"), 0);
}

static void test_set_env_refused(void) {
        static const char *const names[] = {"PATH", "IFS", "ENV", "BASH_ENV", "LD_PRELOAD", "1A", "A-B", ""};

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_outcome_ struct outcome o = {0};
                json_t *vars = json_of("{\"GOOD\":\"x\"}");

                json_object_set_new(vars, names[i], json_string("s3cret"));
                set_env(vars, NULL, &o);
                CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
                CHECK(o.error.message && strstr(o.error.message, names[i]) && !strstr(o.error.message, "s3cret"));
        }
        check_echo("echo ${GOOD-unset}", "{}", "unset\n");
}

static void test_set_env_limits(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0}, q = {0}, r = {0};
        _cleanup_free_ char *large = calloc(1, WIRE_ENV_BYTES_MAX / 2 + 1);
        json_t *many = json_object(), *names = json_array();

        for (unsigned i = 0; i < WIRE_ENV_VARS_MAX; i++) {
                _cleanup_free_ char *name = str_printf("V%u", i);

                json_object_set_new(many, name, json_string("v"));
                json_array_append_new(names, json_string(name));
        }
        set_env(many, NULL, &o);
        CHECK_INT(member_int(o.last, "total"), WIRE_ENV_VARS_MAX);
        set_env(json_of("{\"ONE_MORE\":\"x\"}"), NULL, &p);
        CHECK_INT(p.error.code, ERROR_INVALID_ARGUMENT);
        check_echo("echo \"$V0${ONE_MORE-unset}\"", "{}", "vunset\n");
        set_env(json_object(), names, &q);
        CHECK_INT(member_int(q.last, "total"), 0);

        memset(large, 'x', WIRE_ENV_BYTES_MAX / 2);
        many = json_object();
        json_object_set_new(many, "L1", json_string(large));
        json_object_set_new(many, "L2", json_string(large));
        set_env(many, NULL, &r);
        CHECK_INT(r.error.code, ERROR_INVALID_ARGUMENT);
        check_echo("echo \"${L1-unset}\"", "{}", "unset\n");
}

static void run_signals(void) {
        RUN(test_close_kills_an_exec_and_what_it_started);
        RUN(test_timeout_after_the_yield);
        RUN(test_kill_reaches_everything);
        RUN(test_a_signal_that_is_handled);
        RUN(test_a_signal_to_an_ended_job);
}

static void run_with_cgroups(void) {
        const char *mount = cgroup_folder();
        char parent[256];

        if (!mount) {
                printf("# no cgroups of version 2 that we may use here: what needs them is left out\n");
                return;
        }
        fixture_begin_in(mount);
        RUN(test_from_start_to_end);
        run_signals();
        RUN(test_what_was_left_behind);
        fixture_clear();
        snprintf(parent, sizeof(parent), "%s/agentiso", mount);
        CHECK_INT(rmdir(parent), 0);
        CHECK_INT(rmdir(mount), 0);
}

int main(void) {
        fixture_begin();
        RUN(test_from_start_to_end);
        RUN(test_a_read_waits_for_output);
        RUN(test_a_read_waits_for_the_end);
        RUN(test_a_read_waits_no_longer_than_asked);
        RUN(test_a_read_without_offset_waits_for_news);
        RUN(test_a_read_that_is_closed);
        RUN(test_300_mib);
        RUN(test_unknown_jobs);
        RUN(test_an_exec_that_ended_is_not_listed);
        RUN(test_yield);
        RUN(test_yield_keeps_the_input);
        RUN(test_a_lost_connection_keeps_an_exec);
        RUN(test_write_and_end_of_file);
        RUN(test_a_closed_input);
        RUN(test_a_job_that_does_not_read);
        RUN(test_two_writers);
        RUN(test_a_write_that_is_closed);
        run_signals();
        RUN(test_terminal);
        RUN(test_terminal_of_a_size);
        RUN(test_terminal_that_is_closed_for_a_while);
        RUN(test_timeout_with_a_closed_terminal);
        RUN(test_end_of_file_on_a_terminal);
        RUN(test_interrupt_on_a_terminal);
        RUN(test_resize_needs_a_terminal);
        RUN(test_a_used_up_budget);
        RUN(test_too_many_at_once);
        RUN(test_old_jobs_are_forgotten);
        RUN(test_set_env);
        RUN(test_set_env_refused);
        RUN(test_set_env_limits);
        fixture_clear();
        run_with_cgroups();
        return tap_done();
}
