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
#include "tap.h"
#include "vm/memory.h"
#include "vm/qmp.h"
#include "vm/state.h"

#define BOOT_MS 60000
#define STEP_MS 60000
#define OUTPUT_MAX 65536u
#define MEMORY_MB 512u

static char dir[] = "/tmp/template-once-XXXXXX";
static const char *base_disk;
static struct platform platform;

static struct vm *child; /* of the template, with a process that counts */

static char *at(const char *name) {
        return path_join(dir, name);
}

static double ms_since(int64_t ns) {
        return (double) (monotonic_ns() - ns) / (double) NSEC_PER_MSEC;
}

/* --- machines --- */

static int make_overlay(const char *path, const char *backing, const char *format) {
        const struct op op = op_timeout(STEP_MS);
        char *argv[] = {(char[]){"qemu-img"},
                        (char[]){"create"},
                        (char[]){"-q"},
                        (char[]){"-f"},
                        (char[]){"qcow2"},
                        (char[]){"-b"},
                        (char *) backing,
                        (char[]){"-F"},
                        (char *) format,
                        (char *) path,
                        NULL};
        _cleanup_error_ struct error e = ERROR_INIT;

        int r = process_run(argv, &op, NULL, NULL, &e);
        if (r < 0)
                printf("# %s\n", error_message(&e));
        return r;
}

struct machine {
        const char *name;
        const char *backing, *backing_format; /* of its disk */
        enum vm_memory_kind memory;
        const char *memory_path;
        enum vm_state_kind state;
        const char *state_path;
};

/* Starts a machine on a new overlay, or NULL; says how long it took to the agent's first answer. */
static struct vm *start(const struct machine *m, struct error *err) {
        _cleanup_free_ char *folder = at(m->name), *disk = str_printf("%s/disk.qcow2", folder);
        const struct op op = op_timeout(BOOT_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        struct vm *vm = NULL;
        const struct vm_spec spec = {
                .id = m->name,
                .dir = folder,
                .vcpus = 2,
                .memory_mb = MEMORY_MB,
                .memory = m->memory,
                .memory_path = m->memory_path,
                .state = m->state,
                .state_path = m->state_path,
                .disk_path = disk,
                .disk_format = "qcow2",
                .net = VM_NET_USER_RESTRICTED,
                .mac = "52:54:00:63:00:07",
                .network = "10.99.0.0",
                .prefix_len = 16,
                .gateway = "10.99.0.1",
        };

        if (mkdir_p(folder, 0700) < 0 || make_overlay(disk, m->backing, m->backing_format) < 0)
                return NULL;
        int64_t t0 = monotonic_ns();
        int r = vm_launch(&platform, &spec, NULL, &op, &vm, err);
        double launched = ms_since(t0);
        if (r >= 0)
                r = vm_agent(vm, &op, &agent, err);
        if (r >= 0)
                r = agent_ping(agent, &op, &t0, err);
        if (r < 0) {
                printf("# %s: %s\n", m->name, error_message(err));
                vm_unref(vm);
                return NULL;
        }
        printf("# %-14s start to the agent's answer %7.1f ms\n", m->name, launched + (double) t0 / NSEC_PER_MSEC);
        return vm;
}

static void end(struct vm *vm) {
        if (vm)
                vm_kill(vm);
        vm_unref(vm);
}

/* The output of a command, without its last newline; NULL when it could not be run. */
static char *run(struct vm *vm, const char *command) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        const struct agent_exec_args args = {.command = command, .timeout_ms = STEP_MS / 2, .max_output = OUTPUT_MAX};

        int r = vm ? vm_agent(vm, &op, &agent, &e) : -ESRCH;
        if (r >= 0)
                r = agent_exec(agent, &args, &op, &result, &e);
        if (r < 0) {
                printf("# %s: %s\n", command, error_message(&e));
                return NULL;
        }
        char *out = strdup(result.out.head.data ? result.out.head.data : "");
        if (out && *out && out[strlen(out) - 1] == '\n')
                out[strlen(out) - 1] = '\0';
        return out;
}

static void expect(struct vm *vm, const char *command, const char *want) {
        _cleanup_free_ char *got = run(vm, command);

        CHECK_STR(got, want);
}

static int settle(struct vm *vm, const char *hostname) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;
        const struct agent_identity id = {
                .hostname = hostname,
                .machine_id = "0123456789abcdef0123456789abcdef",
                .mac = "52:54:00:63:00:07",
                .address = "10.99.0.7",
                .prefix_len = 16,
                .gateway = "10.99.0.1",
        };

        int64_t t0 = monotonic_ns();
        int r = vm_agent(vm, &op, &agent, &e);
        if (r >= 0)
                r = agent_mount_root(agent, &op, &e);
        printf("# %-14s root mounted after          %7.1f ms\n", hostname, ms_since(t0));
        if (r >= 0)
                r = agent_configure(agent, &id, &op, &e);
        printf("# %-14s and configured              %7.1f ms\n", hostname, ms_since(t0));
        if (r < 0)
                printf("# %s\n", error_message(&e));
        return r;
}

/* --- the process that counts --- */

#define COUNTER                                                                                               \
        "echo marked > /run/mark; echo marked > /root/mark; sync; "                                           \
        "setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n > /run/count.new; mv /run/count.new /run/count; " \
        "sleep 0.02; done' >/dev/null 2>&1 & echo $! > /run/counter; "                                        \
        "until test -e /run/count; do sleep 0.02; done; echo counting"

static int64_t count_of(struct vm *vm) {
        _cleanup_free_ char *text = run(vm, "cat /run/count");

        return text ? strtoll(text, NULL, 10) : -1;
}

/* The process runs, and what it counts grows. */
static void check_counts(struct vm *vm) {
        int64_t first = count_of(vm), next = first;
        const struct op op = op_timeout(STEP_MS);

        while (next <= first && op_check(&op) >= 0)
                next = count_of(vm);
        CHECK(first > 0 && next > first);
        expect(vm, "kill -0 $(cat /run/counter) && cat /run/mark /root/mark", "marked\nmarked");
}

/* --- snapshots --- */

struct saved {
        char *state, *pages, *overlay, *memory;
        struct vm_snapshot_result result;
};

static void saved_clear(struct saved *s) {
        free(s->state);
        free(s->pages);
        free(s->overlay);
        free(s->memory);
}

static bool save(struct vm *vm, const char *name, bool full, struct saved *s) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_free_ char *disk = NULL;

        *s = (struct saved){
                .state = str_printf("%s/%s.state", dir, name),
                .pages = str_printf("%s/%s.pages", dir, name),
                .overlay = str_printf("%s/%s.qcow2", dir, name),
                .memory = str_printf("%s/%s.ram", dir, name),
        };
        const struct vm_snapshot_args args = {
                .state_path = s->state, .pages_path = full ? NULL : s->pages, .overlay_path = s->overlay};

        int r = vm_disk_file(vm, &op, &disk, &e);
        if (r >= 0)
                r = make_overlay(s->overlay, disk, "qcow2");
        if (r >= 0)
                r = vm_snapshot(vm, &args, &op, &s->result, &e);
        if (r < 0) {
                printf("# %s: %s\n", name, error_message(&e));
                return false;
        }
        printf("# %-14s stood still %7.1f ms; state %llu bytes, pages %.1f MiB\n", name,
               (double) s->result.pause_ns / NSEC_PER_MSEC, (unsigned long long) s->result.state_bytes,
               (double) s->result.pages_bytes / 1048576.0);
        free(s->overlay);
        s->overlay = TAKE_PTR(disk); /* what was frozen */
        return true;
}

static bool build(const char *base, struct saved *s) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        int64_t t0 = monotonic_ns();

        int r = memory_image_build(base, s->pages, s->memory, &op, &e);
        if (r < 0)
                printf("# %s\n", error_message(&e));
        else
                printf("# memory image built in %.1f ms\n", ms_since(t0));
        return r >= 0;
}

static struct vm *fork_of(const struct saved *s, const char *name) {
        _cleanup_error_ struct error e = ERROR_INIT;
        const bool full = s->result.kind == VM_STATE_FULL;
        const struct machine m = {
                .name = name,
                .backing = s->overlay,
                .backing_format = "qcow2",
                .memory = full ? VM_MEMORY_ANONYMOUS : VM_MEMORY_PRIVATE,
                .memory_path = full ? NULL : s->memory,
                .state = s->result.kind,
                .state_path = s->state,
        };

        return start(&m, &e);
}

/* --- tests --- */

static struct vm *child_of_template(const char *name, struct error *err) {
        _cleanup_free_ char *memory = at("t.ram"), *state = at("t.state");
        const struct machine m = {
                .name = name,
                .backing = base_disk,
                .backing_format = "raw",
                .memory = VM_MEMORY_PRIVATE,
                .memory_path = memory,
                .state = VM_STATE_TEMPLATE,
                .state_path = state,
        };

        return start(&m, err);
}

static void test_template(void) {
        _cleanup_free_ char *memory = at("t.ram"), *state = at("t.state");
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        const struct machine m = {
                .name = "template",
                .backing = base_disk,
                .backing_format = "raw",
                .memory = VM_MEMORY_SHARED,
                .memory_path = memory,
        };
        struct stat st;

        struct vm *vm = start(&m, &e);
        REQUIRE(vm);
        int64_t t0 = monotonic_ns();
        CHECK_INT(vm_save_template(vm, state, &op, &e), 0);
        printf("# template saved and on disk in %.1f ms\n", ms_since(t0));
        end(vm);
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
        expect(child, COUNTER, "counting");
        check_counts(child);
}

static void test_forks_go_on_from_one_instant(void) {
        _cleanup_free_ char *base = at("t.ram");
        _cleanup_(saved_clear) struct saved s = {0};

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

        _cleanup_(saved_clear) struct saved again = {0};
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
        _cleanup_(saved_clear) struct saved s = {0}, again = {0};

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
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        enum accel accel = ACCEL_AUTO;

        if (argc < 2 || (argc > 3 && accel_parse(argv[3], &accel) < 0) || !mkdtemp(dir)) {
                fprintf(stderr, "usage: template-once IMAGE_DIR [IMAGE] [kvm|tcg|auto]\n");
                return 2;
        }
        const struct platform_args pa = {.image_dir = argv[1], .scratch_dir = dir, .accel = accel};
        if (platform_probe(&pa, &op, &platform, &e) < 0) {
                fprintf(stderr, "%s\n", error_message(&e));
                return 1;
        }
        printf("# QEMU %s, %s\n", platform.qemu_version, accel_name(platform.accel));
        _cleanup_free_ char *disk = str_printf("%s/%s/disk.raw", argv[1], argc > 2 ? argv[2] : "debian-dev");
        base_disk = disk;

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
        platform_clear(&platform);
        (void) rm_rf(dir);
        return tap_done();
}
