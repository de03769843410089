/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The helper's side of protocol.h: joins the namespaces, keeps the capabilities over the network only, and does one
 * request after the other. What it is sent is checked like anything that comes from another process.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/process.h"
#include "network/conntrack.h"
#include "network/links.h"
#include "network/netlink.h"
#include "network/policy-sets.h"
#include "network/privilege.h"
#include "network/protocol.h"
#include "network/rules.h"

/* The last one is for the resets of conntrack.h. */
#define CAPABILITIES (1ULL << CAP_NET_ADMIN | 1ULL << CAP_NET_BIND_SERVICE | 1ULL << CAP_NET_RAW)
#define NAMES_PORT 53
#define NAMES_BACKLOG 128
/* Bytes of nft's listing, without the elements of the sets. */
#define LISTING_MAX (256UL * 1024)
/* Bytes of the beginning of its messages, which are looked at. */
#define NFT_SAID_MAX 1024

struct helper {
        int socket;
        struct netlink nl;
        struct conntrack conntrack;
        uint32_t gateway; /* IPv4, host byte order; 0 before HELPER_SETUP */
        struct policy_sets sets;
        bool sets_known; /* they are what the packet filter has */
};

/* ---- what requests do ---- */

struct request {
        const void *body;
        size_t length;
        struct op op;
};

static int malformed(struct error *err) {
        error_set(err, ERROR_INVALID_ARGUMENT, "the request is malformed");
        return -EBADMSG;
}

/* nft's own message without the long line that it quotes; NULL when it has said nothing of the kind. */
static const char *nft_message(struct buf *said) {
        char *text = said->len > 0 ? strstr(said->data, "Error: ") : NULL;

        if (text)
                text[strcspn(text, "\n")] = 0;
        return text;
}

static int load(const struct buf *text, const struct op *op, struct error *err) {
        char *const argv[] = {(char *) "nft", (char *) "-f", (char *) "-", NULL};
        _cleanup_buf_ struct buf said = BUF_INIT(NFT_SAID_MAX);

        int r = process_run_input(argv, text->data, text->len, op, NULL, &said, err);
        if (r == -ENOENT)
                error_hint(err, "Install the package nftables.");
        const char *message = r < 0 ? nft_message(&said) : NULL;
        if (message)
                error_set(err, ERROR_INTERNAL, "nft refused the rules: %s", message);
        return r;
}

/* Also false when there is no telling: the tables are then made anew. */
static bool tables_are_there(const struct rules_config *rules, const struct op *op) {
        char *const argv[] = {(char *) "nft", (char *) "-t", (char *) "list", (char *) "ruleset", NULL};
        _cleanup_buf_ struct buf listing = BUF_INIT(LISTING_MAX);

        return process_run(argv, op, &listing, NULL, NULL) >= 0 && listing.len > 0 &&
               rules_are_there(rules, listing.data);
}

/* Tables that are there already keep what the sets say until HELPER_POLICY replaces it, so that after the death of a
 * helper no connection is cut in between. */
static int load_tables(const struct rules_config *rules, const struct op *op, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(RULES_TEXT_MAX);

        if (tables_are_there(rules, op))
                return 0;
        int r = rules_base(rules, &text);
        return r < 0 ? r : load(&text, op, err);
}

static uint32_t mask_of(uint32_t prefix_len) {
        return prefix_len == 0 ? 0 : UINT32_MAX << (32 - prefix_len);
}

static bool setup_is_valid(const struct helper_setup *s, const struct network_range *exceptions) {
        if (s->prefix_len < 8 || s->prefix_len > 30 || s->network & ~mask_of(s->prefix_len) ||
            (s->gateway & mask_of(s->prefix_len)) != s->network || s->gateway == s->network)
                return false;
        for (uint32_t i = 0; i < s->n_exceptions; i++)
                if (exceptions[i].prefix_len > 32)
                        return false;
        return true;
}

/* The filter comes first: nothing passes before it is there. */
static int do_setup(struct helper *h, const struct request *q, int *ret_fd, struct error *err) {
        const struct helper_setup *s = q->body;
        const struct network_range *exceptions = (const void *) (s + 1);

        if (q->length < sizeof(*s) || s->n_exceptions > NETWORK_EXCEPTIONS_MAX ||
            q->length != sizeof(*s) + s->n_exceptions * sizeof(*exceptions) || !setup_is_valid(s, exceptions))
                return malformed(err);
        const struct links_gateway gateway = {.address = s->gateway, .prefix_len = s->prefix_len};
        struct rules_config rules = {
                .network = s->network,
                .gateway = s->gateway,
                .prefix_len = s->prefix_len,
                .exceptions = exceptions,
                .n_exceptions = s->n_exceptions,
        };
        card_mac(s->gateway, rules.gateway_mac);
        h->sets_known = false;
        int r = load_tables(&rules, &q->op, err);
        if (r >= 0)
                r = links_settings(err);
        if (r >= 0)
                r = links_bridge(&h->nl, &gateway, &q->op, err);
        if (r >= 0)
                h->gateway = s->gateway;
        return r;
}

static int do_cards(struct helper *h, const struct request *q, int *ret_fd, struct error *err) {
        const struct helper_cards *c = q->body;
        _cleanup_buf_ struct buf text = BUF_INIT(RULES_TEXT_MAX);

        if (q->length != sizeof(*c) || c->n == 0 || c->n > NETWORK_MACHINES_MAX || c->address > UINT32_MAX - c->n)
                return malformed(err);
        int r = 0;
        for (uint32_t i = 0; r >= 0 && i < c->n; i += RULES_CARDS_MAX) {
                buf_clear(&text);
                r = rules_cards(c->address + i, MIN(c->n - i, RULES_CARDS_MAX), &text);
                if (r >= 0)
                        r = load(&text, &q->op, err);
        }
        return r;
}

static int do_tap(struct helper *h, const struct request *q, int *ret_fd, struct error *err) {
        const struct helper_tap *t = q->body;
        _cleanup_close_ int fd = -1;

        if (q->length != sizeof(*t) || t->card.slot >= CARD_SLOTS || t->attached > 1)
                return malformed(err);
        int r = links_tap(&h->nl, &t->card, &q->op, &fd, err);
        if (r >= 0 && t->attached)
                r = links_attach(&h->nl, &t->card, &q->op, err);
        if (r >= 0)
                *ret_fd = TAKE_FD(fd);
        return r;
}

static int do_attach(struct helper *h, const struct request *q, int *ret_fd, struct error *err) {
        const struct card *card = q->body;

        if (q->length != sizeof(*card) || card->slot >= CARD_SLOTS)
                return malformed(err);
        return links_attach(&h->nl, card, &q->op, err);
}

/* A policy as rules.h has it; its ports stay where they are. */
static bool read_machine(const struct helper_machine *m, struct network_policy *ret) {
        if (m->internet > 1 || m->inter_vm > 1 || m->n_ports > NETWORK_PORTS_MAX)
                return false;
        *ret = (struct network_policy){
                .address = m->address,
                .internet = m->internet,
                .inter_vm = m->inter_vm,
                .ports = m->ports,
                .n_ports = m->n_ports,
        };
        return true;
}

struct loading {
        const struct op *op;
        struct error *err;
};

static int load_sets(const struct buf *text, void *arg) {
        const struct loading *l = arg;

        return load(text, l->op, l->err);
}

/* Puts what is new in force. Takes the sets over. */
static int change_sets(struct helper *h, struct policy_sets *sets, const struct request *q, struct error *err) {
        struct loading l = {&q->op, err};

        int r = h->sets_known ? policy_sets_change(&h->sets, sets, load_sets, &l) : -ESTALE;
        /* After a failure nobody knows how far it came: all of it is replaced. */
        if (r < 0 && op_check(&q->op) >= 0)
                r = policy_sets_change(NULL, sets, load_sets, &l);
        h->sets_known = r >= 0;
        policy_sets_clear(&h->sets);
        h->sets = *sets;
        *sets = (struct policy_sets){0};
        return r;
}

static int do_policy(struct helper *h, const struct request *q, int *ret_fd, struct error *err) {
        const struct helper_policy *p = q->body;
        const struct helper_machine *machines = (const void *) (p + 1);

        if (q->length < sizeof(*p) || p->n > NETWORK_MACHINES_MAX || p->n_host > HELPER_HOSTS_MAX ||
            q->length != sizeof(*p) + p->n * sizeof(*machines) + p->n_host * sizeof(uint32_t))
                return malformed(err);
        _cleanup_free_ struct network_policy *list = calloc(MAX(p->n, 1U), sizeof(*list));
        _cleanup_policy_sets_ struct policy_sets sets = {0};
        if (!list)
                return -ENOMEM;
        for (uint32_t i = 0; i < p->n; i++)
                if (!read_machine(&machines[i], &list[i]))
                        return malformed(err);
        int r = policy_sets_make(list, p->n, (const uint32_t *) (const void *) (machines + p->n), p->n_host, &sets);
        return r < 0 ? r : change_sets(h, &sets, q, err);
}

static int do_forget(struct helper *h, const struct request *q, int *ret_fd, struct error *err) {
        const uint32_t *address = q->body;

        if (q->length != sizeof(*address))
                return malformed(err);
        int r = conntrack_forget(&h->conntrack, *address, &q->op);
        return r < 0 ? error_set_errno(err, r, "cannot end the connections of an address") : 0;
}

static int new_socket(const struct request *q, struct error *err) {
        const int *type = q->body;

        if (q->length != sizeof(*type) || (*type != SOCK_STREAM && *type != SOCK_DGRAM))
                return malformed(err);
        int fd = socket(AF_INET, *type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        return fd < 0 ? error_set_errno(err, errno, "cannot make a socket") : fd;
}

static int do_socket(struct helper *h, const struct request *q, int *ret_fd, struct error *err) {
        int fd = new_socket(q, err);

        if (fd < 0)
                return fd;
        *ret_fd = fd;
        return 0;
}

static int do_names(struct helper *h, const struct request *q, int *ret_fd, struct error *err) {
        const struct sockaddr_in address = {
                .sin_family = AF_INET,
                .sin_port = htons(NAMES_PORT),
                .sin_addr.s_addr = htonl(h->gateway),
        };
        const int on = 1;

        _cleanup_close_ int fd = new_socket(q, err);
        if (fd < 0)
                return fd;
        if (h->gateway == 0)
                return error_set(err, ERROR_INVALID_ARGUMENT, "there is no gateway yet");
        const bool stream = *(const int *) q->body == SOCK_STREAM;
        /* A daemon that has just ended may have left connections behind. */
        if (stream && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
                return error_set_errno(err, errno, "cannot prepare a socket for names");
        if (bind(fd, (const struct sockaddr *) &address, sizeof(address)) < 0 ||
            (stream && listen(fd, NAMES_BACKLOG) < 0))
                return error_set_errno(err, errno, "cannot listen for names at the gateway's port %d", NAMES_PORT);
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int do_uplink(struct helper *h, const struct request *q, int *ret_fd, struct error *err) {
        const int *ms = q->body;

        if (q->length != sizeof(*ms) || *ms < 0 || *ms > HELPER_UPLINK_MS)
                return malformed(err);
        const struct op op = op_timeout(*ms);
        int r = links_wait(&h->nl, RULES_UPLINK, &op);
        return r < 0 ? error_set_errno(err, r, "the uplink did not come up") : 0;
}

/* ---- the socket ---- */

static int (*const handlers[_HELPER_OP_MAX])(struct helper *h, const struct request *q, int *ret_fd,
                                             struct error *err) = {
        [HELPER_SETUP] = do_setup,   [HELPER_CARDS] = do_cards,   [HELPER_TAP] = do_tap,
        [HELPER_ATTACH] = do_attach, [HELPER_POLICY] = do_policy, [HELPER_FORGET] = do_forget,
        [HELPER_SOCKET] = do_socket, [HELPER_NAMES] = do_names,   [HELPER_UPLINK] = do_uplink,
};

/* The first bytes of an answer, and the descriptor with them. */
static ssize_t send_first(int sock, const void *data, size_t n, int fd, const struct op *op) {
        ssize_t sent = 0;

        if (fd < 0)
                return 0;
        do {
                int r = wait_fd(sock, POLLOUT, op);
                if (r < 0)
                        return r;
                sent = send_with_fd(sock, data, n, fd);
        } while (sent == -EAGAIN || sent == -EINTR);
        return sent;
}

static int answer(struct helper *h, int result, int fd, const struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(HELPER_TEXT_MAX);
        const struct op op = op_timeout(HELPER_MS);
        struct helper_answer a = {.result = result, .has_fd = fd >= 0};

        /* A text that is too long is left out; the result says what counts. */
        if (result < 0 && error_is_set(err) &&
            buf_printf(&text, "%s%s%s", error_message(err), err->hint ? ". " : "", err->hint ? err->hint : "") < 0)
                buf_clear(&text);
        a.length = (uint32_t) text.len;
        ssize_t sent = send_first(h->socket, &a, sizeof(a), fd, &op);
        if (sent < 0)
                return (int) sent;
        int r = write_full(h->socket, (const char *) &a + sent, sizeof(a) - (size_t) sent, &op);
        return r < 0 || text.len == 0 ? r : write_full(h->socket, text.data, text.len, &op);
}

static int handle(struct helper *h, const struct helper_request *header, const void *body) {
        const struct request q = {.body = body, .length = header->length, .op = op_timeout(HELPER_MS)};
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int fd = -1;
        int r = header->op < _HELPER_OP_MAX ? handlers[header->op](h, &q, &fd, &err) : malformed(&err);

        return answer(h, r, fd, &err);
}

/* 0, or -ENODATA at the end of the socket. */
static int serve_one(struct helper *h) {
        const struct op never = OP_INIT_NEVER;
        struct helper_request header;

        int r = read_full(h->socket, &header, sizeof(header), &never);
        if (r < 0)
                return r;
        if (header.length > HELPER_BODY_MAX)
                return -EMSGSIZE; /* there is no telling where the next request begins */
        const struct op op = op_timeout(HELPER_MS);
        _cleanup_free_ void *body = malloc(MAX(header.length, 1U));
        if (!body)
                return -ENOMEM;
        r = read_full(h->socket, body, header.length, &op);
        return r < 0 ? r : handle(h, &header, body);
}

/* ---- start ---- */

static int join(int fd, int type, const char *what, struct error *err) {
        if (setns(fd, type) < 0)
                return error_set_errno(err, errno, "cannot join the %s namespace at descriptor %d", what, fd);
        close_fd(fd);
        return 0;
}

static int enter(struct helper *h, struct error *err) {
        struct stat st;
        int r = 0;

        if (fstat(HELPER_FD_SOCKET, &st) < 0 || !S_ISSOCK(st.st_mode))
                return error_set(err, ERROR_INVALID_ARGUMENT, "descriptor %d is not a socket", HELPER_FD_SOCKET);
        if (fcntl(HELPER_FD_SOCKET, F_SETFD, FD_CLOEXEC) < 0)
                return error_set_errno(err, errno, "cannot use the socket");
        if (fcntl(HELPER_FD_USER_NS, F_GETFD) >= 0)
                r = join(HELPER_FD_USER_NS, CLONE_NEWUSER, "user", err);
        if (r >= 0)
                r = join(HELPER_FD_NET_NS, CLONE_NEWNET, "network", err);
        if (r < 0)
                return r;
        r = privilege_keep(CAPABILITIES);
        if (r < 0)
                return error_set_errno(err, r, "cannot drop the privileges");
        h->socket = HELPER_FD_SOCKET;
        r = netlink_open(NETLINK_ROUTE, 0, &h->nl);
        if (r >= 0)
                r = conntrack_open(&h->conntrack);
        return r < 0 ? error_set_errno(err, r, "cannot open the sockets to the kernel") : 0;
}

int helper_run(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct helper h = {.socket = -1, .conntrack = {.raw = -1}};

        int r = enter(&h, &err);
        if (r >= 0) {
                while ((r = serve_one(&h)) >= 0)
                        ;
                /* The daemon is gone, in the middle of a request perhaps. */
                if (r == -ENODATA || r == -EPIPE || r == -ECONNRESET)
                        r = 0;
                else
                        error_set_errno(&err, r, "cannot go on");
        }
        if (r < 0)
                fprintf(stderr, "%s\n", error_message(&err));
        netlink_close(&h.nl);
        conntrack_close(&h.conntrack);
        policy_sets_clear(&h.sets);
        return r < 0 ? 1 : 0;
}
