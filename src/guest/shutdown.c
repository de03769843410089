/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The end: everything gets SIGTERM and a moment, then SIGKILL; the disk is flushed and made read-only; the answer goes
 * out, and when the host has it, the machine restarts. Restarts, because a microvm has no ACPI and could only halt:
 * with `reboot=t` on the kernel's command line the CPU resets by a triple fault, and QEMU, started with -no-reboot,
 * exits.
 */

#include <mntent.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>

#include "base/str.h"
#include "guest/agent.h"
#include "guest/console.h"

#define TERM_GRACE_MS 2000
#define KILL_GRACE_MS 2000
#define ANSWER_MS 500  /* for the host to take the answer */
#define MOUNTS_MAX 512 /* mounts of the workload that are undone one by one */

static void end_processes(struct agent *a) {
        kill(-1, SIGTERM);
        kill(-1, SIGCONT); /* a stopped process would not hear it */
        if (reaper_wait_alone(a->reaper, deadline_in_ms(TERM_GRACE_MS)) == 0)
                return;
        kill(-1, SIGKILL);
        if (reaper_wait_alone(a->reaper, deadline_in_ms(KILL_GRACE_MS)) < 0)
                console_say("some processes do not end");
}

/* What the workload has mounted, the last first. What is ours is of no matter on the way down. */
static void unmount_others(void) {
        static const char *const kept[] = {"proc", "sysfs", "devtmpfs", "devpts", "cgroup2", "rootfs"};
        _cleanup_strv_ struct strv where = {0};
        FILE *f = setmntent("/proc/self/mounts", "re");
        char text[8192];
        struct mntent m;

        while (f && where.n < MOUNTS_MAX && getmntent_r(f, &m, text, sizeof(text))) {
                bool keep = str_eq(m.mnt_dir, "/");

                for (size_t i = 0; i < ARRAY_SIZE(kept); i++)
                        keep |= str_eq(m.mnt_type, kept[i]);
                if (!keep && strv_add(&where, m.mnt_dir) < 0)
                        break;
        }
        if (f)
                endmntent(f);
        for (size_t i = where.n; i > 0; i--)
                umount2(where.v[i - 1], MNT_DETACH);
}

int handle_shutdown(struct request *req, struct error *err) {
        struct op op = op_timeout(ANSWER_MS);
        _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;

        if (getpid() != 1)
                return error_set(err, ERROR_UNSUPPORTED, "This agent is not the machine's first process");
        /* What waits for a frozen file system cannot even be killed. */
        (void) freezer_thaw(&req->agent->freezer);
        end_processes(req->agent);
        sync();
        unmount_others();
        /* The journal makes what is not read-only whole again: a busy file system is no reason to stay. */
        if (agent_root_mounted(req->agent) && mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
                console_say("the root stays writable: %s", strerror(errno));
        sync();

        request_send(req, WIRE_MSG_OK, NULL);
        /* The host closes the stream when it has read the answer. */
        while (mux_recv(req->stream, &op, &ev) == 0 && ev.kind != MUX_CLOSED && ev.kind != MUX_LOST)
                mux_event_clear(&ev);
        console_say("shutting down");
        reboot(RB_AUTOBOOT);
        return error_set_errno(err, errno, "Cannot end the machine");
}
