/* SPDX-License-Identifier: Apache-2.0 */
#include "base/thread.h"

#include <signal.h>
#include <stdio.h>

/* TASK_COMM_LEN of the kernel, with the NUL. */
#define THREAD_NAME_MAX 16

void cond_init(pthread_cond_t *c) {
        pthread_condattr_t attr;

        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(c, &attr);
        pthread_condattr_destroy(&attr);
}

int cond_wait_until(pthread_cond_t *c, pthread_mutex_t *m, deadline_t d) {
        if (d.at_ns == INT64_MAX)
                return -pthread_cond_wait(c, m);

        struct timespec ts = deadline_timespec(d);
        return -pthread_cond_timedwait(c, m, &ts);
}

struct start {
        void *(*fn)(void *);
        void *arg;
        char name[THREAD_NAME_MAX];
};

/* The thread names itself: a detached one may be gone by the time its creator could. */
static void *thread_main(void *arg) {
        struct start start = *(struct start *) arg;

        free(arg);
        pthread_setname_np(pthread_self(), start.name);
        return start.fn(start.arg);
}

static int start_thread(pthread_t *ret, bool detached, const char *name, void *(*fn)(void *), void *arg) {
        struct start *start = malloc(sizeof(*start));
        if (!start)
                return -ENOMEM;
        *start = (struct start){.fn = fn, .arg = arg};
        snprintf(start->name, sizeof(start->name), "%s", name);

        /* Signals go to the main thread. The faults of a thread itself stay open: the kernel would kill a process that
         * blocks them without running a handler, such as the one of a sanitizer. */
        sigset_t all, old;
        sigfillset(&all);
        static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
        for (size_t i = 0; i < ARRAY_SIZE(faults); i++)
                sigdelset(&all, faults[i]);

        pthread_attr_t attr;
        pthread_t thread;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, detached ? PTHREAD_CREATE_DETACHED : PTHREAD_CREATE_JOINABLE);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        int r = pthread_create(&thread, &attr, thread_main, start);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        pthread_attr_destroy(&attr);
        if (r != 0) {
                free(start);
                return -r;
        }
        if (ret)
                *ret = thread;
        return 0;
}

int thread_start(pthread_t *ret, const char *name, void *(*fn)(void *), void *arg) {
        return start_thread(ret, false, name, fn, arg);
}

int thread_start_detached(const char *name, void *(*fn)(void *), void *arg) {
        return start_thread(NULL, true, name, fn, arg);
}
