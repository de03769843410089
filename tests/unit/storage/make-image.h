/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* A small base image as the recipes leave one: <image_dir>/<name>/{disk.raw,image.json}. */

#include <fcntl.h>

#include "base/file.h"
#include "base/str.h"

static inline int image_write_json(const char *image_dir, const char *name, const char *json) {
        _cleanup_free_ char *path = str_printf("%s/%s/image.json", image_dir, name);
        return file_write_atomic(path, json, strlen(json), 0644);
}

/* bytes: of the disk, which is a hole but for its first bytes, `mark`. Replaces an image as a rebuild does. */
static inline int image_make(const char *image_dir, const char *name, uint64_t bytes, unsigned min_gb,
                             const char *mark) {
        _cleanup_free_ char *dir = path_join(image_dir, name), *fresh = str_printf("%s/.%s.new", image_dir, name);
        _cleanup_free_ char *disk = path_join(fresh, "disk.raw"),
                            *file = str_printf("%s/.%s.new/image.json", image_dir, name);
        _cleanup_free_ char *json =
                str_printf("{\"name\":\"%s\",\"format\":\"raw\",\"key\":\"k\",\"source\":\"a test\","
                           "\"created_at\":\"2026-01-01T00:00:00Z\",\"virtual_size_bytes\":%llu,"
                           "\"min_disk_gb\":%u}",
                           name, (unsigned long long) bytes, min_gb);
        int r = mkdir_p(fresh, 0755);
        if (r < 0)
                return r;
        _cleanup_close_ int fd = open(disk, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (fd < 0 || pwrite(fd, mark, strlen(mark), 0) < 0 || ftruncate(fd, (off_t) bytes) < 0)
                return -errno;
        r = file_write_atomic(file, json, strlen(json), 0644);
        if (r >= 0)
                r = rm_rf(dir);
        if (r >= 0 && rename(fresh, dir) < 0)
                r = -errno;
        return r;
}
