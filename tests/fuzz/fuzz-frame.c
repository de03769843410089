/* SPDX-License-Identifier: Apache-2.0 */
/* The frame decoder. First byte: how the rest is cut into pieces. The pieces must not matter, and what comes out,
 * encoded again, must be what went in. */

#include <string.h>

#include "fuzz.h"
#include "wire/frame.h"

#define INPUT_MAX (4u * 1024u * 1024u)
#define PIECE_MAX (64u * 1024u)

/* Decodes all of it in pieces of `piece` bytes and appends the frames, encoded again, to out. 0 or -EBADMSG. */
static int decode(const uint8_t *data, size_t size, size_t piece, struct buf *out) {
        struct frame_decoder d;
        struct frame f;
        int r = 0;

        frame_decoder_init(&d);
        for (size_t at = 0; at < size && r == 0; at += piece) {
                ASSERT(frame_decoder_feed(&d, data + at, MIN(piece, size - at)) == 0);
                while ((r = frame_decoder_next(&d, &f)) == 1)
                        ASSERT(frame_encode(out, (enum wire_kind) f.kind, f.stream, f.payload, f.payload_len, NULL,
                                            0) == 0);
        }
        frame_decoder_free(&d);
        ASSERT(r == 0 || r == -EBADMSG);
        return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_buf_ struct buf whole = BUF_INIT(INPUT_MAX), pieces = BUF_INIT(INPUT_MAX);

        if (size < 1 || size > INPUT_MAX)
                return 0;
        size_t piece = 1u + data[0];
        data++;
        size--;

        int a = decode(data, size, PIECE_MAX, &whole);
        int b = decode(data, size, piece, &pieces);
        ASSERT(a == b);
        ASSERT(whole.len == pieces.len && whole.len <= size);
        if (whole.len > 0) {
                ASSERT(memcmp(whole.data, pieces.data, whole.len) == 0);
                ASSERT(memcmp(whole.data, data, whole.len) == 0);
        }
        return 0;
}
