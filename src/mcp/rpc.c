/* SPDX-License-Identifier: Apache-2.0 */
#include "mcp/rpc.h"

#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/str.h"
#include "mcp/server.h"

/* Integers with more digits than this are rewritten: every one with fewer fits 64 bits. */
#define INT_DIGITS_MAX 18u
/* The power of ten that a rewritten integer has at most: a double goes to 308. */
#define REAL_EXPONENT_MAX 300u

void rpc_message_clear(struct rpc_message *m) {
        json_decref(m->root);
        free(m->id);
        *m = (struct rpc_message){0};
}

static bool is_space(char c) {
        return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static bool is_digit(char c) {
        return c >= '0' && c <= '9';
}

static size_t skip_space(const char *s, size_t len, size_t i) {
        while (i < len && is_space(s[i]))
                i++;
        return i;
}

/* i is at an opening quote: the position behind the closing one, or len. */
static size_t skip_string(const char *s, size_t len, size_t i) {
        for (i++; i < len; i++) {
                if (s[i] == '\\')
                        i++;
                else if (s[i] == '"')
                        return i + 1;
        }
        return len;
}

/* i is at the first character of a number or of a word: the position behind it. */
static size_t skip_scalar(const char *s, size_t len, size_t i) {
        while (i < len && !is_space(s[i]) && !strchr(",:[]{}\"", s[i]))
                i++;
        return i;
}

/* Finds the value of the key "id" of the outermost object. The text need not be valid JSON. */
static bool find_id(const char *s, size_t len, struct rpc_span *ret) {
        size_t depth = 0, i = 0;

        while (i < len) {
                char c = s[i];

                if (c == '{' || c == '[') {
                        depth++;
                        i++;
                } else if (c == '}' || c == ']') {
                        depth = depth > 0 ? depth - 1 : 0;
                        i++;
                } else if (c == '"') {
                        size_t start = i;

                        i = skip_string(s, len, i);
                        if (depth != 1 || i - start != 4 || memcmp(s + start, "\"id\"", 4) != 0)
                                continue;
                        size_t at = skip_space(s, len, i);
                        if (at >= len || s[at] != ':')
                                continue;
                        at = skip_space(s, len, at + 1);
                        if (at >= len)
                                return false;
                        size_t end = s[at] == '"' ? skip_string(s, len, at) : skip_scalar(s, len, at);
                        *ret = (struct rpc_span){at, end - at};
                        return end > at;
                } else
                        i++;
        }
        return false;
}

/* Rewrites the n digits at s as d.ddde+x of the same length. */
static void integer_to_real(char *s, size_t n) {
        char exponent[8];

        int k = snprintf(exponent, sizeof(exponent), "e%zu", MIN(n - 1, (size_t) REAL_EXPONENT_MAX));
        memmove(s + 2, s + 1, n - 2 - (size_t) k);
        s[1] = '.';
        memcpy(s + n - k, exponent, (size_t) k);
}

static bool all_digits(const char *s, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (!is_digit(s[i]))
                        return false;
        return n > 0;
}

/* Rewrites all integers that the parser would refuse as too big. */
static void tame_integers(char *s, size_t len) {
        size_t i = 0;

        while (i < len) {
                if (s[i] == '"')
                        i = skip_string(s, len, i);
                else if (s[i] == '-' || is_digit(s[i])) {
                        size_t start = s[i] == '-' ? i + 1 : i;

                        i = skip_scalar(s, len, i);
                        /* A leading zero is not JSON: the parser must see it. */
                        if (i - start > INT_DIGITS_MAX && s[start] != '0' && all_digits(s + start, i - start))
                                integer_to_real(s + start, i - start);
                } else
                        i++;
        }
}

/* Takes over the id: strings and integers, nothing else. */
static int take_id(struct rpc_message *m, const char *raw, struct error *err) {
        const json_t *id = json_object_get(m->root, "id");

        if (raw && strlen(raw) > RPC_ID_MAX)
                return error_set(err, ERROR_INVALID_ARGUMENT, "Invalid request: the id is longer than %u bytes",
                                 RPC_ID_MAX);
        if (json_is_string(id) || json_is_integer(id) ||
            (json_is_real(id) && raw && all_digits(raw + (*raw == '-'), strlen(raw) - (*raw == '-')))) {
                /* Without raw the key was written with escapes. */
                m->id = raw ? strdup(raw) : json_dumps(id, JSON_ENCODE_ANY | JSON_COMPACT);
                if (!m->id)
                        return error_set_errno(err, ENOMEM, "Cannot read the message");
                m->id_value = id;
                return 0;
        }
        return error_set(err, ERROR_INVALID_ARGUMENT, "Invalid request: the id must be a string or an integer, not %s",
                         json_is_real(id) ? "a number with a fraction" : json_type_name(id));
}

/* Checks the envelope and fills *m from its root. */
static int read_envelope(struct rpc_message *m, const char *raw_id, struct error *err) {
        if (!json_is_object(m->root))
                return error_set(err, ERROR_INVALID_ARGUMENT, "Invalid request: a message is an object, not %s",
                                 json_type_name(m->root));

        const json_t *version = json_object_get(m->root, "jsonrpc");
        if (!json_is_string(version) || !str_eq(json_string_value(version), "2.0"))
                return error_set(err, ERROR_INVALID_ARGUMENT, "Invalid request: \"jsonrpc\" must be \"2.0\"");

        const json_t *method = json_object_get(m->root, "method");
        bool is_response = json_object_get(m->root, "result") || json_object_get(m->root, "error");
        if (!method && is_response) {
                m->kind = RPC_RESPONSE;
                return 0;
        }
        m->kind = RPC_NOTIFICATION;
        if (json_object_get(m->root, "id")) {
                int r = take_id(m, raw_id, err);
                if (r < 0)
                        return r;
                m->kind = RPC_REQUEST;
        }
        if (!json_is_string(method))
                return error_set(err, ERROR_INVALID_ARGUMENT, "Invalid request: \"method\" must be a string, not %s",
                                 json_type_name(method));
        m->method = json_string_value(method);
        json_t *params = json_object_get(m->root, "params");
        m->params = json_is_null(params) ? NULL : params;
        return 0;
}

/*
 * The text holds \u0000 or half a surrogate pair, which is JSON, but no string of ours. The sender of a request waits
 * for an answer: it gets one with its id if the rest of the message is in order.
 */
static int parse_mended(char *text, size_t len, char *raw_id, struct rpc_message *m, int *ret_code, struct error *err) {
        _cleanup_error_ struct error why = ERROR_INIT;

        error_move(&why, err);
        bool id_is_sound = raw_id && json_mend_escapes(raw_id, strlen(raw_id)) == 0;
        (void) json_mend_escapes(text, len);
        int r = json_parse(text, len, MCP_LINE_MAX, JSON_DEPTH_MAX, &m->root, err);
        if (r >= 0)
                r = read_envelope(m, raw_id, err);
        if (r == -ENOMEM || !id_is_sound) {
                free(m->id);
                m->id = NULL;
        }
        if (r < 0) {
                *ret_code = r == -ENOMEM ? RPC_INTERNAL_ERROR : m->root ? RPC_INVALID_REQUEST : RPC_PARSE_ERROR;
                return r;
        }
        *ret_code = m->id ? RPC_INVALID_PARAMS : RPC_PARSE_ERROR;
        return error_set(err, ERROR_INVALID_ARGUMENT,
                         "%s. No argument may have that: give such bytes as base64 where a tool takes \"encoding\", or "
                         "write printf '\\000' in a command (in JSON: printf '\\\\000')",
                         error_message(&why));
}

int rpc_parse(char *text, size_t len, struct rpc_message *ret, int *ret_code, struct error *err) {
        _cleanup_free_ char *raw_id = NULL;
        struct rpc_span span;

        *ret = (struct rpc_message){0};
        if (find_id(text, len, &span)) {
                raw_id = strndup(text + span.start, span.len);
                if (!raw_id) {
                        *ret_code = RPC_INTERNAL_ERROR;
                        return error_set_errno(err, ENOMEM, "Cannot read the message");
                }
        }
        tame_integers(text, len);
        int r = json_parse(text, len, MCP_LINE_MAX, JSON_DEPTH_MAX, &ret->root, err);
        if (r == -EILSEQ)
                return parse_mended(text, len, raw_id, ret, ret_code, err);
        if (r < 0) {
                *ret_code = r == -ENOMEM ? RPC_INTERNAL_ERROR : RPC_PARSE_ERROR;
                return r;
        }
        r = read_envelope(ret, raw_id, err);
        if (r < 0)
                *ret_code = r == -ENOMEM ? RPC_INTERNAL_ERROR : RPC_INVALID_REQUEST;
        return r;
}

bool rpc_is_batch(const char *text, size_t len) {
        size_t i = skip_space(text, len, 0);

        return i < len && text[i] == '[';
}

int rpc_split(const char *text, size_t len, struct rpc_span *ret, size_t max) {
        size_t n = 0, depth = 0, i = skip_space(text, len, 0);

        if (i >= len || text[i] != '[')
                return -EINVAL;
        size_t start = ++i;
        for (; i < len; i++) {
                char c = text[i];

                if (c == '"')
                        i = skip_string(text, len, i) - 1;
                else if (c == '{' || c == '[')
                        depth++;
                else if (depth > 0 && (c == '}' || c == ']'))
                        depth--;
                else if (c == ',' || c == ']') {
                        if (depth > 0)
                                continue;
                        if (c == ']' && n == 0 && skip_space(text, len, start) == i)
                                return skip_space(text, len, i + 1) == len ? 0 : -EINVAL;
                        if (n == max)
                                return -E2BIG;
                        ret[n++] = (struct rpc_span){start, i - start};
                        start = i + 1;
                        if (c == ']')
                                return skip_space(text, len, i + 1) == len ? (int) n : -EINVAL;
                }
        }
        return -EINVAL;
}

/* {"jsonrpc":"2.0","id":<id>,"<key>":<value>} */
static int envelope(const char *id, const char *key, const json_t *value, struct buf *out) {
        int r = buf_append_str(out, "{\"jsonrpc\":\"2.0\",");
        if (r == 0 && id)
                r = buf_printf(out, "\"id\":%s,", id);
        if (r == 0)
                r = buf_printf(out, "\"%s\":", key);
        if (r == 0)
                r = json_write(value, out);
        if (r == 0)
                r = buf_append_byte(out, '}');
        return r;
}

char *rpc_error_text(const char *id, int code, const char *message, json_t *data, size_t *ret_len) {
        _cleanup_json_ json_t *error = json_object();
        _cleanup_buf_ struct buf out = BUF_INIT(MCP_LINE_MAX + RPC_MESSAGE_MAX);

        if (!error || json_put(error, "code", json_integer(code)) < 0 ||
            json_put(error, "message", json_string(message)) < 0 ||
            (data && json_put(error, "data", json_incref(data)) < 0) || envelope(id, "error", error, &out) < 0)
                return NULL;
        *ret_len = out.len;
        return buf_steal(&out);
}

int rpc_result_text(const char *id, const json_t *result, char **ret, size_t *ret_len) {
        _cleanup_buf_ struct buf out = BUF_INIT(RPC_MESSAGE_MAX - 1);

        int r = envelope(id, "result", result, &out);
        if (r < 0)
                return r;
        size_t len = out.len;
        char *text = buf_steal(&out);
        if (!text)
                return -ENOMEM;
        *ret = text;
        *ret_len = len;
        return 0;
}
