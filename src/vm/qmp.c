/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/qmp.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/io.h"
#include "base/json.h"
#include "base/str.h"
#include "base/thread.h"
#include "base/waiter.h"

#define READ_CHUNK (16u * 1024u)
#define QMP_TEXT_MAX 500 /* bytes of QEMU's words that are shown */

/* A command under way; lives on the stack of its caller. */
struct call {
        int64_t id;
        json_t *reply; /* owned; the whole message */
        struct call *next;
};

/* A descriptor (owned) that goes with one byte of what is written. */
struct passenger {
        uint64_t at; /* that byte's place in all that was ever queued */
        int fd;
};

struct qmp {
        unsigned refs; /* atomic */
        struct qmp_callbacks cb;
        int fd, wake_fd; /* wake_fd: an eventfd; something is to be written or `closing` was set */
        pthread_t thread;
        struct buf in; /* only for the thread: the bytes of a line that is not complete */

        pthread_mutex_t lock; /* guards all below */
        pthread_cond_t changed;
        struct buf out;
        uint64_t written; /* bytes, in all; out begins with the next one */
        struct passenger passengers[QMP_FDS_MAX];
        size_t n_passengers;
        struct call *calls;
        int64_t last_id;
        bool greeted, lost, closing;
        const char *lost_why; /* static text */
};

static void wake(struct qmp *q) {
        /* Fails only when the counter is full: then it is readable anyway. */
        (void) eventfd_write(q->wake_fd, 1);
}

/* --- the thread --- */

/* Hands a reply over to the call that it belongs to. */
static void take_reply(struct qmp *q, json_t **message, int64_t id) {
        LOCK(&q->lock);

        for (struct call *c = q->calls; c; c = c->next)
                if (c->id == id && !c->reply) {
                        c->reply = TAKE_PTR(*message);
                        pthread_cond_broadcast(&q->changed);
                        return;
                }
}

static void take_greeting(struct qmp *q) {
        LOCK(&q->lock);

        q->greeted = true;
        pthread_cond_broadcast(&q->changed);
}

/* One line of QEMU. A static text when it ends the connection. */
static const char *take_line(struct qmp *q, const char *line, size_t len) {
        _cleanup_json_ json_t *message = NULL;
        const char *event = NULL;
        int64_t id = 0;

        if (json_parse(line, len, QMP_LINE_MAX, QMP_DEPTH_MAX, &message, NULL) < 0 || !json_is_object(message))
                return "it sent something that is not QMP";
        if (json_object_get(message, "QMP"))
                take_greeting(q);
        else if (json_get_str(message, "event", &event, NULL) >= 0) {
                if (q->cb.event)
                        q->cb.event(q->cb.arg, event, json_object_get(message, "data"));
        } else if (json_get_int(message, "id", &id, NULL) >= 0)
                take_reply(q, &message, id);
        /* Anything else cannot be told apart from noise: whoever waits for it has a deadline. */
        return NULL;
}

static const char *take_lines(struct qmp *q) {
        size_t done = 0;
        char *end;

        while (done < q->in.len && (end = memchr(q->in.data + done, '\n', q->in.len - done))) {
                size_t len = (size_t) (end - (q->in.data + done));
                const char *why = take_line(q, q->in.data + done, len);
                if (why)
                        return why;
                done += len + 1;
        }
        buf_consume(&q->in, done);
        return NULL;
}

static const char *read_some(struct qmp *q) {
        char chunk[READ_CHUNK];

        ssize_t n = recv(q->fd, chunk, sizeof(chunk), MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return NULL;
        if (n <= 0)
                return "QEMU closed it";
        if (buf_append(&q->in, chunk, (size_t) n) < 0)
                return "it sent a line that is too long";
        return take_lines(q);
}

/* Sends up to the next byte with a passenger, or from it on. Lock held. */
static ssize_t send_some(struct qmp *q) {
        const struct passenger *p = q->passengers;
        size_t n = q->out.len, left = q->n_passengers;
        int fd = -1;

        if (left > 0 && p->at == q->written) {
                fd = p->fd;
                p++;
                left--;
        }
        if (left > 0)
                n = MIN(n, (size_t) (p->at - q->written));
        if (fd >= 0)
                return send_with_fd(q->fd, q->out.data, n, fd);
        ssize_t sent = send(q->fd, q->out.data, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        return sent < 0 ? -errno : sent;
}

/* Lock held; n > 0. */
static void sent_some(struct qmp *q, size_t n) {
        if (q->n_passengers > 0 && q->passengers[0].at == q->written) {
                close_fd(q->passengers[0].fd);
                memmove(q->passengers, q->passengers + 1, --q->n_passengers * sizeof(*q->passengers));
        }
        q->written += n;
        buf_consume(&q->out, n);
}

static const char *write_some(struct qmp *q) {
        LOCK(&q->lock);

        while (q->out.len > 0) {
                ssize_t n = send_some(q);
                if (n == -EAGAIN || n == -EINTR)
                        return NULL;
                if (n < 0)
                        return "it could not be written to";
                sent_some(q, (size_t) n);
        }
        return NULL;
}

static void end(struct qmp *q, const char *why) {
        {
                LOCK(&q->lock);

                q->lost = true;
                q->lost_why = why;
                q->fd = close_fd(q->fd); /* at once: QEMU takes the next client only then */
                pthread_cond_broadcast(&q->changed);
        }
        if (q->cb.lost)
                q->cb.lost(q->cb.arg);
}

/* What is to be polled for on the socket; -1: the client is being closed. */
static int events_wanted(struct qmp *q) {
        LOCK(&q->lock);

        return q->closing ? -1 : q->out.len > 0 ? POLLIN | POLLOUT : POLLIN;
}

static void *thread_main(void *arg) {
        struct qmp *q = arg;
        const char *why = NULL;

        while (!why) {
                int events = events_wanted(q);
                if (events < 0)
                        break;
                struct pollfd fds[] = {{.fd = q->fd, .events = (short) events}, {.fd = q->wake_fd, .events = POLLIN}};
                if (poll(fds, ARRAY_SIZE(fds), -1) < 0) {
                        if (errno != EINTR)
                                why = "it could not be polled";
                        continue;
                }
                if (fds[1].revents) {
                        eventfd_t count;

                        (void) eventfd_read(q->wake_fd, &count);
                        why = write_some(q);
                }
                if (!why && fds[0].revents & POLLOUT)
                        why = write_some(q);
                if (!why && fds[0].revents & (POLLIN | POLLHUP | POLLERR))
                        why = read_some(q);
        }
        end(q, why ? why : "it was closed");
        return NULL;
}

/* --- callers --- */

/* Why a wait ended without what it was for. `doing` completes "... while <doing>". */
static int wait_error(int r, const char *why, const char *doing, struct error *err) {
        if (r == -ETIMEDOUT)
                return error_set(err, ERROR_TIMEOUT, "QEMU did not answer in time while %s", doing);
        if (r == -ECANCELED)
                return error_set(err, ERROR_CANCELLED, "Cancelled while %s", doing);
        if (r == -ENOTCONN) {
                error_set(err, ERROR_NOT_RUNNING, "The connection to QEMU ended while %s: %s", doing, why);
                return r;
        }
        return error_set_errno(err, r, "Cannot ask QEMU for %s", doing);
}

/* Lock held. A copy, because the caller may give up before it is sent. */
static int queue_passenger(struct qmp *q, int fd) {
        if (q->n_passengers == QMP_FDS_MAX)
                return -ENOBUFS;
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (copy < 0)
                return -errno;
        q->passengers[q->n_passengers++] = (struct passenger){.at = q->written + q->out.len, .fd = copy};
        return 0;
}

/* Queues a command's line and enters the call; fd (-1: none) goes with it. Lock held. */
static int queue_call(struct qmp *q, struct call *c, json_t *command, int fd) {
        if (q->lost)
                return -ENOTCONN;
        c->id = ++q->last_id;
        const size_t before = q->out.len, passengers = q->n_passengers;
        int r = json_put(command, "id", json_integer(c->id));
        if (r >= 0 && fd >= 0)
                r = queue_passenger(q, fd);
        if (r >= 0)
                r = json_write(command, &q->out);
        if (r >= 0)
                r = buf_append_byte(&q->out, '\n');
        if (r < 0) {
                buf_truncate(&q->out, before);
                if (q->n_passengers > passengers)
                        close_fd(q->passengers[--q->n_passengers].fd);
                return r;
        }
        c->next = q->calls;
        q->calls = c;
        wake(q);
        return 0;
}

/* Lock held. */
static void forget_call(struct qmp *q, struct call *c) {
        for (struct call **p = &q->calls; *p; p = &(*p)->next)
                if (*p == c) {
                        *p = c->next;
                        return;
                }
}

/* Sends a command and waits; the reply is owned by the caller. *ret_why is set with -ENOTCONN. */
static int exchange(struct qmp *q, json_t *command, int fd, const struct op *op, json_t **ret, const char **ret_why) {
        struct cond_waiter w;
        struct call c = {0};

        cond_waiter_begin(&w, &q->lock, &q->changed, op);
        pthread_mutex_lock(&q->lock);
        int r = queue_call(q, &c, command, fd);
        if (r >= 0) {
                while (r >= 0 && !c.reply)
                        r = q->lost ? -ENOTCONN : cond_waiter_sleep(&w);
                forget_call(q, &c);
        }
        *ret_why = q->lost_why;
        pthread_mutex_unlock(&q->lock);
        cond_waiter_end(&w);

        if (c.reply) { /* it may have come together with the deadline */
                *ret = c.reply;
                return 0;
        }
        return r;
}

/* What an error reply says, as our error. */
static int refused(const char *command, const json_t *reply, struct error *err) {
        const json_t *e = json_object_get(reply, "error");
        const char *text = NULL, *class = NULL;

        (void) json_get_str(e, "desc", &text, NULL);
        (void) json_get_str(e, "class", &class, NULL);
        text = text ? text : "no reason given";
        return error_set(err, str_eq(class, "CommandNotFound") ? ERROR_UNSUPPORTED : ERROR_INTERNAL,
                         "QEMU refused %s: %.*s", command,
                         (int) utf8_floor(text, MIN(strlen(text), (size_t) QMP_TEXT_MAX)), text);
}

int qmp_call_with_fd(struct qmp *q, const char *command, json_t *arguments, int fd, const struct op *op, json_t **ret,
                     struct error *err) {
        _cleanup_json_ json_t *message = json_pack("{s:s, s:O*}", "execute", command, "arguments", arguments);
        _cleanup_json_ json_t *reply = NULL;
        const char *why = NULL;

        int r = message ? exchange(q, message, fd, op, &reply, &why) : -ENOMEM;
        if (r < 0)
                return wait_error(r, why, command, err);

        json_t *value = json_object_get(reply, "return");
        if (!value)
                return refused(command, reply, err);
        if (ret)
                *ret = json_incref(value);
        return 0;
}

int qmp_call(struct qmp *q, const char *command, json_t *arguments, const struct op *op, json_t **ret,
             struct error *err) {
        return qmp_call_with_fd(q, command, arguments, -1, op, ret, err);
}

static int wait_greeting(struct qmp *q, const struct op *op, struct error *err) {
        struct cond_waiter w;
        int r = 0;

        cond_waiter_begin(&w, &q->lock, &q->changed, op);
        pthread_mutex_lock(&q->lock);
        while (r >= 0 && !q->greeted)
                r = q->lost ? -ENOTCONN : cond_waiter_sleep(&w);
        const char *why = q->lost_why;
        pthread_mutex_unlock(&q->lock);
        cond_waiter_end(&w);
        return r < 0 ? wait_error(r, why, "waiting for its greeting", err) : 0;
}

static void destroy(struct qmp *q) {
        while (q->n_passengers > 0)
                close_fd(q->passengers[--q->n_passengers].fd);
        close_fd(q->fd);
        close_fd(q->wake_fd);
        buf_free(&q->in);
        buf_free(&q->out);
        pthread_mutex_destroy(&q->lock);
        pthread_cond_destroy(&q->changed);
        free(q);
}

int qmp_open(int fd, const struct qmp_callbacks *cb, const struct op *op, struct qmp **ret, struct error *err) {
        _cleanup_close_ int socket = fd;
        _cleanup_qmp_ struct qmp *q = NULL;

        struct qmp *made = calloc(1, sizeof(*made));
        if (!made)
                return error_set_errno(err, ENOMEM, "Cannot connect to QEMU");
        *made = (struct qmp){
                .refs = 1,
                .cb = cb ? *cb : (struct qmp_callbacks){0},
                .fd = TAKE_FD(socket),
                .wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
                .in = BUF_INIT(QMP_LINE_MAX),
                .out = BUF_INIT(QMP_OUT_MAX),
        };
        pthread_mutex_init(&made->lock, NULL);
        cond_init(&made->changed);
        int r = made->wake_fd < 0 ? -errno : thread_start(&made->thread, "qmp", thread_main, made);
        if (r < 0) {
                destroy(made);
                return error_set_errno(err, r, "Cannot connect to QEMU");
        }
        q = made;

        r = wait_greeting(q, op, err);
        if (r >= 0)
                r = qmp_call(q, "qmp_capabilities", NULL, op, NULL, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(q);
        return 0;
}

struct qmp *qmp_ref(struct qmp *q) {
        __atomic_add_fetch(&q->refs, 1, __ATOMIC_RELAXED);
        return q;
}

void qmp_unref(struct qmp *q) {
        if (!q || __atomic_sub_fetch(&q->refs, 1, __ATOMIC_ACQ_REL) > 0)
                return;
        pthread_mutex_lock(&q->lock);
        q->closing = true;
        pthread_mutex_unlock(&q->lock);
        wake(q);
        pthread_join(q->thread, NULL);
        destroy(q);
}

bool qmp_is_lost(struct qmp *q) {
        LOCK(&q->lock);

        return q->lost;
}
