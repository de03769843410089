/* SPDX-License-Identifier: Apache-2.0 */

/* What is kept of a stream, and how it is read: the byte at position i of every stream here is pattern(i). */

#include <pthread.h>

#include "base/thread.h"
#include "guest/spool.h"
#include "tap.h"

#define KIB 1024u
#define PLENTY (64u << 20)

static struct spool_budget plenty = {.bytes = {.max = PLENTY}};

static char pattern(uint64_t i) {
        return (char) (i * 7 + i / 251);
}

/* Writes the bytes up to position `to`, `step` at a time. */
static void fill(struct spool *s, uint64_t to, size_t step) {
        static char piece[256 * KIB];
        uint64_t at = spool_total(s);

        while (at < to) {
                size_t most = MIN(step, sizeof(piece));
                size_t n = (size_t) MIN((uint64_t) most, to - at);

                for (size_t i = 0; i < n; i++)
                        piece[i] = pattern(at + i);
                spool_append(s, piece, n);
                at += n;
        }
}

/* Whether the view holds the right bytes for what it says of itself. */
static bool consistent(const struct spool_view *v, uint64_t offset) {
        for (size_t i = 0; i < v->data.len; i++)
                if (v->data.data[i] != pattern(offset + i + (i < v->head ? 0 : v->cut)))
                        return false;
        return v->head <= v->data.len;
}

/* Reads and checks: so many bytes, of which `head` stand before `cut` missing ones. */
static void check_read(struct spool *s, int64_t offset, size_t max, size_t len, uint64_t head, uint64_t cut) {
        _cleanup_spool_view_ struct spool_view v = SPOOL_VIEW_INIT;

        CHECK_INT(spool_read(s, offset, max, &v), 0);
        CHECK_INT(v.data.len, len);
        CHECK_INT(v.head, head);
        CHECK_INT(v.cut, cut);
        CHECK_INT(v.total, spool_total(s));
        CHECK(consistent(&v, offset < 0 ? 0 : (uint64_t) offset));
}

static void test_empty(void) {
        struct spool s;

        spool_init(&s, &plenty);
        check_read(&s, -1, 100, 0, 0, 0);
        check_read(&s, 0, 100, 0, 0, 0);
        check_read(&s, 5, 100, 0, 0, 0);
        CHECK_INT(plenty.bytes.used, 0);
        spool_free(&s);
}

static void test_small(void) {
        struct spool s;

        spool_init(&s, &plenty);
        fill(&s, 10, 3);
        check_read(&s, -1, 10, 10, 10, 0);
        check_read(&s, -1, 11, 10, 10, 0);
        check_read(&s, -1, 9, 9, 4, 1);
        check_read(&s, -1, 1, 1, 0, 9);
        check_read(&s, -1, 0, 0, 0, 10);
        check_read(&s, 0, 4, 4, 4, 0);
        check_read(&s, 4, 100, 6, 6, 0);
        check_read(&s, 10, 100, 0, 0, 0);
        check_read(&s, 11, 100, 0, 0, 0);
        CHECK_INT(plenty.bytes.used, SPOOL_PIECE_MIN);
        spool_free(&s);
        CHECK_INT(plenty.bytes.used, 0);
}

/* One byte before, at and behind the borders of head and ring: all is kept, and joined. */
static void test_head_and_ring_join(void) {
        static const uint64_t totals[] = {
                SPOOL_HEAD_MAX - 1,
                SPOOL_HEAD_MAX,
                SPOOL_HEAD_MAX + 1,
                SPOOL_HEAD_MAX + SPOOL_RING_MAX - 1,
                SPOOL_HEAD_MAX + SPOOL_RING_MAX,
        };
        static const size_t steps[] = {1000, 65536, 200001};

        for (size_t i = 0; i < ARRAY_SIZE(totals); i++)
                for (size_t k = 0; k < ARRAY_SIZE(steps); k++) {
                        size_t n = (size_t) totals[i], max = 2 * (SPOOL_HEAD_MAX + SPOOL_RING_MAX);
                        struct spool s;

                        spool_init(&s, &plenty);
                        fill(&s, totals[i], steps[k]);
                        check_read(&s, -1, max, n, n, 0);
                        check_read(&s, -1, n - 1, n - 1, (n - 1) / 2, 1);
                        check_read(&s, SPOOL_HEAD_MAX - 10, max, n - SPOOL_HEAD_MAX + 10, n - SPOOL_HEAD_MAX + 10, 0);
                        spool_free(&s);
                }
        CHECK_INT(plenty.bytes.used, 0);
}

static void test_the_middle_is_lost(void) {
        const size_t head = SPOOL_HEAD_MAX, ring = SPOOL_RING_MAX, total = head + ring + 1000;
        struct spool s;

        spool_init(&s, &plenty);
        fill(&s, total, 65536);
        /* Whole: both ends; what one does not need the other has. */
        check_read(&s, -1, 4 * ring, head + ring, head, 1000);
        check_read(&s, -1, 1000, 1000, 500, total - 1000);
        check_read(&s, -1, 1001, 1001, 500, total - 1001);
        check_read(&s, -1, 512 * KIB, 512 * KIB, 256 * KIB, total - 512 * KIB);
        check_read(&s, -1, head + ring, head + ring, head, 1000);
        check_read(&s, -1, head + ring - 1, head + ring - 1, head, 1001);
        /* From an offset: before the gap, up to it, over it, in it, at its end, behind it. */
        check_read(&s, 0, 100, 100, 100, 0);
        check_read(&s, (int64_t) head - 100, 100, 100, 100, 0);
        check_read(&s, (int64_t) head - 100, 150, 150, 100, 1000);
        check_read(&s, (int64_t) head, 150, 150, 0, 1000);
        check_read(&s, (int64_t) head + 1, 150, 150, 0, 999);
        check_read(&s, (int64_t) head + 999, 150, 150, 0, 1);
        check_read(&s, (int64_t) head + 1000, 150, 150, 150, 0);
        check_read(&s, (int64_t) total - 10, 150, 10, 10, 0);
        check_read(&s, (int64_t) total, 150, 0, 0, 0);
        check_read(&s, (int64_t) total + 1, 150, 0, 0, 0);
        spool_free(&s);
}

/* Reading on and on gives every byte that is kept once, whatever the size of the pieces. */
static void test_reading_on(void) {
        static const size_t pieces[] = {1000, 65536, SPOOL_HEAD_MAX, 500000};
        const size_t total = 3 * SPOOL_RING_MAX + 12345;
        struct spool s;

        spool_init(&s, &plenty);
        fill(&s, total, 4000);
        for (size_t i = 0; i < ARRAY_SIZE(pieces); i++) {
                uint64_t offset = 0, sent = 0, cut = 0;

                for (;;) {
                        _cleanup_spool_view_ struct spool_view v = SPOOL_VIEW_INIT;

                        REQUIRE(spool_read(&s, (int64_t) offset, pieces[i], &v) == 0);
                        CHECK(consistent(&v, offset));
                        if (v.data.len + v.cut == 0)
                                break;
                        offset += v.data.len + v.cut;
                        sent += v.data.len;
                        cut += v.cut;
                }
                CHECK_INT(offset, total);
                CHECK_INT(sent, SPOOL_HEAD_MAX + SPOOL_RING_MAX);
                CHECK_INT(cut, total - sent);
        }
        spool_free(&s);
}

static void test_pieces_larger_than_the_ring(void) {
        static char big[2 * SPOOL_RING_MAX];
        struct spool s;

        for (size_t i = 0; i < sizeof(big); i++)
                big[i] = pattern(i);
        spool_init(&s, &plenty);
        spool_append(&s, big, sizeof(big));
        check_read(&s, -1, 4 * SPOOL_RING_MAX, SPOOL_HEAD_MAX + SPOOL_RING_MAX, SPOOL_HEAD_MAX,
                   sizeof(big) - SPOOL_HEAD_MAX - SPOOL_RING_MAX);
        spool_free(&s);
}

static void test_memory_is_bounded(void) {
        struct spool s;

        spool_init(&s, &plenty);
        fill(&s, 50u << 20, 100000);
        CHECK_INT(plenty.bytes.used, SPOOL_HEAD_MAX + SPOOL_RING_MAX);
        CHECK_INT(spool_total(&s), 50u << 20);
        spool_drop(&s);
        CHECK_INT(plenty.bytes.used, 0);
        check_read(&s, -1, 1000, 0, 0, 50u << 20);
        check_read(&s, 7, 1000, 0, 0, (50u << 20) - 7);
        spool_free(&s);
        CHECK_INT(plenty.bytes.used, 0);
}

/* Without any budget a little is kept all the same, and the newest. */
static void test_no_budget(void) {
        struct spool_budget none = {.bytes = {.max = 0}};
        struct spool s;

        spool_init(&s, &none);
        fill(&s, 1000000, 5000);
        CHECK_INT(none.bytes.used, 2 * SPOOL_PIECE_MIN);
        check_read(&s, -1, 100000, 2 * SPOOL_PIECE_MIN, SPOOL_PIECE_MIN, 1000000 - 2 * SPOOL_PIECE_MIN);
        spool_free(&s);
        CHECK_INT(none.bytes.used, 0);
}

/* A ring that could not grow does so once there is room again. */
static void test_budget_that_comes_back(void) {
        struct spool_budget b = {.bytes = {.max = SPOOL_PIECE_MIN}};
        struct spool s;
        _cleanup_spool_view_ struct spool_view v = SPOOL_VIEW_INIT;

        spool_init(&s, &b);
        fill(&s, 100000, 1000);
        b.bytes.max = PLENTY;
        fill(&s, 300000, 1000);
        REQUIRE(spool_read(&s, -1, 1000000, &v) == 0);
        CHECK(consistent(&v, 0));
        CHECK(v.data.len > 150000);
        CHECK_INT(v.data.len + v.cut, 300000);
        spool_free(&s);
}

struct victim {
        struct spool spool;
        int asked;
};

static void drop_victim(void *arg, size_t wanted) {
        struct victim *v = arg;

        CHECK(wanted > 0);
        v->asked++;
        spool_drop(&v->spool);
}

static void test_others_give_way(void) {
        struct victim v = {0};
        struct spool_budget b = {.bytes = {.max = 1 << 20}, .reclaim = drop_victim, .arg = &v};
        struct spool s;

        spool_init(&v.spool, &b);
        fill(&v.spool, 1 << 20, 65536);
        CHECK_INT(v.asked, 0);
        spool_init(&s, &b);
        fill(&s, 1 << 20, 65536);
        CHECK(v.asked > 0);
        check_read(&s, -1, 1 << 20, 1 << 20, 1 << 20, 0);
        check_read(&v.spool, -1, 1000, 0, 0, 1 << 20);
        spool_free(&s);
        spool_free(&v.spool);
        CHECK_INT(b.bytes.used, 0);
}

static void test_tail(void) {
        struct spool s;
        char text[100];

        spool_init(&s, &plenty);
        CHECK_INT(spool_tail(&s, text, sizeof(text)), 0);
        fill(&s, 60, 10);
        CHECK_INT(spool_tail(&s, text, sizeof(text)), 60);
        fill(&s, SPOOL_HEAD_MAX + 50, 1000);
        CHECK_INT(spool_tail(&s, text, sizeof(text)), 100);
        for (size_t i = 0; i < 100; i++)
                CHECK_INT(text[i], pattern(SPOOL_HEAD_MAX - 50 + i));
        fill(&s, 4 * SPOOL_RING_MAX, 10000);
        CHECK_INT(spool_tail(&s, text, sizeof(text)), 100);
        CHECK_INT(text[99], pattern(4 * SPOOL_RING_MAX - 1));
        spool_free(&s);
}

static void *write_much(void *arg) {
        fill(arg, 20u << 20, 30000);
        return NULL;
}

static void test_reading_while_it_is_written(void) {
        struct spool s;
        pthread_t writer;
        uint64_t total = 0;

        spool_init(&s, &plenty);
        REQUIRE(thread_start(&writer, "writer", write_much, &s) == 0);
        while (total < 20u << 20) {
                _cleanup_spool_view_ struct spool_view v = SPOOL_VIEW_INIT;

                if (spool_read(&s, -1, 10000, &v) < 0)
                        break;
                CHECK(consistent(&v, 0));
                CHECK(v.total >= total);
                total = v.total;
        }
        pthread_join(writer, NULL);
        CHECK_INT(total, 20u << 20);
        spool_free(&s);
}

int main(void) {
        RUN(test_empty);
        RUN(test_small);
        RUN(test_head_and_ring_join);
        RUN(test_the_middle_is_lost);
        RUN(test_reading_on);
        RUN(test_pieces_larger_than_the_ring);
        RUN(test_memory_is_bounded);
        RUN(test_no_budget);
        RUN(test_budget_that_comes_back);
        RUN(test_others_give_way);
        RUN(test_tail);
        RUN(test_reading_while_it_is_written);
        return tap_done();
}
