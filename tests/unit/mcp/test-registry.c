/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "mcp/registry.h"
#include "mcp/server.h"
#include "tap.h"

static int handler(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        return 0;
}

static const struct tool rows[] = {
        {"alpha", TOOL_ACCESS_NONE, 1000, handler},
        {"beta_tool", TOOL_ACCESS_NONE, 1000, handler},
};

#define TOOL(name) \
        "{\"name\":\"" name "\",\"description\":\"d\",\"inputSchema\":{\"type\":\"object\"},\"annotations\":{}}"

static int load(const char *json, struct registry *ret, struct error *err) {
        const struct tool_group group = {json, rows, ARRAY_SIZE(rows)};
        const struct tool_group *groups[] = {&group, NULL};

        return registry_load(groups, ret, err);
}

static void test_order_and_lookup(void) {
        _cleanup_registry_ struct registry r = {0};
        const char *nearest = "";

        REQUIRE(load("[" TOOL("beta_tool") "," TOOL("alpha") "]", &r, NULL) == 0);
        CHECK_INT(r.n, 2);
        CHECK_STR(json_string_value(json_object_get(json_array_get(r.tools, 0), "name")), "beta_tool");
        CHECK(registry_find(&r, "alpha", NULL)->tool == &rows[0]);
        CHECK(registry_find(&r, "alpah_tool", NULL) == NULL);
        CHECK(registry_find(&r, "beta_toll", &nearest) == NULL);
        CHECK_STR(nearest, "beta_tool");
        CHECK(registry_find(&r, "something else", &nearest) == NULL);
        CHECK(nearest == NULL);
}

static void test_mistakes_in_a_group(void) {
        static const char *const bad[] = {
                "",
                "{}",
                "[1]",
                "[]",
                "[" TOOL("alpha") "]",
                "[" TOOL("alpha") "," TOOL("alpha") "]",
                "[" TOOL("alpha") "," TOOL("gamma") "]",
                /* no annotations; an unknown key; no object; a keyword that is not checked */
                "[" TOOL("alpha") ",{\"name\":\"beta_tool\",\"description\":\"d\",\"inputSchema\":{\"type\":\"object\"}"
                                  "}]",
                "[" TOOL(
                        "alpha") ",{\"name\":\"beta_tool\",\"description\":\"d\",\"inputSchema\":{\"type\":\"object\"},"
                                 "\"annotations\":{},\"doc\":{}}]",
                "[" TOOL(
                        "alpha") ",{\"name\":\"beta_tool\",\"description\":\"d\",\"inputSchema\":{\"type\":\"string\"},"
                                 "\"annotations\":{}}]",
                "[" TOOL("alpha") ",{\"name\":\"beta_tool\",\"description\":\"d\",\"inputSchema\":{\"type\":\"object\","
                                  "\"oneOf\":[]},\"annotations\":{}}]",
        };

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                _cleanup_registry_ struct registry r = {0};
                _cleanup_error_ struct error err = ERROR_INIT;

                CHECK(load(bad[i], &r, &err) < 0);
                CHECK(error_is_set(&err));
        }
}

static void test_the_array_for_the_documentation(void) {
        const struct tool_group group = {"[" TOOL("alpha") "," TOOL("beta_tool") "]", rows, ARRAY_SIZE(rows)};
        const struct tool_group *groups[] = {&group, NULL};
        _cleanup_json_ json_t *tools = NULL;

        CHECK_INT(mcp_tools_json(groups, &tools, NULL), 0);
        CHECK_INT(json_array_size(tools), 2);
}

int main(void) {
        RUN(test_order_and_lookup);
        RUN(test_mistakes_in_a_group);
        RUN(test_the_array_for_the_documentation);
        return tap_done();
}
