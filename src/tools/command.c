/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/command.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "wire/wire.h"

#define NAME_SHOWN 60u
/* What shells report for a command that a signal ended. */
#define EXIT_SIGNAL_BASE 128

int command_check(const char *argument, const char *command, struct error *err) {
        size_t len = strlen(command);

        if (len <= COMMAND_MAX)
                return 0;
        error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"%s\" has %zu bytes, at most %u are possible", argument, len,
                  COMMAND_MAX);
        error_hint(err, "Put the script into a file with file_write and run that.");
        return -EINVAL;
}

static const char *const refused_names[] = {"PATH", "IFS", "ENV", "BASH_ENV"};

static bool name_refused(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(refused_names); i++)
                if (str_eq(name, refused_names[i]))
                        return true;
        return str_starts_with(name, "LD_");
}

int command_check_name(const char *argument, const char *name, struct error *err) {
        if (name_valid(name, 256, "_") && !(*name >= '0' && *name <= '9'))
                return 0;
        /* Who wrote NAME=value as the name must not see the value in an error. */
        size_t len = strcspn(name, "=");
        int shown = (int) utf8_floor(name, MIN(len, (size_t) NAME_SHOWN));
        error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"%s\": \"%.*s%s\" cannot name a variable", argument, shown,
                  name, name[len] ? "=..." : "");
        error_hint(err, "Use letters, digits and _, not beginning with a digit.");
        return -EINVAL;
}

/* The kernel takes NAME=value as one argument, with the limit of one. */
static int check_variable_size(const char *argument, const char *name, size_t value_len, struct error *err) {
        size_t len = strlen(name) + 1 + value_len;

        if (len <= COMMAND_MAX)
                return 0;
        error_set(err, ERROR_INVALID_ARGUMENT,
                  "Argument \"%s\": the variable %.*s takes %zu bytes (NAME=value and a NUL), at most %u are possible",
                  argument, (int) NAME_SHOWN, name, len + 1, COMMAND_MAX + 1);
        error_hint(err, "Put it into a file with file_write.");
        return -EINVAL;
}

int command_check_env(const char *argument, const json_t *env, struct error *err) {
        size_t bytes = 0;
        const char *name;
        json_t *value;

        json_object_foreach ((json_t *) env, name, value) {
                int r = command_check_name(argument, name, err);
                if (r < 0)
                        return r;
                if (name_refused(name)) {
                        error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"%s\": the variable %.*s may not be set",
                                  argument, (int) NAME_SHOWN, name);
                        error_hint(err,
                                   "PATH, IFS, ENV, BASH_ENV and LD_* are refused because they change which programs "
                                   "run. Set it inside the command instead, for example: export PATH=...; my-command");
                        return -EINVAL;
                }
                r = check_variable_size(argument, name, json_string_length(value), err);
                if (r < 0)
                        return r;
                bytes += strlen(name) + json_string_length(value);
        }
        if (bytes <= WIRE_ENV_BYTES_MAX)
                return 0;
        error_set(err, ERROR_INVALID_ARGUMENT,
                  "Argument \"%s\" has %zu bytes of names and values, at most %u are possible", argument, bytes,
                  WIRE_ENV_BYTES_MAX);
        error_hint(err, "Put large values into a file with file_write.");
        return -EINVAL;
}

int command_read_args(const json_t *args, struct agent_exec_args *ret, struct error *err) {
        int64_t timeout_secs = 0, max_output = COMMAND_OUTPUT_DEFAULT;
        struct agent_exec_args a = {.env = json_object_get(args, "env")};

        int r = json_opt_str(args, "command", &a.command, err);
        if (r >= 0)
                r = json_opt_str(args, "workdir", &a.workdir, err);
        if (r >= 0)
                r = json_opt_int(args, "timeout_secs", &timeout_secs, err);
        if (r >= 0)
                r = json_opt_int(args, "max_output_bytes", &max_output, err);
        if (r >= 0)
                r = command_check_env("env", a.env, err);
        if (r >= 0 && a.command)
                r = command_check("command", a.command, err);
        if (r < 0)
                return r;
        a.timeout_ms = timeout_secs * MSEC_PER_SEC;
        a.max_output = (size_t) max_output;
        *ret = a;
        return 0;
}

void command_text_clear(struct command_text *t) {
        output_clear(&t->out);
        output_clear(&t->err);
}

static int render_one(const struct agent_output *o, int64_t offset, const struct output_form *form,
                      struct output *ret) {
        return offset < 0 ? output_whole(o, form, ret) : output_from(o, (uint64_t) offset, form, ret);
}

int command_render(const struct agent_exec_result *res, const struct command_form *form, struct command_text *ret) {
        const size_t costs[2] = {output_cost(&res->out), output_cost(&res->err)};
        struct output_form one = {.strip_ansi = form->strip_ansi, .open = form->running};
        _cleanup_command_text_ struct command_text text = {0};
        size_t budgets[2];

        output_share(form->budget, costs, ARRAY_SIZE(costs), budgets);
        one.budget = budgets[0];
        int r = render_one(&res->out, form->out_offset, &one, &text.out);
        one.budget = budgets[1];
        if (r >= 0)
                r = render_one(&res->err, form->err_offset, &one, &text.err);
        if (r < 0)
                return r;
        *ret = text;
        text = (struct command_text){0};
        return 0;
}

int command_put_signal(json_t *v, int sig) {
        const char *name = sigabbrev_np(sig);
        char text[32];

        int r = json_put(v, "signal", json_integer(sig));
        if (r < 0)
                return r;
        if (name)
                (void) snprintf(text, sizeof(text), "SIG%s", name);
        else
                (void) snprintf(text, sizeof(text), "SIGRTMIN%+d", sig - SIGRTMIN);
        return json_put(v, "signal_name", json_string(text));
}

int command_put_end(json_t *v, const struct agent_exec_result *res, bool running) {
        int code = res->signal > 0 ? EXIT_SIGNAL_BASE + res->signal : res->exit_code;

        int r = json_put(v, "exit_code", running ? json_null() : json_integer(code));
        return r < 0 || running || res->signal <= 0 ? r : command_put_signal(v, res->signal);
}

/* How much of an output there is, and how much of it was no text. */
static int put_counts(json_t *v, const char *bytes_key, const char *invalid_key, uint64_t total,
                      const struct output *o) {
        int r = json_put(v, bytes_key, json_integer((json_int_t) total));

        return r < 0 || o->invalid == 0 ? r : json_put(v, invalid_key, json_integer((json_int_t) o->invalid));
}

int command_put_text(json_t *v, const struct command_text *t, const struct agent_exec_result *res) {
        int r = json_put(v, "stdout", json_text(t->out.text.data, t->out.text.len));

        r |= json_put(v, "stderr", json_text(t->err.text.data, t->err.text.len));
        r |= json_put(v, "truncated", json_boolean(t->out.cut || t->err.cut));
        r |= put_counts(v, "stdout_bytes", "stdout_invalid_bytes", res->out.total, &t->out);
        r |= put_counts(v, "stderr_bytes", "stderr_invalid_bytes", res->err.total, &t->err);
        return r < 0 ? -ENOMEM : 0;
}

int command_put_facts(json_t *v, const struct agent_exec_result *res, bool running) {
        int r = json_put(v, "duration_ms", json_integer(res->duration_ms));

        r |= json_put(v, "timed_out", json_boolean(!running && res->timed_out));
        if (!running && res->leftover)
                r |= json_put(v, "left_running", json_true());
        return r < 0 ? -ENOMEM : 0;
}
