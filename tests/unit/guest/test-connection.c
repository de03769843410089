/* SPDX-License-Identifier: Apache-2.0 */

/* Who may give orders, and what becomes of the orders of a host whose machine goes on without it: the secret of
 * WIRE_REQ_CONFIGURE, and a port on which one handshake follows the other. */

#include <fcntl.h>
#include <sys/eventfd.h>

#include "base/io.h"
#include "guest/channel.h"
#include "job_fixture.h"
#include "wire/frame.h"
#include "wire/handshake.h"

#define FIRST "0123456789abcdef0123456789abcdef"
#define SECOND "fedcba9876543210fedcba9876543210"
#define ALMOST "0123456789abcdef0123456789abcdee"

/* ---- the secret ---- */

static json_t *give_session(const char *session) {
        return json_of("{\"type\":\"configure\",\"session\":\"%s\"}", session);
}

static int64_t session_ok(void) {
        _cleanup_json_ json_t *hello = NULL;
        struct op op = patience();

        CHECK_INT(mux_hello(host, &op, &hello, NULL), 0);
        return member_int(hello, "session_ok");
}

static void connect_again(const char *session) {
        disconnect_host();
        connect_host_with(session);
}

static void forget_session(void) {
        pthread_mutex_lock(&agent.lock);
        agent.has_session = false;
        pthread_mutex_unlock(&agent.lock);
}

static bool served(void) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(command("echo served"), NULL, 0, &o);
        if (o.out.len > 0)
                return true;
        CHECK_INT(o.error.code, ERROR_CONFLICT);
        CHECK(strstr(error_message(&o.error), "another session") && o.error.hint);
        return false;
}

static void test_without_a_secret_everybody_is_served(void) {
        CHECK_INT(session_ok(), 1);
        CHECK(served());
        connect_again(FIRST);
        CHECK_INT(session_ok(), 1);
        CHECK(served());
        connect_again(NULL);
}

static void test_only_who_has_the_secret_is_served(void) {
        static const char *const wrong[] = {NULL, SECOND, ALMOST, "", "0123456789abcdef", FIRST "0"};
        _cleanup_outcome_ struct outcome o = {0};

        ask(give_session(FIRST), NULL, 0, &o);
        CHECK(o.last && member_int(o.last, "realtime_ns") > 0 && member_int(o.last, "reseeded") == 0);
        CHECK(served()); /* who has given it */
        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                connect_again(wrong[i]);
                CHECK_INT(session_ok(), 0);
                CHECK(!served());
        }
        connect_again(FIRST);
        CHECK_INT(session_ok(), 1);
        CHECK(served());
        connect_again(NULL);
        forget_session();
}

static void test_what_a_stranger_may_ask(void) {
        static const char *const types[] = {"mount_root", "configure", "freeze",   "thaw",      "sync",
                                            "exec",       "job_start", "job_read", "job_write", "job_kill",
                                            "job_resize", "job_list",  "set_env",  "file_read", "file_write",
                                            "file_edit",  "file_list", "shutdown"};
        _cleanup_outcome_ struct outcome o = {0}, info = {0};

        ask(give_session(FIRST), NULL, 0, &o);
        connect_again(SECOND);
        for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
                _cleanup_outcome_ struct outcome refused = {0};

                ask(json_of("{\"type\":\"%s\",\"session\":\"" SECOND "\"}", types[i]), NULL, 0, &refused);
                CHECK_INT(refused.error.code, ERROR_CONFLICT);
                CHECK(strstr(error_message(&refused.error), "another session"));
        }
        ask(json_of("{\"type\":\"info\"}"), NULL, 0, &info);
        CHECK_STR(member_str(info.last, "version"), AGENTISO_VERSION);
        connect_again(FIRST);
        CHECK(served()); /* and it has not been changed */
        connect_again(NULL);
        forget_session();
}

/* Two connections at once: the one on which the secret changes stays good, the other is of the past. */
static void test_a_new_secret(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0};
        struct connection *old_connection;
        struct mux *old_host, *old_guest;

        ask(give_session(FIRST), NULL, 0, &o);
        old_host = TAKE_PTR(host);
        old_guest = TAKE_PTR(guest_mux);
        old_connection = TAKE_PTR(connection);
        connect_host_with(FIRST);
        CHECK(served());
        ask(give_session(SECOND), NULL, 0, &p);
        CHECK(served());

        struct mux *new_host = host;
        host = old_host;
        CHECK(!served());
        host = new_host;
        mux_unref(old_host);
        mux_unref(old_guest);
        connection_unref(old_connection);

        connect_again(FIRST);
        CHECK(!served());
        connect_again(SECOND);
        CHECK(served());
        connect_again(NULL);
        forget_session();
}

static void test_a_secret_of_a_wrong_form(void) {
        static const char *const wrong[] = {"", "0123", "0123456789ABCDEF0123456789ABCDEF", FIRST "00",
                                            "0123456789abcdef0123456789abcdeg"};

        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                _cleanup_outcome_ struct outcome o = {0};

                ask(give_session(wrong[i]), NULL, 0, &o);
                CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
                CHECK(strstr(error_message(&o.error), "session"));
                CHECK(!*wrong[i] || !strstr(error_message(&o.error), wrong[i])); /* it is a secret all the same */
        }
        CHECK(served());
}

/* ---- one host after the other on a port ---- */

struct port {
        pthread_t thread;
        int guest_fd, host_fd, stop_fd;
        int result;
        int handshakes;
};

static void *port_main(void *arg) {
        struct port *p = arg;

        p->result = channel_serve_port(&agent, p->guest_fd, p->stop_fd);
        return NULL;
}

static void port_start(struct port *p) {
        int fds[2];

        *p = (struct port){.stop_fd = eventfd(0, EFD_CLOEXEC)};
        if (p->stop_fd < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                abort();
        p->guest_fd = fds[0];
        p->host_fd = fds[1];
        if (thread_start(&p->thread, "port", port_main, p) < 0)
                abort();
}

static void port_end(struct port *p) {
        eventfd_write(p->stop_fd, 1);
        pthread_join(p->thread, NULL);
        CHECK_INT(p->result, 0);
        close_fd(p->guest_fd);
        close_fd(p->host_fd);
        close_fd(p->stop_fd);
}

/* A new host on the port, which knows nothing of the one before, nor does that say that it is gone. NULL: it was not
 * heard. */
static struct mux *port_connect(struct port *p, const char *session) {
        _cleanup_json_ json_t *hello = json_pack("{s:s*}", "session", session);
        int fd = fcntl(p->host_fd, F_DUPFD_CLOEXEC, 3);
        struct op op = patience();
        struct mux *m = NULL;

        if (handshake_host(fd, &op, NULL) < 0 || mux_start(fd, MUX_HOST, NULL, 0, hello, NULL, &m, NULL) < 0)
                return NULL;
        return m;
}

/* The frames of a host that says them and is gone, as the source of a fork is for the fork. */
static void port_write_hello(struct port *p) {
        static const char hello[] = "{\"type\":\"hello\",\"version\":3}";
        _cleanup_buf_ struct buf out = BUF_INIT(1024);
        struct op op = patience();

        CHECK_INT(frame_encode(&out, WIRE_HELLO, 0, hello, sizeof(hello) - 1, NULL, 0), 0);
        CHECK_INT(write_full(p->host_fd, out.data, out.len, &op), 0);
}

static void port_write_open(struct port *p, uint32_t stream, json_t *request) {
        _cleanup_json_ json_t *owned = request;
        _cleanup_free_ char *text = json_dumps(owned, JSON_COMPACT);
        _cleanup_buf_ struct buf out = BUF_INIT(1 << 20);
        struct op op = patience();

        CHECK_INT(frame_encode(&out, WIRE_OPEN, stream, text, strlen(text), NULL, 0), 0);
        CHECK_INT(write_full(p->host_fd, out.data, out.len, &op), 0);
}

/* A host by hand: the handshake and its hello, whatever is answered being left in the channel. */
static void port_old_host(struct port *p) {
        struct op op = patience();
        int fd = fcntl(p->host_fd, F_DUPFD_CLOEXEC, 3);

        CHECK_INT(handshake_host(fd, &op, NULL), 0);
        close_fd(fd);
        port_write_hello(p);
}

/* As ask() does, on a connection of its own. */
static void ask_on(struct mux *m, json_t *request, struct outcome *o) {
        struct mux *fixtures = host;

        host = m;
        ask(request, NULL, 0, o);
        host = fixtures;
}

static json_t *in_our_folder(const char *text) {
        return command_with(text, "workdir", json_string(folder));
}

static void test_hosts_that_come_in_the_place_of_a_frame(void) {
        struct port p;

        port_start(&p);
        for (int i = 0; i < 5; i++) {
                _cleanup_outcome_ struct outcome o = {0};
                struct mux *m = port_connect(&p, NULL);

                REQUIRE(m);
                ask_on(m, command("echo heard"), &o);
                CHECK_STR(o.out.data, "heard\n");
                mux_unref(m); /* the guest is not told */
        }
        port_end(&p);
}

/* What the old host has started goes on, as a job that can be found; what it says goes to nobody. */
static void test_commands_of_the_old_host(void) {
        _cleanup_outcome_ struct outcome o = {0}, l = {0}, end = {0};
        struct mux *m;
        struct port p;
        json_t *entry = NULL;

        port_start(&p);
        port_old_host(&p);
        port_write_open(&p, 1, in_our_folder("touch begun; echo of-the-past; until test -e go; do sleep 0.05; done"));
        REQUIRE(wait_for_file("begun"));
        m = port_connect(&p, NULL);
        REQUIRE(m);
        /* This one has the number of the old one's stream. */
        ask_on(m, in_our_folder("echo of-the-present; touch go"), &o);
        CHECK_STR(o.out.data, "of-the-present\n");
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        for (int i = 0; !(entry = listed(&l, "of-the-past")) && i < 300; i++) {
                outcome_clear(&l);
                poll(NULL, 0, 20);
        }
        REQUIRE(entry);
        REQUIRE(read_end(member_int(entry, "job_id"), &end));
        CHECK_STR(end.out.data, "of-the-past\n");
        mux_unref(m);
        port_end(&p);
}

/* Much more output than the channel holds was on its way to the old host, and breaks off anywhere. */
static void test_output_for_the_old_host(void) {
        _cleanup_outcome_ struct outcome o = {0};
        struct mux *m;
        struct port p;

        REQUIRE(file_write_atomic(in_folder("large"), folder, sizeof(folder), 0600) == 0 &&
                truncate(in_folder("large"), 8 << 20) == 0);
        port_start(&p);
        port_old_host(&p);
        for (uint32_t stream = 1; stream < 20; stream += 2) {
                json_t *read = json_of("{\"type\":\"file_read\"}");

                json_object_set_new(read, "path", json_string(in_folder("large")));
                port_write_open(&p, stream, read);
        }
        for (int i = 0; i < 3; i++) {
                m = port_connect(&p, NULL);
                REQUIRE(m);
                outcome_clear(&o);
                ask_on(m, command("echo mine"), &o);
                CHECK_STR(o.out.data, "mine\n");
                CHECK_INT(o.err_out.len, 0);
                mux_unref(m);
                if (i < 2) /* the next ones come without that end */
                        port_old_host(&p);
        }
        port_end(&p);
}

/* The old host was in the middle of an upload. Not one byte of what comes then gets into the file. */
static void test_an_upload_that_was_cut_off(void) {
        static const uint8_t head[] = {0, 0, 200, 0, WIRE_DATA, 0, 0, 0, 1, WIRE_CH_IN};
        _cleanup_free_ char *text = NULL;
        struct op op = patience();
        struct mux *m;
        struct port p;
        json_t *request = json_of("{\"type\":\"file_write\",\"append\":true}");

        json_object_set_new(request, "path", json_string(in_folder("upload")));
        port_start(&p);
        port_old_host(&p);
        port_write_open(&p, 1, request);
        REQUIRE(wait_for_file("upload"));
        CHECK_INT(write_full(p.host_fd, head, sizeof(head), &op), 0);
        CHECK_INT(write_full(p.host_fd, "only the beginning", 18, &op), 0);
        m = port_connect(&p, NULL);
        REQUIRE(m);
        _cleanup_outcome_ struct outcome o = {0};
        ask_on(m, command("echo heard"), &o);
        CHECK_STR(o.out.data, "heard\n");
        CHECK(wait_requests());
        text = content("upload");
        CHECK_STR(text, "");
        mux_unref(m);
        port_end(&p);
}

/* A port on which the handshake is one of many things that come. */
static void test_garbage_before_a_handshake(void) {
        _cleanup_free_ char *garbage = calloc(1, 300000);
        _cleanup_outcome_ struct outcome o = {0};
        struct op op = patience();
        struct mux *m;
        struct port p;

        port_start(&p);
        port_old_host(&p);
        CHECK_INT(write_full(p.host_fd, garbage, 300000, &op), 0);
        m = port_connect(&p, NULL);
        REQUIRE(m);
        ask_on(m, command("echo heard"), &o);
        CHECK_STR(o.out.data, "heard\n");
        mux_unref(m);
        port_end(&p);
}

/* The source's host is connected to a fork by mistake, or comes back to it. */
static void test_the_sources_host_on_a_fork(void) {
        _cleanup_outcome_ struct outcome given = {0}, old = {0}, fresh = {0};
        struct mux *source, *fork, *again;
        struct port p;

        port_start(&p);
        source = port_connect(&p, NULL);
        REQUIRE(source);
        ask_on(source, give_session(FIRST), &given);
        mux_unref(source);
        fork = port_connect(&p, FIRST);
        REQUIRE(fork);
        outcome_clear(&given);
        ask_on(fork, give_session(SECOND), &given);
        CHECK(given.last);
        mux_unref(fork);
        again = port_connect(&p, FIRST);
        REQUIRE(again);
        ask_on(again, command("echo heard"), &old);
        CHECK_INT(old.error.code, ERROR_CONFLICT);
        mux_unref(again);
        again = port_connect(&p, SECOND);
        REQUIRE(again);
        ask_on(again, command("echo heard"), &fresh);
        CHECK_STR(fresh.out.data, "heard\n");
        mux_unref(again);
        port_end(&p);
        forget_session();
}

int main(void) {
        fixture_begin();
        RUN(test_without_a_secret_everybody_is_served);
        RUN(test_only_who_has_the_secret_is_served);
        RUN(test_what_a_stranger_may_ask);
        RUN(test_a_new_secret);
        RUN(test_a_secret_of_a_wrong_form);
        RUN(test_hosts_that_come_in_the_place_of_a_frame);
        RUN(test_commands_of_the_old_host);
        RUN(test_output_for_the_old_host);
        RUN(test_an_upload_that_was_cut_off);
        RUN(test_garbage_before_a_handshake);
        RUN(test_the_sources_host_on_a_fork);
        return fixture_end();
}
