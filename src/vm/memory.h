/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The memory of a running guest as files.
 *
 * A child's memory is a private mapping (copy on write) of a memory file that never changes. What the guest has written
 * since is what /proc/PID/pagemap shows as private pages: a few MiB after light work. To save that memory is to copy
 * these pages while the guest stands still. Everything else is done before or after:
 *
 *     page_copy_begin()   finds the mapping, makes room in memory for the pages; the guest runs
 *     page_copy_take()    lists and reads the pages; the guest must stand still
 *     page_copy_finish()  writes the file; the guest runs
 *
 * The pages file alone is of no use. There are two ways to make a guest's memory of it and its base:
 *
 *     pages_apply()         into a process that has mapped the base and whose guest does not run yet. Each page is
 *                           copied for each fork, and nothing is made for good
 *     memory_image_build()  a whole memory file, which any number of forks map in turn. They share it
 *
 * With the first, the pages of a fork's fork are again all that differs from the same base, and with the second from
 * the image: a chain of forks never becomes a chain of files.
 *
 * The file has a header (struct pages_header), the runs of pages (struct pages_run, ascending, apart from each other),
 * and from data_offset on the pages themselves, in that order. Numbers are in the host's byte order: the state of a
 * machine is of no use on another kind of host anyway. What it says is checked before any of it is used.
 *
 * This needs the right to read (and for pages_apply() to write) the memory of QEMU (ptrace(2), access mode
 * PTRACE_MODE_ATTACH_REALCREDS): a process of the same user, or CAP_SYS_PTRACE. Where Yama restricts that to children
 * (ptrace_scope 1), the machines of an earlier daemon are out of reach.
 */

#include <sys/types.h>

#include "base/deadline.h"
#include "base/error.h"

#define PAGES_MAGIC "AGISOPG1"
#define PAGES_MAGIC_LEN 8
/* Memory that a copy may take while the guest stands still, and its part of what the host has left; what is more is
 * written to the file meanwhile. It is taken for one copy and given back with it. */
#define PAGES_BUFFER_MAX (256u * 1024u * 1024u)
#define PAGES_BUFFER_SHARE 4
#define PAGES_THREADS_MAX 4           /* that read the pages, */
#define PAGES_PER_THREAD 2048         /* each so many at least */
#define MEMORY_BYTES_MAX (1ull << 40) /* of a guest; more in a header means that it is damaged */

struct pages_header {
        char magic[PAGES_MAGIC_LEN];
        uint64_t page_bytes;
        uint64_t memory_bytes; /* of the guest */
        uint64_t n_runs, n_pages;
        uint64_t data_offset; /* a multiple of page_bytes */
};

struct pages_run {
        uint64_t first, count; /* in pages */
};

struct page_copy;

/* The process maps memory_path privately, memory_bytes of it. fd (borrowed): a new file, for the pages. -ENOENT: there
 * is no such mapping. -EPERM or -EACCES: the process may not be read. */
int page_copy_begin(pid_t pid, const char *memory_path, uint64_t memory_bytes, int fd, struct page_copy **ret,
                    struct error *err);
int page_copy_take(struct page_copy *c, const struct op *op, struct error *err);
/* durable: the file outlives the host. *ret_bytes: its size. */
int page_copy_finish(struct page_copy *c, bool durable, uint64_t *ret_bytes, struct error *err);
/* Accepts NULL. */
void page_copy_free(struct page_copy *c);
DEFINE_CLEANUP(struct page_copy *, page_copy_free)
#define _cleanup_page_copy_ _cleanup_(page_copy_freep)

/* Lays the pages of pages_path over memory_path, which the process maps as for page_copy_begin(), with the same errors.
 * The guest must not run. After a failure its memory is of no use. */
int pages_apply(pid_t pid, const char *memory_path, uint64_t memory_bytes, const char *pages_path, const struct op *op,
                struct error *err);

/* Makes out_path, the memory that a saved machine had: a copy of base_path (blocks are shared where the file system
 * can) with the pages of pages_path. It appears whole or not at all; durable: and outlives the host once it is there,
 * which costs most of the time. */
int memory_image_build(const char *base_path, const char *pages_path, const char *out_path, bool durable,
                       const struct op *op, struct error *err);
