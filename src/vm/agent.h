/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The host's side of a conversation with the agent in one VM: one function per request of wire.h.
 *
 * An agent object is one connection. It does not reconnect: when it is lost, calls give guest_unreachable, and
 * vm_agent() (vm.h) makes a new one. Any number of calls run at the same time, each on its own stream. Nothing the
 * guest says is trusted: sizes are bounded here, texts are only bytes.
 */

#include <jansson.h>

#include "base/buf.h"
#include "base/deadline.h"
#include "base/error.h"

struct agent;

/* Takes the connected, non-blocking channel fd (also on failure), shakes hands, waits for the guest's hello. */
int agent_open(int fd, const struct op *op, struct agent **ret, struct error *err);
struct agent *agent_ref(struct agent *a);
void agent_unref(struct agent *a); /* the last one closes the connection; accepts NULL */
DEFINE_CLEANUP(struct agent *, agent_unref)
#define _cleanup_agent_ _cleanup_(agent_unrefp)

bool agent_is_lost(struct agent *a);
/* While set, a call whose time runs out fails with no_space: the guest stands still for want of room on the host. */
void agent_set_no_space(struct agent *a, bool on);
/* Round trip of a ping through the channel, in nanoseconds. */
int agent_ping(struct agent *a, const struct op *op, int64_t *ret_ns, struct error *err);

/* Mounts the root file system and grows it to the disk: idempotent. */
int agent_mount_root(struct agent *a, const struct op *op, struct error *err);

struct agent_identity {
        const char *hostname;
        const char *machine_id; /* 32 hexadecimal digits */
        const char *mac;        /* NULL: leave the card alone */
        const char *address;    /* dotted quad */
        unsigned prefix_len;
        const char *gateway; /* NULL: none */
};
/* Gives the guest its identity, the host's clock and 64 bytes of fresh entropy, in one request. */
int agent_configure(struct agent *a, const struct agent_identity *id, const struct op *op, struct error *err);
/* Sync, unmount, power off. The connection is lost soon after. */
int agent_shutdown(struct agent *a, const struct op *op, struct error *err);

/* One captured output: the head and the tail of what was too long. */
struct agent_capture {
        struct buf head, tail; /* the whole output is head + tail when nothing is missing */
        uint64_t total;        /* bytes that the command wrote */
        bool truncated;        /* total > head + tail */
};

struct agent_exec_args {
        const char *command;
        const char *workdir; /* NULL: the guest's default */
        json_t *env;         /* borrowed object of strings, or NULL */
        const void *stdin_data;
        size_t stdin_len;   /* 0: standard input is /dev/null */
        int64_t timeout_ms; /* 0: none. Enforced by the guest; op->deadline is the second net */
        size_t max_output;  /* bytes kept of each of stdout and stderr */
};

struct agent_exec_result {
        int exit_code; /* -1 when a signal ended it */
        int signal;    /* 0 when it exited by itself */
        bool timed_out;
        bool leftover; /* something it started still runs and holds its output open */
        int64_t duration_ms;
        struct agent_capture out, err;
};
void agent_exec_result_clear(struct agent_exec_result *r);
#define _cleanup_exec_result_ _cleanup_(agent_exec_result_clear)

/* Runs a command to its end. -ECANCELED closes the stream, which kills all that the command started. */
int agent_exec(struct agent *a, const struct agent_exec_args *args, const struct op *op, struct agent_exec_result *ret,
               struct error *err);

struct agent_read_args {
        const char *path;
        uint64_t offset;     /* bytes; only when start_line is 0 */
        uint64_t limit;      /* greatest number of bytes to return */
        uint64_t start_line; /* from 1; 0: by bytes */
        uint64_t line_count; /* 0: to the end */
};
struct agent_read_result {
        uint64_t size;  /* of the file */
        uint64_t bytes; /* returned */
        bool truncated; /* there is more behind what was returned */
};
/* Appends the content to out; -EFBIG when it does not fit out->max. */
int agent_file_read(struct agent *a, const struct agent_read_args *args, const struct op *op, struct buf *out,
                    struct agent_read_result *ret, struct error *err);

/* mode: octal text such as "0644", or NULL. The file appears whole or not at all, unless append. */
int agent_file_write(struct agent *a, const char *path, const void *data, size_t n, const char *mode, bool append,
                     const struct op *op, uint64_t *ret_written, struct error *err);

int agent_file_edit(struct agent *a, const char *path, const char *old_text, size_t old_len, const char *new_text,
                    size_t new_len, bool replace_all, const struct op *op, uint64_t *ret_replacements,
                    uint64_t *ret_other, struct error *err);

/* *ret (owned): array of {name, kind, size, permissions, modified} with modified as RFC 3339 text, in the guest's
 * order. Names that are not UTF-8 are shown sanitised, with "name_base64" beside them. */
int agent_file_list(struct agent *a, const char *path, bool recursive, unsigned max_entries, const struct op *op,
                    json_t **ret, bool *ret_truncated, struct error *err);
