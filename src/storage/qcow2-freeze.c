/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Freezing a disk: its file becomes the node's, and the disk goes on in an overlay. No file gets another name.
 *
 * D is the disk, N the node, F the file that D is in, O = D.N.over.qcow2. The steps, each of which is one change of one
 * name, and what a crash after it leaves:
 *
 *          step                                           O there   N.node   D.disk    recovery
 *     begin
 *      B1  O.tmp is written and made to last                 -        -        F       the next start removes O.tmp
 *      B2  O.tmp becomes O; the folder is made to last       yes      -        F       E1 E2 E3, or U2
 *     the machine, if there is one, changes over to O
 *     end, done
 *      E1  N.node points to F                                yes      F        F       E2 E3, or U1 U2
 *      E2  D.disk points to O                                yes      F        O       nothing
 *      E3  F and the folder are made to last                 yes      F        O       nothing
 *     end, not done
 *      U1  N.node is removed, if it points to F              yes      -        F       E1 E2 E3, or U2
 *      U2  O is removed; the folder is made to last          -        -        F       nothing
 *
 * So a freeze is under way as long as there is an overlay that stands on its disk's file and that nobody is in. Where
 * the machine writes decides whether it is finished (to O) or undone (to F). QEMU opened both by the names that they
 * still have, so a file that is neither is no file of this disk, and nothing is changed. Without a machine it is
 * finished: one that is gone by now may have written to O. If none did, O reads as F does.
 *
 * Begin makes the links of E1 and E2 under temporary names, so that a full file system, on which the machine may have
 * changed over already, does not keep end from its renames.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "storage/qcow2-private.h"

/* One freeze. */
struct freeze {
        const char *id, *node;
        char *overlay; /* O */
        char *file;    /* the file that the disk is in: F, or O at the end */
};

static void freeze_clear(struct freeze *z) {
        free(z->overlay);
        free(z->file);
}
#define _cleanup_freeze_ _cleanup_(freeze_clear)

static int freeze_init(struct qcow2_storage *q, const char *id, const char *node, struct freeze *z, struct error *err) {
        *z = (struct freeze){.id = id, .node = node};
        int r = check_disk_id(id, err);
        if (r >= 0)
                r = check_node_id(node, err);
        if (r < 0)
                return r;
        z->overlay = overlay_name(id, node);
        if (!z->overlay)
                return error_set_errno(err, ENOMEM, "Cannot freeze the disk %s", id);
        r = disk_file(q, id, &z->file);
        return r < 0 ? fail_disk(id, r, err) : 0;
}

/* An overlay of the disk that nobody is in, and that stands on the file that the disk is in. Needs the headers. */
static bool is_leftover(const struct folder_entry *e, const char *id, const char *file) {
        return e->kind == FOLDER_OVERLAY && str_eq(e->disk, id) && folder_unused(e) && str_eq(e->backing, file);
}

/* The nodes that the disk is being frozen into. */
static int find_leftovers(struct qcow2_storage *q, const char *id, const char *file, struct strv *ret_nodes,
                          struct error *err) {
        _cleanup_folder_ struct folder f = {0};
        bool any = false;
        int r = folder_read(q, &f, err);
        for (size_t i = 0; i < f.n; i++)
                any |= f.v[i].kind == FOLDER_OVERLAY && str_eq(f.v[i].disk, id) && folder_unused(&f.v[i]);
        if (r < 0 || !any)
                return r;
        r = folder_read_headers(q, &f, err);
        for (size_t i = 0; r >= 0 && i < f.n; i++) {
                if (!is_leftover(&f.v[i], id, file))
                        continue;
                r = strv_add(ret_nodes, f.v[i].node);
                if (r < 0)
                        error_set_errno(err, r, "Cannot look at the disk %s", id);
        }
        return r;
}

/* --- begin --- */

static int check_idle(struct qcow2_storage *q, const struct freeze *z, struct error *err) {
        _cleanup_strv_ struct strv nodes = {0};
        _cleanup_free_ char *taken = NULL;
        LOCK(&q->names_lock);
        int r = find_leftovers(q, z->id, z->file, &nodes, err);
        if (r < 0)
                return r;
        if (nodes.n > 0) {
                r = error_set(err, ERROR_CONFLICT, "The disk %s is being frozen into the node %s already", z->id,
                              nodes.v[0]);
                error_hint(err, "Wait for the end of that; after a failure, stop the workspace and start it again.");
                return r;
        }
        /* The overlay is there without the node only when somebody has meddled with the links. */
        if (node_file(q, z->node, &taken) == -ENOENT && faccessat(q->dir_fd, z->overlay, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
                return 0;
        r = error_set(err, ERROR_CONFLICT, "The node %s exists already", z->node);
        error_hint(err, "Freeze the disk into a node with another id.");
        return r;
}

static int make_overlay(struct qcow2_storage *q, const struct freeze *z, const struct op *op, struct error *err) {
        _cleanup_free_ char *tmp = str_printf("%s" TMP_SUFFIX, z->overlay);
        struct qcow2_header header;
        int r = file_header(q, z->file, &header);
        if (r < 0)
                return fail_disk(z->id, r, err);
        const struct overlay what = {.backing = z->file, .format = "qcow2", .virtual_bytes = header.virtual_bytes};
        if (!tmp)
                return error_set_errno(err, ENOMEM, "Cannot freeze the disk %s", z->id);
        r = overlay_write(q->overlays, tmp, &what, op, err);
        if (r < 0)
                return r;
        r = link_prepare(q, z->node, NODE_SUFFIX, z->file);
        if (r >= 0)
                r = link_prepare(q, z->id, DISK_SUFFIX, z->overlay);
        if (r >= 0) {
                LOCK(&q->names_lock);
                r = renameat(q->dir_fd, tmp, q->dir_fd, z->overlay) < 0 ? -errno : 0;
        }
        if (r >= 0)
                r = folder_sync(q);
        if (r < 0) {
                error_set_errno(err, r, "Cannot freeze the disk %s", z->id);
                unlinkat(q->dir_fd, tmp, 0);
        }
        return r;
}

/* The names that make_overlay() and E1 have made. */
static int undo_locked(struct qcow2_storage *q, const struct freeze *z) {
        _cleanup_free_ char *node_is_in = NULL;
        struct qcow2_header header;
        int r = file_header(q, z->overlay, &header);
        /* Once the freeze was done, it is the file of the disk, or of a further node: not ours any more. */
        if (r >= 0 && !str_eq(header.backing, z->file))
                return -EEXIST;
        if (r < 0 && r != -ENOENT)
                return r;
        if (node_file(q, z->node, &node_is_in) >= 0 && str_eq(node_is_in, z->file))
                r = name_remove(q, z->node, NODE_SUFFIX);
        if (r >= 0 || r == -ENOENT)
                r = name_remove(q, z->overlay, "");
        (void) name_remove(q, z->node, NODE_SUFFIX TMP_SUFFIX);
        (void) name_remove(q, z->id, DISK_SUFFIX TMP_SUFFIX);
        return r;
}

int qcow2_freeze_begin(struct storage *s, const char *id, const char *node, char **ret_overlay, const struct op *op,
                       struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_freeze_ struct freeze z;
        int r = freeze_init(q, id, node, &z, err);
        if (r >= 0)
                r = check_idle(q, &z, err);
        if (r >= 0)
                r = check_room(q, "snapshot", err);
        if (r < 0)
                return r;
        _cleanup_free_ char *path = path_join(q->dir, z.overlay);
        r = path ? make_overlay(q, &z, op, err) : error_set_errno(err, ENOMEM, "Cannot freeze the disk %s", id);
        if (r < 0) {
                LOCK(&q->names_lock);
                (void) undo_locked(q, &z);
                explain_full(q, r, err);
                return error_is_set(err) ? -error_code_errno(err->code) : r;
        }
        *ret_overlay = TAKE_PTR(path);
        return 0;
}

/* --- end --- */

static int fail_freeze(const struct freeze *z, int r, struct error *err) {
        r = error_set_errno(err, r, "The freeze of the disk %s into the node %s cannot be ended", z->id, z->node);
        error_hint(err, "It is ended at the next start of the server or of the workspace.");
        return r;
}

/* E1 and E2. */
static int finish_locked(struct qcow2_storage *q, const struct freeze *z, struct error *err) {
        _cleanup_free_ char *taken = NULL;
        struct qcow2_header header;
        int r = file_header(q, z->overlay, &header);
        if (r == -ENOENT)
                return error_set(err, ERROR_NOT_FOUND, "The disk %s is not being frozen into the node %s", z->id,
                                 z->node);
        if (r < 0)
                return fail_disk(z->id, r, err);
        if (!str_eq(header.backing, z->file))
                return error_set(err, ERROR_CONFLICT, "The overlay for the node %s does not stand on the disk %s",
                                 z->node, z->id);
        r = node_file(q, z->node, &taken);
        if (r != -ENOENT && (r < 0 || !str_eq(taken, z->file)))
                return error_set(err, ERROR_CONFLICT, "The node %s exists already, with other content", z->node);
        r = link_set(q, z->node, NODE_SUFFIX, z->file);
        if (r >= 0)
                r = link_set(q, z->id, DISK_SUFFIX, z->overlay);
        return r < 0 ? fail_freeze(z, r, err) : 0;
}

/* E3, for the file that the node is in. */
static int sync_node(struct qcow2_storage *q, const struct freeze *z, struct error *err) {
        _cleanup_free_ char *file = NULL;
        int r = node_file(q, z->node, &file);
        if (r >= 0)
                r = file_sync(q, file);
        if (r >= 0)
                r = folder_sync(q);
        return r < 0 ? fail_freeze(z, r, err) : 0;
}

static int end_done(struct qcow2_storage *q, const struct freeze *z, struct error *err) {
        int r = 0;
        if (!str_eq(z->file, z->overlay)) {
                LOCK(&q->names_lock);
                r = finish_locked(q, z, err);
        }
        return r < 0 ? r : sync_node(q, z, err);
}

static int end_undone(struct qcow2_storage *q, const struct freeze *z, struct error *err) {
        int r;
        {
                LOCK(&q->names_lock);
                r = undo_locked(q, z);
        }
        if (r == -EEXIST)
                return error_set(err, ERROR_CONFLICT, "The disk %s has been frozen into the node %s already", z->id,
                                 z->node);
        if (r >= 0)
                r = folder_sync(q);
        return r < 0 ? fail_freeze(z, r, err) : 0;
}

int qcow2_freeze_end(struct storage *s, const char *id, const char *node, bool done, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        _cleanup_freeze_ struct freeze z;
        int r = freeze_init(q, id, node, &z, err);
        if (r < 0)
                return r;
        return done ? end_done(q, &z, err) : end_undone(q, &z, err);
}

/* --- recovery --- */

/* Of the nodes that the disk is being frozen into, the one whose overlay the machine writes to, or may have written to;
 * NULL: it is on the disk's file. Nothing is removed on the word of a stranger. */
static int choose(const char *id, const char *file, const struct strv *nodes, const char *open_file, const char **ret,
                  struct error *err) {
        if (!open_file) {
                *ret = nodes->v[0];
                if (nodes->n == 1)
                        return 0;
                /* Begin lets nobody make a second one, so this folder was put together by somebody else. */
                return error_set(err, ERROR_CONFLICT,
                                 "The disk %s has %zu overlays, and nothing tells which one it is in", id, nodes->n);
        }
        for (size_t i = 0; i < nodes->n; i++) {
                _cleanup_free_ char *overlay = overlay_name(id, nodes->v[i]);
                if (str_eq(open_file, overlay)) {
                        *ret = nodes->v[i];
                        return 0;
                }
        }
        *ret = NULL;
        if (str_eq(open_file, file))
                return 0;
        return error_set(err, ERROR_CONFLICT, "The machine writes to \"%s\", which is no file of the disk %s",
                         open_file, id);
}

static int recover_one(struct qcow2_storage *q, const char *id, const char *node, bool done, struct error *err) {
        int r = qcow2_freeze_end(&q->storage, id, node, done, err);
        if (r >= 0)
                log_info(done ? "A freeze of a disk was finished" : "A freeze of a disk was undone", "disk", id, "node",
                         node);
        return r;
}

int qcow2_freeze_recover(struct storage *s, const char *id, const char *open_path, struct error *err) {
        struct qcow2_storage *q = qcow2_of(s);
        const char *slash = open_path ? strrchr(open_path, '/') : NULL, *open_file = slash ? slash + 1 : open_path;
        const char *finish = NULL;
        _cleanup_free_ char *file = NULL;
        _cleanup_strv_ struct strv nodes = {0};

        int r = check_disk_id(id, err);
        if (r < 0)
                return r;
        r = disk_file(q, id, &file);
        if (r < 0)
                return r == -ENOENT ? 0 : fail_disk(id, r, err);
        {
                LOCK(&q->names_lock);
                r = find_leftovers(q, id, file, &nodes, err);
        }
        if (r < 0 || nodes.n == 0)
                return r;
        r = choose(id, file, &nodes, open_file, &finish, err);
        for (size_t i = 0; r >= 0 && i < nodes.n; i++)
                if (!str_eq(nodes.v[i], finish))
                        r = recover_one(q, id, nodes.v[i], false, err);
        return r < 0 || !finish ? r : recover_one(q, id, finish, true, err);
}
