/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What this host can run VMs with: which QEMU, which accelerator.
 *
 * That /dev/kvm opens proves nothing: on some hosts a guest then hangs at 100 % of a core for ever, on others QEMU
 * aborts. `auto` therefore boots the real kernel under KVM with a limit of PROBE_KVM_MS; the answer is cached in a
 * file, keyed by the host's boot id, the QEMU binary and the kernel. Everything else falls back to TCG.
 *
 * Under TCG a guest reads the host's time stamp counter. It would have to measure its frequency against an emulated
 * timer; on a busy host that fails, and as a microvm has no other clock the kernel then hangs for ever (measured: most
 * boots on two cores with other work). So the host measures it (tsc_khz) and the guest is told.
 */

#include "base/deadline.h"
#include "base/error.h"

#define PROBE_KVM_MS 3000
#define PLATFORM_STREAM_QEMU "7.2" /* the first with `-netdev stream` */

enum accel { ACCEL_AUTO, ACCEL_KVM, ACCEL_TCG };
const char *accel_name(enum accel a);
int accel_parse(const char *name, enum accel *ret);

struct platform {
        char *qemu;         /* absolute path */
        char *qemu_version; /* e.g. "7.2.22" */
        char *kernel, *initramfs;
        enum accel accel;   /* KVM or TCG */
        char *accel_reason; /* one sentence: why this one; for `agentiso check` */
        unsigned tsc_khz;   /* frequency of the host's time stamp counter; 0: unknown */
};
void platform_clear(struct platform *p);
/* Whether its QEMU can give a machine's frames to another process by a socket (`-netdev stream`). */
bool platform_has_stream(const struct platform *p);
#define _cleanup_platform_ _cleanup_(platform_clear)

struct platform_args {
        const char *qemu;        /* NULL or empty: qemu-system-x86_64 from PATH */
        const char *image_dir;   /* boot/vmlinux (or vmlinuz) and boot/initramfs.img are below it */
        const char *cache_file;  /* where the probe's answer is kept; NULL: not kept */
        const char *scratch_dir; /* for the probe's sockets; made and removed */
        enum accel accel;
};
/* Finds QEMU and the boot files and decides on the accelerator; takes up to PROBE_KVM_MS more than a moment. */
int platform_probe(const struct platform_args *args, const struct op *op, struct platform *ret, struct error *err);
