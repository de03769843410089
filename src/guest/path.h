/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Replacing a file in one step.
 *
 * The new content goes to a temporary name in the folder of the file, is flushed to the disk, and is renamed over it:
 * whoever looks sees the old file or the new one, and what was acknowledged survives a crash of the machine. A symbolic
 * link at the path is followed, so that it stays a link and its target changes. A file with several hard links is
 * separated from the others.
 */

#include <sys/stat.h>

#include "base/error.h"
#include "base/thread.h"
#include "base/util.h"

/* "directory", "symlink", ... for messages and listings. */
const char *file_kind(mode_t mode);      /* file, directory, symlink, other */
const char *file_kind_long(mode_t mode); /* "a directory", "a named pipe", "a block device", ... */

/* Where path leads when symbolic links at its end are followed; the last one may not exist. -ELOOP. */
int path_resolve(const char *path, char **ret);

struct replacement {
        char *path; /* resolved */
        int dir_fd; /* its folder */
        int fd;     /* the temporary file, for writing */
        char temporary[32];
        char *made;  /* the first of the parents that were made, or NULL */
        bool exists; /* there is a file to be replaced, .old describes it */
        struct stat old;
};
#define REPLACEMENT_INIT ((struct replacement){.dir_fd = -1, .fd = -1})

/* Refuses everything but a regular file or nothing at the path; make_parents: mode 0755. */
int replacement_begin(struct replacement *r, const char *path, bool make_parents, struct error *err);
int replacement_write(struct replacement *r, const void *data, size_t n, struct error *err);
/* Owner of the old file, this mode, extended attributes of attributes_fd (-1: none), flush, rename. lock (or NULL) is
 * held for the rename. */
int replacement_commit(struct replacement *r, mode_t mode, int attributes_fd, pthread_mutex_t *lock, struct error *err);
/* Removes the temporary file if it was not renamed, and then the parents that were made for it. */
void replacement_end(struct replacement *r);
#define _cleanup_replacement_ _cleanup_(replacement_end)
