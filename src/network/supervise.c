/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The holder and the helper (network.h): starting them, talking to the helper, starting them again.
 *
 * The descriptors of the namespaces are kept, so a holder that was killed is replaced by one that joins them. A daemon
 * that comes later finds the holder by its lock file. What a helper has done stays in the kernel; a new one is told the
 * rules, the cards and the policy once more, and changes what is not so.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/io.h"
#include "base/lockfile.h"
#include "base/log.h"
#include "base/str.h"
#include "network/network-internal.h"

#define LOCK_NAME "namespace.lock"
#define START_MS 10000 /* of the holder */
#define END_MS 2000
/* Of one request, longer than the helper takes at most: when it is over, the helper hangs and is ended. */
#define ANSWER_MS (HELPER_MS + HELPER_UPLINK_MS + 5000)
/* The first host address that a workspace can have; the gateway has the one before. */
#define CARDS_FIRST 2u
/* Cards that get their rules at once. */
#define CARDS_AHEAD 256u

/* --- children --- */

bool child_ended(const struct child *c) {
        struct pollfd p = {.fd = c->pidfd, .events = POLLIN};

        return c->pidfd >= 0 && poll(&p, 1, 0) > 0;
}

void child_forget(struct child *c) {
        siginfo_t info;

        if (c->pidfd >= 0)
                (void) waitid(P_PIDFD, (id_t) c->pidfd, &info, WEXITED | WNOHANG); /* ECHILD: another daemon's */
        close_fd(c->pidfd);
        *c = CHILD_INIT;
}

static int child_take(struct child *c, const struct proc_id *id) {
        int fd = proc_id_open(id);

        if (fd < 0)
                return fd;
        child_forget(c);
        *c = (struct child){.id = *id, .pidfd = fd};
        return 0;
}

static int child_took(struct child *c, pid_t pid) {
        struct proc_id id;

        int r = proc_id_read(pid, &id);
        if (r >= 0)
                r = child_take(c, &id);
        if (r < 0)
                process_end(pid, 0);
        return r;
}

static void child_end(struct child *c, int sig) {
        const struct op op = op_timeout(END_MS);

        if (c->pidfd < 0)
                return;
        if (pidfd_signal(c->pidfd, sig) >= 0 && wait_fd(c->pidfd, POLLIN, &op) < 0) {
                const struct op again = op_timeout(END_MS);
                if (pidfd_signal(c->pidfd, SIGKILL) >= 0)
                        (void) wait_fd(c->pidfd, POLLIN, &again);
        }
        child_forget(c);
}

/* --- the namespaces --- */

/* One of a process; -1 in *ret when it is the one that we are in ourselves. */
static int open_namespace(pid_t pid, const char *which, int *ret) {
        char path[64], own[64];
        struct stat theirs, ours;

        snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int) pid, which);
        snprintf(own, sizeof(own), "/proc/self/ns/%s", which);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &theirs) < 0 || stat(own, &ours) < 0)
                return -errno;
        close_fd(*ret);
        *ret = theirs.st_ino == ours.st_ino ? -1 : TAKE_FD(fd);
        return 0;
}

static int open_namespaces(struct network *net, struct error *err) {
        int r = open_namespace(net->holder.id.pid, "user", &net->user_ns);
        if (r >= 0)
                r = open_namespace(net->holder.id.pid, "net", &net->net_ns);
        if (r >= 0 && net->net_ns < 0)
                return error_set(err, ERROR_INTERNAL, "The holder of the network namespace (pid %d) is in ours",
                                 (int) net->holder.id.pid);
        return r < 0 ? error_set_errno(err, r, "Cannot open the network namespace of pid %d", (int) net->holder.id.pid)
                     : 0;
}

/* The descriptors of the namespaces, at their numbers in a child, if we have them. */
static size_t namespace_fds(const struct network *net, struct fd_map *fds) {
        size_t n = 0;

        if (net->user_ns >= 0)
                fds[n++] = (struct fd_map){.from = net->user_ns, .to = HELPER_FD_USER_NS};
        if (net->net_ns >= 0)
                fds[n++] = (struct fd_map){.from = net->net_ns, .to = HELPER_FD_NET_NS};
        return n;
}

/* Starts `agentiso netns <what>` with its standard error in a file of the folder, of which an error shows the end. */
static int spawn(struct network *net, const char *what, bool new_session, struct fd_map *fds, size_t n_fds, pid_t *ret,
                 struct error *err) {
        char *argv[] = {net->program, (char *) "netns", (char *) what, NULL};
        _cleanup_free_ char *name = str_printf("%s.log", what), *path = name ? path_join(net->dir, name) : NULL;

        _cleanup_close_ int log = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
        if (log < 0)
                return error_set_errno(err, path ? -errno : -ENOMEM, "Cannot make %s", path ? path : "a log");
        fds[n_fds++] = (struct fd_map){.from = log, .to = 2};
        const struct spawn sp = {.argv = argv, .fds = fds, .n_fds = n_fds, .new_session = new_session, .workdir = "/"};
        return process_spawn(&sp, ret, err);
}

/* What a child that failed has said. */
static int said(struct network *net, const char *what, struct error *err) {
        _cleanup_free_ char *name = str_printf("%s.log", what), *path = name ? path_join(net->dir, name) : NULL;
        _cleanup_free_ char *text = NULL;

        if (!path || file_read_all(path, HELPER_TEXT_MAX, &text, NULL) < 0 || !*text)
                return error_set(err, ERROR_UNSUPPORTED, "The network namespace cannot be made");
        text[strcspn(text, "\n")] = '\0';
        return error_set(err, ERROR_UNSUPPORTED, "The network namespace cannot be made: %s", text);
}

/* lock: held, and handed on to the holder. With a new namespace: an uplink that is left of the former one serves
 * machines that nobody can stop from using it any more. */
static int start_holder(struct network *net, int lock, struct error *err) {
        const struct op op = op_timeout(START_MS);
        struct fd_map fds[5] = {{.from = lock, .to = HELPER_FD_SOCKET}};
        int ready[2];
        pid_t pid;
        char byte;

        if (net->net_ns < 0) {
                uplink_find(net);
                uplink_stop(net);
        }
        if (pipe2(ready, O_CLOEXEC) < 0)
                return error_set_errno(err, errno, "Cannot make a pipe");
        _cleanup_close_ int ours = ready[0];
        int theirs = ready[1];
        fds[1] = (struct fd_map){.from = theirs, .to = 1};
        int r = spawn(net, "hold", true, fds, 2 + namespace_fds(net, fds + 2), &pid, err);
        close_fd(theirs);
        if (r < 0)
                return r;
        r = read_full(ours, &byte, 1, &op);
        if (r >= 0)
                return child_took(&net->holder, pid);
        process_end(pid, 0);
        return said(net, "hold", err);
}

/* Of an earlier daemon: it holds the lock, and has perhaps not yet written who it is. */
static int join_holder(struct network *net, const char *path) {
        const struct op op = op_timeout(START_MS);
        struct proc_id id;

        for (;;) {
                int r = lockfile_holder(path, &id);
                if (r >= 0)
                        return child_take(&net->holder, &id);
                if (op_check(&op) < 0)
                        return r;
                _cleanup_close_ int lock = file_lock(path);
                if (lock >= 0)
                        return -ESRCH; /* it has ended meanwhile */
                const struct op pause = op_sub(&op, 10);
                (void) wait_fd(-1, 0, &pause); /* nothing tells that a file was written */
        }
}

static int have_holder(struct network *net, struct error *err) {
        _cleanup_free_ char *path = path_join(net->dir, LOCK_NAME);

        if (!path)
                return -ENOMEM;
        for (int i = 0; i < 3; i++) {
                _cleanup_close_ int lock = file_lock(path);
                int r = lock;

                net->joined = lock < 0;
                if (lock >= 0)
                        r = start_holder(net, lock, err);
                else if (lock == -EWOULDBLOCK)
                        r = join_holder(net, path);
                if (r != -ESRCH)
                        return r < 0 && !error_is_set(err) ? error_set_errno(err, r, "Cannot lock %s", path) : r;
        }
        return error_set(err, ERROR_INTERNAL, "The network namespace of %s comes and goes", net->dir);
}

/* --- the helper --- */

static void drop_helper(struct network *net) {
        net->sock = close_fd(net->sock); /* its end */
        child_end(&net->helper, SIGKILL);
}

/* n bytes, with the descriptor that travels with the first. */
static int receive_head(int sock, void *data, size_t n, int *ret_fd, const struct op *op) {
        int r = wait_fd(sock, POLLIN, op);
        if (r < 0)
                return r;
        ssize_t got = recv_with_fd(sock, data, n, ret_fd);
        if (got <= 0)
                return got < 0 ? (int) got : -ENODATA;
        return read_full(sock, (char *) data + got, n - (size_t) got, op);
}

static int receive_answer(int sock, int *ret_fd, const struct op *op, struct error *err) {
        struct helper_answer a;
        char text[HELPER_TEXT_MAX + 1];
        _cleanup_close_ int fd = -1;

        int r = receive_head(sock, &a, sizeof(a), &fd, op);
        if (r < 0)
                return r;
        if (a.length > HELPER_TEXT_MAX || a.result > 0 || (a.has_fd != 0) != (fd >= 0))
                return -EBADMSG;
        r = read_full(sock, text, a.length, op);
        if (r < 0)
                return r;
        text[a.length] = '\0';
        if (a.result < 0) {
                error_set(err, error_code_from_errno(a.result), "%s", text);
                return a.result;
        }
        if (ret_fd && fd < 0)
                return -EBADMSG;
        if (ret_fd)
                *ret_fd = TAKE_FD(fd);
        return 0;
}

/* *ret_lost: the helper is not there any more, or not to be relied on; the request may be tried with another one. */
static int exchange(struct network *net, enum helper_op what, const void *body, size_t length, int *ret_fd,
                    bool *ret_lost, struct error *err) {
        const struct helper_request q = {.op = what, .length = (uint32_t) length};
        const struct op op = op_timeout(ANSWER_MS);
        _cleanup_error_ struct error why = ERROR_INIT;

        *ret_lost = false;
        int r = write_full(net->sock, &q, sizeof(q), &op);
        if (r >= 0 && length > 0)
                r = write_full(net->sock, body, length, &op);
        if (r >= 0)
                r = receive_answer(net->sock, ret_fd, &op, &why);
        if (r >= 0)
                return 0;
        if (error_is_set(&why)) {
                error_move(err, &why);
                return r;
        }
        *ret_lost = true;
        drop_helper(net);
        return error_set_errno(err, r, "The network helper does not answer");
}

static int send_setup(struct network *net, struct error *err) {
        struct {
                struct helper_setup setup;
                struct network_range exceptions[NETWORK_EXCEPTIONS_MAX];
        } body = {
                .setup =
                        {
                                .network = net->address,
                                .gateway = net->gateway,
                                .prefix_len = net->prefix_len,
                                .n_exceptions = (uint32_t) net->n_exceptions,
                        },
        };
        bool lost;

        if (net->n_exceptions > 0)
                memcpy(body.exceptions, net->exceptions, net->n_exceptions * sizeof(*net->exceptions));
        return exchange(net, HELPER_SETUP, &body, sizeof(body.setup) + net->n_exceptions * sizeof(struct network_range),
                        NULL, &lost, err);
}

static int send_cards(struct network *net, uint32_t from, uint32_t n, struct error *err) {
        const struct helper_cards body = {.address = net->address + CARDS_FIRST + from, .n = n};
        bool lost;

        return exchange(net, HELPER_CARDS, &body, sizeof(body), NULL, &lost, err);
}

/* What this daemon wants, told to a helper that knows nothing. */
static int tell_all(struct network *net, struct error *err) {
        const uint32_t addresses = (uint32_t) 1 << (32 - net->prefix_len);
        bool lost;

        net->n_cards = MIN(MAX(net->n_cards, CARDS_AHEAD), addresses - CARDS_FIRST);
        int r = send_setup(net, err);
        if (r >= 0)
                r = send_cards(net, 0, net->n_cards, err);
        if (r >= 0 && net->policy.len > 0)
                r = exchange(net, HELPER_POLICY, net->policy.data, net->policy.len, NULL, &lost, err);
        return r;
}

static int start_helper(struct network *net, struct error *err) {
        struct fd_map fds[4];
        int pair[2];
        pid_t pid = -1;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
                return error_set_errno(err, errno, "Cannot make a socket");
        net->sock = pair[0];
        int theirs = pair[1];
        fds[0] = (struct fd_map){.from = theirs, .to = HELPER_FD_SOCKET};
        int r = spawn(net, "help", false, fds, 1 + namespace_fds(net, fds + 1), &pid, err);
        close_fd(theirs);
        if (r >= 0) {
                r = child_took(&net->helper, pid);
                if (r < 0)
                        r = said(net, "help", err);
        }
        if (r >= 0)
                r = tell_all(net, err);
        if (r < 0)
                drop_helper(net);
        return r;
}

int supervise_start(struct network *net, struct error *err) {
        int r = mkdir_p(net->dir, 0700);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make %s", net->dir);
        r = have_holder(net, err);
        if (r >= 0)
                r = open_namespaces(net, err);
        if (r >= 0)
                r = start_helper(net, err);
        return r;
}

bool supervise_broken(const struct network *net) {
        return net->sock < 0 || child_ended(&net->helper) || net->holder.pidfd < 0 || child_ended(&net->holder);
}

int supervise_mend(struct network *net, struct error *err) {
        int r = 0;

        if (net->holder.pidfd < 0 || child_ended(&net->holder)) {
                child_forget(&net->holder);
                log_warn("The holder of the network namespace has ended; another one takes its place");
                r = have_holder(net, err);
        }
        if (r >= 0 && (net->sock < 0 || child_ended(&net->helper))) {
                drop_helper(net);
                log_warn("The network helper has ended; another one is started");
                r = start_helper(net, err);
        }
        return r;
}

int supervise_cards(struct network *net, uint32_t address, struct error *err) {
        const uint32_t wanted = address - net->address - CARDS_FIRST + 1;

        if (wanted <= net->n_cards || address < net->address + CARDS_FIRST)
                return 0;
        uint32_t n = (wanted - net->n_cards + CARDS_AHEAD - 1) / CARDS_AHEAD * CARDS_AHEAD;
        const struct helper_cards body = {.address = net->address + CARDS_FIRST + net->n_cards, .n = n};
        int r = supervise_call(net, HELPER_CARDS, &body, sizeof(body), NULL, err);
        if (r >= 0)
                net->n_cards += n;
        return r;
}

int supervise_call(struct network *net, enum helper_op what, const void *body, size_t length, int *ret_fd,
                   struct error *err) {
        bool lost = false;

        int r = supervise_broken(net) ? supervise_mend(net, err) : 0;
        if (r >= 0)
                r = exchange(net, what, body, length, ret_fd, &lost, err);
        if (lost) {
                r = supervise_mend(net, err);
                if (r >= 0)
                        r = exchange(net, what, body, length, ret_fd, &lost, err);
        }
        return r;
}

/* A holder that this daemon has not taken up. */
static void find_holder(struct network *net) {
        _cleanup_free_ char *path = path_join(net->dir, LOCK_NAME);
        struct proc_id id;

        if (net->holder.pidfd < 0 && path && lockfile_holder(path, &id) >= 0)
                (void) child_take(&net->holder, &id);
}

void supervise_stop(struct network *net, bool end) {
        drop_helper(net);
        if (end) {
                uplink_find(net);
                uplink_stop(net);
                find_holder(net);
                child_end(&net->holder, SIGTERM);
        }
        child_forget(&net->uplink);
        child_forget(&net->holder);
        net->user_ns = close_fd(net->user_ns);
        net->net_ns = close_fd(net->net_ns);
}
