/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/freeze.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "guest/args.h"
#include "guest/connection.h"
#include "guest/console.h"

#define MOUNTINFO "/proc/self/mountinfo"

/* ---- which ones ---- */

struct file_systems {
        int fds[FREEZER_MAX];
        dev_t devices[FREEZER_MAX];
        size_t n; /* in the order of their mounting */
};

/* "a\040b" is "a b": in place. */
static void unescape(char *path) {
        char *to = path;

        for (const char *from = path; *from; to++) {
                if (from[0] == '\\' && strspn(from + 1, "01234567") >= 3) {
                        *to = (char) ((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
                        from += 4;
                } else {
                        *to = *from++;
                }
        }
        *to = '\0';
}

/* The mount point, if it is that of this device: another mount may lie over it. Nothing but a folder or a file is
 * opened: what stands there may be a device, or block. */
static int open_mount(const char *path, dev_t device) {
        _cleanup_close_ int at = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        char again[64];
        struct stat st;

        if (at < 0 || fstat(at, &st) < 0 || st.st_dev != device || (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode)))
                return -1;
        snprintf(again, sizeof(again), "/proc/self/fd/%d", at);
        return open(again, O_RDONLY | O_CLOEXEC);
}

/* One line of mountinfo (proc(5)): number, parent, device, root, mount point. File systems without a block device have
 * the major number 0. */
static void take_line(const char *line, struct file_systems *all) {
        _cleanup_free_ char *numbers = NULL, *path = NULL;
        char *rest;

        if (sscanf(line, "%*s %*s %ms %*s %ms", &numbers, &path) != 2)
                return;
        const unsigned major_number = (unsigned) strtoul(numbers, &rest, 10);
        if (major_number == 0 || *rest != ':')
                return;
        const dev_t device = makedev(major_number, (unsigned) strtoul(rest + 1, NULL, 10));
        unescape(path);
        for (size_t i = 0; i < all->n; i++)
                if (all->devices[i] == device)
                        return;
        if (all->n == FREEZER_MAX)
                return;
        int fd = open_mount(path, device);
        if (fd < 0)
                return;
        all->devices[all->n] = device;
        all->fds[all->n++] = fd;
}

static void file_systems_close(struct file_systems *all) {
        while (all->n > 0)
                close_fd(all->fds[--all->n]);
}

static int find_file_systems(struct file_systems *all) {
        FILE *f = fopen(MOUNTINFO, "re");
        _cleanup_free_ char *line = NULL;
        size_t size = 0;

        if (!f)
                return -errno;
        while (getline(&line, &size, f) >= 0)
                take_line(line, all);
        fclose(f);
        return 0;
}

/* ---- freezing and thawing: the state is FREEZER_AT_WORK, and nobody else touches the list ---- */

/* Whether all of them still were frozen. */
static bool thaw_all(struct freezer *f) {
        bool all = true;

        /* What carries another one first: that has to be written to. */
        while (f->n > 0) {
                int fd = f->fds[--f->n];

                if (ioctl(fd, FITHAW, 0) < 0)
                        all = false;
                close_fd(fd);
        }
        return all;
}

/* Freezes what can be. Whether the root is among it. */
static bool freeze_all(struct freezer *f, struct file_systems *all, deadline_t until) {
        struct stat root;
        bool frozen = false;

        if (stat("/", &root) < 0)
                return false;
        for (; all->n > 0 && !deadline_passed(until); all->n--) {
                int *fd = &all->fds[all->n - 1];

                if (ioctl(*fd, FIFREEZE, 0) < 0) {
                        *fd = close_fd(*fd);
                        continue;
                }
                frozen |= all->devices[all->n - 1] == root.st_dev;
                f->fds[f->n++] = TAKE_FD(*fd);
        }
        return frozen;
}

static void settle(struct freezer *f, enum freezer_state state, deadline_t until) {
        struct connection *owner = NULL;

        {
                LOCK(&f->lock);
                f->state = state;
                f->until = until;
                if (state == FREEZER_IDLE)
                        owner = TAKE_PTR(f->owner);
                pthread_cond_broadcast(&f->changed);
        }
        connection_unref(owner);
}

/* Thaws if something is frozen and nobody else is at it. The lock is held, and released meanwhile. */
static int thaw_locked(struct freezer *f) {
        if (f->state != FREEZER_FROZEN)
                return -ENOENT;
        f->state = FREEZER_AT_WORK;
        pthread_mutex_unlock(&f->lock);
        bool all = thaw_all(f);
        settle(f, FREEZER_IDLE, DEADLINE_NEVER);
        pthread_mutex_lock(&f->lock);
        return all ? 0 : -ENOENT;
}

/* ---- the thread that sees to it that they thaw ---- */

static void *watch_main(void *arg) {
        struct freezer *f = arg;
        bool late = false;
        LOCK(&f->lock);

        while (f->state != FREEZER_IDLE) {
                if (f->state == FREEZER_FROZEN && (f->owner->lost || deadline_passed(f->until)))
                        late = thaw_locked(f) == 0;
                else
                        cond_wait_until(&f->changed, &f->lock, f->until);
        }
        f->watched = false;
        pthread_cond_broadcast(&f->changed);
        if (late)
                console_say("nobody has thawed the file systems: they have done so by themselves");
        return NULL;
}

void freezer_init(struct freezer *f) {
        *f = (struct freezer){.until = DEADLINE_NEVER};
        pthread_mutex_init(&f->lock, NULL);
        cond_init(&f->changed);
}

void freezer_free(struct freezer *f) {
        (void) freezer_thaw(f);
        pthread_mutex_lock(&f->lock);
        while (f->watched)
                cond_wait_until(&f->changed, &f->lock, DEADLINE_NEVER);
        pthread_mutex_unlock(&f->lock);
        pthread_cond_destroy(&f->changed);
        pthread_mutex_destroy(&f->lock);
}

/* Claims the freezer and starts its thread. */
static int begin(struct freezer *f, struct connection *owner, struct error *err) {
        LOCK(&f->lock);

        while (f->state == FREEZER_IDLE && f->watched) /* by a thread on its way out */
                cond_wait_until(&f->changed, &f->lock, DEADLINE_NEVER);
        if (f->state != FREEZER_IDLE)
                return error_set(err, ERROR_CONFLICT, "The file systems are frozen already");
        int r = thread_start_detached("freezer", watch_main, f);
        if (r < 0)
                return error_set_errno(err, r, "Cannot start a thread for the time of the freeze");
        f->watched = true;
        f->state = FREEZER_AT_WORK;
        f->owner = connection_ref(owner);
        return 0;
}

int freezer_freeze(struct freezer *f, struct connection *owner, int64_t max_ms, bool *ret_frozen, struct error *err) {
        struct file_systems all = {0};
        bool frozen = false;
        int r = begin(f, owner, err);

        if (r < 0)
                return r;
        /* Before, so that the freezing itself has little to write. */
        sync();
        const deadline_t until = deadline_in_ms(max_ms);
        r = find_file_systems(&all);
        if (r == 0)
                frozen = freeze_all(f, &all, until);
        file_systems_close(&all);
        if (frozen) {
                settle(f, FREEZER_FROZEN, until);
        } else {
                (void) thaw_all(f);
                settle(f, FREEZER_IDLE, DEADLINE_NEVER);
        }
        if (r < 0)
                return error_set_errno(err, r, "Cannot read " MOUNTINFO);
        *ret_frozen = frozen;
        return 0;
}

int freezer_thaw(struct freezer *f) {
        LOCK(&f->lock);

        while (f->state == FREEZER_AT_WORK)
                cond_wait_until(&f->changed, &f->lock, DEADLINE_NEVER);
        return thaw_locked(f);
}

void freezer_lost(struct freezer *f, struct connection *c) {
        LOCK(&f->lock);

        c->lost = true;
        if (f->owner == c)
                pthread_cond_broadcast(&f->changed);
}

/* ---- requests ---- */

/* The file systems of the machine of which the agent is the first process, and of no other. */
static int check_first(struct error *err) {
        return getpid() == 1 ? 0 : error_set(err, ERROR_UNSUPPORTED, "This agent is not the machine's first process");
}

int handle_freeze(struct request *req, struct error *err) {
        struct freeze_args a;
        bool frozen = false;
        int r = freeze_args_parse(req->args, &a, err);

        if (r == 0)
                r = check_first(err);
        if (r == 0)
                r = freezer_freeze(&req->agent->freezer, req->connection, a.max_ms, &frozen, err);
        return r < 0 ? r : json_put(req->reply, "frozen", json_boolean(frozen));
}

int handle_thaw(struct request *req, struct error *err) {
        return freezer_thaw(&req->agent->freezer) == 0
                       ? 0
                       : error_set(err, ERROR_NOT_FOUND, "The file systems are not frozen (any more)");
}

int handle_sync(struct request *req, struct error *err) {
        sync();
        return 0;
}
