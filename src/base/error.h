/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The error object.
 *
 * A function returns 0 or a negative errno. Where a person or an agent must understand what happened it also fills a
 * `struct error`: a stable code that clients may act on, a message that says what failed with which value, and a hint
 * that says what to do next. A function either logs an error or returns it, never both.
 *
 * `struct error *` parameters may be NULL: the caller then only wants the errno. The first error set wins nothing: a
 * later error_set() replaces an earlier one, because the outer layer knows better what the caller asked for; use
 * error_prefix() to add context instead of replacing.
 */

#include "base/util.h"

enum error_code {
        ERROR_NONE = 0,
        ERROR_INTERNAL,
        ERROR_INVALID_ARGUMENT,
        ERROR_NOT_FOUND,
        ERROR_CONFLICT,
        ERROR_NOT_OWNER,
        ERROR_QUOTA_EXCEEDED,
        ERROR_RATE_LIMITED,
        ERROR_NOT_RUNNING,
        ERROR_TIMEOUT,
        ERROR_GUEST_UNREACHABLE,
        ERROR_NO_SPACE,
        ERROR_UNSUPPORTED,
        ERROR_CANCELLED,
        _ERROR_CODE_MAX,
};

struct error {
        enum error_code code;
        char *message; /* owned; one or more sentences */
        char *hint;    /* owned; may be NULL */
};

#define ERROR_INIT ((struct error){0})

/* Releases what the error holds and resets it to ERROR_INIT. */
void error_clear(struct error *e);
#define _cleanup_error_ _cleanup_(error_clear)

/* Stable name of a code as clients see it, e.g. "not_found". Never NULL. */
const char *error_code_name(enum error_code code);
/* Inverse of error_code_name(); ERROR_INTERNAL for an unknown name. */
enum error_code error_code_from_name(const char *name);
/* The errno that stands for a code where no better one is known, positive (ENOENT, EEXIST, ...). */
int error_code_errno(enum error_code code);
/* The code for a negative or positive errno: ENOSPC and EDQUOT become no_space, ETIMEDOUT timeout, ... */
enum error_code error_code_from_errno(int err);

/* Sets code and message; returns -error_code_errno(code), so that callers can `return error_set(...)`. */
int error_set(struct error *e, enum error_code code, const char *fmt, ...) _printf_(3, 4);
/* Like error_set() for a failed system call: code from errno, ": <strerror>" appended; returns the negative errno. */
int error_set_errno(struct error *e, int err, const char *fmt, ...) _printf_(3, 4);
/* Replaces the hint: one sentence that says what to do next. Does nothing to an error that is not set. */
void error_hint(struct error *e, const char *fmt, ...) _printf_(2, 3);
/* Puts "<text>: " before the message. */
void error_prefix(struct error *e, const char *fmt, ...) _printf_(2, 3);
/* Moves the error out of `from`, replacing what `to` held. Both may be NULL. */
void error_move(struct error *to, struct error *from);

static inline bool error_is_set(const struct error *e) {
        return e && e->code != ERROR_NONE;
}
/* The message, or a fallback text: never NULL. */
const char *error_message(const struct error *e);

#ifdef __clang_analyzer__
/* The analyzer sees one file at a time: this tells it that the setters always return a negative number. */
static inline int error_is_negative(int r) {
        if (r >= 0)
                __builtin_unreachable();
        return r;
}
#define error_set(...) error_is_negative(error_set(__VA_ARGS__))
#define error_set_errno(...) error_is_negative(error_set_errno(__VA_ARGS__))
#endif
