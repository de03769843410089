/* SPDX-License-Identifier: Apache-2.0 */
#include "tap.h"
#include "vm/capture.h"

/* The i-th byte of the output under test: no short period, so that a shift is seen. */
static char byte_at(uint64_t i) {
        return (char) (i * 2654435761u >> 11);
}

/* Feeds n bytes in pieces that vary with `seed` and checks what was kept against the definition. */
static void try_one(size_t max, size_t n, unsigned seed) {
        _cleanup_capture_ struct capture c;
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        char piece[700];
        size_t fed = 0;

        capture_init(&c, max);
        while (fed < n) {
                seed = seed * 1103515245u + 12345u;
                size_t k = MIN(n - fed, 1 + (seed >> 16) % sizeof(piece));

                for (size_t i = 0; i < k; i++)
                        piece[i] = byte_at(fed + i);
                CHECK_INT(capture_feed(&c, piece, k), 0);
                fed += k;
        }
        capture_take(&c, &result.out);

        const struct agent_capture *got = &result.out;
        const size_t head = MIN(n, max - max / 2), tail = MIN(n - head, max / 2);
        CHECK_INT(got->total, n);
        CHECK_INT(got->head.len, head);
        CHECK_INT(got->tail.len, tail);
        CHECK_INT(got->truncated, n > max);
        bool right = true;
        for (size_t i = 0; i < head; i++)
                right = right && got->head.data[i] == byte_at(i);
        CHECK(right);
        for (size_t i = 0; i < tail; i++)
                right = right && got->tail.data[i] == byte_at(n - tail + i);
        CHECK(right);
}

static void test_head_and_tail_of_any_length(void) {
        static const size_t limits[] = {0, 1, 2, 3, 7, 64, 1000, 1001};

        for (size_t m = 0; m < ARRAY_SIZE(limits); m++)
                for (unsigned seed = 0; seed < 40; seed++)
                        try_one(limits[m], seed < 20 ? limits[m] + seed - MIN(limits[m], (size_t) 10) : seed * 97u,
                                seed);
}

static void test_memory_stays_within_the_allowance(void) {
        _cleanup_capture_ struct capture c;
        static char block[1 << 16];

        capture_init(&c, 1000);
        for (int i = 0; i < 1000; i++)
                CHECK_INT(capture_feed(&c, block, sizeof(block)), 0);
        CHECK(c.head.cap + c.tail.cap <= 4096);
        CHECK_INT(c.total, 1000 * sizeof(block));
}

static void test_nothing_written(void) {
        _cleanup_capture_ struct capture c;
        _cleanup_exec_result_ struct agent_exec_result result = {0};

        capture_init(&c, 100);
        capture_take(&c, &result.out);
        CHECK_INT(result.out.head.len + result.out.tail.len, 0);
        CHECK(!result.out.truncated);
}

int main(void) {
        RUN(test_head_and_tail_of_any_length);
        RUN(test_memory_stays_within_the_allowance);
        RUN(test_nothing_written);
        return tap_done();
}
