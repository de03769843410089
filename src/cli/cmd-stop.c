/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/io.h"
#include "base/log.h"
#include "base/process.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "daemon/daemon.h"
#include "daemon/engine.h"
#include "daemon/state-dir.h"

/* Limits: of the daemon's end, and of the end of one workspace (vm_stop() is done before). */
#define DAEMON_END_MS (DAEMON_CLOSE_MS + 10000)
#define WORKSPACE_STOP_MS 30000

static const char help[] =
        "NAME\n"
        "    agentiso stop - end the daemon\n"
        "\n"
        "SYNOPSIS\n"
        "    agentiso [--config FILE] stop [--all]\n"
        "\n"
        "DESCRIPTION\n"
        "    Ends the daemon and waits until it is gone. Running workspaces go on, and the next daemon takes them up\n"
        "    again; the machines of the pool, which nobody has yet, end. The next message of a client that is still\n"
        "    connected starts that daemon.\n"
        "\n"
        "    With --all every running workspace is shut down as well, after the daemon has ended: no client can\n"
        "    start another one meanwhile. Without a daemon there is only that left to do.\n"
        "\n"
        "OPTIONS\n"
        "    --all           shut down all workspaces too\n"
        "    --config FILE   read this configuration\n"
        "    -h, --help      print this text\n"
        "\n"
        "EXIT STATUS\n"
        "    0  done\n"
        "    1  the daemon or a workspace could not be stopped\n"
        "    2  wrong usage\n"
        "    3  no daemon runs (without --all)\n"
        "\n"
        "EXAMPLES\n"
        "    agentiso stop --all\n";

/* The daemon's process, held by a pidfd so that it cannot become another one. -ESRCH: none runs. */
static int open_daemon(const struct config *cfg, pid_t *ret_pid) {
        struct proc_id holder;

        int r = client_daemon_pid(cfg, ret_pid);
        if (r >= 0)
                return pidfd_of(*ret_pid);
        /* One that starts or ends does not listen, but holds the lock. */
        r = state_dir_holder(cfg->state_dir, &holder);
        if (r < 0)
                return r;
        *ret_pid = holder.pid;
        return proc_id_open(&holder);
}

/* 1: ended, 0: there was none. */
static int end_daemon(const struct config *cfg, struct error *err) {
        struct op op = op_timeout(DAEMON_END_MS);
        pid_t pid;

        _cleanup_close_ int pidfd = open_daemon(cfg, &pid);
        if (pidfd == -ESRCH)
                return 0;
        if (pidfd < 0)
                return error_set_errno(err, pidfd, "cannot find the daemon");
        int r = pidfd_signal(pidfd, SIGTERM);
        if (r == -ESRCH)
                return 1;
        if (r >= 0)
                r = wait_fd(pidfd, POLLIN, &op);
        if (r < 0) {
                error_set_errno(err, r, "the daemon (pid %d) did not end", (int) pid);
                error_hint(err, "Its workspaces survive a kill -9 %d.", (int) pid);
                return r;
        }
        printf("daemon %d ended\n", (int) pid);
        return 1;
}

/* How many could not be stopped, or a negative errno. */
static int stop_each(struct core *core, struct error *err) {
        struct ws_views list = {0};
        int failed = 0;

        int r = ws_list(core, NULL, &list, err);
        for (size_t i = 0; r >= 0 && i < list.n; i++) {
                _cleanup_error_ struct error why = ERROR_INIT;
                _cleanup_ws_view_ struct ws_view view = {0};
                const struct ws_row *row = &list.v[i].row;
                struct op op = op_timeout(WORKSPACE_STOP_MS);
                bool already = false;

                if (row->state == WS_STOPPED)
                        continue;
                if (ws_stop(core, row->id, &op, &view, &already, &why) >= 0) {
                        printf("workspace %s stopped\n", row->name);
                        continue;
                }
                fprintf(stderr, "agentiso: cannot stop workspace %s: %s\n", row->name, error_message(&why));
                failed++;
        }
        ws_views_clear(&list);
        return r < 0 ? r : failed;
}

static int stop_workspaces(const struct config *cfg, struct error *err) {
        _cleanup_engine_ struct engine engine = ENGINE_INIT;
        struct op op = op_timeout(DAEMON_RECOVER_MS);

        log_setup(LOG_ERROR, STDERR_FILENO);
        int r = engine_open(&engine, cfg, err);
        if (r >= 0)
                r = core_recover(engine.core, &op, err);
        if (r < 0)
                return r;
        /* Those that a daemon has left which was killed. */
        core_pool_drain(engine.core);
        return stop_each(engine.core, err);
}

static int run(struct cli *cli, int argc, char **argv) {
        static const struct option options[] = {CLI_OPTIONS, {"all", no_argument, NULL, 'a'}, CLI_OPTIONS_END};
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        bool all = false;
        int opt, status;

        while ((opt = cli_option(cli, &cmd_stop, argc, argv, "h", options, &status)) != -1) {
                if (opt == CLI_OPTION_EXIT)
                        return status;
                all = true;
        }
        if (optind < argc)
                return cli_usage(&cmd_stop, "unexpected argument '%s'", argv[optind]);
        if (cli_config(cli, &cfg) < 0)
                return CLI_FAILED;
        int r = end_daemon(&cfg, &err);
        if (r < 0)
                return cli_fail(&err);
        if (!all) {
                if (r == 0)
                        fprintf(stderr, "agentiso: no daemon runs with the state directory %s\n", cfg.state_dir);
                return r == 0 ? CLI_NOT_RUNNING : cli_finish();
        }
        r = stop_workspaces(&cfg, &err);
        if (r < 0)
                return cli_fail(&err);
        return r > 0 ? CLI_FAILED : cli_finish();
}

const struct command cmd_stop = {"stop", "end the daemon", help, run};
