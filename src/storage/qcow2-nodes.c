/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes: what they take, who stands on them, and their end. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "storage/qcow2-private.h"

#define CHAIN_MAX 4096 /* files that may stand on each other: more is a circle */
#define NAMED_MAX 3    /* of those that stand on a node, in an error */

/* r: of node_file(). */
static int fail_link(const char *node, int r, struct error *err) {
        if (r == -ENOENT)
                return error_set(err, ERROR_NOT_FOUND, "There is no node %s among the server's disks", node);
        return error_set_errno(err, r, "Cannot read the link %s" NODE_SUFFIX, node);
}

static int fail_chain(const char *node, const char *file, int r, struct error *err) {
        if (r == -ENOENT) {
                r = error_set(err, ERROR_INTERNAL, "The file %s, which the node %s needs, is missing", file, node);
                error_hint(err, "Somebody has removed it on the host: have it put back among the server's disks.");
                return r;
        }
        if (r == -EBADMSG) {
                r = error_set(err, ERROR_INTERNAL, "The file %s, which the node %s needs, is damaged", file, node);
                error_hint(err, "Have a copy of it put back among the server's disks.");
                return r;
        }
        return error_set_errno(err, r, "Cannot look at the file %s, which the node %s needs", file, node);
}

/* A base image; it stands on nothing. */
static bool is_base(const char *backing) {
        return str_starts_with(backing, BASE_FOLDER "/") && !strchr(backing + strlen(BASE_FOLDER "/"), '/');
}

/* What the file takes, and what it stands on: "" for nothing. */
static int look_at(struct qcow2_storage *q, const char *file, uint64_t *ret_used, struct qcow2_header *ret) {
        struct stat st;
        _cleanup_close_ int fd = openat(q->dir_fd, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 || fstat(fd, &st) < 0)
                return -errno;
        *ret_used = (uint64_t) st.st_blocks * 512; /* stat(2): always in units of 512 bytes */
        if (is_base(file)) {
                *ret = (struct qcow2_header){.virtual_bytes = (uint64_t) st.st_size};
                return 0;
        }
        int r = qcow2_header_read(fd, ret);
        /* A name that leads elsewhere was not written by us. */
        return r >= 0 && strchr(ret->backing, '/') && !is_base(ret->backing) ? -EBADMSG : r;
}

int node_header(struct qcow2_storage *q, const char *node, char **ret_file, struct qcow2_header *ret,
                struct error *err) {
        _cleanup_free_ char *file = NULL;
        LOCK(&q->names_lock); /* one that goes is seen whole, or not at all */
        int r = node_file(q, node, &file);
        if (r < 0)
                return fail_link(node, r, err);
        r = file_header(q, file, ret);
        if (r < 0)
                return fail_chain(node, file, r, err);
        *ret_file = TAKE_PTR(file);
        return 0;
}

int qcow2_node_info(struct storage *s, const char *node, struct node_info *ret, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        struct node_info info = {0};
        _cleanup_free_ char *file = NULL;
        int r = check_node_id(node, err);
        if (r < 0)
                return r;
        LOCK(&q->names_lock);
        r = node_file(q, node, &file);
        if (r < 0)
                return fail_link(node, r, err);
        for (unsigned n = 0; *file; n++) {
                struct qcow2_header header = {0};
                uint64_t used = 0;
                r = n == CHAIN_MAX ? -EBADMSG : look_at(q, file, &used, &header);
                if (r < 0)
                        return fail_chain(node, file, r, err);
                if (n == 0) {
                        info.used_bytes = used;
                        info.virtual_bytes = header.virtual_bytes;
                }
                info.referenced_bytes += used;
                r = str_replace(&file, header.backing);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot look at the node %s", node);
        }
        *ret = info;
        return 0;
}

int qcow2_node_list(struct storage *s, struct strv *ret, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_strv_ struct strv ids = {0};
        _cleanup_folder_ struct folder f = {0};
        int r = folder_read(q, &f, err);
        if (r < 0)
                return r;
        for (size_t i = 0; r >= 0 && i < f.n; i++)
                if (f.v[i].kind == FOLDER_NODE_LINK)
                        r = strv_add(&ids, f.v[i].node);
        if (r < 0)
                return error_set_errno(err, r, "Cannot list the nodes in %s", q->dir);
        *ret = ids;
        ids = (struct strv){0};
        return 0;
}

/* --- the end of a node --- */

static int fail_in_use(const struct folder *f, const char *node, const char *file, struct error *err) {
        char names[512] = "", one[160];
        size_t n = 0, at = 0;
        for (size_t i = 0; i < f->n; i++) {
                if (!str_eq(f->v[i].backing, file) || ++n > NAMED_MAX)
                        continue;
                folder_describe(&f->v[i], one, sizeof(one));
                at += (size_t) snprintf(names + at, sizeof(names) - at, "%s%s", n > 1 ? ", " : "", one);
        }
        if (n > NAMED_MAX)
                snprintf(names + at, sizeof(names) - at, " and %zu more", n - NAMED_MAX);
        int r = error_set(err, ERROR_CONFLICT, "The node %s cannot be destroyed: %s stand%s on it", node, names,
                          n == 1 ? "s" : "");
        error_hint(err, "Destroy what stands on it first.");
        return r;
}

/* What cannot be read may stand on anything. */
static int check_readable(const struct folder *f, const char *node, const char *file, struct error *err) {
        for (size_t i = 0; i < f->n; i++) {
                const struct folder_entry *e = &f->v[i];
                if (e->unreadable >= 0 || str_eq(e->name, file))
                        continue;
                int r = error_set(err, ERROR_INTERNAL,
                                  "The node %s cannot be destroyed: the file %s cannot be read, and may stand on it",
                                  node, e->name);
                error_hint(err, "Put a good copy of that file back, or destroy the workspace %s.", e->disk);
                return r;
        }
        return 0;
}

/* The links of disks that are gone, and whose first file is gone, too. */
static int remove_dead_links(struct qcow2_storage *q, const struct folder *f, const char *removed) {
        int r = 0;
        for (size_t i = 0; r >= 0 && i < f->n; i++) {
                const struct folder_entry *e = &f->v[i];
                if (e->kind != FOLDER_DISK_LINK || !str_eq(e->target, NO_FILE))
                        continue;
                _cleanup_free_ char *first = str_printf("%s" FIRST_SUFFIX, e->disk);
                if (!first)
                        return -ENOMEM;
                if (str_eq(first, removed) || !folder_find(f, first))
                        r = name_remove(q, e->disk, DISK_SUFFIX);
        }
        return r;
}

static int destroy_locked(struct qcow2_storage *q, const char *node, const char *file, struct error *err) {
        _cleanup_folder_ struct folder f = {0};
        int r = folder_read(q, &f, err);
        if (r >= 0)
                r = folder_read_headers(q, &f, err);
        if (r >= 0)
                r = check_readable(&f, node, file, err);
        if (r < 0)
                return r;
        const struct folder_entry *e = folder_find(&f, file);
        if (e && e->upper)
                return fail_in_use(&f, node, file, err);
        /* In a freeze that is not finished yet, the disk is in it still. */
        if (!e || !e->of_disk)
                r = name_remove(q, file, "");
        if (r >= 0)
                r = remove_dead_links(q, &f, file);
        if (r >= 0)
                r = name_remove(q, node, NODE_SUFFIX);
        return r < 0 ? error_set_errno(err, r, "Cannot remove the node %s", node) : 0;
}

int qcow2_node_destroy(struct storage *s, const char *node, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_free_ char *file = NULL;
        int r = check_node_id(node, err);
        if (r < 0)
                return r;
        LOCK(&q->names_lock);
        r = node_file(q, node, &file);
        if (r == -ENOENT)
                return 0;
        if (r == -EBADMSG) { /* it leads to no file of ours */
                r = name_remove(q, node, NODE_SUFFIX);
                return r < 0 ? error_set_errno(err, r, "Cannot remove the node %s", node) : 0;
        }
        return r < 0 ? fail_link(node, r, err) : destroy_locked(q, node, file, err);
}
