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

static struct agent_output output_of(const char *head, size_t head_len, const char *tail, size_t tail_len, uint64_t cut,
                                     uint64_t total) {
        struct agent_output c = {.head = BUF_INIT(1u << 24), .tail = BUF_INIT(1u << 24), .cut = cut, .total = total};

        CHECK(buf_append(&c.head, head, head_len) == 0 && buf_append(&c.tail, tail, tail_len) == 0);
        return c;
}

static void source_clear(struct agent_output *c) {
        buf_free(&c->head);
        buf_free(&c->tail);
}
#define _cleanup_source_ _cleanup_(source_clear)

static const struct output_form plain = {.budget = 100000}, open_end = {.budget = 100000, .open = true};

static void test_small_outputs_come_whole(void) {
        _cleanup_source_ struct agent_output empty = {0}, text = output_of("a\xe2\x82\xac!", 5, "", 0, 0, 5);
        _cleanup_output_ struct output a = {0}, b = {0};

        CHECK_INT(output_whole(&empty, &plain, &a), 0);
        CHECK(a.text.data && a.text.len == 0 && !a.cut && a.next == 0);
        CHECK_INT(output_whole(&text, &plain, &b), 0);
        CHECK_STR(b.text.data, "a\xe2\x82\xac!");
        CHECK(!b.cut && b.invalid == 0 && b.next == 5);
}

static void test_the_cut_is_marked(void) {
        /* The cut tears a character on both sides. */
        _cleanup_source_ struct agent_output c = output_of("head\xe2\x82", 6, "\x82\xactail", 6, 1000, 1012);
        _cleanup_output_ struct output o = {0};

        CHECK_INT(output_whole(&c, &plain, &o), 0);
        CHECK_STR(o.text.data, "head\n[... 1004 bytes cut ...]\ntail");
        CHECK(o.cut && o.invalid == 0 && o.next == 1012);
}

static void test_what_is_cut_is_not_cut_again_when_it_fits(void) {
        /* Newlines cost more than letters, so the two halves differ. */
        _cleanup_source_ struct agent_output c = output_of("1\n2\n3\n4\n5\n", 10, "abcdefghij", 10, 80, 100);
        const struct output_form exact = {.budget = output_cost(&c)};
        _cleanup_output_ struct output o = {0};

        CHECK_INT(output_whole(&c, &exact, &o), 0);
        CHECK_STR(o.text.data, "1\n2\n3\n4\n5\n[... 80 bytes cut ...]\nabcdefghij");
}

static void test_binary_is_counted(void) {
        _cleanup_source_ struct agent_output c = output_of("a\0b\xff", 4, "", 0, 0, 4);
        _cleanup_output_ struct output o = {0};

        CHECK_INT(output_whole(&c, &plain, &o), 0);
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
                _cleanup_source_ struct agent_output c = output_of(s, n, "", 0, 0, n);
                _cleanup_output_ struct output o = {0};

                CHECK_INT(output_whole(&c, &plain, &o), 0);
                CHECK(o.cut && strstr(o.text.data, "bytes cut"));
                size_t cost = real_cost(TEXT_TWICE, o.text.data, o.text.len);
                CHECK(cost <= 100000 && cost > 90000);
        }
}

static void test_an_unfinished_character_waits_while_more_may_come(void) {
        static const struct {
                const char *bytes;
                size_t waits; /* while more may come */
        } rows[] = {
                {"a\xc3", 1},         {"a\xe2\x82", 2}, {"a\xf0\x9f\x98", 3}, {"a\xc3\xa4", 0},
                {"a\xe2\x82\xac", 0}, {"a\xff", 0},     {"a\x80", 0},         {"a\xe0\x80", 0},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                size_t n = strlen(rows[i].bytes);
                _cleanup_source_ struct agent_output c = output_of(rows[i].bytes, n, "", 0, 0, n);
                _cleanup_output_ struct output whole = {0}, from = {0}, ended = {0};

                CHECK_INT(output_whole(&c, &open_end, &whole), 0);
                CHECK_INT(whole.next, n - rows[i].waits);
                CHECK_INT(output_from(&c, 0, &open_end, &from), 0);
                CHECK_INT(from.next, n - rows[i].waits);
                CHECK_STR(from.text.data, whole.text.data);
                CHECK_INT(output_from(&c, 0, &plain, &ended), 0);
                CHECK_INT(ended.next, n);
                CHECK_INT(ended.invalid > 0, !utf8_valid(rows[i].bytes, n));
        }
}

static void test_only_an_unfinished_character(void) {
        _cleanup_source_ struct agent_output c = output_of("\xe2\x82", 2, "", 0, 0, 12);
        _cleanup_output_ struct output waits = {0}, goes_on = {0};

        CHECK_INT(output_from(&c, 10, &open_end, &waits), 0);
        CHECK(waits.next == 10 && waits.text.len == 0);
        /* More is there than was read: it would come again and again. */
        c.total = 100;
        CHECK_INT(output_from(&c, 10, &open_end, &goes_on), 0);
        CHECK(goes_on.next == 12 && goes_on.invalid == 1);
}

static void test_a_gap_from_an_offset(void) {
        _cleanup_source_ struct agent_output inside = output_of("", 0, "\xactail", 5, 500, 605),
                                             torn = output_of("ab\xc3", 3, "tail\xc3", 5, 20, 128);
        _cleanup_output_ struct output a = {0}, b = {0}, c = {0};

        CHECK_INT(output_from(&inside, 100, &plain, &a), 0);
        CHECK_STR(a.text.data, "[... 501 bytes cut ...]\ntail");
        CHECK(a.cut && a.next == 605);
        CHECK_INT(output_from(&torn, 100, &open_end, &b), 0);
        CHECK_STR(b.text.data, "ab\n[... 21 bytes cut ...]\ntail");
        CHECK(b.cut && b.next == 127 && b.invalid == 0);
        CHECK_INT(output_from(&torn, 100, &plain, &c), 0);
        CHECK_STR(c.text.data, "ab\n[... 21 bytes cut ...]\ntail\xef\xbf\xbd");
        CHECK_INT(c.next, 128);
}

/* Reads all of s in pieces from offset to offset, each within the budget. Appends the text to out. */
static void read_in_pieces(const char *s, size_t n, size_t piece, const struct output_form *form, struct buf *out) {
        uint64_t at = 0;

        for (unsigned reads = 0; at < n; reads++) {
                size_t len = MIN(piece, n - (size_t) at);
                _cleanup_source_ struct agent_output c = output_of(s + at, len, "", 0, 0, n);
                _cleanup_output_ struct output o = {0};

                REQUIRE(reads < 10000);
                REQUIRE(output_from(&c, at, form, &o) == 0);
                CHECK(!o.cut && o.next > at && o.next <= at + len);
                CHECK(real_cost(TEXT_TWICE, o.text.data, o.text.len) <= form->budget);
                CHECK_INT(buf_append(out, o.text.data, o.text.len), 0);
                at = o.next;
        }
}

static void test_nothing_is_lost_between_reads(void) {
        char s[3000];

        for (unsigned seed = 0; seed < 20; seed++) {
                fill(s, sizeof(s), seed);
                /* fill() may cut its last character. */
                size_t n = utf8_floor(s, sizeof(s));
                _cleanup_buf_ struct buf want = BUF_INIT(1u << 20);
                CHECK_INT(utf8_sanitize(&want, s, n, NULL), 0);
                for (size_t piece = OUTPUT_READ_MIN; piece < 2 * sizeof(s); piece = piece * 3 + seed) {
                        _cleanup_buf_ struct buf small = BUF_INIT(1u << 20), large = BUF_INIT(1u << 20);
                        const struct output_form tight = {.budget = 500, .open = true};

                        read_in_pieces(s, n, piece, &tight, &small);
                        read_in_pieces(s, n, piece, &plain, &large);
                        CHECK_STR(small.data, want.data);
                        CHECK_STR(large.data, want.data);
                }
        }
}

static void test_sequences_are_stripped_over_reads(void) {
        static const char s[] = "\x1b[1;31mred\x1b[0m\n\x1b]0;title\agr\xc3\xbcn\x1b(B\n";
        const struct output_form strip = {.budget = 100000, .open = true, .strip_ansi = true};

        for (size_t piece = 12; piece < sizeof(s); piece++) {
                _cleanup_buf_ struct buf out = BUF_INIT(1000);

                read_in_pieces(s, sizeof(s) - 1, piece, &strip, &out);
                CHECK_STR(out.data, "red\ngr\xc3\xbcn\n");
        }
        _cleanup_source_ struct agent_output c = output_of("\x1b[1mhead\x1b[3", 11, "ta\x1b[mil\x1b[", 9, 80, 100);
        _cleanup_output_ struct output whole = {0}, from = {0};
        CHECK_INT(output_whole(&c, &strip, &whole), 0);
        CHECK_STR(whole.text.data, "head\n[... 80 bytes cut ...]\ntail");
        CHECK_INT(whole.next, 98);
        CHECK_INT(output_from(&c, 0, &strip, &from), 0);
        CHECK_STR(from.text.data, "head\n[... 83 bytes cut ...]\ntail");
        CHECK_INT(from.next, 98);
}

static void test_a_budget_is_shared(void) {
        static const struct {
                size_t budget, costs[3], want[3];
        } rows[] = {
                {300, {10, 20, 30}, {10, 20, 30}},       {300, {1000, 20, 30}, {250, 20, 30}},
                {300, {1000, 20, 1000}, {140, 20, 140}}, {300, {1000, 1000, 1000}, {100, 100, 100}},
                {300, {120, 110, 40}, {120, 110, 40}},   {300, {0, 0, 400}, {0, 0, 300}},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                size_t got[3];

                output_share(rows[i].budget, rows[i].costs, 3, got);
                for (size_t k = 0; k < 3; k++)
                        CHECK_INT(got[k], rows[i].want[k]);
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
        RUN(test_what_is_cut_is_not_cut_again_when_it_fits);
        RUN(test_binary_is_counted);
        RUN(test_too_much_for_a_message);
        RUN(test_an_unfinished_character_waits_while_more_may_come);
        RUN(test_only_an_unfinished_character);
        RUN(test_a_gap_from_an_offset);
        RUN(test_nothing_is_lost_between_reads);
        RUN(test_sequences_are_stripped_over_reads);
        RUN(test_a_budget_is_shared);
        RUN(test_logs_keep_their_end);
        return tap_done();
}
