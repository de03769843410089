/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The log of a guest's console: a file that is rotated once, so that it holds the last CONSOLE_KEEP bytes at least and
 * takes twice as much at most. What comes from the guest goes in as it is; it is made fit for a terminal or a message
 * when it is read.
 */

#include "base/buf.h"

#define CONSOLE_LOG "console.log"
#define CONSOLE_LOG_OLD "console.log.1"

struct console_log {
        char *path, *old_path;
        int fd;
        size_t size; /* of the current file */
};
#define CONSOLE_LOG_INIT ((struct console_log){.fd = -1})

/* Opens the log in a folder; `fresh` puts aside what an earlier run wrote. */
int console_log_open(struct console_log *c, const char *dir, bool fresh);
void console_log_close(struct console_log *c);
/* Appends bytes of the guest. An error (a full disk) loses them. */
int console_log_write(struct console_log *c, const void *data, size_t n);

/* Appends the last lines of a file, at most max_bytes of it, as UTF-8 without control characters and escape
 * sequences. -ENOENT. */
int text_tail(const char *path, const char *older_path, size_t max_bytes, unsigned max_lines, struct buf *out);
