/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network of the workspaces, as the core sees it: which card a machine gets, and what its workspace may do.
 *
 * What all workspaces may do together is one policy, made of the rows and put in force as a whole, so it can never
 * differ from them for long. Whoever changes a row has the policy applied and waits for one that was made after the
 * change; several who wait at the same time share one. A workspace that may do nothing is in no set, so most creates
 * and destroys change nothing.
 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/waiter.h"
#include "network/ports.h"
#include "workspace/core-internal.h"

#define SPARE_CARDS 4u /* prepared for the next workspaces */
#define FORGET_MS 5000 /* of connections of a machine that is gone */

/* --- what kind --- */

int core_net_wait(struct core *core, const struct op *op, struct error *err) {
        enum network_mode mode = NETWORK_USER;

        int r = core->cfg.net ? network_mode(core->cfg.net, op, &mode, err) : 0;
        if (r >= 0)
                core->has_namespace = mode == NETWORK_NAMESPACE;
        return r;
}

void core_note_platform(struct core *core, const struct platform *p) {
        core->has_user_net = core->cfg.net && !core->has_namespace && platform_has_stream(p);
}

enum vm_net core_net(const struct core *core) {
        if (core->has_namespace)
                return VM_NET_TAP;
        return core->has_user_net ? VM_NET_STREAM : VM_NET_USER_RESTRICTED;
}

int core_card(struct core *core, const struct card *card, const char *dir, bool attached, const struct op *op, int *ret,
              struct error *err) {
        const int64_t began = monotonic_ns();
        int r = 0;

        *ret = -1;
        if (core->has_namespace)
                r = network_tap(core->cfg.net, card, attached, op, ret, err);
        else if (core->has_user_net)
                r = network_user_card(core->cfg.net, card->address, dir, ret, err);
        if (r < 0) {
                error_prefix(err, "The machine gets no network card");
                return r;
        }
        log_debug("A machine has its card", "slot", LOG_NUM(card->slot), "us",
                  LOG_NUM((monotonic_ns() - began) / 1000));
        return 0;
}

bool core_has_gateway(const struct core *core, const struct ws_row *row) {
        return core->has_namespace || (core->cfg.net && row->allow_internet);
}

int core_open_card(struct core *core, const struct ws_row *row, const char *dir, const struct op *op,
                   struct error *err) {
        if (!core->has_user_net || !row->allow_internet)
                return 0;
        int r = network_user_policy(core->cfg.net, dir, true, op, err);
        if (r < 0)
                error_prefix(err, "The machine gets no way to the internet");
        return r;
}

void core_expect_cards(struct core *core) {
        _cleanup_free_ uint32_t *used = NULL;
        uint32_t next[SPARE_CARDS];
        size_t n = 0, n_next = 0;

        if (!core->has_namespace)
                return;
        {
                LOCK(&core->lock);
                used = core_used_addresses_locked(core, SPARE_CARDS, &n);
                if (!used)
                        return;
        }
        while (n_next < SPARE_CARDS &&
               address_pick(core->cfg.network, core->cfg.prefix_len, used, n, &next[n_next]) >= 0)
                used[n++] = next[n_next++];
        network_expect(core->cfg.net, next, n_next);
}

static void forget_connections(struct workspace *ws) {
        const struct op op = op_timeout(FORGET_MS);
        _cleanup_error_ struct error why = ERROR_INIT;

        if (ws->core->has_namespace && network_forget(ws->core->cfg.net, ws->row.address, &op, &why) < 0)
                log_warn("Old connections of an address are not forgotten", "error", error_message(&why));
}

/* A port that any workspace has open is enough for connections of all others. */
static bool may_have_connections(struct workspace *ws) {
        if (!policy_is_default(&ws->row) || workspace_has_forwards(ws))
                return true;
        LOCK(&ws->core->lock);
        for (struct workspace *other = ws->core->first; other; other = other->next)
                if (!str_empty(other->row.allowed_ports))
                        return true;
        return false;
}

/* Whether the machine that runs has its card on the network that this daemon has. One that was started in another mode,
 * or before the namespace was lost, has not. */
static bool is_on_our_network(struct workspace *ws) {
        const struct core *core = ws->core;

        return ws->row.network_ns == (core->has_namespace ? network_id(core->cfg.net) : 0);
}

int workspace_attach_card(struct workspace *ws, const struct op *op, struct error *err) {
        struct core *core = ws->core;
        const struct card card = {.address = ws->row.address, .slot = ws->row.slot};
        int r = 0;

        if (is_on_our_network(ws) && core->cfg.net)
                r = core->has_namespace
                            ? network_attach(core->cfg.net, &card, op, err)
                            : network_user_policy(core->cfg.net, workspace_vm_dir(ws), ws->row.allow_internet, op, err);
        LOCK(&core->lock);
        /* These will not change: its QEMU has just ended, or the process of its network. */
        ws->card_unsure = r < 0 && r != -ENODEV && r != -ESRCH;
        return r;
}

void workspace_change_cards(struct workspace *ws) {
        const struct op op = op_timeout(FORGET_MS);
        _cleanup_error_ struct error why = ERROR_INIT;

        if (workspace_attach_card(ws, &op, &why) < 0) {
                log_warn("The card of a workspace is not on the network yet", "workspace", ws->id, "error",
                         error_message(&why));
                core_tidy_soon(ws->core);
        }
        if (may_have_connections(ws))
                forget_connections(ws);
}

/* --- what they may do --- */

bool policy_is_default(const struct ws_row *row) {
        return !row->allow_internet && !row->allow_inter_vm && str_empty(row->allowed_ports);
}

bool policy_has_wishes(const struct ws_policy *p) {
        return p->allow_internet || p->allow_inter_vm || !str_empty(p->allowed_ports);
}

/* The policies of all rows. The ports are in one array, which the policies point into. */
static int gather(struct core *core, struct network_policy **ret, uint16_t **ret_ports, size_t *ret_n) {
        LOCK(&core->lock);
        _cleanup_free_ struct network_policy *list = calloc(core->n_workspaces + 1, sizeof(*list));
        _cleanup_free_ uint16_t *ports = calloc(core->n_workspaces * NETWORK_PORTS_MAX + 1, sizeof(*ports));
        size_t n = 0;

        if (!list || !ports)
                return -ENOMEM;
        for (struct workspace *ws = core->first; ws; ws = ws->next) {
                uint16_t *own = ports + n * NETWORK_PORTS_MAX;

                if (policy_is_default(&ws->row) || ws->row.state == WS_DESTROYING)
                        continue;
                list[n++] = (struct network_policy){
                        .address = ws->row.address,
                        .internet = ws->row.allow_internet,
                        .inter_vm = ws->row.allow_inter_vm,
                        .ports = own,
                        .n_ports = ports_parse(ws->row.allowed_ports, own),
                };
        }
        *ret = TAKE_PTR(list);
        *ret_ports = TAKE_PTR(ports);
        *ret_n = n;
        return 0;
}

static int apply_now(struct core *core, const struct op *op, struct error *err) {
        _cleanup_free_ struct network_policy *list = NULL;
        _cleanup_free_ uint16_t *ports = NULL;
        size_t n = 0;

        int r = gather(core, &list, &ports, &n);
        return r < 0 ? error_set_errno(err, r, "Cannot list what the workspaces may do")
                     : network_apply(core->cfg.net, list, n, op, err);
}

int core_apply_policy(struct core *core, const struct op *op, struct error *err) {
        struct cond_waiter waiter;
        uint64_t generation = 0;
        int r = 0;

        r = core_net_wait(core, op, err);
        if (r < 0)
                return r;
        if (!core->has_namespace) {
                LOCK(&core->lock);
                core->policy_applied = core->policy_wanted;
                return 0;
        }
        cond_waiter_begin(&waiter, &core->lock, &core->changed, op);
        pthread_mutex_lock(&core->lock);
        const uint64_t mine = ++core->policy_wanted;
        while (core->policy_applied < mine && core->policy_busy && (r = cond_waiter_sleep(&waiter)) >= 0)
                ;
        bool lead = r >= 0 && core->policy_applied < mine;
        if (lead) {
                core->policy_busy = true;
                generation = core->policy_wanted;
        }
        pthread_mutex_unlock(&core->lock);
        cond_waiter_end(&waiter);
        if (!lead)
                return r < 0 ? error_set_errno(err, r, "The rules of the network are not in force yet") : 0;
        r = apply_now(core, op, err);
        {
                LOCK(&core->lock);
                core->policy_busy = false;
                if (r >= 0)
                        core->policy_applied = generation;
                pthread_cond_broadcast(&core->changed);
        }
        return r;
}

/* --- changing it --- */

static int edit_policy(struct ws_row *row, void *arg, struct error *err) {
        const struct ws_policy *p = arg;

        row->allow_internet = p->allow_internet;
        row->allow_inter_vm = p->allow_inter_vm;
        return str_replace(&row->allowed_ports, str_empty(p->allowed_ports) ? NULL : p->allowed_ports) < 0
                       ? error_set_errno(err, ENOMEM, "Cannot change workspace %s", row->id)
                       : 0;
}

/* Without a namespace. */
static int refuse_policy(struct core *core, const struct platform *p, const struct ws_policy *wanted,
                         const struct op *op, struct error *err) {
        _cleanup_error_ struct error why = ERROR_INIT;

        if (core->cfg.net)
                network_why(core->cfg.net, op, &why);
        const char *colon = error_is_set(&why) ? ": " : "", *because = error_is_set(&why) ? error_message(&why) : "";
        if (core->has_user_net) {
                int r = error_set(err, ERROR_UNSUPPORTED,
                                  "%s cannot be had here: workspaces have no network in common%s%s",
                                  wanted->allow_inter_vm ? "allow_inter_vm" : "allowed_ports", colon, because);
                error_hint(
                        err,
                        "Leave allow_inter_vm and allowed_ports out; allow_internet and port_forward work. `agentiso "
                        "check` on the host says what is missing for more.");
                return r;
        }
        int r = core->cfg.net
                        ? error_set(err, ERROR_UNSUPPORTED,
                                    "The internet cannot be had here: it takes a network namespace or QEMU %s, and "
                                    "this is QEMU %s%s%s",
                                    PLATFORM_STREAM_QEMU, p->qemu_version, colon, because)
                        : error_set(err, ERROR_UNSUPPORTED,
                                    "This server gives its workspaces no network that can be opened");
        error_hint(err, "Run `agentiso check` on the host, which says what is missing; files can be brought in with "
                        "file_write and file_transfer.");
        return r;
}

int core_check_policy(struct core *core, const struct ws_policy *p, const struct op *op, struct error *err) {
        const struct platform *platform = NULL;

        if (!policy_has_wishes(p))
                return 0;
        int r = core_net_wait(core, op, err);
        if (r < 0 || core->has_namespace)
                return r;
        r = core_platform(core, op, &platform, err);
        if (r < 0 || (core->has_user_net && !p->allow_inter_vm && str_empty(p->allowed_ports)))
                return r;
        return refuse_policy(core, platform, p, op, err);
}

static bool takes_away(const struct ws_row *before, const struct ws_policy *p) {
        return (before->allow_internet && !p->allow_internet) || (before->allow_inter_vm && !p->allow_inter_vm) ||
               (!str_empty(before->allowed_ports) && !str_eq(before->allowed_ports, p->allowed_ports));
}

/* In user networking, for a machine that runs: its process, then the guest's gateway and name server; the programs of
 * the guest are told what was cut. One of the pool is configured by whoever hands it out. */
static int set_user_policy(struct workspace *ws, bool internet, const struct op *op, struct error *err) {
        struct core *core = ws->core;
        _cleanup_ws_row_ struct ws_row row = {0};

        if (core->has_namespace || !core->cfg.net || !ws->vm)
                return 0;
        int r = network_user_policy(core->cfg.net, workspace_vm_dir(ws), internet, op, err);
        if (r >= 0)
                r = workspace_row(ws, &row, err);
        return r < 0 || row.pooled ? r : workspace_rename_guest(ws, row.name, !internet, op, err);
}

int core_have_uplink(struct core *core, const struct op *op, struct error *err) {
        return core->has_namespace ? network_uplink(core->cfg.net, op, err) : 0;
}

static int check_reach(struct workspace *ws, struct error *err) {
        if (!ws->vm || is_on_our_network(ws))
                return 0;
        int r = error_set(
                err, ERROR_CONFLICT,
                "Workspace \"%s\" was started with a network that agentiso does not control any more: what it "
                "may reach cannot be changed while it runs",
                ws->row.name);
        error_hint(err, "Restart it: workspace_stop, then workspace_start; its disk stays.");
        return r;
}

static int put_in_force(struct workspace *ws, bool internet, const struct op *op, struct error *err) {
        int r = set_user_policy(ws, internet, op, err);

        return r < 0 ? r : core_apply_policy(ws->core, op, err);
}

static bool grants(const struct ws_row *before, const struct ws_policy *p) {
        return (p->allow_internet && !before->allow_internet) || (p->allow_inter_vm && !before->allow_inter_vm) ||
               (!str_empty(p->allowed_ports) && !str_eq(before->allowed_ports, p->allowed_ports));
}

/* A grant that cannot be put in force is taken back. What only takes away stays in the row, whatever happens: it is in
 * force as soon as that is possible. */
static void undo_grant(struct workspace *ws, const struct ws_row *before) {
        const struct op op = op_timeout(FORGET_MS);
        struct ws_policy old = {
                .allow_internet = before->allow_internet,
                .allow_inter_vm = before->allow_inter_vm,
                .allowed_ports = before->allowed_ports,
        };

        if (workspace_change(ws, edit_policy, &old, NULL) < 0 || put_in_force(ws, old.allow_internet, &op, NULL) < 0)
                core_policy_changed(ws->core);
}

int workspace_set_policy(struct workspace *ws, const struct ws_policy *p, const struct op *op, struct error *err) {
        _cleanup_ws_row_ struct ws_row before = {0};
        struct ws_policy wanted = *p;

        int r = core_net_wait(ws->core, op, err);
        if (r >= 0)
                r = core_check_policy(ws->core, p, op, err);
        if (r >= 0)
                r = check_reach(ws, err);
        if (r >= 0)
                r = workspace_row(ws, &before, err);
        if (r >= 0 && p->allow_internet && !before.allow_internet)
                r = core_have_uplink(ws->core, op, err);
        if (r >= 0)
                r = workspace_change(ws, edit_policy, &wanted, err);
        if (r < 0)
                return r;
        r = put_in_force(ws, p->allow_internet, op, err);
        if (takes_away(&before, p))
                forget_connections(ws);
        if (r < 0 && grants(&before, p))
                undo_grant(ws, &before);
        else if (r < 0)
                core_policy_changed(ws->core);
        return r;
}

int ws_set_policy(struct core *core, const char *ref, const struct ws_policy_change *change, const struct op *op,
                  struct ws_view *ret, struct error *err) {
        _cleanup_claim_ struct workspace *ws = NULL;
        _cleanup_ws_row_ struct ws_row row = {0};

        int r = workspace_claim_settled(core, ref, op, &ws, err);
        if (r >= 0)
                r = workspace_row(ws, &row, err);
        if (r < 0)
                return r;
        const struct ws_policy p = {
                .allow_internet = change->allow_internet ? *change->allow_internet : row.allow_internet,
                .allow_inter_vm = change->allow_inter_vm ? *change->allow_inter_vm : row.allow_inter_vm,
                .allowed_ports = change->allowed_ports ? change->allowed_ports : row.allowed_ports,
        };
        if (change->allow_internet || change->allow_inter_vm || change->allowed_ports)
                r = workspace_set_policy(ws, &p, op, err);
        return r < 0 ? r : workspace_view(ws, NULL, ret, err);
}

/* --- start --- */

/*
 * What an earlier daemon left: rules that may not be as the rows have them, and cards that a restore which was cut
 * short may have left off the network. All of that is mended in the background (tidy.c), since the namespace may take
 * seconds to come up and most calls do not need it; those that do wait for it (core_net_wait()). Until then the rules
 * that the earlier daemon has put in force stay so.
 */
void core_recover_network(struct core *core) {
        if (!core->cfg.net)
                return;
        {
                LOCK(&core->lock);
                core->policy_wanted++;
                for (struct workspace *ws = core->first; ws; ws = ws->next)
                        ws->card_unsure = ws->vm != NULL;
        }
        core_tidy_soon(core);
}
