/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "network/ranges.h"
#include "vm/vm_private.h"
#include "wire/wire.h"

#define PATH_LEN_MAX 4096u

/*
 * Why these arguments:
 *
 * -M microvm            No PCI and hardly a device that was not asked for. Its PIT, PIC and RTC stay: without the first
 *                       two the kernel does not boot under TCG, without the last it waits a second for it (measured).
 * mem-merge, dump-guest-core  off: no page sharing between VMs behind their backs (a side channel), no guest memory in
 *                       a core file of QEMU.
 * memory-backend-ram    Anonymous memory of QEMU. A file of its own would cost the writing back of every dirty page, so
 *                       only a template has one (share=on), and its children map that (share=off). All have the same
 *                       name, by which a saved state refers to it.
 * no -kernel            in a guest that goes on from a state: QEMU would read it for nothing (measured for a vmlinuz:
 *                       8 ms and 14 MiB).
 * -S                    with a state: it alone does not say whether the guest is to run, which depends on how it was
 *                       saved.
 * announce-rounds=0     QEMU would make the guest tell the network that it has moved, which it has not: a fork would
 *                       do so with the address of its source. It also takes the guest a sixth of the time until its
 *                       agent answers (measured).
 * send-configuration, suppress-vmdesc  off and on: xen-save-devices-state writes neither of the two parts of a state.
 *                       For all machines alike, because what one writes another has to read.
 * cache                 The page cache of the host holds the disk (cache.direct=off: the base image is shared by all
 *                       VMs, and O_DIRECT is missing on some file systems); a flush of the guest reaches the host's
 *                       disk (cache.no-flush=off), so what a guest has synced survives a crash of the host.
 * aio=threads           Works on every kernel and under every seccomp filter; io_uring is often forbidden.
 * discard, detect-zeroes  What the guest deletes, or fills with zeroes, takes no room on the host.
 * chardev fd=           The daemon listens on the sockets and hands them over. They can be connected to before QEMU
 *                       runs, there is no moment at which they do not exist, and QEMU needs no path to them. A socket,
 *                       unlike a FIFO or a file, drops what is written while nobody is connected, so that a guest
 *                       which floods its console blocks nothing and fills nothing.
 * -pidfile              Names the folder on the command line, by which vm_find() knows the process, and holds a lock:
 *                       a second QEMU for the same folder does not start.
 */

/* Memory for translated code under TCG, of which QEMU would else take up to 1 GiB in the long run. A boot fills some 60
 * MiB; with 32 it takes 30 MiB less and as long, but compilers and interpreters would then be translated again and
 * again. */
#define TCG_TB_SIZE_MB 64

/* One serial port instead of a search for four, and no self-tests of ciphers: a tenth of the boot (measured). */
#define KERNEL_CMDLINE "console=ttyS0 reboot=t panic=-1 quiet random.trust_cpu=on 8250.nr_uarts=1 cryptomgr.notests"

/* In QEMU's option lists a comma within a value is written twice. */
static char *escape_commas(const char *s) {
        _cleanup_buf_ struct buf b = BUF_INIT(2 * PATH_LEN_MAX);

        for (; *s; s++)
                if ((*s == ',' && buf_append_byte(&b, ',') < 0) || buf_append_byte(&b, (uint8_t) *s) < 0)
                        return NULL;
        return buf_steal(&b);
}

static int add(struct strv *v, const char *const *args, size_t n) {
        for (size_t i = 0; i < n; i++) {
                int r = strv_add(v, args[i]);
                if (r < 0)
                        return r;
        }
        return 0;
}
#define ADD(v, ...) add(v, (const char *const[]){__VA_ARGS__}, ARRAY_SIZE(((const char *const[]){__VA_ARGS__})))

static int add_accel(struct strv *v, enum accel accel) {
        if (accel == ACCEL_KVM)
                return ADD(v, "-accel", "kvm", "-cpu", "host");
        int r = ADD(v, "-accel");
        if (r >= 0)
                r = strv_addf(v, "tcg,thread=multi,tb-size=%d", TCG_TB_SIZE_MB);
        return r < 0 ? r : ADD(v, "-cpu", "max,-erms,-fsrm");
}

/* Whether memory and state make sense together. */
static bool is_consistent(const struct vm_spec *spec) {
        if ((spec->memory == VM_MEMORY_ANONYMOUS) != str_empty(spec->memory_path) ||
            (spec->state == VM_STATE_NONE) != str_empty(spec->state_path) ||
            (spec->pages_path && spec->state != VM_STATE_DEVICES))
                return false;
        switch (spec->state) {
        case VM_STATE_NONE:
                return spec->memory != VM_MEMORY_PRIVATE;
        case VM_STATE_TEMPLATE:
        case VM_STATE_DEVICES:
                return spec->memory == VM_MEMORY_PRIVATE;
        case VM_STATE_FULL:
                return spec->memory == VM_MEMORY_ANONYMOUS;
        }
        return false;
}

static int add_memory(struct strv *v, const struct vm_spec *spec) {
        int r = ADD(v, "-m");
        if (r >= 0)
                r = strv_addf(v, "%uM", spec->memory_mb);
        if (r >= 0)
                r = ADD(v, "-object");
        if (r < 0)
                return r;
        if (spec->memory == VM_MEMORY_ANONYMOUS)
                return strv_addf(v, "memory-backend-ram,id=ram,size=%uM,merge=off,dump=off", spec->memory_mb);
        _cleanup_free_ char *path = escape_commas(spec->memory_path);
        if (!path)
                return -ENOMEM;
        return strv_addf(v, "memory-backend-file,id=ram,size=%uM,mem-path=%s,share=%s,merge=off,dump=off",
                         spec->memory_mb, path, spec->memory == VM_MEMORY_SHARED ? "on" : "off");
}

static int add_kernel(struct strv *v, const struct platform *p) {
        int r = ADD(v, "-kernel", p->kernel, "-initrd", p->initramfs, "-append");
        if (r < 0)
                return r;
        /* KVM tells the guest itself; see platform.h. All processors of a guest read the same counter; without
         * "reliable" the kernel supposes the contrary and falls back to a clock of 4 ms steps that loses time on a busy
         * host. */
        if (p->accel == ACCEL_TCG && p->tsc_khz > 0)
                return strv_addf(v, KERNEL_CMDLINE " tsc=reliable tsc_early_khz=%u", p->tsc_khz);
        return strv_add(v, KERNEL_CMDLINE);
}

static int add_machine(struct strv *v, const struct platform *p, const struct vm_spec *spec) {
        int r = ADD(v, "-M", "microvm,mem-merge=off,dump-guest-core=off,memory-backend=ram,suppress-vmdesc=on");
        if (r >= 0)
                r = add_accel(v, p->accel);
        if (r >= 0)
                r = ADD(v, "-smp");
        if (r >= 0)
                r = strv_addf(v, "cpus=%u", spec->vcpus);
        if (r >= 0)
                r = add_memory(v, spec);
        if (r >= 0)
                r = ADD(v, "-global", "migration.send-configuration=off", "-global", "migration.announce-rounds=0");
        if (r < 0)
                return r;
        return spec->state == VM_STATE_NONE ? add_kernel(v, p) : ADD(v, "-incoming", "defer", "-S");
}

static int add_channels(struct strv *v) {
        int r = ADD(v, "-chardev");
        if (r >= 0)
                r = strv_addf(v, "socket,id=qmp,fd=%d,server=on,wait=off", VM_FD_QMP);
        if (r >= 0)
                r = ADD(v, "-mon", "chardev=qmp,mode=control", "-chardev");
        if (r >= 0)
                r = strv_addf(v, "socket,id=console,fd=%d,server=on,wait=off", VM_FD_CONSOLE);
        if (r >= 0)
                r = ADD(v, "-serial", "chardev:console", "-chardev");
        if (r >= 0)
                r = strv_addf(v, "socket,id=agent,fd=%d,server=on,wait=off", VM_FD_AGENT);
        if (r >= 0)
                r = ADD(v, "-device", "virtio-serial-device,id=ports,max_ports=2", "-device",
                        "virtserialport,bus=ports.0,nr=1,chardev=agent,name=" WIRE_PORT_NAME);
        return r;
}

static int add_disk(struct strv *v, const struct vm_spec *spec) {
        if (!spec->disk_path)
                return 0;
        _cleanup_free_ char *path = escape_commas(spec->disk_path);
        if (!path)
                return -ENOMEM;

        int r = ADD(v, "-blockdev");
        if (r >= 0)
                r = strv_addf(v,
                              "driver=file,node-name=disk-file,filename=%s,aio=threads,cache.direct=off,"
                              "cache.no-flush=off,discard=unmap",
                              path);
        if (r >= 0)
                r = ADD(v, "-blockdev");
        if (r >= 0)
                r = strv_addf(v,
                              "driver=%s,node-name=disk,file=disk-file,cache.direct=off,cache.no-flush=off,"
                              "discard=unmap,detect-zeroes=unmap",
                              spec->disk_format);
        return r < 0 ? r : ADD(v, "-device", "virtio-blk-device,id=" VM_DISK_DEVICE ",drive=disk");
}

/* The address of the resolver that user networking insists on: the last one of the network, out of the way of guests
 * (its default, the third, may be a guest's). */
static int last_address(const char *network, unsigned prefix_len, char ret[INET_ADDRSTRLEN]) {
        struct in_addr a;

        if (!network || prefix_len < 8 || prefix_len > 29 || inet_pton(AF_INET, network, &a) != 1)
                return -EINVAL;
        a.s_addr = htonl(range_last_host(ntohl(a.s_addr), prefix_len));
        return inet_ntop(AF_INET, &a, ret, INET_ADDRSTRLEN) ? 0 : -errno;
}

static int add_user_network(struct strv *v, const struct vm_spec *spec) {
        char resolver[INET_ADDRSTRLEN];

        int r = last_address(spec->network, spec->prefix_len, resolver);
        if (r < 0 || str_empty(spec->gateway))
                return -EINVAL;
        return strv_addf(v, "user,id=net,restrict=on,ipv6=off,net=%s/%u,host=%s,dns=%s", spec->network,
                         spec->prefix_len, spec->gateway, resolver);
}

static int add_netdev(struct strv *v, const struct vm_spec *spec) {
        switch (spec->net) {
        case VM_NET_TAP:
                return strv_addf(v, "tap,id=net,fd=%d", VM_FD_NET);
        case VM_NET_STREAM:
                return strv_addf(v, "stream,id=net,server=off,addr.type=fd,addr.str=%d", VM_FD_NET);
        default:
                return add_user_network(v, spec);
        }
}

static int add_network(struct strv *v, const struct vm_spec *spec) {
        if (spec->net == VM_NET_NONE)
                return ADD(v, "-nic", "none");
        if (str_empty(spec->mac))
                return -EINVAL;
        int r = ADD(v, "-netdev");
        if (r >= 0)
                r = add_netdev(v, spec);
        if (r >= 0)
                r = ADD(v, "-device");
        return r < 0 ? r : strv_addf(v, "virtio-net-device,id=net0,netdev=net,mac=%s", spec->mac);
}

int vm_argv(const struct platform *p, const struct vm_spec *spec, struct strv *ret) {
        _cleanup_strv_ struct strv v = {0};
        _cleanup_free_ char *id = escape_commas(spec->id), *pidfile = path_join(spec->dir, VM_PIDFILE);

        if (!id || !pidfile)
                return -ENOMEM;
        if (!is_consistent(spec))
                return -EINVAL;
        int r = ADD(&v, p->qemu, "-name");
        if (r >= 0)
                r = strv_addf(&v, "guest=agentiso-%s", id);
        if (r >= 0)
                r = ADD(&v, "-pidfile", pidfile, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        if (r >= 0)
                r = add_machine(&v, p, spec);
        if (r >= 0)
                r = add_channels(&v);
        if (r >= 0)
                r = ADD(&v, "-device", "virtio-rng-device");
        if (r >= 0)
                r = add_disk(&v, spec);
        if (r >= 0)
                r = add_network(&v, spec);
        if (r < 0)
                return r;
        *ret = v;
        v = (struct strv){0};
        return 0;
}
