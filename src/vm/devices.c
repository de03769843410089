/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of a machine's devices, and its memory at the same instant.
 *
 * A machine that is stopped still lives: QEMU's main loop goes on, and what waits to be sent over the agent's channel
 * is taken out of the guest's memory as soon as there is room in the socket. Devices that were saved before that, and
 * pages that were copied after it, do not fit together: QEMU refuses them (measured: one snapshot in five during a
 * download). So QEMU gets a pipe to write the devices to, which holds less than they take. Its main loop then stands in
 * the middle of it until we read, and in that time we copy the pages.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"
#include "base/thread.h"
#include "vm/state_private.h"

#define PIPE_BYTES 4096 /* the least that there is; the devices take several times as much */
#define READ_CHUNK 65536

/* Gives QEMU a descriptor. */
static int fdset_add(struct devices *d, int fd, const struct op *op, struct error *err) {
        _cleanup_json_ json_t *reply = NULL;

        int r = qmp_call_with_fd(d->qmp, "add-fd", NULL, fd, op, &reply, err);
        if (r >= 0)
                r = json_get_int(reply, "fd", &d->their_fd, err);
        return r < 0 ? r : json_get_int(reply, "fdset-id", &d->fdset, err);
}

static void fdset_remove(struct qmp *qmp, int64_t id) {
        const struct op op = op_timeout(VM_GO_ON_MS);
        _cleanup_json_ json_t *arguments = json_pack("{s:I}", "fdset-id", (json_int_t) id);

        (void) qmp_call(qmp, "remove-fd", arguments, &op, NULL, NULL);
}

int devices_prepare(struct devices *d, struct qmp *qmp, const struct op *op, struct error *err) {
        int ends[2];

        if (pipe2(ends, O_CLOEXEC) < 0)
                return error_set_errno(err, errno, "Cannot make a pipe for the devices of a VM");
        _cleanup_close_ int theirs = ends[1];
        d->qmp = qmp;
        d->pipe_fd = ends[0];
        const int bytes = fcntl(d->pipe_fd, F_SETPIPE_SZ, PIPE_BYTES);
        if (bytes < 0 || fd_set_nonblock(d->pipe_fd, true) < 0)
                return error_set_errno(err, errno, "Cannot make a pipe for the devices of a VM");
        d->pipe_bytes = (size_t) bytes;
        return fdset_add(d, theirs, op, err);
}

void devices_clear(struct devices *d) {
        d->pipe_fd = close_fd(d->pipe_fd);
        if (d->fdset >= 0)
                fdset_remove(d->qmp, d->fdset);
        d->fdset = -1;
        buf_free(&d->state);
}

/* The thread at our end of the pipe. */
struct reader {
        struct devices *d;
        struct page_copy *pages;
        struct op op; /* cancelled when QEMU is done */
        int r;
        struct error err;
};

/* What has come. 0: no more for now. */
static int read_some(struct devices *d) {
        char chunk[READ_CHUNK];

        ssize_t n = read(d->pipe_fd, chunk, sizeof(chunk));
        if (n < 0)
                return errno == EAGAIN ? 0 : errno == EINTR ? 1 : -errno;
        if (n == 0)
                return -ENODATA; /* QEMU has ended */
        int r = buf_append(&d->state, chunk, (size_t) n);
        return r < 0 ? r : 1;
}

/* Reads until QEMU is done, and what it has left behind. */
static int read_all(struct reader *reader) {
        int r;

        do {
                r = wait_fd(reader->d->pipe_fd, POLLIN, &reader->op);
                if (r >= 0)
                        r = read_some(reader->d);
        } while (r >= 0);
        if (r != -ECANCELED)
                return r;
        while ((r = read_some(reader->d)) > 0)
                ;
        return r;
}

static void *reader_main(void *arg) {
        struct reader *reader = arg;
        struct devices *d = reader->d;

        reader->r = wait_fd(d->pipe_fd, POLLIN, &reader->op);
        if (reader->r >= 0)
                reader->r = page_copy_take(reader->pages, &reader->op, &reader->err);
        if (reader->r >= 0) {
                (void) fcntl(d->pipe_fd, F_SETPIPE_SZ, READ_CHUNK); /* from here on it cannot go too fast */
                reader->r = read_all(reader);
        }
        /* QEMU has more to say than a pipe holds: it would stand there for ever. */
        if (reader->r < 0)
                d->pipe_fd = close_fd(d->pipe_fd);
        return NULL;
}

/* *ret_refused: QEMU said no, and not only because it was told to stop. */
static int save(struct devices *d, struct reader *reader, const struct op *op, bool *ret_refused, struct error *err) {
        _cleanup_json_ json_t *arguments = NULL;
        char path[64];
        pthread_t thread;

        /* By its own name for it, "/dev/fdset/...", QEMU would cut it off first, which a pipe refuses. */
        snprintf(path, sizeof(path), "/proc/self/fd/%lld", (long long) d->their_fd);
        arguments = json_pack("{s:s, s:b}", "filename", path, "live", false);
        int r = arguments ? thread_start(&thread, "vm-save", reader_main, reader) : -ENOMEM;
        if (r < 0)
                return error_set_errno(err, r, "Cannot save the devices of a VM");
        r = qmp_call(d->qmp, "xen-save-devices-state", arguments, op, NULL, err);
        cancel_fire(reader->op.cancel);
        pthread_join(thread, NULL);
        *ret_refused = r < 0 && error_is_set(err) && (err->code == ERROR_INTERNAL || err->code == ERROR_UNSUPPORTED);
        return r;
}

int devices_save(struct devices *d, struct page_copy *pages, const struct op *op, bool *ret_unsupported,
                 struct error *err) {
        _cleanup_cancel_ struct cancel *done = cancel_new();
        struct reader reader = {.d = d, .pages = pages, .op = {.deadline = op->deadline, .cancel = done}};
        _cleanup_error_ struct error why = ERROR_INIT;
        bool refused = false;

        if (!done)
                return error_set_errno(err, ENOMEM, "Cannot save the devices of a VM");
        int r = save(d, &reader, op, &refused, &why);
        if (r >= 0 && d->state.len <= d->pipe_bytes) {
                refused = true;
                r = error_set(&why, ERROR_INTERNAL, "QEMU did not wait with the devices");
        } else if (reader.r < 0 && reader.r != -ECANCELED && reader.r != -ETIMEDOUT && error_is_set(&reader.err)) {
                /* Because of that QEMU has failed, too. */
                refused = false;
                r = reader.r;
                error_move(&why, &reader.err);
        } else if (r >= 0 && reader.r < 0)
                r = error_set_errno(&why, reader.r, "Cannot save the devices of a VM");
        error_clear(&reader.err);
        if (r < 0) {
                *ret_unsupported = refused;
                error_move(err, &why);
        }
        return r;
}
