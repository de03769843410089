/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "base/file.h"
#include "base/str.h"

int cli_option(struct cli *cli, const struct command *cmd, int argc, char **argv, const char *shorts,
               const struct option *options, int *ret_status) {
        for (;;) {
                int opt = getopt_long(argc, argv, shorts, options, NULL);
                switch (opt) {
                case 'c':
                        cli->config_path = optarg;
                        break;
                case 'h':
                        fputs(cmd->help, stdout);
                        *ret_status = cli_finish();
                        return CLI_OPTION_EXIT;
                case '?':
                        fprintf(stderr, "Try `agentiso %s --help`.\n", cmd->name);
                        *ret_status = CLI_USAGE;
                        return CLI_OPTION_EXIT;
                default:
                        return opt;
                }
        }
}

int cli_usage(const struct command *cmd, const char *fmt, ...) {
        va_list ap;

        fprintf(stderr, "agentiso %s: ", cmd->name);
        va_start(ap, fmt);
        vfprintf(stderr, fmt, ap);
        va_end(ap);
        fprintf(stderr, "\nTry `agentiso %s --help`.\n", cmd->name);
        return CLI_USAGE;
}

int cli_fail(const struct error *err) {
        fprintf(stderr, "agentiso: %s\n", error_message(err));
        if (err->hint)
                fprintf(stderr, "%s\n", err->hint);
        return CLI_FAILED;
}

int cli_config(const struct cli *cli, struct config *ret) {
        _cleanup_error_ struct error err = ERROR_INIT;

        int r = config_load(cli->config_path, ret, &err);
        if (r < 0)
                cli_fail(&err);
        return r;
}

int cli_finish(void) {
        if (fflush(stdout) == 0 && !ferror(stdout))
                return CLI_OK;
        fprintf(stderr, "agentiso: cannot write to standard output: %s\n", strerror(errno));
        return CLI_FAILED;
}

int cli_print_json(const json_t *value, size_t flags) {
        json_dumpf(value, stdout, flags | JSON_ENCODE_ANY);
        putchar('\n');
        return cli_finish();
}

/* Cuts an absolute path to its folder. */
static void cut_to_folder(char *path) {
        char *slash = strrchr(path, '/');

        if (slash)
                *slash = 0;
}

/* The first of the candidates, which are relative to the folder of this program, that is there. */
static int find_beside(const char *const *candidates, size_t n, char **ret) {
        _cleanup_free_ char *self = NULL;

        int r = self_path(&self);
        if (!self)
                return r < 0 ? r : -ENOENT;
        cut_to_folder(self);
        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *path = path_join(self, candidates[i]);
                if (!path)
                        return -ENOMEM;
                char *real = realpath(path, NULL);
                if (real) {
                        *ret = real;
                        return 0;
                }
        }
        return -ENOENT;
}

int guest_agent_path(char **ret, struct error *err) {
        static const char *const candidates[] = {"agentiso-guest", "src/guest/agentiso-guest",
                                                 "../libexec/agentiso/agentiso-guest"};

        int r = find_beside(candidates, ARRAY_SIZE(candidates), ret);
        if (r == -ENOENT) {
                error_set(err, ERROR_NOT_FOUND, "the program agentiso-guest is not there");
                error_hint(err, "Build or install agentiso as a whole: `meson compile` or `meson install`.");
        }
        return r;
}

int recipes_path(char **ret, struct error *err) {
        /* The second is the source tree seen from its build folder: build/agentiso and images/. */
        static const char *const candidates[] = {"../libexec/agentiso/images/build-image", "../images/build-image"};
        const char *dir = getenv("AGENTISO_IMAGES_DIR");

        if (!str_empty(dir)) {
                *ret = realpath(dir, NULL);
                return *ret ? 0 : error_set_errno(err, errno, "AGENTISO_IMAGES_DIR is %s", dir);
        }
        int r = find_beside(candidates, ARRAY_SIZE(candidates), ret);
        if (r == 0) {
                cut_to_folder(*ret);
        } else if (r == -ENOENT) {
                error_set(err, ERROR_NOT_FOUND, "the recipes of the images are not there");
                error_hint(err, "Set AGENTISO_IMAGES_DIR to the folder images/ of the source tree.");
        }
        return r;
}

const char *size_text(uint64_t bytes, char *buf) {
        static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
        double value = (double) bytes;
        size_t unit = 0;

        for (; value >= 1024 && unit < ARRAY_SIZE(units) - 1; unit++)
                value /= 1024;
        snprintf(buf, 16, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
        return buf;
}

const char *duration_text(int64_t secs, char *buf) {
        if (secs < 60)
                snprintf(buf, 24, "%" PRId64 "s", secs);
        else if (secs < 3600)
                snprintf(buf, 24, "%" PRId64 "m %" PRId64 "s", secs / 60, secs % 60);
        else if (secs < 86400)
                snprintf(buf, 24, "%" PRId64 "h %" PRId64 "m", secs / 3600, secs / 60 % 60);
        else
                snprintf(buf, 24, "%" PRId64 "d %" PRId64 "h", secs / 86400, secs / 3600 % 24);
        return buf;
}
