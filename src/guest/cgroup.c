/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>

#include "base/file.h"

#define PARENT_NAME "agentiso"

static int put_text(int dir_fd, const char *name, const char *text) {
        _cleanup_close_ int fd = openat(dir_fd, name, O_WRONLY | O_CLOEXEC);

        return fd < 0 || write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

static void limit(int fd, const char *name, uint64_t value) {
        char text[32];

        snprintf(text, sizeof(text), "%" PRIu64, value);
        (void) put_text(fd, name, text); /* without the controller there is no such file, and all goes on without */
}

static uint64_t threads_max(void) {
        _cleanup_free_ char *text = NULL;

        return file_read_all("/proc/sys/kernel/threads-max", 64, &text, NULL) < 0 ? 0 : strtoull(text, NULL, 10);
}

/* What all commands together may have is a little less than what there is: a fork bomb or a process that eats all
 * memory would otherwise leave the agent without the thread or the page that it needs to stop them. */
static void reserve(int mount_fd, int fd) {
        uint64_t threads = threads_max();
        struct sysinfo si;

        /* Each write waits for all CPUs: one for both, and one by one only where a controller is missing. */
        if (put_text(mount_fd, "cgroup.subtree_control", "+pids +memory") < 0) {
                (void) put_text(mount_fd, "cgroup.subtree_control", "+pids");
                (void) put_text(mount_fd, "cgroup.subtree_control", "+memory");
        }
        if (threads > 0)
                limit(fd, "pids.max", threads - MIN(threads / 2, CGROUPS_THREADS_RESERVED));
        if (sysinfo(&si) == 0) {
                uint64_t memory = (uint64_t) si.totalram * si.mem_unit;
                limit(fd, "memory.max", memory - MIN(memory / 16, CGROUPS_MEMORY_RESERVED));
        }
}

int cgroups_open(struct cgroups *g, const char *mount) {
        _cleanup_close_ int mount_fd = open(mount, O_PATH | O_DIRECTORY | O_CLOEXEC);

        if (mount_fd < 0)
                return -errno;
        if (faccessat(mount_fd, "cgroup.procs", F_OK, 0) < 0)
                return -errno;
        if (mkdirat(mount_fd, PARENT_NAME, 0755) < 0 && errno != EEXIST)
                return -errno;
        g->fd = openat(mount_fd, PARENT_NAME, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (g->fd < 0)
                return -errno;
        reserve(mount_fd, g->fd);
        return 0;
}

void cgroups_close(struct cgroups *g) {
        g->fd = close_fd(g->fd);
        pthread_mutex_destroy(&g->lock);
}

/* Removes a folder and those below it; what still holds a process stays. */
static int remove_tree(int parent_fd, const char *name, unsigned depth) {
        struct dirent *de;
        DIR *dir;
        int fd;

        if (unlinkat(parent_fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
                return 0;
        if (errno != EBUSY || depth >= CGROUP_DEPTH_MAX)
                return -errno;

        fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        dir = fdopendir(fd);
        if (!dir) {
                close_fd(fd);
                return -ENOMEM;
        }
        while ((de = readdir(dir)))
                if (de->d_type == DT_DIR && de->d_name[0] != '.')
                        remove_tree(fd, de->d_name, depth + 1);
        closedir(dir);
        return unlinkat(parent_fd, name, AT_REMOVEDIR) < 0 ? -errno : 0;
}

static void sweep(struct cgroups *g) {
        size_t kept = 0;

        for (size_t i = 0; i < g->n_stale; i++) {
                if (remove_tree(g->fd, g->stale[i], 0) == 0)
                        continue;
                if (kept != i)
                        memcpy(g->stale[kept], g->stale[i], sizeof(g->stale[i]));
                kept++;
        }
        g->n_stale = kept;
}

int cgroup_create(struct cgroups *g, struct cgroup *ret) {
        struct cgroup c = CGROUP_INIT;

        if (g->fd < 0)
                return -EOPNOTSUPP;

        LOCK(&g->lock);
        sweep(g);
        do
                snprintf(c.name, sizeof(c.name), "exec-%" PRIu64, ++g->next);
        while (mkdirat(g->fd, c.name, 0755) < 0 && errno == EEXIST);
        c.fd = openat(g->fd, c.name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (c.fd < 0)
                return -errno;
        *ret = c;
        return 0;
}

/* "populated 0" in cgroup.events: no live process here or below. */
static bool populated(int events_fd) {
        char text[128];
        ssize_t n = pread(events_fd, text, sizeof(text) - 1, 0);

        if (n < 0)
                return false;
        text[n] = '\0';
        return !strstr(text, "populated 0");
}

int cgroup_kill(const struct cgroup *c, deadline_t deadline) {
        _cleanup_close_ int kill_fd = openat(c->fd, "cgroup.kill", O_WRONLY | O_CLOEXEC);
        _cleanup_close_ int events_fd = openat(c->fd, "cgroup.events", O_RDONLY | O_CLOEXEC);

        if (kill_fd < 0 || events_fd < 0)
                return -EOPNOTSUPP;
        if (write(kill_fd, "1", 1) != 1)
                return -errno;
        while (populated(events_fd)) {
                struct pollfd p = {.fd = events_fd, .events = POLLPRI};

                if (deadline_passed(deadline))
                        return -ETIMEDOUT;
                if (poll(&p, 1, deadline_poll_ms(deadline)) < 0 && errno != EINTR)
                        return -errno;
        }
        return 0;
}

void cgroup_release(struct cgroups *g, struct cgroup *c) {
        if (c->fd < 0)
                return;
        c->fd = close_fd(c->fd);

        LOCK(&g->lock);
        if (remove_tree(g->fd, c->name, 0) < 0 && g->n_stale < CGROUPS_STALE_MAX)
                memcpy(g->stale[g->n_stale++], c->name, sizeof(c->name));
}
