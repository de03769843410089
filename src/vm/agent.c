/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/agent.h"

#include <string.h>
#include <sys/random.h>

#include "base/json.h"
#include "base/str.h"
#include "vm/agent_private.h"
#include "wire/handshake.h"

#define ENTROPY_BYTES 64u
#define CLOCK_TRIES 5 /* to set the guest's clock: on a host that is busy, a try may be under way for too long */

_Static_assert(SESSION_LEN == WIRE_SESSION_LEN, "a secret has one length");
_Static_assert(ENTROPY_BYTES >= WIRE_ENTROPY_MIN, "so much makes the guest reseed its generator");

/* Frees a message of ours that has secrets in it: its strings are overwritten. */
static void put_away(json_t *msg) {
        const char *key;
        json_t *member;

        json_object_foreach (msg, key, member)
                if (json_is_string(member))
                        explicit_bzero((char *) json_string_value(member), json_string_length(member));
        json_decref(msg);
}

/* With our hello, which shows the guest the secret. */
static int start_mux(int fd, const char *session, struct mux **ret, struct error *err) {
        /* The guest opens no streams: without a callback, mux refuses them. */
        const struct mux_callbacks nobody = {0};
        json_t *hello = json_pack("{s:s*}", "session", session);
        int r;

        if (!hello) {
                close_fd(fd);
                return error_set_errno(err, ENOMEM, "Cannot connect to the agent");
        }
        r = mux_start(fd, MUX_HOST, NULL, 0, hello, &nobody, ret, err);
        put_away(hello);
        return r;
}

static int check_session(const json_t *hello, struct error *err) {
        _cleanup_error_ struct error detail = ERROR_INIT;
        bool ok = true;

        if (json_opt_bool(hello, "session_ok", &ok, &detail) < 0)
                return agent_protocol_error("connecting to it", &detail, err);
        if (ok)
                return 0;
        error_set(err, ERROR_GUEST_UNREACHABLE,
                  "The guest's agent belongs to another session: it was given a secret that this host has not got");
        error_hint(err, "Stop and start the workspace: its agent is then a new one.");
        return -EACCES;
}

int agent_open(int fd, const char *session, const struct op *op, struct agent **ret, struct error *err) {
        _cleanup_close_ int channel = fd;

        int r = handshake_host(channel, op, err);
        if (r < 0)
                return r;

        _cleanup_mux_ struct mux *mux = NULL;
        _cleanup_json_ json_t *hello = NULL;
        r = start_mux(TAKE_FD(channel), session, &mux, err);
        if (r >= 0)
                r = mux_hello(mux, op, &hello, err);
        if (r >= 0)
                r = check_session(hello, err);
        if (r < 0)
                return r;

        struct agent *a = malloc(sizeof(*a));
        if (!a)
                return error_set_errno(err, ENOMEM, "Cannot connect to the agent");
        *a = (struct agent){.refs = 1, .mux = TAKE_PTR(mux)};
        *ret = a;
        return 0;
}

struct agent *agent_ref(struct agent *a) {
        __atomic_add_fetch(&a->refs, 1, __ATOMIC_RELAXED);
        return a;
}

void agent_unref(struct agent *a) {
        if (!a || __atomic_sub_fetch(&a->refs, 1, __ATOMIC_ACQ_REL) > 0)
                return;
        mux_unref(a->mux);
        free(a);
}

bool agent_is_lost(struct agent *a) {
        return mux_is_lost(a->mux);
}

void agent_set_no_space(struct agent *a, bool on) {
        mux_set_timeout_error(a->mux, on ? -ENOSPC : -ETIMEDOUT);
}

int agent_ping(struct agent *a, const struct op *op, int64_t *ret_ns, struct error *err) {
        return mux_ping(a->mux, op, ret_ns, err);
}

int agent_error(int r, const char *doing, struct error *err) {
        switch (r) {
        case -ETIMEDOUT:
                return error_set(err, ERROR_TIMEOUT, "Time ran out while %s", doing);
        case -ECANCELED:
                return error_set(err, ERROR_CANCELLED, "Cancelled while %s", doing);
        case -ENOSPC:
                error_set(err, ERROR_NO_SPACE,
                          "Time ran out while %s: the disk of the host is full, and the machine "
                          "stands still until there is room",
                          doing);
                error_hint(err, "Free space on the host, or destroy workspaces that are not needed; the machine then "
                                "goes on by itself. Look what was done before you try again.");
                return r;
        case -ENOTCONN:
        case -ENODATA:
        case -ECONNRESET:
                error_set(err, ERROR_GUEST_UNREACHABLE, "The connection to the guest's agent was lost while %s", doing);
                error_hint(
                        err,
                        "Look at the workspace's state and console (workspace_info, workspace_logs), then try again.");
                return r;
        case -EMFILE:
                error_set(err, ERROR_CONFLICT, "Too many calls at once on one workspace (%u) while %s",
                          WIRE_STREAMS_MAX, doing);
                error_hint(err, "Wait until some of them have ended.");
                return r;
        case -EMSGSIZE:
        case -ENOBUFS:
                return error_set(err, ERROR_INVALID_ARGUMENT, "The request is larger than %u bytes (%s)",
                                 WIRE_FRAME_MAX, doing);
        default:
                return error_set_errno(err, r, "Failed while %s", doing);
        }
}

int agent_protocol_error(const char *doing, struct error *detail, struct error *err) {
        error_set(err, ERROR_GUEST_UNREACHABLE, "The guest's agent gave a wrong answer while %s%s%s", doing,
                  error_is_set(detail) ? ": " : "", error_is_set(detail) ? error_message(detail) : "");
        error_hint(err, "If it happens again, stop and start the workspace: something in it disturbs its agent.");
        return -EPROTO;
}

/* What a guest may claim to be the matter: codes about its own files, commands and limits, none about our rules. */
static bool code_is_the_guests(enum error_code code) {
        switch (code) {
        case ERROR_INVALID_ARGUMENT:
        case ERROR_NOT_FOUND:
        case ERROR_CONFLICT:
        case ERROR_TIMEOUT:
        case ERROR_NO_SPACE:
        case ERROR_QUOTA_EXCEEDED:
        case ERROR_UNSUPPORTED:
        case ERROR_INTERNAL:
                return true;
        default:
                return false;
        }
}

void agent_tame(char *text, size_t max) {
        if (!text)
                return;
        if (strlen(text) > max)
                text[utf8_floor(text, max)] = '\0';
        for (unsigned char *c = (unsigned char *) text; *c; c++) {
                if ((*c < 0x20 && *c != '\n' && *c != '\t') || *c == 0x7f)
                        *c = ' ';
                else if (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) /* U+0080 to U+009F, which terminals obey too */
                        c[0] = c[1] = ' ';
        }
}

/* Makes an error that the guest sent our own. Returns its errno. */
static int take_guest_error(struct error *from, struct error *err) {
        if (!code_is_the_guests(from->code))
                from->code = ERROR_INTERNAL;
        agent_tame(from->message, AGENT_TEXT_MAX);
        agent_tame(from->hint, AGENT_TEXT_MAX);
        int r = -error_code_errno(from->code);
        error_move(err, from);
        return r;
}

int agent_request(struct agent *a, json_t *request, const char *doing, const struct op *op, struct mux_stream **ret,
                  struct error *err) {
        if (!request)
                return error_set_errno(err, ENOMEM, "Failed while %s", doing);
        int r = mux_open(a->mux, request, op, ret, err);
        return r < 0 ? agent_error(r, doing, err) : 0;
}

int agent_next(struct mux_stream *s, const char *doing, const struct op *op, struct mux_event *ret, struct error *err) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

        int r = mux_recv(s, op, &e);
        if (r < 0)
                return agent_error(r, doing, err);

        switch (e.kind) {
        case MUX_LOST:
                return agent_error(-ENOTCONN, doing, err);
        case MUX_CLOSED:
                if (error_is_set(&e.error))
                        return take_guest_error(&e.error, err);
                return agent_protocol_error(doing, NULL, err);
        case MUX_MSG:
                if (agent_is(e.msg, WIRE_MSG_ERROR)) {
                        _cleanup_error_ struct error theirs = ERROR_INIT;

                        wire_error_from_json(e.msg, &theirs);
                        if (!error_is_set(&theirs))
                                return agent_protocol_error(doing, NULL, err);
                        return take_guest_error(&theirs, err);
                }
                break;
        case MUX_DATA:
        case MUX_EOF:
                break;
        }
        *ret = e;
        e = MUX_EVENT_INIT;
        return 0;
}

int agent_expect(struct mux_stream *s, const char *type, const char *doing, const struct op *op, json_t **ret,
                 struct error *err) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

        int r = agent_next(s, doing, op, &e, err);
        if (r < 0)
                return r;
        if (e.kind != MUX_MSG || !agent_is(e.msg, type))
                return agent_protocol_error(doing, NULL, err);
        *ret = TAKE_PTR(e.msg);
        return 0;
}

int agent_end(struct mux_stream *s, const char *doing, const struct op *op, struct error *err) {
        _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

        int r = mux_recv(s, op, &e);
        if (r < 0)
                return agent_error(r, doing, err);
        if (e.kind == MUX_LOST || (e.kind == MUX_CLOSED && !error_is_set(&e.error)))
                return 0;
        agent_tame(e.error.message, AGENT_TEXT_MAX);
        return agent_protocol_error(doing, &e.error, err);
}

int agent_send(struct mux_stream *s, const void *data, size_t n, bool last, const char *doing, const struct op *op,
               struct error *err) {
        int r = n > 0 ? mux_send_data(s, WIRE_CH_IN, data, n, op) : 0;

        if (r >= 0 && last)
                r = mux_send_eof(s, WIRE_CH_IN, op);
        return r < 0 && r != -EPIPE ? agent_error(r, doing, err) : 0;
}

int agent_get_count(const json_t *msg, const char *key, uint64_t *ret, struct error *err) {
        int64_t v = 0;

        int r = json_get_int(msg, key, &v, err);
        if (r < 0)
                return r;
        if (v < 0)
                return error_set(err, ERROR_INVALID_ARGUMENT, "\"%s\" is negative", key);
        *ret = (uint64_t) v;
        return 0;
}

bool agent_is(const json_t *msg, const char *type) {
        const char *t = json_string_value(json_object_get(msg, "type"));

        return t && str_eq(t, type);
}

int agent_ask(struct agent *a, json_t *request, const char *doing, const struct op *op, json_t **ret,
              struct error *err) {
        _cleanup_json_ json_t *owned = request, *ok = NULL;
        _cleanup_stream_ struct mux_stream *s = NULL;

        int r = agent_request(a, owned, doing, op, &s, err);
        if (r >= 0)
                r = agent_expect(s, WIRE_MSG_OK, doing, op, &ok, err);
        if (r >= 0)
                r = agent_end(s, doing, op, err);
        if (r < 0)
                return r;
        if (ret)
                *ret = TAKE_PTR(ok);
        return 0;
}

int agent_mount_root(struct agent *a, const struct op *op, struct error *err) {
        return agent_mount_root_of(a, 0, op, err);
}

int agent_mount_root_of(struct agent *a, uint64_t disk_bytes, const struct op *op, struct error *err) {
        json_t *request = json_pack("{s:s, s:s, s:b}", "type", WIRE_REQ_MOUNT_ROOT, "device", "/dev/vda", "grow", true);

        if (request && disk_bytes > 0 && json_put(request, "disk_bytes", json_integer((json_int_t) disk_bytes)) < 0) {
                json_decref(request);
                request = NULL;
        }
        return agent_ask(a, request, "mounting the root file system", op, NULL, err);
}

/* "network" of a configure request; an absent address leaves the network alone. */
static int put_network(json_t *request, const struct agent_identity *id) {
        if (!id->address)
                return 0;
        _cleanup_json_ json_t *net =
                json_pack("{s:s, s:i, s:s*, s:s*, s:b}", "address", id->address, "prefix_len", (int) id->prefix_len,
                          "mac", id->mac, "gateway", id->gateway, "reset", (int) id->reset);
        return json_put(request, "network", TAKE_PTR(net));
}

static int put_dns(json_t *request, const struct agent_identity *id) {
        if (!id->dns)
                return 0;
        _cleanup_json_ json_t *list = json_array();
        for (size_t i = 0; i < id->n_dns; i++)
                if (json_array_append_new(list, json_string(id->dns[i])) < 0)
                        return -ENOMEM;
        return json_put(request, "dns", TAKE_PTR(list));
}

/* Fresh random bytes for the guest's pool, as base64. */
static int put_entropy(json_t *request) {
        uint8_t bytes[ENTROPY_BYTES];
        _cleanup_buf_ struct buf text = BUF_INIT(2 * ENTROPY_BYTES);

        if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t) sizeof(bytes))
                return -EIO;
        int r = base64_encode(&text, bytes, sizeof(bytes));
        explicit_bzero(bytes, sizeof(bytes));
        if (r < 0)
                return r;
        r = json_put(request, "entropy", json_stringn(text.data, text.len));
        explicit_bzero(text.data, text.len);
        return r;
}

/* What an answer says of the guest's clock and generator. */
struct configured {
        int64_t ahead_ns; /* by so much more than our time we sent */
        int64_t late_ns;  /* by so much the guest's clock was behind ours when the answer came */
        int64_t round_ns; /* request to answer */
        bool reseeded;
};

static int64_t realtime_ns(void) {
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

/*
 * Sends a configure request (owned) with our time, taken last, so that it is as fresh as can be, and ret->ahead_ns
 * more. The guest sets its clock first and reads it last. So by how much that reading is behind our clock when we have
 * it is the time that request and answer were under way, less what we were ahead; the guest's clock is late by the
 * request's share of that time, less what we were ahead.
 */
static int configure(struct agent *a, json_t *request, const char *doing, const struct op *op, struct configured *ret,
                     struct error *err) {
        _cleanup_json_ json_t *owned = request, *ok = NULL;
        _cleanup_error_ struct error detail = ERROR_INIT;
        int64_t theirs = 0;

        const int64_t began = realtime_ns();
        int r = json_put(owned, "realtime_ns", json_integer(began + ret->ahead_ns));
        if (r < 0)
                return error_set_errno(err, r, "Failed while %s", doing);
        r = agent_ask(a, json_incref(owned), doing, op, &ok, err);
        const int64_t ours = realtime_ns();
        ret->round_ns = ours - began;
        if (r < 0)
                return r;
        ret->reseeded = false;
        if (json_get_int(ok, "realtime_ns", &theirs, &detail) < 0 ||
            json_opt_bool(ok, "reseeded", &ret->reseeded, &detail) < 0)
                return agent_protocol_error(doing, &detail, err);
        if (__builtin_sub_overflow(ours, theirs, &ret->late_ns))
                ret->late_ns = INT64_MAX;
        return 0;
}

#define TOLERANCE_NS (CLOCK_TOLERANCE_MS * NSEC_PER_MSEC)

/* The clock is late by something between -ahead and late. */
static bool clock_is_right(const struct configured *c) {
        return c->ahead_ns <= TOLERANCE_NS && c->late_ns >= -TOLERANCE_NS && c->late_ns <= TOLERANCE_NS;
}

/* Nothing speaks against it: no more is missing than the way there and back can have taken. */
static bool clock_may_be_right(const struct configured *c) {
        return c->late_ns >= -c->ahead_ns - TOLERANCE_NS && c->late_ns <= c->round_ns - c->ahead_ns + TOLERANCE_NS;
}

/*
 * Sets the clock once more, alone: that takes less time than the whole identity. What we send is ahead by half of the
 * time that the last try took, so that the error is small as well when that time is long (F. Cristian, Probabilistic
 * clock synchronization, 1989). On a host so busy that it cannot be told to the tolerance, the best guess must do.
 */
static int correct_clock(struct agent *a, struct configured *c, const struct op *op, struct error *err) {
        static const char doing[] = "setting the guest's clock";

        for (unsigned tries = 1; !clock_is_right(c) && tries < CLOCK_TRIES; tries++) {
                c->ahead_ns = clock_may_be_right(c) ? (c->late_ns + c->ahead_ns) / 2 : 0;
                int r = configure(a, json_pack("{s:s}", "type", WIRE_REQ_CONFIGURE), doing, op, c, err);
                if (r < 0)
                        return r;
        }
        if (clock_may_be_right(c))
                return 0;
        error_set(err, ERROR_GUEST_UNREACHABLE, "The guest's clock is off by up to %lld ms after %d tries to set it",
                  (long long) (c->late_ns / NSEC_PER_MSEC), CLOCK_TRIES);
        error_hint(err, "Start the workspace anew; if that does not help, workspace_logs may say why.");
        return -EPROTO;
}

int agent_configure(struct agent *a, const struct agent_identity *id, const struct op *op, struct error *err) {
        static const char doing[] = "giving the guest its identity";
        struct configured c = {0};

        json_t *request = json_pack("{s:s, s:s*, s:s*, s:s*}", "type", WIRE_REQ_CONFIGURE, "hostname", id->hostname,
                                    "machine_id", id->machine_id, "session", id->session);
        if (!request)
                return error_set_errno(err, ENOMEM, "Failed while %s", doing);
        int r = put_network(request, id);
        if (r >= 0)
                r = put_dns(request, id);
        if (r >= 0)
                r = put_entropy(request);
        if (r < 0)
                error_set_errno(err, r, "Failed while %s", doing);
        else
                r = configure(a, json_incref(request), doing, op, &c, err);
        put_away(request);
        if (r < 0)
                return r;
        if (!c.reseeded) {
                _cleanup_error_ struct error detail = ERROR_INIT;

                error_set(&detail, ERROR_INTERNAL, "it does not say that its random number generator has a new seed");
                return agent_protocol_error(doing, &detail, err);
        }
        return correct_clock(a, &c, op, err);
}

int agent_freeze(struct agent *a, unsigned max_ms, const struct op *op, bool *ret_frozen, struct error *err) {
        static const char doing[] = "freezing the guest's file systems";
        _cleanup_json_ json_t *ok = NULL;
        _cleanup_error_ struct error detail = ERROR_INIT;

        int r = agent_ask(a, json_pack("{s:s, s:i}", "type", WIRE_REQ_FREEZE, "max_ms", (int) max_ms), doing, op, &ok,
                          err);
        if (r < 0)
                return r;
        if (json_get_bool(ok, "frozen", ret_frozen, &detail) < 0)
                return agent_protocol_error(doing, &detail, err);
        return 0;
}

int agent_thaw(struct agent *a, const struct op *op, struct error *err) {
        return agent_ask(a, json_pack("{s:s}", "type", WIRE_REQ_THAW), "thawing the guest's file systems", op, NULL,
                         err);
}

int agent_sync(struct agent *a, const struct op *op, struct error *err) {
        return agent_ask(a, json_pack("{s:s}", "type", WIRE_REQ_SYNC), "writing back the guest's files", op, NULL, err);
}

int agent_shutdown(struct agent *a, const struct op *op, struct error *err) {
        static const char doing[] = "shutting the guest down";
        _cleanup_json_ json_t *request = json_pack("{s:s}", "type", WIRE_REQ_SHUTDOWN), *ok = NULL;
        _cleanup_stream_ struct mux_stream *s = NULL;

        int r = agent_request(a, request, doing, op, &s, err);
        /* Here the guest waits for us to close the stream: then it knows that its answer has come through. */
        return r < 0 ? r : agent_expect(s, WIRE_MSG_OK, doing, op, &ok, err);
}
