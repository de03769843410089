/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"
#include "tap.h"

static void test_empty(void) {
        _cleanup_buf_ struct buf b = BUF_INIT(10);

        CHECK(b.data == NULL);
        CHECK_INT(buf_append_str(&b, ""), 0);
        CHECK_STR(b.data, "");
        buf_clear(&b);
        buf_consume(&b, 5);
        CHECK_INT(b.len, 0);
}

static void test_append(void) {
        _cleanup_buf_ struct buf b = BUF_INIT(1 << 20);

        CHECK_INT(buf_append(&b, "a\0b", 3), 0);
        CHECK_INT(buf_append_byte(&b, 0xff), 0);
        CHECK_INT(buf_append_str(&b, "tail"), 0);
        CHECK_INT(b.len, 8);
        CHECK(memcmp(b.data, "a\0b\xfftail", 9) == 0);
        for (int i = 0; i < 100000; i++)
                REQUIRE(buf_append_byte(&b, (uint8_t) i) == 0);
        CHECK_INT(b.len, 100008);
        CHECK_INT((uint8_t) b.data[8 + 777], 777 % 256);
        CHECK_INT(b.data[b.len], 0);
}

static void test_limit_changes_nothing(void) {
        _cleanup_buf_ struct buf b = BUF_INIT(5);

        CHECK_INT(buf_append_str(&b, "abc"), 0);
        CHECK_INT(buf_append_str(&b, "def"), -ENOBUFS);
        CHECK_INT(buf_printf(&b, "%d", 123), -ENOBUFS);
        CHECK_STR(b.data, "abc");
        CHECK_INT(b.len, 3);
        CHECK_INT(buf_append_str(&b, "de"), 0);
        CHECK_STR(b.data, "abcde");
        CHECK_INT(buf_append_byte(&b, 'f'), -ENOBUFS);
        CHECK_INT(buf_reserve(&b, SIZE_MAX), -ENOBUFS);
        CHECK_INT(buf_append(&b, NULL, 0), 0);

        struct buf none = BUF_INIT(0);
        CHECK_INT(buf_append_byte(&none, 'x'), -ENOBUFS);
        CHECK(none.data == NULL);
}

static void test_huge_reserve_fails_cleanly(void) {
        _cleanup_buf_ struct buf b = BUF_INIT(SIZE_MAX);

        CHECK_INT(buf_append_str(&b, "x"), 0);
        CHECK_INT(buf_reserve(&b, SIZE_MAX - 1), -ENOMEM);
        CHECK_STR(b.data, "x");
}

static void test_printf(void) {
        _cleanup_buf_ struct buf b = BUF_INIT(4096);

        CHECK_INT(buf_printf(&b, "%s-%d", "n", 7), 0);
        CHECK_STR(b.data, "n-7");
        CHECK_INT(buf_printf(&b, "%1000s|", "x"), 0); /* longer than what was allocated */
        CHECK_INT(b.len, 3 + 1001);
        CHECK_STR(b.data + b.len - 2, "x|");
        CHECK_INT(buf_printf(&b, "%s", ""), 0);
        CHECK_INT(b.len, 1004);
}

static void test_consume_truncate(void) {
        _cleanup_buf_ struct buf b = BUF_INIT(100);

        CHECK_INT(buf_append_str(&b, "0123456789"), 0);
        buf_consume(&b, 4);
        CHECK_STR(b.data, "456789");
        buf_consume(&b, 0);
        CHECK_INT(b.len, 6);
        buf_truncate(&b, 2);
        CHECK_STR(b.data, "45");
        buf_truncate(&b, 50);
        CHECK_INT(b.len, 2);
        buf_consume(&b, 2);
        CHECK_STR(b.data, "");
}

static void test_steal(void) {
        _cleanup_buf_ struct buf b = BUF_INIT(100);
        _cleanup_free_ char *empty = buf_steal(&b);

        CHECK_STR(empty, "");
        CHECK_INT(buf_append_str(&b, "mine"), 0);
        _cleanup_free_ char *s = buf_steal(&b);
        CHECK_STR(s, "mine");
        CHECK(b.data == NULL && b.len == 0 && b.cap == 0);
        CHECK_INT(buf_append_str(&b, "again"), 0); /* the limit stays, the buffer can go on */
        CHECK_STR(b.data, "again");
}

int main(void) {
        RUN(test_empty);
        RUN(test_append);
        RUN(test_limit_changes_nothing);
        RUN(test_huge_reserve_fails_cleanly);
        RUN(test_printf);
        RUN(test_consume_truncate);
        RUN(test_steal);
        return tap_done();
}
