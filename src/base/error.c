/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Clients act on the names: they never change. */
static const struct {
        const char *name;
        const char *text; /* stands in when there was no memory for a message */
        int err;
} codes[_ERROR_CODE_MAX] = {
        [ERROR_NONE] = {"none", "no error", 0},
        [ERROR_INTERNAL] = {"internal", "internal error", EIO},
        [ERROR_INVALID_ARGUMENT] = {"invalid_argument", "invalid argument", EINVAL},
        [ERROR_NOT_FOUND] = {"not_found", "not found", ENOENT},
        [ERROR_CONFLICT] = {"conflict", "conflict with the present state", EEXIST},
        [ERROR_NOT_OWNER] = {"not_owner", "owned by another client", EPERM},
        [ERROR_QUOTA_EXCEEDED] = {"quota_exceeded", "quota exceeded", EDQUOT},
        [ERROR_RATE_LIMITED] = {"rate_limited", "too many requests", EAGAIN},
        [ERROR_NOT_RUNNING] = {"not_running", "not running", ENOTCONN},
        [ERROR_TIMEOUT] = {"timeout", "timed out", ETIMEDOUT},
        [ERROR_GUEST_UNREACHABLE] = {"guest_unreachable", "guest unreachable", EHOSTUNREACH},
        [ERROR_NO_SPACE] = {"no_space", "no space left", ENOSPC},
        [ERROR_UNSUPPORTED] = {"unsupported", "not supported", EOPNOTSUPP},
        [ERROR_CANCELLED] = {"cancelled", "cancelled", ECANCELED},
};

static bool code_known(enum error_code code) {
        return (unsigned) code < _ERROR_CODE_MAX;
}

void error_clear(struct error *e) {
        if (!e)
                return;
        free(e->message);
        free(e->hint);
        *e = ERROR_INIT;
}

const char *error_code_name(enum error_code code) {
        return codes[code_known(code) ? code : ERROR_INTERNAL].name;
}

enum error_code error_code_from_name(const char *name) {
        for (unsigned i = 0; name && i < _ERROR_CODE_MAX; i++)
                if (strcmp(codes[i].name, name) == 0)
                        return (enum error_code) i;
        return ERROR_INTERNAL;
}

int error_code_errno(enum error_code code) {
        return codes[code_known(code) ? code : ERROR_INTERNAL].err;
}

enum error_code error_code_from_errno(int err) {
        switch (err < 0 ? -err : err) {
        case 0:
                return ERROR_NONE;
        case EINVAL:
        case E2BIG:
        case ENAMETOOLONG:
        case ENOTDIR:
        case EISDIR:
        case ELOOP:
        case EFBIG:
        case ERANGE:
                return ERROR_INVALID_ARGUMENT;
        case ENOENT:
        case ESRCH:
        case ENXIO:
                return ERROR_NOT_FOUND;
        case EEXIST:
        case EBUSY:
        case ENOTEMPTY:
        case EADDRINUSE:
        case ETXTBSY:
                return ERROR_CONFLICT;
        case ENOSPC:
        case EDQUOT:
                return ERROR_NO_SPACE;
        case ETIMEDOUT:
                return ERROR_TIMEOUT;
        case ECANCELED:
                return ERROR_CANCELLED;
        case ENOTCONN:
                return ERROR_NOT_RUNNING;
        case EHOSTUNREACH:
        case EHOSTDOWN:
                return ERROR_GUEST_UNREACHABLE;
        case EOPNOTSUPP:
        case ENOSYS:
                return ERROR_UNSUPPORTED;
        default:
                return ERROR_INTERNAL;
        }
}

/* NULL when out of memory. */
static char *format(const char *fmt, va_list ap) _printf_(1, 0);
static char *format(const char *fmt, va_list ap) {
        char *s = NULL;

        return vasprintf(&s, fmt, ap) < 0 ? NULL : s;
}

/* The arguments of a message may point into the old error: it is released only once the new text exists. */
static void replace(struct error *e, enum error_code code, char *message) {
        error_clear(e);
        *e = (struct error){.code = code, .message = message};
}

int(error_set)(struct error *e, enum error_code code, const char *fmt, ...) {
        if (e) {
                va_list ap;

                va_start(ap, fmt);
                replace(e, code, format(fmt, ap));
                va_end(ap);
        }
        return -error_code_errno(code);
}

int(error_set_errno)(struct error *e, int err, const char *fmt, ...) {
        if (err < 0)
                err = -err;
        if (e) {
                _cleanup_free_ char *what = NULL;
                const char *why = strerrordesc_np(err); /* unlike strerror() thread safe, and it needs no locale */
                char *message = NULL;
                va_list ap;

                va_start(ap, fmt);
                what = format(fmt, ap);
                va_end(ap);
                if (what &&
                    (why ? asprintf(&message, "%s: %s", what, why) : asprintf(&message, "%s: error %d", what, err)) < 0)
                        message = NULL;
                replace(e, error_code_from_errno(err), message ? message : TAKE_PTR(what));
        }
        return -err;
}

void error_hint(struct error *e, const char *fmt, ...) {
        if (!error_is_set(e))
                return;

        va_list ap;
        va_start(ap, fmt);
        char *hint = format(fmt, ap);
        va_end(ap);
        if (hint) {
                free(e->hint);
                e->hint = hint;
        }
}

void error_prefix(struct error *e, const char *fmt, ...) {
        if (!error_is_set(e))
                return;

        va_list ap;
        va_start(ap, fmt);
        _cleanup_free_ char *prefix = format(fmt, ap);
        va_end(ap);

        char *message = NULL;
        if (!prefix || asprintf(&message, "%s: %s", prefix, error_message(e)) < 0)
                return; /* without memory the old message is better than none */
        free(e->message);
        e->message = message;
}

void error_move(struct error *to, struct error *from) {
        if (to == from)
                return;
        if (to) {
                error_clear(to);
                if (from) {
                        *to = *from;
                        *from = ERROR_INIT;
                }
        } else
                error_clear(from);
}

const char *error_message(const struct error *e) {
        if (!e)
                return codes[ERROR_INTERNAL].text;
        return e->message ? e->message : codes[code_known(e->code) ? e->code : ERROR_INTERNAL].text;
}
