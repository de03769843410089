/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include "base/deadline.h"
#include "base/thread.h"

struct cancel {
        atomic_uint refs;
        atomic_bool fired; /* set once, under lock; read without it */
        int fd;            /* eventfd; written once, never read, so that it stays readable for everybody */
        /* Guards hooks. It is held while they run: that is what makes cancel_unhook() wait for one that runs in
         * another thread, and why a hook must neither block nor call back into the token. */
        pthread_mutex_t lock;
        struct cancel_hook *hooks;
};

struct cancel *cancel_new(void) {
        struct cancel *c = calloc(1, sizeof(*c));
        if (!c)
                return NULL;

        c->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (c->fd < 0) {
                free(c);
                return NULL;
        }
        atomic_init(&c->refs, 1);
        atomic_init(&c->fired, false);
        pthread_mutex_init(&c->lock, NULL);
        return c;
}

struct cancel *cancel_ref(struct cancel *c) {
        if (c)
                atomic_fetch_add(&c->refs, 1);
        return c;
}

void cancel_unref(struct cancel *c) {
        if (!c || atomic_fetch_sub(&c->refs, 1) > 1)
                return;
        close_fd(c->fd);
        pthread_mutex_destroy(&c->lock);
        free(c);
}

/* Takes a hook off the list; nothing if it is on none. Called with the lock held. */
static void hook_remove(struct cancel_hook *hook) {
        if (!hook->pprev)
                return;
        *hook->pprev = hook->next;
        if (hook->next)
                hook->next->pprev = hook->pprev;
        hook->next = NULL;
        hook->pprev = NULL;
}

void cancel_fire(struct cancel *c) {
        if (!c)
                return;
        LOCK(&c->lock);
        if (atomic_exchange(&c->fired, true))
                return;

        /* It cannot fail: the counter is 0 and written this once. */
        (void) eventfd_write(c->fd, 1);
        while (c->hooks) {
                struct cancel_hook *hook = c->hooks;

                hook_remove(hook); /* before it runs: its owner may reuse it right after */
                hook->fn(hook->arg);
        }
}

bool cancel_fired(struct cancel *c) {
        return c && atomic_load(&c->fired);
}

int cancel_fd(struct cancel *c) {
        return c ? c->fd : -1;
}

void cancel_hook(struct cancel *c, struct cancel_hook *hook) {
        hook->next = NULL;
        hook->pprev = NULL;
        if (!c)
                return;
        {
                LOCK(&c->lock);
                if (!atomic_load(&c->fired)) {
                        hook->next = c->hooks;
                        hook->pprev = &c->hooks;
                        if (hook->next)
                                hook->next->pprev = &hook->next;
                        c->hooks = hook;
                        return;
                }
        }
        hook->fn(hook->arg);
}

void cancel_unhook(struct cancel *c, struct cancel_hook *hook) {
        if (!c)
                return;
        LOCK(&c->lock);
        hook_remove(hook);
}
