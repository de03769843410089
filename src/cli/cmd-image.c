/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/json.h"
#include "base/process.h"
#include "base/str.h"
#include "cli/cli.h"

static const char help[] =
        "NAME\n"
        "    agentiso image - list, build and import base images\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso [--config FILE] image list [--json]\n"
        "    agentiso [--config FILE] image build [NAME]\n"
        "    agentiso [--config FILE] image import NAME ROOTFS.tar[.gz|.xz|.zst]\n"
        "\n"
        "DESCRIPTION\n"
        "    A base image is the root file system that workspaces start from; it is never written to.\n"
        "\n"
        "    list     the images that are there\n"
        "    build    makes the boot files (kernel and initramfs with the guest agent) and the image NAME, or the\n"
        "             configured default (debian-dev), from their recipes. What is up to date is not built again.\n"
        "             Needs a network and mmdebstrap, but not root.\n"
        "    import   makes the boot files, where they are missing, and the image NAME of any Linux root file\n"
        "             system, e.g. of Alpine's minirootfs\n"
        "\n"
        "    What a workspace uses is not changed by building or importing its image again.\n"
        "\n"
        "OPTIONS\n"
        "    --json          list as JSON\n"
        "    --config FILE   read this configuration\n"
        "    -h, --help      print this text\n"
        "\n"
        "EXIT STATUS\n"
        "    0  done\n"
        "    1  failed\n"
        "    2  wrong usage\n"
        "\n"
        "EXAMPLES\n"
        "    agentiso image build\n"
        "    agentiso image import alpine alpine-minirootfs-3.22.0-x86_64.tar.gz\n";

static json_t *image_json(const struct image *i) {
        return json_pack("{s:s, s:s, s:s*, s:s*, s:s*, s:I, s:I, s:I}", "name", i->name, "path", i->path, "key", i->key,
                         "source", i->source, "created_at", i->created_at, "virtual_bytes",
                         (json_int_t) i->virtual_bytes, "used_bytes", (json_int_t) i->used_bytes, "min_disk_gb",
                         (json_int_t) i->min_disk_gb);
}

static int list_json(const struct image_list *list) {
        _cleanup_json_ json_t *images = json_array();

        for (size_t i = 0; i < list->n; i++)
                if (json_push(images, image_json(&list->v[i])) < 0)
                        return CLI_FAILED;
        _cleanup_json_ json_t *doc = json_pack("{s:O}", "images", images);
        return doc ? cli_print_json(doc, JSON_INDENT(2)) : CLI_FAILED;
}

static int list_table(const struct image_list *list, const struct config *cfg) {
        char used[16], size[16];

        if (list->n == 0) {
                fprintf(stderr, "No base image below %s: run `agentiso image build`.\n", cfg->image_dir);
                return CLI_OK;
        }
        printf("%-24s %-10s %-10s %-24s %s\n", "NAME", "SIZE", "ON DISK", "CREATED", "SOURCE");
        for (size_t i = 0; i < list->n; i++) {
                const struct image *image = &list->v[i];
                printf("%-24s %-10s %-10s %-24s %s\n", image->name, size_text(image->virtual_bytes, size),
                       size_text(image->used_bytes, used), image->created_at ? image->created_at : "-",
                       image->source ? image->source : "-");
        }
        return cli_finish();
}

static int list(const struct config *cfg, bool json) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct image_list images = {0};

        if (image_list_read(cfg->image_dir, &images, &err) < 0)
                return cli_fail(&err);
        int status = json ? list_json(&images) : list_table(&images, cfg);
        image_list_clear(&images);
        return status;
}

/* Runs a recipe in the foreground; it prints what it does. It is in our process group, so that Ctrl-C reaches it. */
static int run_recipe(const char *recipes, const char *name, char *const *args, struct error *err) {
        static const struct fd_map fds[] = {{1, 1}, {2, 2}};
        _cleanup_free_ char *path = path_join(recipes, name);
        _cleanup_strv_ struct strv argv = {0};
        struct op op = OP_INIT_NEVER; /* whoever waits for it is at the terminal */
        struct process_result result;
        pid_t pid;

        int r = path ? strv_add(&argv, path) : -ENOMEM;
        for (; r >= 0 && *args; args++)
                r = strv_add(&argv, *args);
        if (r < 0)
                return error_set_errno(err, r, "cannot run %s", name);
        const struct spawn spawn = {.argv = argv.v, .fds = fds, .n_fds = ARRAY_SIZE(fds)};
        r = process_spawn(&spawn, &pid, err);
        if (r < 0)
                return r;
        r = process_wait(pid, &op, &result);
        if (r < 0)
                return error_set_errno(err, r, "cannot wait for %s", name);
        if (result.signal)
                return error_set(err, ERROR_INTERNAL, "%s was ended by signal %d", name, result.signal);
        if (result.exit_code != 0)
                return error_set(err, ERROR_INTERNAL, "%s failed with exit code %d", name, result.exit_code);
        return 0;
}

static int build_boot(const struct config *cfg, const char *recipes, struct error *err) {
        _cleanup_free_ char *agent = NULL;

        int r = guest_agent_path(&agent, err);
        if (r < 0)
                return r;
        char *args[] = {cfg->image_dir, agent, NULL};
        return run_recipe(recipes, "build-boot", args, err);
}

static int build(const struct config *cfg, char *name, struct error *err) {
        _cleanup_free_ char *recipes = NULL;
        char *args[] = {cfg->image_dir, name, NULL};

        int r = recipes_path(&recipes, err);
        if (r >= 0)
                r = build_boot(cfg, recipes, err);
        return r < 0 ? r : run_recipe(recipes, "build-image", args, err);
}

static int import(const struct config *cfg, char *name, const char *archive, struct error *err) {
        _cleanup_free_ char *recipes = NULL, *tar = realpath(archive, NULL);

        if (!tar)
                return error_set_errno(err, errno, "cannot open %s", archive);
        int r = recipes_path(&recipes, err);
        if (r >= 0)
                r = build_boot(cfg, recipes, err);
        char *args[] = {cfg->image_dir, name, tar, NULL};
        return r < 0 ? r : run_recipe(recipes, "import-image", args, err);
}

/* The recipes make files that others may not change, but root's QEMU under another user must read. */
static int make(const struct config *cfg, char *name, const char *archive) {
        _cleanup_error_ struct error err = ERROR_INIT;

        if (!image_name_valid(name))
                return cli_usage(&cmd_image, "'%s' is no name of an image", name);
        umask(022);
        int r = mkdir_p(cfg->image_dir, 0755);
        if (r < 0)
                error_set_errno(&err, r, "cannot make the image directory %s", cfg->image_dir);
        else
                r = archive ? import(cfg, name, archive, &err) : build(cfg, name, &err);
        return r < 0 ? cli_fail(&err) : CLI_OK;
}

static int run(struct cli *cli, int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, {"json", no_argument, NULL, 'j'}, CLI_OPTIONS_END};
        _cleanup_config_ struct config cfg = {0};
        bool json = false;
        int opt, status;

        while ((opt = cli_option(cli, &cmd_image, argc, argv, "h", options, &status)) != -1) {
                if (opt == CLI_OPTION_EXIT)
                        return status;
                json = true;
        }
        argc -= optind;
        argv += optind;
        if (argc == 0)
                return cli_usage(&cmd_image, "say list, build or import");
        bool is_list = str_eq(argv[0], "list"), is_build = str_eq(argv[0], "build");
        if (!is_list && !is_build && !str_eq(argv[0], "import"))
                return cli_usage(&cmd_image, "unknown action '%s': list, build or import", argv[0]);
        if (is_list ? argc != 1 : is_build ? argc > 2 : argc != 3)
                return cli_usage(&cmd_image, "%s: wrong number of arguments", argv[0]);
        if (json && !is_list)
                return cli_usage(&cmd_image, "--json goes with list only");
        if (cli_config(cli, &cfg) < 0)
                return CLI_FAILED;
        if (is_list)
                return list(&cfg, json);
        return make(&cfg, argc > 1 ? argv[1] : cfg.default_image, argc > 2 ? argv[2] : NULL);
}

const struct command cmd_image = {"image", "list, build and import base images", help, run};
