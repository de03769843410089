/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "base/process.h"
#include "base/str.h"
#include "cli/proxy.h"
#include "cli/upgrade.h"

/* A connect that has to wait for room in the daemon's backlog holds the loop up for no longer than this. */
#define CONNECT_MS 100

/* Answers a request of the client in the daemon's stead. `id` is raw JSON, used as it came. The hint is part of the
 * message too, which is all that most clients show. */
static void answer(struct proxy *p, const char *id, const char *message, const char *hint, const char *reason) {
        _cleanup_free_ char *text = hint ? str_printf("%s. %s", message, hint) : strdup(message);
        _cleanup_json_ json_t *error = json_pack("{s:i, s:s, s:{s:s, s:s, s:s*}}", "code", -32603, "message", text,
                                                 "data", "code", "internal", "reason", reason, "hint", hint);
        _cleanup_buf_ struct buf line = BUF_INIT(64 * 1024);

        if (!error || buf_printf(&line, "{\"jsonrpc\":\"2.0\",\"id\":%s,\"error\":", id) < 0 ||
            json_write(error, &line) < 0 || buf_append_str(&line, "}\n") < 0)
                return;
        /* Memory for the queue is the only thing that can fail; the client then waits for its own timeout. */
        (void) queue_append(&p->to_client, line.data, line.len);
}

void link_refuse_dropped(struct proxy *p, const char *id) {
        answer(p, id, "the daemon ended while this message was on its way; it was not run", "Send it again.",
               "daemon_lost");
}

/* No daemon will take what is queued: everything open is answered, and the rest of a line in transit is dropped. */
static void refuse_all(struct proxy *p) {
        char *id;

        while ((id = pending_take_before(&p->pending, UINT64_MAX, NULL))) {
                answer(p, id, error_message(&p->why_down), p->why_down.hint, "daemon_not_started");
                free(id);
        }
        p->drop_line = p->up.passing;
        p->written = p->queued;
        p->mid_line = false;
        queue_clear(&p->to_daemon);
        queue_clear(&p->replay);
}

/* Takes over `err`. */
static void start_failed(struct proxy *p, struct error *err) {
        error_move(&p->why_down, err);
        log_warn("cannot reach a daemon", "reason", error_message(&p->why_down));
        p->link = LINK_DOWN;
        p->pause_until = deadline_in_ms(PROXY_PAUSE_MS);
        refuse_all(p);
}

static void link_up(struct proxy *p, int fd) {
        p->daemon = fd;
        p->link = LINK_UP;
        p->mid_line = false;
        launcher_clear(&p->launcher);
        upgrade_warn(fd);

        /* What an earlier daemon was told of the client, this one must hear again before anything else. */
        if (!p->initialize || p->initialize_begin >= p->written)
                return;
        p->swallow_initialize = !pending_has(&p->pending, p->initialize_id);
        if (queue_append(&p->replay, p->initialize, strlen(p->initialize)) < 0 ||
            (p->initialized && p->initialized_begin < p->written &&
             queue_append(&p->replay, p->initialized, strlen(p->initialized)) < 0))
                p->left = true;
}

/* Whether the daemon that listens has ended. A program that it was about to start when it was killed holds its fds for
 * a moment more, and a client that gets into that backlog is served by nobody. */
static bool listener_is_dead(int fd) {
        struct op now = op_timeout(0);
        pid_t pid;
        uid_t uid;

        if (unix_peer(fd, &pid, &uid) < 0 || pid <= 0)
                return false;
        _cleanup_close_ int pidfd = pidfd_of(pid);
        return pidfd == -ESRCH || (pidfd >= 0 && wait_fd(pidfd, POLLIN, &now) > 0);
}

/* 1 when connected, 0 when nobody listens, or a negative errno. */
static int try_connect(struct proxy *p, struct error *err) {
        _cleanup_free_ char *path = config_socket_path(&p->config);
        struct op op = op_timeout(CONNECT_MS);

        if (!path)
                return -ENOMEM;
        int fd = unix_connect(path, &op);
        if (fd == -ENOENT || fd == -ECONNREFUSED || fd == -ETIMEDOUT)
                return 0;
        if (fd < 0)
                return error_set_errno(err, fd, "cannot connect to the daemon at %s", path);
        if (listener_is_dead(fd)) {
                close_fd(fd);
                return 0;
        }
        link_up(p, fd);
        return 1;
}

void link_begin(struct proxy *p) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct config config = {0};

        if (!deadline_passed(p->pause_until)) {
                refuse_all(p);
                return;
        }
        /* Read anew each time: a mistake in the file may have been mended since. */
        int r = config_load(p->config_path, &config, &err);
        if (r >= 0) {
                config_clear(&p->config);
                p->config = config;
                r = try_connect(p, &err);
        }
        if (r == 0)
                r = launcher_start(&p->launcher, &p->config, &err);
        if (r < 0) {
                if (!error_is_set(&err))
                        error_set_errno(&err, r, "cannot start the daemon");
                start_failed(p, &err);
                return;
        }
        if (p->link == LINK_UP)
                return;
        p->link = LINK_STARTING;
        p->start_by = deadline_in_ms(LAUNCHER_START_MS);
        p->retry_ms = LAUNCHER_RETRY_MIN_MS;
        p->retry_at = deadline_in_ms(p->retry_ms);
}

void link_tick(struct proxy *p) {
        _cleanup_error_ struct error err = ERROR_INIT;

        if (p->link != LINK_STARTING || !deadline_passed(deadline_min(p->retry_at, p->start_by)))
                return;
        /* In this order: a daemon that ended after somebody else's socket answered is no failure. */
        bool ended = launcher_has_ended(&p->launcher);
        int r = try_connect(p, &err);
        if (r > 0)
                return;
        if (r == 0 && ended && !launcher_somebody_lives(&p->config))
                r = launcher_explain(&p->launcher, LAUNCHER_CANNOT_START, &err);
        else if (r == 0 && deadline_passed(p->start_by))
                r = launcher_explain(&p->launcher, LAUNCHER_NO_ANSWER, &err);
        if (r < 0) {
                start_failed(p, &err);
                return;
        }
        p->retry_ms = MIN(p->retry_ms * 2, (int64_t) LAUNCHER_RETRY_MAX_MS);
        p->retry_at = deadline_in_ms(p->retry_ms);
}

/* A line went to the lost daemon in part: its rest is of no use to the next one. */
static void drop_begun_line(struct proxy *p) {
        if (!p->mid_line)
                return;
        size_t n = queue_len(&p->to_daemon);
        const char *newline = n ? memchr(queue_data(&p->to_daemon), '\n', n) : NULL;
        if (newline)
                n = (size_t) (newline - queue_data(&p->to_daemon)) + 1;
        else
                p->drop_line = p->up.in_line;
        queue_consume(&p->to_daemon, n);
        p->written += n;
        p->mid_line = false;
}

void link_lost(struct proxy *p) {
        char *id;

        p->daemon = close_fd(p->daemon);
        p->link = LINK_DOWN;
        if (p->down.passing)
                (void) queue_append(&p->to_client, "\n", 1);
        lane_reset(&p->down);
        queue_clear(&p->replay);
        p->swallow_line = p->swallow_initialize = false;
        drop_begun_line(p);

        /* An initialize without an answer is simply repeated. */
        const char *keep = p->initialize ? p->initialize_id : NULL;
        while ((id = pending_take_before(&p->pending, p->written, keep))) {
                answer(p, id, "the daemon ended while this call ran; its outcome is unknown",
                       "Look with workspace_list, and at what the call was to change, before you call again.",
                       "daemon_lost");
                free(id);
        }
        if (p->pending.n == 0 && queue_len(&p->to_daemon) == 0)
                return;
        if (++p->losses >= PROXY_LOSSES_MAX) {
                _cleanup_error_ struct error err = ERROR_INIT;
                error_set(&err, ERROR_INTERNAL, "the agentiso daemon ended %u times in a row", p->losses);
                error_hint(&err, "Run `agentiso check`; the daemon's log is %s/daemon.log.", p->config.state_dir);
                p->losses = 0;
                start_failed(p, &err);
        } else {
                link_begin(p);
        }
}
