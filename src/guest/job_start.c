/* SPDX-License-Identifier: Apache-2.0 */

/* The start of a job: from what a request says to a process in a cgroup of its own, and the job's thread. */

#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/str.h"
#include "guest/agent.h"
#include "guest/priority.h"

#define START_MAX_MS 10000 /* from fork to exec */

#define STATUS_FD 3 /* the child's end of the status pipe, behind the command's own descriptors */

#define NOFILE_SOFT 1024 /* select(2) breaks beyond it; programs that know better raise it themselves */
#define NOFILE_HARD 1048576

enum stage { STAGE_SETUP, STAGE_WORKDIR, STAGE_EXEC };

/* What the child says before it gives up; nothing when exec worked. */
struct start_failure {
        enum stage stage;
        int error;
};

/* The two ends of what connects the job with its command: [0] is read, [1] is written. */
struct launch {
        const struct job_spec *spec;
        const char *workdir;
        struct strv env;
        int null_fd; /* borrowed */
        int in[2], out[2], err[2], status[2];
        int terminal; /* the command's side */
};
#define LAUNCH_INIT(s, null)                 \
        ((struct launch){.spec = (s),        \
                         .null_fd = (null),  \
                         .in = {-1, -1},     \
                         .out = {-1, -1},    \
                         .err = {-1, -1},    \
                         .status = {-1, -1}, \
                         .terminal = -1})

static void launch_clear(struct launch *l) {
        int *all[] = {l->in, l->out, l->err, l->status};

        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                all[i][0] = close_fd(all[i][0]);
                all[i][1] = close_fd(all[i][1]);
        }
        l->terminal = close_fd(l->terminal);
        strv_free(&l->env);
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

static int take_descriptors(const struct launch *l) {
        int in = l->spec->stdin_fd >= 0 ? l->spec->stdin_fd : l->spec->stdin_pipe ? l->in[0] : l->null_fd;

        if (l->terminal < 0)
                return dup2(in, 0) < 0 || dup2(l->out[1], 1) < 0 || dup2(l->err[1], 2) < 0 ? -1 : 0;
        if (ioctl(l->terminal, TIOCSCTTY, 0) < 0)
                return -1;
        return dup2(l->terminal, 0) < 0 || dup2(l->terminal, 1) < 0 || dup2(l->terminal, 2) < 0 ? -1 : 0;
}

/* Nothing else stays open. Ours are all close-on-exec, but before exec comes a chdir, which may take long: until then
 * the pipes of other commands must not be held. */
static int keep_descriptors(const struct launch *l) {
        if (take_descriptors(l) < 0)
                return -1;
        if (l->status[1] != STATUS_FD && dup3(l->status[1], STATUS_FD, O_CLOEXEC) < 0)
                return -1;
        close_range(STATUS_FD + 1, UINT_MAX, 0);
        return 0;
}

static _Noreturn void child_main(const struct launch *l) {
        struct start_failure f = {.stage = STAGE_SETUP};
        int status = l->status[1];
        char *const argv[] = {(char *) "sh", (char *) "-c", (char *) l->spec->command->command, NULL};

        setsid();
        reset_signals();
        if (keep_descriptors(l) < 0)
                goto fail;
        status = STATUS_FD;
        reset_limits();
        umask(022);
        f.stage = STAGE_WORKDIR;
        if (chdir(l->workdir) < 0)
                goto fail;
        f.stage = STAGE_EXEC;
        priority_set(PRIORITY_NORMAL);
        execve("/bin/sh", argv, l->env.v);
fail:
        f.error = errno;
        if (write(status, &f, sizeof(f)) < 0)
                _exit(126);
        _exit(127);
}

/* ---- what it is given ---- */

static int wrong_workdir(const char *path, int error, struct error *err) {
        int r = error_set(err, ERROR_INVALID_ARGUMENT, "workdir \"%s\": %s", path, strerror(error));

        if (error == ENOENT)
                error_hint(err, "Make it with mkdir -p, or leave workdir out to start in the home folder.");
        return r;
}

static int choose_workdir(struct launch *l, struct error *err) {
        const char *wanted = l->spec->command->workdir;
        struct stat st;

        if (!wanted) {
                l->workdir = stat("/root", &st) == 0 && S_ISDIR(st.st_mode) ? "/root" : "/";
                return 0;
        }
        if (stat(wanted, &st) < 0)
                return wrong_workdir(wanted, errno, err);
        if (!S_ISDIR(st.st_mode))
                return wrong_workdir(wanted, ENOTDIR, err);
        l->workdir = wanted;
        return 0;
}

/* Only our ends are non-blocking: the flag belongs to the open file, and the two ends of a pipe are two of them. */
static int open_pipes(struct launch *l) {
        if (pipe2(l->out, O_CLOEXEC) < 0 || pipe2(l->err, O_CLOEXEC) < 0)
                return -errno;
        if (l->spec->stdin_pipe) {
                if (pipe2(l->in, O_CLOEXEC) < 0)
                        return -errno;
                fd_set_nonblock(l->in[1], true);
        }
        fd_set_nonblock(l->out[0], true);
        fd_set_nonblock(l->err[0], true);
        return 0;
}

static int open_terminal(struct launch *l) {
        struct winsize size = {
                .ws_col = (unsigned short) (l->spec->cols > 0 ? l->spec->cols : JOB_COLS_DEFAULT),
                .ws_row = (unsigned short) (l->spec->rows > 0 ? l->spec->rows : JOB_ROWS_DEFAULT),
        };
        int unlock = 0;

        l->out[0] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
        if (l->out[0] < 0 || ioctl(l->out[0], TIOCSPTLCK, &unlock) < 0)
                return -errno;
        l->terminal = ioctl(l->out[0], TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (l->terminal < 0 || ioctl(l->out[0], TIOCSWINSZ, &size) < 0)
                return -errno;
        /* Written by requests, read by the thread: each has a descriptor of its own to close. */
        l->in[1] = fcntl(l->out[0], F_DUPFD_CLOEXEC, 0);
        return l->in[1] < 0 ? -errno : 0;
}

static int prepare(struct job *j, struct launch *l, struct error *err) {
        int r = choose_workdir(l, err);

        if (r < 0)
                return r;
        if (env_store_build(&j->agent->env, l->spec->command->env, l->spec->pty, &l->env) < 0)
                return error_set(err, ERROR_INTERNAL, "The agent is out of memory");
        cgroup_create(&j->agent->cgroups, &j->cgroup); /* without one it is found by its session */
        return 0;
}

/* ---- start ---- */

static int start_failed(const struct launch *l, const struct start_failure *f, struct error *err) {
        switch (f->stage) {
        case STAGE_WORKDIR:
                return wrong_workdir(l->workdir, f->error, err);
        case STAGE_EXEC:
                if (f->error == E2BIG) {
                        int r = error_set(err, ERROR_INVALID_ARGUMENT,
                                          "command and environment together are larger than the system takes");
                        error_hint(err, "Variables of set_env count too: remove large ones with its unset.");
                        return r;
                }
                return error_set_errno(err, f->error, "Cannot run /bin/sh");
        default:
                return error_set_errno(err, f->error, "Cannot set up the command");
        }
}

static int connect_both(struct launch *l, struct error *err) {
        int r = l->spec->pty ? open_terminal(l) : open_pipes(l);

        if (r == 0 && pipe2(l->status, O_CLOEXEC) < 0)
                r = -errno;
        return r < 0 ? error_set_errno(err, r, "Cannot make the %s of a command", l->spec->pty ? "terminal" : "pipes")
                     : 0;
}

/* Somebody has removed the folder of the cgroup, or made it one that takes no processes. */
static bool cgroup_refuses(pid_t r) {
        return r == -ENOENT || r == -ENODEV || r == -EBUSY || r == -EOPNOTSUPP;
}

/* In another cgroup if need be, and in the end in none. In the child: 0. */
static pid_t fork_command(struct job *j) {
        struct cgroups *g = &j->agent->cgroups;
        pid_t pid = reaper_fork(j->agent->reaper, j->cgroup.fd, &j->child);

        for (bool again = true; cgroup_refuses(pid) && j->cgroup.fd >= 0; again = false) {
                cgroup_release(g, &j->cgroup);
                if (again)
                        cgroup_make(g, &j->cgroup);
                pid = reaper_fork(j->agent->reaper, j->cgroup.fd, &j->child);
        }
        return pid;
}

static int spawn(struct job *j, struct launch *l, struct error *err) {
        pid_t pid;
        int r;

        LOCK(&j->agent->fork_lock);
        r = connect_both(l, err);
        if (r < 0)
                return r;

        j->started_ms = realtime_ms();
        j->started_ns = monotonic_ns();
        if (l->spec->command->timeout_ms > 0)
                j->deadline = deadline_in_ms(l->spec->command->timeout_ms);
        pid = fork_command(j);
        if (pid == 0)
                child_main(l);
        if (pid < 0)
                return error_set_errno(err, pid, "Cannot start a process");
        j->pid = pid;
        j->child_users = 1; /* the thread's */
        j->in_fd = TAKE_FD(l->in[1]);
        j->stream[JOB_OUT].fd = TAKE_FD(l->out[0]);
        j->stream[JOB_ERR].fd = TAKE_FD(l->err[0]);
        /* The command's side: the end is seen only when nobody here holds it. */
        l->out[1] = close_fd(l->out[1]);
        l->err[1] = close_fd(l->err[1]);
        l->in[0] = close_fd(l->in[0]);
        l->terminal = close_fd(l->terminal);
        l->status[1] = close_fd(l->status[1]);
        return 0;
}

/* The child has run exec, or has said why not. */
static int wait_started(struct job *j, const struct launch *l, struct error *err) {
        struct op op = op_timeout(START_MAX_MS);
        struct start_failure f;
        int r = read_full(l->status[0], &f, sizeof(f), &op);

        if (r == -ENODATA)
                return 0;
        if (r == 0)
                return start_failed(l, &f, err);
        job_destroy(j);
        return error_set_errno(err, r, "The command did not start");
}

static struct job *job_new(struct agent *a, const struct job_spec *spec) {
        const char *command = spec->command->command;
        size_t n = utf8_floor(command, MIN(strlen(command), (size_t) WIRE_JOB_COMMAND_SHOWN));
        struct job *j = calloc(1, sizeof(*j));

        if (!j)
                return NULL;
        j->agent = a;
        j->refs = 1;
        j->pty = spec->pty;
        snprintf(j->command, sizeof(j->command), "%.*s", (int) n, command);
        j->deadline = DEADLINE_NEVER;
        j->input_bytes = spec->input_bytes;
        j->in_fd = -1;
        j->cgroup = CGROUP_INIT;
        pthread_mutex_init(&j->lock, NULL);
        for (size_t i = 0; i < JOB_STREAMS; i++) {
                j->stream[i].fd = -1;
                spool_init(&j->stream[i].spool, &a->jobs.spools);
        }
        j->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        return j;
}

void job_leave(struct job *j) {
        budget_give(&j->agent->inputs, j->input_bytes);
        atomic_fetch_sub(&j->agent->execs, 1);
}

static int start(struct job *j, const struct job_spec *spec, struct error *err) {
        _cleanup_(launch_clear) struct launch l = LAUNCH_INIT(spec, j->agent->null_fd);
        int r = j->wake_fd < 0 ? error_set(err, ERROR_INTERNAL, "The agent is out of file descriptors")
                               : prepare(j, &l, err);

        if (r == 0)
                r = spawn(j, &l, err);
        if (r < 0) {
                job_leave(j);
                return r;
        }
        /* The thread begins while the child is on its way to exec. From here on it gives back what the job has. */
        r = job_run(j);
        if (r < 0) {
                job_signal(j, SIGKILL, NULL);
                job_leave(j);
                return error_set_errno(err, r, "Cannot start a thread");
        }
        return wait_started(j, &l, err);
}

int job_start(struct agent *a, const struct job_spec *spec, struct job **ret, struct error *err) {
        _cleanup_job_ struct job *j = NULL;
        int r;

        if (atomic_fetch_add(&a->execs, 1) >= AGENT_EXECS_MAX) {
                r = error_set(err, ERROR_QUOTA_EXCEEDED, "%d commands are running in this workspace already",
                              AGENT_EXECS_MAX);
                error_hint(err, "Wait until some have ended, or end some with exec_background: list, then kill.");
        } else {
                j = job_new(a, spec);
                r = j ? 0 : error_set(err, ERROR_INTERNAL, "The agent is out of memory");
        }
        if (r < 0) {
                atomic_fetch_sub(&a->execs, 1);
                budget_give(&a->inputs, spec->input_bytes);
                return r;
        }
        r = start(j, spec, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(j);
        return 0;
}
