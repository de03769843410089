/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"

#include <stdio.h>
#include <string.h>

/* The first allocation: most texts fit, so that they cost one malloc(). */
#define BUF_FIRST_CAP 127

void buf_free(struct buf *b) {
        free(b->data);
        b->data = NULL;
        b->len = b->cap = 0;
}

int buf_reserve(struct buf *b, size_t n) {
        if (b->len > b->max || n > b->max - b->len)
                return -ENOBUFS;
        size_t want = b->len + n;
        if (b->data && want <= b->cap)
                return 0;

        /* Doubling keeps appending linear; the limit caps it, so that a full buffer wastes nothing. */
        size_t cap = b->cap > b->max / 2 ? b->max : b->cap * 2;
        cap = MAX(cap, want);
        cap = MAX(cap, MIN((size_t) BUF_FIRST_CAP, b->max));
        if (cap == SIZE_MAX)
                return -ENOMEM;
        char *data = realloc(b->data, cap + 1);
        if (!data)
                return -ENOMEM;
        b->data = data;
        b->cap = cap;
        b->data[b->len] = 0;
        return 0;
}

int buf_append(struct buf *b, const void *data, size_t n) {
        int r = buf_reserve(b, n);
        if (r < 0)
                return r;
        if (n > 0)
                memcpy(b->data + b->len, data, n);
        b->len += n;
        b->data[b->len] = 0;
        return 0;
}

int buf_append_str(struct buf *b, const char *s) {
        return buf_append(b, s, strlen(s));
}

int buf_append_byte(struct buf *b, uint8_t c) {
        return buf_append(b, &c, 1);
}

int buf_printf(struct buf *b, const char *fmt, ...) {
        va_list ap;

        va_start(ap, fmt);
        int r = buf_vprintf(b, fmt, ap);
        va_end(ap);
        return r;
}

int buf_vprintf(struct buf *b, const char *fmt, va_list ap) {
        size_t room = b->data ? b->cap - b->len + 1 : 0;
        va_list again;

        va_copy(again, ap);
        int n = vsnprintf(room > 0 ? b->data + b->len : NULL, room, fmt, ap);
        int r = n < 0 ? -EINVAL : buf_reserve(b, (size_t) n);
        if (r == 0 && (size_t) n >= room && vsnprintf(b->data + b->len, (size_t) n + 1, fmt, again) != n)
                r = -EINVAL;
        va_end(again);
        if (r == 0)
                b->len += (size_t) n;
        else if (b->data)
                b->data[b->len] = 0; /* a first try may have left the beginning of the text behind */
        return r;
}

void buf_consume(struct buf *b, size_t n) {
        if (n == 0)
                return;
        n = MIN(n, b->len);
        b->len -= n;
        if (b->data) {
                memmove(b->data, b->data + n, b->len);
                b->data[b->len] = 0;
        }
}

void buf_truncate(struct buf *b, size_t n) {
        if (n < b->len)
                b->len = n;
        if (b->data)
                b->data[b->len] = 0;
}

char *buf_steal(struct buf *b) {
        char *s = b->data ? TAKE_PTR(b->data) : calloc(1, 1);

        b->len = b->cap = 0;
        return s;
}
