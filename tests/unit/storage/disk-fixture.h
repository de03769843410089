/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* A storage over a small image, and what the tests of disks and nodes do with QEMU's own tools. */

#include <dirent.h>
#include <stdarg.h>
#include <sys/stat.h>

#include "base/process.h"
#include "state/scratch.h"
#include "storage/make-image.h"
#include "storage/storage.h"

#define MIB ((uint64_t) 1 << 20)
#define GIB ((uint64_t) 1 << 30)
#define FIXTURE_MS 60000 /* for any one step */

DEFINE_CLEANUP(struct storage *, storage_close)
#define _cleanup_storage_ _cleanup_(storage_closep)

struct fixture {
        char *dir, *images, *disks;
        struct image image;
        struct storage *storage;
};

static inline void fixture_done(struct fixture *f) {
        storage_close(f->storage);
        image_clear(&f->image);
        scratch_remove(&f->dir);
        free(f->images);
        free(f->disks);
}
#define _cleanup_fixture_ _cleanup_(fixture_done)

static inline int fixture_make(struct fixture *f) {
        f->dir = scratch_new();
        if (!f->dir)
                return -errno;
        f->images = path_join(f->dir, "images");
        f->disks = path_join(f->dir, "disks");
        int r = image_make(f->images, "base", 64 * MIB, 1, "first version");
        if (r >= 0)
                r = image_find(f->images, "base", &f->image, NULL);
        if (r >= 0)
                r = storage_open_qcow2(f->disks, 0, &f->storage, NULL);
        return r;
}

/* As the next daemon does. */
static inline _unused_ int fixture_reopen(struct fixture *f) {
        storage_close(TAKE_PTR(f->storage));
        return storage_open_qcow2(f->disks, 0, &f->storage, NULL);
}

static inline _unused_ int create_disk(struct fixture *f, const char *id) {
        struct op op = op_timeout(FIXTURE_MS);
        return storage_create(f->storage, id, &f->image, GIB, &op, NULL);
}

static inline _unused_ int clone_disk(struct fixture *f, const char *node, const char *id) {
        struct op op = op_timeout(FIXTURE_MS);
        return storage_clone(f->storage, node, id, 0, &op, NULL);
}

/* Without a machine. */
static inline _unused_ int freeze_disk(struct fixture *f, const char *id, const char *node) {
        _cleanup_free_ char *overlay = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        int r = storage_freeze_begin(f->storage, id, node, &overlay, &op, NULL);
        return r < 0 ? r : storage_freeze_end(f->storage, id, node, true, NULL);
}

/* The file that a disk is in; owned. */
static inline _unused_ char *disk_path(struct fixture *f, const char *id) {
        struct disk_info info = {0};
        return storage_info(f->storage, id, &info, NULL) < 0 ? NULL : info.path;
}

/* One command of qemu-io. It fails when a read finds another pattern than it was given. */
static inline _unused_ int qemu_io(const char *path, bool write, const char *fmt, ...) _printf_(3, 4);
static inline _unused_ int qemu_io(const char *path, bool write, const char *fmt, ...) {
        char command[128];
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(command, sizeof(command), fmt, ap);
        va_end(ap);
        char *argv[] = {
                (char *) "qemu-io",           (char *) "-f", (char *) "qcow2", (char *) "-c", command, (char *) path,
                write ? NULL : (char *) "-r", NULL};
        struct op op = op_timeout(FIXTURE_MS);
        return process_run(argv, &op, NULL, NULL, NULL);
}

/* A MiB of one byte at an offset of so many MiB: written to a disk, and looked for. */
static inline _unused_ int disk_write(struct fixture *f, const char *id, unsigned mib, unsigned char byte) {
        _cleanup_free_ char *path = disk_path(f, id);
        return path ? qemu_io(path, true, "write -P %u %uM 1M", byte, mib) : -ENOENT;
}
static inline _unused_ bool disk_has(struct fixture *f, const char *id, unsigned mib, unsigned char byte) {
        _cleanup_free_ char *path = disk_path(f, id);
        return path && qemu_io(path, false, "read -P %u %uM 1M", byte, mib) == 0;
}

/* Names in the folder of disks, without that of the base images. */
static inline _unused_ unsigned count_files(const struct fixture *f) {
        DIR *d = opendir(f->disks);
        unsigned n = 0;
        for (struct dirent *e; d && (e = readdir(d));)
                n += e->d_name[0] != '.' && !str_eq(e->d_name, "base");
        if (d)
                closedir(d);
        return n;
}
