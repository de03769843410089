/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"
#include "vm/agent_private.h"

#define PROGRESS_MS 1000 /* between two lines of progress */

static const char doing[] = "running the command";

int agent_put_command(json_t *request, const struct agent_exec_args *args) {
        int r = json_put(request, "command", json_string(args->command));

        if (r >= 0 && args->workdir)
                r = json_put(request, "workdir", json_string(args->workdir));
        if (r >= 0 && args->env)
                r = json_put(request, "env", json_incref(args->env));
        if (r >= 0 && args->timeout_ms > 0)
                r = json_put(request, "timeout_ms", json_integer(args->timeout_ms));
        return r;
}

static json_t *exec_request(const struct agent_exec_args *args, bool progress) {
        _cleanup_json_ json_t *request =
                json_pack("{s:s, s:b, s:I}", "type", WIRE_REQ_EXEC, "stdin", (int) (args->stdin_len > 0), "max_output",
                          (json_int_t) args->max_output);

        if (!request || agent_put_command(request, args) < 0)
                return NULL;
        if (args->yield_ms > 0 && json_put(request, "yield_ms", json_integer(args->yield_ms)) < 0)
                return NULL;
        if (progress && json_put(request, "progress_ms", json_integer(PROGRESS_MS)) < 0)
                return NULL;
        return TAKE_PTR(request);
}

/* The guest has to answer when the command has used up its time or yields, whichever comes first. */
static struct op answer_op(const struct agent_exec_args *args, const struct op *op) {
        int64_t ms = args->timeout_ms;

        if (args->yield_ms > 0 && (ms <= 0 || args->yield_ms < ms))
                ms = args->yield_ms;
        return ms > 0 ? op_sub(op, ms + AGENT_MARGIN_MS) : *op;
}

/* The message that ends the call. The error is a detail. */
static int parse_last(const json_t *msg, const struct agent_exec_args *args, struct agent_received *received,
                      struct agent_exec_result *ret, struct error *err) {
        int r;

        if (agent_is(msg, WIRE_MSG_EXIT))
                r = agent_parse_end(msg, ret, err);
        else if (agent_is(msg, WIRE_MSG_YIELDED) && args->yield_ms > 0)
                r = agent_get_job_id(msg, &ret->job_id, err);
        else
                r = error_set(err, ERROR_INVALID_ARGUMENT, "not the message that was due");
        if (r < 0)
                return r;
        const bool final = ret->job_id == 0 && !ret->leftover;
        return agent_take_outputs(received, msg, AGENT_WHOLE, AGENT_WHOLE, final, ret, err);
}

/* From the moment that the guest has everything that it needs to run the command. */
static int take_result(struct mux_stream *s, const struct agent_exec_args *args, const struct op *op,
                       struct agent_exec_result *ret, struct error *err) {
        _cleanup_received_ struct agent_received received = {BUF_INIT(args->max_output), BUF_INIT(args->max_output)};
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *last = NULL;

        int r = agent_receive(s, doing, op->progress, op, &received, &last, err);
        if (r < 0)
                return r;
        r = parse_last(last, args, &received, ret, &detail);
        if (r == -ENOMEM)
                return error_set_errno(err, ENOMEM, "Cannot keep the output of the command");
        if (r < 0)
                return agent_protocol_error(doing, &detail, err);
        /* The guest waits for our close: it is the sign that this message was taken. */
        return mux_stream_ready(s) ? agent_end(s, doing, op, err) : 0;
}

/* The guest did not answer in time. The command may run well, so it is not killed: told of the time-out, the guest
 * keeps it as a job. */
static void give_up(struct mux_stream *s, struct error *err) {
        _cleanup_error_ struct error reason = ERROR_INIT;

        error_set(&reason, ERROR_TIMEOUT, "The host did not get an answer in time");
        mux_close(s, &reason);
        if (err && err->code == ERROR_TIMEOUT)
                error_hint(err, "The command may still run, as a job: exec_background with action list shows it.");
}

int agent_exec(struct agent *a, const struct agent_exec_args *args, const struct op *op, struct agent_exec_result *ret,
               struct error *err) {
        _cleanup_exec_result_ struct agent_exec_result result = {.exit_code = -1};
        _cleanup_stream_ struct mux_stream *s = NULL;

        if (args->stdin_len > WIRE_STDIN_MAX)
                return error_set(err, ERROR_INVALID_ARGUMENT, "Standard input has %zu bytes, at most %u are possible",
                                 args->stdin_len, WIRE_STDIN_MAX);
        _cleanup_json_ json_t *request = exec_request(args, op->progress);
        /* A guest that takes the input too slowly is ended by this one; the command's own time begins behind it. */
        struct op limited = answer_op(args, op);
        int r = agent_request(a, request, doing, &limited, &s, err);
        if (r >= 0 && args->stdin_len > 0) {
                r = agent_send(s, args->stdin_data, args->stdin_len, true, doing, &limited, err);
                limited = answer_op(args, op);
        }
        if (r >= 0)
                r = take_result(s, args, &limited, &result, err);
        /* A time-out that the guest tells of itself is none of ours. */
        if (s && (r == -ETIMEDOUT || r == -ENOSPC) && deadline_passed(limited.deadline))
                give_up(s, err);
        if (r < 0)
                return r; /* dropping the stream closes it, and the guest kills what the command started */
        *ret = result;
        result = (struct agent_exec_result){0};
        return 0;
}
