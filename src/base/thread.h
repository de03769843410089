/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Threads, mutexes and condition variables (on CLOCK_MONOTONIC, so that a deadline_t can be used as it is). */

#include <pthread.h>

#include "base/deadline.h"
#include "base/util.h"

static inline void mutex_unlockp(pthread_mutex_t **m) {
        if (*m)
                pthread_mutex_unlock(*m);
}
static inline pthread_mutex_t *mutex_lock_ret(pthread_mutex_t *m) {
        pthread_mutex_lock(m);
        return m;
}
/* Locks m until the end of the enclosing block. */
#define LOCK_SCOPE_NAME2(line) _lock_scope_##line
#define LOCK_SCOPE_NAME(line) LOCK_SCOPE_NAME2(line)
#define LOCK(m) _cleanup_(mutex_unlockp) _unused_ pthread_mutex_t *LOCK_SCOPE_NAME(__LINE__) = mutex_lock_ret(m)

/* Initialises a condition variable that counts on CLOCK_MONOTONIC. */
void cond_init(pthread_cond_t *c);
/* Waits on c; 0 when woken (perhaps for nothing: check the condition again), -ETIMEDOUT. */
int cond_wait_until(pthread_cond_t *c, pthread_mutex_t *m, deadline_t d);

/* Starts a thread whose signals are all blocked. name: up to 15 characters, seen in ps and gdb. */
int thread_start(pthread_t *ret, const char *name, void *(*fn)(void *), void *arg);
/* The same, detached. */
int thread_start_detached(const char *name, void *(*fn)(void *), void *arg);
