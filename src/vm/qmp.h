/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Client of the QEMU Machine Protocol: one JSON object a line, in both directions.
 *
 * One thread per connection reads, and writes what callers have queued, so that nobody ever holds a lock across a
 * write. Commands carry an id and any number of them may be under way; a reply wakes the caller whose id it has, one
 * that nobody waits for any more is dropped, an event goes to the callback. When the connection ends, for whatever
 * reason, every caller gets an error at once.
 *
 * A command may carry a descriptor, which travels with its first byte: QEMU looks for it when it runs the command, so a
 * second one must not overtake it. That holds because QEMU reads a command only when it is done with the one before.
 *
 * QEMU is not trusted with our memory: a guest may have taken it over. A line over QMP_LINE_MAX, or one that is not a
 * JSON object, ends the connection.
 *
 * QEMU serves one client at a time on a socket. The next one may connect as soon as this one is closed.
 */

#include <jansson.h>

#include "base/deadline.h"
#include "base/error.h"

#define QMP_LINE_MAX (1024u * 1024u)
#define QMP_DEPTH_MAX 32u
#define QMP_OUT_MAX (1024u * 1024u) /* bytes of commands that wait to be written */
#define QMP_FDS_MAX 8u              /* descriptors that wait with them */

struct qmp;

struct qmp_callbacks {
        /* On the connection's thread: must not block, and must not let go of the client. data may be NULL. */
        void (*event)(void *arg, const char *name, const json_t *data);
        /* The connection has ended; once, the last call, under the same rules. May be NULL. */
        void (*lost)(void *arg);
        void *arg;
};

/* Takes the connected socket (also on failure), waits for the greeting and enters command mode. cb may be NULL. */
int qmp_open(int fd, const struct qmp_callbacks *cb, const struct op *op, struct qmp **ret, struct error *err);
struct qmp *qmp_ref(struct qmp *q);
/* The last reference closes the connection and joins its thread. Accepts NULL. */
void qmp_unref(struct qmp *q);
DEFINE_CLEANUP(struct qmp *, qmp_unref)
#define _cleanup_qmp_ _cleanup_(qmp_unrefp)

bool qmp_is_lost(struct qmp *q);
/* Runs a command; arguments (borrowed) may be NULL, *ret (owned) is its "return" value and ret may be NULL. An error
 * reply gives ERROR_INTERNAL with QEMU's own words, and ERROR_UNSUPPORTED when it does not know the command.
 * -ENOTCONN: the connection ended. -ETIMEDOUT and -ECANCELED: QEMU may still carry the command out. */
int qmp_call(struct qmp *q, const char *command, json_t *arguments, const struct op *op, json_t **ret,
             struct error *err);
/* The same with a copy of the descriptor fd for QEMU (borrowed): for getfd and add-fd. -ENOBUFS: QMP_FDS_MAX wait. */
int qmp_call_with_fd(struct qmp *q, const char *command, json_t *arguments, int fd, const struct op *op, json_t **ret,
                     struct error *err);
