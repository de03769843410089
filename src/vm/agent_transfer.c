/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/json.h"
#include "base/str.h"
#include "vm/agent_private.h"
#include "wire/sparse.h"

#define CHUNK WIRE_DATA_CHUNK
#define MIB (1024u * 1024u)
#define MODE_BITS 0777u
#define BLOCK 4096u /* what a file occupies at least around each run of data */

_Static_assert(SHA256_HEX_LEN == 2 * SHA256_DIGEST_SIZE, "a digest as hexadecimal digits");

static const char up_doing[] = "uploading the file", down_doing[] = "downloading the file";

/* One file on its way, in either direction. */
struct transfer {
        struct mux_stream *stream;
        const char *doing;
        const struct op *op;
        uint64_t size;
        uint64_t shown; /* MiB that were last told as progress, plus one */
        struct sha256_ctx hash;
        uint64_t moved;    /* bytes of the file since waited_ns was 0 */
        int64_t waited_ns; /* for the guest, until moved is enough */
};

static void transfer_begin(struct transfer *t, struct mux_stream *s, const char *doing, uint64_t size,
                           const struct op *op) {
        *t = (struct transfer){.stream = s, .doing = doing, .op = op, .size = size};
        sha256_init(&t->hash);
}

static void tell_progress(struct transfer *t, uint64_t done) {
        uint64_t mib = done / MIB;

        if (mib + 1 == t->shown)
                return;
        t->shown = mib + 1;
        op_progress(t->op, "%" PRIu64 " of %" PRIu64 " MiB", mib, (t->size + MIB - 1) / MIB);
}

/* A wait that ran out: by the caller's deadline, or because the guest did nothing for too long. */
static int transfer_error(const struct transfer *t, int r, struct error *err) {
        if (r != -ETIMEDOUT || deadline_passed(t->op->deadline))
                return agent_error(r, t->doing, err);
        error_set(err, ERROR_TIMEOUT, "The guest moved less than %u KiB in %d s while %s",
                  AGENT_TRANSFER_MIN_BYTES / 1024, AGENT_TRANSFER_STALL_MS / 1000, t->doing);
        error_hint(err, "Look at the workspace's state and console (workspace_info, workspace_logs), then try again.");
        return r;
}

/* One wait for the guest: only these count against its speed, not what the host does with what came. */
struct wait {
        struct op op;
        int64_t began_ns;
};

static struct wait wait_begin(const struct transfer *t) {
        return (struct wait){.op = op_sub(t->op, AGENT_TRANSFER_STALL_MS - t->waited_ns / NSEC_PER_MSEC),
                             .began_ns = monotonic_ns()};
}

static void speed_reset(struct transfer *t) {
        t->moved = 0;
        t->waited_ns = 0;
}

static void wait_end(struct transfer *t, const struct wait *w) {
        t->waited_ns += monotonic_ns() - w->began_ns;
        /* It came, and yet too late: this process did not run in between. */
        if (deadline_passed(w->op.deadline))
                speed_reset(t);
}

static void count_moved(struct transfer *t, uint64_t bytes) {
        t->moved += bytes;
        if (t->moved >= AGENT_TRANSFER_MIN_BYTES)
                speed_reset(t);
}

static int next_event(struct transfer *t, struct mux_event *ret, struct error *err) {
        const struct wait w = wait_begin(t);
        _cleanup_error_ struct error detail = ERROR_INIT;

        int r = agent_next(t->stream, t->doing, &w.op, ret, &detail);
        if (r >= 0)
                wait_end(t, &w);
        /* A time-out that the guest tells of itself is none of ours. */
        if (r == -ETIMEDOUT && deadline_passed(w.op.deadline))
                return transfer_error(t, r, err);
        error_move(err, &detail);
        return r;
}

/* A message that is due has the whole time, and what follows it too. */
static int expect(struct transfer *t, const char *type, json_t **ret, struct error *err) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

        speed_reset(t);
        int r = next_event(t, &e, err);
        if (r < 0)
                return r;
        speed_reset(t);
        if (e.kind != MUX_MSG || !agent_is(e.msg, type))
                return agent_protocol_error(t->doing, NULL, err);
        *ret = TAKE_PTR(e.msg);
        return 0;
}

/* A hole counts as zeros. However long it is, a cancel is noticed. */
static int hash_hole(struct transfer *t, uint64_t at, uint64_t len, struct error *err) {
        static const uint8_t zeros[CHUNK];

        while (len > 0) {
                size_t n = (size_t) MIN(len, (uint64_t) sizeof(zeros));

                int r = op_check(t->op);
                if (r < 0)
                        return transfer_error(t, r, err);
                sha256_update(&t->hash, n, zeros);
                at += n;
                len -= n;
                tell_progress(t, at);
        }
        return 0;
}

static void transfer_result(struct transfer *t, unsigned mode, struct agent_transfer *ret) {
        uint8_t digest[SHA256_DIGEST_SIZE];

        sha256_digest(&t->hash, sizeof(digest), digest);
        *ret = (struct agent_transfer){.bytes = t->size, .mode = mode & MODE_BITS};
        for (size_t i = 0; i < sizeof(digest); i++)
                snprintf(ret->sha256 + 2 * i, 3, "%02x", digest[i]);
}

/* --- to the guest --- */

static int host_read_error(const struct transfer *t, int r, struct error *err) {
        if (r != -ENODATA)
                return error_set_errno(err, r, "Cannot read the host's file");
        r = error_set(err, ERROR_CONFLICT, "The host's file had %" PRIu64 " bytes and became shorter during the upload",
                      t->size);
        error_hint(err, "Try again when nothing writes to it.");
        return r;
}

/* What a send gave. 1: the guest has closed the stream; why, agent_next() knows. */
static int sent(struct transfer *t, const struct wait *w, int r, struct error *err) {
        if (r == -EPIPE)
                return 1;
        if (r < 0)
                return transfer_error(t, r, err);
        wait_end(t, w);
        return 0;
}

/* Sends n bytes, which stand for `moved` of the file. */
static int send_some(struct transfer *t, enum wire_channel ch, const void *data, size_t n, uint64_t moved,
                     struct error *err) {
        const struct wait w = wait_begin(t);

        int r = sent(t, &w, mux_send_data(t->stream, ch, data, n, &w.op), err);
        if (r == 0)
                count_moved(t, moved);
        return r;
}

static int send_data(struct transfer *t, int fd, uint64_t pos, uint64_t len, char *chunk, struct error *err) {
        while (len > 0) {
                ssize_t n = sparse_read(fd, chunk, (size_t) MIN(len, (uint64_t) CHUNK), pos);
                if (n < 0)
                        return host_read_error(t, (int) n, err);

                sha256_update(&t->hash, (size_t) n, (const uint8_t *) chunk);
                int r = send_some(t, WIRE_CH_IN, chunk, (size_t) n, (uint64_t) n, err);
                if (r != 0)
                        return r;
                pos += (uint64_t) n;
                len -= (uint64_t) n;
                tell_progress(t, pos);
        }
        return 0;
}

static int send_hole(struct transfer *t, uint64_t pos, uint64_t len, struct error *err) {
        uint8_t text[SPARSE_LEN_BYTES];

        sparse_len_encode(len, text);
        int r = send_some(t, WIRE_CH_HOLE, text, sizeof(text), len, err);
        return r != 0 ? r : hash_hole(t, pos, len, err);
}

static int check_not_shorter(const struct transfer *t, int fd, struct error *err) {
        struct stat st;

        if (fstat(fd, &st) < 0)
                return host_read_error(t, -errno, err);
        return (uint64_t) st.st_size < t->size ? host_read_error(t, -ENODATA, err) : 0;
}

/* 0 or 1 as send_some(). */
static int send_file(struct transfer *t, int fd, struct error *err) {
        _cleanup_free_ char *chunk = malloc(CHUNK);
        uint64_t pos = 0;
        int r = 0;

        if (!chunk)
                return error_set_errno(err, ENOMEM, "Failed while %s", t->doing);
        while (pos < t->size) {
                struct sparse_piece piece;

                r = sparse_next(fd, pos, t->size, &piece);
                if (r < 0)
                        return host_read_error(t, r, err);
                r = piece.hole ? send_hole(t, pos, piece.len, err) : send_data(t, fd, pos, piece.len, chunk, err);
                if (r != 0)
                        return r;
                pos += piece.len;
        }
        /* What was passed over as a hole may not be there any more. */
        r = check_not_shorter(t, fd, err);
        if (r < 0)
                return r;
        const struct wait w = wait_begin(t);
        return sent(t, &w, mux_send_eof(t->stream, WIRE_CH_IN, &w.op), err);
}

int agent_upload(struct agent *a, int fd, const char *guest_path, unsigned mode, const struct op *op,
                 struct agent_transfer *ret, struct error *err) {
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *ok = NULL;
        struct transfer t;
        struct stat st;
        char text[8];
        uint64_t written = 0;

        if (fstat(fd, &st) < 0)
                return error_set_errno(err, errno, "Cannot read the host's file");
        snprintf(text, sizeof(text), "%04o", mode & MODE_BITS);
        _cleanup_json_ json_t *request =
                json_pack("{s:s, s:s, s:s, s:b, s:I}", "type", WIRE_REQ_FILE_WRITE, "path", guest_path, "mode", text,
                          "append", 0, "size", (json_int_t) st.st_size);
        const struct op first = op_sub(op, AGENT_TRANSFER_STALL_MS);
        int r = agent_request(a, request, up_doing, &first, &s, err);
        if (r < 0)
                return r;
        transfer_begin(&t, s, up_doing, (uint64_t) st.st_size, op);
        r = send_file(&t, fd, err);
        if (r < 0)
                return r;
        bool cut = r == 1; /* the guest's reason comes now; an "ok" would be a lie */
        r = expect(&t, WIRE_MSG_OK, &ok, err);
        if (r < 0)
                return r;
        if (cut || agent_get_count(ok, "bytes_written", &written, &detail) < 0 || written != t.size)
                return agent_protocol_error(up_doing, &detail, err);
        transfer_result(&t, mode, ret);
        return 0;
}

/* --- from the guest --- */

struct download {
        struct transfer t;
        struct sparse_writer file;
        struct sparse_lens lens;
        uint64_t disk_bytes; /* that may be occupied */
        uint64_t charged;    /* bytes of the blocks that data was written to */
        uint64_t charged_to; /* the end of the last of these blocks */
        uint64_t free_floor; /* bytes of the host's disk that must stay free */
        unsigned mode;
        bool eof;
};

static int no_room(const struct download *d, uint64_t needed, struct error *err) {
        return error_set(err, ERROR_NO_SPACE,
                         "The host has no room for the file: %" PRIu64 " MiB are needed, and %" PRIu64
                         " MiB may be used",
                         (needed + MIB - 1) / MIB, d->disk_bytes / MIB);
}

static bool mode_valid(const char *mode) {
        return strlen(mode) == 4 && strspn(mode, "01234567") == 4;
}

/* The end of the block that a byte before `pos` lies in. */
static uint64_t block_end(uint64_t pos) {
        return pos + (BLOCK - pos % BLOCK) % BLOCK;
}

/* What the guest says of its file, and whether it may come. */
static int check_head(struct download *d, const json_t *head, uint64_t max_bytes, struct error *err) {
        _cleanup_error_ struct error detail = ERROR_INIT;
        const char *mode = NULL;
        uint64_t size = 0, allocated = 0;

        if (agent_get_count(head, "size", &size, &detail) < 0 ||
            agent_get_count(head, "allocated", &allocated, &detail) < 0 ||
            json_get_str(head, "mode", &mode, &detail) < 0 || !mode_valid(mode))
                return agent_protocol_error(d->t.doing, &detail, err);
        if (size > max_bytes)
                return error_set(err, ERROR_QUOTA_EXCEEDED,
                                 "The file has %" PRIu64 " bytes; one transfer may have at most %" PRIu64, size,
                                 max_bytes);
        /* More may be set aside for a file than it has. */
        uint64_t needed = MIN(block_end(size), allocated);
        if (needed > d->disk_bytes)
                return no_room(d, needed, err);
        d->mode = (unsigned) strtoul(mode, NULL, 8) & MODE_BITS;
        d->t.size = size;
        return 0;
}

/* Others fill the disk too: looked at again after each SPARSE_WRITE_OUT bytes. */
static int check_floor(const struct download *d, struct error *err) {
        struct statvfs st;

        if (fstatvfs(d->file.fd, &st) < 0 || (uint64_t) st.f_bavail * st.f_frsize >= d->free_floor)
                return 0;
        return error_set(err, ERROR_NO_SPACE,
                         "The host's disk became full: less than %" PRIu64 " MiB are free, which must stay free",
                         d->free_floor / MIB);
}

/* A byte between two holes costs a whole block. */
static int charge(struct download *d, uint64_t len, struct error *err) {
        uint64_t from = MAX(d->file.pos - d->file.pos % BLOCK, d->charged_to), to = block_end(d->file.pos + len);

        if (to <= from)
                return 0;
        if (to - from > d->disk_bytes - d->charged)
                return no_room(d, d->charged + (to - from), err);
        d->charged += to - from;
        d->charged_to = to;
        return 0;
}

static int take_data(struct download *d, const struct buf *data, struct error *err) {
        uint64_t before = d->charged / SPARSE_WRITE_OUT;

        if (d->lens.have > 0 || data->len > d->t.size - d->file.pos)
                return agent_protocol_error(d->t.doing, NULL, err);
        int r = charge(d, data->len, err);
        if (r < 0)
                return r;
        sha256_update(&d->t.hash, data->len, (const uint8_t *) data->data);
        r = sparse_write(&d->file, data->data, data->len);
        if (r < 0)
                return error_set_errno(err, r, "Cannot write the host's file");
        tell_progress(&d->t, d->file.pos);
        return before == d->charged / SPARSE_WRITE_OUT ? 0 : check_floor(d, err);
}

static int take_holes(struct download *d, const struct buf *data, struct error *err) {
        const char *p = data->data;
        size_t n = data->len;
        uint64_t len;

        while (sparse_lens_take(&d->lens, &p, &n, &len)) {
                /* What is shorter comes as zeros, also at the end of the file (sparse_next()). */
                if (len < SPARSE_HOLE_MIN || len > d->t.size - d->file.pos)
                        return agent_protocol_error(d->t.doing, NULL, err);
                int r = hash_hole(&d->t, d->file.pos, len, err);
                if (r < 0)
                        return r;
                r = sparse_skip(&d->file, len);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot write the host's file");
        }
        return 0;
}

static int take_end(struct download *d, const json_t *msg, struct error *err) {
        _cleanup_error_ struct error detail = ERROR_INIT;
        uint64_t bytes = 0;

        if (!agent_is(msg, WIRE_MSG_END) || !d->eof || d->lens.have > 0 ||
            agent_get_count(msg, "bytes", &bytes, &detail) < 0 || bytes != d->t.size || bytes != d->file.pos)
                return agent_protocol_error(d->t.doing, &detail, err);
        int r = sparse_finish(&d->file);
        return r < 0 ? error_set_errno(err, r, "Cannot write the host's file") : 1;
}

/* 1: that was all. */
static int take_event(struct download *d, const struct mux_event *e, struct error *err) {
        if (e->kind == MUX_MSG)
                return take_end(d, e->msg, err);
        if (d->eof)
                return agent_protocol_error(d->t.doing, NULL, err);
        if (e->kind == MUX_EOF && e->channel == WIRE_CH_OUT) {
                d->eof = true;
                return 0;
        }
        if (e->kind == MUX_DATA && e->channel == WIRE_CH_OUT)
                return take_data(d, &e->data, err);
        if (e->kind == MUX_DATA && e->channel == WIRE_CH_HOLE)
                return take_holes(d, &e->data, err);
        return agent_protocol_error(d->t.doing, NULL, err);
}

static int receive_file(struct download *d, uint64_t max_bytes, struct error *err) {
        _cleanup_json_ json_t *head = NULL;

        int r = expect(&d->t, WIRE_MSG_OK, &head, err);
        if (r >= 0)
                r = check_head(d, head, max_bytes, err);
        while (r == 0) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

                r = next_event(&d->t, &e, err);
                uint64_t before = d->file.pos;
                if (r >= 0)
                        r = take_event(d, &e, err);
                count_moved(&d->t, d->file.pos - before);
        }
        return r < 0 ? r : 0;
}

/* What is free now, less what may be taken of it. */
static uint64_t floor_of(int fd, uint64_t disk_bytes) {
        struct statvfs st;

        if (fstatvfs(fd, &st) < 0)
                return 0;
        uint64_t now = (uint64_t) st.f_bavail * st.f_frsize;
        return now - MIN(now, disk_bytes);
}

int agent_download(struct agent *a, const char *guest_path, int fd, uint64_t max_bytes, uint64_t disk_bytes,
                   const struct op *op, struct agent_transfer *ret, struct error *err) {
        _cleanup_stream_ struct mux_stream *s = NULL;
        struct download d = {.file.fd = fd, .disk_bytes = disk_bytes, .free_floor = floor_of(fd, disk_bytes)};
        _cleanup_json_ json_t *request =
                json_pack("{s:s, s:s, s:b}", "type", WIRE_REQ_FILE_READ, "path", guest_path, "sparse", 1);
        const struct op first = op_sub(op, AGENT_TRANSFER_STALL_MS);

        int r = agent_request(a, request, down_doing, &first, &s, err);
        if (r < 0)
                return r;
        transfer_begin(&d.t, s, down_doing, 0, op);
        r = receive_file(&d, max_bytes, err);
        if (r < 0)
                return r;
        transfer_result(&d.t, d.mode, ret);
        return 0;
}
