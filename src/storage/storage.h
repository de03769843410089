/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Disks of workspaces: an interface with backends.
 *
 * A disk belongs to one workspace and is known by its id. The backend decides what it is (a qcow2 overlay over the
 * base image, a zvol, ...); the core only gets a path and a format for QEMU. Every call may be repeated after a crash:
 * creating what is half there starts over, destroying what is not there succeeds.
 *
 * A *node* is the content that a disk had at an instant. It never changes, and has an id of its own. Disks and further
 * nodes stand on it; it can be destroyed when none does any more. Freezing a disk makes a node of it, and the disk goes
 * on, under its own id, on top. It takes three steps, since QEMU may have the disk open and must change over to a new
 * file while the guest stands still:
 *
 *     storage_freeze_begin()   makes the overlay; nothing has changed for the disk, and the node is not there yet
 *     vm_snapshot()            QEMU changes over to the overlay; without a machine nothing is done here
 *     storage_freeze_end()     makes it final, or undoes it
 *
 * After a crash anywhere in between, storage_freeze_recover() finishes or undoes it. Without a machine both are right,
 * since an overlay that nobody wrote to has the content of what is below it: it finishes. With one, what matters is
 * which file QEMU writes to.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "base/str.h"
#include "storage/image.h"

struct storage;

struct disk_info {
        char *path;             /* owned; a freeze gives the disk another one */
        const char *format;     /* static: "qcow2", "raw" */
        uint64_t used_bytes;    /* what this disk alone takes */
        uint64_t virtual_bytes; /* what the guest sees */
};
void disk_info_clear(struct disk_info *d);
#define _cleanup_disk_info_ _cleanup_(disk_info_clear)

struct node_info {
        uint64_t used_bytes;       /* what this node alone takes */
        uint64_t referenced_bytes; /* with all that it stands on */
        uint64_t virtual_bytes;
};

struct storage_ops {
        const char *name;
        int (*create)(struct storage *s, const char *id, const struct image *base, uint64_t bytes, const struct op *op,
                      struct error *err);
        int (*destroy)(struct storage *s, const char *id, struct error *err);
        int (*info)(struct storage *s, const char *id, struct disk_info *ret, struct error *err);
        /* The ids of all disks that exist, for the collection of what has no owner. */
        int (*list)(struct storage *s, struct strv *ret, struct error *err);
        int (*clone)(struct storage *s, const char *node, const char *id, uint64_t bytes, const struct op *op,
                     struct error *err);
        int (*freeze_begin)(struct storage *s, const char *id, const char *node, char **ret_overlay,
                            const struct op *op, struct error *err);
        int (*freeze_end)(struct storage *s, const char *id, const char *node, bool done, struct error *err);
        int (*freeze_recover)(struct storage *s, const char *id, const char *open_path, struct error *err);
        int (*node_info)(struct storage *s, const char *node, struct node_info *ret, struct error *err);
        int (*node_destroy)(struct storage *s, const char *node, struct error *err);
        int (*node_list)(struct storage *s, struct strv *ret, struct error *err);
        void (*close)(struct storage *s);
};

struct storage {
        const struct storage_ops *ops;
};

/* Opens the qcow2 backend over a folder (made when absent). reserve_bytes: a create that would leave less free space
 * than this is refused with no_space. */
int storage_open_qcow2(const char *dir, uint64_t reserve_bytes, struct storage **ret, struct error *err);

static inline int storage_create(struct storage *s, const char *id, const struct image *base, uint64_t bytes,
                                 const struct op *op, struct error *err) {
        return s->ops->create(s, id, base, bytes, op, err);
}
static inline int storage_destroy(struct storage *s, const char *id, struct error *err) {
        return s->ops->destroy(s, id, err);
}
static inline int storage_info(struct storage *s, const char *id, struct disk_info *ret, struct error *err) {
        return s->ops->info(s, id, ret, err);
}
static inline int storage_list(struct storage *s, struct strv *ret, struct error *err) {
        return s->ops->list(s, ret, err);
}
/* A new disk with the content of a node, of `bytes` (0: as the node; less is invalid_argument). Many may be made at the
 * same time. no_space as for a create. */
static inline int storage_clone(struct storage *s, const char *node, const char *id, uint64_t bytes,
                                const struct op *op, struct error *err) {
        return s->ops->clone(s, node, id, bytes, op, err);
}
/* *ret_overlay (owned): the file that a machine that has the disk open must change over to; NULL: it need not. One
 * freeze of a disk at a time. conflict: the node exists. On failure nothing has changed. */
static inline int storage_freeze_begin(struct storage *s, const char *id, const char *node, char **ret_overlay,
                                       const struct op *op, struct error *err) {
        return s->ops->freeze_begin(s, id, node, ret_overlay, op, err);
}
/* done: the machine has changed over, or there is none; the node is there, and lasts, when this returns. Not done: it
 * still writes to the file from before; there is no node. May be repeated. conflict: not done, but it was. */
static inline int storage_freeze_end(struct storage *s, const char *id, const char *node, bool done,
                                     struct error *err) {
        return s->ops->freeze_end(s, id, node, done, err);
}
/* Puts the disk in order after a crash, or after a freeze_end that failed; nothing may start on the disk before.
 * open_path: the file that a running machine has as its disk (vm_disk_file()), NULL without one; conflict, and nothing
 * is changed, when it is no file of this disk. What came of the node shows storage_node_info(). Without effect when
 * nothing was under way. */
static inline int storage_freeze_recover(struct storage *s, const char *id, const char *open_path, struct error *err) {
        return s->ops->freeze_recover(s, id, open_path, err);
}
/* not_found when there is no such node. */
static inline int storage_node_info(struct storage *s, const char *node, struct node_info *ret, struct error *err) {
        return s->ops->node_info(s, node, ret, err);
}
/* conflict when a disk, another node or a freeze under way stands on it: err names them. */
static inline int storage_node_destroy(struct storage *s, const char *node, struct error *err) {
        return s->ops->node_destroy(s, node, err);
}
static inline int storage_node_list(struct storage *s, struct strv *ret, struct error *err) {
        return s->ops->node_list(s, ret, err);
}
static inline void storage_close(struct storage *s) {
        if (s)
                s->ops->close(s);
}
