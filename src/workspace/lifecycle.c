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
        [WS_STOPPED] = TO(WS_STARTING) | TO(WS_RUNNING) | TO(WS_DESTROYING), /* running: restored with its memory */
        [WS_DESTROYING] = 0,
};

bool ws_move_allowed(enum ws_state from, enum ws_state to) {
        return (unsigned) from < _WS_STATE_MAX && (unsigned) to < _WS_STATE_MAX && (moves[from] & TO(to)) != 0;
}

int workspace_change(struct workspace *ws, row_edit edit, void *arg, struct error *err) {
        struct core *core = ws->core;
        _cleanup_ws_row_ struct ws_row next = {0};
        LOCK(&ws->commit_lock);

        int r = workspace_row(ws, &next, err);
        if (r >= 0)
                r = edit(&next, arg, err);
        if (r >= 0)
                r = db_ws_update(core->db, &next, err);
        if (r < 0)
                return r;
        LOCK(&core->lock);
        struct ws_row old = ws->row;
        ws->row = next;
        next = old;
        return 0;
}

struct move {
        enum ws_state to;
        const char *last_error;
};

static int edit_state(struct ws_row *row, void *arg, struct error *err) {
        const struct move *m = arg;

        if (!ws_move_allowed(row->state, m->to))
                return error_set(err, ERROR_INTERNAL, "Workspace %s cannot go from %s to %s", row->id,
                                 ws_state_name(row->state), ws_state_name(m->to));
        row->state = m->to;
        if (m->to == WS_RUNNING)
                row->started_ms = realtime_ms();
        if (m->to == WS_STOPPED) {
                row->has_proc = false;
                row->started_ms = 0;
                row->memory_base[0] = '\0';
                (void) str_replace(&row->session, NULL);
        }
        if ((m->to == WS_RUNNING || m->to == WS_STOPPED) && str_replace(&row->last_error, m->last_error) < 0)
                return error_set_errno(err, ENOMEM, "Cannot change workspace %s", row->id);
        return 0;
}

int workspace_move(struct workspace *ws, enum ws_state to, const char *last_error, struct error *err) {
        struct move m = {to, last_error};
        return workspace_change(ws, edit_state, &m, err);
}

static int edit_proc(struct ws_row *row, void *arg, struct error *err) {
        row->has_proc = true;
        row->proc = *(const struct proc_id *) arg;
        return 0;
}

int workspace_set_proc(struct workspace *ws, const struct proc_id *proc, struct error *err) {
        struct proc_id p = *proc;
        return workspace_change(ws, edit_proc, &p, err);
}

struct adoption {
        struct core *core;
        const char *owner;
        bool already;
};

static int edit_owner(struct ws_row *row, void *arg, struct error *err) {
        struct adoption *a = arg;
        {
                LOCK(&a->core->lock);
                if (owner_alive_locked(a->core, row->owner)) {
                        a->already = str_eq(row->owner, a->owner);
                        return -EPERM;
                }
        }
        return str_replace(&row->owner, a->owner) < 0
                       ? error_set_errno(err, ENOMEM, "Cannot change workspace %s", row->id)
                       : 0;
}

int workspace_adopt(struct workspace *ws, const char *owner, struct error *err) {
        struct adoption a = {ws->core, owner, false};
        int r = workspace_change(ws, edit_owner, &a, err);
        return a.already ? 0 : r;
}
