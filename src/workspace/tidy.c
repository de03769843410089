/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What operations leave to be done on the network, and what did not work at the first try.
 *
 * A workspace that goes leaves its address behind with connections that answers may still come for, and with rules, if
 * they could not be changed at that moment. Such an address is *retired*: nobody gets it until all of that is over. The
 * thread here sees to it, away from whoever waits for a call, and tries again until it works; and likewise for rules
 * that are not in force, a card that is not on the network, and a port that is promised and not listened on.
 */
#include <string.h>

#include "base/log.h"
#include "workspace/core-internal.h"

#define AGAIN_MS 2000
#define TRY_MS 15000 /* for one thing */

struct tidier {
        pthread_t thread;
        pthread_cond_t wake; /* with core->lock, as what follows */
        bool wanted, closing;
        struct cancel *given_up; /* what it waits for when it is closed */
        uint32_t *retired;
        size_t n_retired;
};

static struct op tidy_op(struct core *core) {
        struct op op = op_timeout(TRY_MS);

        op.cancel = core->tidier->given_up;
        return op;
}

/* --- addresses --- */

void core_retire_address(struct core *core, uint32_t address) {
        struct tidier *t = core->tidier;
        LOCK(&core->lock);

        uint32_t *more = t && core->cfg.net ? realloc(t->retired, (t->n_retired + 1) * sizeof(*more)) : NULL;
        if (!more)
                return;
        t->retired = more;
        more[t->n_retired++] = address;
        t->wanted = true;
        pthread_cond_signal(&t->wake);
}

size_t core_retired_locked(const struct core *core) {
        return core->tidier ? core->tidier->n_retired : 0;
}

uint32_t *core_used_addresses_locked(const struct core *core, size_t room, size_t *ret_n) {
        const size_t n_retired = core_retired_locked(core);
        uint32_t *used = calloc(core->n_workspaces + n_retired + room + 1, sizeof(*used));
        size_t n = 0;

        if (!used)
                return NULL;
        for (const struct workspace *ws = core->first; ws; ws = ws->next)
                used[n++] = ws->row.address;
        for (size_t i = 0; i < n_retired; i++)
                used[n++] = core->tidier->retired[i];
        *ret_n = n;
        return used;
}

static void forget_locked(struct tidier *t, uint32_t address) {
        for (size_t i = 0; i < t->n_retired; i++)
                if (t->retired[i] == address) {
                        t->retired[i] = t->retired[--t->n_retired];
                        return;
                }
}

static bool next_retired(struct core *core, uint32_t *ret) {
        LOCK(&core->lock);
        if (core->tidier->n_retired == 0)
                return false;
        *ret = core->tidier->retired[0];
        return true;
}

/* Rules first: nobody shall make another connection before the old ones are forgotten. */
static int release_addresses(struct core *core, struct error *err) {
        uint32_t address;
        int r = 0;

        while (r >= 0 && next_retired(core, &address)) {
                const struct op op = tidy_op(core);

                r = core->has_namespace ? network_forget(core->cfg.net, address, &op, err) : 0;
                if (r < 0)
                        break;
                LOCK(&core->lock);
                forget_locked(core->tidier, address);
                pthread_cond_broadcast(&core->changed);
        }
        return r;
}

/* --- cards --- */

/* One whose card may not be on the network, claimed; also one of the pool, which nobody could claim by its name. */
static struct workspace *claim_unsure(struct core *core) {
        LOCK(&core->lock);
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (ws->card_unsure && !ws->busy && ws->row.state == WS_RUNNING) {
                        ws->busy = true;
                        ws->refs++;
                        return ws;
                }
        return NULL;
}

static int attach_cards(struct core *core, struct error *err) {
        for (;;) {
                const struct op op = tidy_op(core);
                _cleanup_claim_ struct workspace *ws = claim_unsure(core);

                if (!ws)
                        return 0;
                int r = workspace_attach_card(ws, &op, err);
                if (r == -ENODEV || r == -ESRCH) {
                        log_warn("A workspace has lost its network", "workspace", ws->id, "error", error_message(err));
                        error_clear(err);
                } else if (r < 0)
                        return r;
        }
}

/* --- the thread --- */

void core_policy_changed(struct core *core) {
        if (!core->cfg.net)
                return;
        LOCK(&core->lock);
        core->policy_wanted++;
        if (core->tidier) {
                core->tidier->wanted = true;
                pthread_cond_signal(&core->tidier->wake);
        }
}

bool core_policy_pending(struct core *core) {
        LOCK(&core->lock);
        return core->policy_applied < core->policy_wanted;
}

static bool is_untidy_locked(struct core *core) {
        if (core->tidier->n_retired > 0 || core->policy_applied < core->policy_wanted)
                return true;
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (ws->card_unsure && ws->row.state == WS_RUNNING)
                        return true;
        return false;
}

static bool is_untidy(struct core *core) {
        {
                LOCK(&core->lock);
                if (is_untidy_locked(core))
                        return true;
        }
        return core_forwards_wanted(core);
}

static void tidy(struct core *core) {
        const struct op op = tidy_op(core);
        _cleanup_error_ struct error why = ERROR_INIT;

        int r = core_net_wait(core, &op, &why);
        if (r >= 0 && core_policy_pending(core))
                r = core_apply_policy(core, &op, &why);
        if (r >= 0)
                r = release_addresses(core, &why);
        if (r >= 0)
                r = attach_cards(core, &why);
        if (r >= 0)
                core_expect_cards(core);
        core_retry_forwards(core);
        if (r < 0 && r != -ECANCELED)
                log_warn("The network is not as the workspaces' rows have it; it is tried again", "error",
                         error_message(&why));
}

/* Sleeps until there is something to do; a while, when what there is did not work just now. False: the end. */
static bool rest(struct core *core, bool again) {
        struct tidier *t = core->tidier;
        const deadline_t until = again ? deadline_in_ms(AGAIN_MS) : DEADLINE_NEVER;
        LOCK(&core->lock);

        while (!t->closing && !t->wanted && !deadline_passed(until))
                (void) cond_wait_until(&t->wake, &core->lock, until);
        t->wanted = false;
        return !t->closing;
}

static void *tidy_main(void *arg) {
        struct core *core = arg;

        while (rest(core, is_untidy(core)))
                tidy(core);
        return NULL;
}

void core_tidy_soon(struct core *core) {
        LOCK(&core->lock);
        if (!core->tidier)
                return;
        core->tidier->wanted = true;
        pthread_cond_signal(&core->tidier->wake);
}

static void tidier_free(struct tidier *t) {
        cancel_unref(t->given_up);
        pthread_cond_destroy(&t->wake);
        free(t->retired);
        free(t);
}

int tidy_open(struct core *core, struct error *err) {
        struct tidier *t = calloc(1, sizeof(*t));

        if (!t)
                return error_set_errno(err, ENOMEM, "Cannot open the workspaces");
        cond_init(&t->wake);
        t->given_up = cancel_new();
        core->tidier = t;
        int r = t->given_up ? thread_start(&t->thread, "tidy", tidy_main, core) : -ENOMEM;
        if (r >= 0)
                return 0;
        tidier_free(TAKE_PTR(core->tidier));
        return error_set_errno(err, r, "Cannot start a thread");
}

void tidy_close(struct core *core) {
        struct tidier *t = core->tidier;

        if (!t)
                return;
        {
                LOCK(&core->lock);
                t->closing = true;
                pthread_cond_signal(&t->wake);
        }
        cancel_fire(t->given_up);
        pthread_join(t->thread, NULL);
        tidier_free(TAKE_PTR(core->tidier));
}
