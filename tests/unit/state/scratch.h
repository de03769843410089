/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Folders for tests that use real files: made below $TMPDIR, removed by scratch_remove(). */

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

#include "base/file.h"
#include "base/str.h"
#include "tap.h"

/* A new empty folder; owned. NULL when there is none to be had, which fails whatever test wanted it. */
static inline char *scratch_new(void) {
        const char *tmp = getenv("TMPDIR");
        char *dir = str_printf("%s/agentiso-XXXXXX", tmp && *tmp ? tmp : "/tmp");
        return dir && mkdtemp(dir) ? dir : NULL;
}

static inline void scratch_remove(char **dir) {
        if (!*dir)
                return;
        umount2(*dir, MNT_DETACH); /* of scratch_small(); fails for the others */
        rm_rf(*dir);
        free(*dir);
}
#define _cleanup_scratch_ _cleanup_(scratch_remove)

/* A new folder on a file system of its own with only so many KiB, seen by this thread alone. NULL: not allowed here. */
static inline _unused_ char *scratch_small(unsigned kib) {
        char options[32];
        char *dir = scratch_new();
        snprintf(options, sizeof(options), "size=%uk", kib);
        /* In a chroot "/" is no mount point (EINVAL); whoever made it keeps its mounts to itself. */
        if (dir && unshare(CLONE_NEWNS) == 0 &&
            (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 || errno == EINVAL) &&
            mount("none", dir, "tmpfs", 0, options) == 0)
                return dir;
        scratch_remove(&dir);
        return NULL;
}

/* Writes a file until the file system is full, but never more than a small one holds. */
static inline _unused_ void scratch_fill(const char *path) {
        static const char zeros[4096];
        int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        for (size_t n = 0; n < 16u * 1024 * 1024 && write(fd, zeros, sizeof(zeros)) > 0; n += sizeof(zeros))
                ;
        close(fd);
}

/* For a test that needs scratch_small(): only root may mount. */
#define RUN_ROOT(fn)                                                                                       \
        do {                                                                                               \
                if (geteuid() == 0)                                                                        \
                        RUN(fn);                                                                           \
                else                                                                                       \
                        printf("ok %d - %s # SKIP only root may mount a small tmpfs\n", ++tap_count, #fn); \
        } while (0)
