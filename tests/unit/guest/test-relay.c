/* SPDX-License-Identifier: Apache-2.0 */
/* WIRE_REQ_RELAY: what the host is told. What is moved by it is tested with the host's side, in vm/test-agent-relay.c.
 */
#include "fixture.h"

#include <netinet/in.h>
#include <sys/resource.h>

static int listening;
static uint16_t port;

static void listen_somewhere(void) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof(at);

        listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (bind(listening, (struct sockaddr *) &at, len) < 0 || listen(listening, 16) < 0 ||
            getsockname(listening, (struct sockaddr *) &at, &len) < 0)
                abort();
        port = ntohs(at.sin_port);
}

static json_t *relay_request(int64_t to) {
        return json_pack("{s:s, s:I, s:i}", "type", WIRE_REQ_RELAY, "port", (json_int_t) to, "window",
                         (int) WIRE_RELAY_WINDOW);
}

/* A relay that is connected: the program's end. */
static int begin_relay(struct mux_stream **ret) {
        struct op op = patience();

        *ret = open_request(relay_request(port));
        if (mux_expect_msg(*ret, WIRE_MSG_OK, &op, NULL, NULL) < 0)
                abort();
        return accept4(listening, NULL, NULL, SOCK_CLOEXEC);
}

/* What the agent has closed the stream with. */
static enum error_code closed_with(struct mux_stream *s) {
        _cleanup_outcome_ struct outcome o = {0};

        gather(s, &o);
        return o.error.code;
}

static void test_what_is_refused(void) {
        const int64_t ports[] = {0, -1, 65536};

        for (size_t i = 0; i < ARRAY_SIZE(ports); i++) {
                _cleanup_outcome_ struct outcome o = {0};

                ask(relay_request(ports[i]), NULL, 0, &o);
                CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
        }
        _cleanup_outcome_ struct outcome o = {0};
        ask(json_of("{\"type\":\"relay\"}"), NULL, 0, &o);
        CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
}

static void test_the_limit(void) {
        _cleanup_outcome_ struct outcome o = {0};

        agent.relays += WIRE_RELAYS_MAX;
        ask(relay_request(port), NULL, 0, &o);
        agent.relays -= WIRE_RELAYS_MAX;
        CHECK_INT(o.error.code, ERROR_QUOTA_EXCEEDED);
}

static void test_a_reset_has_a_reason(void) {
        const struct linger now = {.l_onoff = 1};
        _cleanup_stream_ struct mux_stream *s = NULL;
        int program = begin_relay(&s);

        setsockopt(program, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
        close(program);
        CHECK_INT(closed_with(s), ERROR_CONFLICT);
        CHECK(wait_requests());
        CHECK_INT(agent.relays, 0);
}

static void test_an_end_has_none(void) {
        _cleanup_stream_ struct mux_stream *s = NULL;
        int program = begin_relay(&s);
        struct op op = patience();

        CHECK_INT(mux_send_eof(s, WIRE_CH_IN, &op), 0);
        close(program);
        CHECK_INT(closed_with(s), ERROR_NONE);
}

/* A host that does not keep to the protocol loses this relay, and the program learns it. */
static void test_what_does_not_belong_there(void) {
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_json_ json_t *message = json_of("{\"type\":\"ok\"}");
        int program = begin_relay(&s);
        struct op op = patience();
        char c;

        CHECK_INT(mux_send_msg(s, message, &op), 0);
        CHECK_INT(closed_with(s), ERROR_CONFLICT);
        CHECK(recv(program, &c, 1, 0) < 0 && errno == ECONNRESET);
        close(program);
}

static void test_the_host_leaves(void) {
        _cleanup_error_ struct error reason = ERROR_INIT;
        struct mux_stream *s = NULL;
        int program = begin_relay(&s);
        char c;

        error_set(&reason, ERROR_CANCELLED, "enough");
        mux_close(s, &reason);
        CHECK(recv(program, &c, 1, 0) < 0 && errno == ECONNRESET);
        mux_stream_unref(s);
        close(program);
        CHECK(wait_requests());
}

/* What a program says without end must not come before the agent's other work; the thread itself goes on with it. */
static void test_priority(void) {
        _cleanup_outcome_ struct outcome o = {0};
        struct mux_stream *s = NULL;

        if (setpriority(PRIO_PROCESS, 0, -10) < 0) {
                printf("# no right to raise a priority: left out\n");
                return;
        }
        reconnect_host();
        int program = begin_relay(&s);
        /* One that served an earlier connection may still be on its way back. */
        ask(command("for i in $(seq 100); do n=$(for t in /proc/$PPID/task/*; do "
                    "awk '$2 == \"(request)\" && $19 == 0 { n++ } END { print n + 0 }' $t/stat; done | grep -c 1); "
                    "[ $n = 1 ] && break; sleep 0.1; done; echo $n"),
            NULL, 0, &o);
        CHECK_STR(o.out.data, "1\n");
        mux_stream_unref(s);
        close(program);
        setpriority(PRIO_PROCESS, 0, 0);
        CHECK(wait_requests());
        reconnect_host();
}

int main(void) {
        listen_somewhere();
        fixture_begin();
        RUN(test_what_is_refused);
        RUN(test_the_limit);
        RUN(test_a_reset_has_a_reason);
        RUN(test_an_end_has_none);
        RUN(test_what_does_not_belong_there);
        RUN(test_the_host_leaves);
        RUN(test_priority);
        close(listening);
        return fixture_end();
}
