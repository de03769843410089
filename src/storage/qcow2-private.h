/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of the qcow2 backend share. The folder, which belongs to the storage alone:
 *
 *     <disk>.qcow2              the file that a disk begins with
 *     <disk>.<node>.over.qcow2  the file on which the disk goes on after it was frozen into that node
 *     <disk>.disk               symlink to the file that the disk is in now. Absent: it is in <disk>.qcow2. A link to
 *                               "none": the disk is gone, but a node is in that file
 *     <node>.node               symlink to the file that the node is in
 *     base/                     base images (bases.h)
 *     *.tmp                     what is being made; removed at the next start
 *
 * The first two are qcow2 files, each an overlay that names the file below it relative to the folder, so that the state
 * folder may be moved while nothing runs. Such a file keeps its one name as long as it exists, whatever the content is
 * to the disks and nodes above: QEMU opens files by name again, for instance to let go of the right to write to what
 * has become a node. Had the name gone to another file by then, it would keep the right, and with it the lock that
 * lets nobody else open the node. So what changes in a freeze is who points where.
 */

#include "base/thread.h"
#include "storage/qcow2-header.h"
#include "storage/qcow2-overlay.h"
#include "storage/storage.h"

#define FIRST_SUFFIX ".qcow2"
#define OVERLAY_SUFFIX ".over.qcow2"
#define DISK_SUFFIX ".disk"
#define NODE_SUFFIX ".node"
#define TMP_SUFFIX ".tmp"
#define NO_FILE "none" /* where the link of a disk that is gone points */
#define BASE_FOLDER "base"
#define GIB ((uint64_t) 1 << 30)
#define MIB ((uint64_t) 1 << 20)

struct qcow2_storage {
        struct storage storage; /* first: the interface's pointer is ours */
        char *dir, *base_dir;   /* absolute; never change */
        int dir_fd;
        uint64_t reserve_bytes;
        struct overlays *overlays;
        pthread_mutex_t bases_lock; /* one thread at a time keeps a base image */
        /* Held while a file or a link gets its name, and while it is found out that nothing stands on a file and that
         * file is removed: nobody builds on what another one takes away. No lock is taken under it. */
        pthread_mutex_t names_lock;
};

static inline struct qcow2_storage *qcow2_of(struct storage *s) {
        return (struct qcow2_storage *) s;
}

/* --- names and links (qcow2-folder.c). Names are of files in the folder, owned by the caller. --- */

/* Letters, digits and dashes: a name that cannot lead out of the folder, hide in it or be a temporary one. */
bool storage_id_valid(const char *id);
int check_disk_id(const char *id, struct error *err);
int check_node_id(const char *id, struct error *err);

/* The file that a disk is in. -ENOENT: there is no such disk (or its first file is missing: open tells). -EBADMSG: its
 * link was tampered with. */
int disk_file(struct qcow2_storage *q, const char *id, char **ret);
/* The file that a node is in. -ENOENT: there is no such node. -EBADMSG. */
int node_file(struct qcow2_storage *q, const char *node, char **ret);
/* The same with the file's header and, where there is none, the error. */
int node_header(struct qcow2_storage *q, const char *node, char **ret_file, struct qcow2_header *ret,
                struct error *err);
char *overlay_name(const char *disk, const char *node);

/* Makes a link under its temporary name, so that link_set() need not allocate anything. */
int link_prepare(struct qcow2_storage *q, const char *id, const char *suffix, const char *target);
/* Lets the link <id><suffix> point to target from now on; in one step, whether or not it is there. */
int link_set(struct qcow2_storage *q, const char *id, const char *suffix, const char *target);
/* Removes <id><suffix>; 0 when it is not there. */
int name_remove(struct qcow2_storage *q, const char *id, const char *suffix);

/* Reads the header of a file. -ENOENT, -EBADMSG. */
int file_header(struct qcow2_storage *q, const char *name, struct qcow2_header *ret);
/* Makes the content of a file last. */
int file_sync(struct qcow2_storage *q, const char *name);
/* Makes the names in the folder last. */
int folder_sync(struct qcow2_storage *q);

/* --- the whole folder --- */

enum folder_kind {
        FOLDER_FIRST,
        FOLDER_OVERLAY,
        FOLDER_DISK_LINK,
        FOLDER_NODE_LINK,
};

struct folder_entry {
        enum folder_kind kind;
        char *name;
        char *disk, *node; /* ids in the name; NULL where there is none */
        char *target;      /* of a link; NULL: it is none */
        /* Of the qcow2 files: */
        bool of_disk;                       /* its disk is in it */
        const struct folder_entry *of_node; /* link of the node that is in it; NULL: none */
        /* Set by folder_read_headers(): */
        int unreadable;                   /* 0, or the negative errno */
        char *backing;                    /* as stored */
        const struct folder_entry *upper; /* a file that stands on it; NULL: none */
};

struct folder {
        struct folder_entry *v; /* sorted by name: what belongs to one disk stands together */
        size_t n;
};
void folder_clear(struct folder *f);
#define _cleanup_folder_ _cleanup_(folder_clear)

/* What is in the folder, and who points to what. Consistent under names_lock. */
int folder_read(struct qcow2_storage *q, struct folder *ret, struct error *err);
/* What stands on what. A file that cannot be read is noted as such. */
int folder_read_headers(struct qcow2_storage *q, struct folder *f, struct error *err);
const struct folder_entry *folder_find(const struct folder *f, const char *name);
/* Whether it is a file that no disk and no node is in. */
bool folder_unused(const struct folder_entry *e);
/* Appends whose file it is: "the disk X", "the node Y". */
void folder_describe(const struct folder_entry *e, char *ret, size_t n);

/* --- errors and checks (qcow2.c) --- */

/* no_space unless there is room for a new overlay beside the reserve. what: "disk", ... */
int check_room(struct qcow2_storage *q, const char *what, struct error *err);
/* Puts no_space in the place of an error that comes from a full file system. qemu-img says why it failed only in words
 * (-EIO): a file system that is full by now is reason enough. */
void explain_full(struct qcow2_storage *q, int r, struct error *err);
/* Says what is wrong with a disk: r of disk_file() or file_header(). Whoever asks for a disk has a workspace that
 * should have it: that it is not there is no fault of the caller's. */
int fail_disk(const char *id, int r, struct error *err);

/* --- the operations --- */

int qcow2_freeze_begin(struct storage *s, const char *id, const char *node, char **ret_overlay, const struct op *op,
                       struct error *err);
int qcow2_freeze_end(struct storage *s, const char *id, const char *node, bool done, struct error *err);
int qcow2_freeze_recover(struct storage *s, const char *id, const char *open_path, struct error *err);
int qcow2_node_info(struct storage *s, const char *node, struct node_info *ret, struct error *err);
int qcow2_node_destroy(struct storage *s, const char *node, struct error *err);
int qcow2_node_list(struct storage *s, struct strv *ret, struct error *err);
