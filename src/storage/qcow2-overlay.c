/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/qcow2-overlay.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/process.h"
#include "base/str.h"
#include "base/thread.h"
#include "base/waiter.h"
#include "storage/qcow2-header.h"

#define BLOCK 4096u     /* of which a prototype consists; what a file system allocates */
#define BLOCKS_MAX 256u /* 4 are used for any disk of less than 256 GiB */

struct block {
        uint64_t offset;
        unsigned char data[BLOCK];
};

struct prototype {
        unsigned users; /* guarded by overlays.lock; the table is one of them */
        uint64_t size;  /* of the file */
        uint64_t backing_offset;
        size_t n;
        struct block blocks[];
};

struct slot {
        uint64_t virtual_bytes;
        char format[16];             /* "": the slot is free */
        struct prototype *prototype; /* NULL in a slot that is not free: a thread is making it */
        uint64_t used;               /* number of the use that was the last one */
};

struct overlays {
        char *qemu_img;
        char *dir;
        int dir_fd;
        pthread_mutex_t lock; /* guards all below; nothing else is taken under it, and nobody waits with it */
        pthread_cond_t changed;
        struct slot slots[PROTOTYPES_MAX];
        uint64_t uses;
};

int overlays_new(const char *dir, const char *qemu_img, struct overlays **ret) {
        struct overlays *o = calloc(1, sizeof(*o));
        if (!o)
                return -ENOMEM;
        pthread_mutex_init(&o->lock, NULL);
        cond_init(&o->changed);
        o->dir = strdup(dir);
        o->qemu_img = strdup(qemu_img);
        o->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int r = o->dir_fd < 0 ? -errno : !o->dir || !o->qemu_img ? -ENOMEM : 0;
        if (r < 0) {
                overlays_free(o);
                return r;
        }
        *ret = o;
        return 0;
}

void overlays_free(struct overlays *o) {
        if (!o)
                return;
        for (size_t i = 0; i < PROTOTYPES_MAX; i++)
                free(o->slots[i].prototype);
        pthread_cond_destroy(&o->changed);
        pthread_mutex_destroy(&o->lock);
        close_fd(o->dir_fd);
        free(o->dir);
        free(o->qemu_img);
        free(o);
}

/* --- making a prototype --- */

/* -u: the backing file is not looked at. It need not exist, and a running machine may have it locked. */
static int run_qemu_img(struct overlays *o, const char *path, const struct overlay *what, const struct op *op,
                        struct error *err) {
        char size[24], name[QCOW2_BACKING_MAX + 1];
        snprintf(size, sizeof(size), "%" PRIu64, what->virtual_bytes);
        memset(name, 'x', QCOW2_BACKING_MAX);
        name[QCOW2_BACKING_MAX] = 0;
        char *argv[] = {
                o->qemu_img,   (char *) "create",     (char *) "-q", (char *) "-u", (char *) "-f", (char *) "qcow2",
                (char *) "-F", (char *) what->format, (char *) "-b", name,          (char *) path, size,
                NULL};
        return process_run(argv, op, NULL, NULL, err);
}

static bool all_zero(const unsigned char *p, size_t n) {
        return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

/* Takes the blocks that are not zero. The file ends in the middle of the last one. */
static int load_blocks(int fd, struct prototype *p) {
        for (uint64_t at = 0; at < p->size; at += BLOCK) {
                struct block b = {.offset = at};
                size_t want = (size_t) MIN(p->size - at, (uint64_t) BLOCK);
                ssize_t got = pread(fd, b.data, want, (off_t) at);
                if (got < 0)
                        return -errno;
                if ((size_t) got != want)
                        return -EBADMSG;
                if (all_zero(b.data, want))
                        continue;
                if (p->n == BLOCKS_MAX)
                        return -EFBIG;
                p->blocks[p->n++] = b;
        }
        return 0;
}

static int load(int fd, struct prototype **ret) {
        static const char nothing[QCOW2_BACKING_MAX];
        struct qcow2_header header;
        struct stat st;

        int r = qcow2_header_read(fd, &header);
        if (r < 0)
                return r;
        if (header.backing_offset == 0)
                return -EBADMSG;
        if (fstat(fd, &st) < 0 || pwrite(fd, nothing, sizeof(nothing), (off_t) header.backing_offset) < 0)
                return -errno;
        _cleanup_free_ struct prototype *p = calloc(1, sizeof(*p) + BLOCKS_MAX * sizeof(struct block));
        if (!p)
                return -ENOMEM;
        p->size = (uint64_t) st.st_size;
        p->backing_offset = header.backing_offset;
        r = load_blocks(fd, p);
        if (r < 0)
                return r;
        struct prototype *fit = realloc(p, sizeof(*p) + p->n * sizeof(struct block));
        if (!fit)
                return -ENOMEM;
        p = NULL;
        *ret = fit;
        return 0;
}

static int make_prototype(struct overlays *o, const struct overlay *what, const struct op *op, struct prototype **ret,
                          struct error *err) {
        /* The ending is that of what a crash leaves and the next start removes. One thread makes it. */
        _cleanup_free_ char *path =
                str_printf("%s/prototype-%" PRIu64 "-%s.tmp", o->dir, what->virtual_bytes, what->format);
        if (!path)
                return error_set_errno(err, ENOMEM, "Cannot make an overlay");
        int r = run_qemu_img(o, path, what, op, err);
        if (r >= 0) {
                _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
                r = fd < 0 ? -errno : load(fd, ret);
                if (r < 0)
                        error_set_errno(err, r, "Cannot use the overlay that qemu-img has made");
        }
        unlink(path);
        return r;
}

/* --- the table --- */

static struct slot *find_slot(struct overlays *o, const struct overlay *what) {
        for (size_t i = 0; i < PROTOTYPES_MAX; i++)
                if (o->slots[i].virtual_bytes == what->virtual_bytes && str_eq(o->slots[i].format, what->format))
                        return &o->slots[i];
        return NULL;
}

static void unref_locked(struct prototype *p) {
        if (p && --p->users == 0)
                free(p);
}

static void slot_clear(struct slot *s) {
        unref_locked(s->prototype);
        *s = (struct slot){0};
}

/* An empty slot, if need be the one that was not used for longest; NULL: in all of them something is being made. */
static struct slot *free_slot(struct overlays *o) {
        struct slot *oldest = NULL;
        for (size_t i = 0; i < PROTOTYPES_MAX; i++) {
                struct slot *s = &o->slots[i];
                if (!*s->format)
                        return s;
                if (s->prototype && (!oldest || s->used < oldest->used))
                        oldest = s;
        }
        if (oldest)
                slot_clear(oldest);
        return oldest;
}

/* The prototype, for one more user; or a slot in which the caller must make it; or neither: wait. */
static void look(struct overlays *o, const struct overlay *what, struct prototype **ret, struct slot **ret_slot) {
        struct slot *s = find_slot(o, what);
        if (s && s->prototype) {
                s->used = ++o->uses;
                s->prototype->users++;
                *ret = s->prototype;
        } else if (!s && (s = free_slot(o))) {
                s->virtual_bytes = what->virtual_bytes;
                snprintf(s->format, sizeof(s->format), "%s", what->format);
                *ret_slot = s;
        }
}

static int wait_or_claim(struct overlays *o, const struct overlay *what, const struct op *op, struct prototype **ret,
                         struct slot **ret_slot) {
        struct cond_waiter w;
        int r = 0;
        cond_waiter_begin(&w, &o->lock, &o->changed, op);
        pthread_mutex_lock(&o->lock);
        while (look(o, what, ret, ret_slot), !*ret && !*ret_slot && r >= 0)
                r = cond_waiter_sleep(&w);
        pthread_mutex_unlock(&o->lock);
        cond_waiter_end(&w);
        return r;
}

static int prototype_get(struct overlays *o, const struct overlay *what, const struct op *op, struct prototype **ret,
                         struct error *err) {
        struct prototype *p = NULL;
        struct slot *slot = NULL;

        int r = wait_or_claim(o, what, op, &p, &slot);
        if (!p && !slot)
                return error_set_errno(err, r, "Waiting for an overlay of %" PRIu64 " bytes", what->virtual_bytes);
        if (slot) {
                r = make_prototype(o, what, op, &p, err);
                LOCK(&o->lock);
                if (p) {
                        p->users = 2;
                        slot->prototype = p;
                        slot->used = ++o->uses;
                } else
                        slot_clear(slot); /* one of those who wait tries in turn */
                pthread_cond_broadcast(&o->changed);
        }
        if (!p)
                return r;
        *ret = p;
        return 0;
}

static void prototype_put(struct overlays *o, struct prototype *p) {
        LOCK(&o->lock);
        unref_locked(p);
}

/* --- making an overlay --- */

static int write_blocks(int fd, const struct prototype *p, const char *backing) {
        for (size_t i = 0; i < p->n; i++) {
                ssize_t put = pwrite(fd, p->blocks[i].data, BLOCK, (off_t) p->blocks[i].offset);
                if (put != BLOCK)
                        return put < 0 ? -errno : -ENOSPC;
        }
        int r = qcow2_backing_write(fd, p->backing_offset, backing);
        if (r < 0)
                return r;
        return ftruncate(fd, (off_t) p->size) < 0 || fsync(fd) < 0 ? -errno : 0;
}

int overlay_write(struct overlays *o, const char *name, const struct overlay *what, const struct op *op,
                  struct error *err) {
        struct prototype *p = NULL;
        int r = op_check(op);
        if (r < 0)
                return error_set_errno(err, r, "Making an overlay");
        r = prototype_get(o, what, op, &p, err);
        if (r < 0)
                return r;
        unlinkat(o->dir_fd, name, 0); /* whoever has the old file open keeps it */
        _cleanup_close_ int fd = openat(o->dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        r = fd < 0 ? -errno : write_blocks(fd, p, what->backing);
        prototype_put(o, p);
        if (r < 0) {
                error_set_errno(err, r, "Cannot write an overlay");
                unlinkat(o->dir_fd, name, 0);
        }
        return r;
}
