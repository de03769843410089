/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/job_args.h"

#include <ctype.h>
#include <signal.h>
#include <string.h>

#include "base/str.h"
#include "guest/args.h"
#include "wire/wire.h"

#define invalid(err, ...) error_set(err, ERROR_INVALID_ARGUMENT, __VA_ARGS__)

static int get_range(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *ret, struct error *err) {
        int64_t any;
        int r = json_get_int(o, key, &any, err);

        return r < 0 ? r : args_opt_range(o, key, min, max, ret, err);
}

static bool env_name_valid(const char *s) {
        if (!isalpha((unsigned char) *s) && *s != '_')
                return false;
        for (; *s; s++)
                if (!isalnum((unsigned char) *s) && *s != '_')
                        return false;
        return true;
}

/* `what`: the member that holds the name. */
static int check_env_name(const char *what, const char *name, struct error *err) {
        static const char *const refused[] = {"PATH", "IFS", "ENV", "BASH_ENV"};

        if (!env_name_valid(name))
                return invalid(err, "%s: \"%.100s\" is not a variable name ([A-Za-z_][A-Za-z0-9_]*)", what, name);
        for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
                if (strcmp(name, refused[i]) == 0)
                        return invalid(err, "%s: %s must not be set; export it in the command if needed", what, name);
        if (str_starts_with(name, "LD_"))
                return invalid(err, "%s: %.100s must not be set: LD_* changes how programs are loaded", what, name);
        return 0;
}

static int check_env(const char *what, const json_t *env, struct error *err) {
        const char *name;
        json_t *value;
        int r;

        if (!json_is_object(env))
                return invalid(err, "%s must be an object of strings, not %s", what, json_type_name(env));
        if (json_object_size(env) > WIRE_ENV_VARS_MAX)
                return invalid(err, "%s has %zu variables; at most %u are allowed", what, json_object_size(env),
                               WIRE_ENV_VARS_MAX);
        json_object_foreach ((json_t *) env, name, value) {
                r = check_env_name(what, name, err);
                if (r == 0 && json_is_string(value) && strlen(name) + 1 + json_string_length(value) > ARGS_STRING_MAX)
                        return invalid(err,
                                       "%s: %.100s is longer than the %u bytes that the system takes of a variable",
                                       what, name, ARGS_STRING_MAX);
                if (r < 0)
                        return r;
                if (!json_is_string(value))
                        return invalid(err, "%s: %.100s must be a string, not %s", what, name, json_type_name(value));
        }
        return 0;
}

static int command_args_parse(const json_t *o, struct command_args *ret, struct error *err) {
        struct command_args a = {0};
        int r;

        if ((r = json_get_str(o, "command", &a.command, err)) < 0 ||
            (r = json_opt_str(o, "workdir", &a.workdir, err)) < 0 ||
            (r = args_opt_range(o, "timeout_ms", 1, ARGS_TIMEOUT_MS_MAX, &a.timeout_ms, err)) < 0)
                return r;
        if (strlen(a.command) > ARGS_STRING_MAX) {
                r = invalid(err, "command is %zu bytes long; the system takes at most %u", strlen(a.command),
                            ARGS_STRING_MAX);
                error_hint(err, "Write it to a file with file_write and run that file.");
                return r;
        }
        if (a.workdir && a.workdir[0] != '/')
                return invalid(err, "workdir \"%.200s\" is not absolute: it must begin with \"/\"", a.workdir);
        a.env = json_object_get(o, "env");
        if (json_is_null(a.env))
                a.env = NULL;
        if (a.env && (r = check_env("env", a.env, err)) < 0)
                return r;
        *ret = a;
        return 0;
}

int exec_args_parse(const json_t *o, struct exec_args *ret, struct error *err) {
        struct exec_args a = {0};
        int r;

        if ((r = command_args_parse(o, &a.command, err)) < 0 ||
            (r = args_opt_range(o, "yield_ms", 1, ARGS_TIMEOUT_MS_MAX, &a.yield_ms, err)) < 0 ||
            (r = args_opt_range(o, "progress_ms", ARGS_PROGRESS_MS_MIN, ARGS_TIMEOUT_MS_MAX, &a.progress_ms, err)) <
                    0 ||
            (r = get_range(o, "max_output", 0, WIRE_OUTPUT_MAX, &a.max_output, err)) < 0 ||
            (r = json_opt_bool(o, "stdin", &a.has_stdin, err)) < 0)
                return r;
        *ret = a;
        return 0;
}

static int get_terminal(const json_t *o, int64_t *cols, int64_t *rows, struct error *err) {
        int r = args_opt_range(o, "cols", 1, WIRE_TERMINAL_MAX, cols, err);

        return r < 0 ? r : args_opt_range(o, "rows", 1, WIRE_TERMINAL_MAX, rows, err);
}

static int get_id(const json_t *o, int64_t *ret, struct error *err) {
        return get_range(o, "job_id", 1, INT64_MAX, ret, err);
}

int job_start_args_parse(const json_t *o, struct job_start_args *ret, struct error *err) {
        struct job_start_args a = {.cols = -1, .rows = -1};
        int r;

        if ((r = command_args_parse(o, &a.command, err)) < 0 || (r = json_opt_bool(o, "pty", &a.pty, err)) < 0 ||
            (r = get_terminal(o, &a.cols, &a.rows, err)) < 0)
                return r;
        if (!a.pty && (a.cols >= 0 || a.rows >= 0))
                return invalid(err, "cols and rows are for a job with a terminal: give pty: true with them");
        *ret = a;
        return 0;
}

int job_read_args_parse(const json_t *o, struct job_read_args *ret, struct error *err) {
        struct job_read_args a = {.out_offset = -1, .err_offset = -1};
        int r;

        if ((r = get_id(o, &a.id, err)) < 0 ||
            (r = get_range(o, "wait_ms", 0, WIRE_JOB_WAIT_MAX_MS, &a.wait_ms, err)) < 0 ||
            (r = args_opt_range(o, "out_offset", 0, INT64_MAX, &a.out_offset, err)) < 0 ||
            (r = args_opt_range(o, "err_offset", 0, INT64_MAX, &a.err_offset, err)) < 0 ||
            (r = get_range(o, "max_output", 0, WIRE_OUTPUT_MAX, &a.max_output, err)) < 0)
                return r;
        *ret = a;
        return 0;
}

int job_write_args_parse(const json_t *o, struct job_write_args *ret, struct error *err) {
        struct job_write_args a = {0};
        int r;

        if ((r = get_id(o, &a.id, err)) < 0 || (r = json_opt_bool(o, "eof", &a.eof, err)) < 0 ||
            (r = get_range(o, "wait_ms", 0, WIRE_JOB_WAIT_MAX_MS, &a.wait_ms, err)) < 0)
                return r;
        *ret = a;
        return 0;
}

int job_kill_args_parse(const json_t *o, struct job_kill_args *ret, struct error *err) {
        struct job_kill_args a = {0};
        int r;

        if ((r = get_id(o, &a.id, err)) < 0 || (r = get_range(o, "signal", 1, SIGRTMAX, &a.sig, err)) < 0)
                return r;
        *ret = a;
        return 0;
}

int job_resize_args_parse(const json_t *o, struct job_resize_args *ret, struct error *err) {
        struct job_resize_args a = {.cols = -1, .rows = -1};
        int r;

        if ((r = get_id(o, &a.id, err)) < 0 || (r = get_terminal(o, &a.cols, &a.rows, err)) < 0)
                return r;
        *ret = a;
        return 0;
}

int job_list_args_parse(const json_t *o, int64_t *ret_max, struct error *err) {
        return get_range(o, "max", 1, WIRE_JOB_LIST_MAX, ret_max, err);
}

int set_env_args_parse(const json_t *o, struct set_env_args *ret, struct error *err) {
        struct set_env_args a = {.vars = json_object_get(o, "vars"), .unset = json_object_get(o, "unset")};
        size_t i;
        json_t *name;
        int r = check_env("vars", a.vars, err);

        if (r < 0)
                return r;
        if (json_is_null(a.unset))
                a.unset = NULL;
        if (a.unset && (!json_is_array(a.unset) || json_array_size(a.unset) > WIRE_ENV_VARS_MAX))
                return invalid(err, "unset must be an array of at most %u names", WIRE_ENV_VARS_MAX);
        json_array_foreach (a.unset, i, name) {
                if (!json_is_string(name))
                        return invalid(err, "unset[%zu] must be a string, not %s", i, json_type_name(name));
                r = check_env_name("unset", json_string_value(name), err);
                if (r < 0)
                        return r;
        }
        *ret = a;
        return 0;
}
