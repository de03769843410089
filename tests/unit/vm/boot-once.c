/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Boots one real VM and measures it; built with the tests, run by hand and by the benchmarks:
 *
 *     boot-once IMAGE_DIR [IMAGE] [kvm|tcg|auto]
 *
 * IMAGE_DIR/boot has the kernel and the initramfs, IMAGE_DIR/IMAGE/disk.raw the root file system (debian-dev), which is
 * not changed: the VM runs on an overlay. Then it tries what must not break: the death of QEMU under a command, leaving
 * and taking up a VM, a guest that floods the channel. Prints one line for each; the exit status counts the failures.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/thread.h"
#include "vm/vm.h"

#define BOOT_MS 60000
#define STEP_MS 60000
#define FILE_BYTES (100u * 1024u * 1024u)
#define OUTPUT_BYTES (8u * 1024u * 1024u)
#define EXEC_ROUNDS 100

static int failures;
static int64_t qemu_started_ns;
static int exits;

static void check(bool ok, const char *what, const struct error *e) {
        if (ok)
                return;
        failures++;
        printf("FAILED: %s: %s\n", what, error_message(e));
}

static double ms_since(int64_t ns) {
        return (double) (monotonic_ns() - ns) / (double) NSEC_PER_MSEC;
}

static int spawned(void *arg, const struct proc_id *proc, struct error *err) {
        qemu_started_ns = monotonic_ns();
        return 0;
}

static void exited(void *arg) {
        __atomic_add_fetch(&exits, 1, __ATOMIC_SEQ_CST);
}

static const struct vm_callbacks callbacks = {.spawned = spawned, .exited = exited};

/* Runs a command; the caller clears the result. */
static int run(struct vm *vm, const char *command, struct agent_exec_result *ret, struct error *e) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        const struct agent_exec_args args = {
                .command = command, .timeout_ms = STEP_MS / 2, .max_output = OUTPUT_BYTES * 2};

        int r = vm_agent(vm, &op, &agent, e);
        return r < 0 ? r : agent_exec(agent, &args, &op, ret, e);
}

static void expect_output(struct vm *vm, const char *command, const char *want) {
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        _cleanup_error_ struct error e = ERROR_INIT;

        int r = run(vm, command, &result, &e);
        check(r >= 0, command, &e);
        if (r >= 0 && !str_eq(result.out.head.data, want)) {
                failures++;
                printf("FAILED: %s: got \"%s\"\n", command, result.out.head.data ? result.out.head.data : "");
        }
}

static struct vm *boot(const struct platform *p, const struct vm_spec *spec) {
        const struct op op = op_timeout(BOOT_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_agent_ struct agent *agent = NULL;
        struct vm *vm = NULL;

        int64_t t0 = monotonic_ns();
        if (vm_launch(p, spec, &callbacks, &op, &vm, &e) < 0) {
                check(false, "launch", &e);
                return NULL;
        }
        printf("QEMU started               %7.0f ms\n", (double) (qemu_started_ns - t0) / (double) NSEC_PER_MSEC);
        printf("agent shook hands          %7.0f ms\n", ms_since(t0));
        check(vm_agent(vm, &op, &agent, &e) >= 0, "agent", &e);
        check(agent_mount_root(agent, &op, &e) >= 0, "mount_root", &e);
        printf("root mounted               %7.0f ms\n", ms_since(t0));
        const struct agent_identity id = {
                .hostname = "boot-once",
                .machine_id = "0123456789abcdef0123456789abcdef",
                .mac = spec->mac,
                .address = spec->mac ? "10.99.0.7" : NULL,
                .prefix_len = spec->prefix_len,
                .gateway = spec->gateway,
        };
        check(agent_configure(agent, &id, &op, &e) >= 0, "configure", &e);
        printf("configured                 %7.0f ms\n", ms_since(t0));
        expect_output(vm, "echo first", "first\n");
        printf("first command              %7.0f ms\n", ms_since(t0));
        uint64_t private = 0, shared = 0;
        struct proc_id proc = vm_proc(vm);
        (void) vm_memory(&proc, &private, &shared);
        printf("memory of QEMU             %7.0f MiB private, %.0f MiB shared\n", (double) private / 1048576.0,
               (double) shared / 1048576.0);
        return vm;
}

static int compare(const void *a, const void *b) {
        const double x = *(const double *) a, y = *(const double *) b;

        return (x > y) - (x < y);
}

static void time_exec(struct vm *vm) {
        double all[EXEC_ROUNDS], guest[EXEC_ROUNDS], ping[EXEC_ROUNDS];

        for (size_t i = 0; i < EXEC_ROUNDS; i++) {
                _cleanup_exec_result_ struct agent_exec_result result = {0};
                _cleanup_error_ struct error e = ERROR_INIT;
                _cleanup_agent_ struct agent *agent = NULL;
                const struct op op = op_timeout(STEP_MS);
                int64_t ns = 0;

                if (vm_agent(vm, &op, &agent, &e) < 0 || agent_ping(agent, &op, &ns, &e) < 0) {
                        check(false, "ping", &e);
                        return;
                }
                ping[i] = (double) ns / (double) NSEC_PER_MSEC;
                int64_t t0 = monotonic_ns();
                if (run(vm, "true", &result, &e) < 0) {
                        check(false, "true", &e);
                        return;
                }
                all[i] = ms_since(t0);
                guest[i] = (double) result.duration_ms;
        }
        qsort(all, EXEC_ROUNDS, sizeof(*all), compare);
        qsort(guest, EXEC_ROUNDS, sizeof(*guest), compare);
        qsort(ping, EXEC_ROUNDS, sizeof(*ping), compare);
        printf("ping p50                   %9.2f ms\n", ping[EXEC_ROUNDS / 2]);
        printf("exec of true p50           %9.2f ms (p90 %.2f), of it in the guest %.0f\n", all[EXEC_ROUNDS / 2],
               all[EXEC_ROUNDS * 9 / 10], guest[EXEC_ROUNDS / 2]);
}

static void time_output(struct vm *vm) {
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        _cleanup_error_ struct error e = ERROR_INIT;

        int64_t t0 = monotonic_ns();
        int r = run(vm, "head -c 8388608 /dev/zero; head -c 8388608 /dev/zero >&2", &result, &e);
        check(r >= 0, "8 MiB of output", &e);
        check(r < 0 || (result.out.total == OUTPUT_BYTES && result.err.total == OUTPUT_BYTES), "all of it came", NULL);
        printf("8 MiB on both streams      %7.0f ms\n", ms_since(t0));
}

static void time_file(struct vm *vm) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_buf_ struct buf back = BUF_INIT(FILE_BYTES);
        _cleanup_free_ char *data = malloc(FILE_BYTES);
        const struct agent_read_args args = {.path = "/root/big", .limit = FILE_BYTES};
        struct agent_read_result got = {0};
        uint64_t written = 0;

        if (!data || vm_agent(vm, &op, &agent, &e) < 0) {
                check(false, "100 MiB file", &e);
                return;
        }
        for (size_t i = 0; i < FILE_BYTES; i++)
                data[i] = (char) (i * 2654435761u >> 13);
        int64_t t0 = monotonic_ns();
        int r = agent_file_write(agent, "/root/big", data, FILE_BYTES, NULL, false, &op, &written, &e);
        check(r >= 0, "writing 100 MiB", &e);
        printf("100 MiB file written       %7.0f ms\n", ms_since(t0));
        t0 = monotonic_ns();
        r = agent_file_read(agent, &args, &op, &back, &got, &e);
        check(r >= 0, "reading 100 MiB", &e);
        check(r < 0 || (back.len == FILE_BYTES && memcmp(back.data, data, FILE_BYTES) == 0), "the same bytes", NULL);
        printf("100 MiB file read          %7.0f ms\n", ms_since(t0));
}

static void try_stdin(struct vm *vm) {
        const struct op op = op_timeout(STEP_MS);
        static const char *const commands[] = {"sleep 1; echo done", "cat | wc -c", "cat", "exit 3"};
        _cleanup_free_ char *data = calloc(1, OUTPUT_BYTES);

        for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
                _cleanup_exec_result_ struct agent_exec_result result = {0};
                _cleanup_error_ struct error e = ERROR_INIT;
                _cleanup_agent_ struct agent *agent = NULL;
                const struct agent_exec_args args = {.command = commands[i],
                                                     .timeout_ms = 30000,
                                                     .stdin_data = data,
                                                     .stdin_len = OUTPUT_BYTES,
                                                     .max_output = 64};
                int64_t t0 = monotonic_ns();
                int r = vm_agent(vm, &op, &agent, &e);
                if (r >= 0)
                        r = agent_exec(agent, &args, &op, &result, &e);
                check(r >= 0, commands[i], &e);
                printf("8 MiB to \"%s\"%*s%7.0f ms, exit %d, %llu bytes\n", commands[i],
                       (int) (15 - strlen(commands[i])), "", ms_since(t0), result.exit_code,
                       (unsigned long long) result.out.total);
        }
}

static void try_timeout(struct vm *vm) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_agent_ struct agent *agent = NULL;
        const struct agent_exec_args args = {
                .command = "echo part; setsid sleep 99 & sleep 99", .timeout_ms = 500, .max_output = 1000};

        int64_t t0 = monotonic_ns();
        int r = vm_agent(vm, &op, &agent, &e);
        if (r >= 0)
                r = agent_exec(agent, &args, &op, &result, &e);
        check(r >= 0 && result.timed_out && str_eq(result.out.head.data, "part\n"), "timeout with partial output", &e);
        printf("timeout of 500 ms          %7.0f ms\n", ms_since(t0));
        expect_output(vm, "pgrep sleep | wc -l", "0\n");
}

/* A detached VM goes on and can be taken up again. */
static struct vm *try_detach(struct vm *vm, const struct vm_spec *spec) {
        _cleanup_error_ struct error e = ERROR_INIT;
        const struct proc_id proc = vm_proc(vm);
        struct proc_id found = {0};

        /* Much more than any buffer holds goes to the console while nobody reads it: the writer must come to its end.
         */
        expect_output(vm,
                      "echo kept > /tmp/kept; (sleep 1; head -c 1000000 /dev/zero | tr '\\0' x > /dev/ttyS0; "
                      "echo written > /tmp/written) >/dev/null 2>&1 & echo ok",
                      "ok\n");
        vm_unref(vm);
        vm = NULL;
        const struct op alone = op_timeout(8000);
        (void) wait_fd(-1, 0, &alone);
        check(vm_find(spec->dir, &found) >= 0 && found.pid == proc.pid, "vm_find", NULL);
        int64_t t0 = monotonic_ns();
        int r = vm_attach(spec, &proc, &callbacks, &vm, &e);
        check(r >= 0, "attach", &e);
        if (r < 0)
                return NULL;
        expect_output(vm, "cat /tmp/kept", "kept\n");
        printf("taken up again             %7.0f ms\n", ms_since(t0));
        expect_output(vm, "for i in $(seq 200); do test -e /tmp/written && break; sleep 0.1; done; cat /tmp/written",
                      "written\n");
        return vm;
}

/* The guest writes garbage to the port, beside the agent. */
static void try_flood(struct vm *vm) {
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;

        /* The port lets nobody open it twice: the flood takes the agent's own open file out of it. */
        static const char flood[] = "cat > /tmp/flood.py <<'END'\n"
                                    "import ctypes, os, time\n"
                                    "c = ctypes.CDLL(None)\n"
                                    "p = c.syscall(434, 1, 0)\n" /* pidfd_open */
                                    "for n in os.listdir('/proc/1/fd'):\n"
                                    "    if 'vport' in os.readlink('/proc/1/fd/' + n):\n"
                                    "        f = c.syscall(438, p, int(n), 0)\n" /* pidfd_getfd */
                                    "open('/tmp/flooded', 'w').close()\n"
                                    "end, junk = time.time() + 8, os.urandom(65536)\n"
                                    "while time.time() < end:\n"
                                    "    try: os.write(f, junk)\n"
                                    "    except BlockingIOError: pass\n"
                                    "END\n"
                                    "setsid python3 /tmp/flood.py >/tmp/flood.log 2>&1 & echo started";
        int r = run(vm, flood, &result, &e);
        check(r >= 0, "starting the flood", &e);
        const struct op wait = op_timeout(2500);
        (void) wait_fd(-1, 0, &wait);
        int64_t t0 = monotonic_ns();
        r = vm_agent(vm, &op, &agent, &e);
        if (r >= 0) {
                const struct agent_exec_args args = {.command = "echo alive", .timeout_ms = 5000, .max_output = 100};

                agent_exec_result_clear(&result);
                r = agent_exec(agent, &args, &op, &result, &e);
        }
        printf("a call under the flood     %7.0f ms: %s\n", ms_since(t0), r < 0 ? error_message(&e) : "went through");
        t0 = monotonic_ns();
        do {
                _cleanup_exec_result_ struct agent_exec_result again = {0};

                error_clear(&e);
                r = run(vm, "echo alive", &again, &e);
        } while (r < 0 && op_check(&op) >= 0);
        check(r >= 0, "after the flood", &e);
        printf("usable again               %7.0f ms\n", ms_since(t0));
        expect_output(vm, "cat /tmp/flood.log; test -e /tmp/flooded && echo flooded", "flooded\n");
}

static void *kill_later(void *arg) {
        struct vm *vm = arg;
        const struct op wait = op_timeout(300);

        (void) wait_fd(-1, 0, &wait);
        (void) kill(vm_proc(vm).pid, SIGKILL);
        return NULL;
}

static void try_kill(struct vm *vm) {
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        _cleanup_buf_ struct buf why = BUF_INIT(1000);
        pthread_t killer;

        int64_t t0 = monotonic_ns();
        if (thread_start(&killer, "killer", kill_later, vm) < 0)
                return;
        int r = run(vm, "sleep 50", &result, &e);
        check(r < 0, "the command ends with its machine", NULL);
        printf("QEMU killed after 300 ms   %7.0f ms: %s: %s\n", ms_since(t0), error_code_name(e.code),
               error_message(&e));
        pthread_join(killer, NULL);
        const struct op op = op_timeout(STEP_MS);
        (void) vm_stop(vm, &op, NULL);
        (void) vm_describe_exit(vm, &why);
        printf("                           %s\n", why.data ? why.data : "it runs?");
        check(vm_has_exited(vm), "it is gone", NULL);
}

int main(int argc, char **argv) {
        const struct op op = OP_INIT_NEVER;
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_platform_ struct platform p = {0};
        char dir[] = "/tmp/boot-once-XXXXXX";
        enum accel accel = ACCEL_AUTO;

        if (argc < 2 || (argc > 3 && accel_parse(argv[3], &accel) < 0) || !mkdtemp(dir)) {
                fprintf(stderr, "usage: boot-once IMAGE_DIR [IMAGE] [kvm|tcg|auto]\n");
                return 2;
        }
        setvbuf(stdout, NULL, _IOLBF, 0);
        const char *image = argc > 2 ? argv[2] : "debian-dev";
        const struct platform_args pa = {.image_dir = argv[1], .scratch_dir = dir, .accel = accel};
        int64_t t0 = monotonic_ns();
        if (platform_probe(&pa, &op, &p, &e) < 0) {
                fprintf(stderr, "%s\n%s\n", error_message(&e), e.hint ? e.hint : "");
                return 1;
        }
        printf("QEMU %s, %s: %s (TSC %u kHz; probed in %.0f ms)\n", p.qemu_version, accel_name(p.accel), p.accel_reason,
               p.tsc_khz, ms_since(t0));

        _cleanup_free_ char *base = str_printf("%s/%s/disk.raw", argv[1], image), *disk = path_join(dir, "disk.qcow2");
        char *create[] = {(char[]){"qemu-img"},
                          (char[]){"create"},
                          (char[]){"-q"},
                          (char[]){"-f"},
                          (char[]){"qcow2"},
                          (char[]){"-b"},
                          base,
                          (char[]){"-F"},
                          (char[]){"raw"},
                          disk,
                          (char[]){"4G"},
                          NULL};
        if (process_run(create, &op, NULL, NULL, &e) < 0) {
                fprintf(stderr, "%s\n", error_message(&e));
                return 1;
        }
        const struct vm_spec spec = {
                .id = "boot-once",
                .dir = dir,
                .vcpus = 2,
                .memory_mb = 512,
                .disk_path = disk,
                .disk_format = "qcow2",
                .net = VM_NET_USER_RESTRICTED,
                .mac = "52:54:00:63:00:07",
                .network = "10.99.0.0",
                .prefix_len = 16,
                .gateway = "10.99.0.1",
        };
        struct vm *vm = boot(&p, &spec);
        if (vm) {
                time_exec(vm);
                time_output(vm);
                time_file(vm);
                try_stdin(vm);
                try_timeout(vm);
                vm = try_detach(vm, &spec);
        }
        if (vm) {
                try_flood(vm);
                t0 = monotonic_ns();
                check(vm_stop(vm, &op, &e) >= 0, "stop", &e);
                printf("stopped                    %7.0f ms\n", ms_since(t0));
                vm_unref(vm);
                vm = boot(&p, &spec);
        }
        if (vm)
                try_kill(vm);
        vm_unref(vm);
        printf("exits reported             %d\n", exits);
        (void) rm_rf(dir);
        return failures;
}
