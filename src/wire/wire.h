/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The protocol between the host and the agent in a guest: numbers and names that both sides share.
 *
 * A channel (virtio-serial port or vsock connection) carries frames:
 *
 *     u32 length   big endian, of everything that follows: 5 .. WIRE_FRAME_MAX
 *     u8  kind     enum wire_kind
 *     u32 stream   big endian; 0 is the connection itself, the host opens odd streams, the guest even ones
 *     payload
 *
 * Control payloads are JSON objects with a "type"; bulk data are raw bytes behind one channel byte. Each direction of
 * each stream has a credit of WIRE_WINDOW bytes of bulk data, or of as many as the "window" of its WIRE_OPEN says,
 * renewed as the receiver consumes, so that a slow reader of one stream never blocks another. A frame of unknown kind
 * or for an unknown stream is answered or ignored, never a reason to drop the connection; a frame with an impossible
 * length is.
 *
 * The handshake (handshake.h) comes first and again after every loss: a virtio-serial port may drop bytes or keep old
 * ones around the moment that it is opened.
 */

#include <stdint.h>

#define WIRE_VERSION 4
#define WIRE_VSOCK_PORT 5000
#define WIRE_PORT_NAME "agentiso.0"

#define WIRE_HEADER_LEN 9u             /* length + kind + stream */
#define WIRE_FRAME_MAX (1024u * 1024u) /* greatest value of `length` */
/* Most bytes of data in one WIRE_DATA that we send: with its heads it makes 64 KiB, which a virtio-serial port takes in
 * two writes. */
#define WIRE_DATA_CHUNK (64u * 1024u - WIRE_HEADER_LEN - 1u)
#define WIRE_FRAME_MS 10000        /* for a guest to send a frame to its end, once it has begun it */
#define WIRE_WINDOW (512u * 1024u) /* credit per stream and direction, in bytes of bulk data */
#define WIRE_WINDOW_MIN 4096u      /* least "window" of a request; WIRE_WINDOW is the greatest */
#define WIRE_STREAMS_MAX 512u      /* open streams per connection */
/* Relays at a time. What is left of the streams is for everything else. */
#define WIRE_RELAYS_MAX 224u
/*
 * Credit of a relay. Both sides may have to keep so much for each direction of each: with this, 56 MiB for all relays,
 * where WIRE_WINDOW would make 224 MiB, which a small guest has not got. It is enough for 250 MB/s at a round trip of
 * half a millisecond.
 */
#define WIRE_RELAY_WINDOW (128u * 1024u)
#define WIRE_MESSAGES_MAX 64u             /* control messages that may wait on one stream */
#define WIRE_OUT_MAX (6u * 1024u * 1024u) /* bytes that may wait to be written to the channel */
#define WIRE_JSON_DEPTH_MAX 16u

enum wire_kind {
        /* Stream 0, JSON {type:"hello", version, ...}: first frame of each side. The host's comes first and may have
         * `session`; the guest's has `agent` (its version) and `session_ok`: whether it takes requests from that host
         */
        WIRE_HELLO = 1,
        WIRE_OPEN = 2,   /* JSON request: opens the stream */
        WIRE_MSG = 3,    /* JSON message on a stream */
        WIRE_DATA = 4,   /* u8 channel, bytes */
        WIRE_EOF = 5,    /* u8 channel: no more bytes on it */
        WIRE_CREDIT = 6, /* u32 big endian: so many more bytes may be sent on this stream */
        WIRE_CLOSE = 7,  /* ends the stream in both directions; payload empty or JSON {type:"error", ...} */
        WIRE_PING = 8,   /* stream 0, up to 64 bytes, sent back in a WIRE_PONG */
        WIRE_PONG = 9,
};

/* Channels of WIRE_DATA. */
enum wire_channel {
        WIRE_CH_IN = 0,  /* host to guest: standard input, file content */
        WIRE_CH_OUT = 1, /* guest to host: standard output, file content, listings */
        WIRE_CH_ERR = 2, /* guest to host: standard error */
        /* Either way, in files that are moved sparse: each 8 bytes (big endian) are the length of a hole that stands
         * between the bytes before and after it. What arrives may be joined: take it in pieces of 8. */
        WIRE_CH_HOLE = 3,
        WIRE_CH_NEWS = 4, /* guest to host: lines that say how far a command is, each with a line feed at its end */
        _WIRE_CH_MAX,
};

/*
 * Requests ("type" of WIRE_OPEN), what they carry and what comes back. Every request is answered by one WIRE_MSG
 * {type:"ok", ...} or {type:"error", code, message, hint?} (codes: error.h), then WIRE_CLOSE from the guest, unless
 * said otherwise. WIRE_CLOSE from the host before that cancels: what the request started is killed or undone.
 *
 * WIRE_REQ_INFO       -> ok {version, root_mounted, boot_ns (CLOCK_BOOTTIME), cgroup (bool)}
 * WIRE_REQ_MOUNT_ROOT {device:"/dev/vda", grow:bool, disk_bytes?} gives the disk its driver, mounts, grows the file
 *                     system, pivots -> ok {already:bool, fs_bytes}. disk_bytes: waits until the disk has so many
 * WIRE_REQ_CONFIGURE  {hostname?, machine_id? (32 hex), realtime_ns?, entropy? (base64), network?{mac?, address,
 *                     prefix_len, gateway?, reset:bool?}, dns?[], session?} -> ok {realtime_ns, reseeded:bool}: all
 *                     that was given is in force, or error and why; what was frozen has thawed. realtime_ns: the clock,
 *                     read last. gateway: the next hop to everywhere; it need not be in the network of the address.
 *                     reset: the machine goes on from a saved state, so what connections it had are over: they are
 *                     ended, but for those within the machine. Without it, those from an address that is taken away.
 *                     session (WIRE_SESSION_LEN hex): from now on the hello of the host must carry it, or all requests
 *                     of that connection but WIRE_REQ_INFO are refused
 * WIRE_REQ_FREEZE     {max_ms} writes back and freezes the file systems that can be -> ok {frozen:bool}; they thaw
 *                     after max_ms, and when the connection is lost
 * WIRE_REQ_THAW       {} -> ok {}, or not_found when nothing is frozen
 * WIRE_REQ_SYNC       {} -> ok {}
 * WIRE_REQ_EXEC       {command, workdir?, env{}?, timeout_ms?, yield_ms?, stdin:bool, max_output, progress_ms?} runs
 *                     /bin/sh -c command. stdin:true: bytes and EOF on IN; the command starts when all are there. While
 *                     it runs, at most one in progress_ms, on NEWS: the newest line of its output. Then
 *                     its output (see below) and {type:"exit", exit_code | signal, timed_out, duration_ms,
 *                     leftover:bool, out{}, err{}}; or, if it still runs after yield_ms, the output so far and
 *                     {type:"yielded", job_id, duration_ms, out{}, err{}}: it has become a job.
 *                     The timeout kills everything the command started, before or after it has become a job. So does
 *                     WIRE_CLOSE before the last message. Behind the last message, WIRE_CLOSE says that it was taken.
 *                     Until then, a lost connection or a WIRE_CLOSE of code "timeout" (the host could not wait any
 *                     longer) makes the command a job that nobody has asked for: WIRE_REQ_JOB_LIST has it.
 * WIRE_REQ_JOB_START  {command, workdir?, env{}?, timeout_ms?, pty:bool, cols?, rows?} -> ok {job_id, pid}
 * WIRE_REQ_JOB_READ   {job_id, wait_ms, out_offset?, err_offset?, max_output} waits until there is output behind one of
 *                     the offsets (without one: output that no reader without an offset was given), or the job has
 *                     ended, or wait_ms have passed. An offset behind the end is answered at once, with nothing. Then
 *                     the output and {type:"job", running, exit_code | signal (when it has ended), timed_out, leftover,
 *                     duration_ms, pty, out{}, err{}}
 * WIRE_REQ_JOB_WRITE  {job_id, eof:bool, wait_ms} and at most WIRE_JOB_WRITE_MAX bytes and EOF on IN; they go to the
 *                     job's standard input, waiting at most wait_ms for the job to read -> ok {written}. eof closes it
 *                     behind them, if all were written (on a terminal: sends the end-of-file character).
 * WIRE_REQ_JOB_KILL   {job_id, signal} to all processes of the job; of an ended one, to those that it left behind. For
 *                     SIGKILL the answer comes when they are gone. -> ok {running:bool, processes}: whether the job
 *                     still runs, how many processes were signalled
 * WIRE_REQ_JOB_RESIZE {job_id, cols, rows} -> ok {}
 * WIRE_REQ_JOB_LIST   {max} -> ok {total, jobs[{job_id, command, running, pty, exit_code | signal, timed_out, leftover,
 *                     started_ms (realtime), duration_ms, out_total, err_total}]}: the running ones and the newest of
 *                     the others, max in all, oldest first; commands are cut
 * WIRE_REQ_SET_ENV    {vars{}, unset[]?} -> ok {total}: for all commands from now on, beneath their own env. In memory
 *                     only.
 *
 *                     Output of a command: bytes on OUT and ERR, at most max_output of each, and in the message behind
 *                     them out{head, cut, total} and err{} alike: of the bytes sent, the first `head`; then `cut` bytes
 *                     are missing; then the rest. total: all that was ever written. Without an offset, what is too long
 *                     loses its middle; from an offset, reading goes on with the next bytes that are kept, and the next
 *                     offset is offset + sent + cut.
 * WIRE_REQ_FILE_READ  {path, offset?, limit? | start_line?, line_count? | sparse:bool} -> ok {size, mode, kind,
 *                     allocated (bytes on disk)} then OUT bytes (sparse: and HOLE), EOF on OUT, {type:"end", bytes
 *                     (holes included), lines?, truncated}
 * WIRE_REQ_FILE_WRITE {path, mode?, append:bool, size?} and bytes (unless append: and HOLE) and EOF on IN
 *                     -> ok {bytes_written (holes included)}. Parents are made; the file appears whole or not at all
 *                     (temporary name and rename), unless append
 * WIRE_REQ_FILE_EDIT  {path, old_len, new_len, replace_all:bool} and old, then new, on IN, EOF
 *                     -> ok {replacements, other_matches}; mode, owner and extended attributes are kept
 * WIRE_REQ_FILE_LIST  {path, recursive:bool, max_entries} -> OUT: one JSON object a line {name, kind, size,
 *                     permissions ("0644"), modified_ms, target?}, EOF, {type:"end", count, truncated}
 * WIRE_REQ_RELAY      {port, window} a TCP connection to the port on the loopback of the guest, 127.0.0.1 or else ::1
 *                     -> ok, or not_found when nobody listens there; then its bytes, on IN to the program that listens
 *                     and on OUT from it. EOF ends one direction. When both have ended the guest closes the stream;
 *                     also when the program has closed its end and takes no more. A WIRE_CLOSE with a reason means that
 *                     the connection broke, as a TCP reset does; so does one of the host. At most WIRE_RELAYS_MAX
 * WIRE_REQ_SHUTDOWN   {} -> ok after SIGTERM to all, sync and unmount; then the machine powers off
 */
#define WIRE_REQ_INFO "info"
#define WIRE_REQ_MOUNT_ROOT "mount_root"
#define WIRE_REQ_CONFIGURE "configure"
#define WIRE_REQ_FREEZE "freeze"
#define WIRE_REQ_THAW "thaw"
#define WIRE_REQ_SYNC "sync"
#define WIRE_REQ_EXEC "exec"
#define WIRE_REQ_JOB_START "job_start"
#define WIRE_REQ_JOB_READ "job_read"
#define WIRE_REQ_JOB_WRITE "job_write"
#define WIRE_REQ_JOB_KILL "job_kill"
#define WIRE_REQ_JOB_RESIZE "job_resize"
#define WIRE_REQ_JOB_LIST "job_list"
#define WIRE_REQ_SET_ENV "set_env"
#define WIRE_REQ_FILE_READ "file_read"
#define WIRE_REQ_FILE_WRITE "file_write"
#define WIRE_REQ_FILE_EDIT "file_edit"
#define WIRE_REQ_FILE_LIST "file_list"
#define WIRE_REQ_RELAY "relay"
#define WIRE_REQ_SHUTDOWN "shutdown"

#define WIRE_MSG_OK "ok"
#define WIRE_MSG_ERROR "error"
#define WIRE_MSG_EXIT "exit"
#define WIRE_MSG_YIELDED "yielded"
#define WIRE_MSG_JOB "job"
#define WIRE_MSG_END "end"

#define WIRE_SESSION_LEN 32u      /* lower-case hexadecimal digits */
#define WIRE_ENTROPY_MIN 32u      /* bytes; with less a generator is not reseeded */
#define WIRE_FREEZE_MAX_MS 60000u /* greatest max_ms */
#define WIRE_PATH_MAX 4096u
#define WIRE_OUTPUT_MAX (512u * 1024u)      /* greatest max_output, per stream */
#define WIRE_STDIN_MAX (16u * 1024u * 1024) /* standard input of one WIRE_REQ_EXEC, in bytes */
#define WIRE_JOB_WRITE_MAX (1024u * 1024u)
#define WIRE_JOB_LIST_MAX 300u
#define WIRE_JOB_COMMAND_SHOWN 200u       /* bytes of a command in WIRE_REQ_JOB_LIST */
#define WIRE_JOB_WAIT_MAX_MS 600000       /* greatest wait_ms */
#define WIRE_TERMINAL_MAX 1000u           /* greatest cols and rows */
#define WIRE_ENV_VARS_MAX 256u            /* variables in one env, and set by WIRE_REQ_SET_ENV in all */
#define WIRE_ENV_BYTES_MAX (256u * 1024u) /* names and values of all variables of WIRE_REQ_SET_ENV */
