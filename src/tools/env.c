/* SPDX-License-Identifier: Apache-2.0 */
/* Variables for all commands of a workspace. Their values are often secrets: none goes into an error, a log line or
 * progress. */
#include "base/json.h"
#include "tools/command.h"
#include "tools/tools.h"

#define ENV_TIMEOUT_MS 30000

static int check_unset(const json_t *unset, struct error *err) {
        size_t i;
        json_t *name;

        json_array_foreach ((json_t *) unset, i, name) {
                int r = command_check_name("unset", json_string_value(name), err);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int set_env(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        json_t *vars = json_object_get(call->args, "vars"), *unset = json_object_get(call->args, "unset");
        _cleanup_agent_ struct agent *agent = NULL;
        uint64_t total = 0;

        int r = command_check_env("vars", vars, err);
        if (r >= 0)
                r = check_unset(unset, err);
        if (r >= 0)
                r = ws_agent(call->core, call->workspace_id, call->op, &agent, err);
        if (r >= 0)
                r = agent_set_env(agent, vars, unset, call->op, &total, err);
        if (r < 0)
                return r;
        ret->value = json_pack("{s:I, s:I, s:s}", "count", (json_int_t) json_object_size(vars), "total",
                               (json_int_t) total, "status", "set");
        return 0;
}

static const struct tool tools[] = {
        {.name = "set_env", .access = TOOL_ACCESS_OWNER, .default_timeout_ms = ENV_TIMEOUT_MS, .handler = set_env},
};

const struct tool_group env_tools = {.json = env_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
