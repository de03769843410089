/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "workspace/snapshot.h"

#define FORK_NAMES_MAX 4096u /* bytes of names in an error */

void snap_view_clear(struct snap_view *v) {
        snap_row_clear(&v->row);
        strv_free(&v->forks);
        free(v->parent_name);
        *v = (struct snap_view){0};
}

void snap_views_clear(struct snap_views *l) {
        for (size_t i = 0; i < l->n; i++)
                snap_view_clear(&l->v[i]);
        free(l->v);
        *l = (struct snap_views){0};
}

/* The nearest snapshot below that has a name, of the same workspace or of the one that it was forked from. */
static int find_parent_locked(struct snapshot *s, char **ret) {
        const char *at = s->row.parent;

        while (!str_empty(at)) {
                struct snapshot *below = snapshot_find_locked(s->core, at);
                if (!below)
                        return 0;
                if (below->row.name && str_eq(below->row.workspace, s->row.workspace))
                        return str_replace(ret, below->row.name);
                at = below->row.parent;
        }
        return 0;
}

int snapshot_view(struct snapshot *s, struct snap_view *ret, struct error *err) {
        _cleanup_snap_view_ struct snap_view v = {0};
        struct node_info node = {0};
        {
                LOCK(&s->core->lock);
                int r = snap_row_copy(&v.row, &s->row);
                if (r >= 0)
                        r = find_parent_locked(s, &v.parent_name);
                if (r >= 0)
                        r = snapshot_forks_locked(s, &v.forks);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot show snapshot %s", s->id);
        }
        if (v.row.has_disk) {
                int r = storage_node_info(s->core->storage, s->id, &node, err);
                if (r < 0)
                        return r;
        }
        v.used_bytes = node.used_bytes + v.row.file_bytes;
        v.referenced_bytes = node.referenced_bytes + v.row.file_bytes;
        *ret = v;
        v = (struct snap_view){0};
        return 0;
}

/* All that the workspace has a name for, pinned, oldest first. */
static int pin_all(struct core *core, const char *ref, struct snapshot ***ret, size_t *ret_n, struct error *err) {
        size_t n = 0;
        LOCK(&core->lock);
        struct workspace *ws = registry_find_locked(core, ref);
        if (!ws)
                return registry_not_found_locked(core, ref, err);
        for (struct snapshot *s = core->snapshots; s; s = s->next)
                n++;
        struct snapshot **all = calloc(n + 1, sizeof(struct snapshot *));
        if (!all)
                return error_set_errno(err, ENOMEM, "Cannot list the snapshots");
        n = 0;
        for (struct snapshot *s = core->snapshots; s; s = s->next)
                if (s->row.name && s->row.state == SNAP_READY && str_eq(s->row.workspace, ws->id)) {
                        snapshot_pin_locked(s);
                        all[n++] = s;
                }
        *ret = all;
        *ret_n = n;
        return 0;
}

int ws_snapshot_list(struct core *core, const char *ref, struct snap_views *ret, struct error *err) {
        _cleanup_snap_views_ struct snap_views list = {0};
        _cleanup_free_ struct snapshot **all = NULL;
        size_t n = 0;

        int r = pin_all(core, ref, &all, &n, err);
        if (r < 0)
                return r;
        list.v = calloc(n + 1, sizeof(*list.v));
        if (!list.v)
                r = error_set_errno(err, ENOMEM, "Cannot list the snapshots");
        for (size_t i = 0; i < n; i++) {
                if (r >= 0)
                        r = snapshot_view(all[i], &list.v[list.n], err);
                if (r >= 0)
                        list.n++;
                snapshot_unpin(all[i]);
        }
        if (r < 0)
                return r;
        *ret = list;
        list = (struct snap_views){0};
        return 0;
}

static int not_found_locked(struct workspace *ws, const char *name, struct error *err) {
        const char *names[WS_NAMES_SHOWN];
        size_t n = 0;

        for (struct snapshot *s = ws->core->snapshots; s && n < WS_NAMES_SHOWN; s = s->next)
                if (s->row.name && str_eq(s->row.workspace, ws->id))
                        names[n++] = s->row.name;
        int r = error_set(err, ERROR_NOT_FOUND, "Workspace \"%s\" has no snapshot \"%s\"", ws->row.name, name);
        const char *nearest = str_nearest(name, names, n);
        if (nearest)
                error_hint(err, "Did you mean \"%s\"? The action list of the tool snapshot shows all of them.",
                           nearest);
        else
                error_hint(err, n > 0 ? "The action list of the tool snapshot shows those that it has."
                                      : "It has none; the action create of the tool snapshot makes one.");
        return r;
}

int workspace_find_snapshot(struct workspace *ws, const char *name, struct snapshot **ret, struct error *err) {
        LOCK(&ws->core->lock);
        struct snapshot *s = snapshot_by_name_locked(ws->core, ws->id, name);
        if (!s || s->row.state != SNAP_READY) {
                (void) not_found_locked(ws, name, err);
                return -ENOENT;
        }
        snapshot_pin_locked(s);
        *ret = s;
        return 0;
}

int snapshot_check_memory(struct snapshot *s, const struct op *op, struct error *err) {
        _cleanup_snap_row_ struct snap_row row = {0};
        _cleanup_free_ char *key = NULL;
        const struct platform *platform = NULL;

        int r = snapshot_row(s, &row, err);
        if (r >= 0)
                r = core_platform(s->core, op, &platform, err);
        if (r >= 0)
                r = machine_key(s->core, platform, row.vcpus, row.memory_mb, &key, err);
        if (r < 0 || str_eq(key, row.key))
                return r;
        r = error_set(
                err, ERROR_UNSUPPORTED,
                "The memory of snapshot \"%s\" was saved by another QEMU, or on another kind of host, and does not "
                "fit this one",
                row.name ? row.name : row.id);
        error_hint(err, "Its disk is good: ask again with disk_only, and the machine boots from it.");
        return r;
}

/* --- delete --- */

static int fail_forks(const char *name, const struct strv *forks, struct error *err) {
        _cleanup_buf_ struct buf names = BUF_INIT(FORK_NAMES_MAX);

        for (size_t i = 0; i < forks->n; i++)
                (void) buf_printf(&names, "%s%s", i > 0 ? ", " : "", forks->v[i]);
        int r = error_set(err, ERROR_CONFLICT, "Snapshot \"%s\" cannot be deleted: %zu fork%s on it: %s", name,
                          forks->n, forks->n == 1 ? " stands" : "s stand", names.data ? names.data : "");
        error_hint(err, "Destroy %s first, or keep the snapshot.", forks->n == 1 ? "that fork" : "those forks");
        return r;
}

/* What a retired snapshot still takes. */
static uint64_t left_of(struct core *core, const char *id, const struct snap_view *before) {
        LOCK(&core->lock);
        struct snapshot *s = snapshot_find_locked(core, id);
        if (!s)
                return 0;
        return (s->row.has_disk ? before->used_bytes - before->row.file_bytes : 0) + s->row.file_bytes;
}

/* One that is pinned by others, too: forks of it are about to be there. */
static int check_unused(struct snapshot *s, const char *name, struct error *err) {
        LOCK(&s->core->lock);
        if (s->pins <= 1)
                return 0;
        int r = error_set(err, ERROR_CONFLICT, "Snapshot \"%s\" cannot be deleted: it is being forked or looked at",
                          name);
        error_hint(err, "Try again when that is over.");
        return r;
}

static int retire(struct workspace *ws, const char *name, struct snap_view *ret, struct error *err) {
        _cleanup_snapshot_ struct snapshot *s = NULL;

        int r = workspace_find_snapshot(ws, name, &s, err);
        if (r >= 0)
                r = check_unused(s, name, err);
        if (r >= 0)
                r = snapshot_view(s, ret, err);
        if (r >= 0 && ret->forks.n > 0)
                r = fail_forks(name, &ret->forks, err);
        return r < 0 ? r : snapshot_retire(s, err);
}

int ws_snapshot_delete(struct core *core, const char *ref, const char *name, const struct op *op, uint64_t *ret_freed,
                       struct error *err) {
        _cleanup_claim_ struct workspace *ws = NULL;
        _cleanup_snap_view_ struct snap_view before = {0};

        int r = workspace_claim_settled(core, ref, op, &ws, err);
        if (r >= 0)
                r = retire(ws, name, &before, err);
        if (r < 0)
                return r;
        snapshots_sweep(core);
        *ret_freed = before.used_bytes - left_of(core, before.row.id, &before);
        log_info("Snapshot deleted", "workspace", ws->id, "snapshot", before.row.id);
        return 0;
}
