/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A signal to every process of a cgroup, and to none besides.
 *
 * Between the reading of a pid and the signal the process may end, and its number be given to a stranger. So each pid
 * is first bound to a pidfd, and then looked up in the cgroup again: who holds the number while the pidfd's process
 * lives is that process, hence a pid that is still listed is either it, or it has ended and the signal reaches nobody.
 * Freezing the cgroup instead would be seen by the command, and does not keep a process from being killed.
 */

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "guest/cgroup.h"

#define PIDS_MAX 65536u    /* of one cgroup */
#define PIDFDS_AT_ONCE 256 /* descriptors that are held open */

struct pids {
        pid_t *v; /* owned */
        size_t n, room;
};

static void pids_free(struct pids *p) {
        free(p->v);
}

static void pids_add(struct pids *p, pid_t pid) {
        if (p->n == p->room) {
                size_t room = MAX((size_t) 64, 2 * p->room);
                pid_t *more = p->n < PIDS_MAX ? reallocarray(p->v, room, sizeof(*more)) : NULL;

                if (!more)
                        return;
                p->v = more;
                p->room = room;
        }
        p->v[p->n++] = pid;
}

static bool pids_have(const struct pids *p, pid_t pid) {
        for (size_t i = 0; i < p->n; i++)
                if (p->v[i] == pid)
                        return true;
        return false;
}

/* One decimal number a line, wherever the pieces that are read end. */
static void pids_read(int dir_fd, struct pids *p) {
        _cleanup_close_ int fd = openat(dir_fd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
        char text[4096];
        pid_t pid = 0;
        ssize_t n;

        p->n = 0;
        while (fd >= 0 && (n = read(fd, text, sizeof(text))) > 0)
                for (ssize_t i = 0; i < n; i++) {
                        if (text[i] >= '0' && text[i] <= '9') {
                                pid = pid * 10 + (text[i] - '0');
                                continue;
                        }
                        if (pid > 0)
                                pids_add(p, pid);
                        pid = 0;
                }
}

static size_t signal_some(int dir_fd, const pid_t *pids, size_t n, int sig) {
        _cleanup_(pids_free) struct pids now = {0};
        int fds[PIDFDS_AT_ONCE];
        size_t sent = 0;

        for (size_t i = 0; i < n; i++)
                fds[i] = (int) syscall(SYS_pidfd_open, pids[i], 0);
        pids_read(dir_fd, &now);
        for (size_t i = 0; i < n; i++) {
                if (fds[i] >= 0 && pids_have(&now, pids[i]) &&
                    syscall(SYS_pidfd_send_signal, fds[i], sig, NULL, 0) == 0)
                        sent++;
                close_fd(fds[i]);
        }
        return sent;
}

/* Without those of the cgroups below it. */
static size_t signal_one(int dir_fd, int sig) {
        _cleanup_(pids_free) struct pids all = {0};
        size_t sent = 0;

        pids_read(dir_fd, &all);
        if (sig == 0)
                return all.n;
        for (size_t i = 0; i < all.n; i += PIDFDS_AT_ONCE)
                sent += signal_some(dir_fd, all.v + i, MIN(all.n - i, (size_t) PIDFDS_AT_ONCE), sig);
        return sent;
}

static size_t signal_tree(int dir_fd, int sig, unsigned depth) {
        size_t sent = signal_one(dir_fd, sig);
        int again = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *dir = again >= 0 ? fdopendir(again) : NULL;
        struct dirent *de;

        if (!dir) {
                close_fd(again);
                return sent;
        }
        while (depth < CGROUP_DEPTH_MAX && (de = readdir(dir))) {
                if (de->d_type != DT_DIR || de->d_name[0] == '.')
                        continue;
                _cleanup_close_ int fd = openat(dir_fd, de->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
                if (fd >= 0)
                        sent += signal_tree(fd, sig, depth + 1);
        }
        closedir(dir);
        return sent;
}

size_t cgroup_signal(const struct cgroup *c, int sig) {
        return signal_tree(c->fd, sig, 0);
}
