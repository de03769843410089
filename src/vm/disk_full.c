/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host whose disk is full. QEMU pauses a guest whose write finds no room, which is what we want: an I/O error would
 * cost the guest its file system. But QEMU never lets it go on by itself, so the watcher looks again and again whether
 * there is room, and so does whoever wants the agent. Until then calls fail with no_space at once, and those that were
 * under way when their time runs out.
 */
#include <sys/eventfd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/thread.h"
#include "vm/vm_private.h"

static void set_locked(struct vm *vm, bool full) {
        vm->disk_full = full;
        if (vm->agent)
                agent_set_no_space(vm->agent, full);
}

void vm_note_disk_full(struct vm *vm) {
        {
                LOCK(&vm->lock);

                if (vm->disk_full)
                        return;
                set_locked(vm, true);
        }
        (void) eventfd_write(vm->wake_fd, 1);
        log_warn("The host's disk is full: a VM stands still until there is room", "vm", vm->id);
}

bool vm_is_disk_full(struct vm *vm) {
        LOCK(&vm->lock);

        return vm->disk_full && !vm->exited;
}

static bool has_room(const struct vm *vm) {
        uint64_t available;

        /* What cannot be told is left to QEMU: it pauses again at the same write. */
        return !vm->disk_path || disk_free_bytes(vm->disk_path, &available) < 0 || available >= VM_RESUME_FREE_BYTES;
}

bool vm_stands_still(struct vm *vm, const struct op *op) {
        const struct op limited = op_sub(op, VM_RESUME_MS);
        _cleanup_qmp_ struct qmp *qmp = NULL;

        if (!vm_is_disk_full(vm))
                return false;
        if (!has_room(vm) || vm_qmp(vm, &limited, &qmp, NULL) < 0)
                return true;
        {
                /* Before QEMU tries: if there still is no room, its event comes after this. */
                LOCK(&vm->lock);
                set_locked(vm, false);
        }
        if (qmp_call(qmp, "cont", NULL, &limited, NULL, NULL) >= 0) {
                log_info("The host's disk has room again: a VM goes on", "vm", vm->id);
                return false;
        }
        LOCK(&vm->lock);
        set_locked(vm, true);
        return true;
}

int vm_fail_disk_full(struct error *err) {
        int r = error_set(err, ERROR_NO_SPACE,
                          "The disk of the host is full, and the machine stands still until there "
                          "is room for what it writes");

        error_hint(err,
                   "Free %u MiB on the host, or destroy workspaces that are not needed; it then goes on by itself.",
                   VM_RESUME_FREE_BYTES >> 20);
        return r;
}
