/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "guest/agent.h"
#include "guest/args.h"
#include "guest/path.h"
#include "wire/sparse.h"

#define CHUNK WIRE_DATA_CHUNK
/* A file that says it is empty, as those in /proc do, is read until it ends, but not for ever. */
#define UNSIZED_MAX (64L * 1024 * 1024)

struct reader {
        struct request *req;
        const struct file_read_args *args;
        int fd;
        int64_t bytes, lines; /* sent */
        bool truncated;       /* there is more behind what was sent */
        char chunk[CHUNK];
};

static int open_file(const char *path, struct stat *ret, struct error *err) {
        /* Not blocking: opening a named pipe would wait for a writer. */
        _cleanup_close_ int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        int r;

        if (fd < 0 && errno == ENXIO)
                return error_set(err, ERROR_INVALID_ARGUMENT, "%s is a socket or a device without a driver", path);
        if (fd < 0 || fstat(fd, ret) < 0)
                return error_set_errno(err, errno, "%s", path);
        if (S_ISREG(ret->st_mode))
                return TAKE_FD(fd);
        r = error_set(err, ERROR_INVALID_ARGUMENT, "%s is %s, not a regular file", path, file_kind_long(ret->st_mode));
        if (S_ISDIR(ret->st_mode))
                error_hint(err, "List it with file_list.");
        return r;
}

/* At most n bytes; 0 at the end. A file that would block (a trace pipe) has ended for us. */
static ssize_t read_some(struct reader *r, size_t n) {
        ssize_t k;

        do
                k = read(r->fd, r->chunk, MIN(n, sizeof(r->chunk)));
        while (k < 0 && errno == EINTR);
        return k < 0 && errno == EAGAIN ? 0 : k < 0 ? -errno : k;
}

static int send_bytes(struct reader *r, const char *data, size_t n) {
        struct op op = OP_INIT_NEVER;

        r->bytes += (int64_t) n;
        return n == 0 ? 0 : mux_send_data(r->req->stream, WIRE_CH_OUT, data, n, &op);
}

static int send_range(struct reader *r, int64_t left) {
        ssize_t n;
        int k;

        while (left > 0) {
                n = read_some(r, (size_t) MIN(left, (int64_t) CHUNK));
                if (n <= 0)
                        return (int) n;
                k = send_bytes(r, r->chunk, (size_t) n);
                if (k < 0)
                        return k;
                left -= n;
        }
        n = read_some(r, 1);
        r->truncated = n > 0;
        return n < 0 ? (int) n : 0;
}

/* Passes over the lines before the first wanted, then sends line_count of them; lines of any length. */
static int send_lines(struct reader *r, int64_t left) {
        int64_t skip = r->args->start_line - 1;
        int64_t want = r->args->line_count < 0 ? INT64_MAX : r->args->line_count;
        bool open_line = false; /* something of a line was sent, its end was not seen */

        while (left > 0) {
                ssize_t n = read_some(r, (size_t) MIN(left, (int64_t) CHUNK));
                const char *p = r->chunk, *from, *nl, *end;

                if (n < 0)
                        return (int) n;
                if (n == 0)
                        break;
                left -= n;
                end = p + n;
                for (; skip > 0 && (nl = memchr(p, '\n', (size_t) (end - p))); skip--)
                        p = nl + 1;
                if (skip > 0)
                        continue;
                from = p;
                for (; r->lines < want && (nl = memchr(p, '\n', (size_t) (end - p))); r->lines++)
                        p = nl + 1;
                r->truncated = r->lines == want && p < end;
                if (r->lines < want)
                        p = end;
                open_line = p > from ? p[-1] != '\n' : open_line;
                int k = send_bytes(r, from, (size_t) (p - from));
                if (k < 0 || r->truncated)
                        return k;
        }
        r->lines += open_line; /* a last line without a line feed counts */
        return 0;
}

/* Data from where we are. */
static int send_piece(struct reader *r, uint64_t len) {
        while (len > 0) {
                ssize_t n = sparse_read(r->fd, r->chunk, (size_t) MIN(len, (uint64_t) CHUNK), (uint64_t) r->bytes);
                int k = n < 0 ? (int) n : send_bytes(r, r->chunk, (size_t) n);

                if (k < 0)
                        return k;
                len -= (uint64_t) n;
        }
        return 0;
}

static int send_hole(struct reader *r, uint64_t len) {
        struct op op = OP_INIT_NEVER;
        uint8_t text[SPARSE_LEN_BYTES];

        sparse_len_encode(len, text);
        r->bytes += (int64_t) len;
        return mux_send_data(r->req->stream, WIRE_CH_HOLE, text, sizeof(text), &op);
}

/* The whole file with its holes. -ENODATA: it has become shorter. */
static int send_sparse(struct reader *r, uint64_t size) {
        struct stat st;

        while ((uint64_t) r->bytes < size) {
                struct sparse_piece piece;
                int k = sparse_next(r->fd, (uint64_t) r->bytes, size, &piece);

                if (k == 0)
                        k = piece.hole ? send_hole(r, piece.len) : send_piece(r, piece.len);
                if (k < 0)
                        return k;
        }
        /* What was passed over as a hole may not be there any more. */
        if (fstat(r->fd, &st) < 0)
                return -errno;
        r->truncated = (uint64_t) st.st_size > size;
        return (uint64_t) st.st_size < size ? -ENODATA : 0;
}

static int send_all(struct reader *r, const struct stat *st) {
        struct op op = OP_INIT_NEVER;
        int64_t left = st->st_size > 0 ? st->st_size : UNSIZED_MAX;
        json_t *end;
        int k;

        /* What is appended while we read is not waited for: the size at the beginning counts. */
        if (r->args->sparse) {
                k = send_sparse(r, (uint64_t) st->st_size);
        } else if (r->args->by_line) {
                k = send_lines(r, left);
        } else {
                left = st->st_size > 0 ? MAX(left - r->args->offset, (int64_t) 0) : left;
                if (r->args->limit >= 0)
                        left = MIN(left, r->args->limit);
                k = send_range(r, left);
        }
        if (k < 0)
                return k;

        k = mux_send_eof(r->req->stream, WIRE_CH_OUT, &op);
        if (k < 0)
                return k;
        end = json_object();
        k = json_put(end, "bytes", json_integer(r->bytes));
        if (r->args->by_line)
                k |= json_put(end, "lines", json_integer(r->lines));
        k |= json_put(end, "truncated", json_boolean(r->truncated));
        if (k < 0) {
                json_decref(end);
                return -ENOMEM;
        }
        return request_send(r->req, WIRE_MSG_END, end);
}

static int send_head(struct request *req, const struct stat *st) {
        json_t *head = json_object();
        char mode[8];
        int r;

        snprintf(mode, sizeof(mode), "%04o", (unsigned) (st->st_mode & 07777));
        r = json_put(head, "size", json_integer(st->st_size));
        r |= json_put(head, "mode", json_string(mode));
        r |= json_put(head, "kind", json_string(file_kind(st->st_mode)));
        r |= json_put(head, "allocated", json_integer((json_int_t) st->st_blocks * 512)); /* stat(3type): st_blocks */
        if (r < 0) {
                json_decref(head);
                return -ENOMEM;
        }
        return request_send(req, WIRE_MSG_OK, head);
}

/* Files of the kernel say that they are empty and are not; nobody can know their size beforehand. */
static int check_sized(int fd, const struct file_read_args *a, const struct stat *st, struct error *err) {
        char byte;
        int r;

        if (!a->sparse || st->st_size > 0 || sparse_read(fd, &byte, 1, 0) <= 0)
                return 0;
        r = error_set(err, ERROR_INVALID_ARGUMENT, "%s has content but says that its size is 0", a->path);
        error_hint(err, "Copy it inside the workspace (cp), and transfer the copy.");
        return r;
}

static int read_error(const struct reader *r, const struct stat *st, int k, struct error *err) {
        if (k != -ENODATA)
                return error_set_errno(err, k, "Reading %s", r->args->path);
        k = error_set(err, ERROR_CONFLICT, "%s had %lld bytes and became shorter while it was read", r->args->path,
                      (long long) st->st_size);
        error_hint(err, "Try again when nothing writes to it, or copy it first.");
        return k;
}

int handle_file_read(struct request *req, struct error *err) {
        _cleanup_free_ struct reader *r = malloc(sizeof(*r));
        _cleanup_close_ int fd = -1;
        struct file_read_args a;
        struct stat st = {0};
        int k;

        if (!r)
                return -ENOMEM;
        k = file_read_args_parse(req->args, &a, err);
        if (k < 0)
                return k;
        fd = open_file(a.path, &st, err);
        if (fd < 0)
                return fd;
        k = check_sized(fd, &a, &st, err);
        if (k < 0)
                return k;
        if (a.offset > 0 && lseek(fd, a.offset, SEEK_SET) < 0)
                return error_set_errno(err, errno, "%s at offset %lld", a.path, (long long) a.offset);

        r->req = req;
        r->args = &a;
        r->fd = fd;
        r->bytes = r->lines = 0;
        r->truncated = false;
        k = send_head(req, &st);
        if (k == 0)
                k = send_all(r, &st);
        return k < 0 ? read_error(r, &st, k, err) : 1;
}
