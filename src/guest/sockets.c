/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/sockets.h"

#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "guest/modules.h"
#include "guest/netlink.h"

#define ROUND_MAX 2048u   /* sockets that are looked up, and then ended, together */
#define BATCH 64u         /* requests in one message */
#define TIMER_TIME_WAIT 3 /* inet_diag_msg.idiag_timer of a connection that is closed already */

/* Without those that listen, or are closed. 12: TCP_NEW_SYN_RECV, which no header has. */
#define TCP_STATES                                                                                                     \
        (1u << TCP_ESTABLISHED | 1u << TCP_SYN_SENT | 1u << TCP_SYN_RECV | 1u << TCP_FIN_WAIT1 | 1u << TCP_FIN_WAIT2 | \
         1u << TCP_CLOSE_WAIT | 1u << TCP_LAST_ACK | 1u << TCP_CLOSING | 1u << 12)
#define UDP_STATES (1u << TCP_ESTABLISHED)

static const struct kind {
        const char *proc;
        uint8_t family, protocol;
        uint32_t states;
} kinds[] = {
        {"/proc/thread-self/net/tcp", AF_INET, IPPROTO_TCP, TCP_STATES},
        {"/proc/thread-self/net/tcp6", AF_INET6, IPPROTO_TCP, TCP_STATES},
        {"/proc/thread-self/net/udp", AF_INET, IPPROTO_UDP, UDP_STATES},
        {"/proc/thread-self/net/udp6", AF_INET6, IPPROTO_UDP, UDP_STATES},
};

/* ---- which ones ---- */

/* The IPv4 address, also one in the clothes of IPv6. Network byte order, as they all are here. */
static bool get_ipv4(uint8_t family, const uint32_t a[4], uint32_t *ret) {
        if (family == AF_INET6 && (a[0] != 0 || a[1] != 0 || a[2] != htonl(0xffff)))
                return false;
        *ret = family == AF_INET6 ? a[3] : a[0];
        return true;
}

static bool is_loopback(uint8_t family, const uint32_t a[4]) {
        uint32_t v4;

        if (get_ipv4(family, a, &v4))
                return ntohl(v4) >> 24 == IN_LOOPBACKNET;
        return memcmp(a, &in6addr_loopback, sizeof(in6addr_loopback)) == 0;
}

static bool is_over(const struct sockets_over *over, uint8_t family, const uint32_t src[4], const uint32_t dst[4]) {
        uint32_t v4;

        if (over->all)
                return !is_loopback(family, src) || !is_loopback(family, dst);
        if (!get_ipv4(family, src, &v4))
                return false;
        for (size_t i = 0; i < over->n_local; i++)
                if (over->local[i].s_addr == v4)
                        return true;
        return false;
}

/* ---- a look without the modules ---- */

/* All of the first `digits` characters, hexadecimal. */
static bool parse_hex(const char *s, size_t digits, uint32_t *ret) {
        char text[9] = "", *end;

        if (digits >= sizeof(text) || strlen(s) < digits)
                return false;
        memcpy(text, s, digits);
        *ret = (uint32_t) strtoul(text, &end, 16);
        return *end == '\0';
}

/* "0100007F:1F90": words as they lie in memory. */
static bool parse_address(const char *s, uint8_t family, uint32_t ret[4]) {
        const size_t words = family == AF_INET ? 1 : 4;

        for (size_t i = 0; i < words; i++)
                if (!parse_hex(s + 8 * i, 8, &ret[i]))
                        return false;
        return s[8 * words] == ':';
}

/* "  7: LOCAL REMOTE STATE ..." */
static bool line_is_over(const struct sockets_over *over, const struct kind *kind, char *line) {
        uint32_t src[4], dst[4], state = 0;
        char *rest = NULL;

        (void) strtok_r(line, " ", &rest);
        const char *local = strtok_r(NULL, " ", &rest), *remote = strtok_r(NULL, " ", &rest);
        const char *hex = strtok_r(NULL, " ", &rest);
        return hex && parse_hex(hex, 2, &state) && state < 32 && (kind->states & 1u << state) &&
               parse_address(local, kind->family, src) && parse_address(remote, kind->family, dst) &&
               is_over(over, kind->family, src, dst);
}

/* Whether there is one, as far as /proc tells. */
static bool some_are_over(const struct sockets_over *over) {
        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
                FILE *f = fopen(kinds[i].proc, "re");
                char line[512];
                bool found = false;

                while (f && !found && fgets(line, sizeof(line), f))
                        found = line_is_over(over, &kinds[i], line);
                if (f)
                        fclose(f);
                if (found)
                        return true;
        }
        return false;
}

/* Stays true in a copy of the machine: the modules are there as well. */
static atomic_bool loaded;

static int load(int initramfs_fd, struct error *err) {
        int r = initramfs_fd < 0 ? 0 : modules_load(initramfs_fd, "diag", err);

        if (r == 0)
                loaded = true;
        return r;
}

/* ---- finding and ending them ---- */

struct question {
        struct nlmsghdr h;
        struct inet_diag_req_v2 req;
};

static struct question question(uint16_t type, uint16_t flags, const struct kind *kind) {
        return (struct question){
                .h = {.nlmsg_len = sizeof(struct question), .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags},
                .req = {.sdiag_family = kind->family, .sdiag_protocol = kind->protocol, .idiag_states = kind->states},
        };
}

struct found {
        const struct sockets_over *over;
        size_t n;
        struct inet_diag_sockid list[ROUND_MAX];
};

static void take_socket(const struct nlmsghdr *h, void *arg) {
        const struct inet_diag_msg *m = NLMSG_DATA(h);
        struct found *f = arg;

        if (h->nlmsg_len >= NLMSG_LENGTH(sizeof(*m)) && m->idiag_timer != TIMER_TIME_WAIT && f->n < ROUND_MAX &&
            is_over(f->over, m->idiag_family, m->id.idiag_src, m->id.idiag_dst))
                f->list[f->n++] = m->id;
}

static int open_diag(void) {
        int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_SOCK_DIAG);

        return fd < 0 ? -errno : fd;
}

static int find(const struct kind *kind, struct found *f) {
        struct question q = question(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, kind);
        _cleanup_close_ int fd = open_diag();

        f->n = 0;
        return fd < 0 ? fd : netlink_ask(fd, &q.h, take_socket, f);
}

/* The kernel has done all that was asked when send() returns, and answers only what it could not do. */
static int first_refusal(int fd) {
        struct {
                struct nlmsghdr h;
                struct nlmsgerr e;
        } answer;

        for (;;) {
                ssize_t n = recv(fd, &answer, sizeof(answer), MSG_DONTWAIT);

                if (n < 0 && errno != ENOBUFS)
                        return errno == EAGAIN ? 0 : -errno;
                /* It has ended by itself meanwhile. */
                if (n >= (ssize_t) sizeof(answer) && answer.h.nlmsg_type == NLMSG_ERROR && answer.e.error != -ENOENT)
                        return answer.e.error;
        }
}

static int end_batch(const struct kind *kind, const struct inet_diag_sockid *list, size_t n) {
        _cleanup_close_ int fd = open_diag();
        struct question batch[BATCH];

        if (fd < 0)
                return fd;
        for (size_t i = 0; i < n; i++) {
                batch[i] = question(SOCK_DESTROY, 0, kind);
                batch[i].req.id = list[i];
        }
        return send(fd, batch, n * sizeof(batch[0]), 0) < 0 ? -errno : first_refusal(fd);
}

static int end_kind(const struct kind *kind, struct found *f, unsigned *ended) {
        int r = 0;

        do {
                r = find(kind, f);
                for (size_t i = 0; r == 0 && i < f->n; i += BATCH)
                        r = end_batch(kind, f->list + i, MIN(f->n - i, (size_t) BATCH));
                if (r == 0)
                        *ended += (unsigned) f->n;
                /* There may be more than one round can hold. */
        } while (r == 0 && f->n == ROUND_MAX && *ended < SOCKETS_ENDED_MAX);
        return r;
}

int sockets_end(const struct sockets_over *over, int initramfs_fd, unsigned *ret_ended, struct error *err) {
        int first = 0;

        *ret_ended = 0;
        if (!loaded) {
                if (!some_are_over(over))
                        return 0;
                int r = load(initramfs_fd, err);
                if (r < 0)
                        return r;
        }
        _cleanup_free_ struct found *f = malloc(sizeof(*f));
        if (!f)
                return error_set_errno(err, ENOMEM, "Cannot look for connections that are over");
        f->over = over;
        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
                int r = end_kind(&kinds[i], f, ret_ended);

                if (r < 0 && first == 0)
                        first = r;
        }
        return first < 0 ? error_set_errno(err, first, "Cannot end the connections that are over") : 0;
}
