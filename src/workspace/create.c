/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/log.h"
#include "workspace/core-internal.h"

#define RANDOM_NAME_BYTES 4
#define ADDRESS_MS 5000 /* for an address to be free again */

int workspace_check_name(const char *name, struct error *err) {
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

int check_range(const char *what, unsigned value, unsigned min, unsigned max, struct error *err) {
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

static int check_disk(const struct birth *b, const struct image *image, struct error *err) {
        unsigned min_gb = (unsigned) ((image->virtual_bytes + GIB - 1) / GIB);
        min_gb = MAX(min_gb, image->min_disk_gb);
        if (b->disk_gb >= min_gb)
                return 0;
        int r = error_set(err, ERROR_INVALID_ARGUMENT, "disk_gb %u is too small for the image \"%s\"", b->disk_gb,
                          image->name);
        error_hint(err, "Ask for disk_gb %u or more.", min_gb);
        return r;
}

/* *image is filled in. */
static int check_request(struct core *core, const struct birth *b, const struct op *op, struct image *image,
                         struct error *err) {
        const struct core_limits *limits = &core->cfg.limits;

        int r = b->name ? workspace_check_name(b->name, err) : 0;
        if (r >= 0)
                r = check_range("vcpus", b->vcpus, 1, limits->max_vcpus, err);
        if (r >= 0)
                r = check_range("memory_mb", b->memory_mb, WS_MEMORY_MB_MIN, limits->max_memory_mb, err);
        if (r >= 0)
                r = check_range("disk_gb", b->disk_gb, 1, limits->max_disk_gb, err);
        if (r >= 0)
                r = core_check_policy(core, &b->policy, op, err);
        if (r >= 0)
                r = image_find(core->cfg.image_dir, b->base_image, image, err);
        return r < 0 ? r : check_disk(b, image, err);
}

static int pick_name_locked(struct core *core, const char *wanted, const char *prefix, char **ret, struct error *err) {
        for (int i = 0; !wanted && i < WS_NAME_TRIES; i++) {
                char hex[2 * RANDOM_NAME_BYTES + 1];
                int r = random_hex(hex, RANDOM_NAME_BYTES);
                _cleanup_free_ char *name = r < 0 ? NULL : str_printf("%s-%s", prefix, hex);
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
        size_t n = 0;
        _cleanup_free_ uint32_t *used = core_used_addresses_locked(core, 0, &n);
        if (!used)
                return error_set_errno(err, ENOMEM, "Cannot make a workspace");
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
static int make_row_locked(struct core *core, const struct birth *b, struct ws_row *row, struct error *err) {
        int r = check_count_locked(core, err);
        if (r >= 0)
                r = pick_name_locked(core, b->name, b->name_prefix, &row->name, err);
        if (r >= 0)
                r = pick_address_locked(core, &row->address, err);
        if (r < 0)
                return r;
        r = uuid_new(row->id);
        if (r >= 0)
                r = uuid_new(row->disk);
        if (r >= 0)
                r = str_replace(&row->allowed_ports, b->policy.allowed_ports);
        if (r >= 0)
                r = str_replace(&row->base_image, b->base_image);
        if (r >= 0)
                r = str_replace(&row->owner, b->owner);
        if (r >= 0 && b->origin) {
                memcpy(row->origin.workspace_id, b->origin->workspace_id, sizeof(row->origin.workspace_id));
                r = str_replace(&row->origin.workspace_name, b->origin->workspace_name);
                if (r >= 0)
                        r = str_replace(&row->origin.snapshot_name, b->origin->snapshot_name);
        }
        if (r < 0)
                return error_set_errno(err, r, "Cannot make a workspace");
        if (b->parent)
                (void) snprintf(row->parent, sizeof(row->parent), "%s", b->parent);
        address_mac(row->address, row->mac);
        row->state = WS_CREATING;
        row->vcpus = b->vcpus;
        row->memory_mb = b->memory_mb;
        row->disk_gb = b->disk_gb;
        row->allow_internet = b->policy.allow_internet;
        row->allow_inter_vm = b->policy.allow_inter_vm;
        row->pooled = b->pooled;
        row->created_ms = realtime_ms();
        return 0;
}

static bool is_full(struct core *core) {
        LOCK(&core->lock);
        return core->n_workspaces >= core->cfg.limits.max_workspaces;
}

/* In a small network the last addresses may be those of workspaces that have just gone. */
static void wait_for_address(struct core *core) {
        const deadline_t until = deadline_in_ms(ADDRESS_MS);
        LOCK(&core->lock);

        while (core_retired_locked(core) > 0 && !deadline_passed(until) &&
               core->n_workspaces + core_retired_locked(core) >= address_capacity(core->cfg.prefix_len))
                (void) cond_wait_until(&core->changed, &core->lock, until);
}

int workspace_reserve(struct core *core, const struct birth *b, struct workspace **ret, struct error *err) {
        _cleanup_ws_row_ struct ws_row row = {0}, stored = {0};
        _cleanup_claim_ struct workspace *ws = NULL;

        /* What nobody has yet makes room for what somebody wants. */
        while (!b->pooled && is_full(core) && pool_give_up(core))
                ;
        wait_for_address(core);
        {
                LOCK(&core->lock);
                int r = make_row_locked(core, b, &row, err);
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
                core_retire_address(core, ws->row.address);
                registry_remove(ws);
                if (policy_has_wishes(&b->policy)) /* they may be in force by now, with those of others */
                        core_policy_changed(core);
                return r;
        }
        if (mkdir(ws->dirs[0], 0700) < 0) {
                r = error_set_errno(err, errno, "Cannot make the folder of the workspace");
                workspace_abandon(ws);
                return r;
        }
        core_expect_cards(core);
        *ret = TAKE_PTR(ws);
        return 0;
}

void workspace_abandon(struct workspace *ws) {
        _cleanup_error_ struct error undo = ERROR_INIT;
        /* It may be running already, and would be taken up again as such after a crash. */
        (void) workspace_move(ws, WS_DESTROYING, NULL, NULL);
        /* What stays behind keeps its row and is undone by whoever claims it next, or by the next start. */
        if (workspace_erase(ws, &undo) < 0)
                log_warn("A failed creation is not undone yet", "workspace", ws->id, "error", error_message(&undo));
}

/* --- the machine --- */

static int edit_parent(struct ws_row *row, void *arg, struct error *err) {
        (void) snprintf(row->parent, sizeof(row->parent), "%s", (const char *) arg);
        return 0;
}

/* A disk that stands on the template's, with a machine that goes on where the template's stopped: nothing is mounted
 * any more. The row says so before the disk is made, so that the template stays as long. */
static int start_from_template(struct workspace *ws, struct snapshot *template, const struct op *op,
                               struct machine *ret, struct error *err) {
        _cleanup_start_files_ struct start_files files = {0};
        const struct machine_args args = {.from = &files, .record = true};

        int r = snapshot_files(template, true, op, &files, err);
        if (r >= 0)
                r = workspace_change(ws, edit_parent, template->id, err);
        if (r >= 0)
                r = storage_clone(ws->core->storage, template->id, ws->row.disk, ws->row.disk_gb * GIB, op, err);
        return r < 0 ? r : machine_start(ws, &args, op, ret, err);
}

/* -ENOENT: there is no template of this image, or it did not work and another way is worth a try. */
static int build_from_template(struct workspace *ws, const struct image *image, const struct op *op,
                               struct machine *ret, struct error *err) {
        struct core *core = ws->core;
        _cleanup_snapshot_ struct snapshot *template = NULL;
        _cleanup_error_ struct error why = ERROR_INIT;
        const struct platform *platform = NULL;
        char none[] = "";

        int r = core_platform(core, op, &platform, err);
        if (r < 0)
                return r;
        template = template_get(core, platform, image, ws->row.vcpus, ws->row.memory_mb, ws->row.disk_gb);
        if (!template)
                return -ENOENT;
        r = start_from_template(ws, template, op, ret, &why);
        if (r >= 0) {
                template_worked(template);
                return 0;
        }
        if (r == -ECANCELED || op_check(op) < 0 || why.code == ERROR_NO_SPACE) {
                error_move(err, &why);
                return r;
        }
        template_failed(template, &why);
        r = storage_destroy(core->storage, ws->row.disk, err);
        if (r >= 0)
                r = workspace_change(ws, edit_parent, none, err);
        return r < 0 ? r : -ENOENT;
}

int workspace_build(struct workspace *ws, const struct image *image, const struct op *op, enum ws_start_kind *ret,
                    struct error *err) {
        const struct machine_args args = {.record = true};
        struct machine machine;

        op_progress(op, "making the disk");
        int r = build_from_template(ws, image, op, &machine, err);
        *ret = WS_START_TEMPLATE;
        if (r == -ENOENT) {
                r = storage_create(ws->core->storage, ws->row.disk, image, ws->row.disk_gb * GIB, op, err);
                if (r >= 0)
                        r = workspace_bring_up(ws, &args, op, &machine, ret, err);
        }
        if (r < 0)
                return r;
        workspace_set_vm(ws, machine.vm);
        return workspace_born(ws, op, err);
}

int workspace_born(struct workspace *ws, const struct op *op, struct error *err) {
        int r = op_check(op);

        if (r < 0)
                return error_set_errno(err, r, "The creation was given up");
        if (ws->row.allow_internet)
                r = core_have_uplink(ws->core, op, err);
        /* Also those of whoever had the address before must be out of force. */
        if (r >= 0 && (!policy_is_default(&ws->row) || core_policy_pending(ws->core)))
                r = core_apply_policy(ws->core, op, err);
        return r < 0 ? r : workspace_move(ws, WS_RUNNING, NULL, err);
}

/* --- the call --- */

static int create(struct core *core, const struct birth *b, const struct op *op, struct workspace **ret,
                  enum ws_start_kind *ret_kind, struct error *err) {
        _cleanup_image_ struct image image = {0};

        int r = check_request(core, b, op, &image, err);
        if (r < 0)
                return r;
        *ret = pool_take(core, b, &image, op);
        *ret_kind = WS_START_POOL;
        if (*ret)
                return 0;
        r = workspace_reserve(core, b, ret, err);
        return r < 0 ? r : workspace_build(*ret, &image, op, ret_kind, err);
}

int ws_create(struct core *core, const struct ws_create_args *args, const char *owner, const struct op *op,
              struct ws_view *ret, struct ws_started *ret_started, struct error *err) {
        int64_t begin = monotonic_ns();
        const struct core_config *cfg = &core->cfg;
        _cleanup_claim_ struct workspace *ws = NULL;
        enum ws_start_kind kind = WS_START_BOOT;
        const struct birth birth = {
                .name = args->name,
                .name_prefix = "ws",
                .base_image = args->base_image ? args->base_image : cfg->default_image,
                .owner = owner,
                .vcpus = args->vcpus ? args->vcpus : cfg->default_vcpus,
                .memory_mb = args->memory_mb ? args->memory_mb : cfg->default_memory_mb,
                .disk_gb = args->disk_gb ? args->disk_gb : cfg->default_disk_gb,
                .policy.allow_internet = args->allow_internet ? *args->allow_internet : cfg->default_allow_internet,
        };

        pool_want(core);
        foreground_begin(core);
        int r = create(core, &birth, op, &ws, &kind, err);
        if (r >= 0)
                r = workspace_view(ws, owner, ret, err);
        foreground_end(core);
        pool_wake(core);
        if (r < 0) {
                if (ws)
                        workspace_abandon(ws);
                return r;
        }
        *ret_started = (struct ws_started){
                .kind = kind,
                .boot_time_ms = (monotonic_ns() - begin) / NSEC_PER_MSEC,
        };
        log_info("Workspace created", "workspace", ws->id, "name", ret->row.name, "start", ws_start_kind_name(kind),
                 "ms", LOG_NUM(ret_started->boot_time_ms));
        return 0;
}
