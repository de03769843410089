/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/drain.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/thread.h"
#include "guest/priority.h"

struct drainer {
        pthread_t thread;
        int epoll_fd;
        int stop_fd;          /* eventfd, in the epoll set */
        pthread_mutex_t lock; /* guards fds */
        int fds[DRAINS_MAX];  /* -1: free */
};

static void forget(struct drainer *d, int fd) {
        LOCK(&d->lock);
        for (size_t i = 0; i < DRAINS_MAX; i++)
                if (d->fds[i] == fd) {
                        d->fds[i] = -1;
                        close_fd(fd);
                        return;
                }
}

static void *drainer_main(void *arg) {
        struct drainer *d = arg;
        char scratch[16 * 1024];

        priority_set(PRIORITY_NORMAL);
        for (;;) {
                struct epoll_event ev[32];
                int n = epoll_wait(d->epoll_fd, ev, ARRAY_SIZE(ev), -1);

                for (int i = 0; i < n; i++) {
                        if (ev[i].data.fd == d->stop_fd)
                                return NULL;
                        ssize_t k = read(ev[i].data.fd, scratch, sizeof(scratch));
                        if (k == 0 || (k < 0 && errno != EAGAIN && errno != EINTR))
                                forget(d, ev[i].data.fd);
                }
        }
}

int drainer_new(struct drainer **ret) {
        struct drainer *d = calloc(1, sizeof(*d));
        struct epoll_event ev = {.events = EPOLLIN};
        int r;

        if (!d)
                return -ENOMEM;
        pthread_mutex_init(&d->lock, NULL);
        for (size_t i = 0; i < DRAINS_MAX; i++)
                d->fds[i] = -1;
        d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        d->stop_fd = eventfd(0, EFD_CLOEXEC);
        ev.data.fd = d->stop_fd;
        if (d->epoll_fd < 0 || d->stop_fd < 0 || epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, d->stop_fd, &ev) < 0)
                r = -errno;
        else
                r = thread_start(&d->thread, "drainer", drainer_main, d);
        if (r < 0) {
                close_fd(d->epoll_fd);
                close_fd(d->stop_fd);
                free(d);
                return r;
        }
        *ret = d;
        return 0;
}

void drainer_free(struct drainer *d) {
        if (!d)
                return;
        eventfd_write(d->stop_fd, 1);
        pthread_join(d->thread, NULL);
        for (size_t i = 0; i < DRAINS_MAX; i++)
                close_fd(d->fds[i]);
        close_fd(d->epoll_fd);
        close_fd(d->stop_fd);
        pthread_mutex_destroy(&d->lock);
        free(d);
}

void drainer_add(struct drainer *d, int fd) {
        struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};

        if (fd < 0)
                return;
        LOCK(&d->lock);
        for (size_t i = 0; i < DRAINS_MAX; i++)
                if (d->fds[i] < 0 && epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fd, &ev) == 0) {
                        d->fds[i] = fd;
                        return;
                }
        close_fd(fd);
}
