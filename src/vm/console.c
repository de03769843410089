/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/console.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/str.h"
#include "vm/vm.h"

#define ESCAPE_MAX 32u /* parameters of an escape sequence; what is longer is shown as text */

static int open_log(struct capped_log *c) {
        struct stat st;

        _cleanup_close_ int fd = open(c->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0 || fstat(fd, &st) < 0)
                return -errno;
        c->size = (size_t) st.st_size;
        c->fd = TAKE_FD(fd);
        return 0;
}

static int rotate(struct capped_log *c) {
        c->fd = close_fd(c->fd);
        if (rename(c->path, c->old_path) < 0 && errno != ENOENT)
                return -errno;
        return open_log(c);
}

int capped_log_open(struct capped_log *c, const char *dir, const char *name, const char *old_name, size_t keep,
                    bool fresh) {
        c->keep = keep;
        c->path = path_join(dir, name);
        c->old_path = path_join(dir, old_name);
        if (!c->path || !c->old_path)
                return -ENOMEM;
        return fresh ? rotate(c) : open_log(c);
}

void capped_log_close(struct capped_log *c) {
        c->fd = close_fd(c->fd);
        free(c->path);
        free(c->old_path);
        *c = CAPPED_LOG_INIT;
}

int capped_log_write(struct capped_log *c, const void *data, size_t n) {
        const char *p = data;

        while (n > 0) {
                if (c->fd < 0 || c->size >= c->keep) {
                        int r = rotate(c);
                        if (r < 0)
                                return r;
                }
                ssize_t written = write(c->fd, p, MIN(n, c->keep - c->size));
                if (written < 0 && errno == EINTR)
                        continue;
                if (written < 0)
                        return -errno;
                p += written;
                n -= (size_t) written;
                c->size += (size_t) written;
        }
        return 0;
}

/* The length of the escape sequence at s (ECMA-48: ESC [ parameters final, ESC ] text BEL, ESC and one byte). */
static size_t escape_length(const char *s, size_t n) {
        if (n < 2)
                return 1;
        for (size_t i = 2; i < MIN(n, (size_t) ESCAPE_MAX); i++) {
                if (s[1] == '[' && s[i] >= 0x40 && s[i] <= 0x7e)
                        return i + 1;
                if (s[1] == ']' && s[i] == '\a')
                        return i + 1;
        }
        return s[1] == '[' || s[1] == ']' ? 1 : 2;
}

/* Appends s without escape sequences and control characters other than newline and tab. */
static int strip(const char *s, size_t n, struct buf *out) {
        int r = 0;

        for (size_t i = 0; i < n && r >= 0;) {
                unsigned char c = (unsigned char) s[i];

                if (c == 0x1b) {
                        i += escape_length(s + i, n - i);
                        continue;
                }
                if ((c >= 0x20 && c != 0x7f) || c == '\n' || c == '\t')
                        r = buf_append_byte(out, c);
                i++;
        }
        return r;
}

/* Where the last max_lines lines of s begin; a newline at the very end counts to the line before. */
static size_t last_lines(const char *s, size_t n, unsigned max_lines) {
        size_t i = n > 0 && s[n - 1] == '\n' ? n - 1 : n;

        if (max_lines == 0)
                return n;
        while (i > 0) {
                if (s[i - 1] == '\n' && --max_lines == 0)
                        return i;
                i--;
        }
        return 0;
}

/* Appends the last `max` bytes of a file. */
static int read_end(const char *path, size_t max, struct buf *out) {
        struct stat st;

        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0 || fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode))
                return -EINVAL;
        off_t at = st.st_size > (off_t) max ? st.st_size - (off_t) max : 0;
        int r = buf_reserve(out, max);
        if (r < 0)
                return r;
        size_t got = 0;
        while (got < max) {
                ssize_t n = pread(fd, out->data + out->len, max - got, at + (off_t) got);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        break;
                out->len += (size_t) n;
                got += (size_t) n;
        }
        buf_truncate(out, out->len);
        return 0;
}

int text_tail(const char *path, const char *older_path, size_t max_bytes, unsigned max_lines, struct buf *out) {
        _cleanup_buf_ struct buf raw = BUF_INIT(2 * max_bytes), plain = BUF_INIT(2 * max_bytes);
        _cleanup_buf_ struct buf text = BUF_INIT(3 * plain.max); /* U+FFFD for a byte takes three */

        int older = older_path ? read_end(older_path, max_bytes, &raw) : -ENOENT;
        if (older < 0 && older != -ENOENT)
                return older;
        int r = read_end(path, max_bytes, &raw);
        if (r < 0 && !(r == -ENOENT && older >= 0))
                return r;

        r = strip(raw.data, raw.len, &plain);
        if (r >= 0)
                r = utf8_sanitize(&text, plain.data, plain.len, NULL);
        if (r < 0)
                return r;
        size_t start = last_lines(text.data, text.len, max_lines), room = out->max - out->len;
        if (text.len - start > room)
                start = text.len - room;
        while (start < text.len && ((unsigned char) text.data[start] & 0xc0) == 0x80)
                start++; /* not in the middle of a character */
        return start < text.len ? buf_append(out, text.data + start, text.len - start) : 0;
}
