/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"
#include "base/log.h"
#include "workspace/core-internal.h"

int workspace_erase(struct workspace *ws, struct error *err) {
        struct core *core = ws->core;

        workspace_kill_vm(ws);
        int r = storage_destroy(core->storage, ws->id, err);
        if (r < 0)
                return r;
        r = rm_rf(ws->dir);
        if (r < 0)
                return error_set_errno(err, r, "Cannot remove the folder of the workspace");
        r = db_ws_delete(core->db, ws->id, err);
        if (r < 0 && r != -ENOENT)
                return r;
        error_clear(err); /* a row that is not there is what was wanted */
        registry_remove(ws);
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
