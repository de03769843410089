/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tap.h"
#include "tools/output.h"

/* What s really takes in a message: as a member of a record, and in the text of that record, without the quotes. */
static size_t real_cost(enum text_place place, const char *s, size_t n) {
        _cleanup_buf_ struct buf clean = BUF_INIT(1u << 24), once = BUF_INIT(1u << 24), twice = BUF_INIT(1u << 24);

        if (utf8_sanitize(&clean, s, n, NULL) < 0)
                return 0;
        _cleanup_json_ json_t *value = json_text(clean.data, clean.len);
        if (!value || json_write(value, &once) < 0)
                return 0;
        if (place == TEXT_ONCE)
                return once.len - 2;
        _cleanup_json_ json_t *text = json_text(once.data, once.len);
        if (!text || json_write(text, &twice) < 0)
                return 0;
        /* The inner quotes are written as \" in the text. */
        return once.len - 2 + twice.len - 2 - 4;
}

static void test_cost_is_what_the_message_takes(void) {
        static const char *const texts[] = {
                "", "plain", "a\nb\tc\rd\be\f", "\"quoted\\\"", "\x01\x1f\x7f", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
        };

        for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
                for (int place = TEXT_ONCE; place <= TEXT_TWICE; place++)
                        CHECK_INT(text_cost(place, texts[i], strlen(texts[i])),
                                  real_cost(place, texts[i], strlen(texts[i])));
        /* NUL and invalid bytes become U+FFFD; an upper bound is enough there. */
        static const char binary[] = "\0\xff\xc3(\xe2\x82\0\x80";
        CHECK(text_cost(TEXT_TWICE, binary, sizeof(binary)) >= real_cost(TEXT_TWICE, binary, sizeof(binary)));
}

/* A fixed sequence of bytes, with all kinds among them. */
static void fill(char *s, size_t n, unsigned seed) {
        static const char *const pieces[] = {"word ", "\n",   "\xe2\x82\xac", "\"",
                                             "\\",    "\x01", "\xff",         "\xf0\x9f\x98\x80"};
        size_t i = 0;

        while (i < n) {
                seed = seed * 1103515245u + 12345u;
                const char *p = pieces[seed >> 16 & 7];
                size_t len = MIN(strlen(p), n - i);
                memcpy(s + i, p, len);
                i += len;
        }
}

static void test_fit(void) {
        char s[2000];

        for (unsigned seed = 0; seed < 50; seed++) {
                fill(s, sizeof(s), seed);
                for (size_t budget = 0; budget < 8000; budget += 97) {
                        size_t head = text_fit_head(TEXT_TWICE, s, sizeof(s), budget);
                        size_t tail = text_fit_tail(TEXT_TWICE, s, sizeof(s), budget);

                        CHECK(head <= sizeof(s) && tail <= sizeof(s));
                        CHECK(real_cost(TEXT_TWICE, s, head) <= budget);
                        CHECK(real_cost(TEXT_TWICE, s + sizeof(s) - tail, tail) <= budget);
                }
                size_t all = text_cost(TEXT_ONCE, s, sizeof(s));
                CHECK_INT(text_fit_head(TEXT_ONCE, s, sizeof(s), all), sizeof(s));
                CHECK_INT(text_fit_tail(TEXT_ONCE, s, sizeof(s), all), sizeof(s));
        }
}

static struct agent_capture capture_of(const char *head, size_t head_len, const char *tail, size_t tail_len,
                                       uint64_t total) {
        struct agent_capture c = {.head = BUF_INIT(1u << 24), .tail = BUF_INIT(1u << 24), .total = total};

        CHECK(buf_append(&c.head, head, head_len) == 0 && buf_append(&c.tail, tail, tail_len) == 0);
        c.truncated = total > head_len + tail_len;
        return c;
}

static void capture_clear(struct agent_capture *c) {
        buf_free(&c->head);
        buf_free(&c->tail);
}

static void test_small_outputs_come_whole(void) {
        _cleanup_(capture_clear) struct agent_capture empty = {0}, split = capture_of("a\xe2\x82", 3, "\xac!", 2, 5);
        _cleanup_output_ struct output a = {0}, b = {0};

        CHECK_INT(output_from_capture(&empty, 1000, &a), 0);
        CHECK(a.text.data && a.text.len == 0 && !a.cut);
        CHECK_INT(output_from_capture(&split, 1000, &b), 0);
        CHECK_STR(b.text.data, "a\xe2\x82\xac!");
        CHECK(!b.cut && b.invalid == 0);
}

static void test_the_cut_is_marked(void) {
        /* The cut tears a character on both sides. */
        _cleanup_(capture_clear) struct agent_capture c = capture_of("head\xe2\x82", 6, "\x82\xactail", 6, 1012);
        _cleanup_output_ struct output o = {0};

        CHECK_INT(output_from_capture(&c, 100000, &o), 0);
        CHECK_STR(o.text.data, "head\n[... 1004 bytes cut ...]\ntail");
        CHECK(o.cut && o.invalid == 0);
}

static void test_binary_is_counted(void) {
        _cleanup_(capture_clear) struct agent_capture c = capture_of("a\0b\xff", 4, "", 0, 4);
        _cleanup_output_ struct output o = {0};

        CHECK_INT(output_from_capture(&c, 1000, &o), 0);
        CHECK_STR(o.text.data, "a\xef\xbf\xbd"
                               "b\xef\xbf\xbd");
        CHECK_INT(o.invalid, 2);
}

static void test_too_much_for_a_message(void) {
        size_t n = 400000;
        _cleanup_free_ char *s = malloc(n);

        REQUIRE(s);
        for (unsigned seed = 0; seed < 3; seed++) {
                if (seed == 0)
                        memset(s, 1, n); /* the most expensive byte */
                else
                        fill(s, n, seed);
                _cleanup_(capture_clear) struct agent_capture c = capture_of(s, n / 3, s + n / 3, n - n / 3, n);
                _cleanup_output_ struct output o = {0};

                CHECK_INT(output_from_capture(&c, 100000, &o), 0);
                CHECK(o.cut && strstr(o.text.data, "bytes cut"));
                size_t cost = real_cost(TEXT_TWICE, o.text.data, o.text.len);
                CHECK(cost <= 100000 && cost > 90000);
        }
}

static void test_logs_keep_their_end(void) {
        _cleanup_buf_ struct buf log = BUF_INIT(1000);
        _cleanup_output_ struct output all = {0}, some = {0};

        CHECK_INT(buf_append_str(&log, "first line\nsecond line\nthird\n"), 0);
        CHECK_INT(output_from_log(&log, 1000, &all), 0);
        CHECK_STR(all.text.data, log.data);
        CHECK_INT(output_from_log(&log, 40, &some), 0);
        CHECK_STR(some.text.data, "third\n");
}

int main(void) {
        RUN(test_cost_is_what_the_message_takes);
        RUN(test_fit);
        RUN(test_small_outputs_come_whole);
        RUN(test_the_cut_is_marked);
        RUN(test_binary_is_counted);
        RUN(test_too_much_for_a_message);
        RUN(test_logs_keep_their_end);
        return tap_done();
}
