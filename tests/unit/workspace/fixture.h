/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* A core over a real store, real disks and a small image. Its "QEMU" is a program that ends at once, so whatever does
 * not need a machine can be tried, and whatever does fails and must leave nothing. */

#include <dirent.h>
#include <sys/stat.h>

#include "state/scratch.h"
#include "storage/make-image.h"
#include "workspace/workspace.h"

#define FIXTURE_IMAGE "tiny"

struct fixture {
        char *dir, *state_dir, *image_dir, *db_path, *disks;
        struct core_config cfg;
        struct platform platform;
        struct db *db;
        struct storage *storage;
        struct core *core;
};

static inline void fixture_close(struct fixture *f) {
        core_close(f->core);
        storage_close(f->storage);
        db_close(f->db);
        f->core = NULL;
        f->storage = NULL;
        f->db = NULL;
}

/* Opens store, disks and core as a start of the daemon does; no recovery yet. */
static inline int fixture_open(struct fixture *f, struct error *err) {
        int r = db_open(f->db_path, &f->db, err);
        if (r >= 0)
                r = storage_open_qcow2(f->disks, 0, &f->storage, err);
        if (r >= 0)
                r = core_open(&f->cfg, f->db, f->storage, &f->platform, &f->core, err);
        return r;
}

/* dir: taken over; NULL: a new one. */
static inline int fixture_prepare(struct fixture *f, char *dir) {
        f->dir = dir ? dir : scratch_new();
        if (!f->dir)
                return -EIO;
        f->state_dir = path_join(f->dir, "s");
        f->image_dir = path_join(f->dir, "images");
        f->db_path = path_join(f->state_dir, "state.db");
        f->disks = path_join(f->state_dir, "disks");
        f->cfg = (struct core_config){
                .state_dir = f->state_dir,
                .image_dir = f->image_dir,
                .default_image = FIXTURE_IMAGE,
                .default_vcpus = 2,
                .default_memory_mb = 512,
                .default_disk_gb = 10,
                .limits = {.max_vcpus = 8, .max_memory_mb = 8192, .max_disk_gb = 100, .max_workspaces = 100},
                .network = 0x0a630000, /* 10.99.0.0 */
                .prefix_len = 16,
                .boot_timeout_ms = 10000,
        };
        f->platform = (struct platform){
                .qemu = (char *) "/bin/false",
                .qemu_version = (char *) "0",
                .kernel = (char *) "/nonexistent/vmlinuz",
                .initramfs = (char *) "/nonexistent/initramfs.img",
                .accel = ACCEL_TCG,
                .accel_reason = (char *) "a test",
        };
        int r = mkdir_p(f->state_dir, 0700);
        return r < 0 ? r : image_make(f->image_dir, FIXTURE_IMAGE, (uint64_t) 64 << 20, 2, "image");
}

static inline void fixture_done(struct fixture *f) {
        fixture_close(f);
        scratch_remove(&f->dir);
        free(f->state_dir);
        free(f->image_dir);
        free(f->db_path);
        free(f->disks);
}
#define _cleanup_fixture_ _cleanup_(fixture_done)

/* How many entries a folder below the state folder has. */
static inline unsigned fixture_count(const struct fixture *f, const char *folder) {
        _cleanup_free_ char *path = path_join(f->state_dir, folder);
        DIR *d = opendir(path);
        unsigned n = 0;
        for (struct dirent *e; d && (e = readdir(d));)
                n += !str_eq(e->d_name, ".") && !str_eq(e->d_name, "..") && !str_eq(e->d_name, "base");
        if (d)
                closedir(d);
        return n;
}

/* Puts a workspace there as an earlier daemon left it: a row, and a folder and a disk unless it is bare. */
static inline int fixture_leave(struct fixture *f, const char *name, enum ws_state state, unsigned host, bool bare,
                                char ret_id[UUID_LEN + 1]) {
        _cleanup_ws_row_ struct ws_row row = {
                .name = strdup(name),
                .state = state,
                .base_image = strdup(FIXTURE_IMAGE),
                .vcpus = 2,
                .memory_mb = 512,
                .disk_gb = 10,
                .address = f->cfg.network + host,
                .owner = strdup("gone"),
                .created_ms = 1700000000000,
        };
        uuid_new(row.id);
        memcpy(ret_id, row.id, sizeof(row.id));
        memcpy(row.disk, row.id, sizeof(row.disk));
        snprintf(row.mac, sizeof(row.mac), "52:54:00:63:00:%02x", host);
        int r = db_ws_insert(f->db, &row, NULL);
        if (r < 0 || bare)
                return r;
        _cleanup_free_ char *dir = str_printf("%s/vms/%s", f->state_dir, row.id);
        _cleanup_image_ struct image image = {0};
        struct op op = op_timeout(30000);
        r = mkdir_p(dir, 0700);
        if (r >= 0)
                r = image_find(f->image_dir, FIXTURE_IMAGE, &image, NULL);
        return r < 0 ? r : storage_create(f->storage, row.id, &image, (uint64_t) 10 << 30, &op, NULL);
}
