/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Tools whose argument "action" says what to do. Their schemas are flat, so what an action needs and takes stands in a
 * table of theirs. No argument has a default in such a schema: one that was given for another action is ignored with a
 * warning, and a default would look like that.
 */

#include "mcp/tool.h"

#define ACTION_ARGS_MAX 9 /* of one action */

struct action {
        const char *name;
        const char *needs[ACTION_ARGS_MAX + 1], *takes[ACTION_ARGS_MAX + 1];
};

/* Refuses a call that lacks what the action needs, naming it in *ret_missing too, and adds to `warnings` (an array of
 * texts) what was given and means nothing to the action. */
int action_check(const struct action *a, const json_t *args, json_t *warnings, const char **ret_missing,
                 struct error *err);
