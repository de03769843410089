/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "vm/agent_private.h"

#define EXIT_SIGNAL_BASE 128           /* what shells report for a command that a signal ended */
#define STARTED_MS_MAX 253402300799999 /* the last millisecond of the year 9999 */

void agent_job_clear(struct agent_job *j) {
        agent_exec_result_clear(&j->result);
        *j = (struct agent_job){0};
}

/* --- starting --- */

static json_t *start_request(const struct agent_exec_args *args, const struct agent_terminal *terminal) {
        _cleanup_json_ json_t *request =
                json_pack("{s:s, s:b}", "type", WIRE_REQ_JOB_START, "pty", (int) (terminal != NULL));

        if (!request || agent_put_command(request, args) < 0)
                return NULL;
        if (terminal && terminal->cols > 0 && json_put(request, "cols", json_integer(terminal->cols)) < 0)
                return NULL;
        if (terminal && terminal->rows > 0 && json_put(request, "rows", json_integer(terminal->rows)) < 0)
                return NULL;
        return TAKE_PTR(request);
}

int agent_job_start(struct agent *a, const struct agent_exec_args *args, const struct agent_terminal *terminal,
                    const struct op *op, uint64_t *ret_job_id, struct error *err) {
        static const char doing[] = "starting the job";
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *ok = NULL;

        int r = agent_ask(a, start_request(args, terminal), doing, op, &ok, err);
        if (r < 0)
                return r;
        if (agent_get_job_id(ok, ret_job_id, &detail) < 0)
                return agent_protocol_error(doing, &detail, err);
        return 0;
}

/* --- reading --- */

static const char read_doing[] = "reading the output of the job";

static json_t *read_request(const struct agent_job_read_args *args) {
        _cleanup_json_ json_t *request =
                json_pack("{s:s, s:I, s:I, s:I}", "type", WIRE_REQ_JOB_READ, "job_id", (json_int_t) args->job_id,
                          "wait_ms", (json_int_t) args->wait_ms, "max_output", (json_int_t) args->max_output);

        if (!request)
                return NULL;
        if (args->out_offset != AGENT_WHOLE && json_put(request, "out_offset", json_integer(args->out_offset)) < 0)
                return NULL;
        if (args->err_offset != AGENT_WHOLE && json_put(request, "err_offset", json_integer(args->err_offset)) < 0)
                return NULL;
        return TAKE_PTR(request);
}

static bool member_set(const json_t *object, const char *key) {
        const json_t *v = json_object_get(object, key);

        return v && !json_is_null(v);
}

/* Whether a job runs, whether on a terminal, and if it does not run, how it ended. The error is a detail. */
static int parse_state(const json_t *msg, struct agent_job *ret, struct error *err) {
        int r = json_get_bool(msg, "running", &ret->running, err);

        if (r >= 0)
                r = json_get_bool(msg, "pty", &ret->pty, err);
        if (r < 0)
                return r;
        if (!ret->running)
                return agent_parse_end(msg, &ret->result, err);
        ret->result.exit_code = -1;
        if (member_set(msg, "exit_code") || member_set(msg, "signal"))
                return error_set(err, ERROR_INVALID_ARGUMENT, "a job that runs has an end");
        return 0;
}

static int parse_job(const json_t *msg, const struct agent_job_read_args *args, struct agent_received *received,
                     struct agent_job *ret, struct error *err) {
        if (!agent_is(msg, WIRE_MSG_JOB))
                return error_set(err, ERROR_INVALID_ARGUMENT, "not the message that was due");
        int r = parse_state(msg, ret, err);
        if (r < 0)
                return r;
        ret->result.job_id = args->job_id;
        const bool final = !ret->running && !ret->result.leftover;
        return agent_take_outputs(received, msg, args->out_offset, args->err_offset, final, &ret->result, err);
}

int agent_job_read(struct agent *a, const struct agent_job_read_args *args, const struct op *op, struct agent_job *ret,
                   struct error *err) {
        _cleanup_received_ struct agent_received received = {BUF_INIT(args->max_output), BUF_INIT(args->max_output)};
        _cleanup_(agent_job_clear) struct agent_job job = {0};
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *request = read_request(args), *last = NULL;
        const struct op limited = op_sub(op, args->wait_ms + AGENT_MARGIN_MS);

        int r = agent_request(a, request, read_doing, &limited, &s, err);
        if (r >= 0)
                r = agent_receive(s, read_doing, false, &limited, &received, &last, err);
        if (r < 0)
                return r;
        r = parse_job(last, args, &received, &job, &detail);
        if (r == -ENOMEM)
                return error_set_errno(err, ENOMEM, "Cannot keep the output of the job");
        if (r < 0)
                return agent_protocol_error(read_doing, &detail, err);
        r = agent_end(s, read_doing, &limited, err);
        if (r < 0)
                return r;
        *ret = job;
        job = (struct agent_job){0};
        return 0;
}

/* --- acting on one --- */

int agent_job_write(struct agent *a, uint64_t job_id, const void *data, size_t n, bool eof, int64_t wait_ms,
                    const struct op *op, uint64_t *ret_written, struct error *err) {
        static const char doing[] = "writing to the job's standard input";
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *ok = NULL;
        const struct op limited = op_sub(op, wait_ms + AGENT_MARGIN_MS);
        uint64_t written = 0;

        if (n > WIRE_JOB_WRITE_MAX)
                return error_set(err, ERROR_INVALID_ARGUMENT, "The input has %zu bytes, at most %u are possible", n,
                                 WIRE_JOB_WRITE_MAX);
        _cleanup_json_ json_t *request =
                json_pack("{s:s, s:I, s:b, s:I}", "type", WIRE_REQ_JOB_WRITE, "job_id", (json_int_t) job_id, "eof",
                          (int) eof, "wait_ms", (json_int_t) wait_ms);
        int r = agent_request(a, request, doing, &limited, &s, err);
        if (r >= 0)
                r = agent_send(s, data, n, true, doing, &limited, err);
        if (r >= 0)
                r = agent_expect(s, WIRE_MSG_OK, doing, &limited, &ok, err);
        if (r >= 0 && (agent_get_count(ok, "written", &written, &detail) < 0 || written > n))
                r = agent_protocol_error(doing, &detail, err);
        if (r >= 0)
                r = agent_end(s, doing, &limited, err);
        if (r < 0)
                return r;
        *ret_written = written;
        return 0;
}

int agent_job_kill(struct agent *a, uint64_t job_id, int sig, const struct op *op, bool *ret_running,
                   uint64_t *ret_processes, struct error *err) {
        static const char doing[] = "sending a signal to the job";
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *ok = NULL;
        uint64_t processes = 0;
        bool running = false;

        int r = agent_ask(
                a,
                json_pack("{s:s, s:I, s:i}", "type", WIRE_REQ_JOB_KILL, "job_id", (json_int_t) job_id, "signal", sig),
                doing, op, &ok, err);
        if (r < 0)
                return r;
        if (json_get_bool(ok, "running", &running, &detail) < 0 ||
            agent_get_count(ok, "processes", &processes, &detail) < 0)
                return agent_protocol_error(doing, &detail, err);
        *ret_running = running;
        *ret_processes = processes;
        return 0;
}

int agent_job_resize(struct agent *a, uint64_t job_id, const struct agent_terminal *terminal, const struct op *op,
                     struct error *err) {
        return agent_ask(a,
                         json_pack("{s:s, s:I, s:i, s:i}", "type", WIRE_REQ_JOB_RESIZE, "job_id", (json_int_t) job_id,
                                   "cols", (int) terminal->cols, "rows", (int) terminal->rows),
                         "resizing the terminal of the job", op, NULL, err);
}

/* --- listing --- */

static const char list_doing[] = "listing the jobs";

/* A command as it is shown in a list. NULL: no memory. */
static json_t *shown_command(const char *command) {
        size_t n = utf8_floor(command, MIN(strlen(command), (size_t) WIRE_JOB_COMMAND_SHOWN));
        _cleanup_free_ char *text = strndup(command, n);

        agent_tame(text, WIRE_JOB_COMMAND_SHOWN);
        return text ? json_string(text) : NULL;
}

static int put_end(json_t *entry, const struct agent_job *job) {
        const struct agent_exec_result *end = &job->result;

        if (job->running)
                return json_put(entry, "exit_code", json_null());
        int r = json_put(entry, "exit_code",
                         json_integer(end->signal > 0 ? EXIT_SIGNAL_BASE + end->signal : end->exit_code));
        if (r >= 0 && end->signal > 0)
                r = json_put(entry, "signal", json_integer(end->signal));
        return r;
}

/* Makes the entry for the caller from one of the guest: only known members, each checked. */
static int parse_entry(const json_t *in, json_t **ret, struct error *err) {
        struct agent_job job = {0};
        const char *command = NULL;
        char started[TIME_TEXT_LEN + 1];
        uint64_t id = 0, ms = 0, out = 0, err_out = 0;
        int64_t started_ms = 0;

        int r = agent_get_job_id(in, &id, err);
        if (r < 0 || (r = json_get_str(in, "command", &command, err)) < 0 || (r = parse_state(in, &job, err)) < 0 ||
            (r = json_get_int(in, "started_ms", &started_ms, err)) < 0 ||
            (r = agent_get_count(in, "duration_ms", &ms, err)) < 0 ||
            (r = agent_get_count(in, "out_total", &out, err)) < 0 ||
            (r = agent_get_count(in, "err_total", &err_out, err)) < 0)
                return r;

        _cleanup_json_ json_t *entry = json_object();
        time_text(MAX(0, MIN(started_ms, STARTED_MS_MAX)), started);
        r = json_put(entry, "job_id", json_integer((json_int_t) id));
        r |= json_put(entry, "command", shown_command(command));
        r |= json_put(entry, "running", json_boolean(job.running));
        r |= json_put(entry, "pty", json_boolean(job.pty));
        r |= put_end(entry, &job);
        r |= json_put(entry, "timed_out", json_boolean(job.result.timed_out));
        r |= json_put(entry, "left_running", json_boolean(job.result.leftover));
        r |= json_put(entry, "started_at", json_string(started));
        r |= json_put(entry, "duration_ms", json_integer((json_int_t) ms));
        r |= json_put(entry, "stdout_bytes", json_integer((json_int_t) out));
        r |= json_put(entry, "stderr_bytes", json_integer((json_int_t) err_out));
        if (r < 0)
                return -ENOMEM;
        *ret = TAKE_PTR(entry);
        return 0;
}

static int parse_list(const json_t *ok, unsigned max, json_t **ret, uint64_t *ret_total, struct error *err) {
        _cleanup_json_ json_t *list = json_array();
        const json_t *jobs = json_object_get(ok, "jobs"), *in;
        uint64_t total = 0;
        size_t i;

        if (!list)
                return -ENOMEM;
        int r = agent_get_count(ok, "total", &total, err);
        if (r < 0)
                return r;
        if (!json_is_array(jobs) || json_array_size(jobs) > MIN((uint64_t) max, total))
                return error_set(err, ERROR_INVALID_ARGUMENT, "no list \"jobs\" of at most %u jobs", max);
        json_array_foreach ((json_t *) jobs, i, in) {
                json_t *entry = NULL;

                r = parse_entry(in, &entry, err);
                if (r >= 0)
                        r = json_push(list, entry);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(list);
        *ret_total = total;
        return 0;
}

int agent_job_list(struct agent *a, unsigned max, const struct op *op, json_t **ret, uint64_t *ret_total,
                   struct error *err) {
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *ok = NULL;

        max = MIN(max, WIRE_JOB_LIST_MAX);
        int r = agent_ask(a, json_pack("{s:s, s:i}", "type", WIRE_REQ_JOB_LIST, "max", (int) max), list_doing, op, &ok,
                          err);
        if (r < 0)
                return r;
        r = parse_list(ok, max, ret, ret_total, &detail);
        if (r == -ENOMEM)
                return error_set_errno(err, ENOMEM, "Failed while %s", list_doing);
        return r < 0 ? agent_protocol_error(list_doing, &detail, err) : 0;
}

/* --- the environment of all commands --- */

/* The values are secrets: the request only refers to the caller's objects, and no message has more than a number. */
int agent_set_env(struct agent *a, json_t *vars, json_t *unset, const struct op *op, uint64_t *ret_total,
                  struct error *err) {
        static const char doing[] = "setting the environment";
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *ok = NULL;
        uint64_t total = 0;

        int r = agent_ask(a, json_pack("{s:s, s:O, s:O*}", "type", WIRE_REQ_SET_ENV, "vars", vars, "unset", unset),
                          doing, op, &ok, err);
        if (r < 0)
                return r;
        r = agent_get_count(ok, "total", &total, &detail);
        if (r >= 0 && total > WIRE_ENV_VARS_MAX)
                r = error_set(&detail, ERROR_INVALID_ARGUMENT, "%llu variables, more than there can be",
                              (unsigned long long) total);
        if (r < 0)
                return agent_protocol_error(doing, &detail, err);
        *ret_total = total;
        return 0;
}
