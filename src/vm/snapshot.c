/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots of running machines; state.h says how. */
#include <fcntl.h>

#include "base/io.h"
#include "base/log.h"
#include "vm/state_private.h"

/* One snapshot under way. */
struct snapshot {
        struct vm *vm;
        struct qmp *qmp; /* borrowed */
        const struct vm_snapshot_args *args;
        int state_fd, pages_fd;
        struct devices devices;
        struct page_copy *pages;
        struct disk_change disk;
        bool unsupported; /* it failed in a way for which there is another */
        struct vm_snapshot_result result;
};

static void snapshot_clear(struct snapshot *s) {
        close_fd(s->state_fd);
        close_fd(s->pages_fd);
        page_copy_free(s->pages);
        devices_clear(&s->devices);
}

static int open_disk(struct snapshot *s, const struct op *op, struct error *err) {
        return s->args->overlay_path ? disk_change_open(s->qmp, s->args->overlay_path, &s->disk, op, err) : 0;
}

static int change_disk(struct snapshot *s, const struct op *op, struct error *err) {
        return s->disk.opened ? disk_change_do(s->qmp, &s->disk, op, err) : 0;
}

/* --- the short way --- */

/* All that can be done while the guest runs. The pages come last: it changes more of them all the time. */
static int prepare_short(struct snapshot *s, const struct op *op, struct error *err) {
        s->pages_fd = vm_state_file(s->args->pages_path, O_RDWR, err);
        if (s->pages_fd < 0)
                return s->pages_fd;
        int r = devices_prepare(&s->devices, s->qmp, op, err);
        if (r >= 0)
                r = open_disk(s, op, err);
        if (r < 0)
                return r;
        r = page_copy_begin(s->vm->proc.pid, s->vm->memory_path, s->vm->memory_bytes, s->pages_fd, &s->pages, err);
        s->unsupported = r == -EPERM || r == -EACCES || r == -ENOSYS || r == -ENOENT;
        return r;
}

/* The disk comes last: before it, a failure leaves everything as it was. */
static int take_short(struct snapshot *s, const struct op *op, struct error *err) {
        int r = devices_save(&s->devices, s->pages, op, &s->unsupported, err);

        return r < 0 ? r : change_disk(s, op, err);
}

static int finish_short(struct snapshot *s, const struct op *op, struct error *err) {
        int r = page_copy_finish(s->pages, !s->args->transient, &s->result.pages_bytes, err);
        if (r < 0)
                return r;
        r = write_full(s->state_fd, s->devices.state.data, s->devices.state.len, op);
        return r < 0 ? error_set_errno(err, r, "Cannot write the file %s", s->args->state_path) : 0;
}

/* --- the whole state --- */

static int prepare_full(struct snapshot *s, const struct op *op, struct error *err) {
        int r = vm_migrate_prepare(s->qmp, false, s->state_fd, op, err);

        return r < 0 ? r : open_disk(s, op, err);
}

/* The disk comes first: after a migration QEMU does not touch it until the guest goes on. */
static int take_full(struct snapshot *s, const struct op *op, struct error *err) {
        int r = change_disk(s, op, err);

        return r < 0 ? r : vm_migrate(s->vm, s->qmp, op, err);
}

static int finish_full(struct snapshot *s, const struct op *op, struct error *err) {
        return 0;
}

/* --- a snapshot --- */

struct way {
        enum vm_state_kind kind;
        int (*prepare)(struct snapshot *s, const struct op *op, struct error *err);
        int (*take)(struct snapshot *s, const struct op *op, struct error *err); /* the guest stands still */
        int (*finish)(struct snapshot *s, const struct op *op, struct error *err);
};

static const struct way short_way = {VM_STATE_DEVICES, prepare_short, take_short, finish_short};
static const struct way full_way = {VM_STATE_FULL, prepare_full, take_full, finish_full};

static int pause_and_take(struct snapshot *s, const struct way *way, const struct op *op, struct error *err) {
        int64_t since;

        int r = vm_pause(s->vm, s->qmp, op, &since, err);
        if (r < 0)
                return r;
        r = way->take(s, op, err);
        int back = vm_go_on(s->vm, s->qmp, err);
        s->result.pause_ns = monotonic_ns() - since;
        return r < 0 ? r : back;
}

/* *ret_unsupported is set with a failure. */
static int snapshot(struct vm *vm, struct qmp *qmp, const struct way *way, const struct vm_snapshot_args *args,
                    const struct op *op, struct vm_snapshot_result *ret, bool *ret_unsupported, struct error *err) {
        _cleanup_(snapshot_clear) struct snapshot s = {
                .vm = vm, .qmp = qmp, .args = args, .pages_fd = -1, .devices = DEVICES_INIT, .result.kind = way->kind};

        s.state_fd = vm_state_file(args->state_path, O_WRONLY, err);
        if (s.state_fd < 0)
                return s.state_fd;
        int r = way->prepare(&s, op, err);
        if (r >= 0)
                r = pause_and_take(&s, way, op, err);
        s.result.switched = disk_change_end(vm, qmp, &s.disk, args->overlay_path);
        if (r >= 0)
                r = way->finish(&s, op, err);
        if (r >= 0)
                r = vm_state_file_done(s.state_fd, args->state_path, !args->transient, &s.result.state_bytes, err);
        if (r < 0) {
                unlink(args->state_path);
                if (s.pages_fd >= 0)
                        unlink(args->pages_path);
                *ret_unsupported = s.unsupported;
        }
        *ret = s.result;
        return r;
}

static int snapshot_memory(struct vm *vm, struct qmp *qmp, const struct vm_snapshot_args *args, const struct op *op,
                           struct vm_snapshot_result *ret, struct error *err) {
        _cleanup_error_ struct error why = ERROR_INIT;
        bool unsupported = false;

        if (vm->memory == VM_MEMORY_PRIVATE && args->pages_path) {
                int r = snapshot(vm, qmp, &short_way, args, op, ret, &unsupported, &why);
                if (r >= 0 || !unsupported) {
                        error_move(err, &why);
                        return r;
                }
                log_warn("A machine has to stand still until all of its memory is saved", "vm", vm->id, "reason",
                         error_message(&why));
        }
        return snapshot(vm, qmp, &full_way, args, op, ret, &unsupported, err);
}

/* The guest runs on: QEMU holds its requests back while it changes the disk. */
static int snapshot_disk(struct vm *vm, struct qmp *qmp, const char *overlay, const struct op *op,
                         struct vm_snapshot_result *ret, struct error *err) {
        struct disk_change d = {0};

        int r = disk_change_open(qmp, overlay, &d, op, err);
        if (r >= 0)
                r = disk_change_do(qmp, &d, op, err);
        ret->switched = disk_change_end(vm, qmp, &d, overlay);
        return r;
}

int vm_snapshot(struct vm *vm, const struct vm_snapshot_args *args, const struct op *op, struct vm_snapshot_result *ret,
                struct error *err) {
        _cleanup_qmp_ struct qmp *qmp = NULL;

        *ret = (struct vm_snapshot_result){.kind = VM_STATE_NONE};
        if (!args->state_path && (!args->overlay_path || args->pages_path))
                return error_set(err, ERROR_INVALID_ARGUMENT, "A snapshot needs a file for the state, or a new disk");
        int r = vm_saving_begin(vm, op, &qmp, err);
        if (r < 0)
                return r;
        r = args->state_path ? snapshot_memory(vm, qmp, args, op, ret, err)
                             : snapshot_disk(vm, qmp, args->overlay_path, op, ret, err);
        vm_saving_end(vm);
        return r;
}
