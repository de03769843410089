/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taking a snapshot.
 *
 * The row comes first, as creating; then the node and the overlay, which change nothing for the disk; then the machine
 * changes over, and if memory is wanted its state is saved at the same instant; then the row is ready, and in the same
 * transaction the workspace stands on it. After a crash in between, recover.c asks the machine which file it writes to.
 *
 * Without memory the guest's file systems are frozen at the instant, so that the snapshot mounts like one that was
 * unmounted. With memory they need not be: what is not on the disk yet is in the memory. They are written back all the
 * same, which makes the pause shorter and the disk useful alone.
 */
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/log.h"
#include "workspace/core-internal.h"
#include "workspace/snapshot.h"

#define FREEZE_MS 30000                  /* for which a guest stays frozen if nobody thaws it */
#define THAW_MS 10000                    /* for the guest to answer that */
#define STATE_BYTES ((uint64_t) 1 << 20) /* of devices; some 80 KiB were measured */
#define OVERLAY_ROOM ((uint64_t) 1 << 20)
#define MIB ((uint64_t) 1 << 20)
#define DEPTH_MAX 250u /* files below a disk: with 300 QEMU opens it in half a second on an idle host */
#define NSEC_PER_US 1000

static int check_name(struct workspace *ws, const char *name, struct error *err) {
        if (!name_valid(name, WS_NAME_MAX, "._-")) {
                int r = error_set(err, ERROR_INVALID_ARGUMENT, "\"%.*s\" cannot be the name of a snapshot",
                                  WS_NAME_MAX + 1, name);
                error_hint(err, "Use 1 to %d characters of A-Z, a-z, 0-9, '.', '_' and '-'.", WS_NAME_MAX);
                return r;
        }
        unsigned n = 0, max = ws->core->cfg.max_snapshots;
        LOCK(&ws->core->lock);
        if (snapshot_by_name_locked(ws->core, ws->id, name)) {
                int r = error_set(err, ERROR_CONFLICT, "Workspace \"%s\" has a snapshot named \"%s\" already",
                                  ws->row.name, name);
                error_hint(err, "Choose another name, or delete that one first.");
                return r;
        }
        for (struct snapshot *s = ws->core->snapshots; s; s = s->next)
                n += s->row.name && str_eq(s->row.workspace, ws->id);
        if (n < max)
                return 0;
        int r = error_set(err, ERROR_QUOTA_EXCEEDED, "Workspace \"%s\" has %u snapshots, and the limit is %u",
                          ws->row.name, n, max);
        error_hint(err, "Delete one that is not needed; limits.snapshots in the configuration sets the limit.");
        return r;
}

/* What the memory of a running machine will take: its own pages, or all of it where they cannot be told. */
static uint64_t memory_bytes(const struct ws_row *row) {
        uint64_t whole = (uint64_t) row->memory_mb * MIB, own = 0, shared = 0;

        if (str_empty(row->memory_base) || vm_memory(&row->proc, &own, &shared) < 0)
                return whole;
        return MIN(own, whole);
}

static int check_room(struct core *core, const struct ws_row *row, bool memory, struct error *err) {
        uint64_t available = 0, need = OVERLAY_ROOM + (memory ? STATE_BYTES + memory_bytes(row) : 0);

        int r = disk_free_bytes(core->snapshots_dir, &available);
        if (r < 0)
                return error_set_errno(err, r, "Cannot learn the free space for snapshots");
        if (available >= need + core->cfg.reserve_bytes)
                return 0;
        r = error_set(err, ERROR_NO_SPACE,
                      "No new snapshot: the server has %" PRIu64 " MiB free; this one needs up to %" PRIu64
                      " MiB, and %" PRIu64 " MiB must stay free",
                      available / MIB, need / MIB, core->cfg.reserve_bytes / MIB);
        error_hint(err, "Delete snapshots or destroy workspaces that are not needed%s.",
                   memory ? ", or take the snapshot without memory" : "");
        return r;
}

/* QEMU opens all files below a disk, and needs longer and more memory the more there are. */
static int check_depth(struct core *core, const struct ws_row *row, struct error *err) {
        const char *at = row->parent;
        unsigned depth = 0;
        LOCK(&core->lock);

        while (!str_empty(at) && depth <= DEPTH_MAX) {
                struct snapshot *below = snapshot_find_locked(core, at);
                at = below ? below->row.parent : NULL;
                depth++;
        }
        if (depth <= DEPTH_MAX)
                return 0;
        int r = error_set(err, ERROR_QUOTA_EXCEEDED,
                          "The disk of workspace \"%s\" stands on %u snapshots and live forks, one upon the other, and "
                          "the limit is %u",
                          row->name, DEPTH_MAX, DEPTH_MAX);
        error_hint(err, "Take one snapshot and fork that as often as you like, instead of the running workspace each "
                        "time; or restore an older snapshot and go on from there.");
        return r;
}

/* --- a snapshot under way --- */

struct taking {
        struct workspace *ws;
        struct ws_row row; /* of the workspace, when it began */
        bool memory, transient;
        struct snapshot *snapshot;
        char *overlay; /* that the machine changes over to */
        struct vm_snapshot_result result;
};

static void taking_clear(struct taking *t) {
        ws_row_clear(&t->row);
        snapshot_unpin(t->snapshot);
        free(t->overlay);
}

static int make_snapshot(struct taking *t, const char *name, struct error *err) {
        const struct ws_row *ws = &t->row;
        _cleanup_snap_row_ struct snap_row row = {
                .state = SNAP_CREATING,
                .has_disk = true,
                .vcpus = ws->vcpus,
                .memory_mb = ws->memory_mb,
                .disk_gb = ws->disk_gb,
                .created_ms = realtime_ms(),
        };

        int r = uuid_new(row.id);
        if (r >= 0)
                r = str_replace(&row.name, name);
        if (r >= 0)
                r = str_replace(&row.base_image, ws->base_image);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make a snapshot");
        memcpy(row.workspace, ws->id, sizeof(row.workspace));
        memcpy(row.parent, ws->parent, sizeof(row.parent));
        return snapshot_new(t->ws->core, &row, &t->snapshot, err);
}

/* The disk alone, with the guest's file systems at rest. */
static int take_disk(struct taking *t, const struct op *op, struct error *err) {
        const struct vm_snapshot_args args = {.overlay_path = t->overlay};
        const struct op thaw = op_timeout(THAW_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        bool frozen = false;

        int r = vm_agent(t->ws->vm, op, &agent, err);
        if (r >= 0)
                r = agent_freeze(agent, FREEZE_MS, op, &frozen, err);
        if (r < 0) {
                error_prefix(err, "The guest's file systems cannot be brought to rest");
                return r;
        }
        const int64_t began = monotonic_ns();
        r = vm_snapshot(t->ws->vm, &args, op, &t->result, err);
        if (!frozen)
                return r;
        /* Whatever came of it, and however long the caller wants to wait: nobody else will thaw them soon. */
        int thawed = agent_thaw(agent, &thaw, r < 0 ? NULL : err);
        t->result.pause_ns = monotonic_ns() - began; /* for those who write to a file */
        return r < 0 ? r : thawed;
}

static int take_memory(struct taking *t, const struct op *op, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_free_ char *state = path_join(t->snapshot->dir, SNAPSHOT_STATE),
                            *pages = path_join(t->snapshot->dir, SNAPSHOT_PAGES);
        const struct vm_snapshot_args args = {
                .state_path = state,
                .pages_path = pages,
                .overlay_path = t->overlay,
                .transient = t->transient,
        };

        if (!state || !pages)
                return error_set_errno(err, ENOMEM, "Cannot make a snapshot");
        int r = vm_agent(t->ws->vm, op, &agent, err);
        if (r >= 0)
                r = agent_sync(agent, op, err);
        return r < 0 ? r : vm_snapshot(t->ws->vm, &args, op, &t->result, err);
}

static enum snap_memory memory_kind(const struct vm_snapshot_result *result) {
        switch (result->kind) {
        case VM_STATE_DEVICES:
                return SNAP_MEMORY_PAGES;
        case VM_STATE_FULL:
                return SNAP_MEMORY_WHOLE;
        default:
                return SNAP_MEMORY_NONE;
        }
}

static int set_memory(struct taking *t, struct snap_row *row, struct error *err) {
        struct core *core = t->ws->core;
        const struct platform *platform = NULL;
        const struct op op = op_timeout(core->cfg.boot_timeout_ms);

        row->memory = memory_kind(&t->result);
        if (row->memory == SNAP_MEMORY_NONE)
                return 0;
        if (row->memory == SNAP_MEMORY_PAGES)
                memcpy(row->memory_base, t->row.memory_base, sizeof(row->memory_base));
        row->file_bytes = t->result.state_bytes + t->result.pages_bytes;
        int r = core_platform(core, &op, &platform, err);
        if (r >= 0)
                r = machine_key(core, platform, row->vcpus, row->memory_mb, &row->key, err);
        if (r >= 0 && str_replace(&row->session, t->row.session) < 0)
                r = error_set_errno(err, ENOMEM, "Cannot make a snapshot");
        return r;
}

static int finish(struct taking *t, struct error *err) {
        _cleanup_snap_row_ struct snap_row row = {0};

        int r = snapshot_row(t->snapshot, &row, err);
        if (r < 0)
                return r;
        row.state = SNAP_READY;
        row.pause_us = t->result.pause_ns / NSEC_PER_US;
        r = set_memory(t, &row, err);
        if (r >= 0 && !t->transient)
                r = snapshot_sync_memory(t->ws->core, row.memory_base, err);
        return r < 0 ? r : snapshot_commit(t->snapshot, &row, t->ws, err);
}

/* Whether the machine runs in the QEMU that is installed now: what another one saves does not fit it. */
static int check_qemu(struct core *core, const struct ws_row *row, const struct op *op, struct error *err) {
        _cleanup_free_ char *exe = str_printf("/proc/%d/exe", (int) row->proc.pid);
        const struct platform *platform = NULL;
        struct stat running, installed;

        int r = core_platform(core, op, &platform, err);
        if (r < 0)
                return r;
        if (!exe || stat(exe, &running) < 0 || stat(platform->qemu, &installed) < 0 ||
            (running.st_dev == installed.st_dev && running.st_ino == installed.st_ino))
                return 0; /* or nobody can tell */
        r = error_set(err, ERROR_UNSUPPORTED,
                      "The memory of workspace \"%s\" cannot be saved: QEMU was replaced since it was started",
                      row->name);
        error_hint(err, "Stop it and start it once; or save and fork its disk alone.");
        return r;
}

/* After a failure. If the disk has changed over there is a node, on which the disk stands from now on. */
static void give_up(struct taking *t, bool frozen) {
        _cleanup_snap_row_ struct snap_row row = {0};
        _cleanup_error_ struct error why = ERROR_INIT;

        int r = snapshot_empty(t->snapshot, &why);
        if (r >= 0)
                r = snapshot_row(t->snapshot, &row, &why);
        if (r >= 0) {
                row.state = SNAP_DELETING;
                row.has_disk = frozen;
                if (!frozen)
                        row.parent[0] = '\0';
                (void) str_replace(&row.name, NULL);
                r = snapshot_commit(t->snapshot, &row, frozen ? t->ws : NULL, &why);
        }
        if (r < 0)
                log_warn("A failed snapshot is not undone yet", "snapshot", t->snapshot->id, "error",
                         error_message(&why));
}

static int take(struct taking *t, const struct op *op, struct error *err) {
        struct storage *storage = t->ws->core->storage;
        const char *node = t->snapshot->id;
        bool running = t->row.state == WS_RUNNING;
        _cleanup_error_ struct error undo = ERROR_INIT;

        int r = storage_freeze_begin(storage, t->row.disk, node, &t->overlay, op, err);
        if (r < 0) {
                give_up(t, false);
                return r;
        }
        t->result.switched = !running;
        if (running)
                r = t->memory ? take_memory(t, op, err) : take_disk(t, op, err);
        bool frozen = t->result.switched;
        int ended = storage_freeze_end(storage, t->row.disk, node, frozen, r < 0 ? &undo : err);
        t->ws->disk_unsure = ended < 0;
        if (r >= 0)
                r = ended;
        if (r >= 0)
                r = finish(t, err);
        if (r < 0)
                give_up(t, frozen);
        return r;
}

int workspace_snapshot(struct workspace *ws, const char *name, bool memory, bool transient, const struct op *op,
                       struct snapshot **ret, struct error *err) {
        _cleanup_(taking_clear) struct taking t = {.ws = ws, .memory = memory, .transient = transient};

        int r = workspace_undo_snapshots(ws, op, err);
        if (r >= 0)
                r = ws->disk_unsure ? workspace_settle_disk(ws, op, err) : 0;
        if (r >= 0)
                r = workspace_row(ws, &t.row, err);
        if (r >= 0)
                r = check_depth(ws->core, &t.row, err);
        if (r >= 0 && memory)
                r = check_qemu(ws->core, &t.row, op, err);
        if (r >= 0)
                r = check_room(ws->core, &t.row, memory, err);
        if (r >= 0)
                r = make_snapshot(&t, name, err);
        if (r < 0)
                return r;
        op_progress(op, memory ? "saving disk and memory" : "saving the disk");
        r = take(&t, op, err);
        if (r < 0) {
                snapshot_unpin(TAKE_PTR(t.snapshot));
                snapshots_sweep(ws->core);
                return r;
        }
        *ret = TAKE_PTR(t.snapshot);
        return 0;
}

static int check_memory(struct workspace *ws, bool include_memory, struct error *err) {
        if (!include_memory || workspace_state(ws) == WS_RUNNING)
                return 0;
        LOCK(&ws->core->lock);
        int r = error_set(err, ERROR_NOT_RUNNING, "Workspace \"%s\" is stopped: it has no memory to save",
                          ws->row.name);
        error_hint(err, "Leave include_memory out, or start it first.");
        return r;
}

/* One that was being taken was never acknowledged: it goes. If the disk had changed over, or there is no machine that
 * could still write to the file below, the disk stands on its node from now on; unless it has got further since. */
int snapshot_undo(struct snapshot *s, struct workspace *ws, const struct op *op, struct error *err) {
        _cleanup_snap_row_ struct snap_row row = {0};
        struct node_info node;

        int r = workspace_settle_disk(ws, op, err);
        if (r >= 0)
                r = snapshot_empty(s, err);
        if (r >= 0)
                r = snapshot_row(s, &row, err);
        if (r < 0)
                return r;
        row.state = SNAP_DELETING;
        row.has_disk = storage_node_info(ws->core->storage, s->id, &node, NULL) >= 0;
        (void) str_replace(&row.name, NULL);
        log_info("Undoing an interrupted snapshot", "workspace", ws->id, "snapshot", s->id);
        bool stands_on_it = row.has_disk && str_eq(ws->row.parent, row.parent);
        return snapshot_commit(s, &row, stands_on_it ? ws : NULL, err);
}

int workspace_undo_snapshots(struct workspace *ws, const struct op *op, struct error *err) {
        for (;;) {
                _cleanup_snapshot_ struct snapshot *s = NULL;
                {
                        LOCK(&ws->core->lock);
                        s = ws->core->snapshots;
                        while (s && !(str_eq(s->row.workspace, ws->id) && s->row.state == SNAP_CREATING))
                                s = s->next;
                        if (!s)
                                return 0;
                        snapshot_pin_locked(s);
                }
                int r = snapshot_undo(s, ws, op, err);
                if (r < 0)
                        return r;
        }
}

int ws_snapshot_create(struct core *core, const char *ref, const char *name, bool include_memory, const struct op *op,
                       struct snap_view *ret, struct error *err) {
        _cleanup_claim_ struct workspace *ws = NULL;
        _cleanup_snapshot_ struct snapshot *s = NULL;

        int r = workspace_claim_settled(core, ref, op, &ws, err);
        if (r >= 0)
                r = check_name(ws, name, err);
        if (r >= 0)
                r = check_memory(ws, include_memory, err);
        if (r < 0)
                return r;
        foreground_begin(core);
        r = workspace_snapshot(ws, name, include_memory, false, op, &s, err);
        foreground_end(core);
        if (r < 0) {
                error_prefix(err, "There is no snapshot \"%s\"", name);
                return r;
        }
        log_info("Snapshot taken", "workspace", ws->id, "snapshot", s->id, "pause_us", LOG_NUM(s->row.pause_us));
        return snapshot_view(s, ret, err);
}
