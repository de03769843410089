/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Logs that a guest can write to without end, its console and QEMU's complaints about it: a file that is rotated once,
 * so that the last `keep` bytes at least are there and twice as much at most. What comes goes in as it is; it is made
 * fit for a terminal or a message when it is read.
 */

#include "base/buf.h"

#define CONSOLE_LOG "console.log"
#define CONSOLE_LOG_OLD "console.log.1"

struct capped_log {
        char *path, *old_path;
        size_t keep;
        int fd;
        size_t size; /* of the current file */
};
#define CAPPED_LOG_INIT ((struct capped_log){.fd = -1})

/* Opens the log `name` in a folder, beside it `old_name`; `fresh` puts aside what an earlier run wrote. */
int capped_log_open(struct capped_log *c, const char *dir, const char *name, const char *old_name, size_t keep,
                    bool fresh);
void capped_log_close(struct capped_log *c);
/* Appends bytes. An error (a full disk) loses them. */
int capped_log_write(struct capped_log *c, const void *data, size_t n);

/* Appends the last lines of a file, at most max_bytes of it and what `out` has room for, as UTF-8 without control
 * characters and escape sequences. -ENOENT. */
int text_tail(const char *path, const char *older_path, size_t max_bytes, unsigned max_lines, struct buf *out);
