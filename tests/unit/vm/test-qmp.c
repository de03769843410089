/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP client against a QEMU that is played by the test. */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/socket.h>

#include "base/io.h"
#include "base/json.h"
#include "base/str.h"
#include "base/thread.h"
#include "tap.h"
#include "vm/qmp.h"

#define PATIENCE_MS 20000
#define GREETING "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": [\"oob\"]}}\r\n"

/* --- the other side --- */

struct server {
        int fd;
        pthread_t thread;
        void (*play)(struct server *s);
        struct buf in;
};

static void say(struct server *s, const char *text) {
        const struct op op = op_timeout(PATIENCE_MS);

        (void) write_full(s->fd, text, strlen(text), &op);
}

static void sayf(struct server *s, const char *fmt, ...) _printf_(2, 3);
static void sayf(struct server *s, const char *fmt, ...) {
        _cleanup_buf_ struct buf b = BUF_INIT(1 << 16);
        va_list ap;

        va_start(ap, fmt);
        buf_vprintf(&b, fmt, ap);
        va_end(ap);
        say(s, b.data);
}

/* The next command's id, its name in *ret (owned); -1 at the end. */
static int64_t hear(struct server *s, char **ret) {
        const struct op op = op_timeout(PATIENCE_MS);
        char c = 0, *end;

        while (!s->in.len || !(end = memchr(s->in.data, '\n', s->in.len))) {
                if (read_full(s->fd, &c, 1, &op) < 0)
                        return -1;
                buf_append(&s->in, &c, 1);
        }
        _cleanup_json_ json_t *command = NULL;
        const char *name = NULL;
        int64_t id = -1;
        if (json_parse(s->in.data, (size_t) (end - s->in.data), 1 << 20, 10, &command, NULL) >= 0) {
                (void) json_get_int(command, "id", &id, NULL);
                (void) json_get_str(command, "execute", &name, NULL);
        }
        *ret = strdup(name ? name : "");
        buf_clear(&s->in);
        return id;
}

/* Waits until the client has gone. */
static void until_closed(struct server *s) {
        _cleanup_free_ char *name = NULL;

        (void) hear(s, &name);
}

/* Greets and answers the negotiation. */
static void begin(struct server *s) {
        _cleanup_free_ char *name = NULL;

        say(s, GREETING);
        int64_t id = hear(s, &name);
        if (str_eq(name, "qmp_capabilities"))
                sayf(s, "{\"return\": {}, \"id\": %lld}\r\n", (long long) id);
}

static void *serve(void *arg) {
        struct server *s = arg;

        s->play(s);
        s->fd = close_fd(s->fd);
        return NULL;
}

/* Our end of a connection to a server that plays `play`. */
static int server_start(struct server *s, void (*play)(struct server *)) {
        int fds[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                return -1;
        *s = (struct server){.fd = fds[0], .play = play, .in = BUF_INIT(1 << 16)};
        if (thread_start(&s->thread, "server", serve, s) < 0)
                return -1;
        return fds[1];
}

static void server_end(struct server *s) {
        pthread_join(s->thread, NULL);
        buf_free(&s->in);
}

/* --- tests --- */

static int open_client(struct server *s, void (*play)(struct server *), const struct qmp_callbacks *cb, struct qmp **q,
                       struct error *e) {
        const struct op op = op_timeout(PATIENCE_MS);

        return qmp_open(server_start(s, play), cb, &op, q, e);
}

static void play_out_of_order(struct server *s) {
        _cleanup_free_ char *a = NULL, *b = NULL;

        begin(s);
        int64_t first = hear(s, &a), second = hear(s, &b);
        say(s, "{\"return\": \"nobody asked\", \"id\": 99999}\r\n{\"return\": \"no id\"}\r\n");
        sayf(s, "{\"event\": \"STOP\", \"data\": {\"reason\": \"x\"}, \"timestamp\": {}}\r\n");
        sayf(s, "{\"return\": \"%s\", \"id\": %lld}\r\n", b, (long long) second);
        sayf(s, "{\"event\": \"RESUME\"}\r\n{\"return\": \"%s\", \"id\": %lld}\r\n", a, (long long) first);
        until_closed(s);
}

struct asking {
        struct qmp *q;
        const char *command;
        pthread_t thread;
        bool right;
};

static void *ask(void *arg) {
        struct asking *a = arg;
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_json_ json_t *reply = NULL;

        a->right = qmp_call(a->q, a->command, NULL, &op, &reply, NULL) >= 0 &&
                   str_eq(json_string_value(reply), a->command);
        return NULL;
}

static int stops, resumes;
static void count_event(void *arg, const char *name, const json_t *data) {
        const char *reason = NULL;

        if (str_eq(name, "STOP") && json_get_str(data, "reason", &reason, NULL) >= 0)
                __atomic_add_fetch(&stops, 1, __ATOMIC_SEQ_CST);
        if (str_eq(name, "RESUME") && !data)
                __atomic_add_fetch(&resumes, 1, __ATOMIC_SEQ_CST);
}

static void test_replies_find_their_callers(void) {
        const struct qmp_callbacks cb = {.event = count_event};
        struct server s;
        struct qmp *q = NULL;
        struct asking asking[2] = {{.command = "query-a"}, {.command = "query-b"}};

        REQUIRE(open_client(&s, play_out_of_order, &cb, &q, NULL) >= 0);
        for (size_t i = 0; i < 2; i++) {
                asking[i].q = q;
                REQUIRE(thread_start(&asking[i].thread, "ask", ask, &asking[i]) >= 0);
        }
        for (size_t i = 0; i < 2; i++) {
                pthread_join(asking[i].thread, NULL);
                CHECK(asking[i].right);
        }
        CHECK_INT(__atomic_load_n(&stops, __ATOMIC_SEQ_CST), 1);
        CHECK_INT(__atomic_load_n(&resumes, __ATOMIC_SEQ_CST), 1);
        qmp_unref(q);
        server_end(&s);
}

static void play_error(struct server *s) {
        _cleanup_free_ char *name = NULL;

        begin(s);
        int64_t id = hear(s, &name);
        sayf(s, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Device 'x' not found\"}, \"id\": %lld}\n",
             (long long) id);
        until_closed(s);
}

static void test_an_error_reply_has_qemus_words(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        struct server s;
        struct qmp *q = NULL;

        REQUIRE(open_client(&s, play_error, NULL, &q, NULL) >= 0);
        CHECK(qmp_call(q, "device_del", NULL, &op, NULL, &e) < 0);
        CHECK_INT(e.code, ERROR_INTERNAL);
        CHECK(strstr(error_message(&e), "Device 'x' not found"));
        CHECK(!qmp_is_lost(q));
        qmp_unref(q);
        server_end(&s);
}

static void play_unknown(struct server *s) {
        _cleanup_free_ char *name = NULL;

        begin(s);
        int64_t id = hear(s, &name);
        sayf(s, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such command\"}, \"id\": %lld}\n",
             (long long) id);
        until_closed(s);
}

static void test_an_unknown_command_is_told_apart(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        struct server s;
        struct qmp *q = NULL;

        REQUIRE(open_client(&s, play_unknown, NULL, &q, NULL) >= 0);
        CHECK_INT(qmp_call(q, "of-another-version", NULL, &op, NULL, &e), -EOPNOTSUPP);
        CHECK_INT(e.code, ERROR_UNSUPPORTED);
        qmp_unref(q);
        server_end(&s);
}

/* Reads commands as QEMU does, byte by byte with whatever descriptors come with them, and writes each command's name to
 * the descriptor that came with it. */
static void play_take_fds(struct server *s) {
        const struct op op = op_timeout(PATIENCE_MS);
        int fd = -1;

        begin(s);
        for (;;) {
                char c;
                union {
                        char bytes[CMSG_SPACE(sizeof(int))];
                        struct cmsghdr align;
                } control;
                struct iovec iov = {.iov_base = &c, .iov_len = 1};
                struct msghdr m = {.msg_iov = &iov,
                                   .msg_iovlen = 1,
                                   .msg_control = control.bytes,
                                   .msg_controllen = sizeof(control.bytes)};

                if (wait_fd(s->fd, POLLIN, &op) < 0 || recvmsg(s->fd, &m, MSG_CMSG_CLOEXEC) != 1)
                        break;
                const struct cmsghdr *cm = CMSG_FIRSTHDR(&m);
                if (cm && cm->cmsg_type == SCM_RIGHTS) {
                        close_fd(fd);
                        memcpy(&fd, CMSG_DATA(cm), sizeof(fd));
                }
                buf_append(&s->in, &c, 1);
                if (c != '\n')
                        continue;
                _cleanup_json_ json_t *command = json_loadb(s->in.data, s->in.len, 0, NULL);
                const char *name = json_string_value(json_object_get(command, "execute"));
                if (fd >= 0)
                        CHECK(write(fd, name, strlen(name)) == (ssize_t) strlen(name));
                fd = close_fd(fd);
                sayf(s, "{\"return\": {}, \"id\": %lld}\r\n",
                     (long long) json_integer_value(json_object_get(command, "id")));
                buf_clear(&s->in);
        }
        close_fd(fd);
}

#define PASSES 20

struct passing {
        struct qmp *q;
        int fd; /* -1: a command without one */
        char command[16];
        pthread_t thread;
        int r;
};

static void *pass(void *arg) {
        struct passing *p = arg;
        const struct op op = op_timeout(PATIENCE_MS);

        p->r = p->fd < 0 ? qmp_call(p->q, p->command, NULL, &op, NULL, NULL)
                         : qmp_call_with_fd(p->q, p->command, NULL, p->fd, &op, NULL, NULL);
        return NULL;
}

static void test_descriptors_go_with_their_commands(void) {
        struct server s;
        struct qmp *q = NULL;
        struct passing passing[PASSES];
        int ends[PASSES];
        char got[32] = "";

        REQUIRE(open_client(&s, play_take_fds, NULL, &q, NULL) >= 0);
        for (int i = 0; i < PASSES; i++) {
                int fds[2] = {-1, -1};

                if (i % 3 == 0)
                        CHECK(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
                ends[i] = fds[0];
                passing[i] = (struct passing){.q = q, .fd = fds[1]};
                snprintf(passing[i].command, sizeof(passing[i].command), "command-%d", i);
                REQUIRE(thread_start(&passing[i].thread, "pass", pass, &passing[i]) >= 0);
        }
        for (int i = 0; i < PASSES; i++) {
                pthread_join(passing[i].thread, NULL);
                CHECK_INT(passing[i].r, 0);
                close_fd(passing[i].fd);
                if (ends[i] < 0)
                        continue;
                ssize_t n = read(ends[i], got, sizeof(got) - 1);
                got[MAX(n, (ssize_t) 0)] = '\0';
                CHECK_STR(got, passing[i].command);
                CHECK_INT(read(ends[i], got, 1), 0); /* nobody has a copy any more */
                close_fd(ends[i]);
        }
        qmp_unref(q);
        server_end(&s);
}

static int losses;
static void count_loss(void *arg) {
        __atomic_add_fetch(&losses, 1, __ATOMIC_SEQ_CST);
}

static void play_silence(struct server *s) {
        _cleanup_free_ char *name = NULL;

        begin(s);
        (void) hear(s, &name);
        until_closed(s);
}

static void test_no_reply_until_the_deadline(void) {
        const struct op op = op_timeout(100);
        _cleanup_error_ struct error e = ERROR_INIT;
        struct server s;
        struct qmp *q = NULL;

        REQUIRE(open_client(&s, play_silence, NULL, &q, NULL) >= 0);
        CHECK_INT(qmp_call(q, "query-status", NULL, &op, NULL, &e), -ETIMEDOUT);
        CHECK_INT(e.code, ERROR_TIMEOUT);
        CHECK(!qmp_is_lost(q));
        qmp_unref(q);
        server_end(&s);
}

static void *fire(void *arg) {
        const struct op op = op_timeout(50);

        (void) wait_fd(-1, 0, &op);
        cancel_fire(arg);
        return NULL;
}

static void test_cancel(void) {
        struct op op = op_timeout(PATIENCE_MS);
        struct server s;
        struct qmp *q = NULL;
        pthread_t thread;

        op.cancel = cancel_new();
        REQUIRE(open_client(&s, play_silence, NULL, &q, NULL) >= 0);
        REQUIRE(thread_start(&thread, "fire", fire, op.cancel) >= 0);
        CHECK_INT(qmp_call(q, "query-status", NULL, &op, NULL, NULL), -ECANCELED);
        pthread_join(thread, NULL);
        CHECK_INT(qmp_call(q, "query-status", NULL, &op, NULL, NULL), -ECANCELED);
        qmp_unref(q);
        server_end(&s);
        cancel_unref(op.cancel);
}

static void play_hang_up(struct server *s) {
        _cleanup_free_ char *name = NULL;

        begin(s);
        (void) hear(s, &name);
}

static void play_garbage(struct server *s) {
        _cleanup_free_ char *name = NULL;

        begin(s);
        (void) hear(s, &name);
        say(s, "\x01\x02 this is no JSON\n");
        until_closed(s);
}

static void play_endless_line(struct server *s) {
        _cleanup_free_ char *name = NULL;
        _cleanup_free_ char *block = malloc(1 << 16);
        const struct op op = op_timeout(PATIENCE_MS);

        begin(s);
        (void) hear(s, &name);
        memset(block, '[', 1 << 16);
        for (int i = 0; i < 64; i++)
                if (write_full(s->fd, block, 1 << 16, &op) < 0)
                        return;
        until_closed(s);
}

static void check_lost(void (*play)(struct server *), const char *why) {
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        struct server s;
        struct qmp *q = NULL;

        REQUIRE(open_client(&s, play, NULL, &q, NULL) >= 0);
        int64_t t0 = monotonic_ns();
        CHECK_INT(qmp_call(q, "query-status", NULL, &op, NULL, &e), -ENOTCONN);
        CHECK((monotonic_ns() - t0) / NSEC_PER_MSEC < PATIENCE_MS / 2);
        CHECK(strstr(error_message(&e), why));
        CHECK(qmp_is_lost(q));
        CHECK_INT(qmp_call(q, "query-status", NULL, &op, NULL, NULL), -ENOTCONN);
        qmp_unref(q);
        server_end(&s);
}

static void test_hang_up_ends_the_wait(void) {
        check_lost(play_hang_up, "QEMU closed it");
}

static void test_garbage_ends_the_connection(void) {
        check_lost(play_garbage, "not QMP");
}

static void test_an_endless_line_is_bounded(void) {
        check_lost(play_endless_line, "too long");
}

static void test_the_end_is_told_once(void) {
        const struct qmp_callbacks cb = {.lost = count_loss};
        const struct op op = op_timeout(PATIENCE_MS);
        struct server s;
        struct qmp *q = NULL;

        REQUIRE(open_client(&s, play_hang_up, &cb, &q, NULL) >= 0);
        CHECK_INT(qmp_call(q, "query-status", NULL, &op, NULL, NULL), -ENOTCONN);
        qmp_unref(q);
        server_end(&s);
        CHECK_INT(__atomic_load_n(&losses, __ATOMIC_SEQ_CST), 1);
}

static void play_mute(struct server *s) {
        until_closed(s);
}

static void test_no_greeting(void) {
        const struct op op = op_timeout(100);
        struct server s;
        struct qmp *q = NULL;

        CHECK_INT(qmp_open(server_start(&s, play_mute), NULL, &op, &q, NULL), -ETIMEDOUT);
        CHECK(!q);
        server_end(&s);
}

static void play_big(struct server *s) {
        _cleanup_free_ char *name = NULL, *text = calloc(1, 1 << 20);

        begin(s);
        int64_t id = hear(s, &name);
        memset(text, 'x', 900000);
        say(s, "{\"return\": \"");
        say(s, text);
        sayf(s, "\", \"id\": %lld}\r\n", (long long) id);
        until_closed(s);
}

static void test_a_long_reply(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_json_ json_t *reply = NULL;
        struct server s;
        struct qmp *q = NULL;

        REQUIRE(open_client(&s, play_big, NULL, &q, NULL) >= 0);
        CHECK_INT(qmp_call(q, "query-qmp-schema", NULL, &op, &reply, NULL), 0);
        CHECK_INT(json_string_length(reply), 900000);
        qmp_unref(q);
        server_end(&s);
}

int main(void) {
        RUN(test_replies_find_their_callers);
        RUN(test_an_error_reply_has_qemus_words);
        RUN(test_an_unknown_command_is_told_apart);
        RUN(test_descriptors_go_with_their_commands);
        RUN(test_no_reply_until_the_deadline);
        RUN(test_cancel);
        RUN(test_hang_up_ends_the_wait);
        RUN(test_garbage_ends_the_connection);
        RUN(test_an_endless_line_is_bounded);
        RUN(test_the_end_is_told_once);
        RUN(test_no_greeting);
        RUN(test_a_long_reply);
        return tap_done();
}
