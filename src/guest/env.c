/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/env.h"

#include <string.h>

#include "base/thread.h"
#include "wire/wire.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static void wipe(char *var) {
        if (var)
                explicit_bzero(var, strlen(var));
        free(var);
}

static void wipe_all(struct strv *s) {
        for (size_t i = 0; i < s->n; i++)
                wipe(TAKE_PTR(s->v[i]));
        s->n = 0;
        strv_free(s);
}

void env_store_init(struct env_store *e) {
        *e = (struct env_store){0};
        pthread_mutex_init(&e->lock, NULL);
}

void env_store_free(struct env_store *e) {
        wipe_all(&e->vars);
        pthread_mutex_destroy(&e->lock);
}

static bool is_named(const char *var, const char *name) {
        size_t n = strlen(name);

        return strncmp(var, name, n) == 0 && var[n] == '=';
}

/* Whether an object has the name of "NAME=value". */
static bool object_has(const json_t *o, const char *var) {
        size_t n = strcspn(var, "=");

        return o && json_object_getn(o, var, n);
}

static bool array_has(const json_t *names, const char *var) {
        size_t i;
        json_t *name;

        json_array_foreach (names, i, name)
                if (is_named(var, json_string_value(name)))
                        return true;
        return false;
}

/* The new variables among `vars`, without those that are removed at once. */
static int collect(const json_t *vars, const json_t *unset, struct strv *ret) {
        const char *name;
        json_t *value;
        int r;

        json_object_foreach ((json_t *) vars, name, value) {
                r = strv_addf(ret, "%s=%s", name, json_string_value(value));
                if (r < 0)
                        return r;
                if (array_has(unset, ret->v[ret->n - 1])) {
                        wipe(TAKE_PTR(ret->v[ret->n - 1]));
                        ret->n--;
                }
        }
        return 0;
}

static bool replaced(const char *var, const json_t *vars, const json_t *unset) {
        return object_has(vars, var) || array_has(unset, var);
}

static int check_limits(const struct env_store *e, const struct strv *fresh, const json_t *vars, const json_t *unset,
                        struct error *err) {
        size_t n = fresh->n, bytes = 0;

        for (size_t i = 0; i < fresh->n; i++)
                bytes += strlen(fresh->v[i]);
        for (size_t i = 0; i < e->vars.n; i++)
                if (!replaced(e->vars.v[i], vars, unset)) {
                        bytes += strlen(e->vars.v[i]);
                        n++;
                }
        if (n <= WIRE_ENV_VARS_MAX && bytes <= WIRE_ENV_BYTES_MAX)
                return 0;
        if (n > WIRE_ENV_VARS_MAX)
                error_set(err, ERROR_INVALID_ARGUMENT, "There would be %zu variables; at most %u are allowed", n,
                          WIRE_ENV_VARS_MAX);
        else
                error_set(err, ERROR_INVALID_ARGUMENT, "The variables would have %zu bytes; at most %u are allowed",
                          bytes, WIRE_ENV_BYTES_MAX);
        error_hint(err, "Nothing was changed. Unset variables that are not needed, or put the values into a file.");
        return -EINVAL;
}

int env_store_change(struct env_store *e, const json_t *vars, const json_t *unset, size_t *ret_total,
                     struct error *err) {
        _cleanup_(wipe_all) struct strv fresh = {0};
        struct strv kept = {0};
        int r = collect(vars, unset, &fresh);

        LOCK(&e->lock);
        /* Room for all: from here on nothing can fail. */
        kept.v = calloc(e->vars.n + fresh.n + 1, sizeof(*kept.v));
        if (r < 0 || !kept.v) {
                free(kept.v);
                return error_set(err, ERROR_INTERNAL, "The agent is out of memory");
        }
        r = check_limits(e, &fresh, vars, unset, err);
        if (r < 0) {
                free(kept.v);
                return r;
        }
        for (size_t i = 0; i < e->vars.n; i++)
                if (replaced(e->vars.v[i], vars, unset))
                        wipe(TAKE_PTR(e->vars.v[i]));
                else
                        kept.v[kept.n++] = TAKE_PTR(e->vars.v[i]);
        for (size_t i = 0; i < fresh.n; i++)
                kept.v[kept.n++] = TAKE_PTR(fresh.v[i]);
        free(e->vars.v);
        e->vars = kept;
        *ret_total = kept.n;
        return 0;
}

/* ---- the environment of a command ---- */

static bool locale_c_utf8(void) {
        static const char *const marks[] = {
                "/usr/lib/locale/C.utf8",
                "/usr/lib/locale/C.UTF-8",
                "/lib/ld-musl-x86_64.so.1",
        };

        for (size_t i = 0; i < ARRAY_SIZE(marks); i++)
                if (access(marks[i], F_OK) == 0)
                        return true;
        return false;
}

static bool store_has_locked(const struct env_store *e, const char *name) {
        for (size_t i = 0; i < e->vars.n; i++)
                if (is_named(e->vars.v[i], name))
                        return true;
        return false;
}

static int add_defaults_locked(const struct env_store *e, const json_t *own, bool pty, struct strv *ret) {
        const struct {
                const char *name, *value;
        } defaults[] = {
                {"PATH", DEFAULT_PATH},
                {"HOME", "/root"},
                {"USER", "root"},
                {"LOGNAME", "root"},
                {"SHELL", "/bin/sh"},
                {"LANG", "C.UTF-8"},
                {"TERM", pty ? "xterm-256color" : "dumb"},
        };
        int r;

        for (size_t i = 0; i < ARRAY_SIZE(defaults); i++) {
                if (json_object_get(own, defaults[i].name) || store_has_locked(e, defaults[i].name))
                        continue;
                if (str_eq(defaults[i].name, "LANG") && !locale_c_utf8())
                        continue;
                r = strv_addf(ret, "%s=%s", defaults[i].name, defaults[i].value);
                if (r < 0)
                        return r;
        }
        return 0;
}

int env_store_build(struct env_store *e, const json_t *own, bool pty, struct strv *ret) {
        const char *name;
        json_t *value;
        int r;

        LOCK(&e->lock);
        r = add_defaults_locked(e, own, pty, ret);
        for (size_t i = 0; r == 0 && i < e->vars.n; i++)
                if (!object_has(own, e->vars.v[i]))
                        r = strv_add(ret, e->vars.v[i]);
        if (r < 0)
                return r;
        json_object_foreach ((json_t *) own, name, value) {
                r = strv_addf(ret, "%s=%s", name, json_string_value(value));
                if (r < 0)
                        return r;
        }
        return 0;
}
