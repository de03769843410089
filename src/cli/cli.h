/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The command line: `agentiso [--config FILE] COMMAND ...`.
 *
 * Each command is a row (struct command) in its own file, with the text of its manual page; main.c holds the table.
 * Results go to standard output, everything else to standard error. --config and --help work before and after the
 * name of the command.
 */

#include <getopt.h>

#include "base/deadline.h"
#include "base/error.h"
#include "daemon/config.h"

enum {
        CLI_OK = 0,
        CLI_FAILED = 1,
        CLI_USAGE = 2,
        CLI_NOT_RUNNING = 3, /* what was asked of the daemon needs one, and none runs */
        CLI_INTERRUPTED = 130,
};

struct cli {
        const char *config_path; /* from --config, or NULL */
};

struct command {
        const char *name, *summary;
        const char *help; /* the manual page */
        /* argv[0] is "agentiso" and the name of the command, for getopt's messages. Returns the exit status. */
        int (*run)(struct cli *cli, int argc, char **argv);
};

extern const struct command cmd_check, cmd_daemon, cmd_image, cmd_logs, cmd_mcp_config, cmd_netns, cmd_serve,
        cmd_status, cmd_stop;

/* The rows that every command's option table begins with, and their values. */
#define CLI_OPTIONS                                 \
        {"config", required_argument, NULL, 'c'}, { \
                "help", no_argument, NULL, 'h'      \
        }
#define CLI_OPTIONS_END \
        { NULL, 0, NULL, 0 }

/*
 * The next option of a command: its value from `options`, or -1 at the end of the options. --config and --help are
 * dealt with here; when the command has to end because of them, or because of an unknown option, -2 is returned and
 * *ret_status set. `shorts` are the one-letter options as for
 * getopt, with the h of --help.
 */
#define CLI_OPTION_EXIT (-2)
int cli_option(struct cli *cli, const struct command *cmd, int argc, char **argv, const char *shorts,
               const struct option *options, int *ret_status);

/* Says what is wrong with the command line and where help is; returns CLI_USAGE. */
int cli_usage(const struct command *cmd, const char *fmt, ...) _printf_(2, 3);
/* Prints an error and its hint on standard error; returns CLI_FAILED. */
int cli_fail(const struct error *err);
/* Reads the configuration; a failure is printed. */
int cli_config(const struct cli *cli, struct config *ret);
/* Prints JSON and a newline; CLI_OK, or CLI_FAILED when standard output fails. */
int cli_print_json(const json_t *value, size_t flags);
/* Flushes standard output: CLI_OK, or CLI_FAILED with a message when it could not be written. */
int cli_finish(void);

/* A token that SIGINT, SIGTERM or SIGHUP fires from now on, instead of ending the program: for commands that would
 * leave a process behind. NULL when there are no resources for it: the signals then do what they always do. */
struct cancel *interrupt_token(void);

/* The guest agent that belongs to this program: beside it, in its build tree, or installed. -ENOENT. */
int guest_agent_path(char **ret, struct error *err);
/* The folder with the recipes of the images: $AGENTISO_IMAGES_DIR, installed, or in the source tree. -ENOENT. */
int recipes_path(char **ret, struct error *err);

/* Bytes as "1.5 GiB", into a buffer of 16. */
const char *size_text(uint64_t bytes, char *buf);
/* Seconds as "3d 4h", "5m 6s", into a buffer of 24. */
const char *duration_text(int64_t secs, char *buf);
