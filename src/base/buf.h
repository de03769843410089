/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A growable byte buffer with a hard limit.
 *
 * Every buffer has a maximum, so that no peer can make it grow without bound: going past it gives -ENOBUFS and changes
 * nothing. The bytes are always followed by one NUL that is not counted, so that text can be used in place.
 */

#include <stdarg.h>

#include "base/util.h"

struct buf {
        char *data; /* owned, NULL while nothing was ever stored */
        size_t len; /* bytes in use */
        size_t cap; /* bytes allocated, without the NUL */
        size_t max; /* limit of len */
};

#define BUF_INIT(limit) ((struct buf){.max = (limit)})

void buf_free(struct buf *b);
#define _cleanup_buf_ _cleanup_(buf_free)

/* Makes room for n more bytes. 0, -ENOBUFS (over the limit), -ENOMEM. */
int buf_reserve(struct buf *b, size_t n);
int buf_append(struct buf *b, const void *data, size_t n);
int buf_append_str(struct buf *b, const char *s);
int buf_append_byte(struct buf *b, uint8_t c);
int buf_printf(struct buf *b, const char *fmt, ...) _printf_(2, 3);
int buf_vprintf(struct buf *b, const char *fmt, va_list ap) _printf_(2, 0);
/* Drops the first n bytes (n <= len). */
void buf_consume(struct buf *b, size_t n);
/* Cuts to n bytes (n <= len). */
void buf_truncate(struct buf *b, size_t n);
static inline void buf_clear(struct buf *b) {
        buf_truncate(b, 0);
}
/* Hands over the bytes as a NUL-terminated string and leaves the buffer empty. NULL when out of memory. */
char *buf_steal(struct buf *b);
