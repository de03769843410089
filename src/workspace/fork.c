/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks: workspaces that begin where another one is.
 *
 * What they begin with is a snapshot. A live fork takes one of the running workspace, which stands still only for that
 * and can be used again before the first fork has started; it has no name and goes, part by part, with what stands on
 * it. The forks are then made beside each other, each like a creation of its own: reserved, with a disk on the node and
 * a machine that goes on from the memory, or, without memory, from a template or a boot. One that fails is undone and
 * has its reason; the others stay.
 *
 * Few forks get the pages of the snapshot laid over the memory of its template, which is quick but gives each of them
 * pages of its own. Many share one file with the whole memory, which takes a moment to be made.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "workspace/snapshot.h"

/* Bytes of pages that all forks together may have of their own before they share a file. */
#define OWN_PAGES_MAX ((uint64_t) 96 << 20)
#define PARALLEL_PER_CPU 2u /* forks that are made at the same time: a start waits for the disk, too */
#define DEFAULT_PREFIX "worker"

void ws_forks_clear(struct ws_forks *f) {
        for (size_t i = 0; i < f->n; i++) {
                free(f->v[i].name);
                ws_view_clear(&f->v[i].view);
                error_clear(&f->v[i].error);
        }
        free(f->v);
        free(f->snapshot_name);
        *f = (struct ws_forks){0};
}

/* What is to be made, and by whom. */
struct forking {
        struct core *core;
        const char *owner;
        const struct op *op;
        struct op quiet; /* the same, for the threads: what each of them does is of no interest */
        struct snapshot *snapshot;
        struct snap_row row; /* of it */
        struct ws_origin origin;
        struct start_files files; /* of its memory, if the forks get it */
        bool with_memory;
        struct ws_forks *forks;
        size_t next; /* taken by the threads, one after the other */
};

static void forking_clear(struct forking *f) {
        snapshot_unpin(f->snapshot);
        snap_row_clear(&f->row);
        free(f->origin.workspace_name);
        free(f->origin.snapshot_name);
        start_files_clear(&f->files);
}

/* --- one fork --- */

static int start_fork(struct forking *f, struct workspace *ws, struct ws_fork *fork, struct error *err) {
        const struct machine_args args = {.from = f->with_memory ? &f->files : NULL, .record = true};
        struct machine machine;

        int r = storage_clone(f->core->storage, f->snapshot->id, ws->row.disk, 0, &f->quiet, err);
        if (r < 0)
                return r;
        fork->started.kind = WS_START_SNAPSHOT;
        r = f->with_memory ? machine_start(ws, &args, &f->quiet, &machine, err)
                           : workspace_bring_up(ws, &args, &f->quiet, &machine, &fork->started.kind, err);
        if (r < 0)
                return r;
        workspace_set_vm(ws, machine.vm);
        return workspace_born(ws, &f->quiet, err);
}

/* What the source may do at this moment, the fork may, too; nothing, if it is gone. The text is owned by *ret_ports. */
static struct ws_policy policy_of_source(struct forking *f, char **ret_ports) {
        LOCK(&f->core->lock);
        const struct workspace *source = registry_find_locked(f->core, f->origin.workspace_id);

        if (!source || str_replace(ret_ports, source->row.allowed_ports) < 0)
                return (struct ws_policy){0};
        return (struct ws_policy){
                .allow_internet = source->row.allow_internet,
                .allow_inter_vm = source->row.allow_inter_vm,
                .allowed_ports = *ret_ports,
        };
}

static int make_fork(struct forking *f, struct ws_fork *fork, struct error *err) {
        const int64_t began = monotonic_ns();
        _cleanup_free_ char *ports = NULL;
        const struct ws_policy policy = policy_of_source(f, &ports);
        _cleanup_claim_ struct workspace *ws = NULL;
        const struct birth birth = {
                .name = fork->name,
                .name_prefix = "fork",
                .base_image = f->row.base_image,
                .owner = f->owner,
                .vcpus = f->row.vcpus,
                .memory_mb = f->row.memory_mb,
                .disk_gb = f->row.disk_gb,
                .policy = policy,
                .parent = f->snapshot->id,
                .origin = &f->origin,
        };

        int r = fork->name ? workspace_check_name(fork->name, err) : 0;
        if (r >= 0)
                r = workspace_reserve(f->core, &birth, &ws, err);
        if (r < 0)
                return r;
        r = start_fork(f, ws, fork, err);
        if (r >= 0)
                r = workspace_view(ws, f->owner, &fork->view, err);
        if (r < 0) {
                workspace_abandon(ws);
                return r;
        }
        fork->started.boot_time_ms = (monotonic_ns() - began) / NSEC_PER_MSEC;
        return fork->name ? 0 : str_replace(&fork->name, fork->view.row.name);
}

static void *fork_main(void *arg) {
        struct forking *f = arg;

        for (;;) {
                size_t i = __atomic_fetch_add(&f->next, 1, __ATOMIC_RELAXED);
                if (i >= f->forks->n)
                        return NULL;
                struct ws_fork *fork = &f->forks->v[i];
                fork->r = make_fork(f, fork, &fork->error);
                if (fork->r < 0 && fork->r != -ECANCELED)
                        log_warn("A fork failed", "name", fork->name ? fork->name : "", "error",
                                 error_message(&fork->error));
        }
}

/* --- all of them --- */

static size_t thread_count(size_t forks) {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        return MIN(forks, MAX((size_t) (cpus > 0 ? cpus : 1) * PARALLEL_PER_CPU, (size_t) PARALLEL_PER_CPU));
}

/* The caller's thread is one of them: whatever cannot be started, the forks are made. */
static void make_forks(struct forking *f) {
        pthread_t threads[WS_FORKS_MAX];
        size_t n = 0, wanted = thread_count(f->forks->n);

        while (n + 1 < wanted && thread_start(&threads[n], "fork", fork_main, f) >= 0)
                n++;
        (void) fork_main(f);
        while (n > 0)
                pthread_join(threads[--n], NULL);
}

static void abandon(struct core *core, const char *id) {
        const struct op op = op_timeout(QEMU_END_MS);
        _cleanup_claim_ struct workspace *ws = NULL;

        if (workspace_claim(core, id, &op, &ws, NULL) >= 0)
                workspace_abandon(ws);
}

/* Nobody waits for them any more: those that were made go again. */
static int undo_if_cancelled(struct forking *f, struct error *err) {
        int r = op_check(f->op);
        if (r != -ECANCELED)
                return 0;
        for (size_t i = 0; i < f->forks->n; i++)
                if (f->forks->v[i].r >= 0)
                        abandon(f->core, f->forks->v[i].view.row.id);
        return error_set_errno(err, r, "The fork was given up");
}

/* --- what they begin with --- */

static int set_origin(struct forking *f, struct workspace *source, const char *snapshot_name, struct error *err) {
        memcpy(f->origin.workspace_id, source->id, sizeof(f->origin.workspace_id));
        LOCK(&f->core->lock);
        if (str_replace(&f->origin.workspace_name, source->row.name) < 0 ||
            str_replace(&f->origin.snapshot_name, snapshot_name) < 0)
                return error_set_errno(err, ENOMEM, "Cannot fork");
        return 0;
}

/* The snapshot of that name, or one that is taken now. The source is let go of when this returns. */
static int find_begin(struct forking *f, const char *ref, const char *snapshot_name, bool disk_only,
                      const struct op *op, struct error *err) {
        _cleanup_claim_ struct workspace *source = NULL;

        int r = workspace_claim_settled(f->core, ref, op, &source, err);
        if (r >= 0)
                r = set_origin(f, source, snapshot_name, err);
        if (r < 0)
                return r;
        if (snapshot_name)
                return workspace_find_snapshot(source, snapshot_name, &f->snapshot, err);
        bool memory = !disk_only && workspace_state(source) == WS_RUNNING;
        r = workspace_snapshot(source, NULL, memory, true, op, &f->snapshot, err);
        if (r < 0)
                error_prefix(err, "The workspace cannot be forked as it is now");
        return r;
}

static int prepare_memory(struct forking *f, bool disk_only, const struct op *op, struct error *err) {
        f->with_memory = !disk_only && f->row.memory != SNAP_MEMORY_NONE;
        if (!f->with_memory)
                return 0;
        int r = snapshot_check_memory(f->snapshot, op, err);
        if (r < 0)
                return r;
        bool share = f->row.file_bytes * f->forks->n > OWN_PAGES_MAX;
        if (share)
                op_progress(op, "preparing the memory");
        return snapshot_files(f->snapshot, share, op, &f->files, err);
}

static int name_forks(struct ws_forks *forks, const struct ws_fork_args *args, struct error *err) {
        forks->v = calloc(args->count, sizeof(*forks->v));
        if (!forks->v)
                return error_set_errno(err, ENOMEM, "Cannot fork");
        forks->n = args->count;
        for (size_t i = 0; i < forks->n; i++) {
                struct ws_fork *fork = &forks->v[i];
                fork->error = (struct error) ERROR_INIT;
                if (args->count == 1) {
                        if (str_replace(&fork->name, args->new_name) < 0)
                                return error_set_errno(err, ENOMEM, "Cannot fork");
                        continue;
                }
                fork->name = str_printf("%s-%zu", args->name_prefix ? args->name_prefix : DEFAULT_PREFIX, i + 1);
                if (!fork->name)
                        return error_set_errno(err, ENOMEM, "Cannot fork");
        }
        return str_replace(&forks->snapshot_name, args->snapshot_name);
}

/* Names that cannot be are found before the source stands still. */
static int check_names(const struct ws_forks *forks, struct error *err) {
        for (size_t i = 0; i < forks->n; i++) {
                int r = forks->v[i].name ? workspace_check_name(forks->v[i].name, err) : 0;
                if (r < 0)
                        return r;
        }
        return 0;
}

static int fork_all(struct forking *f, const char *ref, const struct ws_fork_args *args, struct error *err) {
        int r = find_begin(f, ref, args->snapshot_name, args->disk_only, f->op, err);
        if (r >= 0)
                r = snapshot_row(f->snapshot, &f->row, err);
        if (r >= 0)
                r = prepare_memory(f, args->disk_only, f->op, err);
        if (r < 0)
                return r;
        if (!args->snapshot_name)
                f->forks->pause_us = f->row.pause_us;
        op_progress(f->op, "starting %zu fork%s", f->forks->n, f->forks->n == 1 ? "" : "s");
        make_forks(f);
        return undo_if_cancelled(f, err);
}

int ws_fork(struct core *core, const char *ref, const struct ws_fork_args *args, const char *owner, const struct op *op,
            struct ws_forks *ret, struct error *err) {
        _cleanup_ws_forks_ struct ws_forks forks = {0};

        if (args->count < 1 || args->count > WS_FORKS_MAX)
                return error_set(err, ERROR_INVALID_ARGUMENT, "count %u: 1 to %u forks can be made at once",
                                 args->count, WS_FORKS_MAX);
        int r = name_forks(&forks, args, err);
        if (r >= 0)
                r = check_names(&forks, err);
        if (r < 0)
                return r;
        foreground_begin(core);
        {
                _cleanup_(forking_clear) struct forking f = {
                        .core = core, .owner = owner, .op = op, .quiet = *op, .forks = &forks};
                f.quiet.progress = NULL;
                r = fork_all(&f, ref, args, err);
        }
        foreground_end(core);
        snapshots_sweep(core); /* of a live fork's snapshot: what its machines do not need */
        if (r < 0)
                return r;
        *ret = forks;
        forks = (struct ws_forks){0};
        return 0;
}
