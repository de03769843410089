/* SPDX-License-Identifier: Apache-2.0 */
#include "base/str.h"
#include "cli/cli.h"
#include "network/protocol.h"
#include "network/user-protocol.h"

#define USER_ARGUMENTS 5 /* with the word itself */

static const char help[] =
        "NAME\n"
        "    agentiso netns - the processes behind the network of the workspaces\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso netns hold\n"
        "    agentiso netns help\n"
        "    agentiso netns user ADDRESS NETWORK PREFIX FOLDER\n"
        "\n"
        "DESCRIPTION\n"
        "    Internal: the daemon starts these processes itself, and nobody else should. Each works on descriptors\n"
        "    that it is started with.\n"
        "\n"
        "    hold  makes a network namespace, and a user namespace where that is allowed, writes who it is into the\n"
        "          lock file at descriptor 3, which it holds locked, writes one byte to standard output, and sleeps\n"
        "          without any privilege. The namespace lasts as long as it does; SIGTERM ends both.\n"
        "    help  joins the user namespace at descriptor 4, if there is one, and the network namespace at descriptor\n"
        "          5, drops all privileges but those over that network, and does what the socket at descriptor 3 asks\n"
        "          for: taps, packet filter, sockets. The end of the socket ends it.\n"
        "    user  is the network of one machine where there is no namespace: it turns what the guest with this\n"
        "          address sends over the socket at descriptor 3 into connections of this host, as far as daemons\n"
        "          allow it over the listening socket at descriptor 4; at first nothing. FOLDER, the machine's, only\n"
        "          tells people which one it is. It goes into the background when it is ready, and ends with QEMU.\n"
        "\n"
        "OPTIONS\n"
        "    -h, --help   print this text\n"
        "\n"
        "EXIT STATUS\n"
        "    0  ended by the end of the socket, or in the background\n"
        "    1  failed\n"
        "    2  wrong usage\n"
        "\n"
        "EXAMPLES\n"
        "    lsns -t net   # the namespace, with `agentiso netns hold` as its first process\n";

static int run(struct cli *cli, int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, CLI_OPTIONS_END};
        int status;

        if (cli_option(cli, &cmd_netns, argc, argv, "h", options, &status) == CLI_OPTION_EXIT)
                return status;
        const int n = argc - optind;
        if (n == USER_ARGUMENTS && str_eq(argv[optind], "user"))
                return usernet_run(argv[optind + 1], argv[optind + 2], argv[optind + 3]);
        if (n != 1)
                return cli_usage(&cmd_netns, "give one of hold, help, user with its arguments");
        if (str_eq(argv[optind], "hold"))
                return holder_run();
        if (str_eq(argv[optind], "help"))
                return helper_run();
        return cli_usage(&cmd_netns, "unknown action '%s'", argv[optind]);
}

const struct command cmd_netns = {"netns", "internal: the processes behind the network", help, run};
