/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/client.h"

#include <string.h>

#include "base/buf.h"
#include "base/io.h"
#include "base/json.h"
#include "cli/launcher.h"
#include "cli/upgrade.h"
#include "mcp/rpc.h"

#define CHUNK (64u * 1024u)
#define PROTOCOL_VERSION "2025-06-18"

struct client {
        int fd;
        int64_t last_id;
        struct buf in; /* bytes that were received and not used */
};

void client_close(struct client *c) {
        if (!c)
                return;
        close_fd(c->fd);
        buf_free(&c->in);
        free(c);
}

static int send_message(struct client *c, const json_t *message, const struct op *op, struct error *err) {
        _cleanup_buf_ struct buf line = BUF_INIT(CLIENT_LINE_MAX);

        int r = json_write(message, &line);
        if (r >= 0)
                r = buf_append_byte(&line, '\n');
        if (r >= 0)
                r = write_full(c->fd, line.data, line.len, op);
        return r < 0 ? error_set_errno(err, r, "cannot send to the daemon") : 0;
}

static int fill(struct client *c, const struct op *op, struct error *err) {
        int r = buf_reserve(&c->in, CHUNK);
        if (r < 0)
                return error_set_errno(err, r, "cannot receive from the daemon");
        r = wait_fd(c->fd, POLLIN, op);
        if (r < 0)
                return error_set_errno(err, r, "no answer from the daemon");
        ssize_t n = read(c->fd, c->in.data + c->in.len, CHUNK);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n < 0)
                return error_set_errno(err, errno, "cannot receive from the daemon");
        if (n == 0)
                return error_set(err, ERROR_INTERNAL, "the daemon closed the connection");
        c->in.len += (size_t) n;
        c->in.data[c->in.len] = 0;
        return 0;
}

static int receive(struct client *c, const struct op *op, json_t **ret, struct error *err) {
        size_t searched = 0;

        for (;;) {
                const char *newline = memchr(c->in.data + searched, '\n', c->in.len - searched);
                if (newline) {
                        size_t len = (size_t) (newline - c->in.data);
                        int r = json_parse(c->in.data, len, CLIENT_LINE_MAX, JSON_DEPTH_MAX, ret, err);
                        buf_consume(&c->in, len + 1);
                        return r;
                }
                searched = c->in.len;
                int r = fill(c, op, err);
                if (r < 0)
                        return r;
        }
}

/* Asks for progress, if op wants to know of it. */
static int add_token(json_t *params, int64_t id, const struct op *op) {
        return op->progress ? json_put(params, "_meta", json_pack("{s:I}", "progressToken", (json_int_t) id)) : 0;
}

static void pass_progress(const json_t *message, const struct op *op) {
        const json_t *text = json_object_get(json_object_get(message, "params"), "message");

        if (json_is_string(text))
                op_progress(op, "%s", json_string_value(text));
}

static int refused(const char *method, const json_t *error, struct error *err) {
        const char *why = json_string_value(json_object_get(error, "message"));
        bool unknown = json_integer_value(json_object_get(error, "code")) == RPC_METHOD_NOT_FOUND;

        return error_set(err, unknown ? ERROR_UNSUPPORTED : ERROR_INTERNAL, "the daemon refused %s: %s", method,
                         why ? why : "no reason");
}

/* Sends a request (taking over params) and waits for the response with its id; *ret is the result, owned. */
static int request(struct client *c, const char *method, json_t *params, const struct op *op, json_t **ret,
                   struct error *err) {
        int64_t id = ++c->last_id;
        _cleanup_json_ json_t *message = json_pack("{s:s, s:I, s:s, s:o}", "jsonrpc", "2.0", "id", (json_int_t) id,
                                                   "method", method, "params", params);

        if (!message || add_token(params, id, op) < 0)
                return error_set_errno(err, -ENOMEM, "cannot make a request");
        int r = send_message(c, message, op, err);
        while (r >= 0) {
                _cleanup_json_ json_t *response = NULL;
                r = receive(c, op, &response, err);
                if (r < 0)
                        break;
                if (json_integer_value(json_object_get(response, "id")) != id) {
                        pass_progress(response, op); /* a notification; the only ones are of progress */
                        continue;
                }
                json_t *result = json_object_get(response, "result");
                if (result) {
                        *ret = json_incref(result);
                        return 0;
                }
                return refused(method, json_object_get(response, "error"), err);
        }
        return r;
}

static int initialize(struct client *c, const struct op *op, struct error *err) {
        _cleanup_json_ json_t *result = NULL, *initialized = NULL;

        int r = request(c, "initialize",
                        json_pack("{s:s, s:{}, s:{s:s, s:s}}", "protocolVersion", PROTOCOL_VERSION, "capabilities",
                                  "clientInfo", "name", "agentiso", "version", AGENTISO_VERSION),
                        op, &result, err);
        if (r < 0)
                return r;
        initialized = json_pack("{s:s, s:s}", "jsonrpc", "2.0", "method", "notifications/initialized");
        return initialized ? send_message(c, initialized, op, err) : -ENOMEM;
}

static int connect_daemon(const struct config *cfg, const struct op *op, int *ret_fd, struct error *err) {
        _cleanup_free_ char *path = config_socket_path(cfg);

        if (!path)
                return -ENOMEM;
        int fd = unix_connect(path, op);
        if (client_no_daemon(fd)) {
                error_set(err, ERROR_NOT_RUNNING, "no daemon runs with the state directory %s", cfg->state_dir);
                error_hint(err, "It starts when an MCP client starts `agentiso serve`; or run `agentiso daemon`.");
                return fd;
        }
        if (fd < 0)
                return error_set_errno(err, fd, "cannot connect to the daemon at %s", path);
        upgrade_warn(fd);
        *ret_fd = fd;
        return 0;
}

int client_open(const struct config *cfg, const struct op *op, struct client **ret, struct error *err) {
        _cleanup_client_ struct client *c = calloc(1, sizeof(*c));

        if (!c)
                return -ENOMEM;
        c->fd = -1;
        c->in = BUF_INIT(CLIENT_LINE_MAX + CHUNK);
        int r = buf_reserve(&c->in, CHUNK);
        if (r >= 0)
                r = connect_daemon(cfg, op, &c->fd, err);
        if (r >= 0)
                r = initialize(c, op, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(c);
        return 0;
}

int client_open_or_start(const struct config *cfg, const struct op *op, struct client **ret, struct error *err) {
        _cleanup_(launcher_clear) struct launcher launcher = LAUNCHER_INIT;
        struct op start = op_sub(op, LAUNCHER_START_MS);

        int r = client_open(cfg, op, ret, err);
        if (!client_no_daemon(r))
                return r;
        r = launcher_start(&launcher, cfg, err);
        if (r < 0)
                return r;
        for (int64_t pause = LAUNCHER_RETRY_MIN_MS;; pause = MIN(pause * 2, (int64_t) LAUNCHER_RETRY_MAX_MS)) {
                struct op wait = op_sub(&start, pause);
                /* In this order: a daemon that ended after somebody else's socket answered is no failure. */
                bool ended = launcher_has_ended(&launcher);

                r = client_open(cfg, op, ret, err);
                if (!client_no_daemon(r))
                        return r;
                if (ended && !launcher_somebody_lives(cfg))
                        return launcher_explain(&launcher, LAUNCHER_CANNOT_START, err);
                r = wait_fd(-1, 0, &wait);
                if (r != -ETIMEDOUT)
                        return error_set_errno(err, r, "waiting for the daemon");
                if (deadline_passed(start.deadline))
                        return launcher_explain(&launcher, LAUNCHER_NO_ANSWER, err);
        }
}

static const char *content_text(json_t *result) {
        json_t *first = json_array_get(json_object_get(result, "content"), 0);
        const char *text = json_string_value(json_object_get(first, "text"));

        return text ? text : "the daemon gave no reason";
}

/* The record of a tool's result. */
static int take_record(const char *tool, json_t *result, json_t **ret, struct error *err) {
        if (json_is_true(json_object_get(result, "isError"))) {
                const char *code = json_string_value(json_object_get(json_object_get(result, "_meta"), "code"));
                return error_set(err, error_code_from_name(code ? code : ""), "%s", content_text(result));
        }
        json_t *value = json_object_get(result, "structuredContent");
        if (!json_is_object(value))
                return error_set(err, ERROR_INTERNAL, "%s gave no structured result", tool);
        *ret = json_incref(value);
        return 0;
}

int client_call(struct client *c, const char *tool, json_t *args, const struct op *op, json_t **ret,
                struct error *err) {
        _cleanup_json_ json_t *result = NULL;

        int r = request(c, "tools/call", json_pack("{s:s, s:o}", "name", tool, "arguments", args), op, &result, err);
        return r < 0 ? r : take_record(tool, result, ret, err);
}

int client_ask(struct client *c, const char *method, json_t *args, const struct op *op, json_t **ret,
               struct error *err) {
        _cleanup_json_ json_t *result = NULL;

        int r = request(c, method, json_pack("{s:o}", "arguments", args), op, &result, err);
        return r < 0 ? r : take_record(method, result, ret, err);
}

int client_daemon_pid(const struct config *cfg, pid_t *ret) {
        _cleanup_free_ char *path = config_socket_path(cfg);
        struct op op = op_timeout(CLIENT_MS);
        uid_t uid;

        _cleanup_close_ int fd = path ? unix_connect(path, &op) : -ENOMEM;
        return fd < 0 ? fd : unix_peer(fd, ret, &uid);
}
