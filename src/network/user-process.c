/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process of a machine's user networking (usernet.h): one thread, one loop over the frames of QEMU, the sockets of
 * libslirp, the requests of daemons and the host's addresses.
 *
 * Buffers are bounded. While QEMU does not take what is there for it, nothing more is read, neither from it nor from
 * the internet; what libslirp makes all the same has a little room left and is dropped beyond that, as on any network.
 *
 * libslirp cannot be told to end connections. So when something is taken away, the whole instance goes, with all its
 * sockets, and a new one takes its place; the filter answers what the guest still sends.
 *
 * libslirp has a socket for each connection and each UDP port of the guest. The limit of descriptors bounds them, and
 * is raised for a moment for descriptors of our own, so that a guest cannot keep away the one who takes its internet.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/io.h"
#include "network/privilege.h"
#include "network/ranges.h"
#include "network/user-filter.h"
#include "network/user-protocol.h"

#define FLOWS_MAX 1024u                    /* descriptors, of ours and of libslirp */
#define OWN_FDS 32u                        /* more than that, for our own for a moment */
#define LOG_MAX 65536u                     /* bytes of standard error, to which a guest may give cause */
#define QEMU_FRAME_MAX (64u * 1024 + 4096) /* what QEMU takes from a guest (NET_BUFSIZE) */
#define IN_MAX (2u * QEMU_FRAME_MAX)
#define OUT_MAX (1024u * 1024)
#define OUT_FULL (512u * 1024) /* from here on nothing more is asked for */
#define LENGTH_BYTES 4u
#define ADDRESSES_AGAIN_MS 1000
#define SLIRP_CONFIG_USED 1 /* of struct SlirpConfig: all that is needed here */

enum { POLL_QEMU, POLL_CONTROL, POLL_ADDRESSES, POLL_OWN };

struct usernet {
        struct user_filter filter;
        Slirp *slirp;
        int qemu, control, addresses;

        rlim_t flows; /* descriptors that libslirp may fill up */

        int asker; /* who is heard now; -1: nobody */
        deadline_t asker_until;
        struct {
                struct usernet_request head;
                struct network_range exceptions[NETWORK_EXCEPTIONS_MAX];
        } request;
        size_t n_request;      /* bytes that are there */
        bool again;            /* libslirp shall have another turn at once */
        bool addresses_unsure; /* the list in the filter may not be that of now */
        deadline_t addresses_again;

        struct pollfd polls[POLL_OWN + FLOWS_MAX + OWN_FDS];
        size_t n_polls;
        size_t n_in;
        size_t out_at, out_end; /* what QEMU has still to get */
        uint8_t in[IN_MAX];     /* from QEMU */
        uint8_t out[OUT_MAX];
};

static int limit_files(const struct usernet *u, bool own) {
        const struct rlimit limit = {.rlim_cur = u->flows + (own ? OWN_FDS : 0), .rlim_max = u->flows + OWN_FDS};

        return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? -errno : 0;
}

/* --- to QEMU --- */

/* Whole frames or nothing. */
static void send_frame(struct usernet *u, const void *frame, size_t n) {
        const uint32_t length = htonl((uint32_t) n);

        if (u->out_end + LENGTH_BYTES + n > OUT_MAX && u->out_at > 0) {
                memmove(u->out, u->out + u->out_at, u->out_end - u->out_at);
                u->out_end -= u->out_at;
                u->out_at = 0;
        }
        if (u->out_end + LENGTH_BYTES + n > OUT_MAX)
                return;
        memcpy(u->out + u->out_end, &length, LENGTH_BYTES);
        memcpy(u->out + u->out_end + LENGTH_BYTES, frame, n);
        u->out_end += LENGTH_BYTES + n;
}

/* A negative errno: QEMU has ended. */
static int flush(struct usernet *u) {
        while (u->out_at < u->out_end) {
                ssize_t n = send(u->qemu, u->out + u->out_at, u->out_end - u->out_at, MSG_NOSIGNAL | MSG_DONTWAIT);
                if (n < 0)
                        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
                u->out_at += (size_t) n;
        }
        u->out_at = u->out_end = 0;
        return 0;
}

static bool is_jammed(const struct usernet *u) {
        return u->out_end - u->out_at > OUT_FULL;
}

/* --- libslirp --- */

static ssize_t on_packet(const void *frame, size_t n, void *arg) {
        send_frame(arg, frame, n);
        return (ssize_t) n; /* also when it was dropped: it is no error of the network */
}

static void on_guest_error(const char *message _unused_, void *arg _unused_) {
}

static int64_t on_clock(void *arg _unused_) {
        return monotonic_ns();
}

/* Timers are for IPv6 alone. */
static void *on_timer_new(SlirpTimerCb cb _unused_, void *cb_arg _unused_, void *arg) {
        return arg;
}

static void on_timer_free(void *timer _unused_, void *arg _unused_) {
}

static void on_timer_mod(void *timer _unused_, int64_t at_ms _unused_, void *arg _unused_) {
}

static void on_fd(int fd _unused_, void *arg _unused_) {
}

static void on_notify(void *arg _unused_) {
}

static Slirp *make_slirp(struct usernet *u) {
        static const SlirpCb callbacks = {
                .send_packet = on_packet,
                .guest_error = on_guest_error,
                .clock_get_ns = on_clock,
                .timer_new = on_timer_new,
                .timer_free = on_timer_free,
                .timer_mod = on_timer_mod,
                .register_poll_fd = on_fd,
                .unregister_poll_fd = on_fd,
                .notify = on_notify,
        };
        const SlirpConfig config = {
                .version = SLIRP_CONFIG_USED,
                .in_enabled = true,
                .vnetwork.s_addr = htonl(u->filter.network.network),
                .vnetmask.s_addr = htonl(UINT32_MAX << (32 - u->filter.network.prefix_len)),
                .vhost.s_addr = htonl(u->filter.gateway),
                .vdhcp_start.s_addr = htonl(u->filter.address), /* nobody hears it: the filter */
                .vnameserver.s_addr = htonl(u->filter.names),
                .disable_host_loopback = true,
        };

        return slirp_new(&config, &callbacks, u);
}

static int add_poll(int fd, int events, void *arg) {
        struct usernet *u = arg;
        short wanted = 0;

        if (u->n_polls >= ARRAY_SIZE(u->polls))
                return -1;
        wanted |= events & SLIRP_POLL_IN ? POLLIN : 0;
        wanted |= events & SLIRP_POLL_OUT ? POLLOUT : 0;
        wanted |= events & SLIRP_POLL_PRI ? POLLPRI : 0;
        u->polls[u->n_polls] = (struct pollfd){.fd = fd, .events = wanted};
        return (int) u->n_polls++;
}

static int get_events(int index, void *arg) {
        const struct usernet *u = arg;
        int got = 0;

        if (index < 0 || (size_t) index >= u->n_polls)
                return 0;
        const short events = u->polls[index].revents;
        got |= events & POLLIN ? SLIRP_POLL_IN : 0;
        got |= events & POLLOUT ? SLIRP_POLL_OUT : 0;
        got |= events & POLLPRI ? SLIRP_POLL_PRI : 0;
        got |= events & POLLERR ? SLIRP_POLL_ERR : 0;
        got |= events & POLLHUP ? SLIRP_POLL_HUP : 0;
        return got;
}

/* --- from QEMU --- */

static void take_frame(struct usernet *u, const uint8_t *frame, size_t n) {
        uint8_t answer[FILTER_ANSWER_MAX];
        size_t n_answer = 0;

        switch (user_filter_look(&u->filter, frame, n, monotonic_ns(), answer, &n_answer)) {
        case VERDICT_PASS:
                slirp_input(u->slirp, frame, (int) n);
                /* What waits for the guest's MAC goes out at libslirp's next turn, which nothing else may bring. */
                u->again |= n >= ETH_HLEN && frame[2 * ETH_ALEN + 1] == (ETHERTYPE_ARP & 0xff);
                break;
        case VERDICT_ANSWER:
                send_frame(u, answer, n_answer);
                break;
        case VERDICT_DROP:
                break;
        }
}

/* -ENODATA: QEMU has ended. */
static int receive_frames(struct usernet *u) {
        uint32_t length;
        size_t at = 0;

        ssize_t n = recv(u->qemu, u->in + u->n_in, sizeof(u->in) - u->n_in, MSG_DONTWAIT);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        if (n == 0)
                return -ENODATA;
        u->n_in += (size_t) n;
        while (u->n_in - at >= LENGTH_BYTES) {
                memcpy(&length, u->in + at, LENGTH_BYTES);
                length = ntohl(length);
                if (length > QEMU_FRAME_MAX)
                        return -EBADMSG;
                if (u->n_in - at - LENGTH_BYTES < length)
                        break;
                take_frame(u, u->in + at + LENGTH_BYTES, length);
                at += LENGTH_BYTES + length;
        }
        memmove(u->in, u->in + at, u->n_in - at);
        u->n_in -= at;
        return 0;
}

/* --- requests --- */

static bool is_less(const struct user_filter *f, const struct usernet_request *q, const struct network_range *ranges) {
        if (!f->internet)
                return false;
        return !q->internet || q->n_exceptions != f->n_exceptions ||
               memcmp(ranges, f->exceptions, f->n_exceptions * sizeof(*ranges)) != 0;
}

static int obey(struct usernet *u) {
        const struct usernet_request *q = &u->request.head;

        for (size_t i = 0; i < q->n_exceptions; i++)
                if (!range_is_valid(&u->request.exceptions[i]))
                        return -EINVAL;
        const bool cut = is_less(&u->filter, q, u->request.exceptions);
        u->filter.internet = q->internet;
        u->filter.n_exceptions = q->n_exceptions;
        memcpy(u->filter.exceptions, u->request.exceptions, q->n_exceptions * sizeof(*u->filter.exceptions));
        if (cut) {
                slirp_cleanup(u->slirp);
                u->slirp = make_slirp(u);
        }
        return u->slirp ? 0 : -ENOMEM;
}

static int check_head(const struct usernet_request *q) {
        if (q->version != USERNET_VERSION)
                return -EPROTONOSUPPORT;
        return q->internet > 1 || q->n_exceptions > NETWORK_EXCEPTIONS_MAX ? -EINVAL : 0;
}

static void dismiss(struct usernet *u) {
        u->asker = close_fd(u->asker);
        u->n_request = 0;
}

static void answer(struct usernet *u, int result) {
        const struct usernet_answer a = {.result = result};

        (void) send(u->asker, &a, sizeof(a), MSG_NOSIGNAL | MSG_DONTWAIT); /* there is room for the first bytes */
        dismiss(u);
}

static void greet(struct usernet *u) {
        uid_t uid;

        if (limit_files(u, true) < 0)
                return;
        u->asker = accept4(u->control, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        (void) limit_files(u, false);
        u->asker_until = deadline_in_ms(USERNET_REQUEST_MS);
        if (u->asker >= 0 && (unix_peer(u->asker, NULL, &uid) < 0 || uid != geteuid()))
                dismiss(u);
}

/* Bytes of the request, as far as one can tell from what is there of it. Its head is good, if that is there. */
static size_t request_length(const struct usernet *u) {
        const struct usernet_request *q = &u->request.head;

        return u->n_request < sizeof(*q) ? sizeof(*q) : sizeof(*q) + q->n_exceptions * sizeof(struct network_range);
}

/* As much of the request as is there. */
static void hear(struct usernet *u) {
        int r = 0;

        while (r >= 0 && u->n_request < request_length(u)) {
                ssize_t n = recv(u->asker, (uint8_t *) &u->request + u->n_request, request_length(u) - u->n_request,
                                 MSG_DONTWAIT);
                if (n < 0 && (errno == EAGAIN || errno == EINTR))
                        return;
                if (n <= 0) {
                        dismiss(u);
                        return;
                }
                u->n_request += (size_t) n;
                if (u->n_request >= sizeof(u->request.head))
                        r = check_head(&u->request.head);
        }
        answer(u, r < 0 ? r : obey(u));
}

/* --- the host's addresses --- */

static void renew_addresses(struct usernet *u) {
        int r = limit_files(u, true);

        if (r >= 0)
                r = host_addresses(u->filter.host, ARRAY_SIZE(u->filter.host), &u->filter.n_host);
        (void) limit_files(u, false);
        u->addresses_unsure = r < 0;
        u->addresses_again = deadline_in_ms(ADDRESSES_AGAIN_MS);
}

static void drain_addresses(struct usernet *u) {
        uint8_t text[4096];

        while (recv(u->addresses, text, sizeof(text), MSG_DONTWAIT) > 0 || errno == ENOBUFS)
                ;
        u->addresses_unsure = true;
        u->addresses_again = deadline_in_ms(0);
}

/* --- the loop --- */

static int wait_for_events(struct usernet *u, bool jammed) {
        uint32_t slirp_ms = UINT32_MAX;
        deadline_t until = DEADLINE_NEVER;

        u->polls[POLL_QEMU] = (struct pollfd){
                .fd = u->qemu, .events = (short) ((jammed ? 0 : POLLIN) | (u->out_at < u->out_end ? POLLOUT : 0))};
        u->polls[POLL_CONTROL] = (struct pollfd){.fd = u->asker >= 0 ? u->asker : u->control, .events = POLLIN};
        u->polls[POLL_ADDRESSES] = (struct pollfd){.fd = u->addresses, .events = POLLIN};
        u->n_polls = POLL_OWN;
        if (!jammed)
                slirp_pollfds_fill(u->slirp, &slirp_ms, add_poll, u);
        if (slirp_ms != UINT32_MAX)
                until = deadline_in_ms(slirp_ms);
        if (u->again && !jammed)
                until = deadline_in_ms(0);
        if (u->asker >= 0)
                until = deadline_min(until, u->asker_until);
        if (u->addresses_unsure)
                until = deadline_min(until, u->addresses_again);
        if (poll(u->polls, u->n_polls, deadline_poll_ms(until)) >= 0)
                return 0;
        for (size_t i = 0; i < u->n_polls; i++)
                u->polls[i].revents = 0;
        return errno == EINTR || errno == ENOMEM ? 0 : -errno;
}

static int turn(struct usernet *u) {
        const bool jammed = is_jammed(u);

        int r = wait_for_events(u, jammed);
        if (r < 0)
                return r;
        if (!jammed) {
                u->again = false;
                slirp_pollfds_poll(u->slirp, 0, get_events, u);
        }
        if (u->polls[POLL_ADDRESSES].revents)
                drain_addresses(u);
        if (u->addresses_unsure && deadline_passed(u->addresses_again))
                renew_addresses(u);
        if (u->polls[POLL_CONTROL].revents && u->asker < 0)
                greet(u);
        else if (u->polls[POLL_CONTROL].revents)
                hear(u);
        else if (u->asker >= 0 && deadline_passed(u->asker_until))
                dismiss(u);
        if (!u->slirp)
                return -ENOMEM;
        /* In a jam its end is seen by the error, else by reading. */
        if (u->polls[POLL_QEMU].revents & POLLIN)
                r = receive_frames(u);
        else if (u->polls[POLL_QEMU].revents & (POLLERR | POLLHUP | POLLNVAL))
                r = -ENODATA;
        return r < 0 ? r : flush(u);
}

/* --- start --- */

static int parse_address(const char *text, uint32_t *ret) {
        struct in_addr a;

        if (inet_pton(AF_INET, text, &a) != 1)
                return -EINVAL;
        *ret = ntohl(a.s_addr);
        return 0;
}

static int parse_arguments(const char *address, const char *network, const char *prefix_len, struct user_filter *f) {
        struct network_range range = {0};
        uint32_t guest = 0;
        char *end = NULL;

        const unsigned long bits = strtoul(prefix_len, &end, 10);
        if (*prefix_len == '\0' || *end != '\0' || bits < 8 || bits > 29 ||
            parse_address(network, &range.network) < 0 || parse_address(address, &guest) < 0)
                return -EINVAL;
        range.prefix_len = (unsigned) bits;
        if (!range_is_valid(&range) || !range_has(&range, guest))
                return -EINVAL;
        user_filter_init(f, &range, guest);
        return 0;
}

static int check_sockets(void) {
        struct stat st;

        for (int fd = USERNET_FD_QEMU; fd <= USERNET_FD_CONTROL; fd++)
                if (fstat(fd, &st) < 0 || !S_ISSOCK(st.st_mode))
                        return -ENOTSOCK;
        return 0;
}

/* Nothing that was not given on purpose, no privileges, bounded files. */
static int confine(struct usernet *u) {
        const struct rlimit log = {LOG_MAX, LOG_MAX}, none = {0, 0};
        struct rlimit files;

        if (syscall(SYS_close_range, USERNET_FD_CONTROL + 1, ~0U, 0) < 0 || signal(SIGXFSZ, SIG_IGN) == SIG_ERR ||
            signal(SIGPIPE, SIG_IGN) == SIG_ERR || setrlimit(RLIMIT_FSIZE, &log) < 0 ||
            setrlimit(RLIMIT_CORE, &none) < 0 || chdir("/") < 0 || getrlimit(RLIMIT_NOFILE, &files) < 0)
                return -errno;
        if (files.rlim_max < 2 * OWN_FDS)
                return -EMFILE;
        u->flows = MIN(files.rlim_max - OWN_FDS, (rlim_t) FLOWS_MAX);
        int r = limit_files(u, false);
        return r < 0 ? r : privilege_keep(0);
}

static int prepare(struct usernet *u, struct error *err) {
        u->qemu = USERNET_FD_QEMU;
        u->control = USERNET_FD_CONTROL;
        u->asker = -1;
        int r = check_sockets();
        if (r < 0)
                return error_set(err, ERROR_INVALID_ARGUMENT, "descriptors %d and %d are not sockets", USERNET_FD_QEMU,
                                 USERNET_FD_CONTROL);
        r = confine(u);
        if (r < 0)
                return error_set_errno(err, r, "cannot drop the privileges");
        u->addresses = host_watch();
        r = u->addresses < 0 ? u->addresses
                             : host_addresses(u->filter.host, ARRAY_SIZE(u->filter.host), &u->filter.n_host);
        if (r < 0)
                return error_set_errno(err, r, "cannot list the host's addresses");
        u->slirp = make_slirp(u);
        return u->slirp ? 0 : error_set_errno(err, ENOMEM, "cannot start libslirp");
}

int usernet_run(const char *address, const char *network, const char *prefix_len) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct usernet *u = calloc(1, sizeof(*u));

        if (!u)
                return 1;
        if (parse_arguments(address, network, prefix_len, &u->filter) < 0)
                error_set(&err, ERROR_INVALID_ARGUMENT, "%s in %s/%s is not an address in a network", address, network,
                          prefix_len);
        else
                (void) prepare(u, &err);
        if (error_is_set(&err)) {
                fprintf(stderr, "%s\n", error_message(&err));
                free(u);
                return 1;
        }
        pid_t pid = fork();
        while (pid == 0 && turn(u) >= 0)
                ;
        if (u->slirp)
                slirp_cleanup(u->slirp);
        free(u);
        return pid < 0 ? 1 : 0;
}
