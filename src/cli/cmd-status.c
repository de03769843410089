/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/client.h"

static const char help[] =
        "NAME\n"
        "    agentiso status - list the workspaces and what is kept ready for them\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso [--config FILE] status [--json]\n"
        "\n"
        "DESCRIPTION\n"
        "    Shows each workspace with its state, size, address and owner. OWNER is `client` while the client that\n"
        "    made or adopted it is connected and `orphaned` when it has gone: the next client that uses an orphaned\n"
        "    workspace adopts it. MEMORY is what its machine may use; PRIVATE is what it has of the host's memory for\n"
        "    itself, and SHARED what it uses of memory that is there once for several machines. DISK is what the\n"
        "    workspace alone takes of the host's disk.\n"
        "\n"
        "    Below that stand the machines of the pool that wait for a workspace_create, and how many there should "
        "be,\n"
        "    and the templates that workspaces begin with instead of booting: `agentiso image list` shows each.\n"
        "\n"
        "    A daemon is not started.\n"
        "\n"
        "OPTIONS\n"
        "    --json          print {\"daemon_pid\", \"workspaces\": [...], \"pool\": {\"ready\", \"wanted\"}, "
        "\"templates\":\n"
        "                    [...], \"templates_bytes\"}, each workspace as workspace_list and workspace_info give it\n"
        "    --config FILE   read this configuration\n"
        "    -h, --help      print this text\n"
        "\n"
        "EXIT STATUS\n"
        "    0  printed\n"
        "    1  failed\n"
        "    2  wrong usage\n"
        "    3  no daemon runs\n"
        "\n"
        "EXAMPLES\n"
        "    agentiso status --json | jq -r '.workspaces[].name'\n";

/* All pages of workspace_list in one array. */
static int list_all(struct client *client, const struct op *op, json_t *all, struct error *err) {
        _cleanup_free_ char *cursor = NULL;

        for (;;) {
                _cleanup_json_ json_t *page = NULL;
                const char *next = NULL;
                int r = client_call(client, "workspace_list", json_pack("{s:s*}", "cursor", cursor), op, &page, err);
                if (r >= 0)
                        r = json_opt_str(page, "next_cursor", &next, err);
                if (r < 0)
                        return r;
                if (json_array_extend(all, json_object_get(page, "workspaces")) < 0)
                        return error_set(err, ERROR_INTERNAL, "workspace_list gave no list");
                if (!next)
                        return 0;
                r = str_replace(&cursor, next);
                if (r < 0)
                        return r;
        }
}

/* Adds what only workspace_info knows; one that was destroyed meanwhile is left out. */
static int add_details(struct client *client, const struct op *op, json_t *all, struct error *err) {
        for (size_t i = 0; i < json_array_size(all);) {
                _cleanup_error_ struct error why = ERROR_INIT;
                _cleanup_json_ json_t *info = NULL;
                json_t *ws = json_array_get(all, i);
                json_t *id = json_incref(json_object_get(ws, "workspace_id"));
                int r = client_call(client, "workspace_info", json_pack("{s:o}", "workspace_id", id), op, &info, &why);
                if (r < 0 && why.code == ERROR_NOT_FOUND) {
                        json_array_remove(all, i);
                        continue;
                }
                if (r < 0) {
                        error_move(err, &why);
                        return r;
                }
                json_object_update_missing(ws, info);
                i++;
        }
        return 0;
}

/* What is kept ready: `pool`, `templates` and `templates_bytes` of a daemon that knows of them. */
static int add_state(struct client *client, const struct op *op, json_t *doc, struct error *err) {
        _cleanup_json_ json_t *state = NULL;

        int r = client_ask(client, "agentiso/state", json_object(), op, &state, err);
        if (r < 0)
                return err->code == ERROR_UNSUPPORTED ? 0 : r;
        return json_object_update_missing(doc, state) < 0 ? -ENOMEM : 0;
}

/* Adds to `doc` all that the daemon tells. */
static int gather(const struct config *cfg, json_t *doc, struct error *err) {
        _cleanup_client_ struct client *client = NULL;
        struct op op = op_timeout(CLIENT_MS);
        json_t *all = json_array();

        if (json_put(doc, "workspaces", all) < 0)
                return error_set_errno(err, ENOMEM, "cannot list the workspaces");
        int r = client_open(cfg, &op, &client, err);
        if (r >= 0)
                r = list_all(client, &op, all, err);
        if (r >= 0)
                r = add_details(client, &op, all, err);
        return r < 0 ? r : add_state(client, &op, doc, err);
}

static const char *text_of(json_t *object, const char *key) {
        const char *text = json_string_value(json_object_get(object, key));
        return str_empty(text) ? "-" : text;
}

static int64_t number_of(json_t *object, const char *key) {
        return json_integer_value(json_object_get(object, key));
}

enum { NAME, ID, STATE, CPUS, MEMORY, PRIVATE, SHARED, DISK, ADDRESS, UPTIME, OWNER, _COLUMN_MAX };
#define CELL_MAX 160

/* Memory that is in use; a machine that does not run uses none. */
static void fill_used(char *cell, json_t *ws, const char *key) {
        char size[16];
        int64_t used = number_of(ws, key);

        snprintf(cell, CELL_MAX, "%s", used > 0 ? size_text((uint64_t) used, size) : "-");
}

static void fill_row(json_t *ws, char row[_COLUMN_MAX][CELL_MAX]) {
        json_t *resources = json_object_get(ws, "resources");
        char size[16], duration[24];
        int64_t uptime = number_of(ws, "uptime_secs");

        snprintf(row[NAME], CELL_MAX, "%s", text_of(ws, "name"));
        snprintf(row[ID], CELL_MAX, "%s", text_of(ws, "workspace_id"));
        snprintf(row[STATE], CELL_MAX, "%s", text_of(ws, "state"));
        snprintf(row[CPUS], CELL_MAX, "%" PRId64, number_of(resources, "vcpus"));
        snprintf(row[MEMORY], CELL_MAX, "%s", size_text((uint64_t) number_of(resources, "memory_mb") << 20, size));
        fill_used(row[PRIVATE], ws, "memory_used_bytes");
        fill_used(row[SHARED], ws, "memory_shared_bytes");
        snprintf(row[DISK], CELL_MAX, "%s", size_text((uint64_t) number_of(ws, "disk_used_bytes"), size));
        snprintf(row[ADDRESS], CELL_MAX, "%s", text_of(ws, "ip"));
        snprintf(row[UPTIME], CELL_MAX, "%s", uptime > 0 ? duration_text(uptime, duration) : "-");
        snprintf(row[OWNER], CELL_MAX, "%s", json_is_true(json_object_get(ws, "orphaned")) ? "orphaned" : "client");
}

static void print_table(json_t *all) {
        static const char *const titles[_COLUMN_MAX] = {"NAME",   "ID",   "STATE", "CPUS",   "MEMORY", "PRIVATE",
                                                        "SHARED", "DISK", "IP",    "UPTIME", "OWNER"};
        size_t n = json_array_size(all), width[_COLUMN_MAX];
        char(*rows)[_COLUMN_MAX][CELL_MAX] = calloc(n + 1, sizeof(*rows));

        if (!rows)
                return;
        for (size_t c = 0; c < _COLUMN_MAX; c++) {
                snprintf(rows[0][c], CELL_MAX, "%s", titles[c]);
                width[c] = strlen(titles[c]);
        }
        for (size_t i = 1; i <= n; i++) {
                fill_row(json_array_get(all, i - 1), rows[i]);
                for (size_t c = 0; c < _COLUMN_MAX; c++)
                        width[c] = MAX(width[c], strlen(rows[i][c]));
        }
        for (size_t i = 0; i <= n; i++)
                for (size_t c = 0; c < _COLUMN_MAX; c++)
                        if (c < _COLUMN_MAX - 1)
                                printf("%-*s  ", (int) width[c], rows[i][c]);
                        else
                                printf("%s\n", rows[i][c]);
        free(rows);
}

static void print_state(json_t *doc) {
        json_t *pool = json_object_get(doc, "pool"), *templates = json_object_get(doc, "templates");
        char size[16];

        if (!pool)
                return;
        printf("\npool: %" PRId64 " of %" PRId64 " ready\n", number_of(pool, "ready"), number_of(pool, "wanted"));
        printf("templates: %zu, %s on disk\n", json_array_size(templates),
               size_text((uint64_t) number_of(doc, "templates_bytes"), size));
}

static int run(struct cli *cli, int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, {"json", no_argument, NULL, 'j'}, CLI_OPTIONS_END};
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *doc = json_object();
        bool json = false;
        int opt, status;

        while ((opt = cli_option(cli, &cmd_status, argc, argv, "h", options, &status)) != -1) {
                if (opt == CLI_OPTION_EXIT)
                        return status;
                json = true;
        }
        if (optind < argc)
                return cli_usage(&cmd_status, "unexpected argument '%s'", argv[optind]);
        if (cli_config(cli, &cfg) < 0 || !doc || json_put(doc, "daemon_pid", json_null()) < 0)
                return CLI_FAILED;
        int r = gather(&cfg, doc, &err);
        if (r < 0) {
                cli_fail(&err);
                return client_no_daemon(r) && err.code == ERROR_NOT_RUNNING ? CLI_NOT_RUNNING : CLI_FAILED;
        }
        pid_t pid = 0;
        (void) client_daemon_pid(&cfg, &pid);
        if (json_put(doc, "daemon_pid", json_integer(pid)) < 0)
                return CLI_FAILED;
        if (json)
                return cli_print_json(doc, JSON_INDENT(2));
        print_table(json_object_get(doc, "workspaces"));
        print_state(doc);
        return cli_finish();
}

const struct command cmd_status = {"status", "list the workspaces and what is kept ready", help, run};
