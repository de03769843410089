/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Empty overlays, made fast.
 *
 * qemu-img takes some 10 ms of CPU for an overlay, and twenty forks are made at once. But an empty overlay is a few
 * hundred bytes between zeros: a header, a reference count for each of its own clusters, and tables without an entry.
 * Two of the same size, whose backing files have the same format, differ in nothing but the backing file's name. So
 * qemu-img makes one of each kind, with a name as long as one can be, and what is not zero of it is kept in memory: the
 * *prototype*. An overlay is a new file with those blocks and the right name: byte for byte what qemu-img would have
 * made, only that the zeros are holes.
 *
 * A prototype depends on no file, so none can be out of date, and nothing of it is left on the disk. The first overlay
 * of a kind after a start of the daemon pays for it; who comes meanwhile waits for that. The least recently used one
 * goes when there are too many.
 */

#include "base/deadline.h"
#include "base/error.h"

#define PROTOTYPES_MAX 16u /* kinds of overlays that are remembered; some 16 KiB each */

struct overlays;

struct overlay {
        const char *backing; /* name of the file below, as it goes into the header; at most QCOW2_BACKING_MAX bytes */
        const char *format;  /* of that file: "raw" or "qcow2" */
        uint64_t virtual_bytes;
};

/* dir: where qemu-img may make its files; both are copied. */
int overlays_new(const char *dir, const char *qemu_img, struct overlays **ret);
void overlays_free(struct overlays *o); /* accepts NULL; nobody else uses it any more */

/* Writes an overlay to dir/name, in the place of a file that is there, and its content lasts when this returns; its
 * name may not. For many threads at once. On failure there is no such file. */
int overlay_write(struct overlays *o, const char *name, const struct overlay *what, const struct op *op,
                  struct error *err);
