/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks by their pages, disks and many machines at once, with real machines; TAP with the times as comments:
 *
 *     fork-once IMAGE_DIR [IMAGE] [kvm|tcg|auto]
 *
 * What is said of template-once holds for this, too. Here the template has its root mounted.
 */
#include <fcntl.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/io.h"
#include "base/thread.h"
#include "machines.h"
#include "mapper.h"
#include "vm/memory.h"

#define DEPTH 10
#define FORKS 20
#define BUSY_SAVES 8
#define BUSY_BYTES (16u << 20)
#define BUSY_DISK (8ull << 30) /* the snapshots take room meanwhile */
#define LARGE_GIB 10u

static char *template_disk;

/* A child of the template with its root mounted, on its disk. */
static struct vm *child_on(const char *name, unsigned gib) {
        _cleanup_free_ char *memory = at("t.ram"), *state = at("t.state");
        _cleanup_error_ struct error e = ERROR_INIT;
        const struct machine m = {
                .name = name,
                .backing = template_disk,
                .backing_format = "qcow2",
                .disk_gib = gib,
                .memory = VM_MEMORY_PRIVATE,
                .memory_path = memory,
                .state = VM_STATE_TEMPLATE,
                .state_path = state,
        };

        return start(&m, &e);
}

static void test_template(void) {
        template_disk = make_template(true);
        CHECK(template_disk != NULL);
}

/* Each fork is saved and forked in turn. What any of them has done in memory and on disk is there in the last. */
static void test_forks_of_forks(void) {
        _cleanup_free_ char *sum = NULL;
        struct vm *vm = child_on("source", 0);
        struct buf want = BUF_INIT(4096);

        REQUIRE(vm && settle(vm, "source") >= 0);
        expect(vm, counter, "counting");
        expect(vm, "head -c 1M /dev/urandom > /run/blob", "");
        sum = run(vm, "md5sum < /run/blob");
        REQUIRE(sum);
        for (int i = 1; vm && i <= DEPTH; i++) {
                _cleanup_free_ char *name = str_printf("deep-%d", i), *note = NULL;
                _cleanup_saved_ struct saved s = {0};

                note = str_printf("echo %d | tee -a /run/chain >> /root/chain", i);
                expect(vm, note, "");
                (void) buf_printf(&want, "%s%d", i > 1 ? "\n" : "", i);
                const int64_t before = count_of(vm);
                const bool saved = save(vm, name, false, &s);
                CHECK(saved && s.result.kind == VM_STATE_DEVICES && s.result.switched);
                end(vm);
                vm = saved ? fork_by_pages(&s, name) : NULL;
                REQUIRE(vm);
                CHECK(count_of(vm) >= before);
                check_counts(vm);
                expect(vm, "cat /run/chain", want.data);
                expect(vm, "cat /root/chain", want.data);
        }
        expect(vm, "md5sum < /run/blob", sum);
        buf_free(&want);
        end(vm);
}

/* A snapshot while the channel is full of data, which QEMU's main loop moves on even while the guest stands still: what
 * was saved must fit together all the same. */
struct download {
        struct vm *vm;
        pthread_t thread;
        struct cancel *cancel;
        uint64_t bytes; /* atomic */
};

static void *download_main(void *arg) {
        struct download *d = arg;
        const struct op op = {.deadline = deadline_in_ms(10 * STEP_MS), .cancel = d->cancel};
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;
        struct agent_transfer transfer;
        int r = vm_agent(d->vm, &op, &agent, &e);

        while (r >= 0) {
                _cleanup_close_ int fd = open(machines_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

                r = agent_download(agent, "/dev/shm/big", fd, BUSY_BYTES, BUSY_DISK, &op, &transfer, &e);
                if (r >= 0)
                        __atomic_add_fetch(&d->bytes, transfer.bytes, __ATOMIC_RELAXED);
        }
        printf("# downloaded %llu MiB: %s\n", (unsigned long long) d->bytes >> 20, error_message(&e));
        return NULL;
}

static void test_snapshots_of_a_busy_machine(void) {
        _cleanup_free_ char *fill = str_printf("head -c %u /dev/urandom > /dev/shm/big", BUSY_BYTES);
        struct download d = {.vm = child_on("busy", 0), .cancel = cancel_new()};

        REQUIRE(d.vm && settle(d.vm, "busy") >= 0);
        expect(d.vm, fill, "");
        REQUIRE(thread_start(&d.thread, "download", download_main, &d) >= 0);
        for (int i = 0; i < BUSY_SAVES; i++) {
                _cleanup_free_ char *name = str_printf("busy-%d", i);
                _cleanup_saved_ struct saved s = {0};

                const bool saved = save(d.vm, name, false, &s);
                CHECK(saved && s.result.kind == VM_STATE_DEVICES);
                struct vm *vm = saved ? fork_by_pages(&s, name) : NULL;
                CHECK(vm != NULL);
                expect(vm, "hostname", "busy");
                end(vm);
        }
        cancel_fire(d.cancel);
        pthread_join(d.thread, NULL);
        CHECK(__atomic_load_n(&d.bytes, __ATOMIC_RELAXED) > 0);
        cancel_unref(d.cancel);
        end(d.vm);
}

/* --- disks --- */

static void test_a_larger_disk(void) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        static const char gib[] = "df -B1M --output=size / | awk 'NR == 2 { print int($1 / 1024 + 0.5) }'";
        const uint64_t bytes = (uint64_t) LARGE_GIB << 30;
        _cleanup_agent_ struct agent *agent = NULL;
        struct vm *vm = child_on("large", LARGE_GIB);

        REQUIRE(vm && vm_agent(vm, &op, &agent, &e) >= 0);
        expect(vm, gib, "2");
        CHECK_INT(vm_disk_resize(vm, bytes, &op, &e), 0);
        CHECK_INT(agent_mount_root_of(agent, bytes, &op, &e), 0); /* waits until the guest sees it, and grows */
        expect(vm, gib, "10");
        expect(vm, "head -c 50M /dev/zero > /root/new && sync && stat -c %s /root/new", "52428800");
        end(vm);
}

/* The machine goes on, on a new file; what it had written before, and only that, is in the old one. */
static void test_snapshot_of_the_disk(void) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_free_ char *before = NULL, *after = NULL, *overlay = at("disk-only.qcow2");
        const struct vm_snapshot_args args = {.overlay_path = overlay};
        struct vm_snapshot_result result = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct vm *vm = child_on("disk-only", 0);

        REQUIRE(vm && settle(vm, "disk-only") >= 0);
        expect(vm, counter, "counting");
        expect(vm, "echo old > /root/old; sync", "");
        REQUIRE(vm_disk_file(vm, &op, &before, NULL) >= 0 && make_overlay(overlay, before, "qcow2", 0) >= 0);
        int64_t t0 = monotonic_ns();
        CHECK_INT(vm_snapshot(vm, &args, &op, &result, &e), 0);
        printf("# disk alone: %.1f ms\n", ms_since(t0));
        CHECK(result.kind == VM_STATE_NONE && result.switched);
        CHECK_INT(vm_disk_file(vm, &op, &after, NULL), 0);
        CHECK_STR(after, overlay);
        expect(vm, "echo new > /root/new; sync; cat /root/old", "old");
        check_counts(vm);

        const struct machine m = {.name = "disk-copy", .backing = before, .backing_format = "qcow2"};
        struct vm *copy = start(&m, &e);
        REQUIRE(copy && mount_root(copy) >= 0);
        expect(copy, "cat /root/old; test -e /root/new || echo none", "old\nnone");
        end(copy);
        end(vm);
}

/* --- the agent's secret --- */

#define SECRET_A "00112233445566778899aabbccddeeff"
#define SECRET_B "ffeeddccbbaa99887766554433221100"

static int give_secret(struct vm *vm, const char *secret) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;
        const struct agent_identity id = {.session = secret};

        int r = vm ? vm_agent(vm, &op, &agent, &e) : -ESRCH;
        if (r >= 0)
                r = agent_configure(agent, &id, &op, &e);
        if (r >= 0)
                r = vm_set_session(vm, secret);
        if (r < 0)
                printf("# %s\n", error_message(&e));
        return r;
}

/* Leaves a machine and takes it up again, as the next daemon does. What a new connection to its agent gives. */
static int reconnect(struct vm **vm, const char *name, const char *secret) {
        _cleanup_free_ char *folder = at(name), *memory = at("t.ram");
        const struct op op = op_timeout(STEP_MS);
        const struct proc_id proc = vm_proc(*vm);
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;
        const struct vm_spec spec = {
                .id = name,
                .dir = folder,
                .memory_mb = MEMORY_MB,
                .memory = VM_MEMORY_PRIVATE,
                .memory_path = memory,
                .session = secret,
        };

        vm_unref(TAKE_PTR(*vm));
        int r = vm_attach(&spec, &proc, NULL, vm, &e);
        if (r >= 0)
                r = vm_agent(*vm, &op, &agent, &e);
        printf("# %s with %.4s: %s\n", name, secret ? secret : "nothing", r < 0 ? error_message(&e) : "connected");
        return r;
}

/* A fork's agent knows the source's secret until it gets its own, and then no other. */
static void test_secrets(void) {
        _cleanup_saved_ struct saved s = {0};
        struct vm *vm = child_on("secret", 0);

        REQUIRE(vm && settle(vm, "secret") >= 0);
        CHECK_INT(give_secret(vm, SECRET_A), 0);
        CHECK_INT(reconnect(&vm, "secret", SECRET_A), 0);
        CHECK(reconnect(&vm, "secret", SECRET_B) < 0);
        CHECK(reconnect(&vm, "secret", NULL) < 0);
        REQUIRE(save(vm, "secret-state", false, &s));
        CHECK_INT(reconnect(&vm, "secret", SECRET_A), 0);

        s.session = SECRET_A;
        struct vm *fork = fork_by_pages(&s, "secret-fork");
        CHECK_INT(give_secret(fork, SECRET_B), 0);
        expect(fork, "hostname", "secret");
        CHECK_INT(reconnect(&fork, "secret-fork", SECRET_B), 0);
        CHECK(reconnect(&fork, "secret-fork", SECRET_A) < 0);
        expect(vm, "hostname", "secret");
        end(fork);
        end(vm);
        s.session = SECRET_B;
        CHECK(!fork_by_pages(&s, "secret-wrong"));
}

/* --- how long a machine stands still --- */

static void test_pauses(void) {
        static const unsigned mib[] = {10, 64, 200};

        for (size_t i = 0; i < ARRAY_SIZE(mib); i++) {
                _cleanup_free_ char *name = str_printf("touched-%u", mib[i]), *fill = NULL;
                struct vm *vm = child_on(name, 0);

                fill = str_printf("mount -o remount,size=400M /dev/shm && head -c %uM /dev/urandom > /dev/shm/x",
                                  mib[i]);
                REQUIRE(vm);
                expect(vm, fill, "");
                for (int again = 0; again < 3; again++) {
                        _cleanup_free_ char *file = str_printf("%s-%d", name, again);
                        _cleanup_saved_ struct saved s = {0};

                        CHECK(save(vm, file, false, &s));
                        CHECK(s.result.kind == VM_STATE_DEVICES && s.result.pages_bytes > (uint64_t) mib[i] << 20);
                }
                end(vm);
        }
}

/* --- many at once --- */

struct forking {
        const struct saved *saved;
        char *name;
        pthread_t thread;
        struct vm *vm;
};

static void *fork_main(void *arg) {
        struct forking *f = arg;

        f->vm = fork_by_pages(f->saved, f->name);
        return NULL;
}

static void test_many_forks_at_once(void) {
        static const char look[] = "kill -0 $(cat /run/sleeper) && cat /run/mark";
        _cleanup_saved_ struct saved s = {0};
        struct forking forks[FORKS] = {0};
        struct vm *vm = child_on("many", 0);

        REQUIRE(vm && settle(vm, "many") >= 0);
        expect(vm, "echo many > /run/mark; setsid sleep 1000000 >/dev/null 2>&1 & echo $! > /run/sleeper", "");
        REQUIRE(save(vm, "many", false, &s));
        int64_t t0 = monotonic_ns();
        for (size_t i = 0; i < FORKS; i++) {
                forks[i] = (struct forking){.saved = &s, .name = str_printf("many-%zu", i)};
                REQUIRE(thread_start(&forks[i].thread, "fork", fork_main, &forks[i]) >= 0);
        }
        for (size_t i = 0; i < FORKS; i++)
                pthread_join(forks[i].thread, NULL);
        printf("# %d forks at once, with their disks: %.1f ms\n", FORKS, ms_since(t0));
        for (size_t i = 0; i < FORKS; i++) {
                CHECK(forks[i].vm != NULL);
                expect(forks[i].vm, look, "many");
        }
        expect(vm, look, "many");
        for (size_t i = 0; i < FORKS; i++) {
                end(forks[i].vm);
                free(forks[i].name);
        }
        end(vm);
}

/* --- a host that does not let us write QEMU's memory --- */

static void *fork_without_rights(void *arg) {
        unprivileged_thread();
        return fork_main(arg);
}

static void test_memory_that_may_not_be_written(void) {
        _cleanup_saved_ struct saved s = {0}, again = {0};
        struct forking f = {.saved = &s, .name = (char[]){"refused"}};
        struct vm *vm = child_on("rights", 0);
        _cleanup_free_ char *image = at("refused/memory.img");

        REQUIRE(vm && settle(vm, "rights") >= 0);
        expect(vm, counter, "counting");
        REQUIRE(save(vm, "rights", false, &s));
        end(vm);
        REQUIRE(thread_start(&f.thread, "fork", fork_without_rights, &f) >= 0);
        pthread_join(f.thread, NULL);
        REQUIRE(f.vm);
        check_counts(f.vm);
        CHECK(access(image, F_OK) < 0);
        /* Its pages are not those over the template: what is saved of it is complete without that. Only root's right to
         * look into other processes can be taken from a thread, so others have made an ordinary fork here. */
        CHECK(save(f.vm, "refused-again", false, &again));
        CHECK_INT(again.result.kind, geteuid() == 0 ? VM_STATE_FULL : VM_STATE_DEVICES);
        end(f.vm);
        vm = fork_by_pages(&again, "after-refused");
        check_counts(vm);
        end(vm);
}

int main(int argc, char **argv) {
        int r = machines_begin(argc, argv);
        if (r != 0)
                return r;
        RUN(test_template);
        if (template_disk) {
                RUN(test_forks_of_forks);
                RUN(test_snapshots_of_a_busy_machine);
                RUN(test_a_larger_disk);
                RUN(test_snapshot_of_the_disk);
                RUN(test_secrets);
                RUN(test_pauses);
                RUN(test_many_forks_at_once);
                RUN(test_memory_that_may_not_be_written);
        }
        free(template_disk);
        machines_end();
        return tap_done();
}
