/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Waiting on a condition variable under an op.
 *
 *     cond_waiter_begin(&w, &x->lock, &x->changed, op);
 *     pthread_mutex_lock(&x->lock);
 *     while (!x->ready && (r = cond_waiter_sleep(&w)) >= 0)
 *             ;
 *     pthread_mutex_unlock(&x->lock);
 *     cond_waiter_end(&w);
 *
 * Begin and end stand outside the lock: the hook of the cancel token takes it (lock order: token, then x->lock).
 */

#include <pthread.h>

#include "base/deadline.h"

struct cond_waiter {
        pthread_mutex_t *lock;
        pthread_cond_t *cond;
        const struct op *op;
        struct cancel_hook hook;
        bool cancelled; /* guarded by lock */
};

void cond_waiter_begin(struct cond_waiter *w, pthread_mutex_t *lock, pthread_cond_t *cond, const struct op *op);
/* Lock held; released while asleep. 0: woken, look again. -ETIMEDOUT, -ECANCELED. */
int cond_waiter_sleep(struct cond_waiter *w);
void cond_waiter_end(struct cond_waiter *w);
