/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Strings. Returned strings are owned by the caller and NULL means out of memory. */

#include "base/buf.h"
#include "base/util.h"

static inline bool str_empty(const char *s) {
        return !s || !*s;
}
bool str_eq(const char *a, const char *b); /* NULL equals NULL only */
bool str_starts_with(const char *s, const char *prefix);
char *str_printf(const char *fmt, ...) _printf_(1, 2);
/* Sets *dst to a copy of src (NULL allowed), freeing the old value. -ENOMEM leaves it unchanged. */
int str_replace(char **dst, const char *src);

/* A NULL-terminated array of owned strings. */
struct strv {
        char **v;
        size_t n;
};
void strv_free(struct strv *s);
#define _cleanup_strv_ _cleanup_(strv_free)
int strv_add(struct strv *s, const char *str);
int strv_addf(struct strv *s, const char *fmt, ...) _printf_(2, 3);

/* Decimal without sign, blanks or overflow. -EINVAL, -ERANGE. */
int parse_u64(const char *s, uint64_t *ret);

/* The length of the longest prefix that is valid UTF-8 (RFC 3629: no surrogates, no overlong forms, <= U+10FFFF). */
size_t utf8_valid_prefix(const char *s, size_t n);
static inline bool utf8_valid(const char *s, size_t n) {
        return utf8_valid_prefix(s, n) == n;
}
/* Appends s with each invalid byte sequence replaced by U+FFFD, and NUL bytes too. Says how many in *ret_replaced. */
int utf8_sanitize(struct buf *out, const char *s, size_t n, size_t *ret_replaced);
/* Cuts n to a boundary so that the last character of s[0..n) is whole (for text already known as UTF-8). */
size_t utf8_floor(const char *s, size_t n);

/* RFC 4648 with padding, no line breaks. Decoding refuses anything else with -EINVAL. */
int base64_encode(struct buf *out, const void *data, size_t n);
int base64_decode(struct buf *out, const char *s, size_t n);

#define UUID_LEN 36
/* A random version 4 UUID (RFC 9562) into a buffer of UUID_LEN + 1 bytes; from getrandom(2). */
int uuid_new(char *ret);
bool uuid_valid(const char *s);
/* n random bytes as 2n hexadecimal digits and a NUL. */
int random_hex(char *ret, size_t n);

/* 1..max characters of [A-Za-z0-9] and those in `extra`. */
bool name_valid(const char *s, size_t max, const char *extra);

/* Edit distance (Levenshtein) of two strings, at most `limit` + 1. */
size_t str_distance(const char *a, const char *b, size_t limit);
/* Of n candidates the one nearest to s within a third of its length, or NULL. */
const char *str_nearest(const char *s, const char *const *candidates, size_t n);

/* RFC 3339 in UTC with milliseconds, e.g. 2026-01-02T03:04:05.678Z, into a buffer of TIME_TEXT_LEN + 1. */
#define TIME_TEXT_LEN 24
void time_text(int64_t realtime_ms, char *ret);
