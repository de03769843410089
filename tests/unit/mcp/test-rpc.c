/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "mcp/rpc.h"
#include "tap.h"

static int parse(const char *text, struct rpc_message *m, int *code) {
        char copy[4096];
        _cleanup_error_ struct error err = ERROR_INIT;

        *code = 0;
        (void) snprintf(copy, sizeof(copy), "%s", text);
        int r = rpc_parse(copy, strlen(copy), m, code, &err);
        CHECK((r < 0) == (err.message != NULL));
        return r;
}

static void test_ids_keep_their_text(void) {
        static const char *const ids[] = {
                "0",
                "1",
                "-7",
                "-0",
                "9007199254740993",
                "9223372036854775807",
                "18446744073709551616",
                "123456789012345678901234567890123456789012345678901234567890",
                "\"\"",
                "\"a\"",
                "\"1\"",
                "\"\\u00e9\\n\\\"id\\\":5\"",
                "\"\xc3\xa9\"",
                "\"a/b\"",
                "\"a\\/b\"",
        };

        for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
                char text[256];
                int code;
                _cleanup_rpc_message_ struct rpc_message m = {0};

                (void) snprintf(text, sizeof(text),
                                "{\"params\":{\"id\":3,\"x\":\"\\\"id\\\":4\"}, \"jsonrpc\":\"2.0\" , \"id\" :\t%s ,"
                                "\"method\":\"m\"}",
                                ids[i]);
                CHECK_INT(parse(text, &m, &code), 0);
                CHECK_STR(m.id, ids[i]);
                CHECK(m.kind == RPC_REQUEST);
                size_t len = 0;
                _cleanup_free_ char *out = rpc_error_text(m.id, -1, "x", NULL, &len);
                CHECK(out && strstr(out, ids[i]));
        }
}

static void test_an_escaped_key_is_an_id_too(void) {
        int code;
        _cleanup_rpc_message_ struct rpc_message m = {0};

        CHECK_INT(parse("{\"jsonrpc\":\"2.0\",\"\\u0069d\":12,\"method\":\"m\"}", &m, &code), 0);
        CHECK_STR(m.id, "12");
}

static void test_what_is_wrong(void) {
        static const struct {
                const char *text;
                int code;
                const char *id; /* of the answer */
        } rows[] = {
                {"{", RPC_PARSE_ERROR, NULL},
                {"nonsense", RPC_PARSE_ERROR, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\"} x", RPC_PARSE_ERROR, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":1,\"id\":2,\"method\":\"m\"}", RPC_PARSE_ERROR, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\\ud800\"}", RPC_INVALID_PARAMS, "1"},
                {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\\u0000\"}", RPC_INVALID_PARAMS, "1"},
                {"{\"params\":[\"\\u0000\"],\"jsonrpc\":\"2.0\",\"id\":\"\\u00e9\",\"method\":\"m\"}",
                 RPC_INVALID_PARAMS, "\"\\u00e9\""},
                /* Half of such a message is none, nor is one whose id cannot go back. */
                {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\\u0000\"", RPC_PARSE_ERROR, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":1,\"id\":2,\"method\":\"\\u0000\"}", RPC_PARSE_ERROR, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":\"\\u0000\",\"method\":\"m\"}", RPC_PARSE_ERROR, NULL},
                {"{\"jsonrpc\":\"2.0\",\"\\u0069d\":\"\\u0000\",\"method\":\"m\"}", RPC_PARSE_ERROR, NULL},
                {"{\"jsonrpc\":\"2.0\",\"method\":\"\\u0000\"}", RPC_PARSE_ERROR, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":1.5,\"method\":\"\\u0000\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":7,\"x\":\"\\ud800\"}", RPC_INVALID_REQUEST, "7"},
                {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}", RPC_PARSE_ERROR, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":00000000000000000000001,\"method\":\"m\"}", RPC_PARSE_ERROR, NULL},
                {"1", RPC_INVALID_REQUEST, NULL},
                {"\"x\"", RPC_INVALID_REQUEST, NULL},
                {"null", RPC_INVALID_REQUEST, NULL},
                {"{}", RPC_INVALID_REQUEST, NULL},
                {"{\"id\":1,\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":2.0,\"id\":1,\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":1.5,\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":1.0,\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":1e3,\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":true,\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":[1],\"method\":\"m\"}", RPC_INVALID_REQUEST, NULL},
                {"{\"jsonrpc\":\"2.0\",\"id\":5}", RPC_INVALID_REQUEST, "5"},
                {"{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":7}", RPC_INVALID_REQUEST, "5"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                int code;
                _cleanup_rpc_message_ struct rpc_message m = {0};

                CHECK(parse(rows[i].text, &m, &code) < 0);
                CHECK_INT(code, rows[i].code);
                CHECK_STR(m.id, rows[i].id);
        }
}

static void test_kinds(void) {
        static const struct {
                const char *text;
                enum rpc_kind kind;
        } rows[] = {
                {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\"}", RPC_REQUEST},
                {"{\"jsonrpc\":\"2.0\",\"method\":\"m\"}", RPC_NOTIFICATION},
                {"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}", RPC_RESPONSE},
                {"{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{}}", RPC_RESPONSE},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                int code;
                _cleanup_rpc_message_ struct rpc_message m = {0};

                CHECK_INT(parse(rows[i].text, &m, &code), 0);
                CHECK_INT(m.kind, rows[i].kind);
        }
}

static void test_huge_integers_become_reals(void) {
        int code;
        _cleanup_rpc_message_ struct rpc_message m = {0};

        CHECK_INT(parse("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":{"
                        "\"a\":12345678901234567890,\"b\":-99999999999999999999999,\"c\":123456789012345678,"
                        "\"d\":\"12345678901234567890\"}}",
                        &m, &code),
                  0);
        double a = json_number_value(json_object_get(m.params, "a"));
        double b = json_number_value(json_object_get(m.params, "b"));
        CHECK(json_is_real(json_object_get(m.params, "a")) && a > 1.234e19 && a < 1.235e19);
        CHECK(json_is_real(json_object_get(m.params, "b")) && b < -9.9e22 && b > -1.1e23);
        CHECK_INT(json_integer_value(json_object_get(m.params, "c")), 123456789012345678);
        CHECK_STR(json_string_value(json_object_get(m.params, "d")), "12345678901234567890");

        char digits[2048];
        memset(digits, '7', 1000);
        digits[1000] = 0;
        char text[4096];
        _cleanup_rpc_message_ struct rpc_message huge = {0};
        (void) snprintf(text, sizeof(text), "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":[%s]}", digits);
        CHECK_INT(parse(text, &huge, &code), 0);
}

static void test_a_long_id_is_refused(void) {
        char text[RPC_ID_MAX + 100], id[RPC_ID_MAX + 2];
        int code;
        _cleanup_rpc_message_ struct rpc_message m = {0};

        memset(id, '1', RPC_ID_MAX + 1);
        id[RPC_ID_MAX + 1] = 0;
        (void) snprintf(text, sizeof(text), "{\"jsonrpc\":\"2.0\",\"id\":%s,\"method\":\"m\"}", id);
        CHECK(parse(text, &m, &code) < 0);
        CHECK_INT(code, RPC_INVALID_REQUEST);
        CHECK(m.id == NULL);
}

static void test_split(void) {
        static const struct {
                const char *text;
                int n;
        } rows[] = {
                {"[]", 0},          {" [ ] ", 0},
                {"[1]", 1},         {"[{\"a\":[1,2]},{\"b\":\"],[\"}]", 2},
                {"[1,2,3]", 3},     {"[1,2,3,4,5]", -E2BIG},
                {"[", -EINVAL},     {"[1", -EINVAL},
                {"[1]]", -EINVAL},  {"{}", -EINVAL},
                {"[\"a]", -EINVAL}, {"[1,]", 2},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                struct rpc_span spans[4];
                CHECK_INT(rpc_split(rows[i].text, strlen(rows[i].text), spans, ARRAY_SIZE(spans)), rows[i].n);
        }
        struct rpc_span spans[2];
        const char *text = "[ {\"a\":1} ,2 ]";
        CHECK_INT(rpc_split(text, strlen(text), spans, 2), 2);
        CHECK(strncmp(text + spans[0].start, " {\"a\":1} ", spans[0].len) == 0);
        CHECK(rpc_is_batch(" [1]", 4) && !rpc_is_batch("{}", 2));
}

static void test_texts(void) {
        size_t len;
        _cleanup_free_ char *error = rpc_error_text(NULL, RPC_PARSE_ERROR, "no \"good\"", NULL, &len);
        CHECK_STR(error, "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32700,\"message\":\"no \\\"good\\\"\"}}");
        CHECK_INT(len, strlen(error));

        _cleanup_json_ json_t *result = json_pack("{s:i}", "x", 1);
        _cleanup_free_ char *text = NULL;
        CHECK_INT(rpc_result_text("\"q\"", result, &text, &len), 0);
        CHECK_STR(text, "{\"jsonrpc\":\"2.0\",\"id\":\"q\",\"result\":{\"x\":1}}");
}

static void test_a_result_over_the_limit(void) {
        _cleanup_free_ char *big = malloc(RPC_MESSAGE_MAX + 1), *text = NULL;
        size_t len;

        REQUIRE(big);
        memset(big, 'x', RPC_MESSAGE_MAX);
        big[RPC_MESSAGE_MAX] = 0;
        _cleanup_json_ json_t *result = json_pack("{s:s}", "x", big);
        CHECK_INT(rpc_result_text("1", result, &text, &len), -ENOBUFS);
}

int main(void) {
        RUN(test_ids_keep_their_text);
        RUN(test_an_escaped_key_is_an_id_too);
        RUN(test_what_is_wrong);
        RUN(test_kinds);
        RUN(test_huge_integers_become_reals);
        RUN(test_a_long_id_is_refused);
        RUN(test_split);
        RUN(test_texts);
        RUN(test_a_result_over_the_limit);
        return tap_done();
}
