/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/init.h"

#include <fcntl.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define AGENT_FILES 1048576 /* fs.nr_open's default */

static const struct {
        const char *type, *where;
        unsigned long flags;
        const char *options;
} mounts[] = {
        {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
        {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
        {"devtmpfs", "/dev", MS_NOSUID, "mode=755"},
        {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
        {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"},
        {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755"},
        {"cgroup2", CGROUP_MOUNT, MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
};

int init_mounts(struct error *err) {
        static const struct {
                const char *target, *link;
        } links[] = {
                {"/proc/self/fd", "/dev/fd"},
                {"/proc/self/fd/0", "/dev/stdin"},
                {"/proc/self/fd/1", "/dev/stdout"},
                {"/proc/self/fd/2", "/dev/stderr"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(mounts); i++) {
                (void) mkdir(mounts[i].where, 0755);
                if (mount(mounts[i].type, mounts[i].where, mounts[i].type, mounts[i].flags, mounts[i].options) < 0 &&
                    errno != EBUSY)
                        return error_set_errno(err, errno, "Cannot mount %s at %s", mounts[i].type, mounts[i].where);
        }
        for (size_t i = 0; i < ARRAY_SIZE(links); i++)
                if (symlink(links[i].target, links[i].link) < 0 && errno != EEXIST)
                        return error_set_errno(err, errno, "Cannot make %s", links[i].link);
        return 0;
}

static void set(const char *path, const char *value) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        if (fd >= 0 && write(fd, value, strlen(value)) < 0)
                return; /* as good as it gets */
}

void init_limits(void) {
        struct rlimit files = {.rlim_cur = AGENT_FILES, .rlim_max = AGENT_FILES};

        setrlimit(RLIMIT_NOFILE, &files);
        umask(022);
        set("/proc/self/oom_score_adj", "-1000");
        /* The greatest that there is: a pid that is not used again soon is never mistaken. */
        set("/proc/sys/kernel/pid_max", "4194304");
        /* A list of all processes in the kernel's log at each kill: with thousands of them it takes minutes. */
        set("/proc/sys/vm/oom_dump_tasks", "0");
}

int init_loopback(void) {
        _cleanup_close_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct ifreq req = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};

        if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &req) < 0)
                return -errno;
        return 0;
}
