/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "tap.h"
#include "tools/ansi.h"

#define TEXT(s) s, sizeof(s) - 1

static void check_strip(const char *given, size_t n, const char *want) {
        _cleanup_buf_ struct buf out = BUF_INIT(1u << 20);

        CHECK_INT(ansi_strip(&out, given, n), 0);
        CHECK_STR(out.len > 0 ? out.data : "", want);
        CHECK_INT(out.len, strlen(want));
}

static void test_sequences_go(void) {
        check_strip(TEXT("\x1b[1;31mred\x1b[0m"), "red");
        check_strip(TEXT("\x1b[?2004h\x1b[2J\x1b[H\x1b[38:2::1:2:3mx\x1b[!p\x1b[4 q"), "x");
        check_strip(TEXT("\x1b]0;title\aa\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\"), "alink");
        check_strip(TEXT("a\x1bPq#0;2;0;0;0\n#0~~\x1b\\b\x1b^pm\x1b\\c\x1b_apc\x1b\\d\x1bXsos\x1b\\e"), "abcde");
        check_strip(TEXT("\x1b(B\x1b)0x\x1b#8\x1b%G"), "x");
        check_strip(TEXT("\x1b"
                         "7\x1b=\x1b>\x1bM\x1b"
                         "cx\x1b\\"),
                    "x");
        check_strip(TEXT(""), "");
}

static void test_all_else_stays(void) {
        check_strip(TEXT("10%\r20%\b\t\a\n"), "10%\r20%\b\t\a\n");
        check_strip(TEXT("[1m ]0; \xe2\x82\xac"), "[1m ]0; \xe2\x82\xac");
        /* C1 characters: by accident in text that was encoded twice. */
        check_strip(TEXT("\xc2\x9b"
                         "1m \xc2\x9d"
                         "0;t \x9b"
                         "1m"),
                    "\xc2\x9b"
                    "1m \xc2\x9d"
                    "0;t \x9b"
                    "1m");
        /* NUL bytes do not end the text. */
        _cleanup_buf_ struct buf out = BUF_INIT(100);
        CHECK_INT(ansi_strip(&out, TEXT("a\0\x1b[mb")), 0);
        CHECK(out.len == 3 && memcmp(out.data, "a\0b", 3) == 0);
}

static void test_broken_sequences_take_no_text(void) {
        check_strip(TEXT("\x1b[12\nnext"), "\nnext");
        check_strip(TEXT("\x1b[1\x1b[2mx"), "x");
        check_strip(TEXT("\x1b\nx"), "\nx");
        check_strip(TEXT("\x1b\xe2\x82\xac"), "\xe2\x82\xac");
        check_strip(TEXT("\x1b]0;title\x1b[1mx"), "x");
        check_strip(TEXT("\x1b]0;title\x18x\x1bPq\x1ay"), "xy");
        /* A BEL ends an OSC only. */
        check_strip(TEXT("\x1bPq\a1\x1b\\x"), "x");
}

static void test_a_sequence_that_the_end_cuts(void) {
        static const char *const ends[] = {"\x1b",         "\x1b[",   "\x1b[1;3", "\x1b]0;tit",
                                           "\x1b]0;t\x1b", "\x1bPq#", "\x1b("};

        for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
                char text[64];
                size_t n = (size_t) snprintf(text, sizeof(text), "text%s", ends[i]);

                check_strip(text, n, "text");
                CHECK_INT(ansi_unfinished(text, n), strlen(ends[i]));
        }
        CHECK_INT(ansi_unfinished(TEXT("text")), 0);
        CHECK_INT(ansi_unfinished(TEXT("\x1b[1mtext\x1b]0;t\a")), 0);
        CHECK_INT(ansi_unfinished(TEXT("\x1b[1mtext\x1b]0;t\a\x1b[")), 2);
        CHECK_INT(ansi_unfinished(TEXT("")), 0);
}

/* However the text is divided, and what is unfinished left for later, the result is the same. */
static void test_pieces(void) {
        static const char text[] = "a\x1b[1;31mb\x1b]0;title\x1b\\c\x1bPq\x1b\\d\x1b(Be\x1b"
                                   "7f\n";
        const size_t n = sizeof(text) - 1;

        for (size_t step = 1; step <= n; step++) {
                _cleanup_buf_ struct buf out = BUF_INIT(1000);
                size_t from = 0;

                for (size_t to = MIN(step, n); from < n; to = MIN(to + step, n)) {
                        size_t used = to - from - (to < n ? ansi_unfinished(text + from, to - from) : 0);
                        CHECK_INT(ansi_strip(&out, text + from, used), 0);
                        from += used;
                }
                CHECK_STR(out.data, "abcdef\n");
        }
}

static void test_a_stray_introducer_does_not_swallow_the_output(void) {
        static const char *const introducers[] = {"\x1b]", "\x1bP", "\x1b["};
        static char text[3 * ANSI_SEQUENCE_MAX];

        for (size_t i = 0; i < ARRAY_SIZE(introducers); i++) {
                _cleanup_buf_ struct buf out = BUF_INIT(sizeof(text));

                memset(text, '0', sizeof(text));
                memcpy(text, introducers[i], 2);
                CHECK_INT(ansi_strip(&out, text, sizeof(text)), 0);
                CHECK_INT(out.len, sizeof(text) - 2);
                CHECK_INT(ansi_unfinished(text, sizeof(text)), 0);
                CHECK_INT(ansi_unfinished(text, ANSI_SEQUENCE_MAX - 1), ANSI_SEQUENCE_MAX - 1);
        }
}

int main(void) {
        RUN(test_sequences_go);
        RUN(test_all_else_stays);
        RUN(test_broken_sequences_take_no_text);
        RUN(test_a_sequence_that_the_end_cuts);
        RUN(test_pieces);
        RUN(test_a_stray_introducer_does_not_swallow_the_output);
        return tap_done();
}
