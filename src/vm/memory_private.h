/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the files that implement memory.h share. */

#include "vm/memory.h"

/* A pages file that was read, and is as its header says. */
struct pages_file {
        int fd;
        struct pages_header header;
        struct pages_run *runs;
};
#define PAGES_FILE_INIT ((struct pages_file){.fd = -1})

/* Reads and checks all but the pages, of a machine with so much memory. *f may hold something after a failure, too. */
int pages_file_open(const char *path, uint64_t memory_bytes, struct pages_file *f, struct error *err);
void pages_file_clear(struct pages_file *f);
#define _cleanup_pages_file_ _cleanup_(pages_file_clear)

/* Exactly n bytes at this place of a file. -ENODATA: it ends before. */
int memory_read_at(int fd, void *data, size_t n, uint64_t at);
int memory_write_at(int fd, const void *data, size_t n, uint64_t at);

/* A process, by its folder in /proc: what is opened there is of this process or fails, whoever has its number later. */
int memory_process_open(pid_t pid, struct error *err);
/* The address at which it maps memory_path privately, memory_bytes of it. -ENOENT: it does not. */
int memory_process_find(int process, const char *memory_path, uint64_t memory_bytes, uint64_t *ret, struct error *err);
