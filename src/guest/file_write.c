/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <string.h>

#include "base/file.h"
#include "guest/agent.h"
#include "guest/args.h"
#include "guest/path.h"

/* Where the bytes of a file_write go. */
struct sink {
        struct replacement *whole; /* NULL when appending */
        int append_fd;
        const char *path;
        int64_t written;
};

static int sink_write(struct sink *s, const char *data, size_t n, struct error *err) {
        s->written += (int64_t) n;
        if (s->whole)
                return replacement_write(s->whole, data, n, err);
        while (n > 0) {
                ssize_t k = write(s->append_fd, data, n);

                if (k < 0 && errno == EINTR)
                        continue;
                if (k < 0)
                        return error_set_errno(err, errno, "Writing %s", s->path);
                data += k;
                n -= (size_t) k;
        }
        return 0;
}

/* Until the host says that this was all. */
static int receive(struct request *req, struct sink *s, struct error *err) {
        struct op op = OP_INIT_NEVER;

        for (;;) {
                _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;
                int r = mux_recv(req->stream, &op, &ev);

                if (r < 0)
                        return error_set_errno(err, r, "Receiving the content of %s", s->path);
                switch (ev.kind) {
                case MUX_DATA:
                        if (ev.channel == WIRE_CH_IN && (r = sink_write(s, ev.data.data, ev.data.len, err)) < 0)
                                return r;
                        break;
                case MUX_EOF:
                        if (ev.channel == WIRE_CH_IN)
                                return 0;
                        break;
                case MUX_CLOSED:
                case MUX_LOST:
                        return error_set(err, ERROR_CANCELLED, "%s was not received to its end", s->path);
                default:
                        break;
                }
        }
}

static int open_append(const struct file_write_args *a, struct error *err) {
        const char *slash = strrchr(a->path, '/');
        _cleanup_free_ char *folder = strndup(a->path, (size_t) (slash - a->path) + 1);
        _cleanup_close_ int fd = -1;
        struct stat st;
        int r;

        if (!folder)
                return error_set_errno(err, ENOMEM, "%s", a->path);
        r = mkdir_p(folder, 0755);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the folder %s", folder);
        /* Not blocking: a named pipe without a reader must not hang us. The mode is for a file that is made. */
        fd = open(a->path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, a->mode);
        if (fd < 0 && errno == EISDIR)
                return error_set(err, ERROR_INVALID_ARGUMENT, "%s is a directory, not a file", a->path);
        if (fd < 0 && errno != ENXIO)
                return error_set_errno(err, errno, "%s", a->path);
        if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
                return error_set(err, ERROR_INVALID_ARGUMENT, "%s is %s, not a regular file", a->path,
                                 fd < 0 ? "a named pipe or socket" : file_kind_long(st.st_mode));
        return TAKE_FD(fd);
}

static int write_append(struct request *req, const struct file_write_args *a, int64_t *ret, struct error *err) {
        _cleanup_close_ int fd = open_append(a, err);
        struct sink s = {.append_fd = fd, .path = a->path};
        int r;

        if (fd < 0)
                return fd;
        r = receive(req, &s, err);
        if (r == 0 && fsync(fd) < 0)
                r = error_set_errno(err, errno, "Writing %s", a->path);
        *ret = s.written;
        return r;
}

static int write_whole(struct request *req, const struct file_write_args *a, int64_t *ret, struct error *err) {
        _cleanup_replacement_ struct replacement rep = REPLACEMENT_INIT;
        struct sink s = {.whole = &rep, .append_fd = -1, .path = a->path};
        mode_t mode;
        int r = replacement_begin(&rep, a->path, true, err);

        if (r < 0)
                return r;
        r = receive(req, &s, err);
        if (r < 0)
                return r;
        mode = rep.exists && !a->has_mode ? rep.old.st_mode & 07777 : a->mode;
        *ret = s.written;
        return replacement_commit(&rep, mode, -1, &req->agent->files_lock, err);
}

int handle_file_write(struct request *req, struct error *err) {
        struct file_write_args a;
        int64_t written = 0;
        int r = file_write_args_parse(req->args, &a, err);

        if (r < 0)
                return r;
        r = a.append ? write_append(req, &a, &written, err) : write_whole(req, &a, &written, err);
        if (r < 0)
                return r;
        return json_put(req->reply, "bytes_written", json_integer(written));
}
