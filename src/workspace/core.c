/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/file.h"
#include "base/io.h"
#include "workspace/core-internal.h"

/* As in vm.h. A /30 would have no address left for a workspace, anything larger than a /8 would repeat MACs. */
#define PREFIX_LEN_MIN 8
#define PREFIX_LEN_MAX 29

static int check_network(const struct core_config *cfg, struct error *err) {
        char text[16];
        address_text(cfg->network, text);
        if (cfg->prefix_len < PREFIX_LEN_MIN || cfg->prefix_len > PREFIX_LEN_MAX) {
                int r = error_set(err, ERROR_INVALID_ARGUMENT, "Network %s/%u: the prefix must be %d to %d", text,
                                  cfg->prefix_len, PREFIX_LEN_MIN, PREFIX_LEN_MAX);
                error_hint(err, "Set network_cidr, for example to 10.99.0.0/16.");
                return r;
        }
        uint32_t host_mask = ((uint32_t) 1 << (32 - cfg->prefix_len)) - 1;
        if (cfg->network & host_mask) {
                int r = error_set(err, ERROR_INVALID_ARGUMENT, "Network %s/%u: the address has host bits set", text,
                                  cfg->prefix_len);
                address_text(cfg->network & ~host_mask, text);
                error_hint(err, "Set network_cidr to %s/%u.", text, cfg->prefix_len);
                return r;
        }
        return 0;
}

/* Made absolute: QEMU, whoever looks for it by its command line and whoever looks for the memory that it maps must all
 * mean the same folder. */
static int make_folder(char **path, struct error *err) {
        int r = mkdir_p(*path, 0700);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make %s", *path);
        char *absolute = realpath(*path, NULL);
        if (!absolute)
                return error_set_errno(err, errno, "Cannot open %s", *path);
        free(*path);
        *path = absolute;
        return 0;
}

static int copy_config(struct core *core, const struct core_config *cfg, struct error *err) {
        core->cfg = *cfg;
        core->vms_dir = path_join(cfg->state_dir, "vms");
        core->snapshots_dir = path_join(cfg->state_dir, "snapshots");
        core->image_dir = strdup(cfg->image_dir);
        core->default_image = strdup(cfg->default_image);
        if (cfg->transfer.dir)
                core->transfer_dir = strdup(cfg->transfer.dir);
        if (!core->vms_dir || !core->snapshots_dir || !core->image_dir || !core->default_image ||
            (cfg->transfer.dir && !core->transfer_dir))
                return error_set_errno(err, ENOMEM, "Cannot open the workspaces");
        core->cfg.state_dir = NULL;
        core->cfg.image_dir = core->image_dir;
        core->cfg.default_image = core->default_image;
        core->cfg.transfer.dir = core->transfer_dir;

        int r = make_folder(&core->vms_dir, err);
        return r < 0 ? r : make_folder(&core->snapshots_dir, err);
}

static int load(struct core *core, struct error *err) {
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        int r = db_ws_list(core->db, &rows, err);
        if (r < 0)
                return r;
        LOCK(&core->lock);
        for (size_t i = 0; i < rows.n; i++) {
                struct workspace *ws = NULL;
                r = workspace_new(core, &rows.v[i], false, &ws);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot load the workspaces");
                registry_add_locked(core, ws);
                ws->refs--; /* the registry's is the only one */
        }
        return 0;
}

int core_open(const struct core_config *cfg, struct db *db, struct storage *storage, const struct platform *platform,
              struct core **ret, struct error *err) {
        _cleanup_(core_closep) struct core *core = calloc(1, sizeof(*core));
        if (!core)
                return error_set_errno(err, ENOMEM, "Cannot open the workspaces");
        pthread_mutex_init(&core->snap_lock, NULL);
        pthread_mutex_init(&core->lock, NULL);
        cond_init(&core->changed);
        cond_init(&core->reap);
        core->db = db;
        core->storage = storage;
        core->platform = platform;

        int r = check_network(cfg, err);
        if (r >= 0)
                r = copy_config(core, cfg, err);
        if (r >= 0)
                r = load(core, err);
        if (r >= 0)
                r = snapshots_load(core, err);
        if (r >= 0)
                r = core_forwards_open(core, err);
        if (r >= 0)
                r = tidy_open(core, err);
        if (r >= 0)
                r = templates_open(core, err);
        if (r >= 0)
                r = pool_open(core, err);
        if (r < 0)
                return r;
        r = thread_start(&core->reaper, "reaper", reaper_main, core);
        if (r < 0)
                return error_set_errno(err, r, "Cannot start a thread");
        core->has_reaper = true;
        *ret = TAKE_PTR(core);
        return 0;
}

bool core_has_machines(struct core *core) {
        LOCK(&core->lock);
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (ws->row.state != WS_STOPPED)
                        return true;
        return false;
}

static void stop_reaper(struct core *core) {
        {
                LOCK(&core->lock);
                core->closing = true;
                pthread_cond_signal(&core->reap);
        }
        if (core->has_reaper)
                pthread_join(core->reaper, NULL);
}

void core_close(struct core *core) {
        if (!core)
                return;
        pool_stop(core);
        templates_close(core); /* wakes the pool */
        pool_close(core);
        stop_reaper(core);
        tidy_close(core);
        core_forwards_close(core);
        while (core->first) {
                struct workspace *ws = core->first;
                vm_unref(TAKE_PTR(ws->vm));
                registry_remove(ws);
        }
        snapshots_free(core);
        while (core->owners) {
                struct owner *o = core->owners;
                core->owners = o->next;
                free(o);
        }
        pthread_cond_destroy(&core->changed);
        pthread_cond_destroy(&core->reap);
        pthread_mutex_destroy(&core->lock);
        pthread_mutex_destroy(&core->snap_lock);
        free(core->snapshots_dir);
        free(core->vms_dir);
        free(core->image_dir);
        free(core->default_image);
        free(core->transfer_dir);
        free(core);
}

void core_forward_bind(const struct core *core, char ret[16]) {
        address_text(core->cfg.forward_bind, ret);
}

const struct core_transfer *core_transfer(const struct core *core) {
        return &core->cfg.transfer;
}
