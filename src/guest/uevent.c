/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/uevent.h"

#include <linux/netlink.h>
#include <sys/socket.h>

#define KERNEL_GROUP 1 /* of NETLINK_KOBJECT_UEVENT: the kernel's own messages */

int uevent_open(void) {
        struct sockaddr_nl addr = {.nl_family = AF_NETLINK, .nl_groups = KERNEL_GROUP};
        _cleanup_close_ int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

        if (fd < 0 || bind(fd, (struct sockaddr *) &addr, sizeof(addr)) < 0)
                return -errno;
        return TAKE_FD(fd);
}

int uevent_wait(int fd, bool (*there)(void *arg), void *arg, const struct op *op) {
        while (!there(arg)) {
                char message[4096];
                int r = wait_fd(fd, POLLIN, op);

                if (r < 0)
                        return r;
                /* What it says does not matter, nor whether some were lost: something changed. */
                while (recv(fd, message, sizeof(message), 0) >= 0)
                        ;
        }
        return 0;
}
