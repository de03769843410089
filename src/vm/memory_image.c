/* SPDX-License-Identifier: Apache-2.0 */
/* Makes the whole memory of a saved machine of its base and its pages. */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/str.h"
#include "vm/memory_private.h"

#define COPY_CHUNK (16u * 1024u * 1024u) /* between two looks whether to stop */
#define BOUNCE_BYTES (256u * 1024u)

/* For file systems, or pairs of them, between which the kernel does not copy. */
static int copy_by_hand(int in, uint64_t in_at, int out, uint64_t out_at, size_t n) {
        _cleanup_free_ char *bounce = malloc(BOUNCE_BYTES);

        if (!bounce)
                return -ENOMEM;
        while (n > 0) {
                const size_t piece = MIN(n, (size_t) BOUNCE_BYTES);
                int r = memory_read_at(in, bounce, piece, in_at);
                if (r >= 0)
                        r = memory_write_at(out, bounce, piece, out_at);
                if (r < 0)
                        return r;
                in_at += piece;
                out_at += piece;
                n -= piece;
        }
        return 0;
}

static int copy_range(int in, uint64_t in_at, int out, uint64_t out_at, uint64_t n, const struct op *op) {
        while (n > 0) {
                off_t from = (off_t) in_at, to = (off_t) out_at;
                const size_t piece = (size_t) MIN(n, (uint64_t) COPY_CHUNK);

                int r = op_check(op);
                if (r < 0)
                        return r;
                ssize_t put = copy_file_range(in, &from, out, &to, piece, 0);
                if (put <= 0) {
                        if (put < 0 && errno != EXDEV && errno != EINVAL && errno != EOPNOTSUPP && errno != ENOSYS)
                                return -errno;
                        r = copy_by_hand(in, in_at, out, out_at, piece);
                        if (r < 0)
                                return r;
                        put = (ssize_t) piece;
                }
                in_at += (uint64_t) put;
                out_at += (uint64_t) put;
                n -= (uint64_t) put;
        }
        return 0;
}

/* Copies what is not a hole. */
static int copy_sparse(int in, int out, const struct op *op) {
        for (off_t end = 0;;) {
                off_t begin = lseek(in, end, SEEK_DATA);
                if (begin < 0)
                        return errno == ENXIO ? 0 : -errno;
                end = lseek(in, begin, SEEK_HOLE);
                if (end < 0)
                        return -errno;
                int r = copy_range(in, (uint64_t) begin, out, (uint64_t) begin, (uint64_t) (end - begin), op);
                if (r < 0)
                        return r;
        }
}

static int fill(int base, const struct pages_file *pages, int out, const struct op *op) {
        const uint64_t page = pages->header.page_bytes;
        uint64_t at = pages->header.data_offset;
        int r = 0;

        if (ioctl(out, FICLONE, base) < 0) {
                if (ftruncate(out, (off_t) pages->header.memory_bytes) < 0)
                        return -errno;
                r = copy_sparse(base, out, op);
        }
        for (size_t i = 0; r >= 0 && i < pages->header.n_runs; i++) {
                const struct pages_run *run = &pages->runs[i];

                r = copy_range(pages->fd, at, out, run->first * page, run->count * page, op);
                at += run->count * page;
        }
        return r;
}

/* *ret_bytes: its size, which is that of the guest's memory. */
static int open_base(const char *path, uint64_t *ret_bytes, struct error *err) {
        struct stat st;
        int fd = open(path, O_RDONLY | O_CLOEXEC);

        if (fd < 0 || fstat(fd, &st) < 0) {
                const int e = errno;

                close_fd(fd);
                return error_set_errno(err, e, "Cannot read the memory file %s", path);
        }
        *ret_bytes = (uint64_t) st.st_size;
        return fd;
}

int memory_image_build(const char *base_path, const char *pages_path, const char *out_path, bool durable,
                       const struct op *op, struct error *err) {
        _cleanup_pages_file_ struct pages_file pages = PAGES_FILE_INIT;
        char random[16 + 1];
        uint64_t bytes = 0;

        _cleanup_close_ int base = open_base(base_path, &bytes, err);
        if (base < 0)
                return base;
        int r = pages_file_open(pages_path, bytes, &pages, err);
        if (r < 0)
                return r;
        r = random_hex(random, 8);
        _cleanup_free_ char *temporary = r < 0 ? NULL : str_printf("%s.tmp-%s", out_path, random);
        if (!temporary)
                return error_set_errno(err, ENOMEM, "Cannot make the memory file %s", out_path);
        _cleanup_close_ int out = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (out < 0)
                return error_set_errno(err, errno, "Cannot make the memory file %s", out_path);

        r = fill(base, &pages, out, op);
        if (r >= 0 && durable && fsync(out) < 0)
                r = -errno;
        if (r >= 0 && rename(temporary, out_path) < 0)
                r = -errno;
        if (r < 0) {
                unlink(temporary);
                return error_set_errno(err, r, "Cannot make the memory file %s", out_path);
        }
        r = durable ? fsync_folder_of(out_path) : 0;
        return r < 0 ? error_set_errno(err, r, "Cannot make the memory file %s last", out_path) : 0;
}
