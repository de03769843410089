/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"
#include "base/log.h"
#include "workspace/core-internal.h"

#define LEAVE_MS 5000 /* for the rules of the network without it */

/* One that nobody has a name for goes by itself, and may be going at this moment. */
static bool is_to_retire(const struct snapshot *s, const char *workspace) {
        return str_eq(s->row.workspace, workspace) && s->row.state != SNAP_DELETING &&
               (s->row.name || s->row.state == SNAP_CREATING);
}

/* Its snapshots go with it, as far as no fork needs them. */
static int retire_snapshots(struct workspace *ws, struct error *err) {
        for (;;) {
                _cleanup_snapshot_ struct snapshot *s = NULL;
                {
                        LOCK(&ws->core->lock);
                        s = ws->core->snapshots;
                        while (s && !is_to_retire(s, ws->id))
                                s = s->next;
                        if (!s)
                                return 0;
                        snapshot_pin_locked(s);
                }
                int r = snapshot_retire(s, err);
                if (r < 0)
                        return r;
        }
}

/* What does not work now is done before the address can be another's. */
static void leave_network(struct workspace *ws) {
        const struct op op = op_timeout(LEAVE_MS);
        _cleanup_error_ struct error why = ERROR_INIT;

        if (!policy_is_default(&ws->row) && core_apply_policy(ws->core, &op, &why) < 0)
                log_warn("The rules of the network are not in force yet", "error", error_message(&why));
        core_retire_address(ws->core, ws->row.address);
}

int workspace_erase(struct workspace *ws, struct error *err) {
        struct core *core = ws->core;

        workspace_kill_vm(ws);
        int r = retire_snapshots(ws, err);
        if (r >= 0)
                r = storage_destroy(core->storage, ws->row.disk, err);
        if (r < 0)
                return r;
        leave_network(ws);
        r = workspace_drop_forwards(ws, err);
        if (r < 0)
                return r;
        r = rm_rf(ws->dirs[0]);
        if (r < 0)
                return error_set_errno(err, r, "Cannot remove the folder of the workspace");
        r = db_ws_delete(core->db, ws->id, err);
        if (r < 0 && r != -ENOENT)
                return r;
        error_clear(err); /* a row that is not there is what was wanted */
        registry_remove(ws);
        core_expect_cards(core);
        snapshots_sweep(core);
        return 0;
}

int ws_destroy(struct core *core, const char *ref, const struct op *op, struct ws_view *ret, struct error *err) {
        _cleanup_claim_ struct workspace *ws = NULL;
        _cleanup_ws_view_ struct ws_view view = {0};

        int r = workspace_claim(core, ref, op, &ws, err);
        if (r >= 0)
                r = workspace_view(ws, NULL, &view, err);
        if (r < 0)
                return r;
        op_progress(op, "destroying %s", view.row.name);
        if (view.row.state != WS_DESTROYING)
                r = workspace_move(ws, WS_DESTROYING, NULL, err);
        if (r >= 0)
                r = workspace_erase(ws, err);
        if (r < 0) {
                error_prefix(err, "Workspace \"%s\" is not destroyed yet", view.row.name);
                return r;
        }
        log_info("Workspace destroyed", "workspace", view.row.id, "name", view.row.name);
        *ret = view;
        view = (struct ws_view){0};
        return 0;
}
