/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/job_answer.h"

int job_put_end(json_t *m, const struct job_end *end) {
        int r = end->signal ? json_put(m, "signal", json_integer(end->signal))
                            : json_put(m, "exit_code", json_integer(end->exit_code));

        r |= json_put(m, "timed_out", json_boolean(end->timed_out));
        r |= json_put(m, "leftover", json_boolean(end->leftover));
        return r < 0 ? -ENOMEM : 0;
}

static int put_view(json_t *m, const char *key, const struct spool_view *v) {
        json_t *o = json_object();
        int r = json_put(o, "head", json_integer((json_int_t) v->head));

        r |= json_put(o, "cut", json_integer((json_int_t) v->cut));
        r |= json_put(o, "total", json_integer((json_int_t) v->total));
        r |= json_put(m, key, o);
        return r < 0 ? -ENOMEM : 0;
}

static int send_one(struct request *req, struct job_stream *s, enum wire_channel channel, int64_t offset, size_t max,
                    const char *key, json_t *m) {
        _cleanup_spool_view_ struct spool_view v = SPOOL_VIEW_INIT;
        struct op op = OP_INIT_NEVER;
        int r = spool_read(&s->spool, offset, max, &v);

        if (r == 0)
                r = put_view(m, key, &v);
        if (r == 0 && v.data.len > 0)
                r = mux_send_data(req->stream, channel, v.data.data, v.data.len, &op);
        if (r == 0 && offset < 0)
                atomic_store(&s->given, v.total);
        return r;
}

int job_send_output(struct request *req, struct job *j, int64_t out_offset, int64_t err_offset, size_t max, json_t *m) {
        int r = send_one(req, &j->stream[JOB_OUT], WIRE_CH_OUT, out_offset, max, "out", m);

        return r < 0 ? r : send_one(req, &j->stream[JOB_ERR], WIRE_CH_ERR, err_offset, max, "err", m);
}
