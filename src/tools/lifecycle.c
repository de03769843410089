/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tools/output.h"
#include "tools/tools.h"
#include "tools/view.h"

#define CREATE_TIMEOUT_MS 300000
#define STOP_TIMEOUT_MS 60000
#define QUERY_TIMEOUT_MS 30000
#define LIST_PAGE 200u
#define LOG_MAX (512u * 1024u) /* bytes read of each log */

/* An optional count; 0 (the configured default) when it is absent. */
static int opt_unsigned(const json_t *args, const char *key, unsigned *ret, struct error *err) {
        int64_t v = 0;

        int r = json_opt_int(args, key, &v, err);
        if (r >= 0)
                *ret = (unsigned) v; /* the schema has a maximum */
        return r;
}

static int workspace_create(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        struct ws_create_args args = {0};
        struct ws_started started = {0};
        bool internet = false;

        int r = json_opt_str(call->args, "name", &args.name, err);
        if (r >= 0)
                r = json_opt_str(call->args, "base_image", &args.base_image, err);
        if (r >= 0)
                r = opt_unsigned(call->args, "vcpus", &args.vcpus, err);
        if (r >= 0)
                r = opt_unsigned(call->args, "memory_mb", &args.memory_mb, err);
        if (r >= 0)
                r = opt_unsigned(call->args, "disk_gb", &args.disk_gb, err);
        if (r >= 0)
                r = json_opt_bool(call->args, "allow_internet", &internet, err);
        if (json_is_boolean(json_object_get(call->args, "allow_internet")))
                args.allow_internet = &internet;
        if (r >= 0)
                r = ws_create(call->core, &args, call->owner, call->op, &view, &started, err);
        if (r < 0)
                return r;
        _cleanup_json_ json_t *v = view_brief(&view);
        if (!v)
                return -ENOMEM;
        r = json_put(v, "ip", json_string(view.address));
        r |= json_put(v, "boot_time_ms", json_integer(started.boot_time_ms));
        r |= json_put(v, "from_pool", json_boolean(started.kind == WS_START_POOL));
        r |= json_put(v, "start", json_string(ws_start_kind_name(started.kind)));
        r |= json_put(v, "resources", view_resources(&view.row));
        if (r < 0)
                return -ENOMEM;
        ret->value = TAKE_PTR(v);
        return 0;
}

static int workspace_destroy(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};

        int r = ws_destroy(call->core, call->workspace_id, call->op, &view, err);
        if (r < 0)
                return r;
        ret->value = json_pack("{s:s, s:s, s:b}", "workspace_id", view.row.id, "name", view.row.name, "destroyed", 1);
        return 0;
}

static int workspace_start(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        struct ws_started started = {0};

        int r = ws_start(call->core, call->workspace_id, call->op, &view, &started, err);
        if (r < 0)
                return r;
        _cleanup_json_ json_t *v = view_brief(&view);
        if (!v)
                return -ENOMEM;
        r = json_put(v, "ip", json_string(view.address));
        r |= json_put(v, "boot_time_ms", json_integer(started.boot_time_ms));
        if (started.already)
                r |= json_put(v, "already_running", json_true());
        else
                r |= json_put(v, "start", json_string(ws_start_kind_name(started.kind)));
        if (r < 0)
                return -ENOMEM;
        ret->value = TAKE_PTR(v);
        return 0;
}

static int workspace_stop(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        bool already = false;

        int r = ws_stop(call->core, call->workspace_id, call->op, &view, &already, err);
        if (r < 0)
                return r;
        ret->value = view_brief(&view);
        if (ret->value && already)
                return json_put(ret->value, "already_stopped", json_true());
        return 0;
}

/* Order of a listing: by creation, and the id where that is the same. */
static int compare_views(const void *a, const void *b) {
        const struct ws_row *x = &((const struct ws_view *) a)->row, *y = &((const struct ws_view *) b)->row;

        if (x->created_ms != y->created_ms)
                return x->created_ms < y->created_ms ? -1 : 1;
        return strcmp(x->id, y->id);
}

/* A cursor is the place of the last workspace that was shown, in base64 so that nobody builds on its form; it stays
 * good when that workspace is gone. */
static int write_cursor(const struct ws_row *row, json_t *result) {
        char place[32 + UUID_LEN];
        _cleanup_buf_ struct buf text = BUF_INIT(256);

        (void) snprintf(place, sizeof(place), "%" PRId64 ":%s", row->created_ms, row->id);
        int r = base64_encode(&text, place, strlen(place));
        return r < 0 ? r : json_put(result, "next_cursor", json_text(text.data, text.len));
}

static int read_cursor(const char *cursor, struct ws_view *ret, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(256);
        char *end;

        if (base64_decode(&text, cursor, strlen(cursor)) == 0 && text.len > 0) {
                errno = 0;
                ret->row.created_ms = strtoll(text.data, &end, 10);
                if (errno == 0 && *end == ':' && uuid_valid(end + 1)) {
                        memcpy(ret->row.id, end + 1, sizeof(ret->row.id));
                        return 0;
                }
        }
        error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"cursor\" is not a cursor of workspace_list");
        error_hint(err, "Leave it out to begin with the first page, or give the next_cursor of the page before.");
        return -EINVAL;
}

static json_t *list_entry(const struct ws_view *v) {
        _cleanup_json_ json_t *e = view_brief(v);

        if (!e)
                return NULL;
        int r = json_put(e, "ip", json_string(v->address));
        r |= json_put(e, "owned", json_boolean(v->owned));
        r |= json_put(e, "orphaned", json_boolean(v->orphaned));
        r |= json_put(e, "resources", view_resources(&v->row));
        r |= json_put(e, "created_at", view_time(v->row.created_ms));
        return r < 0 ? NULL : TAKE_PTR(e);
}

static int list_page(const struct ws_views *all, const struct ws_view *after, const char *state, const char *prefix,
                     json_t *result) {
        _cleanup_json_ json_t *page = json_array();
        const struct ws_row *last = NULL;

        if (!page)
                return -ENOMEM;
        for (size_t i = 0; i < all->n; i++) {
                const struct ws_view *v = &all->v[i];

                if ((after && compare_views(v, after) <= 0) || (state && !str_eq(state, ws_state_name(v->row.state))) ||
                    (prefix && !str_starts_with(v->row.name, prefix)))
                        continue;
                if (last && json_array_size(page) == LIST_PAGE) {
                        if (write_cursor(last, result) < 0)
                                return -ENOMEM;
                        break;
                }
                if (json_push(page, list_entry(v)) < 0)
                        return -ENOMEM;
                last = &v->row;
        }
        return json_put(result, "workspaces", TAKE_PTR(page));
}

static int workspace_list(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_(ws_views_clear) struct ws_views all = {0};
        const char *state = NULL, *prefix = NULL, *cursor = NULL;
        struct ws_view after = {0};

        int r = json_opt_str(call->args, "state_filter", &state, err);
        if (r >= 0)
                r = json_opt_str(call->args, "name_prefix", &prefix, err);
        if (r >= 0)
                r = json_opt_str(call->args, "cursor", &cursor, err);
        if (r >= 0 && cursor)
                r = read_cursor(cursor, &after, err);
        if (r >= 0)
                r = ws_list(call->core, call->owner, &all, err);
        if (r < 0)
                return r;
        if (all.n > 0)
                qsort(all.v, all.n, sizeof(*all.v), compare_views);
        ret->value = json_object();
        return ret->value ? list_page(&all, cursor ? &after : NULL, state, prefix, ret->value) : -ENOMEM;
}

static json_t *network_of(const struct core *core, const struct ws_row *row, const struct ws_forward *forwards,
                          size_t n) {
        _cleanup_json_ json_t *v = view_policy(row);

        return v && json_put(v, "port_forwards", view_forwards(core, forwards, n)) >= 0 ? TAKE_PTR(v) : NULL;
}

/* The snapshots in short; action "list" of snapshot has the rest. */
static json_t *snapshots_brief(const struct snap_views *all) {
        _cleanup_json_ json_t *list = json_array();

        for (size_t i = 0; i < all->n; i++) {
                const struct snap_row *row = &all->v[i].row;
                json_t *entry =
                        json_pack("{s:s, s:s, s:b, s:o}", "snapshot_id", row->id, "name", row->name, "has_memory",
                                  row->memory != SNAP_MEMORY_NONE, "created_at", view_time(row->created_ms));
                if (!list || json_push(list, entry) < 0)
                        return NULL;
        }
        return TAKE_PTR(list);
}

static int put_usage(json_t *v, const struct ws_usage *usage) {
        int r = json_put(v, "disk_used_bytes", json_integer((json_int_t) usage->disk_used_bytes));
        r |= json_put(v, "disk_volsize_bytes", json_integer((json_int_t) usage->disk_virtual_bytes));
        r |= json_put(v, "memory_used_bytes", json_integer((json_int_t) usage->memory_private_bytes));
        r |= json_put(v, "memory_shared_bytes", json_integer((json_int_t) usage->memory_shared_bytes));
        r |= json_put(v, "uptime_secs", json_integer(usage->uptime_secs));
        return r;
}

static int workspace_info(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        _cleanup_snap_views_ struct snap_views snapshots = {0};
        _cleanup_free_ struct ws_forward *forwards = NULL;
        struct ws_usage usage = {0};
        size_t n_forwards = 0;

        int r = ws_get(call->core, call->workspace_id, call->owner, &view, err);
        if (r >= 0)
                r = ws_usage(call->core, call->workspace_id, &usage, err);
        if (r >= 0)
                r = ws_snapshot_list(call->core, call->workspace_id, &snapshots, err);
        if (r >= 0)
                r = ws_forward_list(call->core, call->workspace_id, &forwards, &n_forwards, err);
        if (r < 0)
                return r;
        _cleanup_json_ json_t *v = view_brief(&view);
        if (!v)
                return -ENOMEM;
        r = json_put(v, "base_image", json_string(view.row.base_image));
        r |= json_put(v, "ip", json_string(view.address));
        r |= json_put(v, "owned", json_boolean(view.owned));
        r |= json_put(v, "orphaned", json_boolean(view.orphaned));
        r |= json_put(v, "resources", view_resources(&view.row));
        r |= json_put(v, "network", network_of(call->core, &view.row, forwards, n_forwards));
        r |= json_put(v, "snapshots", snapshots_brief(&snapshots));
        if (*view.row.origin.workspace_id)
                r |= json_put(v, "forked_from", view_origin(&view.row.origin));
        r |= json_put(v, "created_at", view_time(view.row.created_ms));
        r |= put_usage(v, &usage);
        if (view.row.last_error)
                r |= json_put(v, "last_error", json_string(view.row.last_error));
        if (r < 0)
                return -ENOMEM;
        ret->value = TAKE_PTR(v);
        return 0;
}

static int put_log(json_t *result, const char *key, const struct buf *log, size_t budget) {
        _cleanup_output_ struct output o = {0};

        int r = output_from_log(log, budget, &o);
        return r < 0 ? r : json_put(result, key, json_text(o.text.data, o.text.len));
}

static int workspace_logs(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_buf_ struct buf console = BUF_INIT(LOG_MAX), qemu = BUF_INIT(LOG_MAX);
        const char *type = NULL;
        int64_t max_lines = 0;

        int r = json_get_str(call->args, "log_type", &type, err);
        if (r >= 0)
                r = json_get_int(call->args, "max_lines", &max_lines, err);
        if (r >= 0)
                r = ws_logs(call->core, call->workspace_id, (unsigned) max_lines, &console, &qemu, err);
        if (r < 0)
                return r;
        bool all = str_eq(type, "all");
        size_t budget = all ? RESULT_BUDGET / 2 : RESULT_BUDGET;
        _cleanup_json_ json_t *v = json_object();
        if (!v)
                return -ENOMEM;
        if (all || str_eq(type, "console"))
                r |= put_log(v, "console", &console, budget);
        if (all || str_eq(type, "stderr"))
                r |= put_log(v, "stderr", &qemu, budget);
        if (r < 0)
                return -ENOMEM;
        ret->value = TAKE_PTR(v);
        return 0;
}

static const struct tool tools[] = {
        {"workspace_create", TOOL_ACCESS_NONE, CREATE_TIMEOUT_MS, workspace_create},
        {"workspace_destroy", TOOL_ACCESS_OWNER_NO_ADOPT, STOP_TIMEOUT_MS, workspace_destroy},
        {"workspace_start", TOOL_ACCESS_OWNER, CREATE_TIMEOUT_MS, workspace_start},
        {"workspace_stop", TOOL_ACCESS_OWNER, STOP_TIMEOUT_MS, workspace_stop},
        {"workspace_list", TOOL_ACCESS_NONE, QUERY_TIMEOUT_MS, workspace_list},
        {"workspace_info", TOOL_ACCESS_READ, QUERY_TIMEOUT_MS, workspace_info},
        {"workspace_logs", TOOL_ACCESS_READ, QUERY_TIMEOUT_MS, workspace_logs},
};

const struct tool_group lifecycle_tools = {.json = lifecycle_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
