/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/nearest.h"

#include <string.h>

#include "base/str.h"

#define COMPARED_MAX 160                 /* bytes of a line that are compared */
#define SHOWN_MAX 200                    /* bytes of a line that are shown */
#define SCANNED_MAX (16UL * 1024 * 1024) /* bytes of the file that are looked at */
#define CELLS_MAX (8UL * 1024 * 1024)    /* cells of distance tables that are filled, over all lines */

struct line {
        const char *text;
        size_t len;
};

struct candidate {
        struct line line;
        size_t number; /* from 1 */
        size_t distance;
};

struct search {
        char wanted[COMPARED_MAX + 1];
        size_t wanted_len;
        unsigned histogram[256];
        struct candidate best[NEAREST_LINES]; /* by distance, the nearest first */
        size_t n;
        size_t cells; /* of the budget, used */
};

static bool blank(char c) {
        return c == ' ' || c == '\t' || c == '\r';
}

static struct line trim(struct line l) {
        while (l.len > 0 && blank(l.text[0]))
                l.text++, l.len--;
        while (l.len > 0 && blank(l.text[l.len - 1]))
                l.len--;
        return l;
}

/* Takes the next line, without its end, off data. */
static struct line next_line(const char **data, size_t *len) {
        const char *nl = memchr(*data, '\n', *len);
        struct line l = {.text = *data, .len = nl ? (size_t) (nl - *data) : *len};
        size_t taken = l.len + (nl != NULL);

        *data += taken;
        *len -= taken;
        return l;
}

/* For str_distance(): a string, in which NUL bytes are something else. */
static size_t copy_compared(struct line l, char out[COMPARED_MAX + 1]) {
        size_t n = MIN(l.len, (size_t) COMPARED_MAX);

        for (size_t i = 0; i < n; i++)
                out[i] = l.text[i] ? l.text[i] : '?';
        out[n] = '\0';
        return n;
}

/* Two strings are at least as far apart as the longer has bytes that the other lacks: cheap, and enough to pass over
 * most lines. */
static size_t distance_at_least(const struct search *s, const char *text, size_t n) {
        unsigned seen[256] = {0};
        size_t common = 0;

        for (size_t i = 0; i < n; i++)
                if (seen[(uint8_t) text[i]]++ < s->histogram[(uint8_t) text[i]])
                        common++;
        return MAX(n, s->wanted_len) - common;
}

static void consider(struct search *s, struct line line, size_t number) {
        char text[COMPARED_MAX + 1];
        size_t n = copy_compared(trim(line), text);
        /* A line of which more than half would have to change resembles nothing. */
        size_t limit = s->wanted_len / 2, at;

        if (s->n == NEAREST_LINES) {
                if (s->best[s->n - 1].distance == 0)
                        return;
                limit = MIN(limit, s->best[s->n - 1].distance - 1);
        }
        if (n == 0 || distance_at_least(s, text, n) > limit)
                return;
        s->cells += n * s->wanted_len;
        size_t distance = str_distance(s->wanted, text, limit);
        if (distance > limit)
                return;

        if (s->n < NEAREST_LINES)
                s->n++;
        for (at = s->n - 1; at > 0 && s->best[at - 1].distance > distance; at--)
                s->best[at] = s->best[at - 1];
        s->best[at] = (struct candidate){.line = line, .number = number, .distance = distance};
}

static int show(const struct candidate *c, struct buf *out) {
        int r = buf_printf(out, "%zu: ", c->number);

        if (r == 0)
                r = utf8_sanitize(out, c->line.text, MIN(c->line.len, (size_t) SHOWN_MAX), NULL);
        return r < 0 ? r : buf_append_byte(out, '\n');
}

static int compare_numbers(const void *a, const void *b) {
        const struct candidate *x = a, *y = b;

        return x->number < y->number ? -1 : x->number > y->number;
}

int nearest_lines(const char *data, size_t len, const char *wanted, size_t wanted_len, struct buf *out) {
        struct search s = {0};
        size_t number = 0;

        while (wanted_len > 0 && s.wanted_len == 0)
                s.wanted_len = copy_compared(trim(next_line(&wanted, &wanted_len)), s.wanted);
        if (s.wanted_len == 0)
                return 0;
        for (size_t i = 0; i < s.wanted_len; i++)
                s.histogram[(uint8_t) s.wanted[i]]++;

        len = MIN(len, (size_t) SCANNED_MAX);
        while (len > 0 && s.cells < CELLS_MAX)
                consider(&s, next_line(&data, &len), ++number);

        qsort(s.best, s.n, sizeof(s.best[0]), compare_numbers);
        for (size_t i = 0; i < s.n; i++) {
                int r = show(&s.best[i], out);
                if (r < 0)
                        return r;
        }
        return (int) s.n;
}
