/* SPDX-License-Identifier: Apache-2.0 */
#include "base/util.h"

int close_fd(int fd) {
        if (fd >= 0) {
                int saved = errno;

                /* Not repeated on EINTR: Linux has released the number by then, another thread may own it already. */
                close(fd);
                errno = saved;
        }
        return -1;
}
