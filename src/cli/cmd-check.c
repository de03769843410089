/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "cli/checks.h"
#include "cli/cli.h"

static const char help[] =
        "NAME\n"
        "    agentiso check - say whether this machine can run workspaces\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso [--config FILE] check [--json]\n"
        "\n"
        "DESCRIPTION\n"
        "    Looks at each prerequisite and prints a line: ok, warn or fail, what it is, what was found, and the\n"
        "    command that would mend it. A warning is a choice that works less well, such as emulation where KVM\n"
        "    cannot be used. Trying KVM boots a kernel, which takes up to 3 seconds; the answer is kept.\n"
        "\n"
        "OPTIONS\n"
        "    --json          print {\"ok\": ..., \"checks\": [{\"name\", \"status\", \"reason\", \"fix\"}]}\n"
        "    --config FILE   read this configuration\n"
        "    -h, --help      print this text\n"
        "\n"
        "EXIT STATUS\n"
        "    0  workspaces can be used, perhaps with warnings\n"
        "    1  something needed is missing\n"
        "    2  wrong usage\n"
        "\n"
        "EXAMPLES\n"
        "    agentiso check --json | jq '.checks[] | select(.status != \"ok\")'\n";

static const char *const status_names[] = {[FINDING_OK] = "ok", [FINDING_WARN] = "warn", [FINDING_FAIL] = "fail"};

static void print_finding(const char *name, const struct finding *f) {
        printf("%-5s %-17s %s\n", status_names[f->status], name, f->reason ? f->reason : "-");
        if (f->fix)
                printf("%-5s %-17s -> %s\n", "", "", f->fix);
        fflush(stdout); /* a probe takes its time */
}

static json_t *finding_json(const char *name, const struct finding *f) {
        return json_pack("{s:s, s:s, s:s?, s:s*}", "name", name, "status", status_names[f->status], "reason", f->reason,
                         "fix", f->fix);
}

/* The first line: where the configuration comes from, or what is wrong with it. */
static bool check_config(const struct cli *cli, struct config *cfg, struct finding *f) {
        _cleanup_error_ struct error err = ERROR_INIT;

        if (config_load(cli->config_path, cfg, &err) < 0) {
                f->status = FINDING_FAIL;
                f->reason = strdup(error_message(&err));
                f->fix = err.hint ? strdup(err.hint) : NULL;
                return false;
        }
        f->reason = strdup(cfg->path ? cfg->path : "defaults, no file");
        return true;
}

/* Prints, or adds to `list` when it is not NULL. Whether it is no failure. */
static bool report(const char *name, struct finding *f, json_t *list) {
        bool ok = f->status != FINDING_FAIL;

        if (!list)
                print_finding(name, f);
        else if (json_push(list, finding_json(name, f)) < 0)
                ok = false;
        finding_clear(f);
        return ok;
}

static int run(struct cli *cli, int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, {"json", no_argument, NULL, 'j'}, CLI_OPTIONS_END};
        _cleanup_config_ struct config cfg = {0};
        _cleanup_json_ json_t *list = NULL;
        struct finding f = {0};
        int opt, status;

        while ((opt = cli_option(cli, &cmd_check, argc, argv, "h", options, &status)) != -1) {
                if (opt == CLI_OPTION_EXIT)
                        return status;
                list = list ? list : json_array();
        }
        if (optind < argc)
                return cli_usage(&cmd_check, "unexpected argument '%s'", argv[optind]);
        bool readable = check_config(cli, &cfg, &f);
        bool ok = report("configuration", &f, list);
        for (size_t i = 0; readable && i < n_checks; i++) {
                checks[i].run(&cfg, &f);
                ok = report(checks[i].name, &f, list) && ok;
        }
        if (list) {
                _cleanup_json_ json_t *doc = json_pack("{s:b, s:O}", "ok", ok, "checks", list);
                status = doc ? cli_print_json(doc, JSON_INDENT(2)) : CLI_FAILED;
        } else {
                status = cli_finish();
        }
        return ok ? status : CLI_FAILED;
}

const struct command cmd_check = {"check", "say whether this machine can run workspaces", help, run};
