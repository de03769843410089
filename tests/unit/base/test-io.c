/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/file.h"
#include "base/io.h"
#include "base/str.h"
#include "base/thread.h"
#include "tap.h"

static char dir[] = "/tmp/agentiso-test-io-XXXXXX";

static char *in_dir(const char *name) {
        return path_join(dir, name);
}

static void make_pair(int fds[2]) {
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                abort();
}

static void test_flags(void) {
        _cleanup_close_ int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

        CHECK_INT(fd_set_nonblock(fd, true), 0);
        CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
        CHECK_INT(fd_set_nonblock(fd, false), 0);
        CHECK(!(fcntl(fd, F_GETFL) & O_NONBLOCK));
        CHECK_INT(fd_set_nonblock(-1, true), -EBADF);

        errno = ENOTTY;
        CHECK_INT(close_fd(-1), -1);
        CHECK_INT(close_fd(9999), -1);
        CHECK_INT(errno, ENOTTY);
}

struct transfer {
        int fd;
        char *data;
        size_t n;
        int result;
};

static void *send_all(void *arg) {
        struct transfer *t = arg;
        struct op op = op_timeout(20000);

        t->result = write_full(t->fd, t->data, t->n, &op);
        return NULL;
}

/* More than any socket buffer, so that both sides have to wait for one another. */
static void test_large_transfer(void) {
        int fds[2];
        size_t n = 4 << 20;
        _cleanup_free_ char *out = malloc(n), *in = malloc(n);
        REQUIRE(out && in);
        for (size_t i = 0; i < n; i++)
                out[i] = (char) (i * 31 >> 3);
        make_pair(fds);

        struct transfer t = {.fd = fds[0], .data = out, .n = n};
        struct op op = op_timeout(20000);
        pthread_t thread;
        REQUIRE(thread_start(&thread, "send", send_all, &t) == 0);
        CHECK_INT(read_full(fds[1], in, n, &op), 0);
        pthread_join(thread, NULL);
        CHECK_INT(t.result, 0);
        CHECK(memcmp(in, out, n) == 0);
        close_fd(fds[0]);
        close_fd(fds[1]);
}

static void test_read_ends(void) {
        int fds[2];
        char b[8];
        struct op soon = op_timeout(20), op = op_timeout(5000);

        make_pair(fds);
        CHECK_INT(write_full(fds[0], "abc", 3, &op), 0);
        CHECK_INT(read_full(fds[1], b, 5, &soon), -ETIMEDOUT);
        CHECK_INT(write_full(fds[0], "abc", 3, &op), 0);
        fds[0] = close_fd(fds[0]);
        CHECK_INT(read_full(fds[1], b, 5, &op), -ENODATA);
        CHECK_INT(read_full(fds[1], b, 0, &op), 0);
        close_fd(fds[1]);
}

static void test_blocking_fd_keeps_the_deadline(void) {
        int fds[2];
        char b;
        struct op soon = op_timeout(20);
        size_t n = 8 << 20;
        _cleanup_free_ char *much = calloc(1, n);

        REQUIRE(much);
        make_pair(fds);
        CHECK_INT(fd_set_nonblock(fds[0], false), 0);
        CHECK_INT(read_full(fds[0], &b, 1, &soon), -ETIMEDOUT);
        CHECK_INT(write_full(fds[0], much, n, &soon), -ETIMEDOUT);
        close_fd(fds[0]);
        close_fd(fds[1]);
}

static void test_write_to_the_dead(void) {
        int fds[2];
        struct op op = op_timeout(5000);

        make_pair(fds);
        close_fd(fds[1]);
        CHECK_INT(write_full(fds[0], "x", 1, &op), -EPIPE); /* and no SIGPIPE: we are still here */
        close_fd(fds[0]);

        _cleanup_close_ int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
        CHECK_INT(write_full(full, "x", 1, &op), -ENOSPC); /* no socket: write(2) is used */
}

static void test_cancelled_read(void) {
        int fds[2];
        char b;
        _cleanup_cancel_ struct cancel *c = cancel_new();
        struct op op = OP_INIT_NEVER;

        op.cancel = c;
        make_pair(fds);
        cancel_fire(c);
        CHECK_INT(read_full(fds[0], &b, 1, &op), -ECANCELED);
        CHECK_INT(write_full(fds[0], &b, 1, &op), -ECANCELED);
        close_fd(fds[0]);
        close_fd(fds[1]);
}

static void test_listen_and_connect(void) {
        _cleanup_free_ char *path = in_dir("sock");
        struct op op = op_timeout(5000);
        struct stat st;

        CHECK_INT(unix_connect(path, &op), -ENOENT);
        mode_t mask = umask(0);
        int fd = unix_listen(path, 5);
        umask(mask);
        REQUIRE(fd >= 0);
        CHECK_INT(stat(path, &st), 0);
        CHECK_INT(st.st_mode, S_IFSOCK | 0600);
        CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
        CHECK_INT(fcntl(fd, F_GETFD), FD_CLOEXEC);

        _cleanup_close_ int client = unix_connect(path, &op);
        REQUIRE(client >= 0);
        CHECK(fcntl(client, F_GETFL) & O_NONBLOCK);
        CHECK_INT(fcntl(client, F_GETFD), FD_CLOEXEC);
        pid_t pid = 0;
        uid_t uid = 12345;
        CHECK_INT(unix_peer(client, &pid, &uid), 0);
        CHECK_INT(pid, getpid());
        CHECK_INT(uid, getuid());
        CHECK_INT(unix_peer(0, &pid, &uid) < 0, 1);

        CHECK_INT(unix_listen(path, 5), -EADDRINUSE); /* a living listener is not pushed aside */
        close_fd(fd);
        CHECK_INT(unix_connect(path, &op), -ECONNREFUSED);
        fd = unix_listen(path, 5); /* a stale file is */
        CHECK(fd >= 0);
        close_fd(fd);

        _cleanup_free_ char *plain = in_dir("plain");
        CHECK_INT(file_write_atomic(plain, "keep", 4, 0600), 0);
        CHECK_INT(unix_listen(plain, 5), -EADDRINUSE); /* what is no socket is never removed */
        CHECK_INT(stat(plain, &st), 0);
}

/* A socket address holds 107 bytes; a path may be longer. */
static void test_long_paths(void) {
        char folder[512], path[600];
        struct op op = op_timeout(1000);

        snprintf(folder, sizeof(folder), "%s/%0200d/%0150d", dir, 1, 2);
        REQUIRE(mkdir_p(folder, 0700) == 0);
        snprintf(path, sizeof(path), "%s/socket", folder);
        CHECK_INT(unix_connect(path, &op), -ENOENT);
        int listening = unix_listen(path, 1);
        CHECK(listening >= 0);
        int connected = unix_connect(path, &op);
        CHECK(connected >= 0);
        CHECK_INT(unix_listen(path, 1), -EADDRINUSE);
        close_fd(connected);
        close_fd(listening);
        listening = unix_listen(path, 1); /* the stale socket is replaced */
        CHECK(listening >= 0);
        close_fd(listening);
        CHECK_INT(unix_listen("", 1), -EINVAL);
}

static void test_a_descriptor_travels(void) {
        int pair[2], pipe_fds[2], got = -1;
        char text[8] = "";

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0 && pipe2(pipe_fds, O_CLOEXEC) == 0);
        CHECK_INT(recv_with_fd(pair[1], text, sizeof(text), &got), -EAGAIN);
        CHECK_INT(send_with_fd(pair[0], "abc", 3, pipe_fds[1]), 3);
        close_fd(pipe_fds[1]); /* what was sent is a copy */
        CHECK_INT(recv_with_fd(pair[1], text, sizeof(text), &got), 3);
        CHECK_STR(text, "abc");
        REQUIRE(got >= 0);
        CHECK(fcntl(got, F_GETFD) & FD_CLOEXEC);
        CHECK(write(got, "x", 1) == 1 && read(pipe_fds[0], text, 1) == 1 && text[0] == 'x');
        close_fd(got);
        close_fd(pipe_fds[0]);
        CHECK_INT(write(pair[0], "d", 1), 1);
        CHECK_INT(recv_with_fd(pair[1], text, sizeof(text), &got), 1);
        CHECK_INT(got, -1); /* a plain byte */
        CHECK_INT(send_with_fd(pair[0], "abc", 3, -1), -EBADF);
        CHECK_INT(shutdown(pair[0], SHUT_WR), 0);
        CHECK_INT(recv_with_fd(pair[1], text, sizeof(text), &got), 0);
        close_fd(pair[1]);
        CHECK_INT(send_with_fd(pair[0], "abc", 3, 0), -EPIPE); /* without a signal */
        close_fd(pair[0]);
}

static int count_fds(void) {
        int n = 0;

        for (int fd = 0; fd < 256; fd++)
                n += fcntl(fd, F_GETFD) >= 0;
        return n;
}

/* Somebody sends more descriptors than there should be: more than one, and more than there is room for. */
static void test_extra_descriptors_are_closed(void) {
        int pair[2], got = -1;
        char byte;

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        for (int n = 2; n <= 16; n *= 2) {
                union {
                        char bytes[CMSG_SPACE(16 * sizeof(int))];
                        struct cmsghdr align;
                } control = {{0}};
                struct iovec iov = {.iov_base = (char[]){'x'}, .iov_len = 1};
                struct msghdr message = {
                        .msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = control.bytes,
                        .msg_controllen = CMSG_SPACE((size_t) n * sizeof(int)),
                };
                struct cmsghdr *c = CMSG_FIRSTHDR(&message);
                int fds[16] = {0}, before = count_fds();

                *c = (struct cmsghdr){
                        .cmsg_len = CMSG_LEN((size_t) n * sizeof(int)),
                        .cmsg_level = SOL_SOCKET,
                        .cmsg_type = SCM_RIGHTS,
                };
                memcpy(CMSG_DATA(c), fds, (size_t) n * sizeof(int));
                REQUIRE(sendmsg(pair[0], &message, 0) == 1);
                CHECK_INT(recv_with_fd(pair[1], &byte, 1, &got), 1);
                CHECK(got >= 0);
                CHECK_INT(count_fds(), before + 1);
                close_fd(got);
        }
        close_fd(pair[0]);
        close_fd(pair[1]);
}

static void test_folders_are_synced(void) {
        _cleanup_free_ char *path = in_dir("any");

        CHECK_INT(fsync_folder_of(path), 0); /* the file itself need not be there */
        CHECK_INT(fsync_folder_of("any"), 0);
        CHECK_INT(fsync_folder_of("/any"), 0);
        CHECK_INT(fsync_folder_of("/nowhere/any"), -ENOENT);
}

static void *accept_later(void *arg) {
        struct op pause = op_timeout(40);
        int *fd = arg;

        wait_fd(-1, 0, &pause);
        close_fd(accept4(*fd, NULL, NULL, SOCK_CLOEXEC));
        return NULL;
}

static void test_full_backlog(void) {
        _cleanup_free_ char *path = in_dir("busy");
        int clients[8], n = 0;
        _cleanup_close_ int fd = unix_listen(path, 0);

        REQUIRE(fd >= 0);
        struct op soon = op_timeout(30);
        while (n < 8 && (clients[n] = unix_connect(path, &soon)) >= 0)
                n++;
        REQUIRE(n < 8);
        CHECK_INT(clients[n], -ETIMEDOUT);
        CHECK_INT(unix_listen(path, 0), -EADDRINUSE); /* too busy to answer is not dead */

        pthread_t thread;
        struct op op = op_timeout(10000);
        REQUIRE(thread_start(&thread, "accept", accept_later, &fd) == 0);
        int late = unix_connect(path, &op);
        CHECK(late >= 0);
        close_fd(late);
        pthread_join(thread, NULL);
        while (n > 0)
                close_fd(clients[--n]);
}

int main(void) {
        if (!mkdtemp(dir))
                return 1;
        RUN(test_flags);
        RUN(test_large_transfer);
        RUN(test_read_ends);
        RUN(test_blocking_fd_keeps_the_deadline);
        RUN(test_write_to_the_dead);
        RUN(test_cancelled_read);
        RUN(test_listen_and_connect);
        RUN(test_long_paths);
        RUN(test_full_backlog);
        RUN(test_a_descriptor_travels);
        RUN(test_extra_descriptors_are_closed);
        RUN(test_folders_are_synced);
        rm_rf(dir);
        return tap_done();
}
