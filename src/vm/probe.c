/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/probe.h"

#include <fcntl.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "vm/vm.h"

#define PROBE_MEMORY_MB 256u
#define REASON_MAX 512u

int probe_kvm_device(bool *ret_open, char **ret_reason) {
        _cleanup_close_ int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        const int e = fd < 0 ? errno : 0;

        char *reason = e == 0 ? strdup("/dev/kvm opens.")
                       : e == ENOENT
                               ? strdup("There is no /dev/kvm: the processor or the hypervisor of this host offers no "
                                        "virtualisation, or the module kvm is not loaded.")
                       : e == EACCES ? strdup("/dev/kvm may not be opened by this user: add it to the group kvm "
                                              "(usermod -aG kvm <user>) and log in again.")
                                     : str_printf("/dev/kvm cannot be opened: %s.", strerrordesc_np(e));
        if (!reason)
                return -ENOMEM;
        *ret_open = e == 0;
        *ret_reason = reason;
        return 0;
}

/* One line of what went wrong: QEMU's own words if there are any, else the first line of the error. */
static char *short_reason(const char *dir, const struct error *e) {
        _cleanup_buf_ struct buf line = BUF_INIT(REASON_MAX);

        if (vm_stderr_tail(dir, 1, &line) >= 0 && line.len > 0) {
                size_t len = strcspn(line.data, "\n");

                while (len > 0 && line.data[len - 1] == '.')
                        len--;
                return str_printf("A guest does not come up under KVM: %.*s.", (int) len, line.data);
        }
        const char *message = error_message(e);
        return str_printf("A guest does not come up under KVM: %.*s.", (int) strcspn(message, "\n"), message);
}

static int boot(const struct platform *p, const char *dir, const struct op *op, enum probe_answer *ret,
                char **ret_reason, struct error *err) {
        _cleanup_error_ struct error why = ERROR_INIT;
        _cleanup_vm_ struct vm *vm = NULL;
        const struct op limited = op_sub(op, PROBE_KVM_MS);
        const int64_t began = monotonic_ns();
        const struct vm_spec spec = {
                .id = "kvm-probe",
                .dir = dir,
                .vcpus = 1,
                .memory_mb = PROBE_MEMORY_MB,
                .net = VM_NET_NONE,
        };
        struct platform kvm = *p; /* borrows the strings */

        kvm.accel = ACCEL_KVM;
        int r = vm_launch(&kvm, &spec, NULL, &limited, &vm, &why);
        if (r >= 0) {
                vm_kill(vm);
                *ret = PROBE_WORKS;
                *ret_reason = str_printf("A guest came up under KVM in %lld ms.",
                                         (long long) ((monotonic_ns() - began) / NSEC_PER_MSEC));
        } else {
                /* The caller's own limit, or a host that cannot even try, says nothing about KVM. */
                if (op_check(op) < 0 || r == -ENOMEM || r == -ENOSPC || r == -EMFILE || r == -ENFILE) {
                        error_move(err, &why);
                        return r;
                }
                *ret = PROBE_FAILS;
                *ret_reason = r == -ETIMEDOUT
                                      ? str_printf("/dev/kvm opens, but a guest hangs under it (no answer in %d s).",
                                                   PROBE_KVM_MS / 1000)
                                      : short_reason(dir, &why);
        }
        return *ret_reason ? 0 : error_set_errno(err, ENOMEM, "Cannot probe KVM");
}

/* Ends the QEMU of a probe whose process was killed: a guest that hangs would use up a core for ever. */
static void end_stray(const char *dir) {
        struct proc_id id;

        if (vm_find(dir, &id) >= 0)
                (void) proc_id_kill(&id, PROBE_KVM_MS);
        (void) rm_rf(dir);
}

int probe_kvm(const struct platform *p, const char *scratch_dir, const struct op *op, enum probe_answer *ret,
              char **ret_reason, struct error *err) {
        bool opens = false;

        int r = probe_kvm_device(&opens, ret_reason);
        if (r < 0)
                return error_set_errno(err, r, "Cannot probe KVM");
        if (!opens) {
                *ret = PROBE_ABSENT;
                return 0;
        }
        free(TAKE_PTR(*ret_reason));

        _cleanup_free_ char *dir = path_join(scratch_dir, "kvm-probe");
        if (!dir)
                return error_set_errno(err, ENOMEM, "Cannot probe KVM");
        end_stray(dir);
        r = mkdir_p(dir, 0700);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the folder %s", dir);
        op_progress(op, "trying KVM");
        r = boot(p, dir, op, ret, ret_reason, err);
        (void) rm_rf(dir);
        return r;
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <time.h>
#include <x86intrin.h>

#define TSC_ROUNDS 5
#define TSC_ROUND_NS (10 * NSEC_PER_MSEC)
#define TSC_SAMPLES 16    /* readings of both clocks, of which the one that was interrupted least counts */
#define TSC_AGREE_PPM 20u /* two rounds this close to each other are believed */

struct tsc_sample {
        int64_t ns; /* of the kernel's clock, which is calibrated over a long time */
        uint64_t cycles;
};

static int64_t raw_ns(void) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

/* Both clocks at one moment: the counter is read between two readings of the time, as close together as possible. */
static struct tsc_sample tsc_sample(void) {
        struct tsc_sample best = {0};
        int64_t best_gap = INT64_MAX;

        for (int i = 0; i < TSC_SAMPLES; i++) {
                int64_t before = raw_ns();
                uint64_t cycles = __rdtsc();
                int64_t gap = raw_ns() - before;

                if (gap < best_gap) {
                        best_gap = gap;
                        best = (struct tsc_sample){.ns = before + gap / 2, .cycles = cycles};
                }
        }
        return best;
}

/* Whether the counter runs at one rate in all states of the processor: CPUID 80000007h EDX bit 8 (Intel SDM vol. 2A,
 * AMD APM vol. 3). */
static bool tsc_invariant(void) {
        unsigned a, b, c, d;

        return __get_cpuid(0x80000007u, &a, &b, &c, &d) && d & (1u << 8);
}

unsigned probe_tsc_khz(void) {
        const struct timespec pause = {.tv_nsec = TSC_ROUND_NS};
        uint64_t last = 0;

        if (!tsc_invariant())
                return 0;
        const struct tsc_sample first = tsc_sample();
        for (int i = 0; i < TSC_ROUNDS; i++) {
                nanosleep(&pause, NULL);
                const struct tsc_sample now = tsc_sample();
                uint64_t khz = (now.cycles - first.cycles) * (uint64_t) NSEC_PER_MSEC / (uint64_t) (now.ns - first.ns);
                uint64_t apart = khz > last ? khz - last : last - khz;

                if (apart <= khz * TSC_AGREE_PPM / 1000000u)
                        return (unsigned) MIN(khz, (uint64_t) UINT32_MAX);
                last = khz;
        }
        return 0;
}
#else
unsigned probe_tsc_khz(void) {
        return 0;
}
#endif
