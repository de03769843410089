/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exec_parallel: a command in each of several workspaces at once, on a thread for each, all joined before the answer.
 * Everything that can be wrong with the call is found before the first command starts; after that, what goes wrong in
 * one workspace is told in its own entry.
 */
#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "base/thread.h"
#include "tools/command.h"
#include "tools/tools.h"

#define ENTRY_COST 2500u /* bytes of a message for what an entry holds beside its outputs */
#define ERROR_COST 1000u /* part of that for its error */
#define CONNECT_TIMEOUT_MS 30000

struct parallel;

struct task {
        struct parallel *parallel;
        char *name; /* of the workspace, owned */
        struct agent *agent;
        struct agent_exec_args args;
        struct agent_exec_result result;
        struct error err; /* why there is no result */
        pthread_t thread;
        bool started;
};

struct parallel {
        const struct tool_call *call;
        struct op op;
        struct task *tasks;
        size_t n;
        bool strip_ansi;
        int64_t began_ns;

        pthread_mutex_t lock; /* guards done */
        pthread_cond_t changed;
        size_t done;
};

static void parallel_clear(struct parallel *p) {
        for (size_t i = 0; i < p->n; i++) {
                struct task *t = &p->tasks[i];

                free(t->name);
                agent_unref(t->agent);
                agent_exec_result_clear(&t->result);
                error_clear(&t->err);
        }
        free(p->tasks);
        pthread_cond_destroy(&p->changed);
        pthread_mutex_destroy(&p->lock);
}

static int parallel_init(struct parallel *p, const struct tool_call *call, struct error *err) {
        *p = (struct parallel){.call = call, .op = *call->op};
        pthread_mutex_init(&p->lock, NULL);
        cond_init(&p->changed);
        p->tasks = calloc(call->n_workspaces + 1, sizeof(*p->tasks));
        if (!p->tasks)
                return error_set_errno(err, ENOMEM, "Cannot run the commands");
        p->n = call->n_workspaces;
        for (size_t i = 0; i < p->n; i++)
                p->tasks[i].parallel = p;
        return 0;
}

static int read_commands(struct parallel *p, struct error *err) {
        const json_t *commands = json_object_get(p->call->args, "commands");
        size_t n = json_array_size(commands);
        struct agent_exec_args common;

        int r = command_read_args(p->call->args, &common, err);
        if (r >= 0)
                r = json_opt_bool(p->call->args, "strip_ansi", &p->strip_ansi, err);
        if (r < 0)
                return r;
        if (n != 1 && n != p->n) {
                error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"commands\" has %zu items for %zu workspaces", n,
                          p->n);
                error_hint(err, "Give one command for all, or one for each in the order of workspace_ids.");
                return -EINVAL;
        }
        for (size_t i = 0; i < p->n; i++) {
                p->tasks[i].args = common;
                p->tasks[i].args.command = json_string_value(json_array_get(commands, n == 1 ? 0 : i));
                r = command_check("commands", p->tasks[i].args.command, err);
                if (r < 0)
                        return r;
        }
        p->op.deadline = deadline_in_ms(common.timeout_ms + COMMAND_GRACE_MS);
        return 0;
}

/* A connection to each, so that none starts if one is not running. */
static int connect_all(struct parallel *p, struct error *err) {
        struct op op = op_sub(&p->op, CONNECT_TIMEOUT_MS);

        for (size_t i = 0; i < p->n; i++) {
                _cleanup_ws_view_ struct ws_view view = {0};
                struct task *t = &p->tasks[i];

                int r = ws_get(p->call->core, p->call->workspace_ids[i], p->call->owner, &view, err);
                if (r < 0)
                        return r;
                t->name = strdup(view.row.name);
                if (!t->name)
                        return error_set_errno(err, ENOMEM, "Cannot run the commands");
                r = ws_agent(p->call->core, p->call->workspace_ids[i], &op, &t->agent, err);
                if (r < 0) {
                        error_prefix(err, "No command was started, because of %s", t->name);
                        return r;
                }
        }
        return 0;
}

static void *task_main(void *arg) {
        struct task *t = arg;
        struct parallel *p = t->parallel;
        struct op op = {.deadline = p->op.deadline, .cancel = p->op.cancel};

        int r = agent_exec(t->agent, &t->args, &op, &t->result, &t->err);
        if (r < 0 && !error_is_set(&t->err))
                error_set_errno(&t->err, r, "The command could not be run");
        LOCK(&p->lock);
        p->done++;
        pthread_cond_broadcast(&p->changed);
        return NULL;
}

static void start_all(struct parallel *p) {
        p->began_ns = monotonic_ns();
        for (size_t i = 0; i < p->n; i++) {
                struct task *t = &p->tasks[i];

                int r = thread_start(&t->thread, "mcp-parallel", task_main, t);
                t->started = r >= 0;
                if (t->started)
                        continue;
                error_set_errno(&t->err, r, "Cannot start a thread for the command");
                LOCK(&p->lock);
                p->done++;
        }
}

/* Each task ends by the deadline or the cancel that it shares with the others. */
static void wait_all(struct parallel *p) {
        for (size_t seen = 0; seen < p->n;) {
                {
                        LOCK(&p->lock);
                        while (p->done == seen)
                                cond_wait_until(&p->changed, &p->lock, DEADLINE_NEVER);
                        seen = p->done;
                }
                op_progress(&p->op, "%zu of %zu done", seen, p->n);
        }
        for (size_t i = 0; i < p->n; i++)
                if (p->tasks[i].started)
                        pthread_join(p->tasks[i].thread, NULL);
}

/* What both outputs of each task may cost in the answer; an array of n. */
static int share_budget(const struct parallel *p, size_t **ret) {
        _cleanup_free_ size_t *costs = calloc(p->n + 1, sizeof(*costs)), *budgets = calloc(p->n + 1, sizeof(*budgets));

        if (!costs || !budgets)
                return -ENOMEM;
        for (size_t i = 0; i < p->n; i++)
                costs[i] = output_cost(&p->tasks[i].result.out) + output_cost(&p->tasks[i].result.err);
        output_share(RESULT_BUDGET - p->n * ENTRY_COST, costs, p->n, budgets);
        *ret = TAKE_PTR(budgets);
        return 0;
}

static json_t *entry(const struct parallel *p, size_t i, size_t budget) {
        const struct task *t = &p->tasks[i];
        const struct command_form form = {
                .budget = budget, .strip_ansi = p->strip_ansi, .out_offset = -1, .err_offset = -1};
        _cleanup_command_text_ struct command_text text = {0};
        _cleanup_json_ json_t *v = json_object();
        bool failed = error_is_set(&t->err);

        if (!v || command_render(&t->result, &form, &text) < 0)
                return NULL;
        int r = json_put(v, "workspace_id", json_string(p->call->workspace_ids[i]));
        r |= json_put(v, "workspace_name", json_string(t->name));
        /* Without a result there is no exit code, as of a command that still runs. */
        r |= command_put_end(v, &t->result, failed);
        r |= command_put_text(v, &text, &t->result);
        r |= command_put_facts(v, &t->result, false);
        if (failed)
                r |= json_put(v, "error", output_error(&t->err, ERROR_COST));
        return r < 0 ? NULL : TAKE_PTR(v);
}

static json_t *summary(const struct parallel *p) {
        size_t succeeded = 0, timed_out = 0;

        for (size_t i = 0; i < p->n; i++) {
                const struct task *t = &p->tasks[i];
                bool late = error_is_set(&t->err) ? t->err.code == ERROR_TIMEOUT : t->result.timed_out;

                timed_out += late;
                succeeded += !error_is_set(&t->err) && !late && t->result.signal == 0 && t->result.exit_code == 0;
        }
        return json_pack("{s:I, s:I, s:I, s:I, s:I}", "total", (json_int_t) p->n, "succeeded", (json_int_t) succeeded,
                         "failed", (json_int_t) (p->n - succeeded), "timed_out", (json_int_t) timed_out, "elapsed_ms",
                         (json_int_t) ((monotonic_ns() - p->began_ns) / NSEC_PER_MSEC));
}

static int build_result(const struct parallel *p, json_t **ret) {
        _cleanup_json_ json_t *v = json_object(), *results = json_array();
        _cleanup_free_ size_t *budgets = NULL;

        if (!v || !results || share_budget(p, &budgets) < 0)
                return -ENOMEM;
        for (size_t i = 0; i < p->n; i++)
                if (json_push(results, entry(p, i, budgets[i])) < 0)
                        return -ENOMEM;
        /* First, so that it is not what a client cuts off. */
        int r = json_put(v, "summary", summary(p));
        r |= json_put(v, "results", TAKE_PTR(results));
        if (r < 0)
                return -ENOMEM;
        *ret = TAKE_PTR(v);
        return 0;
}

static int exec_parallel(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_(parallel_clear) struct parallel p;

        int r = parallel_init(&p, call, err);
        if (r >= 0)
                r = read_commands(&p, err);
        if (r >= 0)
                r = connect_all(&p, err);
        if (r < 0)
                return r;
        op_progress(&p.op, "0 of %zu done", p.n);
        start_all(&p);
        wait_all(&p);
        if (cancel_fired(p.op.cancel))
                return error_set(err, ERROR_CANCELLED, "The call was cancelled");
        return build_result(&p, &ret->value);
}

static const struct tool tools[] = {
        {.name = "exec_parallel",
         .access = TOOL_ACCESS_OWNER_EACH,
         .default_timeout_ms = COMMAND_GRACE_MS,
         .handler = exec_parallel},
};

const struct tool_group parallel_tools = {.json = parallel_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
