/* SPDX-License-Identifier: Apache-2.0 */
/* The folder of the qcow2 backend: names, links, and who stands on whom. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "storage/qcow2-private.h"

#define ID_MAX 64
#define TARGET_MAX 512 /* no name in the folder is as long */

bool storage_id_valid(const char *id) {
        return id && name_valid(id, ID_MAX, "-");
}

static int check_id(const char *id, const char *kind, struct error *err) {
        if (storage_id_valid(id))
                return 0;
        return error_set(err, ERROR_INVALID_ARGUMENT, "\"%.*s\" cannot be the id of a %s", ID_MAX + 1, id ? id : "",
                         kind);
}

int check_disk_id(const char *id, struct error *err) {
        return check_id(id, "disk", err);
}

int check_node_id(const char *id, struct error *err) {
        return check_id(id, "node", err);
}

/* --- names --- */

char *overlay_name(const char *disk, const char *node) {
        return str_printf("%s.%s" OVERLAY_SUFFIX, disk, node);
}

/* Cuts the suffix off; NULL when it is not there. */
static char *without(const char *name, const char *suffix) {
        size_t n = strlen(name), m = strlen(suffix);
        return n > m && str_eq(name + n - m, suffix) ? strndup(name, n - m) : NULL;
}

/* What the name says; false for a name that is none of ours. */
static bool parse_name(const char *name, struct folder_entry *ret) {
        static const struct {
                enum folder_kind kind;
                const char *suffix;
        } kinds[] = {
                /* The longer ending first. */
                {FOLDER_OVERLAY, OVERLAY_SUFFIX},
                {FOLDER_FIRST, FIRST_SUFFIX},
                {FOLDER_DISK_LINK, DISK_SUFFIX},
                {FOLDER_NODE_LINK, NODE_SUFFIX},
        };
        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
                _cleanup_free_ char *first = without(name, kinds[i].suffix), *second = NULL;
                if (!first)
                        continue;
                char *dot = kinds[i].kind == FOLDER_OVERLAY ? strchr(first, '.') : NULL;
                if (dot) {
                        *dot = 0;
                        second = strdup(dot + 1);
                }
                if (!storage_id_valid(first) || (kinds[i].kind == FOLDER_OVERLAY && !storage_id_valid(second)))
                        return false;
                ret->kind = kinds[i].kind;
                if (ret->kind == FOLDER_NODE_LINK)
                        ret->node = TAKE_PTR(first);
                else
                        ret->disk = TAKE_PTR(first);
                if (second)
                        ret->node = TAKE_PTR(second);
                return true;
        }
        return false;
}

static bool is_file_kind(enum folder_kind kind) {
        return kind == FOLDER_FIRST || kind == FOLDER_OVERLAY;
}

static void entry_clear(struct folder_entry *e) {
        free(e->name);
        free(e->disk);
        free(e->node);
        free(e->target);
        free(e->backing);
}

static bool is_file_name(const char *name) {
        struct folder_entry e = {0};
        bool is = parse_name(name, &e) && is_file_kind(e.kind);
        entry_clear(&e);
        return is;
}

/* --- links --- */

static int read_link(struct qcow2_storage *q, const char *name, char **ret) {
        char target[TARGET_MAX];
        ssize_t n = readlinkat(q->dir_fd, name, target, sizeof(target));
        if (n < 0)
                return -errno;
        *ret = strndup(target, (size_t) n);
        return *ret ? 0 : -ENOMEM;
}

static int read_file_link(struct qcow2_storage *q, const char *id, const char *suffix, char **ret) {
        _cleanup_free_ char *name = str_printf("%s%s", id, suffix), *target = NULL;
        int r = name ? read_link(q, name, &target) : -ENOMEM;
        if (r < 0)
                return r == -EINVAL ? -EBADMSG : r; /* EINVAL: no link */
        if (!is_file_name(target))
                return str_eq(target, NO_FILE) ? -ESTALE : -EBADMSG;
        *ret = TAKE_PTR(target);
        return 0;
}

int disk_file(struct qcow2_storage *q, const char *id, char **ret) {
        int r = read_file_link(q, id, DISK_SUFFIX, ret);
        if (r == -ESTALE)
                return -ENOENT;
        if (r != -ENOENT)
                return r;
        *ret = str_printf("%s" FIRST_SUFFIX, id);
        return *ret ? 0 : -ENOMEM;
}

int node_file(struct qcow2_storage *q, const char *node, char **ret) {
        int r = read_file_link(q, node, NODE_SUFFIX, ret);
        return r == -ESTALE ? -EBADMSG : r;
}

int link_prepare(struct qcow2_storage *q, const char *id, const char *suffix, const char *target) {
        _cleanup_free_ char *tmp = str_printf("%s%s" TMP_SUFFIX, id, suffix), *now = NULL;
        if (!tmp)
                return -ENOMEM;
        if (read_link(q, tmp, &now) >= 0 && str_eq(now, target))
                return 0;
        unlinkat(q->dir_fd, tmp, 0);
        return symlinkat(target, q->dir_fd, tmp) < 0 ? -errno : 0;
}

int link_set(struct qcow2_storage *q, const char *id, const char *suffix, const char *target) {
        _cleanup_free_ char *name = str_printf("%s%s", id, suffix), *tmp = str_printf("%s%s" TMP_SUFFIX, id, suffix);
        int r = name && tmp ? link_prepare(q, id, suffix, target) : -ENOMEM;
        if (r >= 0 && renameat(q->dir_fd, tmp, q->dir_fd, name) < 0)
                r = -errno;
        return r;
}

int name_remove(struct qcow2_storage *q, const char *id, const char *suffix) {
        _cleanup_free_ char *name = str_printf("%s%s", id, suffix);
        if (!name)
                return -ENOMEM;
        return unlinkat(q->dir_fd, name, 0) < 0 && errno != ENOENT ? -errno : 0;
}

/* --- files --- */

int file_header(struct qcow2_storage *q, const char *name, struct qcow2_header *ret) {
        _cleanup_close_ int fd = openat(q->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        return fd < 0 ? -errno : qcow2_header_read(fd, ret);
}

int file_sync(struct qcow2_storage *q, const char *name) {
        _cleanup_close_ int fd = openat(q->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

int folder_sync(struct qcow2_storage *q) {
        return fsync(q->dir_fd) < 0 ? -errno : 0;
}

/* --- the whole folder --- */

void folder_clear(struct folder *f) {
        for (size_t i = 0; i < f->n; i++)
                entry_clear(&f->v[i]);
        free(f->v);
        *f = (struct folder){0};
}

static int compare(const void *a, const void *b) {
        return strcmp(((const struct folder_entry *) a)->name, ((const struct folder_entry *) b)->name);
}

static struct folder_entry *find(const struct folder *f, const char *name) {
        const struct folder_entry key = {.name = (char *) (uintptr_t) name};
        return name && f->n > 0 ? bsearch(&key, f->v, f->n, sizeof(*f->v), compare) : NULL;
}

const struct folder_entry *folder_find(const struct folder *f, const char *name) {
        return find(f, name);
}

static int add_entry(struct qcow2_storage *q, struct folder *f, size_t *cap, const char *name) {
        struct folder_entry e = {0};
        if (!parse_name(name, &e))
                return 0;
        if (f->n == *cap) {
                size_t more = MAX(*cap * 2, (size_t) 64);
                struct folder_entry *v = reallocarray(f->v, more, sizeof(*v));
                if (!v) {
                        entry_clear(&e);
                        return -ENOMEM;
                }
                f->v = v;
                *cap = more;
        }
        e.name = strdup(name);
        f->v[f->n++] = e;
        if (!e.name)
                return -ENOMEM;
        if (is_file_kind(e.kind))
                return 0;
        int r = read_link(q, name, &f->v[f->n - 1].target);
        return r == -ENOMEM ? r : 0;
}

static int read_names(struct qcow2_storage *q, struct folder *f) {
        int fd = openat(q->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *d = fd < 0 ? NULL : fdopendir(fd);
        if (!d) {
                int r = -errno;
                close_fd(fd);
                return r;
        }
        size_t cap = 0;
        int r = 0;
        while (r >= 0) {
                errno = 0;
                const struct dirent *e = readdir(d);
                if (!e) {
                        r = -errno;
                        break;
                }
                r = add_entry(q, f, &cap, e->d_name);
        }
        closedir(d);
        return r;
}

/* Who is in which file. */
static int relate(struct folder *f) {
        for (size_t i = 0; i < f->n; i++) {
                const struct folder_entry *e = &f->v[i];
                struct folder_entry *file = e->target ? find(f, e->target) : NULL;
                if (e->kind == FOLDER_FIRST) {
                        _cleanup_free_ char *link = str_printf("%s" DISK_SUFFIX, e->disk);
                        if (!link)
                                return -ENOMEM;
                        if (!find(f, link))
                                f->v[i].of_disk = true;
                } else if (e->kind == FOLDER_DISK_LINK && file)
                        file->of_disk = true;
                else if (e->kind == FOLDER_NODE_LINK && file)
                        file->of_node = e;
        }
        return 0;
}

int folder_read(struct qcow2_storage *q, struct folder *ret, struct error *err) {
        _cleanup_folder_ struct folder f = {0};
        int r = read_names(q, &f);
        if (r >= 0) {
                if (f.n > 0)
                        qsort(f.v, f.n, sizeof(*f.v), compare);
                r = relate(&f);
        }
        if (r < 0)
                return error_set_errno(err, r, "Cannot list the disks in %s", q->dir);
        *ret = f;
        f = (struct folder){0};
        return 0;
}

int folder_read_headers(struct qcow2_storage *q, struct folder *f, struct error *err) {
        for (size_t i = 0; i < f->n; i++) {
                struct folder_entry *e = &f->v[i];
                struct qcow2_header header;
                if (!is_file_kind(e->kind))
                        continue;
                e->unreadable = file_header(q, e->name, &header);
                if (e->unreadable < 0)
                        continue;
                e->backing = strdup(header.backing);
                if (!e->backing)
                        return error_set_errno(err, ENOMEM, "Cannot look at the disks in %s", q->dir);
                struct folder_entry *lower = find(f, e->backing);
                if (lower)
                        lower->upper = e;
        }
        return 0;
}

bool folder_unused(const struct folder_entry *e) {
        return is_file_kind(e->kind) && !e->of_disk && !e->of_node;
}

void folder_describe(const struct folder_entry *e, char *ret, size_t n) {
        if (e->of_node)
                snprintf(ret, n, "the node %s", e->of_node->node);
        else if (e->of_disk)
                snprintf(ret, n, "the disk %s", e->disk);
        else
                snprintf(ret, n, "an unfinished freeze of the disk %s", e->disk);
}
