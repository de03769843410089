/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/frame.h"

#include <string.h>

#define LENGTH_FIELD 4u
#define LENGTH_MIN (WIRE_HEADER_LEN - LENGTH_FIELD)
#define FEED_MAX (64u * 1024u)

/* A decoder that grew for one great frame gives the memory back: most connections never see a second one. */
#define KEEP_MAX (4u * FEED_MAX)

static uint32_t read_be32(const uint8_t *p) {
        return (uint32_t) p[0] << 24 | (uint32_t) p[1] << 16 | (uint32_t) p[2] << 8 | p[3];
}

static void write_be32(uint8_t *p, uint32_t v) {
        p[0] = (uint8_t) (v >> 24);
        p[1] = (uint8_t) (v >> 16);
        p[2] = (uint8_t) (v >> 8);
        p[3] = (uint8_t) v;
}

void frame_decoder_init(struct frame_decoder *d) {
        *d = (struct frame_decoder){.in = BUF_INIT(LENGTH_FIELD + WIRE_FRAME_MAX + FEED_MAX)};
}

void frame_decoder_free(struct frame_decoder *d) {
        buf_free(&d->in);
        frame_decoder_init(d);
}

/* Makes room behind what is there. What is not decoded yet is moved to the front when there is too little, not each
 * time: the beginning of a frame would be moved again and again. */
static int make_room(struct frame_decoder *d, size_t n) {
        if (d->consumed == d->in.len) {
                if (d->in.cap > KEEP_MAX)
                        frame_decoder_free(d);
                else
                        buf_clear(&d->in);
                d->consumed = 0;
        } else if (d->consumed > 0 && d->in.cap - d->in.len < n) {
                buf_consume(&d->in, d->consumed);
                d->consumed = 0;
        }
        return buf_reserve(&d->in, n);
}

int frame_decoder_feed(struct frame_decoder *d, const void *data, size_t n) {
        int r = make_room(d, n);

        return r < 0 ? r : buf_append(&d->in, data, n);
}

int frame_decoder_room(struct frame_decoder *d, size_t n, void **ret) {
        int r = make_room(d, n);

        if (r == 0)
                *ret = d->in.data + d->in.len;
        return r;
}

void frame_decoder_filled(struct frame_decoder *d, size_t n) {
        d->in.len += n;
        d->in.data[d->in.len] = 0;
}

size_t frame_decoder_pending(const struct frame_decoder *d) {
        return d->in.len - d->consumed;
}

int frame_decoder_next(struct frame_decoder *d, struct frame *ret) {
        size_t left = d->in.len - d->consumed;

        if (left < LENGTH_FIELD)
                return 0;

        const uint8_t *p = (const uint8_t *) d->in.data + d->consumed;
        uint32_t length = read_be32(p);
        if (length < LENGTH_MIN || length > WIRE_FRAME_MAX)
                return -EBADMSG;
        if (left - LENGTH_FIELD < length)
                return 0;

        *ret = (struct frame){
                .kind = p[LENGTH_FIELD],
                .stream = read_be32(p + LENGTH_FIELD + 1),
                .payload = p + WIRE_HEADER_LEN,
                .payload_len = length - LENGTH_MIN,
        };
        d->consumed += LENGTH_FIELD + length;
        return 1;
}

int frame_encode(struct buf *out, enum wire_kind kind, uint32_t stream, const void *a, size_t a_len, const void *b,
                 size_t b_len) {
        const size_t payload_max = WIRE_FRAME_MAX - LENGTH_MIN;
        uint8_t header[WIRE_HEADER_LEN];
        int r;

        if (a_len > payload_max || b_len > payload_max - a_len)
                return -EMSGSIZE;
        r = buf_reserve(out, sizeof(header) + a_len + b_len);
        if (r < 0)
                return r;

        write_be32(header, (uint32_t) (LENGTH_MIN + a_len + b_len));
        header[LENGTH_FIELD] = (uint8_t) kind;
        write_be32(header + LENGTH_FIELD + 1, stream);

        /* Within the reservation: these cannot fail. */
        r = buf_append(out, header, sizeof(header));
        if (r == 0 && a_len > 0)
                r = buf_append(out, a, a_len);
        if (r == 0 && b_len > 0)
                r = buf_append(out, b, b_len);
        return r;
}
