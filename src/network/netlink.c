/* SPDX-License-Identifier: Apache-2.0 */
#include "network/netlink.h"

#include <sys/socket.h>

/* When what the kernel dumps has changed meanwhile, so that something may be missing, it is begun again. */
#define DUMPS_MAX 8

int netlink_open(int bus, unsigned groups, struct netlink *ret) {
        struct netlink nl = {.socket = mnl_socket_open2(bus, SOCK_CLOEXEC)};

        if (!nl.socket)
                return -errno;
        if (mnl_socket_bind(nl.socket, groups, MNL_SOCKET_AUTOPID) < 0) {
                int r = -errno;
                netlink_close(&nl);
                return r;
        }
        *ret = nl;
        return 0;
}

void netlink_close(struct netlink *nl) {
        if (nl->socket)
                mnl_socket_close(nl->socket);
        *nl = (struct netlink){0};
}

static int send_request(struct netlink *nl, struct nlmsghdr *request) {
        request->nlmsg_seq = ++nl->seq;
        return mnl_socket_sendto(nl->socket, request, request->nlmsg_len) < 0 ? -errno : 0;
}

/* A datagram of the kernel's; it makes none that is larger. */
union messages {
        struct nlmsghdr first;
        char bytes[32 * 1024];
};

/* Its length. */
static ssize_t receive(struct netlink *nl, union messages *m, const struct op *op) {
        int r = wait_fd(mnl_socket_get_fd(nl->socket), POLLIN, op);

        if (r < 0)
                return r;
        ssize_t n = mnl_socket_recvfrom(nl->socket, m, sizeof(*m));
        return n < 0 ? -errno : n;
}

struct answers {
        netlink_each_t each;
        void *arg;
        int result; /* so far */
};

/* 1: this was the last one. */
static int see(struct answers *a, const struct nlmsghdr *m) {
        const int *code = mnl_nlmsg_get_payload(m); /* struct nlmsgerr begins with it, too */

        if (m->nlmsg_flags & NLM_F_DUMP_INTR)
                a->result = -EINTR;
        if (m->nlmsg_type == NLMSG_ERROR || m->nlmsg_type == NLMSG_DONE) {
                if (a->result >= 0 && mnl_nlmsg_get_payload_len(m) >= sizeof(*code))
                        a->result = MIN(*code, 0);
                return 1;
        }
        if (a->result >= 0 && a->each && m->nlmsg_type >= NLMSG_MIN_TYPE)
                a->result = a->each(m, a->arg);
        return 0;
}

/* Sends a request and takes its answers up to the last one, also after a failure: the kernel begins no other dump on
 * this socket before. A late answer to a request that was given up has another number, and is skipped. */
static int talk(struct netlink *nl, struct nlmsghdr *request, struct answers *a, const struct op *op) {
        union messages all;

        int r = send_request(nl, request);
        if (r < 0)
                return r;
        for (;;) {
                ssize_t n = receive(nl, &all, op);
                if (n < 0)
                        return (int) n;
                int left = (int) n;
                for (const struct nlmsghdr *m = &all.first; mnl_nlmsg_ok(m, left); m = mnl_nlmsg_next(m, &left))
                        if (m->nlmsg_seq == nl->seq && see(a, m))
                                return MIN(a->result, 0);
        }
}

int netlink_ask(struct netlink *nl, struct nlmsghdr *request, const struct op *op) {
        struct answers a = {0};

        request->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
        return talk(nl, request, &a, op);
}

int netlink_dump(struct netlink *nl, struct nlmsghdr *request, netlink_each_t each, void *arg, const struct op *op) {
        int r = -EINTR;

        request->nlmsg_flags |= NLM_F_REQUEST | NLM_F_DUMP;
        for (int i = 0; r == -EINTR && i < DUMPS_MAX; i++) {
                struct answers a = {.each = each, .arg = arg};

                r = talk(nl, request, &a, op);
        }
        return r;
}

int netlink_wait(struct netlink *nl, const struct op *op) {
        union messages m;
        ssize_t n = receive(nl, &m, op);

        /* More news than the socket could hold are news, too. */
        return n < 0 && n != -ENOBUFS ? (int) n : 0;
}
