/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "workspace/core-internal.h"

const char *ws_start_kind_name(enum ws_start_kind k) {
        static const char *const names[] = {[WS_START_BOOT] = "boot"};
        return (unsigned) k < ARRAY_SIZE(names) ? names[k] : "unknown";
}

/* From stopped to running; on failure back to stopped. */
static int start(struct workspace *ws, const struct op *op, struct error *err) {
        int r = workspace_move(ws, WS_STARTING, NULL, err);
        if (r < 0)
                return r;
        r = workspace_boot(ws, op, err);
        if (r >= 0)
                r = op_check(op) < 0 ? error_set_errno(err, op_check(op), "The start was given up") : 0;
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
        if (!already)
                r = start(ws, op, err);
        if (r >= 0)
                r = workspace_view(ws, NULL, ret, err);
        if (r < 0)
                return r;
        *ret_started = (struct ws_started){
                .kind = WS_START_BOOT,
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
        return workspace_move(ws, WS_STOPPED, NULL, err);
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
