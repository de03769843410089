/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The part of JSON Schema that our tools use: type, anyOf (a type and null), enum, minimum, maximum, minLength,
 * maxLength, pattern, items, minItems, maxItems, properties, required, additionalProperties (a schema), maxProperties,
 * default.
 *
 * A description is compiled once, when the server starts; a keyword that is not in this list is a mistake in our own
 * files and refused then. Patterns run through PCRE2 with limits on matching.
 *
 * Arguments: absent and null are the same. Unknown keys of the outermost object are left out of the result and named
 * in a warning, with the nearest known key. A number without a fraction is an integer, however it is written. A string
 * where an array of strings is wanted counts as an array of one, because models write it so. The values of a map (an
 * object with additionalProperties) may be secrets: messages tell their type only.
 */

#include <jansson.h>

#include "base/error.h"

struct schema;

/* where names the schema in error texts, e.g. "exec.inputSchema". */
int schema_compile(const json_t *description, const char *where, struct schema **ret, struct error *err);
void schema_free(struct schema *s); /* accepts NULL */
DEFINE_CLEANUP(struct schema *, schema_free)
#define _cleanup_schema_ _cleanup_(schema_freep)

/* Checks args (an object, or NULL for none) against the schema of an object. *ret (owned) is a new object: null
 * members gone, defaults filled in. Texts about ignored keys are appended to warnings. -EINVAL (invalid_argument). */
int schema_check_args(const struct schema *s, const json_t *args, json_t *warnings, json_t **ret, struct error *err);

/* Checks a value as it is. For results. */
int schema_check(const struct schema *s, const json_t *value, struct error *err);

/* "workspace_id (required), command (required), timeout_secs, ..." appended to out. */
struct buf;
int schema_list_keys(const struct schema *s, struct buf *out);
