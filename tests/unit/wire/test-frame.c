/* SPDX-License-Identifier: Apache-2.0 */
#include "tap.h"
#include "wire/frame.h"

static void test_round_trip(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(1024);
        struct frame_decoder d;
        struct frame f;

        frame_decoder_init(&d);
        CHECK_INT(frame_encode(&out, WIRE_DATA, 7, "\1", 1, "hello", 5), 0);
        CHECK_INT(frame_encode(&out, WIRE_PING, 0, NULL, 0, NULL, 0), 0);
        CHECK_INT(out.len, 2 * WIRE_HEADER_LEN + 6);
        CHECK_INT(frame_decoder_feed(&d, out.data, out.len), 0);

        CHECK_INT(frame_decoder_next(&d, &f), 1);
        CHECK_INT(f.kind, WIRE_DATA);
        CHECK_INT(f.stream, 7);
        CHECK_INT(f.payload_len, 6);
        CHECK(memcmp(f.payload, "\1hello", 6) == 0);
        CHECK_INT(frame_decoder_next(&d, &f), 1);
        CHECK_INT(f.kind, WIRE_PING);
        CHECK_INT(f.payload_len, 0);
        CHECK_INT(frame_decoder_next(&d, &f), 0);
        frame_decoder_free(&d);
}

static void test_byte_by_byte(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(1024);
        struct frame_decoder d;
        struct frame f;
        int frames = 0;

        frame_decoder_init(&d);
        for (uint32_t i = 0; i < 10; i++)
                CHECK_INT(frame_encode(&out, WIRE_MSG, 0x01020304 + i, "payload", 7, NULL, 0), 0);
        for (size_t i = 0; i < out.len; i++) {
                REQUIRE(frame_decoder_feed(&d, out.data + i, 1) == 0);
                while (frame_decoder_next(&d, &f) == 1) {
                        CHECK_INT(f.stream, 0x01020304 + frames);
                        CHECK(f.payload_len == 7 && memcmp(f.payload, "payload", 7) == 0);
                        frames++;
                }
        }
        CHECK_INT(frames, 10);
        frame_decoder_free(&d);
}

static void check_length(const char *four_bytes, int want) {
        struct frame_decoder d;
        struct frame f;

        frame_decoder_init(&d);
        CHECK_INT(frame_decoder_feed(&d, four_bytes, 4), 0);
        CHECK_INT(frame_decoder_next(&d, &f), want);
        CHECK_INT(frame_decoder_next(&d, &f), want); /* and it stays so */
        frame_decoder_free(&d);
}

static void test_impossible_lengths(void) {
        check_length("\0\0\0\0", -EBADMSG);
        check_length("\0\0\0\4", -EBADMSG);
        check_length("\0\0\0\5", 0);
        check_length("\0\x10\0\0", 0); /* WIRE_FRAME_MAX */
        check_length("\0\x10\0\1", -EBADMSG);
        check_length("\xff\xff\xff\xff", -EBADMSG);
        check_length("agen", -EBADMSG); /* the beginning of a preamble */
}

/* Small frames and the greatest, in pieces of 64 KiB: the decoder never runs out of room. */
static void test_largest_frames(void) {
        const size_t payload = WIRE_FRAME_MAX - 5;
        _cleanup_buf_ struct buf out = BUF_INIT(8u * 1024 * 1024);
        _cleanup_free_ char *big = calloc(1, payload + 1);
        struct frame_decoder d;
        struct frame f;
        int frames = 0;

        REQUIRE(big);
        frame_decoder_init(&d);
        for (int i = 0; i < 3; i++) {
                CHECK_INT(frame_encode(&out, WIRE_PING, 0, "x", 1, NULL, 0), 0);
                CHECK_INT(frame_encode(&out, WIRE_MSG, 1, big, payload - 3, "end", 3), 0);
        }
        for (size_t at = 0; at < out.len; at += 65536) {
                REQUIRE(frame_decoder_feed(&d, out.data + at, MIN(out.len - at, (size_t) 65536)) == 0);
                while (frame_decoder_next(&d, &f) == 1) {
                        frames++;
                        if (f.kind == WIRE_MSG)
                                CHECK(f.payload_len == payload && memcmp(f.payload + payload - 3, "end", 3) == 0);
                }
        }
        CHECK_INT(frames, 6);
        frame_decoder_free(&d);

        size_t before = out.len;
        CHECK_INT(frame_encode(&out, WIRE_MSG, 1, big, payload, "x", 1), -EMSGSIZE);
        CHECK_INT(frame_encode(&out, WIRE_MSG, 1, big, payload + 1, NULL, 0), -EMSGSIZE);
        CHECK_INT(frame_encode(&out, WIRE_MSG, 1, big, 1, big, SIZE_MAX), -EMSGSIZE);
        CHECK_INT(out.len, before);
}

static void test_full_buffer_is_unchanged(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(20);

        CHECK_INT(frame_encode(&out, WIRE_PING, 0, "1234", 4, NULL, 0), 0);
        CHECK_INT(frame_encode(&out, WIRE_PING, 0, "1234", 4, NULL, 0), -ENOBUFS);
        CHECK_INT(out.len, 13);
}

int main(void) {
        RUN(test_round_trip);
        RUN(test_byte_by_byte);
        RUN(test_impossible_lengths);
        RUN(test_largest_frames);
        RUN(test_full_buffer_is_unchanged);
        return tap_done();
}
