/* SPDX-License-Identifier: Apache-2.0 */
#include "tap.h"
#include "vm/vm.h"

static const struct platform tcg = {
        .qemu = (char[]){"/usr/bin/qemu-system-x86_64"},
        .kernel = (char[]){"/images/boot/vmlinux"},
        .initramfs = (char[]){"/images/boot/initramfs.img"},
        .accel = ACCEL_TCG,
        .tsc_khz = 2596120,
};

static const struct vm_spec full = {
        .id = "0b7e",
        .dir = "/state/vms/0b7e",
        .vcpus = 2,
        .memory_mb = 512,
        .disk_path = "/state/disks/0b7e.qcow2",
        .disk_format = "qcow2",
        .net = VM_NET_USER_RESTRICTED,
        .mac = "52:54:00:63:00:07",
        .network = "10.99.0.0",
        .prefix_len = 16,
        .gateway = "10.99.0.1",
};

static void check_argv(const struct strv *got, const char *const *want) {
        size_t i = 0;

        for (; i < got->n && want[i]; i++)
                CHECK_STR(got->v[i], want[i]);
        CHECK_INT(got->n, i);
        CHECK(!want[i]);
}

static void test_full_under_tcg(void) {
        _cleanup_strv_ struct strv argv = {0};
        static const char *const want[] = {
                "/usr/bin/qemu-system-x86_64",
                "-name",
                "guest=agentiso-0b7e",
                "-pidfile",
                "/state/vms/0b7e/qemu.pid",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-sandbox",
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
                "-M",
                "microvm,mem-merge=off,dump-guest-core=off,memory-backend=ram,suppress-vmdesc=on",
                "-accel",
                "tcg,thread=multi,tb-size=64",
                "-cpu",
                "max,-erms,-fsrm",
                "-smp",
                "cpus=2",
                "-m",
                "512M",
                "-object",
                "memory-backend-ram,id=ram,size=512M,merge=off,dump=off",
                "-global",
                "migration.send-configuration=off",
                "-global",
                "migration.announce-rounds=0",
                "-kernel",
                "/images/boot/vmlinux",
                "-initrd",
                "/images/boot/initramfs.img",
                "-append",
                "console=ttyS0 reboot=t panic=-1 quiet random.trust_cpu=on 8250.nr_uarts=1 cryptomgr.notests "
                "tsc=reliable tsc_early_khz=2596120",
                "-chardev",
                "socket,id=qmp,fd=3,server=on,wait=off",
                "-mon",
                "chardev=qmp,mode=control",
                "-chardev",
                "socket,id=console,fd=5,server=on,wait=off",
                "-serial",
                "chardev:console",
                "-chardev",
                "socket,id=agent,fd=4,server=on,wait=off",
                "-device",
                "virtio-serial-device,id=ports,max_ports=2",
                "-device",
                "virtserialport,bus=ports.0,nr=1,chardev=agent,name=agentiso.0",
                "-device",
                "virtio-rng-device",
                "-blockdev",
                "driver=file,node-name=disk-file,filename=/state/disks/0b7e.qcow2,aio=threads,cache.direct=off,"
                "cache.no-flush=off,discard=unmap",
                "-blockdev",
                "driver=qcow2,node-name=disk,file=disk-file,cache.direct=off,cache.no-flush=off,discard=unmap,"
                "detect-zeroes=unmap",
                "-device",
                "virtio-blk-device,id=disk0,drive=disk",
                "-netdev",
                "user,id=net,restrict=on,ipv6=off,net=10.99.0.0/16,host=10.99.0.1,dns=10.99.255.254",
                "-device",
                "virtio-net-device,id=net0,netdev=net,mac=52:54:00:63:00:07",
                NULL,
        };

        CHECK_INT(vm_argv(&tcg, &full, &argv), 0);
        check_argv(&argv, want);
}

/* The argument after the n-th occurrence of an option, or NULL. */
static const char *value_of(const struct strv *argv, const char *option, unsigned n) {
        for (size_t i = 0; i + 1 < argv->n; i++)
                if (str_eq(argv->v[i], option) && n-- == 0)
                        return argv->v[i + 1];
        return NULL;
}

static void test_kvm_without_disk_and_card(void) {
        _cleanup_strv_ struct strv argv = {0};
        struct platform kvm = tcg;
        struct vm_spec spec = {.id = "p", .dir = "/d", .vcpus = 1, .memory_mb = 256, .net = VM_NET_NONE};

        kvm.accel = ACCEL_KVM;
        REQUIRE(vm_argv(&kvm, &spec, &argv) == 0);
        CHECK_STR(value_of(&argv, "-accel", 0), "kvm");
        CHECK_STR(value_of(&argv, "-cpu", 0), "host");
        CHECK_STR(value_of(&argv, "-nic", 0), "none");
        CHECK_STR(value_of(&argv, "-append", 0),
                  "console=ttyS0 reboot=t panic=-1 quiet random.trust_cpu=on 8250.nr_uarts=1 cryptomgr.notests");
        CHECK(!value_of(&argv, "-blockdev", 0));
        CHECK(!value_of(&argv, "-netdev", 0));
}

static void test_cards_on_descriptors(void) {
        static const struct {
                enum vm_net net;
                const char *netdev;
        } cards[] = {
                {VM_NET_TAP, "tap,id=net,fd=6"},
                {VM_NET_STREAM, "stream,id=net,server=off,addr.type=fd,addr.str=6"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(cards); i++) {
                _cleanup_strv_ struct strv argv = {0};
                struct vm_spec spec = full;

                spec.net = cards[i].net;
                spec.network = spec.gateway = NULL;
                REQUIRE(vm_argv(&tcg, &spec, &argv) == 0);
                CHECK_STR(value_of(&argv, "-netdev", 0), cards[i].netdev);
        }
}

static void test_which_qemu_has_streams(void) {
        static const struct {
                const char *version;
                bool has;
        } all[] = {{"7.2.22", true}, {"7.2", true},  {"8.0.0", true}, {"10.0", true},
                   {"7.1.9", false}, {"6.2", false}, {"0", false}};

        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                struct platform p = tcg;

                p.qemu_version = (char *) (uintptr_t) all[i].version;
                CHECK_INT(platform_has_stream(&p), all[i].has);
        }
}

static void test_template(void) {
        _cleanup_strv_ struct strv argv = {0};
        struct vm_spec spec = full;

        spec.memory = VM_MEMORY_SHARED;
        spec.memory_path = "/t/a,b.ram";
        REQUIRE(vm_argv(&tcg, &spec, &argv) == 0);
        CHECK_STR(value_of(&argv, "-object", 0),
                  "memory-backend-file,id=ram,size=512M,mem-path=/t/a,,b.ram,share=on,merge=off,dump=off");
        CHECK_STR(value_of(&argv, "-kernel", 0), "/images/boot/vmlinux");
        CHECK(!value_of(&argv, "-incoming", 0));
}

static void test_child_of_a_template(void) {
        _cleanup_strv_ struct strv argv = {0};
        struct vm_spec spec = full;

        spec.memory = VM_MEMORY_PRIVATE;
        spec.memory_path = "/t/ram";
        spec.state = VM_STATE_TEMPLATE;
        spec.state_path = "/t/state";
        REQUIRE(vm_argv(&tcg, &spec, &argv) == 0);
        CHECK_STR(value_of(&argv, "-object", 0),
                  "memory-backend-file,id=ram,size=512M,mem-path=/t/ram,share=off,merge=off,dump=off");
        CHECK_STR(value_of(&argv, "-incoming", 0), "defer");
        CHECK(!value_of(&argv, "-kernel", 0));
        CHECK(!value_of(&argv, "-append", 0));
        /* The devices are those of the template. */
        CHECK_STR(value_of(&argv, "-device", 3), "virtio-blk-device,id=disk0,drive=disk");
}

static void test_fork_of_a_child(void) {
        _cleanup_strv_ struct strv argv = {0};
        struct vm_spec spec = full;

        spec.memory = VM_MEMORY_PRIVATE;
        spec.memory_path = "/t/ram";
        spec.state = VM_STATE_DEVICES;
        spec.state_path = "/t/state";
        REQUIRE(vm_argv(&tcg, &spec, &argv) == 0);
        CHECK_STR(value_of(&argv, "-incoming", 0), "defer");
}

/* They are laid over the memory by us: QEMU is not told. */
static void test_fork_with_pages(void) {
        _cleanup_strv_ struct strv with = {0}, without = {0};
        struct vm_spec spec = full;

        spec.memory = VM_MEMORY_PRIVATE;
        spec.memory_path = "/t/ram";
        spec.state = VM_STATE_DEVICES;
        spec.state_path = "/t/state";
        REQUIRE(vm_argv(&tcg, &spec, &without) == 0);
        spec.pages_path = "/t/pages";
        REQUIRE(vm_argv(&tcg, &spec, &with) == 0 && with.n == without.n);
        for (size_t i = 0; i < with.n; i++)
                CHECK_STR(with.v[i], without.v[i]);
}

static void test_whole_state(void) {
        _cleanup_strv_ struct strv argv = {0};
        struct vm_spec spec = full;

        spec.state = VM_STATE_FULL;
        spec.state_path = "/t/state";
        REQUIRE(vm_argv(&tcg, &spec, &argv) == 0);
        CHECK_STR(value_of(&argv, "-object", 0), "memory-backend-ram,id=ram,size=512M,merge=off,dump=off");
        CHECK_STR(value_of(&argv, "-incoming", 0), "defer");
}

/* What one machine saves, any other has to be able to load: a fork of one that booted, a copy of a fork. */
static void test_states_have_one_form(void) {
        static const struct {
                enum vm_memory_kind memory;
                enum vm_state_kind state;
        } kinds[] = {
                {VM_MEMORY_ANONYMOUS, VM_STATE_NONE},   {VM_MEMORY_SHARED, VM_STATE_NONE},
                {VM_MEMORY_PRIVATE, VM_STATE_TEMPLATE}, {VM_MEMORY_PRIVATE, VM_STATE_DEVICES},
                {VM_MEMORY_ANONYMOUS, VM_STATE_FULL},
        };

        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
                _cleanup_strv_ struct strv argv = {0};
                struct vm_spec spec = full;

                spec.memory = kinds[i].memory;
                spec.memory_path = spec.memory == VM_MEMORY_ANONYMOUS ? NULL : "/t/ram";
                spec.state = kinds[i].state;
                spec.state_path = spec.state == VM_STATE_NONE ? NULL : "/t/state";
                REQUIRE(vm_argv(&tcg, &spec, &argv) == 0);
                CHECK(strstr(value_of(&argv, "-M", 0), ",suppress-vmdesc=on"));
                CHECK_STR(value_of(&argv, "-global", 0), "migration.send-configuration=off");
                CHECK_STR(value_of(&argv, "-global", 1), "migration.announce-rounds=0");
        }
}

static void test_memory_and_state_go_together(void) {
        static const struct {
                enum vm_memory_kind memory;
                const char *memory_path;
                enum vm_state_kind state;
                const char *state_path, *pages_path;
        } wrong[] = {
                {VM_MEMORY_ANONYMOUS, "/ram", VM_STATE_NONE, NULL},
                {VM_MEMORY_SHARED, NULL, VM_STATE_NONE, NULL},
                {VM_MEMORY_PRIVATE, "/ram", VM_STATE_NONE, NULL},
                {VM_MEMORY_PRIVATE, "/ram", VM_STATE_DEVICES, NULL},
                {VM_MEMORY_PRIVATE, "/ram", VM_STATE_FULL, "/state"},
                {VM_MEMORY_SHARED, "/ram", VM_STATE_TEMPLATE, "/state"},
                {VM_MEMORY_ANONYMOUS, NULL, VM_STATE_TEMPLATE, "/state"},
                {VM_MEMORY_ANONYMOUS, NULL, VM_STATE_NONE, "/state"},
                {VM_MEMORY_PRIVATE, "/ram", VM_STATE_TEMPLATE, "/state", "/pages"},
                {VM_MEMORY_ANONYMOUS, NULL, VM_STATE_FULL, "/state", "/pages"},
                {VM_MEMORY_ANONYMOUS, NULL, VM_STATE_NONE, NULL, "/pages"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                _cleanup_strv_ struct strv argv = {0};
                struct vm_spec spec = full;

                spec.memory = wrong[i].memory;
                spec.memory_path = wrong[i].memory_path;
                spec.state = wrong[i].state;
                spec.state_path = wrong[i].state_path;
                spec.pages_path = wrong[i].pages_path;
                CHECK_INT(vm_argv(&tcg, &spec, &argv), -EINVAL);
        }
}

static void test_commas_cannot_add_options(void) {
        _cleanup_strv_ struct strv argv = {0};
        struct vm_spec spec = full;

        spec.id = "a,process=x";
        spec.disk_path = "/disks/a,b,,c";
        spec.disk_format = "raw";
        REQUIRE(vm_argv(&tcg, &spec, &argv) == 0);
        CHECK_STR(value_of(&argv, "-name", 0), "guest=agentiso-a,,process=x");
        CHECK(strstr(value_of(&argv, "-blockdev", 0), "filename=/disks/a,,b,,,,c,aio"));
        CHECK(strstr(value_of(&argv, "-blockdev", 1), "driver=raw,"));
}

static void test_wrong_network_is_refused(void) {
        _cleanup_strv_ struct strv argv = {0};
        static const struct {
                const char *mac, *network, *gateway;
                unsigned prefix_len;
        } wrong[] = {
                {NULL, "10.99.0.0", "10.99.0.1", 16},
                {"52:54:00:63:00:07", NULL, "10.99.0.1", 16},
                {"52:54:00:63:00:07", "10.99", "10.99.0.1", 16},
                {"52:54:00:63:00:07", "10.99.0.0", NULL, 16},
                {"52:54:00:63:00:07", "10.99.0.0", "10.99.0.1", 31},
        };

        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                struct vm_spec spec = full;

                spec.mac = wrong[i].mac;
                spec.network = wrong[i].network;
                spec.gateway = wrong[i].gateway;
                spec.prefix_len = wrong[i].prefix_len;
                CHECK_INT(vm_argv(&tcg, &spec, &argv), -EINVAL);
        }
}

int main(void) {
        RUN(test_full_under_tcg);
        RUN(test_kvm_without_disk_and_card);
        RUN(test_cards_on_descriptors);
        RUN(test_which_qemu_has_streams);
        RUN(test_template);
        RUN(test_child_of_a_template);
        RUN(test_fork_of_a_child);
        RUN(test_fork_with_pages);
        RUN(test_whole_state);
        RUN(test_states_have_one_form);
        RUN(test_memory_and_state_go_together);
        RUN(test_commas_cannot_add_options);
        RUN(test_wrong_network_is_refused);
        return tap_done();
}
