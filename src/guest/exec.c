/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Commands.
 *
 * Two threads work on a command. The pump (the request's own thread) moves its output to the host, or drops it once the
 * host is gone. The controller takes what the host sends: standard input, and the close that cancels; it also keeps the
 * timeout, so that a host that does not read cannot delay the killing. They share the fields of struct exec that are
 * atomic, and the two cancel tokens.
 *
 * The command is over when its shell has ended and its output is closed or has gone quiet: a process left behind may
 * keep the pipes open for ever. Such a process lives on, and what it still prints is dropped (drain.h).
 *
 * A child that does not read its standard input: what the host sent waits in the stream's window, no more is granted.
 */

#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/str.h"
#include "guest/agent.h"
#include "guest/args.h"
#include "guest/tree.h"

#define READ_CHUNK (64UL * 1024)
#define QUIET_MS 100         /* of silence after the shell's end before open pipes are given up */
#define LEFTOVER_MAX_MS 1000 /* after the shell's end, however much a process left behind prints */
#define KILL_MAX_MS 5000     /* for a killed tree to be gone */
#define START_MAX_MS 10000   /* from fork to exec */
#define CLOSED_CHECK_MS 250  /* how often a blocked standard input looks whether the host has cancelled */

#define NOFILE_SOFT 1024 /* select(2) breaks beyond it; programs that know better raise it themselves */
#define NOFILE_HARD 1048576

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

enum stage { STAGE_SETUP, STAGE_WORKDIR, STAGE_EXEC };

/* What the child says before it gives up; nothing when exec worked. */
struct start_failure {
        enum stage stage;
        int error;
};

struct pipe_end {
        int fd;
        enum wire_channel channel;
        int must; /* bytes that were in the pipe when the shell ended: these are always delivered */
};

struct exec {
        struct request *req;
        struct exec_args args;
        struct strv env;
        const char *workdir;

        struct child *child;
        struct cgroup cgroup;
        int in_fd; /* the controller's */
        struct pipe_end out[2];
        int64_t started_ns;
        deadline_t deadline;

        struct cancel *done;   /* the pump has finished */
        struct cancel *giveup; /* killed, yet something did not die */
        atomic_bool timed_out;
        atomic_bool deaf; /* nobody takes the output any more */
};

/* ---- what the command is given ---- */

static bool locale_c_utf8(void) {
        static const char *const marks[] = {
                "/usr/lib/locale/C.utf8",
                "/usr/lib/locale/C.UTF-8",
                "/lib/ld-musl-x86_64.so.1",
        };

        for (size_t i = 0; i < ARRAY_SIZE(marks); i++)
                if (access(marks[i], F_OK) == 0)
                        return true;
        return false;
}

static int build_env(struct exec *e) {
        static const struct {
                const char *name, *value;
        } defaults[] = {
                {"PATH", DEFAULT_PATH}, {"HOME", "/root"},   {"USER", "root"}, {"LOGNAME", "root"},
                {"SHELL", "/bin/sh"},   {"LANG", "C.UTF-8"}, {"TERM", "dumb"},
        };
        const char *name;
        json_t *value;
        int r;

        for (size_t i = 0; i < ARRAY_SIZE(defaults); i++) {
                if (e->args.env && json_is_string(json_object_get(e->args.env, defaults[i].name)))
                        continue;
                if (str_eq(defaults[i].name, "LANG") && !locale_c_utf8())
                        continue;
                r = strv_addf(&e->env, "%s=%s", defaults[i].name, defaults[i].value);
                if (r < 0)
                        return r;
        }
        if (!e->args.env)
                return 0;
        json_object_foreach ((json_t *) e->args.env, name, value) {
                r = strv_addf(&e->env, "%s=%s", name, json_string_value(value));
                if (r < 0)
                        return r;
        }
        return 0;
}

static int choose_workdir(struct exec *e, struct error *err) {
        struct stat st;

        if (!e->args.workdir) {
                e->workdir = stat("/root", &st) == 0 && S_ISDIR(st.st_mode) ? "/root" : "/";
                return 0;
        }
        if (stat(e->args.workdir, &st) < 0)
                return error_set(err, ERROR_INVALID_ARGUMENT, "workdir \"%s\": %s", e->args.workdir, strerror(errno));
        if (!S_ISDIR(st.st_mode))
                return error_set(err, ERROR_INVALID_ARGUMENT, "workdir \"%s\" is not a directory", e->args.workdir);
        e->workdir = e->args.workdir;
        return 0;
}

/* ---- the child, between fork and exec: only async-signal-safe calls ---- */

static void reset_signals(void) {
        struct sigaction sa = {.sa_handler = SIG_DFL};
        sigset_t none;

        for (int sig = 1; sig < NSIG; sig++)
                sigaction(sig, &sa, NULL);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
}

static void reset_limits(void) {
        struct rlimit core = {.rlim_cur = 0, .rlim_max = RLIM_INFINITY};
        struct rlimit files = {.rlim_cur = NOFILE_SOFT, .rlim_max = NOFILE_HARD};
        int fd;

        setrlimit(RLIMIT_CORE, &core);
        setrlimit(RLIMIT_NOFILE, &files);
        /* The agent itself is exempt from the OOM killer; its children are not. */
        fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (fd >= 0) {
                if (write(fd, "0", 1) < 0)
                        _exit(127);
                close(fd);
        }
}

static _Noreturn void child_main(const struct exec *e, int in, int out, int err_out, int status_fd) {
        struct start_failure f = {.stage = STAGE_SETUP};
        char *const argv[] = {(char *) "sh", (char *) "-c", (char *) e->args.command, NULL};

        setsid();
        reset_signals();
        /* Ours are all close-on-exec; what whoever started us forgot to mark is not for the command either. */
        close_range(3, UINT_MAX, CLOSE_RANGE_CLOEXEC);
        if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err_out, 2) < 0)
                goto fail;
        reset_limits();
        umask(022);
        f.stage = STAGE_WORKDIR;
        if (chdir(e->workdir) < 0)
                goto fail;
        f.stage = STAGE_EXEC;
        execve("/bin/sh", argv, e->env.v);
fail:
        f.error = errno;
        if (write(status_fd, &f, sizeof(f)) < 0)
                _exit(126);
        _exit(127);
}

/* ---- start ---- */

static int start_failed(const struct exec *e, const struct start_failure *f, struct error *err) {
        switch (f->stage) {
        case STAGE_WORKDIR:
                return error_set(err, ERROR_INVALID_ARGUMENT, "workdir \"%s\": %s", e->workdir, strerror(f->error));
        case STAGE_EXEC:
                if (f->error == E2BIG)
                        return error_set(err, ERROR_INVALID_ARGUMENT,
                                         "command and env together are larger than the system takes");
                return error_set_errno(err, f->error, "Cannot run /bin/sh");
        default:
                return error_set_errno(err, f->error, "Cannot set up the command");
        }
}

struct pipes {
        int in[2], out[2], err[2], status[2];
};
#define PIPES_INIT ((struct pipes){.in = {-1, -1}, .out = {-1, -1}, .err = {-1, -1}, .status = {-1, -1}})

static void pipes_close(struct pipes *p) {
        int *all[] = {p->in, p->out, p->err, p->status};

        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                all[i][0] = close_fd(all[i][0]);
                all[i][1] = close_fd(all[i][1]);
        }
}

static int pipes_open(struct pipes *p, bool has_stdin) {
        if (pipe2(p->out, O_CLOEXEC) < 0 || pipe2(p->err, O_CLOEXEC) < 0 || pipe2(p->status, O_CLOEXEC) < 0)
                return -errno;
        if (has_stdin) {
                if (pipe2(p->in, O_CLOEXEC) < 0)
                        return -errno;
        } else {
                p->in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
                if (p->in[0] < 0)
                        return -errno;
        }
        /* Only our ends: the flag belongs to the open file, and the two ends of a pipe are two of them. */
        if (has_stdin)
                fd_set_nonblock(p->in[1], true);
        fd_set_nonblock(p->out[0], true);
        fd_set_nonblock(p->err[0], true);
        return 0;
}

static int exec_start(struct exec *e, struct error *err) {
        _cleanup_(pipes_close) struct pipes p = PIPES_INIT;
        struct op op = op_timeout(START_MAX_MS);
        struct start_failure f;
        pid_t pid;
        int r;

        r = pipes_open(&p, e->args.has_stdin);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the pipes of a command");
        cgroup_create(&e->req->agent->cgroups, &e->cgroup);

        e->started_ns = monotonic_ns();
        if (e->args.timeout_ms > 0)
                e->deadline = deadline_in_ms(e->args.timeout_ms);
        pid = reaper_fork(e->req->agent->reaper, e->cgroup.fd, &e->child);
        if (pid == 0)
                child_main(e, p.in[0], p.out[1], p.err[1], p.status[1]);
        if (pid < 0)
                return error_set_errno(err, pid, "Cannot start a process");

        p.status[1] = close_fd(p.status[1]);
        r = read_full(p.status[0], &f, sizeof(f), &op);
        if (r == 0)
                return start_failed(e, &f, err);
        if (r != -ENODATA)
                return error_set_errno(err, r, "The command did not start");

        e->in_fd = TAKE_FD(p.in[1]);
        e->out[0] = (struct pipe_end){.fd = TAKE_FD(p.out[0]), .channel = WIRE_CH_OUT};
        e->out[1] = (struct pipe_end){.fd = TAKE_FD(p.err[0]), .channel = WIRE_CH_ERR};
        return 0;
}

static void kill_all(struct exec *e) {
        deadline_t d = deadline_in_ms(KILL_MAX_MS);

        if (e->cgroup.fd < 0 || cgroup_kill(&e->cgroup, d) == -EOPNOTSUPP)
                tree_kill(e->child, d);
}

/* ---- controller ---- */

static void close_stdin(struct exec *e) {
        e->in_fd = close_fd(e->in_fd);
}

/* Writes what the host sent. A child that does not read makes this wait: until it does, the command is over, the
 * timeout has come (-ETIMEDOUT) or the host has cancelled (-EPIPE), which mux_recv() tells only behind the input. */
static int feed_stdin(struct exec *e, const struct op *op, const char *data, size_t n) {
        while (n > 0 && e->in_fd >= 0) {
                ssize_t k = write(e->in_fd, data, n);

                if (k >= 0) {
                        data += k;
                        n -= (size_t) k;
                        continue;
                }
                if (errno == EINTR)
                        continue;
                if (errno != EAGAIN) {
                        close_stdin(e); /* it closed its end: the rest is dropped */
                        return 0;
                }

                if (mux_stream_closed(e->req->stream))
                        return -EPIPE;
                struct op slice = op_sub(op, CLOSED_CHECK_MS);
                int r = wait_fd(e->in_fd, POLLOUT, &slice);
                if (r == -ETIMEDOUT && !deadline_passed(op->deadline))
                        r = 0;
                if (r < 0)
                        return r;
        }
        return 0;
}

/* 1: go on; 0: the connection is gone; negative: the command is over or must be. */
static int control_step(struct exec *e, const struct op *op) {
        _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;
        int r = mux_recv(e->req->stream, op, &ev);

        if (r < 0)
                return r;
        switch (ev.kind) {
        case MUX_DATA:
                r = ev.channel == WIRE_CH_IN ? feed_stdin(e, op, ev.data.data, ev.data.len) : 0;
                return r < 0 ? r : 1;
        case MUX_EOF:
                if (ev.channel == WIRE_CH_IN)
                        close_stdin(e);
                return 1;
        case MUX_CLOSED:
                return -EPIPE;
        case MUX_LOST:
                return 0;
        default:
                return 1;
        }
}

static void *control_main(void *arg) {
        struct exec *e = arg;
        struct op op = {.deadline = e->deadline, .cancel = e->done};
        int r;

        do
                r = control_step(e, &op);
        while (r > 0);
        if (r == 0) {
                /* Nobody can send more input or cancel: the timeout is what is left. */
                e->deaf = true;
                close_stdin(e);
                r = wait_fd(-1, 0, &op);
        }
        close_stdin(e);
        if (r == -ECANCELED || child_ended(e->child, NULL))
                return NULL;

        if (r == -ETIMEDOUT)
                e->timed_out = true;
        else
                e->deaf = true;
        kill_all(e);
        op = (struct op){.deadline = deadline_in_ms(KILL_MAX_MS), .cancel = e->done};
        if (wait_fd(-1, 0, &op) == -ETIMEDOUT)
                cancel_fire(e->giveup);
        return NULL;
}

/* ---- pump ---- */

static void give_up(struct exec *e, struct pipe_end *p, int fd_to_drain) {
        struct op op = OP_INIT_NEVER;

        p->fd = -1;
        p->must = 0;
        drainer_add(e->req->agent->drainer, fd_to_drain);
        if (!e->deaf)
                mux_send_eof(e->req->stream, p->channel, &op);
}

/* Moves one chunk. True if there was one. */
static bool pump_chunk(struct exec *e, struct pipe_end *p, char *chunk) {
        struct op op = OP_INIT_NEVER;
        ssize_t n = read(p->fd, chunk, READ_CHUNK);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return false;
        if (n <= 0) {
                close_fd(p->fd);
                give_up(e, p, -1);
                return false;
        }
        p->must -= (int) n;
        if (!e->deaf && mux_send_data(e->req->stream, p->channel, chunk, (size_t) n, &op) < 0)
                e->deaf = true;
        return true;
}

/* How long to wait for more output; 0: the rest is given up. */
static int pump_wait_ms(const struct exec *e, int64_t ended_ns, int64_t news_ns) {
        int64_t now = monotonic_ns();
        int64_t until = MIN(news_ns + QUIET_MS * NSEC_PER_MSEC, ended_ns + LEFTOVER_MAX_MS * NSEC_PER_MSEC);

        if (ended_ns == 0)
                return -1;
        if (e->out[0].must > 0 || e->out[1].must > 0)
                return QUIET_MS;
        return until <= now ? 0 : (int) ((until - now + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC);
}

static void note_end(struct exec *e) {
        for (size_t i = 0; i < ARRAY_SIZE(e->out); i++)
                if (e->out[i].fd < 0 || ioctl(e->out[i].fd, FIONREAD, &e->out[i].must) < 0)
                        e->out[i].must = 0;
}

/* Until the shell has ended and the output too. Returns whether something was left behind that holds it open. */
static bool pump(struct exec *e, char *chunk) {
        int64_t ended_ns = 0, news_ns = 0;
        bool leftover = false;

        while (ended_ns == 0 || e->out[0].fd >= 0 || e->out[1].fd >= 0) {
                struct pollfd p[] = {
                        {.fd = e->out[0].fd, .events = POLLIN},
                        {.fd = e->out[1].fd, .events = POLLIN},
                        {.fd = ended_ns ? -1 : child_fd(e->child), .events = POLLIN},
                        {.fd = cancel_fd(e->giveup), .events = POLLIN},
                };
                int timeout = pump_wait_ms(e, ended_ns, news_ns);

                if (timeout == 0)
                        break;
                int n = poll(p, ARRAY_SIZE(p), timeout);
                if (n < 0)
                        continue;
                if (p[3].revents)
                        break;
                if (n == 0)
                        e->out[0].must = e->out[1].must = 0; /* somebody else read it */
                for (size_t i = 0; i < ARRAY_SIZE(e->out); i++)
                        if (p[i].revents && pump_chunk(e, &e->out[i], chunk))
                                news_ns = monotonic_ns();
                if (p[2].revents) {
                        ended_ns = news_ns = monotonic_ns();
                        note_end(e);
                }
        }

        for (size_t i = 0; i < ARRAY_SIZE(e->out); i++)
                if (e->out[i].fd >= 0) {
                        leftover = true;
                        give_up(e, &e->out[i], e->out[i].fd);
                }
        return leftover;
}

static void send_exit(struct exec *e, bool leftover) {
        struct child_result res = {.exit_code = -1, .signal = SIGKILL, .ended_ns = monotonic_ns()};
        json_t *m = json_object();
        int r;

        child_ended(e->child, &res); /* still running only if even SIGKILL did not end it */
        r = res.signal ? json_put(m, "signal", json_integer(res.signal))
                       : json_put(m, "exit_code", json_integer(res.exit_code));
        r |= json_put(m, "timed_out", json_boolean(e->timed_out));
        r |= json_put(m, "duration_ms", json_integer((res.ended_ns - e->started_ns) / NSEC_PER_MSEC));
        r |= json_put(m, "leftover", json_boolean(leftover));
        if (r < 0)
                json_decref(m);
        else
                request_send(e->req, WIRE_MSG_EXIT, m);
}

static void exec_clear(struct exec *e) {
        close_stdin(e);
        for (size_t i = 0; i < ARRAY_SIZE(e->out); i++)
                close_fd(e->out[i].fd);
        cancel_unref(e->done);
        cancel_unref(e->giveup);
        child_release(e->child);
        cgroup_release(&e->req->agent->cgroups, &e->cgroup);
        strv_free(&e->env);
}

static int exec_run(struct exec *e, struct error *err) {
        _cleanup_free_ char *chunk = malloc(READ_CHUNK);
        json_t *started;
        pthread_t controller;
        bool leftover;
        int r;

        e->done = cancel_new();
        e->giveup = cancel_new();
        if (!chunk || !e->done || !e->giveup || build_env(e) < 0)
                return error_set(err, ERROR_INTERNAL, "The agent is out of memory or file descriptors");
        r = choose_workdir(e, err);
        if (r < 0)
                return r;
        r = exec_start(e, err);
        if (r < 0)
                return r;
        r = thread_start(&controller, "exec-control", control_main, e);
        if (r < 0) {
                kill_all(e);
                return error_set_errno(err, r, "Cannot start a thread");
        }

        started = json_object();
        if (json_put(started, "pid", json_integer(child_pid(e->child))) < 0 ||
            request_send(e->req, WIRE_MSG_STARTED, json_incref(started)) < 0)
                e->deaf = true;
        json_decref(started);
        leftover = pump(e, chunk);
        cancel_fire(e->done);
        pthread_join(controller, NULL);
        if (!e->deaf)
                send_exit(e, leftover);
        return 1;
}

int handle_exec(struct request *req, struct error *err) {
        struct exec e = {
                .req = req,
                .cgroup = CGROUP_INIT,
                .in_fd = -1,
                .out = {{.fd = -1}, {.fd = -1}},
                .deadline = DEADLINE_NEVER,
        };
        int r = exec_args_parse(req->args, &e.args, err);

        if (r < 0)
                return r;
        if (atomic_fetch_add(&req->agent->execs, 1) >= AGENT_EXECS_MAX)
                r = error_set(err, ERROR_QUOTA_EXCEEDED, "%d commands are running in this workspace already",
                              AGENT_EXECS_MAX);
        else
                r = exec_run(&e, err);
        exec_clear(&e);
        atomic_fetch_sub(&req->agent->execs, 1);
        return r;
}
