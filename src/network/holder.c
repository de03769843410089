/* SPDX-License-Identifier: Apache-2.0 */
/* The process that keeps the namespaces of the network alive (network.h): those that it is given, or new ones. */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/lockfile.h"
#include "network/privilege.h"
#include "network/protocol.h"

#define HOLDER_FD_LOCK HELPER_FD_SOCKET

static int write_file(const char *path, const char *text) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        if (fd < 0)
                return -errno;
        return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

/* Root in the new user namespace is who we are outside of it, and nobody else is in there. */
static int map_users(uid_t uid, gid_t gid) {
        char uids[32], gids[32];

        snprintf(uids, sizeof(uids), "0 %u 1", uid);
        snprintf(gids, sizeof(gids), "0 %u 1", gid);
        int r = write_file("/proc/self/setgroups", "deny");
        if (r >= 0)
                r = write_file("/proc/self/uid_map", uids);
        return r < 0 ? r : write_file("/proc/self/gid_map", gids);
}

static int make_namespaces(struct error *err) {
        const uid_t uid = geteuid();
        const gid_t gid = getegid();

        if (unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0) {
                int r = map_users(uid, gid);
                return r < 0 ? error_set_errno(err, r, "cannot map the users of a new user namespace") : 0;
        }
        int r = -errno;
        /* Where user namespaces are off, the privilege itself will do. */
        if (unshare(CLONE_NEWNET) == 0)
                return 0;
        error_set_errno(err, r, "cannot make a network namespace");
        error_hint(err, "Allow user namespaces (sysctl user.max_user_namespaces and, where there is one, "
                        "kernel.unprivileged_userns_clone), or run agentiso as root.");
        return r;
}

/* The lock may be held already, by whoever gave us the descriptor: then it is ours by that. */
static int take_lock(struct error *err) {
        struct stat st;

        if (fstat(HOLDER_FD_LOCK, &st) < 0 || !S_ISREG(st.st_mode))
                return error_set(err, ERROR_INVALID_ARGUMENT, "descriptor %d is not a lock file", HOLDER_FD_LOCK);
        if (flock(HOLDER_FD_LOCK, LOCK_EX | LOCK_NB) == 0)
                return 0;
        if (errno == EWOULDBLOCK)
                return error_set(err, ERROR_CONFLICT, "another process holds the network namespace");
        return error_set_errno(err, errno, "cannot take the lock of the network namespace");
}

/* Those of a holder that has ended: the daemon has them open. */
static int join_namespaces(struct error *err) {
        if (fcntl(HELPER_FD_USER_NS, F_GETFD) >= 0 && setns(HELPER_FD_USER_NS, CLONE_NEWUSER) < 0)
                return error_set_errno(err, errno, "cannot join the user namespace");
        if (setns(HELPER_FD_NET_NS, CLONE_NEWNET) < 0)
                return error_set_errno(err, errno, "cannot join the network namespace");
        return 0;
}

static int become_holder(struct error *err) {
        int r = take_lock(err);
        if (r < 0)
                return r;
        r = fcntl(HELPER_FD_NET_NS, F_GETFD) >= 0 ? join_namespaces(err) : make_namespaces(err);
        if (r < 0)
                return r;
        r = privilege_keep(0); /* a namespace needs nobody with privileges to exist */
        if (r < 0)
                return error_set_errno(err, r, "cannot drop the privileges");
        r = lockfile_write_name(HOLDER_FD_LOCK);
        return r < 0 ? error_set_errno(err, r, "cannot write the lock file") : 0;
}

/* Nothing but the lock: whoever waits for the end of a pipe of ours shall have it. */
static int let_go(void) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);

        if (null < 0)
                return -errno;
        for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
                if (dup2(null, fd) < 0)
                        return -errno;
        return syscall(SYS_close_range, HOLDER_FD_LOCK + 1, ~0U, 0) < 0 ? -errno : 0;
}

int holder_run(void) {
        _cleanup_error_ struct error err = ERROR_INIT;

        if (become_holder(&err) < 0) {
                fprintf(stderr, "%s%s%s\n", error_message(&err), err.hint ? "\n" : "", err.hint ? err.hint : "");
                return 1;
        }
        if (chdir("/") < 0 || write(STDOUT_FILENO, "", 1) != 1 || let_go() < 0)
                return 1;
        for (;;)
                pause();
}
