/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A network of its own for a test: a holder, helpers that join its namespaces, and commands that run in them. The
 * test's own process stays outside, like the daemon.
 */

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/io.h"
#include "base/lockfile.h"
#include "base/process.h"
#include "base/str.h"
#include "network/protocol.h"
#include "tap.h"

#define NET 0x0a630000u /* 10.99.0.0/16 */
#define GATEWAY (NET + 1)

static inline bool write_text(const char *path, const char *text) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t) strlen(text);
}

/* Into a network namespace of our own, by a user namespace if that is what it takes. */
static inline bool leave_for_namespace(void) {
        char uids[32], gids[32];

        snprintf(uids, sizeof(uids), "0 %u 1", geteuid());
        snprintf(gids, sizeof(gids), "0 %u 1", getegid());
        if (unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0)
                return unshare(CLONE_NEWNET) == 0;
        return write_text("/proc/self/setgroups", "deny") && write_text("/proc/self/uid_map", uids) &&
               write_text("/proc/self/gid_map", gids);
}

/* Whether this host lets us make one; tried in a child. */
static inline bool namespaces_work(void) {
        int status = 0;
        pid_t pid = fork();

        if (pid == 0)
                _exit(leave_for_namespace() ? 0 : 1);
        return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

/* For the commands that the tests start: an ordinary user's PATH lacks the folder of ip and nft. */
static inline void extend_path(void) {
        _cleanup_free_ char *path = str_printf("%s:/usr/sbin:/sbin", getenv("PATH"));

        if (path)
                setenv("PATH", path, 1);
}

#define SKIP_WITHOUT_NAMESPACES()                                                                \
        do {                                                                                     \
                extend_path();                                                                   \
                if (!namespaces_work() || access("/dev/net/tun", R_OK | W_OK) < 0) {             \
                        printf("1..0 # SKIP no network namespace with taps can be made here\n"); \
                        return 0;                                                                \
                }                                                                                \
        } while (0)

/* Runs fn in a child that has these descriptors from 3 on and no others; stdout is `out` unless that is negative. */
static inline pid_t start_child(int (*fn)(void), const int *fds, size_t n, int out) {
        fflush(NULL);
        pid_t pid = fork();

        if (pid != 0)
                return pid;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int high[8];
        for (size_t i = 0; i < n; i++)
                high[i] = fds[i] < 0 ? -1 : fcntl(fds[i], F_DUPFD, 100);
        if (out >= 0)
                dup2(out, STDOUT_FILENO);
        for (size_t i = 0; i < n; i++) {
                if (high[i] >= 0)
                        dup2(high[i], 3 + (int) i);
                else
                        close(3 + (int) i);
        }
        syscall(SYS_close_range, 3 + (unsigned) n, ~0U, 0);
        _exit(fn());
}

static inline int exit_status(pid_t pid) {
        struct process_result result = {0};
        struct op op = op_timeout(10000);

        int r = process_wait(pid, &op, &result);
        if (r < 0)
                return r;
        return result.signal ? 128 + result.signal : result.exit_code;
}

struct holder {
        pid_t pid;
        int user_ns, net_ns;
};

/* 0: it has said that it is ready. */
static inline int holder_start(int lock, struct holder *ret) {
        struct op op = op_timeout(10000);
        int out[2];
        char byte, path[64];

        *ret = (struct holder){.user_ns = -1, .net_ns = -1};
        if (pipe2(out, O_CLOEXEC) < 0)
                return -errno;
        ret->pid = start_child(holder_run, &lock, 1, out[1]);
        close_fd(out[1]);
        int r = read_full(out[0], &byte, 1, &op);
        close_fd(out[0]);
        if (r < 0)
                return r;
        snprintf(path, sizeof(path), "/proc/%d/ns/net", (int) ret->pid);
        ret->net_ns = open(path, O_RDONLY | O_CLOEXEC);
        snprintf(path, sizeof(path), "/proc/%d/ns/user", (int) ret->pid);
        struct stat ours, theirs;
        if (ret->net_ns < 0 || stat(path, &theirs) < 0 || stat("/proc/self/ns/user", &ours) < 0)
                return -errno;
        if (ours.st_ino != theirs.st_ino)
                ret->user_ns = open(path, O_RDONLY | O_CLOEXEC);
        return 0;
}

static inline void holder_end(struct holder *h) {
        process_end(h->pid, 5000);
        h->user_ns = close_fd(h->user_ns);
        h->net_ns = close_fd(h->net_ns);
}

struct helper_process {
        pid_t pid;
        int socket;
};

static inline struct helper_process helper_start(const struct holder *h) {
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return (struct helper_process){-1, -1};
        pid_t pid = start_child(helper_run, (int[]){pair[1], h->user_ns, h->net_ns}, 3, -1);
        close_fd(pair[1]);
        return (struct helper_process){pid, pair[0]};
}

/* Its exit status. */
static inline int helper_end(struct helper_process *h) {
        h->socket = close_fd(h->socket);
        return exit_status(h->pid);
}

/* The error's text of the last answer. */
static char answer_text[HELPER_TEXT_MAX + 1];

static inline int ask_fd(int sock, uint32_t what, const void *body, size_t n, int *ret_fd) {
        struct helper_request q = {.op = what, .length = (uint32_t) n};
        struct helper_answer a;
        struct op op = op_timeout(30000);
        int r, fd = -1;

        if ((r = write_full(sock, &q, sizeof(q), &op)) < 0 || (r = write_full(sock, body, n, &op)) < 0 ||
            (r = wait_fd(sock, POLLIN, &op)) < 0)
                return r;
        ssize_t got = recv_with_fd(sock, &a, sizeof(a), &fd);
        if (got <= 0)
                return got < 0 ? (int) got : -ENODATA;
        if ((r = read_full(sock, (char *) &a + got, sizeof(a) - (size_t) got, &op)) < 0)
                return r;
        if (a.length > HELPER_TEXT_MAX || (r = read_full(sock, answer_text, a.length, &op)) < 0)
                return -EPROTO;
        answer_text[a.length] = 0;
        if (a.has_fd != (fd >= 0) || (a.result < 0 && a.has_fd))
                return -EPROTO;
        if (ret_fd)
                *ret_fd = fd;
        else
                close_fd(fd);
        return a.result;
}

static inline int ask(int sock, uint32_t what, const void *body, size_t n) {
        return ask_fd(sock, what, body, n, NULL);
}

static inline int ask_setup(int sock) {
        const struct {
                struct helper_setup s;
                struct network_range exceptions[1];
        } body = {
                .s = {.network = NET, .gateway = GATEWAY, .prefix_len = 16, .n_exceptions = 1},
                .exceptions = {{.network = 0xc0a80700u, .prefix_len = 24}}, /* 192.168.7.0/24 */
        };

        return ask(sock, HELPER_SETUP, &body, sizeof(body));
}

static inline int ask_cards(int sock, uint32_t address, uint32_t n) {
        return ask(sock, HELPER_CARDS, &(struct helper_cards){address, n}, sizeof(struct helper_cards));
}

static inline int ask_tap(int sock, uint32_t address, uint32_t slot, bool attached, int *ret_fd) {
        const struct helper_tap body = {{address, slot}, attached};

        return ask_fd(sock, HELPER_TAP, &body, sizeof(body), ret_fd);
}

/* What a shell command prints in the namespaces; NULL when it fails. */
static inline char *output_in(const struct holder *h, const char *command) {
        _cleanup_buf_ struct buf out = BUF_INIT(16 << 20);
        char part[4096];
        int fds[2], status = -1;
        ssize_t n;

        fflush(NULL);
        if (pipe2(fds, O_CLOEXEC) < 0)
                return NULL;
        pid_t pid = fork();
        if (pid == 0) {
                dup2(fds[1], STDOUT_FILENO);
                if ((h->user_ns < 0 || setns(h->user_ns, CLONE_NEWUSER) == 0) && setns(h->net_ns, CLONE_NEWNET) == 0)
                        execl("/bin/sh", "sh", "-c", command, NULL);
                _exit(127);
        }
        close_fd(fds[1]);
        while ((n = read(fds[0], part, sizeof(part))) > 0)
                (void) buf_append(&out, part, (size_t) n);
        close_fd(fds[0]);
        if (waitpid(pid, &status, 0) != pid || status != 0)
                return NULL;
        return out.len > 0 ? buf_steal(&out) : strdup("");
}

static inline bool says(const struct holder *h, const char *command, const char *text) {
        _cleanup_free_ char *out = output_in(h, command);
        bool found = out && strstr(out, text);

        if (!found)
                printf("# `%s` says: %s\n# and not: %s\n", command, out ? out : "(failed)", text);
        return found;
}
