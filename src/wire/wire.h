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
 * each stream has a credit of WIRE_WINDOW bytes of bulk data, renewed as the receiver consumes, so that a slow reader
 * of one stream never blocks another. A frame of unknown kind or for an unknown stream is answered or ignored, never
 * a reason to drop the connection; a frame with an impossible length is.
 *
 * The handshake (handshake.h) comes first and again after every loss: a virtio-serial port may drop bytes or keep old
 * ones around the moment that it is opened.
 */

#include <stdint.h>

#define WIRE_VERSION 1
#define WIRE_VSOCK_PORT 5000
#define WIRE_PORT_NAME "agentiso.0"

#define WIRE_HEADER_LEN 9u                /* length + kind + stream */
#define WIRE_FRAME_MAX (1024u * 1024u)    /* greatest value of `length` */
#define WIRE_DATA_CHUNK (64u * 1024u)     /* greatest payload of one WIRE_DATA that we send */
#define WIRE_WINDOW (256u * 1024u)        /* credit per stream and direction, in bytes of bulk data */
#define WIRE_STREAMS_MAX 256u             /* open streams per connection */
#define WIRE_MESSAGES_MAX 64u             /* control messages that may wait on one stream */
#define WIRE_OUT_MAX (4u * 1024u * 1024u) /* bytes that may wait to be written to the channel */
#define WIRE_JSON_DEPTH_MAX 16u

enum wire_kind {
        WIRE_HELLO = 1,  /* stream 0, JSON {type:"hello", version, ...}: first frame of each side */
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
        _WIRE_CH_MAX,
};

/*
 * Requests ("type" of WIRE_OPEN), what they carry and what comes back. Every request is answered by one WIRE_MSG
 * {type:"ok", ...} or {type:"error", code, message, hint?} (codes: error.h), then WIRE_CLOSE from the guest, unless
 * said otherwise. WIRE_CLOSE from the host cancels: what the request started is killed or undone.
 *
 * WIRE_REQ_INFO       -> ok {version, root_mounted, boot_ns (CLOCK_BOOTTIME), cgroup (bool)}
 * WIRE_REQ_MOUNT_ROOT {device:"/dev/vda", grow:bool} loads the disk driver, mounts, grows the file system, pivots
 *                     -> ok {already:bool, fs_bytes}
 * WIRE_REQ_CONFIGURE  {hostname?, machine_id? (32 hex), realtime_ns?, entropy? (base64), network?{mac?, address,
 *                     prefix_len, gateway?}, dns?[]} -> ok {}: all that was given is in force, or error and why
 * WIRE_REQ_EXEC       {command, workdir?, env{}?, timeout_ms?, stdin:bool} runs /bin/sh -c command
 *                     -> {type:"started", pid}; then bytes on OUT and ERR, WIRE_EOF on each when it is closed or given
 *                     up (a grandchild may keep it open); then
 *                     {type:"exit", exit_code | signal, timed_out, duration_ms, leftover:bool}
 *                     stdin:true: bytes and EOF on IN. The timeout kills everything the command started.
 *                     A lost connection kills nothing: the command runs on, its output is drained.
 * WIRE_REQ_FILE_READ  {path, offset?, limit? | start_line?, line_count?} -> ok {size, mode, kind} then OUT bytes, EOF,
 *                     {type:"end", bytes, lines?, truncated}
 * WIRE_REQ_FILE_WRITE {path, mode?, append:bool} and bytes and EOF on IN -> ok {bytes_written}. Parents are made;
 *                     the file appears whole or not at all (temporary name and rename), unless append
 * WIRE_REQ_FILE_EDIT  {path, old_len, new_len, replace_all:bool} and old, then new, on IN, EOF
 *                     -> ok {replacements, other_matches}; mode, owner and extended attributes are kept
 * WIRE_REQ_FILE_LIST  {path, recursive:bool, max_entries} -> OUT: one JSON object a line {name, kind, size,
 *                     permissions ("0644"), modified_ms, target?}, EOF, {type:"end", count, truncated}
 * WIRE_REQ_SHUTDOWN   {} -> ok after SIGTERM to all, sync and unmount; then the machine powers off
 */
#define WIRE_REQ_INFO "info"
#define WIRE_REQ_MOUNT_ROOT "mount_root"
#define WIRE_REQ_CONFIGURE "configure"
#define WIRE_REQ_EXEC "exec"
#define WIRE_REQ_FILE_READ "file_read"
#define WIRE_REQ_FILE_WRITE "file_write"
#define WIRE_REQ_FILE_EDIT "file_edit"
#define WIRE_REQ_FILE_LIST "file_list"
#define WIRE_REQ_SHUTDOWN "shutdown"

#define WIRE_MSG_OK "ok"
#define WIRE_MSG_ERROR "error"
#define WIRE_MSG_STARTED "started"
#define WIRE_MSG_EXIT "exit"
#define WIRE_MSG_END "end"

#define WIRE_PATH_MAX 4096u
