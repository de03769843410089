/* SPDX-License-Identifier: Apache-2.0 */
/* Copies a machine's own pages out of its process. */
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "base/file.h"
#include "base/str.h"
#include "base/thread.h"
#include "vm/memory_private.h"

/* pagemap (Documentation/admin-guide/mm/pagemap.rst of Linux): 64 bits for each page. */
#define PAGEMAP_FILE (1ull << 61) /* a page of the file, or shared */
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_PRESENT (1ull << 63)

#define ENTRIES_CHUNK 8192u /* of pagemap, read at once */
#define IOV_CHUNK 512u      /* runs read at once; at most IOV_MAX */
/* Room above what is there at the beginning, because the guest still runs then: this part of it, and at least so much.
 */
#define BUFFER_SPARE_SHARE 8
#define BUFFER_MIN (4u * 1024u * 1024u)
#define MEMINFO_MAX 16384u

struct page_copy {
        pid_t pid;
        int fd;         /* borrowed */
        int pagemap_fd; /* owned */
        uint64_t page_bytes, memory_bytes;
        uint64_t address; /* of the guest's memory in the process */
        unsigned n_threads;

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

static int write_buffer(struct page_copy *c) {
        int r = memory_write_at(c->fd, c->buffer, c->used, c->data_offset + c->written);
        if (r < 0)
                return r;
        c->written += c->used;
        c->used = 0;
        return 0;
}

/* A place in the list: so many pages of this run lie before it. */
struct place {
        size_t run;
        uint64_t pages;
};

/* Reads up to `pages` pages from a place on, as many as go into one call, to `to`. *ret: how many. Moves the place. */
static int read_some(const struct page_copy *c, struct place *at, char *to, uint64_t pages, uint64_t *ret) {
        struct iovec from[IOV_CHUNK], into = {.iov_base = to};
        uint64_t sum = 0;
        size_t n = 0;

        while (n < IOV_CHUNK && sum < pages) {
                const struct pages_run *run = &c->runs[at->run];
                const uint64_t some = MIN(run->count - at->pages, pages - sum);

                from[n++] = (struct iovec){
                        .iov_base = (void *) (uintptr_t) (c->address + (run->first + at->pages) * c->page_bytes),
                        .iov_len = some * c->page_bytes,
                };
                sum += some;
                at->pages += some;
                if (at->pages == run->count)
                        *at = (struct place){.run = at->run + 1};
        }
        into.iov_len = sum * c->page_bytes;
        ssize_t got = process_vm_readv(c->pid, &into, 1, from, n, 0);
        if (got != (ssize_t) into.iov_len)
                return got < 0 ? -errno : -EFAULT;
        *ret = sum;
        return 0;
}

/* A part of the pages, for one thread. */
struct part {
        const struct page_copy *c;
        struct place from;
        uint64_t pages;
        char *to;
        const struct op *op;
        pthread_t thread;
        int r;
        bool started;
};

static void *part_main(void *arg) {
        struct part *p = arg;

        while (p->r >= 0 && p->pages > 0) {
                uint64_t n = 0;

                p->r = op_check(p->op);
                if (p->r >= 0)
                        p->r = read_some(p->c, &p->from, p->to, p->pages, &n);
                p->to += n * p->c->page_bytes;
                p->pages -= n;
        }
        return NULL;
}

/* The place so many pages behind another. */
static struct place place_after(const struct page_copy *c, struct place at, uint64_t pages) {
        at.pages += pages;
        while (at.run < c->n_runs && at.pages >= c->runs[at.run].count)
                at.pages -= c->runs[at.run++].count;
        return at;
}

/*
 * Reads the next `pages` pages, for which there is room, behind what is in the buffer. With several threads: the kernel
 * copies with one processor for each of them, and the guest waits.
 */
static int read_pages(struct page_copy *c, struct place *at, uint64_t pages, const struct op *op) {
        struct part parts[PAGES_THREADS_MAX] = {0};
        const size_t most = MIN(c->n_threads, (unsigned) PAGES_THREADS_MAX);
        const size_t n = (size_t) MIN((uint64_t) most, 1 + pages / PAGES_PER_THREAD);
        uint64_t left = pages;
        int r = 0;

        for (size_t i = 0; i < n; i++) {
                struct part *p = &parts[i];

                *p = (struct part){.c = c, .from = *at, .to = c->buffer + c->used, .op = op};
                p->pages = i + 1 < n ? pages / n : left;
                *at = place_after(c, *at, p->pages);
                c->used += p->pages * c->page_bytes;
                left -= p->pages;
                /* The last part is ours, and so is one for which there is no thread. */
                p->started = i + 1 < n && thread_start(&p->thread, "pages", part_main, p) >= 0;
                if (!p->started)
                        (void) part_main(p);
        }
        for (size_t i = 0; i < n; i++) {
                if (parts[i].started)
                        pthread_join(parts[i].thread, NULL);
                r = r < 0 ? r : parts[i].r;
        }
        return r;
}

/* --- the copy --- */

/* What the host has left for programs, or 0 when it does not say. */
static uint64_t memory_available(void) {
        static const char name[] = "MemAvailable:";
        _cleanup_free_ char *text = NULL;

        if (file_read_all("/proc/meminfo", MEMINFO_MAX, &text, NULL) < 0)
                return 0;
        const char *line = strstr(text, name);
        return line ? strtoull(line + strlen(name), NULL, 10) * 1024u : 0;
}

/* Room for the pages that there are and some more, filled now, so that no page of it has to be found in the pause. */
static int make_room(struct page_copy *c) {
        const uint64_t now = c->n_pages * c->page_bytes, spare = MAX(now / BUFFER_SPARE_SHARE, (uint64_t) BUFFER_MIN);
        uint64_t most = memory_available() / PAGES_BUFFER_SHARE;

        most = MIN(most, (uint64_t) PAGES_BUFFER_MAX);
        most = MAX(most, (uint64_t) BUFFER_MIN);
        c->buffer_bytes = (size_t) MIN(now + spare, most);
        c->buffer_bytes -= c->buffer_bytes % c->page_bytes;
        char *buffer =
                mmap(NULL, c->buffer_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (buffer == MAP_FAILED)
                return -errno;
        c->buffer = buffer;
        return 0;
}

static int locate(struct page_copy *c, const char *memory_path, struct error *err) {
        _cleanup_close_ int process = memory_process_open(c->pid, err);
        if (process < 0)
                return process;
        int r = memory_process_find(process, memory_path, c->memory_bytes, &c->address, err);
        if (r < 0)
                return r;
        c->pagemap_fd = openat(process, "pagemap", O_RDONLY | O_CLOEXEC);
        return c->pagemap_fd < 0 ? error_set_errno(err, errno, "Cannot see the pages of process %d", (int) c->pid) : 0;
}

static unsigned processors(void) {
        cpu_set_t set;

        return sched_getaffinity(0, sizeof(set), &set) < 0 ? 1 : (unsigned) CPU_COUNT(&set);
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
                .n_threads = processors(),
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
        r = make_room(c);
        if (r < 0)
                return error_set_errno(err, r, "No room for the memory of a VM");
        *ret = TAKE_PTR(c);
        return 0;
}

int page_copy_take(struct page_copy *c, const struct op *op, struct error *err) {
        struct place at = {0};
        uint64_t left;

        int r = list_pages(c);
        for (left = c->n_pages; r >= 0 && left > 0;) {
                const uint64_t some = MIN(left, (c->buffer_bytes - c->used) / c->page_bytes);

                r = some > 0 ? read_pages(c, &at, some, op) : write_buffer(c);
                left -= some;
        }
        return r < 0 ? error_set_errno(err, r, "Cannot copy the memory of process %d", (int) c->pid) : 0;
}

int page_copy_finish(struct page_copy *c, bool durable, uint64_t *ret_bytes, struct error *err) {
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
                r = memory_write_at(c->fd, c->runs, c->n_runs * sizeof(*c->runs), sizeof(header));
        if (r >= 0)
                r = memory_write_at(c->fd, &header, sizeof(header), 0);
        /* Without a page the header alone would leave the file short of data_offset. */
        if (r >= 0 && ftruncate(c->fd, (off_t) (c->data_offset + c->written)) < 0)
                r = -errno;
        if (r >= 0 && durable && fsync(c->fd) < 0)
                r = -errno;
        if (r < 0)
                return error_set_errno(err, r, "Cannot write the memory of a VM");
        *ret_bytes = c->data_offset + c->written;
        return 0;
}
