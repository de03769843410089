/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/capture.h"

#include <string.h>

void capture_init(struct capture *c, size_t max) {
        size_t head = max - max / 2;

        *c = (struct capture){.head = BUF_INIT(head), .tail = BUF_INIT(max - head)};
}

void capture_free(struct capture *c) {
        buf_free(&c->head);
        buf_free(&c->tail);
}

/* Overwrites the oldest bytes of a ring that is full. */
static void ring_put(struct capture *c, const char *p, size_t n) {
        size_t size = c->tail.max;

        if (size == 0)
                return;
        if (n >= size) { /* only the newest bytes survive, and they fill the ring from its start */
                memcpy(c->tail.data, p + (n - size), size);
                c->tail_next = 0;
                return;
        }
        size_t first = MIN(n, size - c->tail_next);
        memcpy(c->tail.data + c->tail_next, p, first);
        memcpy(c->tail.data, p + first, n - first);
        c->tail_next = (c->tail_next + n) % size;
}

int capture_feed(struct capture *c, const void *data, size_t n) {
        const char *p = data;

        c->total += n;
        struct buf *parts[] = {&c->head, &c->tail};
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
                size_t take = MIN(n, parts[i]->max - parts[i]->len);

                if (take == 0)
                        continue;
                int r = buf_append(parts[i], p, take);
                if (r < 0)
                        return r;
                p += take;
                n -= take;
        }
        if (n > 0)
                ring_put(c, p, n);
        return 0;
}

static void reverse(char *p, size_t n) {
        for (size_t i = 0; i < n / 2; i++) {
                char t = p[i];

                p[i] = p[n - 1 - i];
                p[n - 1 - i] = t;
        }
}

void capture_take(struct capture *c, struct agent_capture *ret) {
        /* Turning a ring in place: reverse both parts, then the whole. */
        if (c->tail_next > 0) {
                reverse(c->tail.data, c->tail_next);
                reverse(c->tail.data + c->tail_next, c->tail.len - c->tail_next);
                reverse(c->tail.data, c->tail.len);
        }
        *ret = (struct agent_capture){
                .head = c->head,
                .tail = c->tail,
                .total = c->total,
                .truncated = c->total > c->head.len + c->tail.len,
        };
        capture_init(c, c->head.max + c->tail.max);
}
