/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/str.h"

/* pagemap (Documentation/admin-guide/mm/pagemap.rst of Linux): 64 bits for each page. */
#define PAGEMAP_FILE (1ull << 61) /* a page of the file, or shared */
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_PRESENT (1ull << 63)

#define ENTRIES_CHUNK 8192u /* of pagemap, read at once */
#define IOV_CHUNK 512u      /* runs read at once; at most IOV_MAX */
/* Room above what is there at the beginning: the guest still runs then. */
#define BUFFER_SPARE (4u * 1024u * 1024u)

struct page_copy {
        pid_t pid;
        int fd;         /* borrowed */
        int pagemap_fd; /* owned */
        uint64_t page_bytes, memory_bytes;
        uint64_t address; /* of the guest's memory in the process */

        struct pages_run *runs;
        size_t n_runs, cap_runs;
        uint64_t n_pages;
        uint64_t data_offset;

        char *buffer; /* pages that were read and are not written yet */
        size_t buffer_bytes, used;
        uint64_t written; /* bytes of pages in the file */
};

void page_copy_free(struct page_copy *c) {
        if (!c)
                return;
        if (c->buffer)
                munmap(c->buffer, c->buffer_bytes);
        close_fd(c->pagemap_fd);
        free(c->runs);
        free(c);
}

/* --- which pages --- */

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

static int locate(struct page_copy *c, const char *memory_path, struct error *err) {
        char path[64];
        struct stat st;

        if (stat(memory_path, &st) < 0)
                return error_set_errno(err, errno, "Cannot look at the memory file %s", memory_path);
        snprintf(path, sizeof(path), "/proc/%d/maps", (int) c->pid);
        FILE *maps = fopen(path, "re");
        if (!maps)
                return error_set_errno(err, errno, "Cannot read %s", path);
        int r = find_mapping(maps, st.st_ino, c->memory_bytes, &c->address);
        (void) fclose(maps);
        if (r < 0)
                return error_set_errno(err, r, "Process %d does not map %s privately", (int) c->pid, memory_path);

        snprintf(path, sizeof(path), "/proc/%d/pagemap", (int) c->pid);
        c->pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
        return c->pagemap_fd < 0 ? error_set_errno(err, errno, "Cannot read %s", path) : 0;
}

static int add_page(struct page_copy *c, uint64_t page) {
        if (c->n_runs > 0 && c->runs[c->n_runs - 1].first + c->runs[c->n_runs - 1].count == page) {
                c->runs[c->n_runs - 1].count++;
        } else {
                if (c->n_runs == c->cap_runs) {
                        size_t cap = MAX(c->cap_runs * 2, (size_t) 1024);
                        struct pages_run *grown = reallocarray(c->runs, cap, sizeof(*grown));
                        if (!grown)
                                return -ENOMEM;
                        c->runs = grown;
                        c->cap_runs = cap;
                }
                c->runs[c->n_runs++] = (struct pages_run){.first = page, .count = 1};
        }
        c->n_pages++;
        return 0;
}

/* Lists the pages that are the guest's own: there or swapped out, and not of the file. */
static int list_pages(struct page_copy *c) {
        const uint64_t total = c->memory_bytes / c->page_bytes, first = c->address / c->page_bytes;
        uint64_t entries[ENTRIES_CHUNK];

        c->n_runs = 0;
        c->n_pages = 0;
        for (uint64_t page = 0; page < total;) {
                const size_t want = (size_t) MIN(total - page, (uint64_t) ENTRIES_CHUNK) * sizeof(*entries);
                ssize_t got = pread(c->pagemap_fd, entries, want, (off_t) ((first + page) * sizeof(*entries)));
                if (got < 0 && errno == EINTR)
                        continue;
                if (got < (ssize_t) sizeof(*entries))
                        return got < 0 ? -errno : -ESRCH; /* a process that has ended has no pages */
                for (size_t i = 0; i < (size_t) got / sizeof(*entries); i++, page++) {
                        int r = entries[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED) && !(entries[i] & PAGEMAP_FILE)
                                        ? add_page(c, page)
                                        : 0;
                        if (r < 0)
                                return r;
                }
        }
        c->data_offset = sizeof(struct pages_header) + c->n_runs * sizeof(*c->runs);
        c->data_offset += c->page_bytes - 1 - (c->data_offset + c->page_bytes - 1) % c->page_bytes;
        return 0;
}

/* --- their content --- */

static int write_at(int fd, const void *data, size_t n, uint64_t at) {
        const char *p = data;

        while (n > 0) {
                ssize_t put = pwrite(fd, p, n, (off_t) at);
                if (put < 0) {
                        if (errno == EINTR)
                                continue;
                        return -errno;
                }
                p += put;
                at += (uint64_t) put;
                n -= (size_t) put;
        }
        return 0;
}

static int write_buffer(struct page_copy *c) {
        int r = write_at(c->fd, c->buffer, c->used, c->data_offset + c->written);
        if (r < 0)
                return r;
        c->written += c->used;
        c->used = 0;
        return 0;
}

/* Where the reading has got to: so many pages of this run are done. */
struct progress {
        size_t run;
        uint64_t pages;
};

/* Reads the next runs, or as much of them as there is room for. */
static int read_some(struct page_copy *c, struct progress *at) {
        struct iovec from[IOV_CHUNK], to = {.iov_base = c->buffer + c->used};
        size_t n = 0;

        while (n < IOV_CHUNK && at->run < c->n_runs) {
                const struct pages_run *run = &c->runs[at->run];
                uint64_t room = (c->buffer_bytes - c->used - to.iov_len) / c->page_bytes;
                uint64_t pages = MIN(run->count - at->pages, room);

                if (pages == 0)
                        break;
                from[n++] = (struct iovec){
                        .iov_base = (void *) (uintptr_t) (c->address + (run->first + at->pages) * c->page_bytes),
                        .iov_len = pages * c->page_bytes,
                };
                to.iov_len += pages * c->page_bytes;
                at->pages += pages;
                if (at->pages == run->count)
                        *at = (struct progress){.run = at->run + 1};
        }
        ssize_t got = process_vm_readv(c->pid, &to, 1, from, n, 0);
        if (got != (ssize_t) to.iov_len)
                return got < 0 ? -errno : -EFAULT;
        c->used += to.iov_len;
        return 0;
}

int page_copy_begin(pid_t pid, const char *memory_path, uint64_t memory_bytes, int fd, struct page_copy **ret,
                    struct error *err) {
        _cleanup_page_copy_ struct page_copy *c = malloc(sizeof(*c));
        char byte;

        if (!c)
                return error_set_errno(err, ENOMEM, "Cannot copy the memory of a VM");
        *c = (struct page_copy){
                .pid = pid,
                .fd = fd,
                .pagemap_fd = -1,
                .page_bytes = (uint64_t) sysconf(_SC_PAGESIZE),
                .memory_bytes = memory_bytes,
        };
        int r = locate(c, memory_path, err);
        if (r < 0)
                return r;
        /* Now, rather than while the guest stands still: whether its memory may be read. */
        const struct iovec from = {.iov_base = (void *) (uintptr_t) c->address, .iov_len = 1};
        const struct iovec to = {.iov_base = &byte, .iov_len = 1};
        if (process_vm_readv(pid, &to, 1, &from, 1, 0) < 0)
                return error_set_errno(err, errno, "Cannot read the memory of process %d", (int) pid);

        r = list_pages(c);
        if (r < 0)
                return error_set_errno(err, r, "Cannot list the pages of process %d", (int) pid);
        c->buffer_bytes = (size_t) MIN(c->n_pages * c->page_bytes + BUFFER_SPARE, (uint64_t) PAGES_BUFFER_MAX);
        char *buffer =
                mmap(NULL, c->buffer_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (buffer == MAP_FAILED)
                return error_set_errno(err, errno, "No room for the memory of a VM");
        c->buffer = buffer;
        *ret = TAKE_PTR(c);
        return 0;
}

int page_copy_take(struct page_copy *c, const struct op *op, struct error *err) {
        struct progress at = {0};

        int r = list_pages(c);
        while (r >= 0 && at.run < c->n_runs) {
                if (c->buffer_bytes - c->used < c->page_bytes)
                        r = write_buffer(c);
                if (r >= 0)
                        r = read_some(c, &at);
                if (r >= 0)
                        r = op_check(op);
        }
        return r < 0 ? error_set_errno(err, r, "Cannot copy the memory of process %d", (int) c->pid) : 0;
}

int page_copy_finish(struct page_copy *c, uint64_t *ret_bytes, struct error *err) {
        struct pages_header header = {
                .page_bytes = c->page_bytes,
                .memory_bytes = c->memory_bytes,
                .n_runs = c->n_runs,
                .n_pages = c->n_pages,
                .data_offset = c->data_offset,
        };

        memcpy(header.magic, PAGES_MAGIC, PAGES_MAGIC_LEN);
        int r = write_buffer(c);
        if (r >= 0)
                r = write_at(c->fd, c->runs, c->n_runs * sizeof(*c->runs), sizeof(header));
        if (r >= 0)
                r = write_at(c->fd, &header, sizeof(header), 0);
        /* Without a page the header alone would leave the file short of data_offset. */
        if (r >= 0 && ftruncate(c->fd, (off_t) (c->data_offset + c->written)) < 0)
                r = -errno;
        if (r >= 0 && fsync(c->fd) < 0)
                r = -errno;
        if (r < 0)
                return error_set_errno(err, r, "Cannot write the memory of a VM");
        *ret_bytes = c->data_offset + c->written;
        return 0;
}
