/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/output.h"

#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tools/ansi.h"

/* What the line that marks a cut may cost. */
#define CUT_LINE_COST 128u
/* U+FFFD is three bytes of UTF-8. */
#define REPLACEMENT_LEN 3u
/* A character of UTF-8 has at most this many bytes. */
#define CHAR_MAX_LEN 4u
/* Bytes of an error that are looked at. */
#define ERROR_RAW_MAX (64u * 1024u)

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

size_t output_cost(const struct agent_output *c) {
        return text_cost(TEXT_TWICE, c->head.data, c->head.len) + text_cost(TEXT_TWICE, c->tail.data, c->tail.len) +
               (c->cut > 0 ? CUT_LINE_COST : 0);
}

void output_share(size_t budget, const size_t *costs, size_t n, size_t *ret) {
        size_t left = budget, open = n, share;
        bool settled;

        for (size_t i = 0; i < n; i++)
                ret[i] = SIZE_MAX;
        do {
                settled = false;
                share = left / MAX(open, (size_t) 1);
                for (size_t i = 0; i < n; i++) {
                        if (ret[i] != SIZE_MAX || costs[i] > share)
                                continue;
                        ret[i] = costs[i];
                        left -= costs[i];
                        open--;
                        settled = true;
                }
        } while (settled);
        for (size_t i = 0; i < n; i++)
                if (ret[i] == SIZE_MAX)
                        ret[i] = share;
}

/* A part of an output; never NULL. */
struct span {
        const char *data;
        size_t len;
};

static struct span span_of(const struct buf *b) {
        return (struct span){b->len > 0 ? b->data : "", b->len};
}

/* Bytes at the end of s that make sense only with those behind them. */
static size_t unfinished(struct span s, bool strip_ansi) {
        size_t floor = utf8_floor(s.data, s.len), character = 0;

        /* Bytes from 0xf5 on begin no character. */
        if (floor < s.len && (unsigned char) s.data[floor] < 0xf5)
                character = s.len - floor;
        return strip_ansi ? MAX(character, ansi_unfinished(s.data, s.len)) : character;
}

/* s, or a copy in `storage` without control sequences. */
static int strip(struct span *s, bool strip_ansi, struct buf *storage) {
        if (!strip_ansi)
                return 0;
        int r = ansi_strip(storage, s->data, s->len);
        *s = span_of(storage);
        return r;
}

static int append_cut(struct output *o, uint64_t bytes) {
        o->cut = true;
        return buf_printf(&o->text, "%s[... %" PRIu64 " bytes cut ...]\n",
                          o->text.len > 0 && o->text.data[o->text.len - 1] != '\n' ? "\n" : "", bytes);
}

/* Beginning and end with a line between them that says how much is missing. */
static int with_cut(struct span head, struct span tail, uint64_t cut, size_t budget, struct output *o) {
        const size_t costs[2] = {text_cost(TEXT_TWICE, head.data, head.len),
                                 text_cost(TEXT_TWICE, tail.data, tail.len)};
        size_t rooms[2];
        output_share(budget > CUT_LINE_COST ? budget - CUT_LINE_COST : 0, costs, ARRAY_SIZE(costs), rooms);
        size_t head_keep = text_fit_head(TEXT_TWICE, head.data, head.len, rooms[0]);
        /* Where something is missing between the two, a character may have been torn. */
        head_keep = utf8_floor(head.data, head_keep);
        size_t torn = split_character(tail.data, tail.len);
        size_t tail_keep = text_fit_tail(TEXT_TWICE, tail.data + torn, tail.len - torn, rooms[1]);

        int r = append_clean(o, head.data, head_keep);
        if (r == 0)
                r = append_cut(o, cut + (head.len - head_keep) + (tail.len - tail_keep));
        return r < 0 ? r : append_clean(o, tail.data + tail.len - tail_keep, tail_keep);
}

static int write_whole(const struct agent_output *c, const struct output_form *form, struct output *o) {
        struct span head = span_of(&c->head), tail = span_of(&c->tail), *last = tail.len > 0 ? &tail : &head;
        _cleanup_buf_ struct buf head_text = BUF_INIT(head.len), tail_text = BUF_INIT(tail.len);

        if (form->open)
                last->len -= unfinished(*last, form->strip_ansi);
        o->next = head.len + c->cut + tail.len;
        int r = strip(&head, form->strip_ansi, &head_text);
        if (r == 0)
                r = strip(&tail, form->strip_ansi, &tail_text);
        if (r < 0)
                return r;
        if (c->cut > 0)
                return with_cut(head, tail, c->cut, form->budget, o);
        if (text_cost(TEXT_TWICE, head.data, head.len) <= form->budget)
                return append_clean(o, head.data, head.len);
        size_t middle = head.len / 2;
        tail = (struct span){head.data + middle, head.len - middle};
        head.len = middle;
        return with_cut(head, tail, 0, form->budget, o);
}

/* As much of the beginning of s as the budget allows. `open`: what is unfinished at the end waits, unless nothing would
 * be left though there is `more` to read. *ret_used: bytes of s that the text stands for. */
static int append_beginning(struct output *o, struct span s, const struct output_form *form, bool open, bool more,
                            size_t budget, size_t *ret_used) {
        struct span part = {s.data, text_fit_head(TEXT_TWICE, s.data, s.len, budget)};
        _cleanup_buf_ struct buf text = BUF_INIT(s.len);

        more = more || part.len < s.len;
        if (open || more) {
                size_t waits = unfinished(part, form->strip_ansi);
                if (waits < part.len || !more)
                        part.len -= waits;
        }
        *ret_used = part.len;
        int r = strip(&part, form->strip_ansi, &text);
        return r < 0 ? r : append_clean(o, part.data, part.len);
}

static int write_from(const struct agent_output *c, uint64_t offset, const struct output_form *form, struct output *o) {
        struct span head = span_of(&c->head), tail = span_of(&c->tail);
        bool more = c->total > offset && c->total - offset > head.len + c->cut + tail.len;
        size_t head_cost = text_cost(TEXT_TWICE, head.data, head.len), used = 0;

        if (offset > c->total) {
                o->next = c->total;
                return 0;
        }
        if (c->cut == 0 || head_cost > form->budget) {
                int r = append_beginning(o, head, form, form->open, more || c->cut > 0, form->budget, &used);
                o->next = offset + used;
                return r;
        }
        /* All of the head; then what is missing, with what that has torn. */
        size_t torn_head = unfinished(head, form->strip_ansi), torn_tail = split_character(tail.data, tail.len);
        head.len -= torn_head;
        tail = (struct span){tail.data + torn_tail, tail.len - torn_tail};
        int r = append_beginning(o, head, form, false, false, head_cost, &used);
        if (r == 0)
                r = append_cut(o, torn_head + c->cut + torn_tail);
        size_t room = form->budget - head_cost;
        if (r == 0)
                r = append_beginning(o, tail, form, form->open, more, room > CUT_LINE_COST ? room - CUT_LINE_COST : 0,
                                     &used);
        o->next = offset + head.len + torn_head + c->cut + torn_tail + used;
        return r;
}

/* Even an empty output has a text. */
static int finish(int r, struct output *o, struct output *ret) {
        if (r == 0)
                r = buf_append_str(&o->text, "");
        if (r < 0) {
                output_clear(o);
                return r;
        }
        *ret = *o;
        return 0;
}

int output_whole(const struct agent_output *c, const struct output_form *form, struct output *ret) {
        struct output o = {.text = BUF_INIT(2 * RESULT_BUDGET)};

        return finish(write_whole(c, form, &o), &o, ret);
}

int output_from(const struct agent_output *c, uint64_t offset, const struct output_form *form, struct output *ret) {
        struct output o = {.text = BUF_INIT(2 * RESULT_BUDGET)};

        return finish(write_from(c, offset, form, &o), &o, ret);
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
        return finish(r, &o, ret);
}

json_t *output_error(const struct error *e, size_t budget) {
        _cleanup_buf_ struct buf raw = BUF_INIT(ERROR_RAW_MAX), text = BUF_INIT(4 * ERROR_RAW_MAX);
        const char *message = error_message(e);
        bool ended = *message && strchr(".?!\n", message[strlen(message) - 1]);

        if (buf_printf(&raw, "%s%s%s%s", message, ended ? "" : ".", e->hint ? " " : "", e->hint ? e->hint : "") < 0)
                return json_string(error_code_name(e->code));
        if (utf8_sanitize(&text, raw.data, text_fit_head(TEXT_TWICE, raw.data, raw.len, budget), NULL) < 0)
                return NULL;
        return json_text(text.data, text.len);
}
