/* SPDX-License-Identifier: Apache-2.0 */
/* Encodings: UTF-8 (RFC 3629) and base64 (RFC 4648, section 4). */
#include <string.h>

#include "base/str.h"

/*
 * Looks at the character that begins at s (n > 0). Returns its length and sets *valid; for an invalid one it is the
 * length of the maximal subpart that could have begun a character, at least 1: The Unicode Standard, section 3.9,
 * table 3-7 (well-formed byte sequences) and "U+FFFD Substitution of Maximal Subparts".
 */
static size_t utf8_char(const uint8_t *s, size_t n, bool *valid) {
        uint8_t c = s[0], low = 0x80, high = 0xbf; /* the range of the second byte */
        size_t need;

        *valid = c < 0x80;
        if (c < 0xc2) /* ASCII; a continuation byte; C0 and C1, which begin overlong forms only */
                return 1;
        if (c < 0xe0)
                need = 2;
        else if (c < 0xf0) {
                need = 3;
                if (c == 0xe0)
                        low = 0xa0; /* below: overlong */
                else if (c == 0xed)
                        high = 0x9f; /* above: surrogates */
        } else if (c < 0xf5) {
                need = 4;
                if (c == 0xf0)
                        low = 0x90; /* below: overlong */
                else if (c == 0xf4)
                        high = 0x8f; /* above: beyond U+10FFFF */
        } else
                return 1;

        for (size_t i = 1; i < need; i++) {
                if (i >= n || s[i] < low || s[i] > high)
                        return i;
                low = 0x80;
                high = 0xbf;
        }
        *valid = true;
        return need;
}

/* How many bytes from s on are ASCII: eight at a time, because most of what passes here is. */
static size_t ascii_prefix(const uint8_t *s, size_t n) {
        size_t i = 0;

        for (uint64_t word; n - i >= sizeof(word); i += sizeof(word)) {
                memcpy(&word, s + i, sizeof(word));
                if (word & UINT64_C(0x8080808080808080))
                        break;
        }
        while (i < n && s[i] < 0x80)
                i++;
        return i;
}

size_t utf8_valid_prefix(const char *s, size_t n) {
        const uint8_t *p = (const uint8_t *) s;
        size_t i = 0;

        for (;;) {
                bool valid;

                i += ascii_prefix(p + i, n - i);
                if (i == n)
                        return n;
                size_t len = utf8_char(p + i, n - i, &valid);
                if (!valid)
                        return i;
                i += len;
        }
}

int utf8_sanitize(struct buf *out, const char *s, size_t n, size_t *ret_replaced) {
        size_t start = out->len, replaced = 0;
        const char *valid_end = s; /* up to here it is known to be UTF-8: no byte is looked at twice */

        while (n > 0) {
                /* The longest clean run first: it is copied as one piece. */
                if (valid_end <= s)
                        valid_end = s + utf8_valid_prefix(s, n);
                size_t good = (size_t) (valid_end - s);
                const char *nul = memchr(s, 0, good);
                if (nul)
                        good = (size_t) (nul - s);
                int r = buf_append(out, s, good);
                if (r == 0 && good < n) {
                        bool valid;

                        good += utf8_char((const uint8_t *) s + good, n - good, &valid);
                        r = buf_append(out, "\xef\xbf\xbd", 3);
                        replaced++;
                }
                if (r < 0) {
                        buf_truncate(out, start);
                        return r;
                }
                s += good;
                n -= good;
        }
        if (ret_replaced)
                *ret_replaced = replaced;
        return 0;
}

size_t utf8_floor(const char *s, size_t n) {
        const uint8_t *p = (const uint8_t *) s;
        size_t i = n;

        while (i > 0 && n - i < 3 && (p[i - 1] & 0xc0) == 0x80)
                i--;
        if (i == 0)
                return n;
        bool valid;
        size_t len = utf8_char(p + i - 1, n - (i - 1), &valid);
        /* Cut only what would have been whole with more bytes. */
        return !valid && p[i - 1] >= 0xc2 && len == n - (i - 1) ? i - 1 : n;
}

static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

int base64_encode(struct buf *out, const void *data, size_t n) {
        const uint8_t *p = data;

        if (n > SIZE_MAX / 4 * 3 - 3)
                return -ENOBUFS;
        size_t len = (n + 2) / 3 * 4;
        int r = buf_reserve(out, len);
        if (r < 0)
                return r;

        char *o = out->data + out->len;
        for (; n >= 3; n -= 3, p += 3) {
                *o++ = base64_digits[p[0] >> 2];
                *o++ = base64_digits[(p[0] & 3) << 4 | p[1] >> 4];
                *o++ = base64_digits[(p[1] & 15) << 2 | p[2] >> 6];
                *o++ = base64_digits[p[2] & 63];
        }
        if (n > 0) {
                uint8_t second = n > 1 ? p[1] : 0;

                *o++ = base64_digits[p[0] >> 2];
                *o++ = base64_digits[(p[0] & 3) << 4 | second >> 4];
                *o++ = n > 1 ? base64_digits[(second & 15) << 2] : '=';
                *o++ = '=';
        }
        out->len += len;
        out->data[out->len] = 0;
        return 0;
}

/* The value of a digit, or 64 and more for anything else. */
static unsigned base64_value(char c) {
        if (c >= 'A' && c <= 'Z')
                return (unsigned) (c - 'A');
        if (c >= 'a' && c <= 'z')
                return (unsigned) (c - 'a') + 26;
        if (c >= '0' && c <= '9')
                return (unsigned) (c - '0') + 52;
        return c == '+' ? 62 : c == '/' ? 63 : 64;
}

int base64_decode(struct buf *out, const char *s, size_t n) {
        size_t start = out->len, pad = 0;

        if (n % 4 != 0)
                return -EINVAL;
        if (n > 0 && s[n - 1] == '=')
                pad = s[n - 2] == '=' ? 2 : 1;
        int r = buf_reserve(out, n / 4 * 3 - pad);
        if (r < 0)
                return r;

        for (size_t i = 0; i < n; i += 4) {
                size_t drop = i + 4 == n ? pad : 0; /* bytes that this group does not have */
                uint32_t group = 0;

                for (size_t k = 0; k < 4; k++) {
                        unsigned v = k >= 4 - drop ? 0 : base64_value(s[i + k]);
                        if (v > 63)
                                goto invalid;
                        group = group << 6 | v;
                }
                /* Bits that no byte takes must be 0, or several texts would stand for the same bytes. */
                if (group & ((1u << 8 * drop) - 1))
                        goto invalid;
                for (size_t k = 0; k < 3 - drop; k++)
                        out->data[out->len++] = (char) (group >> (16 - 8 * k) & 0xff);
        }
        out->data[out->len] = 0;
        return 0;

invalid:
        buf_truncate(out, start);
        return -EINVAL;
}
