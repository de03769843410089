/* SPDX-License-Identifier: Apache-2.0 */
#include "mcp/schema.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/str.h"

#define MATCH_LIMIT 100000u
#define MATCH_DEPTH_LIMIT 1000u
#define MATCH_HEAP_LIMIT_KIB 1024u
#define SHOWN_VALUE_MAX 60u                 /* bytes of a wrong value that its message quotes */
#define KEY_SHOWN_MAX 80u                   /* bytes of a key in the name of a nested value */
#define PART_MIN 3u                         /* characters of a part by which a name may be meant */
#define PATH_MAX_LEN 200u                   /* bytes of the name of a nested value */
#define DOUBLE_EXACT_MAX 9007199254740992.0 /* 2^53 */
#define ABSOLUTE_PATTERN "^/"               /* the one that messages have words for */

enum type { TYPE_ANY, TYPE_STRING, TYPE_INTEGER, TYPE_NUMBER, TYPE_BOOLEAN, TYPE_OBJECT, TYPE_ARRAY, _TYPE_MAX };

static const char *const type_names[] = {
        [TYPE_ANY] = "any",         [TYPE_STRING] = "string", [TYPE_INTEGER] = "integer", [TYPE_NUMBER] = "number",
        [TYPE_BOOLEAN] = "boolean", [TYPE_OBJECT] = "object", [TYPE_ARRAY] = "array",
};

/* For messages. */
static const char *const type_phrases[] = {
        [TYPE_ANY] = "any value",   [TYPE_STRING] = "a string",   [TYPE_INTEGER] = "an integer",
        [TYPE_NUMBER] = "a number", [TYPE_BOOLEAN] = "a boolean", [TYPE_OBJECT] = "an object",
        [TYPE_ARRAY] = "an array",
};

struct property {
        const char *name; /* inside the description */
        struct schema *schema;
        bool required;
};

struct schema {
        json_t *description; /* a reference: names and values below point into it */
        enum type type;
        bool nullable;        /* null will do as well */
        const json_t *values; /* enum: array of strings, or NULL */
        double min, max;      /* -INFINITY, INFINITY: none */
        size_t min_len, max_len;
        const char *pattern_text;
        pcre2_code *pattern;
        struct schema *items;
        size_t min_items, max_items, max_properties;
        struct property *properties;
        size_t n_properties;
        struct schema *additional; /* of keys that are not in properties; NULL: anything */
        bool secret;               /* a map or what is in one: messages do not show the value */
        const json_t *fallback;    /* default, or NULL */
};

void schema_free(struct schema *s) {
        if (!s)
                return;
        for (size_t i = 0; i < s->n_properties; i++)
                schema_free(s->properties[i].schema);
        free(s->properties);
        schema_free(s->items);
        schema_free(s->additional);
        pcre2_code_free(s->pattern);
        json_decref(s->description);
        free(s);
}

static int bad_schema(struct error *err, const char *where, const char *key, const char *what) {
        return error_set(err, ERROR_INTERNAL, "Schema %s: \"%s\" %s", where, key, what);
}

static int get_size(const json_t *value, const char *where, const char *key, size_t *ret, struct error *err) {
        if (!json_is_integer(value) || json_integer_value(value) < 0)
                return bad_schema(err, where, key, "must be a count");
        *ret = (size_t) json_integer_value(value);
        return 0;
}

static int compile_type(struct schema *s, const json_t *value, const char *where, struct error *err) {
        for (unsigned t = TYPE_STRING; t < _TYPE_MAX; t++)
                if (str_eq(json_string_value(value), type_names[t])) {
                        s->type = t;
                        return 0;
                }
        return bad_schema(err, where, "type", "is not the name of one type");
}

/* [{"type": ...}, {"type": "null"}]: results have values that may be null, and clients take no list of types. */
static int compile_any_of(struct schema *s, const json_t *value, const char *where, struct error *err) {
        const json_t *first = json_array_get(value, 0), *second = json_array_get(value, 1);

        if (json_array_size(value) != 2 || json_object_size(first) != 1 || json_object_size(second) != 1 ||
            !str_eq(json_string_value(json_object_get(second, "type")), "null"))
                return bad_schema(err, where, "anyOf", "may only be a type and null");
        s->nullable = true;
        return compile_type(s, json_object_get(first, "type"), where, err);
}

static int compile_pattern(struct schema *s, const json_t *value, const char *where, struct error *err) {
        int code;
        PCRE2_SIZE at;

        if (!json_is_string(value))
                return bad_schema(err, where, "pattern", "must be a string");
        s->pattern_text = json_string_value(value);
        s->pattern = pcre2_compile((PCRE2_SPTR) s->pattern_text, PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &code, &at, NULL);
        return s->pattern ? 0 : bad_schema(err, where, "pattern", "is not a regular expression");
}

static int compile_enum(struct schema *s, const json_t *value, const char *where, struct error *err) {
        size_t i;
        json_t *item;

        if (json_array_size(value) == 0)
                return bad_schema(err, where, "enum", "must be an array with values");
        json_array_foreach ((json_t *) value, i, item)
                if (!json_is_string(item))
                        return bad_schema(err, where, "enum", "may hold strings only");
        s->values = value;
        return 0;
}

static int compile_properties(struct schema *s, const json_t *value, const char *where, struct error *err) {
        const char *name;
        json_t *item;

        if (!json_is_object(value))
                return bad_schema(err, where, "properties", "must be an object");
        s->properties = calloc(json_object_size(value) + 1, sizeof(*s->properties));
        if (!s->properties)
                return error_set_errno(err, ENOMEM, "Schema %s", where);
        json_object_foreach ((json_t *) value, name, item) {
                _cleanup_free_ char *path = str_printf("%s.%s", where, name);
                struct property *p = &s->properties[s->n_properties];

                if (!path)
                        return error_set_errno(err, ENOMEM, "Schema %s", where);
                p->name = name;
                int r = schema_compile(item, path, &p->schema, err);
                if (r < 0)
                        return r;
                s->n_properties++;
        }
        return 0;
}

static struct property *find_property(const struct schema *s, const char *name) {
        for (size_t i = 0; i < s->n_properties; i++)
                if (str_eq(s->properties[i].name, name))
                        return &s->properties[i];
        return NULL;
}

/* After the properties, whatever the order of the keywords is. */
static int compile_required(struct schema *s, const json_t *value, const char *where, struct error *err) {
        size_t i;
        json_t *item;

        if (!value)
                return 0;
        if (!json_is_array(value))
                return bad_schema(err, where, "required", "must be an array");
        json_array_foreach ((json_t *) value, i, item) {
                struct property *p = find_property(s, json_string_value(item));
                if (!p)
                        return bad_schema(err, where, "required", "names a key that is not in properties");
                p->required = true;
        }
        return 0;
}

static int compile_number(const json_t *value, const char *where, const char *key, double *ret, struct error *err) {
        if (!json_is_number(value))
                return bad_schema(err, where, key, "must be a number");
        *ret = json_number_value(value);
        return 0;
}

static int compile_keyword(struct schema *s, const char *key, const json_t *value, const char *where,
                           struct error *err) {
        if (str_eq(key, "description") || str_eq(key, "title") || str_eq(key, "required"))
                return 0;
        if (str_eq(key, "type"))
                return compile_type(s, value, where, err);
        if (str_eq(key, "anyOf"))
                return compile_any_of(s, value, where, err);
        if (str_eq(key, "enum"))
                return compile_enum(s, value, where, err);
        if (str_eq(key, "pattern"))
                return compile_pattern(s, value, where, err);
        if (str_eq(key, "minimum"))
                return compile_number(value, where, key, &s->min, err);
        if (str_eq(key, "maximum"))
                return compile_number(value, where, key, &s->max, err);
        if (str_eq(key, "minLength"))
                return get_size(value, where, key, &s->min_len, err);
        if (str_eq(key, "maxLength"))
                return get_size(value, where, key, &s->max_len, err);
        if (str_eq(key, "minItems"))
                return get_size(value, where, key, &s->min_items, err);
        if (str_eq(key, "maxItems"))
                return get_size(value, where, key, &s->max_items, err);
        if (str_eq(key, "maxProperties"))
                return get_size(value, where, key, &s->max_properties, err);
        if (str_eq(key, "properties"))
                return compile_properties(s, value, where, err);
        if (str_eq(key, "items"))
                return schema_compile(value, where, &s->items, err);
        if (str_eq(key, "additionalProperties")) {
                int r = schema_compile(value, where, &s->additional, err);
                if (r >= 0)
                        s->secret = s->additional->secret = true;
                return r;
        }
        if (str_eq(key, "default")) {
                s->fallback = value;
                return 0;
        }
        return bad_schema(err, where, key, "is not a keyword that is checked here");
}

int schema_compile(const json_t *description, const char *where, struct schema **ret, struct error *err) {
        const char *key;
        json_t *value;

        if (!json_is_object(description))
                return error_set(err, ERROR_INTERNAL, "Schema %s is not an object", where);
        _cleanup_schema_ struct schema *s = calloc(1, sizeof(*s));
        if (!s)
                return error_set_errno(err, ENOMEM, "Schema %s", where);
        *s = (struct schema){.description = json_incref((json_t *) description),
                             .min = -INFINITY,
                             .max = INFINITY,
                             .max_len = SIZE_MAX,
                             .max_items = SIZE_MAX,
                             .max_properties = SIZE_MAX};
        json_object_foreach ((json_t *) description, key, value) {
                int r = compile_keyword(s, key, value, where, err);
                if (r < 0)
                        return r;
        }
        int r = compile_required(s, json_object_get(description, "required"), where, err);
        if (r < 0)
                return r;
        if (s->fallback) {
                r = schema_check(s, s->fallback, err);
                if (r < 0) {
                        error_prefix(err, "Schema %s: \"default\"", where);
                        return r;
                }
        }
        *ret = TAKE_PTR(s);
        return 0;
}

/* What a schema wants, in words: "an integer from 1 to 8". */
static int describe(const struct schema *s, struct buf *out) {
        size_t i;
        json_t *item;
        int r;

        if (s->values) {
                r = buf_append_str(out, "one of ");
                json_array_foreach ((json_t *) s->values, i, item)
                        r = r < 0 ? r : buf_printf(out, "%s\"%s\"", i ? ", " : "", json_string_value(item));
                return r;
        }
        r = buf_append_str(out, s->type < _TYPE_MAX ? type_phrases[s->type] : "a value");
        if (r == 0 && isfinite(s->min) && isfinite(s->max))
                r = buf_printf(out, " from %.0f to %.0f", s->min, s->max);
        else if (r == 0 && isfinite(s->min))
                r = buf_printf(out, " of at least %.0f", s->min);
        else if (r == 0 && isfinite(s->max))
                r = buf_printf(out, " of at most %.0f", s->max);
        if (r == 0 && s->items && s->items->type != TYPE_ANY)
                r = buf_printf(out, " of %ss", type_names[s->items->type]);
        bool absolute = s->pattern && str_eq(s->pattern_text, ABSOLUTE_PATTERN);
        if (r == 0 && absolute)
                r = buf_append_str(out, " that begins with \"/\"");
        if (r == 0 && s->min_len > 0)
                r = buf_append_str(out, s->min_len == 1 ? " that is not empty" : " that is longer");
        if (r == 0 && s->max_len != SIZE_MAX)
                r = buf_printf(out, " of at most %zu characters", s->max_len);
        if (r == 0 && s->pattern && !absolute)
                r = buf_printf(out, " matching %s", s->pattern_text);
        if (r == 0 && s->max_items != SIZE_MAX)
                r = buf_printf(out, " with %zu to %zu items", s->min_items, s->max_items);
        if (r == 0 && s->max_properties != SIZE_MAX)
                r = buf_printf(out, " of at most %zu keys", s->max_properties);
        return r;
}

/* The value as JSON, cut where it is long. */
static void show_value(const json_t *value, struct buf *out) {
        _cleanup_buf_ struct buf text = BUF_INIT(SIZE_MAX / 2);

        if (json_is_string(value) && json_string_length(value) > SHOWN_VALUE_MAX) {
                const char *s = json_string_value(value);
                (void) buf_printf(out, "a string of %zu bytes (\"%.*s...)", json_string_length(value),
                                  (int) utf8_floor(s, SHOWN_VALUE_MAX), s);
        } else if (json_is_object(value) || json_is_array(value))
                (void) buf_printf(out, "an %s", json_type_name(value));
        else if (json_write(value, &text) == 0)
                (void) buf_append(out, text.data, text.len);
}

/* What was given, without the value itself where that may be a secret. */
static void describe_given(const struct schema *s, const json_t *value, struct buf *out) {
        bool array = s->type == TYPE_ARRAY && json_is_array(value);
        bool object = s->type == TYPE_OBJECT && json_is_object(value);

        /* Of the right type: the number of its items is what is wrong. */
        if (array || object) {
                size_t n = array ? json_array_size(value) : json_object_size(value);
                (void) buf_printf(out, "%zu %s%s", n, array ? "item" : "key", n == 1 ? "" : "s");
        } else if (s->secret)
                (void) buf_printf(out, "of type %s", json_type_name(value));
        else
                show_value(value, out);
}

/* A regular expression is hard to read: the description says what it stands for. */
static void hint_description(const struct schema *s, const char *path, struct error *err) {
        const char *text = json_string_value(json_object_get(s->description, "description"));

        if (s->pattern && text && !str_eq(s->pattern_text, ABSOLUTE_PATTERN))
                error_hint(err, "%s: %s.", path, text);
}

static int wrong_value(const struct schema *s, const char *path, const json_t *value, struct error *err) {
        _cleanup_buf_ struct buf want = BUF_INIT(4096), got = BUF_INIT(4096);

        (void) describe(s, &want);
        describe_given(s, value, &got);
        error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"%s\" must be %s, not %s", path,
                  want.data ? want.data : "other", got.data ? got.data : json_type_name(value));
        hint_description(s, path, err);
        if (s->values && json_is_string(value)) {
                const char *candidates[64];
                size_t n = MIN(json_array_size(s->values), ARRAY_SIZE(candidates));

                for (size_t i = 0; i < n; i++)
                        candidates[i] = json_string_value(json_array_get(s->values, i));
                const char *nearest = str_nearest(json_string_value(value), candidates, n);
                if (nearest)
                        error_hint(err, "Did you mean \"%s\"?", nearest);
        }
        return -EINVAL;
}

/* Code points of valid UTF-8: all bytes that do not continue one. */
static size_t count_characters(const char *s, size_t n) {
        size_t count = 0;

        for (size_t i = 0; i < n; i++)
                count += ((unsigned char) s[i] & 0xc0) != 0x80;
        return count;
}

static bool pattern_matches(const pcre2_code *pattern, const char *s, size_t n) {
        pcre2_match_context *limits = pcre2_match_context_create(NULL);
        pcre2_match_data *data = pcre2_match_data_create(1, NULL);
        bool matches = false;

        if (limits && data) {
                (void) pcre2_set_match_limit(limits, MATCH_LIMIT);
                (void) pcre2_set_depth_limit(limits, MATCH_DEPTH_LIMIT);
                (void) pcre2_set_heap_limit(limits, MATCH_HEAP_LIMIT_KIB);
                matches = pcre2_match(pattern, (PCRE2_SPTR) s, n, 0, 0, data, limits) >= 0;
        }
        pcre2_match_data_free(data);
        pcre2_match_context_free(limits);
        return matches;
}

static bool string_fits(const struct schema *s, const json_t *value) {
        const char *text = json_string_value(value);
        size_t len = json_string_length(value);

        if (s->min_len > 0 || s->max_len != SIZE_MAX) {
                size_t n = count_characters(text, len);
                if (n < s->min_len || n > s->max_len)
                        return false;
        }
        if (s->pattern && !pattern_matches(s->pattern, text, len))
                return false;
        if (!s->values)
                return true;

        size_t i;
        json_t *item;
        json_array_foreach ((json_t *) s->values, i, item)
                if (json_equal(item, value))
                        return true;
        return false;
}

static bool is_integer(const json_t *value) {
        if (json_is_integer(value))
                return true;
        double d = json_real_value(value);
        return json_is_real(value) && fabs(d) <= DOUBLE_EXACT_MAX && d == floor(d);
}

/* Type and limits of the value itself, not of what is inside. */
static bool value_fits(const struct schema *s, const json_t *value) {
        if (s->nullable && json_is_null(value))
                return true;
        switch (s->type) {
        case TYPE_ANY:
                return true;
        case TYPE_STRING:
                return json_is_string(value) && string_fits(s, value);
        case TYPE_BOOLEAN:
                return json_is_boolean(value);
        case TYPE_INTEGER:
                if (!is_integer(value))
                        return false;
                break;
        case TYPE_NUMBER:
                if (!json_is_number(value))
                        return false;
                break;
        case TYPE_ARRAY:
                return json_is_array(value) && json_array_size(value) >= s->min_items &&
                       json_array_size(value) <= s->max_items;
        case TYPE_OBJECT:
                return json_is_object(value) && json_object_size(value) <= s->max_properties;
        case _TYPE_MAX:
                return false;
        }
        return json_number_value(value) >= s->min && json_number_value(value) <= s->max;
}

static int check(const struct schema *s, const char *path, const json_t *value, struct error *err);

static int check_member(const struct schema *s, const char *path, const char *key, const json_t *value,
                        struct error *err) {
        char inner[PATH_MAX_LEN];

        if (!s)
                return 0;
        /* Of a map's key that was written as NAME=value only the name. */
        (void) snprintf(inner, sizeof(inner), "%s%s%.*s", path, *path ? "." : "",
                        (int) MIN(strcspn(key, "="), (size_t) KEY_SHOWN_MAX), key);
        inner[utf8_floor(inner, strlen(inner))] = 0;
        return check(s, inner, value, err);
}

static int missing(const struct property *p, const char *path, struct error *err) {
        _cleanup_buf_ struct buf want = BUF_INIT(4096);

        (void) describe(p->schema, &want);
        return error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"%s%s%s\" is missing: it must be %s", path,
                         *path ? "." : "", p->name, want.data ? want.data : "given");
}

static int check_object(const struct schema *s, const char *path, const json_t *value, struct error *err) {
        const char *key;
        json_t *item;

        for (size_t i = 0; i < s->n_properties; i++)
                if (s->properties[i].required && !json_object_get(value, s->properties[i].name))
                        return missing(&s->properties[i], path, err);
        json_object_foreach ((json_t *) value, key, item) {
                const struct property *p = find_property(s, key);
                int r = check_member(p ? p->schema : s->additional, path, key, item, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int check(const struct schema *s, const char *path, const json_t *value, struct error *err) {
        if (!value_fits(s, value))
                return wrong_value(s, path, value, err);
        if (s->type == TYPE_OBJECT)
                return check_object(s, path, value, err);
        if (s->type == TYPE_ARRAY && s->items) {
                size_t i;
                json_t *item;

                json_array_foreach ((json_t *) value, i, item) {
                        char index[24];

                        (void) snprintf(index, sizeof(index), "%zu", i);
                        int r = check_member(s->items, path, index, item, err);
                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

int schema_check(const struct schema *s, const json_t *value, struct error *err) {
        return check(s, "", value, err);
}

/* The name that a shorter one is a part of, if it is the only one: "timeout" for timeout_secs. */
static const char *name_with_part(const char *part, const char *const *names, size_t n) {
        const char *found = NULL;

        if (strlen(part) < PART_MIN)
                return NULL;
        for (size_t i = 0; i < n; i++) {
                if (!strstr(names[i], part))
                        continue;
                if (found)
                        return NULL;
                found = names[i];
        }
        return found;
}

static int warn_unknown(const struct schema *s, const char *key, json_t *warnings) {
        const char *names[64];
        size_t n = MIN(s->n_properties, ARRAY_SIZE(names));

        for (size_t i = 0; i < n; i++)
                names[i] = s->properties[i].name;
        const char *nearest = str_nearest(key, names, n);
        if (!nearest)
                nearest = name_with_part(key, names, n);
        int shown = (int) utf8_floor(key, MIN(strlen(key), (size_t) SHOWN_VALUE_MAX));
        _cleanup_free_ char *text =
                nearest ? str_printf("Unknown argument \"%.*s\" was ignored: did you mean \"%s\"?", shown, key, nearest)
                        : str_printf("Unknown argument \"%.*s\" was ignored.", shown, key);
        return json_push(warnings, text ? json_string(text) : NULL);
}

/* What a value looks like to a handler: an integer that was written with a fraction is one, and a string where an array
 * of strings is wanted is an array of one. */
static json_t *copy_value(const struct schema *s, const json_t *value);

static json_t *copy_object(const struct schema *s, const json_t *value) {
        _cleanup_json_ json_t *out = json_object();
        const char *key;
        json_t *item;

        json_object_foreach ((json_t *) value, key, item) {
                const struct property *p = find_property(s, key);
                const struct schema *inner = p ? p->schema : s->additional;

                if (!out || json_put(out, key, inner ? copy_value(inner, item) : json_deep_copy(item)) < 0)
                        return NULL;
        }
        return TAKE_PTR(out);
}

static json_t *copy_array(const struct schema *items, const json_t *value) {
        _cleanup_json_ json_t *out = json_array();
        size_t i;
        json_t *item;

        json_array_foreach ((json_t *) value, i, item)
                if (!out || json_push(out, copy_value(items, item)) < 0)
                        return NULL;
        return TAKE_PTR(out);
}

static json_t *copy_value(const struct schema *s, const json_t *value) {
        if (s->type == TYPE_INTEGER && json_is_real(value) && is_integer(value))
                return json_integer((json_int_t) json_real_value(value));
        if (s->type == TYPE_OBJECT && json_is_object(value))
                return copy_object(s, value);
        if (s->type != TYPE_ARRAY || !s->items)
                return json_deep_copy(value);
        if (json_is_array(value))
                return copy_array(s->items, value);
        if (s->items->type == TYPE_STRING && json_is_string(value))
                return json_pack("[o]", json_deep_copy(value));
        return json_deep_copy(value);
}

/* The arguments that count: known keys that are not null, and defaults. */
static int select_args(const struct schema *s, const json_t *args, json_t *out) {
        for (size_t i = 0; i < s->n_properties; i++) {
                const struct property *p = &s->properties[i];
                const json_t *value = json_object_get(args, p->name);

                if (!value || json_is_null(value))
                        value = p->schema->fallback;
                if (value && json_put(out, p->name, copy_value(p->schema, value)) < 0)
                        return -ENOMEM;
        }
        return 0;
}

/* Some clients add arguments of their own to every call. */
static bool is_client_argument(const char *key) {
        return str_eq(key, "wait_for_previous");
}

#define WARNINGS_MAX 16u

int schema_check_args(const struct schema *s, const json_t *args, json_t *warnings, json_t **ret, struct error *err) {
        _cleanup_json_ json_t *out = json_object();
        const char *key;
        json_t *value;

        if (!out || select_args(s, args, out) < 0)
                return error_set_errno(err, ENOMEM, "Cannot read the arguments");
        json_object_foreach ((json_t *) args, key, value) {
                if (find_property(s, key) || is_client_argument(key) || json_array_size(warnings) >= WARNINGS_MAX)
                        continue;
                if (warn_unknown(s, key, warnings) < 0)
                        return error_set_errno(err, ENOMEM, "Cannot read the arguments");
        }
        int r = check(s, "", out, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(out);
        return 0;
}

int schema_list_keys(const struct schema *s, struct buf *out) {
        int r = 0;

        for (size_t i = 0; i < s->n_properties && r == 0; i++)
                r = buf_printf(out, "%s%s%s", i ? ", " : "", s->properties[i].name,
                               s->properties[i].required ? " (required)" : "");
        return r;
}
