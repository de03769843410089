/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Attributes and small macros that every file uses.
 *
 * Ownership: a pointer or fd held in a variable marked _cleanup_* is released when the variable goes out of scope;
 * TAKE_PTR and TAKE_FD hand it over and leave NULL or -1 behind. Fds start at -1.
 */

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))
#define _printf_(fmt, args) __attribute__((format(printf, fmt, args)))
#define _sentinel_ __attribute__((sentinel))
#define _unused_ __attribute__((unused))
#define _must_check_ __attribute__((warn_unused_result))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* Their variables have names of their own, so that one may stand inside the other without shadowing. */
#define MIN(a, b)                       \
        ({                              \
                __typeof__(a) _a = (a); \
                __typeof__(b) _b = (b); \
                _a < _b ? _a : _b;      \
        })
#define MAX(a, b)                       \
        ({                              \
                __typeof__(a) _c = (a); \
                __typeof__(b) _d = (b); \
                _c > _d ? _c : _d;      \
        })

#define TAKE_PTR(p)                         \
        ({                                  \
                __typeof__(p) _taken = (p); \
                (p) = NULL;                 \
                _taken;                     \
        })

static inline int take_fd(int *fd) {
        int taken = *fd;
        *fd = -1;
        return taken;
}
#define TAKE_FD(fd) take_fd(&(fd))

/* Closes fd unless it is negative, keeps errno, returns -1 so that `fd = close_fd(fd)` resets the variable. */
int close_fd(int fd);

static inline void close_fdp(int *fd) {
        close_fd(*fd);
}
static inline void freep(void *p) {
        free(*(void **) p);
}

#define _cleanup_close_ _cleanup_(close_fdp)
#define _cleanup_free_ _cleanup_(freep)

/* Defines func##p, which calls func on the pointed-to pointer: for use with _cleanup_(). func must accept NULL. */
#define DEFINE_CLEANUP(type, func)                     \
        static inline _unused_ void func##p(type *p) { \
                func(*p);                              \
        }
