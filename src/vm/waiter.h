/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Waiting on a condition variable under an op.
 *
 *     vm_waiter_begin(&w, &x->lock, &x->changed, op);
 *     pthread_mutex_lock(&x->lock);
 *     while (!x->ready && (r = vm_waiter_sleep(&w)) >= 0)
 *             ;
 *     pthread_mutex_unlock(&x->lock);
 *     vm_waiter_end(&w);
 *
 * Begin and end stand outside the lock: the hook of the cancel token takes it (lock order: token, then x->lock).
 */

#include <pthread.h>

#include "base/deadline.h"

struct vm_waiter {
        pthread_mutex_t *lock;
        pthread_cond_t *cond;
        const struct op *op;
        struct cancel_hook hook;
        bool cancelled; /* guarded by lock */
};

void vm_waiter_begin(struct vm_waiter *w, pthread_mutex_t *lock, pthread_cond_t *cond, const struct op *op);
/* Lock held; released while asleep. 0: woken, look again. -ETIMEDOUT, -ECANCELED. */
int vm_waiter_sleep(struct vm_waiter *w);
void vm_waiter_end(struct vm_waiter *w);
