/* SPDX-License-Identifier: Apache-2.0 */

/*
 * WIRE_REQ_EXEC: a job that its request waits for. While it does, the job is in no list. It gets into the list when it
 * yields, or when the connection is lost or the host runs out of time: then nobody has the output, and it must not be
 * lost with it. An answer that was sent may still be on its way: the host has it once it closes the stream.
 */

#include <string.h>

#include "guest/exec_input.h"
#include "guest/job_answer.h"

#define LINE_MAX_BYTES 160   /* of progress */
#define TAKEN_MS 10000       /* for the host to say that it has the answer, by closing the stream */
#define PROGRESS_SEND_MS 100 /* a line that the channel does not take at once is not worth waiting for */

struct exec {
        struct request *req;
        struct exec_args args;
        struct job *job;
        deadline_t yield_at, progress_at;
        char line[LINE_MAX_BYTES]; /* that was sent last */
        size_t line_len;
};

/* As data, not as a message: a host that does not read for a while then costs some lines, not the stream. */
static void tell_progress(struct exec *e) {
        struct op op = op_timeout(PROGRESS_SEND_MS);
        char line[LINE_MAX_BYTES + 1];
        size_t n = job_newest_line(e->job, line, LINE_MAX_BYTES);

        e->progress_at = deadline_in_ms(e->args.progress_ms);
        if (n == 0 || (n == e->line_len && memcmp(line, e->line, n) == 0))
                return;
        memcpy(e->line, line, n);
        e->line_len = n;
        line[n] = '\n';
        (void) mux_send_data(e->req->stream, WIRE_CH_NEWS, line, n + 1, &op);
}

/* -ECANCELED: it has ended; -ETIMEDOUT: it is to yield; -EPIPE, -ENOTCONN: the host is gone. */
static int wait_end(struct exec *e) {
        struct job_waiter w;
        int r = job_waiter_begin(e->job, JOB_NEWS_END, &w);

        if (r < 0)
                return r;
        for (;;) {
                r = request_wait(e->req, w.token, deadline_min(e->yield_at, e->progress_at));
                if (r != -ETIMEDOUT || deadline_passed(e->yield_at))
                        break;
                tell_progress(e);
        }
        job_waiter_end(e->job, &w);
        return r;
}

/* The output, and behind it how the command has ended, or its number as a job. */
static int answer(struct exec *e, uint64_t job_id) {
        json_t *m = json_object();
        struct job_end end;
        int r = json_put(m, "duration_ms", json_integer(job_duration_ms(e->job)));

        if (r == 0 && job_id > 0)
                r = json_put(m, "job_id", json_integer((json_int_t) job_id));
        else if (r == 0 && job_ended(e->job, &end))
                r = job_put_end(m, &end);
        if (r == 0)
                r = job_send_output(e->req, e->job, JOB_WHOLE, JOB_WHOLE, (size_t) e->args.max_output, m);
        if (r == 0)
                return request_send(e->req, job_id > 0 ? WIRE_MSG_YIELDED : WIRE_MSG_EXIT, m);
        json_decref(m);
        return r;
}

static uint64_t keep(struct exec *e) {
        uint64_t id = jobs_list(&e->req->agent->jobs, e->job);

        if (job_ended(e->job, NULL))
                job_settle(e->job);
        return id;
}

/* It has ended. 0: the host has the answer, or does not want it; -ENOTCONN: it may not have it. */
static int answer_end(struct exec *e) {
        int r = answer(e, 0);

        if (r == 0 || r == -EPIPE)
                r = request_wait(e->req, NULL, deadline_in_ms(TAKEN_MS));
        return r == -ETIMEDOUT || r == -EPIPE ? 0 : r;
}

static int run(struct exec *e, struct error *err) {
        int r = wait_end(e);

        if (r == -ECANCELED)
                r = answer_end(e);
        else if (r == -ETIMEDOUT)
                r = answer(e, keep(e));

        /* One that is in the list runs on, whatever has become of the answer. */
        if (r == -ENOTCONN)
                keep(e);
        else if (r < 0 && job_id(e->job) == 0)
                job_destroy(e->job);
        if (r == 0 || r == -ENOTCONN || r == -EPIPE)
                return 1;
        return error_set_errno(err, r, "The command's output cannot be sent");
}

static int start(struct exec *e, struct error *err) {
        _cleanup_close_ int stdin_fd = -1;
        struct exec_input input = EXEC_INPUT_INIT;
        int r = e->args.has_stdin ? exec_input_receive(e->req, &input, err) : 0;

        if (r != 0)
                return r;
        stdin_fd = input.fd;
        struct job_spec spec = {
                .command = &e->args.command,
                .stdin_fd = stdin_fd,
                .input_bytes = input.bytes,
                .cols = -1,
                .rows = -1,
        };
        return job_start(e->req->agent, &spec, &e->job, err);
}

int handle_exec(struct request *req, struct error *err) {
        struct exec e = {.req = req, .yield_at = DEADLINE_NEVER, .progress_at = DEADLINE_NEVER};
        int r = exec_args_parse(req->args, &e.args, err);

        if (r == 0)
                r = start(&e, err);
        if (r != 0)
                return r;
        if (e.args.yield_ms > 0)
                e.yield_at = deadline_in_ms(e.args.yield_ms);
        if (e.args.progress_ms > 0)
                e.progress_at = deadline_in_ms(e.args.progress_ms);
        r = run(&e, err);
        job_unref(e.job);
        return r;
}
