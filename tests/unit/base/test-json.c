/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"
#include "tap.h"

static int parse(const char *text, size_t n, json_t **ret, struct error *err) {
        return json_parse(text, n, 1 << 20, JSON_DEPTH_MAX, ret, err);
}

static void check_refused(const char *text, size_t n, int status, const char *what) {
        _cleanup_error_ struct error err = ERROR_INIT;
        json_t *value = NULL;

        int r = parse(text, n, &value, &err);
        if (r != status || value || err.code != ERROR_INVALID_ARGUMENT || !strstr(error_message(&err), what)) {
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
                {"[1]x", "something follows the value"},
                {"{} {}", "something follows the value"},
                {"\n\n  [1 2]", "line 3, column"},
                {"{\"a\":1,\"b\":2,\"a\":3}", "a key twice"},
                {"\"\xff\"", "UTF-8 at byte 1"},
                {"\"\xed\xa0\x80\"", "UTF-8 at byte 1"},
                {"\"\xc0\x80\"", "UTF-8 at byte 1"},
                {"\"a\nb\"", "line"},
                {"'a'", "line 1"},
                {"{a:1}", "line 1"},
                {"NaN", "line 1"},
                {"01", "line 1"},
                {"1e999", "too big"},
                {"123456789012345678901234567890", "too big"},
                {"// no\n1", "line 1"},
                {"]", "line 1"},
                {"\"\\u00\"", "line 1"},
                {"\"\\ud8", "line 1"},
                {"[\"abc", "too early"},
                {"[\"\\", "line 1"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                check_refused(bad[i].text, strlen(bad[i].text), -EINVAL, bad[i].what);
        check_refused(NULL, 0, -EINVAL, "line 1");
        check_refused("[1,\0 2]", 7, -EINVAL, "NUL at byte 3");
        check_refused("1\0", 2, -EINVAL, "NUL at byte 1");
        check_refused("\"a\0\"", 4, -EINVAL, "NUL at byte 2");
}

static void test_escapes_that_no_string_can_hold(void) {
        static const struct {
                const char *text, *what, *mended;
        } rows[] = {
                {"\"\\u0000\"", "a string holds \\u0000 at byte 1", "\"\\ufffd\""},
                {"{\"\\u0000\":1}", "a string holds \\u0000 at byte 2", "{\"\\ufffd\":1}"},
                {"\"\\ud800\"", "half a surrogate pair at byte 1", "\"\\ufffd\""},
                {"\"\\uDBFF\"", "half a surrogate pair", "\"\\ufffd\""},
                {"\"\\udc00\"", "half a surrogate pair", "\"\\ufffd\""},
                {"\"\\ud800\\u0041\"", "half a surrogate pair", "\"\\ufffd\\u0041\""},
                {"\"\\ud800x\"", "half a surrogate pair", "\"\\ufffdx\""},
                {"\"\\ud83d\\ud83d\\ude00\"", "byte 1", "\"\\ufffd\\ud83d\\ude00\""},
                {"[\"\\\\u0000\",\"\\\"\\u0000\"]", "byte 14", "[\"\\\\u0000\",\"\\\"\\ufffd\"]"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                char text[100];
                _cleanup_json_ json_t *value = NULL;

                check_refused(rows[i].text, strlen(rows[i].text), -EILSEQ, rows[i].what);
                (void) snprintf(text, sizeof(text), "%s", rows[i].text);
                CHECK_INT(json_mend_escapes(text, strlen(text)), 1);
                CHECK_STR(text, rows[i].mended);
                CHECK_INT(parse(text, strlen(text), &value, NULL), 0);
                CHECK_INT(json_mend_escapes(text, strlen(text)), 0);
        }
        char plain[] = "{\"\\ud83d\\ude00\\n\\u00e9\":[\"\\\\ud800\", \\u0000";
        CHECK_INT(json_mend_escapes(plain, strlen(plain)), 0);
}

static void test_no_message_quotes_the_text(void) {
        static const char *const bad[] = {
                "{\"a\":\"s3cret\"", "{\"a\" \"s3cret\"}", "[s3cret]",      "[\"s3cret\" 1]",
                "\"s3cret\n\"",      "\"s3cret\\x\"",      "\"\\us3cret\"", "{\"s3cret\":1,\"s3cret\":2}",
                "\"s3cret\\u0000\"", "\"s3cret\\ud800\"",  "[1] s3cret",    "\"s3cret\xff\"",
        };

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                json_t *value = NULL;

                CHECK(parse(bad[i], strlen(bad[i]), &value, &err) < 0);
                CHECK(strstr(error_message(&err), "byte"));
                CHECK(!strstr(error_message(&err), "s3c") && !strstr(error_message(&err), "near"));
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
        RUN(test_escapes_that_no_string_can_hold);
        RUN(test_no_message_quotes_the_text);
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
