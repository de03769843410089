/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the daemon's files of network/ share (network.h).
 *
 * `lock` guards what is said below and is never held across a wait. One thread at a time is *busy*: it talks to the
 * helper, or starts what is missing; what belongs to it is touched by nobody else. Others wait for it under their op.
 */

#include <pthread.h>

#include "base/buf.h"
#include "base/process.h"
#include "network/host.h"
#include "network/names.h"
#include "network/network.h"
#include "network/protocol.h"

/* A process that the daemon started or found, and watches. */
struct child {
        struct proc_id id;
        int pidfd; /* -1: there is none */
};
#define CHILD_INIT ((struct child){.pidfd = -1})

struct spare {
        struct card card;
        int fd;
};

enum phase {
        PHASE_STARTING, /* nobody knows yet */
        PHASE_NAMESPACE,
        PHASE_USER,
        PHASE_FAILED, /* there is a namespace, with machines perhaps, that cannot be taken up; it is tried again */
};

struct network {
        /* These never change. */
        char *dir, *program;
        struct network_range *exceptions;
        size_t n_exceptions;
        pthread_t keeper;
        uint32_t address, gateway; /* of the network */
        unsigned prefix_len;
        int wake_fd;  /* eventfd: the keeper has something to do */
        int route_fd; /* rtnetlink: the host's addresses have changed */
        bool user_only, required, has_keeper;

        pthread_mutex_t lock; /* guards what follows */
        pthread_cond_t changed;
        uint64_t id;      /* inode of the namespace: network_id() */
        struct error why; /* in PHASE_USER and PHASE_FAILED */
        struct spare spares[NETWORK_SPARES_MAX];
        size_t n_spares;
        size_t n_expected;
        uint32_t expected[NETWORK_SPARES_MAX];
        enum phase phase;
        bool busy, closing;
        bool connecting; /* one connection at a time asks for the helper: others shall not wait for hundreds */

        /* These belong to whoever is busy. */
        struct names *names;
        int64_t uplink_not_before_ns;
        struct buf policy; /* body of the last HELPER_POLICY */
        struct child holder, helper, uplink;
        int user_ns, net_ns; /* -1: of the daemon itself */
        int sock;            /* to the helper */
        uint32_t n_cards;    /* from the first address on: they have rules */
        bool joined;         /* the holder was there before this daemon */
        bool wants_uplink;
};

/* network.c */

/* Waits until the phase is known and nobody else is busy. 0, or a negative errno with err: there is no namespace. */
int network_claim(struct network *net, const struct op *op, struct error *err);
void network_release(struct network *net);
void network_wake(struct network *net);

/* supervise.c; all for whoever is busy. */

/* Makes or joins the namespace and starts the helper. */
int supervise_start(struct network *net, struct error *err);
/* Starts anew what has ended. */
int supervise_mend(struct network *net, struct error *err);
/* Whether that is necessary. */
bool supervise_broken(const struct network *net);
/* One request; starts another helper when this one has ended. ret_fd NULL: none is expected. */
int supervise_call(struct network *net, enum helper_op op, const void *body, size_t length, int *ret_fd,
                   struct error *err);
/* Rules for the card of this address, if it does not have them yet. */
int supervise_cards(struct network *net, uint32_t address, struct error *err);
/* Ends the helper; with `end` the holder, too, and the uplink, also those of an earlier daemon that were not taken up.
 */
void supervise_stop(struct network *net, bool end);
/* Forgets a child that has ended, reaping it if it is ours. */
void child_forget(struct child *c);
bool child_ended(const struct child *c);

/* uplink.c; likewise. */

/* Starts pasta unless it runs, and waits until the interface is there. */
int uplink_start(struct network *net, struct error *err);
/* Finds one that an earlier daemon has started. */
void uplink_find(struct network *net);
void uplink_stop(struct network *net);
