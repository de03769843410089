/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "vm/agent_private.h"

#define PROGRESS_LINE_MAX 200u /* bytes of a line of progress that are shown */
#define EXIT_CODE_MAX 255
#define SIGNAL_MAX 64

void agent_output_clear(struct agent_output *o) {
        buf_free(&o->head);
        buf_free(&o->tail);
        *o = (struct agent_output){0};
}

void agent_exec_result_clear(struct agent_exec_result *r) {
        agent_output_clear(&r->out);
        agent_output_clear(&r->err);
        *r = (struct agent_exec_result){0};
}

void agent_received_free(struct agent_received *r) {
        buf_free(&r->out);
        buf_free(&r->err);
}

/* --- receiving --- */

/* The newest whole line of some that came together. One that was torn is not worth keeping: the next one follows. */
static void newest_line(const struct buf *news, const char **ret, size_t *ret_len) {
        const char *end = memrchr(news->data, '\n', news->len);
        size_t before = end ? (size_t) (end - news->data) : 0;
        const char *start = before > 0 ? memrchr(news->data, '\n', before) : NULL;

        *ret = start ? start + 1 : news->data;
        *ret_len = before - (size_t) (*ret - news->data);
}

static int show_news(const struct buf *news, const struct op *op) {
        _cleanup_buf_ struct buf line = BUF_INIT(WIRE_DATA_CHUNK * 4);
        const char *raw;
        size_t len;

        newest_line(news, &raw, &len);
        int r = utf8_sanitize(&line, raw, MIN(len, (size_t) PROGRESS_LINE_MAX * 2), NULL);
        if (r < 0 || line.len == 0)
                return r;
        agent_tame(line.data, PROGRESS_LINE_MAX);
        for (char *c = line.data; *c; c++)
                if (*c == '\n' || *c == '\t')
                        *c = ' ';
        op_progress(op, "%s", line.data);
        return 0;
}

static int keep(struct agent_received *received, const struct mux_event *e, struct error *err) {
        struct buf *to = e->channel == WIRE_CH_OUT ? &received->out : &received->err;

        int r = buf_append(to, e->data.data, e->data.len);
        return r == -ENOBUFS ? error_set(err, ERROR_INVALID_ARGUMENT, "more than %zu bytes of output", to->max) : r;
}

/* One event before the last message. 0; 1: it is the last message. */
static int take_event(const struct mux_event *e, bool progress, const struct op *op, struct agent_received *received,
                      struct error *err) {
        if (e->kind == MUX_MSG)
                return 1;
        if (progress && e->kind == MUX_DATA && e->channel == WIRE_CH_NEWS)
                return show_news(&e->data, op);
        if (e->channel != WIRE_CH_OUT && e->channel != WIRE_CH_ERR)
                return error_set(err, ERROR_INVALID_ARGUMENT, "output on channel %d", (int) e->channel);
        return e->kind == MUX_DATA ? keep(received, e, err) : 0;
}

int agent_receive(struct mux_stream *s, const char *doing, bool progress, const struct op *op,
                  struct agent_received *received, json_t **ret, struct error *err) {
        for (;;) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
                _cleanup_error_ struct error detail = ERROR_INIT;

                int r = agent_next(s, doing, op, &e, err);
                if (r < 0)
                        return r;
                r = take_event(&e, progress, op, received, &detail);
                if (r == -ENOMEM)
                        return error_set_errno(err, ENOMEM, "Cannot keep the output of the command");
                if (r < 0)
                        return agent_protocol_error(doing, &detail, err);
                if (r > 0) {
                        *ret = TAKE_PTR(e.msg);
                        return 0;
                }
        }
}

/* --- what the message behind it says --- */

/* The numbers of one output in a message. */
struct extent {
        uint64_t head, cut, total;
};

static int get_extent(const json_t *msg, const char *key, struct extent *ret, struct error *err) {
        const json_t *o = json_object_get(msg, key);

        if (!json_is_object(o))
                return error_set(err, ERROR_INVALID_ARGUMENT, "no object \"%s\"", key);
        int r = agent_get_count(o, "head", &ret->head, err);
        if (r >= 0)
                r = agent_get_count(o, "cut", &ret->cut, err);
        if (r >= 0)
                r = agent_get_count(o, "total", &ret->total, err);
        return r;
}

/* Whether `sent` bytes that came from `offset` on can belong to such an output. */
static bool extent_fits(const struct extent *x, uint64_t sent, int64_t offset, bool final) {
        if (x->head > sent)
                return false;
        /* Nothing to read there: an offset may lie behind the end. */
        if (offset != AGENT_WHOLE && sent == 0 && x->cut == 0)
                return true;
        if (x->cut > x->total || sent > x->total - x->cut)
                return false;
        uint64_t missing = x->total - x->cut - sent;
        if (offset != AGENT_WHOLE)
                return (uint64_t) offset <= missing;
        return !final || missing == 0;
}

static int take_output(struct buf *bytes, const json_t *msg, const char *key, int64_t offset, bool final,
                       struct agent_output *ret, struct error *err) {
        struct extent x = {0};

        int r = get_extent(msg, key, &x, err);
        if (r < 0)
                return r;
        if (!extent_fits(&x, bytes->len, offset, final))
                return error_set(err, ERROR_INVALID_ARGUMENT,
                                 "\"%s\" does not fit the %zu bytes that came: head %llu, cut %llu, total %llu", key,
                                 bytes->len, (unsigned long long) x.head, (unsigned long long) x.cut,
                                 (unsigned long long) x.total);
        ret->cut = x.cut;
        ret->total = x.total;
        ret->tail = BUF_INIT(bytes->max);
        if (x.cut > 0) {
                r = buf_append(&ret->tail, bytes->data ? bytes->data + x.head : NULL, bytes->len - x.head);
                if (r < 0)
                        return r;
                buf_truncate(bytes, x.head);
        }
        ret->head = *bytes;
        *bytes = BUF_INIT(0);
        return 0;
}

int agent_take_outputs(struct agent_received *received, const json_t *msg, int64_t out_offset, int64_t err_offset,
                       bool final, struct agent_exec_result *ret, struct error *err) {
        uint64_t ms = 0;

        int r = agent_get_count(msg, "duration_ms", &ms, err);
        if (r >= 0)
                r = take_output(&received->out, msg, "out", out_offset, final, &ret->out, err);
        if (r >= 0)
                r = take_output(&received->err, msg, "err", err_offset, final, &ret->err, err);
        ret->duration_ms = (int64_t) ms;
        return r;
}

/* A number that may be absent; then *ret stays as it is. */
static int get_optional_number(const json_t *msg, const char *key, int min, int max, int *ret, struct error *err) {
        int64_t v = INT64_MIN;

        int r = json_opt_int(msg, key, &v, err);
        if (r < 0 || v == INT64_MIN)
                return r;
        if (v < min || v > max)
                return error_set(err, ERROR_INVALID_ARGUMENT, "\"%s\" is out of range", key);
        *ret = (int) v;
        return 0;
}

int agent_parse_end(const json_t *msg, struct agent_exec_result *ret, struct error *err) {
        int code = -1, signal = 0;

        int r = get_optional_number(msg, "exit_code", 0, EXIT_CODE_MAX, &code, err);
        if (r >= 0)
                r = get_optional_number(msg, "signal", 1, SIGNAL_MAX, &signal, err);
        if (r >= 0 && (code < 0) == (signal == 0))
                r = error_set(err, ERROR_INVALID_ARGUMENT, "neither or both of \"exit_code\" and \"signal\"");
        if (r >= 0)
                r = json_opt_bool(msg, "timed_out", &ret->timed_out, err);
        if (r >= 0)
                r = json_opt_bool(msg, "leftover", &ret->leftover, err);
        ret->exit_code = code;
        ret->signal = signal;
        return r;
}

int agent_get_job_id(const json_t *msg, uint64_t *ret, struct error *err) {
        uint64_t id = 0;

        int r = agent_get_count(msg, "job_id", &id, err);
        if (r >= 0 && id == 0)
                r = error_set(err, ERROR_INVALID_ARGUMENT, "\"job_id\" is 0");
        if (r >= 0)
                *ret = id;
        return r;
}
