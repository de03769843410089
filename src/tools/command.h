/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the tools that run commands have in common: their arguments and the form of their results. */

#include "mcp/tool.h"
#include "tools/output.h"

/* Beyond a command's own time, for starting it, for killing it and for its output. */
#define COMMAND_GRACE_MS 30000
/* The kernel's limit of one argument of a program, MAX_ARG_STRLEN, less its NUL: execve(2). */
#define COMMAND_MAX (128u * 1024u - 1)
#define COMMAND_OUTPUT_DEFAULT (256u * 1024u) /* max_output_bytes */

/* Refuses a command that is too long for a shell. */
int command_check(const char *argument, const char *command, struct error *err);
/* Refuses names that are none, those that change how a command runs, values that no program can be given, and too much
 * in all. Never shows a value. */
int command_check_env(const char *argument, const json_t *env, struct error *err);
/* Refuses a name that no variable can have. */
int command_check_name(const char *argument, const char *name, struct error *err);

/* Reads command (if there is one), workdir, env, timeout_secs (0: none) and max_output_bytes, which `args` keeps. */
int command_read_args(const json_t *args, struct agent_exec_args *ret, struct error *err);

/* Both outputs of a command as text. */
struct command_text {
        struct output out, err;
};
void command_text_clear(struct command_text *t);
#define _cleanup_command_text_ _cleanup_(command_text_clear)

struct command_form {
        size_t budget; /* for both together */
        bool strip_ansi, running;
        int64_t out_offset, err_offset; /* -1: the whole output */
};
int command_render(const struct agent_exec_result *res, const struct command_form *form, struct command_text *ret);

/* Puts exit_code (null while it runs; 128 + signal when a signal ended it), signal, signal_name. 0, -ENOMEM. */
int command_put_end(json_t *v, const struct agent_exec_result *res, bool running);
/* Puts stdout and stderr, and how much there is of them. */
int command_put_text(json_t *v, const struct command_text *t, const struct agent_exec_result *res);
/* Puts duration_ms, timed_out, and left_running if it is. */
int command_put_facts(json_t *v, const struct agent_exec_result *res, bool running);
/* Puts signal and signal_name. */
int command_put_signal(json_t *v, int sig);
