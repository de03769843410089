/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/ansi.h"

#include <string.h>

#define ESC '\x1b'
#define BEL '\a'
#define CAN '\x18'
#define SUB '\x1a'

/* What begins at an ESC. */
struct sequence {
        size_t len;  /* bytes that belong to it */
        bool ragged; /* it ended because the text did */
};

static bool in_range(char c, unsigned char low, unsigned char high) {
        return (unsigned char) c >= low && (unsigned char) c <= high;
}

/* No end within the text: it may come, or the introducer was a stray one. */
static struct sequence without_end(size_t n, size_t introducer) {
        return n < ANSI_SEQUENCE_MAX ? (struct sequence){n, true} : (struct sequence){introducer, false};
}

/* From i on: bytes from 0x20 to `last`, then one from behind `last` to 0x7e, the final. A byte that cannot be in it
 * ends the sequence and is text again. */
static struct sequence short_one(const char *s, size_t n, size_t i, unsigned char last) {
        size_t introducer = i, limit = MIN(n, (size_t) ANSI_SEQUENCE_MAX);

        while (i < limit && in_range(s[i], 0x20, last))
                i++;
        if (i == limit)
                return without_end(n, introducer);
        return (struct sequence){i + (in_range(s[i], last + 1, 0x7e) ? 1 : 0), false};
}

/* A string ends with ESC \, an OSC with BEL too. CAN, SUB and an ESC that begins something else break it off. */
static struct sequence string(const char *s, size_t n, bool osc) {
        size_t limit = MIN(n, (size_t) ANSI_SEQUENCE_MAX);

        for (size_t i = 2; i < limit; i++) {
                if ((osc && s[i] == BEL) || s[i] == CAN || s[i] == SUB)
                        return (struct sequence){i + 1, false};
                if (s[i] != ESC)
                        continue;
                if (i + 1 == n)
                        return (struct sequence){n, true};
                return (struct sequence){s[i + 1] == '\\' ? i + 2 : i, false};
        }
        return without_end(n, 2);
}

/* s begins with ESC. */
static struct sequence measure(const char *s, size_t n) {
        if (n == 1)
                return (struct sequence){1, true};
        if (s[1] == '[')
                return short_one(s, n, 2, 0x3f);
        if (s[1] == ']' || s[1] == 'P' || s[1] == 'X' || s[1] == '^' || s[1] == '_')
                return string(s, n, s[1] == ']');
        return short_one(s, n, 1, 0x2f);
}

/* The next ESC, or the end. */
static size_t plain_prefix(const char *s, size_t n) {
        const char *esc = n > 0 ? memchr(s, ESC, n) : NULL;

        return esc ? (size_t) (esc - s) : n;
}

int ansi_strip(struct buf *out, const char *s, size_t n) {
        size_t i = 0, start = out->len;

        while (i < n) {
                size_t plain = plain_prefix(s + i, n - i);
                int r = buf_append(out, s + i, plain);
                if (r < 0) {
                        buf_truncate(out, start);
                        return r;
                }
                i += plain;
                if (i < n)
                        i += measure(s + i, n - i).len;
        }
        return 0;
}

size_t ansi_unfinished(const char *s, size_t n) {
        size_t i = 0;

        while (i < n) {
                i += plain_prefix(s + i, n - i);
                if (i == n)
                        break;
                struct sequence q = measure(s + i, n - i);
                if (q.ragged)
                        return n - i;
                i += q.len;
        }
        return 0;
}
