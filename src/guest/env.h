/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The variables that WIRE_REQ_SET_ENV sets for all later commands. They may be secrets: they are in the memory of the
 * agent only, and what is replaced or removed is overwritten first.
 */

#include <pthread.h>

#include "base/json.h"
#include "base/str.h"

struct env_store {
        pthread_mutex_t lock; /* guards what follows */
        struct strv vars;     /* "NAME=value", at most WIRE_ENV_VARS_MAX */
};

void env_store_init(struct env_store *e);
void env_store_free(struct env_store *e);
/* Sets the variables of an object (checked before: job_args.h), then removes the names of an array (NULL: none). All of
 * it or nothing. *ret_total: how many are set now. */
int env_store_change(struct env_store *e, const json_t *vars, const json_t *unset, size_t *ret_total,
                     struct error *err);
/* Appends the environment of a command to *ret: the defaults, above them the store, above that `own` (NULL: none). */
int env_store_build(struct env_store *e, const json_t *own, bool pty, struct strv *ret);
