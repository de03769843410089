/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Frame codec: bytes to frames and back. No I/O. The decoder is fed bytes of a hostile peer. */

#include <string.h>

#include "base/buf.h"
#include "wire/wire.h"

struct frame {
        uint8_t kind;
        uint32_t stream;
        const uint8_t *payload; /* inside the decoder's buffer, until the next call on it */
        size_t payload_len;
};

struct frame_decoder {
        struct buf in;   /* bytes not yet decoded */
        size_t consumed; /* bytes of `in` that frames already handed out took */
};

void frame_decoder_init(struct frame_decoder *d);
void frame_decoder_free(struct frame_decoder *d);
/* Takes n bytes that were read. -ENOBUFS cannot happen when frames are taken out after every call with n <= 64 KiB. */
int frame_decoder_feed(struct frame_decoder *d, const void *data, size_t n);
/* The same without a copy: makes room for n bytes (at most 64 KiB), to be read into *ret, of which
 * frame_decoder_filled() then counts those that came. */
int frame_decoder_room(struct frame_decoder *d, size_t n, void **ret);
void frame_decoder_filled(struct frame_decoder *d, size_t n);
/* Bytes that were fed and have not been given out: those of a frame that is not complete, once frame_decoder_next() has
 * said so. */
size_t frame_decoder_pending(const struct frame_decoder *d);
/* 1: a frame was put in *ret; 0: more bytes are needed; -EBADMSG: a length that no frame can have. */
int frame_decoder_next(struct frame_decoder *d, struct frame *ret);

/* Overwrites the payload, which may be a secret, once it was taken in. */
static inline void frame_wipe(const struct frame *f) {
        explicit_bzero((void *) f->payload, f->payload_len);
}

/* Appends one frame to out; payload in two parts, the second may be empty. -EMSGSIZE, -ENOBUFS, -ENOMEM. */
int frame_encode(struct buf *out, enum wire_kind kind, uint32_t stream, const void *a, size_t a_len, const void *b,
                 size_t b_len);
