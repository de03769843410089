/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/engine.h"

#include "base/file.h"
#include "daemon/state-dir.h"

static int get_platform(void *arg, const struct op *op, const struct platform **ret, struct error *err) {
        return probe_get(arg, op, ret, err);
}

static int open_network(struct engine *e, const struct config *cfg, struct error *err) {
        _cleanup_free_ char *dir = path_join(cfg->state_dir, "net"), *program = NULL;
        struct network_range exceptions[NETWORK_EXCEPTIONS_MAX];
        struct network_config net = {
                .dir = dir,
                .exceptions = exceptions,
                .n_exceptions = config_exceptions(cfg, exceptions),
                .user_only = str_eq(cfg->network_mode, "user"),
                .required = str_eq(cfg->network_mode, "namespace"),
        };

        int r = dir ? self_path(&program) : -ENOMEM;
        if (r < 0)
                return error_set_errno(err, r, "cannot open the network");
        net.program = program;
        config_network(cfg, &net.network, &net.prefix_len);
        return network_open(&net, &e->net, err);
}

static int open_core(struct engine *e, const struct config *cfg, struct error *err) {
        struct core_config core = {
                .state_dir = cfg->state_dir,
                .image_dir = cfg->image_dir,
                .default_image = cfg->default_image,
                .default_vcpus = (unsigned) cfg->default_vcpus,
                .default_memory_mb = (unsigned) cfg->default_memory_mb,
                .default_disk_gb = (unsigned) cfg->default_disk_gb,
                .limits =
                        {
                                .max_vcpus = (unsigned) cfg->max_vcpus,
                                .max_memory_mb = (unsigned) cfg->max_memory_mb,
                                .max_disk_gb = (unsigned) cfg->max_disk_gb,
                                .max_workspaces = (unsigned) cfg->max_workspaces,
                        },
                .transfer =
                        {
                                .dir = cfg->transfer_dir,
                                .max_bytes = (uint64_t) cfg->max_transfer_gb << 30,
                                .reserve_bytes = (uint64_t) cfg->reserve_mb << 20,
                        },
                .pool =
                        {
                                .size = (unsigned) cfg->pool_size,
                                .memory_mb = (unsigned) cfg->pool_memory_mb,
                                .min_free_mb = (unsigned) cfg->pool_min_free_mb,
                        },
                .max_snapshots = (unsigned) cfg->max_snapshots,
                .templates_bytes = (uint64_t) cfg->max_templates_gb << 30,
                .reserve_bytes = (uint64_t) cfg->reserve_mb << 20,
                .net = e->net,
                .forward_bind = config_bind(cfg),
                .default_allow_internet = cfg->default_allow_internet != 0,
                .boot_timeout_ms = cfg->boot_timeout_secs * MSEC_PER_SEC,
                .get_platform = get_platform,
                .get_platform_arg = e->probe,
        };

        config_network(cfg, &core.network, &core.prefix_len);
        return core_open(&core, e->db, e->storage, NULL, &e->core, err);
}

static int open_all(struct engine *e, const struct config *cfg, struct error *err) {
        _cleanup_free_ char *db = path_join(cfg->state_dir, "state.db");
        _cleanup_free_ char *disks = path_join(cfg->state_dir, "disks");

        if (!db || !disks)
                return -ENOMEM;
        int r = state_dir_prepare(cfg->state_dir, err);
        if (r >= 0)
                r = state_dir_lock(cfg->state_dir, &e->lock, err);
        if (r >= 0)
                r = db_open(db, &e->db, err);
        if (r >= 0)
                r = storage_open_qcow2(disks, (uint64_t) cfg->reserve_mb << 20, &e->storage, err);
        if (r >= 0)
                r = probe_new(cfg, &e->probe, err);
        if (r >= 0)
                r = open_network(e, cfg, err);
        return r < 0 ? r : open_core(e, cfg, err);
}

int engine_open(struct engine *e, const struct config *cfg, struct error *err) {
        *e = ENGINE_INIT;
        int r = open_all(e, cfg, err);
        if (r < 0) {
                if (!error_is_set(err))
                        error_set_errno(err, r, "cannot open the state directory %s", cfg->state_dir);
                engine_close(e);
        }
        return r;
}

void engine_close(struct engine *e) {
        bool idle = !e->core || !core_has_machines(e->core);

        if (e->core)
                core_close(e->core);
        network_close(e->net, idle);
        probe_free(e->probe);
        storage_close(e->storage);
        db_close(e->db);
        close_fd(e->lock); /* last: from here on the next daemon may start */
        *e = ENGINE_INIT;
}

void engine_abandon(struct engine *e) {
        *e = ENGINE_INIT;
}
