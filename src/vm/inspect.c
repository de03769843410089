/* SPDX-License-Identifier: Apache-2.0 */
/* What can be learnt of a VM from outside: its logs, its process. */
#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "vm/vm_private.h"

#define CMDLINE_MAX (64u * 1024u)
#define SMAPS_ROLLUP_MAX 16384u

int vm_console_tail(const char *dir, unsigned max_lines, struct buf *out) {
        _cleanup_free_ char *path = path_join(dir, CONSOLE_LOG), *older = path_join(dir, CONSOLE_LOG_OLD);

        return path && older ? text_tail(path, older, CONSOLE_KEEP, max_lines, out) : -ENOMEM;
}

int vm_stderr_tail(const char *dir, unsigned max_lines, struct buf *out) {
        _cleanup_free_ char *path = path_join(dir, VM_STDERR_LOG), *older = path_join(dir, VM_STDERR_LOG_OLD);

        return path && older ? text_tail(path, older, VM_STDERR_KEEP, max_lines, out) : -ENOMEM;
}

/* Whether the argument after "-pidfile" is this path. */
static bool has_pidfile(const char *cmdline, size_t len, const char *pidfile) {
        static const char option[] = "-pidfile";
        bool next = false;

        for (size_t i = 0; i < len; i += strlen(cmdline + i) + 1) {
                if (next)
                        return str_eq(cmdline + i, pidfile);
                next = str_eq(cmdline + i, option);
        }
        return false;
}

/* Whether a process was started for this folder; its identity is read before and stays valid only if it is the same
 * after, so that a pid that changes hands meanwhile is not taken for it. */
static int match(pid_t pid, const char *pidfile, struct proc_id *ret) {
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
        if (!has_pidfile(cmdline, len, pidfile))
                return -ESRCH;
        _cleanup_close_ int fd = proc_id_open(ret);
        return fd < 0 ? fd : 0;
}

int vm_find(const char *dir, struct proc_id *ret) {
        _cleanup_free_ char *pidfile = path_join(dir, VM_PIDFILE);
        if (!pidfile)
                return -ENOMEM;
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
                if (match((pid_t) pid, pidfile, &id) >= 0) {
                        *ret = id;
                        r = 0;
                }
        }
        closedir(proc);
        return r;
}

/* Adds up the lines "<name>: <number> kB" whose name begins with this word. */
static uint64_t sum_lines(const char *text, const char *prefix) {
        uint64_t sum = 0;

        for (const char *line = text; line; line = strchr(line, '\n')) {
                line += *line == '\n';
                const char *colon = strchr(line, ':');

                if (colon && str_starts_with(line, prefix))
                        sum += strtoull(colon + 1, NULL, 10) * 1024u;
        }
        return sum;
}

int vm_memory(const struct proc_id *proc, uint64_t *ret_private, uint64_t *ret_shared) {
        char path[64];
        _cleanup_free_ char *text = NULL;

        _cleanup_close_ int fd = proc_id_open(proc);
        if (fd < 0)
                return fd;
        snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int) proc->pid);
        int r = file_read_all(path, SMAPS_ROLLUP_MAX, &text, NULL);
        if (r < 0)
                return r;
        /* Still the same process: its pid cannot have been given away while it runs. */
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 0) != 0)
                return -ESRCH;
        *ret_private = sum_lines(text, "Private_");
        *ret_shared = sum_lines(text, "Shared_");
        return 0;
}
