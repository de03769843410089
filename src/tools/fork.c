/* SPDX-License-Identifier: Apache-2.0 */
/*
 * workspace_fork: copies of a workspace. One that fails is an error like any other; of several each has its own
 * outcome, and only if there is none that succeeded the call counts as failed.
 */
#include "base/json.h"
#include "base/str.h"
#include "tools/output.h"
#include "tools/tools.h"
#include "tools/view.h"

#define FORK_TIMEOUT_MS 600000
#define ERROR_COST 4000u /* bytes of a message for the error of one fork of several */

static int read_args(const json_t *args, struct ws_fork_args *ret, struct error *err) {
        int64_t count = 1;

        int r = json_opt_str(args, "snapshot_name", &ret->snapshot_name, err);
        if (r >= 0)
                r = json_opt_str(args, "new_name", &ret->new_name, err);
        if (r >= 0)
                r = json_opt_str(args, "name_prefix", &ret->name_prefix, err);
        if (r >= 0)
                r = json_opt_bool(args, "disk_only", &ret->disk_only, err);
        if (r >= 0)
                r = json_opt_int(args, "count", &count, err);
        ret->count = (unsigned) count; /* the schema has a minimum and a maximum */
        return r;
}

/* What was given and means nothing with this count. */
static int put_warnings(json_t *result, const struct ws_fork_args *args) {
        const char *text = NULL;

        if (args->count == 1 && args->name_prefix)
                text = "Argument \"name_prefix\" was ignored: a single fork is named by new_name.";
        else if (args->count > 1 && args->new_name)
                text = "Argument \"new_name\" was ignored: several forks are named by name_prefix and a number.";
        return text ? json_put(result, "warnings", json_pack("[s]", text)) : 0;
}

/* How long the source stood still; only a live fork stops it. */
static int put_pause(json_t *result, const struct ws_forks *forks) {
        if (forks->pause_us <= 0)
                return 0;
        return json_put(result, "pause_ms", json_integer((forks->pause_us + 999) / 1000));
}

static int one_result(const struct ws_forks *forks, json_t **ret, struct error *err) {
        struct ws_fork *f = &forks->v[0];

        if (f->r < 0) {
                error_move(err, &f->error);
                return f->r;
        }
        _cleanup_json_ json_t *v = view_brief(&f->view);
        if (!v)
                return -ENOMEM;
        int r = json_put(v, "ip", json_string(f->view.address));
        r |= json_put(v, "forked_from", view_origin(&f->view.row.origin));
        r |= json_put(v, "boot_time_ms", json_integer(f->started.boot_time_ms));
        r |= json_put(v, "start", json_string(ws_start_kind_name(f->started.kind)));
        r |= json_put(v, "resources", view_resources(&f->view.row));
        r |= put_pause(v, forks);
        if (r < 0)
                return -ENOMEM;
        *ret = TAKE_PTR(v);
        return 0;
}

static json_t *worker(const struct ws_fork *f) {
        return json_pack("{s:s, s:s, s:s}", "workspace_id", f->view.row.id, "name", f->view.row.name, "ip",
                         f->view.address);
}

static json_t *failure(const struct ws_fork *f, size_t index) {
        return json_pack("{s:I, s:s, s:o, s:s}", "index", (json_int_t) index, "name", f->name, "error",
                         output_error(&f->error, ERROR_COST), "code", error_code_name(f->error.code));
}

static int many_result(const struct tool_call *call, const struct ws_forks *forks, struct tool_result *ret) {
        _cleanup_json_ json_t *v = json_object(), *workers = json_array(), *failures = json_array();
        enum error_code first = ERROR_NONE;

        if (!v || !workers || !failures)
                return -ENOMEM;
        for (size_t i = 0; i < forks->n; i++) {
                const struct ws_fork *f = &forks->v[i];
                int r = f->r < 0 ? json_push(failures, failure(f, i + 1)) : json_push(workers, worker(f));
                if (r < 0)
                        return -ENOMEM;
                if (f->r < 0 && first == ERROR_NONE)
                        first = f->error.code;
        }
        size_t n_workers = json_array_size(workers);
        int r = json_put(v, "source_workspace_id", json_string(call->workspace_id));
        r |= json_put(v, "snapshot_name", view_text_or_null(forks->snapshot_name));
        r |= json_put(v, "requested_count", json_integer((json_int_t) forks->n));
        r |= json_put(v, "success_count", json_integer((json_int_t) n_workers));
        r |= json_put(v, "failure_count", json_integer((json_int_t) json_array_size(failures)));
        r |= json_put(v, "workers", TAKE_PTR(workers));
        r |= json_put(v, "failures", TAKE_PTR(failures));
        r |= put_pause(v, forks);
        if (r < 0)
                return -ENOMEM;
        ret->value = TAKE_PTR(v);
        ret->failed = n_workers == 0 ? first : ERROR_NONE;
        return 0;
}

static int workspace_fork(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_ws_forks_ struct ws_forks forks = {0};
        struct ws_fork_args args = {0};

        int r = read_args(call->args, &args, err);
        if (r >= 0)
                r = ws_fork(call->core, call->workspace_id, &args, call->owner, call->op, &forks, err);
        if (r < 0)
                return r;
        r = args.count == 1 ? one_result(&forks, &ret->value, err) : many_result(call, &forks, ret);
        return r < 0 ? r : put_warnings(ret->value, &args);
}

static const struct tool tools[] = {
        {.name = "workspace_fork",
         .access = TOOL_ACCESS_OWNER,
         .default_timeout_ms = FORK_TIMEOUT_MS,
         .handler = workspace_fork},
};

const struct tool_group fork_tools = {.json = fork_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
