/* SPDX-License-Identifier: Apache-2.0 */
/* snapshot: one tool, an action for each thing that can be done to the snapshots of a workspace. */
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tools/action.h"
#include "tools/output.h"
#include "tools/tools.h"
#include "tools/view.h"

#define SNAPSHOT_TIMEOUT_MS 600000  /* a whole memory may have to be written */
#define FORKS_BUDGET (256u * 1024u) /* of a message, for the names of all forks in a listing */
#define FORK_QUOTES 6u              /* bytes around a name in a record: quotes and comma, some of them twice */

struct snapshot_action {
        struct action action;
        int (*run)(const struct tool_call *call, const char *name, json_t **ret, struct error *err);
};

static int run_create(const struct tool_call *call, const char *name, json_t **ret, struct error *err) {
        _cleanup_snap_view_ struct snap_view snapshot = {0};
        bool include_memory = false;

        int r = json_opt_bool(call->args, "include_memory", &include_memory, err);
        if (r >= 0)
                r = ws_snapshot_create(call->core, call->workspace_id, name, include_memory, call->op, &snapshot, err);
        if (r < 0)
                return r;
        const struct snap_row *row = &snapshot.row;
        int64_t pause_ms = (row->pause_us + 999) / 1000;
        *ret = json_pack("{s:s, s:s, s:s, s:b, s:o, s:I, s:I}", "snapshot_id", row->id, "name", row->name,
                         "workspace_id", call->workspace_id, "has_memory", row->memory != SNAP_MEMORY_NONE,
                         "created_at", view_time(row->created_ms), "pause_ms", (json_int_t) pause_ms, "used_bytes",
                         (json_int_t) snapshot.used_bytes);
        return *ret ? 0 : -ENOMEM;
}

static int run_restore(const struct tool_call *call, const char *name, json_t **ret, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        struct ws_started started = {0};
        bool disk_only = false, memory = false;

        int r = json_opt_bool(call->args, "disk_only", &disk_only, err);
        if (r >= 0)
                r = ws_snapshot_restore(call->core, call->workspace_id, name, disk_only, call->op, &view, &started,
                                        &memory, err);
        if (r < 0)
                return r;
        _cleanup_json_ json_t *v = view_brief(&view);
        if (!v)
                return -ENOMEM;
        r = json_put(v, "has_memory", json_boolean(memory));
        r |= json_put(v, "boot_time_ms", json_integer(started.boot_time_ms));
        if (view.row.state == WS_RUNNING)
                r |= json_put(v, "start", json_string(ws_start_kind_name(started.kind)));
        if (r < 0)
                return -ENOMEM;
        *ret = TAKE_PTR(v);
        return 0;
}

/* As many names as `budget` allows, which all entries share. */
static int put_forks(json_t *entry, const struct strv *forks, size_t *budget) {
        _cleanup_json_ json_t *names = json_array();
        size_t shown = 0;

        for (; names && shown < forks->n; shown++) {
                size_t cost = text_cost(TEXT_TWICE, forks->v[shown], strlen(forks->v[shown])) + FORK_QUOTES;

                if (cost > *budget)
                        break;
                *budget -= cost;
                if (json_push(names, json_string(forks->v[shown])) < 0)
                        return -ENOMEM;
        }
        int r = json_put(entry, "forks", TAKE_PTR(names));
        if (shown < forks->n)
                r |= json_put(entry, "forks_not_shown", json_integer((json_int_t) (forks->n - shown)));
        return r;
}

static json_t *list_entry(const struct snap_view *s, size_t *budget) {
        const struct snap_row *row = &s->row;
        _cleanup_json_ json_t *v =
                json_pack("{s:s, s:s, s:b, s:o, s:o, s:I, s:I}", "snapshot_id", row->id, "name", row->name,
                          "has_memory", row->memory != SNAP_MEMORY_NONE, "parent", view_text_or_null(s->parent_name),
                          "created_at", view_time(row->created_ms), "used_bytes", (json_int_t) s->used_bytes,
                          "referenced_bytes", (json_int_t) s->referenced_bytes);

        return v && put_forks(v, &s->forks, budget) >= 0 ? TAKE_PTR(v) : NULL;
}

static int run_list(const struct tool_call *call, const char *name, json_t **ret, struct error *err) {
        _cleanup_snap_views_ struct snap_views all = {0};
        size_t budget = FORKS_BUDGET;

        (void) name;
        int r = ws_snapshot_list(call->core, call->workspace_id, &all, err);
        if (r < 0)
                return r;
        _cleanup_json_ json_t *list = json_array();
        for (size_t i = 0; i < all.n; i++)
                if (!list || json_push(list, list_entry(&all.v[i], &budget)) < 0)
                        return -ENOMEM;
        *ret = json_pack("{s:O}", "snapshots", list);
        return *ret ? 0 : -ENOMEM;
}

static int run_delete(const struct tool_call *call, const char *name, json_t **ret, struct error *err) {
        uint64_t freed = 0;

        int r = ws_snapshot_delete(call->core, call->workspace_id, name, call->op, &freed, err);
        if (r < 0)
                return r;
        *ret = json_pack("{s:s, s:b, s:I}", "name", name, "deleted", 1, "freed_bytes", (json_int_t) freed);
        return *ret ? 0 : -ENOMEM;
}

static const struct snapshot_action actions[] = {
        {{"create", {"name"}, {"include_memory"}}, run_create},
        {{"restore", {"name"}, {"disk_only"}}, run_restore},
        {{"list", {NULL}, {NULL}}, run_list},
        {{"delete", {"name"}, {NULL}}, run_delete},
};

static const struct snapshot_action *find_action(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
                if (str_eq(actions[i].action.name, name))
                        return &actions[i];
        return NULL;
}

static int check(const struct snapshot_action *a, const json_t *args, json_t *warnings, struct error *err) {
        const char *missing = NULL;

        int r = action_check(&a->action, args, warnings, &missing, err);
        if (missing)
                error_hint(err, a->run == run_create
                                        ? "Choose one that tells what the state is, e.g. \"after-install\"."
                                        : "Action \"list\" shows the snapshots that there are.");
        return r;
}

static int snapshot(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_json_ json_t *result = NULL, *warnings = json_array();
        const char *action = NULL, *name = NULL;

        int r = json_get_str(call->args, "action", &action, err);
        if (r >= 0)
                r = json_opt_str(call->args, "name", &name, err);
        if (r < 0)
                return r;
        const struct snapshot_action *a = find_action(action);
        if (!a || !warnings)
                return -ENOMEM;
        r = check(a, call->args, warnings, err);
        if (r >= 0)
                r = a->run(call, name, &result, err);
        if (r >= 0 && json_array_size(warnings) > 0)
                r = json_put(result, "warnings", TAKE_PTR(warnings));
        if (r >= 0)
                ret->value = TAKE_PTR(result);
        return r;
}

static const struct tool tools[] = {
        {.name = "snapshot",
         .access = TOOL_ACCESS_OWNER,
         .read_action = "list",
         .default_timeout_ms = SNAPSHOT_TIMEOUT_MS,
         .handler = snapshot},
};

const struct tool_group snapshot_tools = {.json = snapshots_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
