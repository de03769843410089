/* SPDX-License-Identifier: Apache-2.0 */
#include "base/str.h"
#include "tap.h"

static bool valid(const char *s) {
        return utf8_valid(s, strlen(s));
}

static void test_utf8_valid(void) {
        static const char *const good[] = {
                "",
                "plain ASCII that is longer than one word",
                "\x7f",
                "\xc2\x80",
                "\xdf\xbf",
                "\xe0\xa0\x80",
                "\xed\x9f\xbf",
                "\xee\x80\x80",
                "\xef\xbf\xbf",
                "\xf0\x90\x80\x80",
                "\xf4\x8f\xbf\xbf",
                "1234567\xe2\x82\xac_234567\xf0\x9f\x98\x80",
        };
        static const char *const bad[] = {
                "\x80",
                "\xbf",
                "\xc0\x80", /* overlong NUL */
                "\xc1\xbf",
                "\xe0\x80\x80", /* overlong */
                "\xe0\x9f\xbf",
                "\xed\xa0\x80", /* a surrogate */
                "\xed\xbf\xbf",
                "\xf0\x80\x80\x80", /* overlong */
                "\xf0\x8f\xbf\xbf",
                "\xf4\x90\x80\x80", /* U+110000 */
                "\xf5\x80\x80\x80",
                "\xfe",
                "\xff",
                "\xc3", /* cut off */
                "\xe2\x82",
                "\xf0\x9f\x98",
                "\xc3(",
                "\xe2(\xa1",
        };

        for (size_t i = 0; i < ARRAY_SIZE(good); i++)
                if (!valid(good[i]))
                        tap_fail(__FILE__, __LINE__, good[i]);
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                if (valid(bad[i])) {
                        tap_fail(__FILE__, __LINE__, "invalid text passed");
                        printf("#   number %zu\n", i);
                }
        CHECK_INT(utf8_valid_prefix("abc\xe2\x82\xac\xffz", 8), 6);
        CHECK_INT(utf8_valid_prefix("12345678\xff", 9), 8);
        CHECK(utf8_valid("a\0b", 3)); /* NUL is a character */
}

/* Every code point there is goes through; everything between them does not. */
static void test_utf8_all_code_points(void) {
        size_t passed = 0;

        for (uint32_t c = 0; c < 0x120000; c++) {
                uint8_t s[4];
                size_t n;

                if (c < 0x80) {
                        s[0] = (uint8_t) c;
                        n = 1;
                } else if (c < 0x800) {
                        s[0] = (uint8_t) (0xc0 | c >> 6);
                        n = 2;
                } else if (c < 0x10000) {
                        s[0] = (uint8_t) (0xe0 | c >> 12);
                        n = 3;
                } else {
                        s[0] = (uint8_t) (0xf0 | c >> 18);
                        n = 4;
                }
                for (size_t i = 1; i < n; i++)
                        s[i] = (uint8_t) (0x80 | (c >> (6 * (n - 1 - i)) & 0x3f));
                bool want = c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
                if (utf8_valid((const char *) s, n) != want) {
                        tap_fail(__FILE__, __LINE__, "code point");
                        printf("#   U+%04X\n", (unsigned) c);
                        return;
                }
                passed += want;
                if (n > 1 && utf8_valid((const char *) s, n - 1))
                        tap_fail(__FILE__, __LINE__, "cut code point");
        }
        CHECK_INT(passed, 0x110000 - 0x800);
}

static void check_sanitized(const char *in, size_t n, const char *want, size_t want_replaced) {
        _cleanup_buf_ struct buf out = BUF_INIT(1000);
        size_t replaced = 99;

        CHECK_INT(utf8_sanitize(&out, in, n, &replaced), 0);
        CHECK_STR(out.data ? out.data : "", want);
        CHECK_INT(replaced, want_replaced);
}

#define FFFD "\xef\xbf\xbd"

static void test_utf8_sanitize(void) {
        check_sanitized("", 0, "", 0);
        check_sanitized("clean \xe2\x82\xac", 9, "clean \xe2\x82\xac", 0);
        check_sanitized("a\0b", 3, "a" FFFD "b", 1);
        check_sanitized("\0", 1, FFFD, 1);
        check_sanitized("x\xffy", 3, "x" FFFD "y", 1);
        /* The examples of The Unicode Standard 15, tables 3-8 to 3-11. */
        check_sanitized("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", 9, FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A", 8);
        check_sanitized("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", 9, FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A", 8);
        check_sanitized("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", 9, FFFD FFFD FFFD FFFD FFFD "A" FFFD FFFD "B", 7);
        check_sanitized("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", 9, FFFD FFFD FFFD FFFD "A", 4);

        struct buf small = BUF_INIT(4);
        CHECK_INT(buf_append_str(&small, "k"), 0);
        CHECK_INT(utf8_sanitize(&small, "a\xff", 2, NULL), -ENOBUFS);
        CHECK_STR(small.data, "k"); /* all or nothing */
        buf_free(&small);
}

/* A guest chooses these bytes: the work must grow with their number, not with its square (hours, for this many). */
static void test_utf8_sanitize_is_linear(void) {
        const size_t n = 8u * 1024u * 1024u;
        _cleanup_free_ char *zeros = calloc(n, 1);
        _cleanup_buf_ struct buf out = BUF_INIT(3 * n);
        size_t replaced = 0;

        REQUIRE(zeros);
        CHECK_INT(utf8_sanitize(&out, zeros, n, &replaced), 0);
        CHECK_INT(replaced, n);
        CHECK_INT(out.len, 3 * n);
}

static void test_utf8_floor(void) {
        const char *s = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";
        static const size_t want[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11};

        for (size_t n = 0; n < ARRAY_SIZE(want); n++)
                CHECK_INT(utf8_floor(s, n), want[n]);
}

static void check_base64(const char *plain, const char *coded) {
        _cleanup_buf_ struct buf out = BUF_INIT(1000), back = BUF_INIT(1000);

        CHECK_INT(base64_encode(&out, plain, strlen(plain)), 0);
        CHECK_STR(out.data, coded);
        CHECK_INT(base64_decode(&back, coded, strlen(coded)), 0);
        CHECK_STR(back.data, plain);
}

static void test_base64_vectors(void) {
        /* RFC 4648, section 10. */
        check_base64("", "");
        check_base64("f", "Zg==");
        check_base64("fo", "Zm8=");
        check_base64("foo", "Zm9v");
        check_base64("foob", "Zm9vYg==");
        check_base64("fooba", "Zm9vYmE=");
        check_base64("foobar", "Zm9vYmFy");
}

static void test_base64_all_bytes(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(1000), back = BUF_INIT(1000);
        uint8_t all[256];

        for (size_t i = 0; i < sizeof(all); i++)
                all[i] = (uint8_t) i;
        CHECK_INT(base64_encode(&out, all, sizeof(all)), 0);
        CHECK_INT(base64_decode(&back, out.data, out.len), 0);
        CHECK_INT(back.len, 256);
        CHECK(memcmp(back.data, all, 256) == 0);
        CHECK(strchr(out.data, '+') && strchr(out.data, '/'));
}

static void test_base64_refuses(void) {
        static const char *const bad[] = {
                "Z",     "Zg",   "Zg=",  "Zg===", "=",    "====", "Z===", "Zg==Zg==", "Zm9v\n",
                "Zm 9v", "Zm9_", "Zm9-", "Zh==",  "Zm9=", "Zg=v", "=Zg=", "Zm9v====",
        };
        _cleanup_buf_ struct buf out = BUF_INIT(1000);

        CHECK_INT(buf_append_str(&out, "keep"), 0);
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                if (base64_decode(&out, bad[i], strlen(bad[i])) != -EINVAL)
                        tap_fail(__FILE__, __LINE__, bad[i]);
        CHECK_STR(out.data, "keep");

        struct buf small = BUF_INIT(5);
        CHECK_INT(base64_decode(&small, "Zm9vYmFy", 8), -ENOBUFS);
        CHECK_INT(base64_encode(&small, "foobar", 6), -ENOBUFS);
        CHECK_INT(base64_encode(&small, "foobar", SIZE_MAX), -ENOBUFS);
        CHECK_INT(small.len, 0);
        buf_free(&small);
}

int main(void) {
        RUN(test_utf8_valid);
        RUN(test_utf8_all_code_points);
        RUN(test_utf8_sanitize);
        RUN(test_utf8_sanitize_is_linear);
        RUN(test_utf8_floor);
        RUN(test_base64_vectors);
        RUN(test_base64_all_bytes);
        RUN(test_base64_refuses);
        return tap_done();
}
