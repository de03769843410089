/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "vm/vm_private.h"
#include "vm/waiter.h"

#define READ_CHUNK (16u * 1024u)
/* Reads of the console after QEMU has ended: more than a socket holds. */
#define DRAIN_READS 64

/* Copies what the console has to say. False when it is closed. */
static bool copy_console(struct vm *vm) {
        char chunk[READ_CHUNK];

        ssize_t n = recv(vm->console_fd, chunk, sizeof(chunk), MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return true;
        if (n <= 0)
                return false;
        /* A full disk loses console text; there is nothing better to do with it. */
        (void) console_log_write(&vm->console, chunk, (size_t) n);
        return true;
}

/* Takes QEMU's exit status if it is our child; of an attached VM only its end is known. */
static void reap(struct vm *vm, siginfo_t *ret) {
        *ret = (siginfo_t){0};
        while (waitid(P_PIDFD, (id_t) vm->pidfd, ret, WEXITED) < 0)
                if (errno != EINTR)
                        return;
}

void vm_remove_files(const char *dir) {
        static const char *const names[] = {VM_QMP_SOCKET, VM_AGENT_SOCKET, VM_CONSOLE_SOCKET, VM_PIDFILE};

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_free_ char *path = path_join(dir, names[i]);
                if (path)
                        unlink(path);
        }
}

static void ended(struct vm *vm) {
        siginfo_t info;
        bool announce;

        for (int i = 0; i < DRAIN_READS && vm->console_fd >= 0; i++)
                if (!copy_console(vm))
                        vm->console_fd = close_fd(vm->console_fd);
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

        for (;;) {
                struct pollfd fds[] = {
                        {.fd = cancel_fd(vm->let_go), .events = POLLIN},
                        {.fd = vm->pidfd, .events = POLLIN},
                        {.fd = vm->console_fd, .events = POLLIN},
                };
                if (poll(fds, ARRAY_SIZE(fds), -1) < 0) {
                        if (errno == EINTR)
                                continue;
                        log_error("Cannot watch QEMU", "vm", vm->id, "errno", LOG_NUM(errno));
                        return NULL;
                }
                if (fds[2].revents && !copy_console(vm))
                        vm->console_fd = close_fd(vm->console_fd);
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
        struct vm_waiter w;
        int r = 0;

        vm_waiter_begin(&w, &vm->lock, &vm->changed, op);
        pthread_mutex_lock(&vm->lock);
        while (r >= 0 && !vm->exited)
                r = vm_waiter_sleep(&w);
        if (vm->exited)
                r = 0;
        pthread_mutex_unlock(&vm->lock);
        vm_waiter_end(&w);
        return r;
}
