/* SPDX-License-Identifier: Apache-2.0 */
#include "network/network.h"

#include <arpa/inet.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/log.h"
#include "base/str.h"
#include "base/thread.h"
#include "base/waiter.h"
#include "network/network-internal.h"
#include "network/usernet.h"

#define RESOLV_CONF "/etc/resolv.conf"
/* Between two tries of the keeper to mend what does not come back. */
#define MEND_MS 2000
#define CLOSE_MS 20000
#define NAME_FREE_MS 2000 /* for the kernel to remove a tap */
#define NAME_LOOK_MS 5

/* --- who is busy --- */

static int fail_locked(const struct network *net, struct error *err) {
        int r = error_set(err, ERROR_UNSUPPORTED, "%s", error_message(&net->why));

        if (net->why.hint)
                error_hint(err, "%s", net->why.hint);
        return r;
}

int network_claim(struct network *net, const struct op *op, struct error *err) {
        struct cond_waiter waiter;
        int r = 0;

        cond_waiter_begin(&waiter, &net->lock, &net->changed, op);
        pthread_mutex_lock(&net->lock);
        while ((net->phase == PHASE_STARTING || net->busy) && (r = cond_waiter_sleep(&waiter)) >= 0)
                ;
        if (r >= 0 && net->phase != PHASE_NAMESPACE)
                r = fail_locked(net, err);
        else if (r >= 0)
                net->busy = true;
        else
                error_set_errno(err, r, "The network is busy");
        pthread_mutex_unlock(&net->lock);
        cond_waiter_end(&waiter);
        return r;
}

void network_release(struct network *net) {
        LOCK(&net->lock);
        net->busy = false;
        pthread_cond_broadcast(&net->changed);
}

void network_wake(struct network *net) {
        const uint64_t one = 1;

        if (write(net->wake_fd, &one, sizeof(one)) < 0)
                return; /* it is as full as can be: the keeper is awake */
}

/* --- names --- */

/* For whoever is busy. The sockets belong to the namespace, so they stay when the helper ends. */
static int start_names(struct network *net, struct error *err) {
        const int datagram = SOCK_DGRAM, stream = SOCK_STREAM;
        _cleanup_close_ int udp = -1, tcp = -1;

        if (net->names)
                return 0;
        int r = supervise_call(net, HELPER_NAMES, &datagram, sizeof(datagram), &udp, err);
        if (r >= 0)
                r = supervise_call(net, HELPER_NAMES, &stream, sizeof(stream), &tcp, err);
        if (r < 0)
                return r;
        const struct names_config cfg = {.udp_fd = udp, .tcp_fd = tcp, .resolv_conf = RESOLV_CONF};
        r = names_start(&cfg, &net->names);
        if (r < 0)
                return error_set_errno(err, r, "Cannot start the relay of names");
        (void) TAKE_FD(udp);
        (void) TAKE_FD(tcp);
        return 0;
}

/* --- the policy --- */

static int make_policy(const struct network_policy *list, size_t n, struct buf *out) {
        uint32_t host[HELPER_HOSTS_MAX];
        size_t n_host = 0;

        int r = host_addresses(host, ARRAY_SIZE(host), &n_host);
        const struct helper_policy head = {.n = (uint32_t) n, .n_host = (uint32_t) n_host};
        if (r >= 0)
                r = buf_append(out, &head, sizeof(head));
        for (size_t i = 0; r >= 0 && i < n; i++) {
                const size_t n_ports = MIN(list[i].n_ports, NETWORK_PORTS_MAX);
                struct helper_machine m = {
                        .address = list[i].address,
                        .internet = list[i].internet,
                        .inter_vm = list[i].inter_vm,
                        .n_ports = (uint16_t) n_ports,
                };
                memcpy(m.ports, list[i].ports, m.n_ports * sizeof(*m.ports));
                r = buf_append(out, &m, sizeof(m));
        }
        return r < 0 ? r : buf_append(out, host, n_host * sizeof(*host));
}

/* The host's addresses have changed: the same machines, with those of now. For whoever is busy. */
static int renew_policy(struct network *net, struct error *err) {
        _cleanup_buf_ struct buf body = BUF_INIT(HELPER_BODY_MAX);
        uint32_t host[HELPER_HOSTS_MAX];
        struct helper_policy head;
        size_t n_host = 0;

        if (net->policy.len == 0)
                return 0;
        memcpy(&head, net->policy.data, sizeof(head));
        int r = host_addresses(host, ARRAY_SIZE(host), &n_host);
        head.n_host = (uint32_t) n_host;
        if (r >= 0)
                r = buf_append(&body, &head, sizeof(head));
        if (r >= 0)
                r = buf_append(&body, net->policy.data + sizeof(head), head.n * sizeof(struct helper_machine));
        if (r >= 0)
                r = buf_append(&body, host, n_host * sizeof(*host));
        if (r < 0)
                return error_set_errno(err, r, "Cannot look at the host's addresses");
        buf_free(&net->policy);
        net->policy = body;
        body = BUF_INIT(HELPER_BODY_MAX);
        return supervise_call(net, HELPER_POLICY, net->policy.data, net->policy.len, NULL, err);
}

static bool wants_uplink(const struct network_policy *list, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (list[i].internet)
                        return true;
        return false;
}

/* For whoever is busy: the uplink and what goes with it. */
static int have_uplink(struct network *net, struct error *err) {
        int r = uplink_start(net, err);

        network_wake(net); /* there is another process to be watched */
        return r < 0 ? r : start_names(net, err);
}

static int apply(struct network *net, const struct network_policy *list, size_t n, struct error *err) {
        _cleanup_buf_ struct buf body = BUF_INIT(HELPER_BODY_MAX);

        int r = make_policy(list, n, &body);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the rules of %zu workspaces", n);
        buf_free(&net->policy);
        net->policy = body;
        body = BUF_INIT(HELPER_BODY_MAX);
        net->wants_uplink = wants_uplink(list, n);
        r = supervise_call(net, HELPER_POLICY, net->policy.data, net->policy.len, NULL, err);
        if (!net->wants_uplink)
                uplink_stop(net);
        network_wake(net); /* the keeper starts one that is wanted */
        return r;
}

int network_apply(struct network *net, const struct network_policy *list, size_t n, const struct op *op,
                  struct error *err) {
        int r = network_claim(net, op, err);
        if (r < 0)
                return r;
        r = apply(net, list, n, err);
        network_release(net);
        return r;
}

int network_uplink(struct network *net, const struct op *op, struct error *err) {
        int r = network_claim(net, op, err);
        if (r < 0)
                return r;
        r = have_uplink(net, err);
        network_release(net);
        return r;
}

/* --- requests --- */

static int request(struct network *net, enum helper_op what, const void *body, size_t length, int *ret_fd,
                   const struct op *op, struct error *err) {
        int r = network_claim(net, op, err);
        if (r < 0)
                return r;
        r = supervise_call(net, what, body, length, ret_fd, err);
        network_release(net);
        return r;
}

int network_attach(struct network *net, const struct card *card, const struct op *op, struct error *err) {
        return request(net, HELPER_ATTACH, card, sizeof(*card), NULL, op, err);
}

int network_forget(struct network *net, uint32_t address, const struct op *op, struct error *err) {
        return request(net, HELPER_FORGET, &address, sizeof(address), NULL, op, err);
}

/* However many connections come, at most one of them is among those who wait for the helper. */
static int get_socket(struct network *net, const struct op *op, int *ret_fd, struct error *err) {
        const int type = SOCK_STREAM;
        struct cond_waiter waiter;
        int r = 0;

        cond_waiter_begin(&waiter, &net->lock, &net->changed, op);
        pthread_mutex_lock(&net->lock);
        while (net->connecting && (r = cond_waiter_sleep(&waiter)) >= 0)
                ;
        if (r >= 0)
                net->connecting = true;
        pthread_mutex_unlock(&net->lock);
        cond_waiter_end(&waiter);
        if (r < 0)
                return error_set_errno(err, r, "Too many connections are made at this moment");
        r = request(net, HELPER_SOCKET, &type, sizeof(type), ret_fd, op, err);
        LOCK(&net->lock);
        net->connecting = false;
        pthread_cond_broadcast(&net->changed);
        return r;
}

int network_connect(struct network *net, uint32_t address, uint16_t port, const struct op *op, int *ret_fd,
                    struct error *err) {
        const struct sockaddr_in to = {
                .sin_family = AF_INET, .sin_addr = {.s_addr = htonl(address)}, .sin_port = htons(port)};
        _cleanup_close_ int fd = -1;
        socklen_t len = sizeof(int);
        int why = 0;

        int r = get_socket(net, op, &fd, err);
        if (r < 0)
                return r;
        r = fd_set_nonblock(fd, true);
        if (r >= 0 && connect(fd, (const struct sockaddr *) &to, sizeof(to)) < 0)
                r = -errno;
        if (r == -EINPROGRESS) {
                r = wait_fd(fd, POLLOUT, op);
                if (r >= 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &len) < 0)
                        r = -errno;
                if (r >= 0)
                        r = -why;
        }
        if (r < 0)
                return error_set_errno(err, r, "Nobody answers at port %u of the machine", port);
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* --- taps --- */

static int make_tap(struct network *net, const struct card *card, bool attached, int *ret_fd, struct error *err) {
        const struct helper_tap body = {.card = *card, .attached = attached};

        int r = supervise_cards(net, card->address, err);
        return r < 0 ? r : supervise_call(net, HELPER_TAP, &body, sizeof(body), ret_fd, err);
}

/* A tap that was let go of keeps its name until the kernel has removed it, which takes it some milliseconds: a spare
 * one that nobody expects any more is closed at the moment at which its address has become a workspace's. */
static int make_tap_patiently(struct network *net, const struct card *card, bool attached, const struct op *op,
                              int *ret_fd, struct error *err) {
        const struct op moment = op_sub(op, NAME_FREE_MS);

        for (;;) {
                int r = make_tap(net, card, attached, ret_fd, err);
                const struct op pause = op_sub(&moment, NAME_LOOK_MS);
                if (r != -EBUSY || op_check(&moment) < 0)
                        return r;
                error_clear(err);
                (void) wait_fd(-1, 0, &pause);
        }
}

/* -1: there is none. */
static int take_spare(struct network *net, const struct card *card) {
        LOCK(&net->lock);
        for (size_t i = 0; i < net->n_spares; i++)
                if (net->spares[i].card.address == card->address && net->spares[i].card.slot == card->slot) {
                        int fd = net->spares[i].fd;
                        net->spares[i] = net->spares[--net->n_spares];
                        return fd;
                }
        return -1;
}

int network_tap(struct network *net, const struct card *card, bool attached, const struct op *op, int *ret_fd,
                struct error *err) {
        int fd = attached ? take_spare(net, card) : -1;

        if (fd >= 0) {
                *ret_fd = fd;
                return 0;
        }
        int r = network_claim(net, op, err);
        if (r < 0)
                return r;
        fd = take_spare(net, card); /* made meanwhile; or in our way */
        if (fd >= 0 && attached)
                *ret_fd = fd;
        else {
                close_fd(fd);
                r = make_tap_patiently(net, card, attached, op, ret_fd, err);
        }
        network_release(net);
        return r;
}

void network_expect(struct network *net, const uint32_t *addresses, size_t n) {
        {
                LOCK(&net->lock);
                net->n_expected = MIN(n, NETWORK_SPARES_MAX);
                if (n > 0)
                        memcpy(net->expected, addresses, net->n_expected * sizeof(*addresses));
        }
        network_wake(net);
}

static bool is_expected_locked(const struct network *net, const struct card *card) {
        for (size_t i = 0; i < net->n_expected; i++)
                if (net->expected[i] == card->address)
                        return true;
        return false;
}

static bool is_spare_locked(const struct network *net, uint32_t address) {
        for (size_t i = 0; i < net->n_spares; i++)
                if (net->spares[i].card.address == address)
                        return true;
        return false;
}

/* One that nobody expects any more; -1. */
static int take_unexpected(struct network *net) {
        LOCK(&net->lock);
        for (size_t i = 0; i < net->n_spares; i++)
                if (!is_expected_locked(net, &net->spares[i].card)) {
                        int fd = net->spares[i].fd;
                        net->spares[i] = net->spares[--net->n_spares];
                        return fd;
                }
        return -1;
}

/* An address that wants a tap; 0: none does. */
static uint32_t next_expected(struct network *net) {
        LOCK(&net->lock);
        for (size_t i = 0; i < net->n_expected && net->n_spares < NETWORK_SPARES_MAX; i++)
                if (!is_spare_locked(net, net->expected[i]))
                        return net->expected[i];
        return 0;
}

/* Whether somebody is waiting for the helper could be asked, too; a tap takes less than a millisecond. */
static void prepare_taps(struct network *net) {
        int old;

        while ((old = take_unexpected(net)) >= 0)
                close_fd(old);
        for (uint32_t address; (address = next_expected(net)) != 0;) {
                const struct op op = op_timeout(HELPER_MS);
                const struct card card = {.address = address};
                _cleanup_error_ struct error why = ERROR_INIT;
                int fd = -1;

                int r = network_claim(net, &op, &why);
                if (r >= 0) {
                        r = make_tap(net, &card, true, &fd, &why);
                        LOCK(&net->lock);
                        if (r >= 0)
                                net->spares[net->n_spares++] = (struct spare){.card = card, .fd = fd};
                        else
                                net->n_expected = 0; /* until the next time: nobody needs them yet */
                        net->busy = false;
                        pthread_cond_broadcast(&net->changed);
                }
                if (r < 0) {
                        if (r != -EBUSY)
                                log_warn("A tap cannot be prepared", "error", error_message(&why));
                        return;
                }
        }
}

/* --- the keeper --- */

static void set_phase(struct network *net, enum phase phase, struct error *why) {
        LOCK(&net->lock);
        net->phase = phase;
        error_move(&net->why, why);
        pthread_cond_broadcast(&net->changed);
}

/* The namespace alone is no use where /dev/net/tun cannot be opened. */
static int try_tap(struct network *net, struct error *err) {
        const struct helper_tap body = {.card = {.address = net->address, .slot = 1}};
        int fd = -1;

        int r = supervise_call(net, HELPER_TAP, &body, sizeof(body), &fd, err);
        close_fd(fd);
        return r == -EBUSY ? 0 : r; /* another daemon's last try is still going */
}

/* A namespace that was there before has machines in it, perhaps: it stays, whatever fails. */
static void failed(struct network *net, struct error *why) {
        const bool keep = net->joined;

        log_warn(keep ? "The private network cannot be taken up; it is tried again" : "There is no private network",
                 "error", error_message(why));
        supervise_stop(net, !keep);
        set_phase(net, keep ? PHASE_FAILED : PHASE_USER, why);
}

/* Of an earlier daemon with another configuration: machines that are in its namespace reach nothing any more. */
static void begin_user(struct network *net) {
        _cleanup_error_ struct error why = ERROR_INIT;

        uplink_find(net);
        uplink_stop(net);
        error_set(&why, ERROR_UNSUPPORTED, "The configuration wants user networking (network.mode)");
        set_phase(net, PHASE_USER, &why);
}

static void begin(struct network *net) {
        _cleanup_error_ struct error why = ERROR_INIT;
        const int64_t began = monotonic_ns();

        int r = supervise_start(net, &why);
        if (r >= 0)
                r = try_tap(net, &why);
        if (r < 0) {
                failed(net, &why);
                return;
        }
        uplink_find(net);
        {
                struct stat st;
                LOCK(&net->lock);
                net->id = fstat(net->net_ns, &st) < 0 ? 0 : st.st_ino;
        }
        log_info("The network is there", "holder", LOG_NUM(net->holder.id.pid), "ms",
                 LOG_NUM((monotonic_ns() - began) / NSEC_PER_MSEC));
        set_phase(net, PHASE_NAMESPACE, &why);
}

/* Starts again what has ended. Whether all is well. */
static bool mend(struct network *net, bool renew) {
        const struct op op = op_timeout(CLOSE_MS);
        _cleanup_error_ struct error why = ERROR_INIT;

        int r = network_claim(net, &op, &why);
        if (r < 0)
                return false;
        if (supervise_broken(net))
                r = supervise_mend(net, &why);
        if (r >= 0 && renew)
                r = renew_policy(net, &why);
        if (child_ended(&net->uplink)) {
                log_warn("The uplink has ended");
                child_forget(&net->uplink);
        }
        if (r >= 0 && net->wants_uplink && (net->uplink.pidfd < 0 || !net->names))
                r = monotonic_ns() < net->uplink_not_before_ns ? -EAGAIN : have_uplink(net, &why);
        network_release(net);
        if (r < 0 && error_is_set(&why))
                log_warn("The network is not as it should be", "error", error_message(&why));
        return r >= 0;
}

static bool is_closing(struct network *net) {
        LOCK(&net->lock);
        return net->closing;
}

/* Copies of the descriptors: who is busy may close the ones that there are. */
static int watched(struct network *net, struct pollfd *ret, int max) {
        const struct op op = op_timeout(CLOSE_MS);
        const struct child *children[] = {&net->holder, &net->helper, &net->uplink};
        int n = 0;

        if (network_claim(net, &op, NULL) < 0)
                return 0;
        for (size_t i = 0; i < ARRAY_SIZE(children) && n < max; i++) {
                int fd = children[i]->pidfd < 0 ? -1 : dup(children[i]->pidfd);
                if (fd >= 0)
                        ret[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
        }
        network_release(net);
        return n;
}

/* Waits for whatever there is to do. Whether the host's addresses have changed. */
static bool sleep_until_needed(struct network *net, int ms) {
        struct pollfd fds[5] = {{.fd = net->wake_fd, .events = POLLIN}, {.fd = net->route_fd, .events = POLLIN}};
        const int n = 2 + watched(net, fds + 2, 3);
        uint64_t count;
        char message[4096];
        bool changed = false;

        (void) poll(fds, (nfds_t) n, ms);
        for (int i = 2; i < n; i++)
                close(fds[i].fd);
        if (read(net->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
                log_warn("The keeper of the network cannot read what wakes it");
        while (net->route_fd >= 0 && recv(net->route_fd, message, sizeof(message), 0) > 0)
                changed = true;
        return changed || (fds[1].revents & POLLERR); /* some news was lost */
}

/* Until the network is there, or it is clear that there will be none. */
static bool is_there(struct network *net) {
        if (net->user_only)
                begin_user(net);
        else
                begin(net);
        while (net->phase == PHASE_FAILED && !is_closing(net)) {
                (void) sleep_until_needed(net, MEND_MS);
                if (!is_closing(net))
                        begin(net);
        }
        return net->phase == PHASE_NAMESPACE;
}

static void *keeper_main(void *arg) {
        struct network *net = arg;
        bool well = true, renew = false;

        if (!is_there(net))
                return NULL;
        while (!is_closing(net)) {
                if (well)
                        prepare_taps(net);
                renew |= sleep_until_needed(net, well ? -1 : MEND_MS);
                if (is_closing(net))
                        break;
                well = mend(net, renew);
                renew = renew && !well;
        }
        return NULL;
}

/* --- open and close --- */

static void network_free(struct network *net) {
        for (size_t i = 0; i < net->n_spares; i++)
                close_fd(net->spares[i].fd);
        buf_free(&net->policy);
        error_clear(&net->why);
        close_fd(net->wake_fd);
        close_fd(net->route_fd);
        pthread_cond_destroy(&net->changed);
        pthread_mutex_destroy(&net->lock);
        free(net->exceptions);
        free(net->program);
        free(net->dir);
        free(net);
}

int network_open(const struct network_config *cfg, struct network **ret, struct error *err) {
        const size_t n_exceptions = MIN(cfg->n_exceptions, NETWORK_EXCEPTIONS_MAX);
        struct network *net = calloc(1, sizeof(*net));

        if (!net)
                return error_set_errno(err, ENOMEM, "Cannot open the network");
        *net = (struct network){
                .address = cfg->network,
                .gateway = cfg->network + 1,
                .prefix_len = cfg->prefix_len,
                .dir = strdup(cfg->dir),
                .program = strdup(cfg->program),
                .exceptions = calloc(n_exceptions + 1, sizeof(struct network_range)),
                .n_exceptions = n_exceptions,
                .user_only = cfg->user_only,
                .required = cfg->required,
                .wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
                .route_fd = host_watch(),
                .holder = CHILD_INIT,
                .helper = CHILD_INIT,
                .uplink = CHILD_INIT,
                .user_ns = -1,
                .net_ns = -1,
                .sock = -1,
                .policy = BUF_INIT(HELPER_BODY_MAX),
        };
        pthread_mutex_init(&net->lock, NULL);
        cond_init(&net->changed);
        int r = net->dir && net->program && net->exceptions ? net->wake_fd : -ENOMEM;
        if (r >= 0 && net->n_exceptions > 0)
                memcpy(net->exceptions, cfg->exceptions, net->n_exceptions * sizeof(*net->exceptions));
        if (r >= 0)
                r = thread_start(&net->keeper, "network", keeper_main, net);
        if (r < 0) {
                network_free(net);
                return error_set_errno(err, r, "Cannot open the network");
        }
        net->has_keeper = true;
        *ret = net;
        return 0;
}

/* Whoever is busy lets go soon: each request has its limit. */
static bool wait_until_idle(struct network *net) {
        const struct op op = op_timeout(CLOSE_MS);
        LOCK(&net->lock);

        while (net->busy && op_check(&op) >= 0)
                (void) cond_wait_until(&net->changed, &net->lock, op.deadline);
        return !net->busy;
}

void network_close(struct network *net, bool end) {
        if (!net)
                return;
        {
                LOCK(&net->lock);
                net->closing = true;
        }
        network_wake(net);
        pthread_join(net->keeper, NULL);
        if (!wait_until_idle(net)) {
                log_warn("The network is still in use, and is left to the end of the process");
                return;
        }
        names_stop(net->names);
        supervise_stop(net, end);
        network_free(net);
}

int network_mode(struct network *net, const struct op *op, enum network_mode *ret, struct error *err) {
        struct cond_waiter waiter;
        int r = 0;

        cond_waiter_begin(&waiter, &net->lock, &net->changed, op);
        pthread_mutex_lock(&net->lock);
        while (net->phase == PHASE_STARTING && (r = cond_waiter_sleep(&waiter)) >= 0)
                ;
        if (r < 0)
                error_set_errno(err, r, "The network is not there yet");
        else if (net->phase == PHASE_FAILED || (net->phase == PHASE_USER && net->required))
                r = fail_locked(net, err);
        else
                *ret = net->phase == PHASE_USER ? NETWORK_USER : NETWORK_NAMESPACE;
        pthread_mutex_unlock(&net->lock);
        cond_waiter_end(&waiter);
        return r;
}

void network_why(struct network *net, const struct op *op, struct error *ret) {
        enum network_mode mode;

        (void) network_mode(net, op, &mode, NULL);
        LOCK(&net->lock);
        if (net->phase != PHASE_NAMESPACE)
                (void) fail_locked(net, ret);
}

uint64_t network_id(struct network *net) {
        LOCK(&net->lock);
        return net->phase == PHASE_NAMESPACE ? net->id : 0;
}

/* --- user networking --- */

int network_user_card(struct network *net, uint32_t address, const char *dir, int *ret_fd, struct error *err) {
        const struct usernet_config cfg = {
                .program = net->program,
                .dir = dir,
                .network = {.network = net->address, .prefix_len = net->prefix_len},
                .address = address,
        };

        return usernet_start(&cfg, ret_fd, err);
}

int network_user_policy(struct network *net, const char *dir, bool internet, const struct op *op, struct error *err) {
        return usernet_set(dir, internet, net->exceptions, net->n_exceptions, op, err);
}
