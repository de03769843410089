/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tools/command.h"
#include "tools/tools.h"
#include "wire/wire.h"

/* A call without a time limit of its own returns after so long, below the 60 s at which many clients give up. */
#define EXEC_YIELD_DEFAULT_SECS 45

static int check_stdin(const char *input, struct error *err) {
        size_t len = strlen(input);

        if (len <= WIRE_STDIN_MAX)
                return 0;
        error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"stdin\" has %zu bytes, at most %u are possible", len,
                  WIRE_STDIN_MAX);
        error_hint(err, "Bring the data into a file with file_write (append: true, in parts) or file_transfer, and let "
                        "the command read that: command < file");
        return -EINVAL;
}

static int read_args(const json_t *given, struct agent_exec_args *ret, bool *ret_strip, struct error *err) {
        int64_t yield_secs = 0;
        const char *input = NULL;
        struct agent_exec_args args;

        int r = command_read_args(given, &args, err);
        if (r >= 0)
                r = json_opt_int(given, "yield_secs", &yield_secs, err);
        if (r >= 0)
                r = json_opt_str(given, "stdin", &input, err);
        if (r >= 0)
                r = json_get_bool(given, "strip_ansi", ret_strip, err);
        if (r >= 0 && input)
                r = check_stdin(input, err);
        if (r < 0)
                return r;
        if (yield_secs == 0 && args.timeout_ms == 0)
                yield_secs = EXEC_YIELD_DEFAULT_SECS;
        args.yield_ms = yield_secs * MSEC_PER_SEC;
        if (args.timeout_ms > 0 && args.yield_ms >= args.timeout_ms)
                args.yield_ms = 0; /* it will have ended by then */
        args.stdin_data = input;
        args.stdin_len = input ? strlen(input) : 0;
        *ret = args;
        return 0;
}

/* How to go on with a command that has become a job. */
static int put_next(json_t *v, uint64_t job_id, int64_t timeout_ms, const struct command_text *text) {
        int64_t secs = timeout_ms / MSEC_PER_SEC;
        _cleanup_free_ char *limit =
                secs > 0 ? str_printf(" It is killed %" PRId64 " s after its start.", secs) : strdup("");
        _cleanup_free_ char *next =
                str_printf("The command runs on as job %" PRIu64 ". Wait for its end and the rest of its output with "
                           "exec_background: action \"poll\", job_id %" PRIu64 ", wait_secs 45, stdout_offset %" PRIu64
                           ", stderr_offset %" PRIu64 "; action \"kill\" ends it.%s",
                           job_id, job_id, text->out.next, text->err.next, limit ? limit : "");
        if (!limit || !next)
                return -ENOMEM;
        int r = json_put(v, "stdout_offset", json_integer((json_int_t) text->out.next));
        r |= json_put(v, "stderr_offset", json_integer((json_int_t) text->err.next));
        r |= json_put(v, "next", json_string(next));
        return r < 0 ? -ENOMEM : 0;
}

static int build_result(const struct agent_exec_result *res, int64_t timeout_ms, bool strip, json_t **ret) {
        bool running = res->job_id > 0;
        const struct command_form form = {
                .budget = RESULT_BUDGET, .strip_ansi = strip, .running = running, .out_offset = -1, .err_offset = -1};
        _cleanup_command_text_ struct command_text text = {0};
        _cleanup_json_ json_t *v = json_object();

        if (!v || command_render(res, &form, &text) < 0)
                return -ENOMEM;
        int r = command_put_end(v, res, running);
        if (running) {
                r |= json_put(v, "running", json_true());
                r |= json_put(v, "job_id", json_integer((json_int_t) res->job_id));
        }
        r |= command_put_text(v, &text, res);
        r |= command_put_facts(v, res, running);
        if (running)
                r |= put_next(v, res->job_id, timeout_ms, &text);
        if (r < 0)
                return -ENOMEM;
        *ret = TAKE_PTR(v);
        return 0;
}

static int exec_run(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_exec_result_ struct agent_exec_result res = {0};
        struct agent_exec_args args;
        bool strip = false;
        struct op op = *call->op;

        int r = read_args(call->args, &args, &strip, err);
        if (r < 0)
                return r;
        op.deadline = deadline_in_ms((args.yield_ms > 0 ? args.yield_ms : args.timeout_ms) + COMMAND_GRACE_MS);
        r = ws_agent(call->core, call->workspace_id, &op, &agent, err);
        if (r < 0)
                return r;
        op_progress(&op, "running the command");
        r = agent_exec(agent, &args, &op, &res, err);
        return r < 0 ? r : build_result(&res, args.timeout_ms, strip, &ret->value);
}

static const struct tool tools[] = {
        {.name = "exec", .access = TOOL_ACCESS_OWNER, .default_timeout_ms = COMMAND_GRACE_MS, .handler = exec_run},
};

const struct tool_group exec_tools = {.json = exec_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
