/* SPDX-License-Identifier: Apache-2.0 */
/* Two connections over a socket pair, as host and guest use them. */

#include <sys/socket.h>

#include "base/json.h"
#include "base/thread.h"
#include "tap.h"
#include "wire/mux_internal.h"

#define LIMIT_MS 60000
#define SHORT_MS 50

/* The guest's side: one thread per request, like the agent. */
struct pair {
        struct mux *host, *guest;
        pthread_mutex_t lock; /* guards the rest */
        pthread_cond_t cond;
        int active; /* requests being served */
        int served;
        int lost, lost_err; /* of the host's side */
        bool unref_in_lost;
};

struct job {
        struct pair *p;
        struct mux_stream *s;
        json_t *request;
};

static uint8_t pattern(uint64_t i) {
        return (uint8_t) (i * 2654435761u >> 13);
}

static void serve_source(struct mux_stream *s, const json_t *request, const struct op *op) {
        uint8_t piece[40000];
        int64_t n = 0, step = sizeof(piece);
        json_t *end;

        (void) json_get_int(request, "bytes", &n, NULL);
        (void) json_opt_int(request, "piece", &step, NULL);
        for (int64_t at = 0; at < n;) {
                size_t now = (size_t) MIN(n - at, step);
                for (size_t i = 0; i < now; i++)
                        piece[i] = pattern((uint64_t) at + i);
                if (mux_send_data(s, WIRE_CH_OUT, piece, now, op) < 0)
                        return;
                at += (int64_t) now;
        }
        (void) mux_send_eof(s, WIRE_CH_OUT, op);
        end = json_pack("{s:s, s:I}", "type", WIRE_MSG_END, "bytes", (json_int_t) n);
        (void) mux_send_msg(s, end, op);
        json_decref(end);
}

/* Reads OUT or IN to its end; the bytes must be the pattern. Returns how many, or -1. */
static int64_t drain(struct mux_stream *s, enum wire_channel ch, const struct op *op) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        uint64_t n = 0;

        while (mux_recv(s, op, &e) == 0) {
                if (e.kind == MUX_EOF && e.channel == ch)
                        return (int64_t) n;
                if (e.kind != MUX_DATA || e.channel != ch)
                        return -1;
                for (size_t i = 0; i < e.data.len; i++)
                        if ((uint8_t) e.data.data[i] != pattern(n + i))
                                return -1;
                n += e.data.len;
        }
        return -1;
}

static void serve_sink(struct mux_stream *s, const struct op *op) {
        json_t *ok = json_pack("{s:s, s:I}", "type", WIRE_MSG_OK, "bytes", (json_int_t) drain(s, WIRE_CH_IN, op));

        (void) mux_send_msg(s, ok, op);
        json_decref(ok);
}

static void serve_until_closed(struct mux_stream *s, const struct op *op) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

        while (mux_recv(s, op, &e) == 0 && e.kind != MUX_CLOSED && e.kind != MUX_LOST)
                ;
}

static void *serve(void *arg) {
        struct job *j = arg;
        struct pair *p = j->p;
        struct op op = op_timeout(LIMIT_MS);
        const char *type = "";

        (void) json_get_str(j->request, "type", &type, NULL);
        if (strcmp(type, "echo") == 0) {
                (void) json_object_set_new(j->request, "type", json_string(WIRE_MSG_OK));
                (void) mux_send_msg(j->s, j->request, &op);
        } else if (strcmp(type, "source") == 0) {
                serve_source(j->s, j->request, &op);
        } else if (strcmp(type, "sink") == 0) {
                serve_sink(j->s, &op);
        } else if (strcmp(type, "fail") == 0) {
                _cleanup_error_ struct error e = ERROR_INIT;
                _cleanup_json_ json_t *msg = NULL;

                error_set(&e, ERROR_NOT_FOUND, "No such file: /a\xff");
                error_hint(&e, "Look elsewhere.");
                msg = wire_error_to_json(&e);
                (void) mux_send_msg(j->s, msg, &op);
        } else if (strcmp(type, "refuse") == 0) {
                _cleanup_error_ struct error e = ERROR_INIT;

                error_set(&e, ERROR_UNSUPPORTED, "Not here.");
                mux_close(j->s, &e);
        } else {
                serve_until_closed(j->s, &op);
        }
        mux_stream_unref(j->s);
        json_decref(j->request);

        pthread_mutex_lock(&p->lock);
        p->active--;
        p->served++;
        pthread_cond_broadcast(&p->cond);
        pthread_mutex_unlock(&p->lock);
        free(j);
        return NULL;
}

static void guest_opened(void *arg, struct mux_stream *s, json_t *request) {
        struct pair *p = arg;
        struct job *j = malloc(sizeof(*j));

        *j = (struct job){.p = p, .s = s, .request = request};
        pthread_mutex_lock(&p->lock);
        p->active++;
        pthread_mutex_unlock(&p->lock);
        if (thread_start_detached("serve", serve, j) < 0)
                abort();
}

static void host_lost(void *arg, int err) {
        struct pair *p = arg;
        bool unref;

        pthread_mutex_lock(&p->lock);
        unref = p->unref_in_lost;
        pthread_mutex_unlock(&p->lock);
        if (unref)
                mux_unref(p->host);
        pthread_mutex_lock(&p->lock);
        p->lost++;
        p->lost_err = err;
        pthread_cond_broadcast(&p->cond);
        pthread_mutex_unlock(&p->lock);
}

static bool pair_start(struct pair *p) {
        _cleanup_json_ json_t *hello = json_pack("{s:s}", "agent", "test");
        struct mux_callbacks host_cb = {.lost = host_lost, .arg = p};
        struct mux_callbacks guest_cb = {.opened = guest_opened, .arg = p};
        int sv[2];

        *p = (struct pair){0};
        pthread_mutex_init(&p->lock, NULL);
        cond_init(&p->cond);
        return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0 &&
               mux_start(sv[0], MUX_HOST, NULL, 0, NULL, &host_cb, &p->host, NULL) == 0 &&
               mux_start(sv[1], MUX_GUEST, NULL, 0, hello, &guest_cb, &p->guest, NULL) == 0;
}

static void pair_wait(struct pair *p, const int *counter, int want) {
        deadline_t d = deadline_in_ms(LIMIT_MS);

        pthread_mutex_lock(&p->lock);
        while (*counter != want && cond_wait_until(&p->cond, &p->lock, d) == 0)
                ;
        CHECK_INT(*counter, want);
        pthread_mutex_unlock(&p->lock);
}

static void pair_stop(struct pair *p) {
        mux_unref(TAKE_PTR(p->host));
        mux_unref(TAKE_PTR(p->guest));
        pair_wait(p, &p->active, 0);
        pthread_cond_destroy(&p->cond);
        pthread_mutex_destroy(&p->lock);
}

static struct mux_stream *open_type(struct mux *m, const char *type, int64_t bytes) {
        _cleanup_json_ json_t *request = json_pack("{s:s, s:I}", "type", type, "bytes", (json_int_t) bytes);
        struct op op = op_timeout(LIMIT_MS);
        struct mux_stream *s = NULL;

        CHECK_INT(mux_open(m, request, &op, &s, NULL), 0);
        return s;
}

static size_t open_streams(struct mux *m) {
        LOCK(&m->lock);
        return m->n_streams;
}

static void test_hello_and_ping(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_json_ json_t *hello = NULL, *again = NULL;
        const char *agent = NULL;
        int64_t ns = -1;
        struct pair p;

        REQUIRE(pair_start(&p));
        CHECK_INT(mux_hello(p.host, &op, &hello, NULL), 0);
        CHECK_INT(json_get_str(hello, "agent", &agent, NULL), 0);
        CHECK_STR(agent, "test");
        CHECK_INT(mux_hello(p.host, &op, &again, NULL), 0);
        CHECK(hello != again);
        for (int i = 0; i < 3; i++) {
                CHECK_INT(mux_ping(p.host, &op, &ns, NULL), 0);
                CHECK(ns > 0);
                CHECK_INT(mux_ping(p.guest, &op, &ns, NULL), 0);
        }
        pair_stop(&p);
}

static void test_call(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_json_ json_t *request = json_pack("{s:s, s:s}", "type", "echo", "text", "hällo");
        _cleanup_json_ json_t *answer = NULL;
        const char *text = NULL;
        struct pair p;

        REQUIRE(pair_start(&p));
        CHECK_INT(mux_call(p.host, request, &op, &answer, NULL), 0);
        CHECK_INT(json_get_str(answer, "text", &text, NULL), 0);
        CHECK_STR(text, "hällo");
        CHECK_INT(mux_call(p.host, request, &op, NULL, NULL), 0);
        pair_stop(&p);
}

static void test_call_errors(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_json_ json_t *fail = json_pack("{s:s}", "type", "fail");
        _cleanup_json_ json_t *refuse = json_pack("{s:s}", "type", "refuse");
        _cleanup_json_ json_t *source = json_pack("{s:s, s:i}", "type", "source", "bytes", 5);
        _cleanup_json_ json_t *big = NULL;
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *text = calloc(1, WIRE_FRAME_MAX + 1);
        struct mux *host;
        struct pair p;

        REQUIRE(pair_start(&p));
        CHECK_INT(mux_call(p.host, fail, &op, NULL, &err), -error_code_errno(ERROR_NOT_FOUND));
        CHECK_INT(err.code, ERROR_NOT_FOUND);
        CHECK_STR(err.message, "No such file: /a\xef\xbf\xbd");
        CHECK_STR(err.hint, "Look elsewhere.");
        CHECK(mux_call(p.host, refuse, &op, NULL, &err) < 0);
        CHECK_INT(err.code, ERROR_UNSUPPORTED);
        CHECK_STR(err.message, "Not here.");
        CHECK_INT(mux_call(p.host, source, &op, NULL, &err), -EPROTO);
        CHECK_STR(err.message, "The guest agent sent data where \"ok\" was due.");

        /* The host takes no requests. */
        CHECK(mux_call(p.guest, fail, &op, NULL, &err) < 0);
        CHECK_INT(err.code, ERROR_UNSUPPORTED);

        memset(text, 'x', WIRE_FRAME_MAX);
        big = json_pack("{s:s, s:s}", "type", "echo", "text", text);
        CHECK_INT(mux_call(p.host, big, &op, NULL, &err), -EMSGSIZE);

        host = mux_ref(p.host);
        mux_shutdown(p.guest, -ECONNRESET);
        pair_wait(&p, &p.lost, 1);
        CHECK_INT(p.lost_err, -ENODATA);
        CHECK_INT(mux_call(host, fail, &op, NULL, &err), -ENOTCONN);
        CHECK_INT(err.code, ERROR_GUEST_UNREACHABLE);
        mux_unref(host);
        pair_stop(&p);
        CHECK_INT(p.lost, 1);
}

/* 64 MiB through one stream while another one's reader takes nothing, and calls go on. */
static void test_slow_reader_blocks_nobody(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_json_ json_t *request = json_pack("{s:s}", "type", "echo");
        const int64_t n = 64 * 1024 * 1024;
        struct mux_stream *asleep, *fast;
        struct pair p;

        REQUIRE(pair_start(&p));
        asleep = open_type(p.host, "source", 4 * 1024 * 1024);
        fast = open_type(p.host, "source", n);
        CHECK_INT(drain(fast, WIRE_CH_OUT, &op), n);
        CHECK_INT(mux_expect_msg(fast, WIRE_MSG_END, &op, NULL, NULL), 0);
        CHECK_INT(mux_call(p.host, request, &op, NULL, NULL), 0);
        CHECK_INT(drain(asleep, WIRE_CH_OUT, &op), 4 * 1024 * 1024);
        mux_stream_unref(fast);
        mux_stream_unref(asleep);
        pair_stop(&p);
}

struct upload {
        struct mux *m;
        int64_t bytes;
        int64_t arrived;
};

static void *upload(void *arg) {
        struct upload *u = arg;
        struct op op = op_timeout(LIMIT_MS);
        struct mux_stream *s = open_type(u->m, "sink", 0);
        _cleanup_json_ json_t *ok = NULL;
        _cleanup_free_ uint8_t *data = malloc((size_t) u->bytes + 1);

        for (int64_t i = 0; i < u->bytes; i++)
                data[i] = pattern((uint64_t) i);
        if (mux_send_data(s, WIRE_CH_IN, data, (size_t) u->bytes, &op) == 0 && mux_send_eof(s, WIRE_CH_IN, &op) == 0 &&
            mux_expect_msg(s, WIRE_MSG_OK, &op, &ok, NULL) == 0)
                (void) json_get_int(ok, "bytes", &u->arrived, NULL);
        mux_stream_unref(s);
        return NULL;
}

/* Both directions full at once on many streams: the two sides must not block each other. */
static void test_both_directions_full(void) {
        enum { N = 16 };
        struct op op = op_timeout(LIMIT_MS);
        struct mux_stream *down[N];
        struct upload up[N];
        pthread_t threads[N];
        struct pair p;

        REQUIRE(pair_start(&p));
        for (int i = 0; i < N; i++) {
                down[i] = open_type(p.host, "source", 1024 * 1024 + i);
                up[i] = (struct upload){.m = p.host, .bytes = 1024 * 1024 + 7 * i, .arrived = -1};
                REQUIRE(thread_start(&threads[i], "upload", upload, &up[i]) == 0);
        }
        for (int i = 0; i < N; i++) {
                pthread_join(threads[i], NULL);
                CHECK_INT(up[i].arrived, up[i].bytes);
        }
        for (int i = 0; i < N; i++) {
                CHECK_INT(drain(down[i], WIRE_CH_OUT, &op), 1024 * 1024 + i);
                mux_stream_unref(down[i]);
        }
        pair_stop(&p);
}

static void test_small_pieces_are_merged(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        _cleanup_json_ json_t *request = json_pack("{s:s, s:i, s:i}", "type", "source", "bytes", 100000, "piece", 100);
        struct mux_stream *s;
        struct pair p;
        int events = 0;
        size_t n = 0;

        REQUIRE(pair_start(&p));
        CHECK_INT(mux_open(p.host, request, &op, &s, NULL), 0);
        pair_wait(&p, &p.served, 1);
        CHECK_INT(mux_ping(p.host, &op, &(int64_t){0}, NULL), 0); /* all of it is queued now */
        for (;;) {
                CHECK_INT(mux_recv(s, &op, &e), 0);
                if (e.kind != MUX_DATA)
                        break;
                CHECK(e.data.len <= WIRE_DATA_CHUNK);
                n += e.data.len;
                events++;
        }
        CHECK_INT(n, 100000);
        CHECK_INT(events, 2);
        CHECK_INT(e.kind, MUX_EOF);
        mux_stream_unref(s);
        pair_stop(&p);
}

static void test_no_data_behind_the_end(void) {
        struct op op = op_timeout(LIMIT_MS);
        struct mux_stream *s;
        struct pair p;

        REQUIRE(pair_start(&p));
        s = open_type(p.host, "wait", 0);
        CHECK_INT(mux_send_eof(s, WIRE_CH_IN, &op), 0);
        CHECK_INT(mux_send_eof(s, WIRE_CH_IN, &op), -EINVAL);
        CHECK_INT(mux_send_data(s, WIRE_CH_IN, "x", 1, &op), -EINVAL);
        mux_stream_unref(s);
        pair_stop(&p);
}

/* The peer ends its stream: what it sent comes first, then MUX_CLOSED, again and again; sending is refused. */
static void test_closed_by_peer(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        _cleanup_json_ json_t *msg = json_pack("{s:s}", "type", "x");
        struct mux_stream *s;
        struct pair p;

        REQUIRE(pair_start(&p));
        s = open_type(p.host, "source", 10);
        CHECK_INT(drain(s, WIRE_CH_OUT, &op), 10);
        CHECK_INT(mux_expect_msg(s, WIRE_MSG_END, &op, NULL, NULL), 0);
        for (int i = 0; i < 3; i++) {
                CHECK_INT(mux_recv(s, &op, &e), 0);
                CHECK_INT(e.kind, MUX_CLOSED);
                CHECK(!error_is_set(&e.error));
        }
        CHECK_INT(mux_send_data(s, WIRE_CH_IN, "x", 1, &op), -EPIPE);
        CHECK_INT(mux_send_msg(s, msg, &op), -EPIPE);
        CHECK_INT(mux_send_eof(s, WIRE_CH_IN, &op), -EPIPE);
        mux_close(s, NULL);
        mux_close(s, NULL);
        CHECK_INT(open_streams(p.host), 0);
        mux_stream_unref(s);
        pair_stop(&p);
}

/* Closing from this side ends what the other side does, also while that is blocked in a send. */
static void test_close_cancels_peer(void) {
        struct op op = op_timeout(LIMIT_MS);
        struct mux_stream *s, *t;
        int64_t ns;
        struct pair p;

        REQUIRE(pair_start(&p));
        s = open_type(p.host, "source", 64 * 1024 * 1024);
        t = mux_stream_ref(open_type(p.host, "wait", 0));
        mux_stream_unref(t); /* one of two references: nothing is closed */
        CHECK_INT(mux_ping(p.host, &op, &ns, NULL), 0);
        CHECK_INT(open_streams(p.guest), 2);
        mux_stream_unref(s);
        mux_stream_unref(t);
        pair_wait(&p, &p.served, 2);
        CHECK_INT(mux_ping(p.guest, &op, &ns, NULL), 0);
        CHECK_INT(open_streams(p.host), 0);
        CHECK_INT(open_streams(p.guest), 0);
        pair_stop(&p);
}

static void test_stream_limit(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_json_ json_t *request = json_pack("{s:s}", "type", "wait");
        _cleanup_error_ struct error err = ERROR_INIT;
        struct mux_stream *s[WIRE_STREAMS_MAX], *more = NULL;
        struct pair p;

        REQUIRE(pair_start(&p));
        for (size_t i = 0; i < WIRE_STREAMS_MAX; i++)
                s[i] = open_type(p.host, "wait", 0);
        CHECK_INT(mux_open(p.host, request, &op, &more, &err), -EMFILE);
        CHECK_INT(err.code, ERROR_QUOTA_EXCEEDED);
        CHECK(more == NULL);
        for (size_t i = 0; i < WIRE_STREAMS_MAX; i++)
                mux_stream_unref(s[i]);
        pair_wait(&p, &p.served, WIRE_STREAMS_MAX);
        CHECK_INT(mux_ping(p.host, &op, &(int64_t){0}, NULL), 0);
        CHECK_INT(mux_open(p.host, request, &op, &more, &err), 0);
        mux_stream_unref(more);
        pair_stop(&p);
}

/* Ids wrap around and pass over those in use. */
static void test_id_wrap(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_json_ json_t *echo = json_pack("{s:s}", "type", "echo");
        struct mux_stream *old, *s;
        struct pair p;

        REQUIRE(pair_start(&p));
        old = open_type(p.host, "wait", 0); /* 1 */
        CHECK_INT(old->id, 1);
        pthread_mutex_lock(&p.host->lock);
        p.host->next_id = UINT32_MAX;
        pthread_mutex_unlock(&p.host->lock);
        s = open_type(p.host, "wait", 0);
        CHECK_INT(s->id, UINT32_MAX);
        mux_stream_unref(s);
        s = open_type(p.host, "wait", 0);
        CHECK_INT(s->id, 3);
        CHECK_INT(mux_call(p.host, echo, &op, NULL, NULL), 0);
        mux_stream_unref(s);
        mux_stream_unref(old);

        pthread_mutex_lock(&p.guest->lock);
        p.guest->next_id = UINT32_MAX - 1;
        pthread_mutex_unlock(&p.guest->lock);
        s = open_type(p.guest, "wait", 0);
        CHECK_INT(s->id, UINT32_MAX - 1);
        mux_stream_unref(s);
        s = open_type(p.guest, "wait", 0);
        CHECK_INT(s->id, 2);
        mux_stream_unref(s);
        pair_stop(&p);
}

/* What was received before the loss can still be taken. */
static void test_lost_after_the_rest(void) {
        struct op op = op_timeout(LIMIT_MS);
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        _cleanup_json_ json_t *msg = json_pack("{s:s}", "type", "x");
        struct mux_stream *s, *t;
        struct pair p;

        REQUIRE(pair_start(&p));
        s = open_type(p.host, "source", 200000);
        t = open_type(p.host, "wait", 0);
        pair_wait(&p, &p.served, 1);
        CHECK_INT(mux_ping(p.guest, &op, &(int64_t){0}, NULL), 0);
        mux_unref(TAKE_PTR(p.guest));
        pair_wait(&p, &p.lost, 1);
        CHECK(mux_is_lost(p.host));

        CHECK_INT(drain(s, WIRE_CH_OUT, &op), 200000);
        CHECK_INT(mux_expect_msg(s, WIRE_MSG_END, &op, NULL, NULL), 0);
        CHECK_INT(mux_recv(s, &op, &e), 0);
        CHECK_INT(e.kind, MUX_CLOSED); /* its close had arrived, too */
        for (int i = 0; i < 2; i++) {
                CHECK_INT(mux_recv(t, &op, &e), 0);
                CHECK_INT(e.kind, MUX_LOST);
        }
        CHECK_INT(mux_send_msg(t, msg, &op), -ENOTCONN);
        CHECK_INT(mux_send_data(t, WIRE_CH_IN, "x", 1, &op), -ENOTCONN);

        /* Streams outlive the connection's last reference. */
        mux_unref(TAKE_PTR(p.host));
        CHECK_INT(mux_recv(t, &op, &e), 0);
        CHECK_INT(e.kind, MUX_LOST);
        mux_close(t, NULL);
        mux_stream_unref(t);
        mux_stream_unref(s);
        pair_stop(&p);
}

static void test_last_reference_in_callback(void) {
        struct pair p;
        struct mux_stream *s;

        REQUIRE(pair_start(&p));
        s = open_type(p.host, "wait", 0);
        pthread_mutex_lock(&p.lock);
        p.unref_in_lost = true;
        pthread_mutex_unlock(&p.lock);
        mux_shutdown(p.host, -EIO);
        pair_wait(&p, &p.lost, 1);
        p.host = NULL;
        CHECK_INT(p.lost_err, -EIO);
        mux_stream_unref(s);
        pair_stop(&p);
}

/* Every wait ends with its deadline and with its cancel token. */

enum wait_kind {
        WAIT_RECV,
        WAIT_CREDIT,
        WAIT_EXPECT,
        WAIT_HELLO,
        WAIT_PING,
        WAIT_ROOM,
        WAIT_OPEN,
        WAIT_ROOM_EOF,
        _WAITS
};

struct wait_rig {
        struct mux *m; /* the other end of its channel is a socket that nobody reads */
        struct mux_stream *s;
};

static int wait_one(const struct wait_rig *w, enum wait_kind kind, const struct op *op) {
        static char bulk[2 * WIRE_WINDOW];
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
        _cleanup_json_ json_t *msg = json_pack("{s:s}", "type", "x");
        struct mux_stream *s = NULL;
        json_t *hello;
        int64_t ns;
        int r;

        switch (kind) {
        case WAIT_RECV:
                return mux_recv(w->s, op, &e);
        case WAIT_CREDIT:
                return mux_send_data(w->s, WIRE_CH_IN, bulk, sizeof(bulk), op);
        case WAIT_EXPECT:
                return mux_expect_msg(w->s, "x", op, NULL, NULL);
        case WAIT_HELLO:
                return mux_hello(w->m, op, &hello, NULL);
        case WAIT_PING:
                return mux_ping(w->m, op, &ns, NULL);
        case WAIT_OPEN:
                r = mux_open(w->m, msg, op, &s, NULL);
                mux_stream_unref(s);
                return r;
        case WAIT_ROOM_EOF:
                return mux_send_eof(w->s, WIRE_CH_IN, op);
        default:
                return mux_send_msg(w->s, msg, op);
        }
}

static void *fire_when_waiting(void *arg) {
        struct op op = op_timeout(SHORT_MS);

        (void) wait_fd(-1, 0, &op); /* most likely it sleeps by now; the test holds either way */
        cancel_fire(arg);
        return NULL;
}

/* Fills the out buffer beyond the mark for messages. */
static void fill_out(struct mux *m) {
        LOCK(&m->lock);
        _cleanup_free_ char *big = calloc(1, MUX_OUT_HIGH);

        while (mux_waiting_locked(m) < MUX_OUT_HIGH)
                if (mux_append_locked(m, WIRE_PING, 0, big, MUX_OUT_HIGH - 64, NULL, 0) < 0)
                        break;
}

static void test_waits_end(void) {
        struct op never = op_timeout(LIMIT_MS);
        _cleanup_json_ json_t *request = json_pack("{s:s}", "type", "x");
        struct wait_rig w = {0};
        int sv[2];

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
        REQUIRE(mux_start(sv[0], MUX_HOST, NULL, 0, NULL, NULL, &w.m, NULL) == 0);
        REQUIRE(mux_open(w.m, request, &never, &w.s, NULL) == 0);

        for (int kind = 0; kind < _WAITS; kind++) {
                _cleanup_cancel_ struct cancel *c = cancel_new();
                pthread_t thread;

                if (kind == WAIT_ROOM)
                        fill_out(w.m);
                struct op op = op_timeout(SHORT_MS);
                CHECK_INT(wait_one(&w, (enum wait_kind) kind, &op), -ETIMEDOUT);
                op = op_timeout(LIMIT_MS);
                op.cancel = c;
                REQUIRE(thread_start(&thread, "cancel", fire_when_waiting, c) == 0);
                CHECK_INT(wait_one(&w, (enum wait_kind) kind, &op), -ECANCELED);
                CHECK_INT(wait_one(&w, (enum wait_kind) kind, &op), -ECANCELED);
                pthread_join(thread, NULL);
        }

        /* And with the connection. */
        CHECK(!mux_is_lost(w.m));
        mux_shutdown(w.m, -EIO);
        CHECK_INT(wait_one(&w, WAIT_ROOM, &never), -ENOTCONN);
        CHECK_INT(wait_one(&w, WAIT_HELLO, &never), -ENOTCONN);
        mux_stream_unref(w.s);
        mux_unref(w.m);
        close_fd(sv[1]);
}

int main(void) {
        RUN(test_hello_and_ping);
        RUN(test_call);
        RUN(test_call_errors);
        RUN(test_slow_reader_blocks_nobody);
        RUN(test_both_directions_full);
        RUN(test_small_pieces_are_merged);
        RUN(test_no_data_behind_the_end);
        RUN(test_closed_by_peer);
        RUN(test_close_cancels_peer);
        RUN(test_stream_limit);
        RUN(test_id_wrap);
        RUN(test_lost_after_the_rest);
        RUN(test_last_reference_in_callback);
        RUN(test_waits_end);
        return tap_done();
}
