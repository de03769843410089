/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/spool.h"

#include <string.h>
#include <sys/mman.h>

#include "base/thread.h"

/* Blocks from here on are mapped: they go back to the system at once, and a fork need not copy their page tables. */
#define BLOCK_MAPPED_MIN (64u * 1024u)

static char *block_new(size_t n) {
        char *p;

        if (n < BLOCK_MAPPED_MIN)
                return malloc(n);
        p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
                return NULL;
        (void) madvise(p, n, MADV_DONTFORK); /* only saves work */
        return p;
}

static void block_free(char *p, size_t n) {
        if (n < BLOCK_MAPPED_MIN)
                free(p);
        else
                munmap(p, n);
}

void spool_init(struct spool *s, struct spool_budget *budget) {
        *s = (struct spool){.budget = budget};
        pthread_mutex_init(&s->lock, NULL);
}

void spool_free(struct spool *s) {
        spool_drop(s);
        pthread_mutex_destroy(&s->lock);
}

void spool_drop(struct spool *s) {
        LOCK(&s->lock);
        block_free(TAKE_PTR(s->head), s->head_cap);
        block_free(TAKE_PTR(s->ring), s->ring_cap);
        budget_give(&s->budget->bytes, s->head_cap + s->ring_cap);
        s->head_cap = s->head_len = s->ring_cap = s->ring_len = s->ring_at = 0;
        s->head_closed = true;
}

uint64_t spool_total(struct spool *s) {
        LOCK(&s->lock);
        return s->total;
}

/* Writing: first memory is asked for without the lock, as others may have to give theirs up; then the bytes move. */

static size_t cap_for(size_t cap, size_t need, size_t max) {
        cap = MAX(cap, (size_t) SPOOL_PIECE_MIN);
        while (cap < need && cap < max)
                cap = MIN(2 * cap, max);
        return cap;
}

static bool ask(struct spool_budget *b, size_t n) {
        if (budget_take(&b->bytes, n))
                return true;
        if (b->reclaim)
                b->reclaim(b->arg, n);
        return budget_take(&b->bytes, n);
}

/* A block for `need` bytes in place of one of `cap`, paid for. NULL: there is none. */
static char *larger_block(struct spool *s, size_t cap, size_t need, size_t max, size_t *ret_cap) {
        size_t want = cap_for(cap, need, max);
        char *p;

        if (s->total < s->ask_at || !ask(s->budget, want - cap)) {
                if (s->total >= s->ask_at)
                        s->ask_at = s->total + MAX(cap, (size_t) SPOOL_PIECE_MIN);
                if (cap > 0)
                        return NULL;
                want = SPOOL_PIECE_MIN;
                budget_force(&s->budget->bytes, want);
        }
        p = block_new(want);
        if (p)
                *ret_cap = want;
        else
                budget_give(&s->budget->bytes, want - cap);
        return p;
}

static void copy_ring(const struct spool *s, size_t from, size_t n, char *to) {
        size_t at = s->ring_cap > 0 ? (s->ring_at + from) % s->ring_cap : 0;
        size_t first = MIN(n, s->ring_cap - at);

        if (n == 0)
                return;
        memcpy(to, s->ring + at, first);
        memcpy(to + first, s->ring, n - first);
}

/* What the head takes of the bytes. */
static size_t append_head(struct spool *s, const char *data, size_t n) {
        size_t need = MIN(s->head_len + n, (size_t) SPOOL_HEAD_MAX), cap = s->head_cap;
        char *larger = NULL;

        if (s->head_closed)
                return 0;
        if (need > cap)
                larger = larger_block(s, cap, need, SPOOL_HEAD_MAX, &cap);

        LOCK(&s->lock);
        if (larger) {
                if (s->head_len > 0)
                        memcpy(larger, s->head, s->head_len);
                block_free(s->head, s->head_cap);
                s->head = larger;
                s->head_cap = cap;
        }
        n = MIN(n, s->head_cap - s->head_len);
        if (n > 0)
                memcpy(s->head + s->head_len, data, n);
        s->head_len += n;
        s->total += n;
        s->head_closed = s->head_len == SPOOL_HEAD_MAX || need > s->head_cap;
        return n;
}

static void ring_put(struct spool *s, const char *data, size_t n) {
        size_t keep = MIN(n, s->ring_cap), over, at, first;

        if (s->ring_cap == 0)
                return;
        data += n - keep;
        over = s->ring_len + keep > s->ring_cap ? s->ring_len + keep - s->ring_cap : 0;
        s->ring_at = (s->ring_at + over) % s->ring_cap;
        s->ring_len -= over;
        at = (s->ring_at + s->ring_len) % s->ring_cap;
        first = MIN(keep, s->ring_cap - at);
        memcpy(s->ring + at, data, first);
        memcpy(s->ring, data + first, keep - first);
        s->ring_len += keep;
}

static void append_ring(struct spool *s, const char *data, size_t n) {
        size_t need = MIN(s->ring_len + n, (size_t) SPOOL_RING_MAX), cap = s->ring_cap;
        char *larger = NULL;

        if (need > cap)
                larger = larger_block(s, cap, need, SPOOL_RING_MAX, &cap);

        LOCK(&s->lock);
        if (larger) {
                copy_ring(s, 0, s->ring_len, larger);
                block_free(s->ring, s->ring_cap);
                s->ring = larger;
                s->ring_cap = cap;
                s->ring_at = 0;
        }
        ring_put(s, data, n);
        s->total += n;
}

void spool_append(struct spool *s, const void *data, size_t n) {
        size_t taken = append_head(s, data, n);

        if (taken < n)
                append_ring(s, (const char *) data + taken, n - taken);
}

/* Reading: kept are [0, head_len) and [ring_start, total). */

static uint64_t ring_start(const struct spool *s) {
        return s->total - s->ring_len;
}

static bool gap(const struct spool *s) {
        return ring_start(s) > s->head_len;
}

/* The bytes [from, from + n), all of which are kept. */
static void copy(const struct spool *s, uint64_t from, size_t n, char *to) {
        size_t of_head = 0;

        if (from < s->head_len) {
                of_head = MIN(n, s->head_len - (size_t) from);
                memcpy(to, s->head + from, of_head);
        }
        if (of_head < n)
                copy_ring(s, (size_t) (from + of_head - ring_start(s)), n - of_head, to + of_head);
}

/* Two pieces with a cut between them: of the head n bytes from `from` on, then m bytes from `then` on. */
struct pieces {
        uint64_t from, then;
        size_t n, m;
        uint64_t cut;
};

static struct pieces whole(const struct spool *s, size_t max) {
        size_t first = gap(s) ? s->head_len : (size_t) MIN(s->total, (uint64_t) max / 2);
        struct pieces p = {0};

        if (!gap(s) && s->total <= max) {
                p.n = (size_t) s->total;
                return p;
        }
        if (!gap(s)) {
                p.n = first;
                p.m = max - first;
        } else {
                /* What one side does not need, the other may have. */
                p.n = MIN(first, max / 2);
                p.m = MIN(s->ring_len, max - p.n);
                p.n = MIN(first, max - p.m);
        }
        p.then = s->total - p.m;
        p.cut = p.then - p.n;
        return p;
}

static struct pieces part(const struct spool *s, uint64_t offset, size_t max) {
        struct pieces p = {.from = offset};
        uint64_t start = ring_start(s);

        if (offset >= s->total)
                return p;
        if (offset >= start || !gap(s)) {
                p.n = (size_t) MIN((uint64_t) max, s->total - offset);
                return p;
        }
        if (offset < s->head_len)
                p.n = (size_t) MIN((uint64_t) max, s->head_len - offset);
        /* A piece that fills the answer before the gap leaves the gap to the next one. */
        if (offset + p.n < s->head_len || (p.n > 0 && p.n == max))
                return p;
        p.then = start;
        p.cut = start - (offset + p.n);
        p.m = MIN(s->ring_len, max - p.n);
        return p;
}

int spool_read(struct spool *s, int64_t offset, size_t max, struct spool_view *ret) {
        struct spool_view v = {.data = BUF_INIT(SPOOL_HEAD_MAX + SPOOL_RING_MAX)};
        struct pieces p;
        int r;

        LOCK(&s->lock);
        p = offset < 0 ? whole(s, max) : part(s, (uint64_t) offset, max);
        r = buf_reserve(&v.data, p.n + p.m);
        if (r < 0)
                return r;
        copy(s, p.from, p.n, v.data.data);
        copy(s, p.then, p.m, v.data.data + p.n);
        v.data.len = p.n + p.m;
        v.head = p.n;
        v.cut = p.cut;
        v.total = s->total;
        *ret = v;
        return 0;
}

size_t spool_tail(struct spool *s, char *ret, size_t n) {
        LOCK(&s->lock);
        n = (size_t) MIN((uint64_t) n, s->total - (gap(s) ? ring_start(s) : 0));
        copy(s, s->total - n, n, ret);
        return n;
}
