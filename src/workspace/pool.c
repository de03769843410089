/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The warm pool: machines of the default shape that run already and wait for a create.
 *
 * A machine of the pool is a workspace like all others, with a row that says that nobody has it yet: tools do not see
 * it, a crash does not lose it, and a later daemon takes it up again or ends it. To hand it out is to give it a name
 * and an owner: the guest is configured once more, for its clock has not been looked at since, then the row is changed.
 *
 * One thread fills the pool, from the first create on, one machine at a time, and only while nobody waits for a machine
 * of his own. Only templates make it worth while: without one of the default shape the pool stays empty. It gives all
 * of them up while the host is short of memory.
 */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "workspace/template.h"

#define POOL_NAME_PREFIX "~pool" /* no workspace can be called so */
#define LOOK_MS 3000             /* between two looks at the host's memory */
#define FILL_MS 60000            /* for one machine */
#define TAKE_MS 5000             /* for one to be handed out; longer, and another way is quicker */
#define AGAIN_MS 15000           /* after one could not be made */
#define MEMINFO_MAX 65536u

struct pool {
        pthread_t thread;
        bool has_thread; /* of the daemon's own thread alone, as `thread` */
        struct cancel *stop;

        /* These are guarded by core->lock. */
        pthread_cond_t changed;
        bool wanted; /* somebody has created a workspace: there may be more to come */
        bool closing;
        int64_t not_before_ns; /* a machine could not be made */
};

/* --- how many --- */

/* What the host could give to new processes, in MiB; UINT64_MAX when it does not say. */
static uint64_t available_mb(void) {
        _cleanup_free_ char *text = NULL;

        if (file_read_all("/proc/meminfo", MEMINFO_MAX, &text, NULL) < 0)
                return UINT64_MAX;
        const char *line = strstr(text, "MemAvailable:");
        return line ? strtoull(line + strlen("MemAvailable:"), NULL, 10) / 1024 : UINT64_MAX;
}

static unsigned size_wanted(const struct core *core) {
        const struct core_pool *p = &core->cfg.pool;
        return MIN(p->size, p->memory_mb / MAX(core->cfg.default_memory_mb, 1u));
}

static unsigned count_locked(struct core *core) {
        unsigned n = 0;
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                n += ws->row.pooled && ws->row.state != WS_DESTROYING;
        return n;
}

void core_pool_state(struct core *core, unsigned *ret_ready, unsigned *ret_wanted) {
        unsigned n = 0;
        LOCK(&core->lock);
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                n += ws->row.pooled && ws->row.state == WS_RUNNING;
        *ret_ready = n;
        *ret_wanted = core->pool ? size_wanted(core) : 0;
}

/* --- giving up --- */

/* Whether its template is still the one for its shape; a machine of a former one has a former image. */
static bool is_outdated_locked(struct core *core, const struct workspace *ws) {
        const struct snapshot *template = snapshot_find_locked(core, ws->row.parent);
        return !template || template->row.state != SNAP_READY;
}

/* One that waits, claimed. What could not be removed before is not tried again here. */
static struct workspace *claim_waiting(struct core *core, bool outdated) {
        LOCK(&core->lock);
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (ws->row.pooled && !ws->busy && ws->row.state != WS_DESTROYING &&
                    (!outdated || is_outdated_locked(core, ws))) {
                        ws->busy = true;
                        ws->refs++;
                        return ws;
                }
        return NULL;
}

static bool give_up(struct core *core, bool outdated) {
        _cleanup_claim_ struct workspace *ws = claim_waiting(core, outdated);

        if (!ws)
                return false;
        workspace_abandon(ws);
        LOCK(&core->lock);
        return ws->gone;
}

bool pool_give_up(struct core *core) {
        return give_up(core, false);
}

/* The thread fills it no more, nor is it in the middle of that. Again without effect. */
static void stop_filling(struct core *core) {
        struct pool *p = core->pool;

        if (!p || !p->has_thread)
                return;
        cancel_fire(p->stop);
        {
                LOCK(&core->lock);
                p->closing = true;
                pthread_cond_signal(&p->changed);
        }
        pthread_join(p->thread, NULL);
        p->has_thread = false;
}

void core_pool_drain(struct core *core) {
        stop_filling(core);
        while (pool_give_up(core))
                ;
}

/* --- filling --- */

static int fill_one(struct core *core, struct error *err) {
        const struct op op = {.deadline = deadline_in_ms(FILL_MS), .cancel = core->pool->stop};
        const struct core_config *cfg = &core->cfg;
        _cleanup_claim_ struct workspace *ws = NULL;
        _cleanup_snapshot_ struct snapshot *template = NULL;
        _cleanup_image_ struct image image = {0};
        const struct platform *platform = NULL;
        enum ws_start_kind kind;
        const struct birth birth = {
                .name_prefix = POOL_NAME_PREFIX,
                .base_image = cfg->default_image,
                .owner = "",
                .vcpus = cfg->default_vcpus,
                .memory_mb = cfg->default_memory_mb,
                .disk_gb = cfg->default_disk_gb,
                .pooled = true,
        };

        int r = image_find(cfg->image_dir, cfg->default_image, &image, err);
        if (r >= 0)
                r = core_platform(core, &op, &platform, err);
        if (r < 0)
                return r;
        template = template_get(core, platform, &image, birth.vcpus, birth.memory_mb, birth.disk_gb);
        if (!template)
                return -ENOENT;
        r = workspace_reserve(core, &birth, &ws, err);
        if (r < 0)
                return r;
        r = workspace_build(ws, &image, &op, &kind, err);
        if (r < 0)
                workspace_abandon(ws);
        return r;
}

static bool should_fill_locked(struct core *core) {
        const struct pool *p = core->pool;

        return p->wanted && core->n_foreground == 0 && monotonic_ns() >= p->not_before_ns &&
               /* The last place is for somebody who asks for it. */
               core->n_workspaces + 1 < core->cfg.limits.max_workspaces && count_locked(core) < size_wanted(core);
}

/* Waits until there is something to do, or for a while. False: the end. */
static bool rest(struct core *core, bool *ret_fill) {
        struct pool *p = core->pool;
        const deadline_t until = deadline_in_ms(LOOK_MS);
        LOCK(&core->lock);

        while (!p->closing && !should_fill_locked(core) && !deadline_passed(until))
                (void) cond_wait_until(&p->changed, &core->lock, until);
        *ret_fill = should_fill_locked(core);
        return !p->closing;
}

static void fill_later(struct core *core, int64_t ms) {
        LOCK(&core->lock);
        core->pool->not_before_ns = monotonic_ns() + ms * NSEC_PER_MSEC;
}

static void fill(struct core *core) {
        _cleanup_error_ struct error why = ERROR_INIT;

        int r = fill_one(core, &why);
        if (r >= 0)
                return;
        if (r != -ENOENT && r != -ECANCELED)
                log_warn("A machine for the pool cannot be made", "error", error_message(&why));
        fill_later(core, AGAIN_MS);
}

static void *pool_main(void *arg) {
        struct core *core = arg;
        bool may_fill;

        while (rest(core, &may_fill)) {
                const uint64_t available = available_mb();

                while (give_up(core, true))
                        log_info("The pool gives up a machine of a former template");
                if (available < core->cfg.pool.min_free_mb) {
                        if (pool_give_up(core))
                                log_info("The host is short of memory: the pool gives up a machine", "available_mb",
                                         LOG_NUM((int64_t) available));
                        fill_later(core, LOOK_MS);
                } else if (may_fill && available >= core->cfg.pool.min_free_mb + core->cfg.default_memory_mb)
                        fill(core);
                else if (may_fill)
                        fill_later(core, LOOK_MS);
        }
        return NULL;
}

/* A template is there that was not, or a machine was taken: no reason to wait any longer. */
void pool_wake(struct core *core) {
        LOCK(&core->lock);
        if (!core->pool)
                return;
        core->pool->not_before_ns = 0;
        pthread_cond_signal(&core->pool->changed);
}

/* --- handing out --- */

struct hand_over {
        const struct birth *birth;
        char *name;
};

static int edit_owner(struct ws_row *row, void *arg, struct error *err) {
        struct hand_over *h = arg;

        if (str_replace(&row->owner, h->birth->owner) < 0 || str_replace(&row->name, h->name) < 0)
                return error_set_errno(err, ENOMEM, "Cannot hand out a workspace");
        row->pooled = false;
        row->created_ms = row->started_ms = realtime_ms();
        return 0;
}

static bool is_what_is_asked(const struct core_config *cfg, const struct birth *b) {
        return str_eq(b->base_image, cfg->default_image) && b->vcpus == cfg->default_vcpus &&
               b->memory_mb == cfg->default_memory_mb && b->disk_gb == cfg->default_disk_gb;
}

/* One that runs, claimed, and the name that it will have, if that is free. key: of the template that it must come from.
 */
static struct workspace *claim_ready(struct core *core, const struct birth *b, const char *key, char **ret_name) {
        LOCK(&core->lock);
        if (b->name && registry_find_locked(core, b->name))
                return NULL; /* the error that this is comes from the reservation */
        for (struct workspace *ws = core->first; ws; ws = ws->next) {
                const struct snapshot *template = snapshot_find_locked(core, ws->row.parent);
                if (!ws->row.pooled || ws->busy || ws->row.state != WS_RUNNING || !ws->vm || vm_has_exited(ws->vm) ||
                    !template || !str_eq(template->row.key, key))
                        continue;
                *ret_name = b->name ? strdup(b->name) : str_printf("%s-%.8s", b->name_prefix, ws->id);
                if (!*ret_name)
                        return NULL;
                ws->busy = true;
                ws->refs++;
                return ws;
        }
        return NULL;
}

static int hand_over(struct workspace *ws, struct hand_over *h, const struct op *op, struct error *err) {
        const struct op quick = op_sub(op, TAKE_MS);

        const bool changes = policy_has_wishes(&h->birth->policy) || !policy_is_default(&ws->row);
        int r = changes ? workspace_set_policy(ws, &h->birth->policy, op, err) : 0;
        if (r >= 0)
                r = workspace_rename_guest(ws, h->name, false, &quick, err);
        return r < 0 ? r : workspace_change(ws, edit_owner, h, err);
}

/* One that does not answer in time is given up, and not a second one tried: the next way may be quicker. */
struct workspace *pool_take(struct core *core, const struct birth *b, const struct image *image, const struct op *op) {
        _cleanup_error_ struct error why = ERROR_INIT;
        _cleanup_free_ char *key = NULL, *name = NULL;
        const struct platform *platform = NULL;

        if (!core->pool || !is_what_is_asked(&core->cfg, b) || op_check(op) < 0 ||
            core_platform(core, op, &platform, NULL) < 0 ||
            template_key(core, platform, image, b->vcpus, b->memory_mb, &key, NULL) < 0)
                return NULL;
        struct workspace *ws = claim_ready(core, b, key, &name);
        if (!ws)
                return NULL;
        struct hand_over h = {.birth = b, .name = name};
        if (hand_over(ws, &h, op, &why) >= 0)
                return ws;
        log_warn("A machine of the pool could not be handed out", "workspace", ws->id, "error", error_message(&why));
        workspace_abandon(ws);
        workspace_release(ws);
        return NULL;
}

/* --- start and end --- */

void pool_want(struct core *core) {
        LOCK(&core->lock);
        if (!core->pool)
                return;
        core->pool->wanted = true;
        pthread_cond_signal(&core->pool->changed);
}

int pool_open(struct core *core, struct error *err) {
        if (size_wanted(core) == 0 || core->cfg.templates_bytes == 0)
                return 0;
        struct pool *p = calloc(1, sizeof(*p));
        if (!p)
                return error_set_errno(err, ENOMEM, "Cannot open the pool");
        p->stop = cancel_new();
        cond_init(&p->changed);
        core->pool = p;
        int r = p->stop ? thread_start(&p->thread, "pool", pool_main, core) : -ENOMEM;
        if (r < 0) {
                cancel_unref(p->stop);
                pthread_cond_destroy(&p->changed);
                free(TAKE_PTR(core->pool));
                return error_set_errno(err, r, "Cannot start a thread");
        }
        p->has_thread = true;
        return 0;
}

void pool_stop(struct core *core) {
        stop_filling(core);
}

void pool_close(struct core *core) {
        struct pool *p = core->pool;

        if (!p)
                return;
        stop_filling(core);
        cancel_unref(p->stop);
        pthread_cond_destroy(&p->changed);
        free(TAKE_PTR(core->pool));
}
