/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/vm.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/waiter.h"
#include "vm/memory.h"
#include "vm/vm_private.h"

/* After SIGKILL: how long the end is waited for. Longer than that only takes a process that hangs in the kernel. */
#define KILL_WAIT_MS 10000
#define CONNECT_MS 1000 /* to a socket whose owner runs */

/* --- object --- */

/* The words of QEMU's MigrationStatus (qapi/migration.json) that end one. */
static enum vm_migration migration_of(const char *status) {
        if (str_eq(status, "completed"))
                return VM_MIGRATION_COMPLETED;
        if (str_eq(status, "failed"))
                return VM_MIGRATION_FAILED;
        return str_eq(status, "cancelled") ? VM_MIGRATION_CANCELLED : VM_MIGRATION_UNDER_WAY;
}

/* On the QMP thread. */
static void qmp_lost(void *arg) {
        struct vm *vm = arg;
        LOCK(&vm->lock);

        pthread_cond_broadcast(&vm->changed);
}

/* On the QMP thread. */
static void qmp_event(void *arg, const char *name, const json_t *data) {
        struct vm *vm = arg;
        const char *reason = NULL;

        (void) json_get_str(data, "reason", &reason, NULL);
        if (str_eq(name, "MIGRATION")) {
                const char *status = NULL;

                (void) json_get_str(data, "status", &status, NULL);
                LOCK(&vm->lock);
                vm->migration = migration_of(status);
                pthread_cond_broadcast(&vm->changed);
        } else if (str_eq(name, "SHUTDOWN") && (str_eq(reason, "guest-reset") || str_eq(reason, "guest-panic"))) {
                LOCK(&vm->lock);
                vm->guest_reset = true;
        } else if (str_eq(name, "NETDEV_STREAM_DISCONNECTED")) {
                log_warn("A VM goes on without a network: what its card was connected to has ended", "vm", vm->id);
        } else if (str_eq(name, "BLOCK_IO_ERROR")) {
                /* Its default is to pause for want of room, and to tell the guest of any other error. */
                const char *action = NULL;

                (void) json_get_str(data, "action", &action, NULL);
                if (str_eq(action, "stop"))
                        vm_note_disk_full(vm);
                else
                        log_warn("The disk of a VM gave an I/O error", "vm", vm->id, "reason", reason);
        }
}

static void secret_free(char *secret) {
        if (secret)
                explicit_bzero(secret, strlen(secret));
        free(secret);
}

static void vm_free(struct vm *vm) {
        vm_watch_end(vm);
        agent_unref(vm->agent);
        qmp_unref(vm->qmp); /* joins the thread that calls qmp_event() and qmp_lost() */
        capped_log_close(&vm->console);
        capped_log_close(&vm->said);
        close_fd(vm->console_fd);
        close_fd(vm->said_fd);
        close_fd(vm->wake_fd);
        close_fd(vm->pidfd);
        cancel_unref(vm->let_go);
        pthread_mutex_destroy(&vm->lock);
        pthread_cond_destroy(&vm->changed);
        free(vm->id);
        free(vm->dir);
        free(vm->disk_path);
        free(vm->memory_path);
        secret_free(vm->session);
        free(vm);
}

static struct vm *vm_new(const struct vm_spec *spec, const struct vm_callbacks *cb) {
        struct vm *vm = malloc(sizeof(*vm));
        if (!vm)
                return NULL;
        *vm = (struct vm){
                .refs = 1,
                .id = strdup(spec->id),
                .dir = strdup(spec->dir),
                .disk_path = spec->disk_path ? strdup(spec->disk_path) : NULL,
                .memory = spec->memory,
                .memory_path = spec->memory_path ? strdup(spec->memory_path) : NULL,
                .memory_bytes = (uint64_t) spec->memory_mb << 20,
                .session = spec->session ? strdup(spec->session) : NULL,
                .pidfd = -1,
                .cb = cb ? *cb : (struct vm_callbacks){0},
                .console = CAPPED_LOG_INIT,
                .said = CAPPED_LOG_INIT,
                .console_fd = -1,
                .said_fd = -1,
                .let_go = cancel_new(),
                .wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
                .exit_code = -1,
        };
        pthread_mutex_init(&vm->lock, NULL);
        cond_init(&vm->changed);
        if (!vm->id || !vm->dir || (spec->disk_path && !vm->disk_path) || (spec->memory_path && !vm->memory_path) ||
            (spec->session && !vm->session) || !vm->let_go || vm->wake_fd < 0) {
                vm_free(vm);
                return NULL;
        }
        return vm;
}

struct vm *vm_ref(struct vm *vm) {
        __atomic_add_fetch(&vm->refs, 1, __ATOMIC_RELAXED);
        return vm;
}

void vm_unref(struct vm *vm) {
        if (vm && __atomic_sub_fetch(&vm->refs, 1, __ATOMIC_ACQ_REL) == 0)
                vm_free(vm);
}

struct proc_id vm_proc(struct vm *vm) {
        return vm->proc;
}

bool vm_has_exited(struct vm *vm) {
        LOCK(&vm->lock);

        return vm->exited;
}

int vm_describe_exit(struct vm *vm, struct buf *out) {
        LOCK(&vm->lock);

        if (!vm->exited)
                return 0;
        if (vm->exit_signal != 0)
                return buf_printf(out, "QEMU was killed by signal %d (%s)", vm->exit_signal,
                                  sigdescr_np(vm->exit_signal) ? sigdescr_np(vm->exit_signal) : "unknown");
        if (vm->exit_code > 0)
                return buf_printf(out, "QEMU ended with exit status %d", vm->exit_code);
        if (vm->guest_reset)
                return buf_append_str(out, "the guest reset its machine, as a kernel does that panics");
        return buf_append_str(out, vm->exit_code == 0 ? "the machine was powered off"
                                                      : "nobody was there to take its exit status");
}

/* --- start --- */

/* The listening ends of a VM's sockets, for QEMU, and our ends, which are connected before it runs. */
struct sockets {
        int listen[3], ours[3];
};
enum { SOCK_QMP, SOCK_AGENT, SOCK_CONSOLE };
static const char *const socket_names[] = {VM_QMP_SOCKET, VM_AGENT_SOCKET, VM_CONSOLE_SOCKET};
static const int socket_fds[] = {VM_FD_QMP, VM_FD_AGENT, VM_FD_CONSOLE};

static void sockets_close(struct sockets *s) {
        for (size_t i = 0; i < ARRAY_SIZE(socket_names); i++) {
                close_fd(s->listen[i]);
                close_fd(s->ours[i]);
        }
}

static int sockets_make(struct sockets *s, const char *dir, const struct op *op, struct error *err) {
        for (size_t i = 0; i < ARRAY_SIZE(socket_names); i++) {
                _cleanup_free_ char *path = path_join(dir, socket_names[i]);
                int r = path ? 0 : -ENOMEM;

                if (r >= 0)
                        r = s->listen[i] = unix_listen(path, 1);
                if (r >= 0)
                        r = s->ours[i] = unix_connect(path, op);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot make the socket %s of the VM", socket_names[i]);
        }
        return 0;
}

static int connect_to(const char *dir, const char *name, const struct op *op) {
        _cleanup_free_ char *path = path_join(dir, name);
        const struct op quick = op_sub(op, CONNECT_MS);

        return path ? unix_connect(path, &quick) : -ENOMEM;
}

int vm_open_said(const char *dir) {
        _cleanup_free_ char *path = path_join(dir, VM_STDERR_FIFO);
        if (!path)
                return -ENOMEM;
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
        return fd < 0 ? -errno : fd;
}

/*
 * A guest can make QEMU complain as fast as it likes, also while no daemon runs. So QEMU's standard error is not a file
 * but a FIFO, from which the watcher fills a capped log. QEMU's end does not block, so that what finds no room is
 * dropped, and is open for reading too, so that writing never fails for want of a reader. The end for QEMU.
 */
static int make_said(struct vm *vm) {
        static const char *const stale[] = {VM_STDERR_FIFO, VM_STDERR_LOG, VM_STDERR_LOG_OLD};
        _cleanup_free_ char *path = path_join(vm->dir, VM_STDERR_FIFO);

        for (size_t i = 0; i < ARRAY_SIZE(stale); i++) {
                _cleanup_free_ char *old = path_join(vm->dir, stale[i]);
                if (!old)
                        return -ENOMEM;
                unlink(old);
        }
        if (!path)
                return -ENOMEM;
        if (mkfifo(path, 0600) < 0)
                return -errno;
        vm->said_fd = vm_open_said(vm->dir);
        if (vm->said_fd < 0)
                return vm->said_fd;
        int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
        return fd < 0 ? -errno : fd;
}

static int spawn_qemu(const struct platform *p, const struct vm_spec *spec, const struct sockets *s, int said,
                      pid_t *ret, struct error *err) {
        /* QEMU needs nothing of our environment; PATH only keeps libraries that look for it quiet. */
        static char path[] = "PATH=/usr/bin:/bin";
        static char *const env[] = {path, NULL};
        _cleanup_strv_ struct strv argv = {0};

        int r = vm_argv(p, spec, &argv);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the arguments of QEMU for %s", spec->id);
        struct fd_map fds[3 + ARRAY_SIZE(socket_fds)] = {{.from = said, .to = 1}, {.from = said, .to = 2}};
        size_t n = 2;
        for (size_t i = 0; i < ARRAY_SIZE(socket_fds); i++)
                fds[n++] = (struct fd_map){.from = s->listen[i], .to = socket_fds[i]};
        if (spec->net == VM_NET_TAP || spec->net == VM_NET_STREAM)
                fds[n++] = (struct fd_map){.from = spec->net_fd, .to = VM_FD_NET};
        const struct spawn sp = {
                .argv = argv.v,
                .env = env,
                .fds = fds,
                .n_fds = n,
                .new_session = true,
                .workdir = "/",
        };
        return process_spawn(&sp, ret, err);
}

static int open_logs(struct vm *vm, bool fresh) {
        int r = capped_log_open(&vm->console, vm->dir, CONSOLE_LOG, CONSOLE_LOG_OLD, CONSOLE_KEEP, fresh);

        return r < 0 ? r : capped_log_open(&vm->said, vm->dir, VM_STDERR_LOG, VM_STDERR_LOG_OLD, VM_STDERR_KEEP, false);
}

/* Starts QEMU and its watcher. After a failure the caller cleans up. */
static int start(struct vm *vm, const struct platform *p, const struct vm_spec *spec, struct sockets *s,
                 struct error *err) {
        pid_t pid = -1;

        _cleanup_close_ int said = make_said(vm);
        if (said < 0)
                return error_set_errno(err, said, "Cannot make the standard error of QEMU");
        int r = open_logs(vm, true);
        if (r < 0)
                return error_set_errno(err, r, "Cannot open the logs of the VM");
        r = spawn_qemu(p, spec, s, said, &pid, err);
        if (r < 0)
                return r;
        /* QEMU holds the listening ends alone from here on: when it ends, our ends are told. */
        for (size_t i = 0; i < ARRAY_SIZE(s->listen); i++)
                s->listen[i] = close_fd(s->listen[i]);
        vm->console_fd = TAKE_FD(s->ours[SOCK_CONSOLE]);

        vm->pidfd = pidfd_of(pid);
        r = vm->pidfd < 0 ? vm->pidfd : vm_watch_start(vm);
        if (r < 0) {
                process_end(pid, 0);
                return error_set_errno(err, r, "Cannot watch QEMU");
        }
        r = proc_id_read(pid, &vm->proc);
        if (r < 0 && !(r == -ESRCH)) /* gone already: the connections say so, with the reason */
                return error_set_errno(err, r, "Cannot read the identity of QEMU's process");
        if (r >= 0 && vm->cb.spawned)
                return vm->cb.spawned(vm->cb.arg, &vm->proc, err);
        return 0;
}

static int open_qmp(struct vm *vm, int fd, const struct op *op, struct error *err) {
        const struct qmp_callbacks cb = {.event = qmp_event, .lost = qmp_lost, .arg = vm};
        struct qmp *qmp = NULL;

        int r = qmp_open(fd, &cb, op, &qmp, err);
        if (r < 0)
                return r;
        LOCK(&vm->lock);
        vm->qmp = qmp;
        return 0;
}

/* The file of a template's memory, for QEMU to map: for us alone, which QEMU's own would not be. */
static int make_memory(const struct vm_spec *spec, struct error *err) {
        _cleanup_close_ int fd = open(spec->memory_path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
                return error_set_errno(err, errno, "Cannot make the memory file %s", spec->memory_path);
        if (ftruncate(fd, (off_t) spec->memory_mb << 20) < 0) {
                const int e = errno;

                unlink(spec->memory_path);
                return error_set_errno(err, e, "Cannot make the memory file %s", spec->memory_path);
        }
        return 0;
}

int vm_set_session(struct vm *vm, const char *session) {
        char *copy = session ? strdup(session) : NULL;

        if (session && !copy)
                return -ENOMEM;
        pthread_mutex_lock(&vm->lock);
        char *former = vm->session;
        vm->session = copy;
        pthread_mutex_unlock(&vm->lock);
        secret_free(former);
        return 0;
}

/* Takes the channel fd (also on failure). */
static int greet_agent(struct vm *vm, int fd, const struct op *op, struct agent **ret, struct error *err) {
        bool has_one;

        pthread_mutex_lock(&vm->lock);
        char *session = vm->session ? strdup(vm->session) : NULL;
        has_one = vm->session;
        pthread_mutex_unlock(&vm->lock);
        if (has_one && !session) {
                close_fd(fd);
                return error_set_errno(err, ENOMEM, "Cannot connect to the guest's agent");
        }
        int r = agent_open(fd, session, op, ret, err);
        secret_free(session);
        return r;
}

static int open_agent(struct vm *vm, int fd, const struct op *op, struct error *err) {
        struct agent *agent = NULL;

        int r = greet_agent(vm, fd, op, &agent, err);
        if (r < 0)
                return r;
        LOCK(&vm->lock);
        vm->agent = agent;
        return 0;
}

/* Appends a heading and a text to a message, if there is a text. */
static void add_section(struct buf *message, const char *heading, const struct buf *text) {
        if (text->len > 0)
                (void) buf_printf(message, "\n%s\n%s", heading, text->data);
}

#define MESSAGE_MAX (64u * 1024u)

/* Makes the error of a failed start: what happened, what QEMU said, the end of the console. */
static void explain(struct vm *vm, int r, int64_t took_ms, struct error *cause, struct error *err) {
        _cleanup_buf_ struct buf message = BUF_INIT(MESSAGE_MAX), said = BUF_INIT(MESSAGE_MAX / 4),
                                 console = BUF_INIT(MESSAGE_MAX / 4);
        enum error_code code = error_is_set(cause) ? cause->code : error_code_from_errno(r);
        _cleanup_free_ char *log = path_join(vm->dir, CONSOLE_LOG);

        (void) buf_printf(&message, "The VM did not come up within %.1f s: ", (double) took_ms / 1000.0);
        if (vm_has_exited(vm)) {
                code = ERROR_INTERNAL;
                (void) vm_describe_exit(vm, &message);
        } else
                (void) buf_append_str(&message, error_message(cause));
        (void) vm_stderr_tail(vm->dir, CONSOLE_TAIL_LINES, &said);
        if (log) /* of this start alone, not of the ones before */
                (void) text_tail(log, NULL, CONSOLE_KEEP, CONSOLE_TAIL_LINES, &console);
        add_section(&message, "QEMU's standard error:", &said);
        add_section(&message, "Last lines of the console:", &console);
        error_set(err, code, "%s", message.data ? message.data : "The VM did not come up");
        error_hint(err, "Run `agentiso check`; it tries every prerequisite and says how to mend it.");
}

static int launch(struct vm *vm, const struct platform *p, const struct vm_spec *spec, struct sockets *s,
                  const struct op *op, struct error *err) {
        _cleanup_error_ struct error cause = ERROR_INIT;
        const int64_t began = monotonic_ns();

        int r = sockets_make(s, vm->dir, op, err);
        if (r >= 0)
                r = start(vm, p, spec, s, err);
        if (r < 0)
                return r;
        op_progress(op, spec->state == VM_STATE_NONE ? "booting" : "resuming");
        r = open_qmp(vm, TAKE_FD(s->ours[SOCK_QMP]), op, &cause);
        if (r >= 0 && spec->state != VM_STATE_NONE)
                r = vm_load_state(vm, spec, op, &cause);
        if (r >= 0)
                r = open_agent(vm, TAKE_FD(s->ours[SOCK_AGENT]), op, &cause);
        if (r >= 0) {
                LOCK(&vm->lock);
                if (!vm->exited)
                        vm->announce = true;
                else
                        r = -ECONNRESET;
        }
        if (r == -ECANCELED) {
                error_move(err, &cause);
                return r;
        }
        if (r < 0) {
                /* When QEMU is dying, its sockets close a moment before it is gone. -EACCES: the agent sent us away. */
                const bool lives = r == -ETIMEDOUT || r == -EACCES || vm->pages_error < 0;
                const struct op moment = op_sub(op, lives ? 0 : VM_QUIT_MS);
                (void) vm_wait_exit(vm, &moment);
                explain(vm, r, (monotonic_ns() - began) / NSEC_PER_MSEC, &cause, err);
        }
        return r;
}

/* *ret_refused is set with a failure: our user may not write the memory of QEMU. */
static int try_launch(const struct platform *p, const struct vm_spec *spec, const struct vm_callbacks *cb,
                      const struct op *op, struct vm **ret, bool *ret_refused, struct error *err) {
        _cleanup_(sockets_close) struct sockets s = {{-1, -1, -1}, {-1, -1, -1}};
        _cleanup_vm_ struct vm *vm = vm_new(spec, cb);

        if (!vm)
                return error_set_errno(err, ENOMEM, "Cannot start a VM");
        int r = spec->memory == VM_MEMORY_SHARED ? make_memory(spec, err) : 0;
        if (r < 0)
                return r;
        r = launch(vm, p, spec, &s, op, err);
        if (r < 0) {
                *ret_refused = vm->pages_error == -EPERM || vm->pages_error == -EACCES;
                vm_kill(vm);
                vm_remove_files(vm->dir); /* also of a QEMU that never ran */
                if (spec->memory == VM_MEMORY_SHARED)
                        unlink(spec->memory_path);
                return r;
        }
        *ret = TAKE_PTR(vm);
        return 0;
}

/* With a memory file that is made for this machine alone. It needs no name once QEMU has mapped it. */
static int launch_with_image(const struct platform *p, const struct vm_spec *spec, const struct vm_callbacks *cb,
                             const struct op *op, struct vm **ret, struct error *err) {
        _cleanup_free_ char *image = path_join(spec->dir, VM_MEMORY_IMAGE);
        struct vm_spec whole = *spec;
        bool refused;

        if (!image)
                return error_set_errno(err, ENOMEM, "Cannot start a VM");
        whole.memory_path = image;
        whole.pages_path = NULL;
        int r = memory_image_build(spec->memory_path, spec->pages_path, image, false, op, err);
        if (r >= 0)
                r = try_launch(p, &whole, cb, op, ret, &refused, err);
        unlink(image);
        return r;
}

/* Machines that go on from a state wait for their turn: see turn.c. */
static int launch_in_turn(const struct platform *p, const struct vm_spec *spec, const struct vm_callbacks *cb,
                          const struct op *op, struct vm **ret, struct error *err) {
        _cleanup_error_ struct error why = ERROR_INIT;
        bool refused = false;

        int r = try_launch(p, spec, cb, op, ret, &refused, &why);
        if (r >= 0 || !refused) {
                error_move(err, &why);
                return r;
        }
        log_warn("A fork gets a copy of all its memory, because that of QEMU cannot be written", "vm", spec->id,
                 "reason", error_message(&why));
        return launch_with_image(p, spec, cb, op, ret, err);
}

int vm_launch(const struct platform *p, const struct vm_spec *spec, const struct vm_callbacks *cb, const struct op *op,
              struct vm **ret, struct error *err) {
        if (spec->state == VM_STATE_NONE)
                return launch_in_turn(p, spec, cb, op, ret, err);
        int r = vm_turn_take(op);
        if (r < 0)
                return error_set_errno(err, r, "Gave up waiting to start the VM %s", spec->id);
        r = launch_in_turn(p, spec, cb, op, ret, err);
        vm_turn_give();
        return r;
}

/*
 * For the events of QEMU, and to learn of what came while nobody listened. -ESRCH: there is no guest, because the
 * daemon before was lost while it loaded a state.
 */
static int attach_qmp(struct vm *vm, const struct op *op) {
        /* How a machine stands while or after its state is saved. A daemon that is lost in the middle of it leaves the
         * machine so, and nobody else ever stops one for long. */
        static const char *const halted[] = {"paused", "save-vm", "finish-migrate", "postmigrate"};
        _cleanup_json_ json_t *state = NULL;
        const char *status = NULL;

        int fd = connect_to(vm->dir, VM_QMP_SOCKET, op);
        int r = fd < 0 ? fd : open_qmp(vm, fd, op, NULL);
        if (r >= 0)
                r = qmp_call(vm->qmp, "query-status", NULL, op, &state, NULL);
        if (r >= 0 && json_get_str(state, "status", &status, NULL) < 0)
                r = -EPROTO;
        if (r >= 0 && str_eq(status, "inmigrate"))
                return -ESRCH;
        for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(halted); i++)
                if (str_eq(status, halted[i]))
                        r = qmp_call(vm->qmp, "cont", NULL, op, NULL, NULL);
        if (r < 0)
                log_warn("Cannot talk to QEMU", "vm", vm->id, "errno", LOG_NUM(-r));
        else if (str_eq(status, "io-error"))
                vm_note_disk_full(vm);
        return 0;
}

int vm_attach(const struct vm_spec *spec, const struct proc_id *proc, const struct vm_callbacks *cb, struct vm **ret,
              struct error *err) {
        _cleanup_vm_ struct vm *vm = vm_new(spec, cb);
        const struct op op = op_timeout(CONNECT_MS);

        if (!vm)
                return error_set_errno(err, ENOMEM, "Cannot attach to the VM %s", spec->id);
        vm->proc = *proc;
        vm->pidfd = proc_id_open(proc);
        if (vm->pidfd == -ESRCH) {
                error_set(err, ERROR_NOT_RUNNING, "QEMU of the VM %s (process %d) is gone", spec->id, (int) proc->pid);
                return -ESRCH;
        }
        if (vm->pidfd < 0)
                return error_set_errno(err, vm->pidfd, "Cannot open the process %d", (int) proc->pid);
        /* Without its console and its complaints a VM is still of use. */
        int r = open_logs(vm, false);
        if (r < 0)
                log_warn("Cannot open the logs of a VM", "vm", vm->id, "errno", LOG_NUM(-r));
        vm->console_fd = connect_to(vm->dir, VM_CONSOLE_SOCKET, &op);
        if (vm->console_fd < 0)
                log_warn("Cannot connect to the console of a VM", "vm", vm->id, "errno", LOG_NUM(-vm->console_fd));
        vm->said_fd = vm_open_said(vm->dir);
        if (vm->said_fd < 0)
                log_warn("Cannot read what QEMU says", "vm", vm->id, "errno", LOG_NUM(-vm->said_fd));
        const int talked = attach_qmp(vm, &op);
        vm->announce = talked >= 0;
        r = vm_watch_start(vm);
        if (r < 0)
                return error_set_errno(err, r, "Cannot watch QEMU");
        if (talked < 0) {
                vm_kill(vm);
                error_set(err, ERROR_NOT_RUNNING, "The VM %s never got its state", vm->id);
                return talked;
        }
        *ret = TAKE_PTR(vm);
        return 0;
}

/* --- agent --- */

static int connect_agent(struct vm *vm, const struct op *op, struct agent **ret, struct error *err) {
        const struct op limited = op_sub(op, VM_AGENT_CONNECT_MS);

        int fd = connect_to(vm->dir, VM_AGENT_SOCKET, &limited);
        if (fd < 0) {
                error_set(err, ERROR_GUEST_UNREACHABLE, "Cannot connect to the agent's socket of the VM %s: %s", vm->id,
                          strerrordesc_np(-fd));
                return fd;
        }
        int r = greet_agent(vm, fd, &limited, ret, err);
        /* Our own limit, not the caller's, has ended it. */
        if (r == -ETIMEDOUT && op_check(op) >= 0) {
                error_set(err, ERROR_GUEST_UNREACHABLE, "The guest's agent did not answer within %d s",
                          VM_AGENT_CONNECT_MS / 1000);
                error_hint(err, "Stop and start the workspace; workspace_logs shows its console.");
        }
        return r;
}

/* Either a connection that is there, or the right to make one (*ret NULL), or an error. */
static int agent_or_turn(struct vm *vm, const struct op *op, struct agent **ret, struct agent **ret_lost) {
        struct cond_waiter w;
        int r = 0;

        *ret = *ret_lost = NULL;
        cond_waiter_begin(&w, &vm->lock, &vm->changed, op);
        pthread_mutex_lock(&vm->lock);
        while (r >= 0) {
                if (vm->exited) {
                        r = -ESRCH;
                } else if (vm->agent && !agent_is_lost(vm->agent)) {
                        *ret = agent_ref(vm->agent);
                        break;
                } else if (!vm->connecting) {
                        vm->connecting = true;
                        *ret_lost = TAKE_PTR(vm->agent);
                        break;
                } else
                        r = cond_waiter_sleep(&w);
        }
        pthread_mutex_unlock(&vm->lock);
        cond_waiter_end(&w);
        return r;
}

static int agent_wait_error(struct vm *vm, int r, struct error *err) {
        if (r == -ESRCH) {
                error_set(err, ERROR_NOT_RUNNING, "The VM %s has ended", vm->id);
                return r;
        }
        if (r == -ETIMEDOUT)
                return error_set(err, ERROR_TIMEOUT, "Time ran out while waiting for the guest's agent");
        if (r == -ECANCELED)
                return error_set(err, ERROR_CANCELLED, "Cancelled while waiting for the guest's agent");
        return error_set_errno(err, r, "Cannot reach the guest's agent");
}

int vm_agent(struct vm *vm, const struct op *op, struct agent **ret, struct error *err) {
        _cleanup_agent_ struct agent *lost = NULL;
        struct agent *agent = NULL;

        if (vm_stands_still(vm, op))
                return vm_fail_disk_full(err);
        int r = agent_or_turn(vm, op, &agent, &lost);
        if (r < 0)
                return agent_wait_error(vm, r, err);
        if (!agent) {
                r = connect_agent(vm, op, &agent, err);
                LOCK(&vm->lock);
                vm->connecting = false;
                if (r >= 0) {
                        vm->agent = agent_ref(agent);
                        agent_set_no_space(agent, vm->disk_full);
                }
                pthread_cond_broadcast(&vm->changed);
        }
        if (r >= 0)
                *ret = agent;
        else if (vm_has_exited(vm))
                return agent_wait_error(vm, -ESRCH, err);
        else if (r != -ECANCELED && vm_is_disk_full(vm))
                return vm_fail_disk_full(err);
        return r;
}

/* --- stop --- */

void vm_kill(struct vm *vm) {
        const struct op op = op_timeout(KILL_WAIT_MS);

        if (vm->pidfd < 0 || !vm->watched)
                return;
        (void) pidfd_signal(vm->pidfd, SIGKILL); /* fails only when it is gone */
        if (vm_wait_exit(vm, &op) < 0)
                log_error("QEMU does not end on SIGKILL; it hangs in the kernel", "vm", vm->id, "pid",
                          LOG_NUM(vm->proc.pid));
}

static int stop_by_agent(struct vm *vm, const struct op *op) {
        const struct op limited = op_sub(op, VM_AGENT_STOP_MS);
        _cleanup_agent_ struct agent *agent = NULL;

        int r = vm_agent(vm, &limited, &agent, NULL);
        if (r >= 0)
                r = agent_shutdown(agent, &limited, NULL);
        /* The answer may be lost with the machine. */
        if (r < 0 && r != -ENOTCONN)
                return r;
        return vm_wait_exit(vm, &limited);
}

/* Either a connection that is there, or the right to make one (*ret NULL), or an error. */
static int qmp_or_turn(struct vm *vm, const struct op *op, struct qmp **ret, struct qmp **ret_lost) {
        struct cond_waiter w;
        int r = 0;

        *ret = *ret_lost = NULL;
        cond_waiter_begin(&w, &vm->lock, &vm->changed, op);
        pthread_mutex_lock(&vm->lock);
        while (r >= 0) {
                if (vm->qmp && !qmp_is_lost(vm->qmp)) {
                        *ret = qmp_ref(vm->qmp);
                        break;
                }
                if (!vm->asking) {
                        vm->asking = true;
                        *ret_lost = TAKE_PTR(vm->qmp);
                        break;
                }
                r = cond_waiter_sleep(&w);
        }
        pthread_mutex_unlock(&vm->lock);
        cond_waiter_end(&w);
        return r;
}

int vm_qmp(struct vm *vm, const struct op *op, struct qmp **ret, struct error *err) {
        _cleanup_qmp_ struct qmp *lost = NULL;
        struct qmp *qmp = NULL;

        int r = qmp_or_turn(vm, op, &qmp, &lost);
        if (r < 0)
                return error_set_errno(err, r, "Cannot talk to QEMU of the VM %s", vm->id);
        if (!qmp) {
                int fd = connect_to(vm->dir, VM_QMP_SOCKET, op);
                r = fd < 0 ? error_set_errno(err, fd, "Cannot connect to QEMU of the VM %s", vm->id)
                           : open_qmp(vm, fd, op, err);
                LOCK(&vm->lock);
                vm->asking = false;
                if (r >= 0)
                        qmp = qmp_ref(vm->qmp);
                pthread_cond_broadcast(&vm->changed);
        }
        if (r >= 0)
                *ret = qmp;
        return r;
}

static int stop_by_qmp(struct vm *vm, const struct op *op) {
        const struct op limited = op_sub(op, VM_QUIT_MS);
        _cleanup_qmp_ struct qmp *qmp = NULL;

        int r = vm_qmp(vm, &limited, &qmp, NULL);
        if (r >= 0)
                r = qmp_call(qmp, "quit", NULL, &limited, NULL, NULL);
        if (r < 0 && r != -ENOTCONN)
                return r;
        return vm_wait_exit(vm, &limited);
}

int vm_stop(struct vm *vm, const struct op *op, struct error *err) {
        int (*const ways[])(struct vm *, const struct op *) = {stop_by_agent, stop_by_qmp};

        for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
                if (vm_has_exited(vm) || ways[i](vm, op) >= 0)
                        return 0;
                int r = op_check(op);
                if (r < 0) {
                        vm_kill(vm);
                        return r == -ETIMEDOUT
                                       ? error_set(err, ERROR_TIMEOUT, "The VM did not stop in time and was killed")
                                       : error_set(err, ERROR_CANCELLED, "Stopping was cancelled; the VM was killed");
                }
        }
        vm_kill(vm);
        return vm_has_exited(vm) ? 0 : error_set(err, ERROR_TIMEOUT, "QEMU does not end on SIGKILL");
}
