/* SPDX-License-Identifier: Apache-2.0 */
#include "base/lockfile.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"

/* Bytes of a name. */
#define NAME_MAX_LEN 96

int lockfile_write_name(int fd) {
        struct proc_id id;

        int r = proc_id_read(getpid(), &id);
        return r < 0 ? r : lockfile_write(fd, &id);
}

int lockfile_write(int fd, const struct proc_id *id) {
        char text[NAME_MAX_LEN];

        int n = snprintf(text, sizeof(text), "%d %" PRIu64 " %s\n", (int) id->pid, id->start_ticks, id->boot_id);
        if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t) n, 0) < 0)
                return -errno;
        return 0;
}

/* Parses "PID TICKS BOOT_ID\n", what lockfile_write_name() writes. */
static int parse_name(char *text, struct proc_id *ret) {
        char *rest = NULL;
        const char *pid = strtok_r(text, " ", &rest), *ticks = strtok_r(NULL, " ", &rest);
        const char *boot_id = strtok_r(NULL, "\n", &rest);
        struct proc_id id = {0};
        uint64_t number;

        if (!boot_id || strlen(boot_id) != BOOT_ID_LEN || parse_u64(ticks, &id.start_ticks) < 0 ||
            parse_u64(pid, &number) < 0 || number == 0 || number > INT_MAX)
                return -EINVAL;
        id.pid = (pid_t) number;
        memcpy(id.boot_id, boot_id, BOOT_ID_LEN);
        *ret = id;
        return 0;
}

int lockfile_holder(const char *path, struct proc_id *ret) {
        _cleanup_free_ char *text = NULL;
        struct proc_id id;

        int r = file_read_all(path, NAME_MAX_LEN, &text, NULL);
        if (r == -ENOMEM)
                return r;
        if (r < 0 || parse_name(text, &id) < 0)
                return -ESRCH;
        _cleanup_close_ int pidfd = proc_id_open(&id);
        if (pidfd < 0)
                return -ESRCH;
        *ret = id;
        return 0;
}
