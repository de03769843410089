/* SPDX-License-Identifier: Apache-2.0 */
/* Pages files as they are read, and the processes that their pages come from and go to. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "vm/memory_private.h"

#define BOUNCE_BYTES (256u * 1024u)

/* --- reading and writing --- */

void pages_file_clear(struct pages_file *f) {
        f->fd = close_fd(f->fd);
        free(f->runs);
        f->runs = NULL;
}

int memory_read_at(int fd, void *data, size_t n, uint64_t at) {
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

int memory_write_at(int fd, const void *data, size_t n, uint64_t at) {
        const char *p = data;

        while (n > 0) {
                ssize_t put = pwrite(fd, p, n, (off_t) at);
                if (put < 0 && errno == EINTR)
                        continue;
                if (put <= 0)
                        return put < 0 ? -errno : -EIO;
                p += put;
                at += (uint64_t) put;
                n -= (size_t) put;
        }
        return 0;
}

/* --- the file --- */

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

int pages_file_open(const char *path, uint64_t memory_bytes, struct pages_file *f, struct error *err) {
        struct stat st;

        f->fd = open(path, O_RDONLY | O_CLOEXEC);
        if (f->fd < 0 || fstat(f->fd, &st) < 0)
                return error_set_errno(err, errno, "Cannot read the memory pages %s", path);
        int r = memory_read_at(f->fd, &f->header, sizeof(f->header), 0);
        if (r == -ENODATA || (r >= 0 && !header_is_sane(&f->header, (uint64_t) st.st_size)))
                return error_set(err, ERROR_INTERNAL, "The memory pages %s are damaged", path);
        if (r < 0)
                return error_set_errno(err, r, "Cannot read the memory pages %s", path);
        if (f->header.memory_bytes != memory_bytes)
                return error_set(err, ERROR_INTERNAL, "The memory pages %s are of a machine with %llu bytes, not %llu",
                                 path, (unsigned long long) f->header.memory_bytes, (unsigned long long) memory_bytes);
        f->runs = calloc(f->header.n_runs + 1, sizeof(*f->runs));
        r = f->runs ? memory_read_at(f->fd, f->runs, f->header.n_runs * sizeof(*f->runs), sizeof(f->header)) : -ENOMEM;
        if (r < 0)
                return error_set_errno(err, r, "Cannot read the memory pages %s", path);
        return runs_are_sane(f) ? 0 : error_set(err, ERROR_INTERNAL, "The memory pages %s are damaged", path);
}

/* --- the process --- */

int memory_process_open(pid_t pid, struct error *err) {
        char path[32];

        snprintf(path, sizeof(path), "/proc/%d", (int) pid);
        int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 ? error_set_errno(err, errno == ENOENT ? ESRCH : errno, "Cannot look at process %d", (int) pid)
                      : fd;
}

/* What counts of a line of /proc/PID/maps: "start-end rwxp offset device inode path"; see proc(5). */
struct map_line {
        uint64_t start, end, offset, inode;
        bool is_private;
};

static bool parse_map(const char *line, struct map_line *ret) {
        char *p;

        ret->start = strtoull(line, &p, 16);
        if (*p++ != '-')
                return false;
        ret->end = strtoull(p, &p, 16);
        if (*p++ != ' ' || strnlen(p, 5) < 5)
                return false;
        ret->is_private = p[3] == 'p';
        ret->offset = strtoull(p + 5, &p, 16);
        char *inode = *p == ' ' ? strchr(p + 1, ' ') : NULL;
        if (!inode)
                return false;
        ret->inode = strtoull(inode, NULL, 10);
        return true;
}

/*
 * The address at which the process has a file privately, from its first byte on without a gap; the kernel may show the
 * mapping in pieces. By inode number and size: a path may have changed its name or have odd characters, and the device
 * of some file systems differs from stat(2)'s.
 */
static int find_mapping(FILE *maps, uint64_t inode, uint64_t bytes, uint64_t *ret) {
        _cleanup_free_ char *line = NULL;
        uint64_t begin = 0, end = 0;
        size_t cap = 0;

        while (getline(&line, &cap, maps) > 0) {
                struct map_line m;

                if (!parse_map(line, &m) || m.inode != inode || !m.is_private)
                        continue;
                if (m.offset == 0)
                        begin = m.start;
                else if (m.start != end || m.start - begin != m.offset)
                        continue;
                end = m.end;
                if (end - begin == bytes) {
                        *ret = begin;
                        return 0;
                }
        }
        return -ENOENT;
}

int memory_process_find(int process, const char *memory_path, uint64_t memory_bytes, uint64_t *ret, struct error *err) {
        struct stat st;

        if (stat(memory_path, &st) < 0)
                return error_set_errno(err, errno, "Cannot look at the memory file %s", memory_path);
        int fd = openat(process, "maps", O_RDONLY | O_CLOEXEC);
        FILE *maps = fd < 0 ? NULL : fdopen(fd, "r");
        if (!maps) {
                const int e = errno;

                close_fd(fd);
                return error_set_errno(err, e, "Cannot read the mappings of a process");
        }
        int r = find_mapping(maps, st.st_ino, memory_bytes, ret);
        (void) fclose(maps);
        return r < 0 ? error_set_errno(err, r, "The process does not map %s privately", memory_path) : 0;
}

/* --- pages into a process --- */

static int apply(int memory, uint64_t address, const struct pages_file *f, char *bounce, const struct op *op) {
        const uint64_t page = f->header.page_bytes;
        uint64_t from = f->header.data_offset;

        for (size_t i = 0; i < f->header.n_runs; i++) {
                uint64_t to = address + f->runs[i].first * page, left = f->runs[i].count * page;

                while (left > 0) {
                        const size_t piece = (size_t) MIN(left, (uint64_t) BOUNCE_BYTES);
                        int r = op_check(op);
                        if (r >= 0)
                                r = memory_read_at(f->fd, bounce, piece, from);
                        if (r >= 0)
                                r = memory_write_at(memory, bounce, piece, to);
                        if (r < 0)
                                return r;
                        from += piece;
                        to += piece;
                        left -= piece;
                }
        }
        return 0;
}

int pages_apply(pid_t pid, const char *memory_path, uint64_t memory_bytes, const char *pages_path, const struct op *op,
                struct error *err) {
        _cleanup_pages_file_ struct pages_file f = PAGES_FILE_INIT;
        uint64_t address;

        int r = pages_file_open(pages_path, memory_bytes, &f, err);
        if (r < 0)
                return r;
        _cleanup_close_ int process = memory_process_open(pid, err);
        if (process < 0)
                return process;
        r = memory_process_find(process, memory_path, memory_bytes, &address, err);
        if (r < 0)
                return r;
        _cleanup_close_ int memory = openat(process, "mem", O_RDWR | O_CLOEXEC);
        if (memory < 0)
                return error_set_errno(err, errno, "Cannot write the memory of process %d", (int) pid);
        _cleanup_free_ char *bounce = malloc(BOUNCE_BYTES);
        r = bounce ? apply(memory, address, &f, bounce, op) : -ENOMEM;
        return r < 0 ? error_set_errno(err, r, "Cannot write the memory of process %d", (int) pid) : 0;
}
