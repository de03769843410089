/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <sys/signalfd.h>

#include "base/thread.h"
#include "cli/cli.h"

struct watch {
        int fd;
        struct cancel *token; /* a reference */
};

static void *watch_main(void *arg) {
        struct watch *w = arg;

        if (wait_fd(w->fd, POLLIN, NULL) > 0)
                cancel_fire(w->token);
        cancel_unref(w->token);
        close_fd(w->fd);
        free(w);
        return NULL;
}

struct cancel *interrupt_token(void) {
        _cleanup_cancel_ struct cancel *token = cancel_new();
        _cleanup_free_ struct watch *w = malloc(sizeof(*w));
        sigset_t set, before;

        sigemptyset(&set);
        sigaddset(&set, SIGINT);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGHUP);
        _cleanup_close_ int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        if (!token || !w || fd < 0 || pthread_sigmask(SIG_BLOCK, &set, &before) != 0)
                return NULL;
        *w = (struct watch){.fd = fd, .token = cancel_ref(token)};
        if (thread_start_detached("interrupt", watch_main, w) < 0) {
                cancel_unref(w->token);
                pthread_sigmask(SIG_SETMASK, &before, NULL);
                return NULL;
        }
        (void) TAKE_PTR(w);
        (void) TAKE_FD(fd);
        return TAKE_PTR(token);
}
