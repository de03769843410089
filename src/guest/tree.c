/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/tree.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define PROCS_MAX 65536    /* processes looked at in a round */
#define ROUND_PAUSE_MS 5   /* between two rounds: killed processes need a moment to go */
#define STAT_LINE_MAX 1024 /* proc(5): the name is at most 16 bytes, the rest are numbers */

struct proc {
        pid_t pid, parent, session;
        bool doomed;
};

/* Behind the last ')' of the name stand " S ppid pgrp session ...": fields 3 to 6 of /proc/PID/stat. */
static bool read_proc(int proc_fd, const char *name, struct proc *ret) {
        char path[64], text[STAT_LINE_MAX], *p;
        ssize_t n;

        snprintf(path, sizeof(path), "%.32s/stat", name);
        _cleanup_close_ int fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return false;
        n = read(fd, text, sizeof(text) - 1);
        if (n <= 0)
                return false;
        text[n] = '\0';
        p = strrchr(text, ')');
        if (!p || strlen(p) < 5 || p[2] == 'Z')
                return false;
        p += 3;
        *ret = (struct proc){.pid = (pid_t) strtol(name, NULL, 10)};
        ret->parent = (pid_t) strtol(p, &p, 10);
        (void) strtol(p, &p, 10);
        ret->session = (pid_t) strtol(p, &p, 10);
        return true;
}

static size_t read_all(struct proc **ret) {
        struct proc *list = NULL;
        size_t n = 0, room = 0;
        struct dirent *de;
        DIR *dir = opendir("/proc");

        if (!dir)
                return 0;
        while (n < PROCS_MAX && (de = readdir(dir))) {
                if (!isdigit((unsigned char) de->d_name[0]))
                        continue;
                if (n == room) {
                        struct proc *more = reallocarray(list, room + 256, sizeof(*list));
                        if (!more)
                                break;
                        list = more;
                        room += 256;
                }
                n += read_proc(dirfd(dir), de->d_name, &list[n]);
        }
        closedir(dir);
        *ret = list;
        return n;
}

static bool parent_doomed(const struct proc *list, size_t n, pid_t parent) {
        for (size_t i = 0; i < n; i++)
                if (list[i].pid == parent)
                        return list[i].doomed;
        return false;
}

/* Marks the session and, until nothing changes, the children of what is marked. */
static size_t mark(struct proc *list, size_t n, pid_t session) {
        size_t marked = 0, before;

        do {
                before = marked;
                for (size_t i = 0; i < n; i++)
                        if (!list[i].doomed && (list[i].session == session || list[i].pid == session ||
                                                parent_doomed(list, n, list[i].parent))) {
                                list[i].doomed = true;
                                marked++;
                        }
        } while (marked != before);
        return marked;
}

int tree_kill(struct child *leader, deadline_t deadline, size_t *ret_processes) {
        pid_t session = child_pid(leader);

        for (bool first = true;; first = false) {
                _cleanup_free_ struct proc *list = NULL;
                size_t n = read_all(&list);
                /* Children are marked before their parent dies and they are handed to PID 1. */
                size_t marked = mark(list, n, session);

                if (first && ret_processes)
                        *ret_processes = marked;
                if (marked == 0)
                        return 0;
                child_signal_group(leader, SIGKILL);
                for (size_t i = 0; i < n; i++)
                        if (list[i].doomed)
                                kill(list[i].pid, SIGKILL);
                if (deadline_passed(deadline))
                        return -ETIMEDOUT;
                poll(NULL, 0, ROUND_PAUSE_MS);
        }
}
