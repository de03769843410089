/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/probe.h"

#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/thread.h"

struct probe {
        const struct config *cfg;
        char *cache_file, *scratch_dir;
        struct cancel *cancel; /* fires when the daemon ends */

        pthread_mutex_t lock; /* guards what follows; held for moments only */
        pthread_cond_t changed;
        pthread_t thread;
        bool has_thread; /* `thread` is to be joined */
        bool running;
        bool known; /* `platform` is set and does not change any more */
        struct platform platform;
        struct error error; /* of the last probe that failed */
};

static int try_platform(struct probe *p, struct platform *ret, struct error *err) {
        struct platform_args args = {
                .qemu = str_empty(p->cfg->qemu) ? NULL : p->cfg->qemu,
                .image_dir = p->cfg->image_dir,
                .cache_file = p->cache_file,
                .scratch_dir = p->scratch_dir,
        };
        struct op op = op_timeout(PROBE_MS);

        op.cancel = p->cancel;
        int r = accel_parse(p->cfg->accel, &args.accel);
        return r < 0 ? r : platform_probe(&args, &op, ret, err);
}

static void *probe_main(void *arg) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct probe *p = arg;
        struct platform platform = {0};

        int r = try_platform(p, &platform, &err);
        if (r >= 0)
                log_info("platform found", "qemu", platform.qemu, "version", platform.qemu_version, "accel",
                         accel_name(platform.accel), "reason", platform.accel_reason);
        else
                log_warn("no workspace can be started yet", "reason", error_message(&err));

        LOCK(&p->lock);
        p->running = false;
        p->known = r >= 0;
        if (p->known)
                p->platform = platform;
        else if (error_is_set(&err))
                error_move(&p->error, &err);
        else
                error_set_errno(&p->error, r, "cannot find out what this host can run VMs with");
        pthread_cond_broadcast(&p->changed);
        return NULL;
}

/* Called with the lock held and no probe running; an earlier thread has done all but return. */
static int begin(struct probe *p) {
        if (p->has_thread)
                pthread_join(p->thread, NULL);
        int r = thread_start(&p->thread, "probe", probe_main, p);
        p->has_thread = p->running = r >= 0;
        return r;
}

int probe_new(const struct config *cfg, struct probe **ret, struct error *err) {
        struct probe *p = calloc(1, sizeof(*p));

        if (!p)
                return -ENOMEM;
        pthread_mutex_init(&p->lock, NULL);
        cond_init(&p->changed);
        p->cfg = cfg;
        p->cancel = cancel_new();
        p->cache_file = path_join(cfg->state_dir, "platform.cache");
        p->scratch_dir = path_join(cfg->state_dir, "probe");
        if (!p->cancel || !p->cache_file || !p->scratch_dir) {
                probe_free(p);
                return error_set_errno(err, -ENOMEM, "cannot begin to probe the host");
        }
        *ret = p;
        return 0;
}

void probe_begin(struct probe *p) {
        LOCK(&p->lock);
        if (!p->known && !p->running)
                (void) begin(p); /* without a thread, the first who asks tries again and gets the error */
}

static void wake(void *arg) {
        struct probe *p = arg;

        LOCK(&p->lock);
        pthread_cond_broadcast(&p->changed);
}

static int get_locked(struct probe *p, const struct op *op, const struct platform **ret, struct error *err) {
        LOCK(&p->lock);
        /* Only an answer that was found while we waited counts: an old failure may have been mended. */
        int r = p->known || p->running ? 0 : begin(p);
        if (r < 0)
                return error_set_errno(err, r, "cannot begin to probe the host");
        while (p->running) {
                r = op_check(op);
                if (r == 0)
                        r = cond_wait_until(&p->changed, &p->lock, op->deadline);
                if (r < 0)
                        return error_set_errno(err, r, "gave up waiting for the probe of this host");
        }
        if (p->known) {
                *ret = &p->platform;
                return 0;
        }
        r = error_set(err, p->error.code, "%s", error_message(&p->error));
        if (p->error.hint)
                error_hint(err, "%s", p->error.hint);
        return r;
}

int probe_get(struct probe *p, const struct op *op, const struct platform **ret, struct error *err) {
        struct cancel_hook hook = {.fn = wake, .arg = p};

        cancel_hook(op->cancel, &hook);
        int r = get_locked(p, op, ret, err);
        cancel_unhook(op->cancel, &hook);
        return r;
}

void probe_free(struct probe *p) {
        if (!p)
                return;
        cancel_fire(p->cancel);
        if (p->has_thread)
                pthread_join(p->thread, NULL);
        platform_clear(&p->platform);
        error_clear(&p->error);
        cancel_unref(p->cancel);
        free(p->cache_file);
        free(p->scratch_dir);
        pthread_cond_destroy(&p->changed);
        pthread_mutex_destroy(&p->lock);
        free(p);
}
