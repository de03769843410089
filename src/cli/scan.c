/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/scan.h"

#include <string.h>

#include "base/json.h"

void scan_reset(struct scan *s) {
        *s = (struct scan){.base = 1};
}

/* Whether the scanner stands among the members of a message, or among those of its params. */
static bool at_members(const struct scan *s) {
        return s->depth == s->base || (s->in_params && s->depth == s->base + 1);
}

static bool key_is(const struct scan *s, const char *name) {
        return strcmp(s->key, name) == 0;
}

static void begin_key(struct scan *s) {
        s->reading_key = true;
        s->expect_key = false;
        s->key_len = 0;
        s->key[0] = 0;
}

static void key_byte(struct scan *s, char c) {
        if (s->key_len < sizeof(s->key) - 1) {
                s->key[s->key_len++] = c;
                s->key[s->key_len] = 0;
        } else {
                s->key[0] = 0;
        }
}

static void begin_value(struct scan *s) {
        s->value = NULL;
        s->value_len = 0;
        if (s->depth == s->base && key_is(s, "id"))
                s->value = s->message.id;
        else if (s->depth == s->base && key_is(s, "method"))
                s->value = s->message.method;
        else if (s->depth == s->base + 1 && key_is(s, "requestId"))
                s->value = s->message.request_id;
        if (s->value)
                s->value[0] = 0;
}

static void value_byte(struct scan *s, char c) {
        if (!s->value)
                return;
        if (s->value_len < SCAN_VALUE_MAX) {
                s->value[s->value_len++] = c;
                s->value[s->value_len] = 0;
        } else {
                s->value[0] = 0;
                s->value = NULL;
        }
}

/* An id with escapes can come back spelled otherwise: both directions are brought to the daemon's spelling. */
static void normalise(char *id) {
        json_t *value = strchr(id, '\\') ? json_loads(id, JSON_DECODE_ANY, NULL) : NULL;
        if (!value)
                return;
        size_t n = json_dumpb(value, id, SCAN_VALUE_MAX, JSON_ENCODE_ANY);
        id[n <= SCAN_VALUE_MAX ? n : 0] = 0;
        json_decref(value);
}

static bool is_id(const char *value) {
        if (value[0] == '"')
                return true;
        return value[0] && value[strspn(value, "-0123456789")] == 0;
}

static void end_message(struct scan *s, scan_fn fn, void *arg) {
        struct scan_message *m = &s->message;

        if (!is_id(m->id))
                m->id[0] = 0;
        if (!is_id(m->request_id))
                m->request_id[0] = 0;
        normalise(m->id);
        normalise(m->request_id);
        fn(arg, m);
        *m = (struct scan_message){0};
}

static void open_container(struct scan *s, char c) {
        if (s->value) { /* an id or a method that is a container is none */
                s->value[0] = 0;
                s->value = NULL;
        }
        if (s->depth == 0)
                s->base = c == '[' ? 2 : 1;
        if (s->depth == s->base)
                s->in_params = c == '{' && key_is(s, "params");
        s->depth++;
        s->expect_key = c == '{';
}

static void close_container(struct scan *s, char c, scan_fn fn, void *arg) {
        bool ends_message = c == '}' && s->depth == s->base;

        s->value = NULL;
        s->expect_key = false;
        if (s->depth > 0)
                s->depth--;
        if (s->depth <= s->base)
                s->in_params = false;
        if (ends_message)
                end_message(s, fn, arg);
}

static void string_byte(struct scan *s, char c) {
        bool ends = c == '"' && !s->escaped;

        s->escaped = c == '\\' && !s->escaped;
        s->in_string = !ends;
        if (!s->reading_key)
                value_byte(s, c);
        else if (!ends)
                key_byte(s, c);
        if (ends)
                s->reading_key = false;
}

static void plain_byte(struct scan *s, char c, scan_fn fn, void *arg) {
        switch (c) {
        case '"':
                s->in_string = true;
                if (s->expect_key && at_members(s))
                        begin_key(s);
                else
                        value_byte(s, c);
                break;
        case '{':
        case '[':
                open_container(s, c);
                break;
        case '}':
        case ']':
                close_container(s, c, fn, arg);
                break;
        case ':':
                if (at_members(s))
                        begin_value(s);
                break;
        case ',':
                s->value = NULL;
                s->expect_key = at_members(s);
                break;
        case ' ':
        case '\t':
        case '\r':
        case '\n':
                break;
        default:
                value_byte(s, c);
        }
}

/* Bytes before the next quote or backslash. */
static size_t plain_string_len(const char *data, size_t n) {
        size_t i = 0;
        while (i < n && data[i] != '"' && data[i] != '\\')
                i++;
        return i;
}

void scan_feed(struct scan *s, const char *data, size_t n, scan_fn fn, void *arg) {
        for (size_t i = 0; i < n; i++) {
                /* Most of a large message is one string nobody asks for: step over it quickly. */
                if (s->in_string && !s->escaped && !s->reading_key && !s->value) {
                        i += plain_string_len(data + i, n - i);
                        if (i == n)
                                return;
                }
                if (s->in_string)
                        string_byte(s, data[i]);
                else
                        plain_byte(s, data[i], fn, arg);
        }
}
