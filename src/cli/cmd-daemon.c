/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "cli/cli.h"
#include "daemon/daemon.h"

static const char help[] =
        "NAME\n"
        "    agentiso daemon - own and run the workspaces\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso [--config FILE] daemon\n"
        "\n"
        "DESCRIPTION\n"
        "    Runs in the foreground and serves any number of clients until SIGTERM, SIGINT or SIGHUP. There is one\n"
        "    daemon for each state directory. `agentiso serve` starts it when it is needed, so that it seldom has to\n"
        "    be started by hand.\n"
        "\n"
        "    The end of the daemon, even a sudden one, leaves running workspaces as they are; the next daemon takes\n"
        "    them up again.\n"
        "\n"
        "OPTIONS\n"
        "    --config FILE   read this configuration\n"
        "    -h, --help      print this text\n"
        "\n"
        "FILES\n"
        "    <state_dir>/agentiso.sock   where clients connect; only the same user and root may\n"
        "    <state_dir>/lock            held while the daemon runs\n"
        "    <state_dir>/state.db        the workspaces\n"
        "\n"
        "EXIT STATUS\n"
        "    0  ended by a signal\n"
        "    1  failed, or another daemon runs with this state directory\n"
        "    2  wrong usage\n"
        "\n"
        "EXAMPLES\n"
        "    AGENTISO_STATE_DIR=/srv/agentiso agentiso daemon\n";

static int run(struct cli *cli, int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, CLI_OPTIONS_END};
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        int status;

        if (cli_option(cli, &cmd_daemon, argc, argv, "h", options, &status) == CLI_OPTION_EXIT)
                return status;
        if (optind < argc)
                return cli_usage(&cmd_daemon, "unexpected argument '%s'", argv[optind]);
        if (cli_config(cli, &cfg) < 0)
                return CLI_FAILED;
        int r = daemon_run(&cfg, &err);
        if (r < 0 && !error_is_set(&err))
                error_set_errno(&err, r, "the daemon failed");
        return r < 0 ? cli_fail(&err) : CLI_OK;
}

const struct command cmd_daemon = {"daemon", "own and run the workspaces", help, run};
