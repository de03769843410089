/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/launcher.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/str.h"
#include "cli/cli.h"
#include "daemon/state-dir.h"

/* Bytes of the log's end that are looked at. */
#define TAIL_BYTES 4096

void launcher_clear(struct launcher *l) {
        close_fd(l->pidfd);
        free(l->log_path);
        *l = LAUNCHER_INIT;
}

static int open_log(struct launcher *l, int *ret_fd, struct error *err) {
        struct stat st;

        if (stat(l->log_path, &st) == 0 && st.st_size > DAEMON_LOG_MAX) {
                _cleanup_free_ char *old = str_printf("%s.1", l->log_path);
                if (old && rename(l->log_path, old) < 0)
                        return error_set_errno(err, errno, "cannot rename %s", l->log_path);
        }
        _cleanup_close_ int fd = open(l->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0 || fstat(fd, &st) < 0)
                return error_set_errno(err, errno, "cannot open the daemon's log %s", l->log_path);
        l->log_offset = st.st_size;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int launcher_start(struct launcher *l, const struct config *cfg, struct error *err) {
        _cleanup_free_ char *self = NULL, *config = NULL;
        _cleanup_close_ int log = -1;

        launcher_clear(l);
        int r = state_dir_prepare(cfg->state_dir, err);
        if (r < 0)
                return r;
        l->log_path = path_join(cfg->state_dir, "daemon.log");
        if (!l->log_path)
                return -ENOMEM;
        r = open_log(l, &log, err);
        if (r < 0)
                return r;
        r = self_path(&self);
        if (r < 0)
                return error_set_errno(err, r, "cannot find the program of the daemon");
        /* The daemon may run elsewhere one day; a relative path must not mean another file then. */
        config = cfg->path ? realpath(cfg->path, NULL) : NULL;
        const char *argv[] = {self, "daemon", config ? "--config" : NULL, config, NULL};
        const struct fd_map fds[] = {{.from = log, .to = 2}};
        const struct spawn spawn = {.argv = (char *const *) argv,
                                    .fds = fds,
                                    .n_fds = ARRAY_SIZE(fds),
                                    .new_session = true,
                                    .workdir = "/"};
        r = process_spawn(&spawn, &l->pid, err);
        if (r < 0)
                return r;
        l->pidfd = pidfd_of(l->pid);
        return 0;
}

bool launcher_has_ended(struct launcher *l) {
        if (l->pid > 0 && waitpid(l->pid, NULL, WNOHANG) == 0)
                return false;
        l->pid = 0;
        l->pidfd = close_fd(l->pidfd);
        return true;
}

bool launcher_somebody_lives(const struct config *cfg) {
        struct proc_id holder;

        return state_dir_holder(cfg->state_dir, &holder) == 0;
}

/* The last lines of what stands in the log since the start, on one line. */
static char *log_tail(const struct launcher *l) {
        char text[TAIL_BYTES + 1];
        _cleanup_close_ int fd = open(l->log_path, O_RDONLY | O_CLOEXEC);
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0)
                return NULL;
        ssize_t n = pread(fd, text, TAIL_BYTES, MAX(l->log_offset, st.st_size - TAIL_BYTES));
        if (n <= 0)
                return NULL;
        while (n > 0 && text[n - 1] == '\n')
                n--;
        text[n] = 0;
        char *begin = text + n;
        for (unsigned lines = 0; begin > text; begin--)
                if (begin[-1] == '\n' && ++lines == DAEMON_LOG_TAIL_LINES)
                        break;
        for (char *c = begin; *c; c++)
                if (*c == '\n')
                        *c = ' ';
        return strdup(begin);
}

int launcher_explain(const struct launcher *l, const char *what, struct error *err) {
        _cleanup_free_ char *tail = l->log_path ? log_tail(l) : NULL;

        int r = error_set(err, ERROR_INTERNAL, "%s%s%s", what, tail ? ": " : "", tail ? tail : "");
        if (l->log_path)
                error_hint(err, "Run `agentiso check`; the daemon's log is %s.", l->log_path);
        return r;
}
