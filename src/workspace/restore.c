/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going back to a snapshot.
 *
 * Nothing of what there is is touched until what is to come is there: a new disk on the snapshot's node, and, if the
 * workspace shall run, a new machine on it in the workspace's other folder, which has its identity and has answered.
 * Then one change of the row makes them the workspace's, and the old machine and the old disk are ended. A failure
 * before that ends the new ones instead. After a crash the row tells which is which; the other disk has no row, and the
 * other folder's machine is no workspace's.
 *
 * Meanwhile the old machine runs on. What it does in these moments is lost with it.
 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "workspace/snapshot.h"

struct restoring {
        struct workspace *ws;
        struct ws_row row; /* when it began */
        struct snapshot *snapshot;
        char snapshot_id[UUID_LEN + 1];
        bool with_memory, runs; /* afterwards */
        char disk[UUID_LEN + 1];
        struct machine machine; /* its vm is owned */
        enum ws_start_kind kind;
};

static void restoring_clear(struct restoring *g) {
        ws_row_clear(&g->row);
        snapshot_unpin(g->machine.pin);
        snapshot_unpin(g->snapshot);
}

static int start_machine(struct restoring *g, const struct op *op, struct error *err) {
        _cleanup_start_files_ struct start_files files = {0};
        struct machine_args args = {.disk = g->disk, .slot = 1 - g->row.slot};

        if (!g->with_memory)
                return workspace_bring_up(g->ws, &args, op, &g->machine, &g->kind, err);
        g->kind = WS_START_SNAPSHOT;
        int r = snapshot_files(g->snapshot, false, op, &files, err);
        args.from = &files;
        return r < 0 ? r : machine_start(g->ws, &args, op, &g->machine, err);
}

static int edit_restored(struct ws_row *row, void *arg, struct error *err) {
        struct restoring *g = arg;

        memcpy(row->disk, g->disk, sizeof(row->disk));
        memcpy(row->parent, g->snapshot_id, sizeof(row->parent));
        if (!g->runs)
                return 0;
        row->state = WS_RUNNING;
        row->started_ms = realtime_ms();
        if (machine_to_row(&g->machine, row) < 0 || str_replace(&row->last_error, NULL) < 0)
                return error_set_errno(err, ENOMEM, "Cannot change workspace %s", row->id);
        return 0;
}

static void kill_machine(struct machine *m) {
        if (!m->vm)
                return;
        vm_kill(m->vm);
        vm_unref(TAKE_PTR(m->vm));
}

/* The workspace has the new machine; the old one is ended. */
static void change_over(struct restoring *g) {
        struct vm *old = g->ws->vm;

        workspace_set_vm(g->ws, TAKE_PTR(g->machine.vm));
        if (old) {
                vm_kill(old);
                vm_unref(old);
        }
        if (g->runs)
                workspace_change_cards(g->ws);
        workspace_cut_forwards(g->ws); /* what was connected to the old machine */
}

static void destroy_disk(struct core *core, const char *id) {
        _cleanup_error_ struct error why = ERROR_INIT;

        if (storage_destroy(core->storage, id, &why) < 0)
                log_warn("A disk that was given up cannot be removed yet", "disk", id, "error", error_message(&why));
}

static int restore(struct restoring *g, const struct op *op, struct error *err) {
        struct core *core = g->ws->core;

        int r = uuid_new(g->disk);
        if (r < 0)
                return error_set_errno(err, r, "Cannot name the new disk");
        r = storage_clone(core->storage, g->snapshot->id, g->disk, 0, op, err);
        if (r < 0)
                return r;
        if (g->runs)
                r = start_machine(g, op, err);
        if (r >= 0)
                r = op_check(op) < 0 ? error_set_errno(err, op_check(op), "The restore was given up") : 0;
        if (r >= 0)
                r = workspace_change(g->ws, edit_restored, g, err);
        if (r < 0) {
                kill_machine(&g->machine);
                destroy_disk(core, g->disk);
                return r;
        }
        change_over(g);
        destroy_disk(core, g->row.disk);
        return 0;
}

static int check(struct restoring *g, const char *name, bool disk_only, const struct op *op, struct error *err) {
        int r = workspace_row(g->ws, &g->row, err);
        if (r >= 0)
                r = workspace_find_snapshot(g->ws, name, &g->snapshot, err);
        if (r < 0)
                return r;
        memcpy(g->snapshot_id, g->snapshot->id, sizeof(g->snapshot_id));
        {
                LOCK(&g->ws->core->lock);
                g->with_memory = !disk_only && g->snapshot->row.memory != SNAP_MEMORY_NONE;
        }
        g->runs = g->with_memory || g->row.state == WS_RUNNING;
        return g->with_memory ? snapshot_check_memory(g->snapshot, op, err) : 0;
}

int ws_snapshot_restore(struct core *core, const char *ref, const char *name, bool disk_only, const struct op *op,
                        struct ws_view *ret, struct ws_started *ret_started, bool *ret_memory, struct error *err) {
        int64_t begin = monotonic_ns();
        _cleanup_claim_ struct workspace *ws = NULL;

        int r = workspace_claim_settled(core, ref, op, &ws, err);
        if (r < 0)
                return r;
        {
                _cleanup_(restoring_clear) struct restoring g = {.ws = ws, .kind = WS_START_BOOT};

                foreground_begin(core);
                r = check(&g, name, disk_only, op, err);
                if (r >= 0)
                        r = restore(&g, op, err);
                foreground_end(core);
                *ret_memory = g.with_memory;
                *ret_started = (struct ws_started){
                        .kind = g.kind,
                        .boot_time_ms = (monotonic_ns() - begin) / NSEC_PER_MSEC,
                        .already = !g.runs,
                };
        }
        if (r < 0)
                return r;
        log_info("Workspace restored", "workspace", ws->id, "snapshot", name, "ms", LOG_NUM(ret_started->boot_time_ms));
        return workspace_view(ws, NULL, ret, err);
}
