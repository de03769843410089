/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Private to wire/: one read or write on the non-blocking channel below the frames, a socket or a character device. */

#include <sys/socket.h>
#include <sys/stat.h>

#include "base/util.h"

static inline bool channel_is_socket(int fd) {
        struct stat st;

        return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* Bytes read; 0 at the end; -EAGAIN when there is nothing yet. */
static inline ssize_t channel_read(int fd, void *data, size_t n) {
        ssize_t r;

        do
                r = read(fd, data, n);
        while (r < 0 && errno == EINTR);
        return r < 0 ? -errno : r;
}

/* The same, and all that is there at once: a virtio-serial port gives 4 KiB with each read. */
static inline ssize_t channel_read_all(int fd, bool is_socket, void *data, size_t n) {
        ssize_t first = channel_read(fd, data, n);
        size_t have = first > 0 ? (size_t) first : 0;

        while (!is_socket && first > 0 && have < n) {
                ssize_t r = channel_read(fd, (char *) data + have, n - have);
                if (r <= 0)
                        break; /* what is wrong, if anything is, the next call says */
                have += (size_t) r;
        }
        return first > 0 ? (ssize_t) have : first;
}

/* Bytes written (> 0); -EAGAIN when there is no room. A peer that is gone gives -EPIPE, not a signal. */
static inline ssize_t channel_write(int fd, bool is_socket, const void *data, size_t n) {
        ssize_t r;

        do
                r = is_socket ? send(fd, data, n, MSG_NOSIGNAL) : write(fd, data, n);
        while (r < 0 && errno == EINTR);
        return r < 0 ? -errno : r == 0 ? -EAGAIN : r;
}
