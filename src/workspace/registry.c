/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/file.h"
#include "workspace/core-internal.h"

#define SECOND_SLOT "b"

static void workspace_free(struct workspace *ws) {
        if (!ws)
                return;
        ws_row_clear(&ws->row);
        for (size_t i = 0; i < SLOTS; i++)
                free(ws->dirs[i]);
        pthread_mutex_destroy(&ws->commit_lock);
        free(ws);
}

int workspace_new(struct core *core, struct ws_row *row, bool busy, struct workspace **ret) {
        struct workspace *ws = calloc(1, sizeof(*ws));
        if (!ws)
                return -ENOMEM;
        pthread_mutex_init(&ws->commit_lock, NULL);
        ws->dirs[0] = path_join(core->vms_dir, row->id);
        ws->dirs[1] = ws->dirs[0] ? path_join(ws->dirs[0], SECOND_SLOT) : NULL;
        if (!ws->dirs[1]) {
                workspace_free(ws);
                return -ENOMEM;
        }
        ws->core = core;
        memcpy(ws->id, row->id, sizeof(ws->id));
        ws->row = *row;
        *row = (struct ws_row){0};
        ws->refs = 1;
        ws->busy = busy;
        *ret = ws;
        return 0;
}

static void drop_locked(struct workspace *ws) {
        if (--ws->refs == 0)
                workspace_free(ws);
}

void workspace_drop(struct workspace *ws) {
        if (!ws)
                return;
        LOCK(&ws->core->lock);
        drop_locked(ws);
}

void registry_add_locked(struct core *core, struct workspace *ws) {
        struct workspace **end = &core->first;
        while (*end)
                end = &(*end)->next;
        *end = ws;
        ws->refs++;
        core->n_workspaces++;
}

void registry_remove(struct workspace *ws) {
        struct core *core = ws->core;
        LOCK(&core->lock);
        for (struct workspace **at = &core->first; *at; at = &(*at)->next) {
                if (*at != ws)
                        continue;
                *at = ws->next;
                core->n_workspaces--;
                ws->gone = true;
                drop_locked(ws);
                break;
        }
        pthread_cond_broadcast(&core->changed);
}

/* No name looks like an id (create.c), so the order does not matter. */
struct workspace *registry_find_locked(struct core *core, const char *ref) {
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (!ws->row.pooled && (str_eq(ws->id, ref) || str_eq(ws->row.name, ref)))
                        return ws;
        return NULL;
}

int registry_not_found_locked(struct core *core, const char *ref, struct error *err) {
        int r = error_set(err, ERROR_NOT_FOUND, "There is no workspace \"%s\"", ref);
        const char *nearest = NULL;
        _cleanup_free_ const char **names = calloc(core->n_workspaces * 2 + 1, sizeof(*names));
        if (names) {
                size_t n = 0;
                for (struct workspace *ws = core->first; ws; ws = ws->next) {
                        if (ws->row.pooled)
                                continue;
                        names[n++] = ws->row.name;
                        names[n++] = ws->id;
                }
                nearest = str_nearest(ref, names, n);
        }
        if (nearest)
                error_hint(err, "Did you mean \"%s\"? workspace_list shows all workspaces.", nearest);
        else
                error_hint(err, "workspace_list shows all workspaces, workspace_create makes one.");
        return r;
}

int workspace_wait_locked(struct workspace *ws, struct cond_waiter *waiter, struct error *err) {
        while (ws->busy && !ws->gone) {
                int r = cond_waiter_sleep(waiter);
                if (r == -ETIMEDOUT) {
                        error_set(err, ERROR_TIMEOUT, "Workspace \"%s\" is %s, and that did not end in time",
                                  ws->row.name, ws_state_name(ws->row.state));
                        error_hint(err, "Try again in a few seconds; workspace_info shows its state.");
                } else if (r < 0)
                        error_set_errno(err, r, "The wait for workspace \"%s\", which is %s, was given up",
                                        ws->row.name, ws_state_name(ws->row.state));
                if (r < 0)
                        return r;
        }
        return ws->gone ? -ENOENT : 0;
}

static int claim(struct core *core, const char *ref, struct cond_waiter *waiter, struct workspace **ret,
                 struct error *err) {
        LOCK(&core->lock);
        struct workspace *ws = registry_find_locked(core, ref);
        if (!ws)
                return registry_not_found_locked(core, ref, err);
        ws->refs++;
        int r = workspace_wait_locked(ws, waiter, err);
        if (r < 0) {
                drop_locked(ws);
                /* Not looked up once more: a new workspace of the same name is not what the caller meant. */
                return r == -ENOENT ? registry_not_found_locked(core, ref, err) : r;
        }
        ws->busy = true;
        *ret = ws;
        return 0;
}

int workspace_claim(struct core *core, const char *ref, const struct op *op, struct workspace **ret,
                    struct error *err) {
        struct cond_waiter waiter;
        cond_waiter_begin(&waiter, &core->lock, &core->changed, op);
        int r = claim(core, ref, &waiter, ret, err);
        cond_waiter_end(&waiter);
        return r;
}

int workspace_claim_settled(struct core *core, const char *ref, const struct op *op, struct workspace **ret,
                            struct error *err) {
        _cleanup_claim_ struct workspace *ws = NULL;
        int r = workspace_claim(core, ref, op, &ws, err);
        if (r < 0)
                return r;
        r = workspace_settle(ws, err);
        if (r == -ENOENT) {
                LOCK(&core->lock);
                return registry_not_found_locked(core, ref, err);
        }
        if (r < 0)
                return r;
        *ret = TAKE_PTR(ws);
        return 0;
}

void workspace_release(struct workspace *ws) {
        if (!ws)
                return;
        struct core *core = ws->core;
        LOCK(&core->lock);
        ws->busy = false;
        /* It may have ended while the reaper had to keep away. */
        if (ws->vm && vm_has_exited(ws->vm)) {
                core->reap_wanted = true;
                pthread_cond_signal(&core->reap);
        }
        pthread_cond_broadcast(&core->changed);
        drop_locked(ws);
}

int workspace_row(struct workspace *ws, struct ws_row *ret, struct error *err) {
        LOCK(&ws->core->lock);
        int r = ws_row_copy(ret, &ws->row);
        return r < 0 ? error_set_errno(err, r, "Cannot read workspace %s", ws->id) : 0;
}

enum ws_state workspace_state(struct workspace *ws) {
        LOCK(&ws->core->lock);
        return ws->row.state;
}
