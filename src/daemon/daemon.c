/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/daemon.h"

#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/beneath.h"
#include "base/file.h"
#include "base/io.h"
#include "daemon/engine.h"
#include "mcp/server.h"

/* Pause after an accept that failed for want of fds or memory, so that the loop does not spin. */
#define ACCEPT_PAUSE_MS 100

static int open_signals(struct error *err) {
        sigset_t set;

        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGINT);
        sigaddset(&set, SIGHUP);
        signal(SIGPIPE, SIG_IGN);
        int r = pthread_sigmask(SIG_BLOCK, &set, NULL);
        if (r > 0)
                return error_set_errno(err, r, "cannot block signals");
        int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        return fd < 0 ? error_set_errno(err, errno, "cannot make a signalfd") : fd;
}

/* Every VM and every client takes a few fds; the soft limit is kept low only for programs that use select(2). */
static void raise_fd_limit(void) {
        struct rlimit limit;

        if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
                limit.rlim_cur = limit.rlim_max;
                if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
                        log_warn("cannot raise the limit of open files", "error", strerror(errno));
        }
}

static bool may_connect(int fd) {
        pid_t pid;
        uid_t uid;

        if (unix_peer(fd, &pid, &uid) < 0)
                return false;
        if (uid == geteuid() || uid == 0)
                return true;
        log_warn("client of another user refused", "uid", LOG_NUM(uid), "pid", LOG_NUM(pid));
        return false;
}

/* 0, or a negative errno when accepting should pause. */
static int accept_client(int listener, struct mcp_server *server) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0)
                return errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS ? -errno : 0;
        if (!may_connect(fd))
                return 0;
        if (mcp_server_add(server, TAKE_FD(fd), &err) < 0)
                log_warn("client refused", "reason", error_message(&err));
        return 0;
}

/* Serves until a signal comes; its number. */
static int serve_clients(int signals, int listener, struct mcp_server *server, struct error *err) {
        struct pollfd fds[] = {{.fd = signals, .events = POLLIN}, {.fd = listener, .events = POLLIN}};
        int pause = -1;

        for (;;) {
                fds[1].fd = pause < 0 ? listener : -1;
                if (poll(fds, ARRAY_SIZE(fds), pause) < 0 && errno != EINTR)
                        return error_set_errno(err, errno, "cannot wait for clients");
                pause = -1;
                if (fds[0].revents) {
                        struct signalfd_siginfo info;
                        if (read(signals, &info, sizeof(info)) == sizeof(info))
                                return (int) info.ssi_signo;
                }
                if (fds[1].revents && accept_client(listener, server) < 0) {
                        log_warn("cannot accept a client", "error", "too many open files or no memory");
                        pause = ACCEPT_PAUSE_MS;
                }
        }
}

/* The folder for transfers. Without it everything else works, and file_transfer says what is wrong. */
static void prepare_transfers(const char *dir) {
        _cleanup_beneath_ struct beneath b = BENEATH_INIT;
        _cleanup_error_ struct error err = ERROR_INIT;

        int r = mkdir_p(dir, 0700);
        if (r < 0)
                error_set_errno(&err, r, "Cannot make the directory %s", dir);
        else
                r = beneath_open(dir, &b, &err);
        if (r < 0)
                log_warn("files cannot be transferred", "error", error_message(&err));
        else
                beneath_tidy(&b);
}

static int run_server(int signals, int listener, struct engine *engine, struct error *err) {
        struct op recover = op_timeout(DAEMON_RECOVER_MS);
        struct mcp_server *server;

        probe_begin(engine->probe);
        int r = core_recover(engine->core, &recover, err);
        if (r < 0)
                return r;
        r = mcp_server_new(engine->core, tool_groups, &server, err);
        if (r < 0)
                return r;
        log_info("daemon serves", "version", AGENTISO_VERSION, "pid", LOG_NUM(getpid()));
        r = serve_clients(signals, listener, server, err);
        if (r > 0)
                log_info("daemon ends", "signal", strsignal(r));
        struct op op = op_timeout(DAEMON_CLOSE_MS);
        bool all_gone = mcp_server_close(server, &op);
        /* No list shows them, and nobody else would end them: they must not outlive the daemon. */
        core_pool_drain(engine->core);
        if (!all_gone)
                engine_abandon(engine);
        return r < 0 ? r : 0;
}

/* Blocks of this many bytes go back to the system when they are freed. What a transfer or a large answer took would
 * otherwise stay with each thread's heap. */
#define MALLOC_MMAP_BYTES (64 * 1024)

int daemon_run(const struct config *cfg, struct error *err) {
        _cleanup_engine_ struct engine engine = ENGINE_INIT;
        _cleanup_close_ int signals = -1, listener = -1;
        _cleanup_free_ char *socket_path = config_socket_path(cfg);
        enum log_level level;

        if (!socket_path)
                return -ENOMEM;
        umask(077);
        (void) mallopt(M_MMAP_THRESHOLD, MALLOC_MMAP_BYTES);
        raise_fd_limit();
        if (log_level_parse(cfg->log_level, &level) >= 0)
                log_setup(level, STDERR_FILENO);
        signals = open_signals(err);
        if (signals < 0)
                return signals;
        int r = engine_open(&engine, cfg, err);
        if (r < 0)
                return r;
        /* Under the lock: what is there is left from an earlier daemon, even if something still holds its listener. */
        if (unlink(socket_path) < 0 && errno != ENOENT)
                return error_set_errno(err, errno, "cannot remove %s", socket_path);
        /* Clients that come while the past is being tidied up wait in the backlog. */
        listener = unix_listen(socket_path, DAEMON_BACKLOG);
        if (listener < 0)
                return error_set_errno(err, listener, "cannot listen at %s", socket_path);
        prepare_transfers(cfg->transfer_dir);
        r = run_server(signals, listener, &engine, err);
        /* Under the lock still: it cannot be the next daemon's socket. */
        unlink(socket_path);
        return r;
}
