/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From the initramfs into the disk.
 *
 * The disk gets its driver only now, so that a memory image of a machine that waits for this request fits any disk.
 * Growing happens before the answer, so that nobody meets a small disk. It is cheap: ext4 zeroes the inode tables of
 * the new block groups at once, which virtio-blk does with a few WRITE_ZEROES requests (from 2 to 10 GiB under TCG: 60
 * to 100 ms and 2 MiB in a qcow2 overlay). `noinit_itable` keeps ext4's background thread from writing zeros over the
 * tables of the image itself for minutes: mke2fs has made the image on a fresh file, in which they are zero.
 *
 * Nothing in the image is needed, and nothing in it is trusted: what stands in the place of a mount point and is no
 * directory is replaced.
 */

#include <endian.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/file.h"
#include "guest/agent.h"
#include "guest/args.h"
#include "guest/console.h"
#include "guest/modules.h"
#include "guest/uevent.h"

#define NEW_ROOT "/mnt"
#define DEVICE_MS 10000 /* for the disk to appear */
#define SUPERBLOCK_AT 1024

/* linux/ext4.h has it only from Linux 6.0 on: grows a mounted file system to so many blocks. */
#define RESIZE_FS _IOW('f', 16, uint64_t)

static bool device_there(void *arg) {
        return access(arg, F_OK) == 0;
}

static int wait_device(struct agent *a, const char *device, struct error *err) {
        _cleanup_close_ int uevents = -1;
        struct op op = op_timeout(DEVICE_MS);
        int r;

        modules_attach();
        if (device_there((void *) device))
                return 0;
        uevents = uevent_open();
        if (uevents < 0)
                return error_set_errno(err, uevents, "Cannot listen for devices");
        r = modules_load(a->initramfs_fd, "disk", err); /* where it could not be parked */
        if (r < 0)
                return r;
        r = uevent_wait(uevents, device_there, (void *) device, &op);
        return r < 0 ? error_set_errno(err, r, "The disk %s did not appear", device) : 0;
}

/* Whether the ext4 on the disk has so many blocks, by its superblock: asking it to grow would cost 30 ms under
 * emulation, though there is nothing to do. */
static bool has_blocks(int disk_fd, uint64_t blocks) {
        struct {
                uint8_t unused[4];
                uint32_t blocks; /* low half */
                uint8_t unused2[0x150 - 8];
                uint32_t blocks_high;
        } super;

        return pread(disk_fd, &super, sizeof(super), SUPERBLOCK_AT) == sizeof(super) &&
               ((uint64_t) le32toh(super.blocks_high) << 32 | le32toh(super.blocks)) == blocks;
}

static uint64_t disk_size(int disk_fd) {
        uint64_t bytes = 0;

        return ioctl(disk_fd, BLKGETSIZE64, &bytes) < 0 ? 0 : bytes;
}

struct wanted {
        int disk_fd;
        uint64_t bytes;
};

static bool large_enough(void *arg) {
        const struct wanted *w = arg;

        return disk_size(w->disk_fd) >= w->bytes;
}

/* A disk that was made larger under a machine that runs is so only when the driver's thread has looked at it. */
static int wait_size(int disk_fd, const struct mount_root_args *args, struct error *err) {
        struct wanted w = {.disk_fd = disk_fd, .bytes = (uint64_t) args->disk_bytes};
        _cleanup_close_ int uevents = -1;
        struct op op = op_timeout(DEVICE_MS);
        int r;

        if (large_enough(&w))
                return 0;
        uevents = uevent_open();
        r = uevents < 0 ? uevents : uevent_wait(uevents, large_enough, &w, &op);
        return r < 0 ? error_set_errno(err, r, "The disk %s has %llu bytes, not %llu", args->device,
                                       (unsigned long long) disk_size(disk_fd), (unsigned long long) w.bytes)
                     : 0;
}

static int grow(const struct mount_root_args *args, const char *where, struct error *err) {
        _cleanup_close_ int disk_fd = open(args->device, O_RDONLY | O_CLOEXEC), fs_fd = -1;
        struct statfs fs;
        uint64_t blocks;
        int r;

        fs_fd = open(where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (disk_fd < 0 || fs_fd < 0 || fstatfs(fs_fd, &fs) < 0)
                return error_set_errno(err, errno, "Cannot find the size of %s", args->device);
        r = wait_size(disk_fd, args, err);
        if (r < 0)
                return r;
        blocks = disk_size(disk_fd) / (uint64_t) fs.f_bsize;
        if (has_blocks(disk_fd, blocks))
                return 0;
        if (ioctl(fs_fd, RESIZE_FS, &blocks) < 0)
                return error_set_errno(err, errno, "Cannot grow the file system to %llu blocks",
                                       (unsigned long long) blocks);
        return 0;
}

/* A directory of this name below the folder, whatever is there now. */
static int make_directory(int folder, const char *name, mode_t mode) {
        struct stat st;

        if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
                if (S_ISDIR(st.st_mode))
                        return 0;
                if (unlinkat(folder, name, 0) < 0)
                        return -errno;
        }
        if (mkdirat(folder, name, mode) < 0)
                return -errno;
        return fchmodat(folder, name, mode, 0) < 0 ? -errno : 0;
}

static int prepare_image(struct error *err) {
        static const struct {
                const char *name;
                mode_t mode;
        } needed[] = {{"dev", 0755}, {"proc", 0555}, {"sys", 0555}, {"run", 0755}, {"tmp", 01777}, {"etc", 0755}};
        _cleanup_close_ int folder = open(NEW_ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int r;

        if (folder < 0)
                return error_set_errno(err, errno, "Cannot open the new root");
        for (size_t i = 0; i < ARRAY_SIZE(needed); i++) {
                r = make_directory(folder, needed[i].name, needed[i].mode);
                if (r < 0)
                        return error_set_errno(err, r, "Cannot make /%s in the image", needed[i].name);
        }
        return 0;
}

static int pivot(struct error *err) {
        static const char *const moved[] = {"/dev", "/proc", "/sys", "/run"};

        for (size_t i = 0; i < ARRAY_SIZE(moved); i++) {
                _cleanup_free_ char *to = path_join(NEW_ROOT, moved[i]);

                if (!to || mount(moved[i], to, NULL, MS_MOVE, NULL) < 0)
                        return error_set_errno(err, to ? errno : ENOMEM, "Cannot move %s to the new root", moved[i]);
        }
        if (chdir(NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
                return error_set_errno(err, errno, "Cannot change to the new root");
        return 0;
}

static int mount_root(struct agent *a, const struct mount_root_args *args, struct error *err) {
        int r = wait_device(a, args->device, err);

        if (r < 0)
                return r;
        (void) mkdir(NEW_ROOT, 0755);
        if (mount(args->device, NEW_ROOT, "ext4", MS_NOATIME, "discard,noinit_itable") < 0)
                return error_set_errno(err, errno, "Cannot mount %s", args->device);
        if (args->grow)
                r = grow(args, NEW_ROOT, err);
        if (r == 0)
                r = prepare_image(err);
        if (r < 0) {
                umount2(NEW_ROOT, MNT_DETACH);
                return r;
        }
        r = pivot(err);
        if (r < 0) /* half of it is moved: neither root is whole any more */
                console_die("%s", error_message(err));
        return 0;
}

/* Claims the state for this request. 1: it is mounted already. */
static int begin(struct agent *a, struct error *err) {
        LOCK(&a->lock);
        if (a->root == ROOT_MOUNTED)
                return 1;
        if (a->root == ROOT_MOUNTING)
                return error_set(err, ERROR_CONFLICT, "The root file system is being mounted by another request");
        a->root = ROOT_MOUNTING;
        return 0;
}

static void finish(struct agent *a, bool ok) {
        LOCK(&a->lock);
        a->root = ok ? ROOT_MOUNTED : ROOT_NONE;
}

int handle_mount_root(struct request *req, struct error *err) {
        struct mount_root_args args;
        struct statfs fs;
        int already, r = mount_root_args_parse(req->args, &args, err);

        if (r < 0)
                return r;
        if (req->agent->initramfs_fd < 0)
                return error_set(err, ERROR_UNSUPPORTED, "This agent does not run from an initramfs");
        already = begin(req->agent, err);
        if (already < 0)
                return already;
        if (already) {
                r = args.grow ? grow(&args, "/", err) : 0;
        } else {
                r = mount_root(req->agent, &args, err);
                finish(req->agent, r == 0);
        }
        if (r < 0)
                return r;
        if (statfs("/", &fs) < 0)
                return error_set_errno(err, errno, "Cannot find the size of the root file system");
        r = json_put(req->reply, "already", json_boolean(already));
        r |= json_put(req->reply, "fs_bytes", json_integer((json_int_t) fs.f_blocks * fs.f_bsize));
        return r;
}
