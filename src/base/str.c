/* SPDX-License-Identifier: Apache-2.0 */
#include "base/str.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

/* Longer strings are never "near": what is compared are names, and the work grows with the product of the lengths. */
#define DISTANCE_LEN_MAX 128

bool str_eq(const char *a, const char *b) {
        return a && b ? strcmp(a, b) == 0 : a == b;
}

bool str_starts_with(const char *s, const char *prefix) {
        return s && strncmp(s, prefix, strlen(prefix)) == 0;
}

char *str_printf(const char *fmt, ...) {
        char *s = NULL;
        va_list ap;

        va_start(ap, fmt);
        int n = vasprintf(&s, fmt, ap);
        va_end(ap);
        return n < 0 ? NULL : s;
}

int str_replace(char **dst, const char *src) {
        char *copy = NULL;

        if (src) {
                copy = strdup(src);
                if (!copy)
                        return -ENOMEM;
        }
        free(*dst);
        *dst = copy;
        return 0;
}

void strv_free(struct strv *s) {
        for (size_t i = 0; i < s->n; i++)
                free(s->v[i]);
        free(s->v);
        *s = (struct strv){0};
}

/* Takes str, also on failure; NULL stands for a copy that failed. */
static int strv_take(struct strv *s, char *str) {
        if (!str)
                return -ENOMEM;
        char **v = reallocarray(s->v, s->n + 2, sizeof(*v));
        if (!v) {
                free(str);
                return -ENOMEM;
        }
        v[s->n++] = str;
        v[s->n] = NULL;
        s->v = v;
        return 0;
}

int strv_add(struct strv *s, const char *str) {
        return strv_take(s, strdup(str));
}

int strv_addf(struct strv *s, const char *fmt, ...) {
        char *str = NULL;
        va_list ap;

        va_start(ap, fmt);
        int n = vasprintf(&str, fmt, ap);
        va_end(ap);
        return strv_take(s, n < 0 ? NULL : str);
}

int parse_u64(const char *s, uint64_t *ret) {
        uint64_t v = 0;

        if (str_empty(s))
                return -EINVAL;
        if (s[strspn(s, "0123456789")] != 0)
                return -EINVAL;
        for (; *s; s++)
                if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t) (*s - '0'), &v))
                        return -ERANGE;
        *ret = v;
        return 0;
}

static int random_bytes(uint8_t *p, size_t n) {
        while (n > 0) {
                ssize_t got = getrandom(p, n, 0);
                if (got < 0) {
                        if (errno == EINTR)
                                continue;
                        return -errno;
                }
                p += got;
                n -= (size_t) got;
        }
        return 0;
}

static const char hex_digits[] = "0123456789abcdef";

static char *put_hex(char *o, const uint8_t *p, size_t n) {
        for (size_t i = 0; i < n; i++) {
                *o++ = hex_digits[p[i] >> 4];
                *o++ = hex_digits[p[i] & 15];
        }
        return o;
}

int uuid_new(char *ret) {
        /* RFC 9562, section 4: groups of 4, 2, 2, 2 and 6 bytes. */
        static const uint8_t groups[] = {4, 2, 2, 2, 6};
        uint8_t b[16];

        int r = random_bytes(b, sizeof(b));
        if (r < 0)
                return r;
        b[6] = (uint8_t) ((b[6] & 0x0f) | 0x40); /* version 4 */
        b[8] = (uint8_t) ((b[8] & 0x3f) | 0x80); /* variant 10 */

        const uint8_t *p = b;
        for (size_t i = 0; i < ARRAY_SIZE(groups); p += groups[i++]) {
                if (i > 0)
                        *ret++ = '-';
                ret = put_hex(ret, p, groups[i]);
        }
        *ret = 0;
        return 0;
}

/* Any version, digits in either case. */
bool uuid_valid(const char *s) {
        if (!s || strlen(s) != UUID_LEN)
                return false;
        for (size_t i = 0; i < UUID_LEN; i++) {
                bool dash = i == 8 || i == 13 || i == 18 || i == 23;
                if (dash ? s[i] != '-' : !strchr("0123456789abcdefABCDEF", s[i]))
                        return false;
        }
        return true;
}

int random_hex(char *ret, size_t n) {
        uint8_t b[64];

        while (n > 0) {
                size_t part = MIN(n, sizeof(b));
                int r = random_bytes(b, part);
                if (r < 0)
                        return r;
                ret = put_hex(ret, b, part);
                n -= part;
        }
        *ret = 0;
        return 0;
}

bool name_valid(const char *s, size_t max, const char *extra) {
        if (str_empty(s))
                return false;
        for (size_t i = 0; s[i]; i++) {
                char c = s[i];
                bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
                if (i >= max || (!alnum && !(extra && strchr(extra, c))))
                        return false;
        }
        return true;
}

/* Wagner and Fischer's table, one row of it at a time, left as soon as a whole row is over the limit. */
size_t str_distance(const char *a, const char *b, size_t limit) {
        size_t na = strnlen(a, DISTANCE_LEN_MAX + 1), nb = strnlen(b, DISTANCE_LEN_MAX + 1);
        size_t over = limit == SIZE_MAX ? limit : limit + 1;

        if (na > DISTANCE_LEN_MAX || nb > DISTANCE_LEN_MAX)
                return strcmp(a, b) == 0 ? 0 : over;
        if ((na > nb ? na - nb : nb - na) > limit)
                return over;

        size_t row[DISTANCE_LEN_MAX + 1];
        for (size_t j = 0; j <= nb; j++)
                row[j] = j;
        for (size_t i = 1; i <= na; i++) {
                size_t diagonal = row[0], best = row[0] = i;

                for (size_t j = 1; j <= nb; j++) {
                        size_t change = diagonal + (a[i - 1] != b[j - 1]), shift = MIN(row[j], row[j - 1]) + 1;

                        diagonal = row[j];
                        row[j] = MIN(change, shift);
                        best = MIN(best, row[j]);
                }
                if (best > limit)
                        return over;
        }
        return MIN(row[nb], over);
}

const char *str_nearest(const char *s, const char *const *candidates, size_t n) {
        const char *nearest = NULL;
        size_t limit = strlen(s) / 3;

        for (size_t i = 0; i < n; i++) {
                size_t d = str_distance(s, candidates[i], limit);
                if (d > limit)
                        continue;
                nearest = candidates[i];
                if (d == 0)
                        break;
                limit = d - 1; /* only something nearer replaces it: of equals the first wins */
        }
        return nearest;
}

void time_text(int64_t ms, char *ret) {
        /* 9999-12-31T23:59:59.999Z: the last that the format has room for. */
        ms = MIN(MAX(ms, INT64_C(0)), INT64_C(253402300799999));

        time_t seconds = (time_t) (ms / 1000);
        struct tm tm;
        gmtime_r(&seconds, &tm);
        char text[64];
        snprintf(text, sizeof(text), "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900, tm.tm_mon + 1,
                 tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int) (ms % 1000));
        memcpy(ret, text, TIME_TEXT_LEN);
        ret[TIME_TEXT_LEN] = 0;
}
