/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * File descriptors: complete reads and writes under a deadline, unix sockets.
 * Everything that is opened here is O_CLOEXEC. Functions return >= 0 or a negative errno.
 */

#include <sys/types.h>

#include "base/deadline.h"
#include "base/error.h"
#include "base/util.h"

int fd_set_nonblock(int fd, bool on);

/* Reads exactly n bytes from a non-blocking or blocking fd. 0; -ENODATA when the end came first; -ETIMEDOUT... */
int read_full(int fd, void *data, size_t n, const struct op *op);
/* Writes all n bytes; the fd should be non-blocking for the deadline to hold. No SIGPIPE on sockets. */
int write_full(int fd, const void *data, size_t n, const struct op *op);

/* Makes a change of names in the folder that holds path last: a file that was made, renamed or removed there. */
int fsync_folder_of(const char *path);

/* Unix sockets, at paths of any length whose last part has at most 64 bytes. */

/* A listening non-blocking stream socket at path, mode 0600; a stale socket file there is replaced. */
int unix_listen(const char *path, int backlog);
/* Connects a non-blocking stream socket. -ENOENT or -ECONNREFUSED when nobody listens. */
int unix_connect(const char *path, const struct op *op);
/* One non-blocking send of up to n (at least 1) bytes to a connected unix socket, with a copy of the descriptor fd that
 * travels with the first byte. How many bytes were taken, or a negative errno: -EAGAIN when there is no room; the
 * descriptor was then not sent. */
ssize_t send_with_fd(int sock, const void *data, size_t n, int fd);
/* One non-blocking receive of up to n (at least 1) bytes, with the descriptor that travels with them: *ret_fd,
 * O_CLOEXEC, or -1 when there is none. Of several descriptors the first counts, the others are closed. How many bytes,
 * 0 at the end, or a negative errno: -EAGAIN when there is nothing yet. */
ssize_t recv_with_fd(int sock, void *data, size_t n, int *ret_fd);
/* Who is at the other end of a connected unix socket. */
int unix_peer(int fd, pid_t *ret_pid, uid_t *ret_uid);
