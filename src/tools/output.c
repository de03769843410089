/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/output.h"

#include <inttypes.h>
#include <string.h>

#include "base/str.h"

/* What the line that marks a cut may cost. */
#define CUT_LINE_COST 128u
/* U+FFFD is three bytes of UTF-8. */
#define REPLACEMENT_LEN 3u
/* A character of UTF-8 has at most this many bytes. */
#define CHAR_MAX_LEN 4u

/* Bytes of one byte of valid UTF-8 in a JSON string, and of that JSON in another JSON string. */
static size_t byte_cost(enum text_place place, unsigned char c) {
        size_t once, again;

        if (c == 0)
                once = again = REPLACEMENT_LEN;
        else if (c == '"' || c == '\\')
                once = 2, again = 4;
        else if (c == '\n' || c == '\t' || c == '\r' || c == '\b' || c == '\f')
                once = 2, again = 3;
        else if (c < 0x20)
                once = 6, again = 7;
        else
                once = again = 1;
        return place == TEXT_ONCE ? once : once + again;
}

static size_t invalid_cost(enum text_place place) {
        return place == TEXT_ONCE ? REPLACEMENT_LEN : 2 * REPLACEMENT_LEN;
}

/* Walks s until the cost would go over budget; *ret_cost is what was counted. Linear: a valid run is found once. */
static size_t walk(enum text_place place, const char *s, size_t n, size_t budget, size_t *ret_cost) {
        size_t i = 0, cost = 0, valid_end = 0;

        while (i < n) {
                if (i >= valid_end)
                        valid_end = i + utf8_valid_prefix(s + i, n - i);
                size_t c = i < valid_end ? byte_cost(place, (unsigned char) s[i]) : invalid_cost(place);
                if (cost + c > budget)
                        break;
                cost += c;
                i++;
        }
        *ret_cost = cost;
        return i;
}

size_t text_cost(enum text_place place, const char *s, size_t n) {
        size_t cost;

        (void) walk(place, s, n, SIZE_MAX / 2, &cost);
        return cost;
}

size_t text_fit_head(enum text_place place, const char *s, size_t n, size_t budget) {
        size_t cost, len = walk(place, s, n, budget, &cost);

        return len < n ? utf8_floor(s, len) : len;
}

/* Bytes at the beginning of s that continue a character which began before it. */
static size_t split_character(const char *s, size_t n) {
        size_t i = 0;

        while (i < n && i < CHAR_MAX_LEN - 1 && ((unsigned char) s[i] & 0xc0) == 0x80)
                i++;
        return i;
}

size_t text_fit_tail(enum text_place place, const char *s, size_t n, size_t budget) {
        size_t all = text_cost(place, s, n), cost;

        if (all <= budget)
                return n;
        /* Leave out, at the beginning, at least as much as is too much. */
        size_t skip = walk(place, s, n, all - budget, &cost);
        if (cost < all - budget && skip < n)
                skip++;
        skip += split_character(s + skip, n - skip);
        return n - skip;
}

void output_clear(struct output *o) {
        buf_free(&o->text);
        *o = (struct output){0};
}

static int append_clean(struct output *o, const char *s, size_t n) {
        size_t replaced = 0;

        int r = utf8_sanitize(&o->text, n ? s : "", n, &replaced);
        o->invalid += replaced;
        return r;
}

size_t output_cost(const struct agent_capture *c) {
        return text_cost(TEXT_TWICE, c->head.data, c->head.len) + text_cost(TEXT_TWICE, c->tail.data, c->tail.len) +
               (c->truncated ? CUT_LINE_COST : 0);
}

/* Nothing is missing and all fits: one text, in which a character may lie across the two parts. */
static int whole(const struct agent_capture *c, struct output *o) {
        _cleanup_buf_ struct buf joined = BUF_INIT(c->head.len + c->tail.len);

        if (c->tail.len == 0)
                return append_clean(o, c->head.data, c->head.len);
        int r = buf_append(&joined, c->head.data, c->head.len);
        if (r == 0)
                r = buf_append(&joined, c->tail.data, c->tail.len);
        return r < 0 ? r : append_clean(o, joined.data, joined.len);
}

/* Beginning and end with a line between them that says how much is missing. */
static int with_cut(const char *head, size_t head_len, const char *tail, size_t tail_len, uint64_t total, size_t budget,
                    struct output *o) {
        size_t room = budget > CUT_LINE_COST ? budget - CUT_LINE_COST : 0;
        size_t head_keep = text_fit_head(TEXT_TWICE, head, head_len, room / 2);
        /* Where something is missing between the two, a character may have been torn. */
        head_keep = utf8_floor(head, head_keep);
        size_t torn = split_character(tail, tail_len);
        size_t tail_keep = text_fit_tail(TEXT_TWICE, tail + torn, tail_len - torn, room / 2);

        int r = append_clean(o, head, head_keep);
        if (r == 0)
                r = buf_printf(&o->text, "%s[... %" PRIu64 " bytes cut ...]\n",
                               head_keep > 0 && head[head_keep - 1] != '\n' ? "\n" : "", total - head_keep - tail_keep);
        o->cut = true;
        return r < 0 ? r : append_clean(o, tail + tail_len - tail_keep, tail_keep);
}

int output_from_capture(const struct agent_capture *c, size_t budget, struct output *ret) {
        struct output o = {.text = BUF_INIT(2 * RESULT_BUDGET)};
        _cleanup_buf_ struct buf joined = BUF_INIT(c->head.len + c->tail.len);
        int r;

        if (!c->truncated && output_cost(c) <= budget)
                r = whole(c, &o);
        else if (c->truncated)
                r = with_cut(c->head.data, c->head.len, c->tail.data, c->tail.len, c->total, budget, &o);
        else {
                r = buf_append(&joined, c->head.data, c->head.len);
                if (r == 0)
                        r = buf_append(&joined, c->tail.data, c->tail.len);
                size_t middle = joined.len / 2;
                if (r == 0)
                        r = with_cut(joined.data, middle, joined.data + middle, joined.len - middle, joined.len, budget,
                                     &o);
        }
        /* Even an empty output has a text. */
        if (r == 0)
                r = buf_append_str(&o.text, "");
        if (r < 0) {
                output_clear(&o);
                return r;
        }
        *ret = o;
        return 0;
}

int output_from_log(const struct buf *log, size_t budget, struct output *ret) {
        struct output o = {.text = BUF_INIT(2 * RESULT_BUDGET)};
        size_t keep = text_fit_tail(TEXT_TWICE, log->data, log->len, budget);
        const char *start = log->len > 0 ? log->data + log->len - keep : "";

        if (keep < log->len) {
                const char *nl = memchr(start, '\n', keep);
                if (nl)
                        start = nl + 1;
                o.cut = true;
        }
        int r = append_clean(&o, start, keep > 0 ? (size_t) (log->data + log->len - start) : 0);
        if (r == 0)
                r = buf_append_str(&o.text, "");
        if (r < 0) {
                output_clear(&o);
                return r;
        }
        *ret = o;
        return 0;
}
