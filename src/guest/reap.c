/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/reap.h"

#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/thread.h"

struct child {
        struct reaper *reaper;
        pid_t pid;
        int ended_fd; /* eventfd */
        bool ended;
        struct child_result result;
        struct child *next, **pprev;
};

struct reaper {
        pthread_t thread;
        int signal_fd;
        int stop_fd;          /* eventfd */
        pthread_mutex_t lock; /* guards the list, the children in it, and the moment of reaping */
        pthread_cond_t reaped;
        struct child *children;
};

static struct child *find_child(struct reaper *r, pid_t pid) {
        for (struct child *c = r->children; c; c = c->next)
                if (c->pid == pid && !c->ended)
                        return c;
        return NULL;
}

static void record(struct child *c, const siginfo_t *si) {
        bool exited = si->si_code == CLD_EXITED;

        c->ended = true;
        c->result = (struct child_result){
                .exit_code = exited ? si->si_status : -1,
                .signal = exited ? 0 : si->si_status,
                .ended_ns = monotonic_ns(),
        };
        eventfd_write(c->ended_fd, 1);
}

static void reap_all(struct reaper *r) {
        for (;;) {
                siginfo_t si = {0};

                if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) < 0 || si.si_pid == 0)
                        return;

                LOCK(&r->lock);
                struct child *c = find_child(r, si.si_pid);
                if (waitid(P_PID, (id_t) si.si_pid, &si, WEXITED | WNOHANG) == 0 && si.si_pid != 0 && c)
                        record(c, &si);
                pthread_cond_broadcast(&r->reaped);
        }
}

static void *reaper_main(void *arg) {
        struct reaper *r = arg;

        for (;;) {
                struct pollfd p[] = {{.fd = r->signal_fd, .events = POLLIN}, {.fd = r->stop_fd, .events = POLLIN}};
                struct signalfd_siginfo si[16];

                reap_all(r);
                if (poll(p, ARRAY_SIZE(p), -1) < 0)
                        continue;
                if (p[1].revents)
                        return NULL;
                /* Many children, one signal: what was read says only that there is something to do. */
                if (read(r->signal_fd, si, sizeof(si)) < 0)
                        continue;
        }
}

int reaper_new(struct reaper **ret) {
        struct reaper *r = calloc(1, sizeof(*r));
        sigset_t chld;
        int k;

        if (!r)
                return -ENOMEM;
        sigemptyset(&chld);
        sigaddset(&chld, SIGCHLD);
        pthread_mutex_init(&r->lock, NULL);
        cond_init(&r->reaped);
        r->signal_fd = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
        r->stop_fd = eventfd(0, EFD_CLOEXEC);
        k = r->signal_fd < 0 || r->stop_fd < 0 ? -errno : thread_start(&r->thread, "reaper", reaper_main, r);
        if (k < 0) {
                close_fd(r->signal_fd);
                close_fd(r->stop_fd);
                free(r);
                return k;
        }
        *ret = r;
        return 0;
}

void reaper_free(struct reaper *r) {
        if (!r)
                return;
        eventfd_write(r->stop_fd, 1);
        pthread_join(r->thread, NULL);
        close_fd(r->signal_fd);
        close_fd(r->stop_fd);
        pthread_cond_destroy(&r->reaped);
        pthread_mutex_destroy(&r->lock);
        free(r);
}

/* Moving a process into a cgroup takes a lock that waits for all CPUs; being born there does not. */
static pid_t fork_into(int cgroup_fd) {
        struct clone_args args = {
                .flags = CLONE_INTO_CGROUP,
                .exit_signal = SIGCHLD,
                .cgroup = (uint64_t) cgroup_fd,
        };

        if (cgroup_fd < 0)
                return fork();
        return (pid_t) syscall(SYS_clone3, &args, sizeof(args));
}

pid_t reaper_fork(struct reaper *r, int cgroup_fd, struct child **ret) {
        struct child *c = calloc(1, sizeof(*c));
        pid_t pid;

        if (!c)
                return -ENOMEM;
        c->reaper = r;
        c->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (c->ended_fd < 0) {
                pid = -errno;
                free(c);
                return pid;
        }

        pthread_mutex_lock(&r->lock);
        pid = fork_into(cgroup_fd);
        if (pid == 0)
                return 0;
        if (pid < 0) {
                pid = -errno;
                pthread_mutex_unlock(&r->lock);
                close_fd(c->ended_fd);
                free(c);
                return pid;
        }
        c->pid = pid;
        c->next = r->children;
        c->pprev = &r->children;
        if (c->next)
                c->next->pprev = &c->next;
        r->children = c;
        pthread_mutex_unlock(&r->lock);

        *ret = c;
        return pid;
}

int reaper_wait_alone(struct reaper *r, deadline_t deadline) {
        LOCK(&r->lock);
        for (;;) {
                siginfo_t si = {0};

                if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) < 0 && errno == ECHILD)
                        return 0;
                if (cond_wait_until(&r->reaped, &r->lock, deadline) == -ETIMEDOUT)
                        return -ETIMEDOUT;
        }
}

pid_t child_pid(const struct child *c) {
        return c->pid;
}

int child_fd(const struct child *c) {
        return c->ended_fd;
}

bool child_ended(struct child *c, struct child_result *ret) {
        LOCK(&c->reaper->lock);
        if (c->ended && ret)
                *ret = c->result;
        return c->ended;
}

int child_signal_group(struct child *c, int sig) {
        LOCK(&c->reaper->lock);
        if (c->ended)
                return -ESRCH;
        return kill(-c->pid, sig) < 0 ? -errno : 0;
}

void child_release(struct child *c) {
        if (!c)
                return;
        pthread_mutex_lock(&c->reaper->lock);
        *c->pprev = c->next;
        if (c->next)
                c->next->pprev = c->pprev;
        pthread_mutex_unlock(&c->reaper->lock);
        close_fd(c->ended_fd);
        free(c);
}
