/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* As args.h, for the requests that are about commands and jobs. */

#include "base/json.h"

#define ARGS_STRING_MAX \
        (128u * 1024u - 1) /* bytes of a command, and of a variable with its name; Linux: MAX_ARG_STRLEN */

#define ARGS_TIMEOUT_MS_MAX (7L * 24 * 3600 * 1000) /* a week */
#define ARGS_PROGRESS_MS_MIN 100

struct command_args {
        const char *command;
        const char *workdir; /* NULL: not given */
        const json_t *env;   /* object of strings, or NULL */
        int64_t timeout_ms;  /* 0: none */
};

struct exec_args {
        struct command_args command;
        int64_t yield_ms;    /* 0: never */
        int64_t progress_ms; /* 0: never */
        int64_t max_output;
        bool has_stdin;
};

struct job_start_args {
        struct command_args command;
        bool pty;
        int64_t cols, rows; /* -1: not given */
};

struct job_read_args {
        int64_t id, wait_ms, max_output;
        int64_t out_offset, err_offset; /* -1: not given */
};

struct job_write_args {
        int64_t id, wait_ms;
        bool eof;
};

struct job_kill_args {
        int64_t id, sig;
};

struct job_resize_args {
        int64_t id;
        int64_t cols, rows; /* -1: not given */
};

struct set_env_args {
        const json_t *vars;  /* object of strings */
        const json_t *unset; /* array of names, or NULL */
};

int exec_args_parse(const json_t *o, struct exec_args *ret, struct error *err);
int job_start_args_parse(const json_t *o, struct job_start_args *ret, struct error *err);
int job_read_args_parse(const json_t *o, struct job_read_args *ret, struct error *err);
int job_write_args_parse(const json_t *o, struct job_write_args *ret, struct error *err);
int job_kill_args_parse(const json_t *o, struct job_kill_args *ret, struct error *err);
int job_resize_args_parse(const json_t *o, struct job_resize_args *ret, struct error *err);
int job_list_args_parse(const json_t *o, int64_t *ret_max, struct error *err);
int set_env_args_parse(const json_t *o, struct set_env_args *ret, struct error *err);
