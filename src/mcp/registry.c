/* SPDX-License-Identifier: Apache-2.0 */
#include "mcp/registry.h"

#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "mcp/server.h"

#define GROUP_JSON_MAX (1024u * 1024u)
#define GROUP_DEPTH_MAX 32u
#define TOOLS_MAX 256u

static const char *const description_keys[] = {
        "name", "title", "description", "inputSchema", "outputSchema", "annotations", "_meta",
};

void registry_clear(struct registry *r) {
        for (size_t i = 0; i < r->n; i++) {
                schema_free(r->entries[i].input);
                schema_free(r->entries[i].output);
        }
        free(r->entries);
        json_decref(r->tools);
        *r = (struct registry){0};
}

static const struct tool *find_row(const struct tool_group *g, const char *name) {
        for (size_t i = 0; i < g->n_tools; i++)
                if (str_eq(g->tools[i].name, name))
                        return &g->tools[i];
        return NULL;
}

static int check_keys(json_t *description, const char *name, struct error *err) {
        const char *key;
        json_t *value;

        json_object_foreach (description, key, value) {
                bool known = false;
                for (size_t i = 0; i < ARRAY_SIZE(description_keys); i++)
                        known = known || str_eq(key, description_keys[i]);
                if (!known)
                        return error_set(err, ERROR_INTERNAL, "Tool %s: unknown key \"%s\"", name, key);
        }
        if (!json_is_string(json_object_get(description, "description")) ||
            !json_is_object(json_object_get(description, "annotations")))
                return error_set(err, ERROR_INTERNAL, "Tool %s lacks a description or annotations", name);
        return 0;
}

static int compile(json_t *description, const char *name, const char *key, struct schema **ret, struct error *err) {
        const json_t *schema = json_object_get(description, key);
        _cleanup_free_ char *where = str_printf("%s.%s", name, key);

        if (!where)
                return error_set_errno(err, ENOMEM, "Tool %s", name);
        if (!str_eq(json_string_value(json_object_get(schema, "type")), "object"))
                return error_set(err, ERROR_INTERNAL, "%s is not the schema of an object", where);
        return schema_compile(schema, where, ret, err);
}

static int add_tool(struct registry *r, const struct tool_group *g, json_t *description, struct error *err) {
        const char *name = json_string_value(json_object_get(description, "name"));
        const struct tool *row = name ? find_row(g, name) : NULL;

        if (!row)
                return error_set(err, ERROR_INTERNAL, "Tool \"%s\" has no row", name ? name : "(without a name)");
        if (registry_find(r, name, NULL) || registry_find_method(r, name))
                return error_set(err, ERROR_INTERNAL, "Tool %s is there twice", name);
        if (r->n == TOOLS_MAX)
                return error_set(err, ERROR_INTERNAL, "More than %u tools", TOOLS_MAX);
        int ret = check_keys(description, name, err);
        if (ret < 0)
                return ret;

        struct tool_entry *e = &r->entries[r->n++];
        *e = (struct tool_entry){.tool = row, .method = g->methods};
        ret = compile(description, name, "inputSchema", &e->input, err);
        if (ret == 0 && json_object_get(description, "outputSchema"))
                ret = compile(description, name, "outputSchema", &e->output, err);
        if (ret == 0 && !g->methods && json_array_append(r->tools, description) < 0)
                ret = error_set_errno(err, ENOMEM, "Tool %s", name);
        return ret;
}

static int add_group(struct registry *r, const struct tool_group *g, struct error *err) {
        _cleanup_json_ json_t *descriptions = NULL;
        size_t i, before = r->n;
        json_t *d;

        int ret = json_parse(g->json, strlen(g->json), GROUP_JSON_MAX, GROUP_DEPTH_MAX, &descriptions, err);
        if (ret < 0)
                return ret;
        if (!json_is_array(descriptions))
                return error_set(err, ERROR_INTERNAL, "A group of tools is not an array");
        json_array_foreach (descriptions, i, d) {
                ret = add_tool(r, g, d, err);
                if (ret < 0)
                        return ret;
        }
        if (r->n - before != g->n_tools)
                return error_set(err, ERROR_INTERNAL, "A group has %zu tools but %zu descriptions", g->n_tools,
                                 r->n - before);
        return 0;
}

int registry_load(const struct tool_group *const *groups, struct registry *ret, struct error *err) {
        _cleanup_registry_ struct registry r = {.tools = json_array()};

        r.entries = calloc(TOOLS_MAX, sizeof(*r.entries));
        if (!r.tools || !r.entries)
                return error_set_errno(err, ENOMEM, "Cannot load the tools");
        for (; *groups; groups++) {
                int k = add_group(&r, *groups, err);
                if (k < 0)
                        return k;
        }
        *ret = r;
        r = (struct registry){0};
        return 0;
}

const struct tool_entry *registry_find(const struct registry *r, const char *name, const char **ret_nearest) {
        const char *names[TOOLS_MAX];
        size_t n = 0;

        for (size_t i = 0; i < r->n; i++) {
                if (r->entries[i].method)
                        continue;
                if (str_eq(r->entries[i].tool->name, name))
                        return &r->entries[i];
                names[n++] = r->entries[i].tool->name;
        }
        if (ret_nearest)
                *ret_nearest = str_nearest(name, names, n);
        return NULL;
}

const struct tool_entry *registry_find_method(const struct registry *r, const char *name) {
        for (size_t i = 0; i < r->n; i++)
                if (r->entries[i].method && str_eq(r->entries[i].tool->name, name))
                        return &r->entries[i];
        return NULL;
}

int mcp_tools_json(const struct tool_group *const *groups, json_t **ret, struct error *err) {
        _cleanup_registry_ struct registry r = {0};

        int k = registry_load(groups, &r, err);
        if (k < 0)
                return k;
        *ret = TAKE_PTR(r.tools);
        return 0;
}
