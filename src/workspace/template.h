/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What template.c and template-build.c share. */

#include "workspace/core-internal.h"

#define TEMPLATE_STAMP "stamp"

/* Makes a template, ready and pinned: of an image, from the one that fits any disk (`from`, pinned), or that one itself
 * (both NULL). key: taken over into the row. */
int template_build(struct core *core, const struct platform *p, const struct image *image, struct snapshot *from,
                   unsigned vcpus, unsigned memory_mb, const char *key, const struct op *op, struct snapshot **ret,
                   struct error *err);
/* All that a template of this shape depends on, hashed: owned. */
int template_key(struct core *core, const struct platform *p, const struct image *image, unsigned vcpus,
                 unsigned memory_mb, char **ret, struct error *err);
/* Whether its files are those that were written. */
bool template_is_whole(struct snapshot *s);
