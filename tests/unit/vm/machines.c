/* SPDX-License-Identifier: Apache-2.0 */
#include "machines.h"

#include "base/file.h"
#include "base/json.h"
#include "base/process.h"

#define OUTPUT_MAX 65536u

char machines_dir[] = "/tmp/template-once-XXXXXX";
const char *base_disk;
struct platform platform;

static char *image_disk; /* what base_disk says */

int machines_begin(int argc, char **argv) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        enum accel accel = ACCEL_AUTO;

        if (argc < 2 || (argc > 3 && accel_parse(argv[3], &accel) < 0) || !mkdtemp(machines_dir)) {
                fprintf(stderr, "usage: %s IMAGE_DIR [IMAGE] [kvm|tcg|auto]\n", argv[0]);
                return 2;
        }
        const struct platform_args pa = {.image_dir = argv[1], .scratch_dir = machines_dir, .accel = accel};
        if (platform_probe(&pa, &op, &platform, &e) < 0) {
                fprintf(stderr, "%s\n", error_message(&e));
                machines_end();
                return 1;
        }
        printf("# QEMU %s, %s\n", platform.qemu_version, accel_name(platform.accel));
        base_disk = image_disk = str_printf("%s/%s/disk.raw", argv[1], argc > 2 ? argv[2] : "debian-dev");
        return 0;
}

void machines_end(void) {
        platform_clear(&platform);
        free(image_disk);
        (void) rm_rf(machines_dir);
}

char *at(const char *name) {
        return path_join(machines_dir, name);
}

double ms_since(int64_t ns) {
        return (double) (monotonic_ns() - ns) / (double) NSEC_PER_MSEC;
}

/* --- machines --- */

int make_overlay(const char *path, const char *backing, const char *format, unsigned gib) {
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
                        NULL,
                        NULL};
        _cleanup_free_ char *size = gib > 0 ? str_printf("%uG", gib) : NULL;
        _cleanup_error_ struct error e = ERROR_INIT;

        argv[ARRAY_SIZE(argv) - 2] = size;
        int r = process_run(argv, &op, NULL, NULL, &e);
        if (r < 0)
                printf("# %s\n", error_message(&e));
        return r;
}

struct vm *start(const struct machine *m, struct error *err) {
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
                .pages_path = m->pages_path,
                .session = m->session,
                .disk_path = disk,
                .disk_format = "qcow2",
                .net = VM_NET_USER_RESTRICTED,
                .mac = "52:54:00:63:00:07",
                .network = "10.99.0.0",
                .prefix_len = 16,
                .gateway = "10.99.0.1",
        };

        if (mkdir_p(folder, 0700) < 0 || make_overlay(disk, m->backing, m->backing_format, m->disk_gib) < 0)
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
        if (!m->quiet)
                printf("# %-14s start to the agent's answer %7.1f ms\n", m->name,
                       launched + (double) t0 / NSEC_PER_MSEC);
        return vm;
}

void end(struct vm *vm) {
        if (vm)
                vm_kill(vm);
        vm_unref(vm);
}

char *run(struct vm *vm, const char *command) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        const struct agent_exec_args args = {.command = command, .timeout_ms = STEP_MS / 2, .max_output = OUTPUT_MAX};

        int r = vm ? vm_agent(vm, &op, &agent, &e) : error_set(&e, ERROR_NOT_RUNNING, "There is no machine");
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

int mount_root(struct vm *vm) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;

        int r = vm_agent(vm, &op, &agent, &e);
        if (r >= 0)
                r = agent_mount_root(agent, &op, &e);
        if (r < 0)
                printf("# %s\n", error_message(&e));
        return r;
}

int settle(struct vm *vm, const char *hostname) {
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

const char counter[] =
        "echo marked > /run/mark; echo marked > /root/mark; sync; "
        "setsid python3 -c '\nimport os, time\nn = 0\nwhile True:\n n += 1\n "
        "open(\"/run/count.new\", \"w\").write(str(n))\n os.replace(\"/run/count.new\", \"/run/count\")\n "
        "time.sleep(0.05)' >/dev/null 2>&1 & echo $! > /run/counter; "
        "until test -e /run/count; do sleep 0.02; done; echo counting";

int64_t count_of(struct vm *vm) {
        _cleanup_free_ char *text = run(vm, "cat /run/count");

        return text ? strtoll(text, NULL, 10) : -1;
}

/* --- snapshots --- */

void saved_clear(struct saved *s) {
        free(s->state);
        free(s->pages);
        free(s->overlay);
        free(s->memory);
}

bool save(struct vm *vm, const char *name, bool full, struct saved *s) {
        const struct op op = op_timeout(STEP_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_free_ char *disk = NULL;

        *s = (struct saved){
                .state = str_printf("%s/%s.state", machines_dir, name),
                .pages = str_printf("%s/%s.pages", machines_dir, name),
                .overlay = str_printf("%s/%s.qcow2", machines_dir, name),
                .memory = str_printf("%s/%s.ram", machines_dir, name),
        };
        const struct vm_snapshot_args args = {
                .state_path = s->state, .pages_path = full ? NULL : s->pages, .overlay_path = s->overlay};

        int r = vm_disk_file(vm, &op, &disk, &e);
        if (r >= 0)
                r = make_overlay(s->overlay, disk, "qcow2", 0);
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

static struct vm *fork_machine(const struct saved *s, const char *name, const char *memory, const char *pages) {
        _cleanup_error_ struct error e = ERROR_INIT;
        const bool full = s->result.kind == VM_STATE_FULL;
        const struct machine m = {
                .name = name,
                .backing = s->overlay,
                .backing_format = "qcow2",
                .memory = full ? VM_MEMORY_ANONYMOUS : VM_MEMORY_PRIVATE,
                .memory_path = full ? NULL : memory,
                .state = s->result.kind,
                .state_path = s->state,
                .pages_path = full ? NULL : pages,
                .session = s->session,
        };

        return start(&m, &e);
}

struct vm *fork_of(const struct saved *s, const char *name) {
        return fork_machine(s, name, s->memory, NULL);
}

struct vm *fork_by_pages(const struct saved *s, const char *name) {
        _cleanup_free_ char *base = at("t.ram");

        return fork_machine(s, name, base, s->pages);
}

/* --- the template --- */

char *make_template(bool mounted) {
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

        struct vm *vm = start(&m, &e);
        if (!vm)
                return NULL;
        int r = mounted ? mount_root(vm) : 0;
        int64_t t0 = monotonic_ns();
        if (r >= 0)
                r = vm_save_template(vm, state, &op, &e);
        printf("# template saved and on disk in %.1f ms\n", ms_since(t0));
        end(vm);
        if (r < 0) {
                printf("# %s\n", error_message(&e));
                return NULL;
        }
        return at("template/disk.qcow2");
}

struct vm *child_of_template(const char *name, struct error *err) {
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
