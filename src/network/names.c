/* SPDX-License-Identifier: Apache-2.0 */
#include "network/names.h"

#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "network/relay.h"

#define DNS_PORT 53
#define RESOLV_MAX (64U * 1024)
#define EVENTS_MAX 64
/* Queries that are taken in a row before answers are looked at. */
#define TURN_QUERIES 16
/* Before the guests' sockets are looked at again when they failed for want of descriptors or memory. */
#define PAUSE_MS 100

/* The header (RFC 1035, 4.1.1). */
#define HEADER_LEN 12U
#define HEADER_FLAGS 2U
#define FLAGS0_ANSWER 0x80U    /* QR */
#define FLAGS0_KEEP 0x79U      /* opcode and RD; not AA, TC */
#define FLAGS1_RECURSION 0x80U /* RA */
#define FLAGS1_KEEP 0x10U      /* CD */
#define FLAGS0_OPCODE 0x78U    /* 0: a question */
#define HEADER_QUESTIONS 4U
#define RCODE_SERVFAIL 2U
#define RCODE_REFUSED 5U
#define LABEL_MAX 63U
#define TYPE_IXFR 251U
#define TYPE_AXFR 252U
#define LENGTH_LEN 2U /* before each message over TCP */

/* Other events than the sockets of queries, whose tag is their slot and, above it, their serial number from 1. */
enum tag { TAG_UDP, TAG_TCP, TAG_STOP };
#define TAG_SLOT_BITS 16

struct server {
        union {
                struct sockaddr any;
                struct sockaddr_in in;
                struct sockaddr_in6 in6;
        } address;
        socklen_t len;
};

struct servers {
        struct server list[NAMES_SERVERS_MAX];
        size_t n;
};

/* The sum of a guest's queries. A slot with none is free. */
struct guest {
        in_addr_t address;
        unsigned n;
};

struct query {
        uint8_t *message; /* as it came, for the next server; NULL: the slot is free */
        size_t len;
        int fd;          /* to the server */
        uint64_t serial; /* of this descriptor */
        struct sockaddr_in from;
        struct guest *guest;
        size_t server; /* which one is asked */
        deadline_t deadline;
        struct query *prev, *next; /* by deadline, which is the order in which they were sent */
};

struct names {
        int udp, tcp, epoll, stop;
        pthread_t thread;
        char *resolv_conf;
        uint16_t port;     /* of the servers */
        int64_t server_ms; /* the time that each has */
        int64_t message_ms, connection_ms;

        /* Of the thread alone. */
        struct stat seen; /* of resolv.conf when it was read; all 0: it could not be */
        struct servers servers;
        struct query queries[NAMES_QUERIES_MAX];
        struct guest guests[NAMES_QUERIES_MAX];
        unsigned n_queries;
        struct query *first, *last;
        uint64_t last_serial;
        deadline_t paused; /* the guests' sockets, until then */
        bool told;         /* that they are */
        uint8_t buffer[NAMES_MESSAGE_MAX];

        pthread_mutex_t lock;           /* guards the rest */
        pthread_cond_t ended;           /* a connection */
        struct connection *connections; /* the newest first */
        unsigned n_connections;
};

/* A message over TCP with its length before it. */
struct framed {
        uint8_t length[LENGTH_LEN], message[NAMES_MESSAGE_MAX];
        size_t len; /* of the message */
};

/* One over TCP. */
struct connection {
        struct names *of;
        int fd, server; /* server: -1: none yet */
        in_addr_t guest;
        struct cancel *cancel;
        bool pushed_out;        /* of->lock guards it */
        struct servers servers; /* as they were when it came */
        struct framed query, answer;
        struct connection *next;
};

/* resolv.conf */

/* Adds an address, a number with perhaps a %scope; anything else is passed over. */
static void server_add(struct servers *s, const char *text, uint16_t port) {
        const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_DGRAM};
        struct addrinfo *found = NULL;

        if (s->n == NAMES_SERVERS_MAX || getaddrinfo(text, NULL, &hints, &found) != 0)
                return;
        struct server *server = &s->list[s->n];
        if (found->ai_addrlen <= sizeof(server->address)) {
                memcpy(&server->address, found->ai_addr, found->ai_addrlen);
                server->len = found->ai_addrlen;
                if (found->ai_family == AF_INET)
                        server->address.in.sin_port = htons(port);
                else
                        server->address.in6.sin6_port = htons(port);
                s->n++;
        }
        freeaddrinfo(found);
}

static void servers_parse(struct servers *s, char *text, uint16_t port) {
        char *rest = NULL;

        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
                char *words = NULL, *word = strtok_r(line, " \t\r", &words);

                if (!word || strcmp(word, "nameserver") != 0)
                        continue;
                word = strtok_r(NULL, " \t\r", &words);
                if (word)
                        server_add(s, word, port);
        }
}

static bool same_file(const struct stat *a, const struct stat *b) {
        return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
               a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* Reads resolv.conf if it is not what was read last. */
static void servers_update(struct names *n) {
        struct stat st;

        if (stat(n->resolv_conf, &st) < 0)
                st = (struct stat){0};
        else if (same_file(&st, &n->seen))
                return;
        n->seen = st;
        n->servers.n = 0;

        _cleanup_free_ char *text = NULL;
        if (st.st_ino == 0 || file_read_all(n->resolv_conf, RESOLV_MAX, &text, NULL) < 0) {
                n->seen = (struct stat){0};
                return;
        }
        servers_parse(&n->servers, text, n->port);
}

/* Messages */

static uint16_t read_u16(const uint8_t *at) {
        return (uint16_t) (at[0] << 8 | at[1]);
}

/* Whether it is a query of any kind: others are not even answered. */
static bool is_query(const uint8_t *message, size_t len) {
        return len >= HEADER_LEN && !(message[HEADER_FLAGS] & FLAGS0_ANSWER);
}

/* The type that the first question asks for, or -1 when there is no telling. Nothing comes before its name that a
 * compressed one could point to. */
static int question_type(const uint8_t *message, size_t len) {
        size_t at = HEADER_LEN;

        while (at < len && message[at] != 0) {
                if (message[at] > LABEL_MAX)
                        return -1;
                at += 1U + message[at];
        }
        at++;
        return at + 4 <= len ? read_u16(message + at) : -1; /* a type and a class */
}

/* Whether the servers may be asked this query in the host's name. */
static bool is_allowed(const uint8_t *message, size_t len) {
        const int type = question_type(message, len);

        return !(message[HEADER_FLAGS] & FLAGS0_OPCODE) && read_u16(message + HEADER_QUESTIONS) == 1 && type >= 0 &&
               type != TYPE_AXFR && type != TYPE_IXFR;
}

static bool is_answer_to(const uint8_t *answer, size_t len, const uint8_t *query) {
        return len >= HEADER_LEN && memcmp(answer, query, HEADER_FLAGS) == 0 && answer[HEADER_FLAGS] & FLAGS0_ANSWER;
}

/* Makes a query the answer that says why there is no other: with its question in it, without which resolvers do not
 * take it for theirs. */
static void make_failure(uint8_t *message, uint8_t rcode) {
        uint8_t *flags = message + HEADER_FLAGS;

        flags[0] = (uint8_t) ((flags[0] & FLAGS0_KEEP) | FLAGS0_ANSWER);
        flags[1] = (uint8_t) ((flags[1] & FLAGS1_KEEP) | FLAGS1_RECURSION | rcode);
}

/* Queries over UDP */

static void listen_for(struct names *n, int fd, enum tag tag, uint32_t events) {
        struct epoll_event event = {.events = events, .data.u64 = tag};

        (void) epoll_ctl(n->epoll, EPOLL_CTL_MOD, fd, &event);
}

/* Lets the guests wait for a moment, because nothing can be done for them now. */
static void pause_guests(struct names *n, int err) {
        if (!n->told)
                log_warn("name queries of guests must wait", "error", strerror(err));
        n->told = true;
        n->paused = deadline_in_ms(PAUSE_MS);
        listen_for(n, n->udp, TAG_UDP, 0);
        listen_for(n, n->tcp, TAG_TCP, 0);
}

static void resume_guests(struct names *n) {
        n->paused = DEADLINE_NEVER;
        listen_for(n, n->udp, TAG_UDP, EPOLLIN);
        listen_for(n, n->tcp, TAG_TCP, EPOLLIN);
}

static struct guest *guest_find(struct names *n, in_addr_t address) {
        for (size_t i = 0; i < ARRAY_SIZE(n->guests); i++)
                if (n->guests[i].n > 0 && n->guests[i].address == address)
                        return &n->guests[i];
        return NULL;
}

/* There is a free one whenever there is room for a query. */
static struct guest *guest_get(struct names *n, in_addr_t address) {
        struct guest *g = guest_find(n, address);

        for (size_t i = 0; !g && i < ARRAY_SIZE(n->guests); i++)
                if (n->guests[i].n == 0) {
                        g = &n->guests[i];
                        g->address = address;
                }
        return g;
}

static struct guest *guest_with_most(struct names *n) {
        struct guest *most = &n->guests[0];

        for (size_t i = 1; i < ARRAY_SIZE(n->guests); i++)
                if (n->guests[i].n > most->n)
                        most = &n->guests[i];
        return most;
}

/* Gives up waiting for the server that was asked. */
static void query_close(struct names *n, struct query *q) {
        if (q->prev)
                q->prev->next = q->next;
        else
                n->first = q->next;
        if (q->next)
                q->next->prev = q->prev;
        else
                n->last = q->prev;
        /* Not by close() alone: a child that is just being started may have it for a moment. */
        (void) epoll_ctl(n->epoll, EPOLL_CTL_DEL, q->fd, NULL);
        q->fd = close_fd(q->fd);
}

/* Frees the slot of a query for which no server is asked. */
static void query_free(struct names *n, struct query *q) {
        free(TAKE_PTR(q->message));
        q->guest->n--;
        n->n_queries--;
}

static void query_end(struct names *n, struct query *q) {
        query_close(n, q);
        query_free(n, q);
}

static void drop_oldest(struct names *n, const struct guest *g) {
        struct query *q = n->first;

        while (q && q->guest != g)
                q = q->next;
        if (q)
                query_end(n, q);
}

/* A guest's socket without room for an answer has lost it, as any network may. */
static void reply(const struct names *n, const struct sockaddr_in *to, const uint8_t *message, size_t len) {
        (void) sendto(n->udp, message, len, MSG_DONTWAIT | MSG_NOSIGNAL, (const struct sockaddr *) to, sizeof(*to));
}

/* A socket from which the query was sent to a server, or a negative errno. */
static int send_query(const struct query *q, const struct server *server) {
        _cleanup_close_ int fd = socket(server->address.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        if (fd < 0 || connect(fd, &server->address.any, server->len) < 0 ||
            send(fd, q->message, q->len, MSG_NOSIGNAL) < 0)
                return -errno;
        return TAKE_FD(fd);
}

/* Sends the query to the first server, from its number on, that takes it. With none of them left it ends. */
static void query_send(struct names *n, struct query *q) {
        for (; q->server < n->servers.n; q->server++) {
                _cleanup_close_ int fd = send_query(q, &n->servers.list[q->server]);
                const uint64_t slot = (uint64_t) (q - n->queries);
                struct epoll_event event = {.events = EPOLLIN,
                                            .data.u64 = (n->last_serial + 1) << TAG_SLOT_BITS | slot};

                if (fd < 0 || epoll_ctl(n->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
                        continue;
                q->fd = TAKE_FD(fd);
                q->serial = ++n->last_serial;
                q->deadline = deadline_in_ms(n->server_ms);
                q->prev = n->last;
                q->next = NULL;
                if (n->last)
                        n->last->next = q;
                else
                        n->first = q;
                n->last = q;
                return;
        }
        make_failure(q->message, RCODE_SERVFAIL);
        reply(n, &q->from, q->message, q->len);
        query_free(n, q);
}

/* The server that was asked does not answer. */
static void query_next(struct names *n, struct query *q) {
        query_close(n, q);
        q->server++;
        query_send(n, q);
}

static void query_begin(struct names *n, const struct sockaddr_in *from, size_t len) {
        if (!is_query(n->buffer, len) || from->sin_family != AF_INET)
                return;
        if (!is_allowed(n->buffer, len)) {
                make_failure(n->buffer, RCODE_REFUSED);
                reply(n, from, n->buffer, len);
                return;
        }
        const struct guest *same = guest_find(n, from->sin_addr.s_addr);
        if (same && same->n >= NAMES_QUERIES_EACH_MAX)
                drop_oldest(n, same);
        else if (n->n_queries >= NAMES_QUERIES_MAX)
                drop_oldest(n, guest_with_most(n));

        uint8_t *message = malloc(len);
        if (!message)
                return;
        memcpy(message, n->buffer, len);
        struct query *q = n->queries;
        while (q->message)
                q++;
        *q = (struct query){.message = message, .len = len, .fd = -1, .from = *from};
        q->guest = guest_get(n, from->sin_addr.s_addr);
        q->guest->n++;
        n->n_queries++;
        servers_update(n);
        query_send(n, q);
}

static void take_queries(struct names *n) {
        for (int i = 0; i < TURN_QUERIES; i++) {
                struct sockaddr_in from = {0};
                socklen_t from_len = sizeof(from);
                ssize_t len = recvfrom(n->udp, n->buffer, sizeof(n->buffer), MSG_DONTWAIT, (struct sockaddr *) &from,
                                       &from_len);

                if (len < 0) {
                        if (errno != EAGAIN && errno != EINTR)
                                pause_guests(n, errno);
                        return;
                }
                n->told = false;
                query_begin(n, &from, (size_t) len);
        }
}

static void take_answer(struct names *n, uint64_t tag) {
        struct query *q = &n->queries[tag & ((1U << TAG_SLOT_BITS) - 1)];

        /* It may have ended earlier in this round of events. */
        if (!q->message || q->serial != tag >> TAG_SLOT_BITS)
                return;
        ssize_t len = recv(q->fd, n->buffer, sizeof(n->buffer), MSG_DONTWAIT);
        if (len < 0) {
                if (errno == EAGAIN || errno == EINTR)
                        return;
                query_next(n, q);
                return;
        }
        if (!is_answer_to(n->buffer, (size_t) len, q->message))
                return;
        reply(n, &q->from, n->buffer, (size_t) len);
        query_end(n, q);
}

/* Connections over TCP */

static int connect_to(const struct server *server, const struct op *op) {
        _cleanup_close_ int fd = socket(server->address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        int err = 0;
        socklen_t len = sizeof(err);

        if (fd < 0)
                return -errno;
        if (connect(fd, &server->address.any, server->len) == 0)
                return TAKE_FD(fd);
        if (errno != EINPROGRESS)
                return -errno;
        int r = wait_fd(fd, POLLOUT, op);
        if (r < 0)
                return r;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
                return -errno;
        return err != 0 ? -err : TAKE_FD(fd);
}

static int read_framed(int fd, struct framed *f, const struct op *op) {
        int r = read_full(fd, f->length, sizeof(f->length), op);

        if (r < 0)
                return r;
        f->len = read_u16(f->length);
        r = read_full(fd, f->message, f->len, op);
        return r == -ENODATA ? -ECONNRESET : r; /* that was not the end, but half a message */
}

static int write_framed(int fd, const struct framed *f, const struct op *op) {
        _Static_assert(offsetof(struct framed, message) == LENGTH_LEN, "both are written at once");

        return write_full(fd, f->length, sizeof(f->length) + f->len, op);
}

/* Asks the server that there is a connection to. */
static bool exchange(struct connection *c, const struct op *op) {
        if (write_framed(c->server, &c->query, op) >= 0 && read_framed(c->server, &c->answer, op) >= 0 &&
            is_answer_to(c->answer.message, c->answer.len, c->query.message))
                return true;
        c->server = close_fd(c->server);
        return false;
}

/* A server may have closed a connection that was used before: then it is asked once more. */
static bool ask_servers(struct connection *c, const struct op *op) {
        if (c->server >= 0 && exchange(c, op))
                return true;
        for (size_t i = 0; i < c->servers.n && op_check(op) >= 0; i++) {
                const struct op limited = op_sub(op, c->of->server_ms);

                c->server = connect_to(&c->servers.list[i], &limited);
                if (c->server >= 0 && exchange(c, op))
                        return true;
        }
        return false;
}

/* Answers the query that was read. */
static int answer_query(struct connection *c, const struct op *op) {
        const struct op asking = op_sub(op, c->of->message_ms);
        const bool allowed = is_allowed(c->query.message, c->query.len), answered = allowed && ask_servers(c, &asking);
        const struct op answering = op_sub(op, c->of->message_ms);

        if (answered)
                return write_framed(c->fd, &c->answer, &answering);
        make_failure(c->query.message, allowed ? RCODE_SERVFAIL : RCODE_REFUSED);
        return write_framed(c->fd, &c->query, &answering);
}

/* 0: the guest has ended it. */
static int serve(struct connection *c) {
        const struct op all = op_timeout(c->of->connection_ms);
        const struct op op = {.deadline = all.deadline, .cancel = c->cancel};

        for (;;) {
                const struct op limited = op_sub(&op, c->of->message_ms);
                int r = read_framed(c->fd, &c->query, &limited);

                if (r < 0)
                        return r == -ENODATA ? 0 : r;
                if (!is_query(c->query.message, c->query.len))
                        return -EBADMSG;
                r = answer_query(c, &op);
                if (r < 0)
                        return r;
        }
}

static void connection_free(struct connection *c) {
        close_fd(c->server);
        cancel_unref(c->cancel);
        free(c);
}

static void connection_ended(struct connection *c) {
        struct names *n = c->of;
        LOCK(&n->lock);
        struct connection **at = &n->connections;

        while (*at != c)
                at = &(*at)->next;
        *at = c->next;
        n->n_connections--;
        connection_free(c);
        pthread_cond_broadcast(&n->ended);
}

static void *connection_main(void *arg) {
        struct connection *c = arg;

        if (serve(c) >= 0)
                close_fd(c->fd);
        else
                relay_reset(c->fd);
        connection_ended(c);
        return NULL;
}

/* Lock held. */
static unsigned connections_of(const struct names *n, in_addr_t guest) {
        unsigned same = 0;

        for (const struct connection *c = n->connections; c; c = c->next)
                same += !c->pushed_out && c->guest == guest;
        return same;
}

/* Lock held. Its thread ends soon, and it does not count from now on. */
static void push_out_connection(struct names *n) {
        struct connection *victim = NULL;
        unsigned most = 0;

        for (struct connection *c = n->connections; c; c = c->next) {
                const unsigned same = c->pushed_out ? 0 : connections_of(n, c->guest);

                if (same > 0 && same >= most) {
                        most = same;
                        victim = c; /* the last one is the oldest */
                }
        }
        if (victim) {
                victim->pushed_out = true;
                cancel_fire(victim->cancel);
        }
}

/* Lock held. Makes room for one more of the guest's. */
static bool connection_allowed(struct names *n, in_addr_t guest) {
        unsigned all = 0;

        for (const struct connection *c = n->connections; c; c = c->next)
                all += !c->pushed_out;
        /* Those that are ending still have their threads. */
        if (connections_of(n, guest) >= NAMES_CONNECTIONS_EACH_MAX || n->n_connections >= 2 * NAMES_CONNECTIONS_MAX)
                return false;
        if (all >= NAMES_CONNECTIONS_MAX)
                push_out_connection(n);
        return true;
}

/* Starts the thread of an accepted connection. */
static bool connection_start(struct names *n, int fd, in_addr_t guest) {
        LOCK(&n->lock);
        struct connection *c = connection_allowed(n, guest) ? calloc(1, sizeof(*c)) : NULL;

        if (!c)
                return false;
        c->of = n;
        c->fd = fd;
        c->server = -1;
        c->guest = guest;
        c->cancel = cancel_new();
        c->servers = n->servers;
        c->next = n->connections;
        if (!c->cancel || thread_start_detached("names-tcp", connection_main, c) < 0) {
                connection_free(c);
                return false;
        }
        n->connections = c;
        n->n_connections++;
        return true;
}

static void take_connection(struct names *n) {
        struct sockaddr_in from = {0};
        socklen_t len = sizeof(from);
        int fd = accept4(n->tcp, (struct sockaddr *) &from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0) {
                if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
                        pause_guests(n, errno);
                return;
        }
        n->told = false;
        servers_update(n);
        if (!connection_start(n, fd, from.sin_addr.s_addr))
                relay_reset(fd);
}

/* The thread */

/* False: to be stopped. */
static bool handle(struct names *n, uint64_t tag) {
        switch (tag) {
        case TAG_STOP:
                return false;
        case TAG_UDP:
                take_queries(n);
                return true;
        case TAG_TCP:
                take_connection(n);
                return true;
        default:
                take_answer(n, tag);
                return true;
        }
}

static void *names_main(void *arg) {
        struct names *n = arg;
        struct epoll_event events[EVENTS_MAX];

        for (;;) {
                const deadline_t next = deadline_min(n->paused, n->first ? n->first->deadline : DEADLINE_NEVER);
                int count = epoll_wait(n->epoll, events, EVENTS_MAX, deadline_poll_ms(next));

                for (int i = 0; i < count; i++)
                        if (!handle(n, events[i].data.u64))
                                return NULL;
                while (n->first && deadline_passed(n->first->deadline))
                        query_next(n, n->first);
                if (deadline_passed(n->paused))
                        resume_guests(n);
        }
}

static void names_free(struct names *n) {
        while (n->first)
                query_end(n, n->first);
        close_fd(n->epoll);
        close_fd(n->stop);
        pthread_cond_destroy(&n->ended);
        pthread_mutex_destroy(&n->lock);
        free(n->resolv_conf);
        free(n);
}

static int wait_for(const struct names *n, int fd, enum tag tag) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = tag};

        return epoll_ctl(n->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int prepare(struct names *n, const struct names_config *cfg) {
        n->resolv_conf = strdup(cfg->resolv_conf);
        n->epoll = epoll_create1(EPOLL_CLOEXEC);
        n->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (!n->resolv_conf || n->epoll < 0 || n->stop < 0)
                return errno > 0 ? -errno : -ENOMEM;

        int r = wait_for(n, n->stop, TAG_STOP);
        if (r == 0)
                r = wait_for(n, n->udp, TAG_UDP);
        if (r == 0)
                r = wait_for(n, n->tcp, TAG_TCP);
        /* poll() may promise a connection that is gone when accept() comes. */
        return r == 0 ? fd_set_nonblock(n->tcp, true) : r;
}

int names_start(const struct names_config *cfg, struct names **ret) {
        struct names *n = calloc(1, sizeof(*n));
        if (!n)
                return -ENOMEM;

        n->udp = cfg->udp_fd;
        n->tcp = cfg->tcp_fd;
        n->port = cfg->server_port != 0 ? cfg->server_port : DNS_PORT;
        n->server_ms = cfg->server_ms > 0 ? cfg->server_ms : NAMES_SERVER_MS;
        n->message_ms = cfg->message_ms > 0 ? cfg->message_ms : NAMES_MESSAGE_MS;
        n->connection_ms = cfg->connection_ms > 0 ? cfg->connection_ms : NAMES_CONNECTION_MS;
        n->paused = DEADLINE_NEVER;
        pthread_mutex_init(&n->lock, NULL);
        cond_init(&n->ended);
        int r = prepare(n, cfg);
        if (r == 0)
                r = thread_start(&n->thread, "names", names_main, n);
        if (r < 0) {
                names_free(n);
                return r;
        }
        *ret = n;
        return 0;
}

void names_stop(struct names *n) {
        if (!n)
                return;
        /* It cannot fail: the counter is 0 and written this once. */
        (void) eventfd_write(n->stop, 1);
        pthread_join(n->thread, NULL);
        {
                LOCK(&n->lock);
                for (struct connection *c = n->connections; c; c = c->next)
                        cancel_fire(c->cancel);
                while (n->n_connections > 0)
                        pthread_cond_wait(&n->ended, &n->lock);
        }
        close_fd(n->udp);
        close_fd(n->tcp);
        names_free(n);
}
