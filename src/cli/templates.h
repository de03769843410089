/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Templates, the memory of machines that have booted, as the daemon tells of them. */

#include <jansson.h>

#include "base/error.h"
#include "daemon/config.h"

/* Limit of `agentiso image warm`. */
#define TEMPLATES_WARM_MS 600000

/* Prints a table of them, with its titles. */
void templates_print(const json_t *templates);
/* *ret: the templates of the running daemon, owned. -ENOENT or -ECONNREFUSED as client_open() has it. */
int templates_read(const struct config *cfg, json_t **ret, struct error *err);

struct templates_shape {
        const char *image;         /* NULL: the configured one */
        uint64_t vcpus, memory_mb; /* 0: likewise */
};
/* Has them made and says what was made; the exit status. */
int templates_warm(const struct config *cfg, const struct templates_shape *shape);
