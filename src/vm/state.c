/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/state.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/io.h"
#include "base/json.h"
#include "base/thread.h"
#include "base/waiter.h"
#include "vm/state_private.h"

/* Bytes a second that a migration may write: no limit. Its default is made for networks. */
#define BANDWIDTH (1000ll * 1000 * 1000 * 1000)
#define FD_NAME "agentiso-state"
#define HALT_LOOK_MS 1
#define SETTLE_MS 100 /* for the guest's agent to notice that nobody is connected any more */

/* --- one at a time, and the pause --- */

int vm_saving_begin(struct vm *vm, const struct op *op, struct qmp **ret, struct error *err) {
        if (vm_stands_still(vm, op))
                return vm_fail_disk_full(err);
        {
                LOCK(&vm->lock);

                if (vm->exited) {
                        error_set(err, ERROR_NOT_RUNNING, "The VM %s has ended", vm->id);
                        return -ESRCH;
                }
                if (vm->saving)
                        return error_set(err, ERROR_CONFLICT, "The state of the VM %s is being saved already", vm->id);
                vm->saving = true;
        }
        int r = vm_qmp(vm, op, ret, err);
        if (r < 0)
                vm_saving_end(vm);
        return r;
}

void vm_saving_end(struct vm *vm) {
        LOCK(&vm->lock);

        vm->saving = false;
}

int vm_pause(struct vm *vm, struct qmp *qmp, const struct op *op, int64_t *ret_since_ns, struct error *err) {
        *ret_since_ns = monotonic_ns();
        int r = qmp_call(qmp, "stop", NULL, op, NULL, err);
        if (r < 0) /* it may stop later, when nobody waits for it any more */
                (void) vm_go_on(vm, qmp, err);
        return r;
}

int vm_go_on(struct vm *vm, struct qmp *qmp, struct error *err) {
        const struct op op = op_timeout(VM_GO_ON_MS);
        _cleanup_error_ struct error why = ERROR_INIT;

        int r = qmp_call(qmp, "cont", NULL, &op, NULL, &why);
        if (r >= 0)
                return 0;
        if (r == -ENOTCONN) {
                /* Its end is known a moment after the connection's. */
                (void) vm_wait_exit(vm, &op);
                if (vm_has_exited(vm)) {
                        error_set(err, ERROR_NOT_RUNNING, "The VM %s has ended while its state was saved", vm->id);
                        return -ESRCH;
                }
        }
        if (error_is_set(err))
                error_prefix(err, "The machine may stand still, because QEMU does not let it go on (%s)",
                             error_message(&why));
        else
                error_set(err, ERROR_INTERNAL, "The machine may stand still, because QEMU does not let it go on: %s",
                          error_message(&why));
        error_hint(err, "Stop and start the workspace.");
        return r;
}

/* --- files --- */

int vm_state_file(const char *path, int flags, struct error *err) {
        int fd = open(path, flags | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

        return fd < 0 ? error_set_errno(err, errno, "Cannot make the file %s", path) : fd;
}

int vm_state_file_done(int fd, const char *path, bool durable, uint64_t *ret_bytes, struct error *err) {
        struct stat st;

        if ((durable && fsync(fd) < 0) || fstat(fd, &st) < 0)
                return error_set_errno(err, errno, "Cannot write the file %s", path);
        int r = durable ? fsync_folder_of(path) : 0;
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the file %s last", path);
        *ret_bytes = (uint64_t) st.st_size;
        return 0;
}

/* --- migration --- */

/* ignore_shared: memory that is shared is left out. Events tell how it goes. */
static int set_capabilities(struct qmp *qmp, bool ignore_shared, const struct op *op, struct error *err) {
        _cleanup_json_ json_t *arguments =
                json_pack("{s:[{s:s, s:b}, {s:s, s:b}]}", "capabilities", "capability", "events", "state", true,
                          "capability", "x-ignore-shared", "state", ignore_shared);

        return qmp_call(qmp, "migrate-set-capabilities", arguments, op, NULL, err);
}

static int hand_over(struct qmp *qmp, int fd, const struct op *op, struct error *err) {
        _cleanup_json_ json_t *arguments = json_pack("{s:s}", "fdname", FD_NAME);

        return qmp_call_with_fd(qmp, "getfd", arguments, fd, op, NULL, err);
}

static int begin(struct vm *vm, struct qmp *qmp, const char *command, const struct op *op, struct error *err) {
        _cleanup_json_ json_t *arguments = json_pack("{s:s}", "uri", "fd:" FD_NAME);

        {
                LOCK(&vm->lock);

                vm->migration = VM_MIGRATION_UNDER_WAY;
        }
        return qmp_call(qmp, command, arguments, op, NULL, err);
}

/* How it ended. -ENOTCONN: QEMU closed the connection, or ended. */
static int wait_migration(struct vm *vm, struct qmp *qmp, const struct op *op, enum vm_migration *ret) {
        struct cond_waiter w;
        int r = 0;

        cond_waiter_begin(&w, &vm->lock, &vm->changed, op);
        pthread_mutex_lock(&vm->lock);
        while (r >= 0 && vm->migration == VM_MIGRATION_UNDER_WAY)
                r = vm->exited || qmp_is_lost(qmp) ? -ENOTCONN : cond_waiter_sleep(&w);
        *ret = vm->migration;
        pthread_mutex_unlock(&vm->lock);
        cond_waiter_end(&w);
        return r;
}

/* What QEMU says of a migration that failed. */
static int migration_failed(struct qmp *qmp, const char *doing, struct error *err) {
        const struct op op = op_timeout(VM_GO_ON_MS);
        _cleanup_json_ json_t *state = NULL;
        const char *why = NULL;

        if (qmp_call(qmp, "query-migrate", NULL, &op, &state, NULL) >= 0)
                (void) json_opt_str(state, "error-desc", &why, NULL);
        return error_set(err, ERROR_INTERNAL, "QEMU failed while %s: %s", doing, why ? why : "it does not say why");
}

static int migration_wait_error(int r, const char *doing, struct error *err) {
        if (r == -ETIMEDOUT)
                return error_set(err, ERROR_TIMEOUT, "Time ran out while %s", doing);
        if (r == -ECANCELED)
                return error_set(err, ERROR_CANCELLED, "Cancelled while %s", doing);
        if (r == -ENOTCONN) {
                error_set(err, ERROR_NOT_RUNNING, "QEMU ended while %s", doing);
                return r;
        }
        return error_set_errno(err, r, "Failed while %s", doing);
}

/*
 * QEMU says that a migration is completed a moment before its thread halts the machine for good (postmigrate). A `cont`
 * in between would be undone by that, and there is no event for it: so this asks until it is so. A failed or cancelled
 * migration does not touch a machine that runs.
 */
static void wait_halted(struct qmp *qmp) {
        const struct op op = op_timeout(VM_GO_ON_MS);
        const char *status = NULL;

        for (;;) {
                _cleanup_json_ json_t *state = NULL;
                const struct op moment = op_sub(&op, HALT_LOOK_MS);

                if (qmp_call(qmp, "query-status", NULL, &op, &state, NULL) < 0 ||
                    json_get_str(state, "status", &status, NULL) < 0 || str_eq(status, "postmigrate"))
                        return;
                (void) wait_fd(-1, 0, &moment);
        }
}

/* Ends a migration under way, so that the machine can go on. */
static void cancel_migration(struct vm *vm, struct qmp *qmp) {
        const struct op op = op_timeout(VM_GO_ON_MS);
        enum vm_migration how;

        if (qmp_call(qmp, "migrate_cancel", NULL, &op, NULL, NULL) >= 0 && wait_migration(vm, qmp, &op, &how) >= 0 &&
            how == VM_MIGRATION_COMPLETED)
                wait_halted(qmp); /* it was too late */
}

int vm_migrate_prepare(struct qmp *qmp, bool ignore_shared, int fd, const struct op *op, struct error *err) {
        _cleanup_json_ json_t *parameters = json_pack("{s:I}", "max-bandwidth", (json_int_t) BANDWIDTH);

        int r = set_capabilities(qmp, ignore_shared, op, err);
        if (r >= 0)
                r = qmp_call(qmp, "migrate-set-parameters", parameters, op, NULL, err);
        return r < 0 ? r : hand_over(qmp, fd, op, err);
}

int vm_migrate(struct vm *vm, struct qmp *qmp, const struct op *op, struct error *err) {
        static const char doing[] = "saving the state of the VM";
        enum vm_migration how = VM_MIGRATION_UNDER_WAY;

        int r = begin(vm, qmp, "migrate", op, err);
        if (r < 0) {
                /* Nobody has heard whether it was begun. */
                if (r == -ETIMEDOUT || r == -ECANCELED)
                        cancel_migration(vm, qmp);
                return r;
        }
        r = wait_migration(vm, qmp, op, &how);
        if (r < 0) {
                cancel_migration(vm, qmp);
                return migration_wait_error(r, doing, err);
        }
        if (how != VM_MIGRATION_COMPLETED)
                return migration_failed(qmp, doing, err);
        wait_halted(qmp);
        return 0;
}

/* Before the devices, which look into the memory already when they are loaded. */
static int lay_pages(struct vm *vm, const struct vm_spec *spec, const struct op *op, struct error *err) {
        vm->pages_error = pages_apply(vm->proc.pid, spec->memory_path, vm->memory_bytes, spec->pages_path, op, err);
        return vm->pages_error;
}

int vm_load_state(struct vm *vm, const struct vm_spec *spec, const struct op *op, struct error *err) {
        static const char doing[] = "loading the saved state";
        enum vm_migration how = VM_MIGRATION_UNDER_WAY;
        _cleanup_qmp_ struct qmp *qmp = NULL;

        _cleanup_close_ int fd = open(spec->state_path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return error_set_errno(err, errno, "Cannot read the saved state %s", spec->state_path);
        int r = vm_qmp(vm, op, &qmp, err);
        if (r >= 0 && spec->pages_path)
                r = lay_pages(vm, spec, op, err);
        if (r >= 0)
                r = set_capabilities(qmp, spec->state == VM_STATE_TEMPLATE, op, err);
        if (r >= 0)
                r = hand_over(qmp, fd, op, err);
        if (r >= 0)
                r = begin(vm, qmp, "migrate-incoming", op, err);
        if (r < 0)
                return r;
        r = wait_migration(vm, qmp, op, &how);
        if (r < 0)
                return migration_wait_error(r, doing, err);
        if (how != VM_MIGRATION_COMPLETED)
                return migration_failed(qmp, doing, err);
        return qmp_call(qmp, "cont", NULL, op, NULL, err);
}

/* --- the template --- */

/* Its memory lasts when the file does: the mapping and the file have the same pages. */
static int sync_memory(const struct vm *vm, struct error *err) {
        _cleanup_close_ int fd = open(vm->memory_path, O_RDONLY | O_CLOEXEC);
        int r = fd < 0 || fsync(fd) < 0 ? -errno : fsync_folder_of(vm->memory_path);

        return r < 0 ? error_set_errno(err, r, "Cannot write the memory file %s", vm->memory_path) : 0;
}

/*
 * Ends the connection to the agent and gives it time to be done with that. Each child would else have to do it, before
 * it hears its own host; nothing tells when it is done, and a child of a template that was saved too early is as good,
 * only slower to answer (measured: 300 ms instead of 80).
 */
static int leave_agent(struct vm *vm, const struct op *op, struct error *err) {
        const struct op moment = op_sub(op, SETTLE_MS);
        struct agent *agent;

        {
                LOCK(&vm->lock);

                agent = TAKE_PTR(vm->agent);
        }
        agent_unref(agent);
        (void) wait_fd(-1, 0, &moment);
        int r = op_check(op);
        return r < 0 ? migration_wait_error(r, "preparing a template", err) : 0;
}

static int save_template(struct vm *vm, struct qmp *qmp, int fd, const char *path, const struct op *op,
                         struct error *err) {
        uint64_t bytes;
        int64_t since;

        int r = vm_migrate_prepare(qmp, true, fd, op, err);
        if (r >= 0)
                r = leave_agent(vm, op, err);
        if (r >= 0)
                r = vm_pause(vm, qmp, op, &since, err);
        if (r < 0)
                return r;
        r = vm_migrate(vm, qmp, op, err);
        if (r >= 0)
                r = vm_state_file_done(fd, path, true, &bytes, err);
        if (r >= 0)
                r = sync_memory(vm, err);
        if (r < 0)
                (void) vm_go_on(vm, qmp, err);
        return r;
}

int vm_save_template(struct vm *vm, const char *state_path, const struct op *op, struct error *err) {
        _cleanup_qmp_ struct qmp *qmp = NULL;

        if (vm->memory != VM_MEMORY_SHARED)
                return error_set(err, ERROR_INVALID_ARGUMENT, "The memory of the VM %s is no file of its own", vm->id);
        int r = vm_saving_begin(vm, op, &qmp, err);
        if (r < 0)
                return r;
        _cleanup_close_ int fd = vm_state_file(state_path, O_WRONLY, err);
        r = fd;
        if (fd >= 0) {
                r = save_template(vm, qmp, fd, state_path, op, err);
                if (r < 0)
                        unlink(state_path);
        }
        vm_saving_end(vm);
        return r < 0 ? r : 0;
}
