/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Methods that agentiso's own commands ask of the daemon, beside the tools: what it has made ready for workspaces. A
 * client of MCP has no use for them.
 */
#include "base/json.h"
#include "base/str.h"
#include "tools/tools.h"
#include "tools/view.h"

#define STATE_TIMEOUT_MS 30000
#define WARM_TIMEOUT_MS 600000

static json_t *template_json(const struct core_template *t) {
        return json_pack("{s:s, s:o, s:i, s:i, s:i, s:I, s:o, s:o}", "template_id", t->id, "base_image",
                         view_text_or_null(t->base_image), "vcpus", (int) t->vcpus, "memory_mb", (int) t->memory_mb,
                         "disk_gb", (int) t->disk_gb, "bytes", (json_int_t) t->bytes, "created_at",
                         view_time(t->created_ms), "used_at", view_time(t->used_ms));
}

static bool has_template(const struct core_templates *list, const char *id) {
        for (size_t i = 0; i < list->n; i++)
                if (str_eq(list->v[i].id, id))
                        return true;
        return false;
}

/* Those of a list that are not in another one, which may be NULL. */
static json_t *templates_json(const struct core_templates *list, const struct core_templates *without) {
        _cleanup_json_ json_t *array = json_array();

        for (size_t i = 0; i < list->n; i++) {
                if (without && has_template(without, list->v[i].id))
                        continue;
                if (!array || json_push(array, template_json(&list->v[i])) < 0)
                        return NULL;
        }
        return TAKE_PTR(array);
}

static int method_state(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_(core_templates_clear) struct core_templates templates = {0};
        unsigned ready = 0, wanted = 0;
        uint64_t bytes = 0;

        int r = core_templates_list(call->core, &templates, err);
        if (r < 0)
                return r;
        core_pool_state(call->core, &ready, &wanted);
        for (size_t i = 0; i < templates.n; i++)
                bytes += templates.v[i].bytes;
        ret->value = json_pack("{s:{s:i, s:i}, s:o, s:I}", "pool", "ready", (int) ready, "wanted", (int) wanted,
                               "templates", templates_json(&templates, NULL), "templates_bytes", (json_int_t) bytes);
        return 0;
}

static int read_shape(const json_t *args, const char **image, int64_t *vcpus, int64_t *memory_mb, struct error *err) {
        int r = json_opt_str(args, "base_image", image, err);
        if (r >= 0)
                r = json_opt_int(args, "vcpus", vcpus, err);
        return r < 0 ? r : json_opt_int(args, "memory_mb", memory_mb, err);
}

static int method_warm(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_(core_templates_clear) struct core_templates before = {0}, after = {0};
        int64_t vcpus = 0, memory_mb = 0, began_ns = monotonic_ns();
        const char *image = NULL;
        unsigned built = 0;

        op_progress(call->op, "making templates");
        int r = read_shape(call->args, &image, &vcpus, &memory_mb, err);
        if (r >= 0)
                r = core_templates_list(call->core, &before, err);
        if (r >= 0)
                r = core_warm(call->core, image, (unsigned) vcpus, (unsigned) memory_mb, call->op, &built, err);
        if (r >= 0)
                r = core_templates_list(call->core, &after, err);
        if (r < 0)
                return r;
        ret->value = json_pack("{s:i, s:o, s:I}", "built", (int) built, "templates", templates_json(&after, &before),
                               "elapsed_ms", (json_int_t) ((monotonic_ns() - began_ns) / NSEC_PER_MSEC));
        return 0;
}

static const struct tool methods[] = {
        {"agentiso/state", TOOL_ACCESS_NONE, STATE_TIMEOUT_MS, method_state},
        {"agentiso/warm", TOOL_ACCESS_NONE, WARM_TIMEOUT_MS, method_warm},
};

const struct tool_group host_methods = {
        .json = host_json, .tools = methods, .n_tools = ARRAY_SIZE(methods), .methods = true};
