/* SPDX-License-Identifier: Apache-2.0 */

/* What becomes of a command when the host cancels, takes its answer, runs out of time, or is lost. */

#include "job_fixture.h"

static void close_with(struct mux_stream *s, enum error_code code) {
        _cleanup_error_ struct error reason = ERROR_INIT;

        error_set(&reason, code, "a reason");
        mux_close(s, &reason);
        mux_stream_unref(s);
}

/* Waits, with a limit, until the list has such a job. */
static json_t *wait_listed(struct outcome *l, const char *text) {
        json_t *entry;

        for (int i = 0; !(entry = listed(l, text)) && i < 300; i++) {
                outcome_clear(l);
                poll(NULL, 0, 20);
        }
        return entry;
}

/* ---- an answer on its way ---- */

static void test_an_answer_that_was_taken(void) {
        _cleanup_outcome_ struct outcome o = {0}, l = {0};

        ask(command("echo never-listed"), NULL, 0, &o);
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        CHECK(wait_requests());
        CHECK(!listed(&l, "never-listed"));
}

/* The agent has sent all of it; that it has arrived is not known. */
static void test_an_answer_that_may_not_have_arrived(void) {
        struct mux_stream *s = open_request(command("echo in doubt; exit 3"));
        _cleanup_outcome_ struct outcome o = {0}, l = {0}, p = {0};
        json_t *entry;

        gather(s, &o);
        CHECK_INT(member_int(o.last, "exit_code"), 3);
        reconnect_host();
        mux_stream_unref(s);
        entry = wait_listed(&l, "in doubt");
        REQUIRE(entry);
        REQUIRE(read_end(member_int(entry, "job_id"), &p));
        CHECK_STR(p.out.data, "in doubt\n");
        CHECK_INT(member_int(p.last, "exit_code"), 3);
}

/* More than a host takes that reads nothing. */
static void begin_large_answer(struct mux_stream **ret, const char *tag) {
        _cleanup_free_ char *text = str_printf("echo %s; head -c 400000 /dev/zero; touch %s/%s", tag, folder, tag);

        *ret = open_request(command(text));
        CHECK(wait_for_file(tag));
        for (int i = 0; i < 500 && atomic_load(&agent.execs) > 0; i++)
                poll(NULL, 0, 10);
        CHECK_INT(agent.execs, 0);
}

static void test_an_answer_for_which_there_was_no_time(void) {
        _cleanup_outcome_ struct outcome l = {0}, p = {0};
        struct mux_stream *s;
        json_t *entry;

        begin_large_answer(&s, "out-of-time");
        close_with(s, ERROR_TIMEOUT);
        entry = wait_listed(&l, "out-of-time");
        REQUIRE(entry);
        REQUIRE(read_end(member_int(entry, "job_id"), &p));
        CHECK_INT(p.out.len, 400012);
}

static void test_an_answer_that_nobody_wants(void) {
        _cleanup_outcome_ struct outcome l = {0};
        struct mux_stream *s;

        begin_large_answer(&s, "not-wanted");
        mux_stream_unref(s);
        CHECK(wait_requests());
        CHECK(!listed(&l, "not-wanted"));
}

/* ---- what still runs ---- */

static void test_a_host_without_time_keeps_an_exec(void) {
        struct mux_stream *s = open_request(command("sleep 4870"));
        _cleanup_outcome_ struct outcome l = {0};
        json_t *entry;

        CHECK(wait_runs("4870", true));
        close_with(s, ERROR_TIMEOUT);
        entry = wait_listed(&l, "sleep 4870");
        REQUIRE(entry);
        CHECK_INT(member_int(entry, "running"), 1);
        CHECK(runs("4870"));
        kill_job(member_int(entry, "job_id"));
        CHECK(!runs("4870"));
}

static void test_another_reason_cancels(void) {
        struct mux_stream *s = open_request(command("sleep 4871"));
        _cleanup_outcome_ struct outcome l = {0};

        CHECK(wait_runs("4871", true));
        close_with(s, ERROR_CANCELLED);
        CHECK(wait_runs("4871", false));
        CHECK(!listed(&l, "sleep 4871"));
}

/* The host leaves while it is told the number. */
static void test_a_close_does_not_kill_what_has_yielded(void) {
        struct mux_stream *s =
                open_request(command_with("head -c 400000 /dev/zero; sleep 4872", "yield_ms", json_integer(200)));
        _cleanup_outcome_ struct outcome l = {0};
        json_t *entry = wait_listed(&l, "sleep 4872");
        int64_t id = entry ? member_int(entry, "job_id") : -1;

        REQUIRE(entry);
        mux_stream_unref(s);
        CHECK(wait_requests());
        CHECK(runs("4872"));
        kill_job(id);
}

/* The cancel is there before the command has started: it has no number yet that anybody could kill it by. */
static void test_a_start_that_is_cancelled(void) {
        _cleanup_outcome_ struct outcome l = {0};
        struct op op = patience();
        int64_t ns;

        pthread_mutex_lock(&agent.env.lock); /* the start waits for it */
        mux_stream_unref(open_request(start_request("sleep 4873")));
        CHECK_INT(mux_ping(host, &op, &ns, NULL), 0); /* the agent has seen the close */
        pthread_mutex_unlock(&agent.env.lock);
        CHECK(wait_requests());
        CHECK(!listed(&l, "sleep 4873"));
        CHECK(!runs("4873"));
        for (int i = 0; i < 500 && atomic_load(&agent.execs) > 0; i++)
                poll(NULL, 0, 10);
        CHECK_INT(agent.execs, 0);
}

int main(void) {
        fixture_begin();
        RUN(test_an_answer_that_was_taken);
        RUN(test_an_answer_that_may_not_have_arrived);
        RUN(test_an_answer_for_which_there_was_no_time);
        RUN(test_an_answer_that_nobody_wants);
        RUN(test_a_host_without_time_keeps_an_exec);
        RUN(test_another_reason_cancels);
        RUN(test_a_close_does_not_kill_what_has_yielded);
        RUN(test_a_start_that_is_cancelled);
        return fixture_end();
}
