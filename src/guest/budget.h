/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Bytes that many may use together: whoever wants some takes them here first. From any thread. */

#include <stdatomic.h>

#include "base/util.h"

struct budget {
        atomic_size_t used;
        size_t max;
};

/* Takes n bytes, or none when fewer are left. */
static inline bool budget_take(struct budget *b, size_t n) {
        size_t used = atomic_load(&b->used);

        do
                if (used > b->max || n > b->max - used)
                        return false;
        while (!atomic_compare_exchange_weak(&b->used, &used, used + n));
        return true;
}
/* Takes n bytes also beyond the limit: for the little that cannot be refused. */
static inline void budget_force(struct budget *b, size_t n) {
        atomic_fetch_add(&b->used, n);
}
static inline void budget_give(struct budget *b, size_t n) {
        atomic_fetch_sub(&b->used, n);
}
