/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's side of user networking (usernet.h). */
#include "network/usernet.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/file.h"
#include "base/io.h"
#include "base/process.h"
#include "base/str.h"
#include "network/user-protocol.h"

#define START_MS 10000
#define SET_MS 10000
#define BACKLOG 8
#define LOG_SHOWN 4096u
#define PREFIX_TEXT 12

static void address_text(uint32_t address, char ret[INET_ADDRSTRLEN]) {
        const struct in_addr a = {.s_addr = htonl(address)};

        (void) inet_ntop(AF_INET, &a, ret, INET_ADDRSTRLEN);
}

/* What a process that did not start has said. */
static int explain(const char *log_path, struct error *err) {
        _cleanup_free_ char *text = NULL;

        if (file_read_all(log_path, LOG_SHOWN, &text, NULL) >= 0)
                text[strcspn(text, "\n")] = '\0';
        return error_set(err, ERROR_INTERNAL, "User networking does not start%s%s", str_empty(text) ? "" : ": ",
                         str_empty(text) ? "" : text);
}

/* The process goes into the background when it is ready, so that it is nobody's child. */
static int spawn(const struct usernet_config *cfg, int qemu, int control, struct error *err) {
        char address[INET_ADDRSTRLEN], network[INET_ADDRSTRLEN], prefix[PREFIX_TEXT];
        _cleanup_free_ char *log_path = path_join(cfg->dir, USERNET_LOG), *dir = strdup(cfg->dir);
        char *argv[] = {(char *) (uintptr_t) cfg->program,
                        (char[]){"netns"},
                        (char[]){"user"},
                        address,
                        network,
                        prefix,
                        dir,
                        NULL};
        const struct op op = op_timeout(START_MS);
        struct process_result result = {0};
        pid_t pid;

        if (!log_path || !dir)
                return error_set_errno(err, ENOMEM, "Cannot start user networking");
        address_text(cfg->address, address);
        address_text(cfg->network.network, network);
        snprintf(prefix, sizeof(prefix), "%u", cfg->network.prefix_len);
        _cleanup_close_ int log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (log < 0)
                return error_set_errno(err, errno, "Cannot make %s", log_path);
        const struct fd_map fds[] = {{.from = log, .to = 2},
                                     {.from = qemu, .to = USERNET_FD_QEMU},
                                     {.from = control, .to = USERNET_FD_CONTROL}};
        const struct spawn sp = {
                .argv = argv, .fds = fds, .n_fds = ARRAY_SIZE(fds), .new_session = true, .workdir = "/"};
        int r = process_spawn(&sp, &pid, err);
        if (r < 0)
                return r;
        r = process_wait(pid, &op, &result);
        if (r < 0) {
                process_end(pid, 0);
                return error_set_errno(err, r, "User networking does not start");
        }
        return result.exit_code == 0 ? 0 : explain(log_path, err);
}

int usernet_start(const struct usernet_config *cfg, int *ret_qemu_fd, struct error *err) {
        _cleanup_free_ char *path = path_join(cfg->dir, USERNET_SOCKET);
        int pair[2];

        if (!path)
                return error_set_errno(err, ENOMEM, "Cannot start user networking");
        /* The process of the machine that was here before may take a moment to end, and is not to be heard any more. */
        (void) unlink(path);
        _cleanup_close_ int control = unix_listen(path, BACKLOG);
        if (control < 0)
                return error_set_errno(err, control, "Cannot make the socket %s", path);
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return error_set_errno(err, errno, "Cannot make a socket");
        _cleanup_close_ int theirs = pair[0], qemus = pair[1];
        int r = spawn(cfg, theirs, control, err);
        if (r >= 0)
                *ret_qemu_fd = TAKE_FD(qemus);
        return r;
}

static int exchange(const char *path, const struct usernet_request *q, const struct network_range *exceptions,
                    const struct op *op) {
        struct usernet_answer a;

        _cleanup_close_ int fd = unix_connect(path, op);
        int r = fd < 0 ? fd : write_full(fd, q, sizeof(*q), op);
        if (r >= 0 && q->n_exceptions > 0)
                r = write_full(fd, exceptions, q->n_exceptions * sizeof(*exceptions), op);
        if (r >= 0)
                r = read_full(fd, &a, sizeof(a), op);
        if (r < 0)
                return r;
        return a.result > 0 ? -EBADMSG : a.result;
}

/* It may have ended just now: the next connection says so. */
static bool was_cut_off(int r) {
        return r == -ENODATA || r == -ECONNRESET || r == -EPIPE;
}

int usernet_set(const char *dir, bool internet, const struct network_range *exceptions, size_t n, const struct op *op,
                struct error *err) {
        const struct usernet_request q = {
                .version = USERNET_VERSION, .internet = internet, .n_exceptions = (uint32_t) n};
        _cleanup_free_ char *path = path_join(dir, USERNET_SOCKET);
        const struct op limited = op_sub(op, SET_MS);

        if (!path)
                return error_set_errno(err, ENOMEM, "Cannot change a machine's network");
        if (n > NETWORK_EXCEPTIONS_MAX)
                return error_set(err, ERROR_INVALID_ARGUMENT, "%zu ranges are more than %u", n, NETWORK_EXCEPTIONS_MAX);
        int r = exchange(path, &q, exceptions, &limited);
        if (was_cut_off(r))
                r = exchange(path, &q, exceptions, &limited);
        if (r >= 0)
                return 0;
        if (r != -ENOENT && r != -ECONNREFUSED)
                return error_set_errno(err, r, "The process of the machine's network does not do what it is asked");
        if (!internet)
                return 0;
        error_set(err, ERROR_NOT_RUNNING, "The process of the machine's network has ended");
        error_hint(err, "Stop and start the workspace: it gets another one.");
        return -ESRCH;
}
