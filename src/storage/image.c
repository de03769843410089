/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/image.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/json.h"
#include "base/str.h"

#define IMAGE_NAME_MAX 128
#define IMAGE_JSON_MAX (64u * 1024u)
#define IMAGE_JSON_DEPTH_MAX 4
#define IMAGES_MAX 1024u
#define IMAGE_DISK_GB_MAX 65536 /* a larger minimum is a mistake in image.json */

void image_clear(struct image *i) {
        free(i->name);
        free(i->path);
        free(i->format);
        free(i->key);
        free(i->source);
        free(i->created_at);
        *i = (struct image){0};
}

void image_list_clear(struct image_list *l) {
        for (size_t i = 0; i < l->n; i++)
                image_clear(&l->v[i]);
        free(l->v);
        *l = (struct image_list){0};
}

bool image_name_valid(const char *name) {
        return name && name[0] != '.' && name_valid(name, IMAGE_NAME_MAX, "._-");
}

/* Takes over what image.json says. */
static int parse_description(const char *text, size_t len, struct image *image, struct error *err) {
        _cleanup_json_ json_t *json = NULL;
        const char *name = NULL, *format = NULL, *key = "", *source = "", *created = "";
        int64_t virtual_bytes = 0, min_gb = 0;

        int r = json_parse(text, len, IMAGE_JSON_MAX, IMAGE_JSON_DEPTH_MAX, &json, err);
        if (r < 0)
                return r;
        if (!json_is_object(json))
                return error_set(err, ERROR_INVALID_ARGUMENT, "it holds no object");
        r = json_get_str(json, "name", &name, err);
        if (r >= 0)
                r = json_get_str(json, "format", &format, err);
        if (r >= 0)
                r = json_get_int(json, "virtual_size_bytes", &virtual_bytes, err);
        if (r >= 0)
                r = json_get_int(json, "min_disk_gb", &min_gb, err);
        if (r >= 0)
                r = json_opt_str(json, "key", &key, err);
        if (r >= 0)
                r = json_opt_str(json, "source", &source, err);
        if (r >= 0)
                r = json_opt_str(json, "created_at", &created, err);
        if (r < 0)
                return r;

        if (!str_eq(name, image->name))
                return error_set(err, ERROR_INVALID_ARGUMENT, "it describes \"%s\"", name);
        if (!str_eq(format, "raw"))
                return error_set(err, ERROR_INVALID_ARGUMENT, "format \"%s\" is not known, only \"raw\" is", format);
        if (virtual_bytes <= 0 || virtual_bytes % 512 != 0)
                return error_set(err, ERROR_INVALID_ARGUMENT,
                                 "virtual_size_bytes %" PRId64 " is not the size of a disk", virtual_bytes);
        if (min_gb < 0 || min_gb > IMAGE_DISK_GB_MAX)
                return error_set(err, ERROR_INVALID_ARGUMENT, "min_disk_gb %" PRId64 " is out of range", min_gb);
        image->virtual_bytes = (uint64_t) virtual_bytes;
        image->min_disk_gb = (unsigned) min_gb;
        if (str_replace(&image->format, format) < 0 || str_replace(&image->key, key) < 0 ||
            str_replace(&image->source, source) < 0 || str_replace(&image->created_at, created) < 0)
                return error_set_errno(err, ENOMEM, "cannot read it");
        return 0;
}

static int check_disk(struct image *image, struct error *err) {
        struct stat st;
        if (stat(image->path, &st) < 0)
                return error_set_errno(err, errno, "its disk.raw cannot be used");
        if (!S_ISREG(st.st_mode))
                return error_set(err, ERROR_INVALID_ARGUMENT, "its disk.raw is not a regular file");
        if ((uint64_t) st.st_size != image->virtual_bytes)
                return error_set(err, ERROR_INVALID_ARGUMENT,
                                 "its disk.raw has %" PRId64 " bytes, but image.json says %" PRIu64,
                                 (int64_t) st.st_size, image->virtual_bytes);
        image->used_bytes = (uint64_t) st.st_blocks * 512; /* stat(2): always in units of 512 bytes */
        return 0;
}

/* -ENOENT: no image of this name. Any other error: it is there, but not usable; err says why. */
static int image_read(const char *image_dir, const char *name, struct image *ret, struct error *err) {
        _cleanup_free_ char *absolute = realpath(image_dir, NULL), *dir = absolute ? path_join(absolute, name) : NULL;
        if (!dir)
                return -ENOENT;
        _cleanup_free_ char *json_path = path_join(dir, "image.json"), *text = NULL;
        _cleanup_image_ struct image image = {.name = strdup(name), .path = path_join(dir, "disk.raw")};
        size_t len = 0;
        if (!json_path || !image.name || !image.path)
                return error_set_errno(err, ENOMEM, "Cannot read the image \"%s\"", name);

        int r = file_read_all(json_path, IMAGE_JSON_MAX, &text, &len);
        if (r == -ENOENT || r == -ENOTDIR)
                return -ENOENT;
        if (r < 0)
                error_set_errno(err, r, "its image.json cannot be read");
        else {
                r = parse_description(text, len, &image, err);
                if (r < 0)
                        error_prefix(err, "its image.json is damaged");
                else
                        r = check_disk(&image, err);
        }
        if (r < 0) {
                error_prefix(err, "The image \"%s\" in %s cannot be used", name, absolute);
                error_hint(err, "Build or import it again: agentiso image build, agentiso image import.");
                return r == -ENOENT ? -EIO : r;
        }
        *ret = image;
        image = (struct image){0};
        return 0;
}

static int compare_names(const void *a, const void *b) {
        return strcmp(((const struct image *) a)->name, ((const struct image *) b)->name);
}

static int list_add(struct image_list *list, struct image *image) {
        if (list->n >= IMAGES_MAX)
                return -E2BIG;
        struct image *v = reallocarray(list->v, list->n + 1, sizeof(*v));
        if (!v)
                return -ENOMEM;
        list->v = v;
        list->v[list->n++] = *image;
        *image = (struct image){0};
        return 0;
}

int image_list_read(const char *image_dir, struct image_list *ret, struct error *err) {
        _cleanup_(image_list_clear) struct image_list list = {0};
        DIR *d = opendir(image_dir);
        if (!d && errno != ENOENT)
                return error_set_errno(err, errno, "Cannot list the images in %s", image_dir);
        int r = 0;
        for (struct dirent *e; d && r >= 0 && (e = readdir(d));) {
                _cleanup_image_ struct image image = {0};
                if (image_name_valid(e->d_name) && image_read(image_dir, e->d_name, &image, NULL) >= 0)
                        r = list_add(&list, &image);
        }
        if (d)
                closedir(d);
        if (r < 0)
                return error_set_errno(err, r, "Cannot list the images in %s", image_dir);
        if (list.n > 0)
                qsort(list.v, list.n, sizeof(*list.v), compare_names);
        *ret = list;
        list = (struct image_list){0};
        return 0;
}

/* Says which images there are, the nearest one first in mind. */
static int fail_not_found(const char *image_dir, const char *name, struct error *err) {
        _cleanup_(image_list_clear) struct image_list list = {0};
        _cleanup_buf_ struct buf names = BUF_INIT(4096);

        int r = error_set(err, ERROR_NOT_FOUND, "There is no image \"%s\"", name);
        if (!err || image_list_read(image_dir, &list, NULL) < 0)
                return r;
        if (list.n == 0) {
                error_hint(err, "%s holds no images yet. Make one: agentiso image build", image_dir);
                return r;
        }
        _cleanup_free_ const char **candidates = calloc(list.n, sizeof(*candidates));
        for (size_t i = 0; candidates && i < list.n; i++) {
                candidates[i] = list.v[i].name;
                if (buf_printf(&names, "%s%s", i > 0 ? ", " : "", list.v[i].name) < 0)
                        break; /* the limit: enough names for anybody */
        }
        const char *nearest = candidates ? str_nearest(name, candidates, list.n) : NULL;
        error_hint(err, "%s%s%sThere are: %s. More are made by agentiso image build and agentiso image import.",
                   nearest ? "Did you mean " : "", nearest ? nearest : "", nearest ? "? " : "",
                   names.data ? names.data : "");
        return r;
}

int image_find(const char *image_dir, const char *name, struct image *ret, struct error *err) {
        if (!image_name_valid(name))
                return error_set(
                        err, ERROR_INVALID_ARGUMENT,
                        "\"%s\" cannot be the name of an image: 1 to %d of A-Z, a-z, 0-9, '.', '_' and '-', not "
                        "beginning with '.'",
                        name ? name : "", IMAGE_NAME_MAX);
        int r = image_read(image_dir, name, ret, err);
        return r == -ENOENT ? fail_not_found(image_dir, name, err) : r;
}
