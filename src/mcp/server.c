/* SPDX-License-Identifier: Apache-2.0 */
#include "mcp/server.h"

#include "base/log.h"
#include "base/thread.h"
#include "mcp/private.h"

static void server_free(struct mcp_server *s) {
        registry_clear(&s->registry);
        pthread_cond_destroy(&s->changed);
        pthread_mutex_destroy(&s->lock);
        free(s);
}

int mcp_server_new(struct core *core, const struct tool_group *const *groups, struct mcp_server **ret,
                   struct error *err) {
        struct mcp_server *s = calloc(1, sizeof(*s));
        if (!s)
                return error_set_errno(err, ENOMEM, "Cannot make the MCP server");
        s->core = core;
        pthread_mutex_init(&s->lock, NULL);
        cond_init(&s->changed);

        int r = registry_load(groups, &s->registry, err);
        if (r == 0) {
                r = thread_start(&s->ticker, "mcp-ticker", ticker_main, s);
                if (r < 0)
                        error_set_errno(err, r, "Cannot start the thread for progress");
        }
        if (r < 0) {
                server_free(s);
                return r;
        }
        *ret = s;
        return 0;
}

/* Enters a session into the list, unless there are too many. */
static bool session_link(struct session *s) {
        struct mcp_server *server = s->server;

        LOCK(&server->lock);
        if (server->closing || server->n_sessions >= MCP_CONNECTIONS_MAX)
                return false;
        s->next = server->sessions;
        s->pprev = &server->sessions;
        if (s->next)
                s->next->pprev = &s->next;
        server->sessions = s;
        server->n_sessions++;
        return true;
}

/* Ends a session whose thread never ran. */
static void session_abandon(struct session *s) {
        struct op now = op_timeout(0);

        conn_close(s->conn, &now);
        if (*s->owner)
                core_owner_gone(s->server->core, s->owner);
        session_unref(s);
}

int mcp_server_add(struct mcp_server *server, int fd, struct error *err) {
        struct session *s = calloc(1, sizeof(*s));

        if (!s) {
                close_fd(fd);
                return error_set_errno(err, ENOMEM, "Cannot serve a client");
        }
        atomic_init(&s->refs, 1);
        s->server = server;
        int r = conn_new(fd, &s->conn, err);
        if (r < 0) {
                session_unref(s);
                return r;
        }
        if (!session_link(s)) {
                session_error(s, NULL, NULL, RPC_SERVER_BUSY,
                              "Too many clients are connected: close one, then connect again", NULL);
                session_abandon(s);
                error_set(err, ERROR_QUOTA_EXCEEDED, "More than %u clients are connected", MCP_CONNECTIONS_MAX);
                return -EMFILE;
        }
        r = core_owner_add(server->core, s->owner);
        if (r == 0)
                r = thread_start_detached("mcp-reader", session_main, s);
        if (r < 0) {
                session_abandon(s);
                return error_set_errno(err, r, "Cannot serve a client");
        }
        return 0;
}

bool mcp_server_close(struct mcp_server *s, const struct op *op) {
        if (!s)
                return true;
        bool all_gone;
        {
                LOCK(&s->lock);
                s->closing = true;
                for (struct session *i = s->sessions; i; i = i->next)
                        conn_stop(i->conn);
                pthread_cond_broadcast(&s->changed);
                while (s->n_sessions > 0)
                        if (cond_wait_until(&s->changed, &s->lock, op->deadline) < 0)
                                break;
                all_gone = s->n_sessions == 0;
        }
        pthread_join(s->ticker, NULL);
        if (all_gone)
                server_free(s);
        else
                log_warn("some tool calls did not end in time");
        return all_gone;
}
