/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "mcp/schema.h"
#include "tap.h"

static const char description[] =
        "{\"type\":\"object\",\"properties\":{"
        "\"id\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":3},"
        "\"count\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":20,\"default\":5},"
        "\"mode\":{\"type\":\"string\",\"enum\":[\"slow\",\"fast\"]},"
        "\"octal\":{\"type\":\"string\",\"description\":\"Digits in quotes\",\"pattern\":\"^[0-7]{3,4}$\"},"
        "\"path\":{\"type\":\"string\",\"description\":\"A file\",\"pattern\":\"^/\"},"
        "\"env\":{\"type\":\"object\",\"additionalProperties\":{\"type\":\"string\"},\"maxProperties\":2},"
        "\"list\":{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":1,\"maxItems\":2},"
        "\"ratio\":{\"type\":\"number\",\"minimum\":0.5},"
        "\"on\":{\"type\":\"boolean\",\"default\":true}},\"required\":[\"id\"]}";

static struct schema *make(const char *text, struct error *err) {
        _cleanup_json_ json_t *d = json_loads(text, 0, NULL);
        struct schema *s = NULL;

        return d && schema_compile(d, "t", &s, err) == 0 ? s : NULL;
}

/* The checked arguments as text; the caller's to free. NULL: refused. */
static char *check(const char *args, struct error *err, json_t *warnings) {
        _cleanup_schema_ struct schema *s = make(description, err);
        _cleanup_json_ json_t *given = args ? json_loads(args, 0, NULL) : NULL, *out = NULL;

        if (!s || schema_check_args(s, given, warnings, &out, err) < 0)
                return NULL;
        return json_dumps(out, JSON_COMPACT);
}

static void test_good_arguments(void) {
        static const struct {
                const char *given, *checked;
        } rows[] = {
                {"{\"id\":\"a\"}", "{\"id\":\"a\",\"count\":5,\"on\":true}"},
                {"{\"id\":\"a\",\"count\":null,\"on\":false,\"mode\":null}", "{\"id\":\"a\",\"count\":5,\"on\":false}"},
                {"{\"id\":\"a\",\"count\":20.0}", "{\"id\":\"a\",\"count\":20,\"on\":true}"},
                {"{\"id\":\"\xc3\xa9\xc3\xa9\xc3\xa9\"}",
                 "{\"id\":\"\xc3\xa9\xc3\xa9\xc3\xa9\",\"count\":5,\"on\":true}"},
                {"{\"id\":\"a\",\"mode\":\"fast\",\"octal\":\"0644\"}",
                 "{\"id\":\"a\",\"count\":5,\"mode\":\"fast\",\"octal\":\"0644\",\"on\":true}"},
                {"{\"id\":\"a\",\"env\":{\"X\":\"1\"},\"list\":[1,2],\"ratio\":1}",
                 "{\"id\":\"a\",\"count\":5,\"env\":{\"X\":\"1\"},\"list\":[1,2],\"ratio\":1,\"on\":true}"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                _cleanup_json_ json_t *warnings = json_array();
                _cleanup_free_ char *got = check(rows[i].given, &err, warnings);

                CHECK_STR(got, rows[i].checked);
                CHECK_INT(json_array_size(warnings), 0);
        }
}

static void test_wrong_arguments(void) {
        static const struct {
                const char *given, *name, *also; /* what the message has */
        } rows[] = {
                {NULL, "\"id\"", "missing"},
                {"{}", "\"id\"", "missing"},
                {"{\"id\":null}", "\"id\"", "missing"},
                {"{\"id\":7}", "\"id\"", "7"},
                {"{\"id\":\"\"}", "\"id\"", "not empty"},
                {"{\"id\":\"abcd\"}", "\"id\"", "3 characters"},
                {"{\"id\":\"a\",\"count\":0}", "\"count\"", "from 1 to 20"},
                {"{\"id\":\"a\",\"count\":21}", "\"count\"", "21"},
                {"{\"id\":\"a\",\"count\":1.5}", "\"count\"", "an integer"},
                {"{\"id\":\"a\",\"count\":1e300}", "\"count\"", "an integer"},
                {"{\"id\":\"a\",\"count\":\"5\"}", "\"count\"", "\"5\""},
                {"{\"id\":\"a\",\"mode\":\"fsat\"}", "\"mode\"", "\"slow\", \"fast\""},
                {"{\"id\":\"a\",\"octal\":\"888\"}", "\"octal\"", "^[0-7]{3,4}$"},
                {"{\"id\":\"a\",\"octal\":\"644\\n\"}", "\"octal\"", "matching"},
                {"{\"id\":\"a\",\"env\":{\"X\":1}}", "\"env.X\"", "a string"},
                {"{\"id\":\"a\",\"env\":{\"X\":null}}", "\"env.X\"", "null"},
                {"{\"id\":\"a\",\"env\":{\"X\":\"\",\"Y\":\"\",\"Z\":\"\"}}", "\"env\"", "at most 2 keys, not 3 keys"},
                {"{\"id\":\"a\",\"env\":[]}", "\"env\"", "an object"},
                {"{\"id\":\"a\",\"list\":[]}", "\"list\"", "1 to 2 items, not 0 items"},
                {"{\"id\":\"a\",\"list\":[1,2,3]}", "\"list\"", "1 to 2 items, not 3 items"},
                {"{\"id\":\"a\",\"list\":{}}", "\"list\"", "not an object"},
                {"{\"id\":\"a\",\"list\":[1,\"x\"]}", "\"list.1\"", "an integer"},
                {"{\"id\":\"a\",\"ratio\":0.1}", "\"ratio\"", "a number"},
                {"{\"id\":\"a\",\"on\":\"yes\"}", "\"on\"", "a boolean"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                _cleanup_json_ json_t *warnings = json_array();
                _cleanup_free_ char *got = check(rows[i].given, &err, warnings);

                CHECK(got == NULL);
                CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
                CHECK(err.message && strstr(err.message, rows[i].name));
                CHECK(err.message && strstr(err.message, rows[i].also));
                if (err.message && (!strstr(err.message, rows[i].name) || !strstr(err.message, rows[i].also)))
                        printf("# %s\n", err.message);
        }
}

static void test_a_near_value_is_named(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *warnings = json_array();
        _cleanup_free_ char *got = check("{\"id\":\"a\",\"mode\":\"fst\"}", &err, warnings);

        CHECK(!got && err.hint && strstr(err.hint, "\"fast\""));
}

static void test_the_description_explains_a_pattern(void) {
        static const char *const bad[] = {"{\"id\":\"a\",\"octal\":644}", "{\"id\":\"a\",\"octal\":\"rw\"}"};

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                _cleanup_json_ json_t *warnings = json_array();
                _cleanup_free_ char *got = check(bad[i], &err, warnings);

                CHECK(!got);
                CHECK_STR(err.hint, "octal: Digits in quotes.");
        }
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *warnings = json_array();
        _cleanup_free_ char *got = check("{\"id\":\"a\",\"path\":\"x\"}", &err, warnings);
        CHECK(!got && strstr(error_message(&err), "begins with") && !err.hint);
}

static void test_unknown_arguments_are_named(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *warnings = json_array();
        _cleanup_free_ char *got =
                check("{\"id\":\"a\",\"coumt\":3,\"zzzzzzzz\":1,\"wait_for_previous\":true}", &err, warnings);

        CHECK_STR(got, "{\"id\":\"a\",\"count\":5,\"on\":true}");
        CHECK_INT(json_array_size(warnings), 2);
        const char *first = json_string_value(json_array_get(warnings, 0));
        CHECK(first && strstr(first, "coumt") && strstr(first, "\"count\""));
        const char *second = json_string_value(json_array_get(warnings, 1));
        CHECK(second && strstr(second, "zzzzzzzz") && !strstr(second, "mean"));
}

static const char strings[] =
        "{\"type\":\"object\",\"properties\":{"
        "\"ids\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":3},\"minItems\":1,\"maxItems\":2},"
        "\"counts\":{\"type\":\"array\",\"items\":{\"type\":\"integer\"}},"
        "\"tasks\":{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{"
        "\"n\":{\"type\":\"integer\"},\"tags\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}}}}},"
        "\"map\":{\"type\":\"object\",\"additionalProperties\":{\"type\":\"string\"}}}}";

static char *check_strings(const char *args, struct error *err) {
        _cleanup_schema_ struct schema *s = make(strings, err);
        _cleanup_json_ json_t *given = json_loads(args, 0, NULL), *out = NULL, *warnings = json_array();

        if (!s || schema_check_args(s, given, warnings, &out, err) < 0)
                return NULL;
        return json_dumps(out, JSON_COMPACT);
}

static void test_a_string_counts_as_an_array_of_one(void) {
        static const struct {
                const char *given, *checked; /* NULL: refused */
        } rows[] = {
                {"{\"ids\":\"a\"}", "{\"ids\":[\"a\"]}"},
                {"{\"ids\":[\"a\",\"b\"]}", "{\"ids\":[\"a\",\"b\"]}"},
                {"{\"tasks\":[{\"n\":2.0,\"tags\":\"x\",\"other\":null}]}",
                 "{\"tasks\":[{\"n\":2,\"tags\":[\"x\"],\"other\":null}]}"},
                {"{\"ids\":\"abcd\"}", NULL},
                {"{\"ids\":5}", NULL},
                {"{\"ids\":{}}", NULL},
                {"{\"counts\":\"5\"}", NULL},
                {"{\"counts\":5}", NULL},
                {"{\"tasks\":\"x\"}", NULL},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                _cleanup_free_ char *got = check_strings(rows[i].given, &err);

                CHECK_STR(got, rows[i].checked);
        }
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *got = check_strings("{\"ids\":5}", &err);
        CHECK(!got && strstr(error_message(&err), "an array of strings with 1 to 2 items"));
}

static void test_the_values_of_a_map_are_never_quoted(void) {
        static const char *const bad[] = {"{\"map\":\"s3cret\"}", "{\"map\":{\"A\":53}}", "{\"map\":{\"A=s3cret\":53}}",
                                          "{\"map\":{\"A\":[\"s3cret\"]}}", "{\"map\":[\"s3cret\"]}"};

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                _cleanup_free_ char *got = check_strings(bad[i], &err);

                CHECK(!got && strstr(error_message(&err), "\"map") && strstr(error_message(&err), "of type"));
                CHECK(!strstr(error_message(&err), "s3cret") && !strstr(error_message(&err), "53"));
        }
}

static void test_a_value_that_may_be_null(void) {
        _cleanup_json_ json_t *may_be_null =
                json_pack("{s:[{s:s}, {s:s}]}", "anyOf", "type", "integer", "type", "null");
        _cleanup_json_ json_t *number = json_integer(3), *null = json_null(), *text = json_string("3");
        _cleanup_schema_ struct schema *s = NULL;
        _cleanup_error_ struct error err = ERROR_INIT;

        REQUIRE(schema_compile(may_be_null, "x", &s, &err) == 0);
        CHECK_INT(schema_check(s, number, &err), 0);
        CHECK_INT(schema_check(s, null, &err), 0);
        CHECK_INT(schema_check(s, text, &err), -EINVAL);
}

static void test_our_own_mistakes_are_found(void) {
        static const char *const bad[] = {
                "[]",
                "{\"type\":\"strin\"}",
                "{\"type\":[\"string\",\"null\"]}",
                "{\"anyOf\":[]}",
                "{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"string\"}]}",
                "{\"anyOf\":[{\"type\":\"integer\",\"minimum\":1},{\"type\":\"null\"}]}",
                "{\"$ref\":\"#\"}",
                "{\"type\":\"string\",\"pattern\":\"(\"}",
                "{\"enum\":[]}",
                "{\"enum\":[1]}",
                "{\"type\":\"object\",\"required\":[\"x\"]}",
                "{\"additionalProperties\":false}",
                "{\"minLength\":-1}",
                "{\"type\":\"integer\",\"maximum\":3,\"default\":4}",
                "{\"minimum\":\"1\"}",
        };

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                _cleanup_schema_ struct schema *s = make(bad[i], &err);

                CHECK(s == NULL);
                CHECK(error_is_set(&err));
        }
}

static void test_a_bad_value_is_quoted_in_part(void) {
        char args[4096] = "{\"id\":\"";
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *warnings = json_array();

        for (int i = 0; i < 500; i++)
                strcat(args, "\xe2\x82\xac");
        strcat(args, "\"}");
        _cleanup_free_ char *got = check(args, &err, warnings);
        CHECK(!got && err.message && strlen(err.message) < 300 && strstr(err.message, "1500 bytes"));
        _cleanup_json_ json_t *text = err.message ? json_text(err.message, strlen(err.message)) : NULL;
        CHECK(text != NULL);
}

int main(void) {
        RUN(test_good_arguments);
        RUN(test_wrong_arguments);
        RUN(test_a_near_value_is_named);
        RUN(test_the_description_explains_a_pattern);
        RUN(test_unknown_arguments_are_named);
        RUN(test_a_string_counts_as_an_array_of_one);
        RUN(test_the_values_of_a_map_are_never_quoted);
        RUN(test_a_value_that_may_be_null);
        RUN(test_our_own_mistakes_are_found);
        RUN(test_a_bad_value_is_quoted_in_part);
        return tap_done();
}
