/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/modules.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

static int load_one(int dir_fd, const char *name, struct error *err) {
        _cleanup_close_ int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);

        if (fd < 0 && errno == ENOENT)
                return 0; /* was loaded before */
        if (fd < 0)
                return error_set_errno(err, errno, "Cannot open the kernel module %s", name);
        if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
                return error_set_errno(err, errno, "Cannot load the kernel module %s", name);
        unlinkat(dir_fd, name, 0);
        return 0;
}

int modules_load(int root_fd, const char *group, struct error *err) {
        _cleanup_close_ int dir_fd = openat(root_fd, "modules", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        _cleanup_free_ char *text = malloc(MODULES_ORDER_MAX + 1);
        char *line, *rest;
        ssize_t n;

        if (!text)
                return error_set_errno(err, ENOMEM, "Cannot read the list of kernel modules");
        if (dir_fd < 0)
                return errno == ENOENT ? 0 : error_set_errno(err, errno, "Cannot open the folder of kernel modules");
        _cleanup_close_ int order_fd = openat(dir_fd, "order", O_RDONLY | O_CLOEXEC);
        if (order_fd < 0)
                return errno == ENOENT ? 0 : error_set_errno(err, errno, "Cannot open the list of kernel modules");
        /* A file in memory is read whole at once. */
        n = read(order_fd, text, MODULES_ORDER_MAX);
        if (n < 0)
                return error_set_errno(err, errno, "Cannot read the list of kernel modules");
        text[n] = '\0';

        for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
                char g[32], name[128];
                int r;

                if (sscanf(line, "%31s %127s", g, name) != 2 || strcmp(g, group) != 0)
                        continue;
                r = load_one(dir_fd, name, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

#define VIRTIO_BUS "/sys/bus/virtio"

static int set_attribute(const char *path, const char *value) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        return fd < 0 || write(fd, value, strlen(value)) < 0 ? -errno : 0;
}

int modules_park(int root_fd, const char *group, struct error *err) {
        int r = set_attribute(VIRTIO_BUS "/drivers_autoprobe", "0");

        if (r < 0)
                return 0;
        r = modules_load(root_fd, group, err);
        if (set_attribute(VIRTIO_BUS "/drivers_autoprobe", "1") < 0 && r == 0)
                r = error_set(err, ERROR_INTERNAL, "The drivers of virtio devices do not find them any more");
        return r;
}

void modules_attach(void) {
        DIR *dir = opendir(VIRTIO_BUS "/devices");
        struct dirent *de;

        while (dir && (de = readdir(dir))) {
                char driver[sizeof(VIRTIO_BUS) + 300];

                snprintf(driver, sizeof(driver), VIRTIO_BUS "/devices/%s/driver", de->d_name);
                /* Of a device without a driver that is loaded, it stays as it is. */
                if (de->d_name[0] != '.' && access(driver, F_OK) < 0)
                        (void) set_attribute(VIRTIO_BUS "/drivers_probe", de->d_name);
        }
        if (dir)
                closedir(dir);
}
