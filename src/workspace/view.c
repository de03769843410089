/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "workspace/core-internal.h"

void ws_view_clear(struct ws_view *v) {
        ws_row_clear(&v->row);
        *v = (struct ws_view){0};
}

void ws_views_clear(struct ws_views *l) {
        for (size_t i = 0; i < l->n; i++)
                ws_view_clear(&l->v[i]);
        free(l->v);
        *l = (struct ws_views){0};
}

int workspace_view_locked(struct workspace *ws, const char *owner, struct ws_view *ret) {
        struct ws_view view = {0};
        int r = ws_row_copy(&view.row, &ws->row);
        if (r < 0)
                return r;
        address_text(view.row.address, view.address);
        view.owned = owner && str_eq(view.row.owner, owner);
        view.orphaned = !owner_alive_locked(ws->core, view.row.owner);
        *ret = view;
        return 0;
}

int workspace_view(struct workspace *ws, const char *owner, struct ws_view *ret, struct error *err) {
        LOCK(&ws->core->lock);
        int r = workspace_view_locked(ws, owner, ret);
        return r < 0 ? error_set_errno(err, r, "Cannot show workspace %s", ws->id) : 0;
}

int ws_get(struct core *core, const char *ref, const char *owner, struct ws_view *ret, struct error *err) {
        LOCK(&core->lock);
        struct workspace *ws = registry_find_locked(core, ref);
        if (!ws)
                return registry_not_found_locked(core, ref, err);
        int r = workspace_view_locked(ws, owner, ret);
        return r < 0 ? error_set_errno(err, r, "Cannot show workspace %s", ws->id) : 0;
}

int ws_list(struct core *core, const char *owner, struct ws_views *ret, struct error *err) {
        _cleanup_(ws_views_clear) struct ws_views list = {0};
        LOCK(&core->lock);

        list.v = calloc(core->n_workspaces + 1, sizeof(*list.v));
        if (!list.v)
                return error_set_errno(err, ENOMEM, "Cannot list the workspaces");
        for (struct workspace *ws = core->first; ws; ws = ws->next) {
                if (ws->row.state == WS_CREATING || ws->row.state == WS_DESTROYING || ws->row.pooled)
                        continue;
                int r = workspace_view_locked(ws, owner, &list.v[list.n]);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot list the workspaces");
                list.n++;
        }
        *ret = list;
        list = (struct ws_views){0};
        return 0;
}

int ws_usage(struct core *core, const char *ref, struct ws_usage *ret, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        _cleanup_disk_info_ struct disk_info disk = {0};
        struct ws_usage usage = {0};

        int r = ws_get(core, ref, NULL, &view, err);
        if (r >= 0)
                r = storage_info(core->storage, view.row.disk, &disk, err);
        if (r < 0)
                return r;
        usage.disk_used_bytes = disk.used_bytes;
        usage.disk_virtual_bytes = disk.virtual_bytes;
        if (view.row.state == WS_RUNNING && view.row.has_proc) {
                /* It may end at any moment: then it uses nothing. */
                if (vm_memory(&view.row.proc, &usage.memory_private_bytes, &usage.memory_shared_bytes) < 0)
                        usage.memory_private_bytes = usage.memory_shared_bytes = 0;
                usage.uptime_secs = MAX((realtime_ms() - view.row.started_ms) / MSEC_PER_SEC, (int64_t) 0);
        }
        *ret = usage;
        return 0;
}

int ws_logs(struct core *core, const char *ref, unsigned max_lines, struct buf *console, struct buf *qemu_stderr,
            struct error *err) {
        _cleanup_free_ char *dir = NULL;
        {
                LOCK(&core->lock);
                struct workspace *ws = registry_find_locked(core, ref);
                if (!ws)
                        return registry_not_found_locked(core, ref, err);
                dir = strdup(ws->dirs[ws->row.slot]);
        }
        if (!dir)
                return error_set_errno(err, ENOMEM, "Cannot read the logs");
        int r = vm_console_tail(dir, max_lines, console);
        if (r < 0 && r != -ENOENT)
                return error_set_errno(err, r, "Cannot read the console of workspace \"%s\"", ref);
        r = vm_stderr_tail(dir, max_lines, qemu_stderr);
        if (r < 0 && r != -ENOENT)
                return error_set_errno(err, r, "Cannot read what QEMU wrote for workspace \"%s\"", ref);
        return 0;
}

static int fail_not_running(const struct ws_row *row, struct error *err) {
        int r = row->last_error ? error_set(err, ERROR_NOT_RUNNING, "Workspace \"%s\" is not running. %s", row->name,
                                            row->last_error)
                                : error_set(err, ERROR_NOT_RUNNING, "Workspace \"%s\" is not running", row->name);
        error_hint(err, "Start it with workspace_start; its disk is as it was.");
        return r;
}

/* Takes references to a workspace that nobody is changing and to its VM. -EAGAIN: it must be settled first. */
static int take_running(struct core *core, const char *ref, struct cond_waiter *waiter, struct workspace **ret,
                        struct vm **ret_vm, struct error *err) {
        /* Dropped after the lock is let go: it is declared before. */
        _cleanup_workspace_ struct workspace *ws = NULL;
        LOCK(&core->lock);
        struct workspace *found = registry_find_locked(core, ref);
        if (!found)
                return registry_not_found_locked(core, ref, err);
        found->refs++;
        ws = found;
        int r = workspace_wait_locked(ws, waiter, err);
        if (r < 0)
                return r == -ENOENT ? registry_not_found_locked(core, ref, err) : r;
        if (ws->row.state == WS_STOPPED)
                return fail_not_running(&ws->row, err);
        if (ws->row.state != WS_RUNNING || !ws->vm || vm_has_exited(ws->vm))
                return -EAGAIN;
        *ret_vm = vm_ref(ws->vm);
        *ret = TAKE_PTR(ws);
        return 0;
}

static int take_settled(struct core *core, const char *ref, const struct op *op, struct workspace **ret,
                        struct vm **ret_vm, struct error *err) {
        for (;;) {
                struct cond_waiter waiter;
                cond_waiter_begin(&waiter, &core->lock, &core->changed, op);
                int r = take_running(core, ref, &waiter, ret, ret_vm, err);
                cond_waiter_end(&waiter);
                if (r != -EAGAIN)
                        return r;

                struct workspace *ws = NULL;
                r = workspace_claim_settled(core, ref, op, &ws, err);
                if (r < 0)
                        return r;
                workspace_release(ws);
        }
}

/* A QEMU that dies closes its sockets a moment before it is gone: gives the reaper that moment, so that the caller
 * learns of the end and not of a guest that does not answer. Whether it ended. */
static bool wait_for_end(struct workspace *ws, const struct vm *vm, const struct op *op) {
        struct core *core = ws->core;
        struct op moment = op_sub(op, QEMU_DYING_MS);
        LOCK(&core->lock);
        while (ws->vm == vm && ws->row.state == WS_RUNNING && op_check(&moment) >= 0)
                cond_wait_until(&core->changed, &core->lock, moment.deadline);
        return ws->vm != vm;
}

int ws_agent(struct core *core, const char *ref, const struct op *op, struct agent **ret, struct error *err) {
        /* In this order: the VM's callbacks use the workspace until the last reference to the VM is gone. */
        _cleanup_workspace_ struct workspace *ws = NULL;
        _cleanup_vm_ struct vm *vm = NULL;

        int r = take_settled(core, ref, op, &ws, &vm, err);
        if (r < 0)
                return r;
        r = vm_agent(vm, op, ret, err);
        if (r >= 0 || !wait_for_end(ws, vm, op))
                return r;

        /* The reason is what the caller wants to know; or it has been started again by now. */
        _cleanup_workspace_ struct workspace *again = NULL;
        _cleanup_vm_ struct vm *other = NULL;
        r = take_settled(core, ref, op, &again, &other, err);
        return r < 0 ? r : vm_agent(other, op, ret, err);
}
