/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A tool is a row: its JSON description (src/tools/<group>.json, embedded at build), what dispatch must check before
 * the handler runs, and the handler.
 *
 * The JSON of a group is an array of objects: name, title, description, inputSchema, outputSchema, annotations, _meta
 * as tools/list shows them. Arguments are checked from inputSchema, and absent ones get the schema's "default", before
 * the handler sees them: a handler never checks a type, a range or a required key again.
 *
 * A handler turns arguments into calls of the core and their results into JSON. It returns 0 and a result object
 * (shown as text and as structuredContent), or a negative errno and an error (shown as isError with its code and hint).
 */

#include <jansson.h>

#include "base/deadline.h"
#include "base/error.h"
#include "workspace/workspace.h"

enum tool_access {
        TOOL_ACCESS_NONE,           /* no workspace_id argument */
        TOOL_ACCESS_READ,           /* workspace_id of anybody */
        TOOL_ACCESS_OWNER,          /* workspace_id of the caller; an orphan is adopted */
        TOOL_ACCESS_OWNER_NO_ADOPT, /* the caller's alone; an orphan must be adopted by another call first (destroy) */
        TOOL_ACCESS_OWNER_EACH,     /* workspace_ids, all of the caller and no two the same; orphans are adopted */
};

struct tool_call {
        struct core *core;
        const char *owner;                /* of the client's connection */
        const char *workspace_id;         /* resolved and authorised by dispatch; NULL without workspace_id */
        const char *const *workspace_ids; /* the same for TOOL_ACCESS_OWNER_EACH, in the order given */
        size_t n_workspaces;
        json_t *args; /* checked, defaults filled in */
        const struct op *op;
};

struct tool_result {
        json_t *value; /* object: structuredContent, and its compact text unless `text` is set */
        char *text;    /* plain text instead (file_read): no structuredContent then */
        char *note;    /* with text: a remark for the model, shown as an item of its own so that text stays exact */
        json_t *meta;  /* with text: facts about it, for _meta */
        enum error_code failed; /* with value: it tells of a failure, and is shown as isError with this code */
};

struct tool {
        const char *name;
        enum tool_access access;
        int64_t default_timeout_ms; /* of the whole call; a handler with a timeout argument extends it (exec.c) */
        int (*handler)(const struct tool_call *call, struct tool_result *ret, struct error *err);
        const char *read_action; /* value of the argument "action" for which TOOL_ACCESS_READ will do, or NULL */
};

struct tool_group {
        const char *json; /* embedded, NUL-terminated */
        const struct tool *tools;
        size_t n_tools;
        /* They are JSON-RPC methods, of agentiso's own commands: called by their names with params and results as of
         * tools/call, and not in tools/list. */
        bool methods;
};

extern const struct tool_group *const tool_groups[]; /* NULL-terminated: src/tools/tools.c */
