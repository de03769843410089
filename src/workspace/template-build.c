/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making templates (vm/state.h says what one is).
 *
 * The one that fits any disk is a machine that boots and is saved as soon as its agent serves: it has seen no disk.
 * That of an image is a child of it which has mounted a disk with that image and run the first commands; it is saved
 * like a snapshot, and its disk becomes a node on which the disks of its machines stand.
 *
 * While it is made, its row is `creating` and all its files are in its folder; its disk has its id. So what a crash
 * leaves is found and removed (recover.c).
 */
#include <fcntl.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/io.h"
#include "vm/memory.h"
#include "workspace/template.h"

#define SCRATCH_DISK "disk.raw"
#define SCRATCH_BYTES ((off_t) 64 << 20) /* of the disk that nobody looks at */
#define STAMP_MAX 512u
#define KEY_LEN (2 * SHA256_DIGEST_SIZE)
#define TEMPLATE_ADDRESS 0 /* of the network: no workspace has it */
#define WARM_MS 60000      /* for the first commands */
#define WARM_OUTPUT 4096u

/* The first commands of a machine read the shell and its libraries from the disk; those of a template's children find
 * them in memory. */
#define WARM_COMMAND "ls / >/dev/null; cat /etc/os-release >/dev/null; command -v python3 >/dev/null; true"

/* --- keys --- */

static int hash(const struct buf *text, char **ret) {
        struct sha256_ctx ctx;
        uint8_t digest[SHA256_DIGEST_SIZE];
        char *hex = malloc(KEY_LEN + 1);

        if (!hex)
                return -ENOMEM;
        sha256_init(&ctx);
        sha256_update(&ctx, text->len, (const uint8_t *) text->data);
        sha256_digest(&ctx, sizeof(digest), digest);
        for (size_t i = 0; i < sizeof(digest); i++)
                snprintf(hex + 2 * i, 3, "%02x", digest[i]);
        *ret = hex;
        return 0;
}

/* What vm/ must know of a machine of this shape; texts are in the structure. */
struct shape {
        char network[16], gateway[16], mac[MAC_LEN + 1];
        struct vm_spec spec;
};

static void shape_of(struct core *core, unsigned vcpus, unsigned memory_mb, struct shape *s) {
        address_text(core->cfg.network, s->network);
        address_text(address_gateway(core->cfg.network), s->gateway);
        address_mac(core->cfg.network + TEMPLATE_ADDRESS, s->mac);
        s->spec = (struct vm_spec){
                .id = "template",
                .dir = "-",
                .vcpus = vcpus,
                .memory_mb = memory_mb,
                .disk_path = "-",
                .disk_format = "raw",
                .net = core_net(core),
                .mac = s->mac,
                .network = s->network,
                .prefix_len = core->cfg.prefix_len,
                .gateway = s->gateway,
        };
}

int machine_key(struct core *core, const struct platform *p, unsigned vcpus, unsigned memory_mb, char **ret,
                struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(VM_KEY_MAX);
        struct shape s;

        shape_of(core, vcpus, memory_mb, &s);
        int r = vm_machine_key(p, &s.spec, &text, err);
        if (r < 0)
                return r;
        r = hash(&text, ret);
        return r < 0 ? error_set_errno(err, r, "Cannot say what a machine is") : 0;
}

int template_key(struct core *core, const struct platform *p, const struct image *image, unsigned vcpus,
                 unsigned memory_mb, char **ret, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(2 * VM_KEY_MAX);
        struct shape s;
        struct stat st;

        shape_of(core, vcpus, memory_mb, &s);
        int r = vm_template_key(p, &s.spec, &text, err);
        if (r < 0)
                return r;
        if (image && stat(image->path, &st) < 0)
                return error_set_errno(err, errno, "Cannot look at the image %s", image->name);
        if (image) /* its identity, as bases.h has it */
                r = buf_printf(&text, "image %s %llu %llu %lld.%09ld %lld disk %u\n", image->name,
                               (unsigned long long) st.st_dev, (unsigned long long) st.st_ino,
                               (long long) st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (long long) st.st_size,
                               core->cfg.default_disk_gb);
        if (r >= 0)
                r = hash(&text, ret);
        return r < 0 ? error_set_errno(err, r, "Cannot say what a template depends on") : 0;
}

/* --- the files --- */

static int stamp_of(struct snapshot *s, struct buf *text) {
        static const char *const names[] = {SNAPSHOT_MEMORY, SNAPSHOT_STATE};

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_free_ char *path = path_join(s->dir, names[i]);
                struct stat st;

                if (!path)
                        return -ENOMEM;
                if (stat(path, &st) < 0)
                        return -errno;
                int r = buf_printf(text, "%s %lld %lld.%09ld\n", names[i], (long long) st.st_size,
                                   (long long) st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int write_stamp(struct snapshot *s, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(STAMP_MAX);
        _cleanup_free_ char *path = path_join(s->dir, TEMPLATE_STAMP);

        int r = path ? stamp_of(s, &text) : -ENOMEM;
        if (r >= 0)
                r = file_write_atomic(path, text.data, text.len, 0600);
        return r < 0 ? error_set_errno(err, r, "Cannot finish a template") : 0;
}

bool template_is_whole(struct snapshot *s) {
        _cleanup_buf_ struct buf text = BUF_INIT(STAMP_MAX);
        _cleanup_free_ char *path = path_join(s->dir, TEMPLATE_STAMP), *written = NULL;

        return path && stamp_of(s, &text) >= 0 && file_read_all(path, STAMP_MAX, &written, NULL) >= 0 &&
               str_eq(written, text.data);
}

/* Bytes on the disk of all files in its folder. */
static uint64_t folder_bytes(struct snapshot *s) {
        static const char *const names[] = {SNAPSHOT_MEMORY, SNAPSHOT_STATE};
        uint64_t sum = 0;

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_free_ char *path = path_join(s->dir, names[i]);
                struct stat st;

                if (path && stat(path, &st) == 0)
                        sum += (uint64_t) st.st_blocks * 512;
        }
        return sum;
}

/* --- building --- */

struct building {
        struct core *core;
        const struct platform *platform;
        const struct image *image; /* NULL: for any disk */
        const struct op *op;
        struct snapshot *snapshot; /* pinned */
        struct shape shape;
        char *vm_dir, *memory, *state, *pages, *scratch;
        struct vm *vm;
};

static void building_clear(struct building *b) {
        if (b->vm)
                vm_kill(b->vm);
        vm_unref(b->vm);
        free(b->vm_dir);
        free(b->memory);
        free(b->state);
        free(b->pages);
        free(b->scratch);
}

static int make_scratch(struct building *b, struct error *err) {
        _cleanup_close_ int fd = open(b->scratch, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 || ftruncate(fd, SCRATCH_BYTES) < 0)
                return error_set_errno(err, errno, "Cannot make a disk for the template");
        return 0;
}

static int begin(struct building *b, unsigned vcpus, unsigned memory_mb, struct error *err) {
        const char *dir = b->snapshot->dir;

        b->vm_dir = path_join(dir, TEMPLATE_VM);
        b->memory = path_join(dir, SNAPSHOT_MEMORY);
        b->state = path_join(dir, SNAPSHOT_STATE);
        b->pages = path_join(dir, SNAPSHOT_PAGES);
        b->scratch = path_join(dir, SCRATCH_DISK);
        if (!b->vm_dir || !b->memory || !b->state || !b->pages || !b->scratch)
                return error_set_errno(err, ENOMEM, "Cannot make a template");
        shape_of(b->core, vcpus, memory_mb, &b->shape);
        b->shape.spec.dir = b->vm_dir;
        return mkdir(b->vm_dir, 0700) < 0 ? error_set_errno(err, errno, "Cannot make the folder of a template") : 0;
}

static void end_machine(struct building *b) {
        vm_kill(b->vm);
        vm_unref(TAKE_PTR(b->vm));
        (void) rm_rf(b->vm_dir);
}

/* Its card is on no network. */
static int launch(struct building *b, const struct op *op, struct error *err) {
        const struct card card = {.address = b->core->cfg.network + TEMPLATE_ADDRESS};
        struct vm_spec *spec = &b->shape.spec;
        _cleanup_close_ int fd = -1;

        int r = core_card(b->core, &card, b->vm_dir, false, op, &fd, err);
        if (r < 0)
                return r;
        spec->net_fd = fd;
        return vm_launch(b->platform, spec, NULL, op, &b->vm, err);
}

static int build_for_any_disk(struct building *b, struct error *err) {
        struct vm_spec *spec = &b->shape.spec;
        const struct op boot = op_sub(b->op, b->core->cfg.boot_timeout_ms);

        int r = make_scratch(b, err);
        if (r < 0)
                return r;
        spec->disk_path = b->scratch;
        spec->memory = VM_MEMORY_SHARED;
        spec->memory_path = b->memory;
        r = launch(b, &boot, err);
        if (r >= 0)
                r = vm_save_template(b->vm, b->state, b->op, err);
        if (r < 0)
                return r;
        end_machine(b);
        return unlink(b->scratch) < 0 ? error_set_errno(err, errno, "Cannot finish a template") : 0;
}

/* Mounts, runs the first commands, and comes to rest. */
static int settle_image(struct building *b, struct error *err) {
        const struct op op = op_sub(b->op, WARM_MS);
        const struct agent_exec_args args = {
                .command = WARM_COMMAND, .timeout_ms = WARM_MS / 2, .max_output = WARM_OUTPUT};
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        _cleanup_agent_ struct agent *agent = NULL;

        int r = vm_agent(b->vm, &op, &agent, err);
        if (r >= 0)
                r = agent_mount_root(agent, &op, err);
        if (r >= 0)
                r = agent_exec(agent, &args, &op, &result, err);
        return r < 0 ? r : agent_sync(agent, &op, err);
}

/* Saves the machine; its disk becomes the template's node. */
static int save_image(struct building *b, struct error *err) {
        struct storage *storage = b->core->storage;
        const char *id = b->snapshot->id;
        _cleanup_free_ char *overlay = NULL;
        struct vm_snapshot_result result = {0};

        int r = storage_freeze_begin(storage, id, id, &overlay, b->op, err);
        if (r < 0)
                return r;
        const struct vm_snapshot_args args = {
                .state_path = b->state, .pages_path = b->pages, .overlay_path = overlay, .transient = true};
        r = vm_snapshot(b->vm, &args, b->op, &result, err);
        int ended = storage_freeze_end(storage, id, id, result.switched, r < 0 ? NULL : err);
        if (r >= 0)
                r = ended;
        if (r >= 0 && result.kind != VM_STATE_DEVICES)
                r = error_set(err, ERROR_UNSUPPORTED,
                              "The memory of a machine cannot be told from its template's here");
        return r;
}

static int build_of_image(struct building *b, struct snapshot *from, struct error *err) {
        struct storage *storage = b->core->storage;
        struct vm_spec *spec = &b->shape.spec;
        const struct op resume = op_sub(b->op, RESUME_MS);
        _cleanup_start_files_ struct start_files files = {0};
        _cleanup_disk_info_ struct disk_info disk = {0};

        int r = snapshot_files(from, true, b->op, &files, err);
        if (r >= 0)
                r = storage_create(storage, b->snapshot->id, b->image, b->core->cfg.default_disk_gb * GIB, b->op, err);
        if (r >= 0)
                r = storage_info(storage, b->snapshot->id, &disk, err);
        if (r < 0)
                return r;
        spec->disk_path = disk.path;
        spec->disk_format = disk.format;
        spec->memory = files.memory;
        spec->memory_path = files.memory_path;
        spec->state = files.state;
        spec->state_path = files.state_path;
        r = launch(b, &resume, err);
        if (r >= 0)
                r = settle_image(b, err);
        if (r >= 0)
                r = save_image(b, err);
        if (r < 0)
                return r;
        end_machine(b);
        r = storage_destroy(storage, b->snapshot->id, err);
        if (r >= 0)
                r = memory_image_build(files.memory_path, b->pages, b->memory, true, b->op, err);
        if (r >= 0 && unlink(b->pages) < 0)
                r = error_set_errno(err, errno, "Cannot finish a template");
        return r;
}

static int new_row(struct core *core, const struct image *image, unsigned vcpus, unsigned memory_mb, const char *key,
                   struct snapshot **ret, struct error *err) {
        _cleanup_snap_row_ struct snap_row row = {
                .state = SNAP_CREATING,
                .has_disk = image != NULL,
                .memory = SNAP_MEMORY_TEMPLATE,
                .vcpus = vcpus,
                .memory_mb = memory_mb,
                .disk_gb = image ? core->cfg.default_disk_gb : 0,
                .created_ms = realtime_ms(),
                .used_ms = realtime_ms(),
        };

        int r = uuid_new(row.id);
        if (r >= 0)
                r = str_replace(&row.key, key);
        if (r >= 0)
                r = str_replace(&row.base_image, image ? image->name : NULL);
        if (r < 0)
                return error_set_errno(err, r, "Cannot make a template");
        return snapshot_new(core, &row, ret, err);
}

static int finish(struct building *b, struct error *err) {
        _cleanup_snap_row_ struct snap_row row = {0};

        int r = write_stamp(b->snapshot, err);
        if (r >= 0)
                r = snapshot_row(b->snapshot, &row, err);
        if (r < 0)
                return r;
        row.state = SNAP_READY;
        row.file_bytes = folder_bytes(b->snapshot);
        return snapshot_commit(b->snapshot, &row, NULL, err);
}

/* Removes what there is of it. */
static void undo(struct building *b) {
        if (b->vm)
                end_machine(b);
        if (b->image)
                (void) storage_destroy(b->core->storage, b->snapshot->id, NULL);
        (void) snapshot_retire(b->snapshot, NULL);
}

int template_build(struct core *core, const struct platform *p, const struct image *image, struct snapshot *from,
                   unsigned vcpus, unsigned memory_mb, const char *key, const struct op *op, struct snapshot **ret,
                   struct error *err) {
        _cleanup_(building_clear) struct building b = {.core = core, .platform = p, .image = image, .op = op};

        int r = new_row(core, image, vcpus, memory_mb, key, &b.snapshot, err);
        if (r < 0)
                return r;
        r = begin(&b, vcpus, memory_mb, err);
        if (r >= 0)
                r = image ? build_of_image(&b, from, err) : build_for_any_disk(&b, err);
        if (r >= 0)
                r = finish(&b, err);
        if (r < 0) {
                undo(&b);
                snapshot_unpin(b.snapshot);
                snapshots_sweep(core);
                return r;
        }
        *ret = b.snapshot;
        return 0;
}
