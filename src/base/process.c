/* SPDX-License-Identifier: Apache-2.0 */
#include "base/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/log.h"
#include "base/str.h"

/* Fds that a child can be given, and their highest number there. */
#define FD_MAPS_MAX 64u
#define FD_TO_MAX 127

/* A process that does not end on SIGKILL hangs in the kernel, on a dead disk for instance. Nobody waits longer. */
#define KILL_WAIT_MS 5000

struct fd_plan {
        int from[FD_TO_MAX + 1]; /* by number in the child: the fd in the parent, or -1 */
        int own[FD_MAPS_MAX];    /* duplicates that were made for the plan */
        size_t n_own;
        int highest; /* number in the child */
};

static void fd_plan_done(struct fd_plan *plan) {
        while (plan->n_own > 0)
                close_fd(plan->own[--plan->n_own]);
}

/*
 * The child places its fds one after the other, so that it may not put one where another that it still needs stands.
 * Sources within the range of the targets are therefore first duplicated above it, in the parent; the duplicates are
 * O_CLOEXEC and vanish in the child.
 */
static int fd_plan_make(struct fd_plan *plan, const struct fd_map *fds, size_t n) {
        plan->n_own = 0;
        plan->highest = STDERR_FILENO;
        for (size_t i = 0; i < ARRAY_SIZE(plan->from); i++)
                plan->from[i] = -1;
        if (n > FD_MAPS_MAX)
                return -EINVAL;
        for (size_t i = 0; i < n; i++) {
                if (fds[i].from < 0 || fds[i].to < 0 || fds[i].to > FD_TO_MAX || plan->from[fds[i].to] >= 0)
                        return -EINVAL;
                plan->from[fds[i].to] = fds[i].from;
                plan->highest = MAX(plan->highest, fds[i].to);
        }
        for (int to = 0; to <= plan->highest; to++) {
                int from = plan->from[to];

                if (from < 0 || from > plan->highest || from == to)
                        continue;
                int copy = fcntl(from, F_DUPFD_CLOEXEC, plan->highest + 1);
                if (copy < 0)
                        return -errno;
                plan->own[plan->n_own++] = plan->from[to] = copy;
        }
        return 0;
}

static int fd_plan_actions(const struct fd_plan *plan, posix_spawn_file_actions_t *actions) {
        int r = 0;

        /* A fd that keeps its number is duplicated onto itself too: in a file action that clears its O_CLOEXEC. */
        for (int to = 0; to <= plan->highest && r == 0; to++)
                if (plan->from[to] >= 0)
                        r = posix_spawn_file_actions_adddup2(actions, plan->from[to], to);
        for (int to = 0; to <= plan->highest && r == 0; to++) {
                if (plan->from[to] >= 0)
                        continue;
                if (to <= STDERR_FILENO)
                        r = posix_spawn_file_actions_addopen(actions, to, "/dev/null", O_RDWR, 0);
                else
                        r = posix_spawn_file_actions_addclose(actions, to);
        }
        /* Nothing else, not even what whoever started us forgot to close. */
        if (r == 0)
                r = posix_spawn_file_actions_addclosefrom_np(actions, plan->highest + 1);
        return -r;
}

static int attributes_fill(posix_spawnattr_t *attr, bool new_session) {
        short flags = POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK;
        sigset_t all, none;

        sigfillset(&all);
        sigemptyset(&none);
        int r = posix_spawnattr_setsigdefault(attr, &all);
        if (r == 0)
                r = posix_spawnattr_setsigmask(attr, &none);
        if (new_session)
                flags |= POSIX_SPAWN_SETSID;
        if (r == 0)
                r = posix_spawnattr_setflags(attr, flags);
        return -r;
}

static int spawn(const struct spawn *s, const char *program, pid_t *ret_pid) {
        _cleanup_(fd_plan_done) struct fd_plan plan;
        int r = fd_plan_make(&plan, s->fds, s->n_fds);
        if (r < 0)
                return r;

        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attr;
        r = -posix_spawn_file_actions_init(&actions);
        if (r < 0)
                return r;
        r = -posix_spawnattr_init(&attr);
        if (r < 0) {
                posix_spawn_file_actions_destroy(&actions);
                return r;
        }
        r = fd_plan_actions(&plan, &actions);
        if (r == 0 && s->workdir)
                r = -posix_spawn_file_actions_addchdir_np(&actions, s->workdir);
        if (r == 0)
                r = attributes_fill(&attr, s->new_session);
        pid_t pid;
        if (r == 0)
                r = -posix_spawn(&pid, program, &actions, &attr, s->argv, s->env ? s->env : environ);
        posix_spawnattr_destroy(&attr);
        posix_spawn_file_actions_destroy(&actions);
        if (r == 0)
                *ret_pid = pid;
        return r;
}

int process_spawn(const struct spawn *s, pid_t *ret_pid, struct error *err) {
        _cleanup_free_ char *found = NULL;
        const char *name = s->argv[0], *program = name;

        /* A name with a slash goes as it is: a relative one counts from the working directory of the child. */
        if (!strchr(name, '/')) {
                int r = find_program(name, &found);
                if (r == -ENOENT) {
                        error_set(err, ERROR_NOT_FOUND, "The program %s is not installed or not in PATH", name);
                        return r;
                }
                if (r < 0)
                        return error_set_errno(err, r, "Cannot look up the program %s", name);
                program = found;
        }
        int r = spawn(s, program, ret_pid);
        if (r < 0) {
                if (s->workdir)
                        return error_set_errno(err, r, "Cannot start %s in %s", program, s->workdir);
                return error_set_errno(err, r, "Cannot start %s", program);
        }
        return 0;
}

int process_wait(pid_t pid, const struct op *op, struct process_result *ret) {
        _cleanup_close_ int fd = pidfd_of(pid);
        if (fd < 0)
                return fd;
        int r = wait_fd(fd, POLLIN, op);
        if (r < 0)
                return r;

        siginfo_t info;
        while (waitid(P_PIDFD, (id_t) fd, &info, WEXITED) < 0)
                if (errno != EINTR)
                        return -errno;
        if (!ret)
                return 0;
        if (info.si_code == CLD_EXITED)
                *ret = (struct process_result){.exit_code = info.si_status};
        else
                *ret = (struct process_result){.exit_code = -1, .signal = info.si_status};
        return 0;
}

void process_end(pid_t pid, int64_t grace_ms) {
        if (pid <= 0)
                return;
        /* An unreaped child keeps its pid: kill(2) hits nobody else. */
        if (grace_ms > 0) {
                struct op grace = op_timeout(grace_ms);

                kill(pid, SIGTERM);
                int r = process_wait(pid, &grace, NULL);
                if (r == 0 || r == -ESRCH || r == -ECHILD)
                        return;
        }
        struct op op = op_timeout(KILL_WAIT_MS);
        kill(pid, SIGKILL);
        int r = process_wait(pid, &op, NULL);
        /* Out of fds there is no pidfd. What was killed is gone at once, and must not stay a zombie. */
        if (r < 0 && r != -ETIMEDOUT)
                while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
                        ;
        if (r == -ETIMEDOUT)
                log_warn("A killed process does not end; it hangs in the kernel", "pid", LOG_NUM(pid));
}
