/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Disks of workspaces: an interface with backends.
 *
 * A disk belongs to one workspace and is known by its id. The backend decides what it is (a qcow2 overlay over the
 * base image, a zvol, ...); the core only gets a path and a format for QEMU. Every call may be repeated after a crash:
 * creating what is half there starts over, destroying what is not there succeeds.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "base/str.h"
#include "storage/image.h"

struct storage;

struct disk_info {
        char *path;             /* owned */
        const char *format;     /* static: "qcow2", "raw" */
        uint64_t used_bytes;    /* what this disk alone takes */
        uint64_t virtual_bytes; /* what the guest sees */
};
void disk_info_clear(struct disk_info *d);
#define _cleanup_disk_info_ _cleanup_(disk_info_clear)

struct storage_ops {
        const char *name;
        int (*create)(struct storage *s, const char *id, const struct image *base, uint64_t bytes, const struct op *op,
                      struct error *err);
        int (*destroy)(struct storage *s, const char *id, struct error *err);
        int (*info)(struct storage *s, const char *id, struct disk_info *ret, struct error *err);
        /* The ids of all disks that exist, for the collection of what has no owner. */
        int (*list)(struct storage *s, struct strv *ret, struct error *err);
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
static inline void storage_close(struct storage *s) {
        if (s)
                s->ops->close(s);
}
