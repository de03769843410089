/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a command prints, kept within bounds: the beginning of the stream in `head`, its end in a ring. What lies
 * between the two is dropped and only counted, so that a command may print for ever. Both grow on demand, and all
 * spools of the agent share one budget. When that is used up, the spools of jobs that ended long ago are emptied first
 * (`reclaim`); if that does not help, the ring stays as small as it is.
 *
 * One thread writes (the job's), any may read. Positions are bytes from the start of the stream.
 */

#include <pthread.h>

#include "base/buf.h"
#include "guest/budget.h"

#define SPOOL_HEAD_MAX (256u * 1024u)
#define SPOOL_RING_MAX (768u * 1024u)
#define SPOOL_PIECE_MIN 4096u        /* a head and a ring of this size are given without regard to the budget */
#define SPOOLS_BYTES_MAX (64u << 20) /* all spools together; at most 1/SPOOLS_MEMORY_SHARE of the memory */
#define SPOOLS_MEMORY_SHARE 8u

struct spool_budget {
        struct budget bytes;
        /* Frees what it can until `wanted` bytes are left; called with no lock of a spool held. NULL: there is nothing.
         */
        void (*reclaim)(void *arg, size_t wanted);
        void *arg;
};

struct spool {
        struct spool_budget *budget;
        pthread_mutex_t lock; /* guards what follows; until the job has ended, only its thread changes any of it */
        uint64_t total;       /* bytes that were written */
        char *head;
        size_t head_cap, head_len;
        bool head_closed; /* it takes no more: the rest goes to the ring */
        char *ring;
        size_t ring_cap, ring_len, ring_at; /* ring_at: where its oldest byte is */
        uint64_t ask_at;                    /* after a refusal the budget is asked again when total has come so far */
};

void spool_init(struct spool *s, struct spool_budget *budget);
void spool_free(struct spool *s);
/* Never fails: what cannot be kept is counted. */
void spool_append(struct spool *s, const void *data, size_t n);
/* Gives back all memory; what was kept is lost. For a spool that is not written to any more. */
void spool_drop(struct spool *s);
uint64_t spool_total(struct spool *s);

/* A part of the stream: the first `head` bytes of data, then `cut` bytes are missing, then the rest of data. */
struct spool_view {
        struct buf data;
        uint64_t head, cut, total;
};
#define SPOOL_VIEW_INIT ((struct spool_view){0})
static inline void spool_view_clear(struct spool_view *v) {
        buf_free(&v->data);
}
#define _cleanup_spool_view_ _cleanup_(spool_view_clear)

/* At most max bytes. offset -1: of the whole, both ends of it; else what is kept from there on. 0 or -ENOMEM. */
int spool_read(struct spool *s, int64_t offset, size_t max, struct spool_view *ret);
/* The last bytes, at most n; returns how many. */
size_t spool_tail(struct spool *s, char *ret, size_t n);
