/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/waiter.h"
#include "vm/vm_private.h"

#define READ_CHUNK (16u * 1024u)
/* Reads of an output after QEMU has ended: more than a socket or a pipe holds. */
#define DRAIN_READS 64

/* Copies what has come; the fd does not block. Closes it at its end. Whether there may be more. */
static bool copy(int *fd, struct capped_log *log) {
        char chunk[READ_CHUNK];

        ssize_t n = read(*fd, chunk, sizeof(chunk));
        if (n < 0 && errno == EINTR)
                return true;
        if (n < 0 && errno == EAGAIN)
                return false;
        if (n <= 0) {
                *fd = close_fd(*fd);
                return false;
        }
        /* A full disk loses text; there is nothing better to do with it. */
        (void) capped_log_write(log, chunk, (size_t) n);
        return true;
}

/* Copies what an output still holds: QEMU is gone, so no more comes. */
static void drain(int *fd, struct capped_log *log) {
        for (int i = 0; i < DRAIN_READS && *fd >= 0 && copy(fd, log); i++)
                ;
}

/* Takes QEMU's exit status if it is our child; of an attached VM only its end is known. */
static void reap(struct vm *vm, siginfo_t *ret) {
        *ret = (siginfo_t){0};
        while (waitid(P_PIDFD, (id_t) vm->pidfd, ret, WEXITED) < 0)
                if (errno != EINTR)
                        return;
}

void vm_remove_files(const char *dir) {
        static const char *const names[] = {VM_QMP_SOCKET,  VM_AGENT_SOCKET, VM_CONSOLE_SOCKET,
                                            VM_STDERR_FIFO, VM_PIDFILE,      VM_MEMORY_IMAGE};

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_free_ char *path = path_join(dir, names[i]);
                if (path)
                        unlink(path);
        }
}

static void ended(struct vm *vm) {
        siginfo_t info;
        bool announce;

        drain(&vm->console_fd, &vm->console);
        drain(&vm->said_fd, &vm->said);
        reap(vm, &info);
        vm_remove_files(vm->dir);
        {
                LOCK(&vm->lock);

                vm->exited = true;
                if (info.si_pid != 0 && info.si_code == CLD_EXITED)
                        vm->exit_code = info.si_status;
                else if (info.si_pid != 0)
                        vm->exit_signal = info.si_status;
                announce = vm->announce;
                pthread_cond_broadcast(&vm->changed);
        }
        log_debug("QEMU ended", "vm", vm->id, "status", LOG_NUM(vm->exit_code), "signal", LOG_NUM(vm->exit_signal));
        if (announce && vm->cb.exited)
                vm->cb.exited(vm->cb.arg);
}

static void *watch_main(void *arg) {
        struct vm *vm = arg;
        const struct op until_let_go = {.deadline = DEADLINE_NEVER, .cancel = vm->let_go};

        for (;;) {
                struct pollfd fds[] = {
                        {.fd = cancel_fd(vm->let_go), .events = POLLIN}, {.fd = vm->pidfd, .events = POLLIN},
                        {.fd = vm->console_fd, .events = POLLIN},        {.fd = vm->said_fd, .events = POLLIN},
                        {.fd = vm->wake_fd, .events = POLLIN},
                };
                int n = poll(fds, ARRAY_SIZE(fds), vm_is_disk_full(vm) ? VM_RESUME_MS : -1);
                if (n < 0) {
                        if (errno == EINTR)
                                continue;
                        log_error("Cannot watch QEMU", "vm", vm->id, "errno", LOG_NUM(errno));
                        return NULL;
                }
                if (n == 0)
                        (void) vm_stands_still(vm, &until_let_go);
                if (fds[2].revents)
                        (void) copy(&vm->console_fd, &vm->console);
                if (fds[3].revents)
                        (void) copy(&vm->said_fd, &vm->said);
                if (fds[4].revents) {
                        eventfd_t count;

                        (void) eventfd_read(vm->wake_fd, &count);
                }
                if (fds[1].revents) {
                        ended(vm);
                        return NULL;
                }
                if (fds[0].revents)
                        return NULL;
        }
}

int vm_watch_start(struct vm *vm) {
        int r = thread_start(&vm->watcher, "vm-watch", watch_main, vm);
        if (r >= 0)
                vm->watched = true;
        return r;
}

void vm_watch_end(struct vm *vm) {
        if (!vm->watched)
                return;
        cancel_fire(vm->let_go);
        pthread_join(vm->watcher, NULL);
        vm->watched = false;
}

int vm_wait_exit(struct vm *vm, const struct op *op) {
        struct cond_waiter w;
        int r = 0;

        cond_waiter_begin(&w, &vm->lock, &vm->changed, op);
        pthread_mutex_lock(&vm->lock);
        while (r >= 0 && !vm->exited)
                r = cond_waiter_sleep(&w);
        if (vm->exited)
                r = 0;
        pthread_mutex_unlock(&vm->lock);
        cond_waiter_end(&w);
        return r;
}
