/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "cli/cli.h"

static const char help[] =
        "NAME\n"
        "    agentiso mcp-config - print how to register agentiso with an MCP client\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso [--config FILE] mcp-config [--client CLIENT]\n"
        "\n"
        "DESCRIPTION\n"
        "    Prints the command or the piece of configuration by which a client starts `agentiso serve`, with the\n"
        "    path of this program. Without --client it prints the JSON that most clients read.\n"
        "\n"
        "OPTIONS\n"
        "    --client CLIENT   claude, codex, opencode or gemini\n"
        "    --config FILE     have the client start agentiso with this configuration\n"
        "    -h, --help        print this text\n"
        "\n"
        "EXIT STATUS\n"
        "    0  printed\n"
        "    1  failed\n"
        "    2  wrong usage\n"
        "\n"
        "EXAMPLES\n"
        "    agentiso mcp-config\n"
        "    agentiso mcp-config --client codex >> ~/.codex/config.toml\n";

/* The command line of the server: this program, perhaps --config FILE, serve. */
static json_t *server_argv(const struct cli *cli) {
        _cleanup_free_ char *self = NULL, *config = NULL;
        _cleanup_json_ json_t *argv = json_array();

        if (self_path(&self) < 0 || json_push(argv, json_string(self)) < 0)
                return NULL;
        if (cli->config_path) {
                config = realpath(cli->config_path, NULL);
                if (json_push(argv, json_string("--config")) < 0 ||
                    json_push(argv, json_string(config ? config : cli->config_path)) < 0)
                        return NULL;
        }
        if (json_push(argv, json_string("serve")) < 0)
                return NULL;
        return TAKE_PTR(argv);
}

/* A word for a POSIX shell. */
static void print_shell_word(const char *word) {
        if (word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-")] == 0) {
                fputs(word, stdout);
                return;
        }
        putchar('\'');
        for (; *word; word++)
                if (*word == '\'')
                        fputs("'\\''", stdout);
                else
                        putchar(*word);
        putchar('\'');
}

static int print_command(const char *prefix, json_t *argv) {
        size_t i;
        json_t *word;

        fputs(prefix, stdout);
        json_array_foreach (argv, i, word) {
                putchar(' ');
                print_shell_word(json_string_value(word));
        }
        putchar('\n');
        return cli_finish();
}

static int print_claude(json_t *argv) {
        return print_command("claude mcp add agentiso --", argv);
}

static int print_gemini(json_t *argv) {
        return print_command("gemini mcp add agentiso", argv);
}

/* JSON strings are valid TOML strings: both escape the same way. */
static int print_codex(json_t *argv) {
        size_t i;
        json_t *word;

        printf("[mcp_servers.agentiso]\ncommand = ");
        json_dumpf(json_array_get(argv, 0), stdout, JSON_ENCODE_ANY);
        printf("\nargs = [");
        json_array_foreach (argv, i, word) {
                if (i == 0)
                        continue;
                fputs(i > 1 ? ", " : "", stdout);
                json_dumpf(word, stdout, JSON_ENCODE_ANY);
        }
        printf("]\n");
        return cli_finish();
}

static int print_opencode(json_t *argv) {
        _cleanup_json_ json_t *doc =
                json_pack("{s:{s:{s:s, s:O, s:b}}}", "mcp", "agentiso", "type", "local", "command", argv, "enabled", 1);
        return doc ? cli_print_json(doc, JSON_INDENT(2)) : CLI_FAILED;
}

static int print_generic(json_t *argv) {
        _cleanup_json_ json_t *args = json_copy(argv);

        if (!args || json_array_remove(args, 0) < 0)
                return CLI_FAILED;
        _cleanup_json_ json_t *doc = json_pack("{s:{s:{s:O, s:O}}}", "mcpServers", "agentiso", "command",
                                               json_array_get(argv, 0), "args", args);
        return doc ? cli_print_json(doc, JSON_INDENT(2)) : CLI_FAILED;
}

static const struct {
        const char *name;
        int (*print)(json_t *argv);
} clients[] = {
        {"claude", print_claude}, {"codex", print_codex}, {"opencode", print_opencode}, {"gemini", print_gemini}};

static int run(struct cli *cli, int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, {"client", required_argument, NULL, 'C'}, CLI_OPTIONS_END};
        int (*print)(json_t *) = print_generic;
        int opt, status;

        while ((opt = cli_option(cli, &cmd_mcp_config, argc, argv, "h", options, &status)) != -1) {
                if (opt == CLI_OPTION_EXIT)
                        return status;
                print = NULL;
                for (size_t i = 0; i < ARRAY_SIZE(clients) && !print; i++)
                        if (str_eq(clients[i].name, optarg))
                                print = clients[i].print;
                if (!print)
                        return cli_usage(&cmd_mcp_config, "unknown client '%s': claude, codex, opencode or gemini",
                                         optarg);
        }
        if (optind < argc)
                return cli_usage(&cmd_mcp_config, "unexpected argument '%s'", argv[optind]);
        _cleanup_json_ json_t *server = server_argv(cli);
        if (!server) {
                fputs("agentiso: cannot find the path of this program\n", stderr);
                return CLI_FAILED;
        }
        return print(server);
}

const struct command cmd_mcp_config = {"mcp-config", "print how to register agentiso with an MCP client", help, run};
