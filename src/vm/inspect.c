/* SPDX-License-Identifier: Apache-2.0 */
/* What can be learnt of a VM from outside: its logs, its process. */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "vm/vm_private.h"

#define SMAPS_ROLLUP_MAX 16384u

int vm_console_tail(const char *dir, unsigned max_lines, struct buf *out) {
        _cleanup_free_ char *path = path_join(dir, CONSOLE_LOG), *older = path_join(dir, CONSOLE_LOG_OLD);

        return path && older ? text_tail(path, older, CONSOLE_KEEP, max_lines, out) : -ENOMEM;
}

int vm_stderr_tail(const char *dir, unsigned max_lines, struct buf *out) {
        _cleanup_free_ char *path = path_join(dir, VM_STDERR_LOG), *older = path_join(dir, VM_STDERR_LOG_OLD);

        return path && older ? text_tail(path, older, VM_STDERR_KEEP, max_lines, out) : -ENOMEM;
}

int vm_find(const char *dir, struct proc_id *ret) {
        _cleanup_free_ char *pidfile = path_join(dir, VM_PIDFILE);

        return pidfile ? proc_id_find("-pidfile", pidfile, ret) : -ENOMEM;
}

bool vm_is_alive(struct vm *vm, const struct op *op) {
        const struct op moment = op_sub(op, VM_QUIT_MS);

        if (vm->qmp && qmp_call(vm->qmp, "query-status", NULL, &moment, NULL, NULL) < 0 && qmp_is_lost(vm->qmp))
                (void) vm_wait_exit(vm, &moment);
        return !vm_has_exited(vm);
}

/* Adds up the lines "<name>: <number> kB" whose name begins with this word. */
static uint64_t sum_lines(const char *text, const char *prefix) {
        uint64_t sum = 0;

        for (const char *line = text; line; line = strchr(line, '\n')) {
                line += *line == '\n';
                const char *colon = strchr(line, ':');

                if (colon && str_starts_with(line, prefix))
                        sum += strtoull(colon + 1, NULL, 10) * 1024u;
        }
        return sum;
}

int vm_memory(const struct proc_id *proc, uint64_t *ret_private, uint64_t *ret_shared) {
        char path[64];
        _cleanup_free_ char *text = NULL;

        _cleanup_close_ int fd = proc_id_open(proc);
        if (fd < 0)
                return fd;
        snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int) proc->pid);
        int r = file_read_all(path, SMAPS_ROLLUP_MAX, &text, NULL);
        if (r < 0)
                return r;
        /* Still the same process: its pid cannot have been given away while it runs. */
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 0) != 0)
                return -ESRCH;
        *ret_private = sum_lines(text, "Private_");
        *ret_shared = sum_lines(text, "Shared_");
        return 0;
}
