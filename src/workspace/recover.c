/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start-up after a crash, a kill or an orderly end: all three look the same from here.
 *
 * What the store says a workspace was doing decides. Never acknowledged: undone. Promised to go away: finished.
 * Running: taken up again, without asking the guest anything, so that one that is slow holds up nobody. The intent is
 * in the store before anything is made and the row goes last, so a disk or a folder without a row is not ours any more
 * and is removed; except when the store has not a single row, which looks like a lost store and not like garbage.
 */
#include <dirent.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "workspace/snapshot.h"

#define LOST_WITH_DAEMON "The VM ended while the daemon was not running"
#define CUT_SHORT "The daemon ended while the workspace was being started"

/* The QEMU of a workspace: as recorded, or, when a crash came before the record, by its command line. */
static int find_process(struct workspace *ws, const struct ws_row *row, struct proc_id *ret) {
        if (row->has_proc) {
                *ret = row->proc;
                return 0;
        }
        return vm_find(ws->dirs[row->slot], ret);
}

/* A restore that was cut short has a machine in the other folder, which the row never came to know of. */
static void end_other_vm(struct workspace *ws, const struct ws_row *row) {
        const char *dir = ws->dirs[1 - row->slot];
        struct proc_id proc;

        if (access(dir, F_OK) >= 0 && vm_find(dir, &proc) >= 0 && !(row->has_proc && proc.pid == row->proc.pid))
                end_process(&proc);
}

/* Ends it, whether it was attached, recorded, or neither. */
static void end_vm(struct workspace *ws, const struct ws_row *row) {
        struct proc_id proc;
        workspace_kill_vm(ws);
        /* The recorded one may have been followed by another before the crash. */
        for (size_t i = 0; i < SLOTS; i++)
                if (access(ws->dirs[i], F_OK) >= 0 && vm_find(ws->dirs[i], &proc) >= 0)
                        end_process(&proc);
}

static int recover_running(struct workspace *ws, const struct ws_row *row, struct error *err) {
        _cleanup_error_ struct error why = ERROR_INIT;

        int r = row->has_proc ? workspace_attach(ws, &row->proc, &why) : -ESRCH;
        if (r >= 0) {
                log_info("Workspace taken up again", "workspace", ws->id, "pid", LOG_NUM(row->proc.pid));
                return 0;
        }
        if (r == -ESRCH) {
                log_warn(LOST_WITH_DAEMON, "workspace", ws->id);
                return workspace_move(ws, WS_STOPPED, LOST_WITH_DAEMON, err);
        }
        /* One that cannot be controlled is no use; its disk stays. */
        log_warn("A running VM cannot be taken up again and is ended", "workspace", ws->id, "error",
                 error_message(&why));
        end_vm(ws, row);
        return workspace_move(ws, WS_STOPPED, error_message(&why), err);
}

/* A start that nobody was told of yet. It is finished if the guest is far enough; a user who tries again then finds
 * it running. */
static int recover_starting(struct workspace *ws, const struct ws_row *row, const struct op *op, struct error *err) {
        struct proc_id proc;

        if (find_process(ws, row, &proc) >= 0 && workspace_attach(ws, &proc, NULL) >= 0) {
                int r = workspace_prepare_guest(ws, ws->vm, op, NULL);
                if (r >= 0)
                        r = workspace_set_proc(ws, &proc, err);
                if (r >= 0)
                        r = workspace_move(ws, WS_RUNNING, NULL, err);
                if (r >= 0) {
                        log_info("Finished an interrupted start", "workspace", ws->id);
                        return 0;
                }
        }
        end_vm(ws, row);
        log_warn(CUT_SHORT, "workspace", ws->id);
        return workspace_move(ws, WS_STOPPED, CUT_SHORT, err);
}

static int recover_stopping(struct workspace *ws, const struct ws_row *row, const struct op *op, struct error *err) {
        if (row->has_proc && workspace_attach(ws, &row->proc, NULL) >= 0)
                vm_stop(ws->vm, op, NULL);
        end_vm(ws, row);
        log_info("Finished an interrupted stop", "workspace", ws->id);
        return workspace_move(ws, WS_STOPPED, NULL, err);
}

static int recover_one(struct workspace *ws, const struct op *op, const struct op *boot, struct error *err) {
        _cleanup_ws_row_ struct ws_row row = {0};
        int r = workspace_row(ws, &row, err);
        if (r < 0)
                return r;
        end_other_vm(ws, &row);
        switch (row.state) {
        case WS_RUNNING:
                return recover_running(ws, &row, err);
        case WS_STARTING:
                return recover_starting(ws, &row, boot, err);
        case WS_STOPPING:
                return recover_stopping(ws, &row, op, err);
        case WS_CREATING:
        case WS_DESTROYING:
                end_vm(ws, &row);
                log_info(row.state == WS_CREATING ? "Undoing an interrupted creation"
                                                  : "Finishing an interrupted destruction",
                         "workspace", ws->id, "name", row.name);
                return workspace_erase(ws, err);
        default:
                return 0;
        }
}

/* --- snapshots --- */

static int undo_template(struct snapshot *s, struct error *err) {
        _cleanup_free_ char *vm_dir = path_join(s->dir, TEMPLATE_VM);
        struct proc_id proc;

        if (vm_dir && vm_find(vm_dir, &proc) >= 0)
                end_process(&proc);
        int r = storage_destroy(s->core->storage, s->id, err);
        return r < 0 ? r : snapshot_retire(s, err);
}

static int recover_snapshot(struct snapshot *s, const struct op *op, struct error *err) {
        struct core *core = s->core;
        struct workspace *ws = NULL;
        {
                LOCK(&core->lock);
                for (ws = core->first; ws && !str_eq(ws->id, s->row.workspace);)
                        ws = ws->next;
        }
        if (s->row.state == SNAP_CREATING && ws)
                return snapshot_undo(s, ws, op, err);
        if (s->row.state == SNAP_CREATING && s->row.workspace[0] == '\0')
                return undo_template(s, err);
        /* Its workspace was being destroyed. */
        if (!ws && s->row.workspace[0] != '\0' && s->row.state != SNAP_DELETING)
                return snapshot_retire(s, err);
        return 0;
}

/* Nobody else is here yet: the list does not change while it is walked. */
static void recover_snapshots(struct core *core, const struct op *op) {
        for (struct snapshot *s = core->snapshots; s; s = s->next) {
                _cleanup_error_ struct error why = ERROR_INIT;
                if (recover_snapshot(s, op, &why) < 0)
                        log_error("A snapshot is not recovered; the next start tries again", "snapshot", s->id, "error",
                                  error_message(&why));
        }
        snapshots_sweep(core);
}

/* --- the pool --- */

/* Of another shape than is wanted now, or not wanted at all. */
static bool is_stale(const struct core *core, const struct ws_row *row) {
        const struct core_config *cfg = &core->cfg;

        return row->pooled &&
               (!core->pool || row->state != WS_RUNNING || row->vcpus != cfg->default_vcpus ||
                row->memory_mb != cfg->default_memory_mb || row->disk_gb != cfg->default_disk_gb ||
                !str_eq(row->base_image, cfg->default_image) || !policy_is_default(row)); /* it was being handed out */
}

/* --- what has no row --- */

static bool has_row(struct core *core, const char *id) {
        LOCK(&core->lock);
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (str_eq(ws->id, id))
                        return true;
        return false;
}

static bool disk_has_row(struct core *core, const char *disk) {
        LOCK(&core->lock);
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (str_eq(ws->row.disk, disk))
                        return true;
        return false;
}

static bool snapshot_has_row(struct core *core, const char *id) {
        LOCK(&core->lock);
        return snapshot_find_locked(core, id) != NULL;
}

static int list_folders(const char *dir, struct strv *ret) {
        _cleanup_strv_ struct strv ids = {0};
        DIR *d = opendir(dir);
        if (!d)
                return -errno;
        int r = 0;
        for (struct dirent *e; r >= 0 && (e = readdir(d));)
                if (uuid_valid(e->d_name))
                        r = strv_add(&ids, e->d_name);
        closedir(d);
        if (r < 0)
                return r;
        *ret = ids;
        ids = (struct strv){0};
        return 0;
}

/* What cannot be removed is left for the next start. */
static void collect_folder(struct core *core, const char *id) {
        _cleanup_free_ char *dir = path_join(core->vms_dir, id);
        struct proc_id proc;
        if (!dir)
                return;
        if (vm_find(dir, &proc) >= 0)
                end_process(&proc);
        int r = rm_rf(dir);
        if (r < 0)
                log_warn("Cannot remove the folder of a workspace that is not in the store", "folder", dir, "errno",
                         LOG_NUM(-r));
        else
                log_warn("Removed the folder of a workspace that is not in the store", "folder", dir);
}

static void collect_disk(struct core *core, const char *id) {
        _cleanup_error_ struct error why = ERROR_INIT;
        if (storage_destroy(core->storage, id, &why) < 0)
                log_warn("Cannot remove a disk that no workspace has", "disk", id, "error", error_message(&why));
        else
                log_warn("Removed a disk that no workspace has", "disk", id);
}

static void collect_node(struct core *core, const char *id) {
        _cleanup_error_ struct error why = ERROR_INIT;
        if (storage_node_destroy(core->storage, id, &why) < 0)
                log_warn("Cannot remove the disk of a snapshot that is not in the store", "snapshot", id, "error",
                         error_message(&why));
        else
                log_warn("Removed the disk of a snapshot that is not in the store", "snapshot", id);
}

static void collect_snapshot_folder(struct core *core, const char *id) {
        _cleanup_free_ char *dir = path_join(core->snapshots_dir, id);
        int r = dir ? rm_rf(dir) : -ENOMEM;
        log_warn(r < 0 ? "Cannot remove the folder of a snapshot that is not in the store"
                       : "Removed the folder of a snapshot that is not in the store",
                 "snapshot", id, "errno", LOG_NUM(-r));
}

static int collect_garbage(struct core *core, bool store_is_empty, struct error *err) {
        _cleanup_strv_ struct strv folders = {0}, disks = {0}, nodes = {0}, saved = {0};

        int r = list_folders(core->vms_dir, &folders);
        if (r < 0)
                return error_set_errno(err, r, "Cannot list %s", core->vms_dir);
        r = list_folders(core->snapshots_dir, &saved);
        if (r < 0)
                return error_set_errno(err, r, "Cannot list %s", core->snapshots_dir);
        r = storage_list(core->storage, &disks, err);
        if (r >= 0)
                r = storage_node_list(core->storage, &nodes, err);
        if (r < 0)
                return r;
        if (store_is_empty && disks.n + nodes.n > 0) {
                log_warn(
                        "The state store is empty, but there are disks: they are kept. If the store was lost, stop the "
                        "daemon and put back a copy of it; if not, remove them and their folders",
                        "disks", LOG_NUM(disks.n + nodes.n), "folders", core->vms_dir);
                return 0;
        }
        for (size_t i = 0; i < folders.n; i++)
                if (!has_row(core, folders.v[i]))
                        collect_folder(core, folders.v[i]);
        for (size_t i = 0; i < disks.n; i++)
                if (!disk_has_row(core, disks.v[i]))
                        collect_disk(core, disks.v[i]);
        for (size_t i = 0; i < nodes.n; i++)
                if (!snapshot_has_row(core, nodes.v[i]))
                        collect_node(core, nodes.v[i]);
        for (size_t i = 0; i < saved.n; i++)
                if (!snapshot_has_row(core, saved.v[i]))
                        collect_snapshot_folder(core, saved.v[i]);
        return 0;
}

/* Claims all workspaces that there are now: nobody else is here yet, but the end of a VM would call the reaper. */
static int claim_all(struct core *core, struct workspace ***ret, size_t *ret_n) {
        LOCK(&core->lock);
        struct workspace **all = calloc(core->n_workspaces + 1, sizeof(struct workspace *));
        if (!all)
                return -ENOMEM;
        size_t n = 0;
        for (struct workspace *ws = core->first; ws; ws = ws->next) {
                ws->busy = true;
                ws->refs++;
                all[n++] = ws;
        }
        *ret = all;
        *ret_n = n;
        return 0;
}

int core_recover(struct core *core, const struct op *op, struct error *err) {
        _cleanup_free_ struct workspace **all = NULL;
        size_t n = 0;
        int64_t begin = monotonic_ns();

        bool empty = !core->snapshots;
        int r = claim_all(core, &all, &n);
        if (r < 0)
                return error_set_errno(err, r, "Cannot recover the workspaces");
        struct op boot = op_sub(op, RECOVER_BOOT_MS);
        for (size_t i = 0; i < n; i++) {
                _cleanup_error_ struct error why = ERROR_INIT;
                /* One that cannot be helped keeps its row and state, and does not keep the others from being used. */
                if (recover_one(all[i], op, &boot, &why) < 0)
                        log_error("A workspace is not recovered; whoever uses it next tries again", "workspace",
                                  all[i]->id, "error", error_message(&why));
        }
        recover_snapshots(core, op);
        for (size_t i = 0; i < n; i++) {
                if (is_stale(core, &all[i]->row))
                        workspace_abandon(all[i]);
                workspace_release(all[i]);
        }
        core_recover_forwards(core);
        core_recover_network(core);
        r = collect_garbage(core, empty && n == 0, err);
        if (r >= 0 && n > 0)
                log_info("Workspaces recovered", "count", LOG_NUM(n), "ms",
                         LOG_NUM((monotonic_ns() - begin) / NSEC_PER_MSEC));
        return r;
}
