/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/proxy.h"

#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/str.h"

/* What is given back to the system when a queue runs empty. */
#define QUEUE_KEEP (256u * 1024u)

size_t queue_len(const struct queue *q) {
        return q->buf.len - q->head;
}

const char *queue_data(const struct queue *q) {
        return q->buf.data + q->head;
}

int queue_append(struct queue *q, const void *data, size_t n) {
        if (q->head > 0 && q->buf.len + n > q->buf.cap) {
                buf_consume(&q->buf, q->head);
                q->head = 0;
        }
        return buf_append(&q->buf, data, n);
}

void queue_clear(struct queue *q) {
        if (q->buf.cap > QUEUE_KEEP) {
                size_t max = q->buf.max;
                buf_free(&q->buf);
                q->buf = BUF_INIT(max);
        }
        buf_clear(&q->buf);
        q->head = 0;
}

void queue_consume(struct queue *q, size_t n) {
        q->head += n;
        if (q->head == q->buf.len)
                queue_clear(q);
}

/* The client's direction. */

static void client_message(void *arg, const struct scan_message *m) {
        struct proxy *p = arg;

        if (scan_is_request(m) && p->drop_line) {
                link_refuse_dropped(p, m->id);
        } else if (scan_is_request(m)) {
                pending_add(&p->pending, m->id, p->line_begin);
                if (str_eq(m->method, "\"initialize\"")) {
                        p->line_is_initialize = true;
                        memcpy(p->initialize_id, m->id, sizeof(p->initialize_id));
                }
        } else if (str_eq(m->method, "\"notifications/initialized\"")) {
                p->line_is_initialized = true;
        } else if (str_eq(m->method, "\"notifications/cancelled\"") && m->request_id[0]) {
                pending_remove(&p->pending, m->request_id); /* it gets no response */
        }
}

static void remember(char **line, uint64_t *begin, const struct proxy *p, const char *data, size_t n) {
        char *copy = strndup(data, n);

        if (!copy)
                return;
        free(*line);
        *line = copy;
        *begin = p->line_begin;
}

static void client_piece(void *arg, const char *data, size_t n, bool ends) {
        struct proxy *p = arg;

        if (!p->up.passing && p->line_is_initialize)
                remember(&p->initialize, &p->initialize_begin, p, data, n);
        else if (!p->up.passing && p->line_is_initialized)
                remember(&p->initialized, &p->initialized_begin, p, data, n);
        if (!p->drop_line) {
                /* Cannot be full: reading stops far below. Without memory the daemon would see a torn stream. */
                if (queue_append(&p->to_daemon, data, n) < 0) {
                        p->left = true;
                        return;
                }
                p->queued += n;
        }
        if (ends) {
                p->line_begin = p->queued;
                p->drop_line = p->line_is_initialize = p->line_is_initialized = false;
        }
}

static const struct lane_ops client_lane = {.message = client_message, .piece = client_piece};

/* The daemon's direction. */

static void daemon_message(void *arg, const struct scan_message *m) {
        struct proxy *p = arg;

        if (!scan_is_response(m))
                return;
        if (p->swallow_initialize && str_eq(m->id, p->initialize_id)) {
                p->swallow_initialize = false;
                p->swallow_line = true;
        }
        pending_remove(&p->pending, m->id);
}

static void daemon_piece(void *arg, const char *data, size_t n, bool ends) {
        struct proxy *p = arg;

        if (!p->swallow_line && queue_append(&p->to_client, data, n) < 0)
                p->left = true;
        if (ends) {
                p->swallow_line = false;
                p->losses = 0;
        }
}

static const struct lane_ops daemon_lane = {.message = daemon_message, .piece = daemon_piece};

/* The loop. */

/* No more input: the client's last line needs no newline. */
static void begin_ending(struct proxy *p) {
        if (p->ending) {
                p->left = true;
                return;
        }
        p->ending = true;
        p->end_by = deadline_in_ms(PROXY_DRAIN_MS);
        if (p->up.in_line && lane_feed(&p->up, "\n", 1, &client_lane, p) < 0)
                p->left = true;
}

static void read_client(struct proxy *p) {
        char chunk[PROXY_CHUNK];

        ssize_t n = read(p->in, chunk, sizeof(chunk));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return;
        if (n <= 0) {
                begin_ending(p);
                return;
        }
        if (lane_feed(&p->up, chunk, (size_t) n, &client_lane, p) < 0)
                p->left = true;
}

static void read_daemon(struct proxy *p) {
        char chunk[PROXY_CHUNK];

        ssize_t n = read(p->daemon, chunk, sizeof(chunk));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return;
        if (n <= 0)
                link_lost(p);
        else if (lane_feed(&p->down, chunk, (size_t) n, &daemon_lane, p) < 0)
                p->left = true;
}

static bool write_queue(struct proxy *p, struct queue *q, bool counts) {
        while (p->link == LINK_UP && queue_len(q) > 0) {
                ssize_t n = send(p->daemon, queue_data(q), queue_len(q), MSG_DONTWAIT | MSG_NOSIGNAL);
                if (n < 0) {
                        if (errno != EAGAIN && errno != EINTR)
                                link_lost(p);
                        return false;
                }
                if (counts) {
                        p->written += (uint64_t) n;
                        p->mid_line = queue_data(q)[n - 1] != '\n';
                }
                queue_consume(q, (size_t) n);
        }
        return p->link == LINK_UP;
}

static void write_daemon(struct proxy *p) {
        if (write_queue(p, &p->replay, false))
                (void) write_queue(p, &p->to_daemon, true);
}

/*
 * The client's output is not made non-blocking, as that would change it for everybody who has it open. A socket is
 * told not to wait per call; a pipe that polls as writable takes PIPE_BUF bytes without waiting.
 */
static void write_client(struct proxy *p) {
        size_t len = queue_len(&p->to_client);
        ssize_t n;

        if (p->out_is_pipe) {
                n = write(p->out, queue_data(&p->to_client), MIN(len, (size_t) PIPE_BUF));
        } else {
                n = send(p->out, queue_data(&p->to_client), len, MSG_DONTWAIT | MSG_NOSIGNAL);
                if (n < 0 && errno == ENOTSOCK)
                        n = write(p->out, queue_data(&p->to_client), MIN(len, (size_t) PIPE_BUF));
        }
        if (n > 0)
                queue_consume(&p->to_client, (size_t) n);
        else if (n < 0 && errno != EAGAIN && errno != EINTR)
                p->left = true;
}

static void read_signal(struct proxy *p) {
        struct signalfd_siginfo info;

        if (read(p->signals, &info, sizeof(info)) == sizeof(info))
                begin_ending(p);
}

/* Whether everything that can still be said has been said. */
static bool finished(struct proxy *p) {
        if (p->left)
                return true;
        if (!p->ending)
                return false;
        if (deadline_passed(p->end_by))
                return true;
        if (queue_len(&p->to_client) > 0)
                return false;
        return p->link != LINK_UP && p->pending.n == 0 && queue_len(&p->to_daemon) == 0;
}

/* When nothing is open any more, the daemon learns that nothing comes, gives its last words and closes. */
static void half_close(struct proxy *p) {
        if (!p->ending || p->half_closed || p->link != LINK_UP || p->pending.n > 0 || queue_len(&p->to_daemon) > 0)
                return;
        shutdown(p->daemon, SHUT_WR);
        p->half_closed = true;
}

enum { FD_IN, FD_OUT, FD_SIGNALS, FD_DAEMON, FD_LAUNCHED, _FD_MAX };

static int poll_once(struct proxy *p, struct pollfd fds[_FD_MAX]) {
        bool room_up = queue_len(&p->to_daemon) < PROXY_CHUNK;
        bool room_down = queue_len(&p->to_client) < PROXY_CHUNK;
        bool to_daemon = queue_len(&p->to_daemon) > 0 || queue_len(&p->replay) > 0;
        deadline_t until = p->ending ? p->end_by : DEADLINE_NEVER;

        if (p->link == LINK_STARTING)
                until = deadline_min(until, deadline_min(p->retry_at, p->start_by));
        fds[FD_IN] = (struct pollfd){.fd = p->ending || !room_up ? -1 : p->in, .events = POLLIN};
        /* Watched also when there is nothing to write: a reader that leaves shows as POLLERR or POLLHUP. */
        fds[FD_OUT] = (struct pollfd){.fd = p->out, .events = queue_len(&p->to_client) > 0 ? POLLOUT : 0};
        fds[FD_SIGNALS] = (struct pollfd){.fd = p->signals, .events = POLLIN};
        fds[FD_DAEMON] = (struct pollfd){
                .fd = room_down || to_daemon ? p->daemon : -1,
                .events = (short) ((room_down ? POLLIN : 0) | (to_daemon ? POLLOUT : 0)),
        };
        fds[FD_LAUNCHED] = (struct pollfd){.fd = p->link == LINK_STARTING ? p->launcher.pidfd : -1, .events = POLLIN};
        return poll(fds, _FD_MAX, deadline_poll_ms(until));
}

void proxy_run(struct proxy *p) {
        struct pollfd fds[_FD_MAX];

        link_begin(p);
        while (!finished(p)) {
                if (poll_once(p, fds) < 0) {
                        if (errno == EINTR)
                                continue;
                        log_error("cannot wait for client and daemon", "error", strerror(errno));
                        return;
                }
                if (fds[FD_SIGNALS].revents)
                        read_signal(p);
                if (fds[FD_OUT].revents & POLLOUT)
                        write_client(p);
                else if (fds[FD_OUT].revents)
                        p->left = true;
                if (fds[FD_IN].revents)
                        read_client(p);
                /* link_lost() may have closed the socket that was polled. */
                if (fds[FD_DAEMON].revents & POLLOUT && p->daemon == fds[FD_DAEMON].fd)
                        write_daemon(p);
                if (fds[FD_DAEMON].revents & ~POLLOUT && p->daemon == fds[FD_DAEMON].fd)
                        read_daemon(p);
                if (fds[FD_LAUNCHED].revents && p->link == LINK_STARTING)
                        p->retry_at = deadline_in_ms(0);
                link_tick(p);
                if (p->link == LINK_DOWN && queue_len(&p->to_daemon) > 0)
                        link_begin(p);
                half_close(p);
        }
}

void proxy_init(struct proxy *p, const char *config_path, int in, int out, int signals) {
        struct stat st;

        *p = (struct proxy){
                .config_path = config_path,
                .in = in,
                .out = out,
                .signals = signals,
                .out_is_pipe = fstat(out, &st) == 0 && S_ISFIFO(st.st_mode),
                .daemon = -1,
                .launcher = LAUNCHER_INIT,
                .up = LANE_INIT,
                .down = LANE_INIT,
                .replay = {.buf = BUF_INIT(PROXY_QUEUE_MAX)},
                .to_daemon = {.buf = BUF_INIT(PROXY_QUEUE_MAX)},
                .to_client = {.buf = BUF_INIT(PROXY_QUEUE_MAX)},
        };
}

void proxy_clear(struct proxy *p) {
        close_fd(p->daemon);
        launcher_clear(&p->launcher);
        config_clear(&p->config);
        error_clear(&p->why_down);
        lane_free(&p->up);
        lane_free(&p->down);
        buf_free(&p->replay.buf);
        buf_free(&p->to_daemon.buf);
        buf_free(&p->to_client.buf);
        pending_free(&p->pending);
        free(p->initialize);
        free(p->initialized);
}
