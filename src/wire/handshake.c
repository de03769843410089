/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/handshake.h"

#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>

#include "base/buf.h"
#include "wire/channel.h"
#include "wire/wire.h"

#define MAGIC_LEN 16u
#define NONCE_LEN (HANDSHAKE_LEN - MAGIC_LEN)

/* Read as a frame's length, the first bytes of either magic are out of range: a peer that takes a preamble for a frame
 * notices at once. */
static const uint8_t host_magic[MAGIC_LEN] = {'a', 'g', 'e', 'n', 't', 'i', 's', 'o',
                                              '-', 'h', 'o', 's', 't', '-', '1', '\n'};
static const uint8_t guest_magic[MAGIC_LEN] = {'a', 'g', 'e', 'n', 't', 'i', 's', 'o',
                                               '-', 'g', 'u', 'e', 's', 't', '1', '\n'};

/* Zero bytes before the preamble from the second try on; see handshake.h. */
#define FLUSH_LEN (WIRE_FRAME_MAX + 16u)

/* Tries come further and further apart: a guest that needs longer than the first interval to work through one try
 * (a loaded host, emulation) would otherwise always answer the last but one. */
#define RETRY_MS_MAX 4000

/* Takes one byte into a window that is always a prefix of `pattern` (so much of it is compared as is fixed): what
 * cannot be the start of it falls out in front. */
static void window_push(uint8_t window[HANDSHAKE_LEN], size_t *have, uint8_t byte, const void *pattern, size_t fixed) {
        window[(*have)++] = byte;
        while (*have > 0 && memcmp(window, pattern, MIN(*have, fixed)) != 0) {
                (*have)--;
                memmove(window, window + 1, *have);
        }
}

int handshake_scan(struct handshake_scanner *s, const void *data, size_t n, size_t *ret_used,
                   uint8_t answer[HANDSHAKE_LEN]) {
        const uint8_t *p = data;

        for (size_t i = 0; i < n; i++) {
                window_push(s->window, &s->have, p[i], host_magic, MAGIC_LEN);
                if (s->have < HANDSHAKE_LEN)
                        continue;
                memcpy(answer, guest_magic, MAGIC_LEN);
                memcpy(answer + MAGIC_LEN, s->window + MAGIC_LEN, NONCE_LEN);
                s->have = 0;
                *ret_used = i + 1;
                return 1;
        }
        *ret_used = n;
        return 0;
}

bool handshake_ends(const void *data, size_t n) {
        return n >= HANDSHAKE_LEN && memcmp((const uint8_t *) data + n - HANDSHAKE_LEN, host_magic, MAGIC_LEN) == 0;
}

/* The host's side of one handshake. */
struct seeker {
        int fd;
        bool is_socket;
        struct buf out; /* what is left to send of this try */
        size_t sent;
        deadline_t retry_at; /* when everything was sent: the next try */
        int64_t retry_ms;

        uint8_t want[HANDSHAKE_LEN];   /* the answer to this try */
        uint8_t window[HANDSHAKE_LEN]; /* the last bytes read that may be its beginning */
        size_t have;
        size_t skipped; /* bytes read that were something else */
};

static void seeker_done(struct seeker *k) {
        buf_free(&k->out);
}

static bool seeker_sending(const struct seeker *k) {
        return k->sent < k->out.len;
}

static int seeker_begin_try(struct seeker *k, bool first) {
        uint8_t nonce[NONCE_LEN];
        int r;

        if (getrandom(nonce, sizeof(nonce), 0) != (ssize_t) sizeof(nonce))
                return -EIO;
        memcpy(k->want, guest_magic, MAGIC_LEN);
        memcpy(k->want + MAGIC_LEN, nonce, NONCE_LEN);
        k->have = 0;

        buf_clear(&k->out);
        k->sent = 0;
        if (!first) {
                r = buf_reserve(&k->out, FLUSH_LEN + HANDSHAKE_LEN);
                if (r < 0)
                        return r;
                memset(k->out.data, 0, FLUSH_LEN);
                k->out.len = FLUSH_LEN;
        }
        r = buf_append(&k->out, host_magic, MAGIC_LEN);
        if (r == 0)
                r = buf_append(&k->out, nonce, NONCE_LEN);
        return r;
}

static int seeker_send(struct seeker *k) {
        ssize_t n = channel_write(k->fd, k->is_socket, k->out.data + k->sent, k->out.len - k->sent);

        if (n < 0)
                return n == -EAGAIN ? 0 : (int) n;
        k->sent += (size_t) n;
        if (!seeker_sending(k)) {
                k->retry_at = deadline_in_ms(k->retry_ms);
                k->retry_ms = MIN(k->retry_ms * 2, (int64_t) RETRY_MS_MAX);
        }
        return 0;
}

/*
 * Reads what can be read without going past the end of the answer: the bytes behind it are frames and belong to
 * whoever takes the fd next. With `have` bytes of the answer matched, at least HANDSHAKE_LEN - have more are missing,
 * wherever it turns out to end, so that many may be asked for at once. 1: the answer is complete.
 */
static int seeker_read(struct seeker *k) {
        uint8_t piece[HANDSHAKE_LEN];

        for (;;) {
                ssize_t n = channel_read(k->fd, piece, HANDSHAKE_LEN - k->have);
                if (n == 0)
                        return -ENODATA;
                if (n < 0)
                        return n == -EAGAIN ? 0 : (int) n;

                size_t before = k->have;
                for (ssize_t i = 0; i < n; i++)
                        window_push(k->window, &k->have, piece[i], k->want, HANDSHAKE_LEN);
                if (k->have == HANDSHAKE_LEN)
                        return 1;
                k->skipped += before + (size_t) n - k->have;
                if (k->skipped > HANDSHAKE_SKIP_MAX)
                        return -EPROTO;
        }
}

/* Whether bytes that we sent still wait to be read by the other end (QEMU, for a virtio-serial port): nothing can have
 * been lost then, and a repetition would only queue up behind them. Where the kernel cannot tell: false. */
static bool peer_is_behind(int fd) {
        int waiting = 0;

        return ioctl(fd, SIOCOUTQ, &waiting) == 0 && waiting > 0;
}

static int seeker_step(struct seeker *k, const struct op *op) {
        struct op step = *op;
        short events = POLLIN;
        int r;

        if (seeker_sending(k))
                events |= POLLOUT;
        else
                step.deadline = deadline_min(op->deadline, k->retry_at);

        r = wait_fd(k->fd, events, &step);
        if (r == -ETIMEDOUT && !deadline_passed(op->deadline)) {
                if (!peer_is_behind(k->fd))
                        return seeker_begin_try(k, false);
                k->retry_at = deadline_in_ms(HANDSHAKE_RETRY_MS);
                return 0;
        }
        if (r < 0)
                return r;

        /* A peer that floods us is always readable: the deadline holds all the same. */
        if (r & ~POLLOUT) {
                int found = seeker_read(k);
                if (found != 0)
                        return found;
                if (!(r & (POLLIN | POLLOUT)))
                        return -ECONNRESET; /* POLLERR or POLLHUP that no read explains */
        }
        if (r & POLLOUT) {
                int sent = seeker_send(k);
                if (sent < 0)
                        return sent;
        }
        return op_check(op);
}

int handshake_host(int fd, const struct op *op, struct error *err) {
        _cleanup_(seeker_done) struct seeker k = {
                .fd = fd,
                .is_socket = channel_is_socket(fd),
                .out = BUF_INIT(FLUSH_LEN + HANDSHAKE_LEN),
                .retry_ms = HANDSHAKE_RETRY_MS,
        };
        struct op never = OP_INIT_NEVER;
        int r;

        if (!op)
                op = &never;
        r = seeker_begin_try(&k, true);
        while (r == 0)
                r = seeker_step(&k, op);

        switch (r) {
        case 1:
                return 0;
        case -ETIMEDOUT:
                return error_set(err, ERROR_TIMEOUT, "The guest agent did not answer the handshake in time.");
        case -ECANCELED:
                return error_set(err, ERROR_CANCELLED, "Cancelled while waiting for the guest agent.");
        case -EPROTO:
                error_set(err, ERROR_GUEST_UNREACHABLE,
                          "The guest sent more than %u MiB that are no answer to the handshake.",
                          HANDSHAKE_SKIP_MAX / (1024u * 1024u));
                error_hint(err, "Something other than the agent writes to its port: look at workspace_logs.");
                return r;
        default:
                error_set(err, ERROR_GUEST_UNREACHABLE, "The channel to the guest agent broke in the handshake: %s.",
                          r == -ENODATA ? "closed by the other side" : strerror(-r));
                return r;
        }
}
