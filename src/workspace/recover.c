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

#include "base/file.h"
#include "base/log.h"
#include "workspace/core-internal.h"

#define LOST_WITH_DAEMON "The VM ended while the daemon was not running"
#define CUT_SHORT "The daemon ended while the workspace was being started"

/* The QEMU of a workspace: as recorded, or, when a crash came before the record, by its command line. */
static int find_process(struct workspace *ws, const struct ws_row *row, struct proc_id *ret) {
        if (row->has_proc) {
                *ret = row->proc;
                return 0;
        }
        return vm_find(ws->dir, ret);
}

/* Ends it, whether it was attached, recorded, or neither. */
static void end_vm(struct workspace *ws, const struct ws_row *row) {
        struct proc_id proc;
        workspace_kill_vm(ws);
        if (!row->has_proc && vm_find(ws->dir, &proc) >= 0)
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

static bool has_row(struct core *core, const char *id) {
        LOCK(&core->lock);
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (str_eq(ws->id, id))
                        return true;
        return false;
}

static int list_folders(struct core *core, struct strv *ret) {
        _cleanup_strv_ struct strv ids = {0};
        DIR *d = opendir(core->vms_dir);
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

static int collect_garbage(struct core *core, bool store_is_empty, struct error *err) {
        _cleanup_strv_ struct strv folders = {0}, disks = {0};

        int r = list_folders(core, &folders);
        if (r < 0)
                return error_set_errno(err, r, "Cannot list %s", core->vms_dir);
        r = storage_list(core->storage, &disks, err);
        if (r < 0)
                return r;
        if (store_is_empty && disks.n > 0) {
                log_warn(
                        "The state store is empty, but there are disks: they are kept. If the store was lost, stop the "
                        "daemon and put back a copy of it; if not, remove them and their folders",
                        "disks", LOG_NUM(disks.n), "folders", core->vms_dir);
                return 0;
        }
        for (size_t i = 0; i < folders.n; i++)
                if (!has_row(core, folders.v[i]))
                        collect_folder(core, folders.v[i]);
        for (size_t i = 0; i < disks.n; i++)
                if (!has_row(core, disks.v[i]))
                        collect_disk(core, disks.v[i]);
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
                workspace_release(all[i]);
        }
        r = collect_garbage(core, n == 0, err);
        if (r >= 0 && n > 0)
                log_info("Workspaces recovered", "count", LOG_NUM(n), "ms",
                         LOG_NUM((monotonic_ns() - begin) / NSEC_PER_MSEC));
        return r;
}
