/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Paths and whole files. All strings that are returned are owned by the caller. */

#include <sys/stat.h>

#include "base/error.h"
#include "base/util.h"

/* "dir/name" with exactly one slash between; NULL when out of memory. */
char *path_join(const char *dir, const char *name);
/* Reads a file of at most max bytes into a NUL-terminated string. -EFBIG when it is larger. */
int file_read_all(const char *path, size_t max, char **ret, size_t *ret_len);
/* Writes path so that a crash leaves the old or the new content: temporary file, fsync, rename, fsync of the folder. */
int file_write_atomic(const char *path, const void *data, size_t len, mode_t mode);
/* Makes a folder and its parents (mode for all that are made). 0 when it is there already; -ENOTDIR. */
int mkdir_p(const char *path, mode_t mode);
/* Removes a file or a whole tree; follows no symlink, crosses no mount point; 0 when it is not there. */
int rm_rf(const char *path);
/* Takes an exclusive flock on path (made when absent), without waiting. The fd holds the lock. -EWOULDBLOCK: taken. */
int file_lock(const char *path);
/* Bytes free to this user on the file system of path. */
int disk_free_bytes(const char *path, uint64_t *ret);
/* Path of a program: as given if it has a slash, else absolute, from PATH and then the usual system folders (an
 * ordinary user's PATH lacks /usr/sbin). -ENOENT. */
int find_program(const char *name, char **ret);

/* Absolute path of this program: of the one that an upgrade has put in its place, if there was one. Owned. */
int self_path(char **ret);
