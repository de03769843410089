/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the files that implement state.h share. */

#include "base/buf.h"
#include "vm/memory.h"
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
/* It is complete. durable: makes it last. */
int vm_state_file_done(int fd, const char *path, bool durable, uint64_t *ret_bytes, struct error *err);

/* What a migration to the file fd needs, while the guest runs; then the migration itself, while it does not. A failed
 * one is over when this returns. */
int vm_migrate_prepare(struct qmp *qmp, bool ignore_shared, int fd, const struct op *op, struct error *err);
int vm_migrate(struct vm *vm, struct qmp *qmp, const struct op *op, struct error *err);

/* disk.c: a disk on its way to a new overlay. */
#define NODE_NAME_LEN 31 /* of a block node in QEMU */
struct disk_change {
        char node[NODE_NAME_LEN + 1], overlay[NODE_NAME_LEN + 1]; /* node names; the former: of the disk now */
        bool opened;                                              /* QEMU has the overlay, beside the disk */
        bool done;
        bool unknown; /* no answer came */
};
/* Opens the overlay and writes out what there is of the disk, while the guest runs. */
int disk_change_open(struct qmp *qmp, const char *overlay, struct disk_change *d, const struct op *op,
                     struct error *err);
/* The change itself: QEMU holds the disk still for it. */
int disk_change_do(struct qmp *qmp, struct disk_change *d, const struct op *op, struct error *err);
/* Whether the disk is on the overlay now, which is closed if it is not. When QEMU does not answer: true, because an
 * overlay to which nothing was written is as good as the disk itself. */
bool disk_change_end(struct vm *vm, struct qmp *qmp, struct disk_change *d, const char *overlay);

/* devices.c: the devices of a machine that stands still, together with its pages. */
struct devices {
        struct qmp *qmp;   /* borrowed */
        int64_t fdset;     /* in QEMU: has its end of the pipe; -1: none */
        int64_t their_fd;  /* QEMU's number of that */
        int pipe_fd;       /* our end */
        size_t pipe_bytes; /* what it holds */
        struct buf state;
};
#define DEVICES_INIT ((struct devices){.fdset = -1, .pipe_fd = -1, .state = BUF_INIT(DEVICES_STATE_MAX)})
#define DEVICES_STATE_MAX (16u * 1024u * 1024u)
/* What can be done while the guest runs. */
int devices_prepare(struct devices *d, struct qmp *qmp, const struct op *op, struct error *err);
/* Saves the devices in d->state, and takes the pages at the same instant; the guest stands still. *ret_unsupported is
 * set with a failure: QEMU cannot do that. */
int devices_save(struct devices *d, struct page_copy *pages, const struct op *op, bool *ret_unsupported,
                 struct error *err);
void devices_clear(struct devices *d);
