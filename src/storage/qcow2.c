/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 backend: each disk is an overlay <id>.qcow2 over a base image that is kept in base/ (bases.h). The overlay
 * names its base relative to its own folder, so that the state folder may be moved while nothing runs.
 *
 * qemu-img makes the overlays: about 10 ms each, next to a boot of seconds.
 */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/log.h"
#include "base/process.h"
#include "base/thread.h"
#include "storage/bases.h"
#include "storage/qcow2-header.h"
#include "storage/storage.h"

#define SUFFIX ".qcow2"
#define TMP_SUFFIX ".tmp"
#define BASE_FOLDER "base"
#define DISK_ID_MAX 64
#define OVERLAY_BYTES (1024u * 1024u) /* room for the tables of a new overlay; 192 KiB were measured for 10 GiB */
#define GIB ((uint64_t) 1 << 30)
#define MIB ((uint64_t) 1 << 20)

struct qcow2_storage {
        struct storage storage; /* first: the interface's pointer is ours */
        char *dir, *base_dir;   /* absolute; never change */
        char *qemu_img;
        uint64_t reserve_bytes;
        pthread_mutex_t bases_lock; /* one thread at a time keeps a base image */
};

static struct qcow2_storage *qcow2_of(struct storage *s) {
        return (struct qcow2_storage *) s;
}

void disk_info_clear(struct disk_info *d) {
        free(d->path);
        *d = (struct disk_info){0};
}

/* Letters, digits and dashes: a name that cannot lead out of the folder, hide in it or be a temporary one. */
static bool disk_id_valid(const char *id) {
        return id && name_valid(id, DISK_ID_MAX, "-");
}

static int disk_path(struct qcow2_storage *q, const char *id, const char *suffix, char **ret, struct error *err) {
        if (!disk_id_valid(id))
                return error_set(err, ERROR_INVALID_ARGUMENT, "\"%s\" cannot be the id of a disk", id ? id : "");
        *ret = str_printf("%s/%s%s", q->dir, id, suffix);
        return *ret ? 0 : error_set_errno(err, ENOMEM, "Cannot name the disk %s", id);
}

static int check_size(const struct image *base, uint64_t bytes, struct error *err) {
        if (bytes >= base->virtual_bytes)
                return 0;
        uint64_t min_gb = (base->virtual_bytes + GIB - 1) / GIB;
        int r = error_set(err, ERROR_INVALID_ARGUMENT,
                          "A disk of %" PRIu64 " MiB is too small for the image \"%s\", which is %" PRIu64 " MiB large",
                          bytes / MIB, base->name, base->virtual_bytes / MIB);
        error_hint(err, "Ask for disk_gb %" PRIu64 " or more.", MAX(min_gb, (uint64_t) base->min_disk_gb));
        return r;
}

static int check_room(struct qcow2_storage *q, struct error *err) {
        uint64_t available = 0;
        int r = disk_free_bytes(q->dir, &available);
        if (r < 0)
                return error_set_errno(err, r, "Cannot learn the free space for disks");
        if (available >= OVERLAY_BYTES + q->reserve_bytes)
                return 0;
        r = error_set(err, ERROR_NO_SPACE,
                      "No new disk: the server has %" PRIu64 " MiB free for disks; one needs %" PRIu64
                      " MiB at first, and %" PRIu64 " MiB must stay free",
                      available / MIB, OVERLAY_BYTES / MIB, q->reserve_bytes / MIB);
        error_hint(err, "Destroy workspaces that are not needed, free space on the file system of state_dir, or lower "
                        "reserve_mb in the server's configuration.");
        return r;
}

static int run_qemu_img(struct qcow2_storage *q, const char *path, const char *base, uint64_t bytes,
                        const struct op *op, struct error *err) {
        char size[24];
        snprintf(size, sizeof(size), "%" PRIu64, bytes);
        char *argv[] = {q->qemu_img,      (char *) "create", (char *) "-q",  (char *) "-f",
                        (char *) "qcow2", (char *) "-F",     (char *) "raw", (char *) "-b",
                        (char *) base,    (char *) path,     size,           NULL};
        return process_run(argv, op, NULL, NULL, err);
}

/* The new file is on the disk when this returns, under its name. */
static int publish(struct qcow2_storage *q, const char *tmp, const char *path) {
        _cleanup_close_ int fd = open(tmp, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fsync(fd) < 0 || rename(tmp, path) < 0)
                return -errno;
        _cleanup_close_ int dir = open(q->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return dir < 0 || fsync(dir) < 0 ? -errno : 0;
}

/* qemu-img says why it failed only in words; a file system that is full by now is reason enough. */
static void explain_full(struct qcow2_storage *q, struct error *err) {
        uint64_t available = 0;
        if (disk_free_bytes(q->dir, &available) < 0 || available >= OVERLAY_BYTES)
                return;
        error_set(err, ERROR_NO_SPACE, "The server's file system for disks is full");
        error_hint(err, "Destroy workspaces that are not needed, or free space on the file system of state_dir.");
}

static int qcow2_create(struct storage *s, const char *id, const struct image *base, uint64_t bytes,
                        const struct op *op, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_free_ char *path = NULL, *tmp = NULL, *base_file = NULL;

        int r = disk_path(q, id, SUFFIX, &path, err);
        if (r >= 0)
                r = disk_path(q, id, SUFFIX TMP_SUFFIX, &tmp, err);
        if (r >= 0)
                r = check_size(base, bytes, err);
        if (r >= 0)
                r = check_room(q, err);
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

        r = run_qemu_img(q, tmp, backing, bytes, op, err);
        if (r >= 0) {
                r = publish(q, tmp, path);
                if (r < 0)
                        error_set_errno(err, r, "Cannot keep the disk %s", id);
        }
        if (r < 0) {
                if (r != -ECANCELED && r != -ETIMEDOUT)
                        explain_full(q, err);
                unlink(tmp);
                return error_is_set(err) ? -error_code_errno(err->code) : r;
        }
        return 0;
}

static int remove_file(const char *path, struct error *err) {
        if (unlink(path) < 0 && errno != ENOENT)
                return error_set_errno(err, errno, "Cannot remove the disk %s", strrchr(path, '/') + 1);
        return 0;
}

static int qcow2_destroy(struct storage *s, const char *id, struct error *err) {
        _cleanup_free_ char *path = NULL, *tmp = NULL;
        int r = disk_path(qcow2_of(s), id, SUFFIX, &path, err);
        if (r >= 0)
                r = disk_path(qcow2_of(s), id, SUFFIX TMP_SUFFIX, &tmp, err);
        if (r >= 0)
                r = remove_file(tmp, err);
        return r < 0 ? r : remove_file(path, err);
}

/* Whoever asks for a disk has a workspace that should have it: that it is not there is no fault of the caller's. */
static int fail_missing(const char *id, struct error *err) {
        int r = error_set(err, ERROR_INTERNAL, "The disk %s is missing: somebody has removed its file on the host", id);
        error_hint(err, "Have the file %s" SUFFIX " put back among the server's disks, or destroy the workspace.", id);
        return r;
}

static int fail_damaged(const char *id, struct error *err) {
        int r = error_set(err, ERROR_INTERNAL, "The disk %s is damaged: its header is not that of a qcow2 file", id);
        error_hint(err, "Have a copy of it put back among the server's disks, or destroy the workspace.");
        return r;
}

static int qcow2_info(struct storage *s, const char *id, struct disk_info *ret, struct error *err) {
        _cleanup_disk_info_ struct disk_info info = {.format = "qcow2"};
        int r = disk_path(qcow2_of(s), id, SUFFIX, &info.path, err);
        if (r < 0)
                return r;
        _cleanup_close_ int fd = open(info.path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 && errno == ENOENT)
                return fail_missing(id, err);
        struct stat st;
        if (fd < 0 || fstat(fd, &st) < 0)
                return error_set_errno(err, errno, "Cannot look at the disk %s", id);

        struct qcow2_header header;
        r = qcow2_header_read(fd, &header);
        if (r == -EBADMSG)
                return fail_damaged(id, err);
        if (r < 0)
                return error_set_errno(err, r, "Cannot read the disk %s", id);
        info.virtual_bytes = header.virtual_bytes;
        info.used_bytes = (uint64_t) st.st_blocks * 512; /* stat(2): always in units of 512 bytes */
        *ret = info;
        info.path = NULL;
        return 0;
}

/* The id in a file name that ends in .qcow2; NULL for any other file. */
static char *id_of_file(const char *name) {
        size_t n = strlen(name), suffix = strlen(SUFFIX);
        if (n <= suffix || !str_eq(name + n - suffix, SUFFIX))
                return NULL;
        char *id = strndup(name, n - suffix);
        if (id && !disk_id_valid(id)) {
                free(id);
                return NULL;
        }
        return id;
}

static int qcow2_list(struct storage *s, struct strv *ret, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_strv_ struct strv ids = {0};
        DIR *d = opendir(q->dir);
        if (!d)
                return error_set_errno(err, errno, "Cannot list the disks in %s", q->dir);
        int r = 0;
        for (struct dirent *e; r >= 0 && (e = readdir(d));) {
                _cleanup_free_ char *id = id_of_file(e->d_name);
                if (id)
                        r = strv_add(&ids, id);
        }
        closedir(d);
        if (r < 0)
                return error_set_errno(err, r, "Cannot list the disks in %s", q->dir);
        *ret = ids;
        ids = (struct strv){0};
        return 0;
}

static void qcow2_close(struct storage *s) {
        struct qcow2_storage *q = qcow2_of(s);
        pthread_mutex_destroy(&q->bases_lock);
        free(q->dir);
        free(q->base_dir);
        free(q->qemu_img);
        free(q);
}
DEFINE_CLEANUP(struct storage *, storage_close)

static const struct storage_ops qcow2_ops = {
        .name = "qcow2",
        .create = qcow2_create,
        .destroy = qcow2_destroy,
        .info = qcow2_info,
        .list = qcow2_list,
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

/* Adds the name of the base that the overlay stands on. */
static int add_base_of(struct qcow2_storage *q, const char *id, struct strv *used) {
        _cleanup_free_ char *path = str_printf("%s/%s" SUFFIX, q->dir, id);
        if (!path)
                return -ENOMEM;
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        struct qcow2_header header;
        if (fd < 0)
                return -errno;
        int r = qcow2_header_read(fd, &header);
        const char *name = r < 0 ? NULL : strrchr(header.backing, '/');
        return name ? strv_add(used, name + 1) : r;
}

/* Removes base images that no overlay needs. If one overlay cannot be read, all of them are kept. */
static void collect_bases(struct qcow2_storage *q) {
        _cleanup_strv_ struct strv ids = {0}, used = {0};
        int r = qcow2_list(&q->storage, &ids, NULL);
        for (size_t i = 0; r >= 0 && i < ids.n; i++) {
                r = add_base_of(q, ids.v[i], &used);
                if (r < 0)
                        log_warn("Base images are not collected: a disk cannot be read", "disk", ids.v[i], "error",
                                 strerror(-r));
        }
        if (r >= 0)
                bases_collect(q->base_dir, &used);
}

int storage_open_qcow2(const char *dir, uint64_t reserve_bytes, struct storage **ret, struct error *err) {
        struct qcow2_storage *q = calloc(1, sizeof(*q));
        if (!q)
                return error_set_errno(err, ENOMEM, "Cannot open the disks in %s", dir);
        _cleanup_(storage_closep) struct storage *s = &q->storage;
        q->storage.ops = &qcow2_ops;
        q->reserve_bytes = reserve_bytes;
        pthread_mutex_init(&q->bases_lock, NULL);

        _cleanup_free_ char *base_dir = path_join(dir, BASE_FOLDER);
        int r = base_dir ? mkdir_p(base_dir, 0700) : -ENOMEM;
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the folder of disks %s", dir);
        q->dir = realpath(dir, NULL);
        q->base_dir = realpath(base_dir, NULL);
        if (!q->dir || !q->base_dir)
                return error_set_errno(err, errno, "Cannot open the folder of disks %s", dir);
        r = find_program("qemu-img", &q->qemu_img);
        if (r < 0) {
                r = error_set(err, ERROR_UNSUPPORTED, "The program qemu-img is not installed");
                error_hint(err, "Install it: apt-get install qemu-utils");
                return r;
        }
        remove_temporaries(q->dir);
        remove_temporaries(q->base_dir);
        collect_bases(q);
        *ret = TAKE_PTR(s);
        return 0;
}
