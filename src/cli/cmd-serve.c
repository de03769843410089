/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/proxy.h"

static const char help[] =
        "NAME\n"
        "    agentiso serve - connect an MCP client to the daemon\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso [--config FILE] serve\n"
        "\n"
        "DESCRIPTION\n"
        "    The command for MCP clients to run. It speaks MCP on standard input and output and passes it on to the\n"
        "    daemon, which it starts if none runs. Standard output carries nothing but the protocol; messages for\n"
        "    people go to standard error.\n"
        "\n"
        "    When the daemon dies, the calls that were running get an error, and the next message of the client\n"
        "    starts a new daemon, which finds the workspaces as they were. Workspaces run on when the client leaves.\n"
        "\n"
        "    After an upgrade of agentiso a daemon that runs already goes on with the old program; a message on "
        "standard\n"
        "    error says so. `agentiso stop` ends it.\n"
        "\n"
        "OPTIONS\n"
        "    --config FILE   read this configuration, and have a daemon that is started read it\n"
        "    -h, --help      print this text\n"
        "\n"
        "FILES\n"
        "    <state_dir>/agentiso.sock   the daemon's socket\n"
        "    <state_dir>/daemon.log      the log of a daemon started by this command\n"
        "\n"
        "EXIT STATUS\n"
        "    0  the client closed its side, or SIGTERM, SIGINT or SIGHUP came\n"
        "    1  the standard streams cannot be used\n"
        "    2  wrong usage\n"
        "\n"
        "EXAMPLES\n"
        "    claude mcp add agentiso -- agentiso serve\n";

/* Signals that end us, as a file descriptor. */
static int open_signals(void) {
        sigset_t set;

        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGINT);
        sigaddset(&set, SIGHUP);
        if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
                return -errno;
        signal(SIGPIPE, SIG_IGN);
        int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        return fd < 0 ? -errno : fd;
}

static int run(struct cli *cli, int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, CLI_OPTIONS_END};
        _cleanup_close_ int out = -1, signals = -1;
        struct proxy proxy;
        int status;

        if (cli_option(cli, &cmd_serve, argc, argv, "h", options, &status) == CLI_OPTION_EXIT)
                return status;
        if (optind < argc)
                return cli_usage(&cmd_serve, "unexpected argument '%s'", argv[optind]);

        /* From here on, whatever prints to standard output by mistake lands on standard error. */
        out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
        signals = open_signals();
        if (out < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0 || signals < 0) {
                _cleanup_error_ struct error err = ERROR_INIT;
                error_set_errno(&err, errno, "cannot set up the standard streams");
                return cli_fail(&err);
        }
        if (isatty(STDIN_FILENO))
                fputs("agentiso serve waits for an MCP client on standard input, and is meant to be started by one: "
                      "`agentiso mcp-config` prints how. Ctrl-C ends it.\n",
                      stderr);
        proxy_init(&proxy, cli->config_path, STDIN_FILENO, out, signals);
        proxy_run(&proxy);
        proxy_clear(&proxy);
        return CLI_OK;
}

const struct command cmd_serve = {"serve", "connect an MCP client to the daemon", help, run};
