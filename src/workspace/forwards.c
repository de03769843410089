/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Port forwards of workspaces: ports of the host that lead into guests.
 *
 * The row is the promise: it is written once the port is listened on, and read again at the next start, where a port
 * that somebody else has by then stays promised and is tried again from time to time. A connection is made over the
 * network; where nobody answers there, or there is no network, through the agent, which reaches what listens on the
 * guest's loopback only. A workspace that does not run has its ports, and resets who connects. While one is restored,
 * stopped or destroyed, its connections are cut; other operations leave them alone.
 *
 * Who listens for a row that is there already does so with core->lock held, and who removes one takes the row away
 * first: so nobody listens for a row that is gone.
 */
#include <string.h>

#include "base/log.h"
#include "network/relay.h"
#include "workspace/core-internal.h"

#define NETWORK_CONNECT_MS 3000 /* then the agent is tried: a guest in the same host has answered, or never will */
#define AGENT_CONNECT_MS 10000  /* to the agent; it has a limit of its own for the rest */

/* --- a connection --- */

struct target {
        uint32_t address;
        bool running;
};

static struct target find_target(struct core *core, const char *id) {
        LOCK(&core->lock);
        struct workspace *ws = registry_find_locked(core, id);

        return ws ? (struct target){.address = ws->row.address, .running = ws->row.state == WS_RUNNING}
                  : (struct target){0};
}

static int connect_by_network(struct core *core, const struct target *target, uint16_t port, const struct op *op,
                              int *ret) {
        const struct op connecting = op_sub(op, NETWORK_CONNECT_MS);

        if (!core->has_namespace)
                return -EOPNOTSUPP;
        return network_connect(core->cfg.net, target->address, port, &connecting, ret, NULL);
}

static int serve_by_network(int guest, int fd, const struct op *op) {
        relay_keepalive(guest);
        int r = relay_run(fd, guest, op, 0);
        if (r < 0)
                relay_reset(guest);
        else
                close_fd(guest);
        return r;
}

static int serve_by_agent(struct core *core, const char *id, uint16_t port, int fd, const struct op *op) {
        const struct op connecting = op_sub(op, AGENT_CONNECT_MS);
        _cleanup_agent_ struct agent *agent = NULL;

        int r = ws_agent(core, id, &connecting, &agent, NULL);
        return r < 0 ? r : agent_relay(agent, port, fd, op, NULL);
}

static int serve_running(struct core *core, const struct target *target, const char *id, uint16_t port, int fd,
                         const struct op *op) {
        int guest = -1;

        /* Whatever keeps the network from it (nobody listens, no card, a namespace that is lost), nothing was read from
         * fd yet, and the agent has a way of its own. */
        if (connect_by_network(core, target, port, op, &guest) >= 0)
                return serve_by_network(guest, fd, op);
        int r = op_check(op);
        return r < 0 ? r : serve_by_agent(core, id, port, fd, op);
}

static void serve(void *arg, const char *id, uint16_t guest_port, int fd, const struct op *op) {
        struct core *core = arg;
        const struct target target = find_target(core, id);

        int r = target.running ? serve_running(core, &target, id, guest_port, fd, op) : -ENOTCONN;
        if (r < 0)
                relay_reset(fd);
        else
                close_fd(fd);
}

/* --- rows --- */

/* The one of a workspace and a guest port; with the lock. */
static struct forward_row *find_row_locked(struct core *core, const char *workspace, unsigned guest_port) {
        for (size_t i = 0; i < core->n_forward_rows; i++)
                if (str_eq(core->forward_rows[i].workspace, workspace) &&
                    core->forward_rows[i].guest_port == guest_port)
                        return &core->forward_rows[i];
        return NULL;
}

static int add_row_locked(struct core *core, const struct forward_row *row) {
        struct forward_row *rows =
                realloc(core->forward_rows, (core->n_forward_rows + 1) * sizeof(*core->forward_rows));

        if (!rows)
                return -ENOMEM;
        core->forward_rows = rows;
        rows[core->n_forward_rows++] = *row;
        return 0;
}

static void drop_row_locked(struct core *core, const char *id) {
        for (size_t i = 0; i < core->n_forward_rows; i++)
                if (str_eq(core->forward_rows[i].id, id)) {
                        memmove(&core->forward_rows[i], &core->forward_rows[i + 1],
                                (core->n_forward_rows - i - 1) * sizeof(*core->forward_rows));
                        core->n_forward_rows--;
                        return;
                }
}

static int list_rows(struct core *core, const char *workspace, struct forward_row **ret, size_t *ret_n) {
        LOCK(&core->lock);
        struct forward_row *rows = calloc(core->n_forward_rows + 1, sizeof(*rows));
        size_t n = 0;

        if (!rows)
                return -ENOMEM;
        for (size_t i = 0; i < core->n_forward_rows; i++)
                if (!workspace || str_eq(core->forward_rows[i].workspace, workspace))
                        rows[n++] = core->forward_rows[i];
        *ret = rows;
        *ret_n = n;
        return 0;
}

/* --- adding, removing, listing --- */

static int check_new(struct core *core, struct workspace *ws, unsigned guest_port, struct error *err) {
        LOCK(&core->lock);
        size_t n = 0;

        for (size_t i = 0; i < core->n_forward_rows; i++)
                n += str_eq(core->forward_rows[i].workspace, ws->id);
        const struct forward_row *row = find_row_locked(core, ws->id, guest_port);
        if (row) {
                int r = error_set(err, ERROR_CONFLICT, "Port %u of workspace \"%s\" is forwarded already, from %u",
                                  guest_port, ws->row.name, row->host_port);
                error_hint(err,
                           "Use that port, or remove the forward first: port_forward with action \"remove\" and "
                           "guest_port %u.",
                           guest_port);
                return r;
        }
        if (n < WS_FORWARDS_MAX)
                return 0;
        int r = error_set(err, ERROR_QUOTA_EXCEEDED, "Workspace \"%s\" has %zu port forwards, and the limit is %u",
                          ws->row.name, n, WS_FORWARDS_MAX);
        error_hint(err, "Remove one that is not needed: port_forward with action \"remove\".");
        return r;
}

int ws_forward_add(struct core *core, const char *ref, uint16_t guest_port, uint16_t host_port, const struct op *op,
                   struct ws_forward *ret, struct error *err) {
        _cleanup_claim_ struct workspace *ws = NULL;
        struct forward_row row = {.guest_port = guest_port, .created_ms = realtime_ms()};
        uint16_t port = 0;

        int r = workspace_claim_settled(core, ref, op, &ws, err);
        if (r >= 0)
                r = check_new(core, ws, guest_port, err);
        if (r < 0)
                return r;
        r = uuid_new(row.id);
        if (r < 0)
                return error_set_errno(err, r, "Cannot forward a port");
        memcpy(row.workspace, ws->id, sizeof(row.workspace));
        r = forwards_add(core->forwards, ws->id, guest_port, host_port, &port, err);
        if (r < 0)
                return r;
        row.host_port = port;
        r = db_forward_insert(core->db, &row, err);
        if (r >= 0) {
                LOCK(&core->lock);
                r = add_row_locked(core, &row);
        }
        if (r < 0) {
                (void) forwards_remove(core->forwards, port);
                (void) db_forward_delete(core->db, row.id, NULL);
                return error_is_set(err) ? r : error_set_errno(err, r, "Cannot forward a port");
        }
        *ret = (struct ws_forward){.guest_port = guest_port, .host_port = port, .listening = true};
        return 0;
}

/* The row first: a port that nobody has a row for is let go of by a crash at the latest. */
static int remove_row(struct core *core, const struct forward_row *row, struct error *err) {
        int r = db_forward_delete(core->db, row->id, err);
        if (r < 0 && r != -ENOENT)
                return r;
        {
                LOCK(&core->lock);
                drop_row_locked(core, row->id);
        }
        (void) forwards_remove(core->forwards, (uint16_t) row->host_port);
        return 0;
}

int ws_forward_remove(struct core *core, const char *ref, uint16_t guest_port, const struct op *op,
                      struct ws_forward *ret, struct error *err) {
        _cleanup_claim_ struct workspace *ws = NULL;
        struct forward_row row;

        int r = workspace_claim_settled(core, ref, op, &ws, err);
        if (r < 0)
                return r;
        {
                LOCK(&core->lock);
                const struct forward_row *found = find_row_locked(core, ws->id, guest_port);
                if (!found) {
                        r = error_set(err, ERROR_NOT_FOUND, "Port %u of workspace \"%s\" is not forwarded", guest_port,
                                      ws->row.name);
                        error_hint(err, "See which are: port_forward with action \"list\".");
                        return r;
                }
                row = *found;
        }
        r = remove_row(core, &row, err);
        if (r >= 0)
                *ret = (struct ws_forward){.guest_port = guest_port, .host_port = (uint16_t) row.host_port};
        return r;
}

static bool is_listening(const struct forward_info *list, size_t n, const struct forward_row *row) {
        for (size_t i = 0; i < n; i++)
                if (list[i].host_port == row->host_port && str_eq(list[i].id, row->workspace))
                        return true;
        return false;
}

int ws_forward_list(struct core *core, const char *ref, struct ws_forward **ret, size_t *ret_n, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        _cleanup_free_ struct forward_row *rows = NULL;
        _cleanup_free_ struct forward_info *open = NULL;
        size_t n = 0, n_open = 0;

        int r = ws_get(core, ref, NULL, &view, err);
        if (r < 0)
                return r;
        r = list_rows(core, view.row.id, &rows, &n);
        if (r >= 0)
                r = forwards_list(core->forwards, view.row.id, &open, &n_open);
        struct ws_forward *list = r < 0 ? NULL : calloc(n + 1, sizeof(*list));
        if (!list)
                return error_set_errno(err, ENOMEM, "Cannot list the port forwards");
        for (size_t i = 0; i < n; i++)
                list[i] = (struct ws_forward){
                        .guest_port = (uint16_t) rows[i].guest_port,
                        .host_port = (uint16_t) rows[i].host_port,
                        .listening = is_listening(open, n_open, &rows[i]),
                };
        *ret = list;
        *ret_n = n;
        return 0;
}

/* --- with the workspace --- */

void workspace_cut_forwards(struct workspace *ws) {
        if (ws->core->forwards)
                forwards_cut(ws->core->forwards, ws->id);
}

bool workspace_has_forwards(struct workspace *ws) {
        LOCK(&ws->core->lock);
        for (size_t i = 0; i < ws->core->n_forward_rows; i++)
                if (str_eq(ws->core->forward_rows[i].workspace, ws->id))
                        return true;
        return false;
}

int workspace_drop_forwards(struct workspace *ws, struct error *err) {
        _cleanup_free_ struct forward_row *rows = NULL;
        size_t n = 0;

        int r = list_rows(ws->core, ws->id, &rows, &n);
        if (r < 0)
                return error_set_errno(err, r, "Cannot remove the port forwards");
        for (size_t i = 0; r >= 0 && i < n; i++)
                r = remove_row(ws->core, &rows[i], err);
        return r;
}

/* --- start and end --- */

int core_forwards_open(struct core *core, struct error *err) {
        const struct forwards_config cfg = {.bind = core->cfg.forward_bind, .serve = serve, .arg = core};
        _cleanup_(forward_rows_clear) struct forward_rows rows = {0};

        int r = db_forward_list(core->db, &rows, err);
        for (size_t i = 0; r >= 0 && i < rows.n; i++) {
                LOCK(&core->lock);
                r = add_row_locked(core, &rows.v[i]);
        }
        return r < 0 ? r : forwards_new(&cfg, &core->forwards, err);
}

static bool has_workspace(struct core *core, const char *id) {
        LOCK(&core->lock);
        return registry_find_locked(core, id) != NULL;
}

/* Listens where a row promises it, if the row is still there: who removes it waits for the lock, and ends what was
 * begun here. Whether it listens now. */
static bool listen_for(struct core *core, const struct forward_row *row, struct error *err) {
        uint16_t port;
        LOCK(&core->lock);
        const struct forward_row *found = find_row_locked(core, row->workspace, row->guest_port);

        return found && str_eq(found->id, row->id) &&
               forwards_add(core->forwards, row->workspace, (uint16_t) row->guest_port, (uint16_t) row->host_port,
                            &port, err) >= 0;
}

/* The rows whose ports are not listened on. -ENOMEM. */
static int list_waiting(struct core *core, struct forward_row **ret, size_t *ret_n) {
        _cleanup_free_ struct forward_row *rows = NULL;
        _cleanup_free_ struct forward_info *open = NULL;
        size_t n = 0, n_open = 0, n_waiting = 0;

        int r = list_rows(core, NULL, &rows, &n);
        if (r >= 0)
                r = forwards_list(core->forwards, NULL, &open, &n_open);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (!is_listening(open, n_open, &rows[i]))
                        rows[n_waiting++] = rows[i];
        *ret = TAKE_PTR(rows);
        *ret_n = n_waiting;
        return 0;
}

bool core_forwards_wanted(struct core *core) {
        _cleanup_free_ struct forward_row *rows = NULL;
        size_t n = 0;

        return list_waiting(core, &rows, &n) >= 0 && n > 0;
}

void core_retry_forwards(struct core *core) {
        _cleanup_free_ struct forward_row *rows = NULL;
        size_t n = 0;

        if (list_waiting(core, &rows, &n) < 0)
                return;
        for (size_t i = 0; i < n; i++)
                if (listen_for(core, &rows[i], NULL))
                        log_info("A port is forwarded again", "workspace", rows[i].workspace, "host_port",
                                 LOG_NUM(rows[i].host_port));
}

void core_recover_forwards(struct core *core) {
        _cleanup_free_ struct forward_row *rows = NULL;
        size_t n = 0;

        if (list_rows(core, NULL, &rows, &n) < 0)
                return;
        for (size_t i = 0; i < n; i++) {
                _cleanup_error_ struct error why = ERROR_INIT;

                if (!has_workspace(core, rows[i].workspace))
                        (void) remove_row(core, &rows[i], &why);
                else if (!listen_for(core, &rows[i], &why))
                        log_warn("A port is not forwarded for now", "workspace", rows[i].workspace, "error",
                                 error_message(&why));
        }
}

void core_forwards_close(struct core *core) {
        forwards_free(TAKE_PTR(core->forwards));
        free(TAKE_PTR(core->forward_rows));
        core->n_forward_rows = 0;
}
