/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the files that implement state.h share. */

#include "vm/state.h"
#include "vm/vm_private.h"

#define VM_GO_ON_MS 10000 /* for QEMU to let a machine go on, whatever has become of the caller */

/* The right to save the state of a machine, until vm_saving_end(), and a connection to its QEMU. */
int vm_saving_begin(struct vm *vm, const struct op *op, struct qmp **ret, struct error *err);
void vm_saving_end(struct vm *vm);

/* Stops the guest, and its disk is written out. *ret_since_ns: when it was asked to. On failure it goes on. */
int vm_pause(struct vm *vm, struct qmp *qmp, const struct op *op, int64_t *ret_since_ns, struct error *err);
/* Lets the guest go on. If that fails, it is added to the error that is set; -ESRCH (not_running): QEMU has ended. */
int vm_go_on(struct vm *vm, struct qmp *qmp, struct error *err);

/* A new file; flags: O_WRONLY or O_RDWR. */
int vm_state_file(const char *path, int flags, struct error *err);
/* Makes it last. */
int vm_state_file_done(int fd, const char *path, uint64_t *ret_bytes, struct error *err);

/* What a migration to the file fd needs, while the guest runs; then the migration itself, while it does not. A failed
 * one is over when this returns. */
int vm_migrate_prepare(struct qmp *qmp, bool ignore_shared, int fd, const struct op *op, struct error *err);
int vm_migrate(struct vm *vm, struct qmp *qmp, const struct op *op, struct error *err);
