/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Templates, children, live snapshots and forks with real machines; TAP with the times as comments:
 *
 *     template-once IMAGE_DIR [IMAGE] [kvm|tcg|auto]
 *
 * IMAGE_DIR/boot has the kernel and the initramfs, IMAGE_DIR/IMAGE/disk.raw the root file system (debian-dev), which is
 * not changed. It needs built images and takes its time, so it is run by the integration tests and by hand.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/io.h"
#include "base/thread.h"
#include "machines.h"
#include "vm/memory.h"
#include "vm/qmp.h"

static struct vm *child; /* of the template, with a process that counts */

static bool build(const char *base, struct saved *s) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        int64_t t0 = monotonic_ns();

        int r = memory_image_build(base, s->pages, s->memory, false, &op, &e);
        if (r < 0)
                printf("# %s\n", error_message(&e));
        else
                printf("# memory image built in %.1f ms\n", ms_since(t0));
        return r >= 0;
}

static void test_template(void) {
        _cleanup_free_ char *memory = at("t.ram"), *state = at("t.state"), *was = make_template(false);
        struct stat st;

        REQUIRE(was);
        CHECK(stat(memory, &st) == 0 && st.st_size == (off_t) MEMORY_MB << 20 && (st.st_mode & 0777) == 0600);
        printf("# template's memory: %lld MiB\n", (long long) st.st_blocks / 2048);
        CHECK(stat(state, &st) == 0 && st.st_size > 0 && st.st_size < 1 << 20);
        printf("# template's state: %lld bytes\n", (long long) st.st_size);
}

static void test_children(void) {
        _cleanup_error_ struct error e = ERROR_INIT;

        for (int i = 0; i < 3; i++) {
                _cleanup_free_ char *name = str_printf("spare-%d", i);
                struct vm *vm = child_of_template(name, &e);

                REQUIRE(vm);
                end(vm);
        }
        child = child_of_template("child", &e);
        REQUIRE(child);
        REQUIRE(settle(child, "child") >= 0);
        int64_t t0 = monotonic_ns();
        expect(child, "hostname; cat /proc/sys/kernel/hostname", "child\nchild");
        printf("# first command %.1f ms\n", ms_since(t0));
        expect(child, counter, "counting");
        check_counts(child);
}

static void test_forks_go_on_from_one_instant(void) {
        _cleanup_free_ char *base = at("t.ram");
        _cleanup_saved_ struct saved s = {0};

        int64_t before = count_of(child);
        REQUIRE(save(child, "first", false, &s));
        int64_t after = count_of(child);
        CHECK_INT(s.result.kind, VM_STATE_DEVICES);
        REQUIRE(build(base, &s));
        expect(child, "echo child > /root/who; sync; cat /root/who", "child");

        struct vm *forks[] = {fork_of(&s, "fork-1"), fork_of(&s, "fork-2")};
        for (size_t i = 0; i < ARRAY_SIZE(forks); i++) {
                int64_t count = count_of(forks[i]);

                printf("# counted %lld before, %lld after, %lld in the fork\n", (long long) before, (long long) after,
                       (long long) count);
                CHECK(count >= before);
                check_counts(forks[i]);
                expect(forks[i], "test -e /root/who || echo nobody; echo fork > /root/who; sync", "nobody");
        }
        check_counts(child);
        expect(child, "cat /root/who", "child");

        _cleanup_saved_ struct saved again = {0};
        expect(forks[0], "echo twice > /run/twice", "");
        const bool saved = forks[0] && save(forks[0], "second", false, &again) && build(s.memory, &again);
        CHECK(saved);
        if (saved) {
                struct vm *vm = fork_of(&again, "fork-of-fork");

                check_counts(vm);
                expect(vm, "cat /run/twice /root/who", "twice\nfork");
                end(vm);
        }
        for (size_t i = 0; i < ARRAY_SIZE(forks); i++)
                end(forks[i]);
}

static void test_whole_state_gives_the_same(void) {
        _cleanup_saved_ struct saved s = {0}, again = {0};

        REQUIRE(save(child, "whole", true, &s));
        CHECK_INT(s.result.kind, VM_STATE_FULL);
        check_counts(child);
        struct vm *vm = fork_of(&s, "whole-fork");
        REQUIRE(vm);
        check_counts(vm);
        expect(vm, "cat /root/who", "child");

        /* Its memory is anonymous: it is saved whole without being asked to. */
        const bool saved = save(vm, "whole-again", false, &again);
        CHECK(saved);
        if (saved) {
                struct vm *fork = fork_of(&again, "whole-fork-2");

                CHECK_INT(again.result.kind, VM_STATE_FULL);
                check_counts(fork);
                end(fork);
        }
        check_counts(vm);
        end(vm);
}

struct later {
        pthread_t thread;
        pid_t pid;
        struct cancel *cancel;
        int64_t ms;
};

static void *later_main(void *arg) {
        struct later *l = arg;
        const struct op wait = op_timeout(l->ms);

        (void) wait_fd(-1, 0, &wait);
        if (l->cancel)
                cancel_fire(l->cancel);
        else
                (void) kill(l->pid, SIGKILL);
        return NULL;
}

/* Saves the child without a disk under op; the files must be gone after a failure. */
static int try_save(struct vm *vm, bool full, const struct op *op, struct error *err) {
        _cleanup_free_ char *state = at("try.state"), *pages = at("try.pages");
        const struct vm_snapshot_args args = {.state_path = state, .pages_path = full ? NULL : pages};
        struct vm_snapshot_result result;

        int r = vm_snapshot(vm, &args, op, &result, err);
        if (r < 0)
                CHECK(access(state, F_OK) < 0 && access(pages, F_OK) < 0);
        unlink(state);
        unlink(pages);
        return r;
}

static void test_cancelled_save_lets_the_machine_go_on(void) {
        for (int64_t ms = 0; ms <= 160; ms += 40) {
                _cleanup_error_ struct error e = ERROR_INIT;
                _cleanup_cancel_ struct cancel *cancel = cancel_new();
                struct op op = op_timeout(STEP_MS);
                struct later later = {.cancel = cancel, .ms = ms};

                op.cancel = cancel;
                REQUIRE(thread_start(&later.thread, "later", later_main, &later) >= 0);
                int64_t t0 = monotonic_ns();
                int r = try_save(child, true, &op, &e);
                printf("# cancelled after %lld ms: %d after %.1f ms\n", (long long) ms, r, ms_since(t0));
                CHECK(r == -ECANCELED || r >= 0);
                pthread_join(later.thread, NULL);
                check_counts(child);
        }
        const struct op late = op_timeout(0);
        CHECK_INT(try_save(child, false, &late, NULL), -ETIMEDOUT);
        check_counts(child);
}

static void test_impossible_files(void) {
        const struct op op = op_timeout(STEP_MS);
        struct vm_snapshot_result result;
        _cleanup_free_ char *state = at("try.state"), *pages = at("try.pages"), *none = at("none.qcow2");
        const struct vm_snapshot_args no_folder = {.state_path = "/nowhere/state", .pages_path = pages},
                                      no_overlay = {.state_path = state, .pages_path = pages, .overlay_path = none};
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_free_ char *before = NULL, *after = NULL;

        CHECK_INT(vm_disk_file(child, &op, &before, NULL), 0);
        CHECK_INT(vm_snapshot(child, &no_folder, &op, &result, NULL), -ENOENT);
        CHECK(vm_snapshot(child, &no_overlay, &op, &result, &e) < 0);
        printf("# %s\n", error_message(&e));
        CHECK(access(state, F_OK) < 0 && access(pages, F_OK) < 0);
        CHECK_INT(vm_disk_file(child, &op, &after, NULL), 0);
        CHECK_STR(after, before);
        check_counts(child);
}

/* A daemon that is lost while a machine stands still. */
static void test_attach_lets_a_halted_machine_go_on(void) {
        _cleanup_free_ char *folder = at("child"), *socket = str_printf("%s/qmp.sock", folder), *memory = at("t.ram");
        const struct op op = op_timeout(STEP_MS);
        const struct proc_id proc = vm_proc(child);
        const struct vm_spec spec = {
                .id = "child",
                .dir = folder,
                .memory_mb = MEMORY_MB,
                .memory = VM_MEMORY_PRIVATE,
                .memory_path = memory,
        };
        struct qmp *qmp = NULL;

        vm_unref(TAKE_PTR(child));
        REQUIRE(qmp_open(unix_connect(socket, &op), NULL, &op, &qmp, NULL) >= 0);
        CHECK_INT(qmp_call(qmp, "stop", NULL, &op, NULL, NULL), 0);
        qmp_unref(qmp);
        REQUIRE(vm_attach(&spec, &proc, NULL, &child, NULL) >= 0);
        check_counts(child);
        /* And it is saved as before. */
        CHECK_INT(try_save(child, false, &op, NULL), 0);
}

static void test_damaged_state(void) {
        _cleanup_free_ char *good = at("t.state"), *bad = at("bad.state"), *memory = at("t.ram"), *data = NULL;
        static const char *const what[] = {"cut off", "garbage", "another"};
        size_t len = 0;

        REQUIRE(file_read_all(good, 1 << 20, &data, &len) >= 0);
        for (size_t i = 0; i < ARRAY_SIZE(what); i++) {
                _cleanup_error_ struct error e = ERROR_INIT;
                _cleanup_free_ char *name = str_printf("bad-%zu", i), *folder = at(name);
                const struct machine m = {
                        .name = name,
                        .backing = base_disk,
                        .backing_format = "raw",
                        .memory = VM_MEMORY_PRIVATE,
                        .memory_path = memory,
                        /* A good state of the other kind is as bad. */
                        .state = i == 2 ? VM_STATE_DEVICES : VM_STATE_TEMPLATE,
                        .state_path = bad,
                };
                struct proc_id id;

                if (i == 1)
                        memset(data + 100, 0x5a, len - 100);
                REQUIRE(file_write_atomic(bad, data, i == 0 ? len / 2 : len, 0600) >= 0);
                int64_t t0 = monotonic_ns();
                struct vm *vm = start(&m, &e);
                CHECK(!vm && error_is_set(&e));
                CHECK(ms_since(t0) < STEP_MS / 2);
                CHECK_INT(vm_find(folder, &id), -ESRCH);
                end(vm);
        }
}

static void test_a_source_that_is_killed(void) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        struct later later = {.pid = vm_proc(child).pid, .ms = 300};

        /* It hangs before it is killed, so that the save is in the middle. */
        CHECK_INT(kill(later.pid, SIGSTOP), 0);
        REQUIRE(thread_start(&later.thread, "later", later_main, &later) >= 0);
        int64_t t0 = monotonic_ns();
        CHECK(try_save(child, false, &op, &e) < 0);
        printf("# %.1f ms: %s\n", ms_since(t0), error_message(&e));
        CHECK_INT(e.code, ERROR_NOT_RUNNING);
        CHECK(ms_since(t0) < STEP_MS / 2);
        pthread_join(later.thread, NULL);
}

int main(int argc, char **argv) {
        int r = machines_begin(argc, argv);
        if (r != 0)
                return r;
        RUN(test_template);
        RUN(test_children);
        if (child) {
                RUN(test_forks_go_on_from_one_instant);
                RUN(test_whole_state_gives_the_same);
                RUN(test_cancelled_save_lets_the_machine_go_on);
                RUN(test_impossible_files);
                RUN(test_attach_lets_a_halted_machine_go_on);
                RUN(test_damaged_state);
                RUN(test_a_source_that_is_killed);
        }
        end(child);
        machines_end();
        return tap_done();
}
