/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Files beneath one folder, and never outside it.
 *
 * A client names a file beneath a folder that the user has set aside for it. The name is cut into components as text,
 * with nothing but plain names allowed; the kernel then resolves it with openat2(2) and RESOLVE_BENEATH, so that no
 * symbolic link in the folder leads outside, not even one that is put there while we look. A link to another place in
 * the same folder works. Without openat2 (Linux before 5.6) everything is refused.
 *
 * A new file has no name until it is complete (O_TMPFILE): a crash leaves nothing behind. Only to replace a file, and
 * on file systems without O_TMPFILE, it has a temporary name, BENEATH_TEMPORARY and 16 hexadecimal digits. Whoever
 * makes one holds a lock on it as long as he lives; what nobody holds is left over and is removed by the next one who
 * writes to that folder.
 */

#include <sys/stat.h>

#include "base/error.h"
#include "base/util.h"

#define BENEATH_TEMPORARY ".agentiso-transfer-"
#define BENEATH_PATH_MAX 4096u  /* bytes of a path beneath the folder */
#define BENEATH_SCAN_MAX 10000u /* entries of a folder that are looked at for what is left over, or for a near name */

struct beneath {
        char *path; /* as it was given, without a slash at the end */
        char *real; /* what that is when its links are resolved */
        int fd;
};
#define BENEATH_INIT ((struct beneath){.fd = -1})

int beneath_open(const char *folder, struct beneath *ret, struct error *err);
void beneath_close(struct beneath *b);
#define _cleanup_beneath_ _cleanup_(beneath_close)

/* What `path` is beneath the folder: relative, or absolute and beginning with the folder's path or its real path.
 * *ret: the components with one slash between (owned). */
int beneath_relative(const struct beneath *b, const char *path, char **ret, struct error *err);

/* Opens a regular file for reading (the fd is returned). Waits for nothing: anything else is refused. */
int beneath_read(const struct beneath *b, const char *relative, struct stat *ret, struct error *err);

struct beneath_file {
        const struct beneath *b; /* borrowed */
        char *relative;
        const char *name; /* the last part of it */
        int folder;
        int fd;             /* for writing, empty at first */
        unsigned made;      /* folders that were made for it */
        char temporary[40]; /* its name as long as it is not complete; "": it has none */
};
#define BENEATH_FILE_INIT ((struct beneath_file){.folder = -1, .fd = -1})

/* Begins a new file that may replace a regular file. Folders that are missing are made (0777 less the umask). */
int beneath_create(const struct beneath *b, const char *relative, struct beneath_file *ret, struct error *err);
/* Gives it its mode, flushes it, puts it in place and flushes the folder. */
int beneath_commit(struct beneath_file *f, mode_t mode, struct error *err);
/* Without a commit, leaves nothing of it, nor of the folders that were made for it. */
void beneath_end(struct beneath_file *f);
#define _cleanup_beneath_file_ _cleanup_(beneath_end)

/* Removes temporary files in the folder itself that nobody holds: for a start. */
void beneath_tidy(const struct beneath *b);
