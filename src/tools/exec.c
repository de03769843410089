/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tools/output.h"
#include "tools/tools.h"

/* Beyond the command's own timeout, for starting it, for killing it and for its output. */
#define EXEC_GRACE_MS 30000
/* The kernel's limit of one argument of a program, MAX_ARG_STRLEN, less its NUL: execve(2). */
#define COMMAND_MAX (128u * 1024u - 1)
/* What one output gets of a message at least, when both do not fit. */
#define OUTPUT_SHARE (RESULT_BUDGET / 2)
/* What shells report for a command that a signal ended. */
#define EXIT_SIGNAL_BASE 128

static const char *const refused_env[] = {"PATH", "IFS", "ENV", "BASH_ENV"};

static bool env_refused(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(refused_env); i++)
                if (str_eq(name, refused_env[i]))
                        return true;
        return str_starts_with(name, "LD_");
}

static bool env_name_valid(const char *name) {
        return name_valid(name, 256, "_") && !(*name >= '0' && *name <= '9');
}

static int check_env(const json_t *env, struct error *err) {
        const char *name;
        json_t *value;

        json_object_foreach ((json_t *) env, name, value) {
                if (!env_name_valid(name)) {
                        error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"env\": \"%.60s\" cannot name a variable",
                                  name);
                        error_hint(err, "Use letters, digits and _, not beginning with a digit.");
                        return -EINVAL;
                }
                if (env_refused(name)) {
                        error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"env\": the variable %.60s may not be set",
                                  name);
                        error_hint(err,
                                   "PATH, IFS, ENV, BASH_ENV and LD_* are refused because they change which programs "
                                   "run. Set it inside the command instead, for example: export PATH=...; my-command");
                        return -EINVAL;
                }
        }
        return 0;
}

static int read_args(const struct tool_call *call, struct agent_exec_args *ret, struct error *err) {
        int64_t timeout_secs, max_output;
        const char *input = NULL;
        struct agent_exec_args args = {.env = json_object_get(call->args, "env")};

        int r = json_get_str(call->args, "command", &args.command, err);
        if (r >= 0)
                r = json_get_int(call->args, "timeout_secs", &timeout_secs, err);
        if (r >= 0)
                r = json_get_int(call->args, "max_output_bytes", &max_output, err);
        if (r >= 0)
                r = json_opt_str(call->args, "workdir", &args.workdir, err);
        if (r >= 0)
                r = json_opt_str(call->args, "stdin", &input, err);
        if (r >= 0)
                r = check_env(args.env, err);
        if (r < 0)
                return r;
        if (strlen(args.command) > COMMAND_MAX) {
                error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"command\" has %zu bytes, at most %u are possible",
                          strlen(args.command), COMMAND_MAX);
                error_hint(err, "Put the script into a file with file_write, or give data through stdin.");
                return -EINVAL;
        }
        args.timeout_ms = timeout_secs * MSEC_PER_SEC;
        args.max_output = (size_t) max_output;
        args.stdin_data = input;
        args.stdin_len = input ? strlen(input) : 0;
        *ret = args;
        return 0;
}

/* Divides the message between the two outputs: one that is short leaves its rest to the other. */
static int render_outputs(const struct agent_exec_result *res, struct output *out, struct output *err_out) {
        size_t out_cost = output_cost(&res->out), err_cost = output_cost(&res->err);
        size_t out_budget = RESULT_BUDGET - MIN(err_cost, (size_t) OUTPUT_SHARE);
        size_t err_budget = RESULT_BUDGET - MIN(out_cost, out_budget);

        int r = output_from_capture(&res->out, out_budget, out);
        return r < 0 ? r : output_from_capture(&res->err, err_budget, err_out);
}

static int build_result(const struct agent_exec_result *res, json_t **ret) {
        _cleanup_output_ struct output out = {0}, err_out = {0};
        _cleanup_json_ json_t *v = json_object();
        int code = res->signal > 0 ? EXIT_SIGNAL_BASE + res->signal : res->exit_code;

        if (!v || render_outputs(res, &out, &err_out) < 0)
                return -ENOMEM;
        int r = json_put(v, "exit_code", json_integer(code));
        r |= json_put(v, "stdout", json_text(out.text.data, out.text.len));
        r |= json_put(v, "stderr", json_text(err_out.text.data, err_out.text.len));
        r |= json_put(v, "duration_ms", json_integer(res->duration_ms));
        r |= json_put(v, "timed_out", json_boolean(res->timed_out));
        if (res->signal > 0)
                r |= json_put(v, "signal", json_integer(res->signal));
        r |= json_put(v, "truncated", json_boolean(out.cut || err_out.cut));
        r |= json_put(v, "stdout_bytes", json_integer((json_int_t) res->out.total));
        r |= json_put(v, "stderr_bytes", json_integer((json_int_t) res->err.total));
        if (out.invalid > 0)
                r |= json_put(v, "stdout_invalid_bytes", json_integer((json_int_t) out.invalid));
        if (err_out.invalid > 0)
                r |= json_put(v, "stderr_invalid_bytes", json_integer((json_int_t) err_out.invalid));
        if (res->leftover)
                r |= json_put(v, "left_running", json_true());
        if (r < 0)
                return -ENOMEM;
        *ret = TAKE_PTR(v);
        return 0;
}

static int exec_run(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_exec_result_ struct agent_exec_result res = {0};
        struct agent_exec_args args;
        struct op op = *call->op;

        int r = read_args(call, &args, err);
        if (r < 0)
                return r;
        op.deadline = deadline_in_ms(args.timeout_ms + EXEC_GRACE_MS);
        r = ws_agent(call->core, call->workspace_id, &op, &agent, err);
        if (r < 0)
                return r;
        op_progress(&op, "running the command");
        r = agent_exec(agent, &args, &op, &res, err);
        return r < 0 ? r : build_result(&res, &ret->value);
}

static const struct tool tools[] = {
        {.name = "exec", .access = TOOL_ACCESS_OWNER, .default_timeout_ms = EXEC_GRACE_MS, .handler = exec_run},
};

const struct tool_group exec_tools = {.json = exec_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
