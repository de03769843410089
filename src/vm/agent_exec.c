/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "base/thread.h"
#include "vm/agent_private.h"
#include "vm/capture.h"

/* The guest enforces the timeout and reports it with all output; only if it does not do so within this time after it
 * (killing thousands of processes takes a while on a loaded host) does our own deadline end the call. */
#define EXEC_MARGIN_MS 10000

static const char doing[] = "running the command";

void agent_exec_result_clear(struct agent_exec_result *r) {
        buf_free(&r->out.head);
        buf_free(&r->out.tail);
        buf_free(&r->err.head);
        buf_free(&r->err.tail);
        *r = (struct agent_exec_result){0};
}

/*
 * Standard input. What fits the stream's initial credit is sent at once: that waits for the channel only, never for
 * the command. More than that is sent by a thread of its own, because a command may fill its output before it reads
 * its input, or never read it at all. The thread has a token of its own, fired when the call ends in any way.
 */
struct pump {
        struct mux_stream *stream; /* borrowed: the call outlives the thread */
        const void *data;
        size_t len;
        struct op op;
        pthread_t thread;
        bool running;
};

static void *pump_main(void *arg) {
        struct pump *p = arg;

        /* If it fails, the receiving side of the call learns the reason from its own next event. */
        (void) agent_send(p->stream, p->data, p->len, true, doing, &p->op, NULL);
        return NULL;
}

static int pump_start(struct pump *p, struct mux_stream *s, const struct agent_exec_args *args, const struct op *op,
                      struct error *err) {
        if (args->stdin_len <= WIRE_WINDOW)
                return agent_send(s, args->stdin_data, args->stdin_len, true, doing, op, err);

        p->stream = s;
        p->data = args->stdin_data;
        p->len = args->stdin_len;
        p->op = (struct op){.deadline = op->deadline, .cancel = cancel_new()};
        if (!p->op.cancel)
                return error_set_errno(err, ENOMEM, "Failed while %s", doing);
        int r = thread_start(&p->thread, "agent-stdin", pump_main, p);
        if (r < 0)
                return error_set_errno(err, r, "Cannot start a thread for standard input");
        p->running = true;
        return 0;
}

static void pump_end(struct pump *p) {
        if (p->running) {
                cancel_fire(p->op.cancel);
                pthread_join(p->thread, NULL);
        }
        cancel_unref(p->op.cancel);
}

static json_t *exec_request(const struct agent_exec_args *args) {
        _cleanup_json_ json_t *request =
                json_pack("{s:s, s:s, s:s*, s:O*, s:b}", "type", WIRE_REQ_EXEC, "command", args->command, "workdir",
                          args->workdir, "env", args->env, "stdin", (int) (args->stdin_len > 0));

        if (!request)
                return NULL;
        if (args->timeout_ms > 0 && json_put(request, "timeout_ms", json_integer(args->timeout_ms)) < 0)
                return NULL;
        return TAKE_PTR(request);
}

static int get_optional_number(const json_t *msg, const char *key, int min, int max, int *ret, struct error *err) {
        int64_t v = *ret;

        int r = json_opt_int(msg, key, &v, err);
        if (r < 0)
                return r;
        if (v != *ret && (v < min || v > max))
                return error_set(err, ERROR_INVALID_ARGUMENT, "\"%s\" is out of range", key);
        *ret = (int) v;
        return 0;
}

static int parse_exit(const json_t *msg, struct agent_exec_result *ret, struct error *err) {
        int code = -1, signal = 0;
        uint64_t ms = 0;

        int r = get_optional_number(msg, "exit_code", 0, 255, &code, err);
        if (r >= 0)
                r = get_optional_number(msg, "signal", 1, 64, &signal, err);
        if (r >= 0 && (code < 0) == (signal == 0))
                r = error_set(err, ERROR_INVALID_ARGUMENT, "neither or both of \"exit_code\" and \"signal\"");
        if (r >= 0)
                r = json_opt_bool(msg, "timed_out", &ret->timed_out, err);
        if (r >= 0)
                r = json_opt_bool(msg, "leftover", &ret->leftover, err);
        if (r >= 0)
                r = agent_get_count(msg, "duration_ms", &ms, err);
        if (r < 0)
                return r;
        ret->exit_code = code;
        ret->signal = signal;
        ret->duration_ms = (int64_t) ms;
        return 0;
}

/* Takes output until the command's end is reported. */
static int gather(struct mux_stream *s, const struct op *op, struct capture *out, struct capture *err_out,
                  struct agent_exec_result *ret, struct error *err) {
        for (;;) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
                _cleanup_error_ struct error detail = ERROR_INIT;

                int r = agent_next(s, doing, op, &e, err);
                if (r < 0)
                        return r;
                if (e.kind == MUX_EOF)
                        continue;
                if (e.kind == MUX_MSG) {
                        if (!agent_is(e.msg, WIRE_MSG_EXIT) || parse_exit(e.msg, ret, &detail) < 0)
                                return agent_protocol_error(doing, &detail, err);
                        return 0;
                }
                if (e.channel != WIRE_CH_OUT && e.channel != WIRE_CH_ERR)
                        return agent_protocol_error(doing, NULL, err);
                r = capture_feed(e.channel == WIRE_CH_OUT ? out : err_out, e.data.data, e.data.len);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot keep the command's output");
        }
}

static int run(struct mux_stream *s, const struct agent_exec_args *args, const struct op *op,
               struct agent_exec_result *ret, struct error *err) {
        _cleanup_capture_ struct capture out, err_out;
        _cleanup_(pump_end) struct pump pump = {0};
        _cleanup_json_ json_t *started = NULL;

        capture_init(&out, args->max_output);
        capture_init(&err_out, args->max_output);
        int r = agent_expect(s, WIRE_MSG_STARTED, doing, op, &started, err);
        if (r < 0)
                return r;
        if (args->stdin_len > 0) {
                r = pump_start(&pump, s, args, op, err);
                if (r < 0)
                        return r;
        }
        r = gather(s, op, &out, &err_out, ret, err);
        if (r < 0)
                return r;
        capture_take(&out, &ret->out);
        capture_take(&err_out, &ret->err);
        return 0;
}

int agent_exec(struct agent *a, const struct agent_exec_args *args, const struct op *op, struct agent_exec_result *ret,
               struct error *err) {
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_json_ json_t *request = exec_request(args);
        struct agent_exec_result result = {0};
        const struct op limited = args->timeout_ms > 0 ? op_sub(op, args->timeout_ms + EXEC_MARGIN_MS) : *op;

        int r = agent_request(a, request, doing, &limited, &s, err);
        if (r < 0)
                return r;
        r = run(s, args, &limited, &result, err);
        if (r < 0)
                return r; /* dropping the stream closes it, and the guest kills what the command started */
        *ret = result;
        return 0;
}
