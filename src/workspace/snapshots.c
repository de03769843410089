/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of snapshots, and their end.
 *
 * A snapshot is a node in the storage, or the state of a machine in a folder of its own, or both:
 *
 *     state    devices                                  ram     the whole memory, shared by the machines made of it
 *     pages    what the memory has of its own
 *
 * Other things stand on it: on its node the disks and nodes that were made on top, on its memory file the running
 * machines that map it and the pages that were taken from them. The rows say so (parent, memory_base), before the thing
 * is made and until after it has gone. A snapshot that somebody has a name for stays until it is deleted. One without a
 * name goes by parts, as soon as nothing stands on the part: that is a live fork's, or a deleted one that was needed.
 *
 * The whole memory of pages is only a cache: it is made when many machines are to share it, and made anew after the
 * host was restarted, since nobody waited for it to reach the disk.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/io.h"
#include "base/log.h"
#include "vm/memory.h"
#include "workspace/core-internal.h"

/* Says since which start of the host the whole memory of pages is there. */
#define SNAPSHOT_MEMORY_BOOT "ram.boot"
#define USED_STORE_MS 600000 /* how stale the time of the last use may be in the store */

/* --- registry --- */

static void snapshot_free(struct snapshot *s) {
        if (!s)
                return;
        snap_row_clear(&s->row);
        pthread_mutex_destroy(&s->image_lock);
        free(s->dir);
        free(s);
}

/* Takes the row over. */
static struct snapshot *snapshot_make(struct core *core, struct snap_row *row) {
        struct snapshot *s = calloc(1, sizeof(*s));
        if (!s)
                return NULL;
        pthread_mutex_init(&s->image_lock, NULL);
        s->core = core;
        memcpy(s->id, row->id, sizeof(s->id));
        s->dir = path_join(core->snapshots_dir, s->id);
        if (!s->dir) {
                snapshot_free(s);
                return NULL;
        }
        s->row = *row;
        *row = (struct snap_row){0};
        return s;
}

static void add_locked(struct core *core, struct snapshot *s) {
        struct snapshot **end = &core->snapshots;
        while (*end)
                end = &(*end)->next;
        *end = s;
}

static void remove_locked(struct core *core, struct snapshot *s) {
        for (struct snapshot **at = &core->snapshots; *at; at = &(*at)->next)
                if (*at == s) {
                        *at = s->next;
                        return;
                }
}

int snapshots_load(struct core *core, struct error *err) {
        _cleanup_(snap_rows_clear) struct snap_rows rows = {0};
        int r = db_snap_list(core->db, &rows, err);
        if (r < 0)
                return r;
        LOCK(&core->lock);
        for (size_t i = 0; i < rows.n; i++) {
                struct snapshot *s = snapshot_make(core, &rows.v[i]);
                if (!s)
                        return error_set_errno(err, ENOMEM, "Cannot load the snapshots");
                add_locked(core, s);
        }
        return 0;
}

void snapshots_free(struct core *core) {
        while (core->snapshots) {
                struct snapshot *s = core->snapshots;
                core->snapshots = s->next;
                snapshot_free(s);
        }
}

struct snapshot *snapshot_find_locked(struct core *core, const char *id) {
        for (struct snapshot *s = core->snapshots; s; s = s->next)
                if (str_eq(s->id, id))
                        return s;
        return NULL;
}

struct snapshot *snapshot_by_name_locked(struct core *core, const char *workspace, const char *name) {
        for (struct snapshot *s = core->snapshots; s; s = s->next)
                if (s->row.name && str_eq(s->row.workspace, workspace) && str_eq(s->row.name, name))
                        return s;
        return NULL;
}

void snapshot_pin_locked(struct snapshot *s) {
        s->pins++;
}

void snapshot_unpin(struct snapshot *s) {
        if (!s)
                return;
        LOCK(&s->core->lock);
        s->pins--;
}

int snapshot_row(struct snapshot *s, struct snap_row *ret, struct error *err) {
        LOCK(&s->core->lock);
        int r = snap_row_copy(ret, &s->row);
        return r < 0 ? error_set_errno(err, r, "Cannot read snapshot %s", s->id) : 0;
}

/* --- changes --- */

int snapshot_new(struct core *core, struct snap_row *row, struct snapshot **ret, struct error *err) {
        struct snapshot *s = snapshot_make(core, row);
        if (!s)
                return error_set_errno(err, ENOMEM, "Cannot make a snapshot");
        s->pins = 1;
        LOCK(&core->snap_lock);
        int r = db_snap_insert(core->db, &s->row, err);
        if (r >= 0 && mkdir(s->dir, 0700) < 0) {
                r = error_set_errno(err, errno, "Cannot make the folder of a snapshot");
                (void) db_snap_delete(core->db, s->id, NULL);
        }
        if (r < 0) {
                snapshot_free(s);
                return r;
        }
        LOCK(&core->lock);
        add_locked(core, s);
        *ret = s;
        return 0;
}

static int commit_locked(struct snapshot *s, struct snap_row *next, struct workspace *ws, struct error *err) {
        _cleanup_ws_row_ struct ws_row row = {0};
        int r = ws ? workspace_row(ws, &row, err) : 0;
        if (r < 0)
                return r;
        if (ws)
                memcpy(row.parent, s->id, sizeof(row.parent));
        r = db_snap_update(s->core->db, next, ws ? &row : NULL, err);
        if (r < 0)
                return r;
        LOCK(&s->core->lock);
        struct snap_row old = s->row;
        s->row = *next;
        *next = old;
        if (ws)
                memcpy(ws->row.parent, s->id, sizeof(ws->row.parent));
        return 0;
}

int snapshot_commit(struct snapshot *s, struct snap_row *next, struct workspace *ws, struct error *err) {
        LOCK(&s->core->snap_lock);
        if (!ws)
                return commit_locked(s, next, NULL, err);
        LOCK(&ws->commit_lock);
        return commit_locked(s, next, ws, err);
}

/* The time of the last use in the store need not be exact; it only chooses which templates go. */
void snapshot_note_use(struct snapshot *s) {
        _cleanup_snap_row_ struct snap_row next = {0};
        const int64_t now = realtime_ms();
        LOCK(&s->core->snap_lock);

        if (snapshot_row(s, &next, NULL) < 0 || next.state != SNAP_READY || now - next.used_ms < USED_STORE_MS)
                return;
        next.used_ms = now;
        (void) commit_locked(s, &next, NULL, NULL);
}

static int sync_file(const char *dir, const char *name) {
        _cleanup_free_ char *path = path_join(dir, name);
        _cleanup_close_ int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

int snapshot_sync_memory(struct core *core, const char *id, struct error *err) {
        char at[UUID_LEN + 1];
        memcpy(at, id, sizeof(at));

        while (at[0] != '\0') {
                struct snapshot *s;
                enum snap_memory memory;
                {
                        LOCK(&core->lock);
                        s = snapshot_find_locked(core, at);
                        if (!s)
                                return error_set(err, ERROR_INTERNAL, "The memory file %s is not known", at);
                        memory = s->row.memory;
                        memcpy(at, s->row.memory_base, sizeof(at));
                }
                if (memory != SNAP_MEMORY_PAGES)
                        return 0; /* a template's files last already */
                int r = sync_file(s->dir, SNAPSHOT_PAGES);
                if (r >= 0)
                        r = sync_file(s->dir, ".");
                if (r < 0)
                        return error_set_errno(err, r, "Cannot make the memory of snapshot %s last", s->id);
        }
        return 0;
}

int snapshot_retire(struct snapshot *s, struct error *err) {
        _cleanup_snap_row_ struct snap_row next = {0};
        LOCK(&s->core->snap_lock);

        int r = snapshot_row(s, &next, err);
        if (r < 0)
                return r;
        next.state = SNAP_DELETING;
        (void) str_replace(&next.name, NULL);
        return commit_locked(s, &next, NULL, err);
}

int snapshot_empty(struct snapshot *s, struct error *err) {
        int r = rm_rf(s->dir);
        if (r >= 0 && mkdir(s->dir, 0700) < 0)
                r = -errno;
        return r < 0 ? error_set_errno(err, r, "Cannot remove the files of snapshot %s", s->id) : 0;
}

/* --- the end --- */

static bool stands_on_node_locked(struct core *core, const struct snapshot *s) {
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (str_eq(ws->row.parent, s->id))
                        return true;
        for (struct snapshot *o = core->snapshots; o; o = o->next)
                if (o->row.has_disk && str_eq(o->row.parent, s->id))
                        return true;
        return false;
}

static bool stands_on_memory_locked(struct core *core, const struct snapshot *s) {
        for (struct workspace *ws = core->first; ws; ws = ws->next)
                if (str_eq(ws->row.memory_base, s->id))
                        return true;
        for (struct snapshot *o = core->snapshots; o; o = o->next)
                if (o->row.memory == SNAP_MEMORY_PAGES && str_eq(o->row.memory_base, s->id))
                        return true;
        return false;
}

/* What can go of a snapshot now. */
struct parts {
        bool disk, memory;
};

static bool nobody_wants_locked(const struct snapshot *s) {
        bool unasked = !s->row.name && s->row.workspace[0] != '\0' && s->row.state == SNAP_READY;
        return s->pins == 0 && (s->row.state == SNAP_DELETING || unasked);
}

/* A snapshot of which something can go, pinned. */
static struct snapshot *next_to_sweep(struct core *core, struct parts *ret) {
        LOCK(&core->lock);
        for (struct snapshot *s = core->snapshots; s; s = s->next) {
                if (!nobody_wants_locked(s) || s->failed_sweep == core->n_sweeps)
                        continue;
                struct parts p = {
                        .disk = s->row.has_disk && !stands_on_node_locked(core, s),
                        .memory = s->row.memory != SNAP_MEMORY_NONE && !stands_on_memory_locked(core, s),
                };
                bool nothing = !s->row.has_disk && s->row.memory == SNAP_MEMORY_NONE;
                if (p.disk || p.memory || nothing) {
                        *ret = p;
                        return s;
                }
        }
        return NULL;
}

static int sweep_one(struct snapshot *s, const struct parts *p, struct error *err) {
        _cleanup_snap_row_ struct snap_row next = {0};
        struct core *core = s->core;

        int r = snapshot_row(s, &next, err);
        if (r >= 0 && p->disk)
                r = storage_node_destroy(core->storage, s->id, err);
        if (r == -ENOENT)
                r = 0;
        if (r < 0)
                return r;
        if (p->memory || next.memory == SNAP_MEMORY_NONE) {
                r = rm_rf(s->dir);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot remove the folder of snapshot %s", s->id);
                next.memory = SNAP_MEMORY_NONE;
                next.memory_base[0] = '\0';
                next.file_bytes = 0;
                (void) str_replace(&next.key, NULL);
                (void) str_replace(&next.session, NULL);
        }
        if (p->disk) {
                next.has_disk = false;
                next.parent[0] = '\0';
        }
        if (next.has_disk || next.memory != SNAP_MEMORY_NONE)
                return commit_locked(s, &next, NULL, err);
        r = db_snap_delete(core->db, s->id, err);
        if (r < 0)
                return r;
        {
                LOCK(&core->lock);
                remove_locked(core, s);
        }
        snapshot_free(s);
        return 0;
}

/* Under snap_lock nothing is taken out but here, and what nobody has a name for is pinned by nobody new. */
void snapshots_sweep(struct core *core) {
        struct parts parts;
        LOCK(&core->snap_lock);

        {
                LOCK(&core->lock);
                core->n_sweeps++;
        }
        for (struct snapshot *s; (s = next_to_sweep(core, &parts));) {
                _cleanup_error_ struct error why = ERROR_INIT;
                char id[UUID_LEN + 1];
                memcpy(id, s->id, sizeof(id));
                if (sweep_one(s, &parts, &why) < 0) {
                        LOCK(&core->lock);
                        s->failed_sweep = core->n_sweeps;
                        log_warn("What is left of a snapshot cannot be removed yet", "snapshot", id, "error",
                                 error_message(&why));
                }
        }
}

int snapshot_forks_locked(struct snapshot *s, struct strv *ret) {
        struct core *core = s->core;

        for (struct workspace *ws = core->first; ws; ws = ws->next) {
                const char *at = ws->row.parent;
                if (str_eq(ws->id, s->row.workspace))
                        continue;
                while (!str_empty(at) && !str_eq(at, s->id)) {
                        struct snapshot *below = snapshot_find_locked(core, at);
                        at = below && !below->row.name ? below->row.parent : NULL;
                }
                if (!str_empty(at) && strv_add(ret, ws->row.name) < 0)
                        return -ENOMEM;
        }
        return 0;
}

/* --- use --- */

/* Whether the whole memory was made since the host started: what was made before may not have reached the disk. */
static bool image_is_fresh(const char *image, const char *mark, const char *boot_id) {
        _cleanup_free_ char *made = NULL;
        struct stat st;

        return stat(image, &st) == 0 && file_read_all(mark, UUID_LEN + 1, &made, NULL) >= 0 && str_eq(made, boot_id);
}

/* Makes the whole memory of a snapshot's pages, if it is not there. */
static int make_image(struct snapshot *s, const char *base, const char *pages, const char *image, const struct op *op,
                      struct error *err) {
        _cleanup_free_ char *mark = path_join(s->dir, SNAPSHOT_MEMORY_BOOT);
        struct proc_id self;
        LOCK(&s->image_lock);

        int r = mark ? proc_id_read(getpid(), &self) : -ENOMEM;
        if (r < 0)
                return error_set_errno(err, r, "Cannot use snapshot %s", s->id);
        if (image_is_fresh(image, mark, self.boot_id))
                return 0;
        r = memory_image_build(base, pages, image, false, op, err);
        if (r < 0)
                return r;
        r = file_write_atomic(mark, self.boot_id, strlen(self.boot_id), 0600);
        return r < 0 ? error_set_errno(err, r, "Cannot use snapshot %s", s->id) : 0;
}

/* The memory file that pages belong to; it stays as long as they do. */
static int base_memory(struct core *core, const char *id, const struct op *op, char **ret, struct error *err) {
        _cleanup_start_files_ struct start_files f = {0};
        struct snapshot *base;
        {
                LOCK(&core->lock);
                base = snapshot_find_locked(core, id);
        }
        if (!base)
                return error_set(err, ERROR_INTERNAL, "The memory file %s is not known", id);
        int r = snapshot_files(base, true, op, &f, err);
        if (r >= 0)
                *ret = TAKE_PTR(f.memory_path);
        return r;
}

static int pages_files(struct snapshot *s, const struct snap_row *row, bool whole, const struct op *op,
                       struct start_files *f, struct error *err) {
        _cleanup_free_ char *base = NULL, *image = path_join(s->dir, SNAPSHOT_MEMORY);

        f->pages_path = path_join(s->dir, SNAPSHOT_PAGES);
        if (!image || !f->pages_path)
                return error_set_errno(err, ENOMEM, "Cannot use snapshot %s", s->id);
        int r = base_memory(s->core, row->memory_base, op, &base, err);
        if (r < 0)
                return r;
        f->memory = VM_MEMORY_PRIVATE;
        f->state = VM_STATE_DEVICES;
        if (!whole) {
                f->memory_path = TAKE_PTR(base);
                memcpy(f->memory_base, row->memory_base, sizeof(f->memory_base));
                return 0;
        }
        r = make_image(s, base, f->pages_path, image, op, err);
        if (r < 0)
                return r;
        free(TAKE_PTR(f->pages_path));
        f->memory_path = TAKE_PTR(image);
        memcpy(f->memory_base, s->id, sizeof(f->memory_base));
        return 0;
}

int snapshot_files(struct snapshot *s, bool whole, const struct op *op, struct start_files *ret, struct error *err) {
        _cleanup_start_files_ struct start_files f = {0};
        _cleanup_snap_row_ struct snap_row row = {0};

        int r = snapshot_row(s, &row, err);
        if (r < 0)
                return r;
        f.state_path = path_join(s->dir, SNAPSHOT_STATE);
        if (!f.state_path || str_replace(&f.session, row.session) < 0)
                return error_set_errno(err, ENOMEM, "Cannot use snapshot %s", s->id);
        f.root_mounted = row.has_disk;
        f.disk_gb = row.has_disk ? row.disk_gb : 0;
        switch (row.memory) {
        case SNAP_MEMORY_TEMPLATE:
                f.memory = VM_MEMORY_PRIVATE;
                f.state = row.has_disk ? VM_STATE_DEVICES : VM_STATE_TEMPLATE;
                f.memory_path = path_join(s->dir, SNAPSHOT_MEMORY);
                memcpy(f.memory_base, s->id, sizeof(f.memory_base));
                r = f.memory_path ? 0 : error_set_errno(err, ENOMEM, "Cannot use snapshot %s", s->id);
                break;
        case SNAP_MEMORY_PAGES:
                r = pages_files(s, &row, whole, op, &f, err);
                break;
        case SNAP_MEMORY_WHOLE:
                f.memory = VM_MEMORY_ANONYMOUS;
                f.state = VM_STATE_FULL;
                break;
        default:
                r = error_set(err, ERROR_INTERNAL, "Snapshot %s has no memory", s->id);
        }
        if (r < 0)
                return r;
        *ret = f;
        f = (struct start_files){0};
        return 0;
}
