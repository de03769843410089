/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 backend: each disk is an overlay over a base image that is kept in base/ (bases.h), or over a node, which
 * is an overlay itself. qcow2-private.h says what lies where, qcow2-freeze.c how a disk becomes a node, qcow2-overlay.h
 * how new overlays are made.
 *
 * A new disk is there when <disk>.qcow2 is: it is written under a temporary name. Both its content and its name last
 * when create or clone returns; twenty at once share the file system's journal, so that costs each of them little.
 */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/log.h"
#include "storage/bases.h"
#include "storage/qcow2-private.h"

#define OVERLAY_BYTES (1024u * 1024u) /* room for the first tables of a new overlay */

void disk_info_clear(struct disk_info *d) {
        free(d->path);
        *d = (struct disk_info){0};
}

/* --- errors and checks --- */

int check_room(struct qcow2_storage *q, const char *what, struct error *err) {
        uint64_t available = 0;
        int r = disk_free_bytes(q->dir, &available);
        if (r < 0)
                return error_set_errno(err, r, "Cannot learn the free space for disks");
        if (available >= OVERLAY_BYTES + q->reserve_bytes)
                return 0;
        r = error_set(err, ERROR_NO_SPACE,
                      "No new %s: the server has %" PRIu64 " MiB free for disks; one needs %" PRIu64
                      " MiB at first, and %" PRIu64 " MiB must stay free",
                      what, available / MIB, OVERLAY_BYTES / MIB, q->reserve_bytes / MIB);
        error_hint(err, "Destroy workspaces that are not needed, free space on the file system of state_dir, or lower "
                        "reserve_mb in the server's configuration.");
        return r;
}

void explain_full(struct qcow2_storage *q, int r, struct error *err) {
        uint64_t available = 0;
        bool full = r == -ENOSPC || r == -EDQUOT;
        if (r == -EIO && disk_free_bytes(q->dir, &available) >= 0)
                full = available < OVERLAY_BYTES;
        if (!full)
                return;
        error_set(err, ERROR_NO_SPACE, "The server's file system for disks is full");
        error_hint(err, "Destroy workspaces that are not needed, or free space on the file system of state_dir.");
}

int fail_disk(const char *id, int r, struct error *err) {
        if (r == -ENOENT)
                r = error_set(err, ERROR_INTERNAL, "The disk %s is missing: somebody has removed its file on the host",
                              id);
        else if (r == -EBADMSG)
                r = error_set(err, ERROR_INTERNAL, "The disk %s is damaged: its header is not that of a qcow2 file",
                              id);
        else
                return error_set_errno(err, r, "Cannot read the disk %s", id);
        error_hint(err, "Have a copy of it put back among the server's disks, or destroy the workspace.");
        return r;
}

/* min_gb: what to ask for instead, at least. */
static int check_size(const char *kind, const char *name, uint64_t min_bytes, uint64_t min_gb, uint64_t bytes,
                      struct error *err) {
        if (bytes >= min_bytes)
                return 0;
        int r = error_set(err, ERROR_INVALID_ARGUMENT,
                          "A disk of %" PRIu64 " MiB is too small for the %s \"%s\", which is %" PRIu64 " MiB large",
                          bytes / MIB, kind, name, min_bytes / MIB);
        error_hint(err, "Ask for disk_gb %" PRIu64 " or more.", MAX((min_bytes + GIB - 1) / GIB, min_gb));
        return r;
}

/* --- new disks --- */

/* A create that was interrupted left nothing but the first file, which may be written anew; unless it is a node's. */
static int check_free(struct qcow2_storage *q, const char *id, struct error *err) {
        _cleanup_folder_ struct folder f = {0};
        _cleanup_free_ char *first = str_printf("%s" FIRST_SUFFIX, id), *link = str_printf("%s" DISK_SUFFIX, id);
        if (!first || !link)
                return error_set_errno(err, ENOMEM, "Cannot make the disk %s", id);
        if (faccessat(q->dir_fd, first, F_OK, AT_SYMLINK_NOFOLLOW) < 0 &&
            faccessat(q->dir_fd, link, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
                return 0;
        int r = folder_read(q, &f, err);
        for (size_t i = 0; r >= 0 && i < f.n; i++) {
                const struct folder_entry *e = &f.v[i];
                if (!str_eq(e->disk, id) || (e->kind == FOLDER_FIRST && !e->of_node))
                        continue;
                r = error_set(err, ERROR_CONFLICT, "There is a disk %s already, and it was frozen", id);
                error_hint(err, "Destroy the disk and its nodes first, or use another id.");
        }
        return r;
}

/* Gives the file its name, if the node that it stands on is still there (NULL: it stands on a base image). */
static int publish(struct qcow2_storage *q, const char *tmp, const char *id, const char *node, const char *backing,
                   struct error *err) {
        _cleanup_free_ char *name = str_printf("%s" FIRST_SUFFIX, id), *now = NULL;
        if (!name)
                return error_set_errno(err, ENOMEM, "Cannot make the disk %s", id);
        LOCK(&q->names_lock);
        if (node && (node_file(q, node, &now) < 0 || !str_eq(now, backing)))
                return error_set(err, ERROR_NOT_FOUND, "The node %s was destroyed while the disk %s was made of it",
                                 node, id);
        int r = check_free(q, id, err);
        if (r < 0)
                return r;
        if (renameat(q->dir_fd, tmp, q->dir_fd, name) < 0)
                return error_set_errno(err, errno, "Cannot keep the disk %s", id);
        return 0;
}

static int make_disk(struct qcow2_storage *q, const char *id, const char *node, const struct overlay *what,
                     const struct op *op, struct error *err) {
        _cleanup_free_ char *tmp = str_printf("%s" FIRST_SUFFIX TMP_SUFFIX, id);
        if (!tmp)
                return error_set_errno(err, ENOMEM, "Cannot make the disk %s", id);
        int r = overlay_write(q->overlays, tmp, what, op, err);
        if (r >= 0)
                r = publish(q, tmp, id, node, what->backing, err);
        if (r >= 0) {
                r = folder_sync(q);
                if (r < 0)
                        error_set_errno(err, r, "Cannot keep the disk %s", id);
        }
        if (r >= 0)
                return 0;
        explain_full(q, r, err);
        unlinkat(q->dir_fd, tmp, 0);
        return error_is_set(err) ? -error_code_errno(err->code) : r;
}

static int qcow2_create(struct storage *s, const char *id, const struct image *base, uint64_t bytes,
                        const struct op *op, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_free_ char *base_file = NULL;

        int r = check_disk_id(id, err);
        if (r >= 0)
                r = check_size("image", base->name, base->virtual_bytes, base->min_disk_gb, bytes, err);
        if (r >= 0)
                r = check_room(q, "disk", err);
        if (r < 0)
                return r;
        {
                LOCK(&q->bases_lock);
                r = bases_keep(q->base_dir, base, q->reserve_bytes, op, &base_file, err);
        }
        if (r < 0)
                return r;
        _cleanup_free_ char *backing = path_join(BASE_FOLDER, base_file);
        if (!backing)
                return error_set_errno(err, ENOMEM, "Cannot make the disk %s", id);
        const struct overlay what = {.backing = backing, .format = "raw", .virtual_bytes = bytes};
        return make_disk(q, id, NULL, &what, op, err);
}

static int qcow2_clone(struct storage *s, const char *node, const char *id, uint64_t bytes, const struct op *op,
                       struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_free_ char *file = NULL;
        struct qcow2_header header;

        int r = check_disk_id(id, err);
        if (r >= 0)
                r = check_node_id(node, err);
        if (r < 0)
                return r;
        r = node_header(q, node, &file, &header, err);
        if (r < 0)
                return r;
        if (bytes == 0)
                bytes = header.virtual_bytes;
        r = check_size("node", node, header.virtual_bytes, 0, bytes, err);
        if (r >= 0)
                r = check_room(q, "disk", err);
        if (r < 0)
                return r;
        const struct overlay what = {.backing = file, .format = "qcow2", .virtual_bytes = bytes};
        return make_disk(q, id, node, &what, op, err);
}

/* --- the end of a disk --- */

/* Links of nodes that a freeze has begun to make: the disk is in their file still. */
static int remove_half_nodes(struct qcow2_storage *q, const struct folder *f, const char *id, const char *file) {
        int r = 0;
        for (size_t i = 0; r >= 0 && i < f->n; i++) {
                const struct folder_entry *e = &f->v[i];
                if (e->kind != FOLDER_OVERLAY || !str_eq(e->disk, id) || !folder_unused(e))
                        continue;
                _cleanup_free_ char *name = str_printf("%s" NODE_SUFFIX, e->node);
                const struct folder_entry *link = folder_find(f, name);
                if (link && str_eq(link->target, file))
                        r = name_remove(q, e->node, NODE_SUFFIX);
        }
        return r;
}

/* The file that the disk is in. When its first file has become a node's, the link stays, and says that it is gone. */
static int remove_current(struct qcow2_storage *q, const struct folder *f, const char *id, const char *file,
                          bool *ret_keep_link) {
        _cleanup_free_ char *name = str_printf("%s" FIRST_SUFFIX, id);
        if (!name)
                return -ENOMEM;
        const struct folder_entry *first = folder_find(f, name), *current = folder_find(f, file);
        *ret_keep_link = first && first->of_node;
        int r = *ret_keep_link ? link_set(q, id, DISK_SUFFIX, NO_FILE) : 0;
        if (r >= 0 && current && !current->of_node)
                r = name_remove(q, file, "");
        return r;
}

static bool any_unused(const struct folder *f, const char *id) {
        for (size_t i = 0; i < f->n; i++)
                if (str_eq(f->v[i].disk, id) && folder_unused(&f->v[i]))
                        return true;
        return false;
}

/* Files of the disk that nobody is in and nothing stands on; then those below. */
static int remove_unused(struct qcow2_storage *q, const char *id, struct error *err) {
        for (bool again = true; again;) {
                _cleanup_folder_ struct folder f = {0};
                int r = folder_read(q, &f, err);
                if (r < 0 || !any_unused(&f, id))
                        return r;
                again = false;
                r = folder_read_headers(q, &f, err);
                for (size_t i = 0; r >= 0 && i < f.n; i++) {
                        const struct folder_entry *e = &f.v[i];
                        if (!str_eq(e->disk, id) || !folder_unused(e) || e->upper)
                                continue;
                        r = name_remove(q, e->name, "");
                        again = true;
                }
                if (r < 0)
                        return r;
        }
        return 0;
}

static int destroy_locked(struct qcow2_storage *q, const char *id, struct error *err) {
        _cleanup_folder_ struct folder f = {0};
        _cleanup_free_ char *file =
                NULL; /* NULL: the disk is gone, but for what a crash has left; or its link is bad */
        int r = disk_file(q, id, &file);
        if (r >= 0 || r == -ENOENT || r == -EBADMSG)
                r = folder_read(q, &f, err);
        const bool left = r >= 0 && any_unused(&f, id);
        if (left) {
                r = remove_half_nodes(q, &f, id, file);
                folder_clear(&f);
                if (r >= 0)
                        r = folder_read(q, &f, err);
        }
        bool keep_link = false;
        if (r >= 0)
                r = remove_current(q, &f, id, file, &keep_link);
        if (r >= 0 && left)
                r = remove_unused(q, id, err);
        return r < 0 || keep_link ? r : name_remove(q, id, DISK_SUFFIX);
}

static int qcow2_destroy(struct storage *s, const char *id, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        int r = check_disk_id(id, err);
        if (r < 0)
                return r;
        LOCK(&q->names_lock);
        r = name_remove(q, id, FIRST_SUFFIX TMP_SUFFIX);
        if (r >= 0)
                r = destroy_locked(q, id, err);
        return r < 0 && !error_is_set(err) ? error_set_errno(err, r, "Cannot remove the disk %s", id) : r;
}

/* --- what there is --- */

static int qcow2_info(struct storage *s, const char *id, struct disk_info *ret, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_disk_info_ struct disk_info info = {.format = "qcow2"};
        _cleanup_free_ char *file = NULL;
        struct qcow2_header header;
        struct stat st;

        int r = check_disk_id(id, err);
        if (r < 0)
                return r;
        r = disk_file(q, id, &file);
        if (r < 0)
                return fail_disk(id, r, err);
        info.path = path_join(q->dir, file);
        if (!info.path)
                return error_set_errno(err, ENOMEM, "Cannot look at the disk %s", id);
        _cleanup_close_ int fd = open(info.path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 || fstat(fd, &st) < 0)
                return fail_disk(id, -errno, err);
        r = qcow2_header_read(fd, &header);
        if (r < 0)
                return fail_disk(id, r, err);
        info.virtual_bytes = header.virtual_bytes;
        info.used_bytes = (uint64_t) st.st_blocks * 512; /* stat(2): always in units of 512 bytes */
        *ret = info;
        info.path = NULL;
        return 0;
}

/* The disk that is there, or of which something was left, by this name in the folder; NULL for any other name. */
static const char *disk_of(const struct folder_entry *e) {
        switch (e->kind) {
        case FOLDER_DISK_LINK:
                return str_eq(e->target, NO_FILE) ? NULL : e->disk;
        case FOLDER_FIRST:
        case FOLDER_OVERLAY:
                return e->of_disk || folder_unused(e) ? e->disk : NULL;
        default:
                return NULL;
        }
}

static int qcow2_list(struct storage *s, struct strv *ret, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_strv_ struct strv ids = {0};
        _cleanup_folder_ struct folder f = {0};
        LOCK(&q->names_lock);
        int r = folder_read(q, &f, err);
        if (r < 0)
                return r;
        for (size_t i = 0; r >= 0 && i < f.n; i++) {
                const char *id = disk_of(&f.v[i]);
                /* All names of a disk stand together. */
                if (id && (ids.n == 0 || !str_eq(ids.v[ids.n - 1], id)))
                        r = strv_add(&ids, id);
        }
        if (r < 0)
                return error_set_errno(err, r, "Cannot list the disks in %s", q->dir);
        *ret = ids;
        ids = (struct strv){0};
        return 0;
}

/* --- open and close --- */

static void qcow2_close(struct storage *s) {
        struct qcow2_storage *q = qcow2_of(s);
        overlays_free(q->overlays);
        pthread_mutex_destroy(&q->bases_lock);
        pthread_mutex_destroy(&q->names_lock);
        close_fd(q->dir_fd);
        free(q->dir);
        free(q->base_dir);
        free(q);
}
DEFINE_CLEANUP(struct storage *, storage_close)

static const struct storage_ops qcow2_ops = {
        .name = "qcow2",
        .create = qcow2_create,
        .destroy = qcow2_destroy,
        .info = qcow2_info,
        .list = qcow2_list,
        .clone = qcow2_clone,
        .freeze_begin = qcow2_freeze_begin,
        .freeze_end = qcow2_freeze_end,
        .freeze_recover = qcow2_freeze_recover,
        .node_info = qcow2_node_info,
        .node_destroy = qcow2_node_destroy,
        .node_list = qcow2_node_list,
        .close = qcow2_close,
};

static void remove_temporaries(const char *dir) {
        DIR *d = opendir(dir);
        if (!d)
                return;
        for (struct dirent *e; (e = readdir(d));) {
                size_t n = strlen(e->d_name), suffix = strlen(TMP_SUFFIX);
                if (n > suffix && str_eq(e->d_name + n - suffix, TMP_SUFFIX))
                        unlinkat(dirfd(d), e->d_name, 0);
        }
        closedir(d);
}

/* Removes base images that no overlay needs. If one overlay cannot be read, all of them are kept. */
static void collect_bases(struct qcow2_storage *q) {
        _cleanup_strv_ struct strv used = {0};
        _cleanup_folder_ struct folder f = {0};
        int r = folder_read(q, &f, NULL);
        if (r >= 0)
                r = folder_read_headers(q, &f, NULL);
        for (size_t i = 0; r >= 0 && i < f.n; i++) {
                const struct folder_entry *e = &f.v[i];
                r = e->unreadable;
                if (r < 0)
                        log_warn("Base images are not collected: a disk cannot be read", "file", e->name, "error",
                                 strerror(-r));
                else if (e->backing && str_starts_with(e->backing, BASE_FOLDER "/"))
                        r = strv_add(&used, e->backing + strlen(BASE_FOLDER "/"));
        }
        if (r >= 0)
                bases_collect(q->base_dir, &used);
}

static int open_folder(struct qcow2_storage *q, const char *dir, struct error *err) {
        _cleanup_free_ char *base_dir = path_join(dir, BASE_FOLDER);
        int r = base_dir ? mkdir_p(base_dir, 0700) : -ENOMEM;
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the folder of disks %s", dir);
        q->dir = realpath(dir, NULL);
        q->base_dir = realpath(base_dir, NULL);
        q->dir_fd = q->dir ? open(q->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
        if (!q->base_dir || q->dir_fd < 0)
                return error_set_errno(err, errno, "Cannot open the folder of disks %s", dir);
        return 0;
}

int storage_open_qcow2(const char *dir, uint64_t reserve_bytes, struct storage **ret, struct error *err) {
        struct qcow2_storage *q = calloc(1, sizeof(*q));
        if (!q)
                return error_set_errno(err, ENOMEM, "Cannot open the disks in %s", dir);
        _cleanup_(storage_closep) struct storage *s = &q->storage;
        _cleanup_free_ char *qemu_img = NULL;
        q->storage.ops = &qcow2_ops;
        q->reserve_bytes = reserve_bytes;
        q->dir_fd = -1;
        pthread_mutex_init(&q->bases_lock, NULL);
        pthread_mutex_init(&q->names_lock, NULL);

        int r = open_folder(q, dir, err);
        if (r < 0)
                return r;
        r = find_program("qemu-img", &qemu_img);
        if (r < 0) {
                r = error_set(err, ERROR_UNSUPPORTED, "The program qemu-img is not installed");
                error_hint(err, "Install it: apt-get install qemu-utils");
                return r;
        }
        r = overlays_new(q->dir, qemu_img, &q->overlays);
        if (r < 0)
                return error_set_errno(err, r, "Cannot open the disks in %s", dir);
        remove_temporaries(q->dir);
        remove_temporaries(q->base_dir);
        collect_bases(q);
        *ret = TAKE_PTR(s);
        return 0;
}
