/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "workspace/core-internal.h"

const char *ws_start_kind_name(enum ws_start_kind k) {
        static const char *const names[] = {
                [WS_START_BOOT] = "boot",
                [WS_START_TEMPLATE] = "template",
                [WS_START_POOL] = "pool",
                [WS_START_SNAPSHOT] = "snapshot",
        };
        return (unsigned) k < ARRAY_SIZE(names) ? names[k] : "unknown";
}

static bool is_over(const struct op *op, int r) {
        return r == -ECANCELED || op_check(op) < 0;
}

/* From the template that fits any disk. -ENOENT: there is none, or it did not work and a boot is worth a try. */
static int bring_up_from_template(struct workspace *ws, const struct machine_args *args, const struct op *op,
                                  struct machine *ret, struct error *err) {
        _cleanup_ws_row_ struct ws_row row = {0};
        _cleanup_snapshot_ struct snapshot *template = NULL;
        _cleanup_start_files_ struct start_files files = {0};
        _cleanup_error_ struct error why = ERROR_INIT;
        const struct platform *platform = NULL;

        int r = workspace_row(ws, &row, err);
        if (r >= 0)
                r = core_platform(ws->core, op, &platform, err);
        if (r < 0)
                return r;
        template = template_get(ws->core, platform, NULL, row.vcpus, row.memory_mb, row.disk_gb);
        if (!template)
                return -ENOENT;
        r = snapshot_files(template, true, op, &files, &why);
        if (r >= 0) {
                struct machine_args with = *args;
                with.from = &files;
                r = machine_start(ws, &with, op, ret, &why);
        }
        if (r >= 0) {
                template_worked(template);
                if (!args->record)
                        ret->pin = TAKE_PTR(template);
                return 0;
        }
        if (!is_over(op, r)) {
                template_failed(template, &why);
                return -ENOENT;
        }
        error_move(err, &why);
        return r;
}

int workspace_bring_up(struct workspace *ws, const struct machine_args *args, const struct op *op, struct machine *ret,
                       enum ws_start_kind *ret_kind, struct error *err) {
        int r = bring_up_from_template(ws, args, op, ret, err);
        *ret_kind = r == -ENOENT ? WS_START_BOOT : WS_START_TEMPLATE;
        return r == -ENOENT ? machine_start(ws, args, op, ret, err) : r;
}

/* From stopped to running; on failure back to stopped. */
static int start(struct workspace *ws, const struct op *op, enum ws_start_kind *ret_kind, struct error *err) {
        const struct machine_args args = {.record = true};
        struct machine machine;

        int r = workspace_settle_disk(ws, op, err);
        if (r >= 0)
                r = workspace_move(ws, WS_STARTING, NULL, err);
        if (r < 0)
                return r;
        r = workspace_bring_up(ws, &args, op, &machine, ret_kind, err);
        if (r >= 0) {
                workspace_set_vm(ws, machine.vm);
                r = op_check(op) < 0 ? error_set_errno(err, op_check(op), "The start was given up") : 0;
        }
        if (r >= 0)
                r = workspace_move(ws, WS_RUNNING, NULL, err);
        if (r >= 0)
                return 0;

        _cleanup_error_ struct error undo = ERROR_INIT;
        workspace_kill_vm(ws);
        if (workspace_move(ws, WS_STOPPED, r == -ECANCELED ? NULL : error_message(err), &undo) < 0)
                log_warn("A failed start could not be recorded", "workspace", ws->id, "error", error_message(&undo));
        return r;
}

int ws_start(struct core *core, const char *ref, const struct op *op, struct ws_view *ret,
             struct ws_started *ret_started, struct error *err) {
        int64_t begin = monotonic_ns();
        _cleanup_claim_ struct workspace *ws = NULL;

        int r = workspace_claim_settled(core, ref, op, &ws, err);
        if (r < 0)
                return r;
        bool already = workspace_state(ws) == WS_RUNNING;
        if (already && !vm_is_alive(ws->vm, op)) {
                r = workspace_settle(ws, err);
                if (r < 0)
                        return r;
                already = false;
        }
        enum ws_start_kind kind = WS_START_BOOT;
        if (!already) {
                foreground_begin(core);
                r = start(ws, op, &kind, err);
                foreground_end(core);
        }
        if (r >= 0)
                r = workspace_view(ws, NULL, ret, err);
        if (r < 0)
                return r;
        *ret_started = (struct ws_started){
                .kind = kind,
                .boot_time_ms = already ? 0 : (monotonic_ns() - begin) / NSEC_PER_MSEC,
                .already = already,
        };
        return 0;
}

/* From running to stopped. Once begun it goes to its end, gently also for a caller who has left: it takes a few seconds
 * at most (vm_stop()), and a kill would lose what the guest has not written yet. */
static int stop(struct workspace *ws, const struct op *op, struct error *err) {
        _cleanup_error_ struct error gentle = ERROR_INIT;
        struct op whole = *op;

        whole.cancel = NULL;

        int r = workspace_move(ws, WS_STOPPING, NULL, err);
        if (r < 0)
                return r;
        op_progress(op, "stopping");
        if (vm_stop(ws->vm, &whole, &gentle) < 0)
                log_warn("A virtual machine did not stop by itself", "workspace", ws->id, "error",
                         error_message(&gentle));
        workspace_kill_vm(ws);
        r = workspace_move(ws, WS_STOPPED, NULL, err);
        snapshots_sweep(ws->core); /* of memory that it shared */
        return r;
}

int ws_stop(struct core *core, const char *ref, const struct op *op, struct ws_view *ret, bool *ret_already,
            struct error *err) {
        _cleanup_claim_ struct workspace *ws = NULL;

        int r = workspace_claim_settled(core, ref, op, &ws, err);
        if (r < 0)
                return r;
        bool already = workspace_state(ws) == WS_STOPPED;
        if (!already)
                r = stop(ws, op, err);
        if (r >= 0)
                r = workspace_view(ws, NULL, ret, err);
        if (r < 0)
                return r;
        *ret_already = already;
        return 0;
}
