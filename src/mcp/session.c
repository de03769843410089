/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/thread.h"
#include "mcp/private.h"

#define META_VERSION "io.modelcontextprotocol/protocolVersion"
#define META_CLIENT_INFO "io.modelcontextprotocol/clientInfo"
#define META_CAPABILITIES "io.modelcontextprotocol/clientCapabilities"
#define META_SERVER_INFO "io.modelcontextprotocol/serverInfo"

#define MODERN_VERSION "2026-07-28"
#define BATCH_VERSION "2025-03-26" /* the only revision with batches */
#define LATEST_LEGACY "2025-11-25"
/* How long a client may keep the list of tools: it changes only with the program. */
#define LIST_TTL_MS 300000

#define TEXT_SHOWN 60 /* bytes of a client's text that an error quotes */

static const char *const legacy_versions[] = {"2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"};

static const char instructions[] =
        "agentiso gives you disposable Linux machines (microVMs), each with its own kernel, disk and memory. "
        "Nothing that runs in one can touch the host, so use them for code that you do not trust, for installs, "
        "builds and tests, and for work that must survive this conversation.\n"
        "These tools cover most work: workspace_create (make a machine), exec (run a shell command), "
        "exec_background (jobs), file_write, file_read, file_edit, file_list, snapshot (save, restore), "
        "workspace_destroy (free everything).\n"
        "Do not create a workspace for what needs none: reading files that you can read already, text work, a "
        "question that no command answers.\n"
        "Usual course: workspace_create once, keep the workspace_id (the name works too), many exec and file "
        "calls, workspace_destroy at the end (workspace_stop keeps it for later). Before creating, workspace_list "
        "shows what earlier sessions left; workspace_start takes a stopped one up again, with its disk as it was.\n"
        "A workspace has no internet unless workspace_create allows it. debian-dev, the usual image, has git, "
        "Python, C and C++ compilers, make, curl, jq and ripgrep; /workspace is there for your files.\n"
        "exec waits for the command and returns exit_code, stdout and stderr; a non-zero exit is a normal result. "
        "One that still runs after 45 seconds goes on as a job, and the result has its job_id. Follow a job with "
        "exec_background: action poll with wait_secs 45 and the offsets of the last result, again and again until "
        "running is false. Start servers, long builds and what asks questions with exec_background, action start "
        "(pty: true for a terminal). Give exec timeout_secs only to have a command killed then; some clients give "
        "up on a call after a minute, which kills its command, but never a job. exec_parallel runs commands in "
        "several workspaces, set_env sets variables for all later commands, workspace_fork makes up to 20 copies "
        "that go on from this instant. Independent calls may run in parallel.\n"
        "An error says what was wrong and which call to make next.";

/* Off the list, so that mcp_server_close() does not find it any more; false if it never was on it. */
static bool session_unlink(struct session *s) {
        LOCK(&s->server->lock);
        if (!s->pprev)
                return false;
        *s->pprev = s->next;
        if (s->next)
                s->next->pprev = s->pprev;
        return true;
}

void session_unref(struct session *s) {
        if (!s || atomic_fetch_sub(&s->refs, 1) > 1)
                return;
        struct mcp_server *server = s->server;
        bool counted = session_unlink(s);

        conn_unref(s->conn);
        free(s);
        if (counted) {
                LOCK(&server->lock);
                server->n_sessions--;
                pthread_cond_broadcast(&server->changed);
        }
}

void session_reply(struct session *s, struct batch *batch, char *text, size_t len) {
        if (!text) {
                log_error("out of memory for an answer: closing the connection", "owner", s->owner);
                conn_stop(s->conn);
        } else if (batch)
                batch_add(batch, text, len);
        else
                (void) conn_send(s->conn, CONN_RESPONSE, text, len);
}

void session_error(struct session *s, struct batch *batch, const char *id, int code, const char *message,
                   json_t *data) {
        size_t len = 0;
        char *text = rpc_error_text(id, code, message, data, &len);

        session_reply(s, batch, text, len);
}

static json_t *server_info(void) {
        return json_pack("{s:s, s:s, s:s}", "name", "agentiso", "title", "agentiso: Linux microVMs for agents",
                         "version", AGENTISO_VERSION);
}

int decorate_modern(json_t *result) {
        json_t *meta = json_object_get(result, "_meta");

        if (!meta) {
                if (json_put(result, "_meta", json_object()) < 0)
                        return -ENOMEM;
                meta = json_object_get(result, "_meta");
        }
        if (json_put(meta, META_SERVER_INFO, server_info()) < 0)
                return -ENOMEM;
        return json_put(result, "resultType", json_string("complete"));
}

void session_result(struct session *s, struct batch *batch, const char *id, json_t *result, bool modern) {
        char *text = NULL;
        size_t len = 0;

        if (!result || (modern && decorate_modern(result) < 0) || rpc_result_text(id, result, &text, &len) < 0)
                session_error(s, batch, id, RPC_INTERNAL_ERROR, "Out of memory", NULL);
        else
                session_reply(s, batch, text, len);
        json_decref(result);
}

static json_t *supported_versions(void) {
        _cleanup_json_ json_t *list = json_array();

        if (!list || json_push(list, json_string(MODERN_VERSION)) < 0)
                return NULL;
        for (size_t i = 0; i < ARRAY_SIZE(legacy_versions); i++)
                if (json_push(list, json_string(legacy_versions[i])) < 0)
                        return NULL;
        return TAKE_PTR(list);
}

/* A request on its way through the methods below. */
struct request {
        struct session *s;
        struct rpc_message *m;
        struct batch *batch; /* or NULL */
        bool modern;
};

static void fail(const struct request *rq, int code, const char *fmt, ...) _printf_(3, 4);
static void fail(const struct request *rq, int code, const char *fmt, ...) {
        char text[512];
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        text[utf8_valid_prefix(text, strlen(text))] = 0;
        session_error(rq->s, rq->batch, rq->m->id, code, text, NULL);
}

/* Ends a result of a list with how long it may be kept, which only the modern era has. */
static void reply_cacheable(const struct request *rq, json_t *result) {
        if (result && rq->modern &&
            (json_put(result, "ttlMs", json_integer(LIST_TTL_MS)) < 0 ||
             json_put(result, "cacheScope", json_string("public")) < 0)) {
                json_decref(result);
                result = NULL;
        }
        session_result(rq->s, rq->batch, rq->m->id, result, rq->modern);
}

static void on_initialize(const struct request *rq) {
        const char *asked = json_string_value(json_object_get(rq->m->params, "protocolVersion"));

        if (!asked) {
                fail(rq, RPC_INVALID_PARAMS, "initialize needs params.protocolVersion, a string such as \"%s\"",
                     LATEST_LEGACY);
                return;
        }
        if (rq->batch) {
                fail(rq, RPC_INVALID_REQUEST, "initialize must not be part of a batch");
                return;
        }
        const char *version = LATEST_LEGACY;
        for (size_t i = 0; i < ARRAY_SIZE(legacy_versions); i++)
                if (str_eq(asked, legacy_versions[i]))
                        version = legacy_versions[i];
        rq->s->version = version;
        log_debug("client initialized", "owner", rq->s->owner, "version", version);
        session_result(rq->s, NULL, rq->m->id,
                       json_pack("{s:s, s:{s:{}}, s:o, s:s}", "protocolVersion", version, "capabilities", "tools",
                                 "serverInfo", server_info(), "instructions", instructions),
                       false);
}

static void on_ping(const struct request *rq) {
        session_result(rq->s, rq->batch, rq->m->id, json_object(), false);
}

static void on_discover(const struct request *rq) {
        reply_cacheable(rq, json_pack("{s:o, s:{s:{}}, s:s}", "supportedVersions", supported_versions(), "capabilities",
                                      "tools", "instructions", instructions));
}

static void on_tools_list(const struct request *rq) {
        const json_t *cursor = json_object_get(rq->m->params, "cursor");

        if (cursor && !json_is_null(cursor)) {
                fail(rq, RPC_INVALID_PARAMS, "Unknown cursor: the list of tools has one page only");
                return;
        }
        reply_cacheable(rq, json_pack("{s:O}", "tools", rq->s->server->registry.tools));
}

static void start_call(const struct request *rq, const struct tool_entry *entry) {
        const json_t *args = json_object_get(rq->m->params, "arguments");

        if (args && !json_is_object(args) && !json_is_null(args)) {
                fail(rq, RPC_INVALID_PARAMS, "params.arguments must be an object, not %s", json_type_name(args));
                return;
        }
        call_start(rq->s, rq->m, entry, rq->modern, rq->batch);
}

static void on_tools_call(const struct request *rq) {
        const char *name = json_string_value(json_object_get(rq->m->params, "name")), *nearest;

        if (!name) {
                fail(rq, RPC_INVALID_PARAMS, "tools/call needs params.name, the name of a tool");
                return;
        }
        const struct tool_entry *entry = registry_find(&rq->s->server->registry, name, &nearest);
        if (!entry) {
                fail(rq, RPC_INVALID_PARAMS, "Unknown tool \"%.*s\"%s%s%s tools/list names all tools",
                     (int) utf8_floor(name, MIN(strlen(name), (size_t) TEXT_SHOWN)), name,
                     nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : ".");
                return;
        }
        start_call(rq, entry);
}

static const struct method {
        const char *name;
        bool legacy, modern;
        bool early; /* allowed before initialize */
        void (*run)(const struct request *rq);
} methods[] = {
        {"initialize", true, false, true, on_initialize},    {"ping", true, false, true, on_ping},
        {"server/discover", false, true, true, on_discover}, {"tools/list", true, true, false, on_tools_list},
        {"tools/call", true, true, false, on_tools_call},
};

/* A message is of the modern era if its _meta has one of the keys that the era demands. */
static bool is_modern(const json_t *params) {
        const json_t *meta = json_object_get(params, "_meta");

        return json_object_get(meta, META_VERSION) || json_object_get(meta, META_CAPABILITIES) ||
               json_object_get(meta, META_CLIENT_INFO);
}

/* Answers a modern request whose _meta is not in order. */
static bool check_modern(const struct request *rq) {
        const json_t *meta = json_object_get(rq->m->params, "_meta");
        const char *version = json_string_value(json_object_get(meta, META_VERSION));

        if (!version)
                fail(rq, RPC_INVALID_PARAMS, "params._meta lacks \"%s\", a string", META_VERSION);
        else if (!str_eq(version, MODERN_VERSION)) {
                _cleanup_json_ json_t *data =
                        json_pack("{s:o, s:s}", "supported", supported_versions(), "requested", version);
                session_error(rq->s, rq->batch, rq->m->id, RPC_UNSUPPORTED_VERSION, "Unsupported protocol version",
                              data);
        } else if (!json_is_object(json_object_get(meta, META_CAPABILITIES)))
                fail(rq, RPC_INVALID_PARAMS, "params._meta lacks \"%s\", an object", META_CAPABILITIES);
        else
                return true;
        return false;
}

static void handle_request(struct session *s, struct rpc_message *m, struct batch *batch) {
        struct request rq = {.s = s, .m = m, .batch = batch, .modern = is_modern(m->params)};
        const struct method *method = NULL;
        const struct tool_entry *own = registry_find_method(&s->server->registry, m->method);

        if (m->params && !json_is_object(m->params)) {
                fail(&rq, RPC_INVALID_PARAMS, "params must be an object, not %s", json_type_name(m->params));
                return;
        }
        for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
                if (str_eq(methods[i].name, m->method))
                        method = &methods[i];
        if (rq.modern && !check_modern(&rq))
                return;
        if (method && method->modern && !method->legacy && !rq.modern) {
                fail(&rq, RPC_INVALID_PARAMS, "%s needs params._meta with \"%s\" and \"%s\"", method->name,
                     META_VERSION, META_CAPABILITIES);
                return;
        }
        if (!own && (!method || !(rq.modern ? method->modern : method->legacy))) {
                fail(&rq, RPC_METHOD_NOT_FOUND, "Unknown method \"%.*s\"",
                     (int) utf8_floor(m->method, MIN(strlen(m->method), (size_t) TEXT_SHOWN)), m->method);
                return;
        }
        if (!rq.modern && !s->version && (own || !method->early)) {
                fail(&rq, RPC_INVALID_REQUEST,
                     "Not initialized: send initialize first, or the _meta keys of revision " MODERN_VERSION);
                return;
        }
        if (own)
                start_call(&rq, own);
        else
                method->run(&rq);
}

static void handle_message(struct session *s, struct rpc_message *m, struct batch *batch) {
        if (m->kind == RPC_REQUEST)
                handle_request(s, m, batch);
        else if (m->kind == RPC_NOTIFICATION && str_eq(m->method, "notifications/cancelled"))
                call_cancel(s, json_object_get(m->params, "requestId"));
}

static void handle_text(struct session *s, char *text, size_t len) {
        _cleanup_rpc_message_ struct rpc_message m = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        int code;

        if (rpc_parse(text, len, &m, &code, &err) < 0)
                session_error(s, NULL, m.id, code, error_message(&err), NULL);
        else
                handle_message(s, &m, NULL);
}

static void handle_batch(struct session *s, char *text, size_t len) {
        struct rpc_span spans[RPC_BATCH_MAX];

        if (!str_eq(s->version, BATCH_VERSION)) {
                session_error(s, NULL, NULL, RPC_INVALID_REQUEST,
                              "Invalid request: batches exist only in a " BATCH_VERSION " session", NULL);
                return;
        }
        int n = rpc_split(text, len, spans, ARRAY_SIZE(spans));
        if (n == 0 || n == -E2BIG) {
                session_error(s, NULL, NULL, RPC_INVALID_REQUEST,
                              n == 0 ? "Invalid request: an empty batch"
                                     : "Invalid request: too many messages in a batch",
                              NULL);
                return;
        }
        /* If one message is not JSON, none is run. */
        struct rpc_message messages[RPC_BATCH_MAX] = {0};
        struct error errors[RPC_BATCH_MAX] = {0};
        int codes[RPC_BATCH_MAX] = {0};
        bool broken = n < 0;
        for (int i = 0; i < n; i++) {
                (void) rpc_parse(text + spans[i].start, spans[i].len, &messages[i], &codes[i], &errors[i]);
                broken = broken || codes[i] == RPC_PARSE_ERROR;
        }
        _cleanup_batch_ struct batch *batch = broken ? NULL : batch_new(s->conn);
        if (broken)
                session_error(s, NULL, NULL, RPC_PARSE_ERROR, "Invalid JSON in a batch", NULL);
        for (int i = 0; i < n; i++) {
                if (batch && codes[i])
                        session_error(s, batch, messages[i].id, codes[i], error_message(&errors[i]), NULL);
                else if (batch)
                        handle_message(s, &messages[i], batch);
                rpc_message_clear(&messages[i]);
                error_clear(&errors[i]);
        }
}

static void on_line(void *arg, char *text, size_t len) {
        struct session *s = arg;

        if (rpc_is_batch(text, len))
                handle_batch(s, text, len);
        else
                handle_text(s, text, len);
}

static void on_oversized(void *arg) {
        char text[80];

        (void) snprintf(text, sizeof(text), "Invalid request: a message of more than %u bytes", MCP_LINE_MAX);
        session_error(arg, NULL, NULL, RPC_INVALID_REQUEST, text, NULL);
}

void *session_main(void *arg) {
        _cleanup_(session_unrefp) struct session *s = arg;
        struct conn_handler handler = {.line = on_line, .oversized = on_oversized, .arg = s};

        int r = conn_read(s->conn, &handler);
        /* A client that only stopped sending may want the answers of what is nearly done. */
        if (r == 0)
                (void) calls_wait(s, deadline_in_ms(EOF_GRACE_MS));
        calls_end(s);
        core_owner_gone(s->server->core, s->owner);
        struct op flush = op_timeout(r == 0 ? FLUSH_MS : 0);
        conn_close(s->conn, &flush);
        log_debug("client left", "owner", s->owner);
        return NULL;
}
