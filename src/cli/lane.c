/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/lane.h"

#include <string.h>

/* Beyond this, the memory of a line is given back when it is done. */
#define LANE_KEEP (64u * 1024u)

void lane_free(struct lane *l) {
        buf_free(&l->line);
}

static void line_done(struct lane *l) {
        if (l->line.cap > LANE_KEEP) {
                buf_free(&l->line);
                l->line = BUF_INIT(LANE_HOLD);
        }
        buf_clear(&l->line);
        scan_reset(&l->scan);
        l->in_line = l->passing = false;
}

void lane_reset(struct lane *l) {
        line_done(l);
}

/* Takes in bytes of one line, with its newline if `ends`. */
static int feed_line(struct lane *l, const char *data, size_t n, bool ends, const struct lane_ops *ops, void *arg) {
        scan_feed(&l->scan, data, n, ops->message, arg);
        l->in_line = true;
        if (l->line.len + n > LANE_HOLD) {
                ops->piece(arg, l->line.data, l->line.len, false);
                buf_clear(&l->line);
                l->passing = true;
        }
        if (l->line.len == 0 && ends) { /* nothing held: no need for a copy */
                ops->piece(arg, data, n, true);
                line_done(l);
                return 0;
        }
        int r = buf_append(&l->line, data, n);
        if (r < 0)
                return r;
        if (ends) {
                ops->piece(arg, l->line.data, l->line.len, true);
                line_done(l);
        }
        return 0;
}

int lane_feed(struct lane *l, const char *data, size_t n, const struct lane_ops *ops, void *arg) {
        while (n > 0) {
                const char *newline = memchr(data, '\n', n);
                size_t len = newline ? (size_t) (newline - data) + 1 : n;
                int r = feed_line(l, data, len, newline, ops, arg);
                if (r < 0)
                        return r;
                data += len;
                n -= len;
        }
        return 0;
}
