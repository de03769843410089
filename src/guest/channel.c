/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/channel.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/file.h"
#include "base/io.h"
#include "guest/connection.h"
#include "guest/console.h"
#include "guest/uevent.h"
#include "wire/handshake.h"

#define PORTS_DIR "/sys/class/virtio-ports"
#define PORT_NAME_MAX 4096 /* every attribute in sysfs says that it has a page */
#define READ_CHUNK 4096
#define ANSWER_MS 5000 /* for the 32 bytes of the answer to be taken */

/* ---- one connection ---- */

/* Looks for a host's handshake in what is read. */
struct seeker {
        struct handshake_scanner scanner;
        struct buf in;
        size_t used; /* of it; what is behind that came after the handshake */
};
#define SEEKER_INIT ((struct seeker){.in = BUF_INIT(READ_CHUNK)})

static void seeker_clear(struct seeker *s) {
        if (s->in.data)
                explicit_bzero(s->in.data, s->in.cap); /* a hello has a secret */
        buf_free(&s->in);
        *s = SEEKER_INIT;
}

/* Serves a host on fd (owned), which begins with what the seeker has left, until it is lost or `other` is readable. The
 * seeker then has what came in the place of a frame. */
static int serve_mux(struct agent *a, int fd, struct seeker *s, int other) {
        _cleanup_close_ int owned = fd;
        _cleanup_connection_ struct connection *c = connection_new(a);

        if (!c)
                return -ENOMEM;
        const struct mux_callbacks cb = connection_callbacks(c);
        buf_consume(&s->in, s->used);
        s->used = 0;
        return mux_run(TAKE_FD(owned), MUX_GUEST, &cb, other, &s->in, NULL);
}

/* Looks at what was read. 1: a preamble came and was answered; 0: nothing yet; negative: fd is of no use. */
static int seek_in_what_came(struct seeker *s, int fd) {
        struct op op = op_timeout(ANSWER_MS);
        uint8_t answer[HANDSHAKE_LEN];
        int r;

        if (handshake_scan(&s->scanner, s->in.data, s->in.len, &s->used, answer) == 0) {
                buf_clear(&s->in);
                return 0;
        }
        r = write_full(fd, answer, sizeof(answer), &op);
        if (r < 0)
                seeker_clear(s);
        return r < 0 ? r : 1;
}

/* Reads once, unless something is left to look at. 1: a preamble came and was answered; 0: nothing yet (-EAGAIN or
 * garbage); negative: fd is of no use. */
static int seek_once(struct seeker *s, int fd) {
        if (s->in.len == 0) {
                int r = buf_reserve(&s->in, READ_CHUNK);
                if (r < 0)
                        return r;

                ssize_t n = read(fd, s->in.data, READ_CHUNK);
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -ENODATA;
                s->in.len = (size_t) n;
        }
        return seek_in_what_came(s, fd);
}

int channel_serve_once(struct agent *a, int fd, int other, const struct op *handshake) {
        _cleanup_close_ int owned = fd;
        _cleanup_(seeker_clear) struct seeker s = SEEKER_INIT;
        int r;

        do {
                r = wait_fd(fd, POLLIN, handshake);
                if (r > 0)
                        r = seek_once(&s, fd);
        } while (r == 0 || r == -EAGAIN || r == -EINTR);
        if (r < 0)
                return r;
        return serve_mux(a, TAKE_FD(owned), &s, other);
}

/* ---- virtio-serial ---- */

struct port_server {
        struct agent *agent;
        int fd;
};

static bool is_readable(int fd) {
        struct pollfd p = {.fd = fd, .events = POLLIN};

        return fd >= 0 && poll(&p, 1, 0) > 0;
}

int channel_serve_port(struct agent *a, int port, int other) {
        struct epoll_event edge = {.events = EPOLLIN | EPOLLET}, level = {.events = EPOLLIN}, ev;
        _cleanup_close_ int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        _cleanup_(seeker_clear) struct seeker s = SEEKER_INIT;

        if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, port, &edge) < 0 ||
            (other >= 0 && epoll_ctl(epoll_fd, EPOLL_CTL_ADD, other, &level) < 0))
                return -errno;
        while (!is_readable(other)) {
                int r = seek_once(&s, port);

                if (r == 1) {
                        int fd = fcntl(port, F_DUPFD_CLOEXEC, 3);

                        r = fd < 0 ? -errno : serve_mux(a, fd, &s, other);
                        if (r < 0) {
                                seeker_clear(&s);
                                console_say("cannot serve the host: %s", strerror(-r));
                        }
                } else if (r == -EAGAIN || r == -ENODATA) {
                        while (epoll_wait(epoll_fd, &ev, 1, -1) < 0 && errno == EINTR)
                                ;
                } else if (r < 0 && r != -EINTR && r != -ETIMEDOUT && r != -EPIPE) {
                        return r;
                }
        }
        return 0;
}

static void *port_main(void *arg) {
        struct port_server *p = arg;
        int r = channel_serve_port(p->agent, p->fd, -1);

        console_die("the port to the host is broken: %s", strerror(-r));
}

/* The port's device, "/dev/vport<N>p<M>". */
static bool find_port(char *ret, size_t size) {
        DIR *dir = opendir(PORTS_DIR);
        struct dirent *de;
        bool found = false;

        if (!dir)
                return false;
        while (!found && (de = readdir(dir))) {
                char path[sizeof(PORTS_DIR) + 300];
                _cleanup_free_ char *name = NULL;

                if (de->d_name[0] == '.')
                        continue;
                snprintf(path, sizeof(path), "%s/%s/name", PORTS_DIR, de->d_name);
                if (file_read_all(path, PORT_NAME_MAX, &name, NULL) < 0)
                        continue;
                name[strcspn(name, "\n")] = '\0';
                found = strcmp(name, WIRE_PORT_NAME) == 0;
                if (found)
                        snprintf(ret, size, "/dev/%.60s", de->d_name);
        }
        closedir(dir);
        return found && access(ret, F_OK) == 0;
}

static int open_port(void) {
        char path[80];
        int fd;

        if (!find_port(path, sizeof(path)))
                return -ENODEV;
        fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

/* ---- vsock ---- */

struct vsock_server {
        struct agent *agent;
        int fd;
};

/* The driver may be loaded without a device: then there is no address. */
static int open_vsock(void) {
        struct sockaddr_vm addr = {
                .svm_family = AF_VSOCK,
                .svm_port = WIRE_VSOCK_PORT,
                .svm_cid = VMADDR_CID_ANY,
        };
        _cleanup_close_ int dev = open("/dev/vsock", O_RDONLY | O_CLOEXEC), fd = -1;
        unsigned cid = VMADDR_CID_ANY;

        if (dev < 0 || ioctl(dev, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0)
                return -errno;
        if (cid == VMADDR_CID_ANY || cid == VMADDR_CID_LOCAL)
                return -ENODEV;
        fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *) &addr, sizeof(addr)) < 0 || listen(fd, 4) < 0)
                return -errno;
        return TAKE_FD(fd);
}

static void *vsock_main(void *arg) {
        struct vsock_server *v = arg;

        for (;;) {
                struct sockaddr_vm peer = {0};
                socklen_t len = sizeof(peer);
                struct op op = OP_INIT_NEVER;
                int fd;

                if (wait_fd(v->fd, POLLIN, &op) < 0)
                        continue;
                fd = accept4(v->fd, (struct sockaddr *) &peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (fd < 0)
                        continue;
                /* The workload can connect too, over the loopback of vsock: only the host may give orders. */
                if (peer.svm_cid != VMADDR_CID_HOST) {
                        close_fd(fd);
                        continue;
                }
                op = op_timeout(CHANNEL_HANDSHAKE_MS);
                channel_serve_once(v->agent, fd, v->fd, &op);
        }
        return NULL;
}

/* ---- both ---- */

static bool channels_there(void *arg) {
        struct channels *c = arg;

        if (c->port_fd < 0)
                c->port_fd = MAX(open_port(), -1);
        if (c->listen_fd < 0)
                c->listen_fd = MAX(open_vsock(), -1);
        return c->port_fd >= 0 || c->listen_fd >= 0;
}

int channels_open(struct channels *c, int uevent_fd, const struct op *op, struct error *err) {
        int r = uevent_wait(uevent_fd, channels_there, c, op);

        if (r < 0)
                return error_set_errno(err, r, "No virtio-serial port %s and no vsock device", WIRE_PORT_NAME);
        return 0;
}

int channels_serve(struct channels *c, struct agent *a, struct error *err) {
        static struct port_server port;
        static struct vsock_server vsock;
        int r = 0;

        port = (struct port_server){.agent = a, .fd = c->port_fd};
        vsock = (struct vsock_server){.agent = a, .fd = c->listen_fd};
        if (port.fd >= 0)
                r = thread_start_detached("port", port_main, &port);
        if (r == 0 && vsock.fd >= 0)
                r = thread_start_detached("vsock", vsock_main, &vsock);
        return r < 0 ? error_set_errno(err, r, "Cannot start a thread for the channel") : 0;
}
