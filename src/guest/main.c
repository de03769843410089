/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "guest/channel.h"
#include "guest/console.h"
#include "guest/identity.h"
#include "guest/init.h"
#include "guest/modules.h"
#include "guest/netlink.h"
#include "guest/priority.h"
#include "guest/uevent.h"

#define CHANNEL_MS 15000 /* for the host's channel to appear */

static void load(int initramfs_fd, const char *group, bool vital) {
        _cleanup_error_ struct error err = ERROR_INIT;

        if (modules_load(initramfs_fd, group, &err) == 0)
                return;
        if (vital)
                console_die("%s", error_message(&err));
        console_say("%s", error_message(&err));
}

/* What the host's channel does not need is loaded beside it, on another CPU. */
static void *load_rest(void *arg) {
        struct agent *agent = arg;

        load(agent->initramfs_fd, "rng", false);
        load(agent->initramfs_fd, "net", false);
        net_prepare();
        return NULL;
}

static void start(struct agent *agent) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int uevents = -1;
        struct channels channels = CHANNELS_INIT;
        struct op op = op_timeout(CHANNEL_MS);
        pthread_t rest;

        if (init_mounts(&err) < 0)
                console_die("%s", error_message(&err));
        console_open();
        init_limits();
        if (agent_init(agent, CGROUP_MOUNT, &err) < 0)
                console_die("%s", error_message(&err));
        identity_init(agent);
        agent->initramfs_fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        uevents = uevent_open();
        if (agent->initramfs_fd < 0 || uevents < 0)
                console_die("cannot start: %s", strerror(errno));

        load(agent->initramfs_fd, "core", true);
        if (thread_start(&rest, "modules", load_rest, agent) < 0)
                console_die("cannot start a thread");
        load(agent->initramfs_fd, "channel", true);
        if (init_loopback() < 0)
                console_say("cannot bring up the loopback interface");

        if (channels_open(&channels, uevents, &op, &err) < 0)
                console_die("%s", error_message(&err));
        /* A host that is answered may take a memory image: every driver belongs into it. */
        pthread_join(rest, NULL);
        if (modules_park(agent->initramfs_fd, "disk", &err) < 0)
                console_die("%s", error_message(&err));
        /* The identity that a copy of this machine is given is a request, and a part of one beside it. */
        for (int i = 0; i < 2; i++)
                if (workers_prepare(&agent->request_workers) < 0)
                        console_die("cannot start a thread");
        if (workers_prepare(&agent->job_workers) < 0)
                console_die("cannot start a thread");
        if (channels_serve(&channels, agent, &err) < 0)
                console_die("%s", error_message(&err));
        console_say("version %s is ready", AGENTISO_VERSION);
}

/* What requests hold may be a secret: it does not stay in memory that is free. */
static void wipe_and_free(void *p) {
        if (p)
                explicit_bzero(p, malloc_usable_size(p));
        free(p);
}

#define MALLOC_KEEP (1024 * 1024) /* bytes */

int main(int argc, char **argv) {
        static struct agent agent;
        sigset_t all;

        if (argc > 1 && strcmp(argv[1], "--version") == 0) {
                puts("agentiso-guest " AGENTISO_VERSION);
                return 0;
        }
        if (getpid() != 1) {
                fputs("agentiso-guest is the first process of a machine that agentiso starts; it does nothing here.\n",
                      stderr);
                return 2;
        }

        /* Nothing that the workload sends may interrupt or end the agent; the threads inherit this. */
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        priority_set(PRIORITY_AGENT);
        json_set_alloc_funcs(malloc, wipe_and_free);
        /* The pieces of a transfer come and go by the thousand: taking their pages from the kernel anew each time would
         * cost more than moving the bytes. */
        (void) mallopt(M_MMAP_THRESHOLD, MALLOC_KEEP);
        (void) mallopt(M_TRIM_THRESHOLD, MALLOC_KEEP);
        start(&agent);
        for (;;)
                pause();
}
