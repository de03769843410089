/* SPDX-License-Identifier: Apache-2.0 */
#include "base/io.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* How often a connect() is tried again while the listener's backlog is full: no event tells when it has room. */
#define CONNECT_RETRY_MS 10
/* Descriptors of one message that there is room for. */
#define RECEIVED_FDS 4

int fd_set_nonblock(int fd, bool on) {
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0)
                return -errno;
        int wanted = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
        if (wanted != flags && fcntl(fd, F_SETFL, wanted) < 0)
                return -errno;
        return 0;
}

static bool try_again(int err) {
        return err == EINTR || err == EAGAIN || err == EWOULDBLOCK;
}

int read_full(int fd, void *data, size_t n, const struct op *op) {
        char *p = data;

        while (n > 0) {
                int r = wait_fd(fd, POLLIN, op);
                if (r < 0)
                        return r;
                ssize_t got = read(fd, p, n);
                if (got == 0)
                        return -ENODATA;
                if (got < 0) {
                        if (try_again(errno))
                                continue;
                        return -errno;
                }
                p += got;
                n -= (size_t) got;
                /* A peer that always has a few more bytes must not outlast the deadline. */
                if (n > 0 && (r = op_check(op)) < 0)
                        return r;
        }
        return 0;
}

/* One write that raises no SIGPIPE and does not block on a socket. */
static ssize_t write_some(int fd, const void *data, size_t n) {
        ssize_t w = send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);

        return w < 0 && errno == ENOTSOCK ? write(fd, data, n) : w;
}

int write_full(int fd, const void *data, size_t n, const struct op *op) {
        const char *p = data;

        while (n > 0) {
                int r = wait_fd(fd, POLLOUT, op);
                if (r < 0)
                        return r;
                ssize_t put = write_some(fd, p, n);
                if (put < 0) {
                        if (try_again(errno))
                                continue;
                        return -errno;
                }
                p += put;
                n -= (size_t) put;
                if (n > 0 && (r = op_check(op)) < 0)
                        return r;
        }
        return 0;
}

int fsync_folder_of(const char *path) {
        const char *slash = strrchr(path, '/');
        _cleanup_free_ char *folder = slash ? strndup(path, MAX((size_t) (slash - path), (size_t) 1)) : strdup(".");
        if (!folder)
                return -ENOMEM;
        _cleanup_close_ int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

/*
 * The address of a path of any length. One that does not fit is reached through its folder's fd in /proc, so that no
 * limit of 107 bytes shows anywhere else; the folder stays open in *ret_dir as long as the address is used.
 */
static int unix_address(const char *path, struct sockaddr_un *ret, int *ret_dir) {
        *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
        if (!*path)
                return -EINVAL;
        if (strlen(path) < sizeof(ret->sun_path)) {
                memcpy(ret->sun_path, path, strlen(path));
                return 0;
        }

        const char *slash = strrchr(path, '/');
        _cleanup_free_ char *folder = slash ? strndup(path, (size_t) (slash - path)) : strdup(".");
        if (!folder)
                return -ENOMEM;
        _cleanup_close_ int dir = open(*folder ? folder : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (dir < 0)
                return -errno;
        int n = snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s", dir, slash ? slash + 1 : path);
        if (n < 0 || (size_t) n >= sizeof(ret->sun_path))
                return -ENAMETOOLONG;
        *ret_dir = TAKE_FD(dir);
        return 0;
}

static int unix_socket(void) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        return fd < 0 ? -errno : fd;
}

/* Removes a socket file that nobody listens on; -EADDRINUSE when somebody does, or when it is no socket. */
static int remove_stale(const struct sockaddr_un *address) {
        struct stat st;

        if (lstat(address->sun_path, &st) < 0)
                return errno == ENOENT ? 0 : -errno;
        if (!S_ISSOCK(st.st_mode))
                return -EADDRINUSE;

        _cleanup_close_ int fd = unix_socket();
        if (fd < 0)
                return fd;
        /* A full backlog (EAGAIN) belongs to a live listener too. */
        if (connect(fd, (const struct sockaddr *) address, sizeof(*address)) == 0 || errno != ECONNREFUSED)
                return -EADDRINUSE;
        return unlink(address->sun_path) < 0 && errno != ENOENT ? -errno : 0;
}

int unix_listen(const char *path, int backlog) {
        _cleanup_close_ int dir = -1;
        struct sockaddr_un address;

        int r = unix_address(path, &address, &dir);
        if (r < 0)
                return r;
        _cleanup_close_ int fd = unix_socket();
        if (fd < 0)
                return fd;
        r = remove_stale(&address);
        if (r < 0)
                return r;

        /* On Linux bind() gives the file the mode of the socket (unix_bind_bsd() in net/unix/af_unix.c), so that it is
         * closed to others from its first moment, without touching the umask, which all threads share. */
        if (fchmod(fd, 0600) < 0)
                return -errno;
        if (bind(fd, (const struct sockaddr *) &address, sizeof(address)) < 0)
                return -errno;
        if (listen(fd, backlog) < 0) {
                r = -errno;
                unlink(path);
                return r;
        }
        return TAKE_FD(fd);
}

int unix_connect(const char *path, const struct op *op) {
        _cleanup_close_ int dir = -1;
        struct sockaddr_un address;

        int r = unix_address(path, &address, &dir);
        if (r < 0)
                return r;
        _cleanup_close_ int fd = unix_socket();
        if (fd < 0)
                return fd;
        while (connect(fd, (const struct sockaddr *) &address, sizeof(address)) < 0) {
                if (!try_again(errno))
                        return -errno;
                r = op_check(op);
                if (r < 0)
                        return r;
                struct op pause = op_sub(op, CONNECT_RETRY_MS);
                r = wait_fd(-1, 0, &pause);
                if (r < 0 && r != -ETIMEDOUT)
                        return r;
        }
        return TAKE_FD(fd);
}

ssize_t send_with_fd(int sock, const void *data, size_t n, int fd) {
        union {
                char bytes[CMSG_SPACE(sizeof(int))];
                struct cmsghdr align;
        } control = {{0}};
        struct iovec iov = {.iov_base = (void *) (uintptr_t) data, .iov_len = n};
        struct msghdr message = {
                .msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = control.bytes,
                .msg_controllen = sizeof(control.bytes),
        };
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);

        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
        ssize_t sent = sendmsg(sock, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        return sent < 0 ? -errno : sent;
}

/* Takes the first descriptor of a control message, unless there is one, and closes the others. */
static void take_descriptors(const struct cmsghdr *c, int *fd) {
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (size_t i = 0; i < n; i++) {
                int one;

                memcpy(&one, CMSG_DATA(c) + i * sizeof(one), sizeof(one));
                if (*fd < 0)
                        *fd = one;
                else
                        close_fd(one);
        }
}

ssize_t recv_with_fd(int sock, void *data, size_t n, int *ret_fd) {
        /* What does not fit is closed by the kernel. */
        union {
                char bytes[CMSG_SPACE(RECEIVED_FDS * sizeof(int))];
                struct cmsghdr align;
        } control;
        struct iovec iov = {.iov_base = data, .iov_len = n};
        struct msghdr message = {
                .msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = control.bytes,
                .msg_controllen = sizeof(control.bytes),
        };
        int fd = -1;

        ssize_t got = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (got < 0)
                return -errno;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
                if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
                        take_descriptors(c, &fd);
        *ret_fd = fd;
        return got;
}

int unix_peer(int fd, pid_t *ret_pid, uid_t *ret_uid) {
        struct ucred cred;
        socklen_t len = sizeof(cred);

        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
                return -errno;
        if (ret_pid)
                *ret_pid = cred.pid;
        if (ret_uid)
                *ret_uid = cred.uid;
        return 0;
}
