/* SPDX-License-Identifier: Apache-2.0 */
/* Starts that fail, with a shell script in the place of QEMU; the choice of the platform. */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/thread.h"
#include "tap.h"
#include "vm/vm_private.h"

#define PATIENCE_MS 60000

static char dir[] = "/tmp/agentiso-vm-test-XXXXXX";
static char qemu[64], images[64], cache[64], ran[64];

static void write_text(const char *path, const char *text, mode_t mode) {
        CHECK_INT(file_write_atomic(path, text, strlen(text), mode), 0);
}

/* A program that says a version when asked, and otherwise does what `script` says. */
static void make_qemu(const char *script) {
        _cleanup_free_ char *text =
                str_printf("#!/bin/sh\n"
                           "case $1 in -version) echo 'QEMU emulator version 9.8.7 (Debian)'; exit;; "
                           "esac\n"
                           "echo >>%s\n%s\n",
                           ran, script);
        write_text(qemu, text, 0755);
}

static bool exists(const char *name) {
        _cleanup_free_ char *path = path_join(dir, name);

        return access(path, F_OK) == 0;
}

static bool left_behind(void) {
        struct proc_id id;

        return exists("qmp.sock") || exists("agent.sock") || exists("con.sock") || vm_find(dir, &id) >= 0;
}

static int exits;
static pid_t spawned_pid;
static bool refuse_spawn;

static int spawned(void *arg, const struct proc_id *proc, struct error *err) {
        spawned_pid = proc->pid;
        return refuse_spawn ? error_set(err, ERROR_NO_SPACE, "cannot remember") : 0;
}

static void exited(void *arg) {
        exits++;
}

static int launch(const struct op *op, struct error *e) {
        const struct platform p = {
                .qemu = qemu, .kernel = (char[]){"/k"}, .initramfs = (char[]){"/i"}, .accel = ACCEL_TCG};
        const struct vm_spec spec = {.id = "t", .dir = dir, .vcpus = 1, .memory_mb = 64};
        const struct vm_callbacks cb = {.spawned = spawned, .exited = exited};
        struct vm *vm = NULL;

        int r = vm_launch(&p, &spec, &cb, op, &vm, e);
        CHECK(!vm);
        return r;
}

static void test_qemu_that_fails(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;

        make_qemu("echo 'qemu: could not open the disk' >&2; exit 7");
        CHECK(launch(&op, &e) < 0);
        CHECK_INT(e.code, ERROR_INTERNAL);
        CHECK(strstr(error_message(&e), "exit status 7"));
        CHECK(strstr(error_message(&e), "could not open the disk"));
        CHECK(!left_behind());
        CHECK_INT(exits, 0);
}

static int64_t log_size(const char *name) {
        _cleanup_free_ char *path = path_join(dir, name);
        struct stat st;

        return stat(path, &st) < 0 ? 0 : st.st_size;
}

/* A guest can make QEMU complain without end. */
static void test_what_qemu_says_is_bounded(void) {
        const struct op op = op_timeout(PATIENCE_MS);

        make_qemu("i=0; while [ $i -lt 20000 ]; do echo \"qemu: bogus descriptor $i\" >&2; i=$((i+1)); done; exit 7");
        CHECK(launch(&op, NULL) < 0);
        CHECK(log_size("stderr.log") <= 64 * 1024);
        CHECK_INT(log_size("stderr.log.1"), 64 * 1024);
        CHECK(!exists("stderr.fifo"));

        make_qemu("echo 'qemu: another run' >&2; exit 7");
        CHECK(launch(&op, NULL) < 0);
        CHECK_INT(log_size("stderr.log"), 18);
        CHECK_INT(log_size("stderr.log.1"), 0);
}

static void test_qemu_that_is_killed(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;

        make_qemu("kill -SEGV $$");
        CHECK(launch(&op, &e) < 0);
        CHECK(strstr(error_message(&e), "signal 11"));
        CHECK(!left_behind());
}

static void test_deadline(void) {
        const struct op op = op_timeout(200);
        _cleanup_error_ struct error e = ERROR_INIT;

        make_qemu("exec sleep 100");
        CHECK_INT(launch(&op, &e), -ETIMEDOUT);
        CHECK_INT(e.code, ERROR_TIMEOUT);
        CHECK(kill(spawned_pid, 0) < 0);
        CHECK(!left_behind());
}

static void test_cancel(void) {
        struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;

        make_qemu("exec sleep 100");
        op.cancel = cancel_new();
        cancel_fire(op.cancel);
        CHECK_INT(launch(&op, &e), -ECANCELED);
        CHECK_INT(e.code, ERROR_CANCELLED);
        CHECK(!left_behind());
        cancel_unref(op.cancel);
}

static void test_what_cannot_be_remembered_does_not_run(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;

        make_qemu("exec sleep 100");
        refuse_spawn = true;
        CHECK(launch(&op, &e) < 0);
        refuse_spawn = false;
        CHECK_STR(error_message(&e), "cannot remember");
        CHECK(kill(spawned_pid, 0) < 0);
        CHECK(!left_behind());
        CHECK_INT(exits, 0);
}

static void *take_turn(void *arg) {
        const struct op op = op_timeout(PATIENCE_MS);

        *(int *) arg = vm_turn_take(&op);
        return NULL;
}

/* Few machines go on at once: whoever comes later waits until one is done, or gives up. */
static void test_turns(void) {
        const struct op now = op_timeout(0);
        unsigned n = 0, most;
        int later = -1;
        pthread_t thread;
        cpu_set_t set;

        REQUIRE(sched_getaffinity(0, sizeof(set), &set) >= 0);
        most = (unsigned) CPU_COUNT(&set) + 1;
        while (n <= most && vm_turn_take(&now) >= 0)
                n++;
        CHECK_INT(n, most);
        CHECK_INT(vm_turn_take(&now), -ETIMEDOUT);
        REQUIRE(thread_start(&thread, "turn", take_turn, &later) >= 0);
        vm_turn_give();
        pthread_join(thread, NULL);
        CHECK_INT(later, 0);
        CHECK_INT(vm_turn_take(&now), -ETIMEDOUT);
        for (; n > 0; n--)
                vm_turn_give();
}

/* One that waits under an op that ends is told so, and QEMU is not started. */
static void test_a_launch_that_gives_up_its_turn(void) {
        const struct platform p = {.qemu = qemu, .accel = ACCEL_TCG};
        const struct vm_spec spec = {.id = "t",
                                     .dir = dir,
                                     .vcpus = 1,
                                     .memory_mb = 64,
                                     .memory = VM_MEMORY_PRIVATE,
                                     .memory_path = "/ram",
                                     .state = VM_STATE_TEMPLATE,
                                     .state_path = "/state"};
        const struct op now = op_timeout(0);
        _cleanup_error_ struct error e = ERROR_INIT;
        struct vm *vm = NULL;
        unsigned n = 0, most;

        make_qemu("exit 1");
        unlink(ran);
        while (vm_turn_take(&now) >= 0)
                n++;
        most = n;
        CHECK_INT(vm_launch(&p, &spec, NULL, &now, &vm, &e), -ETIMEDOUT);
        CHECK_INT(e.code, ERROR_TIMEOUT);
        CHECK(access(ran, F_OK) < 0);
        for (; n > 0; n--)
                vm_turn_give();
        /* A failed launch gives its turn back. */
        const struct op op = op_timeout(PATIENCE_MS);
        for (unsigned i = 0; i <= most; i++)
                CHECK(vm_launch(&p, &spec, NULL, &op, &vm, NULL) < 0);
        CHECK(access(ran, F_OK) == 0);
}

static void test_attach_to_nobody(void) {
        struct proc_id id = {0};
        const struct vm_spec spec = {.id = "t", .dir = dir};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct vm *vm = NULL;

        CHECK_INT(proc_id_read(getpid(), &id), 0);
        id.start_ticks++; /* our pid, but of a process of another time */
        CHECK_INT(vm_attach(&spec, &id, NULL, &vm, &e), -ESRCH);
        CHECK_INT(e.code, ERROR_NOT_RUNNING);
}

/* --- platform --- */

static int probe(enum accel accel, struct platform *ret, struct error *e) {
        const struct op op = op_timeout(PATIENCE_MS);
        const struct platform_args args = {
                .qemu = qemu, .image_dir = images, .cache_file = cache, .scratch_dir = dir, .accel = accel};

        return platform_probe(&args, &op, ret, e);
}

static void test_what_is_missing_is_named(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        const struct platform_args absent = {.qemu = "/nowhere/qemu", .image_dir = images, .accel = ACCEL_TCG};
        _cleanup_platform_ struct platform p = {0};
        _cleanup_error_ struct error e = ERROR_INIT;

        CHECK_INT(platform_probe(&absent, &op, &p, &e), -ENOENT);
        CHECK(strstr(error_message(&e), "/nowhere/qemu"));
        CHECK(strstr(e.hint, "apt install qemu-system-x86"));
        CHECK_INT(probe(ACCEL_TCG, &p, &e), -ENOENT);
        CHECK(strstr(error_message(&e), "boot/vmlinuz"));
        CHECK(strstr(e.hint, "agentiso image build"));
}

static void make_images(void) {
        static const char *const names[] = {"boot/vmlinuz", "boot/initramfs.img"};
        _cleanup_free_ char *boot = path_join(images, "boot");

        CHECK_INT(mkdir_p(boot, 0700), 0);
        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_free_ char *path = path_join(images, names[i]);
                write_text(path, "x", 0600);
        }
}

static void test_forced_tcg(void) {
        _cleanup_platform_ struct platform p = {0};

        make_images();
        REQUIRE(probe(ACCEL_TCG, &p, NULL) == 0);
        CHECK_STR(p.qemu, qemu);
        CHECK_STR(p.qemu_version, "9.8.7");
        CHECK_INT(p.accel, ACCEL_TCG);
        CHECK(strstr(p.kernel, "/boot/vmlinuz"));
}

static int64_t runs(void) {
        struct stat st;

        return stat(ran, &st) < 0 ? 0 : st.st_size;
}

/* Where /dev/kvm opens, a QEMU that fails under it is tried once and remembered; elsewhere it is not even tried. */
static void test_auto_falls_back_and_remembers(void) {
        _cleanup_platform_ struct platform first = {0}, second = {0}, third = {0};
        int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        const int tried = fd >= 0;

        close_fd(fd);
        make_qemu("echo 'kvm is broken here' >&2; exit 1");
        const int64_t before = runs();
        REQUIRE(probe(ACCEL_AUTO, &first, NULL) == 0);
        CHECK_INT(first.accel, ACCEL_TCG);
        CHECK(strstr(first.accel_reason, tried ? "kvm is broken here" : "/dev/kvm"));
        CHECK_INT(runs() - before, tried);
        REQUIRE(probe(ACCEL_AUTO, &second, NULL) == 0);
        CHECK_INT(second.accel, ACCEL_TCG);
        CHECK_STR(second.accel_reason, first.accel_reason);
        CHECK_INT(runs() - before, tried);
        /* Another QEMU is another question; so is a cache that is damaged. */
        make_qemu("echo 'kvm is broken there' >&2; exit 1");
        REQUIRE(probe(ACCEL_AUTO, &third, NULL) == 0);
        CHECK_INT(runs() - before, 2 * tried);
        write_text(cache, "{", 0600);
        platform_clear(&third);
        REQUIRE(probe(ACCEL_AUTO, &third, NULL) == 0);
        CHECK_INT(runs() - before, 3 * tried);
        CHECK(!left_behind());
}

static void test_names_of_accelerators(void) {
        enum accel a = ACCEL_AUTO;

        CHECK_INT(accel_parse("kvm", &a), 0);
        CHECK_STR(accel_name(a), "kvm");
        CHECK_INT(accel_parse("xen", &a), -EINVAL);
}

int main(void) {
        if (!mkdtemp(dir))
                return 1;
        snprintf(qemu, sizeof(qemu), "%s/qemu", dir);
        snprintf(images, sizeof(images), "%s/images", dir);
        snprintf(cache, sizeof(cache), "%s/probe.json", dir);
        snprintf(ran, sizeof(ran), "%s/ran", dir);
        make_qemu("exit 1");
        RUN(test_qemu_that_fails);
        RUN(test_what_qemu_says_is_bounded);
        RUN(test_qemu_that_is_killed);
        RUN(test_deadline);
        RUN(test_cancel);
        RUN(test_what_cannot_be_remembered_does_not_run);
        RUN(test_turns);
        RUN(test_a_launch_that_gives_up_its_turn);
        RUN(test_attach_to_nobody);
        RUN(test_what_is_missing_is_named);
        RUN(test_forced_tcg);
        RUN(test_auto_falls_back_and_remembers);
        RUN(test_names_of_accelerators);
        rm_rf(dir);
        return tap_done();
}
