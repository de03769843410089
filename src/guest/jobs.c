/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/jobs.h"

#include <inttypes.h>
#include <signal.h>

#include "base/thread.h"

static void list_append(struct job_list *l, struct job *j) {
        j->next = NULL;
        j->prev = l->last;
        *(l->last ? &l->last->next : &l->first) = j;
        l->last = j;
        l->n++;
}

static void list_remove(struct job_list *l, struct job *j) {
        *(j->prev ? &j->prev->next : &l->first) = j->next;
        *(j->next ? &j->next->prev : &l->last) = j->prev;
        j->next = j->prev = NULL;
        l->n--;
}

/* The oldest first, until there is as much as is wanted. */
static void reclaim(void *arg, size_t wanted) {
        struct jobs *s = arg;
        struct budget *b = &s->spools.bytes;

        LOCK(&s->lock);
        for (struct job *j = s->finished.first; j && atomic_load(&b->used) + wanted > b->max; j = j->next)
                for (size_t i = 0; i < JOB_STREAMS; i++)
                        spool_drop(&j->stream[i].spool);
}

void jobs_init(struct jobs *s, size_t spool_bytes) {
        *s = (struct jobs){.spools = {.bytes = {.max = spool_bytes}, .reclaim = reclaim, .arg = s}};
        pthread_mutex_init(&s->lock, NULL);
        cond_init(&s->idle);
}

static struct job *first_running(struct jobs *s) {
        LOCK(&s->lock);
        return s->running.first ? job_ref(s->running.first) : NULL;
}

static void wait_idle(struct jobs *s) {
        LOCK(&s->lock);
        while (s->threads > 0)
                cond_wait_until(&s->idle, &s->lock, DEADLINE_NEVER);
}

void jobs_free(struct jobs *s) {
        struct job *j;

        while ((j = first_running(s))) {
                job_destroy(j);
                job_unref(j);
        }
        wait_idle(s);
        while ((j = s->finished.first)) {
                list_remove(&s->finished, j);
                job_unref(j);
        }
        pthread_cond_destroy(&s->idle);
        pthread_mutex_destroy(&s->lock);
}

void jobs_thread_begun(struct jobs *s) {
        LOCK(&s->lock);
        s->threads++;
}

void jobs_thread_over(struct jobs *s) {
        LOCK(&s->lock);
        if (--s->threads == 0)
                pthread_cond_broadcast(&s->idle);
}

/* The one that has to go, out of the list, or NULL. */
static struct job *forget_locked(struct jobs *s) {
        struct job *oldest = s->finished.first;

        if (s->finished.n <= JOBS_FINISHED_MAX)
                return NULL;
        list_remove(&s->finished, oldest);
        return oldest;
}

uint64_t jobs_list(struct jobs *s, struct job *j) {
        struct job *forgotten = NULL;
        uint64_t id;

        pthread_mutex_lock(&s->lock);
        if (j->id == 0) {
                j->id = ++s->last_id;
                list_append(job_ended(j, NULL) ? &s->finished : &s->running, job_ref(j));
                forgotten = forget_locked(s);
        }
        id = j->id;
        pthread_mutex_unlock(&s->lock);
        job_unref(forgotten);
        return id;
}

void jobs_ended(struct jobs *s, struct job *j, const struct job_end *end, int64_t duration_ms) {
        struct job *forgotten = NULL;

        /* In one step: a job is in the list that its state says. */
        pthread_mutex_lock(&s->lock);
        job_set_end(j, end, duration_ms);
        if (j->id > 0) {
                list_remove(&s->running, j);
                list_append(&s->finished, j);
                forgotten = forget_locked(s);
        }
        pthread_mutex_unlock(&s->lock);
        job_unref(forgotten);
}

static struct job *find_locked(const struct job_list *l, uint64_t id) {
        for (struct job *j = l->first; j; j = j->next)
                if (j->id == id)
                        return j;
        return NULL;
}

static uint64_t lowest_locked(const struct job_list *l, uint64_t id) {
        for (const struct job *j = l->first; j; j = j->next)
                id = MIN(id, j->id);
        return id;
}

static void not_found(uint64_t id, uint64_t first, uint64_t last, struct error *err) {
        if (last == 0)
                error_set(err, ERROR_NOT_FOUND, "There is no job %" PRIu64 ": no job has been started here", id);
        else if (id <= last)
                error_set(err, ERROR_NOT_FOUND,
                          "There is no job %" PRIu64 " any more: the ids that are known go from %" PRIu64 " to %" PRIu64
                          ", and an ended job is forgotten when %d newer ones have ended",
                          id, first, last, JOBS_FINISHED_MAX);
        else
                error_set(err, ERROR_NOT_FOUND,
                          "There is no job %" PRIu64 ": the ids that are known go from %" PRIu64 " to %" PRIu64, id,
                          first, last);
        error_hint(err, "exec_background with action list shows the jobs.");
}

struct job *jobs_get(struct jobs *s, uint64_t id, struct error *err) {
        struct job *j;

        LOCK(&s->lock);
        j = find_locked(&s->running, id);
        if (!j)
                j = find_locked(&s->finished, id);
        if (!j) {
                not_found(id, lowest_locked(&s->running, lowest_locked(&s->finished, s->last_id)), s->last_id, err);
                return NULL;
        }
        return job_ref(j);
}

/* Adds the newest of a list to the n jobs that are there, which stay in the order of their ids. Returns how many there
 * are then, at most max. */
static size_t add_newest_locked(const struct job_list *l, struct job **jobs, size_t n, size_t max) {
        for (struct job *j = l->last; j && n < max; j = j->prev) {
                size_t at = n++;

                for (; at > 0 && jobs[at - 1]->id > j->id; at--)
                        jobs[at] = jobs[at - 1];
                jobs[at] = job_ref(j);
        }
        return n;
}

size_t jobs_newest(struct jobs *s, struct job **ret, size_t max, size_t *ret_total) {
        size_t n;

        LOCK(&s->lock);
        n = add_newest_locked(&s->running, ret, 0, max);
        n = add_newest_locked(&s->finished, ret, n, max);
        *ret_total = s->running.n + s->finished.n;
        return n;
}
