/* SPDX-License-Identifier: Apache-2.0 */
#include "base/waiter.h"

#include "base/thread.h"

static void wake(void *arg) {
        struct cond_waiter *w = arg;
        LOCK(w->lock);

        w->cancelled = true;
        pthread_cond_broadcast(w->cond);
}

void cond_waiter_begin(struct cond_waiter *w, pthread_mutex_t *lock, pthread_cond_t *cond, const struct op *op) {
        *w = (struct cond_waiter){.lock = lock, .cond = cond, .op = op, .hook = {.fn = wake, .arg = w}};
        cancel_hook(op->cancel, &w->hook);
}

int cond_waiter_sleep(struct cond_waiter *w) {
        if (w->cancelled)
                return -ECANCELED;
        return cond_wait_until(w->cond, w->lock, w->op->deadline);
}

void cond_waiter_end(struct cond_waiter *w) {
        cancel_unhook(w->op->cancel, &w->hook);
}
