/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/upgrade.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"

/* A program whose file was replaced or removed since it was started has no link any more. */
static bool is_replaced(const struct stat *program) {
        return program->st_nlink == 0;
}

void upgrade_warn(int fd) {
        char link[40], path[4096];
        struct stat own, theirs;
        pid_t pid;
        uid_t uid;

        if (unix_peer(fd, &pid, &uid) < 0)
                return;
        (void) snprintf(link, sizeof(link), "/proc/%d/exe", (int) pid);
        ssize_t n = readlink(link, path, sizeof(path) - 1);
        if (n < 0 || stat(link, &theirs) < 0 || stat("/proc/self/exe", &own) < 0)
                return;
        path[n] = 0;
        /* If this process is the old one, the daemon is what it should be. */
        if ((own.st_dev == theirs.st_dev && own.st_ino == theirs.st_ino) || is_replaced(&own))
                return;
        if (is_replaced(&theirs))
                fprintf(stderr,
                        "agentiso: the daemon (pid %d) still runs an earlier build of agentiso. To use the new one, "
                        "run `agentiso stop`: workspaces run on, and the next call starts the new daemon.\n",
                        (int) pid);
        else
                fprintf(stderr,
                        "agentiso: the daemon (pid %d) runs another program, %s. To use this one, run `agentiso "
                        "stop`: workspaces run on, and the next call starts the new daemon.\n",
                        (int) pid, path);
}
