/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/state-dir.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/str.h"

#define LOCK_RETRY_MS 10
/* Bytes of the holder's name in the lock file. */
#define NAME_MAX_LEN 96

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

static void write_name(int fd) {
        struct proc_id id;
        char text[NAME_MAX_LEN];

        if (proc_id_read(getpid(), &id) < 0)
                return;
        int n = snprintf(text, sizeof(text), "%d %" PRIu64 " %s\n", (int) id.pid, id.start_ticks, id.boot_id);
        if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t) n, 0) < 0)
                return;
}

/* Parses "PID TICKS BOOT_ID\n", what write_name() writes. */
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

int state_dir_holder(const char *dir, struct proc_id *ret) {
        _cleanup_free_ char *path = path_join(dir, "lock"), *text = NULL;
        struct proc_id id;

        if (!path)
                return -ENOMEM;
        if (file_read_all(path, NAME_MAX_LEN, &text, NULL) < 0 || parse_name(text, &id) < 0)
                return -ESRCH;
        _cleanup_close_ int pidfd = proc_id_open(&id);
        if (pidfd < 0)
                return -ESRCH;
        *ret = id;
        return 0;
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
        write_name(fd);
        *ret_fd = fd;
        return 0;
}
