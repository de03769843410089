/* SPDX-License-Identifier: Apache-2.0 */
/* process_run(): a child to its end, with what it prints. One poll loop over its two pipes, its pidfd and the cancel
 * token; no threads. */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/io.h"
#include "base/process.h"
#include "base/str.h"

#define CHUNK 16384u
#define TAIL_MAX ((size_t) 1024) /* bytes of standard error that an error message may quote */
#define TAIL_LINES_MAX 5u        /* lines of it */

/* One output of the child. */
struct output {
        int fd;          /* our end of the pipe; -1 when it has ended */
        struct buf *out; /* borrowed; NULL: not wanted */
        struct buf tail; /* the last bytes */
};

static void output_done(struct output *o) {
        o->fd = close_fd(o->fd);
        buf_free(&o->tail);
}

/* Keeps what there is room for and drops the rest: the child must never block on us. */
static int output_take(struct output *o, const char *data, size_t n) {
        if (o->out) {
                int r = buf_append(o->out, data, MIN(n, o->out->max - o->out->len));
                if (r < 0)
                        return r;
        }
        if (n > TAIL_MAX) {
                data += n - TAIL_MAX;
                n = TAIL_MAX;
        }
        if (o->tail.len + n > TAIL_MAX)
                buf_consume(&o->tail, o->tail.len + n - TAIL_MAX);
        return buf_append(&o->tail, data, n);
}

/* Reads once, at most max bytes. The number of bytes, 0 at the end of the pipe, -EAGAIN when it is empty. */
static ssize_t output_read(struct output *o, size_t max) {
        char chunk[CHUNK];
        ssize_t n;

        do
                n = read(o->fd, chunk, MIN(max, sizeof(chunk)));
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;
        if (n == 0) {
                o->fd = close_fd(o->fd);
                return 0;
        }
        int r = output_take(o, chunk, (size_t) n);
        return r < 0 ? r : n;
}

/* The child is gone. What it wrote is in the pipe; a process that it left behind may go on writing, and is not waited
 * for: only what is there now counts. */
static int output_drain(struct output *o) {
        int left = 0;

        if (o->fd < 0 || ioctl(o->fd, FIONREAD, &left) < 0)
                return 0;
        while (left > 0 && o->fd >= 0) {
                ssize_t n = output_read(o, (size_t) left);
                if (n == 0 || n == -EAGAIN)
                        break;
                if (n < 0)
                        return (int) n;
                left -= (int) n;
        }
        return 0;
}

/* Gathers until the child has ended: 0; or -ETIMEDOUT, -ECANCELED, -ENOMEM... with the child still there. */
static int gather(int pidfd, struct output *o, size_t n_outputs, const struct op *op) {
        deadline_t deadline = op ? op->deadline : DEADLINE_NEVER;

        for (;;) {
                struct pollfd p[] = {
                        {.fd = op ? cancel_fd(op->cancel) : -1, .events = POLLIN},
                        {.fd = pidfd, .events = POLLIN},
                        {.fd = o[0].fd, .events = POLLIN},
                        {.fd = o[1].fd, .events = POLLIN},
                };
                if (poll(p, ARRAY_SIZE(p), deadline_poll_ms(deadline)) < 0) {
                        if (errno == EINTR)
                                continue;
                        return -errno;
                }
                if (p[0].revents)
                        return -ECANCELED;
                for (size_t i = 0; i < n_outputs; i++) {
                        if (!p[2 + i].revents)
                                continue;
                        ssize_t n = output_read(&o[i], CHUNK);
                        if (n < 0 && n != -EAGAIN)
                                return (int) n;
                }
                if (p[1].revents) {
                        int r = 0;
                        for (size_t i = 0; i < n_outputs && r == 0; i++)
                                r = output_drain(&o[i]);
                        return r;
                }
                if (deadline_passed(deadline))
                        return -ETIMEDOUT;
        }
}

/* Makes a pipe; our end does not block and goes into the output, the child's is returned. */
static int output_open(struct output *o) {
        int fds[2];

        if (pipe2(fds, O_CLOEXEC) < 0)
                return -errno;
        o->fd = fds[0];
        /* Only our end: many programs take a pipe that does not block for a broken one. */
        if (fcntl(o->fd, F_SETFL, O_NONBLOCK) < 0) {
                int r = -errno;
                close_fd(fds[1]);
                return r;
        }
        return fds[1];
}

/* The last lines as one line of text: "a; b; c". NULL when there are none, or no memory. */
static char *last_lines(const struct buf *tail) {
        _cleanup_buf_ struct buf text = BUF_INIT(TAIL_MAX * 3);
        size_t start = tail->len, lines = 0;

        if (start == 0)
                return NULL;
        while (start > 0 && lines < TAIL_LINES_MAX) {
                size_t end = start;

                while (start > 0 && tail->data[start - 1] != '\n')
                        start--;
                lines += end > start;
                start -= start > 0 && lines < TAIL_LINES_MAX;
        }
        if (utf8_sanitize(&text, tail->data + start, tail->len - start, NULL) < 0)
                return NULL;

        char *s = buf_steal(&text), *o = s;
        if (!s)
                return NULL;
        _cleanup_buf_ struct buf joined = BUF_INIT(TAIL_MAX * 4);
        char *save = NULL;
        for (char *line = strtok_r(o, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
                for (char *c = line; *c; c++)
                        if ((unsigned char) *c < 0x20 || *c == 0x7f)
                                *c = ' ';
                if (buf_printf(&joined, "%s%s", joined.len > 0 ? "; " : "", line) < 0)
                        break;
        }
        free(s);
        return buf_steal(&joined);
}

static const char *program_name(const char *argv0) {
        const char *slash = strrchr(argv0, '/');

        return slash ? slash + 1 : argv0;
}

/* Turns how the child ended into a status. */
static int judge(const char *name, const struct process_result *result, const struct buf *tail, struct error *err) {
        if (result->signal == 0 && result->exit_code == 0)
                return 0;

        _cleanup_free_ char *lines = last_lines(tail);
        const char *colon = str_empty(lines) ? "" : ": ", *text = str_empty(lines) ? "" : lines;
        if (result->signal == 0)
                return error_set(err, ERROR_INTERNAL, "%s failed with exit code %d%s%s", name, result->exit_code, colon,
                                 text);
        const char *abbrev = sigabbrev_np(result->signal);
        if (abbrev)
                return error_set(err, ERROR_INTERNAL, "%s was ended by SIG%s%s%s", name, abbrev, colon, text);
        return error_set(err, ERROR_INTERNAL, "%s was ended by signal %d%s%s", name, result->signal, colon, text);
}

/* Kills the child with its process group. As long as it is not reaped, nobody else can have its number. */
static void kill_group(pid_t pid) {
        kill(-pid, SIGKILL);
        process_end(pid, 0);
}

static int gave_up(const char *name, int r, struct error *err) {
        if (r == -ETIMEDOUT)
                error_set(err, ERROR_TIMEOUT, "%s did not end in time and was killed", name);
        else if (r == -ECANCELED)
                error_set(err, ERROR_CANCELLED, "%s was killed because the operation was cancelled", name);
        else
                error_set_errno(err, r, "Cannot follow %s, which was killed", name);
        return r;
}

static int run(char *const *argv, int input, const struct op *op, struct output o[2], struct error *err) {
        const char *name = program_name(argv[0]);
        _cleanup_close_ int child_out = -1, child_err = -1;
        struct fd_map fds[3];
        size_t n_fds = 0;
        pid_t pid;

        if (input >= 0)
                fds[n_fds++] = (struct fd_map){input, STDIN_FILENO};
        if (o[0].out) {
                child_out = output_open(&o[0]);
                if (child_out < 0)
                        return error_set_errno(err, child_out, "Cannot make a pipe for %s", name);
                fds[n_fds++] = (struct fd_map){child_out, STDOUT_FILENO};
        }
        child_err = output_open(&o[1]);
        if (child_err < 0)
                return error_set_errno(err, child_err, "Cannot make a pipe for %s", name);
        fds[n_fds++] = (struct fd_map){child_err, STDERR_FILENO};

        /* A session of its own, so that killing its group reaches what it has started. */
        struct spawn s = {.argv = argv, .fds = fds, .n_fds = n_fds, .new_session = true};
        int r = process_spawn(&s, &pid, err);
        if (r < 0)
                return r;
        close_fd(TAKE_FD(child_out));
        close_fd(TAKE_FD(child_err));

        _cleanup_close_ int pidfd = pidfd_of(pid);
        r = pidfd < 0 ? pidfd : gather(pidfd, o, 2, op);
        if (r < 0) {
                kill_group(pid);
                return gave_up(name, r, err);
        }
        struct process_result result;
        r = process_wait(pid, NULL, &result);
        if (r < 0)
                return error_set_errno(err, r, "Cannot learn how %s ended", name);
        return judge(name, &result, &o[1].tail, err);
}

static int run_with(char *const *argv, int input, const struct op *op, struct buf *out, struct buf *err_out,
                    struct error *err) {
        struct output o[2] = {
                {.fd = -1, .out = out, .tail = BUF_INIT(TAIL_MAX)},
                {.fd = -1, .out = err_out, .tail = BUF_INIT(TAIL_MAX)},
        };

        int r = run(argv, input, op, o, err);
        output_done(&o[0]);
        output_done(&o[1]);
        return r;
}

int process_run(char *const *argv, const struct op *op, struct buf *out, struct buf *err_out, struct error *err) {
        return run_with(argv, -1, op, out, err_out, err);
}

/* A file in memory with these bytes, at its beginning. */
static int input_make(const void *input, size_t n) {
        struct op op = OP_INIT_NEVER;

        _cleanup_close_ int fd = memfd_create("stdin", MFD_CLOEXEC);
        if (fd < 0)
                return -errno;
        int r = write_full(fd, input, n, &op);
        if (r < 0)
                return r;
        return lseek(fd, 0, SEEK_SET) < 0 ? -errno : TAKE_FD(fd);
}

int process_run_input(char *const *argv, const void *input, size_t n, const struct op *op, struct buf *out,
                      struct buf *err_out, struct error *err) {
        _cleanup_close_ int fd = input_make(input, n);

        if (fd < 0)
                return error_set_errno(err, fd, "Cannot keep the input of %s in memory", program_name(argv[0]));
        return run_with(argv, fd, op, out, err_out, err);
}
