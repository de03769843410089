/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/checks.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/file.h"
#include "base/log.h"
#include "base/process.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "daemon/probe.h"
#include "daemon/state-dir.h"

/* Limit of a program that only says its version. */
#define RUN_MS 10000
/* Open files: each VM takes about a dozen and each client a few. */
#define FDS_WANTED 4096
/* Free space below which it is worth a warning, beyond what creates keep in reserve. */
#define DISK_WANTED (8ull << 30)

void finding_clear(struct finding *f) {
        free(f->reason);
        free(f->fix);
        *f = (struct finding){0};
}

static _printf_(3, 4) void found(struct finding *f, enum finding_status status, const char *fmt, ...) {
        struct buf text = BUF_INIT(16 * 1024);
        va_list ap;

        va_start(ap, fmt);
        (void) buf_vprintf(&text, fmt, ap);
        va_end(ap);
        f->status = status;
        free(f->reason);
        f->reason = buf_steal(&text);
        /* One line each. */
        for (char *c = f->reason; c && *c; c++)
                if (*c == '\n')
                        *c = ' ';
}

static _printf_(2, 3) void fix(struct finding *f, const char *fmt, ...) {
        struct buf text = BUF_INIT(16 * 1024);
        va_list ap;

        va_start(ap, fmt);
        (void) buf_vprintf(&text, fmt, ap);
        va_end(ap);
        free(f->fix);
        f->fix = buf_steal(&text);
}

/* Before a command for root. */
static const char *sudo(void) {
        return geteuid() == 0 ? "" : "sudo ";
}

/* The first line that `program --version` prints. */
static void check_program(struct finding *f, const char *program, const char *package) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_buf_ struct buf out = BUF_INIT(4096);
        struct op op = op_timeout(RUN_MS);
        const char *argv[] = {program, "--version", NULL};

        if (process_run((char *const *) argv, &op, &out, NULL, &err) < 0) {
                found(f, FINDING_FAIL, "%s", error_message(&err));
                fix(f, "%sapt-get install %s", sudo(), package);
                return;
        }
        found(f, FINDING_OK, "%.*s", out.data ? (int) strcspn(out.data, "\n") : 0, out.data ? out.data : "");
}

static void check_qemu(const struct config *cfg, struct finding *f) {
        check_program(f, str_empty(cfg->qemu) ? "qemu-system-x86_64" : cfg->qemu, "qemu-system-x86");
}

static void check_qemu_img(const struct config *cfg, struct finding *f) {
        check_program(f, "qemu-img", "qemu-utils");
}

static bool boot_file_there(const struct config *cfg, const char *name) {
        _cleanup_free_ char *path = str_printf("%s/boot/%s", cfg->image_dir, name);

        return path && access(path, R_OK) == 0;
}

static void check_boot_files(const struct config *cfg, struct finding *f) {
        bool kernel = boot_file_there(cfg, "vmlinux") || boot_file_there(cfg, "vmlinuz");

        if (!kernel || !boot_file_there(cfg, "initramfs.img")) {
                found(f, FINDING_FAIL, "no %s in %s/boot that can be read", kernel ? "initramfs.img" : "vmlinuz",
                      cfg->image_dir);
                fix(f, "agentiso image build");
                return;
        }
        found(f, FINDING_OK, "kernel and initramfs are in %s/boot", cfg->image_dir);
}

static void check_base_image(const struct config *cfg, struct finding *f) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_image_ struct image image = {0};

        if (image_find(cfg->image_dir, cfg->default_image, &image, &err) < 0) {
                found(f, FINDING_FAIL, "%s", error_message(&err));
                fix(f, "agentiso image build %s", cfg->default_image);
                return;
        }
        found(f, FINDING_OK, "%s, made %s", image.name, image.created_at ? image.created_at : "at an unknown time");
}

static void check_kvm(const struct config *cfg, struct finding *f) {
        _cleanup_close_ int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

        if (fd >= 0) {
                found(f, FINDING_OK, "/dev/kvm can be opened");
                return;
        }
        int err = errno;
        found(f, FINDING_WARN, "/dev/kvm: %s: VMs are emulated, several times slower", strerror(err));
        if (err == EACCES || err == EPERM)
                fix(f, "sudo usermod -aG kvm \"$USER\"   # then log in again");
        else
                fix(f, "%smodprobe -a kvm_intel kvm_amd   # with virtualisation enabled in the firmware", sudo());
}

static void check_accelerator(const struct config *cfg, struct finding *f) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *cache = path_join(cfg->state_dir, "platform.cache");
        char scratch[] = "/tmp/agentiso-check-XXXXXX";
        struct platform_args args = {.qemu = str_empty(cfg->qemu) ? NULL : cfg->qemu, .image_dir = cfg->image_dir};
        struct platform platform = {0};
        _cleanup_cancel_ struct cancel *interrupted = interrupt_token();
        struct op op = op_timeout(PROBE_MS);

        op.cancel = interrupted;
        if (!mkdtemp(scratch)) {
                found(f, FINDING_FAIL, "cannot make a folder in /tmp: %s", strerror(errno));
                return;
        }
        args.scratch_dir = scratch;
        args.cache_file = access(cfg->state_dir, W_OK) == 0 ? cache : NULL;
        int r = accel_parse(cfg->accel, &args.accel);
        if (r >= 0)
                r = platform_probe(&args, &op, &platform, &err);
        (void) rm_rf(scratch);
        if (r == -ECANCELED)
                _exit(CLI_INTERRUPTED);
        if (r < 0) {
                found(f, FINDING_FAIL, "%s", error_message(&err));
                fix(f, "agentiso image build");
                return;
        }
        bool degraded = platform.accel == ACCEL_TCG && args.accel != ACCEL_TCG;
        found(f, degraded ? FINDING_WARN : FINDING_OK, "%s: %s", accel_name(platform.accel), platform.accel_reason);
        if (degraded && access("/dev/kvm", R_OK | W_OK) == 0)
                fix(f, "set vm.accel = \"tcg\" to accept it; no command mends a KVM that cannot run guests");
        else if (degraded)
                fix(f, "see /dev/kvm below");
        platform_clear(&platform);
}

static void check_device(struct finding *f, const char *path, const char *use, const char *module) {
        _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);

        if (fd >= 0) {
                found(f, FINDING_OK, "%s can be opened", path);
                return;
        }
        int err = errno;
        found(f, FINDING_WARN, "%s: %s: %s", path, strerror(err), use);
        if (err == EACCES || err == EPERM)
                fix(f, "sudo setfacl -m u:\"$USER\":rw %s", path);
        else
                fix(f, "%smodprobe %s", sudo(), module);
}

static void check_vsock(const struct config *cfg, struct finding *f) {
        check_device(f, "/dev/vhost-vsock", "the agent is reached through virtio-serial instead", "vhost_vsock");
}

static void check_tun(const struct config *cfg, struct finding *f) {
        check_device(f, "/dev/net/tun", "workspaces have no bridged network", "tun");
}

/* Why the kernel refused a user namespace, as a setting that can be changed. */
static const char *userns_setting(void) {
        static const struct {
                const char *path, *bad, *setting;
        } rows[] = {
                {"/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"},
                {"/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=16384"},
                {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
                 "kernel.apparmor_restrict_unprivileged_userns=0"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                _cleanup_free_ char *text = NULL;
                if (file_read_all(rows[i].path, 64, &text, NULL) < 0)
                        continue;
                text[strcspn(text, "\n")] = 0;
                if (str_eq(text, rows[i].bad))
                        return rows[i].setting;
        }
        return "user.max_user_namespaces=16384";
}

static void check_userns(const struct config *cfg, struct finding *f) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op_timeout(RUN_MS);
        const char *argv[] = {"unshare", "--user", "--map-root-user", "--net", "true", NULL};

        if (process_run((char *const *) argv, &op, NULL, NULL, &err) >= 0) {
                found(f, FINDING_OK, "a user namespace with a network namespace can be made");
                return;
        }
        found(f, FINDING_WARN, "no user namespaces: %s", error_message(&err));
        fix(f, "%ssysctl -w %s", sudo(), userns_setting());
}

/* Tries it: in a folder of its own, so that a daemon that runs is not touched. */
static void check_network(const struct config *cfg, struct finding *f) {
        char dir[] = "/tmp/agentiso-check-XXXXXX";
        const struct op op = op_timeout(RUN_MS);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *program = NULL;
        struct network_config net = {.dir = dir, .user_only = str_eq(cfg->network_mode, "user")};
        struct network *network = NULL;

        log_setup(LOG_ERROR, STDERR_FILENO); /* what goes wrong is in the finding */
        config_network(cfg, &net.network, &net.prefix_len);
        if (!mkdtemp(dir) || self_path(&program) < 0) {
                found(f, FINDING_WARN, "cannot try it: %s", strerror(errno));
                return;
        }
        net.program = program;
        if (network_open(&net, &network, &err) >= 0) {
                network_why(network, &op, &err);
                network_close(network, true);
        }
        (void) rm_rf(dir);
        if (!error_is_set(&err)) {
                found(f, FINDING_OK, "a private network of bridge, taps and packet filter can be made");
                return;
        }
        /* What would mend it is said where it is missing: nftables, /dev/net/tun, user namespaces. */
        found(f, FINDING_WARN, "workspaces get user networking: %s", error_message(&err));
}

static void check_nft(const struct config *cfg, struct finding *f) {
        check_program(f, "nft", "nftables");
        if (f->status == FINDING_FAIL)
                f->status = FINDING_WARN;
}

static void check_pasta(const struct config *cfg, struct finding *f) {
        check_program(f, "pasta", "passt");
        if (f->status == FINDING_FAIL)
                f->status = FINDING_WARN;
}

/* The cgroup of this process below /sys/fs/cgroup; NULL when it has none in the second hierarchy. */
static char *own_cgroup(void) {
        _cleanup_free_ char *text = NULL;

        if (file_read_all("/proc/self/cgroup", 64 * 1024, &text, NULL) < 0)
                return NULL;
        for (char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
                if (str_starts_with(line, "0::")) {
                        line[strcspn(line, "\n")] = 0;
                        return str_printf("/sys/fs/cgroup%s", line + 3);
                }
        return NULL;
}

static void check_cgroup(const struct config *cfg, struct finding *f) {
        _cleanup_free_ char *dir = own_cgroup();
        struct statfs fs;

        if (!dir || statfs("/sys/fs/cgroup", &fs) < 0 || (unsigned long) fs.f_type != CGROUP2_SUPER_MAGIC) {
                found(f, FINDING_WARN, "cgroup v2 is not mounted on /sys/fs/cgroup: VMs get no limits from the host");
                fix(f, "%smount -t cgroup2 cgroup2 /sys/fs/cgroup", sudo());
                return;
        }
        if (access(dir, W_OK) < 0) {
                found(f, FINDING_WARN, "cgroup %s is not delegated to us: VMs get no limits from the host", dir);
                fix(f, "systemd-run --user --scope -p Delegate=yes agentiso daemon");
                return;
        }
        found(f, FINDING_OK, "cgroup v2 %s can be written", dir);
}

static void check_state_dir(const struct config *cfg, struct finding *f) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct stat st;

        if (stat(cfg->state_dir, &st) < 0 && errno == ENOENT) {
                found(f, FINDING_OK, "%s will be made", cfg->state_dir);
                return;
        }
        if (state_dir_prepare(cfg->state_dir, &err) < 0) {
                found(f, FINDING_FAIL, "%s", error_message(&err));
                fix(f, "chmod 700 %s   # or set AGENTISO_STATE_DIR to a directory of your own", cfg->state_dir);
                return;
        }
        found(f, FINDING_OK, "%s", cfg->state_dir);
}

/* Free space where the state directory is or will be. */
static int free_bytes(const char *state_dir, uint64_t *ret) {
        _cleanup_free_ char *path = strdup(state_dir);

        while (path && disk_free_bytes(path, ret) < 0) {
                char *slash = strrchr(path, '/');
                if (!slash || slash == path)
                        return disk_free_bytes("/", ret);
                *slash = 0;
        }
        return path ? 0 : -ENOMEM;
}

static void check_disk(const struct config *cfg, struct finding *f) {
        uint64_t bytes = 0, reserve = (uint64_t) cfg->reserve_mb << 20;
        char text[16], reserved[16];

        int r = free_bytes(cfg->state_dir, &bytes);
        if (r < 0) {
                found(f, FINDING_FAIL, "cannot find out the free space: %s", strerror(-r));
                return;
        }
        found(f,
              bytes <= reserve                ? FINDING_FAIL
              : bytes - reserve < DISK_WANTED ? FINDING_WARN
                                              : FINDING_OK,
              "%s free at %s, of which %s are kept in reserve", size_text(bytes, text), cfg->state_dir,
              size_text(reserve, reserved));
        if (f->status != FINDING_OK)
                fix(f, "du -xh --max-depth=2 %s | sort -h   # then free some, or set paths.state_dir", cfg->state_dir);
}

static void check_fds(const struct config *cfg, struct finding *f) {
        struct rlimit limit;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_max < FDS_WANTED) {
                found(f, FINDING_WARN, "at most %ju open files: enough for a few workspaces only",
                      (uintmax_t) limit.rlim_max);
                fix(f, "%sprlimit --pid $$ --nofile=65536:65536", sudo());
                return;
        }
        found(f, FINDING_OK, "up to %ju open files", (uintmax_t) limit.rlim_max);
}

static void check_daemon(const struct config *cfg, struct finding *f) {
        struct proc_id holder;
        pid_t pid;

        if (client_daemon_pid(cfg, &pid) >= 0) {
                found(f, FINDING_OK, "it runs, pid %d", (int) pid);
        } else if (state_dir_holder(cfg->state_dir, &holder) >= 0) {
                found(f, FINDING_WARN, "pid %d holds the lock but does not answer", (int) holder.pid);
                fix(f, "agentiso stop");
        } else {
                found(f, FINDING_OK, "none runs: `agentiso serve` starts it when a client connects");
        }
}

const struct check checks[] = {
        {"state directory", check_state_dir},
        {"disk space", check_disk},
        {"qemu", check_qemu},
        {"qemu-img", check_qemu_img},
        {"boot files", check_boot_files},
        {"base image", check_base_image},
        {"accelerator", check_accelerator},
        {"/dev/kvm", check_kvm},
        {"/dev/vhost-vsock", check_vsock},
        {"/dev/net/tun", check_tun},
        {"user namespaces", check_userns},
        {"nftables", check_nft},
        {"network", check_network},
        {"internet", check_pasta},
        {"cgroup v2", check_cgroup},
        {"open files", check_fds},
        {"daemon", check_daemon},
};
const size_t n_checks = ARRAY_SIZE(checks);
