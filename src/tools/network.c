/* SPDX-License-Identifier: Apache-2.0 */
/* network_policy and port_forward. */
#include "base/json.h"
#include "base/str.h"
#include "network/ports.h"
#include "tools/action.h"
#include "tools/tools.h"
#include "tools/view.h"

#define NETWORK_TIMEOUT_MS 60000
#define HOST_PORT_MIN 1024 /* below, ports belong to the system */

/* --- network_policy --- */

/* The list as a row keeps it; NULL without an error: it was not given. */
static int read_ports(const json_t *args, char **ret, struct error *err) {
        const json_t *list = json_object_get(args, "allowed_ports");
        uint16_t ports[NETWORK_PORTS_MAX];
        size_t n = json_array_size(list);

        if (!json_is_array(list))
                return 0;
        if (n > NETWORK_PORTS_MAX)
                return error_set(err, ERROR_INVALID_ARGUMENT, "allowed_ports has %zu entries; at most %u are possible",
                                 n, NETWORK_PORTS_MAX);
        for (size_t i = 0; i < n; i++)
                ports[i] = (uint16_t) json_integer_value(json_array_get(list, i)); /* the schema has the range */
        *ret = ports_text(ports, n);
        return *ret ? 0 : -ENOMEM;
}

/* NULL: it was not given. */
static int read_bool(const json_t *args, const char *key, bool *value, const bool **ret, struct error *err) {
        const json_t *given = json_object_get(args, key);

        if (!given || json_is_null(given))
                return 0;
        int r = json_opt_bool(args, key, value, err);
        if (r >= 0)
                *ret = value;
        return r;
}

static int network_policy(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        _cleanup_free_ char *ports = NULL;
        struct ws_policy_change change = {0};
        bool internet = false, inter_vm = false;

        int r = read_bool(call->args, "allow_internet", &internet, &change.allow_internet, err);
        if (r >= 0)
                r = read_bool(call->args, "allow_inter_vm", &inter_vm, &change.allow_inter_vm, err);
        if (r >= 0)
                r = read_ports(call->args, &ports, err);
        change.allowed_ports = ports;
        if (r >= 0)
                r = ws_set_policy(call->core, call->workspace_id, &change, call->op, &view, err);
        if (r < 0)
                return r;
        ret->value = json_pack("{s:s, s:o}", "workspace_id", view.row.id, "network_policy", view_policy(&view.row));
        return ret->value ? 0 : -ENOMEM;
}

/* --- port_forward --- */

struct forward_action {
        struct action action;
        int (*run)(const struct tool_call *call, uint16_t guest_port, uint16_t host_port, json_t **ret,
                   struct error *err);
};

static json_t *result_of(const struct tool_call *call, const struct ws_forward *f) {
        return json_pack("{s:s, s:i, s:i}", "workspace_id", call->workspace_id, "guest_port", f->guest_port,
                         "host_port", f->host_port);
}

static int run_add(const struct tool_call *call, uint16_t guest_port, uint16_t host_port, json_t **ret,
                   struct error *err) {
        struct ws_forward f;

        if (host_port != 0 && host_port < HOST_PORT_MIN) {
                int r = error_set(err, ERROR_INVALID_ARGUMENT, "host_port %u is refused: ports below %d are reserved",
                                  host_port, HOST_PORT_MIN);
                error_hint(err, "Choose one of %d to 65535, or leave it out for a free one.", HOST_PORT_MIN);
                return r;
        }
        int r = ws_forward_add(call->core, call->workspace_id, guest_port, host_port, call->op, &f, err);
        if (r < 0)
                return r;
        *ret = result_of(call, &f);
        return json_put(*ret, "url", view_url(call->core, f.host_port));
}

static int run_remove(const struct tool_call *call, uint16_t guest_port, uint16_t host_port, json_t **ret,
                      struct error *err) {
        struct ws_forward f;

        (void) host_port;
        int r = ws_forward_remove(call->core, call->workspace_id, guest_port, call->op, &f, err);
        if (r < 0)
                return r;
        *ret = result_of(call, &f);
        return json_put(*ret, "removed", json_true());
}

static int run_list(const struct tool_call *call, uint16_t guest_port, uint16_t host_port, json_t **ret,
                    struct error *err) {
        _cleanup_free_ struct ws_forward *list = NULL;
        size_t n = 0;

        (void) guest_port;
        (void) host_port;
        int r = ws_forward_list(call->core, call->workspace_id, &list, &n, err);
        if (r < 0)
                return r;
        *ret = json_pack("{s:s, s:o}", "workspace_id", call->workspace_id, "port_forwards",
                         view_forwards(call->core, list, n));
        return *ret ? 0 : -ENOMEM;
}

static const struct forward_action actions[] = {
        {{"add", {"guest_port"}, {"host_port"}}, run_add},
        {{"remove", {"guest_port"}, {NULL}}, run_remove},
        {{"list", {NULL}, {NULL}}, run_list},
};

static const struct forward_action *find_action(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
                if (str_eq(actions[i].action.name, name))
                        return &actions[i];
        return NULL;
}

static int port_forward(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_json_ json_t *result = NULL, *warnings = json_array();
        const char *action = NULL, *missing = NULL;
        int64_t guest_port = 0, host_port = 0;

        int r = json_get_str(call->args, "action", &action, err);
        if (r >= 0)
                r = json_opt_int(call->args, "guest_port", &guest_port, err);
        if (r >= 0)
                r = json_opt_int(call->args, "host_port", &host_port, err);
        if (r < 0)
                return r;
        const struct forward_action *a = find_action(action);
        if (!a || !warnings)
                return -ENOMEM;
        r = action_check(&a->action, call->args, warnings, &missing, err);
        if (missing)
                error_hint(err, "Give the port on which the service in the workspace listens, e.g. 8080.");
        if (r >= 0)
                r = a->run(call, (uint16_t) guest_port, (uint16_t) host_port, &result, err);
        if (r >= 0 && json_array_size(warnings) > 0)
                r = json_put(result, "warnings", TAKE_PTR(warnings));
        if (r >= 0)
                ret->value = TAKE_PTR(result);
        return r;
}

static const struct tool tools[] = {
        {.name = "network_policy",
         .access = TOOL_ACCESS_OWNER,
         .default_timeout_ms = NETWORK_TIMEOUT_MS,
         .handler = network_policy},
        {.name = "port_forward",
         .access = TOOL_ACCESS_OWNER,
         .read_action = "list",
         .default_timeout_ms = NETWORK_TIMEOUT_MS,
         .handler = port_forward},
};

const struct tool_group network_tools = {.json = network_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
