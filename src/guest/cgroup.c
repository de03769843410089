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
#define NAME_PREFIX "exec-"
#define PROC_CGROUP_MAX (64u * 1024u) /* of /proc/PID/cgroup: a line for each hierarchy */

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
        if (g->lost_scan)
                closedir(TAKE_PTR(g->lost_scan));
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

static bool is_spare(const struct cgroups *g, const char *name) {
        for (size_t i = 0; i < g->n_spare; i++)
                if (strcmp(g->spare[i].name, name) == 0)
                        return true;
        return false;
}

/* The number of a folder of ours; 0: it is none. */
static uint64_t number_of(const char *name) {
        size_t n = strlen(NAME_PREFIX);

        return strncmp(name, NAME_PREFIX, n) == 0 ? strtoull(name + n, NULL, 10) : 0;
}

static DIR *open_folder(int fd) {
        int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *dir = own >= 0 ? fdopendir(own) : NULL;

        if (!dir)
                close_fd(own);
        return dir;
}

/* Looks for the folders that the list had no room for, a few at a time. What runs cannot be removed; one that is taken
 * at this moment and has no process yet can: job_start.c then makes another. */
static void sweep_lost(struct cgroups *g) {
        struct dirent *de;

        if (g->lost_max == 0)
                return;
        if (!g->lost_scan)
                g->lost_scan = open_folder(g->fd);
        for (size_t i = 0; g->lost_scan && i < CGROUPS_SCAN_MAX; i++) {
                de = readdir(g->lost_scan);
                if (!de) {
                        closedir(TAKE_PTR(g->lost_scan));
                        if (!g->lost_busy)
                                g->lost_max = 0;
                        g->lost_busy = false;
                        return;
                }
                uint64_t n = number_of(de->d_name);
                if (n > 0 && n <= g->lost_max && !is_spare(g, de->d_name) && remove_tree(g->fd, de->d_name, 0) < 0)
                        g->lost_busy = true;
        }
}

static void remember(struct cgroups *g, const char *name) {
        if (g->n_stale < CGROUPS_STALE_MAX)
                memcpy(g->stale[g->n_stale++], name, CGROUP_NAME_MAX + 1);
        else
                g->lost_max = MAX(g->lost_max, number_of(name));
}

int cgroup_make(struct cgroups *g, struct cgroup *ret) {
        struct cgroup c = CGROUP_INIT;
        uint64_t n;

        if (g->fd < 0)
                return -EOPNOTSUPP;
        do {
                pthread_mutex_lock(&g->lock);
                n = ++g->next;
                pthread_mutex_unlock(&g->lock);
                snprintf(c.name, sizeof(c.name), NAME_PREFIX "%" PRIu64, n);
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
        return take_spare(g, ret) ? 0 : cgroup_make(g, ret);
}

bool cgroup_holds(const struct cgroup *c, pid_t pid) {
        _cleanup_free_ char *text = NULL;
        char path[64], folder[sizeof("/" PARENT_NAME "/") + CGROUP_NAME_MAX];
        size_t n;

        snprintf(path, sizeof(path), "/proc/%d/cgroup", (int) pid);
        snprintf(folder, sizeof(folder), "/" PARENT_NAME "/%s", c->name);
        n = strlen(folder);
        if (file_read_all(path, PROC_CGROUP_MAX, &text, NULL) < 0)
                return false;
        for (const char *p = strstr(text, folder); p; p = strstr(p + n, folder))
                if (strchr("/\n ", p[n])) /* also the NUL; a blank stands before "(deleted)" */
                        return true;
        return false;
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

bool cgroup_can_kill(const struct cgroup *c) {
        return faccessat(c->fd, "cgroup.kill", F_OK, 0) == 0;
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
        sweep_lost(g);
        if (r < 0)
                remember(g, name);
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

        if (!spare_wanted(g) || cgroup_make(g, &fresh) < 0)
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
