/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/platform.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/process.h"
#include "base/str.h"
#include "vm/probe.h"

#define QEMU_DEFAULT "qemu-system-x86_64"
#define VERSION_OUTPUT_MAX 4096u
#define VERSION_LIMIT_MS 10000
#define CACHE_MAX 16384u
#define CACHE_DEPTH 3u

static const char *const accel_names[] = {[ACCEL_AUTO] = "auto", [ACCEL_KVM] = "kvm", [ACCEL_TCG] = "tcg"};

const char *accel_name(enum accel a) {
        return accel_names[a];
}

int accel_parse(const char *name, enum accel *ret) {
        for (size_t i = 0; i < ARRAY_SIZE(accel_names); i++)
                if (str_eq(name, accel_names[i])) {
                        *ret = (enum accel) i;
                        return 0;
                }
        return -EINVAL;
}

void platform_clear(struct platform *p) {
        free(p->qemu);
        free(p->qemu_version);
        free(p->kernel);
        free(p->initramfs);
        free(p->accel_reason);
        *p = (struct platform){0};
}

/* --- what is needed --- */

static int find_qemu(const struct platform_args *args, struct platform *p, struct error *err) {
        const char *name = str_empty(args->qemu) ? QEMU_DEFAULT : args->qemu;

        int r = find_program(name, &p->qemu);
        if (r < 0) {
                error_set(err, ERROR_NOT_FOUND, "QEMU was not found: there is no program %s%s", name,
                          strchr(name, '/') ? "" : " in PATH");
                error_hint(err,
                           "Install it with `apt install qemu-system-x86`, or name it in the configuration (vm.qemu).");
        }
        return r;
}

/* "7.2.22" of "QEMU emulator version 7.2.22 (Debian ...)". */
static int read_version(const struct op *op, struct platform *p, struct error *err) {
        static const char before[] = " version ";
        _cleanup_buf_ struct buf out = BUF_INIT(VERSION_OUTPUT_MAX);
        char *const argv[] = {p->qemu, (char[]){"-version"}, NULL};
        const struct op limited = op_sub(op, VERSION_LIMIT_MS);

        int r = process_run(argv, &limited, &out, NULL, err);
        if (r < 0) {
                error_prefix(err, "Cannot ask %s for its version", p->qemu);
                return r;
        }
        const char *at = out.data ? strstr(out.data, before) : NULL;
        size_t len = at ? strspn(at + strlen(before), "0123456789.") : 0;
        if (len == 0)
                return error_set(err, ERROR_UNSUPPORTED, "%s does not look like QEMU: `%s -version` names no version",
                                 p->qemu, p->qemu);
        p->qemu_version = strndup(at + strlen(before), len);
        return p->qemu_version ? 0 : error_set_errno(err, ENOMEM, "Cannot look for QEMU");
}

static bool version_of(const char *text, unsigned long *ret_major, unsigned long *ret_minor) {
        char *dot, *end;

        *ret_major = strtoul(text, &dot, 10);
        if (dot == text || *dot != '.')
                return false;
        *ret_minor = strtoul(dot + 1, &end, 10);
        return end > dot + 1;
}

bool platform_has_stream(const struct platform *p) {
        unsigned long major, minor, first_major, first_minor;

        return version_of(PLATFORM_STREAM_QEMU, &first_major, &first_minor) &&
               version_of(p->qemu_version, &major, &minor) &&
               (major > first_major || (major == first_major && minor >= first_minor));
}

static int find_boot_file(const char *image_dir, const char *name, const char *what, char **ret, struct error *err) {
        _cleanup_free_ char *path = str_printf("%s/boot/%s", image_dir, name);

        if (!path)
                return error_set_errno(err, ENOMEM, "Cannot look for the %s", what);
        if (access(path, R_OK) < 0) {
                const int e = errno;

                error_set_errno(err, e, "The guests' %s cannot be read (%s)", what, path);
                error_hint(err, "Make it with `agentiso image build`.");
                return -e;
        }
        *ret = TAKE_PTR(path);
        return 0;
}

/* The kernel as QEMU starts it fastest: uncompressed. */
static int find_kernel(const char *image_dir, char **ret, struct error *err) {
        _cleanup_free_ char *path = str_printf("%s/boot/vmlinux", image_dir);

        if (!path)
                return error_set_errno(err, ENOMEM, "Cannot look for the kernel");
        if (access(path, R_OK) < 0)
                return find_boot_file(image_dir, "vmlinuz", "kernel", ret, err);
        *ret = TAKE_PTR(path);
        return 0;
}

/* --- the probe's answer, kept --- */

/* "path size mtime" of a file, appended to the key. */
static int key_add_file(struct buf *key, const char *path) {
        struct stat st;

        if (stat(path, &st) < 0)
                return -errno;
        return buf_printf(key, " %s %lld %lld.%09ld", path, (long long) st.st_size, (long long) st.st_mtim.tv_sec,
                          st.st_mtim.tv_nsec);
}

/* Everything on which the answer depends, as one text. */
static int make_key(const struct platform *p, struct buf *key) {
        char boot_id[BOOT_ID_LEN + 1];

        int r = boot_id_read(boot_id);
        if (r >= 0)
                r = buf_append_str(key, boot_id);
        if (r >= 0)
                r = key_add_file(key, p->qemu);
        if (r >= 0)
                r = key_add_file(key, p->kernel);
        return r < 0 ? r : key_add_file(key, p->initramfs);
}

/* True when the file has an answer for this key. A file that is damaged or old is as good as none. */
static bool cache_read(const char *path, const char *key, struct platform *p) {
        _cleanup_free_ char *text = NULL;
        _cleanup_json_ json_t *cache = NULL;
        const char *cached_key = NULL, *accel = NULL, *reason = NULL;
        size_t len = 0;
        enum accel a;

        if (!path || file_read_all(path, CACHE_MAX, &text, &len) < 0 ||
            json_parse(text, len, CACHE_MAX, CACHE_DEPTH, &cache, NULL) < 0 ||
            json_get_str(cache, "key", &cached_key, NULL) < 0 || json_get_str(cache, "accel", &accel, NULL) < 0 ||
            json_get_str(cache, "reason", &reason, NULL) < 0)
                return false;
        if (!str_eq(cached_key, key) || accel_parse(accel, &a) < 0 || a == ACCEL_AUTO)
                return false;
        char *copy = strdup(reason);
        if (!copy)
                return false;
        p->accel = a;
        p->accel_reason = copy;
        return true;
}

static void cache_write(const char *path, const char *key, const struct platform *p) {
        _cleanup_buf_ struct buf text = BUF_INIT(CACHE_MAX);
        _cleanup_json_ json_t *cache =
                json_pack("{s:s, s:s, s:s}", "key", key, "accel", accel_name(p->accel), "reason", p->accel_reason);

        if (!path)
                return;
        int r = cache ? json_write(cache, &text) : -ENOMEM;
        if (r >= 0)
                r = buf_append_byte(&text, '\n');
        if (r >= 0)
                r = file_write_atomic(path, text.data, text.len, 0600);
        if (r < 0) /* the next start probes again */
                log_warn("Cannot keep the answer of the KVM probe", "path", path, "errno", LOG_NUM(-r));
}

/* --- the accelerator --- */

static int choose_auto(const struct platform_args *args, const struct op *op, struct platform *p, struct error *err) {
        _cleanup_buf_ struct buf key = BUF_INIT(CACHE_MAX / 2);
        enum probe_answer answer = PROBE_ABSENT;
        bool opens = false;

        int r = make_key(p, &key);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the key of the KVM probe");
        r = probe_kvm_device(&opens, &p->accel_reason);
        if (r < 0)
                return error_set_errno(err, r, "Cannot probe KVM");
        p->accel = ACCEL_TCG;
        if (!opens)
                return 0;
        free(TAKE_PTR(p->accel_reason));
        if (cache_read(args->cache_file, key.data, p))
                return 0;
        r = probe_kvm(p, args->scratch_dir, op, &answer, &p->accel_reason, err);
        if (r < 0)
                return r;
        if (answer == PROBE_WORKS)
                p->accel = ACCEL_KVM;
        if (answer != PROBE_ABSENT)
                cache_write(args->cache_file, key.data, p);
        return 0;
}

static int choose_kvm(struct platform *p, struct error *err) {
        bool opens = false;

        int r = probe_kvm_device(&opens, &p->accel_reason);
        if (r < 0)
                return error_set_errno(err, r, "Cannot probe KVM");
        if (!opens) {
                error_set(err, ERROR_UNSUPPORTED, "KVM is demanded by the configuration. %s", p->accel_reason);
                error_hint(err, "Set vm.accel to \"auto\" to go on without it, only slower.");
                return -EOPNOTSUPP;
        }
        p->accel = ACCEL_KVM;
        return str_replace(&p->accel_reason, "The configuration demands KVM.");
}

static int choose_accel(const struct platform_args *args, const struct op *op, struct platform *p, struct error *err) {
        switch (args->accel) {
        case ACCEL_AUTO:
                return choose_auto(args, op, p, err);
        case ACCEL_KVM:
                return choose_kvm(p, err);
        case ACCEL_TCG:
                p->accel = ACCEL_TCG;
                return str_replace(&p->accel_reason, "The configuration demands TCG.");
        }
        return -EINVAL;
}

int platform_probe(const struct platform_args *args, const struct op *op, struct platform *ret, struct error *err) {
        _cleanup_platform_ struct platform p = {0};

        int r = find_qemu(args, &p, err);
        if (r >= 0)
                r = read_version(op, &p, err);
        if (r >= 0)
                r = find_kernel(args->image_dir, &p.kernel, err);
        if (r >= 0)
                r = find_boot_file(args->image_dir, "initramfs.img", "initramfs", &p.initramfs, err);
        if (r >= 0)
                r = choose_accel(args, op, &p, err);
        if (r < 0)
                return r;
        p.tsc_khz = probe_tsc_khz();
        *ret = p;
        p = (struct platform){0};
        return 0;
}
