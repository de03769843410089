/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <string.h>

#include "base/file.h"
#include "guest/agent.h"
#include "guest/args.h"
#include "guest/path.h"
#include "wire/sparse.h"

/* Where the bytes of a file_write go. */
struct sink {
        struct sparse_writer file; /* of a whole file */
        struct sparse_lens lens;
        int append_fd; /* -1: a whole file */
        const char *path;
        int64_t size;    /* as announced; -1: unknown */
        int64_t written; /* holes included */
};

static int append(struct sink *s, const char *data, size_t n) {
        while (n > 0) {
                ssize_t k = write(s->append_fd, data, n);

                if (k < 0 && errno == EINTR)
                        continue;
                if (k < 0)
                        return -errno;
                data += k;
                n -= (size_t) k;
        }
        return 0;
}

/* Accounts for n more bytes; not more than announced. */
static int sink_grow(struct sink *s, uint64_t n, struct error *err) {
        uint64_t room = (uint64_t) (s->size < 0 ? INT64_MAX : s->size) - (uint64_t) s->written;

        if (n > room)
                return error_set(err, ERROR_INVALID_ARGUMENT, "More bytes came for %s than were announced", s->path);
        s->written += (int64_t) n;
        return 0;
}

static int sink_write(struct sink *s, const char *data, size_t n, struct error *err) {
        int r = sink_grow(s, n, err);

        if (r < 0)
                return r;
        if (s->lens.have > 0)
                return error_set(err, ERROR_INVALID_ARGUMENT, "Half of the length of a hole came for %s", s->path);
        r = s->append_fd >= 0 ? append(s, data, n) : sparse_write(&s->file, data, n);
        return r < 0 ? error_set_errno(err, r, "Writing %s", s->path) : 0;
}

static int sink_skip(struct sink *s, const char *data, size_t n, struct error *err) {
        uint64_t len;

        if (s->append_fd >= 0)
                return error_set(err, ERROR_INVALID_ARGUMENT, "A hole cannot be appended to %s", s->path);
        while (sparse_lens_take(&s->lens, &data, &n, &len)) {
                int r = sink_grow(s, len, err);

                if (r < 0)
                        return r;
                r = sparse_skip(&s->file, len);
                if (r < 0)
                        return error_set_errno(err, r, "Writing %s", s->path);
        }
        return 0;
}

static int sink_take(struct sink *s, const struct mux_event *ev, struct error *err) {
        switch (ev->channel) {
        case WIRE_CH_IN:
                return sink_write(s, ev->data.data, ev->data.len, err);
        case WIRE_CH_HOLE:
                return sink_skip(s, ev->data.data, ev->data.len, err);
        default:
                return 0;
        }
}

static int sink_finish(struct sink *s, struct error *err) {
        int r;

        if (s->lens.have > 0 || (s->size >= 0 && s->written != s->size))
                return error_set(err, ERROR_INVALID_ARGUMENT, "Only a part of %s came: %lld of %lld bytes", s->path,
                                 (long long) s->written, (long long) MAX(s->size, s->written));
        if (s->append_fd >= 0)
                return 0;
        r = sparse_finish(&s->file);
        return r < 0 ? error_set_errno(err, r, "Writing %s", s->path) : 0;
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
                        r = sink_take(s, &ev, err);
                        if (r < 0)
                                return r;
                        break;
                case MUX_EOF:
                        if (ev.channel == WIRE_CH_IN)
                                return sink_finish(s, err);
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
        struct sink s = {.append_fd = fd, .path = a->path, .size = -1};
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
        struct sink s = {.append_fd = -1, .path = a->path, .size = a->size};
        mode_t mode;
        int r = replacement_begin(&rep, a->path, true, err);

        if (r < 0)
                return r;
        /* Says at once when the file system knows no files of this size. */
        if (a->size > 0 && ftruncate(rep.fd, a->size) < 0)
                return error_set_errno(err, errno, "%s cannot have %lld bytes", a->path, (long long) a->size);
        s.file.fd = rep.fd;
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
