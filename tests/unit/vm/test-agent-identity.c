/* SPDX-License-Identifier: Apache-2.0 */
/* The host's agent client against a played guest: the secret of a session, the identity and what is said of clock and
 * generator, freezing. */
#include <sys/socket.h>

#include "base/json.h"
#include "base/str.h"
#include "base/thread.h"
#include "talk.h"
#include "tap.h"
#include "wire/wire.h"

#define SECRET "0123456789abcdef0123456789abcdef"
#define HOUR_NS (3600 * NSEC_PER_SEC)

/* --- the secret --- */

static json_t *told;          /* the hello of the host */
static const char *answering; /* what the guest's says of the session, as JSON */

static void greet(json_t *theirs, json_t *ours) {
        json_decref(told);
        told = json_deep_copy(theirs);
        if (answering && json_object_set_new(ours, "session_ok", json_loads(answering, JSON_DECODE_ANY, NULL)) < 0)
                abort();
}

static int open_with(const char *session, const char *answer, struct error *err) {
        struct agent *a = NULL;
        int fds[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                abort();
        answering = answer;
        struct guest_side *g = guest_side_start_greeting(fds[1], play_script, greet);
        int r = agent_open(fds[0], session, patience(), &a, err);
        agent_unref(a);
        guest_side_stop(g);
        return r;
}

static void test_the_secret_is_shown(void) {
        CHECK_INT(open_with(SECRET, "true", NULL), 0);
        CHECK_STR(json_string_value(json_object_get(told, "session")), SECRET);
        CHECK_INT(open_with(NULL, "true", NULL), 0);
        CHECK(!json_object_get(told, "session"));
        CHECK_INT(open_with(SECRET, NULL, NULL), 0);
        json_decref(told);
        told = NULL;
}

static void test_an_agent_of_another_session(void) {
        static const char *const sessions[] = {SECRET, NULL};

        for (size_t i = 0; i < ARRAY_SIZE(sessions); i++) {
                _cleanup_error_ struct error e = ERROR_INIT;

                CHECK(open_with(sessions[i], "false", &e) < 0);
                CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
                CHECK(strstr(error_message(&e), "another session") && e.hint);
                CHECK(!strstr(error_message(&e), SECRET) && !strstr(e.hint, SECRET));
        }
        _cleanup_error_ struct error e = ERROR_INIT;
        CHECK_INT(open_with(SECRET, "5", &e), -EPROTO);
        CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        json_decref(told);
        told = NULL;
}

/* --- the identity --- */

#define REQUESTS_MAX 16
static struct {
        pthread_mutex_t lock;
        json_t *request[REQUESTS_MAX];
        size_t n;
} asked = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* What the guest answers: its clock is off by so much, each time by the next of these and then by the last. */
static int64_t off[REQUESTS_MAX];
static size_t n_off;

static int64_t realtime_ns(void) {
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

static void play_configure(struct mux_stream *s, const json_t *request) {
        _cleanup_json_ json_t *ok = NULL;
        {
                LOCK(&asked.lock);
                int64_t by = off[MIN(asked.n, n_off - 1)], clock;

                if (asked.n == REQUESTS_MAX)
                        abort();
                if (__builtin_add_overflow(realtime_ns(), by, &clock))
                        clock = by > 0 ? INT64_MAX : INT64_MIN;
                /* As the real one, which has no more to reseed. */
                ok = json_pack("{s:s, s:b, s:I}", "type", "ok", "reseeded", asked.n == 0, "realtime_ns",
                               (json_int_t) clock);
                asked.request[asked.n++] = json_deep_copy(request);
        }
        (void) mux_send_msg(s, ok, patience());
}

static void forget_asked(void) {
        while (asked.n > 0)
                json_decref(asked.request[--asked.n]);
}

static const struct agent_identity identity = {
        .hostname = "ws-1",
        .machine_id = "00112233445566778899aabbccddeeff",
        .mac = "52:54:00:63:00:07",
        .address = "10.99.0.7",
        .prefix_len = 16,
        .gateway = "10.99.0.1",
        .session = SECRET,
};

static const char *text_of(const json_t *o, const char *key) {
        return json_string_value(json_object_get(o, key));
}

static void test_what_the_guest_is_given(void) {
        const struct agent_identity nothing = {0};
        _cleanup_free_ char *entropy = NULL;

        REQUIRE(begin(play_configure));
        n_off = 1;
        off[0] = 0;
        const int64_t before = realtime_ns();
        CHECK_INT(agent_configure(agent, &identity, patience(), NULL), 0);
        const json_t *r = asked.request[0], *net = json_object_get(r, "network");
        CHECK_STR(text_of(r, "type"), "configure");
        CHECK_STR(text_of(r, "hostname"), "ws-1");
        CHECK_STR(text_of(r, "machine_id"), identity.machine_id);
        CHECK_STR(text_of(r, "session"), SECRET);
        CHECK_STR(text_of(net, "mac"), identity.mac);
        CHECK_STR(text_of(net, "address"), "10.99.0.7");
        CHECK_INT(json_integer_value(json_object_get(net, "prefix_len")), 16);
        const int64_t given = json_integer_value(json_object_get(r, "realtime_ns"));
        CHECK(given >= before && given <= realtime_ns());
        CHECK_INT(json_string_length(json_object_get(r, "entropy")), (64 + 2) / 3 * 4);
        entropy = strdup(text_of(r, "entropy"));
        forget_asked();

        CHECK_INT(agent_configure(agent, &nothing, patience(), NULL), 0);
        r = asked.request[0];
        CHECK_INT(json_object_size(r), 3); /* type, clock and entropy */
        CHECK(!str_eq(text_of(r, "entropy"), entropy));
        end();
        forget_asked();
}

/* Only the clock is set again, and the rest is not lost by that. */
static void test_a_clock_that_is_off_is_set_again(void) {
        static const int64_t by[] = {-HOUR_NS, HOUR_NS, -(CLOCK_TOLERANCE_MS + 1) * NSEC_PER_MSEC};

        for (size_t i = 0; i < ARRAY_SIZE(by); i++) {
                REQUIRE(begin(play_configure));
                n_off = 2;
                off[0] = by[i];
                off[1] = 0;
                CHECK_INT(agent_configure(agent, &identity, patience(), NULL), 0);
                CHECK(asked.n >= 2);
                CHECK_INT(json_object_size(asked.request[1]), 2);
                CHECK(json_is_integer(json_object_get(asked.request[1], "realtime_ns")));
                end();
                forget_asked();
        }
}

static void test_a_clock_that_stays_off(void) {
        static const int64_t by[] = {-HOUR_NS, HOUR_NS, INT64_MIN, INT64_MAX};

        for (size_t i = 0; i < ARRAY_SIZE(by); i++) {
                _cleanup_error_ struct error e = ERROR_INIT;

                REQUIRE(begin(play_configure));
                n_off = 1;
                off[0] = by[i];
                CHECK(agent_configure(agent, &identity, patience(), &e) < 0);
                CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
                CHECK(strstr(error_message(&e), "clock"));
                CHECK(asked.n >= 2);
                end();
                forget_asked();
        }
}

static void test_answers_that_do_not_say_it_all(void) {
        static const char *const lies[] = {
                "{\"type\":\"ok\"}",
                "{\"type\":\"ok\",\"reseeded\":true}",
                "{\"type\":\"ok\",\"reseeded\":true,\"realtime_ns\":\"now\"}",
                "{\"type\":\"ok\",\"reseeded\":1,\"realtime_ns\":5}",
        };

        REQUIRE(begin(play_script));
        for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
                _cleanup_error_ struct error e = ERROR_INIT;

                script = lies[i];
                CHECK_INT(agent_configure(agent, &identity, patience(), &e), -EPROTO);
                CHECK_INT(e.code, ERROR_GUEST_UNREACHABLE);
        }
        for (int i = 0; i < 2; i++) {
                _cleanup_free_ char *answer =
                        str_printf("{\"type\":\"ok\",%s\"realtime_ns\":%lld}", i == 0 ? "" : "\"reseeded\":false,",
                                   (long long) realtime_ns());
                _cleanup_error_ struct error e = ERROR_INIT;

                script = answer;
                CHECK_INT(agent_configure(agent, &identity, patience(), &e), -EPROTO);
                CHECK(strstr(error_message(&e), "random number generator"));
        }
        _cleanup_error_ struct error e = ERROR_INIT;
        script = "{\"type\":\"error\",\"code\":\"internal\",\"message\":\"entropy: no\"}";
        CHECK(agent_configure(agent, &identity, patience(), &e) < 0);
        CHECK_STR(error_message(&e), "entropy: no");
        end();
}

/* --- the root --- */

static void test_mount_root(void) {
        REQUIRE(begin(play_listener));
        script = "{\"type\":\"ok\",\"already\":true,\"fs_bytes\":5}";
        CHECK_INT(agent_mount_root(agent, patience(), NULL), 0);
        CHECK_STR(text_of(seen_request(), "type"), "mount_root");
        CHECK(!json_object_get(seen_request(), "disk_bytes"));
        CHECK_INT(agent_mount_root_of(agent, 10ull << 30, patience(), NULL), 0);
        CHECK(json_is_true(json_object_get(seen_request(), "grow")));
        CHECK_INT(json_integer_value(json_object_get(seen_request(), "disk_bytes")), 10ll << 30);
        end();
}

/* --- freezing --- */

static void test_freeze(void) {
        bool frozen = false;

        REQUIRE(begin(play_listener));
        script = "{\"type\":\"ok\",\"frozen\":true}";
        CHECK_INT(agent_freeze(agent, 5000, patience(), &frozen, NULL), 0);
        CHECK(frozen);
        CHECK_STR(text_of(seen_request(), "type"), "freeze");
        CHECK_INT(json_integer_value(json_object_get(seen_request(), "max_ms")), 5000);
        script = "{\"type\":\"ok\",\"frozen\":false}";
        CHECK_INT(agent_freeze(agent, 5000, patience(), &frozen, NULL), 0);
        CHECK(!frozen);
        script = "{\"type\":\"ok\"}";
        CHECK_INT(agent_freeze(agent, 5000, patience(), &frozen, NULL), -EPROTO);
        script = "{\"type\":\"error\",\"code\":\"conflict\",\"message\":\"frozen already\"}";
        CHECK_INT(agent_freeze(agent, 5000, patience(), &frozen, NULL), -EEXIST);
        end();
}

static void test_thaw_and_sync(void) {
        _cleanup_error_ struct error e = ERROR_INIT;

        REQUIRE(begin(play_listener));
        script = "{\"type\":\"ok\"}";
        CHECK_INT(agent_thaw(agent, patience(), NULL), 0);
        CHECK_STR(text_of(seen_request(), "type"), "thaw");
        CHECK_INT(agent_sync(agent, patience(), NULL), 0);
        CHECK_STR(text_of(seen_request(), "type"), "sync");
        script = "{\"type\":\"error\",\"code\":\"not_found\",\"message\":\"thawed\"}";
        CHECK_INT(agent_thaw(agent, patience(), &e), -ENOENT);
        CHECK_INT(e.code, ERROR_NOT_FOUND);
        end();
}

int main(void) {
        RUN(test_the_secret_is_shown);
        RUN(test_an_agent_of_another_session);
        RUN(test_what_the_guest_is_given);
        RUN(test_a_clock_that_is_off_is_set_again);
        RUN(test_a_clock_that_stays_off);
        RUN(test_answers_that_do_not_say_it_all);
        RUN(test_mount_root);
        RUN(test_freeze);
        RUN(test_thaw_and_sync);
        return tap_done();
}
