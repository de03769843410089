/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/log.h"
#include "workspace/core-internal.h"

#define GIB ((uint64_t) 1 << 30)
#define RANDOM_NAME_BYTES 4

/* What is asked for, with the defaults filled in. */
struct request {
        const char *name; /* NULL: to be made up */
        const char *base_image, *owner;
        unsigned vcpus, memory_mb, disk_gb;
        bool allow_internet;
        struct image *image; /* borrowed; filled in by check_request() */
};

static int check_name(const char *name, struct error *err) {
        int r = 0;
        if (!name_valid(name, WS_NAME_MAX, "._-")) {
                r = error_set(err, ERROR_INVALID_ARGUMENT, "\"%.*s\" cannot be the name of a workspace",
                              WS_NAME_MAX + 1, name);
                error_hint(err, "Use 1 to %d characters of A-Z, a-z, 0-9, '.', '_' and '-'.", WS_NAME_MAX);
        } else if (uuid_valid(name)) {
                r = error_set(err, ERROR_INVALID_ARGUMENT, "The name \"%s\" looks like a workspace's id", name);
                error_hint(err, "Choose a name that is not a UUID.");
        }
        return r;
}

static int check_range(const char *what, unsigned value, unsigned min, unsigned max, struct error *err) {
        int r = 0;
        if (value < min) {
                r = error_set(err, ERROR_INVALID_ARGUMENT, "%s %u is too small: the least is %u", what, value, min);
                error_hint(err, "Ask for %s between %u and %u.", what, min, max);
        } else if (value > max) {
                r = error_set(err, ERROR_QUOTA_EXCEEDED, "%s %u is above the limit of %u for one workspace", what,
                              value, max);
                error_hint(err, "Ask for %s %u or less; limits.%s in the configuration sets the limit.", what, max,
                           what);
        }
        return r;
}

/* The one place that says what workspaces cannot have yet for want of a network: guests get a card that reaches
 * nothing. */
static int check_internet(bool allow_internet, struct error *err) {
        if (!allow_internet)
                return 0;
        int r = error_set(err, ERROR_UNSUPPORTED,
                          "allow_internet is not possible: this server gives its workspaces no "
                          "network");
        error_hint(err, "Leave allow_internet out, and bring files in with file_write.");
        return r;
}

static int check_disk(const struct request *q, struct error *err) {
        unsigned min_gb = (unsigned) ((q->image->virtual_bytes + GIB - 1) / GIB);
        min_gb = MAX(min_gb, q->image->min_disk_gb);
        if (q->disk_gb >= min_gb)
                return 0;
        int r = error_set(err, ERROR_INVALID_ARGUMENT, "disk_gb %u is too small for the image \"%s\"", q->disk_gb,
                          q->image->name);
        error_hint(err, "Ask for disk_gb %u or more.", min_gb);
        return r;
}

static int check_request(struct core *core, const struct request *q, struct error *err) {
        const struct core_limits *limits = &core->cfg.limits;

        int r = q->name ? check_name(q->name, err) : 0;
        if (r >= 0)
                r = check_range("vcpus", q->vcpus, 1, limits->max_vcpus, err);
        if (r >= 0)
                r = check_range("memory_mb", q->memory_mb, WS_MEMORY_MB_MIN, limits->max_memory_mb, err);
        if (r >= 0)
                r = check_range("disk_gb", q->disk_gb, 1, limits->max_disk_gb, err);
        if (r >= 0)
                r = check_internet(q->allow_internet, err);
        if (r >= 0)
                r = image_find(core->cfg.image_dir, q->base_image, q->image, err);
        return r < 0 ? r : check_disk(q, err);
}

static int pick_name_locked(struct core *core, const char *wanted, char **ret, struct error *err) {
        for (int i = 0; !wanted && i < WS_NAME_TRIES; i++) {
                char hex[2 * RANDOM_NAME_BYTES + 1];
                int r = random_hex(hex, RANDOM_NAME_BYTES);
                _cleanup_free_ char *name = r < 0 ? NULL : str_printf("ws-%s", hex);
                if (!name)
                        return error_set_errno(err, r < 0 ? r : -ENOMEM, "Cannot make up a name");
                if (!registry_find_locked(core, name)) {
                        *ret = TAKE_PTR(name);
                        return 0;
                }
        }
        if (!wanted)
                return error_set(err, ERROR_CONFLICT, "Cannot make up a name that is free");

        struct workspace *other = registry_find_locked(core, wanted);
        if (other) {
                int r = error_set(err, ERROR_CONFLICT, "There is a workspace named \"%s\" already: %s (%s)", wanted,
                                  other->id, ws_state_name(other->row.state));
                error_hint(err, "Use that one, destroy it with workspace_destroy, or choose another name.");
                return r;
        }
        *ret = strdup(wanted);
        return *ret ? 0 : error_set_errno(err, ENOMEM, "Cannot make a workspace");
}

static int pick_address_locked(struct core *core, uint32_t *ret, struct error *err) {
        _cleanup_free_ uint32_t *used = calloc(core->n_workspaces + 1, sizeof(*used));
        if (!used)
                return error_set_errno(err, ENOMEM, "Cannot make a workspace");
        size_t n = 0;
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                used[n++] = ws->row.address;
        if (address_pick(core->cfg.network, core->cfg.prefix_len, used, n, ret) >= 0)
                return 0;
        char network[16];
        address_text(core->cfg.network, network);
        int r = error_set(err, ERROR_QUOTA_EXCEEDED, "All %u addresses of the network %s/%u are in use",
                          address_capacity(core->cfg.prefix_len), network, core->cfg.prefix_len);
        error_hint(err, "Destroy workspaces that are not needed, or configure a larger network_cidr.");
        return r;
}

static int check_count_locked(struct core *core, struct error *err) {
        unsigned max = core->cfg.limits.max_workspaces;
        if (core->n_workspaces < max)
                return 0;
        int r = error_set(err, ERROR_QUOTA_EXCEEDED, "There are %zu workspaces, and the limit is %u",
                          core->n_workspaces, max);
        error_hint(err, "Destroy one that is not needed (workspace_list, workspace_destroy); limits.workspaces in the "
                        "configuration sets the limit.");
        return r;
}

/* Fills a row: name and address are free at this moment, and the lock is held until they are in the registry. */
static int make_row_locked(struct core *core, const struct request *q, struct ws_row *row, struct error *err) {
        int r = check_count_locked(core, err);
        if (r >= 0)
                r = pick_name_locked(core, q->name, &row->name, err);
        if (r >= 0)
                r = pick_address_locked(core, &row->address, err);
        if (r < 0)
                return r;
        r = uuid_new(row->id);
        if (r >= 0)
                r = str_replace(&row->base_image, q->base_image);
        if (r >= 0)
                r = str_replace(&row->owner, q->owner);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make a workspace");
        address_mac(row->address, row->mac);
        row->state = WS_CREATING;
        row->vcpus = q->vcpus;
        row->memory_mb = q->memory_mb;
        row->disk_gb = q->disk_gb;
        row->allow_internet = q->allow_internet;
        row->created_ms = realtime_ms();
        return 0;
}

/* Reserves name, address and place, first in memory, then in the store. The workspace is claimed. */
static int reserve(struct core *core, const struct request *q, struct workspace **ret, struct error *err) {
        _cleanup_ws_row_ struct ws_row row = {0}, stored = {0};
        _cleanup_claim_ struct workspace *ws = NULL;
        {
                LOCK(&core->lock);
                int r = make_row_locked(core, q, &row, err);
                if (r < 0)
                        return r;
                r = ws_row_copy(&stored, &row);
                if (r >= 0)
                        r = workspace_new(core, &row, true, &ws);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot make a workspace");
                registry_add_locked(core, ws);
        }
        int r = db_ws_insert(core->db, &stored, err);
        if (r < 0) {
                registry_remove(ws);
                return r;
        }
        *ret = TAKE_PTR(ws);
        return 0;
}

static int build(struct workspace *ws, const struct request *q, const struct op *op, struct error *err) {
        if (mkdir(ws->dir, 0700) < 0)
                return error_set_errno(err, errno, "Cannot make the folder of the workspace");
        op_progress(op, "making the disk");
        int r = storage_create(ws->core->storage, ws->id, q->image, q->disk_gb * GIB, op, err);
        if (r >= 0)
                r = workspace_boot(ws, op, err);
        if (r < 0)
                return r;
        r = op_check(op);
        if (r < 0)
                return error_set_errno(err, r, "The creation was given up");
        return workspace_move(ws, WS_RUNNING, NULL, err);
}

int ws_create(struct core *core, const struct ws_create_args *args, const char *owner, const struct op *op,
              struct ws_view *ret, struct ws_started *ret_started, struct error *err) {
        int64_t begin = monotonic_ns();
        const struct core_config *cfg = &core->cfg;
        _cleanup_claim_ struct workspace *ws = NULL;
        _cleanup_image_ struct image image = {0};
        const struct request q = {
                .name = args->name,
                .base_image = args->base_image ? args->base_image : cfg->default_image,
                .owner = owner,
                .vcpus = args->vcpus ? args->vcpus : cfg->default_vcpus,
                .memory_mb = args->memory_mb ? args->memory_mb : cfg->default_memory_mb,
                .disk_gb = args->disk_gb ? args->disk_gb : cfg->default_disk_gb,
                .allow_internet = args->allow_internet,
                .image = &image,
        };

        int r = check_request(core, &q, err);
        if (r >= 0)
                r = reserve(core, &q, &ws, err);
        if (r < 0)
                return r;
        r = build(ws, &q, op, err);
        if (r >= 0)
                r = workspace_view(ws, owner, ret, err);
        if (r < 0) {
                _cleanup_error_ struct error undo = ERROR_INIT;
                /* It may be running already, and would be taken up again as such after a crash. */
                (void) workspace_move(ws, WS_DESTROYING, NULL, NULL);
                /* What stays behind keeps its row and is undone by whoever claims it next, or by the next start. */
                if (workspace_erase(ws, &undo) < 0)
                        log_warn("A failed creation is not undone yet", "workspace", ws->id, "error",
                                 error_message(&undo));
                return r;
        }
        *ret_started = (struct ws_started){
                .kind = WS_START_BOOT,
                .boot_time_ms = (monotonic_ns() - begin) / NSEC_PER_MSEC,
        };
        log_info("Workspace created", "workspace", ws->id, "name", ret->row.name, "ms",
                 LOG_NUM(ret_started->boot_time_ms));
        return 0;
}
