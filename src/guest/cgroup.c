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

static int remove_tree(int parent_fd, const char *name, unsigned depth);

void cgroups_close(struct cgroups *g) {
        for (size_t i = 0; i < g->n_spare; i++) {
                close_fd(g->spare[i].fd);
                remove_tree(g->fd, g->spare[i].name, 0);
        }
        g->n_spare = 0;
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

static int make(struct cgroups *g, struct cgroup *ret) {
        struct cgroup c = CGROUP_INIT;
        uint64_t n;

        do {
                pthread_mutex_lock(&g->lock);
                n = ++g->next;
                pthread_mutex_unlock(&g->lock);
                snprintf(c.name, sizeof(c.name), "exec-%" PRIu64, n);
        } while (mkdirat(g->fd, c.name, 0755) < 0 && errno == EEXIST);
        c.fd = openat(g->fd, c.name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (c.fd < 0)
                return -errno;
        *ret = c;
        return 0;
}

static bool take_spare(struct cgroups *g, struct cgroup *ret) {
        LOCK(&g->lock);
        if (g->n_spare == 0)
                return false;
        *ret = g->spare[--g->n_spare];
        return true;
}

int cgroup_create(struct cgroups *g, struct cgroup *ret) {
        if (g->fd < 0)
                return -EOPNOTSUPP;
        return take_spare(g, ret) ? 0 : make(g, ret);
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

int cgroup_wait_empty(const struct cgroup *c, deadline_t deadline) {
        _cleanup_close_ int events_fd = openat(c->fd, "cgroup.events", O_RDONLY | O_CLOEXEC);

        while (events_fd >= 0 && populated(events_fd)) {
                struct pollfd p = {.fd = events_fd, .events = POLLPRI};

                if (deadline_passed(deadline))
                        return -ETIMEDOUT;
                if (poll(&p, 1, deadline_poll_ms(deadline)) < 0 && errno != EINTR)
                        return -errno;
        }
        return 0;
}

int cgroup_kill(const struct cgroup *c, deadline_t deadline) {
        _cleanup_close_ int kill_fd = openat(c->fd, "cgroup.kill", O_WRONLY | O_CLOEXEC);

        if (kill_fd < 0)
                return -EOPNOTSUPP;
        if (write(kill_fd, "1", 1) != 1)
                return -errno;
        return cgroup_wait_empty(c, deadline);
}

/* Takes a folder that is not needed any more away, and what was stale and can go by now. */
static void discard(struct cgroups *g, const char *name) {
        int r = remove_tree(g->fd, name, 0);

        LOCK(&g->lock);
        sweep(g);
        if (r < 0 && g->n_stale < CGROUPS_STALE_MAX)
                memcpy(g->stale[g->n_stale++], name, CGROUP_NAME_MAX + 1);
}

static bool spare_wanted(struct cgroups *g) {
        LOCK(&g->lock);
        return g->n_spare < CGROUPS_SPARE_MAX;
}

void cgroup_release(struct cgroups *g, struct cgroup *c) {
        struct cgroup fresh = CGROUP_INIT;

        if (c->fd < 0)
                return;
        c->fd = close_fd(c->fd);
        discard(g, c->name);

        if (!spare_wanted(g) || make(g, &fresh) < 0)
                return;
        pthread_mutex_lock(&g->lock);
        if (g->n_spare < CGROUPS_SPARE_MAX) {
                g->spare[g->n_spare++] = fresh;
                fresh.fd = -1;
        }
        pthread_mutex_unlock(&g->lock);
        if (fresh.fd >= 0) {
                close_fd(fresh.fd);
                discard(g, fresh.name);
        }
}
