/* SPDX-License-Identifier: Apache-2.0 */

/* The tools that run commands, on a guest that is played here: what they ask of it, and what they make of its answers.
 */

#include <pthread.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tap.h"
#include "tools/tools.h"

#define CALL_TIMEOUT_MS 20000

struct agent {
        int unused;
};

/* One answer to a read of a job's stdout. */
struct reading {
        const char *text;
        bool running;
        int64_t want_offset; /* what must be asked for */
        uint64_t total;      /* 0: what was asked for and the text */
};

static struct agent the_agent;
static struct agent_exec_args exec_seen;
static uint64_t exec_job_id;
static const char *exec_prints; /* NULL: the command itself */
static const struct reading *readings;
static size_t n_readings;
static uint64_t written_by_guest;
static const char *not_running;
static const char *conflict; /* of a write */

int ws_agent(struct core *core, const char *ref, const struct op *op, struct agent **ret, struct error *err) {
        if (str_eq(ref, not_running))
                return error_set(err, ERROR_NOT_RUNNING, "Workspace \"%s\" is not running", ref);
        *ret = &the_agent;
        return 0;
}

int ws_get(struct core *core, const char *ref, const char *owner, struct ws_view *ret, struct error *err) {
        *ret = (struct ws_view){.row = {.name = str_printf("name-of-%s", ref)}};
        return 0;
}

void ws_view_clear(struct ws_view *v) {
        free(v->row.name);
}

void agent_unref(struct agent *a) {
}

void agent_exec_result_clear(struct agent_exec_result *r) {
        buf_free(&r->out.head);
        buf_free(&r->err.head);
        *r = (struct agent_exec_result){0};
}

void agent_job_clear(struct agent_job *j) {
        agent_exec_result_clear(&j->result);
}

static struct buf text_buf(const char *s) {
        struct buf b = BUF_INIT(1u << 20);

        CHECK_INT(buf_append_str(&b, s), 0);
        return b;
}

/* "wait" waits for the cancel, "lost" fails; other commands write themselves. "exit N" ends so. */
int agent_exec(struct agent *a, const struct agent_exec_args *args, const struct op *op, struct agent_exec_result *ret,
               struct error *err) {
        static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

        if (str_eq(args->command, "lost"))
                return error_set(err, ERROR_GUEST_UNREACHABLE, "The guest is lost");
        if (str_eq(args->command, "wait"))
                return error_set_errno(err, wait_fd(-1, 0, op), "waiting");
        const char *text = exec_prints ? exec_prints : args->command;
        pthread_mutex_lock(&lock);
        exec_seen = *args;
        pthread_mutex_unlock(&lock);
        *ret = (struct agent_exec_result){
                .job_id = exec_job_id,
                .exit_code = str_starts_with(args->command, "exit ") ? args->command[5] - '0' : 0,
                .timed_out = str_eq(args->command, "late"),
                .out = {.head = text_buf(text), .total = strlen(text)},
        };
        return 0;
}

int agent_job_start(struct agent *a, const struct agent_exec_args *args, const struct agent_terminal *terminal,
                    const struct op *op, uint64_t *ret_job_id, struct error *err) {
        exec_seen = *args;
        *ret_job_id = terminal ? 1000 + terminal->cols : 7;
        return 0;
}

int agent_job_read(struct agent *a, const struct agent_job_read_args *args, const struct op *op, struct agent_job *ret,
                   struct error *err) {
        if (n_readings == 0)
                return error_set(err, ERROR_NOT_FOUND, "no such job");
        CHECK_INT(args->out_offset, readings->want_offset);
        *ret = (struct agent_job){
                .running = readings->running,
                .result = {.exit_code = readings->running ? 0 : 5,
                           .out = {.head = text_buf(readings->text),
                                   .total = readings->total ? readings->total
                                                            : (uint64_t) MAX(args->out_offset, (int64_t) 0) +
                                                                      strlen(readings->text)}}};
        readings++;
        n_readings--;
        return 0;
}

int agent_job_write(struct agent *a, uint64_t job_id, const void *data, size_t n, bool eof, int64_t wait_ms,
                    const struct op *op, uint64_t *ret_written, struct error *err) {
        if (conflict) {
                error_set(err, ERROR_CONFLICT, "%s", conflict);
                error_hint(err, "What the guest says.");
                return -EBUSY;
        }
        *ret_written = MIN((uint64_t) n, written_by_guest);
        return 0;
}

int agent_job_kill(struct agent *a, uint64_t job_id, int sig, const struct op *op, bool *ret_running,
                   uint64_t *ret_processes, struct error *err) {
        *ret_running = sig == 15;
        *ret_processes = 2;
        return 0;
}

int agent_job_resize(struct agent *a, uint64_t job_id, const struct agent_terminal *terminal, const struct op *op,
                     struct error *err) {
        return error_set(err, ERROR_NOT_FOUND, "no such job");
}

int agent_job_list(struct agent *a, unsigned max, const struct op *op, json_t **ret, uint64_t *ret_total,
                   struct error *err) {
        *ret = json_array();
        *ret_total = 0;
        return 0;
}

int agent_set_env(struct agent *a, json_t *vars, json_t *unset, const struct op *op, uint64_t *ret_total,
                  struct error *err) {
        *ret_total = 9;
        return 0;
}

/* Calls the first tool of a group. The result, owned, or NULL and the error. */
static json_t *call_op(const struct tool_group *group, const char *args, const struct op *op, struct error *err) {
        static const char *const ids[] = {"a", "b", "c"};
        _cleanup_json_ json_t *parsed = json_loads(args, 0, NULL);
        struct tool_result result = {0};
        const struct tool_call call = {
                .owner = "me", .workspace_id = "a", .workspace_ids = ids, .n_workspaces = 3, .args = parsed, .op = op};

        CHECK(parsed);
        int r = group->tools[0].handler(&call, &result, err);
        CHECK_INT(r < 0, result.value == NULL);
        return result.value;
}

static json_t *call(const struct tool_group *group, const char *args, struct error *err) {
        struct op op = op_timeout(CALL_TIMEOUT_MS);

        return call_op(group, args, &op, err);
}

static const char *get(const json_t *v, const char *key) {
        return json_string_value(json_object_get(v, key));
}

static json_int_t number(const json_t *v, const char *key) {
        return json_is_integer(json_object_get(v, key)) ? json_integer_value(json_object_get(v, key)) : -1;
}

#define EXEC_ARGS "{\"command\":\"true\",\"strip_ansi\":false"

static void test_when_an_exec_yields(void) {
        static const struct {
                const char *args;
                int64_t timeout_ms, yield_ms;
        } rows[] = {
                {EXEC_ARGS "}", 0, 45000},
                {EXEC_ARGS ",\"yield_secs\":3}", 0, 3000},
                {EXEC_ARGS ",\"timeout_secs\":120}", 120000, 0},
                {EXEC_ARGS ",\"timeout_secs\":120,\"yield_secs\":10}", 120000, 10000},
                {EXEC_ARGS ",\"timeout_secs\":10,\"yield_secs\":10}", 10000, 0},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                _cleanup_json_ json_t *v = call(&exec_tools, rows[i].args, NULL);

                CHECK_INT(exec_seen.timeout_ms, rows[i].timeout_ms);
                CHECK_INT(exec_seen.yield_ms, rows[i].yield_ms);
                CHECK_INT(number(v, "exit_code"), 0);
                CHECK(!json_object_get(v, "job_id") && !json_object_get(v, "next"));
        }
}

static void test_the_result_of_an_exec_that_yielded(void) {
        exec_job_id = 12;
        exec_prints = "gr\xc3\xbc\xc3";
        _cleanup_json_ json_t *v = call(&exec_tools, EXEC_ARGS "}", NULL);
        exec_job_id = 0;
        exec_prints = NULL;

        /* The last byte begins a character: it is left for the poll. */
        CHECK(v && json_is_null(json_object_get(v, "exit_code")) && json_is_true(json_object_get(v, "running")));
        CHECK_STR(get(v, "stdout"), "gr\xc3\xbc");
        CHECK_INT(number(v, "job_id"), 12);
        CHECK_INT(number(v, "stdout_offset"), 4);
        CHECK_INT(number(v, "stderr_offset"), 0);
        CHECK_INT(number(v, "stdout_bytes"), 5);
        const char *next = get(v, "next");
        CHECK(next && strstr(next, "job_id 12") && strstr(next, "stdout_offset 4"));
}

static void test_an_exec_that_yielded_says_when_it_is_killed(void) {
        exec_job_id = 12;
        _cleanup_json_ json_t *limited = call(&exec_tools, EXEC_ARGS ",\"timeout_secs\":120,\"yield_secs\":1}", NULL);
        _cleanup_json_ json_t *unlimited = call(&exec_tools, EXEC_ARGS "}", NULL);
        exec_job_id = 0;

        CHECK(get(limited, "next") && strstr(get(limited, "next"), "It is killed 120 s after its start."));
        CHECK(get(unlimited, "next") && !strstr(get(unlimited, "next"), "killed"));
}

static json_t *poll_job(const char *more, const struct reading *script, size_t n) {
        _cleanup_free_ char *args = str_printf("{\"action\":\"poll\",\"job_id\":3%s}", more);

        readings = script;
        n_readings = n;
        return call(&job_tools, args, NULL);
}

static void test_a_poll(void) {
        static const struct reading all = {"out", true, -1}, end = {"\xc3", false, 0};
        _cleanup_json_ json_t *running = poll_job("", &all, 1), *ended = poll_job(",\"stdout_offset\":0", &end, 1);

        CHECK(json_is_null(json_object_get(running, "exit_code")));
        CHECK_STR(get(running, "stdout"), "out");
        CHECK_INT(number(running, "stdout_offset"), 3);
        CHECK_INT(number(ended, "exit_code"), 5);
        CHECK_STR(get(ended, "stdout"), "\xef\xbf\xbd");
        CHECK_INT(number(ended, "stdout_invalid_bytes"), 1);
        CHECK_INT(number(ended, "stdout_offset"), 1);
}

static void test_a_poll_from_past_the_end(void) {
        static const struct reading script = {"", true, 4000, 4};
        _cleanup_json_ json_t *v = poll_job(",\"stdout_offset\":4000,\"stderr_offset\":1,\"wait_secs\":20", &script, 1);
        const json_t *warnings = json_object_get(v, "warnings");

        CHECK_STR(get(v, "stdout"), "");
        CHECK_INT(number(v, "stdout_offset"), 4);
        CHECK_INT(number(v, "stderr_offset"), 0);
        CHECK_INT(json_array_size(warnings), 2);
        CHECK_STR(json_string_value(json_array_get(warnings, 0)),
                  "stdout_offset 4000 is past the end (4 bytes); is it of another job or stream?");
        CHECK_STR(json_string_value(json_array_get(warnings, 1)),
                  "stderr_offset 1 is past the end (0 bytes); is it of another job or stream?");
}

#define FROM_10 ",\"stdout_offset\":10,\"stderr_offset\":0,\"wait_secs\":20"

static void test_a_poll_waits_for_the_rest_of_a_character(void) {
        static const struct reading script[] = {
                {"\xe2", true, 10}, {"\x82", true, 11},          {"\xe2\x82", true, 10},
                {"\xac", true, 12}, {"\xe2\x82\xac!", true, 10},
        };
        _cleanup_json_ json_t *v = poll_job(FROM_10, script, ARRAY_SIZE(script));

        CHECK_STR(get(v, "stdout"), "\xe2\x82\xac!");
        CHECK_INT(number(v, "stdout_offset"), 14);
        CHECK_INT(n_readings, 0);
}

static void test_a_poll_does_not_wait_for_ever(void) {
        static const struct reading none = {"", true, 10}, half = {"\xe2", true, 10};
        static const struct reading ended[] = {{"\xe2", true, 10}, {"", false, 11}, {"\xe2", false, 10}};
        _cleanup_json_ json_t *nothing = poll_job(FROM_10, &none, 1);
        _cleanup_json_ json_t *at_once = poll_job(",\"stdout_offset\":10,\"stderr_offset\":0", &half, 1);
        _cleanup_json_ json_t *end = poll_job(FROM_10, ended, ARRAY_SIZE(ended));

        CHECK_STR(get(nothing, "stdout"), "");
        CHECK_INT(number(nothing, "stdout_offset"), 10);
        CHECK_STR(get(at_once, "stdout"), "");
        CHECK_INT(number(at_once, "stdout_offset"), 10);
        CHECK_STR(get(end, "stdout"), "\xef\xbf\xbd");
        CHECK_INT(number(end, "exit_code"), 5);
}

static void test_the_other_actions(void) {
        _cleanup_json_ json_t *start = call(&job_tools, "{\"action\":\"start\",\"command\":\"x\"}", NULL);
        CHECK_INT(number(start, "job_id"), 7);
        CHECK_STR(get(start, "status"), "started");
        CHECK(exec_seen.timeout_ms == 0 && exec_seen.yield_ms == 0);
        _cleanup_json_ json_t *pty =
                call(&job_tools, "{\"action\":\"start\",\"command\":\"x\",\"pty\":true,\"cols\":90,\"rows\":5}", NULL);
        CHECK_INT(number(pty, "job_id"), 1090);
        CHECK(!json_object_get(pty, "warnings"));

        _cleanup_json_ json_t *killed = call(&job_tools, "{\"action\":\"kill\",\"job_id\":3}", NULL);
        CHECK_STR(get(killed, "status"), "killed");
        CHECK_STR(get(killed, "signal_name"), "SIGKILL");
        CHECK(json_is_false(json_object_get(killed, "running")));
        _cleanup_json_ json_t *asked = call(&job_tools, "{\"action\":\"kill\",\"job_id\":3,\"signal\":15}", NULL);
        CHECK_STR(get(asked, "signal_name"), "SIGTERM");
        CHECK(json_is_true(json_object_get(asked, "running")));
        _cleanup_json_ json_t *realtime = call(&job_tools, "{\"action\":\"kill\",\"job_id\":3,\"signal\":36}", NULL);
        CHECK_STR(get(realtime, "signal_name"), "SIGRTMIN+2");
}

static void test_a_write_that_is_not_complete_says_how_to_go_on(void) {
        written_by_guest = 3;
        _cleanup_json_ json_t *part =
                call(&job_tools, "{\"action\":\"write\",\"job_id\":3,\"data\":\"hello\",\"eof\":true}", NULL);
        _cleanup_json_ json_t *all =
                call(&job_tools, "{\"action\":\"write\",\"job_id\":3,\"data\":\"AAEC\",\"encoding\":\"base64\"}", NULL);

        CHECK_INT(number(part, "bytes_written"), 3);
        CHECK(json_is_false(json_object_get(part, "complete")));
        CHECK(get(part, "next") && strstr(get(part, "next"), "from byte 3") && strstr(get(part, "next"), "not closed"));
        CHECK_INT(number(all, "bytes_written"), 3);
        CHECK(json_is_true(json_object_get(all, "complete")) && !json_object_get(all, "next"));
}

static void test_a_write_to_a_closed_input_names_exec(void) {
        _cleanup_error_ struct error closed = ERROR_INIT, ended = ERROR_INIT;

        conflict = "The standard input of job 3 is closed";
        CHECK(!call(&job_tools, "{\"action\":\"write\",\"job_id\":3,\"data\":\"x\"}", &closed));
        conflict = "Job 3 has ended";
        CHECK(!call(&job_tools, "{\"action\":\"write\",\"job_id\":3,\"data\":\"x\"}", &ended));
        conflict = NULL;
        CHECK(closed.hint && strstr(closed.hint, "What the guest says.") &&
              strstr(closed.hint, "exec started has no open input"));
        CHECK_STR(ended.hint, "What the guest says.");
}

static void test_what_an_action_has_no_use_for_is_named(void) {
        _cleanup_json_ json_t *v =
                call(&job_tools, "{\"action\":\"start\",\"command\":\"x\",\"signal\":9,\"cols\":80}", NULL);
        const json_t *warnings = json_object_get(v, "warnings");

        CHECK_INT(json_array_size(warnings), 2);
        const char *first = json_string_value(json_array_get(warnings, 0));
        const char *second = json_string_value(json_array_get(warnings, 1));
        CHECK(first && strstr(first, "\"signal\"") && strstr(first, "\"start\""));
        CHECK(second && strstr(second, "pty"));
}

static void test_an_unknown_job_is_named(void) {
        _cleanup_error_ struct error poll = ERROR_INIT, resize = ERROR_INIT;

        n_readings = 0;
        CHECK(!call(&job_tools, "{\"action\":\"poll\",\"job_id\":424242}", &poll));
        CHECK(!call(&job_tools, "{\"action\":\"resize\",\"job_id\":424242,\"cols\":1,\"rows\":1}", &resize));
        CHECK(poll.code == ERROR_NOT_FOUND && strstr(poll.message, "424242") && strstr(poll.hint, "list"));
        CHECK(resize.code == ERROR_NOT_FOUND && strstr(resize.message, "424242"));
}

static void test_variables(void) {
        static const struct {
                size_t value;
                bool fits;
        } rows[] = {{131072 - strlen("BIG=") - 1, true}, {131072 - strlen("BIG="), false}};

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                _cleanup_free_ char *value = malloc(rows[i].value + 1);

                REQUIRE(value);
                memset(value, 'v', rows[i].value);
                value[rows[i].value] = 0;
                _cleanup_free_ char *args = str_printf("{\"vars\":{\"A\":\"1\",\"BIG\":\"%s\"}}", value);
                _cleanup_json_ json_t *v = call(&env_tools, args, &err);
                CHECK_INT(v != NULL, rows[i].fits);
                CHECK(v || (strstr(err.message, "variable BIG") && strstr(err.message, "131072") &&
                            strstr(err.hint, "file_write") && !strstr(err.message, "vvv")));
        }
        _cleanup_json_ json_t *v = call(&env_tools, "{\"vars\":{\"A\":\"1\",\"B\":\"2\"},\"unset\":[\"C\"]}", NULL);

        CHECK_INT(number(v, "count"), 2);
        CHECK_INT(number(v, "total"), 9);
        CHECK_STR(get(v, "status"), "set");
}

#define PARALLEL(commands) "{\"commands\":[" commands "],\"timeout_secs\":9,\"max_output_bytes\":1000}"

static void test_results_in_parallel(void) {
        _cleanup_json_ json_t *v = call(&parallel_tools, PARALLEL("\"exit 3\",\"lost\",\"one\""), NULL);
        const json_t *results = json_object_get(v, "results"), *summary = json_object_get(v, "summary");
        const json_t *first = json_array_get(results, 0), *lost = json_array_get(results, 1);

        CHECK_INT(json_array_size(results), 3);
        CHECK_STR(get(first, "workspace_id"), "a");
        CHECK_STR(get(first, "workspace_name"), "name-of-a");
        CHECK_INT(number(first, "exit_code"), 3);
        CHECK_STR(get(first, "stdout"), "exit 3");
        CHECK(json_is_null(json_object_get(lost, "exit_code")));
        CHECK(get(lost, "error") && strstr(get(lost, "error"), "The guest is lost"));
        CHECK_STR(get(lost, "stdout"), "");
        CHECK_STR(get(json_array_get(results, 2), "stdout"), "one");
        CHECK_INT(number(summary, "total"), 3);
        CHECK_INT(number(summary, "succeeded"), 1);
        CHECK_INT(number(summary, "failed"), 2);
        CHECK_INT(exec_seen.timeout_ms, 9000);

        _cleanup_json_ json_t *late = call(&parallel_tools, PARALLEL("\"late\""), NULL);
        CHECK_INT(number(json_object_get(late, "summary"), "timed_out"), 3);
        CHECK_INT(number(json_object_get(late, "summary"), "failed"), 3);
}

static void test_sequences_are_stripped_in_parallel(void) {
        exec_prints = "\x1b[1mred\x1b[0m";
        _cleanup_json_ json_t *as_is = call(&parallel_tools, PARALLEL("\"true\""), NULL);
        _cleanup_json_ json_t *plain = call(
                &parallel_tools,
                "{\"commands\":[\"true\"],\"timeout_secs\":9,\"max_output_bytes\":1000,\"strip_ansi\":true}", NULL);
        exec_prints = NULL;

        CHECK_STR(get(json_array_get(json_object_get(as_is, "results"), 0), "stdout"), "\x1b[1mred\x1b[0m");
        CHECK_STR(get(json_array_get(json_object_get(plain, "results"), 2), "stdout"), "red");
}

static void test_none_starts_if_one_is_not_running(void) {
        _cleanup_error_ struct error err = ERROR_INIT;

        exec_seen = (struct agent_exec_args){0};
        not_running = "c";
        CHECK(!call(&parallel_tools, PARALLEL("\"true\""), &err));
        not_running = NULL;
        CHECK(err.code == ERROR_NOT_RUNNING && strstr(err.message, "name-of-c") && !exec_seen.command);
}

static void note_progress(void *arg, const char *message) {
        (void) snprintf(arg, 100, "%s", message);
}

static void *fire(void *cancel) {
        cancel_fire(cancel);
        return NULL;
}

static void test_progress_and_cancel(void) {
        _cleanup_cancel_ struct cancel *cancel = cancel_new();
        _cleanup_error_ struct error err = ERROR_INIT;
        char last[100] = "";
        struct op op = op_timeout(CALL_TIMEOUT_MS);
        pthread_t thread;

        op.progress = note_progress;
        op.progress_arg = last;
        _cleanup_json_ json_t *v = call_op(&parallel_tools, PARALLEL("\"true\""), &op, NULL);
        CHECK(v != NULL);
        CHECK_STR(last, "3 of 3 done");
        op.cancel = cancel;
        REQUIRE(cancel && pthread_create(&thread, NULL, fire, cancel) == 0);
        CHECK(!call_op(&parallel_tools, PARALLEL("\"wait\""), &op, &err));
        CHECK_INT(err.code, ERROR_CANCELLED);
        pthread_join(thread, NULL);
}

int main(void) {
        RUN(test_when_an_exec_yields);
        RUN(test_the_result_of_an_exec_that_yielded);
        RUN(test_an_exec_that_yielded_says_when_it_is_killed);
        RUN(test_a_poll);
        RUN(test_a_poll_from_past_the_end);
        RUN(test_a_poll_waits_for_the_rest_of_a_character);
        RUN(test_a_poll_does_not_wait_for_ever);
        RUN(test_the_other_actions);
        RUN(test_a_write_that_is_not_complete_says_how_to_go_on);
        RUN(test_a_write_to_a_closed_input_names_exec);
        RUN(test_what_an_action_has_no_use_for_is_named);
        RUN(test_an_unknown_job_is_named);
        RUN(test_variables);
        RUN(test_results_in_parallel);
        RUN(test_sequences_are_stripped_in_parallel);
        RUN(test_none_starts_if_one_is_not_running);
        RUN(test_progress_and_cancel);
        return tap_done();
}
