/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots of running machines; state.h says how. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "vm/memory.h"
#include "vm/state_private.h"

#define NODE_NAME_LEN 31 /* of a block node in QEMU */

/* --- the disk --- */

/* What QEMU has as the machine's disk: borrowed from *reply. */
static int ask_disk(struct qmp *qmp, const struct op *op, json_t **ret_reply, const char **ret_node,
                    const char **ret_file, struct error *err) {
        _cleanup_json_ json_t *reply = NULL;
        const json_t *device;
        size_t i;

        int r = qmp_call(qmp, "query-block", NULL, op, &reply, err);
        if (r < 0)
                return r;
        json_array_foreach (reply, i, device) {
                const json_t *inserted = json_object_get(device, "inserted");
                const char *qdev = NULL;

                if (json_get_str(device, "qdev", &qdev, NULL) >= 0 && strstr(qdev, VM_DISK_DEVICE) &&
                    json_get_str(inserted, "node-name", ret_node, NULL) >= 0 &&
                    json_get_str(inserted, "file", ret_file, NULL) >= 0) {
                        *ret_reply = TAKE_PTR(reply);
                        return 0;
                }
        }
        return error_set(err, ERROR_NOT_FOUND, "The machine has no disk");
}

int vm_disk_file(struct vm *vm, const struct op *op, char **ret, struct error *err) {
        _cleanup_json_ json_t *reply = NULL;
        _cleanup_qmp_ struct qmp *qmp = NULL;
        const char *node, *file;

        int r = vm_qmp(vm, op, &qmp, err);
        if (r >= 0)
                r = ask_disk(qmp, op, &reply, &node, &file, err);
        if (r < 0)
                return r;
        char *copy = strdup(file);
        if (!copy)
                return error_set_errno(err, ENOMEM, "Cannot look for the disk of the VM %s", vm->id);
        *ret = copy;
        return 0;
}

/* The disk of a machine on its way to a new overlay. */
struct disk_change {
        char node[NODE_NAME_LEN + 1], overlay[NODE_NAME_LEN + 1]; /* node names; the former: of the disk now */
        bool opened;                                              /* QEMU has the overlay, beside the disk */
};

/* Opens the overlay, with the options that argv.c gives a disk; the disk itself becomes its backing file later. */
static int disk_open(struct qmp *qmp, const char *overlay, struct disk_change *d, const struct op *op,
                     struct error *err) {
        _cleanup_json_ json_t *reply = NULL, *arguments = NULL;
        const char *node = NULL, *file;
        char random[8 + 1];

        int r = ask_disk(qmp, op, &reply, &node, &file, err);
        if (r >= 0)
                r = random_hex(random, 4);
        if (r < 0)
                return r;
        snprintf(d->node, sizeof(d->node), "%s", node);
        snprintf(d->overlay, sizeof(d->overlay), "disk-%s", random);
        arguments =
                json_pack("{s:s, s:s, s:n, s:s, s:s, s:{s:b, s:b}, s:{s:s, s:s, s:s, s:s, s:{s:b, s:b}}}", "driver",
                          "qcow2", "node-name", d->overlay, "backing", "discard", "unmap", "detect-zeroes", "unmap",
                          "cache", "direct", false, "no-flush", false, "file", "driver", "file", "filename", overlay,
                          "aio", "threads", "discard", "unmap", "cache", "direct", false, "no-flush", false);
        r = arguments ? qmp_call(qmp, "blockdev-add", arguments, op, NULL, err) : -ENOMEM;
        d->opened = r >= 0;
        return r;
}

/* The guest stands still. */
static int disk_switch(struct qmp *qmp, struct disk_change *d, const struct op *op, struct error *err) {
        if (!d->opened)
                return 0;
        _cleanup_json_ json_t *arguments = json_pack("{s:s, s:s}", "node", d->node, "overlay", d->overlay);
        int r = qmp_call(qmp, "blockdev-snapshot", arguments, op, NULL, err);
        /* When no answer came it may have happened. */
        if (r >= 0 || r == -ETIMEDOUT || r == -ECANCELED)
                d->opened = false;
        return r;
}

/* Closes an overlay that was not used. */
static void disk_close(struct qmp *qmp, const struct disk_change *d) {
        const struct op op = op_timeout(VM_GO_ON_MS);

        if (!d->opened)
                return;
        _cleanup_json_ json_t *arguments = json_pack("{s:s}", "node-name", d->overlay);
        (void) qmp_call(qmp, "blockdev-del", arguments, &op, NULL, NULL);
}

/* --- the devices --- */

/* Gives QEMU a descriptor that it can open by a path. */
static int fdset_add(struct qmp *qmp, int fd, int64_t *ret, const struct op *op, struct error *err) {
        _cleanup_json_ json_t *reply = NULL;

        int r = qmp_call_with_fd(qmp, "add-fd", NULL, fd, op, &reply, err);
        return r < 0 ? r : json_get_int(reply, "fdset-id", ret, err);
}

static void fdset_remove(struct qmp *qmp, int64_t id) {
        const struct op op = op_timeout(VM_GO_ON_MS);
        _cleanup_json_ json_t *arguments = json_pack("{s:I}", "fdset-id", (json_int_t) id);

        (void) qmp_call(qmp, "remove-fd", arguments, &op, NULL, NULL);
}

/* The guest stands still. */
static int save_devices(struct qmp *qmp, int64_t fdset, const struct op *op, struct error *err) {
        char path[64];

        snprintf(path, sizeof(path), "/dev/fdset/%lld", (long long) fdset);
        _cleanup_json_ json_t *arguments = json_pack("{s:s, s:b}", "filename", path, "live", false);
        return qmp_call(qmp, "xen-save-devices-state", arguments, op, NULL, err);
}

/* --- a snapshot --- */

/* One snapshot under way. */
struct snapshot {
        struct vm *vm;
        struct qmp *qmp; /* borrowed */
        const struct vm_snapshot_args *args;
        int state_fd, pages_fd;
        struct page_copy *pages;
        int64_t fdset; /* -1: none */
        struct disk_change disk;
        bool unsupported; /* it failed in a way for which there is another */
        struct vm_snapshot_result result;
};

static void snapshot_clear(struct snapshot *s) {
        close_fd(s->state_fd);
        close_fd(s->pages_fd);
        page_copy_free(s->pages);
        if (s->fdset >= 0)
                fdset_remove(s->qmp, s->fdset);
        disk_close(s->qmp, &s->disk);
}

/* All that can be done while the guest runs. */
static int prepare_short(struct snapshot *s, const struct op *op, struct error *err) {
        s->pages_fd = vm_state_file(s->args->pages_path, O_RDWR, err);
        if (s->pages_fd < 0)
                return s->pages_fd;
        int r = page_copy_begin(s->vm->proc.pid, s->vm->memory_path, s->vm->memory_bytes, s->pages_fd, &s->pages, err);
        if (r < 0) {
                s->unsupported = r == -EPERM || r == -EACCES || r == -ENOSYS || r == -ENOENT;
                return r;
        }
        r = fdset_add(s->qmp, s->state_fd, &s->fdset, op, err);
        if (r >= 0 && s->args->overlay_path)
                r = disk_open(s->qmp, s->args->overlay_path, &s->disk, op, err);
        return r;
}

/* The disk comes last: before it, a failure leaves everything as it was. */
static int take_short(struct snapshot *s, const struct op *op, struct error *err) {
        int r = save_devices(s->qmp, s->fdset, op, err);
        if (r < 0) {
                s->unsupported = error_is_set(err) && (err->code == ERROR_INTERNAL || err->code == ERROR_UNSUPPORTED);
                return r;
        }
        r = page_copy_take(s->pages, op, err);
        return r < 0 ? r : disk_switch(s->qmp, &s->disk, op, err);
}

static int finish_short(struct snapshot *s, const struct op *op, struct error *err) {
        return page_copy_finish(s->pages, &s->result.pages_bytes, err);
}

static int prepare_full(struct snapshot *s, const struct op *op, struct error *err) {
        int r = vm_migrate_prepare(s->qmp, false, s->state_fd, op, err);

        return r < 0 || !s->args->overlay_path ? r : disk_open(s->qmp, s->args->overlay_path, &s->disk, op, err);
}

/* The disk comes first: after a migration QEMU does not touch it until the guest goes on. */
static int take_full(struct snapshot *s, const struct op *op, struct error *err) {
        int r = disk_switch(s->qmp, &s->disk, op, err);

        return r < 0 ? r : vm_migrate(s->vm, s->qmp, op, err);
}

static int finish_full(struct snapshot *s, const struct op *op, struct error *err) {
        return 0;
}

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
                .vm = vm, .qmp = qmp, .args = args, .pages_fd = -1, .fdset = -1, .result.kind = way->kind};

        s.state_fd = vm_state_file(args->state_path, O_WRONLY, err);
        if (s.state_fd < 0)
                return s.state_fd;
        int r = way->prepare(&s, op, err);
        if (r >= 0)
                r = pause_and_take(&s, way, op, err);
        if (r >= 0)
                r = way->finish(&s, op, err);
        if (r >= 0)
                r = vm_state_file_done(s.state_fd, args->state_path, &s.result.state_bytes, err);
        if (r < 0) {
                unlink(args->state_path);
                if (s.pages_fd >= 0)
                        unlink(args->pages_path);
                *ret_unsupported = s.unsupported;
                return r;
        }
        *ret = s.result;
        return 0;
}

int vm_snapshot(struct vm *vm, const struct vm_snapshot_args *args, const struct op *op, struct vm_snapshot_result *ret,
                struct error *err) {
        _cleanup_error_ struct error why = ERROR_INIT;
        _cleanup_qmp_ struct qmp *qmp = NULL;
        bool unsupported = vm->memory != VM_MEMORY_PRIVATE || !args->pages_path;

        int r = vm_saving_begin(vm, op, &qmp, err);
        if (r < 0)
                return r;
        if (!unsupported) {
                r = snapshot(vm, qmp, &short_way, args, op, ret, &unsupported, &why);
                if (r < 0 && unsupported)
                        log_warn("A machine has to stand still until all of its memory is saved", "vm", vm->id,
                                 "reason", error_message(&why));
                else
                        error_move(err, &why);
        }
        if (unsupported)
                r = snapshot(vm, qmp, &full_way, args, op, ret, &unsupported, err);
        vm_saving_end(vm);
        return r;
}
