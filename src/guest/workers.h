/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Threads that wait for the next work when they are through with one.
 *
 * Under emulation it costs a millisecond to make a thread and to end it, and ten in a machine that goes on from a saved
 * state, where every path through the kernel is translated anew. With a thread that waits already, it is a wake-up.
 */

#include "base/thread.h"

#define WORKERS_IDLE_MAX 4 /* threads that wait; more are made as they are needed, and end */

struct work {
        void (*run)(struct work *work); /* may free it */
        struct work *next;              /* private to workers.c */
};

struct workers {
        const char *name;           /* of the threads */
        pthread_mutex_t lock;       /* guards what follows */
        pthread_cond_t wanted;      /* there is work, or the end */
        pthread_cond_t gone;        /* a thread has ended */
        struct work *first, **last; /* work for threads that wait */
        unsigned idle;              /* threads that wait and have no work in the list */
        unsigned threads;
        bool end;
};

void workers_init(struct workers *w, const char *name);
/* Ends the threads that wait, and waits for the others. */
void workers_free(struct workers *w);
/* Makes a thread that waits. */
int workers_prepare(struct workers *w);
/* Runs it on a thread, at once. On failure it does not run. */
int workers_run(struct workers *w, struct work *work);
