/* SPDX-License-Identifier: Apache-2.0 */

#include "workspace/core-internal.h"

#define TO(state) (1u << (state))

/*
 * From each state, where it may go. A workspace comes into being as creating; it vanishes from creating (the creation
 * failed) and from destroying.
 */
static const unsigned moves[_WS_STATE_MAX] = {
        [WS_CREATING] = TO(WS_RUNNING) | TO(WS_DESTROYING),
        [WS_STARTING] = TO(WS_RUNNING) | TO(WS_STOPPED) | TO(WS_DESTROYING),
        [WS_RUNNING] = TO(WS_STOPPING) | TO(WS_STOPPED) | TO(WS_DESTROYING), /* stopped: QEMU ended by itself */
        [WS_STOPPING] = TO(WS_STOPPED) | TO(WS_DESTROYING),
        [WS_STOPPED] = TO(WS_STARTING) | TO(WS_DESTROYING),
        [WS_DESTROYING] = 0,
};

bool ws_move_allowed(enum ws_state from, enum ws_state to) {
        return (unsigned) from < _WS_STATE_MAX && (unsigned) to < _WS_STATE_MAX && (moves[from] & TO(to)) != 0;
}

/* Stores the new row; then it is the row. Takes its content over. Called with commit_lock. */
static int commit(struct workspace *ws, struct ws_row *next, struct error *err) {
        struct core *core = ws->core;
        int r = db_ws_update(core->db, next, err);
        if (r < 0)
                return r;

        LOCK(&core->lock);
        struct ws_row old = ws->row;
        ws->row = *next;
        *next = old;
        return 0;
}

int workspace_move(struct workspace *ws, enum ws_state to, const char *last_error, struct error *err) {
        _cleanup_ws_row_ struct ws_row next = {0};
        LOCK(&ws->core->commit_lock);

        int r = workspace_row(ws, &next, err);
        if (r < 0)
                return r;
        if (!ws_move_allowed(next.state, to))
                return error_set(err, ERROR_INTERNAL, "Workspace %s cannot go from %s to %s", next.id,
                                 ws_state_name(next.state), ws_state_name(to));
        next.state = to;
        if (to == WS_RUNNING)
                next.started_ms = realtime_ms();
        if (to == WS_STOPPED) {
                next.has_proc = false;
                next.started_ms = 0;
        }
        if ((to == WS_RUNNING || to == WS_STOPPED) && str_replace(&next.last_error, last_error) < 0)
                return error_set_errno(err, ENOMEM, "Cannot change workspace %s", next.id);
        return commit(ws, &next, err);
}

int workspace_set_proc(struct workspace *ws, const struct proc_id *proc, struct error *err) {
        _cleanup_ws_row_ struct ws_row next = {0};
        LOCK(&ws->core->commit_lock);

        int r = workspace_row(ws, &next, err);
        if (r < 0)
                return r;
        next.has_proc = true;
        next.proc = *proc;
        return commit(ws, &next, err);
}

int workspace_adopt(struct workspace *ws, const char *owner, struct error *err) {
        struct core *core = ws->core;
        _cleanup_ws_row_ struct ws_row next = {0};
        LOCK(&core->commit_lock);

        {
                LOCK(&core->lock);
                if (owner_alive_locked(core, ws->row.owner))
                        return str_eq(ws->row.owner, owner) ? 0 : -EPERM;
        }
        int r = workspace_row(ws, &next, err);
        if (r >= 0 && str_replace(&next.owner, owner) < 0)
                r = error_set_errno(err, ENOMEM, "Cannot change workspace %s", next.id);
        return r < 0 ? r : commit(ws, &next, err);
}
