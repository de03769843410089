/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A small TAP producer (Test Anything Protocol, version 12) for unit tests.
 *
 *     static void test_empty(void) { CHECK(buf.len == 0); CHECK_STR(s, "x"); CHECK_INT(n, 3); }
 *     int main(void) { RUN(test_empty); return tap_done(); }
 *
 * A failed check prints where and what, fails its test and goes on; REQUIRE leaves the test function at once.
 */

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int tap_count, tap_failures;
static bool tap_ok;

static inline void tap_fail(const char *file, int line, const char *what) {
        tap_ok = false;
        printf("# %s:%d: failed: %s\n", file, line, what);
}

#define CHECK(cond)                                          \
        do {                                                 \
                if (!(cond))                                 \
                        tap_fail(__FILE__, __LINE__, #cond); \
        } while (0)

#define REQUIRE(cond)                                        \
        do {                                                 \
                if (!(cond)) {                               \
                        tap_fail(__FILE__, __LINE__, #cond); \
                        return;                              \
                }                                            \
        } while (0)

#define CHECK_INT(got, want)                                                              \
        do {                                                                              \
                intmax_t _got = (intmax_t) (got), _want = (intmax_t) (want);              \
                if (_got != _want) {                                                      \
                        tap_fail(__FILE__, __LINE__, #got " == " #want);                  \
                        printf("#   got %" PRIdMAX ", want %" PRIdMAX "\n", _got, _want); \
                }                                                                         \
        } while (0)

#define CHECK_STR(got, want)                                                                                       \
        do {                                                                                                       \
                const char *_got = (got), *_want = (want);                                                         \
                if (!_got || !_want ? _got != _want : strcmp(_got, _want) != 0) {                                  \
                        tap_fail(__FILE__, __LINE__, #got " equals " #want);                                       \
                        printf("#   got \"%s\", want \"%s\"\n", _got ? _got : "(null)", _want ? _want : "(null)"); \
                }                                                                                                  \
        } while (0)

#define RUN(fn)                                                                 \
        do {                                                                    \
                tap_ok = true;                                                  \
                fn();                                                           \
                tap_count++;                                                    \
                if (!tap_ok)                                                    \
                        tap_failures++;                                         \
                printf("%sok %d - %s\n", tap_ok ? "" : "not ", tap_count, #fn); \
                fflush(stdout);                                                 \
        } while (0)

static inline int tap_done(void) {
        printf("1..%d\n", tap_count);
        return tap_failures ? 1 : 0;
}
