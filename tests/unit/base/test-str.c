/* SPDX-License-Identifier: Apache-2.0 */
#include "base/str.h"
#include "tap.h"

static void test_compare(void) {
        CHECK(str_eq("a", "a"));
        CHECK(!str_eq("a", "b"));
        CHECK(str_eq(NULL, NULL));
        CHECK(!str_eq("a", NULL) && !str_eq(NULL, "a"));
        CHECK(str_starts_with("abc", "ab") && str_starts_with("abc", "") && !str_starts_with("a", "ab"));
        CHECK(str_empty(NULL) && str_empty("") && !str_empty("x"));
}

static void test_replace(void) {
        char *s = NULL;

        CHECK_INT(str_replace(&s, "one"), 0);
        CHECK_STR(s, "one");
        CHECK_INT(str_replace(&s, s + 1), 0); /* a part of the old value */
        CHECK_STR(s, "ne");
        CHECK_INT(str_replace(&s, NULL), 0);
        CHECK(s == NULL);
        _cleanup_free_ char *p = str_printf("%s/%03d", "x", 7);
        CHECK_STR(p, "x/007");
}

static void test_strv(void) {
        _cleanup_strv_ struct strv v = {0};

        CHECK_INT(strv_add(&v, "qemu-img"), 0);
        CHECK_INT(strv_addf(&v, "size=%d", 5), 0);
        CHECK_INT(v.n, 2);
        CHECK_STR(v.v[0], "qemu-img");
        CHECK_STR(v.v[1], "size=5");
        CHECK(v.v[2] == NULL);
        strv_free(&v);
        CHECK(v.v == NULL && v.n == 0);
}

static void test_parse_u64(void) {
        uint64_t v = 42;

        CHECK_INT(parse_u64("0", &v), 0);
        CHECK_INT(v, 0);
        CHECK_INT(parse_u64("18446744073709551615", &v), 0);
        CHECK(v == UINT64_MAX);
        CHECK_INT(parse_u64("18446744073709551616", &v), -ERANGE);
        CHECK_INT(parse_u64("99999999999999999999", &v), -ERANGE);
        CHECK_INT(parse_u64("99999999999999999999x", &v), -EINVAL);
        static const char *const bad[] = {"", " 1", "1 ", "+1", "-1", "0x1", "1.0", "1e3", "\xd9\xa1"};
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                CHECK_INT(parse_u64(bad[i], &v), -EINVAL);
        CHECK_INT(parse_u64(NULL, &v), -EINVAL);
        CHECK(v == UINT64_MAX);
}

static void test_uuid(void) {
        char a[UUID_LEN + 1], b[UUID_LEN + 1];

        CHECK_INT(uuid_new(a), 0);
        CHECK_INT(uuid_new(b), 0);
        CHECK(strcmp(a, b) != 0);
        CHECK_INT(strlen(a), UUID_LEN);
        CHECK(uuid_valid(a));
        CHECK_INT(a[14], '4');
        CHECK(strchr("89ab", a[19]) != NULL);
        CHECK(uuid_valid("F47AC10B-58CC-4372-A567-0E02B2C3D479"));
        CHECK(!uuid_valid("f47ac10b-58cc-4372-a567-0e02b2c3d47"));
        CHECK(!uuid_valid("f47ac10b-58cc-4372-a567-0e02b2c3d4799"));
        CHECK(!uuid_valid("f47ac10b-58cc-4372-a567-0e02b2c3d47g"));
        CHECK(!uuid_valid("f47ac10b058cc-4372-a567-0e02b2c3d479"));
        CHECK(!uuid_valid("") && !uuid_valid(NULL));
}

static void test_random_hex(void) {
        char s[2 * 100 + 1];

        CHECK_INT(random_hex(s, 100), 0);
        CHECK_INT(strlen(s), 200);
        CHECK_INT(strspn(s, "0123456789abcdef"), 200);
        CHECK_INT(random_hex(s, 0), 0);
        CHECK_STR(s, "");
}

static void test_name_valid(void) {
        CHECK(name_valid("web-1", 128, "._-"));
        CHECK(name_valid("..", 128, "._-")); /* characters only: what a name means is for the caller */
        CHECK(!name_valid("a/b", 128, "._-"));
        CHECK(!name_valid("a b", 128, "._-"));
        CHECK(!name_valid("\xc3\xa9", 128, "._-"));
        CHECK(!name_valid("", 128, "._-") && !name_valid(NULL, 128, "._-"));
        CHECK(name_valid("abc", 3, NULL) && !name_valid("abcd", 3, NULL) && !name_valid("a-", 3, NULL));
}

static void test_distance(void) {
        CHECK_INT(str_distance("kitten", "sitting", 10), 3);
        CHECK_INT(str_distance("", "abc", 10), 3);
        CHECK_INT(str_distance("abc", "", 10), 3);
        CHECK_INT(str_distance("", "", 0), 0);
        CHECK_INT(str_distance("same", "same", 0), 0);
        CHECK_INT(str_distance("flaw", "lawn", SIZE_MAX), 2);
        CHECK_INT(str_distance("kitten", "sitting", 2), 3);
        CHECK_INT(str_distance("abc", "xyz", 1), 2);
        CHECK_INT(str_distance("a", "abcdefgh", 3), 4);

        char long_a[4000], long_b[4000];
        memset(long_a, 'a', sizeof(long_a) - 1);
        memset(long_b, 'a', sizeof(long_b) - 1);
        long_a[sizeof(long_a) - 1] = long_b[sizeof(long_b) - 1] = 0;
        CHECK_INT(str_distance(long_a, long_b, 5), 0);
        long_b[0] = 'b';
        CHECK_INT(str_distance(long_a, long_b, 5), 6);
}

static void test_nearest(void) {
        static const char *const tools[] = {"exec", "file_read", "file_write", "workspace_create", "workspace_info"};

        CHECK_STR(str_nearest("file_raed", tools, ARRAY_SIZE(tools)), "file_read");
        CHECK_STR(str_nearest("workspace_creat", tools, ARRAY_SIZE(tools)), "workspace_create");
        CHECK_STR(str_nearest("exec", tools, ARRAY_SIZE(tools)), "exec");
        CHECK_STR(str_nearest("exce", tools, ARRAY_SIZE(tools)), NULL); /* two changes of four characters: too far */
        CHECK_STR(str_nearest("file_", tools, ARRAY_SIZE(tools)), NULL);
        CHECK_STR(str_nearest("", tools, ARRAY_SIZE(tools)), NULL);
        CHECK_STR(str_nearest("exec", tools, 0), NULL);
}

static void test_time_text(void) {
        char s[TIME_TEXT_LEN + 1];

        time_text(0, s);
        CHECK_STR(s, "1970-01-01T00:00:00.000Z");
        time_text(1767323045678, s);
        CHECK_STR(s, "2026-01-02T03:04:05.678Z");
        time_text(-5, s);
        CHECK_STR(s, "1970-01-01T00:00:00.000Z");
        time_text(INT64_MAX, s);
        CHECK_STR(s, "9999-12-31T23:59:59.999Z");
}

int main(void) {
        RUN(test_compare);
        RUN(test_replace);
        RUN(test_strv);
        RUN(test_parse_u64);
        RUN(test_uuid);
        RUN(test_random_hex);
        RUN(test_name_valid);
        RUN(test_distance);
        RUN(test_nearest);
        RUN(test_time_text);
        return tap_done();
}
