/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The base images that overlays stand on.
 *
 * An overlay holds only what differs from its base, so its base must never change. But an image is rebuilt now and
 * then, under the same path. Each version that an overlay was made from is therefore kept in a folder of the storage,
 * as a hard link (no space, no time), or as a sparse copy where the image lies on another file system. Its name is
 * the identity of the file that it was made of, so that all overlays of one version share it. What no overlay stands
 * on any more is removed when the storage is opened.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "base/str.h"
#include "storage/image.h"

/* Keeps the image's disk in the folder (which exists) and returns its file name there. reserve_bytes of free space
 * stay untouched when it must be copied. Not for two threads at once. */
int bases_keep(const char *dir, const struct image *image, uint64_t reserve_bytes, const struct op *op, char **ret,
               struct error *err);
/* Removes all files of the folder but the named ones. */
int bases_collect(const char *dir, const struct strv *used);
