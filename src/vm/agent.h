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

/* Takes the connected, non-blocking channel fd (also on failure), shakes hands, waits for the guest's hello. session:
 * the secret that this agent was given last (NULL: none yet); with another one it serves nobody. */
int agent_open(int fd, const char *session, const struct op *op, struct agent **ret, struct error *err);
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
/* The same once the disk has so many bytes: after vm_disk_resize() a guest that runs goes on seeing the old size for a
 * moment, and would not grow. */
int agent_mount_root_of(struct agent *a, uint64_t disk_bytes, const struct op *op, struct error *err);

struct agent_identity {
        const char *hostname;
        const char *machine_id; /* 32 hexadecimal digits */
        const char *mac;        /* NULL: leave the card alone */
        const char *address;    /* dotted quad */
        unsigned prefix_len;
        const char *gateway;    /* NULL: none; need not be in the network of the address */
        bool reset;             /* the machine goes on from a saved state: end what connections it had */
        const char *const *dns; /* NULL: leave the name servers as they are */
        size_t n_dns;
        const char *session; /* SESSION_LEN hexadecimal digits; NULL: as it is */
};
#define SESSION_LEN 32
/* Gives the guest its identity, the host's clock and 64 bytes of fresh entropy, in one request, and a secret that
 * connections after this one must have. Returns only when the guest has said that all of it is in force: that its
 * generator was reseeded, that its clock is within CLOCK_TOLERANCE_MS of the host's (or, on a host that is too busy to
 * tell, that nothing speaks against it). */
#define CLOCK_TOLERANCE_MS 50
int agent_configure(struct agent *a, const struct agent_identity *id, const struct op *op, struct error *err);
/* Writes back what the guest has in memory and freezes its file systems (FIFREEZE), or, where that does not work,
 * only writes back (*ret_frozen). They thaw by themselves after max_ms, or when this connection is lost. */
int agent_freeze(struct agent *a, unsigned max_ms, const struct op *op, bool *ret_frozen, struct error *err);
/* not_found: they had thawed by themselves, so what was done meanwhile was not done to frozen ones. */
int agent_thaw(struct agent *a, const struct op *op, struct error *err);
/* sync(2). */
int agent_sync(struct agent *a, const struct op *op, struct error *err);
/*
 * Relays an accepted TCP connection (borrowed) to a port on the loopback of the guest, until both directions have ended
 * (0) or op ends. A half-closed connection stays one; a side that is slow makes the other one wait, and nobody else. At
 * most WIRE_RELAYS_MAX at a time. -ECONNREFUSED: nobody listens there; nothing was read from fd. After other errors
 * than that, closing fd resets its connection, unless all that was due to it was written. op may go on for ever: a
 * guest that does not connect within 10 s (-ETIMEDOUT), and a client that breaks the connection (-ECONNRESET), end it.
 */
int agent_relay(struct agent *a, uint16_t port, int fd, const struct op *op, struct error *err);
/* Sync, unmount, power off. The connection is lost soon after. */
int agent_shutdown(struct agent *a, const struct op *op, struct error *err);

/* What is known of one output of a command: its beginning, then `cut` bytes that are not here, then its end. */
struct agent_output {
        struct buf head, tail; /* the tail is empty when nothing is cut */
        uint64_t cut;          /* bytes missing between the two */
        uint64_t total;        /* bytes that the command has written in all */
};
void agent_output_clear(struct agent_output *o);

struct agent_exec_args {
        const char *command;
        const char *workdir; /* NULL: the guest's default */
        json_t *env;         /* borrowed object of strings, or NULL */
        const void *stdin_data;
        size_t stdin_len;   /* 0: standard input is /dev/null. At most WIRE_STDIN_MAX */
        int64_t timeout_ms; /* 0: none. Enforced by the guest; op->deadline is the second net */
        int64_t yield_ms;   /* 0: never. After so long, the command goes on as a job and the call returns */
        size_t max_output;  /* bytes kept of each of stdout and stderr: at most WIRE_OUTPUT_MAX */
};

struct agent_exec_result {
        uint64_t job_id; /* 0 unless it yielded; then the next four mean nothing */
        int exit_code;   /* -1 when a signal ended it */
        int signal;      /* 0 when it exited by itself */
        bool timed_out;
        bool leftover; /* something it started still runs and holds its output open */
        int64_t duration_ms;
        struct agent_output out, err;
};
void agent_exec_result_clear(struct agent_exec_result *r);
#define _cleanup_exec_result_ _cleanup_(agent_exec_result_clear)

/* Runs a command to its end, or to its yielding. The newest line of its output goes to op's progress. On -ECANCELED all
 * that the command started is killed; when the guest does not answer in time, it goes on as a job. */
int agent_exec(struct agent *a, const struct agent_exec_args *args, const struct op *op, struct agent_exec_result *ret,
               struct error *err);

/*
 * Jobs: commands that run in the guest without anybody waiting. The guest numbers them from 1, keeps their output
 * within its limits (guest/spool.h), and keeps both over a loss of the connection.
 */
struct agent_terminal {
        unsigned cols, rows; /* 0: the guest's default */
};
/* The job runs args->command with args->workdir, env and timeout_ms. terminal NULL: pipes. */
int agent_job_start(struct agent *a, const struct agent_exec_args *args, const struct agent_terminal *terminal,
                    const struct op *op, uint64_t *ret_job_id, struct error *err);

struct agent_job_read_args {
        uint64_t job_id;
        int64_t wait_ms;                /* at most WIRE_JOB_WAIT_MAX_MS */
        int64_t out_offset, err_offset; /* bytes; -1: all, and what is too long loses its middle */
        size_t max_output;              /* bytes of each of stdout and stderr: at most WIRE_OUTPUT_MAX */
};
struct agent_job {
        bool running;
        bool pty;
        struct agent_exec_result result; /* exit_code, signal, timed_out, leftover only when it has ended */
};
void agent_job_clear(struct agent_job *j);
/* Waits for news, then reads. result.out and result.err are what stands behind the offsets. */
int agent_job_read(struct agent *a, const struct agent_job_read_args *args, const struct op *op, struct agent_job *ret,
                   struct error *err);
/* Writes to the job's standard input, waiting at most wait_ms for it to be read; *ret_written may be less than n. */
int agent_job_write(struct agent *a, uint64_t job_id, const void *data, size_t n, bool eof, int64_t wait_ms,
                    const struct op *op, uint64_t *ret_written, struct error *err);
/* *ret_running: whether it still runs; *ret_processes: how many got the signal. */
int agent_job_kill(struct agent *a, uint64_t job_id, int sig, const struct op *op, bool *ret_running,
                   uint64_t *ret_processes, struct error *err);
int agent_job_resize(struct agent *a, uint64_t job_id, const struct agent_terminal *terminal, const struct op *op,
                     struct error *err);
/* *ret (owned): array of {job_id, command, running, pty, exit_code (null while it runs; 128 + signal), signal?,
 * timed_out, left_running, started_at (RFC 3339), duration_ms, stdout_bytes, stderr_bytes}, oldest first. *ret_total:
 * jobs that the guest knows. */
int agent_job_list(struct agent *a, unsigned max, const struct op *op, json_t **ret, uint64_t *ret_total,
                   struct error *err);
/* Environment of all later commands: sets vars (object of strings), then removes the names in unset (array or NULL).
 * Held in the guest's memory only. *ret_total: variables that are set now. */
int agent_set_env(struct agent *a, json_t *vars, json_t *unset, const struct op *op, uint64_t *ret_total,
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

/*
 * Files of any size between an open file of the host and a path of the guest, in constant memory. Holes stay holes.
 * sha256 is computed here, over the bytes as they are sent or as they are written, holes as zeros. Instead of a
 * deadline for the whole, there is a least speed: of each AGENT_TRANSFER_STALL_MS that are spent waiting for the guest,
 * AGENT_TRANSFER_MIN_BYTES of the file (holes included) or a message have to come. op's deadline holds beside it.
 * Progress is told in MiB.
 */
#ifndef AGENT_TRANSFER_STALL_MS /* the test of it has a shorter one */
#define AGENT_TRANSFER_STALL_MS 60000
#endif
#define AGENT_TRANSFER_MIN_BYTES (64u * 1024u)
#define SHA256_HEX_LEN 64

struct agent_transfer {
        uint64_t bytes; /* holes included */
        char sha256[SHA256_HEX_LEN + 1];
        unsigned mode; /* permission bits of the source */
};
/* Uploads fd, a regular file read from its beginning to the size that it has now; a file that becomes shorter meanwhile
 * is an error. The guest's file appears whole or not at all, with permission bits `mode`. */
int agent_upload(struct agent *a, int fd, const char *guest_path, unsigned mode, const struct op *op,
                 struct agent_transfer *ret, struct error *err);
/* Downloads to fd, an empty regular file of the caller, which is left as it is on failure (the caller drops it).
 * Refused before the first byte: more than max_bytes (the size), or more than disk_bytes (what the guest's file really
 * occupies, in whole blocks; and never more blocks than that are written). */
int agent_download(struct agent *a, const char *guest_path, int fd, uint64_t max_bytes, uint64_t disk_bytes,
                   const struct op *op, struct agent_transfer *ret, struct error *err);
