/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The agent's request handlers behind a socketpair, a host's mux at the other end, and a folder for files. */

#include <poll.h>
#include <stdarg.h>
#include <sys/socket.h>

#include "base/file.h"
#include "base/str.h"
#include "guest/agent.h"
#include "guest/connection.h"
#include "tap.h"

#define PATIENCE_MS 60000

static struct agent agent;
static struct connection *connection;
static struct mux *guest_mux, *host;
static char folder[64];

static _unused_ struct op patience(void) {
        return op_timeout(PATIENCE_MS);
}

/* session: what the host's hello has, or NULL. */
static _unused_ void connect_host_with(const char *session) {
        _cleanup_json_ json_t *hello = json_pack("{s:s*}", "session", session);
        struct mux_callbacks cb;
        int fds[2];

        connection = connection_new(&agent);
        cb = connection_callbacks(connection);
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ||
            mux_start(fds[0], MUX_GUEST, NULL, 0, NULL, &cb, &guest_mux, NULL) < 0 ||
            mux_start(fds[1], MUX_HOST, NULL, 0, hello, NULL, &host, NULL) < 0)
                abort();
}

static _unused_ void connect_host(void) {
        connect_host_with(NULL);
}

static _unused_ void disconnect_host(void) {
        mux_unref(TAKE_PTR(host));
        mux_unref(TAKE_PTR(guest_mux));
        connection_unref(TAKE_PTR(connection));
}

/* As if the host had gone and come back: what runs, runs on. */
static _unused_ void reconnect_host(void) {
        mux_shutdown(host, -ESHUTDOWN);
        disconnect_host();
        connect_host();
}

static _unused_ void fixture_begin_in(const char *cgroup_mount) {
        strcpy(folder, "/tmp/agentiso-guest-test-XXXXXX");
        if (!mkdtemp(folder) || agent_init(&agent, cgroup_mount, NULL) < 0)
                abort();
        agent.root = ROOT_MOUNTED;
        connect_host();
}

static _unused_ void fixture_begin(void) {
        fixture_begin_in(NULL);
}

static _unused_ void fixture_clear(void) {
        disconnect_host();
        agent_free(&agent);
        rm_rf(folder);
}

static _unused_ int fixture_end(void) {
        fixture_clear();
        return tap_done();
}

/* A path in the test's folder; one at a time. */
static _unused_ const char *in_folder(const char *name) {
        static char path[4096];

        snprintf(path, sizeof(path), "%s/%s", folder, name);
        return path;
}

/* What a request brought back. */
struct outcome {
        struct buf out, err_out;
        json_t *first, *last; /* messages; the same when there was one */
        struct error error;
        bool out_eof, err_eof;
        bool lost;
};

static _unused_ void outcome_clear(struct outcome *o) {
        buf_free(&o->out);
        buf_free(&o->err_out);
        json_decref(o->first);
        json_decref(o->last);
        error_clear(&o->error);
}
#define _cleanup_outcome_ _cleanup_(outcome_clear)

static _unused_ void take_message(struct outcome *o, json_t *msg) {
        if (str_eq(json_string_value(json_object_get(msg, "type")), WIRE_MSG_ERROR)) {
                wire_error_from_json(msg, &o->error);
                return;
        }
        if (!o->first)
                o->first = json_incref(msg);
        json_decref(o->last);
        o->last = json_incref(msg);
}

/* Whether the host is to close the stream now: the agent waits for that behind the answer to WIRE_REQ_EXEC. */
static _unused_ bool ends_exec(const json_t *msg) {
        const char *type = json_string_value(json_object_get(msg, "type"));

        return str_eq(type, WIRE_MSG_EXIT) || str_eq(type, WIRE_MSG_YIELDED);
}

/* Everything until the agent closes the stream, or until it is for us to do that. */
static _unused_ void gather(struct mux_stream *s, struct outcome *o) {
        struct op op = patience();

        *o = (struct outcome){.out = BUF_INIT(256 << 20), .err_out = BUF_INIT(256 << 20)};
        for (;;) {
                _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;

                if (mux_recv(s, &op, &ev) < 0) {
                        error_set(&o->error, ERROR_TIMEOUT, "no end of the stream");
                        return;
                }
                switch (ev.kind) {
                case MUX_MSG:
                        take_message(o, ev.msg);
                        if (ends_exec(ev.msg))
                                return;
                        break;
                case MUX_DATA:
                        buf_append(ev.channel == WIRE_CH_OUT ? &o->out : &o->err_out, ev.data.data, ev.data.len);
                        break;
                case MUX_EOF:
                        *(ev.channel == WIRE_CH_OUT ? &o->out_eof : &o->err_eof) = true;
                        break;
                case MUX_LOST:
                        o->lost = true;
                        return;
                case MUX_CLOSED:
                        if (error_is_set(&ev.error))
                                error_move(&o->error, &ev.error);
                        return;
                }
        }
}

static json_t *json_of(const char *fmt, ...) _printf_(1, 2);
static _unused_ json_t *json_of(const char *fmt, ...) {
        _cleanup_buf_ struct buf text = BUF_INIT(1 << 20);
        va_list ap;
        json_t *j = NULL;

        va_start(ap, fmt);
        buf_vprintf(&text, fmt, ap);
        va_end(ap);
        if (json_parse(text.data, text.len, 1 << 20, 16, &j, NULL) < 0)
                abort();
        return j;
}

static _unused_ struct mux_stream *open_request(json_t *request) {
        _cleanup_json_ json_t *owned = request;
        struct op op = patience();
        struct mux_stream *s = NULL;

        if (mux_open(host, owned, &op, &s, NULL) < 0)
                abort();
        return s;
}

/* Sends `input` (NULL: none, not even an end) and gathers the outcome. The request is taken. */
static _unused_ void ask(json_t *request, const void *input, size_t n, struct outcome *o) {
        _cleanup_stream_ struct mux_stream *s = open_request(request);
        struct op op = patience();

        if (input) {
                mux_send_data(s, WIRE_CH_IN, input, n, &op);
                mux_send_eof(s, WIRE_CH_IN, &op);
        }
        gather(s, o);
}

static _unused_ int64_t member_int(const json_t *o, const char *key) {
        const json_t *v = json_object_get(o, key);

        return json_is_integer(v) ? (int64_t) json_integer_value(v) : json_is_boolean(v) ? json_is_true(v) : -1;
}

static _unused_ const char *member_str(const json_t *o, const char *key) {
        return json_string_value(json_object_get(o, key));
}

/* Content of a file in the test's folder, or "(none)". */
static _unused_ char *content(const char *name) {
        char *s = NULL;

        return file_read_all(in_folder(name), 1 << 20, &s, NULL) < 0 ? strdup("(none)") : s;
}

/* A command for /bin/sh that keeps all the output that can be kept. */
static _unused_ json_t *command(const char *text) {
        json_t *o = json_of("{\"type\":\"exec\",\"max_output\":%u}", WIRE_OUTPUT_MAX);

        json_object_set_new(o, "command", json_string(text));
        return o;
}

static _unused_ json_t *command_with(const char *text, const char *key, json_t *value) {
        json_t *o = command(text);

        json_object_set_new(o, key, value);
        return o;
}

/* Whether a `sleep TAG` runs anywhere. */
static _unused_ bool runs(const char *tag) {
        _cleanup_free_ char *check = str_printf("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | "
                                                "grep -q '[s]leep %s'",
                                                tag);
        _cleanup_outcome_ struct outcome o;

        ask(command(check), NULL, 0, &o);
        return member_int(o.last, "exit_code") == 0;
}

/* Waits, with a limit, until the sleep runs or does not. */
static _unused_ bool wait_runs(const char *tag, bool wanted) {
        for (int i = 0; i < 300; i++) {
                if (runs(tag) == wanted)
                        return true;
                poll(NULL, 0, 20);
        }
        return false;
}

/* Waits, with a limit, until the agent has no request under way. */
static _unused_ bool wait_requests(void) {
        for (int i = 0; i < 500; i++) {
                pthread_mutex_lock(&agent.lock);
                unsigned n = agent.requests;
                pthread_mutex_unlock(&agent.lock);
                if (n == 0)
                        return true;
                poll(NULL, 0, 10);
        }
        return false;
}

static _unused_ bool wait_for_file(const char *name) {
        for (int i = 0; i < 1000; i++) {
                if (access(in_folder(name), F_OK) == 0)
                        return true;
                poll(NULL, 0, 10);
        }
        return false;
}
