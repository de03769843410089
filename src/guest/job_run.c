/* SPDX-License-Identifier: Apache-2.0 */

/* The thread of a job: moves its output to the spools, keeps its timeout, notices its end. */

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "guest/agent.h"
#include "guest/priority.h"

#define READ_CHUNK (64UL * 1024)
#define QUIET_MS 100         /* of silence after the shell's end before open pipes are given up */
#define HUNG_MS 100          /* until a terminal that nobody has open is looked at again */
#define LEFTOVER_MAX_MS 1000 /* after the shell's end, however much a process left behind prints */

struct run {
        struct job *job;
        int64_t ended_ns, news_ns; /* 0: not yet */
        deadline_t deadline;       /* the timeout; after it, when the job is given up */
        bool expired;
        bool hung; /* nobody has the terminal open: poll(2) would say so without end */
        char chunk[READ_CHUNK];
};

/* Nobody listens to this stream any more. */
static void give_up(struct run *run, struct job_stream *s) {
        drainer_add(run->job->agent->drainer, TAKE_FD(s->fd));
        s->must = 0;
}

/* Moves one chunk. A pipe whose last writer is gone gives nothing for ever, a terminal EIO until somebody opens it
 * again, which any process of the shell's session can do. */
static void pump(struct run *run, size_t which) {
        struct job *j = run->job;
        struct job_stream *s = &j->stream[which];
        ssize_t n = read(s->fd, run->chunk, READ_CHUNK);

        run->hung = n < 0 && errno == EIO && j->pty && run->ended_ns == 0;
        if (run->hung || (n < 0 && (errno == EAGAIN || errno == EINTR)))
                return;
        if (n <= 0) {
                s->fd = close_fd(s->fd);
                s->must = 0;
                return;
        }
        s->must -= (int) n;
        spool_append(&s->spool, run->chunk, (size_t) n);
        atomic_store(&j->newest, (int) which);
        run->news_ns = monotonic_ns();
        job_wake(j, JOB_NEWS_OUTPUT);
}

static bool open_streams(const struct job *j) {
        return j->stream[JOB_OUT].fd >= 0 || j->stream[JOB_ERR].fd >= 0;
}

/* How long to wait for more; 0: no longer. */
static int wait_ms(const struct run *run) {
        const struct job *j = run->job;
        int64_t now = monotonic_ns(), until;

        if (run->hung)
                return deadline_poll_ms(deadline_min(run->deadline, deadline_in_ms(HUNG_MS)));
        if (run->ended_ns == 0)
                return deadline_poll_ms(run->deadline);
        /* A process left behind may have read it meanwhile. */
        if ((j->stream[JOB_OUT].must > 0 || j->stream[JOB_ERR].must > 0) &&
            now < run->ended_ns + JOB_KILL_MAX_MS * NSEC_PER_MSEC)
                return QUIET_MS;
        until = MIN(run->news_ns + QUIET_MS * NSEC_PER_MSEC, run->ended_ns + LEFTOVER_MAX_MS * NSEC_PER_MSEC);
        return until <= now ? 0 : (int) ((until - now + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC);
}

static void note_end(struct run *run) {
        run->ended_ns = run->news_ns = monotonic_ns();
        run->hung = false;
        for (size_t i = 0; i < JOB_STREAMS; i++) {
                struct job_stream *s = &run->job->stream[i];

                if (s->fd < 0 || ioctl(s->fd, FIONREAD, &s->must) < 0)
                        s->must = 0;
        }
}

/* The time is up: kills; then the job has JOB_KILL_MAX_MS to end. */
static void expire(struct run *run) {
        struct job *j = run->job;

        if (run->expired) {
                j->given_up = true;
                return;
        }
        run->expired = true;
        pthread_mutex_lock(&j->lock);
        j->timed_out = true;
        pthread_mutex_unlock(&j->lock);
        job_signal(j, SIGKILL, NULL);
        run->deadline = deadline_in_ms(JOB_KILL_MAX_MS);
}

static int input_wanted(struct job *j) {
        LOCK(&j->lock);
        return j->want_room ? j->in_fd : -1;
}

static void input_has_room(struct job *j) {
        pthread_mutex_lock(&j->lock);
        j->want_room = false;
        pthread_mutex_unlock(&j->lock);
        job_wake(j, JOB_NEWS_INPUT);
}

enum { AT_OUT, AT_ERR, AT_CHILD, AT_WAKE, AT_IN, AT_ALL };

static void look(struct run *run, const struct pollfd *p) {
        struct job *j = run->job;
        eventfd_t count;

        for (size_t i = 0; i < JOB_STREAMS; i++)
                if (p[i].revents || (i == JOB_OUT && run->hung))
                        pump(run, i);
        if (p[AT_WAKE].revents)
                (void) eventfd_read(j->wake_fd, &count);
        if (p[AT_IN].revents)
                input_has_room(j);
        if (p[AT_CHILD].revents)
                note_end(run);
        else if (run->ended_ns == 0 && deadline_passed(run->deadline))
                expire(run);
}

/* Until the shell has ended and the output too. */
static void run_to_the_end(struct run *run) {
        struct job *j = run->job;

        while (!j->given_up && (run->ended_ns == 0 || open_streams(j))) {
                struct pollfd p[AT_ALL] = {
                        [AT_OUT] = {.fd = run->hung ? -1 : j->stream[JOB_OUT].fd, .events = POLLIN},
                        [AT_ERR] = {.fd = j->stream[JOB_ERR].fd, .events = POLLIN},
                        [AT_CHILD] = {.fd = run->ended_ns ? -1 : child_fd(j->child), .events = POLLIN},
                        [AT_WAKE] = {.fd = j->wake_fd, .events = POLLIN},
                        [AT_IN] = {.fd = input_wanted(j), .events = POLLOUT},
                };
                int timeout = wait_ms(run);

                if (timeout == 0 && run->ended_ns != 0)
                        break;
                int n = poll(p, AT_ALL, timeout);
                if (n < 0)
                        continue;
                if (n == 0)
                        j->stream[JOB_OUT].must = j->stream[JOB_ERR].must = 0; /* somebody else read it */
                look(run, p);
        }
}

static void finish(struct run *run) {
        struct child_result res = {.exit_code = -1, .signal = SIGKILL, .ended_ns = monotonic_ns()};
        struct job *j = run->job;
        struct job_end end = {.leftover = open_streams(j)};

        for (size_t i = 0; i < JOB_STREAMS; i++)
                give_up(run, &j->stream[i]);
        child_ended(j->child, &res); /* still running only if even SIGKILL did not end it */
        end.exit_code = res.exit_code;
        end.signal = res.signal;
        job_leave(j); /* before anybody can know: who sees the end may start the next one */
        jobs_ended(&j->agent->jobs, j, &end, (res.ended_ns - j->started_ns) / NSEC_PER_MSEC);
        job_wake(j, JOB_NEWS_END | JOB_NEWS_OUTPUT | JOB_NEWS_INPUT);
        job_child_put(j);
        if (job_id(j) > 0)
                job_settle(j);
}

static void job_main(struct work *work) {
        struct run run;
        struct jobs *jobs;

        run.job = (struct job *) work; /* its first member */
        run.ended_ns = run.news_ns = 0;
        run.deadline = run.job->deadline;
        run.expired = run.hung = false;
        jobs = &run.job->agent->jobs;
        priority_set(PRIORITY_NORMAL);
        run_to_the_end(&run);
        finish(&run);
        job_unref(run.job);
        jobs_thread_over(jobs);
}

int job_run(struct job *j) {
        int r;

        jobs_thread_begun(&j->agent->jobs);
        j->work.run = job_main;
        r = workers_run(&j->agent->job_workers, &job_ref(j)->work);
        if (r < 0) {
                jobs_thread_over(&j->agent->jobs);
                job_unref(j);
        }
        return r;
}
