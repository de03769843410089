/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way to the internet: pasta (passt(1)) gives the namespace an interface whose packets it turns into connections of
 * a process of the host. It forwards no port inwards and maps no address of the namespace to the host; what it could
 * reach of the host all the same is refused by the rules before it gets there.
 *
 * It has a session of its own and outlives the daemon, whose next one finds it by the name that was written down. It
 * runs as the user of the daemon, in the holder's user namespace, without privileges outside.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/io.h"
#include "base/lockfile.h"
#include "base/log.h"
#include "base/str.h"
#include "network/network-internal.h"
#include "network/rules.h"

#define LOG_NAME "pasta.log"
#define RECORD_NAME "uplink" /* who it is, as lockfile.h writes it */
#define LOG_SHOWN 4096u
#define END_MS 2000
#define MOMENT_MS 250
/* After it has ended by itself. */
#define AGAIN_NS (2 * NSEC_PER_SEC)
/* Of the interface: link-local, so that it is nobody's. */
#define UPLINK_ADDRESS "169.254.77.2"
#define UPLINK_GATEWAY "169.254.77.1"
#define UPLINK_PREFIX "24"

static void namespace_path(const struct network *net, const char *which, char ret[64]) {
        snprintf(ret, 64, "/proc/%d/ns/%s", (int) net->holder.id.pid, which);
}

static int make_argv(const struct network *net, struct strv *v) {
        static const char *const always[] = {
                "pasta",       "--foreground", "--quiet",      "--ipv4-only", "--config-net", "--no-map-gw",
                "--no-dhcp",   "-I",           RULES_UPLINK,   "-a",          UPLINK_ADDRESS, "-n",
                UPLINK_PREFIX, "-g",           UPLINK_GATEWAY, "-t",          "none",         "-u",
                "none",        "-T",           "none",         "-U",          "none"};
        char user[64], own[64];
        int r = 0;

        for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(always); i++)
                r = strv_add(v, always[i]);
        if (r >= 0 && geteuid() == 0) { /* it would become nobody, who cannot join a namespace of ours */
                r = strv_add(v, "--runas");
                if (r >= 0)
                        r = strv_add(v, "0:0");
        }
        namespace_path(net, "user", user);
        namespace_path(net, "net", own);
        if (r >= 0 && net->user_ns >= 0) {
                r = strv_add(v, "--userns");
                if (r >= 0)
                        r = strv_add(v, user);
        } else if (r >= 0)
                r = strv_add(v, "--netns-only");
        if (r >= 0)
                r = strv_add(v, "--netns");
        return r < 0 ? r : strv_add(v, own);
}

/* -ESRCH: it has ended already. */
static int spawn(struct network *net, struct error *err) {
        _cleanup_strv_ struct strv argv = {0};
        _cleanup_free_ char *path = path_join(net->dir, LOG_NAME);
        struct proc_id id;
        pid_t pid;

        int r = path ? make_argv(net, &argv) : -ENOMEM;
        if (r < 0)
                return error_set_errno(err, r, "Cannot start pasta");
        _cleanup_close_ int log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (log < 0)
                return error_set_errno(err, errno, "Cannot make %s", path);
        const struct fd_map fds[] = {{.from = log, .to = 2}};
        const struct spawn sp = {
                .argv = argv.v, .fds = fds, .n_fds = ARRAY_SIZE(fds), .new_session = true, .workdir = "/"};
        r = process_spawn(&sp, &pid, err);
        if (r < 0) {
                error_prefix(err, "The internet cannot be reached: pasta does not start");
                error_hint(err, "Install it: apt install passt");
                return r;
        }
        r = proc_id_read(pid, &id);
        int fd = r < 0 ? r : proc_id_open(&id);
        if (fd < 0) {
                process_end(pid, 0);
                return fd == -ESRCH ? fd : error_set_errno(err, fd, "The internet cannot be reached: pasta is lost");
        }
        net->uplink = (struct child){.id = id, .pidfd = fd};
        return 0;
}

/* For a later daemon. One that it does not find keeps the interface's name, and another pasta says so. */
static int write_down(struct network *net) {
        _cleanup_free_ char *path = path_join(net->dir, RECORD_NAME);

        _cleanup_close_ int fd = path ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
        return fd < 0 ? -errno : lockfile_write(fd, &net->uplink.id);
}

/* Why it did not come up. */
static int explain(struct network *net, struct error *err) {
        _cleanup_free_ char *path = path_join(net->dir, LOG_NAME), *text = NULL;

        if (path && file_read_all(path, LOG_SHOWN, &text, NULL) >= 0 && *text) {
                for (char *c = text; *c; c++)
                        if (*c == '\n')
                                *c = c[1] ? ' ' : '\0';
        }
        error_set(err, ERROR_UNSUPPORTED, "The internet cannot be reached: pasta gives no interface%s%s",
                  text && *text ? ": " : "", text ? text : "");
        error_hint(err, "See that this host has a default route: ip route show default");
        return -EOPNOTSUPP;
}

void uplink_find(struct network *net) {
        _cleanup_free_ char *path = path_join(net->dir, RECORD_NAME);
        struct proc_id id;

        if (net->uplink.pidfd >= 0 || !path || lockfile_holder(path, &id) < 0)
                return;
        int fd = proc_id_open(&id);
        if (fd >= 0)
                net->uplink = (struct child){.id = id, .pidfd = fd};
}

/* The helper waits for it a moment at a time, so that the end of pasta is noticed meanwhile. */
static int wait_for_interface(struct network *net) {
        const struct op op = op_timeout(HELPER_UPLINK_MS);
        const int moment = MOMENT_MS;
        int r;

        do {
                r = supervise_call(net, HELPER_UPLINK, &moment, sizeof(moment), NULL, NULL);
                if (child_ended(&net->uplink))
                        return -ENOENT;
        } while (r == -ETIMEDOUT && op_check(&op) >= 0);
        return r;
}

int uplink_start(struct network *net, struct error *err) {
        if (net->uplink.pidfd >= 0 && !child_ended(&net->uplink))
                return 0;
        child_forget(&net->uplink);
        net->uplink_not_before_ns = monotonic_ns() + AGAIN_NS;
        int r = spawn(net, err);
        if (r == -ESRCH)
                return explain(net, err);
        if (r < 0)
                return r;
        r = write_down(net);
        if (r >= 0)
                r = wait_for_interface(net);
        if (r >= 0) {
                log_info("The uplink is there", "pid", LOG_NUM(net->uplink.id.pid));
                return 0;
        }
        uplink_stop(net);
        return explain(net, err);
}

void uplink_stop(struct network *net) {
        const struct op op = op_timeout(END_MS);

        if (net->uplink.pidfd < 0)
                return;
        if (pidfd_signal(net->uplink.pidfd, SIGTERM) >= 0 && wait_fd(net->uplink.pidfd, POLLIN, &op) < 0)
                (void) proc_id_kill(&net->uplink.id, END_MS);
        child_forget(&net->uplink);
}
