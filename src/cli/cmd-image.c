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
#include "cli/client.h"
#include "cli/templates.h"

/* The largest number that an option takes; the daemon knows what is possible. */
#define NUMBER_MAX 1048576u

static const char help[] =
        "NAME\n"
        "    agentiso image - list, build, import and warm base images\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso [--config FILE] image list [--json]\n"
        "    agentiso [--config FILE] image build [NAME]\n"
        "    agentiso [--config FILE] image import NAME ROOTFS.tar[.gz|.xz|.zst]\n"
        "    agentiso [--config FILE] image warm [--image NAME] [--vcpus N] [--memory-mb N]\n"
        "\n"
        "DESCRIPTION\n"
        "    A base image is the root file system that workspaces start from; it is never written to.\n"
        "\n"
        "    list     the images that are there, and while a daemon runs the templates\n"
        "    build    makes the boot files (kernel and initramfs with the guest agent) and the image NAME, or the\n"
        "             configured default (debian-dev), from their recipes. What is up to date is not built again.\n"
        "             Needs a network and mmdebstrap, but not root.\n"
        "    import   makes the boot files, where they are missing, and the image NAME of any Linux root file\n"
        "             system, e.g. of Alpine's minirootfs\n"
        "    warm     makes the templates of workspaces of this size and waits for them. A template is the memory of "
        "a\n"
        "             machine that has booted: workspaces begin with it instead of booting. Without this they are "
        "made\n"
        "             in the background after the first workspace that needs them. Starts a daemon if none runs.\n"
        "\n"
        "    What a workspace uses is not changed by building or importing its image again.\n"
        "\n"
        "OPTIONS\n"
        "    --json          list as JSON: {\"images\": [...]}, and \"templates\" while a daemon runs\n"
        "    --image NAME    warm: for this image (configured default: debian-dev)\n"
        "    --vcpus N       warm: for workspaces with so many CPUs (configured default: 2)\n"
        "    --memory-mb N   warm: for workspaces with so much memory, in MiB (configured default: 512)\n"
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
        "    agentiso image import alpine alpine-minirootfs-3.22.0-x86_64.tar.gz\n"
        "    agentiso image warm --memory-mb 2048\n";

static json_t *image_json(const struct image *i) {
        return json_pack("{s:s, s:s, s:s*, s:s*, s:s*, s:I, s:I, s:I}", "name", i->name, "path", i->path, "key", i->key,
                         "source", i->source, "created_at", i->created_at, "virtual_bytes",
                         (json_int_t) i->virtual_bytes, "used_bytes", (json_int_t) i->used_bytes, "min_disk_gb",
                         (json_int_t) i->min_disk_gb);
}

/* templates NULL: no daemon runs. */
static int list_json(const struct image_list *list, json_t *templates) {
        _cleanup_json_ json_t *images = json_array();

        for (size_t i = 0; i < list->n; i++)
                if (json_push(images, image_json(&list->v[i])) < 0)
                        return CLI_FAILED;
        _cleanup_json_ json_t *doc = json_pack("{s:O, s:O*}", "images", images, "templates", templates);
        return doc ? cli_print_json(doc, JSON_INDENT(2)) : CLI_FAILED;
}

static int list_table(const struct image_list *list, const json_t *templates, const struct config *cfg) {
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
        if (json_array_size(templates) > 0) {
                putchar('\n');
                templates_print(templates);
        }
        return cli_finish();
}

static int list(const struct config *cfg, bool json) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *templates = NULL;
        struct image_list images = {0};

        int r = templates_read(cfg, &templates, &err);
        if (r < 0 && !client_no_daemon(r) && err.code != ERROR_UNSUPPORTED)
                return cli_fail(&err);
        if (image_list_read(cfg->image_dir, &images, &err) < 0)
                return cli_fail(&err);
        int status = json ? list_json(&images, templates) : list_table(&images, templates, cfg);
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

/* What the command line says. */
struct request {
        bool json, shaped;
        struct templates_shape shape;
};

static int read_number(const char *text, const char *option, uint64_t *ret) {
        if (parse_u64(text, ret) >= 0 && *ret > 0 && *ret <= NUMBER_MAX)
                return CLI_OK;
        return cli_usage(&cmd_image, "--%s: '%s' is no number from 1 to %u", option, text, NUMBER_MAX);
}

/* CLI_OK, or *ret_exit: the command ends with the status returned. */
static int read_options(struct cli *cli, int argc, char **argv, struct request *rq, bool *ret_exit) {
        static const struct option options[] = {CLI_OPTIONS,
                                                {"json", no_argument, NULL, 'j'},
                                                {"image", required_argument, NULL, 'i'},
                                                {"vcpus", required_argument, NULL, 'v'},
                                                {"memory-mb", required_argument, NULL, 'm'},
                                                CLI_OPTIONS_END};
        int opt, status = CLI_OK;

        while (status == CLI_OK && (opt = cli_option(cli, &cmd_image, argc, argv, "h", options, &status)) != -1) {
                if (opt == CLI_OPTION_EXIT) {
                        *ret_exit = true;
                        return status;
                }
                rq->json = rq->json || opt == 'j';
                rq->shaped = rq->shaped || opt != 'j';
                if (opt == 'i')
                        rq->shape.image = optarg;
                else if (opt == 'v')
                        status = read_number(optarg, "vcpus", &rq->shape.vcpus);
                else if (opt == 'm')
                        status = read_number(optarg, "memory-mb", &rq->shape.memory_mb);
        }
        *ret_exit = status != CLI_OK;
        return status;
}

static const struct action {
        const char *name;
        int min_args, max_args;
        bool json, shaped; /* options that go with it */
} actions[] = {
        {"list", 0, 0, true, false},
        {"build", 0, 1, false, false},
        {"import", 2, 2, false, false},
        {"warm", 0, 0, false, true},
};

static const struct action *find_action(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
                if (str_eq(actions[i].name, name))
                        return &actions[i];
        return NULL;
}

static int check_usage(const struct action *a, const struct request *rq, int n_args) {
        if (n_args < a->min_args || n_args > a->max_args)
                return cli_usage(&cmd_image, "%s: wrong number of arguments", a->name);
        if (rq->json && !a->json)
                return cli_usage(&cmd_image, "--json goes with list only");
        if (rq->shaped && !a->shaped)
                return cli_usage(&cmd_image, "--image, --vcpus and --memory-mb go with warm only");
        if (rq->shape.image && !image_name_valid(rq->shape.image))
                return cli_usage(&cmd_image, "'%s' is no name of an image", rq->shape.image);
        return CLI_OK;
}

static int run(struct cli *cli, int argc, char **argv) {
        _cleanup_config_ struct config cfg = {0};
        struct request rq = {0};
        bool ends = false;

        int status = read_options(cli, argc, argv, &rq, &ends);
        if (ends)
                return status;
        argc -= optind;
        argv += optind;
        if (argc == 0)
                return cli_usage(&cmd_image, "say list, build, import or warm");
        const struct action *a = find_action(argv[0]);
        if (!a)
                return cli_usage(&cmd_image, "unknown action '%s': list, build, import or warm", argv[0]);
        status = check_usage(a, &rq, argc - 1);
        if (status != CLI_OK)
                return status;
        if (cli_config(cli, &cfg) < 0)
                return CLI_FAILED;
        if (a->json)
                return list(&cfg, rq.json);
        if (a->shaped)
                return templates_warm(&cfg, &rq.shape);
        return make(&cfg, argc > 1 ? argv[1] : cfg.default_image, argc > 2 ? argv[2] : NULL);
}

const struct command cmd_image = {"image", "list, build, import and warm base images", help, run};
