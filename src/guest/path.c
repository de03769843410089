/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/path.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#include "base/file.h"
#include "base/str.h"

#define LINKS_MAX 40                  /* as the kernel: MAXSYMLINKS */
#define XATTR_NAMES_MAX (64UL * 1024) /* Linux: XATTR_LIST_MAX */
#define XATTR_VALUE_MAX (64UL * 1024) /* Linux: XATTR_SIZE_MAX */

const char *file_kind(mode_t mode) {
        return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "directory" : S_ISLNK(mode) ? "symlink" : "other";
}

const char *file_kind_long(mode_t mode) {
        switch (mode & S_IFMT) {
        case S_IFREG:
                return "a regular file";
        case S_IFDIR:
                return "a directory";
        case S_IFLNK:
                return "a symbolic link";
        case S_IFIFO:
                return "a named pipe";
        case S_IFSOCK:
                return "a socket";
        case S_IFCHR:
                return "a character device";
        case S_IFBLK:
                return "a block device";
        default:
                return "not a file";
        }
}

/* The folder of path, with its slash; the root's is "/". */
static char *folder_of(const char *path) {
        const char *slash = strrchr(path, '/');

        return strndup(path, (size_t) (slash - path) + 1);
}

int path_resolve(const char *path, char **ret) {
        _cleanup_free_ char *at = strdup(path);

        if (!at)
                return -ENOMEM;
        for (int i = 0; i < LINKS_MAX; i++) {
                char target[PATH_MAX];
                ssize_t n = readlink(at, target, sizeof(target) - 1);

                if (n < 0) {
                        /* Not a link, or not there; anything worse shows when it is opened. */
                        *ret = TAKE_PTR(at);
                        return 0;
                }
                target[n] = '\0';
                _cleanup_free_ char *folder = target[0] == '/' ? strdup("") : folder_of(at);
                char *next = folder ? str_printf("%s%s", folder, target) : NULL;
                if (!next)
                        return -ENOMEM;
                free(at);
                at = next;
        }
        return -ELOOP;
}

static int check_old(struct replacement *r, const char *path, struct error *err) {
        size_t n = strlen(r->path);

        if (n == 0 || r->path[n - 1] == '/')
                return error_set(err, ERROR_INVALID_ARGUMENT, "%s is a directory, not a file", path);
        if (lstat(r->path, &r->old) < 0) {
                if (errno == ENOENT)
                        return 0;
                /* -ENOTDIR is told with the folder, below. */
                return errno == ENOTDIR ? 0 : error_set_errno(err, errno, "%s", path);
        }
        if (!S_ISREG(r->old.st_mode))
                return error_set(err, ERROR_INVALID_ARGUMENT, "%s is %s, not a regular file", path,
                                 file_kind_long(r->old.st_mode));
        r->exists = true;
        return 0;
}

/* The first of the folders on the way to `folder` (which ends in a slash) that is not there; NULL: all are. */
static int first_missing(const char *folder, char **ret) {
        _cleanup_free_ char *at = strdup(folder);
        struct stat st;

        if (!at)
                return -ENOMEM;
        *ret = NULL;
        for (char *slash = strchr(at + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
                *slash = '\0';
                if (lstat(at, &st) < 0 && errno == ENOENT) {
                        *ret = TAKE_PTR(at);
                        return 0;
                }
                *slash = '/';
        }
        return 0;
}

static int make_parents_of(struct replacement *r, const char *folder, struct error *err) {
        int k = first_missing(folder, &r->made);

        if (k == 0)
                k = mkdir_p(folder, 0755);
        return k < 0 ? error_set_errno(err, k, "Cannot make the folder %s", folder) : 0;
}

/* Removes the folders from `path`'s own up to `first`, as far as they are empty. */
static void remove_made(const char *path, const char *first) {
        _cleanup_free_ char *at = strdup(path);
        size_t least = strlen(first);

        for (char *slash = at ? strrchr(at, '/') : NULL; slash && (size_t) (slash - at) >= least;
             slash = strrchr(at, '/')) {
                *slash = '\0';
                if (rmdir(at) < 0 && errno != ENOENT)
                        return;
        }
}

int replacement_begin(struct replacement *r, const char *path, bool make_parents, struct error *err) {
        _cleanup_free_ char *folder = NULL;
        char random[16 + 1];
        int k = path_resolve(path, &r->path);

        if (k < 0)
                return error_set_errno(err, k, "%s", path);
        k = check_old(r, path, err);
        if (k < 0)
                return k;
        folder = folder_of(r->path);
        if (!folder)
                return error_set_errno(err, ENOMEM, "%s", path);
        k = make_parents ? make_parents_of(r, folder, err) : 0;
        if (k < 0)
                return k;
        r->dir_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (r->dir_fd < 0)
                return error_set_errno(err, errno, "%s", folder);
        k = random_hex(random, 8);
        if (k < 0)
                return error_set_errno(err, k, "No random numbers");
        snprintf(r->temporary, sizeof(r->temporary), ".agentiso-%s", random);
        r->fd = openat(r->dir_fd, r->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (r->fd < 0)
                return error_set_errno(err, errno, "Cannot write in the folder %s", folder);
        return 0;
}

int replacement_write(struct replacement *r, const void *data, size_t n, struct error *err) {
        const char *p = data;

        while (n > 0) {
                ssize_t k = write(r->fd, p, n);

                if (k < 0 && errno == EINTR)
                        continue;
                if (k < 0)
                        return error_set_errno(err, errno, "Writing %s", r->path);
                p += k;
                n -= (size_t) k;
        }
        return 0;
}

/* Extended attributes carry access lists and capabilities. What the file system does not take is left out. */
static int copy_xattrs(int from, int to) {
        _cleanup_free_ char *names = malloc(XATTR_NAMES_MAX), *value = malloc(XATTR_VALUE_MAX);
        ssize_t n;

        if (!names || !value)
                return -ENOMEM;
        n = flistxattr(from, names, XATTR_NAMES_MAX);
        for (const char *p = names; n > 0 && p < names + n; p += strlen(p) + 1) {
                ssize_t len = fgetxattr(from, p, value, XATTR_VALUE_MAX);

                if (len >= 0 && fsetxattr(to, p, value, (size_t) len, 0) < 0 && errno != EOPNOTSUPP && errno != EPERM)
                        return -errno;
        }
        return 0;
}

int replacement_commit(struct replacement *r, mode_t mode, int attributes_fd, pthread_mutex_t *lock,
                       struct error *err) {
        int k;

        if (r->exists && fchown(r->fd, r->old.st_uid, r->old.st_gid) < 0)
                return error_set_errno(err, errno, "Keeping the owner of %s", r->path);
        /* Both behind fchown(), which clears capabilities and the set-user-ID bit. */
        if (attributes_fd >= 0 && (k = copy_xattrs(attributes_fd, r->fd)) < 0)
                return error_set_errno(err, k, "Keeping the extended attributes of %s", r->path);
        if (fchmod(r->fd, mode) < 0)
                return error_set_errno(err, errno, "Setting the mode of %s", r->path);
        /*
         * The content must be on the disk before the name is, and both before we answer. Starting the write-out makes
         * ext4 allocate the blocks, and with data=ordered no transaction that knows of them is committed before they
         * are written; the rename then joins that transaction, and one fsync() commits all of it. That is half the
         * price of flushing file and folder one after the other.
         */
        if (sync_file_range(r->fd, 0, 0, SYNC_FILE_RANGE_WRITE) < 0 && errno != ESPIPE)
                return error_set_errno(err, errno, "Writing %s", r->path);
        if (lock)
                pthread_mutex_lock(lock);
        k = renameat(r->dir_fd, r->temporary, r->dir_fd, strrchr(r->path, '/') + 1) < 0 ? -errno : 0;
        if (lock)
                pthread_mutex_unlock(lock);
        if (k < 0)
                return error_set_errno(err, k, "Putting %s in place", r->path);
        r->temporary[0] = '\0';
        free(TAKE_PTR(r->made));
        if (fsync(r->fd) < 0)
                return error_set_errno(err, errno, "Writing %s", r->path);
        return 0;
}

void replacement_end(struct replacement *r) {
        if (r->fd >= 0 && r->temporary[0])
                unlinkat(r->dir_fd, r->temporary, 0);
        if (r->made)
                remove_made(r->path, r->made);
        close_fd(r->fd);
        close_fd(r->dir_fd);
        free(r->made);
        free(r->path);
        *r = REPLACEMENT_INIT;
}
