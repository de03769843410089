/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/workers.h"

struct start {
        struct workers *workers;
        struct work *work; /* NULL: it is to wait for some */
};

void workers_init(struct workers *w, const char *name) {
        *w = (struct workers){.name = name, .last = &w->first};
        pthread_mutex_init(&w->lock, NULL);
        cond_init(&w->wanted);
        cond_init(&w->gone);
}

void workers_free(struct workers *w) {
        pthread_mutex_lock(&w->lock);
        w->end = true;
        pthread_cond_broadcast(&w->wanted);
        while (w->threads > 0)
                cond_wait_until(&w->gone, &w->lock, DEADLINE_NEVER);
        pthread_mutex_unlock(&w->lock);
        pthread_cond_destroy(&w->gone);
        pthread_cond_destroy(&w->wanted);
        pthread_mutex_destroy(&w->lock);
}

static struct work *take_locked(struct workers *w) {
        struct work *work = w->first;

        if (!work)
                return NULL;
        w->first = work->next;
        if (!w->first)
                w->last = &w->first;
        return work;
}

/* The next work for a thread that has none; NULL: it is to end. */
static struct work *next(struct workers *w) {
        struct work *work;
        LOCK(&w->lock);

        if (!w->end && w->idle < WORKERS_IDLE_MAX) {
                w->idle++;
                while (!w->first && !w->end)
                        cond_wait_until(&w->wanted, &w->lock, DEADLINE_NEVER);
                work = take_locked(w);
                if (work)
                        return work; /* whoever put it there has counted one idle thread less */
        }
        w->threads--;
        pthread_cond_broadcast(&w->gone);
        return NULL;
}

static void *worker_main(void *arg) {
        struct start start = *(struct start *) arg;

        free(arg);
        do
                if (start.work)
                        start.work->run(start.work);
        while ((start.work = next(start.workers)));
        return NULL;
}

static int start_thread(struct workers *w, struct work *work) {
        struct start *start = malloc(sizeof(*start));
        int r = -ENOMEM;

        if (start) {
                *start = (struct start){w, work};
                pthread_mutex_lock(&w->lock);
                w->threads++;
                pthread_mutex_unlock(&w->lock);
                r = thread_start_detached(w->name, worker_main, start);
        }
        if (r < 0 && start) {
                LOCK(&w->lock);
                w->threads--;
        }
        if (r < 0)
                free(start);
        return r;
}

int workers_prepare(struct workers *w) {
        return start_thread(w, NULL);
}

/* Gives it to a thread that waits, if there is one. */
static bool hand_over(struct workers *w, struct work *work) {
        LOCK(&w->lock);

        if (w->idle == 0)
                return false;
        w->idle--;
        work->next = NULL;
        *w->last = work;
        w->last = &work->next;
        pthread_cond_signal(&w->wanted);
        return true;
}

int workers_run(struct workers *w, struct work *work) {
        return hand_over(w, work) ? 0 : start_thread(w, work);
}
