/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many machines go on from their states at once.
 *
 * Starting QEMU and the first steps of its guest take nothing but processor time. When many do that at once, the
 * virtual processors of each guest keep losing the real ones and spin for each other: twenty at once on two processors
 * take twice the time, and five times the processor, of twenty in turn (measured). So they queue here.
 */
#include <sched.h>

#include "base/thread.h"
#include "base/waiter.h"
#include "vm/vm_private.h"

static struct {
        pthread_once_t once;
        pthread_mutex_t lock; /* guards the next two */
        pthread_cond_t changed;
        unsigned taken;
        unsigned most; /* set once */
} turns = {.once = PTHREAD_ONCE_INIT, .lock = PTHREAD_MUTEX_INITIALIZER};

static void prepare(void) {
        cpu_set_t set;

        cond_init(&turns.changed);
        /* One more than there are processors: some of the time of each is spent waiting. */
        turns.most = 1 + (sched_getaffinity(0, sizeof(set), &set) < 0 ? 1 : (unsigned) CPU_COUNT(&set));
}

int vm_turn_take(const struct op *op) {
        struct cond_waiter w;
        int r = 0;

        pthread_once(&turns.once, prepare);
        cond_waiter_begin(&w, &turns.lock, &turns.changed, op);
        pthread_mutex_lock(&turns.lock);
        while (r >= 0 && turns.taken == turns.most)
                r = cond_waiter_sleep(&w);
        if (r >= 0)
                turns.taken++;
        else
                pthread_cond_signal(&turns.changed); /* the news may have been for us */
        pthread_mutex_unlock(&turns.lock);
        cond_waiter_end(&w);
        return r;
}

void vm_turn_give(void) {
        LOCK(&turns.lock);

        turns.taken--;
        pthread_cond_signal(&turns.changed);
}
