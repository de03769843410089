/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/thread.h"
#include "mcp/private.h"

/* Bytes of what a handler reports; the time stands behind it. */
#define PROGRESS_SHOWN ((size_t) 170)

static void call_free(struct call *call) {
        if (!call)
                return;
        rpc_message_clear(&call->message);
        batch_unref(call->batch);
        cancel_unref(call->cancel);
        session_unref(call->session);
        pthread_mutex_destroy(&call->lock);
        free(call);
}
DEFINE_CLEANUP(struct call *, call_free)

/* One progress notification. Called with call->lock held, so that none can follow the answer. */
static void beat(struct call *call, int64_t now) {
        const char *what = *call->progress ? call->progress : call->entry->tool->name;
        char text[PROGRESS_TEXT_MAX + 1];

        (void) snprintf(text, sizeof(text), "%.*s (%lld s)", (int) utf8_floor(what, MIN(strlen(what), PROGRESS_SHOWN)),
                        what, (now - call->started_ns) / NSEC_PER_SEC);
        _cleanup_json_ json_t *message = json_pack("{s:s, s:s, s:{s:O, s:I, s:s}}", "jsonrpc", "2.0", "method",
                                                   "notifications/progress", "params", "progressToken", call->token,
                                                   "progress", (json_int_t) ++call->beats, "message", text);
        _cleanup_buf_ struct buf out = BUF_INIT(RPC_MESSAGE_MAX);

        call->last_beat_ns = now;
        if (!message || json_write(message, &out) < 0)
                return;
        size_t len = out.len;
        char *line = buf_steal(&out);
        if (line)
                (void) conn_send(call->session->conn, CONN_PROGRESS, line, len);
}

/* op->progress of a call. */
static void on_progress(void *arg, const char *message) {
        struct call *call = arg;
        size_t len = strlen(message);
        int64_t now = monotonic_ns();

        len = utf8_valid_prefix(message, MIN(len, (size_t) PROGRESS_TEXT_MAX));
        LOCK(&call->lock);
        memcpy(call->progress, message, len);
        call->progress[len] = 0;
        if (call->token && !call->silent && now - call->last_beat_ns >= PROGRESS_MIN_MS * NSEC_PER_MSEC)
                beat(call, now);
}

void *ticker_main(void *arg) {
        struct mcp_server *s = arg;

        LOCK(&s->lock);
        while (!s->closing) {
                deadline_t next = DEADLINE_NEVER;
                int64_t now = monotonic_ns();

                for (struct call *call = s->calls; call; call = call->next) {
                        if (!call->token)
                                continue;
                        LOCK(&call->lock);
                        if (call->silent)
                                continue;
                        if (now - call->last_beat_ns >= MCP_PROGRESS_MS * NSEC_PER_MSEC)
                                beat(call, now);
                        next = deadline_min(next, (deadline_t){call->last_beat_ns + MCP_PROGRESS_MS * NSEC_PER_MSEC});
                }
                (void) cond_wait_until(&s->changed, &s->lock, next);
        }
        return NULL;
}

/* Whether anything may still be sent for the call; afterwards nothing may. */
static bool call_silence(struct call *call) {
        LOCK(&call->lock);
        bool first = !call->silent;
        call->silent = true;
        return first;
}

/* Takes the call off the list: its id and its place are free. Before the answer goes out, because the client may use
 * both at once. */
static void call_unlink(struct call *call) {
        struct mcp_server *s = call->session->server;

        LOCK(&s->lock);
        if (!call->pprev)
                return;
        *call->pprev = call->next;
        if (call->next)
                call->next->pprev = call->pprev;
        call->session->n_calls--;
        s->n_calls--;
}

/* The answer, unless the call was cancelled; takes result. */
static void call_answer(struct call *call, json_t *result) {
        char *text = NULL;
        size_t len = 0;

        int r = result && (!call->modern || decorate_modern(result) == 0)
                        ? rpc_result_text(call->message.id, result, &text, &len)
                        : -ENOMEM;
        if (r == -ENOBUFS) {
                _cleanup_error_ struct error e = ERROR_INIT;
                error_set(&e, ERROR_INTERNAL, "The result of %s is larger than %u bytes", call->entry->tool->name,
                          RPC_MESSAGE_MAX);
                error_hint(&e, "Ask for less at a time.");
                _cleanup_json_ json_t *small = dispatch_error_result(&e);
                if (small && (!call->modern || decorate_modern(small) == 0))
                        (void) rpc_result_text(call->message.id, small, &text, &len);
        }
        json_decref(result);
        bool first = call_silence(call);
        call_unlink(call);
        if (first)
                session_reply(call->session, call->batch, text, len);
        else
                free(text);
}

static void call_done(struct call *call) {
        struct mcp_server *s = call->session->server;

        LOCK(&s->lock);
        call->session->n_unanswered--;
        pthread_cond_broadcast(&s->changed);
}

static void *call_main(void *arg) {
        _cleanup_(call_freep) struct call *call = arg;
        struct op op = {
                .deadline = deadline_in_ms(call->entry->tool->default_timeout_ms),
                .cancel = call->cancel,
                .progress = on_progress,
                .progress_arg = call,
        };

        call_answer(call, dispatch_run(call->session->server, call->session->owner, call->entry, call->args, &op));
        call_done(call);
        return NULL;
}

static bool token_valid(const json_t *token) {
        return json_is_string(token) ? json_string_length(token) <= RPC_ID_MAX : json_is_integer(token);
}

static struct call *call_new(struct session *s, struct rpc_message *m, const struct tool_entry *entry, bool modern,
                             struct batch *batch) {
        struct call *call = calloc(1, sizeof(*call));
        struct cancel *cancel = cancel_new();

        if (!call || !cancel) {
                free(call);
                cancel_unref(cancel);
                return NULL;
        }
        call->message = *m;
        *m = (struct rpc_message){0};
        const json_t *args = json_object_get(call->message.params, "arguments");
        const json_t *token = json_object_get(json_object_get(call->message.params, "_meta"), "progressToken");
        call->args = json_is_null(args) ? NULL : args;
        call->token = token_valid(token) ? token : NULL;
        call->entry = entry;
        call->modern = modern;
        call->batch = batch_ref(batch);
        call->cancel = cancel;
        call->started_ns = monotonic_ns();
        pthread_mutex_init(&call->lock, NULL);
        atomic_fetch_add(&s->refs, 1);
        call->session = s;
        return call;
}

static struct call *find_call(struct session *s, const json_t *id) {
        for (struct call *call = s->server->calls; call; call = call->next)
                if (call->session == s && !call->cancelled && json_equal(call->message.id_value, id))
                        return call;
        return NULL;
}

enum admission { ADMITTED, ADMIT_DUPLICATE, ADMIT_BUSY, ADMIT_CLOSING };

static enum admission call_link(struct call *call) {
        struct session *s = call->session;
        struct mcp_server *server = s->server;

        LOCK(&server->lock);
        if (s->closing || server->closing)
                return ADMIT_CLOSING;
        if (find_call(s, call->message.id_value))
                return ADMIT_DUPLICATE;
        if (s->n_calls >= MCP_CALLS_PER_CONNECTION || server->n_calls >= MCP_CALLS_MAX)
                return ADMIT_BUSY;
        call->next = server->calls;
        call->pprev = &server->calls;
        if (call->next)
                call->next->pprev = &call->next;
        server->calls = call;
        s->n_calls++;
        s->n_unanswered++;
        server->n_calls++;
        if (call->token) {
                /* The first beat, before the thread can answer; the ticker then has a new time to wait for. */
                LOCK(&call->lock);
                beat(call, call->started_ns);
                pthread_cond_broadcast(&server->changed);
        }
        return ADMITTED;
}

static void refuse_busy(struct call *call) {
        _cleanup_error_ struct error e = ERROR_INIT;

        error_set(&e, ERROR_RATE_LIMITED, "Too many calls are running at once (at most %u on a connection, %u in all)",
                  MCP_CALLS_PER_CONNECTION, MCP_CALLS_MAX);
        error_hint(&e, "Wait for one of them to end, then call %s again.", call->entry->tool->name);
        call_answer(call, dispatch_error_result(&e));
}

void call_start(struct session *s, struct rpc_message *m, const struct tool_entry *entry, bool modern,
                struct batch *batch) {
        _cleanup_(call_freep) struct call *call = call_new(s, m, entry, modern, batch);

        if (!call) {
                session_error(s, batch, m->id, RPC_INTERNAL_ERROR, "Out of memory", NULL);
                return;
        }
        switch (call_link(call)) {
        case ADMIT_CLOSING:
                return;
        case ADMIT_DUPLICATE:
                session_error(s, batch, call->message.id, RPC_INVALID_REQUEST,
                              "A request with this id is still running", NULL);
                return;
        case ADMIT_BUSY:
                refuse_busy(call);
                return;
        case ADMITTED:
                break;
        }
        if (thread_start_detached("mcp-call", call_main, call) < 0) {
                _cleanup_error_ struct error e = ERROR_INIT;

                error_set(&e, ERROR_INTERNAL, "Cannot start a thread for %s", entry->tool->name);
                error_hint(&e, "Try again when fewer calls are running.");
                call_answer(call, dispatch_error_result(&e));
                call_done(call);
                return;
        }
        TAKE_PTR(call);
}

void call_cancel(struct session *s, const json_t *id) {
        _cleanup_cancel_ struct cancel *cancel = NULL;

        {
                LOCK(&s->server->lock);
                struct call *call = find_call(s, id);
                if (!call)
                        return;
                call->cancelled = true;
                cancel = cancel_ref(call->cancel);
                (void) call_silence(call);
        }
        cancel_fire(cancel);
}

/* The token of a call that is not cancelled yet, as a reference, or NULL when there is none left. */
static struct cancel *next_to_cancel(struct session *s) {
        LOCK(&s->server->lock);
        s->closing = true;
        for (struct call *call = s->server->calls; call; call = call->next) {
                if (call->session != s || call->cancelled)
                        continue;
                call->cancelled = true;
                (void) call_silence(call);
                return cancel_ref(call->cancel);
        }
        return NULL;
}

void calls_end(struct session *s) {
        struct cancel *cancel;

        while ((cancel = next_to_cancel(s))) {
                cancel_fire(cancel);
                cancel_unref(cancel);
        }
}

int calls_wait(struct session *s, deadline_t deadline) {
        LOCK(&s->server->lock);
        while (s->n_unanswered > 0 && !s->server->closing)
                if (cond_wait_until(&s->server->changed, &s->server->lock, deadline) < 0)
                        return -ETIMEDOUT;
        return 0;
}
