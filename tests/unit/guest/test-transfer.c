/* SPDX-License-Identifier: Apache-2.0 */
/* Files that are read and written with their holes. */
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixture.h"
#include "wire/sparse.h"

#define MIB (1024 * 1024)
#define STAT_BLOCK 512

static json_t *read_request(const char *name) {
        return json_of("{\"type\":\"file_read\",\"path\":\"%s\",\"sparse\":true}", in_folder(name));
}

static struct mux_stream *begin_write(const char *name, const char *more) {
        return open_request(
                json_of("{\"type\":\"file_write\",\"path\":\"%s\",\"mode\":\"0640\"%s}", in_folder(name), more));
}

static void send_bytes(struct mux_stream *s, const char *text) {
        struct op op = patience();

        CHECK_INT(mux_send_data(s, WIRE_CH_IN, text, strlen(text), &op), 0);
}

static void send_hole(struct mux_stream *s, uint64_t len) {
        struct op op = patience();
        uint8_t text[SPARSE_LEN_BYTES];

        sparse_len_encode(len, text);
        (void) mux_send_data(s, WIRE_CH_HOLE, text, sizeof(text), &op);
}

static void finish(struct mux_stream *s, struct outcome *o) {
        struct op op = patience();

        (void) mux_send_eof(s, WIRE_CH_IN, &op);
        gather(s, o);
        mux_stream_unref(s);
}

/* A file of this size with these texts at these places. */
static void make_sparse(const char *name, off_t size, const off_t *at, size_t n) {
        _cleanup_close_ int fd = open(in_folder(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        if (fd < 0 || ftruncate(fd, size) < 0)
                abort();
        for (size_t i = 0; i < n; i++)
                if (pwrite(fd, "data", 4, at[i]) != 4)
                        abort();
}

/* The lengths of the holes that came, which the fixture keeps in err_out: their number and their sum. */
static size_t holes_of(const struct outcome *o, uint64_t *ret_sum) {
        struct sparse_lens lens = {0};
        const char *p = o->err_out.data;
        size_t n = o->err_out.len, count = 0;
        uint64_t len;

        *ret_sum = 0;
        while (sparse_lens_take(&lens, &p, &n, &len)) {
                CHECK(len >= SPARSE_HOLE_MIN);
                *ret_sum += len;
                count++;
        }
        CHECK_INT(lens.have, 0);
        return count;
}

static void test_read_holes(void) {
        static const off_t at[] = {0, 100 * MIB, 100 * MIB + 2 * 4096, 300 * MIB + 5};
        _cleanup_outcome_ struct outcome o;
        const int64_t size = 5LL * 1024 * MIB;
        uint64_t sum;
        struct stat st;

        make_sparse("holes", size, at, ARRAY_SIZE(at));
        REQUIRE(stat(in_folder("holes"), &st) == 0);
        ask(read_request("holes"), NULL, 0, &o);
        CHECK_INT(member_int(o.first, "size"), size);
        CHECK_INT(member_int(o.first, "allocated"), (int64_t) st.st_blocks * STAT_BLOCK);
        CHECK_STR(member_str(o.first, "mode"), "0600");
        CHECK_INT(member_int(o.last, "bytes"), size);
        CHECK(o.out_eof);
        /* The two places that are near each other come as one. */
        CHECK_INT(holes_of(&o, &sum), 3);
        CHECK_INT(sum + o.out.len, size);
        CHECK(o.out.len >= 16 && o.out.len < MIB);
        CHECK(o.out.len >= 4 && memcmp(o.out.data, "data", 4) == 0);
}

static void test_read_only_a_hole_and_nothing(void) {
        _cleanup_outcome_ struct outcome hole, small, empty;
        uint64_t sum;

        make_sparse("hole", 3LL * 1024 * MIB + 1, NULL, 0);
        ask(read_request("hole"), NULL, 0, &hole);
        CHECK_INT(holes_of(&hole, &sum), 1);
        CHECK_INT(sum, 3LL * 1024 * MIB + 1);
        CHECK_INT(hole.out.len, 0);

        make_sparse("small", 60000, NULL, 0);
        ask(read_request("small"), NULL, 0, &small);
        CHECK_INT(holes_of(&small, &sum), 0);
        CHECK_INT(small.out.len, 60000);
        CHECK(small.out.data[0] == 0 && small.out.data[59999] == 0);

        make_sparse("empty", 0, NULL, 0);
        ask(read_request("empty"), NULL, 0, &empty);
        CHECK_INT(member_int(empty.last, "bytes"), 0);
        CHECK(empty.out_eof);
}

static void test_read_refused(void) {
        _cleanup_outcome_ struct outcome dir, none, kernel, part;

        ask(json_of("{\"type\":\"file_read\",\"path\":\"%s\",\"sparse\":true}", folder), NULL, 0, &dir);
        CHECK_INT(dir.error.code, ERROR_INVALID_ARGUMENT);
        ask(read_request("none"), NULL, 0, &none);
        CHECK_INT(none.error.code, ERROR_NOT_FOUND);
        ask(json_of("{\"type\":\"file_read\",\"path\":\"/proc/self/status\",\"sparse\":true}"), NULL, 0, &kernel);
        CHECK_INT(kernel.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(strstr(kernel.error.hint, "cp"));
        ask(json_of("{\"type\":\"file_read\",\"path\":\"%s\",\"sparse\":true,\"limit\":1}", in_folder("hole")), NULL, 0,
            &part);
        CHECK_INT(part.error.code, ERROR_INVALID_ARGUMENT);
}

/* The content does not fit the windows of the stream, so the reader waits for us when the file changes. */
static void change_while_read(off_t new_size, struct outcome *o) {
        _cleanup_free_ char *data = calloc(1, 8 * MIB);

        if (!data || file_write_atomic(in_folder("changing"), data, 8 * MIB, 0600) < 0)
                abort();
        _cleanup_stream_ struct mux_stream *s = open_request(read_request("changing"));
        struct op op = patience();
        _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;

        /* The answer, and then the first bytes: reading has begun. */
        CHECK(mux_recv(s, &op, &ev) == 0 && ev.kind == MUX_MSG);
        CHECK(mux_recv(s, &op, &ev) == 0 && ev.kind == MUX_DATA);
        size_t first = ev.data.len;
        if (truncate(in_folder("changing"), new_size) < 0)
                abort();
        gather(s, o);
        if (!error_is_set(&o->error))
                CHECK_INT(first + o->out.len, 8 * MIB);
}

static void test_a_file_that_changes(void) {
        _cleanup_outcome_ struct outcome shorter, longer;

        change_while_read(4 * MIB, &shorter);
        CHECK_INT(shorter.error.code, ERROR_CONFLICT);
        CHECK(strstr(error_message(&shorter.error), "shorter"));
        CHECK(!shorter.out_eof);

        change_while_read(9 * MIB, &longer);
        CHECK(!error_is_set(&longer.error));
        CHECK_INT(member_int(longer.last, "bytes"), 8 * MIB);
        CHECK_INT(member_int(longer.last, "truncated"), 1);
}

static void test_write_holes(void) {
        const int64_t size = 3LL * 1024 * MIB;
        _cleanup_outcome_ struct outcome o;
        char text[8] = "", announced[64];
        struct stat st;

        snprintf(announced, sizeof(announced), ",\"size\":%lld", (long long) size);
        struct mux_stream *s = begin_write("sparse/out", announced);
        send_bytes(s, "begin");
        send_hole(s, MIB);
        send_hole(s, (uint64_t) size / 2);
        send_bytes(s, "middle");
        send_hole(s, (uint64_t) size / 2 - MIB - 11);
        finish(s, &o);
        CHECK(!error_is_set(&o.error));
        CHECK_INT(member_int(o.last, "bytes_written"), size);

        _cleanup_close_ int fd = open(in_folder("sparse/out"), O_RDONLY | O_CLOEXEC);
        REQUIRE(fd >= 0 && fstat(fd, &st) == 0);
        CHECK_INT(st.st_size, size);
        CHECK_INT(st.st_mode & 07777, 0640);
        CHECK((int64_t) st.st_blocks * STAT_BLOCK < MIB);
        CHECK(pread(fd, text, 6, 5 + MIB + size / 2) == 6 && memcmp(text, "middle", 6) == 0);
        CHECK(pread(fd, text, 5, 0) == 5 && memcmp(text, "begin", 5) == 0);
}

/* Sends "x" and a hole, and expects an error and an old file that has its content still (and "x" if appended). */
static void expect_refusal(const char *more, uint64_t hole, const char *says) {
        _cleanup_outcome_ struct outcome o;

        if (file_write_atomic(in_folder("whole/old"), "old", 3, 0600) < 0)
                abort();
        struct mux_stream *s = begin_write("whole/old", more);
        struct op op = patience();
        (void) mux_send_data(s, WIRE_CH_IN, "x", 1, &op);
        send_hole(s, hole);
        finish(s, &o);
        CHECK(error_is_set(&o.error));
        if (!strstr(error_message(&o.error), says))
                printf("# %s\n", error_message(&o.error));
        CHECK(strstr(error_message(&o.error), says));
        /* rmdir() later says whether anything else is there. */
        _cleanup_free_ char *text = content("whole/old");
        CHECK(str_starts_with(text, "old"));
        CHECK_STR(text + 3, strstr(more, "append") ? "x" : "");
}

static void test_write_refused(void) {
        _cleanup_outcome_ struct outcome half;
        struct op op = patience();

        if (mkdir(in_folder("whole"), 0700) < 0)
                abort();
        expect_refusal(",\"size\":100", 98, "99 of 100");
        expect_refusal(",\"size\":100", 100, "More bytes");
        expect_refusal(",\"size\":100", UINT64_MAX, "More bytes");
        expect_refusal("", UINT64_MAX, "More bytes");
        expect_refusal("", INT64_MAX, "More bytes");
        expect_refusal(",\"size\":9223372036854775807", 1, "cannot have");
        expect_refusal(",\"append\":true", 5, "cannot be appended");

        struct mux_stream *s = begin_write("whole/new", "");
        CHECK_INT(mux_send_data(s, WIRE_CH_HOLE, "\0\0\0", 3, &op), 0);
        send_bytes(s, "x");
        finish(s, &half);
        CHECK(strstr(error_message(&half.error), "Half"));
}

static void test_nothing_temporary_is_left(void) {
        if (unlink(in_folder("whole/old")) < 0)
                abort();
        CHECK_INT(rmdir(in_folder("whole")), 0);
}

static void test_a_lost_connection_leaves_nothing(void) {
        char announced[] = ",\"size\":1000000";
        struct mux_stream *s = begin_write("lost/file", announced);

        send_bytes(s, "x");
        send_hole(s, 70000);
        for (int i = 0; i < 500 && access(in_folder("lost"), F_OK) < 0; i++)
                poll(NULL, 0, 10);
        CHECK(access(in_folder("lost"), F_OK) == 0);
        mux_stream_unref(s);
        disconnect_host();
        connect_host();
        for (int i = 0; i < 500 && rmdir(in_folder("lost")) < 0; i++)
                poll(NULL, 0, 10);
        CHECK(access(in_folder("lost"), F_OK) < 0);
}

/* Over the border after which what was written is flushed. */
static void test_a_large_file_is_flushed_as_it_goes(void) {
        const size_t n = SPARSE_FLUSH_BYTES + 10 * MIB;
        _cleanup_free_ char *data = malloc(n);
        _cleanup_outcome_ struct outcome w, r;

        for (size_t i = 0; i < n; i++)
                data[i] = (char) (i ^ (i >> 8) ^ (i >> 16));
        ask(json_of("{\"type\":\"file_write\",\"path\":\"%s\",\"size\":%zu}", in_folder("large"), n), data, n, &w);
        CHECK_INT(member_int(w.last, "bytes_written"), n);
        ask(read_request("large"), NULL, 0, &r);
        REQUIRE(r.out.len == n);
        CHECK(memcmp(r.out.data, data, n) == 0);
        CHECK_INT(r.err_out.len, 0);
}

int main(void) {
        fixture_begin();
        RUN(test_read_holes);
        RUN(test_read_only_a_hole_and_nothing);
        RUN(test_read_refused);
        RUN(test_a_file_that_changes);
        RUN(test_write_holes);
        RUN(test_write_refused);
        RUN(test_nothing_temporary_is_left);
        RUN(test_a_lost_connection_leaves_nothing);
        RUN(test_a_large_file_is_flushed_as_it_goes);
        return fixture_end();
}
