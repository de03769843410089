/* SPDX-License-Identifier: Apache-2.0 */
/* exec_background: one tool, an action for each thing that can be done to a job. */
#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tools/action.h"
#include "tools/command.h"
#include "tools/tools.h"
#include "wire/wire.h"

#define JOB_WRITE_WAIT_MS 10000 /* for the job to read what is written to it */
#define JOBS_LISTED 250u        /* so many fit a message, whatever their commands hold */
#define KILL_SIGNAL_DEFAULT 9
#define POLL_ROUNDS_MAX 32u /* a character needs three */

struct job_call {
        const struct tool_call *call;
        struct agent *agent;
        struct op op;
        uint64_t job_id;
        json_t *warnings; /* borrowed array of texts */
};

struct job_action {
        struct action action;
        /* Checks what the table cannot say, before the guest is asked; may be NULL. */
        int (*check)(const json_t *args, json_t *warnings, struct error *err);
        int (*run)(const struct job_call *jc, json_t *result, struct error *err);
};

static int no_such_job(int r, uint64_t job_id, struct error *err) {
        if (r < 0 && err->code == ERROR_NOT_FOUND) {
                error_set(err, ERROR_NOT_FOUND, "There is no job %" PRIu64 " in this workspace", job_id);
                error_hint(err, "exec_background with action \"list\" shows the jobs that there are. Jobs end with the "
                                "machine, and the oldest are forgotten.");
        }
        return r;
}

static int put_job_id(json_t *result, uint64_t job_id) {
        return json_put(result, "job_id", json_integer((json_int_t) job_id));
}

static int check_start(const json_t *args, json_t *warnings, struct error *err) {
        struct agent_exec_args unused;
        bool pty = false;

        int r = command_read_args(args, &unused, err);
        if (r >= 0)
                r = json_opt_bool(args, "pty", &pty, err);
        if (r < 0 || pty || (!json_object_get(args, "cols") && !json_object_get(args, "rows")))
                return r;
        return json_push(warnings, json_string("cols and rows were ignored: a terminal needs pty: true."));
}

static int read_terminal(const json_t *args, struct agent_terminal *ret, struct error *err) {
        int64_t cols = 0, rows = 0;

        int r = json_opt_int(args, "cols", &cols, err);
        if (r >= 0)
                r = json_opt_int(args, "rows", &rows, err);
        if (r >= 0)
                *ret = (struct agent_terminal){.cols = (unsigned) cols, .rows = (unsigned) rows};
        return r;
}

static int run_start(const struct job_call *jc, json_t *result, struct error *err) {
        struct agent_exec_args args;
        struct agent_terminal terminal = {0};
        bool pty = false;
        uint64_t job_id;

        int r = command_read_args(jc->call->args, &args, err);
        if (r >= 0)
                r = json_opt_bool(jc->call->args, "pty", &pty, err);
        if (r >= 0)
                r = read_terminal(jc->call->args, &terminal, err);
        if (r >= 0)
                r = agent_job_start(jc->agent, &args, pty ? &terminal : NULL, &jc->op, &job_id, err);
        if (r < 0)
                return r;
        r = put_job_id(result, job_id);
        r |= json_put(result, "status", json_string("started"));
        return r < 0 ? -ENOMEM : 0;
}

struct poll_request {
        struct agent_job_read_args args;
        bool strip_ansi;
};

static int read_poll(const struct job_call *jc, struct poll_request *ret, struct error *err) {
        int64_t wait_secs = 0, max_output = COMMAND_OUTPUT_DEFAULT;
        struct poll_request rq = {.args = {.job_id = jc->job_id, .out_offset = -1, .err_offset = -1}};

        int r = json_opt_int(jc->call->args, "wait_secs", &wait_secs, err);
        if (r >= 0)
                r = json_opt_int(jc->call->args, "max_output_bytes", &max_output, err);
        if (r >= 0)
                r = json_opt_int(jc->call->args, "stdout_offset", &rq.args.out_offset, err);
        if (r >= 0)
                r = json_opt_int(jc->call->args, "stderr_offset", &rq.args.err_offset, err);
        if (r >= 0)
                r = json_opt_bool(jc->call->args, "strip_ansi", &rq.strip_ansi, err);
        if (r < 0)
                return r;
        rq.args.wait_ms = wait_secs * MSEC_PER_SEC;
        /* Whole characters only are shown, so a read of less than one would never get on. */
        rq.args.max_output = (size_t) MAX(max_output, (int64_t) OUTPUT_READ_MIN);
        *ret = rq;
        return 0;
}

static int render_job(const struct agent_job *job, const struct poll_request *rq, struct command_text *ret) {
        const struct command_form form = {.budget = RESULT_BUDGET,
                                          .strip_ansi = rq->strip_ansi,
                                          .running = job->running,
                                          .out_offset = rq->args.out_offset,
                                          .err_offset = rq->args.err_offset};

        return command_render(&job->result, &form, ret);
}

/* Whether there is no news: nothing came from behind the offset, or what came waits for the rest of a character. */
static bool no_news(const struct output *shown, int64_t offset) {
        return offset >= 0 && shown->next == (uint64_t) offset;
}

/* One read, rendered. 1: the only news is the beginning of a character; *args is set to wait for what stands behind. */
static int read_once(const struct job_call *jc, const struct poll_request *rq, struct agent_job_read_args *args,
                     struct agent_job *job, struct command_text *text, struct error *err) {
        int r = agent_job_read(jc->agent, args, &jc->op, job, err);
        if (r >= 0)
                r = render_job(job, rq, text);
        if (r < 0)
                return r;
        size_t out = job->result.out.head.len, err_out = job->result.err.head.len;
        if (!job->running || out + err_out == 0 || !no_news(&text->out, rq->args.out_offset) ||
            !no_news(&text->err, rq->args.err_offset))
                return 0;
        args->out_offset = rq->args.out_offset + (int64_t) out;
        args->err_offset = rq->args.err_offset + (int64_t) err_out;
        return 1;
}

/*
 * Reads; and where the only news is the beginning of a character, waits on for what stands behind it, as long as the
 * caller wanted to wait. Such a beginning alone would otherwise end each wait at once.
 */
static int read_job(const struct job_call *jc, const struct poll_request *rq, struct agent_job *job,
                    struct command_text *text, struct error *err) {
        deadline_t end = deadline_in_ms(rq->args.wait_ms);
        struct agent_job_read_args args = rq->args;

        for (unsigned round = 0;; round++) {
                int r = read_once(jc, rq, &args, job, text, err);
                if (r <= 0 || round == POLL_ROUNDS_MAX || deadline_passed(end))
                        return r;
                agent_job_clear(job);
                command_text_clear(text);
                args.wait_ms = deadline_poll_ms(end);
                r = agent_job_read(jc->agent, &args, &jc->op, job, err);
                if (r < 0)
                        return r;
                agent_job_clear(job);
                args = rq->args;
                args.wait_ms = 0;
        }
}

/* An offset that the caller cannot have from a poll of this job. */
static int warn_past_end(const struct job_call *jc, const char *name, int64_t offset, uint64_t total) {
        if (offset < 0 || (uint64_t) offset <= total)
                return 0;
        _cleanup_free_ char *text =
                str_printf("%s %" PRId64 " is past the end (%" PRIu64 " bytes); is it of another job or stream?", name,
                           offset, total);
        return json_push(jc->warnings, text ? json_string(text) : NULL);
}

static int run_poll(const struct job_call *jc, json_t *result, struct error *err) {
        _cleanup_(agent_job_clear) struct agent_job job = {0};
        _cleanup_command_text_ struct command_text text = {0};
        struct poll_request rq;
        struct job_call waiting = *jc;

        int r = read_poll(jc, &rq, err);
        if (r < 0)
                return r;
        waiting.op.deadline = deadline_in_ms(rq.args.wait_ms + COMMAND_GRACE_MS);
        if (rq.args.wait_ms > 0)
                op_progress(&waiting.op, "waiting for news of job %" PRIu64, jc->job_id);
        r = no_such_job(read_job(&waiting, &rq, &job, &text, err), jc->job_id, err);
        if (r < 0)
                return r;
        r = put_job_id(result, jc->job_id);
        r |= json_put(result, "running", json_boolean(job.running));
        r |= command_put_end(result, &job.result, job.running);
        r |= command_put_text(result, &text, &job.result);
        r |= json_put(result, "stdout_offset", json_integer((json_int_t) text.out.next));
        r |= json_put(result, "stderr_offset", json_integer((json_int_t) text.err.next));
        r |= command_put_facts(result, &job.result, job.running);
        if (job.pty)
                r |= json_put(result, "pty", json_true());
        r |= warn_past_end(jc, "stdout_offset", rq.args.out_offset, job.result.out.total);
        r |= warn_past_end(jc, "stderr_offset", rq.args.err_offset, job.result.err.total);
        return r < 0 ? -ENOMEM : 0;
}

static int run_kill(const struct job_call *jc, json_t *result, struct error *err) {
        int64_t sig = KILL_SIGNAL_DEFAULT;
        bool running = false;
        uint64_t processes = 0;

        int r = json_opt_int(jc->call->args, "signal", &sig, err);
        if (r >= 0)
                r = no_such_job(agent_job_kill(jc->agent, jc->job_id, (int) sig, &jc->op, &running, &processes, err),
                                jc->job_id, err);
        if (r < 0)
                return r;
        r = put_job_id(result, jc->job_id);
        r |= command_put_signal(result, (int) sig);
        r |= json_put(result, "status", json_string("killed"));
        r |= json_put(result, "running", json_boolean(running));
        r |= json_put(result, "processes", json_integer((json_int_t) processes));
        return r < 0 ? -ENOMEM : 0;
}

/* The bytes to write, as they are or out of base64. */
static int read_data(const json_t *args, struct buf *out, bool *ret_eof, struct error *err) {
        const char *data = "", *encoding = "utf-8";

        int r = json_opt_str(args, "data", &data, err);
        if (r >= 0)
                r = json_opt_str(args, "encoding", &encoding, err);
        if (r >= 0)
                r = json_opt_bool(args, "eof", ret_eof, err);
        if (r < 0)
                return r;
        r = str_eq(encoding, "base64") ? base64_decode(out, data, strlen(data)) : buf_append_str(out, data);
        if (r == -EINVAL) {
                error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"data\" is not base64");
                error_hint(err, "Leave encoding out to write data as text.");
                return -EINVAL;
        }
        if (r == -ENOBUFS) {
                error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"data\" has more than %u bytes", WIRE_JOB_WRITE_MAX);
                error_hint(err, "Write it in parts, or put it into a file with file_write and start the command with "
                                "its input from there: command < file");
                return -EINVAL;
        }
        return r < 0 ? error_set_errno(err, r, "Cannot read the argument \"data\"") : 0;
}

static int check_write(const json_t *args, json_t *warnings, struct error *err) {
        _cleanup_buf_ struct buf data = BUF_INIT(WIRE_JOB_WRITE_MAX);
        bool eof = false;

        (void) warnings;
        int r = read_data(args, &data, &eof, err);
        if (r < 0 || eof || json_object_get(args, "data"))
                return r;
        return error_set(err, ERROR_INVALID_ARGUMENT,
                         "Action \"write\" needs the argument \"data\", or eof: true to end the job's input");
}

static int put_unwritten(json_t *result, uint64_t written, size_t len, bool eof) {
        _cleanup_free_ char *next =
                str_printf("The job has not read all of it: %" PRIu64 " of %zu bytes were written%s. Poll to see what "
                           "it does, then write the rest, from byte %" PRIu64 " on.",
                           written, len, eof ? " and its input was not closed" : "", written);

        return json_put(result, "next", next ? json_string(next) : NULL);
}

/* The guest knows that the input is closed, not that the caller may take a job of exec for one of his own. */
static int explain_closed(int r, struct error *err) {
        if (r >= 0 || err->code != ERROR_CONFLICT || !strstr(error_message(err), "standard input"))
                return r;
        _cleanup_free_ char *first = err->hint ? str_printf("%s ", err->hint) : NULL;
        error_hint(err,
                   "%sA command that exec started has no open input; start it with exec_background, action \"start\".",
                   first ? first : "");
        return r;
}

static int run_write(const struct job_call *jc, json_t *result, struct error *err) {
        _cleanup_buf_ struct buf data = BUF_INIT(WIRE_JOB_WRITE_MAX);
        struct job_call waiting = *jc;
        bool eof = false;
        uint64_t written = 0;

        int r = read_data(jc->call->args, &data, &eof, err);
        waiting.op.deadline = deadline_in_ms(JOB_WRITE_WAIT_MS + COMMAND_GRACE_MS);
        if (r >= 0)
                r = no_such_job(agent_job_write(jc->agent, jc->job_id, data.data, data.len, eof, JOB_WRITE_WAIT_MS,
                                                &waiting.op, &written, err),
                                jc->job_id, err);
        if (r < 0)
                return explain_closed(r, err);
        r = put_job_id(result, jc->job_id);
        r |= json_put(result, "bytes_written", json_integer((json_int_t) written));
        r |= json_put(result, "complete", json_boolean(written >= data.len));
        if (written < data.len)
                r |= put_unwritten(result, written, data.len, eof);
        return r < 0 ? -ENOMEM : 0;
}

static int run_resize(const struct job_call *jc, json_t *result, struct error *err) {
        struct agent_terminal terminal = {0};

        int r = read_terminal(jc->call->args, &terminal, err);
        if (r >= 0)
                r = no_such_job(agent_job_resize(jc->agent, jc->job_id, &terminal, &jc->op, err), jc->job_id, err);
        if (r < 0)
                return r;
        r = put_job_id(result, jc->job_id);
        r |= json_put(result, "status", json_string("resized"));
        return r < 0 ? -ENOMEM : 0;
}

static int run_list(const struct job_call *jc, json_t *result, struct error *err) {
        json_t *jobs = NULL;
        uint64_t total = 0;

        int r = agent_job_list(jc->agent, JOBS_LISTED, &jc->op, &jobs, &total, err);
        if (r < 0)
                return r;
        r = json_put(result, "jobs", jobs);
        r |= json_put(result, "total", json_integer((json_int_t) total));
        return r < 0 ? -ENOMEM : 0;
}

static const struct job_action actions[] = {
        {{"start", {"command"}, {"workdir", "env", "timeout_secs", "pty", "cols", "rows"}}, check_start, run_start},
        {{"poll", {"job_id"}, {"wait_secs", "stdout_offset", "stderr_offset", "max_output_bytes", "strip_ansi"}},
         NULL,
         run_poll},
        {{"kill", {"job_id"}, {"signal"}}, NULL, run_kill},
        {{"write", {"job_id"}, {"data", "encoding", "eof"}}, check_write, run_write},
        {{"list", {NULL}, {NULL}}, NULL, run_list},
        {{"resize", {"job_id", "cols", "rows"}, {NULL}}, NULL, run_resize},
};

static const struct job_action *find_action(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
                if (str_eq(actions[i].action.name, name))
                        return &actions[i];
        return NULL;
}

static int check_action(const struct job_action *a, const json_t *args, json_t *warnings, struct error *err) {
        const char *missing = NULL;

        int r = action_check(&a->action, args, warnings, &missing, err);
        if (str_eq(missing, "job_id"))
                error_hint(err, "Action \"start\" gives it; action \"list\" shows the jobs that there are.");
        return r < 0 || !a->check ? r : a->check(args, warnings, err);
}

static int read_job_id(const json_t *args, uint64_t *ret, struct error *err) {
        int64_t job_id = 0;

        int r = json_opt_int(args, "job_id", &job_id, err);
        *ret = (uint64_t) job_id; /* the schema has a minimum */
        return r;
}

static int exec_background(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_json_ json_t *result = json_object(), *warnings = json_array();
        struct job_call jc = {.call = call, .op = *call->op};
        const char *name = NULL;

        int r = json_get_str(call->args, "action", &name, err);
        if (r < 0)
                return r;
        const struct job_action *a = find_action(name);
        if (!a || !result || !warnings)
                return -ENOMEM;
        r = check_action(a, call->args, warnings, err);
        if (r >= 0)
                r = read_job_id(call->args, &jc.job_id, err);
        if (r >= 0)
                r = ws_agent(call->core, call->workspace_id, call->op, &agent, err);
        if (r < 0)
                return r;
        jc.agent = agent;
        jc.warnings = warnings;
        r = a->run(&jc, result, err);
        if (r >= 0 && json_array_size(warnings) > 0)
                r = json_put(result, "warnings", TAKE_PTR(warnings));
        if (r >= 0)
                ret->value = TAKE_PTR(result);
        return r;
}

static const struct tool tools[] = {
        {.name = "exec_background",
         .access = TOOL_ACCESS_OWNER,
         .default_timeout_ms = COMMAND_GRACE_MS,
         .handler = exec_background},
};

const struct tool_group job_tools = {.json = jobs_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
