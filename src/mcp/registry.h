/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The tools of a server: descriptions from the groups' JSON joined with their rows, schemas compiled. Read-only once
 * it is loaded, so any thread may use it.
 */

#include "mcp/schema.h"
#include "mcp/tool.h"

struct tool_entry {
        const struct tool *tool;
        bool method;                   /* of a group of methods */
        struct schema *input, *output; /* output NULL: the tool gives plain text */
};

struct registry {
        struct tool_entry *entries; /* the tools of them in the order of tools/list */
        size_t n;
        json_t *tools; /* the array of tools/list */
};

/* Refuses (ERROR_INTERNAL) a description that is incomplete, has no row, or uses what schema.h does not know. */
int registry_load(const struct tool_group *const *groups, struct registry *ret, struct error *err);
void registry_clear(struct registry *r);
#define _cleanup_registry_ _cleanup_(registry_clear)

/* The tool of that name, or NULL; then *ret_nearest is the name that may have been meant, or NULL. */
const struct tool_entry *registry_find(const struct registry *r, const char *name, const char **ret_nearest);
/* The method of that name, or NULL. */
const struct tool_entry *registry_find_method(const struct registry *r, const char *name);
