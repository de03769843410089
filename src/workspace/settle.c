/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a VM. vm/ says on its own thread that QEMU ended; that thread may neither wait nor let go of the VM, so it
 * only wakes the reaper, which claims the workspace and records the end. An operation that comes first does the same
 * by workspace_settle(): whoever claims a workspace sees it as it really is.
 */
#include "base/log.h"
#include "workspace/core-internal.h"

void end_process(const struct proc_id *proc) {
        int r = proc_id_kill(proc, QEMU_END_MS);
        if (r < 0)
                log_warn("A QEMU process does not end", "pid", LOG_NUM(proc->pid), "errno", LOG_NUM(-r));
}

void workspace_kill_vm(struct workspace *ws) {
        struct vm *vm;
        struct proc_id proc;
        bool has_proc;
        {
                LOCK(&ws->core->lock);
                vm = TAKE_PTR(ws->vm);
                has_proc = ws->row.has_proc;
                proc = ws->row.proc;
        }
        if (vm) {
                vm_kill(vm);
                vm_unref(vm);
        } else if (has_proc)
                end_process(&proc); /* no two QEMUs on one disk, ever */
        workspace_cut_forwards(ws);
}

/* The last lines of what QEMU said, or else the guest on its console; short enough to be kept in the row. */
static void add_last_words(struct workspace *ws, struct buf *reason) {
        _cleanup_buf_ struct buf said = BUF_INIT(TAIL_READ_MAX), console = BUF_INIT(TAIL_READ_MAX);

        (void) vm_stderr_tail(workspace_vm_dir(ws), CONSOLE_TAIL_LINES, &said);
        (void) vm_console_tail(workspace_vm_dir(ws), CONSOLE_TAIL_LINES, &console);
        const struct buf *words = said.len > 0 ? &said : &console;
        if (words->len == 0)
                return;
        size_t from = words->len > LAST_WORDS_MAX ? words->len - LAST_WORDS_MAX : 0;
        while (from < words->len && ((unsigned char) words->data[from] & 0xc0) == 0x80)
                from++; /* not in the middle of a character */
        (void) buf_printf(reason, "\nLast lines of %s:\n%s", words == &said ? "QEMU's standard error" : "the console",
                          words->data + from);
}

/* The VM of a running workspace is gone, and nobody asked for that. What cannot be told for want of memory is left
 * out. */
static int settle_crashed(struct workspace *ws, struct error *err) {
        _cleanup_buf_ struct buf reason = BUF_INIT(2 * LAST_WORDS_MAX);

        (void) buf_append_str(&reason, "QEMU ended by itself");
        if (ws->vm) {
                (void) buf_append_str(&reason, ": ");
                (void) vm_describe_exit(ws->vm, &reason);
        }
        add_last_words(ws, &reason);
        workspace_kill_vm(ws);
        int r = workspace_move(ws, WS_STOPPED, reason.data ? reason.data : "QEMU ended by itself", err);
        if (r >= 0)
                log_warn("A virtual machine ended by itself", "workspace", ws->id);
        return r;
}

static int settle(struct workspace *ws, struct error *err) {
        switch (workspace_state(ws)) {
        case WS_STOPPED:
                return 0;
        case WS_RUNNING:
                return ws->vm && !vm_has_exited(ws->vm) ? 0 : settle_crashed(ws, err);
        case WS_STARTING:
        case WS_STOPPING:
                workspace_kill_vm(ws);
                return workspace_move(ws, WS_STOPPED, NULL, err);
        default: {
                int r = workspace_erase(ws, err);
                return r < 0 ? r : -ENOENT;
        }
        }
}

int workspace_settle(struct workspace *ws, struct error *err) {
        const bool ran = workspace_state(ws) != WS_STOPPED;
        int r = settle(ws, err);
        if (r >= 0 && ran && workspace_state(ws) == WS_STOPPED)
                snapshots_sweep(ws->core); /* of memory that it shared */
        /* One of the pool that does not run is of no use to anybody. */
        if (r < 0 || !ws->row.pooled || workspace_state(ws) != WS_STOPPED)
                return r;
        r = workspace_erase(ws, err);
        return r < 0 ? r : -ENOENT;
}

void workspace_vm_exited(void *arg) {
        struct workspace *ws = arg;
        LOCK(&ws->core->lock);
        ws->core->reap_wanted = true;
        pthread_cond_signal(&ws->core->reap);
}

/* Claims a workspace whose VM ended, if nobody is at it: then whoever is sees to it, or wakes us again. */
static struct workspace *claim_crashed_locked(struct core *core) {
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (!ws->busy && ws->vm && vm_has_exited(ws->vm)) {
                        ws->busy = true;
                        ws->refs++;
                        return ws;
                }
        return NULL;
}

void *reaper_main(void *arg) {
        struct core *core = arg;

        for (;;) {
                _cleanup_claim_ struct workspace *ws = NULL;
                _cleanup_error_ struct error err = ERROR_INIT;
                {
                        LOCK(&core->lock);
                        while (!core->reap_wanted && !core->closing)
                                pthread_cond_wait(&core->reap, &core->lock);
                        if (core->closing)
                                return NULL;
                        ws = claim_crashed_locked(core);
                        core->reap_wanted = ws != NULL; /* there may be another */
                }
                int r = ws ? workspace_settle(ws, &err) : 0;
                if (r < 0 && r != -ENOENT)
                        log_warn("The end of a virtual machine could not be recorded", "workspace", ws->id, "error",
                                 error_message(&err));
        }
}
