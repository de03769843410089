/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * JSON from peers that are not trusted: jansson with limits.
 *
 * Input is refused when it is larger or deeper than allowed, holds a key twice, a NUL character, invalid UTF-8 or a
 * lone surrogate. No message quotes it. Typed getters say which key was wrong.
 */

#include <jansson.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/util.h"

/* json_decrefp() is jansson's own. */
#define _cleanup_json_ _cleanup_(json_decrefp)

#define JSON_DEPTH_MAX 128

/* Parses exactly one value. The depth of a lone scalar is 0. -EINVAL with a message that has the position, never a part
 * of the text, which may be a secret; -E2BIG; -EILSEQ: a string holds an escape that json_mend_escapes() knows. */
int json_parse(const char *text, size_t len, size_t max_len, size_t max_depth, json_t **ret, struct error *err);

/* Replaces in strings each \u0000 and each half of a surrogate pair by \ufffd: the escapes that JSON allows and a
 * parsed string cannot hold. The text need not be valid. How many there were. */
size_t json_mend_escapes(char *text, size_t len);

/* Compact text with a stable key order (as inserted), appended to out. -ENOBUFS over its limit, -ENOMEM. */
int json_write(const json_t *value, struct buf *out);

/*
 * Getters for one key of an object. The value stays owned by the object. Absent and null are the same: the optional
 * forms leave *ret as it was and return 0; the required forms give -EINVAL. A wrong type gives -EINVAL, err names the
 * key, the type found and the one wanted.
 */
int json_get_str(const json_t *object, const char *key, const char **ret, struct error *err);
int json_get_int(const json_t *object, const char *key, int64_t *ret, struct error *err);
int json_get_bool(const json_t *object, const char *key, bool *ret, struct error *err);
int json_opt_str(const json_t *object, const char *key, const char **ret, struct error *err);
int json_opt_int(const json_t *object, const char *key, int64_t *ret, struct error *err);
int json_opt_bool(const json_t *object, const char *key, bool *ret, struct error *err);

/* A string of n bytes that must be UTF-8 without NUL; NULL otherwise. */
json_t *json_text(const char *s, size_t n);
/* "null", "string", "object", ... for messages. */
const char *json_type_name(const json_t *value);

/* Like json_object_set_new() and json_array_append_new(), with a status that is not ignored: value NULL or a failed
 * insertion give -ENOMEM (the reference is dropped). Build a result with these and check once at the end by or-ing. */
int json_put(json_t *object, const char *key, json_t *value) _must_check_;
int json_push(json_t *array, json_t *value) _must_check_;
