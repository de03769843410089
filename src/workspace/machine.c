/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM for a workspace, from the description of its row to a guest that has its identity. Whether it boots or goes on
 * from a state makes no difference to what follows: a guest that went on has the entropy, the clock and the names of
 * another one until it is configured, and nobody gets it before.
 *
 * The secret of its agent is new with each machine. It is in the row together with the process, before the guest learns
 * it, so that a later daemon is let in either way: an agent that was never given one lets everybody in.
 */
#include <ctype.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "network/ranges.h"
#include "workspace/core-internal.h"

#define MACHINE_ID_LEN 32
#define ADDRESS_BITS 32u

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

void start_files_clear(struct start_files *f) {
        free(f->memory_path);
        free(f->state_path);
        free(f->pages_path);
        free(f->session);
        *f = (struct start_files){0};
}

int core_platform(struct core *core, const struct op *op, const struct platform **ret, struct error *err) {
        int r = core_net_wait(core, op, err);

        if (r < 0)
                return r;
        *ret = core->platform;
        r = core->cfg.get_platform ? core->cfg.get_platform(core->cfg.get_platform_arg, op, ret, err) : 0;
        if (r >= 0)
                core_note_platform(core, *ret);
        return r;
}

/* --- the guest --- */

/*
 * A guest sends everything to the gateway: its address is in no network, so that it asks nobody else. In the namespace
 * the gateway is its name server as well, whether it may reach the internet or not: what it may not is refused there,
 * which a program learns at once. In user networking there is a gateway, and a name server at the end of the network,
 * while the guest may reach the internet. Without one nothing is reachable, and there is no route.
 */
static int configure(struct workspace *ws, const struct ws_row *row, const char *session, bool cut, struct agent *agent,
                     const struct op *op, struct error *err) {
        const struct core *core = ws->core;
        const bool has_gateway = core_has_gateway(core, row);
        char hostname[HOSTNAME_LEN + 1], machine_id[MACHINE_ID_LEN + 1], address[16], gateway[16], names[16];
        const char *const dns[] = {core->has_namespace ? gateway : names};

        hostname_of(row->name, hostname);
        machine_id_of(row->id, machine_id);
        address_text(row->address, address);
        address_text(address_gateway(core->cfg.network), gateway);
        address_text(range_last_host(core->cfg.network, core->cfg.prefix_len), names);
        const struct agent_identity identity = {
                .hostname = hostname,
                .machine_id = machine_id,
                .mac = row->mac,
                .address = address,
                .prefix_len = ADDRESS_BITS,
                .gateway = has_gateway ? gateway : NULL,
                .dns = dns,
                .n_dns = has_gateway ? ARRAY_SIZE(dns) : 0,
                .reset = cut,
                .session = session,
        };
        int r = agent_configure(agent, &identity, op, err);
        if (r < 0)
                error_prefix(err, "Cannot give the guest its identity");
        return r;
}

/* The part of a start after the agent serves: idempotent. */
static int prepare_guest(struct workspace *ws, const struct ws_row *row, const struct start_files *from,
                         const char *session, struct vm *vm, const struct op *op, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        bool larger = from->root_mounted && row->disk_gb > from->disk_gb;

        int r = vm_agent(vm, op, &agent, err);
        if (r >= 0 && larger)
                r = vm_disk_resize(vm, row->disk_gb * GIB, op, err);
        if (r >= 0 && (larger || !from->root_mounted)) {
                op_progress(op, "mounting the root file system");
                r = agent_mount_root_of(agent, larger ? row->disk_gb * GIB : 0, op, err);
                if (r < 0)
                        error_prefix(err, "Cannot mount the root file system");
        }
        if (r >= 0)
                r = configure(ws, row, session, from->state != VM_STATE_NONE, agent, op, err);
        return r < 0 || !session ? r : vm_set_session(vm, session);
}

int workspace_prepare_guest(struct workspace *ws, struct vm *vm, const struct op *op, struct error *err) {
        const struct start_files unknown = {0};
        _cleanup_ws_row_ struct ws_row row = {0};

        int r = workspace_row(ws, &row, err);
        return r < 0 ? r : prepare_guest(ws, &row, &unknown, row.session, vm, op, err);
}

int workspace_rename_guest(struct workspace *ws, const char *name, bool cut, const struct op *op, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_ws_row_ struct ws_row row = {0};

        int r = workspace_row(ws, &row, err);
        if (r >= 0 && str_replace(&row.name, name) < 0)
                r = error_set_errno(err, ENOMEM, "Cannot rename workspace %s", ws->id);
        if (r >= 0)
                r = vm_agent(ws->vm, op, &agent, err);
        return r < 0 ? r : configure(ws, &row, NULL, cut, agent, op, err);
}

/* --- the machine --- */

/* A VM as vm/ wants it described, with what the description points at. */
struct description {
        struct ws_row row;
        struct disk_info disk;
        char network[16], gateway[16];
        struct vm_spec spec;
};

static void description_clear(struct description *d) {
        ws_row_clear(&d->row);
        disk_info_clear(&d->disk);
}
#define _cleanup_description_ _cleanup_(description_clear)

/* disk: its id; NULL: the row's. */
static int describe(struct workspace *ws, const char *disk, unsigned slot, struct description *d, struct error *err) {
        const struct core_config *cfg = &ws->core->cfg;

        int r = workspace_row(ws, &d->row, err);
        if (r >= 0)
                r = storage_info(ws->core->storage, str_empty(disk) ? d->row.disk : disk, &d->disk, err);
        if (r < 0)
                return r;
        address_text(cfg->network, d->network);
        address_text(address_gateway(cfg->network), d->gateway);
        d->spec = (struct vm_spec){
                .id = ws->id,
                .dir = ws->dirs[slot],
                .vcpus = d->row.vcpus,
                .memory_mb = d->row.memory_mb,
                .disk_path = d->disk.path,
                .disk_format = d->disk.format,
                .net = core_net(ws->core),
                .net_fd = -1,
                .mac = d->row.mac,
                .network = d->network,
                .prefix_len = cfg->prefix_len,
                .gateway = d->gateway,
        };
        return 0;
}

static void describe_start(struct vm_spec *spec, const struct start_files *from) {
        spec->memory = from->memory;
        spec->memory_path = from->memory_path;
        spec->state = from->state;
        spec->state_path = from->state_path;
        spec->pages_path = from->pages_path;
        spec->session = from->session;
}

int machine_to_row(const struct machine *m, struct ws_row *row) {
        row->has_proc = true;
        row->proc = m->proc;
        row->slot = m->slot;
        row->network_ns = m->network_ns;
        memcpy(row->disk, m->disk, sizeof(row->disk));
        memcpy(row->memory_base, m->memory_base, sizeof(row->memory_base));
        return str_replace(&row->session, m->session);
}

static int edit_machine(struct ws_row *row, void *arg, struct error *err) {
        return machine_to_row(arg, row) < 0 ? error_set_errno(err, ENOMEM, "Cannot change workspace %s", row->id) : 0;
}

/* The row knows of the process before it does anything that must survive. On the thread of the launch. */
static int on_spawned(void *arg, const struct proc_id *proc, struct error *err) {
        struct workspace *ws = arg;

        ws->recording->proc = *proc;
        return workspace_change(ws, edit_machine, ws->recording, err);
}

static struct vm_callbacks callbacks_of(struct workspace *ws, bool record) {
        return (struct vm_callbacks){.spawned = record ? on_spawned : NULL, .exited = workspace_vm_exited, .arg = ws};
}

void workspace_set_vm(struct workspace *ws, struct vm *vm) {
        LOCK(&ws->core->lock);
        ws->vm = vm;
}

int workspace_settle_disk(struct workspace *ws, const struct op *op, struct error *err) {
        _cleanup_free_ char *file = NULL;

        int r = ws->vm ? vm_disk_file(ws->vm, op, &file, err) : 0;
        if (r >= 0)
                r = storage_freeze_recover(ws->core->storage, ws->row.disk, file, err);
        if (r >= 0)
                ws->disk_unsure = false;
        return r;
}

const char *workspace_vm_dir(struct workspace *ws) {
        LOCK(&ws->core->lock);
        return ws->dirs[ws->row.slot];
}

/* A guest that came up but cannot be used: its console says more than we know. */
static void add_console(const char *dir, struct error *err) {
        _cleanup_buf_ struct buf tail = BUF_INIT(TAIL_READ_MAX);
        if (!error_is_set(err) || vm_console_tail(dir, CONSOLE_TAIL_LINES, &tail) < 0 || tail.len == 0)
                return;
        error_set(err, err->code, "%s\nLast lines of the console:\n%s", error_message(err), tail.data);
}

static int launch(struct workspace *ws, struct description *d, const struct start_files *from, bool record,
                  struct machine *m, const struct op *op, struct error *err) {
        const struct platform *platform = NULL;
        _cleanup_close_ int net = -1; /* QEMU's alone afterwards: the card goes with it */
        const struct vm_callbacks callbacks = callbacks_of(ws, record);
        const struct card card = {.address = d->row.address, .slot = m->slot};
        /* Of two machines of a workspace only one is on the network: workspace_change_cards(). */
        const bool attached = record || m->slot == d->row.slot;

        int r = core_platform(ws->core, op, &platform, err);
        if (r >= 0)
                r = core_card(ws->core, &card, d->spec.dir, attached, op, &net, err);
        if (r < 0)
                return r;
        d->spec.net = core_net(ws->core);
        d->spec.net_fd = net;
        m->network_ns = ws->core->has_namespace ? network_id(ws->core->cfg.net) : 0;
        const struct op start = op_sub(op, from->state == VM_STATE_NONE ? ws->core->cfg.boot_timeout_ms : RESUME_MS);
        ws->recording = m;
        r = vm_launch(platform, &d->spec, &callbacks, &start, &m->vm, err);
        ws->recording = NULL;
        if (r < 0)
                return r;
        m->proc = vm_proc(m->vm);
        r = prepare_guest(ws, &d->row, from, m->session, m->vm, &start, err);
        if (r >= 0 && attached)
                r = core_open_card(ws->core, &d->row, d->spec.dir, &start, err);
        if (r < 0) {
                vm_kill(m->vm);
                vm_unref(TAKE_PTR(m->vm));
                if (r != -ECANCELED)
                        add_console(d->spec.dir, err);
        }
        return r;
}

int machine_start(struct workspace *ws, const struct machine_args *args, const struct op *op, struct machine *ret,
                  struct error *err) {
        static const struct start_files boots = {0};
        const struct start_files *from = args->from ? args->from : &boots;
        _cleanup_description_ struct description d = {0};
        struct machine m = {.slot = args->slot};

        int r = describe(ws, args->disk, args->slot, &d, err);
        if (r < 0)
                return r;
        if (mkdir(d.spec.dir, 0700) < 0 && errno != EEXIST)
                return error_set_errno(err, errno, "Cannot make the folder of the VM");
        memcpy(m.disk, str_empty(args->disk) ? d.row.disk : args->disk, sizeof(m.disk));
        memcpy(m.memory_base, from->memory_base, sizeof(m.memory_base));
        r = random_hex(m.session, SESSION_LEN / 2);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make the secret of an agent");
        describe_start(&d.spec, from);
        r = launch(ws, &d, from, args->record, &m, op, err);
        if (r < 0) {
                error_prefix(err, "Workspace \"%s\" could not be started", d.row.name);
                return r;
        }
        *ret = m;
        return 0;
}

/* The memory file that a running machine maps, for its snapshots. */
static int describe_memory(struct workspace *ws, struct description *d, char **ret_path, struct error *err) {
        struct core *core = ws->core;

        d->spec.session = d->row.session;
        if (str_empty(d->row.memory_base))
                return 0;
        LOCK(&core->lock);
        struct snapshot *base = snapshot_find_locked(core, d->row.memory_base);
        if (!base)
                return error_set(err, ERROR_INTERNAL, "The memory file %s of workspace \"%s\" is not known",
                                 d->row.memory_base, d->row.name);
        *ret_path = path_join(base->dir, SNAPSHOT_MEMORY);
        d->spec.memory = VM_MEMORY_PRIVATE;
        d->spec.memory_path = *ret_path;
        return *ret_path ? 0 : error_set_errno(err, ENOMEM, "Cannot take up a VM");
}

int workspace_attach(struct workspace *ws, const struct proc_id *proc, struct error *err) {
        _cleanup_description_ struct description d = {0};
        _cleanup_free_ char *memory_path = NULL;
        const struct vm_callbacks callbacks = callbacks_of(ws, false);
        struct vm *vm = NULL;

        int r = describe(ws, NULL, ws->row.slot, &d, err);
        if (r >= 0)
                r = describe_memory(ws, &d, &memory_path, err);
        if (r >= 0)
                r = vm_attach(&d.spec, proc, &callbacks, &vm, err);
        if (r >= 0)
                workspace_set_vm(ws, vm);
        return r;
}
