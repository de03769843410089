/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"
#include "tap.h"

static int parse(const char *text, size_t n, json_t **ret, struct error *err) {
        return json_parse(text, n, 1 << 20, JSON_DEPTH_MAX, ret, err);
}

static void check_refused(const char *text, size_t n, const char *what) {
        _cleanup_error_ struct error err = ERROR_INIT;
        json_t *value = NULL;

        int r = parse(text, n, &value, &err);
        if (r != -EINVAL || value || err.code != ERROR_INVALID_ARGUMENT || !strstr(error_message(&err), what)) {
                tap_fail(__FILE__, __LINE__, "not refused as it should be");
                printf("#   text %s: %d, %s\n", text, r, error_message(&err));
        }
        json_decref(value);
}

static void test_refuses(void) {
        static const struct {
                const char *text, *what;
        } bad[] = {
                {"", "line 1"},
                {" ", "line 1"},
                {"{", "line 1"},
                {"[1,]", "line 1"},
                {"[1]x", "end of file expected"},
                {"{} {}", "end of file expected"},
                {"\n\n  [1 2]", "line 3, column"},
                {"{\"a\":1,\"b\":2,\"a\":3}", "duplicate object key"},
                {"\"\\u0000\"", "\\u0000"},
                {"{\"\\u0000\":1}", "NUL"},
                {"\"\\ud800\"", "\\uD800"},
                {"\"\\udc00\"", "\\uDC00"},
                {"\"\\ud800\\u0041\"", "\\uD800"},
                {"\"\\ud800x\"", "\\uD800"},
                {"\"\xff\"", "UTF-8 at byte 1"},
                {"\"\xed\xa0\x80\"", "UTF-8 at byte 1"},
                {"\"\xc0\x80\"", "UTF-8 at byte 1"},
                {"\"a\nb\"", "line"},
                {"'a'", "line 1"},
                {"{a:1}", "line 1"},
                {"NaN", "line 1"},
                {"01", "line 1"},
                {"1e999", "real number overflow"},
                {"123456789012345678901234567890", "too big integer"},
                {"// no\n1", "line 1"},
                {"]", "line 1"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                check_refused(bad[i].text, strlen(bad[i].text), bad[i].what);
        check_refused(NULL, 0, "line 1");
        check_refused("[1,\0 2]", 7, "NUL at byte 3");
        check_refused("1\0", 2, "NUL at byte 1");
        check_refused("\"a\0\"", 4, "NUL at byte 2");
}

static void test_message_is_utf8(void) {
        /* jansson quotes at most 160 bytes of what it could not read, and may cut a character. */
        char text[601];
        for (size_t shift = 1; shift <= 3; shift++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                json_t *value = NULL;

                memset(text, 0, sizeof(text));
                memset(text, '"', shift);
                for (size_t i = shift; i + 3 < sizeof(text) - 1; i += 3)
                        memcpy(text + i, "\xe2\x82\xac", 3);
                CHECK_INT(parse(text, strlen(text), &value, &err), -EINVAL);
                _cleanup_json_ json_t *again = json_text(error_message(&err), strlen(error_message(&err)));
                CHECK(again != NULL);
        }
}

static void test_limits(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        json_t *value = NULL;

        CHECK_INT(json_parse("[1,2]", 5, 4, 5, &value, &err), -E2BIG);
        CHECK(strstr(error_message(&err), "limit of 4"));
        CHECK_INT(json_parse("[1,2]", 5, 5, 1, &value, &err), 0);
        json_decref(value);
        value = NULL;
        CHECK_INT(json_parse("7", 1, 5, 0, &value, &err), 0); /* a scalar has depth 0 */
        json_decref(value);
        value = NULL;
        CHECK_INT(json_parse("[]", 2, 5, 0, &value, &err), -E2BIG);
        CHECK_INT(json_parse("[{\"a\":[1]}]", 11, 50, 2, &value, &err), -E2BIG);
        CHECK(strstr(error_message(&err), "2 levels at byte 6"));
        CHECK(!value);

        /* Brackets inside of strings are text. */
        CHECK_INT(json_parse("[\"[[[[\\\"[[{{\\\\\",\"]\"]", 20, 50, 1, &value, &err), 0);
        json_decref(value);
        value = NULL;

        char deep[2 * JSON_DEPTH_MAX];
        memset(deep, '[', JSON_DEPTH_MAX);
        memset(deep + JSON_DEPTH_MAX, ']', JSON_DEPTH_MAX);
        CHECK_INT(parse(deep, sizeof(deep), &value, &err), 0);
        json_decref(value);
        value = NULL;
        memset(deep, '[', JSON_DEPTH_MAX + 1);
        CHECK_INT(parse(deep, sizeof(deep), &value, &err), -E2BIG);

        size_t n = 1 << 20;
        _cleanup_free_ char *many = malloc(n);
        REQUIRE(many);
        memset(many, '[', n);
        CHECK_INT(parse(many, n, &value, &err), -E2BIG);
        CHECK(!value);
}

static void test_write_keeps_order(void) {
        static const char *const texts[] = {
                "{\"z\":1,\"a\":[true,false,null],\"m\":{\"y\":\"\xe2\x82\xac \\\"\\\\\\n\",\"b\":-5}}",
                "\"alone\"",
                "7",
                "[]",
        };

        for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
                _cleanup_json_ json_t *value = NULL;
                _cleanup_buf_ struct buf out = BUF_INIT(1000);

                REQUIRE(parse(texts[i], strlen(texts[i]), &value, NULL) == 0);
                CHECK_INT(json_write(value, &out), 0);
                CHECK_STR(out.data, texts[i]);
        }
}

static void test_write_limit(void) {
        _cleanup_json_ json_t *value = json_pack("{s:s, s:s}", "key", "a text", "more", "another text");
        _cleanup_buf_ struct buf out = BUF_INIT(20);

        CHECK_INT(buf_append_str(&out, "keep"), 0);
        CHECK_INT(json_write(value, &out), -ENOBUFS);
        CHECK_STR(out.data, "keep");
}

static void test_get(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *o = NULL;
        const char *text = "{\"s\":\"x\",\"i\":-7,\"b\":true,\"n\":null,\"whole\":30.0,\"half\":0.5,\"big\":1e17}";
        const char *s = NULL;
        int64_t i = 1;
        bool b = false;

        REQUIRE(parse(text, strlen(text), &o, &err) == 0);
        CHECK_INT(json_get_str(o, "s", &s, &err), 0);
        CHECK_STR(s, "x");
        CHECK_INT(json_get_int(o, "i", &i, &err), 0);
        CHECK_INT(i, -7);
        CHECK_INT(json_get_int(o, "whole", &i, &err), 0);
        CHECK_INT(i, 30);
        CHECK_INT(json_get_bool(o, "b", &b, &err), 0);
        CHECK(b);
        CHECK(!error_is_set(&err));

        CHECK_INT(json_get_int(o, "half", &i, &err), -EINVAL);
        CHECK_STR(error_message(&err), "\"half\" must be of type integer, not number");
        CHECK_INT(json_get_int(o, "big", &i, &err),
                  -EINVAL); /* beyond 2^53 a double says nothing about the last digit */
        CHECK_INT(json_get_int(o, "s", &i, &err), -EINVAL);
        CHECK_STR(error_message(&err), "\"s\" must be of type integer, not string");
        CHECK_INT(json_get_str(o, "i", &s, &err), -EINVAL);
        CHECK_STR(error_message(&err), "\"i\" must be of type string, not integer");
        CHECK_INT(json_get_bool(o, "i", &b, &err), -EINVAL);
        CHECK_INT(json_get_str(o, "gone", &s, &err), -EINVAL);
        CHECK_STR(error_message(&err), "\"gone\" is missing: a value of type string is required");
        CHECK_INT(json_get_bool(o, "n", &b, &err), -EINVAL);
        CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
        CHECK_INT(i, 30);
        CHECK_STR(s, "x");
}

static void test_opt(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_json_ json_t *o = json_pack("{s:n, s:i, s:s, s:b}", "n", "i", 5, "s", "t", "b", 0);
        const char *s = "default";
        int64_t i = 300;
        bool b = true;

        CHECK_INT(json_opt_str(o, "gone", &s, &err), 0);
        CHECK_INT(json_opt_str(o, "n", &s, &err), 0);
        CHECK_STR(s, "default");
        CHECK_INT(json_opt_int(o, "n", &i, &err), 0);
        CHECK_INT(i, 300);
        CHECK_INT(json_opt_bool(o, "n", &b, &err), 0);
        CHECK(b);
        CHECK_INT(json_opt_str(o, "s", &s, &err), 0);
        CHECK_STR(s, "t");
        CHECK_INT(json_opt_int(o, "i", &i, &err), 0);
        CHECK_INT(i, 5);
        CHECK_INT(json_opt_bool(o, "b", &b, &err), 0);
        CHECK(!b);
        CHECK(!error_is_set(&err));
        CHECK_INT(json_opt_int(o, "s", &i, &err), -EINVAL);
        CHECK_INT(json_opt_int(NULL, "s", &i, &err), -EINVAL);
        _cleanup_json_ json_t *array = json_array();
        CHECK_INT(json_opt_int(array, "s", &i, NULL), -EINVAL);
}

static void test_text(void) {
        _cleanup_json_ json_t *ok = json_text("caf\xc3\xa9", 5), *empty = json_text(NULL, 0);

        CHECK_STR(json_string_value(ok), "caf\xc3\xa9");
        CHECK_STR(json_string_value(empty), "");
        CHECK(!json_text("a\0b", 3));
        CHECK(!json_text("\xff", 1));
        CHECK(!json_text("caf\xc3\xa9", 4));
}

static void test_put_and_push(void) {
        _cleanup_json_ json_t *o = json_object(), *a = json_array();

        CHECK_INT(json_put(o, "k", json_integer(1)) | json_push(a, json_true()), 0);
        CHECK_INT(json_put(o, "gone", NULL), -ENOMEM);
        CHECK_INT(json_push(a, NULL), -ENOMEM);
        CHECK_INT(json_put(NULL, "k", json_string("released")), -ENOMEM);
        CHECK_INT(json_push(NULL, json_string("released")), -ENOMEM);
        CHECK_INT(json_object_size(o), 1);
        CHECK_INT(json_array_size(a), 1);
}

static void test_type_name(void) {
        static const char *const texts[][2] = {
                {"null", "null"}, {"\"\"", "string"}, {"1", "integer"},    {"1.5", "number"},
                {"[]", "array"},  {"{}", "object"},   {"true", "boolean"}, {"false", "boolean"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
                _cleanup_json_ json_t *value = NULL;
                REQUIRE(parse(texts[i][0], strlen(texts[i][0]), &value, NULL) == 0);
                CHECK_STR(json_type_name(value), texts[i][1]);
        }
        CHECK_STR(json_type_name(NULL), "nothing");
}

int main(void) {
        RUN(test_refuses);
        RUN(test_message_is_utf8);
        RUN(test_limits);
        RUN(test_write_keeps_order);
        RUN(test_write_limit);
        RUN(test_get);
        RUN(test_opt);
        RUN(test_text);
        RUN(test_put_and_push);
        RUN(test_type_name);
        return tap_done();
}
