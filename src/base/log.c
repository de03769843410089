/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/buf.h"
#include "base/deadline.h"
#include "base/str.h"

#define LOG_LINE_MAX 16384u /* bytes of a line; what does not fit is cut, the line break stays */
#define LOG_VALUE_MAX 4096u /* bytes of one value, before it is escaped */
#define LOG_FIELDS_MAX 32u

static atomic_int log_min = LOG_INFO;
static atomic_int log_fd = STDERR_FILENO;

static const char *const level_names[] = {
        [LOG_DEBUG] = "debug",
        [LOG_INFO] = "info",
        [LOG_WARN] = "warn",
        [LOG_ERROR] = "error",
};

void log_setup(enum log_level min, int fd) {
        atomic_store(&log_min, (int) min);
        atomic_store(&log_fd, fd);
}

int log_level_parse(const char *name, enum log_level *ret) {
        for (size_t i = 0; i < ARRAY_SIZE(level_names); i++)
                if (str_eq(name, level_names[i])) {
                        *ret = (enum log_level) i;
                        return 0;
                }
        return -EINVAL;
}

static bool is_secret(const char *key) {
        static const char *const words[] = {"secret", "token", "password", "authorization", "env"};

        for (size_t i = 0; i < ARRAY_SIZE(words); i++)
                if (strcasestr(key, words[i]))
                        return true;
        return false;
}

/*
 * The length of the character at s if a terminal shows it as it is, else 0: control characters (C0, DEL, C1),
 * Unicode's line and paragraph separators and the marks that reverse the direction of what follows can all make a
 * line look like another one.
 */
static size_t printable(const char *s, size_t n) {
        const uint8_t *p = (const uint8_t *) s;

        if (p[0] < 0x80)
                return p[0] >= 0x20 && p[0] != 0x7f;
        size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
        if (len > n || utf8_valid_prefix(s, len) != len)
                return 0;
        if (p[0] == 0xc2 && p[1] < 0xa0) /* U+0080 to U+009F */
                return 0;
        /* U+2028 to U+202E, U+2066 to U+2069 */
        if (p[0] == 0xe2 &&
            ((p[1] == 0x80 && p[2] >= 0xa8 && p[2] <= 0xae) || (p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9)))
                return 0;
        return len;
}

/* -ENOBUFS once the line is full: the callers go on, and the line just ends there. */
static int append_escaped(struct buf *line, const char *s, size_t n, bool quoted) {
        int r = 0;

        for (size_t i = 0; i < n && r == 0;) {
                size_t len = printable(s + i, n - i);

                if (len == 0) {
                        if (s[i] == '\n')
                                r = buf_append_str(line, "\\n");
                        else if (s[i] == '\t')
                                r = buf_append_str(line, "\\t");
                        else
                                r = buf_printf(line, "\\x%02x", (unsigned char) s[i]);
                        len = 1;
                } else {
                        if (s[i] == '\\' || (quoted && s[i] == '"'))
                                r = buf_append_byte(line, '\\');
                        if (r == 0)
                                r = buf_append(line, s + i, len);
                }
                i += len;
        }
        return r;
}

static bool needs_quotes(const char *s, size_t n) {
        if (n == 0)
                return true;
        for (size_t i = 0, len; i < n; i += len) {
                len = printable(s + i, n - i);
                if (len == 0 || strchr(" \"=\\", s[i]))
                        return true;
        }
        return false;
}

static int append_field(struct buf *line, const char *key, const char *value) {
        int r = buf_append_byte(line, ' ');
        if (r == 0)
                r = append_escaped(line, key, strnlen(key, LOG_VALUE_MAX), false);
        if (r == 0)
                r = buf_append_byte(line, '=');
        if (r < 0)
                return r;
        if (!value)
                return buf_append_byte(line, '-');
        if (is_secret(key))
                return buf_append_str(line, "[redacted]");

        size_t n = strnlen(value, LOG_VALUE_MAX + 1);
        bool cut = n > LOG_VALUE_MAX;
        if (cut)
                n = utf8_floor(value, LOG_VALUE_MAX);
        /* A value that is just "-" gets quotes: without them it stands for none. */
        bool quotes = cut || str_eq(value, "-") || needs_quotes(value, n);
        if (quotes)
                r = buf_append_byte(line, '"');
        if (r == 0)
                r = append_escaped(line, value, n, quotes);
        if (r == 0 && cut)
                r = buf_append_str(line, "...");
        if (r == 0 && quotes)
                r = buf_append_byte(line, '"');
        return r;
}

void log_write(enum log_level level, const char *msg, ...) {
        if ((int) level < atomic_load(&log_min))
                return;

        int saved = errno;
        _cleanup_buf_ struct buf line = BUF_INIT(LOG_LINE_MAX);
        char now[TIME_TEXT_LEN + 1];
        time_text(realtime_ms(), now);
        int r = buf_printf(&line, "%s %-5s ", now, level_names[level]);
        if (r == 0)
                r = append_escaped(&line, msg, strlen(msg), false);

        va_list ap;
        va_start(ap, msg);
        const char *key;
        for (size_t i = 0; r == 0 && i < LOG_FIELDS_MAX && (key = va_arg(ap, const char *)); i++)
                r = append_field(&line, key, va_arg(ap, const char *));
        va_end(ap);

        line.max++; /* the line break has its place even when the line is full */
        if (buf_append_byte(&line, '\n') == 0) {
                /* One call, so that lines of several threads or processes do not mix. Whoever reads the log may be
                 * gone or slow: then the line is lost, the work goes on. */
                ssize_t w;
                do
                        w = write(atomic_load(&log_fd), line.data, line.len);
                while (w < 0 && errno == EINTR);
        }
        errno = saved;
}

struct log_num log_num_of(int64_t v) {
        struct log_num num;

        snprintf(num.s, sizeof(num.s), "%" PRId64, v);
        return num;
}
