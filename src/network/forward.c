/* SPDX-License-Identifier: Apache-2.0 */
#include "network/forward.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/thread.h"
#include "network/relay.h"

/* How many ports the kernel is asked for until one is not below FORWARD_HOST_PORT_MIN. */
#define PORT_TRIES 16
#define EVENTS_MAX 64
/* Connections that are accepted of one forward in a row. */
#define TURN_ACCEPTS 16
/* Before accept() is tried again when there are no descriptors or no memory: connections wait in the backlog. */
#define ACCEPT_PAUSE_MS 100
/* Stands for the stop descriptor among the events; forwards are numbered from 1. */
#define STOP_SERIAL 0u

/* The connections that end together. Guarded by forwards.lock, but for the token. */
struct round {
        struct cancel *token;
        unsigned open, refs; /* a reference: the forward, each connection, who cuts */
        struct round *next_cut;
};

/* Guarded by forwards.lock. */
struct forward {
        struct forward_info info;
        uint64_t serial; /* names it among the events, where a pointer might be stale */
        int fd;
        struct round *round; /* NULL until there is a connection */
        struct forward *next;
};

struct forwards {
        struct forwards_config cfg;
        int epoll, stop;
        pthread_t thread;

        pthread_mutex_t lock; /* guards the rest */
        pthread_cond_t ended; /* a connection */
        struct forward *list; /* by host port */
        unsigned n, open;
        uint64_t last_serial;
};

/* What a connection's thread is given. */
struct connection {
        struct forwards *of;
        struct forward *forward; /* stays as long as it has connections */
        struct round *round;
        int fd;
        char id[UUID_LEN + 1];
        uint16_t guest_port;
};

static void round_unref(struct round *r) {
        if (!r || --r->refs > 0)
                return;
        cancel_unref(r->token);
        free(r);
}

/* The round that a new connection belongs to; NULL: no descriptor or no memory for it. */
static struct round *round_get(struct forward *w) {
        if (!w->round) {
                struct round *r = calloc(1, sizeof(*r));
                if (!r)
                        return NULL;
                r->token = cancel_new();
                if (!r->token) {
                        free(r);
                        return NULL;
                }
                r->refs = 1;
                w->round = r;
        }
        return w->round;
}

/* The forward lets go of its connections: they are put on the list of those to be cut. Lock held. */
static void round_detach(struct forward *w, struct round **cut) {
        struct round *r = TAKE_PTR(w->round);

        if (r) {
                r->next_cut = *cut;
                *cut = r;
        }
}

/* Ends the connections of these rounds and waits until they are gone. No lock held. */
static void rounds_end(struct forwards *f, struct round *cut) {
        for (struct round *r = cut; r; r = r->next_cut)
                cancel_fire(r->token);

        LOCK(&f->lock);
        while (cut) {
                struct round *r = cut;

                while (r->open > 0)
                        pthread_cond_wait(&f->ended, &f->lock);
                cut = r->next_cut;
                round_unref(r);
        }
}

static void forward_free(struct forward *w) {
        close_fd(w->fd);
        free(w);
}

static void connection_ended(struct connection *c) {
        struct forwards *f = c->of;
        LOCK(&f->lock);

        c->forward->info.open--;
        c->round->open--;
        round_unref(c->round);
        f->open--;
        pthread_cond_broadcast(&f->ended);
}

static void *connection_main(void *arg) {
        struct connection *c = arg;
        const struct op op = {.deadline = DEADLINE_NEVER, .cancel = c->round->token};

        c->of->cfg.serve(c->of->cfg.arg, c->id, c->guest_port, c->fd, &op);
        connection_ended(c);
        free(c);
        return NULL;
}

/* Connections of a workspace. Lock held. */
static unsigned count_open(const struct forwards *f, const char *id) {
        unsigned n = 0;

        for (const struct forward *w = f->list; w; w = w->next)
                if (str_eq(w->info.id, id))
                        n += w->info.open;
        return n;
}

/* Starts the thread of an accepted connection. Lock held, so that the thread cannot end before it is counted. */
static bool connection_start(struct forwards *f, struct forward *w, int fd) {
        if (f->open >= FORWARD_CONNECTIONS_MAX || count_open(f, w->info.id) >= FORWARD_CONNECTIONS_EACH_MAX)
                return false;
        struct round *r = round_get(w);
        struct connection *c = r ? malloc(sizeof(*c)) : NULL;
        if (!c)
                return false;
        *c = (struct connection){.of = f, .forward = w, .round = r, .fd = fd, .guest_port = w->info.guest_port};
        memcpy(c->id, w->info.id, sizeof(c->id));
        if (thread_start_detached("forward", connection_main, c) < 0) {
                free(c);
                return false;
        }
        r->open++;
        r->refs++;
        w->info.open++;
        f->open++;
        return true;
}

/* Accepts one connection of the forward with this number, if it is still there. 1: there may be more, 0: there is none,
 * or a negative errno when accepting should pause. */
static int accept_one(struct forwards *f, uint64_t serial) {
        LOCK(&f->lock);
        struct forward *w = f->list;

        while (w && w->serial != serial)
                w = w->next;
        if (!w)
                return 0;
        int fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
                return errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS ? -errno : 0;
        if (connection_start(f, w, fd)) {
                w->info.total++;
        } else {
                w->info.refused++;
                relay_reset(fd);
        }
        return 1;
}

/* Some connections of one forward; then it is the turn of others. 0, or a negative errno. */
static int accept_some(struct forwards *f, uint64_t serial) {
        int r = 1;

        for (int i = 0; i < TURN_ACCEPTS && r > 0; i++)
                r = accept_one(f, serial);
        return MIN(r, 0);
}

static void *accept_main(void *arg) {
        struct forwards *f = arg;
        struct epoll_event events[EVENTS_MAX];
        bool told = false;

        for (;;) {
                int n = epoll_wait(f->epoll, events, EVENTS_MAX, -1), pause = 0;

                for (int i = 0; i < n && pause == 0; i++) {
                        if (events[i].data.u64 == STOP_SERIAL)
                                return NULL;
                        pause = accept_some(f, events[i].data.u64);
                }
                if (pause < 0) {
                        const struct op op = op_timeout(ACCEPT_PAUSE_MS);
                        if (!told)
                                log_warn("connections to forwarded ports must wait", "error", strerror(-pause));
                        (void) wait_fd(f->stop, POLLIN, &op);
                }
                told = pause < 0; /* once for as long as it lasts */
        }
}

int forwards_new(const struct forwards_config *cfg, struct forwards **ret, struct error *err) {
        struct forwards *f = calloc(1, sizeof(*f));
        if (!f)
                return error_set_errno(err, ENOMEM, "Cannot forward ports");

        f->cfg = *cfg;
        pthread_mutex_init(&f->lock, NULL);
        cond_init(&f->ended);
        f->epoll = epoll_create1(EPOLL_CLOEXEC);
        f->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = STOP_SERIAL};
        int r = f->epoll < 0 || f->stop < 0 || epoll_ctl(f->epoll, EPOLL_CTL_ADD, f->stop, &event) < 0 ? -errno : 0;
        if (r == 0)
                r = thread_start(&f->thread, "forwards", accept_main, f);
        if (r == 0) {
                *ret = f;
                return 0;
        }
        close_fd(f->epoll);
        close_fd(f->stop);
        pthread_cond_destroy(&f->ended);
        pthread_mutex_destroy(&f->lock);
        free(f);
        return error_set_errno(err, r, "Cannot forward ports");
}

void forwards_free(struct forwards *f) {
        if (!f)
                return;
        /* It cannot fail: the counter is 0 and written this once. */
        (void) eventfd_write(f->stop, 1);
        pthread_join(f->thread, NULL);

        struct round *cut = NULL;
        for (struct forward *w = f->list; w; w = w->next)
                round_detach(w, &cut);
        rounds_end(f, cut);
        while (f->list) {
                struct forward *w = f->list;
                f->list = w->next;
                forward_free(w);
        }
        close_fd(f->epoll);
        close_fd(f->stop);
        pthread_cond_destroy(&f->ended);
        pthread_mutex_destroy(&f->lock);
        free(f);
}

static void address_text(uint32_t address, char ret[INET_ADDRSTRLEN]) {
        const struct in_addr in = {.s_addr = htonl(address)};

        inet_ntop(AF_INET, &in, ret, INET_ADDRSTRLEN);
}

/* Says why a port cannot be had. */
static int refused(uint32_t address, uint16_t port, int e, struct error *err) {
        char text[INET_ADDRSTRLEN];
        int r;

        address_text(address, text);
        switch (e) {
        case EADDRINUSE:
                if (port == 0)
                        return error_set(err, ERROR_CONFLICT, "The host has no free port left on %s", text);
                r = error_set(err, ERROR_CONFLICT, "Host port %u on %s is in use by another program", port, text);
                error_hint(err, "Choose another host_port, or leave it out to have a free one assigned; on the host, "
                                "`ss -ltnp` shows which program has it.");
                return r;
        case EADDRNOTAVAIL:
                r = error_set(err, ERROR_UNSUPPORTED, "Cannot forward ports of %s: it is no address of this host",
                              text);
                error_hint(err, "Configure an address that the host has as the one where forwarded ports listen; "
                                "127.0.0.1 is always there.");
                return r;
        case EACCES:
        case EPERM:
                r = error_set(err, ERROR_UNSUPPORTED, "The host does not permit the daemon to listen on port %u of %s",
                              port, text);
                error_hint(err, "Choose a higher host_port, or leave it out to have one assigned.");
                return r;
        default:
                return error_set_errno(err, e, "Cannot listen on port %u of %s", port, text);
        }
}

/* A bound socket; *port is filled in where it was 0. */
static int bind_port(uint32_t address, uint16_t *port, int *ret) {
        _cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(*port), .sin_addr.s_addr = htonl(address)};
        socklen_t len = sizeof(in);
        const int on = 1;

        if (fd < 0)
                return -errno;
        /* For what is left of connections of the port's last owner. A port that the kernel chooses should have no such
         * rests; it gets the option afterwards, because connections inherit it, and the next owner needs that. */
        if (*port != 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
                return -errno;
        if (bind(fd, (const struct sockaddr *) &in, sizeof(in)) < 0 ||
            getsockname(fd, (struct sockaddr *) &in, &len) < 0)
                return -errno;
        if (*port == 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
                return -errno;
        *port = ntohs(in.sin_port);
        *ret = TAKE_FD(fd);
        return 0;
}

/* Binds a port of at least FORWARD_HOST_PORT_MIN. A host may be set up to assign lower ones: those stay bound until
 * there is a better one, so that they are not assigned again. */
static int bind_assigned(uint32_t address, uint16_t *ret_port, int *ret_fd) {
        int low[PORT_TRIES], n = 0, r, fd = -1;
        uint16_t port;

        do {
                port = 0;
                r = bind_port(address, &port, &fd);
                if (r == 0 && port < FORWARD_HOST_PORT_MIN)
                        low[n++] = TAKE_FD(fd);
        } while (r == 0 && fd < 0 && n < PORT_TRIES);
        for (int i = 0; i < n; i++)
                close_fd(low[i]);
        if (r < 0)
                return r;
        if (fd < 0)
                return -EADDRINUSE;
        *ret_port = port;
        *ret_fd = fd;
        return 0;
}

/* A listening socket. */
static int listen_on(uint32_t address, uint16_t *port, int *ret, struct error *err) {
        _cleanup_close_ int fd = -1;
        int r = *port == 0 ? bind_assigned(address, port, &fd) : bind_port(address, port, &fd);

        if (r == 0) {
                relay_keepalive(fd); /* connections inherit it */
                r = listen(fd, FORWARD_BACKLOG) < 0 ? -errno : 0;
        }
        if (r < 0)
                return refused(address, *port, -r, err);
        *ret = TAKE_FD(fd);
        return 0;
}

/* What must hold before a forward is made. Lock held. */
static int may_add(const struct forwards *f, uint16_t host_port, struct error *err) {
        int r;

        for (const struct forward *w = f->list; w && host_port != 0; w = w->next)
                if (w->info.host_port == host_port) {
                        r = error_set(err, ERROR_CONFLICT, "Host port %u leads to port %u of workspace %s already",
                                      host_port, w->info.guest_port, w->info.id);
                        error_hint(err, "Choose another host_port, leave it out to have a free one assigned, or remove "
                                        "that forward first.");
                        return r;
                }
        if (f->n >= FORWARDS_MAX) {
                r = error_set(err, ERROR_QUOTA_EXCEEDED, "There are %u port forwards, the most that there may be",
                              FORWARDS_MAX);
                error_hint(err, "Remove port forwards that are not needed any more.");
                return r;
        }
        return 0;
}

int forwards_add(struct forwards *f, const char *id, uint16_t guest_port, uint16_t host_port, uint16_t *ret_host_port,
                 struct error *err) {
        if (strlen(id) > UUID_LEN || guest_port == 0)
                return error_set(err, ERROR_INVALID_ARGUMENT, "No port forward to port %u of '%s'", guest_port, id);
        if (host_port != 0 && host_port < FORWARD_HOST_PORT_MIN)
                return error_set(err, ERROR_INVALID_ARGUMENT,
                                 "Host port %u is below %u: those are kept for the host's own services", host_port,
                                 FORWARD_HOST_PORT_MIN);

        _cleanup_free_ struct forward *w = calloc(1, sizeof(*w));
        if (!w)
                return error_set_errno(err, ENOMEM, "Cannot forward a port");
        LOCK(&f->lock);
        int r = may_add(f, host_port, err);
        if (r < 0)
                return r;
        _cleanup_close_ int fd = -1;
        r = listen_on(f->cfg.bind, &host_port, &fd, err);
        if (r < 0)
                return r;
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = f->last_serial + 1};
        if (epoll_ctl(f->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
                return error_set_errno(err, errno, "Cannot wait for connections to port %u", host_port);

        *w = (struct forward){.info = {.guest_port = guest_port, .host_port = host_port},
                              .serial = ++f->last_serial,
                              .fd = TAKE_FD(fd)};
        snprintf(w->info.id, sizeof(w->info.id), "%s", id);
        struct forward **at = &f->list;
        while (*at && (*at)->info.host_port < host_port)
                at = &(*at)->next;
        w->next = *at;
        *at = TAKE_PTR(w);
        f->n++;
        *ret_host_port = host_port;
        return 0;
}

int forwards_remove(struct forwards *f, uint16_t host_port) {
        struct round *cut = NULL;
        struct forward *w;
        {
                LOCK(&f->lock);
                struct forward **at = &f->list;

                while (*at && (*at)->info.host_port != host_port)
                        at = &(*at)->next;
                w = *at;
                if (!w)
                        return -ENOENT;
                *at = w->next;
                f->n--;
                /* Resets the connections that nobody accepted. Not by close() alone: a child that is just being started
                 * may have the descriptor for a moment, and the port would still be taken. */
                (void) epoll_ctl(f->epoll, EPOLL_CTL_DEL, w->fd, NULL);
                (void) shutdown(w->fd, SHUT_RDWR);
                w->fd = close_fd(w->fd);
                round_detach(w, &cut);
        }
        rounds_end(f, cut);
        {
                /* Those that somebody else is cutting. */
                LOCK(&f->lock);
                while (w->info.open > 0)
                        pthread_cond_wait(&f->ended, &f->lock);
        }
        forward_free(w);
        return 0;
}

void forwards_cut(struct forwards *f, const char *id) {
        struct round *cut = NULL;
        {
                LOCK(&f->lock);
                for (struct forward *w = f->list; w; w = w->next)
                        if (str_eq(w->info.id, id))
                                round_detach(w, &cut);
        }
        rounds_end(f, cut);
}

int forwards_list(struct forwards *f, const char *id, struct forward_info **ret, size_t *ret_n) {
        LOCK(&f->lock);
        struct forward_info *list = calloc(MAX(f->n, 1U), sizeof(*list));
        size_t n = 0;

        if (!list)
                return -ENOMEM;
        for (const struct forward *w = f->list; w; w = w->next)
                if (!id || str_eq(w->info.id, id))
                        list[n++] = w->info;
        *ret = list;
        *ret_n = n;
        return 0;
}
