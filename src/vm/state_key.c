/* SPDX-License-Identifier: Apache-2.0 */
/* What a template depends on, as a text. */
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/str.h"
#include "vm/state.h"

/* The layout of the files, and how they are made. */
#define KEY_FORMAT "agentiso template 1"
#define CPUINFO_MAX (4u * 1024u * 1024u)
#define KHZ_PER_MHZ 1000u

/* A file as it is now: enough to tell one build from another without reading it. */
static int add_file(struct buf *key, const char *what, const char *path) {
        struct stat st;

        if (stat(path, &st) < 0)
                return -errno;
        return buf_printf(key, "%s %s %lld %lld.%09ld\n", what, path, (long long) st.st_size,
                          (long long) st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
}

/* The lines of /proc/cpuinfo that name the processor, of the first one. Under KVM a guest sees it. */
static int add_processor(struct buf *key) {
        static const char *const names[] = {"vendor_id", "cpu family", "model\t", "stepping", "microcode", "flags"};
        _cleanup_free_ char *text = NULL;
        char *rest = NULL;

        int r = file_read_all("/proc/cpuinfo", CPUINFO_MAX, &text, NULL);
        if (r < 0)
                return r;
        char *second = strstr(text, "\n\n");
        if (second)
                *second = '\0';
        for (char *line = strtok_r(text, "\n", &rest); r >= 0 && line; line = strtok_r(NULL, "\n", &rest))
                for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(names); i++)
                        if (str_starts_with(line, names[i]))
                                r = buf_printf(key, "host %s\n", line);
        return r;
}

/* What a machine needs to boot, and one that goes on has in its memory. */
static bool is_of_boot(const char *argument) {
        return str_eq(argument, "-kernel") || str_eq(argument, "-initrd") || str_eq(argument, "-append");
}

/*
 * The arguments of QEMU are the machine: whatever is changed about them makes another key. What belongs to one VM alone
 * stands there under the same name for all.
 */
static int add_arguments(struct buf *key, const struct platform *p, const struct vm_spec *spec, bool boots) {
        _cleanup_strv_ struct strv argv = {0};
        struct platform host = *p; /* borrows the strings */
        const struct vm_spec kind = {
                .id = "-",
                .dir = "-",
                .vcpus = spec->vcpus,
                .memory_mb = spec->memory_mb,
                .memory = VM_MEMORY_SHARED,
                .memory_path = "-",
                .disk_path = spec->disk_path ? "-" : NULL,
                .disk_format = "-",
                .net = spec->net,
                .mac = "-",
                .network = spec->network,
                .prefix_len = spec->prefix_len,
                .gateway = spec->gateway,
        };

        /* The guest's clock runs at this rate, which is measured anew at each start of the daemon and never twice the
         * same to the last digit. */
        host.tsc_khz = (p->tsc_khz + KHZ_PER_MHZ / 2) / KHZ_PER_MHZ * KHZ_PER_MHZ;
        int r = vm_argv(&host, &kind, &argv);
        for (size_t i = 0; r >= 0 && i < argv.n; i++) {
                if (!boots && is_of_boot(argv.v[i]))
                        i++; /* with its value */
                else
                        r = buf_printf(key, "%s\n", argv.v[i]);
        }
        return r;
}

/* All of a machine that a saved state must find again. */
static int add_machine(struct buf *key, const struct platform *p) {
        int r = buf_printf(key, KEY_FORMAT "\nqemu %s\n", p->qemu_version);
        if (r >= 0)
                r = add_file(key, "qemu", p->qemu);
        return r < 0 || p->accel != ACCEL_KVM ? r : add_processor(key);
}

int vm_machine_key(const struct platform *p, const struct vm_spec *spec, struct buf *out, struct error *err) {
        _cleanup_buf_ struct buf key = BUF_INIT(VM_KEY_MAX);

        int r = add_machine(&key, p);
        if (r >= 0)
                r = add_arguments(&key, p, spec, false);
        if (r >= 0)
                r = buf_append(out, key.data, key.len);
        return r < 0 ? error_set_errno(err, r, "Cannot say what the state of the VM %s fits", spec->id) : 0;
}

int vm_template_key(const struct platform *p, const struct vm_spec *spec, struct buf *out, struct error *err) {
        _cleanup_buf_ struct buf key = BUF_INIT(VM_KEY_MAX);

        int r = add_machine(&key, p);
        if (r >= 0)
                r = add_file(&key, "kernel", p->kernel);
        if (r >= 0)
                r = add_file(&key, "initramfs", p->initramfs);
        if (r >= 0)
                r = add_arguments(&key, p, spec, true);
        if (r >= 0)
                r = buf_append(out, key.data, key.len);
        return r < 0 ? error_set_errno(err, r, "Cannot say what a template of the VM %s depends on", spec->id) : 0;
}
