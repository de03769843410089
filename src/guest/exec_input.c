/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/exec_input.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "base/io.h"

#define PIPE_BYTES (64u * 1024u) /* what a pipe holds unless it is told otherwise, pipe(7) */

struct incoming {
        struct agent *agent;
        struct buf small; /* as long as it may fit into a pipe */
        int memory_fd;
        size_t len;
        size_t taken; /* from agent.inputs */
};

static void incoming_clear(struct incoming *in) {
        buf_free(&in->small);
        close_fd(in->memory_fd);
        budget_give(&in->agent->inputs, in->taken);
}

static int too_much(const char *why, enum error_code code, struct error *err) {
        int r = error_set(err, code, "The standard input is too large: %s", why);

        error_hint(err, "Write it to a file with file_write, and redirect it in the command: command < file.");
        return r;
}

static int put(struct incoming *in, const void *data, size_t n, struct error *err) {
        struct op op = OP_INIT_NEVER;
        int r;

        if (!budget_take(&in->agent->inputs, n))
                return too_much("the machine's memory has no room for it beside that of other commands", ERROR_NO_SPACE,
                                err);
        in->taken += n;
        r = write_full(in->memory_fd, data, n, &op);
        return r < 0 ? error_set_errno(err, r, "Cannot keep the standard input in memory") : 0;
}

/* Goes over from the buffer to a file in memory. */
static int spill(struct incoming *in, struct error *err) {
        in->memory_fd = memfd_create("stdin", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (in->memory_fd < 0)
                return error_set_errno(err, errno, "Cannot keep the standard input in memory");
        return put(in, in->small.data, in->small.len, err);
}

static int take(struct incoming *in, const struct buf *data, struct error *err) {
        int r = 0;

        if (data->len > WIRE_STDIN_MAX - in->len)
                return too_much("it has more than 16 MiB", ERROR_INVALID_ARGUMENT, err);
        in->len += data->len;
        if (in->len <= PIPE_BYTES)
                return buf_append(&in->small, data->data, data->len);
        if (in->memory_fd < 0)
                r = spill(in, err);
        return r < 0 ? r : put(in, data->data, data->len, err);
}

/* What it is sealed against would grow what the budget knows of. */
static int finish_memory(struct incoming *in, struct exec_input *ret, struct error *err) {
        if (fcntl(in->memory_fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE) < 0 ||
            lseek(in->memory_fd, 0, SEEK_SET) < 0)
                return error_set_errno(err, errno, "Cannot keep the standard input in memory");
        *ret = (struct exec_input){.fd = TAKE_FD(in->memory_fd), .bytes = in->taken};
        in->taken = 0;
        return 0;
}

static int finish(struct incoming *in, struct exec_input *ret, struct error *err) {
        _cleanup_close_ int from = -1, to = -1;
        struct op op = OP_INIT_NEVER;
        int fds[2], r;

        if (in->memory_fd >= 0)
                return finish_memory(in, ret, err);
        if (pipe2(fds, O_CLOEXEC) < 0)
                return error_set_errno(err, errno, "Cannot make a pipe");
        from = fds[0];
        to = fds[1];
        /* The system gives smaller ones to whoever has very many. */
        if (fcntl(to, F_GETPIPE_SZ) < (int) PIPE_BYTES) {
                r = spill(in, err);
                return r < 0 ? r : finish_memory(in, ret, err);
        }
        r = write_full(to, in->small.data, in->small.len, &op);
        if (r < 0)
                return error_set_errno(err, r, "Cannot write the standard input");
        *ret = (struct exec_input){.fd = TAKE_FD(from)};
        return 0;
}

int exec_input_receive(struct request *req, struct exec_input *ret, struct error *err) {
        _cleanup_(incoming_clear) struct incoming in = {
                .agent = req->agent, .small = BUF_INIT(PIPE_BYTES), .memory_fd = -1};
        struct op op = OP_INIT_NEVER;

        for (;;) {
                _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;
                int r = mux_recv(req->stream, &op, &ev);

                if (r < 0)
                        return r;
                if (ev.kind == MUX_CLOSED || ev.kind == MUX_LOST)
                        return 1;
                if (ev.kind == MUX_EOF && ev.channel == WIRE_CH_IN)
                        return finish(&in, ret, err);
                if (ev.kind == MUX_DATA && ev.channel == WIRE_CH_IN && (r = take(&in, &ev.data, err)) < 0)
                        return r;
        }
}
