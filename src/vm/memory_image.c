/* SPDX-License-Identifier: Apache-2.0 */
/* Makes the whole memory of a saved machine of its base and its pages. */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/io.h"
#include "base/str.h"
#include "vm/memory.h"

#define COPY_CHUNK (16u * 1024u * 1024u) /* between two looks whether to stop */
#define BOUNCE_BYTES (256u * 1024u)

/* A pages file that was read, and is as its header says. */
struct pages_file {
        int fd;
        struct pages_header header;
        struct pages_run *runs;
};

static void pages_file_clear(struct pages_file *f) {
        close_fd(f->fd);
        free(f->runs);
}

static int read_at(int fd, void *data, size_t n, uint64_t at) {
        char *p = data;

        while (n > 0) {
                ssize_t got = pread(fd, p, n, (off_t) at);
                if (got < 0 && errno == EINTR)
                        continue;
                if (got <= 0)
                        return got < 0 ? -errno : -ENODATA;
                p += got;
                at += (uint64_t) got;
                n -= (size_t) got;
        }
        return 0;
}

static bool header_is_sane(const struct pages_header *h, uint64_t file_bytes) {
        const uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE);

        if (memcmp(h->magic, PAGES_MAGIC, PAGES_MAGIC_LEN) != 0 || h->page_bytes != page ||
            h->memory_bytes > MEMORY_BYTES_MAX || h->memory_bytes % page != 0 || h->n_pages > h->memory_bytes / page ||
            h->n_runs > h->n_pages)
                return false;
        return h->data_offset % page == 0 && h->data_offset >= sizeof(*h) + h->n_runs * sizeof(struct pages_run) &&
               h->data_offset <= file_bytes && file_bytes - h->data_offset == h->n_pages * page;
}

/* Ascending, apart, within the memory, and as many pages as were promised. */
static bool runs_are_sane(const struct pages_file *f) {
        const uint64_t total = f->header.memory_bytes / f->header.page_bytes;
        uint64_t end = 0, pages = 0;

        for (size_t i = 0; i < f->header.n_runs; i++) {
                const struct pages_run *run = &f->runs[i];

                if (run->first < end || run->count == 0 || run->first >= total || run->count > total - run->first)
                        return false;
                end = run->first + run->count;
                pages += run->count;
        }
        return pages == f->header.n_pages;
}

static int read_pages_file(const char *path, struct pages_file *f, struct error *err) {
        struct stat st;

        f->fd = open(path, O_RDONLY | O_CLOEXEC);
        if (f->fd < 0 || fstat(f->fd, &st) < 0)
                return error_set_errno(err, errno, "Cannot read the memory pages %s", path);
        int r = read_at(f->fd, &f->header, sizeof(f->header), 0);
        if (r == -ENODATA || (r >= 0 && !header_is_sane(&f->header, (uint64_t) st.st_size)))
                return error_set(err, ERROR_INTERNAL, "The memory pages %s are damaged", path);
        if (r >= 0) {
                f->runs = calloc(f->header.n_runs + 1, sizeof(*f->runs));
                r = f->runs ? read_at(f->fd, f->runs, f->header.n_runs * sizeof(*f->runs), sizeof(f->header)) : -ENOMEM;
        }
        if (r < 0)
                return error_set_errno(err, r, "Cannot read the memory pages %s", path);
        return runs_are_sane(f) ? 0 : error_set(err, ERROR_INTERNAL, "The memory pages %s are damaged", path);
}

/* For file systems, or pairs of them, between which the kernel does not copy. */
static int copy_by_hand(int in, uint64_t in_at, int out, uint64_t out_at, size_t n) {
        _cleanup_free_ char *bounce = malloc(BOUNCE_BYTES);

        if (!bounce)
                return -ENOMEM;
        while (n > 0) {
                const size_t piece = MIN(n, (size_t) BOUNCE_BYTES);
                int r = read_at(in, bounce, piece, in_at);
                if (r < 0)
                        return r;
                for (size_t done = 0; done < piece;) {
                        ssize_t put = pwrite(out, bounce + done, piece - done, (off_t) (out_at + done));
                        if (put < 0 && errno != EINTR)
                                return -errno;
                        done += (size_t) MAX(put, (ssize_t) 0);
                }
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
        if (r >= 0 && fsync(out) < 0)
                r = -errno;
        return r;
}

static int open_base(const char *path, const struct pages_file *pages, struct error *err) {
        struct stat st;
        int fd = open(path, O_RDONLY | O_CLOEXEC);

        if (fd < 0 || fstat(fd, &st) < 0) {
                const int e = errno;

                close_fd(fd);
                return error_set_errno(err, e, "Cannot read the memory file %s", path);
        }
        if ((uint64_t) st.st_size == pages->header.memory_bytes)
                return fd;
        close_fd(fd);
        return error_set(err, ERROR_INTERNAL, "The memory file %s has %llu bytes and the saved machine has %llu", path,
                         (unsigned long long) st.st_size, (unsigned long long) pages->header.memory_bytes);
}

int memory_image_build(const char *base_path, const char *pages_path, const char *out_path, const struct op *op,
                       struct error *err) {
        _cleanup_(pages_file_clear) struct pages_file pages = {.fd = -1};
        char random[16 + 1];

        int r = read_pages_file(pages_path, &pages, err);
        if (r < 0)
                return r;
        _cleanup_close_ int base = open_base(base_path, &pages, err);
        if (base < 0)
                return base;
        r = random_hex(random, 8);
        _cleanup_free_ char *temporary = r < 0 ? NULL : str_printf("%s.tmp-%s", out_path, random);
        if (!temporary)
                return error_set_errno(err, ENOMEM, "Cannot make the memory file %s", out_path);
        _cleanup_close_ int out = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (out < 0)
                return error_set_errno(err, errno, "Cannot make the memory file %s", out_path);

        r = fill(base, &pages, out, op);
        if (r >= 0 && rename(temporary, out_path) < 0)
                r = -errno;
        if (r < 0) {
                unlink(temporary);
                return error_set_errno(err, r, "Cannot make the memory file %s", out_path);
        }
        r = fsync_folder_of(out_path);
        return r < 0 ? error_set_errno(err, r, "Cannot make the memory file %s last", out_path) : 0;
}
