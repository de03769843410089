/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Base images: folders below image_dir made by the recipes in images/, each with disk.raw and image.json. An image is
 * read-only and is replaced as a whole by rename, so whoever holds its path open keeps the old one.
 */

#include "base/error.h"
#include "base/util.h"

struct image {
        char *name, *path; /* owned; path of the disk file, absolute */
        char *format;      /* "raw" */
        char *key;         /* hash of the recipe or of the imported archive */
        char *source;      /* recipe or archive it was made of */
        char *created_at;  /* RFC 3339 */
        uint64_t virtual_bytes;
        uint64_t used_bytes; /* what it takes on the host's disk */
        unsigned min_disk_gb;
};
void image_clear(struct image *i);
#define _cleanup_image_ _cleanup_(image_clear)

/* -ENOENT (not_found): err names the images that exist and how to build or import one. */
int image_find(const char *image_dir, const char *name, struct image *ret, struct error *err);

struct image_list {
        struct image *v; /* sorted by name */
        size_t n;
};
void image_list_clear(struct image_list *l);
/* All valid images; a folder that is no image is passed over. */
int image_list_read(const char *image_dir, struct image_list *ret, struct error *err);
bool image_name_valid(const char *name);
