/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the agent does for a machine that goes on from a saved state, with real machines; TAP with the times as
 * comments:
 *
 *     agent-once IMAGE_DIR [IMAGE] [kvm|tcg|auto]
 *
 * What is said of template-once holds for this, too.
 */
#include <inttypes.h>
#include <time.h>

#include "base/json.h"
#include "base/thread.h"
#include "machines.h"

#define FORKS 3u
#define SOURCE_SESSION "00000000000000000000000000000001"
#define OTHER_SESSION "ffffffffffffffffffffffffffffffff"
#define JOB_MS 4000 /* the time of a job that is under way when its machine is saved */
#define LONG_FREEZE_MS 60000
#define SHORT_FREEZE_MS 1500

static struct vm *source;
static struct saved saved; /* of the source */

static int64_t realtime_ns(void) {
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

/* Everything that makes a machine itself, by a number. */
static int configure(struct vm *vm, unsigned number) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;
        char name[32], id[33], session[SESSION_LEN + 1], mac[18], address[16];

        snprintf(name, sizeof(name), "machine-%u", number);
        snprintf(id, sizeof(id), "%032x", number);
        snprintf(session, sizeof(session), "%032x", number);
        snprintf(mac, sizeof(mac), "52:54:00:63:01:%02x", number & 0xff);
        snprintf(address, sizeof(address), "10.99.1.%u", number & 0xff);
        const struct agent_identity identity = {
                .hostname = name,
                .machine_id = id,
                .mac = mac,
                .address = address,
                .prefix_len = 16,
                .gateway = "10.99.0.1",
                .session = session,
        };

        int r = vm_agent(vm, &op, &agent, &e);
        int64_t t0 = monotonic_ns();
        if (r >= 0)
                r = agent_configure(agent, &identity, &op, &e);
        if (r >= 0)
                r = vm_set_session(vm, session);
        if (r < 0)
                printf("# %s: %s\n", name, error_message(&e));
        else
                printf("# %-14s configured in %7.1f ms\n", name, ms_since(t0));
        return r;
}

/* Everything by which two machines must differ, a line each. */
static const char marks[] =
        "cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id /etc/machine-id /etc/hostname; "
        "for n in /sys/class/net/*; do test -e $n/device && cat $n/address; done; "
        "openssl rand -hex 16; "
        "python3 -c 'import random, secrets, uuid, os\n"
        "print(random.random(), random.getrandbits(64))\nprint(secrets.token_hex())\nprint(uuid.uuid4())\n"
        "print(os.urandom(16).hex())'; "
        "python3 -c 'import socket, fcntl, struct\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "print(*[socket.inet_ntoa(fcntl.ioctl(s, 0x8915, struct.pack(\"256s\", n.encode()))[20:24]) "
        "for _, n in socket.if_nameindex() if n != \"lo\"])'; "
        "grep '# agentiso' /etc/hosts; hostname";
#define MARKS_MIN 12

/* --- tests --- */

static void test_source(void) {
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_free_ char *disk = make_template(false), *boot_id = NULL;

        REQUIRE(disk);
        source = child_of_template("source", &e);
        REQUIRE(source && mount_root(source) >= 0 && configure(source, 1) >= 0);
        expect(source, counter, "counting");
        /* The kernel has made its boot id by now, which stays for good. */
        boot_id = run(source, "cat /proc/sys/kernel/random/boot_id");
        CHECK(boot_id && strlen(boot_id) == UUID_LEN);
}

/* A command with a time limit that is under way in the state: the clock that the forks are given is another one, but
 * their time goes on. */
static uint64_t begin_job(struct vm *vm, const char *command, int64_t timeout_ms) {
        const struct op op = op_timeout(STEP_MS);
        const struct agent_exec_args args = {.command = command, .timeout_ms = timeout_ms};
        _cleanup_agent_ struct agent *agent = NULL;
        uint64_t id = 0;

        CHECK(vm_agent(vm, &op, &agent, NULL) >= 0 && agent_job_start(agent, &args, NULL, &op, &id, NULL) >= 0);
        return id;
}

static uint64_t limited, unlimited;

static void test_a_state_with_a_wrong_clock(void) {
        REQUIRE(source);
        expect(source, "date -s '2001-02-03 04:05:06' >/dev/null; date +%Y", "2001");
        limited = begin_job(source, "sleep 1000", JOB_MS);
        unlimited = begin_job(source, "echo begun; sleep 1000", 0);
        REQUIRE(save(source, "state", false, &saved));
        saved.session = SOURCE_SESSION;
}

static void test_a_host_without_the_secret(void) {
        static const char *const wrong[] = {NULL, OTHER_SESSION};
        _cleanup_free_ char *memory = at("t.ram");

        REQUIRE(saved.state);
        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                _cleanup_error_ struct error e = ERROR_INIT;
                const struct machine m = {
                        .name = "stranger",
                        .backing = saved.overlay,
                        .backing_format = "qcow2",
                        .memory = VM_MEMORY_PRIVATE,
                        .memory_path = memory,
                        .state = VM_STATE_DEVICES,
                        .state_path = saved.state,
                        .pages_path = saved.pages,
                        .session = wrong[i],
                };

                struct vm *vm = start(&m, &e);
                CHECK(!vm && e.code == ERROR_GUEST_UNREACHABLE);
                CHECK(strstr(error_message(&e), "another session"));
                end(vm);
        }
}

/* By so many ms at least the guest's clock differs from ours: it was read between the question and the answer. */
static int64_t clock_difference_ms(struct vm *vm) {
        int64_t most = 0;

        for (int i = 0; i < 20; i++) {
                int64_t before = realtime_ns();
                _cleanup_free_ char *text = run(vm, "date +%s%N");
                int64_t after = realtime_ns(), theirs = text ? strtoll(text, NULL, 10) : 0;

                most = MAX(most, before - theirs);
                most = MAX(most, theirs - after);
        }
        return most / NSEC_PER_MSEC;
}

static void check_lines_differ(char *const texts[], size_t n) {
        for (size_t i = 0; i < n; i++)
                for (size_t k = i + 1; k < n; k++) {
                        _cleanup_free_ char *a = strdup(texts[i]), *b = strdup(texts[k]);
                        char *save_a = NULL, *save_b = NULL;
                        unsigned lines = 0;
                        char *x = strtok_r(a, "\n", &save_a), *y = strtok_r(b, "\n", &save_b);

                        for (; x && y; x = strtok_r(NULL, "\n", &save_a), y = strtok_r(NULL, "\n", &save_b), lines++)
                                if (str_eq(x, y)) {
                                        printf("# the same in two machines: %s\n", x);
                                        CHECK(false);
                                }
                        CHECK(!x && !y && lines >= MARKS_MIN);
                }
}

static void test_no_two_are_alike(void) {
        char *texts[FORKS + 1] = {NULL};
        struct vm *forks[FORKS] = {NULL};

        REQUIRE(saved.state);
        for (unsigned i = 0; i < FORKS; i++) {
                _cleanup_free_ char *name = str_printf("fork-%u", i);

                forks[i] = fork_by_pages(&saved, name);
                CHECK(forks[i] && configure(forks[i], 10 + i) >= 0);
        }
        for (unsigned i = 0; i < FORKS; i++) {
                texts[i] = run(forks[i], marks);
                check_counts(forks[i]);
                int64_t off = clock_difference_ms(forks[i]);
                printf("# the clock is off by %" PRId64 " ms or little more\n", off);
                CHECK(off <= CLOCK_TOLERANCE_MS);
        }
        texts[FORKS] = run(source, marks);
        check_lines_differ(texts, FORKS + 1);
        for (unsigned i = 0; i <= FORKS; i++)
                free(texts[i]);
        for (unsigned i = 0; i < FORKS; i++)
                end(forks[i]);
        check_counts(source);
}

static void test_jobs_over_a_change_of_the_clock(void) {
        const struct op op = op_timeout(STEP_MS);
        struct vm *vm = saved.state ? fork_by_pages(&saved, "jobs") : NULL;
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_(agent_job_clear) struct agent_job job = {0};
        _cleanup_json_ json_t *list = NULL;
        struct agent_job_read_args read = {
                .job_id = limited, .wait_ms = STEP_MS / 2, .out_offset = 0, .err_offset = 0, .max_output = 100};
        uint64_t total = 0;

        REQUIRE(vm && configure(vm, 20) >= 0);
        expect(vm, "test $(date +%Y) -gt 2020 && echo now", "now");
        REQUIRE(vm_agent(vm, &op, &agent, NULL) >= 0);
        CHECK_INT(agent_job_read(agent, &read, &op, &job, NULL), 0);
        CHECK(!job.running && job.result.timed_out);
        CHECK(job.result.duration_ms >= JOB_MS && job.result.duration_ms < STEP_MS);
        agent_job_clear(&job);
        read.job_id = unlimited;
        read.wait_ms = 0;
        CHECK_INT(agent_job_read(agent, &read, &op, &job, NULL), 0);
        CHECK(job.running && job.result.duration_ms < STEP_MS);
        CHECK_STR(job.result.out.head.data, "begun\n");
        /* They began when the machine's clock said so. */
        CHECK_INT(agent_job_list(agent, 10, &op, &list, &total, NULL), 0);
        const char *started = json_string_value(json_object_get(json_array_get(list, 0), "started_at"));
        CHECK(started && str_starts_with(started, "2001-02-03T04:05:"));
        end(vm);
}

/* --- freezing --- */

static void test_what_is_written_while_frozen(void) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_(agent_job_clear) struct agent_job job = {0};
        struct agent_job_read_args read = {.wait_ms = 0, .out_offset = 0, .err_offset = 0, .max_output = 100};
        bool frozen = false;

        REQUIRE(source && vm_agent(source, &op, &agent, NULL) >= 0);
        expect(source, "touch /root/warm; sync; cat /proc/uptime >/dev/null", "");
        int64_t t0 = monotonic_ns();
        REQUIRE(agent_freeze(agent, LONG_FREEZE_MS, &op, &frozen, NULL) >= 0);
        printf("# frozen in %.1f ms\n", ms_since(t0));
        CHECK(frozen);
        read.job_id = begin_job(source, "echo before; echo text > /root/late; echo written", 0);
        while (agent_job_read(agent, &read, &op, &job, NULL) >= 0 && job.result.out.total < 7) {
                agent_job_clear(&job);
                read.wait_ms = STEP_MS / 2;
        }
        CHECK(job.running);
        CHECK_STR(job.result.out.head.data, "before\n");
        expect(source, "test -s /root/late || echo nothing; cat /root/mark", "nothing\nmarked");
        CHECK(agent_freeze(agent, 1000, &op, &frozen, NULL) == -EEXIST);
        t0 = monotonic_ns();
        CHECK_INT(agent_thaw(agent, &op, NULL), 0);
        printf("# thawed in %.1f ms\n", ms_since(t0));
        agent_job_clear(&job);
        read.wait_ms = STEP_MS / 2;
        read.out_offset = 7;
        do {
                agent_job_clear(&job);
                CHECK_INT(agent_job_read(agent, &read, &op, &job, NULL), 0);
        } while (job.running && op_check(&op) >= 0);
        expect(source, "cat /root/late", "text");
        CHECK_INT(agent_thaw(agent, &op, NULL), -ENOENT);
        CHECK_INT(agent_sync(agent, &op, NULL), 0);
}

static void test_a_freeze_that_nobody_ends(void) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        bool frozen = false;

        REQUIRE(source && vm_agent(source, &op, &agent, NULL) >= 0);
        REQUIRE(agent_freeze(agent, SHORT_FREEZE_MS, &op, &frozen, NULL) >= 0 && frozen);
        expect(source, "echo again > /root/late; cat /root/late", "again");
        CHECK_INT(agent_thaw(agent, &op, NULL), -ENOENT);
}

/* A machine that is saved while it is frozen, and forks that are given an identity all the same. */
static void test_a_state_that_is_frozen(void) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_saved_ struct saved frozen_state = {0};
        bool frozen = false;

        REQUIRE(source && vm_agent(source, &op, &agent, NULL) >= 0);
        REQUIRE(agent_freeze(agent, LONG_FREEZE_MS, &op, &frozen, NULL) >= 0 && frozen);
        const bool well = save(source, "frozen", false, &frozen_state);
        CHECK_INT(agent_thaw(agent, &op, NULL), 0);
        REQUIRE(well);
        frozen_state.session = SOURCE_SESSION;
        struct vm *vm = fork_by_pages(&frozen_state, "thawed");
        REQUIRE(vm && configure(vm, 30) >= 0);
        expect(vm, "echo thawed > /root/late; cat /root/late", "thawed");
        check_counts(vm);
        end(vm);
}

/* A daemon that is lost, and the next one. */
static void test_a_freeze_of_a_lost_host(void) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_free_ char *folder = at("source"), *memory = at("t.ram");
        struct agent *agent = NULL;
        bool frozen = false;

        REQUIRE(source && vm_agent(source, &op, &agent, NULL) >= 0);
        const struct proc_id proc = vm_proc(source);
        struct vm_spec spec = {
                .id = "source",
                .dir = folder,
                .memory_mb = MEMORY_MB,
                .memory = VM_MEMORY_PRIVATE,
                .memory_path = memory,
                .session = OTHER_SESSION,
        };
        CHECK(agent_freeze(agent, LONG_FREEZE_MS, &op, &frozen, NULL) >= 0 && frozen);
        agent_unref(TAKE_PTR(agent));
        vm_unref(TAKE_PTR(source));

        _cleanup_error_ struct error e = ERROR_INIT;
        REQUIRE(vm_attach(&spec, &proc, NULL, &source, NULL) >= 0);
        CHECK(vm_agent(source, &op, &agent, &e) < 0 && e.code == ERROR_GUEST_UNREACHABLE);
        CHECK(strstr(error_message(&e), "another session"));
        CHECK_INT(vm_set_session(source, SOURCE_SESSION), 0);
        REQUIRE(vm_agent(source, &op, &agent, NULL) >= 0);
        CHECK_INT(agent_thaw(agent, &op, NULL), -ENOENT);
        agent_unref(agent);
        expect(source, "echo last > /root/late; cat /root/late", "last");
        check_counts(source);
}

int main(int argc, char **argv) {
        int r = machines_begin(argc, argv);

        if (r != 0)
                return r;
        setvbuf(stdout, NULL, _IOLBF, 0);
        RUN(test_source);
        RUN(test_a_state_with_a_wrong_clock);
        RUN(test_a_host_without_the_secret);
        RUN(test_no_two_are_alike);
        RUN(test_jobs_over_a_change_of_the_clock);
        RUN(test_what_is_written_while_frozen);
        RUN(test_a_freeze_that_nobody_ends);
        RUN(test_a_state_that_is_frozen);
        RUN(test_a_freeze_of_a_lost_host);
        end(source);
        saved_clear(&saved);
        machines_end();
        return tap_done();
}
