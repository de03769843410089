/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <string.h>

#include "workspace/core-internal.h"

#define MACHINE_ID_LEN 32

/* RFC 952 and 1123: letters, digits and inner dashes, a label of at most 63. Anything else becomes a dash. */
void hostname_of(const char *name, char ret[HOSTNAME_LEN + 1]) {
        size_t n = 0;
        for (; *name && n < HOSTNAME_LEN; name++) {
                bool plain = isalnum((unsigned char) *name) != 0;
                if (plain || n > 0)
                        ret[n++] = plain ? *name : '-';
        }
        while (n > 0 && ret[n - 1] == '-')
                n--;
        ret[n] = '\0';
        if (n == 0)
                memcpy(ret, "workspace", sizeof("workspace"));
}

/* The id without its dashes: machine-id(5). */
static void machine_id_of(const char *id, char ret[MACHINE_ID_LEN + 1]) {
        size_t n = 0;
        for (; *id && n < MACHINE_ID_LEN; id++)
                if (*id != '-')
                        ret[n++] = *id;
        ret[n] = '\0';
}

int workspace_prepare_guest(struct workspace *ws, struct vm *vm, const struct op *op, struct error *err) {
        _cleanup_ws_row_ struct ws_row row = {0};
        _cleanup_agent_ struct agent *agent = NULL;
        char hostname[HOSTNAME_LEN + 1], machine_id[MACHINE_ID_LEN + 1], address[16];

        int r = workspace_row(ws, &row, err);
        if (r >= 0)
                r = vm_agent(vm, op, &agent, err);
        if (r < 0)
                return r;
        op_progress(op, "mounting the root file system");
        r = agent_mount_root(agent, op, err);
        if (r < 0) {
                error_prefix(err, "Cannot mount the root file system");
                return r;
        }
        hostname_of(row.name, hostname);
        machine_id_of(row.id, machine_id);
        address_text(row.address, address);
        struct agent_identity identity = {
                .hostname = hostname,
                .machine_id = machine_id,
                .mac = row.mac,
                .address = address,
                .prefix_len = ws->core->cfg.prefix_len,
                .gateway = NULL, /* nothing is reachable: without a route a program learns that at once */
        };
        r = agent_configure(agent, &identity, op, err);
        if (r < 0)
                error_prefix(err, "Cannot give the guest its identity");
        return r;
}

static int on_spawned(void *arg, const struct proc_id *proc, struct error *err) {
        return workspace_set_proc(arg, proc, err);
}

/* A VM as vm/ wants it described, with what the description points at. */
struct machine {
        struct ws_row row;
        struct disk_info disk;
        char network[16], gateway[16];
        struct vm_spec spec;
};

static void machine_clear(struct machine *m) {
        ws_row_clear(&m->row);
        disk_info_clear(&m->disk);
}

static int machine_describe(struct workspace *ws, struct machine *m, struct error *err) {
        const struct core_config *cfg = &ws->core->cfg;

        int r = workspace_row(ws, &m->row, err);
        if (r >= 0)
                r = storage_info(ws->core->storage, ws->id, &m->disk, err);
        if (r < 0)
                return r;
        address_text(cfg->network, m->network);
        address_text(address_gateway(cfg->network), m->gateway);
        m->spec = (struct vm_spec){
                .id = ws->id,
                .dir = ws->dir,
                .vcpus = m->row.vcpus,
                .memory_mb = m->row.memory_mb,
                .disk_path = m->disk.path,
                .disk_format = m->disk.format,
                .net = VM_NET_USER_RESTRICTED,
                .mac = m->row.mac,
                .network = m->network,
                .prefix_len = cfg->prefix_len,
                .gateway = m->gateway,
        };
        return 0;
}

static int find_platform(struct core *core, const struct op *op, const struct platform **ret, struct error *err) {
        *ret = core->platform;
        return core->cfg.get_platform ? core->cfg.get_platform(core->cfg.get_platform_arg, op, ret, err) : 0;
}

static struct vm_callbacks callbacks_of(struct workspace *ws) {
        return (struct vm_callbacks){.spawned = on_spawned, .exited = workspace_vm_exited, .arg = ws};
}

static void set_vm(struct workspace *ws, struct vm *vm) {
        LOCK(&ws->core->lock);
        ws->vm = vm;
}

/* A guest that came up but cannot be used: its console says more than we know. */
static void add_console(struct workspace *ws, struct error *err) {
        _cleanup_buf_ struct buf tail = BUF_INIT(TAIL_READ_MAX);
        if (!error_is_set(err) || vm_console_tail(ws->dir, CONSOLE_TAIL_LINES, &tail) < 0 || tail.len == 0)
                return;
        error_set(err, err->code, "%s\nLast lines of the console:\n%s", error_message(err), tail.data);
}

int workspace_boot(struct workspace *ws, const struct op *op, struct error *err) {
        _cleanup_(machine_clear) struct machine machine = {0};
        const struct platform *platform = NULL;
        struct vm_callbacks callbacks = callbacks_of(ws);
        struct vm *vm = NULL;

        int r = machine_describe(ws, &machine, err);
        if (r >= 0)
                r = find_platform(ws->core, op, &platform, err);
        if (r < 0)
                return r;
        struct op boot = op_sub(op, ws->core->cfg.boot_timeout_ms);
        r = vm_launch(platform, &machine.spec, &callbacks, &boot, &vm, err);
        if (r >= 0) {
                r = workspace_prepare_guest(ws, vm, &boot, err);
                if (r < 0) {
                        vm_kill(vm);
                        vm_unref(vm);
                        if (r != -ECANCELED)
                                add_console(ws, err);
                }
        }
        if (r < 0) {
                error_prefix(err, "Workspace \"%s\" could not be started", machine.row.name);
                return r;
        }
        set_vm(ws, vm);
        return 0;
}

int workspace_attach(struct workspace *ws, const struct proc_id *proc, struct error *err) {
        _cleanup_(machine_clear) struct machine machine = {0};
        struct vm_callbacks callbacks = callbacks_of(ws);
        struct vm *vm = NULL;

        int r = machine_describe(ws, &machine, err);
        if (r >= 0)
                r = vm_attach(&machine.spec, proc, &callbacks, &vm, err);
        if (r >= 0)
                set_vm(ws, vm);
        return r;
}
