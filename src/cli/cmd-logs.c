/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/client.h"

/* Lines shown at most; the daemon keeps no more than a few thousand (CONSOLE_KEEP bytes). */
#define LINES_MAX 10000u

static const char help[] =
        "NAME\n"
        "    agentiso logs - show the console of a workspace\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso [--config FILE] logs [-n LINES] WORKSPACE\n"
        "\n"
        "DESCRIPTION\n"
        "    Prints the last lines of the console of a workspace, then what QEMU itself reported, if anything.\n"
        "    WORKSPACE is an id or a name; it need not be running, but the daemon must.\n"
        "\n"
        "OPTIONS\n"
        "    -n, --lines LINES   so many lines of each log, 1 to 10000 (100)\n"
        "    --config FILE       read this configuration\n"
        "    -h, --help          print this text\n"
        "\n"
        "EXIT STATUS\n"
        "    0  printed\n"
        "    1  failed, e.g. there is no such workspace\n"
        "    2  wrong usage\n"
        "    3  no daemon runs\n"
        "\n"
        "EXAMPLES\n"
        "    agentiso logs -n 20 build-1\n";

static void print_log(const char *text) {
        if (str_empty(text))
                return;
        fputs(text, stdout);
        if (text[strlen(text) - 1] != '\n')
                putchar('\n');
}

static int show(const struct config *cfg, const char *workspace, int64_t lines, struct error *err) {
        _cleanup_client_ struct client *client = NULL;
        _cleanup_json_ json_t *logs = NULL;
        const char *console = NULL, *qemu = NULL;
        struct op op = op_timeout(CLIENT_MS);

        int r = client_open(cfg, &op, &client, err);
        if (r >= 0)
                r = client_call(client, "workspace_logs",
                                json_pack("{s:s, s:I}", "workspace_id", workspace, "max_lines", (json_int_t) lines),
                                &op, &logs, err);
        if (r >= 0)
                r = json_opt_str(logs, "console", &console, err);
        if (r >= 0)
                r = json_opt_str(logs, "stderr", &qemu, err);
        if (r < 0)
                return r;
        print_log(console);
        if (!str_empty(qemu))
                puts("QEMU:");
        print_log(qemu);
        return 0;
}

static int run(struct cli *cli, int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, {"lines", required_argument, NULL, 'n'}, CLI_OPTIONS_END};
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        uint64_t lines = 100;
        int opt, status;

        while ((opt = cli_option(cli, &cmd_logs, argc, argv, "hn:", options, &status)) != -1) {
                if (opt == CLI_OPTION_EXIT)
                        return status;
                if (parse_u64(optarg, &lines) < 0 || lines < 1 || lines > LINES_MAX)
                        return cli_usage(&cmd_logs, "'%s' is no number of lines from 1 to %u", optarg, LINES_MAX);
        }
        if (argc - optind != 1)
                return cli_usage(&cmd_logs, "give one workspace, by its id or its name");
        if (cli_config(cli, &cfg) < 0)
                return CLI_FAILED;
        int r = show(&cfg, argv[optind], (int64_t) lines, &err);
        if (r < 0 && err.code == ERROR_NOT_FOUND) {
                /* What the tool says is for a client that has tools. */
                fprintf(stderr, "agentiso: there is no workspace '%s'\n`agentiso status` lists them.\n", argv[optind]);
                return CLI_FAILED;
        }
        if (r < 0) {
                cli_fail(&err);
                return client_no_daemon(r) && err.code == ERROR_NOT_RUNNING ? CLI_NOT_RUNNING : CLI_FAILED;
        }
        return cli_finish();
}

const struct command cmd_logs = {"logs", "show the console of a workspace", help, run};
