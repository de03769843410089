/* SPDX-License-Identifier: Apache-2.0 */
#include "mcp/conn.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/io.h"
#include "base/thread.h"
#include "mcp/server.h"

#define READ_CHUNK (64u * 1024u)
/* A read buffer that grew beyond this is given back once it is empty. */
#define READ_KEEP (1024u * 1024u)

struct out_message {
        struct out_message *next;
        enum conn_kind kind;
        size_t len, sent;
        char *data;
};

struct conn {
        atomic_uint refs;
        int fd;
        struct cancel *stop; /* ends the reader and the writer */
        pthread_t writer;

        pthread_mutex_t lock; /* guards everything below */
        pthread_cond_t changed;
        struct out_message *head, **tail;
        size_t queued;  /* bytes not yet sent */
        bool writing;   /* the writer is sending the head without the lock */
        bool finishing; /* the writer leaves when the queue is empty */
        bool broken;    /* nothing can be sent any more */
};

static void message_free(struct out_message *m) {
        if (!m)
                return;
        free(m->data);
        free(m);
}

/* Called with the lock held. */
static void queue_clear(struct conn *c) {
        while (c->head) {
                struct out_message *m = c->head;

                c->head = m->next;
                message_free(m);
        }
        c->tail = &c->head;
        c->queued = 0;
}

/* Drops progress that has not begun to go out. Called with the lock held. */
static void queue_drop_progress(struct conn *c) {
        struct out_message **p = &c->head;

        /* The head may be in the hands of the writer. */
        if (*p && (c->writing || (*p)->sent > 0))
                p = &(*p)->next;
        while (*p) {
                struct out_message *m = *p;

                if (m->kind != CONN_PROGRESS) {
                        p = &m->next;
                        continue;
                }
                *p = m->next;
                c->queued -= m->len;
                message_free(m);
        }
        c->tail = p;
}

/* Takes the finished head off. Called with the lock held. */
static void queue_pop(struct conn *c) {
        struct out_message *m = c->head;

        c->head = m->next;
        if (!c->head)
                c->tail = &c->head;
        message_free(m);
}

/* One non-blocking send: bytes taken, 0 when the socket is full, or a negative errno. */
static ssize_t send_some(int fd, const char *data, size_t n) {
        for (;;) {
                ssize_t r = send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
                if (r >= 0)
                        return r;
                if (errno == EINTR)
                        continue;
                return errno == EAGAIN ? 0 : -errno;
        }
}

/* Nothing more can be sent; the reader is told too. Called with the lock held. */
static void mark_broken(struct conn *c) {
        c->broken = true;
        (void) shutdown(c->fd, SHUT_RDWR);
        pthread_cond_broadcast(&c->changed);
}

/* Sends the head to its end. Called with the lock held, which is given up while waiting. */
static int write_head(struct conn *c) {
        struct out_message *m = c->head;
        int r = 0;

        c->writing = true;
        pthread_mutex_unlock(&c->lock);
        while (m->sent < m->len) {
                ssize_t n = send_some(c->fd, m->data + m->sent, m->len - m->sent);
                if (n < 0) {
                        r = (int) n;
                        break;
                }
                if (n > 0) {
                        m->sent += (size_t) n;
                        continue;
                }
                /* Each wait has the whole time: a slow client that reads something is not a stalled one. */
                struct op op = op_timeout(MCP_WRITE_STALL_MS);
                op.cancel = c->stop;
                r = wait_fd(c->fd, POLLOUT, &op);
                if (r < 0)
                        break;
                r = 0;
        }
        pthread_mutex_lock(&c->lock);
        c->writing = false;
        return r;
}

static void *writer_main(void *arg) {
        struct conn *c = arg;

        LOCK(&c->lock);
        for (;;) {
                while (!c->head && !c->finishing && !c->broken)
                        (void) cond_wait_until(&c->changed, &c->lock, DEADLINE_NEVER);
                if (c->broken || !c->head)
                        break;

                size_t left = c->head->len - c->head->sent;
                if (write_head(c) < 0) {
                        mark_broken(c);
                        break;
                }
                c->queued -= left;
                queue_pop(c);
                pthread_cond_broadcast(&c->changed);
        }
        queue_clear(c);
        return NULL;
}

int conn_new(int fd, struct conn **ret, struct error *err) {
        int r = fd_set_nonblock(fd, true);
        if (r < 0) {
                close_fd(fd);
                return error_set_errno(err, r, "Cannot use the client's socket");
        }

        struct conn *c = calloc(1, sizeof(*c));
        struct cancel *stop = cancel_new();
        if (!c || !stop) {
                free(c);
                cancel_unref(stop);
                close_fd(fd);
                return error_set_errno(err, ENOMEM, "Cannot serve a client");
        }
        c->fd = fd;
        c->stop = stop;
        c->tail = &c->head;
        atomic_init(&c->refs, 1);
        pthread_mutex_init(&c->lock, NULL);
        cond_init(&c->changed);

        r = thread_start(&c->writer, "mcp-writer", writer_main, c);
        if (r < 0) {
                conn_unref(c);
                return error_set_errno(err, r, "Cannot start a thread for a client");
        }
        *ret = c;
        return 0;
}

struct conn *conn_ref(struct conn *c) {
        atomic_fetch_add(&c->refs, 1);
        return c;
}

void conn_unref(struct conn *c) {
        if (!c || atomic_fetch_sub(&c->refs, 1) > 1)
                return;
        queue_clear(c);
        close_fd(c->fd);
        cancel_unref(c->stop);
        pthread_cond_destroy(&c->changed);
        pthread_mutex_destroy(&c->lock);
        free(c);
}

int conn_send(struct conn *c, enum conn_kind kind, char *text, size_t len) {
        struct out_message *m = calloc(1, sizeof(*m));
        if (!m) {
                free(text);
                return -ENOMEM;
        }
        text[len] = '\n'; /* in the place of its NUL */
        *m = (struct out_message){.kind = kind, .len = len + 1, .data = text};

        LOCK(&c->lock);
        if (!c->head && !c->broken && !c->finishing) {
                ssize_t n = send_some(c->fd, m->data, m->len);
                if (n < 0)
                        mark_broken(c);
                else
                        m->sent = (size_t) n;
                if (m->sent == m->len) {
                        message_free(m);
                        return 0;
                }
        }
        if (c->broken || c->finishing) {
                message_free(m);
                return -ENOTCONN;
        }
        if (c->queued + m->len - m->sent > CONN_PROGRESS_MAX) {
                queue_drop_progress(c);
                if (kind == CONN_PROGRESS && m->sent == 0) {
                        message_free(m);
                        return -ENOBUFS;
                }
        }
        c->queued += m->len - m->sent;
        *c->tail = m;
        c->tail = &m->next;
        pthread_cond_broadcast(&c->changed);
        return 0;
}

void conn_stop(struct conn *c) {
        cancel_fire(c->stop);
        LOCK(&c->lock);
        mark_broken(c);
}

void conn_close(struct conn *c, const struct op *op) {
        {
                LOCK(&c->lock);
                while ((c->head || c->writing) && !c->broken)
                        if (cond_wait_until(&c->changed, &c->lock, op->deadline) < 0)
                                break;
                c->finishing = true;
        }
        conn_stop(c);
        pthread_join(c->writer, NULL);
}

/* Waits until the client has taken enough of what is queued. */
static void wait_for_room(struct conn *c) {
        LOCK(&c->lock);
        while (c->queued > CONN_QUEUE_MAX && !c->broken)
                (void) cond_wait_until(&c->changed, &c->lock, DEADLINE_NEVER);
}

static bool is_blank(const char *s, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r')
                        return false;
        return true;
}

static void one_line(struct conn *c, const struct conn_handler *h, char *text, size_t len) {
        if (len > 0 && text[len - 1] == '\r')
                len--;
        if (is_blank(text, len))
                return;
        text[len] = 0;
        h->line(h->arg, text, len);
        wait_for_room(c);
}

struct reader {
        struct buf in;
        size_t scanned; /* bytes of `in` that are known to hold no newline */
        bool skipping;  /* inside a line that was too long */
};

/* Hands out all complete lines. */
static void take_lines(struct conn *c, const struct conn_handler *h, struct reader *rd) {
        size_t start = 0;

        for (;;) {
                size_t from = MAX(start, rd->scanned);
                char *nl = rd->in.len > from ? memchr(rd->in.data + from, '\n', rd->in.len - from) : NULL;
                if (!nl)
                        break;
                size_t end = (size_t) (nl - rd->in.data);
                if (!rd->skipping)
                        one_line(c, h, rd->in.data + start, end - start);
                rd->skipping = false;
                start = end + 1;
        }
        buf_consume(&rd->in, start);
        rd->scanned = rd->in.len;

        if (rd->skipping)
                buf_clear(&rd->in);
        else if (rd->in.len > MCP_LINE_MAX) {
                rd->skipping = true;
                h->oversized(h->arg);
        }
        if (rd->skipping || (rd->in.len == 0 && rd->in.cap > READ_KEEP)) {
                buf_free(&rd->in);
                rd->in = BUF_INIT(MCP_LINE_MAX + READ_CHUNK);
                rd->scanned = 0;
        }
}

/* The client closed its sending side: does it still read? */
static int read_end(int fd) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};

        return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)) ? -ECONNRESET : 0;
}

/* Waits for bytes and appends them. Bytes read, 0 at the end, or a negative errno. */
static ssize_t read_more(struct conn *c, struct buf *in) {
        struct op op = OP_INIT_NEVER;
        op.cancel = c->stop;

        for (;;) {
                int r = buf_reserve(in, READ_CHUNK);
                if (r < 0)
                        return r;
                ssize_t n = read(c->fd, in->data + in->len, READ_CHUNK);
                if (n >= 0) {
                        in->len += (size_t) n;
                        in->data[in->len] = 0;
                        return n;
                }
                if (errno == EINTR)
                        continue;
                if (errno != EAGAIN)
                        return -errno;
                r = wait_fd(c->fd, POLLIN, &op);
                if (r < 0)
                        return r;
        }
}

int conn_read(struct conn *c, const struct conn_handler *h) {
        struct reader rd = {.in = BUF_INIT(MCP_LINE_MAX + READ_CHUNK)};
        ssize_t n;

        while ((n = cancel_fired(c->stop) ? -ECANCELED : read_more(c, &rd.in)) > 0)
                take_lines(c, h, &rd);

        int r = n < 0 ? (int) n : read_end(c->fd);
        if (n == 0 && !rd.skipping && rd.in.len > 0)
                one_line(c, h, rd.in.data, rd.in.len);
        buf_free(&rd.in);
        return r == -EPIPE ? -ECONNRESET : r;
}
