/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <string.h>

#include "guest/agent.h"
#include "guest/args.h"
#include "guest/nearest.h"
#include "guest/path.h"

#define EDIT_FILE_MAX (64L * 1024 * 1024) /* it is held in memory */
#define BATCH (64UL * 1024)
#define MESSAGE_MAX 4096

struct edit {
        struct request *req;
        struct file_edit_args args;
        struct buf texts; /* old, then new */
        struct buf file;
        size_t replacements, other_matches;
};

static int receive_texts(struct edit *e, struct error *err) {
        struct op op = OP_INIT_NEVER;
        size_t want = e->args.old_len + e->args.new_len;

        for (;;) {
                _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;
                int r = mux_recv(e->req->stream, &op, &ev);

                if (r < 0)
                        return r;
                if (ev.kind == MUX_CLOSED || ev.kind == MUX_LOST)
                        return error_set(err, ERROR_CANCELLED, "The edit was not received to its end");
                if (ev.channel != WIRE_CH_IN)
                        continue;
                if (ev.kind == MUX_EOF)
                        break;
                if (ev.kind != MUX_DATA)
                        continue;
                r = buf_append(&e->texts, ev.data.data, ev.data.len);
                if (r < 0 && r != -ENOBUFS)
                        return r;
                if (r < 0)
                        return error_set(err, ERROR_INVALID_ARGUMENT, "More than old_len + new_len bytes were sent");
        }
        if (e->texts.len != want)
                return error_set(err, ERROR_INVALID_ARGUMENT, "%zu bytes were sent, old_len + new_len is %zu",
                                 e->texts.len, want);
        return 0;
}

static int read_file(struct edit *e, int fd, const struct stat *st, struct error *err) {
        int r;

        if (st->st_size > EDIT_FILE_MAX) {
                r = error_set(err, ERROR_INVALID_ARGUMENT, "%s has %lld bytes; files of at most %ld can be edited",
                              e->args.path, (long long) st->st_size, EDIT_FILE_MAX);
                error_hint(err, "Change it with exec, for example with sed.");
                return r;
        }
        r = buf_reserve(&e->file, (size_t) st->st_size);
        if (r < 0)
                return error_set_errno(err, r, "Reading %s", e->args.path);
        while (e->file.len < (size_t) st->st_size) {
                ssize_t n = read(fd, e->file.data + e->file.len, (size_t) st->st_size - e->file.len);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return error_set_errno(err, errno, "Reading %s", e->args.path);
                if (n == 0)
                        break;
                e->file.len += (size_t) n;
        }
        return 0;
}

static int not_found(struct edit *e, struct error *err) {
        _cleanup_buf_ struct buf lines = BUF_INIT(MESSAGE_MAX);
        int r = nearest_lines(e->file.data, e->file.len, e->texts.data, e->args.old_len, &lines);

        if (r <= 0) {
                r = error_set(err, ERROR_NOT_FOUND, "The text to replace is not in %s, nor any line like it",
                              e->args.path);
        } else {
                buf_truncate(&lines, lines.len - 1);
                r = error_set(err, ERROR_NOT_FOUND, "The text to replace is not in %s. The nearest lines are:\n%s",
                              e->args.path, lines.data);
        }
        error_hint(err, "Read the file again and give the text exactly as it stands there, blanks and tabs included.");
        return r;
}

/* Small pieces are gathered, so that thousands of replacements are not thousands of system calls. */
static int put(struct replacement *rep, struct buf *batch, const char *data, size_t n, struct error *err) {
        int r = 0;

        if (batch->len + n > batch->max) {
                r = replacement_write(rep, batch->data, batch->len, err);
                buf_clear(batch);
        }
        if (r < 0)
                return r;
        return n > batch->max ? replacement_write(rep, data, n, err) : buf_append(batch, data, n);
}

static size_t count_matches(const struct edit *e) {
        const char *p = e->file.data, *end = p + e->file.len, *hit;
        size_t n = 0;

        for (; p < end && (hit = memmem(p, (size_t) (end - p), e->texts.data, e->args.old_len)); n++)
                p = hit + e->args.old_len;
        return n;
}

static int write_edited(struct edit *e, struct replacement *rep, struct error *err) {
        _cleanup_buf_ struct buf batch = BUF_INIT(BATCH);
        const char *old = e->texts.data, *fresh = old + e->args.old_len;
        const char *p = e->file.data, *end = p + e->file.len;

        for (size_t i = 0; i < e->replacements; i++) {
                const char *hit = memmem(p, (size_t) (end - p), old, e->args.old_len);
                int r = put(rep, &batch, p, (size_t) (hit - p), err);

                if (r == 0)
                        r = put(rep, &batch, fresh, e->args.new_len, err);
                if (r < 0)
                        return r;
                p = hit + e->args.old_len;
        }
        int r = put(rep, &batch, p, (size_t) (end - p), err);
        return r < 0 ? r : replacement_write(rep, batch.data, batch.len, err);
}

static int open_old(struct edit *e, struct stat *ret, struct error *err) {
        _cleanup_close_ int fd = open(e->args.path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

        if (fd < 0 || fstat(fd, ret) < 0)
                return error_set_errno(err, errno, "%s", e->args.path);
        if (!S_ISREG(ret->st_mode))
                return error_set(err, ERROR_INVALID_ARGUMENT, "%s is %s, not a regular file", e->args.path,
                                 file_kind_long(ret->st_mode));
        return TAKE_FD(fd);
}

static int edit_locked(struct edit *e, struct error *err) {
        _cleanup_replacement_ struct replacement rep = REPLACEMENT_INIT;
        _cleanup_close_ int fd = -1;
        struct stat st = {0};
        size_t matches;
        int r;

        fd = open_old(e, &st, err);
        if (fd < 0)
                return fd;
        r = read_file(e, fd, &st, err);
        if (r < 0)
                return r;
        matches = count_matches(e);
        if (matches == 0)
                return not_found(e, err);
        e->replacements = e->args.replace_all ? matches : 1;
        e->other_matches = matches - e->replacements;

        r = replacement_begin(&rep, e->args.path, false, err);
        if (r == 0)
                r = write_edited(e, &rep, err);
        if (r < 0)
                return r;
        return replacement_commit(&rep, st.st_mode & 07777, fd, NULL, err);
}

int handle_file_edit(struct request *req, struct error *err) {
        struct edit e = {.req = req, .file = BUF_INIT(EDIT_FILE_MAX)};
        int r = file_edit_args_parse(req->args, &e.args, err);

        if (r < 0)
                return r;
        e.texts = BUF_INIT(e.args.old_len + e.args.new_len);
        r = receive_texts(&e, err);
        if (r == 0) {
                /* Two edits of one file at once must both be in it afterwards. */
                LOCK(&req->agent->files_lock);
                r = edit_locked(&e, err);
        }
        buf_free(&e.texts);
        buf_free(&e.file);
        if (r < 0)
                return r;
        r = json_put(req->reply, "replacements", json_integer((json_int_t) e.replacements));
        r |= json_put(req->reply, "other_matches", json_integer((json_int_t) e.other_matches));
        return r;
}
