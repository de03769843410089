/* SPDX-License-Identifier: Apache-2.0 */
#include "base/beneath.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include "base/str.h"

#define RESOLVE_TRIES 64 /* EAGAIN: something above was renamed while the kernel looked */
#define NAME_TRIES 16    /* for a temporary name that is ours alone */
#define TEMPORARY_DIGITS 16

/* --- the name --- */

int beneath_open(const char *folder, struct beneath *ret, struct error *err) {
        _cleanup_beneath_ struct beneath b = BENEATH_INIT;
        size_t n = strlen(folder);

        while (n > 1 && folder[n - 1] == '/')
                n--;
        b.path = strndup(folder, n);
        if (!b.path)
                return error_set_errno(err, ENOMEM, "%s", folder);
        b.fd = open(b.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (b.fd < 0)
                return error_set_errno(err, errno, "Cannot open the directory %s", b.path);
        b.real = realpath(b.path, NULL);
        if (!b.real)
                return error_set_errno(err, errno, "Cannot open the directory %s", b.path);
        *ret = b;
        b = BENEATH_INIT;
        return 0;
}

void beneath_close(struct beneath *b) {
        free(b->path);
        free(b->real);
        close_fd(b->fd);
        *b = BENEATH_INIT;
}

/* What stands behind `folder` in an absolute path, or NULL. */
static const char *behind(const char *path, const char *folder) {
        size_t n = str_eq(folder, "/") ? 0 : strlen(folder);

        return strncmp(path, folder, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

static int refuse(const struct beneath *b, const char *path, const char *why, struct error *err) {
        int r = error_set(err, ERROR_INVALID_ARGUMENT, "%s %s", path, why);

        error_hint(err, "Host paths are relative to %s, or absolute and beneath it.", b->path);
        return r;
}

static int check_components(const struct beneath *b, const char *path, const char *relative, struct error *err) {
        for (const char *p = relative;; p++) {
                size_t n = strcspn(p, "/");

                if (n == 0)
                        return refuse(b, path, relative[0] && p[0] ? "has two slashes in a row" : "names no file", err);
                if (n > NAME_MAX)
                        return refuse(b, path, "has a name that is too long", err);
                if ((n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
                        return refuse(b, path, "has a component \".\" or \"..\", which is not allowed", err);
                p += n;
                if (!*p)
                        return 0;
        }
}

int beneath_relative(const struct beneath *b, const char *path, char **ret, struct error *err) {
        const char *relative = path;

        if (path[0] == '/') {
                relative = behind(path, b->path);
                if (!relative)
                        relative = behind(path, b->real);
                if (!relative)
                        return refuse(b, path, "is outside the transfer directory", err);
        }
        if (strlen(relative) >= BENEATH_PATH_MAX)
                return error_set(err, ERROR_INVALID_ARGUMENT, "The path is %zu bytes long; at most %u are allowed",
                                 strlen(relative), BENEATH_PATH_MAX - 1);
        int r = check_components(b, path, relative, err);
        if (r < 0)
                return r;
        *ret = strdup(relative);
        return *ret ? 0 : error_set_errno(err, ENOMEM, "%s", path);
}

/* --- resolving --- */

/* openat2() beneath dir; the fd or a negative errno. */
static int resolve(int dir, const char *relative, int flags) {
        const struct open_how how = {
                .flags = (uint64_t) (flags | O_CLOEXEC),
                .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
        };
        int fd = -1;

        for (int i = 0; i < RESOLVE_TRIES; i++) {
                fd = (int) syscall(SYS_openat2, dir, relative, &how, sizeof(how));
                if (fd >= 0 || (errno != EAGAIN && errno != EINTR))
                        break;
        }
        return fd < 0 ? -errno : fd;
}

static int resolve_error(const struct beneath *b, const char *relative, int r, struct error *err) {
        switch (r) {
        case -EXDEV:
                return error_set(err, ERROR_INVALID_ARGUMENT,
                                 "%s/%s leads out of the transfer directory: a symbolic link in it points outside or "
                                 "is absolute",
                                 b->path, relative);
        case -ELOOP:
                return error_set(err, ERROR_INVALID_ARGUMENT, "%s/%s has symbolic links that cannot be followed",
                                 b->path, relative);
        case -ENOSYS:
                error_set(err, ERROR_UNSUPPORTED, "This host cannot keep paths beneath %s: it has no openat2(2)",
                          b->path);
                error_hint(err, "Linux 5.6 or later is needed; a sandbox around the daemon may also forbid the call.");
                return r;
        default:
                return error_set_errno(err, r, "%s/%s", b->path, relative);
        }
}

/* The part of relative before its last component, "." for none. NULL: out of memory. */
static char *folder_of(const char *relative) {
        const char *slash = strrchr(relative, '/');

        return slash ? strndup(relative, (size_t) (slash - relative)) : strdup(".");
}

static const char *name_of(const char *relative) {
        const char *slash = strrchr(relative, '/');

        return slash ? slash + 1 : relative;
}

static bool fit_to_show(const char *name) {
        for (const char *c = name; *c; c++)
                if ((unsigned char) *c < 0x20 || *c == 0x7f)
                        return false;
        return utf8_valid(name, strlen(name));
}

/* The entry of the folder that comes nearest to a name (owned), or NULL. */
static char *nearest_entry(const struct beneath *b, const char *relative) {
        _cleanup_strv_ struct strv names = {0};
        _cleanup_free_ char *folder = folder_of(relative);
        const struct dirent *entry;

        int fd = folder ? resolve(b->fd, folder, O_RDONLY | O_DIRECTORY) : -ENOMEM;
        DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
        if (!d) {
                close_fd(fd);
                return NULL;
        }
        for (unsigned i = 0; i < BENEATH_SCAN_MAX && (entry = readdir(d)); i++)
                if (entry->d_name[0] != '.' && fit_to_show(entry->d_name) && strv_add(&names, entry->d_name) < 0)
                        break;
        closedir(d);
        const char *nearest = str_nearest(name_of(relative), (const char *const *) names.v, names.n);
        return nearest ? strdup(nearest) : NULL;
}

static int not_found(const struct beneath *b, const char *relative, struct error *err) {
        _cleanup_free_ char *nearest = nearest_entry(b, relative);

        int r = error_set(err, ERROR_NOT_FOUND, "%s/%s is not there", b->path, relative);
        if (nearest)
                error_hint(err, "Did you mean %.*s%s?", (int) (name_of(relative) - relative), relative, nearest);
        else
                error_hint(err, "The file must be put beneath %s on the host first.", b->path);
        return r;
}

/* Refuses what is no regular file, by its name for people. */
static int check_regular(const struct beneath *b, const char *relative, mode_t mode, struct error *err) {
        if (S_ISREG(mode))
                return 0;
        int r = error_set(err, ERROR_INVALID_ARGUMENT, "%s/%s is %s, not a regular file", b->path, relative,
                          S_ISDIR(mode)   ? "a directory"
                          : S_ISLNK(mode) ? "a symbolic link"
                                          : "a pipe, socket or device");
        if (S_ISDIR(mode))
                error_hint(err, "One file is moved at a time: pack a directory with tar first.");
        return r;
}

int beneath_read(const struct beneath *b, const char *relative, struct stat *ret, struct error *err) {
        _cleanup_close_ int fd = resolve(b->fd, relative, O_RDONLY | O_NONBLOCK | O_NOCTTY);

        if (fd == -ENOENT)
                return not_found(b, relative, err);
        if (fd == -ENXIO) /* a socket, or a device without a driver */
                return check_regular(b, relative, S_IFSOCK, err);
        if (fd < 0)
                return resolve_error(b, relative, fd, err);
        if (fstat(fd, ret) < 0)
                return error_set_errno(err, errno, "%s/%s", b->path, relative);
        int r = check_regular(b, relative, ret->st_mode, err);
        return r < 0 ? r : TAKE_FD(fd);
}

/* --- temporary names --- */

static bool is_temporary(const char *name) {
        const size_t n = strlen(BENEATH_TEMPORARY);

        return str_starts_with(name, BENEATH_TEMPORARY) && strlen(name) == n + TEMPORARY_DIGITS &&
               strspn(name + n, "0123456789abcdef") == TEMPORARY_DIGITS;
}

/* Removes a temporary file whose maker is gone: then its lock can be had. */
static void remove_left_over(int folder, const char *name) {
        _cleanup_close_ int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        struct stat st;

        if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0)
                unlinkat(folder, name, 0);
}

static void tidy(int folder) {
        int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
        const struct dirent *entry;

        if (!d) {
                close_fd(fd);
                return;
        }
        for (unsigned i = 0; i < BENEATH_SCAN_MAX && (entry = readdir(d)); i++)
                if (is_temporary(entry->d_name))
                        remove_left_over(folder, entry->d_name);
        closedir(d);
}

void beneath_tidy(const struct beneath *b) {
        tidy(b->fd);
}

static int new_name(char ret[40]) {
        char digits[TEMPORARY_DIGITS + 1];

        int r = random_hex(digits, TEMPORARY_DIGITS / 2);
        if (r >= 0)
                snprintf(ret, 40, "%s%s", BENEATH_TEMPORARY, digits);
        return r;
}

/* Whether the name of the locked file was there still when the lock was had: someone may have taken it for left over
 * in the moment between. */
static bool still_there(int fd) {
        struct stat st;

        return fstat(fd, &st) == 0 && st.st_nlink > 0;
}

/* A file with a temporary name, locked. */
static int create_named(struct beneath_file *f) {
        for (int i = 0; i < NAME_TRIES; i++) {
                char name[sizeof(f->temporary)];

                int r = new_name(name);
                if (r < 0)
                        return r;
                _cleanup_close_ int fd =
                        openat(f->folder, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
                if (fd < 0 && errno == EEXIST)
                        continue;
                if (fd < 0)
                        return -errno;
                /* A file system without locks: nothing there is ever taken for left over. */
                if ((flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) && still_there(fd)) {
                        memcpy(f->temporary, name, sizeof(name));
                        f->fd = TAKE_FD(fd);
                        return 0;
                }
                unlinkat(f->folder, name, 0);
        }
        return -EEXIST;
}

/* --- writing --- */

/* The first n components of relative, i.e. what stands before slash number n. */
static char *prefix_of(const char *relative, unsigned n) {
        const char *p = relative;

        for (unsigned i = 0; i < n; i++)
                p = strchr(p, '/') + 1;
        return strndup(relative, (size_t) (p - relative) - 1);
}

static unsigned count_folders(const char *relative) {
        unsigned n = 0;

        for (; *relative; relative++)
                n += *relative == '/';
        return n;
}

/* Makes the folder `path` beneath if it is missing, and opens it. *made is set when we made it. */
static int make_folder(const struct beneath *b, const char *path, bool *made) {
        int fd = resolve(b->fd, path, O_RDONLY | O_DIRECTORY);
        if (fd != -ENOENT)
                return fd;
        _cleanup_free_ char *above = folder_of(path);
        _cleanup_close_ int parent = above ? resolve(b->fd, above, O_RDONLY | O_DIRECTORY) : -ENOMEM;
        if (parent < 0)
                return parent;
        *made = mkdirat(parent, name_of(path), 0777) == 0;
        if (!*made && errno != EEXIST)
                return -errno;
        if (*made && fsync(parent) < 0)
                return -errno;
        return resolve(b->fd, path, O_RDONLY | O_DIRECTORY);
}

static int open_folder(struct beneath_file *f, struct error *err) {
        unsigned n = count_folders(f->relative);

        f->folder = resolve(f->b->fd, ".", O_RDONLY | O_DIRECTORY);
        if (f->folder < 0)
                return resolve_error(f->b, ".", f->folder, err);
        for (unsigned i = 1; i <= n; i++) {
                _cleanup_free_ char *path = prefix_of(f->relative, i);
                bool made = false;

                int fd = path ? make_folder(f->b, path, &made) : -ENOMEM;
                f->made += made;
                if (fd == -ENOTDIR)
                        return error_set(err, ERROR_INVALID_ARGUMENT, "%s/%s is not a directory", f->b->path, path);
                if (fd < 0)
                        return resolve_error(f->b, path ? path : f->relative, fd, err);
                close_fd(f->folder);
                f->folder = fd;
        }
        return 0;
}

static int check_old(const struct beneath_file *f, bool *ret_exists, struct error *err) {
        struct stat st;

        if (is_temporary(f->name))
                return refuse(f->b, f->relative, "is a name that transfers use themselves", err);
        if (fstatat(f->folder, f->name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
                *ret_exists = false;
                return errno == ENOENT ? 0 : error_set_errno(err, errno, "%s/%s", f->b->path, f->relative);
        }
        *ret_exists = true;
        return check_regular(f->b, f->relative, st.st_mode, err);
}

static int create(struct beneath_file *f, struct error *err) {
        bool exists;

        int r = open_folder(f, err);
        if (r >= 0)
                r = check_old(f, &exists, err);
        if (r < 0)
                return r;
        tidy(f->folder);
        f->fd = openat(f->folder, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (f->fd >= 0)
                return 0;
        /* EISDIR: a kernel or a file system that knows no O_TMPFILE took it for a directory. */
        r = errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL ? create_named(f) : -errno;
        return r < 0 ? error_set_errno(err, r, "Cannot write to %s/%s", f->b->path, f->relative) : 0;
}

int beneath_create(const struct beneath *b, const char *relative, struct beneath_file *ret, struct error *err) {
        _cleanup_beneath_file_ struct beneath_file f = BENEATH_FILE_INIT;

        f.b = b;
        f.relative = strdup(relative);
        if (!f.relative)
                return error_set_errno(err, ENOMEM, "%s", relative);
        f.name = name_of(f.relative);
        int r = create(&f, err);
        if (r < 0)
                return r;
        *ret = f;
        f = BENEATH_FILE_INIT;
        return 0;
}

static int link_as(int fd, int folder, const char *name) {
        char path[40];

        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        return linkat(AT_FDCWD, path, folder, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

/* Gives a file without a name its own name; -EEXIST when that is taken. */
static int name_it(struct beneath_file *f) {
        int r = link_as(f->fd, f->folder, f->name);
        if (r != -EEXIST)
                return r;
        /* There is something to be replaced, which only a rename can do. The lock comes before the name. */
        (void) flock(f->fd, LOCK_EX | LOCK_NB);
        for (int i = 0; i < NAME_TRIES && r == -EEXIST; i++) {
                char name[sizeof(f->temporary)];

                r = new_name(name);
                if (r >= 0)
                        r = link_as(f->fd, f->folder, name);
                if (r >= 0)
                        memcpy(f->temporary, name, sizeof(name));
        }
        return r;
}

int beneath_commit(struct beneath_file *f, mode_t mode, struct error *err) {
        int r = fchmod(f->fd, mode) < 0 || fsync(f->fd) < 0 ? -errno : 0;

        if (r >= 0 && !f->temporary[0])
                r = name_it(f);
        if (r >= 0 && f->temporary[0]) {
                bool exists;

                /* Once more: a directory gives a poor error, and a link is not to be replaced either. */
                r = check_old(f, &exists, err);
                if (r < 0)
                        return r;
                r = renameat(f->folder, f->temporary, f->folder, f->name) < 0 ? -errno : 0;
                if (r >= 0)
                        f->temporary[0] = 0;
        }
        if (r >= 0)
                f->made = 0;
        if (r >= 0 && fsync(f->folder) < 0)
                r = -errno;
        return r < 0 ? error_set_errno(err, r, "Cannot write %s/%s", f->b->path, f->relative) : 0;
}

/* Removes the folders that were made, the innermost first, as long as they are empty. */
static void remove_folders(const struct beneath_file *f) {
        unsigned n = count_folders(f->relative);

        for (unsigned i = 0; i < f->made; i++) {
                _cleanup_free_ char *path = prefix_of(f->relative, n - i);
                _cleanup_free_ char *above = path ? folder_of(path) : NULL;
                _cleanup_close_ int parent = above ? resolve(f->b->fd, above, O_RDONLY | O_DIRECTORY) : -1;

                if (parent < 0 || unlinkat(parent, name_of(path), AT_REMOVEDIR) < 0)
                        return;
        }
}

void beneath_end(struct beneath_file *f) {
        if (f->temporary[0])
                unlinkat(f->folder, f->temporary, 0);
        if (f->relative)
                remove_folders(f);
        free(f->relative);
        close_fd(f->folder);
        close_fd(f->fd);
        *f = BENEATH_FILE_INIT;
}
