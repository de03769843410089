/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "cli/cli.h"

static const struct command *const commands[] = {
        &cmd_serve, &cmd_daemon, &cmd_check, &cmd_status, &cmd_logs, &cmd_stop, &cmd_image, &cmd_mcp_config, &cmd_netns,
};

static int print_help(void) {
        printf("agentiso - real Linux machines for AI agents, as MCP tools\n"
               "\n"
               "SYNOPSIS\n"
               "    agentiso [--config FILE] COMMAND [ARGUMENT...]\n"
               "\n"
               "COMMANDS\n");
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                printf("    %-12s %s\n", commands[i]->name, commands[i]->summary);
        printf("    %-12s %s\n", "help", "print the manual page of a command");
        printf("\n"
               "OPTIONS\n"
               "    --config FILE   read this configuration (also: AGENTISO_CONFIG)\n"
               "    -h, --help      print this text\n"
               "    -V, --version   print the version\n"
               "\n"
               "FIRST STEPS\n"
               "    agentiso image build   make the kernel and the base image\n"
               "    agentiso check         say what this machine still lacks, if anything\n"
               "    agentiso mcp-config    print how to have an MCP client start `agentiso serve`\n"
               "\n"
               "ENVIRONMENT\n"
               "    AGENTISO_CONFIG      the configuration file, where --config is not given\n"
               "    AGENTISO_STATE_DIR   overrides paths.state_dir\n"
               "    AGENTISO_IMAGE_DIR   overrides paths.image_dir\n"
               "    AGENTISO_IMAGES_DIR  the folder with the recipes of `agentiso image`\n");
        return cli_finish();
}

static const struct command *find_command(const char *name) {
        const char *names[ARRAY_SIZE(commands) + 1];

        for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
                if (str_eq(commands[i]->name, name))
                        return commands[i];
                names[i] = commands[i]->name;
        }
        names[ARRAY_SIZE(commands)] = "help";
        const char *nearest = str_nearest(name, names, ARRAY_SIZE(names));
        fprintf(stderr, "agentiso: unknown command '%s'", name);
        if (nearest)
                fprintf(stderr, "; did you mean '%s'?", nearest);
        fputs("\nTry `agentiso --help`.\n", stderr);
        return NULL;
}

static int help_command(int argc, char **argv) {
        if (argc < 2)
                return print_help();
        const struct command *cmd = find_command(argv[1]);
        if (!cmd)
                return CLI_USAGE;
        fputs(cmd->help, stdout);
        return cli_finish();
}

/* A program started without the standard streams would open its files in their place. */
static void fill_standard_fds(void) {
        int fd;

        do
                fd = open("/dev/null", O_RDWR); /* not O_CLOEXEC: these are for children too */
        while (fd >= 0 && fd <= STDERR_FILENO);
        close_fd(fd);
}

int main(int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, {"version", no_argument, NULL, 'V'}, CLI_OPTIONS_END};
        struct cli cli = {0};
        int opt;

        fill_standard_fds();
        char name[64] = "agentiso";
        if (argc > 0)
                argv[0] = name; /* getopt's messages begin with it */
        /* "+": stop at the command, what follows is its own. */
        while ((opt = getopt_long(argc, argv, "+hV", options, NULL)) != -1)
                switch (opt) {
                case 'c':
                        cli.config_path = optarg;
                        break;
                case 'h':
                        return print_help();
                case 'V':
                        printf("agentiso %s\n", AGENTISO_VERSION);
                        return cli_finish();
                default:
                        fputs("Try `agentiso --help`.\n", stderr);
                        return CLI_USAGE;
                }
        argc -= optind;
        argv += optind;
        if (argc == 0) {
                print_help();
                return CLI_USAGE;
        }
        if (str_eq(argv[0], "help"))
                return help_command(argc, argv);
        const struct command *cmd = find_command(argv[0]);
        if (!cmd)
                return CLI_USAGE;
        (void) snprintf(name, sizeof(name), "agentiso %s", cmd->name);
        argv[0] = name;
        optind = 0; /* glibc: scan a new vector from its beginning */
        return cmd->run(&cli, argc, argv);
}
