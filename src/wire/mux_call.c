/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "wire/mux_internal.h"

/* Longest message and hint that are taken over from a peer. */
#define ERROR_TEXT_MAX 8192u

/* A JSON string of any bytes: paths and program output in a message need not be UTF-8. */
static json_t *text_json(const char *s) {
        _cleanup_buf_ struct buf clean = BUF_INIT(WIRE_FRAME_MAX);
        size_t replaced;

        if (utf8_sanitize(&clean, s, strlen(s), &replaced) < 0)
                return NULL;
        return json_stringn(clean.data ? clean.data : "", clean.len);
}

json_t *wire_error_to_json(const struct error *e) {
        _cleanup_json_ json_t *json = json_object();
        int r;

        if (!json)
                return NULL;
        r = json_put(json, "type", json_string(WIRE_MSG_ERROR));
        if (r == 0)
                r = json_put(json, "code", json_string(error_code_name(e->code)));
        if (r == 0)
                r = json_put(json, "message", text_json(error_message(e)));
        if (r == 0 && e->hint)
                r = json_put(json, "hint", text_json(e->hint));
        return r < 0 ? NULL : TAKE_PTR(json);
}

static int clipped(const char *s) {
        return (int) utf8_floor(s, MIN(strlen(s), (size_t) ERROR_TEXT_MAX));
}

void wire_error_from_json(const json_t *msg, struct error *ret) {
        const char *code = NULL, *message = NULL, *hint = NULL;

        /* A member of a wrong type is as good as none. */
        (void) json_opt_str(msg, "code", &code, NULL);
        (void) json_opt_str(msg, "message", &message, NULL);
        (void) json_opt_str(msg, "hint", &hint, NULL);

        enum error_code c = code ? error_code_from_name(code) : ERROR_INTERNAL;
        if (c == ERROR_NONE)
                c = ERROR_INTERNAL;
        if (str_empty(message))
                error_set(ret, c, "The request failed (%s) without a message.", error_code_name(c));
        else
                error_set(ret, c, "%.*s", clipped(message), message);
        if (!str_empty(hint))
                error_hint(ret, "%.*s", clipped(hint), hint);
}

static const char *event_name(const struct mux_event *e) {
        const char *type = NULL;

        switch (e->kind) {
        case MUX_MSG:
                (void) json_opt_str(e->msg, "type", &type, NULL);
                return type ? type : "a message";
        case MUX_DATA:
                return "data";
        case MUX_EOF:
                return "the end of data";
        case MUX_CLOSED:
                return "the end of the stream";
        default:
                return "nothing";
        }
}

/* Fills err for mux_recv() that gave r. */
static int recv_error(struct mux *m, int r, struct error *err) {
        if (r == -ETIMEDOUT)
                error_set(err, ERROR_TIMEOUT, "The %s did not answer in time.", mux_peer_name(m));
        else if (r == -ECANCELED)
                error_set(err, ERROR_CANCELLED, "Cancelled while waiting for an answer of the %s.", mux_peer_name(m));
        else
                error_set_errno(err, r, "Cannot read an answer of the %s", mux_peer_name(m));
        return r;
}

/* Fills err for an event that is not the message that was due. */
static int event_error(struct mux *m, struct mux_event *e, const char *type, struct error *err) {
        const char *got = event_name(e);

        if (e->kind == MUX_LOST) {
                error_set(err, ERROR_GUEST_UNREACHABLE, "The connection to the %s was lost before it answered.",
                          mux_peer_name(m));
                return -ENOTCONN;
        }
        if (e->kind == MUX_CLOSED && error_is_set(&e->error)) {
                int r = -error_code_errno(e->error.code);
                error_move(err, &e->error);
                return r;
        }
        if (e->kind == MUX_MSG && strcmp(got, WIRE_MSG_ERROR) == 0) {
                _cleanup_error_ struct error sent = ERROR_INIT;

                wire_error_from_json(e->msg, &sent);
                int r = -error_code_errno(sent.code);
                error_move(err, &sent);
                return r;
        }
        error_set(err, ERROR_INTERNAL, "The %s sent %.*s where \"%s\" was due.", mux_peer_name(m), clipped(got), got,
                  type);
        return -EPROTO;
}

int mux_expect_msg(struct mux_stream *s, const char *type, const struct op *op, json_t **ret, struct error *err) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        int r;

        r = mux_recv(s, op, &e);
        if (r < 0)
                return recv_error(s->mux, r, err);
        if (e.kind != MUX_MSG || strcmp(event_name(&e), type) != 0)
                return event_error(s->mux, &e, type, err);
        if (ret)
                *ret = TAKE_PTR(e.msg);
        return 0;
}

int mux_call(struct mux *m, json_t *request, const struct op *op, json_t **ret, struct error *err) {
        _cleanup_stream_ struct mux_stream *s = NULL;
        int r;

        r = mux_open(m, request, op, &s, err);
        if (r < 0)
                return r;
        return mux_expect_msg(s, WIRE_MSG_OK, op, ret, err);
}
