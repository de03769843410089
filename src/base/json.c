/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"

#include <ctype.h>
#include <string.h>

#include "base/str.h"

/* The largest integer up to which a double holds every integer: 2^53. */
#define DOUBLE_EXACT_MAX 9007199254740992.0
#define ESCAPE_LEN 6u /* bytes of \uXXXX */

static int refuse(struct error *err, int r, const char *what, size_t at) {
        error_set(err, ERROR_INVALID_ARGUMENT, "Invalid JSON: %s at byte %zu", what, at);
        return r;
}

/* The code unit of the escape \uXXXX at the beginning of s; -1: it is none. */
static int escaped_unit(const char *s, size_t n) {
        int unit = 0;

        if (n < ESCAPE_LEN || s[0] != '\\' || s[1] != 'u')
                return -1;
        for (size_t i = 2; i < ESCAPE_LEN; i++) {
                int c = (unsigned char) s[i];

                if (!isxdigit(c))
                        return -1;
                unit = unit * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
        }
        return unit;
}

/* What is wrong with the escape at s[0], a backslash in a string, or NULL; *ret_len: its bytes. */
static const char *bad_escape(const char *s, size_t n, size_t *ret_len) {
        int unit = escaped_unit(s, n);

        *ret_len = unit < 0 ? 2 : ESCAPE_LEN;
        if (unit == 0)
                return "\\u0000";
        if (unit < 0xd800 || unit > 0xdfff)
                return NULL;
        int next = escaped_unit(s + ESCAPE_LEN, n - ESCAPE_LEN);
        if (unit > 0xdbff || next < 0xdc00 || next > 0xdfff)
                return "half a surrogate pair";
        *ret_len = 2 * ESCAPE_LEN;
        return NULL;
}

size_t json_mend_escapes(char *text, size_t len) {
        static const char replacement[ESCAPE_LEN] = {'\\', 'u', 'f', 'f', 'f', 'd'};
        bool in_string = false;
        size_t count = 0, n = 1;

        for (size_t i = 0; i < len; i += n) {
                n = 1;
                if (text[i] == '"')
                        in_string = !in_string;
                else if (in_string && text[i] == '\\' && bad_escape(text + i, len - i, &n)) {
                        memcpy(text + i, replacement, sizeof(replacement));
                        count++;
                }
        }
        return count;
}

/* An escape that json_mend_escapes() knows; what is NULL: none. */
struct escape {
        const char *what;
        size_t at;
};

/* i is behind an opening quote: the position of the closing one, or len. *first keeps the first bad escape of all. */
static size_t scan_string(const char *text, size_t len, size_t i, struct escape *first) {
        while (i < len && text[i] != '"') {
                size_t n = 1;
                const char *what = text[i] == '\\' ? bad_escape(text + i, len - i, &n) : NULL;

                if (what && !first->what)
                        *first = (struct escape){what, i};
                i += n;
        }
        return MIN(i, len);
}

/*
 * What jansson does not check, or only after it has built the value, or tells in words of its own: one pass over the
 * bytes. Brackets count only outside of strings; whether they match is left to the parser.
 */
static int scan(const char *text, size_t len, size_t max_depth, struct error *err) {
        size_t good = utf8_valid_prefix(text, len);
        if (good < len)
                return refuse(err, -EINVAL, "not valid UTF-8", good);
        const char *nul = memchr(text, 0, len);
        if (nul)
                return refuse(err, -EINVAL, "NUL", (size_t) (nul - text));

        struct escape bad = {0};
        size_t depth = 0;
        for (size_t i = 0; i < len; i++) {
                char c = text[i];

                if (c == '"')
                        i = scan_string(text, len, i + 1, &bad);
                else if (c == '[' || c == '{') {
                        if (++depth > max_depth) {
                                error_set(err, ERROR_INVALID_ARGUMENT,
                                          "Invalid JSON: nested deeper than %zu levels at byte %zu", max_depth, i);
                                return -E2BIG;
                        }
                } else if ((c == ']' || c == '}') && depth > 0)
                        depth--;
        }
        if (!bad.what)
                return 0;
        error_set(err, ERROR_INVALID_ARGUMENT, "Invalid JSON: a string holds %s at byte %zu", bad.what, bad.at);
        return -EILSEQ;
}

/* jansson's own texts quote the input, and with it what may be a secret. */
static const char *reason(const json_error_t *at) {
        switch (json_error_code(at)) {
        case json_error_premature_end_of_input:
                return "the text ends too early";
        case json_error_end_of_input_expected:
                return "something follows the value";
        case json_error_duplicate_key:
                return "an object has a key twice";
        case json_error_numeric_overflow:
                return "the number is too big";
        default:
                return "this is no JSON";
        }
}

int json_parse(const char *text, size_t len, size_t max_len, size_t max_depth, json_t **ret, struct error *err) {
        if (len > max_len) {
                error_set(err, ERROR_INVALID_ARGUMENT, "JSON text of %zu bytes is over the limit of %zu", len, max_len);
                return -E2BIG;
        }
        if (len == 0)
                text = ""; /* an empty buffer has no bytes to point to */
        int r = scan(text, len, max_depth, err);
        if (r < 0)
                return r;

        json_error_t at;
        json_t *value = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &at);
        if (!value) {
                if (json_error_code(&at) == json_error_out_of_memory)
                        return error_set_errno(err, ENOMEM, "Cannot parse JSON");
                error_set(err, ERROR_INVALID_ARGUMENT, "Invalid JSON at line %d, column %d (byte %d): %s", at.line,
                          at.column, at.position, reason(&at));
                return -EINVAL;
        }
        *ret = value;
        return 0;
}

struct sink {
        struct buf *out;
        int err;
};

static int sink_write(const char *data, size_t n, void *arg) {
        struct sink *sink = arg;

        sink->err = buf_append(sink->out, data, n);
        return sink->err;
}

int json_write(const json_t *value, struct buf *out) {
        struct sink sink = {.out = out};
        size_t start = out->len;

        if (json_dump_callback(value, sink_write, &sink, JSON_COMPACT | JSON_ENCODE_ANY) == 0)
                return 0;
        buf_truncate(out, start);
        return sink.err < 0 ? sink.err : -ENOMEM;
}

const char *json_type_name(const json_t *value) {
        if (!value)
                return "nothing";
        switch (json_typeof(value)) {
        case JSON_OBJECT:
                return "object";
        case JSON_ARRAY:
                return "array";
        case JSON_STRING:
                return "string";
        case JSON_INTEGER:
                return "integer";
        case JSON_REAL:
                return "number";
        case JSON_TRUE:
        case JSON_FALSE:
                return "boolean";
        case JSON_NULL:
                return "null";
        }
        return "unknown";
}

/* A number without a fraction is an integer to JSON Schema, however it is written: 30.0, 3e1. */
static bool is_integer(const json_t *value, int64_t *ret) {
        if (json_is_integer(value)) {
                *ret = json_integer_value(value);
                return true;
        }
        if (!json_is_real(value))
                return false;
        double d = json_real_value(value);
        if (!(d >= -DOUBLE_EXACT_MAX && d <= DOUBLE_EXACT_MAX) || d != (double) (int64_t) d)
                return false;
        *ret = (int64_t) d;
        return true;
}

static int wrong_type(const char *key, const json_t *value, const char *want, struct error *err) {
        error_set(err, ERROR_INVALID_ARGUMENT, "\"%s\" must be of type %s, not %s", key, want, json_type_name(value));
        return -EINVAL;
}

/* 1: *ret is there and not null; 0: absent and not required. */
static int lookup(const json_t *object, const char *key, bool required, const char *want, const json_t **ret,
                  struct error *err) {
        if (!json_is_object(object)) {
                error_set(err, ERROR_INVALID_ARGUMENT, "\"%s\" must be a member of an object, not of %s", key,
                          json_type_name(object));
                return -EINVAL;
        }
        const json_t *value = json_object_get(object, key);
        if (value && !json_is_null(value)) {
                *ret = value;
                return 1;
        }
        if (!required)
                return 0;
        error_set(err, ERROR_INVALID_ARGUMENT, "\"%s\" is missing: a value of type %s is required", key, want);
        return -EINVAL;
}

static int get_str(const json_t *object, const char *key, bool required, const char **ret, struct error *err) {
        const json_t *value;

        int r = lookup(object, key, required, "string", &value, err);
        if (r <= 0)
                return r;
        if (!json_is_string(value))
                return wrong_type(key, value, "string", err);
        *ret = json_string_value(value);
        return 0;
}

static int get_int(const json_t *object, const char *key, bool required, int64_t *ret, struct error *err) {
        const json_t *value;

        int r = lookup(object, key, required, "integer", &value, err);
        if (r <= 0)
                return r;
        return is_integer(value, ret) ? 0 : wrong_type(key, value, "integer", err);
}

static int get_bool(const json_t *object, const char *key, bool required, bool *ret, struct error *err) {
        const json_t *value;

        int r = lookup(object, key, required, "boolean", &value, err);
        if (r <= 0)
                return r;
        if (!json_is_boolean(value))
                return wrong_type(key, value, "boolean", err);
        *ret = json_is_true(value);
        return 0;
}

int json_get_str(const json_t *object, const char *key, const char **ret, struct error *err) {
        return get_str(object, key, true, ret, err);
}

int json_get_int(const json_t *object, const char *key, int64_t *ret, struct error *err) {
        return get_int(object, key, true, ret, err);
}

int json_get_bool(const json_t *object, const char *key, bool *ret, struct error *err) {
        return get_bool(object, key, true, ret, err);
}

int json_opt_str(const json_t *object, const char *key, const char **ret, struct error *err) {
        return get_str(object, key, false, ret, err);
}

int json_opt_int(const json_t *object, const char *key, int64_t *ret, struct error *err) {
        return get_int(object, key, false, ret, err);
}

int json_opt_bool(const json_t *object, const char *key, bool *ret, struct error *err) {
        return get_bool(object, key, false, ret, err);
}

json_t *json_text(const char *s, size_t n) {
        if (n == 0)
                return json_string("");
        if (memchr(s, 0, n) || !utf8_valid(s, n))
                return NULL;
        return json_stringn_nocheck(s, n);
}

int json_put(json_t *object, const char *key, json_t *value) {
        return json_object_set_new(object, key, value) < 0 ? -ENOMEM : 0;
}

int json_push(json_t *array, json_t *value) {
        return json_array_append_new(array, value) < 0 ? -ENOMEM : 0;
}
