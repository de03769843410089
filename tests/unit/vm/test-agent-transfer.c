/* SPDX-License-Identifier: Apache-2.0 */
/* Files to and from a guest that lies, stalls or gives up, and one that does as it is told. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "base/thread.h"
#include "guest-real.h"
#include "talk.h"
#include "tap.h"
#include "wire/sparse.h"

#define MIB (1024u * 1024u)
#define SHORT_MS 300
#define MAX_BYTES (1u << 20)
#define DISK_BYTES 100000u

static char folder[64];

/* An open, empty file without a name. */
static int scratch(void) {
        int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

        if (fd < 0)
                abort();
        return fd;
}

/* --- what a played guest does --- */

enum what { END_OF_STEPS, SAY, DATA, ERR_DATA, HOLE, PART_OF_HOLE, OUT_EOF, HOLE_EOF, WAIT };
struct step {
        enum what what;
        const char *text; /* SAY */
        uint64_t n;       /* bytes of the others */
};
#define STEPS_MAX 8

static const struct step *steps;

static void send_many(struct mux_stream *s, enum wire_channel ch, uint64_t n) {
        static const char bytes[4096] = "content";

        for (; n > 0; n -= MIN(n, (uint64_t) sizeof(bytes)))
                (void) mux_send_data(s, ch, bytes, (size_t) MIN(n, (uint64_t) sizeof(bytes)), patience());
}

static void play_steps(struct mux_stream *s, const json_t *request) {
        for (const struct step *step = steps; step->what != END_OF_STEPS; step++) {
                uint8_t text[SPARSE_LEN_BYTES];

                sparse_len_encode(step->n, text);
                if (step->what == SAY)
                        tell(s, step->text);
                else if (step->what == DATA || step->what == ERR_DATA)
                        send_many(s, step->what == DATA ? WIRE_CH_OUT : WIRE_CH_ERR, step->n);
                else if (step->what == HOLE)
                        (void) mux_send_data(s, WIRE_CH_HOLE, text, sizeof(text), patience());
                else if (step->what == PART_OF_HOLE)
                        (void) mux_send_data(s, WIRE_CH_HOLE, text, (size_t) step->n, patience());
                else if (step->what == OUT_EOF || step->what == HOLE_EOF)
                        (void) mux_send_eof(s, step->what == OUT_EOF ? WIRE_CH_OUT : WIRE_CH_HOLE, patience());
                else
                        until_closed(s);
        }
}

#define HEAD(size, allocated)                                                         \
        {                                                                             \
                SAY,                                                                  \
                        "{\"type\":\"ok\",\"size\":" size ",\"allocated\":" allocated \
                        ",\"mode\":\"4751\",\"kind\":\"file\"}",                      \
                        0                                                             \
        }
#define END(bytes) \
        { SAY, "{\"type\":\"end\",\"bytes\":" bytes ",\"truncated\":false}", 0 }

/* --- download --- */

static void test_download(void) {
        static const struct step cut_off[] = {
                HEAD("70010", "4096"), {DATA, NULL, 7}, {PART_OF_HOLE, NULL, 3}, {END_OF_STEPS, NULL, 0}};
        static const struct step whole[] = {HEAD("70010", "4096"),  {DATA, NULL, 7},    {HOLE, NULL, 70000},
                                            {DATA, NULL, 3},        {OUT_EOF, NULL, 0}, END("70010"),
                                            {END_OF_STEPS, NULL, 0}};
        struct agent_transfer t = {0};
        struct stat st;
        char text[8] = "";

        _cleanup_close_ int fd = scratch();
        steps = whole;
        REQUIRE(begin(play_steps));
        CHECK_INT(agent_download(agent, "/x", fd, MAX_BYTES, DISK_BYTES, patience(), &t, NULL), 0);
        CHECK_INT(t.bytes, 70010);
        CHECK_INT(t.mode, 0751);
        /* printf 'content'; head -c 70000 /dev/zero; printf 'con' */
        CHECK_STR(t.sha256, "93e28982fd93e27e9ca61f6d30dac59704b149e7f4d24a8162f3e2c3f411b0a1");
        REQUIRE(fstat(fd, &st) == 0);
        CHECK_INT(st.st_size, 70010);
        CHECK(pread(fd, text, 3, 70007) == 3 && memcmp(text, "con", 3) == 0);
        end();

        /* Cut off in the middle. */
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int cut = scratch();
        steps = cut_off;
        REQUIRE(begin(play_steps));
        CHECK_INT(agent_download(agent, "/x", cut, MAX_BYTES, DISK_BYTES, patience(), &t, &err), -EPROTO);
        end();
}

static void test_download_refuses_lies(void) {
        static const struct {
                enum error_code want;
                struct step steps[STEPS_MAX];
        } lies[] = {
                {ERROR_GUEST_UNREACHABLE, {{SAY, "{\"type\":\"ok\",\"size\":1,\"mode\":\"0644\"}", 0}}},
                {ERROR_GUEST_UNREACHABLE, {{SAY, "{\"type\":\"ok\",\"size\":1,\"allocated\":1}", 0}}},
                {ERROR_GUEST_UNREACHABLE, {{SAY, "{\"type\":\"ok\",\"size\":1,\"allocated\":1,\"mode\":\"rwxr\"}", 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("-1", "1")}},
                {ERROR_GUEST_UNREACHABLE, {END("0")}},
                {ERROR_GUEST_UNREACHABLE, {{DATA, NULL, 1}}},
                {ERROR_QUOTA_EXCEEDED, {HEAD("1048577", "0"), {WAIT, NULL, 0}}},
                {ERROR_QUOTA_EXCEEDED, {HEAD("9223372036854775807", "0"), {WAIT, NULL, 0}}},
                {ERROR_NO_SPACE, {HEAD("200000", "100001"), {WAIT, NULL, 0}}},
                {ERROR_NO_SPACE, {HEAD("200000", "0"), {DATA, NULL, 100001}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("1000", "0"), {DATA, NULL, 1001}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("1000", "0"), {HOLE, NULL, 1001}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("1000", "0"), {HOLE, NULL, 0}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("70000", "0"), {HOLE, NULL, SPARSE_HOLE_MIN - 1}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("10", "0"), {HOLE, NULL, 10}, {OUT_EOF, NULL, 0}, END("10")}},
                {ERROR_NO_SPACE, {HEAD("200000", "102400"), {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("1000", "0"), {HOLE, NULL, UINT64_MAX}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("1000", "0"), {HOLE, NULL, INT64_MAX}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE,
                 {HEAD("1000", "0"), {DATA, NULL, 500}, {HOLE, NULL, UINT64_MAX - 400}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE,
                 {HEAD("1000", "0"), {PART_OF_HOLE, NULL, 7}, {DATA, NULL, 1}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("0", "0"), {PART_OF_HOLE, NULL, 7}, {OUT_EOF, NULL, 0}, END("0")}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("10", "0"), {DATA, NULL, 10}, END("10")}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("10", "0"), {DATA, NULL, 9}, {OUT_EOF, NULL, 0}, END("9")}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("10", "0"), {DATA, NULL, 9}, {OUT_EOF, NULL, 0}, END("10")}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("10", "0"), {DATA, NULL, 10}, {OUT_EOF, NULL, 0}, END("11")}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("10", "0"), {OUT_EOF, NULL, 0}, {HOLE, NULL, 10}, END("10")}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("10", "0"), {DATA, NULL, 10}, {HOLE_EOF, NULL, 0}, {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("10", "0"), HEAD("10", "0"), {WAIT, NULL, 0}}},
                {ERROR_GUEST_UNREACHABLE, {HEAD("10", "0"), {ERR_DATA, NULL, 10}, {WAIT, NULL, 0}}},
                {ERROR_NOT_FOUND, {{SAY, "{\"type\":\"error\",\"code\":\"not_found\",\"message\":\"none\"}", 0}}},
                {ERROR_CONFLICT,
                 {HEAD("10", "0"),
                  {DATA, NULL, 5},
                  {SAY, "{\"type\":\"error\",\"code\":\"conflict\",\"message\":\"shorter\"}", 0}}},
        };

        REQUIRE(begin(play_steps));
        for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                _cleanup_close_ int fd = scratch();
                struct agent_transfer t = {0};
                struct stat st;

                steps = lies[i].steps;
                CHECK(agent_download(agent, "/x", fd, MAX_BYTES, DISK_BYTES, patience(), &t, &err) < 0);
                if (err.code != lies[i].want)
                        printf("# lie %zu: %s\n", i, error_message(&err));
                CHECK_INT(err.code, lies[i].want);
                CHECK(fstat(fd, &st) == 0 && st.st_size <= (off_t) DISK_BYTES);
        }
        CHECK(!agent_is_lost(agent));
        end();
}

#define ISLANDS 400u

/* Single bytes with holes around them, each of which occupies a whole block. */
static void play_islands(struct mux_stream *s, const json_t *request) {
        _cleanup_free_ char *head =
                str_printf("{\"type\":\"ok\",\"size\":%u,\"allocated\":4096,\"mode\":\"0644\",\"kind\":\"file\"}",
                           ISLANDS * (SPARSE_HOLE_MIN + 1));
        uint8_t hole[SPARSE_LEN_BYTES];

        sparse_len_encode(SPARSE_HOLE_MIN, hole);
        tell(s, head);
        for (unsigned i = 0; i < ISLANDS; i++) {
                send_text(s, WIRE_CH_OUT, "x");
                (void) mux_send_data(s, WIRE_CH_HOLE, hole, sizeof(hole), patience());
        }
        until_closed(s);
}

static void test_islands_cost_blocks(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int fd = scratch();
        struct agent_transfer t = {0};
        struct stat st;

        REQUIRE(begin(play_islands));
        CHECK_INT(agent_download(agent, "/x", fd, UINT64_MAX, DISK_BYTES, patience(), &t, &err), -ENOSPC);
        CHECK_INT(err.code, ERROR_NO_SPACE);
        REQUIRE(fstat(fd, &st) == 0);
        CHECK((uint64_t) st.st_blocks * 512 < 2ull * DISK_BYTES);
        end();
}

static void test_silence_ends_with_the_deadline(void) {
        static const struct step silent[] = {
                HEAD("10", "0"), {DATA, NULL, 5}, {WAIT, NULL, 0}, {END_OF_STEPS, NULL, 0}};
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int fd = scratch();
        const struct op op = op_timeout(SHORT_MS);
        struct agent_transfer t = {0};

        steps = silent;
        REQUIRE(begin(play_steps));
        CHECK_INT(agent_download(agent, "/x", fd, MAX_BYTES, DISK_BYTES, &op, &t, &err), -ETIMEDOUT);
        CHECK_INT(err.code, ERROR_TIMEOUT);
        end();
}

static char progress[64];

/* Fires the token when the first MiB is told of. */
static void cancel_at_first_mib(void *arg, const char *message) {
        snprintf(progress, sizeof(progress), "%s", message);
        if (*message != '0')
                cancel_fire(arg);
}

/* Its zeros would take days to count. */
static void test_a_huge_hole_can_be_cancelled(void) {
        static const struct step huge[] = {
                HEAD("1125899906842624", "0"), {HOLE, NULL, 1ull << 50}, {WAIT, NULL, 0}, {END_OF_STEPS, NULL, 0}};
        _cleanup_cancel_ struct cancel *cancel = cancel_new();
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int fd = scratch();
        struct agent_transfer t = {0};
        struct op op = *patience();

        REQUIRE(cancel);
        op.cancel = cancel;
        op.progress = cancel_at_first_mib;
        op.progress_arg = cancel;
        steps = huge;
        REQUIRE(begin(play_steps));
        CHECK_INT(agent_download(agent, "/x", fd, UINT64_MAX, DISK_BYTES, &op, &t, &err), -ECANCELED);
        CHECK_STR(progress, "1 of 1073741824 MiB");
        end();
}

/* --- upload --- */

static const char content[MIB];

static int upload_mib(const struct op *op, struct error *err) {
        _cleanup_close_ int fd = scratch();
        struct agent_transfer t = {0};

        if (write(fd, content, sizeof(content)) != sizeof(content))
                abort();
        return agent_upload(agent, fd, "/x", 0644, op, &t, err);
}

static void test_upload_refuses_lies(void) {
        static const struct {
                enum error_code want;
                struct step steps[STEPS_MAX];
        } lies[] = {
                {ERROR_GUEST_UNREACHABLE, {{SAY, "{\"type\":\"ok\",\"bytes_written\":1048576}", 0}}},
                {ERROR_GUEST_UNREACHABLE, {{SAY, "{\"type\":\"ok\",\"bytes_written\":-1}", 0}}},
                {ERROR_GUEST_UNREACHABLE, {{SAY, "{\"type\":\"end\"}", 0}}},
                {ERROR_GUEST_UNREACHABLE, {{DATA, NULL, 5}}},
                {ERROR_NO_SPACE, {{SAY, "{\"type\":\"error\",\"code\":\"no_space\",\"message\":\"full\"}", 0}}},
        };

        REQUIRE(begin(play_steps));
        for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;

                steps = lies[i].steps;
                CHECK(upload_mib(patience(), &err) < 0);
                CHECK_INT(err.code, lies[i].want);
        }
        end();
}

static struct cancel *test_over;

/* Takes nothing until the test is over. */
static void play_asleep(struct mux_stream *s, const json_t *request) {
        struct op op = *patience();

        op.cancel = test_over;
        (void) wait_fd(-1, 0, &op);
}

static void test_a_guest_that_takes_nothing(void) {
        _cleanup_cancel_ struct cancel *cancel = test_over = cancel_new();
        _cleanup_error_ struct error err = ERROR_INIT;
        const struct op op = op_timeout(SHORT_MS);

        REQUIRE(cancel && begin(play_asleep));
        CHECK_INT(upload_mib(&op, &err), -ETIMEDOUT);
        CHECK_INT(err.code, ERROR_TIMEOUT);
        cancel_fire(cancel);
        end();
}

static int shrinking = -1;

/* Makes the file shorter as soon as its first bytes are there, then takes the rest. */
static void play_shrink(struct mux_stream *s, const json_t *request) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

        if (mux_recv(s, patience(), &e) < 0 || ftruncate(shrinking, MIB) < 0)
                abort();
        until_closed(s);
}

static void test_a_file_that_becomes_shorter(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int fd = scratch();
        struct agent_transfer t = {0};

        for (unsigned i = 0; i < 8; i++)
                if (write(fd, content, sizeof(content)) != sizeof(content))
                        abort();
        shrinking = fd;
        REQUIRE(begin(play_shrink));
        CHECK(agent_upload(agent, fd, "/x", 0644, patience(), &t, &err) < 0);
        CHECK_INT(err.code, ERROR_CONFLICT);
        end();
}

/* --- with the guest's real handlers --- */

static struct guest_real *real;

static bool begin_real(void) {
        int fds[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                return false;
        real = guest_real_start(fds[1]);
        return agent_open(fds[0], NULL, patience(), &agent, NULL) >= 0;
}

static void end_real(void) {
        agent_unref(agent);
        agent = NULL;
        guest_real_stop(real);
}

static void test_there_and_back(void) {
        _cleanup_free_ char *path = path_join(folder, "a/b/file");
        _cleanup_close_ int from = scratch(), to = scratch();
        struct agent_transfer up = {0}, down = {0};
        const uint64_t size = 300ull * MIB + 17;
        struct stat st;

        if (ftruncate(from, (off_t) size) < 0 || pwrite(from, "first", 5, 0) != 5 ||
            pwrite(from, "middle", 6, 150 * MIB - 3) != 6)
                abort();
        REQUIRE(begin_real());
        CHECK_INT(agent_upload(agent, from, path, 0750, patience(), &up, NULL), 0);
        REQUIRE(stat(path, &st) == 0);
        CHECK_INT(st.st_size, (int64_t) size);
        CHECK_INT(st.st_mode & 07777, 0750);
        CHECK((uint64_t) st.st_blocks * 512 < MIB);

        CHECK_INT(agent_download(agent, path, to, size, MIB, patience(), &down, NULL), 0);
        CHECK_STR(down.sha256, up.sha256);
        CHECK_INT(down.bytes, size);
        CHECK_INT(down.mode, 0750);
        REQUIRE(fstat(to, &st) == 0);
        CHECK_INT(st.st_size, (int64_t) size);
        CHECK((uint64_t) st.st_blocks * 512 < MIB);
        end_real();
}

static void test_known_digests(void) {
        _cleanup_free_ char *path = path_join(folder, "abc");
        _cleanup_close_ int empty = scratch(), abc = scratch();
        struct agent_transfer t = {0};

        if (write(abc, "abc", 3) != 3)
                abort();
        REQUIRE(begin_real());
        /* FIPS 180-4, and the digest of nothing. */
        CHECK_INT(agent_upload(agent, abc, path, 0644, patience(), &t, NULL), 0);
        CHECK_STR(t.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        CHECK_INT(agent_upload(agent, empty, path, 0644, patience(), &t, NULL), 0);
        CHECK_STR(t.sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        end_real();
}

int main(void) {
        strcpy(folder, "/tmp/agentiso-transfer-XXXXXX");
        if (!mkdtemp(folder))
                abort();
        RUN(test_download);
        RUN(test_download_refuses_lies);
        RUN(test_islands_cost_blocks);
        RUN(test_silence_ends_with_the_deadline);
        RUN(test_a_huge_hole_can_be_cancelled);
        RUN(test_upload_refuses_lies);
        RUN(test_a_guest_that_takes_nothing);
        RUN(test_a_file_that_becomes_shorter);
        RUN(test_there_and_back);
        RUN(test_known_digests);
        rm_rf(folder);
        return tap_done();
}
