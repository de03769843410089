/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/file.h"
#include "base/process.h"
#include "base/str.h"

/* /proc/PID/stat is one line of some 50 numbers and a name of 15 characters (64 for kernel threads). */
#define STAT_MAX 4096u
#define CMDLINE_MAX (64u * 1024u)
/* Fields of that line, counted from 1 as in proc(5). */
#define STAT_STATE 3
#define STAT_START 22

int boot_id_read(char *ret) {
        _cleanup_free_ char *text = NULL;

        int r = file_read_all("/proc/sys/kernel/random/boot_id", STAT_MAX, &text, NULL);
        if (r < 0)
                return r;
        text[strcspn(text, "\n")] = 0;
        if (!uuid_valid(text))
                return -EBADMSG;
        memcpy(ret, text, BOOT_ID_LEN + 1);
        return 0;
}

/* The start time of a process that runs; -ESRCH also for one that is dead and only waits to be reaped. */
static int read_start(pid_t pid, uint64_t *ret) {
        char path[64];
        _cleanup_free_ char *text = NULL;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
        int r = file_read_all(path, STAT_MAX, &text, NULL);
        if (r == -ENOENT)
                return -ESRCH;
        if (r < 0)
                return r;

        /* The name stands in parentheses and may hold any character, these and blanks included: the last one ends it.
         */
        char *p = strrchr(text, ')');
        if (!p)
                return -EBADMSG;
        char *save = NULL, *field = strtok_r(p + 1, " \n", &save);
        for (int i = STAT_STATE; field; field = strtok_r(NULL, " \n", &save), i++) {
                if (i == STAT_STATE && strchr("ZXx", *field))
                        return -ESRCH;
                if (i == STAT_START)
                        return parse_u64(field, ret);
        }
        return -EBADMSG;
}

int proc_id_read(pid_t pid, struct proc_id *ret) {
        struct proc_id id = {.pid = pid};

        if (pid <= 0)
                return -ESRCH;
        int r = read_start(pid, &id.start_ticks);
        if (r < 0)
                return r;
        r = boot_id_read(id.boot_id);
        if (r < 0)
                return r;
        *ret = id;
        return 0;
}

int proc_id_open(const struct proc_id *id) {
        struct proc_id now;

        /* The pidfd first: what is read afterwards is either about the process that it holds, or about one that took
         * the pid later and has another start time. */
        _cleanup_close_ int fd = pidfd_of(id->pid);
        if (fd < 0)
                return fd;
        int r = proc_id_read(id->pid, &now);
        if (r < 0)
                return r;
        if (now.start_ticks != id->start_ticks || !str_eq(now.boot_id, id->boot_id))
                return -ESRCH;
        return TAKE_FD(fd);
}

/* cmdline: len bytes of arguments, each with a NUL behind it. */
static bool has_argument(const char *cmdline, size_t len, const char *option, const char *value) {
        bool next = false;

        for (size_t i = 0; i < len; i += strlen(cmdline + i) + 1) {
                if (next && str_eq(cmdline + i, value))
                        return true;
                next = str_eq(cmdline + i, option);
        }
        return false;
}

/* A process's identity is read before its arguments and stays valid only if it is the same after, so that a pid that
 * changes hands meanwhile is not taken for it. */
static int match(pid_t pid, const char *option, const char *value, struct proc_id *ret) {
        char path[64];
        _cleanup_free_ char *cmdline = NULL;
        size_t len = 0;

        int r = proc_id_read(pid, ret);
        if (r < 0)
                return r;
        snprintf(path, sizeof(path), "/proc/%d/cmdline", (int) pid);
        r = file_read_all(path, CMDLINE_MAX, &cmdline, &len);
        if (r < 0)
                return r;
        if (!has_argument(cmdline, len, option, value))
                return -ESRCH;
        _cleanup_close_ int fd = proc_id_open(ret);
        return fd < 0 ? fd : 0;
}

int proc_id_find(const char *option, const char *value, struct proc_id *ret) {
        DIR *proc = opendir("/proc");
        if (!proc)
                return -errno;

        int r = -ESRCH;
        struct dirent *e;
        while (r < 0 && (e = readdir(proc))) {
                struct proc_id id;
                uint64_t pid = 0;

                if (parse_u64(e->d_name, &pid) < 0 || pid > INT32_MAX)
                        continue;
                if (match((pid_t) pid, option, value, &id) >= 0) {
                        *ret = id;
                        r = 0;
                }
        }
        closedir(proc);
        return r;
}

int proc_id_kill(const struct proc_id *id, int64_t wait_ms) {
        const struct op op = op_timeout(wait_ms);

        _cleanup_close_ int fd = proc_id_open(id);
        if (fd < 0)
                return fd == -ESRCH ? 0 : fd;
        int r = pidfd_signal(fd, SIGKILL);
        if (r == -ESRCH)
                return 0;
        return r < 0 ? r : MIN(wait_fd(fd, POLLIN, &op), 0);
}

int pidfd_of(pid_t pid) {
        if (pid <= 0)
                return -ESRCH;
        int fd = (int) syscall(SYS_pidfd_open, pid, 0);
        return fd < 0 ? -errno : fd;
}

int pidfd_signal(int pidfd, int sig) {
        return syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0) < 0 ? -errno : 0;
}
