/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The registry of the jobs that the host can ask for: those that nobody waits for, running or ended. An ended one stays
 * until JOBS_FINISHED_MAX newer ones have ended. Its memory is what the spools hold, which share one budget, and a
 * few hundred bytes.
 */

#include "guest/job.h"

#define JOBS_FINISHED_MAX 1000

struct job_list {
        struct job *first, *last;
        size_t n;
};

struct jobs {
        pthread_mutex_t lock; /* guards what follows, and the ids and links of all jobs */
        pthread_cond_t idle;  /* threads became 0 */
        uint64_t last_id;
        struct job_list running;  /* in the order of their ids */
        struct job_list finished; /* in the order in which they ended */
        unsigned threads;
        struct spool_budget spools; /* has its own protection */
};

void jobs_init(struct jobs *s, size_t spool_bytes);
/* Kills what runs and forgets all jobs. No request may be under way. */
void jobs_free(struct jobs *s);

/* Puts a job into the registry: it has an id from now on. Does nothing to one that has. Returns the id. */
uint64_t jobs_list(struct jobs *s, struct job *j);
/* A reference, or NULL with a not_found that says what there is. */
struct job *jobs_get(struct jobs *s, uint64_t id, struct error *err);
/* References to at most max jobs: all that run and the newest of the others, by id. *ret_total: all there are. */
size_t jobs_newest(struct jobs *s, struct job **ret, size_t max, size_t *ret_total);

/* For job_run.c: the job has ended. */
void jobs_ended(struct jobs *s, struct job *j, const struct job_end *end, int64_t duration_ms);
void jobs_thread_begun(struct jobs *s);
void jobs_thread_over(struct jobs *s);
