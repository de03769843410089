/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/sparse.h"

#include <fcntl.h>
#include <sys/stat.h>

#define SPARSE_LOOK_AHEAD (64ull * 1024u * 1024u)

/* Whether the file is still as long as was said; 0 or -ENODATA. */
static int check_size(int fd, uint64_t size) {
        struct stat st;

        if (fstat(fd, &st) < 0)
                return -errno;
        return (uint64_t) st.st_size < size ? -ENODATA : 0;
}

/* The end of the data that begins at pos: holes that are too small to tell of belong to it. Looks SPARSE_LOOK_AHEAD
 * bytes ahead, so that a file of many small holes does not cost more than a moment. */
static int end_of_data(int fd, uint64_t pos, uint64_t size, uint64_t *ret) {
        uint64_t enough = size - pos > SPARSE_LOOK_AHEAD ? pos + SPARSE_LOOK_AHEAD : size;

        while (pos < enough) {
                off_t hole = lseek(fd, (off_t) pos, SEEK_HOLE);
                if (hole < 0)
                        return errno == ENXIO ? -ENODATA : -errno;
                if ((uint64_t) hole >= size) {
                        pos = size;
                        break;
                }
                off_t data = lseek(fd, hole, SEEK_DATA);
                if (data < 0 && errno != ENXIO)
                        return -errno;
                uint64_t end = data < 0 ? size : MIN((uint64_t) data, size);
                if (end - (uint64_t) hole >= SPARSE_HOLE_MIN) {
                        *ret = (uint64_t) hole;
                        return 0;
                }
                pos = end;
        }
        *ret = pos;
        return 0;
}

int sparse_next(int fd, uint64_t pos, uint64_t size, struct sparse_piece *ret) {
        uint64_t end = size;

        off_t data = lseek(fd, (off_t) pos, SEEK_DATA);
        if (data < 0 && errno != ENXIO && errno != EINVAL && errno != EOPNOTSUPP)
                return -errno;
        bool knows_holes = data >= 0 || errno == ENXIO;
        /* Behind the last data there is a hole, or nothing any more. */
        int r = data < 0 ? check_size(fd, size) : 0;
        if (r < 0)
                return r;
        uint64_t start = !knows_holes ? pos : data < 0 ? size : MIN((uint64_t) data, size);
        if (start - pos >= SPARSE_HOLE_MIN) {
                *ret = (struct sparse_piece){.len = start - pos, .hole = true};
                return 0;
        }
        if (knows_holes && start < size)
                r = end_of_data(fd, start, size, &end);
        if (r < 0)
                return r;
        *ret = (struct sparse_piece){.len = end - pos};
        return 0;
}

ssize_t sparse_read(int fd, void *data, size_t n, uint64_t pos) {
        ssize_t got;

        do
                got = pread(fd, data, n, (off_t) pos);
        while (got < 0 && errno == EINTR);
        return got < 0 ? -errno : got == 0 ? -ENODATA : got;
}

void sparse_len_encode(uint64_t len, uint8_t ret[SPARSE_LEN_BYTES]) {
        for (unsigned i = 0; i < SPARSE_LEN_BYTES; i++)
                ret[i] = (uint8_t) (len >> (8 * (SPARSE_LEN_BYTES - 1 - i)));
}

int sparse_lens_take(struct sparse_lens *l, const char **data, size_t *n, uint64_t *ret) {
        while (*n > 0) {
                l->piece[l->have++] = (uint8_t) * *data;
                (*data)++;
                (*n)--;
                if (l->have < SPARSE_LEN_BYTES)
                        continue;
                *ret = 0;
                for (unsigned i = 0; i < SPARSE_LEN_BYTES; i++)
                        *ret = *ret << 8 | l->piece[i];
                l->have = 0;
                return 1;
        }
        return 0;
}

/* Sends to the disk what has gathered since the last time. */
static int flush(const struct sparse_writer *w, uint64_t before) {
        if (before / SPARSE_FLUSH_BYTES != w->written / SPARSE_FLUSH_BYTES)
                return fdatasync(w->fd) < 0 ? -errno : 0;
        /* Only a start: a file system that cannot do it writes later. */
        if (before / SPARSE_WRITE_OUT != w->written / SPARSE_WRITE_OUT)
                (void) sync_file_range(w->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
        return 0;
}

int sparse_write(struct sparse_writer *w, const void *data, size_t n) {
        const char *p = data;
        uint64_t before = w->written;

        while (n > 0) {
                ssize_t k = pwrite(w->fd, p, n, (off_t) w->pos);

                if (k < 0 && errno == EINTR)
                        continue;
                if (k < 0)
                        return -errno;
                p += k;
                n -= (size_t) k;
                w->pos += (uint64_t) k;
                w->written += (uint64_t) k;
        }
        return flush(w, before);
}

int sparse_skip(struct sparse_writer *w, uint64_t len) {
        if (len > (uint64_t) INT64_MAX - w->pos)
                return -EFBIG;
        w->pos += len;
        return 0;
}

int sparse_finish(struct sparse_writer *w) {
        return ftruncate(w->fd, (off_t) w->pos) < 0 ? -errno : 0;
}
