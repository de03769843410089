/* SPDX-License-Identifier: Apache-2.0 */
/* What makes another template, and what does not. */
#include <fcntl.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/str.h"
#include "tap.h"
#include "vm/state.h"

static char dir[] = "/tmp/agentiso-key-XXXXXX";
static char qemu[64], kernel[64], initramfs[64], version[] = "7.2.22", newer_version[] = "7.2.23";

static const struct vm_spec plain = {
        .id = "a",
        .dir = "/vms/a",
        .vcpus = 2,
        .memory_mb = 512,
        .disk_path = "/disks/a",
        .disk_format = "qcow2",
        .net = VM_NET_USER_RESTRICTED,
        .mac = "52:54:00:63:00:07",
        .network = "10.99.0.0",
        .prefix_len = 16,
        .gateway = "10.99.0.1",
};

static struct platform host(void) {
        return (struct platform){
                .qemu = qemu,
                .qemu_version = version,
                .kernel = kernel,
                .initramfs = initramfs,
                .accel = ACCEL_TCG,
                .tsc_khz = 2596118,
        };
}

/* Of a file that is missing: NULL. */
static char *key_of(const struct platform *p, const struct vm_spec *spec) {
        _cleanup_buf_ struct buf key = BUF_INIT(VM_KEY_MAX);

        return vm_template_key(p, spec, &key, NULL) < 0 ? NULL : buf_steal(&key);
}

static void check(const struct platform *p, const struct vm_spec *spec, bool same) {
        const struct platform first = host();
        _cleanup_free_ char *want = key_of(&first, &plain), *got = key_of(p, spec);

        CHECK(want && got);
        CHECK_INT(str_eq(want, got), same);
}

static void test_one_machine_is_like_another(void) {
        const struct platform p = host();
        struct vm_spec spec = plain;

        check(&p, &spec, true);
        spec.id = "b";
        spec.dir = "/vms/b";
        spec.disk_path = "/disks/b,with-a-comma";
        spec.disk_format = "raw";
        spec.mac = "52:54:00:63:00:08";
        check(&p, &spec, true);
        /* Nor does it matter what it is started from. */
        spec.memory = VM_MEMORY_PRIVATE;
        spec.memory_path = "/t/ram";
        spec.state = VM_STATE_TEMPLATE;
        spec.state_path = "/t/state";
        check(&p, &spec, true);
}

static void test_machines_that_differ(void) {
        const struct platform p = host();
        struct vm_spec differ[] = {plain, plain, plain, plain};

        differ[0].vcpus = 1;
        differ[1].memory_mb = 1024;
        differ[2].disk_path = NULL;
        differ[3].net = VM_NET_NONE;
        for (size_t i = 0; i < ARRAY_SIZE(differ); i++)
                check(&p, &differ[i], false);
}

static void test_hosts_that_differ(void) {
        struct platform differ[] = {host(), host(), host()};

        differ[0].accel = ACCEL_KVM;
        differ[1].qemu_version = newer_version;
        differ[2].tsc_khz = 2999000;
        for (size_t i = 0; i < ARRAY_SIZE(differ); i++)
                check(&differ[i], &plain, false);
}

/* It is measured at each start, a little differently every time. */
static void test_the_clock_is_not_taken_too_exactly(void) {
        struct platform p = host();

        p.tsc_khz = 2596131;
        check(&p, &plain, true);
}

static void test_files_that_change(void) {
        const char *const files[] = {qemu, kernel, initramfs};
        const struct platform p = host();

        for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
                const struct timespec later[] = {{.tv_sec = 1000}, {.tv_sec = 1000, .tv_nsec = 7000000}};
                _cleanup_free_ char *before = key_of(&p, &plain);

                CHECK_INT(utimensat(AT_FDCWD, files[i], later, 0), 0);
                _cleanup_free_ char *newer = key_of(&p, &plain);
                CHECK(newer && !str_eq(before, newer));
                CHECK_INT(truncate(files[i], 9 + (off_t) i), 0);
                CHECK_INT(utimensat(AT_FDCWD, files[i], later, 0), 0);
                _cleanup_free_ char *longer = key_of(&p, &plain);
                CHECK(longer && !str_eq(newer, longer));
        }
        CHECK_INT(unlink(kernel), 0);
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_buf_ struct buf key = BUF_INIT(VM_KEY_MAX);
        CHECK_INT(vm_template_key(&p, &plain, &key, &e), -ENOENT);
        CHECK(error_is_set(&e));
        CHECK_INT(key.len, 0);
}

int main(void) {
        if (!mkdtemp(dir))
                return 1;
        snprintf(qemu, sizeof(qemu), "%s/qemu", dir);
        snprintf(kernel, sizeof(kernel), "%s/vmlinux", dir);
        snprintf(initramfs, sizeof(initramfs), "%s/initramfs", dir);
        const char *const files[] = {qemu, kernel, initramfs};
        for (size_t i = 0; i < ARRAY_SIZE(files); i++)
                if (file_write_atomic(files[i], "x", 1, 0600) < 0)
                        return 1;
        RUN(test_one_machine_is_like_another);
        RUN(test_machines_that_differ);
        RUN(test_hosts_that_differ);
        RUN(test_the_clock_is_not_taken_too_exactly);
        RUN(test_files_that_change);
        rm_rf(dir);
        return tap_done();
}
