/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/state-dir.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/lockfile.h"

#define LOCK_RETRY_MS 10

int state_dir_prepare(const char *dir, struct error *err) {
        struct stat st;

        int r = mkdir_p(dir, 0700);
        if (r < 0) {
                r = error_set_errno(err, r, "cannot make the state directory %s", dir);
                error_hint(err, "Set paths.state_dir or AGENTISO_STATE_DIR to a directory that you may write.");
                return r;
        }
        _cleanup_close_ int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st) < 0)
                return error_set_errno(err, errno, "cannot open the state directory %s", dir);
        if (st.st_uid != geteuid()) {
                error_set(err, ERROR_CONFLICT, "the state directory %s belongs to user %u, not to user %u", dir,
                          st.st_uid, geteuid());
                error_hint(err, "Set paths.state_dir or AGENTISO_STATE_DIR to a directory of your own.");
                return -EPERM;
        }
        if (st.st_mode & (S_IWGRP | S_IWOTH)) {
                error_set(err, ERROR_CONFLICT, "the state directory %s can be written by others (mode %04o)", dir,
                          (unsigned) st.st_mode & 07777);
                error_hint(err, "Run: chmod 700 %s", dir);
                return -EPERM;
        }
        return 0;
}

int state_dir_holder(const char *dir, struct proc_id *ret) {
        _cleanup_free_ char *path = path_join(dir, "lock");

        return path ? lockfile_holder(path, ret) : -ENOMEM;
}

/* Tries until the lock is ours, its holder is found alive, or the time is up. There is no event to wait for: flock(2)
 * knows no deadline. */
static int try_lock(const char *dir, const char *path, struct proc_id *ret_holder) {
        struct op op = op_timeout(STATE_DIR_LOCK_MS);

        for (;;) {
                int fd = file_lock(path);
                if (fd != -EWOULDBLOCK || state_dir_holder(dir, ret_holder) == 0 || op_check(&op) < 0)
                        return fd;
                struct op pause = op_sub(&op, LOCK_RETRY_MS);
                (void) wait_fd(-1, 0, &pause);
        }
}

int state_dir_lock(const char *dir, int *ret_fd, struct error *err) {
        _cleanup_free_ char *path = path_join(dir, "lock");
        struct proc_id holder = {0};

        if (!path)
                return -ENOMEM;
        int fd = try_lock(dir, path, &holder);
        if (fd == -EWOULDBLOCK) {
                if (holder.pid > 0)
                        error_set(err, ERROR_CONFLICT,
                                  "another agentiso daemon (pid %d) runs with the state directory %s", (int) holder.pid,
                                  dir);
                else
                        error_set(err, ERROR_CONFLICT, "another process holds the lock %s", path);
                error_hint(err, "Stop it with `agentiso stop`, or give this one another AGENTISO_STATE_DIR.");
                return -EWOULDBLOCK;
        }
        if (fd < 0)
                return error_set_errno(err, fd, "cannot lock %s", path);
        (void) lockfile_write_name(fd); /* the lock is what counts */
        *ret_fd = fd;
        return 0;
}
