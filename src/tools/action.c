/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/action.h"

#include "base/json.h"
#include "base/str.h"

static bool has_name(const char *const *names, const char *name) {
        for (; *names; names++)
                if (str_eq(*names, name))
                        return true;
        return false;
}

int action_check(const struct action *a, const json_t *args, json_t *warnings, const char **ret_missing,
                 struct error *err) {
        const char *name;
        json_t *value;

        for (const char *const *need = a->needs; *need; need++) {
                if (json_object_get(args, *need))
                        continue;
                *ret_missing = *need;
                return error_set(err, ERROR_INVALID_ARGUMENT, "Action \"%s\" needs the argument \"%s\"", a->name,
                                 *need);
        }
        json_object_foreach ((json_t *) args, name, value) {
                if (has_name(a->needs, name) || has_name(a->takes, name) || str_eq(name, "workspace_id") ||
                    str_eq(name, "action"))
                        continue;
                _cleanup_free_ char *text =
                        str_printf("Argument \"%s\" was ignored: action \"%s\" has no use for it.", name, a->name);
                if (json_push(warnings, text ? json_string(text) : NULL) < 0)
                        return -ENOMEM;
        }
        return 0;
}
