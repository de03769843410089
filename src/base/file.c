/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>

#include "base/buf.h"
#include "base/str.h"

/* Each level of a tree that is removed holds one fd. */
#define TREE_DEPTH_MAX 256

#define READ_CHUNK 4096u

/* Where programs of the administrator live. An ordinary user's PATH on Debian lacks these folders, although mke2fs and
 * nft work for anybody. */
#define SYSTEM_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

char *path_join(const char *dir, const char *name) {
        size_t n = strlen(dir);

        if (n == 0)
                return strdup(name);
        while (n > 0 && dir[n - 1] == '/')
                n--;
        while (*name == '/')
                name++;
        return str_printf("%.*s/%s", (int) n, dir, name);
}

int file_read_all(const char *path, size_t max, char **ret, size_t *ret_len) {
        /* Without waiting: somebody may have put a named pipe there. */
        _cleanup_close_ int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        if (fd < 0)
                return -errno;

        /* The size is no promise: files in /proc say 0, others grow. One byte more than allowed shows the excess. */
        _cleanup_buf_ struct buf content = BUF_INIT(max < SIZE_MAX ? max + 1 : max);
        struct stat st;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (S_ISREG(st.st_mode) && st.st_size > 0) {
                if ((uint64_t) st.st_size > max)
                        return -EFBIG;
                int r = buf_reserve(&content, (size_t) st.st_size + 1);
                if (r < 0)
                        return r;
        }
        for (;;) {
                size_t room = MIN(content.max - content.len, MAX((size_t) READ_CHUNK, content.cap - content.len));
                if (room == 0)
                        return -EFBIG;
                int r = buf_reserve(&content, room);
                if (r < 0)
                        return r;
                ssize_t n = read(fd, content.data + content.len, room);
                if (n < 0) {
                        if (errno == EINTR)
                                continue;
                        return -errno;
                }
                if (n == 0)
                        break;
                content.len += (size_t) n;
        }
        buf_truncate(&content, content.len);

        size_t len = content.len;
        char *s = buf_steal(&content);
        if (!s)
                return -ENOMEM;
        *ret = s;
        if (ret_len)
                *ret_len = len;
        return 0;
}

static int write_all(int fd, const void *data, size_t n) {
        const char *p = data;

        while (n > 0) {
                ssize_t put = write(fd, p, n);
                if (put < 0) {
                        if (errno == EINTR)
                                continue;
                        return -errno;
                }
                p += put;
                n -= (size_t) put;
        }
        return 0;
}

/* The folder that holds path, as an fd. */
static int open_parent(const char *path) {
        const char *slash = strrchr(path, '/');
        _cleanup_free_ char *dir = !slash ? strdup(".") : strndup(path, MAX((size_t) (slash - path), (size_t) 1));
        if (!dir)
                return -ENOMEM;
        int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

static int write_temporary(int dir, const char *name, const void *data, size_t len, mode_t mode) {
        _cleanup_close_ int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
                return -errno;
        int r = write_all(fd, data, len);
        /* After the content, and by fchmod(): the umask has no say. */
        if (r == 0 && (fchmod(fd, mode) < 0 || fsync(fd) < 0))
                r = -errno;
        /* Network file systems and quotas may speak up only here. */
        if (close(TAKE_FD(fd)) < 0 && r == 0)
                r = -errno;
        if (r < 0)
                unlinkat(dir, name, 0);
        return r;
}

int file_write_atomic(const char *path, const void *data, size_t len, mode_t mode) {
        const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
        if (str_empty(name))
                return -EISDIR;
        _cleanup_close_ int dir = open_parent(path);
        if (dir < 0)
                return dir;

        /* Not built from the name, which may be as long as a name can be. */
        char random[16 + 1], temporary[sizeof(".tmp-") + sizeof(random)];
        int r = random_hex(random, 8);
        if (r < 0)
                return r;
        snprintf(temporary, sizeof(temporary), ".tmp-%s", random);
        r = write_temporary(dir, temporary, data, len, mode);
        if (r < 0)
                return r;
        if (renameat(dir, temporary, dir, name) < 0) {
                r = -errno;
                unlinkat(dir, temporary, 0);
                return r;
        }
        return fsync(dir) < 0 ? -errno : 0;
}

int mkdir_p(const char *path, mode_t mode) {
        _cleanup_free_ char *copy = strdup(path);
        struct stat st;

        if (!copy)
                return -ENOMEM;
        if (!*copy)
                return -EINVAL;
        for (char *p = copy + 1;; p++) {
                char c = *p;

                if (c != '/' && c != 0)
                        continue;
                *p = 0;
                if (mkdir(copy, mode) < 0 && errno != EEXIST)
                        return -errno;
                *p = c;
                if (c == 0)
                        break;
        }
        if (stat(path, &st) < 0)
                return -errno;
        return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

/*
 * Opens a folder inside dir, only if no symlink and no mount point is in between. openat2(2) (Linux 5.6) also sees a
 * bind mount of the same file system; where a sandbox forbids it, comparing devices has to do.
 */
static int open_subdir(int dir, const char *name, dev_t device) {
        const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
        struct open_how how = {.flags = (uint64_t) flags, .resolve = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS};
        struct stat st;

        _cleanup_close_ int fd = (int) syscall(SYS_openat2, dir, name, &how, sizeof(how));
        if (fd < 0 && (errno == ENOSYS || errno == EPERM))
                fd = openat(dir, name, flags);
        if (fd < 0)
                return -errno;
        if (fstat(fd, &st) < 0)
                return -errno;
        return st.st_dev == device ? TAKE_FD(fd) : -EXDEV;
}

static int remove_entry(int dir, const char *name, dev_t device, unsigned depth);

/* Empties a folder (its fd is taken). Goes on after a failure, so that as much as possible is freed, and returns the
 * first one. */
static int remove_content(int fd, dev_t device, unsigned depth) {
        DIR *d = fdopendir(fd);
        if (!d) {
                int r = -errno;
                close_fd(fd);
                return r;
        }

        int first = 0;
        for (;;) {
                errno = 0;
                const struct dirent *entry = readdir(d); /* a stream of our own: no other thread reads from it */
                if (!entry) {
                        if (errno != 0 && first == 0)
                                first = -errno;
                        break;
                }
                if (str_eq(entry->d_name, ".") || str_eq(entry->d_name, ".."))
                        continue;
                int r = remove_entry(dirfd(d), entry->d_name, device, depth);
                if (r < 0 && first == 0)
                        first = r;
        }
        closedir(d);
        return first;
}

static int remove_entry(int dir, const char *name, dev_t device, unsigned depth) {
        if (unlinkat(dir, name, 0) == 0 || errno == ENOENT)
                return 0;
        /* EISDIR is Linux's answer for a folder, EPERM that of POSIX. */
        if (errno != EISDIR && errno != EPERM)
                return -errno;
        int r = -errno;

        struct stat st;
        if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                return errno == ENOENT ? 0 : -errno;
        if (!S_ISDIR(st.st_mode))
                return r;
        if (depth >= TREE_DEPTH_MAX)
                return -ELOOP;

        int fd = open_subdir(dir, name, device);
        if (fd < 0)
                return fd == -ENOENT ? 0 : fd;
        r = remove_content(fd, device, depth + 1);
        if (unlinkat(dir, name, AT_REMOVEDIR) < 0 && errno != ENOENT && r == 0)
                r = -errno;
        return r;
}

int rm_rf(const char *path) {
        _cleanup_free_ char *copy = strdup(path);
        if (!copy)
                return -ENOMEM;
        size_t n = strlen(copy);
        while (n > 1 && copy[n - 1] == '/')
                copy[--n] = 0;
        const char *slash = strrchr(copy, '/'), *name = slash ? slash + 1 : copy;
        if (str_empty(name) || str_eq(name, ".") || str_eq(name, ".."))
                return -EINVAL;

        _cleanup_close_ int parent = open_parent(copy);
        if (parent < 0)
                return parent == -ENOENT ? 0 : parent;
        struct stat st;
        if (fstat(parent, &st) < 0)
                return -errno;
        return remove_entry(parent, name, st.st_dev, 0);
}

int file_lock(const char *path) {
        _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
                return -errno;
        if (flock(fd, LOCK_EX | LOCK_NB) < 0)
                return -errno;
        return TAKE_FD(fd);
}

int disk_free_bytes(const char *path, uint64_t *ret) {
        struct statvfs st;

        if (statvfs(path, &st) < 0)
                return -errno;
        uint64_t bytes;
        if (__builtin_mul_overflow((uint64_t) st.f_bavail, (uint64_t) st.f_frsize, &bytes))
                bytes = UINT64_MAX;
        *ret = bytes;
        return 0;
}

static bool is_program(const char *path) {
        struct stat st;

        return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

static int search_path(const char *folders, const char *name, char **ret) {
        for (const char *p = folders; p; p = strchr(p, ':'), p += p != NULL) {
                size_t n = strcspn(p, ":");

                if (*p != '/') /* an empty or relative folder would make the answer depend on where we are */
                        continue;
                _cleanup_free_ char *dir = strndup(p, n), *file = dir ? path_join(dir, name) : NULL;
                if (!file)
                        return -ENOMEM;
                if (is_program(file)) {
                        *ret = TAKE_PTR(file);
                        return 0;
                }
        }
        return -ENOENT;
}

int find_program(const char *name, char **ret) {
        if (str_empty(name))
                return -ENOENT;
        if (strchr(name, '/')) {
                if (!is_program(name))
                        return -ENOENT;
                char *copy = strdup(name);
                if (!copy)
                        return -ENOMEM;
                *ret = copy;
                return 0;
        }

        int r = search_path(getenv("PATH"), name, ret);
        return r == -ENOENT ? search_path(SYSTEM_PATH, name, ret) : r;
}

int self_path(char **ret) {
        static const char deleted[] = " (deleted)";
        char path[4096];

        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
        if (n < 0)
                return -errno;
        path[n] = 0;
        /* An upgrade has replaced the file: the new one is what shall run now. */
        size_t len = (size_t) n, suffix = sizeof(deleted) - 1;
        if (len > suffix && str_eq(path + len - suffix, deleted))
                path[len - suffix] = 0;
        *ret = strdup(path);
        return *ret ? 0 : -ENOMEM;
}
