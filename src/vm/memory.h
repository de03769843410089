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
 *     page_copy_finish()  writes the file and makes it last; the guest runs
 *
 * The pages file then is of no use alone: memory_image_build() makes the whole memory of base and pages, a file that
 * forks can map in turn. It has a header (struct pages_header), the runs of pages (struct pages_run, ascending, apart
 * from each other), and from data_offset on the pages themselves, in that order. Numbers are in the host's byte order:
 * the state of a machine is of no use on another kind of host anyway.
 *
 * This needs the right to read the memory of QEMU (ptrace(2), access mode PTRACE_MODE_ATTACH_REALCREDS): a process of
 * the same user, or CAP_SYS_PTRACE. Where Yama restricts that to children (ptrace_scope 1), the machines of an earlier
 * daemon are out of reach.
 */

#include <sys/types.h>

#include "base/deadline.h"
#include "base/error.h"

#define PAGES_MAGIC "AGISOPG1"
#define PAGES_MAGIC_LEN 8
/* Memory that a copy may take while the guest stands still; what is more is written to the file meanwhile. */
#define PAGES_BUFFER_MAX (64u * 1024u * 1024u)
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
/* *ret_bytes: the size of the file. */
int page_copy_finish(struct page_copy *c, uint64_t *ret_bytes, struct error *err);
/* Accepts NULL. */
void page_copy_free(struct page_copy *c);
DEFINE_CLEANUP(struct page_copy *, page_copy_free)
#define _cleanup_page_copy_ _cleanup_(page_copy_freep)

/* Makes out_path, the memory that a saved machine had: a copy of base_path (blocks are shared where the file system
 * can) with the pages of pages_path. It appears whole or not at all, and lasts once it is there. */
int memory_image_build(const char *base_path, const char *pages_path, const char *out_path, const struct op *op,
                       struct error *err);
