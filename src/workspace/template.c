/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Templates: which there are, which are wanted, which go.
 *
 * Whoever starts a machine asks for the template of its shape. If there is none he boots, and the shape is put on a
 * list, from which one thread makes templates, one after the other, at low priority and while nobody waits for another
 * machine. A template that depends on something that has changed (its key does) is simply not found any more; when its
 * successor is there, it is retired. So is the one that was used least recently when all of them take too much room.
 *
 * A template that no machine can be made of is retired at once and made anew, but not twice within a while: a host on
 * which none works must not make them for ever.
 */
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "workspace/template.h"

#define WANTED_MAX 8u         /* shapes that wait to be made */
#define FAILURES_MAX 16u      /* keys that are remembered as not working */
#define BUILD_RETRY_MS 600000 /* before one is tried again that could not be made */
#define RESUME_RETRY_MS 60000 /* before one is made again of which no machine could be made */
#define BUILD_MS 180000       /* for one template */
#define YIELD_MS 60000        /* for which a build waits for others at most */
#define BUILD_NICE 10         /* of the thread and of the machines that it starts */
#define TIMEOUTS_MAX 2u       /* in a row, before a template is thought to be at fault */

/* A shape that somebody asked for. */
struct want {
        char *image; /* NULL: for any disk */
        unsigned vcpus, memory_mb;
        bool done;
        int r;
        unsigned built, waiters;
        struct error error;
        struct want *next;
};

struct failure {
        char *key;
        int64_t until_ns;
};

struct template_builder {
        pthread_t thread;
        struct cancel *stop;

        /* These are guarded by core->lock. */
        pthread_cond_t changed;
        struct want *first;
        unsigned n;
        bool closing;
        struct failure failures[FAILURES_MAX];
        unsigned next_failure;
};

/* --- failures --- */

static void note_failure_locked(struct template_builder *b, const char *key, int64_t retry_ms) {
        struct failure *f = &b->failures[b->next_failure++ % FAILURES_MAX];

        if (str_replace(&f->key, key) >= 0)
                f->until_ns = monotonic_ns() + retry_ms * NSEC_PER_MSEC;
}

static bool failed_lately_locked(struct template_builder *b, const char *key) {
        for (size_t i = 0; i < FAILURES_MAX; i++)
                if (b->failures[i].key && str_eq(b->failures[i].key, key) && b->failures[i].until_ns > monotonic_ns())
                        return true;
        return false;
}

/* --- wants --- */

static void want_free(struct want *w) {
        if (!w)
                return;
        free(w->image);
        error_clear(&w->error);
        free(w);
}

/* The want of this shape, new or there already; NULL: no room or memory for it. */
static struct want *want_locked(struct template_builder *b, const char *image, unsigned vcpus, unsigned memory_mb) {
        struct want **end = &b->first;

        for (; *end; end = &(*end)->next) {
                struct want *w = *end;
                bool same = image && w->image ? str_eq(image, w->image) : !image && !w->image;
                if (same && !w->done && w->vcpus == vcpus && w->memory_mb == memory_mb)
                        return w;
        }
        if (b->n >= WANTED_MAX)
                return NULL;
        struct want *w = calloc(1, sizeof(*w));
        if (!w || str_replace(&w->image, image) < 0) {
                free(w);
                return NULL;
        }
        w->vcpus = vcpus;
        w->memory_mb = memory_mb;
        w->error = (struct error) ERROR_INIT;
        *end = w;
        b->n++;
        pthread_cond_broadcast(&b->changed);
        return w;
}

static void remove_locked(struct template_builder *b, struct want *w) {
        for (struct want **at = &b->first; *at; at = &(*at)->next)
                if (*at == w) {
                        *at = w->next;
                        b->n--;
                        return;
                }
}

/* --- which there are --- */

static bool is_template(const struct snapshot *s) {
        return s->row.workspace[0] == '\0';
}

static struct snapshot *find_locked(struct core *core, const char *key, unsigned disk_gb) {
        for (struct snapshot *s = core->snapshots; s; s = s->next)
                if (is_template(s) && s->row.state == SNAP_READY && str_eq(s->row.key, key) &&
                    s->row.disk_gb <= disk_gb)
                        return s;
        return NULL;
}

/* Pinned; NULL. */
static struct snapshot *find_whole(struct core *core, const char *key, unsigned disk_gb) {
        struct snapshot *s;
        {
                LOCK(&core->lock);
                s = find_locked(core, key, disk_gb);
                if (!s)
                        return NULL;
                snapshot_pin_locked(s);
        }
        if (template_is_whole(s))
                return s;
        log_warn("The files of a template are not as they were written: it is made anew", "template", s->id);
        (void) snapshot_retire(s, NULL);
        snapshot_unpin(s);
        snapshots_sweep(core);
        return NULL;
}

struct snapshot *template_get(struct core *core, const struct platform *p, const struct image *image, unsigned vcpus,
                              unsigned memory_mb, unsigned disk_gb) {
        _cleanup_error_ struct error why = ERROR_INIT;
        _cleanup_free_ char *key = NULL;

        if (!core->builder)
                return NULL;
        if (template_key(core, p, image, vcpus, memory_mb, &key, &why) < 0) {
                log_warn("There are no templates of this kind", "error", error_message(&why));
                return NULL;
        }
        struct snapshot *s = find_whole(core, key, disk_gb);
        if (s) {
                snapshot_note_use(s);
                return s;
        }
        LOCK(&core->lock);
        if (!failed_lately_locked(core->builder, key))
                (void) want_locked(core->builder, image ? image->name : NULL, vcpus, memory_mb);
        return NULL;
}

void template_worked(struct snapshot *s) {
        LOCK(&s->core->lock);
        s->timeouts = 0;
}

void template_failed(struct snapshot *s, const struct error *why) {
        struct core *core = s->core;
        {
                LOCK(&core->lock);
                bool host = why->code == ERROR_TIMEOUT || why->code == ERROR_NO_SPACE;
                bool kept = host && ++s->timeouts < TIMEOUTS_MAX;
                log_warn(kept ? "No machine could be made of a template; it is booted instead"
                              : "No machine can be made of a template; it is given up, and the machine is booted "
                                "instead",
                         "template", s->id, "error", error_message(why));
                if (kept)
                        return;
                if (core->builder)
                        note_failure_locked(core->builder, s->row.key, RESUME_RETRY_MS);
        }
        (void) snapshot_retire(s, NULL);
}

/* --- which go --- */

/* The same shape with another key. */
static bool is_outdated(const struct snap_row *old, const struct snap_row *now) {
        bool same_image = old->base_image && now->base_image ? str_eq(old->base_image, now->base_image)
                                                             : !old->base_image && !now->base_image;
        return same_image && old->vcpus == now->vcpus && old->memory_mb == now->memory_mb &&
               !str_eq(old->key, now->key);
}

/* A template to retire, pinned: an outdated one, or, if they take more than they may, the one that was used least
 * recently; never `kept`. */
static struct snapshot *next_to_retire(struct core *core, const struct snapshot *kept) {
        struct snapshot *outdated = NULL, *oldest = NULL;
        uint64_t bytes = 0;
        LOCK(&core->lock);

        for (struct snapshot *s = core->snapshots; s; s = s->next) {
                if (!is_template(s) || s->row.state == SNAP_CREATING)
                        continue;
                bytes += s->row.file_bytes; /* of retired ones, too, while they are there */
                if (s == kept || s->row.state != SNAP_READY)
                        continue;
                if (is_outdated(&s->row, &kept->row))
                        outdated = s;
                /* What was made of what: one of them without the other is made again at once. */
                bool same_shape = s->row.vcpus == kept->row.vcpus && s->row.memory_mb == kept->row.memory_mb;
                if (!same_shape && (!oldest || s->row.used_ms < oldest->row.used_ms))
                        oldest = s;
        }
        struct snapshot *s = outdated ? outdated : bytes > core->cfg.templates_bytes ? oldest : NULL;
        if (s)
                snapshot_pin_locked(s);
        return s;
}

static void retire_others(struct core *core, const struct snapshot *kept) {
        for (struct snapshot *s; (s = next_to_retire(core, kept));) {
                log_info("Template retired", "template", s->id);
                int r = snapshot_retire(s, NULL);
                snapshot_unpin(s);
                if (r < 0)
                        return;
        }
        snapshots_sweep(core);
}

/* --- making --- */

/* The template of this shape, made if it is not there. Pinned. */
static int obtain(struct core *core, const struct platform *p, const struct image *image, struct snapshot *from,
                  struct want *w, const struct op *op, struct snapshot **ret, struct error *err) {
        _cleanup_free_ char *key = NULL;
        const int64_t began = monotonic_ns();

        int r = template_key(core, p, image, w->vcpus, w->memory_mb, &key, err);
        if (r < 0)
                return r;
        *ret = find_whole(core, key, core->cfg.limits.max_disk_gb);
        if (*ret)
                return 0;
        r = template_build(core, p, image, from, w->vcpus, w->memory_mb, key, op, ret, err);
        if (r < 0) {
                LOCK(&core->lock);
                if (r != -ECANCELED)
                        note_failure_locked(core->builder, key, BUILD_RETRY_MS);
                return r;
        }
        w->built++;
        log_info("Template made", "template", (*ret)->id, "image", image ? image->name : "any", "ms",
                 LOG_NUM((monotonic_ns() - began) / NSEC_PER_MSEC));
        retire_others(core, *ret);
        return 0;
}

static int make(struct core *core, struct want *w, struct error *err) {
        const struct op op = {
                .deadline = deadline_in_ms(BUILD_MS),
                .cancel = core->builder->stop,
        };
        _cleanup_snapshot_ struct snapshot *any = NULL, *of_image = NULL;
        _cleanup_image_ struct image image = {0};
        const struct platform *platform = NULL;

        int r = core_platform(core, &op, &platform, err);
        if (r >= 0)
                r = obtain(core, platform, NULL, NULL, w, &op, &any, err);
        if (r < 0 || !w->image)
                return r;
        r = image_find(core->cfg.image_dir, w->image, &image, err);
        return r < 0 ? r : obtain(core, platform, &image, any, w, &op, &of_image, err);
}

void foreground_begin(struct core *core) {
        LOCK(&core->lock);
        core->n_foreground++;
}

void foreground_end(struct core *core) {
        snapshots_sweep(core); /* it may have been the last to need something */
        LOCK(&core->lock);
        core->n_foreground--;
        pthread_cond_broadcast(&core->changed);
}

/* Somebody's machine goes first, unless somebody waits for the template. */
static void let_others_go_first(struct core *core, const struct want *w) {
        const deadline_t until = deadline_in_ms(YIELD_MS);
        LOCK(&core->lock);

        while (core->n_foreground > 0 && w->waiters == 0 && !core->builder->closing && !deadline_passed(until))
                (void) cond_wait_until(&core->changed, &core->lock, until);
}

static struct want *next_want(struct core *core) {
        struct template_builder *b = core->builder;
        LOCK(&core->lock);

        for (;;) {
                if (b->closing)
                        return NULL;
                for (struct want *w = b->first; w; w = w->next)
                        if (!w->done)
                                return w;
                pthread_cond_wait(&b->changed, &core->lock);
        }
}

static void finish_want(struct core *core, struct want *w, int r, struct error *why) {
        LOCK(&core->lock);

        w->r = r;
        w->done = true;
        error_move(&w->error, why);
        if (w->waiters == 0) {
                remove_locked(core->builder, w);
                want_free(w);
        }
        pthread_cond_broadcast(&core->builder->changed);
}

static void *builder_main(void *arg) {
        struct core *core = arg;

        /* Of this thread, and inherited by what it starts; it matters to nobody if it fails. */
        (void) setpriority(PRIO_PROCESS, (id_t) gettid(), BUILD_NICE);
        for (struct want *w; (w = next_want(core));) {
                _cleanup_error_ struct error why = ERROR_INIT;

                let_others_go_first(core, w);
                int r = make(core, w, &why);
                if (r < 0 && r != -ECANCELED)
                        log_warn("A template cannot be made; machines of this kind are booted", "image",
                                 w->image ? w->image : "any", "error", error_message(&why));
                finish_want(core, w, r, &why);
                pool_wake(core);
        }
        return NULL;
}

/* --- start and end --- */

int templates_open(struct core *core, struct error *err) {
        if (core->cfg.templates_bytes == 0)
                return 0;
        struct template_builder *b = calloc(1, sizeof(*b));
        if (!b)
                return error_set_errno(err, ENOMEM, "Cannot open the templates");
        b->stop = cancel_new();
        cond_init(&b->changed);
        core->builder = b;
        int r = b->stop ? thread_start(&b->thread, "templates", builder_main, core) : -ENOMEM;
        if (r < 0) {
                cancel_unref(b->stop);
                pthread_cond_destroy(&b->changed);
                free(TAKE_PTR(core->builder));
                return error_set_errno(err, r, "Cannot start a thread");
        }
        return 0;
}

void templates_close(struct core *core) {
        struct template_builder *b = core->builder;

        if (!b)
                return;
        cancel_fire(b->stop);
        {
                LOCK(&core->lock);
                b->closing = true;
                pthread_cond_broadcast(&b->changed);
                pthread_cond_broadcast(&core->changed);
        }
        pthread_join(b->thread, NULL);
        while (b->first) {
                struct want *w = b->first;
                b->first = w->next;
                want_free(w);
        }
        for (size_t i = 0; i < FAILURES_MAX; i++)
                free(b->failures[i].key);
        cancel_unref(b->stop);
        pthread_cond_destroy(&b->changed);
        free(TAKE_PTR(core->builder));
}

/* --- for people --- */

static int await(struct core *core, const char *image, unsigned vcpus, unsigned memory_mb, struct cond_waiter *waiter,
                 unsigned *ret_built, struct error *err) {
        struct template_builder *b = core->builder;
        LOCK(&core->lock);
        struct want *w = want_locked(b, image, vcpus, memory_mb);
        int r = 0;

        if (!w)
                return error_set(err, ERROR_CONFLICT, "%u templates are waiting to be made already: try again later",
                                 b->n);
        w->waiters++;
        pthread_cond_broadcast(&core->changed);
        while (!w->done && r >= 0)
                r = cond_waiter_sleep(waiter);
        w->waiters--;
        if (!w->done)
                return error_set_errno(err, r, "The wait for the template was given up; it is made all the same");
        r = w->r;
        *ret_built = w->built;
        if (w->waiters == 0) {
                error_move(err, &w->error);
                remove_locked(b, w);
                want_free(w);
        } else if (r < 0)
                error_set(err, w->error.code, "%s", error_message(&w->error));
        return r;
}

int core_warm(struct core *core, const char *base_image, unsigned vcpus, unsigned memory_mb, const struct op *op,
              unsigned *ret_built, struct error *err) {
        const struct core_config *cfg = &core->cfg;
        _cleanup_image_ struct image image = {0};
        struct cond_waiter waiter;

        if (!core->builder) {
                int r = error_set(err, ERROR_UNSUPPORTED,
                                  "There are no templates: the configuration gives them no room");
                error_hint(err, "Set templates.max_gb.");
                return r;
        }
        vcpus = vcpus ? vcpus : cfg->default_vcpus;
        memory_mb = memory_mb ? memory_mb : cfg->default_memory_mb;
        int r = check_range("vcpus", vcpus, 1, cfg->limits.max_vcpus, err);
        if (r >= 0)
                r = check_range("memory_mb", memory_mb, WS_MEMORY_MB_MIN, cfg->limits.max_memory_mb, err);
        if (r >= 0)
                r = image_find(cfg->image_dir, base_image ? base_image : cfg->default_image, &image, err);
        if (r < 0)
                return r;
        cond_waiter_begin(&waiter, &core->lock, &core->builder->changed, op);
        r = await(core, image.name, vcpus, memory_mb, &waiter, ret_built, err);
        cond_waiter_end(&waiter);
        return r;
}

void core_templates_clear(struct core_templates *l) {
        for (size_t i = 0; i < l->n; i++)
                free(l->v[i].base_image);
        free(l->v);
        *l = (struct core_templates){0};
}

int core_templates_list(struct core *core, struct core_templates *ret, struct error *err) {
        _cleanup_(core_templates_clear) struct core_templates list = {0};
        size_t n = 0;
        LOCK(&core->lock);

        for (struct snapshot *s = core->snapshots; s; s = s->next)
                n++;
        list.v = calloc(n + 1, sizeof(*list.v));
        if (!list.v)
                return error_set_errno(err, ENOMEM, "Cannot list the templates");
        for (struct snapshot *s = core->snapshots; s; s = s->next) {
                struct core_template *t = &list.v[list.n];

                if (!is_template(s) || s->row.state != SNAP_READY)
                        continue;
                *t = (struct core_template){
                        .vcpus = s->row.vcpus,
                        .memory_mb = s->row.memory_mb,
                        .disk_gb = s->row.disk_gb,
                        .bytes = s->row.file_bytes,
                        .created_ms = s->row.created_ms,
                        .used_ms = s->row.used_ms,
                };
                memcpy(t->id, s->id, sizeof(t->id));
                list.n++;
                if (str_replace(&t->base_image, s->row.base_image) < 0)
                        return error_set_errno(err, ENOMEM, "Cannot list the templates");
        }
        *ret = list;
        list = (struct core_templates){0};
        return 0;
}
