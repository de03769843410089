/* SPDX-License-Identifier: Apache-2.0 */

/* The requests about jobs, and about the environment that all commands have. */

#include <inttypes.h>
#include <signal.h>

#include "base/str.h"
#include "guest/job_answer.h"

static int no_memory(struct error *err) {
        return error_set(err, ERROR_INTERNAL, "The agent is out of memory");
}

/* The host has left: nobody wants an answer. */
static bool host_gone(int r) {
        return r == -EPIPE || r == -ENOTCONN;
}

static int has_ended(int64_t id, struct error *err) {
        error_set(err, ERROR_CONFLICT, "Job %" PRIi64 " has ended", id);
        error_hint(err, "exec_background with action poll gives its output and how it ended.");
        return -error_code_errno(ERROR_CONFLICT);
}

int handle_job_start(struct request *req, struct error *err) {
        _cleanup_job_ struct job *j = NULL;
        struct job_start_args args;
        uint64_t id;
        int r = job_start_args_parse(req->args, &args, err);

        if (r < 0)
                return r;
        struct job_spec spec = {
                .command = &args.command,
                .stdin_fd = -1,
                .stdin_pipe = !args.pty,
                .pty = args.pty,
                .cols = args.cols,
                .rows = args.rows,
        };
        r = job_start(req->agent, &spec, &j, err);
        if (r < 0)
                return r;
        if (mux_stream_closed(req->stream)) { /* cancelled: nobody will ever ask for it */
                job_destroy(j);
                return 1;
        }
        id = jobs_list(&req->agent->jobs, j);
        if (job_ended(j, NULL))
                job_settle(j);
        r = json_put(req->reply, "job_id", json_integer((json_int_t) id));
        r |= json_put(req->reply, "pid", json_integer(j->pid));
        return r < 0 ? no_memory(err) : 0;
}

/* ---- reading ---- */

/* Whether there is output that the reader has not seen. Of one who names no offset it is what nobody was given yet: he
 * gets all again, but waits for more. One whose offset does not exist is told at once. */
static bool has_news(struct job_stream *s, int64_t offset) {
        uint64_t total = spool_total(&s->spool);

        return offset < 0 ? total > atomic_load(&s->given) : total != (uint64_t) offset;
}

static bool read_news(struct job *j, const struct job_read_args *a) {
        return job_ended(j, NULL) || has_news(&j->stream[JOB_OUT], a->out_offset) ||
               has_news(&j->stream[JOB_ERR], a->err_offset);
}

/* 0, also when the time is up; else as request_wait(). */
static int wait_news(struct request *req, struct job *j, const struct job_read_args *a) {
        deadline_t deadline = deadline_in_ms(a->wait_ms);

        while (a->wait_ms > 0 && !read_news(j, a)) {
                struct job_waiter w;
                int r = job_waiter_begin(j, JOB_NEWS_OUTPUT | JOB_NEWS_END, &w);

                if (r < 0)
                        return r;
                r = read_news(j, a) ? 0 : request_wait(req, w.token, deadline);
                job_waiter_end(j, &w);
                if (r < 0 && r != -ECANCELED)
                        return r == -ETIMEDOUT ? 0 : r;
        }
        return 0;
}

static int send_job(struct request *req, struct job *j, const struct job_read_args *a) {
        json_t *m = json_object();
        struct job_end end;
        bool ended = job_ended(j, &end); /* first: of an ended one, all output is sent */
        int r = json_put(m, "running", json_boolean(!ended));

        r |= json_put(m, "pty", json_boolean(j->pty));
        r |= json_put(m, "duration_ms", json_integer(job_duration_ms(j)));
        if (ended)
                r |= job_put_end(m, &end);
        r = r < 0 ? -ENOMEM : job_send_output(req, j, a->out_offset, a->err_offset, (size_t) a->max_output, m);
        if (r == 0)
                return request_send(req, WIRE_MSG_JOB, m);
        json_decref(m);
        return r;
}

int handle_job_read(struct request *req, struct error *err) {
        _cleanup_job_ struct job *j = NULL;
        struct job_read_args args;
        int r = job_read_args_parse(req->args, &args, err);

        if (r < 0)
                return r;
        j = jobs_get(&req->agent->jobs, (uint64_t) args.id, err);
        if (!j)
                return -ENOENT;
        r = wait_news(req, j, &args);
        if (r == 0)
                r = send_job(req, j, &args);
        if (r < 0 && !host_gone(r))
                return error_set_errno(err, r, "Cannot send the output of the job");
        return 1;
}

/* ---- writing ---- */

struct write {
        struct request *req;
        struct job *job;
        struct job_write_args args;
        struct buf data;
        size_t taken; /* from agent.inputs */
        size_t written;
        deadline_t deadline;
};

static void write_clear(struct write *w) {
        budget_give(&w->req->agent->inputs, w->taken);
        buf_free(&w->data);
        job_unref(w->job);
}

/* All that the host sends. 1: it has left. */
static int receive(struct write *w, struct error *err) {
        struct op op = OP_INIT_NEVER;

        for (;;) {
                _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;
                int r = mux_recv(w->req->stream, &op, &ev);

                if (r < 0)
                        return r;
                if (ev.kind == MUX_CLOSED || ev.kind == MUX_LOST)
                        return 1;
                if (ev.kind == MUX_EOF && ev.channel == WIRE_CH_IN)
                        return 0;
                if (ev.kind != MUX_DATA || ev.channel != WIRE_CH_IN)
                        continue;
                if (!budget_take(&w->req->agent->inputs, ev.data.len))
                        return error_set(err, ERROR_NO_SPACE,
                                         "The machine's memory has no room for this input beside that of other "
                                         "commands");
                w->taken += ev.data.len;
                r = buf_append(&w->data, ev.data.data, ev.data.len);
                if (r == -ENOBUFS)
                        return error_set(err, ERROR_INVALID_ARGUMENT, "The input has more than %u bytes",
                                         WIRE_JOB_WRITE_MAX);
                if (r < 0)
                        return r;
        }
}

/* Until it is this request's turn. 0; as request_wait(), -ECANCELED: the job has ended. */
static int claim(struct write *w) {
        while (!job_write_begin(w->job)) {
                struct job_waiter waiter;
                int r = job_waiter_begin(w->job, JOB_NEWS_INPUT | JOB_NEWS_END, &waiter);

                if (r < 0)
                        return r;
                bool mine = job_write_begin(w->job);
                r = mine ? 0 : request_wait(w->req, waiter.token, w->deadline);
                job_waiter_end(w->job, &waiter);
                if (mine || (r < 0 && r != -ECANCELED) || job_ended(w->job, NULL))
                        return r;
        }
        return 0;
}

/* 0: there may be room now, or the job has ended. */
static int wait_room(struct write *w) {
        struct job_waiter waiter;
        int r = job_waiter_begin(w->job, JOB_NEWS_INPUT | JOB_NEWS_END, &waiter);

        if (r < 0)
                return r;
        job_want_room(w->job);
        r = request_wait(w->req, waiter.token, w->deadline);
        job_waiter_end(w->job, &waiter);
        return r == -ECANCELED ? 0 : r;
}

/* 0: as much as could be; 1: the input is closed; else as request_wait(). */
static int write_all(struct write *w) {
        bool eof = w->args.eof;

        while (w->written < w->data.len || eof) {
                ssize_t n;
                int r;

                if (w->written < w->data.len) {
                        n = job_write(w->job, w->data.data + w->written, w->data.len - w->written);
                        w->written += n > 0 ? (size_t) n : 0;
                } else {
                        n = job_write_eof(w->job);
                        eof = n < 0;
                }
                if (n == -EPIPE)
                        return 1;
                if (n >= 0)
                        continue;
                r = wait_room(w);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int input_closed(struct write *w, struct error *err) {
        if (job_ended(w->job, NULL))
                return has_ended(w->args.id, err);
        error_set(err, ERROR_CONFLICT, "The standard input of job %" PRIi64 " is closed", w->args.id);
        error_hint(err, "It was ended with eof, or the job itself does not read any more; the job still runs.");
        return -error_code_errno(ERROR_CONFLICT);
}

static int write_and_answer(struct write *w, struct error *err) {
        int r = claim(w);

        if (r == 0) {
                r = write_all(w);
                job_write_end(w->job);
        } else if (r == -ECANCELED) {
                r = 1;
        }
        if (host_gone(r))
                return 1;
        if (r == 1 && w->written == 0)
                return input_closed(w, err);
        if (r < 0 && r != -ETIMEDOUT)
                return error_set_errno(err, r, "Cannot write to the job");
        return json_put(w->req->reply, "written", json_integer((json_int_t) w->written)) < 0 ? no_memory(err) : 0;
}

int handle_job_write(struct request *req, struct error *err) {
        _cleanup_(write_clear) struct write w = {.req = req, .data = BUF_INIT(WIRE_JOB_WRITE_MAX)};
        int r = job_write_args_parse(req->args, &w.args, err);

        if (r < 0)
                return r;
        w.job = jobs_get(&req->agent->jobs, (uint64_t) w.args.id, err);
        if (!w.job)
                return -ENOENT;
        r = receive(&w, err);
        if (r != 0)
                return r;
        w.deadline = deadline_in_ms(w.args.wait_ms);
        return write_and_answer(&w, err);
}

/* ---- signals, terminal ---- */

int handle_job_kill(struct request *req, struct error *err) {
        _cleanup_job_ struct job *j = NULL;
        struct job_kill_args args;
        struct job_waiter w;
        size_t processes = 0;
        int r = job_kill_args_parse(req->args, &args, err);

        if (r < 0)
                return r;
        j = jobs_get(&req->agent->jobs, (uint64_t) args.id, err);
        if (!j)
                return -ENOENT;
        (void) job_signal(j, (int) args.sig, &processes); /* what did not end is seen in the answer */
        if (args.sig == SIGKILL && job_waiter_begin(j, JOB_NEWS_END, &w) == 0) {
                r = request_wait(req, w.token, deadline_in_ms(JOB_KILL_MAX_MS));
                job_waiter_end(j, &w);
                if (host_gone(r))
                        return 1;
        }
        bool ended = job_ended(j, NULL);
        if (ended && args.sig == SIGKILL)
                job_settle(j);
        r = json_put(req->reply, "running", json_boolean(!ended));
        r |= json_put(req->reply, "processes", json_integer((json_int_t) processes));
        return r < 0 ? no_memory(err) : 0;
}

int handle_job_resize(struct request *req, struct error *err) {
        _cleanup_job_ struct job *j = NULL;
        struct job_resize_args args;
        int r = job_resize_args_parse(req->args, &args, err);

        if (r < 0)
                return r;
        j = jobs_get(&req->agent->jobs, (uint64_t) args.id, err);
        if (!j)
                return -ENOENT;
        r = job_resize(j, args.cols > 0 ? (unsigned) args.cols : 0, args.rows > 0 ? (unsigned) args.rows : 0);
        if (r == -ENOTTY) {
                r = error_set(err, ERROR_INVALID_ARGUMENT, "Job %" PRIi64 " has no terminal", args.id);
                error_hint(err, "A job has one when it is started with pty: true.");
                return r;
        }
        if (r == -EPIPE)
                return has_ended(args.id, err);
        return r < 0 ? error_set_errno(err, r, "Cannot resize the terminal") : 0;
}

/* ---- listing ---- */

static json_t *describe(struct job *j) {
        _cleanup_json_ json_t *o = json_object();
        struct job_end end;
        bool ended = job_ended(j, &end);
        int r = json_put(o, "job_id", json_integer((json_int_t) job_id(j)));

        r |= json_put(o, "command", json_string(j->command));
        r |= json_put(o, "running", json_boolean(!ended));
        r |= json_put(o, "pty", json_boolean(j->pty));
        if (ended)
                r |= job_put_end(o, &end);
        r |= json_put(o, "started_ms", json_integer(j->started_ms));
        r |= json_put(o, "duration_ms", json_integer(job_duration_ms(j)));
        r |= json_put(o, "out_total", json_integer((json_int_t) spool_total(&j->stream[JOB_OUT].spool)));
        r |= json_put(o, "err_total", json_integer((json_int_t) spool_total(&j->stream[JOB_ERR].spool)));
        return r < 0 ? NULL : TAKE_PTR(o);
}

int handle_job_list(struct request *req, struct error *err) {
        struct job *jobs[WIRE_JOB_LIST_MAX];
        json_t *list = json_array();
        int64_t max = 0;
        size_t n, total;
        int r = job_list_args_parse(req->args, &max, err);

        if (r < 0) {
                json_decref(list);
                return r;
        }
        n = jobs_newest(&req->agent->jobs, jobs, (size_t) max, &total);
        for (size_t i = 0; i < n; i++) {
                r |= json_push(list, describe(jobs[i]));
                job_unref(jobs[i]);
        }
        r |= json_put(req->reply, "total", json_integer((json_int_t) total));
        r |= json_put(req->reply, "jobs", list);
        return r < 0 ? no_memory(err) : 0;
}

int handle_set_env(struct request *req, struct error *err) {
        struct set_env_args args;
        size_t total = 0;
        int r = set_env_args_parse(req->args, &args, err);

        if (r == 0)
                r = env_store_change(&req->agent->env, args.vars, args.unset, &total, err);
        if (r < 0)
                return r;
        return json_put(req->reply, "total", json_integer((json_int_t) total)) < 0 ? no_memory(err) : 0;
}
