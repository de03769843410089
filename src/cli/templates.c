/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/templates.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/client.h"

#define ERASE_LINE "\r\033[K"
#define WARM "agentiso/warm"

static int64_t number_of(const json_t *object, const char *key) {
        return json_integer_value(json_object_get(object, key));
}

void templates_print(const json_t *templates) {
        char memory[16], bytes[16];
        size_t i;
        json_t *t;

        printf("%-24s %-5s %-10s %-7s %-10s %s\n", "TEMPLATE FOR", "CPUS", "MEMORY", "DISK", "ON DISK", "LAST USED");
        json_array_foreach (templates, i, t) {
                const char *image = json_string_value(json_object_get(t, "base_image"));
                const char *used = json_string_value(json_object_get(t, "used_at"));
                int64_t disk_gb = number_of(t, "disk_gb");
                _cleanup_free_ char *disk = disk_gb > 0 ? str_printf("%" PRId64 " GiB", disk_gb) : NULL;

                printf("%-24s %-5" PRId64 " %-10s %-7s %-10s %s\n", image ? image : "any disk", number_of(t, "vcpus"),
                       size_text((uint64_t) number_of(t, "memory_mb") << 20, memory), disk ? disk : "-",
                       size_text((uint64_t) number_of(t, "bytes"), bytes), used ? used : "-");
        }
}

int templates_read(const struct config *cfg, json_t **ret, struct error *err) {
        _cleanup_client_ struct client *client = NULL;
        _cleanup_json_ json_t *state = NULL;
        struct op op = op_timeout(CLIENT_MS);

        int r = client_open(cfg, &op, &client, err);
        if (r >= 0)
                r = client_ask(client, "agentiso/state", json_object(), &op, &state, err);
        if (r < 0)
                return r;
        json_t *templates = json_object_get(state, "templates");
        if (!json_is_array(templates))
                return error_set(err, ERROR_INTERNAL, "agentiso/state gave no templates");
        *ret = json_incref(templates);
        return 0;
}

static json_t *shape_json(const struct templates_shape *shape) {
        _cleanup_json_ json_t *args = json_pack("{s:s*}", "base_image", shape->image);

        if (!args || (shape->vcpus > 0 && json_put(args, "vcpus", json_integer((json_int_t) shape->vcpus)) < 0) ||
            (shape->memory_mb > 0 && json_put(args, "memory_mb", json_integer((json_int_t) shape->memory_mb)) < 0))
                return NULL;
        return TAKE_PTR(args);
}

/* One line of a terminal that is written anew each time. What has nothing to tell but the name of the method is passed
 * over. */
static void show_progress(void *arg, const char *message) {
        (void) arg;
        if (!str_starts_with(message, WARM))
                fprintf(stderr, ERASE_LINE "%s", message);
}

static int say_made(const json_t *result) {
        const json_t *made = json_object_get(result, "templates");
        int64_t built = number_of(result, "built");
        double seconds = (double) number_of(result, "elapsed_ms") / (double) MSEC_PER_SEC;

        if (built == 0) {
                puts("the templates are there already");
                return cli_finish();
        }
        printf("%" PRId64 " template%s made in %.1f s\n", built, built == 1 ? "" : "s", seconds);
        if (json_array_size(made) > 0)
                templates_print(made);
        return cli_finish();
}

int templates_warm(const struct config *cfg, const struct templates_shape *shape) {
        _cleanup_client_ struct client *client = NULL;
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *result = NULL;
        struct op op = op_timeout(TEMPLATES_WARM_MS);
        bool terminal = isatty(STDERR_FILENO);

        if (terminal) {
                op.progress = show_progress;
                op_progress(&op, "making templates");
        }
        int r = client_open_or_start(cfg, &op, &client, &err);
        if (r >= 0)
                r = client_ask(client, WARM, shape_json(shape), &op, &result, &err);
        if (terminal)
                fputs(ERASE_LINE, stderr);
        return r < 0 ? cli_fail(&err) : say_made(result);
}
