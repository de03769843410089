/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Log lines on standard error (or another fd): time, level, message, then key=value fields in logfmt; values are
 * quoted where they need it and control characters are escaped, so that a guest's text cannot forge a line. A line is
 * one write(2). Secrets do not belong in a log: the value of a field whose key contains "secret", "token",
 * "password", "authorization" or "env" is replaced by "[redacted]", as a second net below not passing any.
 */

#include "base/error.h"
#include "base/util.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* What goes out from now on; the fd is borrowed. Default: LOG_INFO to fd 2. Thread safe. */
void log_setup(enum log_level min, int fd);
/* -EINVAL for an unknown name; "debug", "info", "warn", "error". */
int log_level_parse(const char *name, enum log_level *ret);

/* msg, then pairs of const char * key and value, then NULL. A NULL value prints as "-". */
void log_write(enum log_level level, const char *msg, ...) _sentinel_;

#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__, (const char *) NULL)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__, (const char *) NULL)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__, (const char *) NULL)
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__, (const char *) NULL)

/* A number as text for a log call; it lives until the end of the full expression: log_info("x", "ms", LOG_NUM(5)). */
struct log_num {
        char s[24];
};
struct log_num log_num_of(int64_t v);
#define LOG_NUM(v) (log_num_of((int64_t) (v)).s)
