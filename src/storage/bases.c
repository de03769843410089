/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/bases.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/log.h"

#define COPY_STEP (8u * 1024u * 1024u) /* bytes between two looks at the cancel token */
#define COPY_CHUNK (256u * 1024u)      /* of the copy by hand */

/* The same file gives the same name; a file that took its path or its inode number later does not. */
static char *base_name(const struct stat *st) {
        return str_printf("%" PRIx64 "-%" PRIx64 "-%" PRIx64 ".%09ld-%" PRIx64 ".raw", (uint64_t) st->st_dev,
                          (uint64_t) st->st_ino, (uint64_t) st->st_mtim.tv_sec, st->st_mtim.tv_nsec,
                          (uint64_t) st->st_size);
}

/* Copies n bytes at the same offset of both files: in the kernel where it can, else through a buffer. */
static int copy_range(int from, int to, off_t offset, size_t n) {
        static const int by_hand[] = {EXDEV, EINVAL, ENOSYS, EOPNOTSUPP};
        off_t in = offset, out = offset;
        ssize_t done = copy_file_range(from, &in, to, &out, n, 0);
        if (done > 0)
                return (int) done;
        if (done == 0)
                return -ENODATA;
        bool possible = false;
        for (size_t i = 0; i < ARRAY_SIZE(by_hand); i++)
                possible |= errno == by_hand[i];
        if (!possible)
                return -errno;

        _cleanup_free_ char *chunk = malloc(COPY_CHUNK);
        if (!chunk)
                return -ENOMEM;
        ssize_t got = pread(from, chunk, MIN(n, (size_t) COPY_CHUNK), offset);
        if (got <= 0)
                return got < 0 ? -errno : -ENODATA;
        for (ssize_t at = 0; at < got;) {
                ssize_t put = pwrite(to, chunk + at, (size_t) (got - at), offset + at);
                if (put < 0)
                        return -errno;
                at += put;
        }
        return (int) got;
}

/* Copies what is not a hole. */
static int copy_sparse(int from, int to, off_t size, const struct op *op) {
        if (ftruncate(to, size) < 0)
                return -errno;
        for (off_t at = 0; at < size;) {
                off_t start = lseek(from, at, SEEK_DATA);
                if (start < 0)
                        return errno == ENXIO ? 0 : -errno; /* ENXIO: nothing but a hole is left */
                off_t end = lseek(from, start, SEEK_HOLE);
                if (end < 0)
                        return -errno;
                for (at = start; at < end;) {
                        int r = op_check(op);
                        if (r >= 0)
                                r = copy_range(from, to, at, (size_t) MIN(end - at, (off_t) COPY_STEP));
                        if (r < 0)
                                return r;
                        at += r;
                }
        }
        return 0;
}

static int copy_base(int from, const struct stat *st, const char *path, const struct op *op) {
        _cleanup_free_ char *tmp = str_printf("%s.tmp", path);
        if (!tmp)
                return -ENOMEM;
        _cleanup_close_ int to = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (to < 0)
                return -errno;
        int r = copy_sparse(from, to, st->st_size, op);
        if (r >= 0 && fsync(to) < 0)
                r = -errno;
        if (r >= 0 && rename(tmp, path) < 0)
                r = -errno;
        if (r < 0)
                unlink(tmp);
        return r;
}

/* Links exactly the file that is open, whatever stands at its path by now. */
static int link_base(int fd, const char *path) {
        char source[64];
        snprintf(source, sizeof(source), "/proc/self/fd/%d", fd);
        return linkat(AT_FDCWD, source, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

/* A disk that survives a power cut is worth nothing without its base. */
static int sync_folder(const char *dir) {
        _cleanup_close_ int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

static int check_room(const char *dir, const struct image *image, const struct stat *st, uint64_t reserve,
                      struct error *err) {
        uint64_t available = 0, need = (uint64_t) st->st_blocks * 512 + reserve;
        int r = disk_free_bytes(dir, &available);
        if (r < 0)
                return error_set_errno(err, r, "Cannot learn the free space for disks");
        if (available >= need)
                return 0;
        r = error_set(err, ERROR_NO_SPACE,
                      "The server has %" PRIu64
                      " MiB free for disks, and keeping a copy of the image \"%s\" needs %" PRIu64
                      " MiB with the reserve",
                      available >> 20, image->name, need >> 20);
        error_hint(err, "Free some space, or put image_dir on the file system of state_dir: then no copy is needed.");
        return r;
}

int bases_keep(const char *dir, const struct image *image, uint64_t reserve_bytes, const struct op *op, char **ret,
               struct error *err) {
        _cleanup_close_ int fd = open(image->path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        struct stat st, kept;
        if (fd < 0 || fstat(fd, &st) < 0)
                return error_set_errno(err, errno, "Cannot open the disk of the image \"%s\"", image->name);
        if (!S_ISREG(st.st_mode) || (uint64_t) st.st_size != image->virtual_bytes)
                return error_set(err, ERROR_CONFLICT, "The image \"%s\" was changed while it was in use; try again",
                                 image->name);

        _cleanup_free_ char *name = base_name(&st), *path = name ? path_join(dir, name) : NULL;
        if (!path)
                return error_set_errno(err, ENOMEM, "Cannot keep the image \"%s\"", image->name);
        if (stat(path, &kept) == 0 && kept.st_size == st.st_size) {
                *ret = TAKE_PTR(name);
                return 0;
        }
        int r = link_base(fd, path);
        if (r < 0) {
                r = check_room(dir, image, &st, reserve_bytes, err);
                if (r < 0)
                        return r;
                op_progress(op, "copying the image %s", image->name);
                r = copy_base(fd, &st, path, op);
        }
        if (r >= 0)
                r = sync_folder(dir);
        if (r < 0)
                return error_set_errno(err, r, "Cannot keep the image \"%s\" among the disks", image->name);
        *ret = TAKE_PTR(name);
        return 0;
}

static bool is_used(const struct strv *used, const char *name) {
        for (size_t i = 0; i < used->n; i++)
                if (str_eq(used->v[i], name))
                        return true;
        return false;
}

int bases_collect(const char *dir, const struct strv *used) {
        DIR *d = opendir(dir);
        if (!d)
                return -errno;
        for (struct dirent *e; (e = readdir(d));) {
                if (e->d_name[0] == '.' || is_used(used, e->d_name))
                        continue;
                if (unlinkat(dirfd(d), e->d_name, 0) == 0)
                        log_info("Removed a version of a base image that no disk stands on", "file", e->d_name);
        }
        closedir(d);
        return 0;
}
