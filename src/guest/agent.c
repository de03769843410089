/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/agent.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/sysinfo.h>

static size_t memory_share(unsigned share) {
        struct sysinfo si;

        return (size_t) (sysinfo(&si) == 0 ? (uint64_t) si.totalram * si.mem_unit : AGENT_MEMORY_MIN) / share;
}

int agent_init(struct agent *a, const char *cgroup_mount, struct error *err) {
        sigset_t chld;
        int r;

        *a = (struct agent){.initramfs_fd = -1, .null_fd = -1, .boot_id_fd = -1, .cgroups = CGROUPS_INIT};
        pthread_mutex_init(&a->lock, NULL);
        pthread_mutex_init(&a->files_lock, NULL);
        pthread_mutex_init(&a->fork_lock, NULL);
        cond_init(&a->idle);
        jobs_init(&a->jobs, MIN((size_t) SPOOLS_BYTES_MAX, memory_share(SPOOLS_MEMORY_SHARE)));
        env_store_init(&a->env);
        freezer_init(&a->freezer);
        workers_init(&a->request_workers, "request");
        workers_init(&a->job_workers, "job");
        a->inputs.max = memory_share(AGENT_INPUTS_SHARE);

        sigemptyset(&chld);
        sigaddset(&chld, SIGCHLD);
        pthread_sigmask(SIG_BLOCK, &chld, NULL);
        /* A command that closes its standard input must not take the agent with it. */
        signal(SIGPIPE, SIG_IGN);

        a->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (a->null_fd < 0) {
                r = error_set_errno(err, errno, "Cannot open /dev/null");
                goto fail;
        }
        r = reaper_new(&a->reaper);
        if (r < 0) {
                error_set_errno(err, r, "Cannot start the reaper");
                goto fail;
        }
        r = drainer_new(&a->drainer);
        if (r < 0) {
                error_set_errno(err, r, "Cannot start the drainer");
                goto fail;
        }
        /* Without cgroups commands are still found by their session (tree.c). */
        if (cgroup_mount)
                cgroups_open(&a->cgroups, cgroup_mount);
        return 0;
fail:
        agent_free(a);
        return r;
}

void agent_free(struct agent *a) {
        (void) freezer_thaw(&a->freezer); /* a request, or a command, may wait for that */
        pthread_mutex_lock(&a->lock);
        while (a->requests > 0)
                cond_wait_until(&a->idle, &a->lock, DEADLINE_NEVER);
        pthread_mutex_unlock(&a->lock);
        workers_free(&a->request_workers);
        jobs_free(&a->jobs);
        workers_free(&a->job_workers);
        reaper_free(a->reaper);
        drainer_free(a->drainer);
        cgroups_close(&a->cgroups);
        env_store_free(&a->env);
        freezer_free(&a->freezer);
        explicit_bzero(a->session, sizeof(a->session));
        a->initramfs_fd = close_fd(a->initramfs_fd);
        a->null_fd = close_fd(a->null_fd);
        a->boot_id_fd = close_fd(a->boot_id_fd);
        pthread_cond_destroy(&a->idle);
        pthread_mutex_destroy(&a->fork_lock);
        pthread_mutex_destroy(&a->files_lock);
        pthread_mutex_destroy(&a->lock);
}

bool agent_root_mounted(struct agent *a) {
        LOCK(&a->lock);
        return a->root == ROOT_MOUNTED;
}
