/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/identity.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/str.h"
#include "guest/agent.h"
#include "guest/console.h"

#define ETC_FILE_MAX (1024UL * 1024)
#define HOSTS_MARK "# agentiso"
#define CHANGE_MAX 4096 /* bytes of a file that is changed in place: one block, which a crash leaves old or new */
#define BOOT_ID_MAX 64
#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define NEW_BOOT_ID "/run/.agentiso-boot-id"

/* ---- files ---- */

enum how {
        KEEP_OTHERS, /* there are lines of others in it: what is there is not made shorter */
        OURS,        /* nothing but ours: what a crash leaves of it is never read */
};

static int write_all(int fd, const char *data, size_t n, off_t at) {
        ssize_t written = n > 0 ? pwrite(fd, data, n, at) : 0;

        return written < 0 ? -errno : (size_t) written < n ? -ENOSPC : 0;
}

/*
 * Changes the file where it is, from the first byte that differs. 0: it is right now. 1: this is not possible: it is
 * not there, is a link, has other names or another mode, or would be torn.
 */
static int change_file(const char *path, const struct buf *text, mode_t mode, enum how how) {
        _cleanup_close_ int fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        const off_t len = (off_t) text->len;
        char old[CHANGE_MAX];
        struct stat st;
        off_t same = 0;
        int r;

        if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_nlink != 1 || (st.st_mode & 07777) != mode ||
            st.st_size > CHANGE_MAX || len > CHANGE_MAX)
                return 1;
        ssize_t n = pread(fd, old, sizeof(old), 0);
        while (same < n && same < len && old[same] == text->data[same])
                same++;
        if (how == KEEP_OTHERS && st.st_size != len && same < st.st_size)
                return 1;
        r = write_all(fd, text->data + same, (size_t) (len - same), same);
        if (r == 0 && st.st_size > len && ftruncate(fd, len) < 0)
                r = -errno;
        return r;
}

static int write_new(const char *path, const struct buf *text, mode_t mode) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        int r = fd < 0 ? -errno : write_all(fd, text->data, text->len, 0);

        if (r == 0 && fchmod(fd, mode) < 0)
                r = -errno;
        if (r < 0 && fd >= 0)
                unlink(path);
        return r;
}

static int replace_file(const char *path, const struct buf *text, mode_t mode) {
        _cleanup_free_ char *temporary = str_printf("%s.agentiso-new", path);
        int r = temporary ? write_new(temporary, text, mode) : -ENOMEM;

        if (r == -EEXIST && unlink(temporary) == 0) /* of an agent that did not get further */
                r = write_new(temporary, text, mode);
        if (r == 0 && rename(temporary, path) < 0) {
                r = -errno;
                unlink(temporary);
        }
        return r;
}

static int put_file(const char *path, const struct buf *text, mode_t mode, enum how how, struct error *err) {
        int r = change_file(path, text, mode, how);

        if (r != 0)
                r = replace_file(path, text, mode);
        return r < 0 ? error_set_errno(err, r, "Cannot write %s", path) : 0;
}

/* All lines of /etc/hosts but ours, then ours, which is as long whatever the name is. */
static int write_hosts(const char *hostname, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(ETC_FILE_MAX);
        _cleanup_free_ char *old = NULL;
        char *line, *rest;
        int r = file_read_all("/etc/hosts", ETC_FILE_MAX / 2, &old, NULL);

        if (r == -ENOENT)
                r = buf_append_str(&text, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        for (line = old ? strtok_r(old, "\n", &rest) : NULL; r == 0 && line; line = strtok_r(NULL, "\n", &rest))
                if (!strstr(line, HOSTS_MARK))
                        r = buf_printf(&text, "%s\n", line);
        if (r == 0)
                r = buf_printf(&text, "127.0.1.1\t%-*s\t%s\n", HOSTNAME_MAX, hostname, HOSTS_MARK);
        if (r < 0)
                return error_set_errno(err, r, "hostname: /etc/hosts");
        return put_file("/etc/hosts", &text, 0644, KEEP_OTHERS, err);
}

int identity_set_hostname(const char *hostname, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(ETC_FILE_MAX);
        int r;

        if (sethostname(hostname, strlen(hostname)) < 0)
                return error_set_errno(err, errno, "hostname: cannot set \"%s\"", hostname);
        r = buf_printf(&text, "%s\n", hostname);
        if (r < 0)
                return error_set_errno(err, r, "hostname");
        r = put_file("/etc/hostname", &text, 0644, OURS, err);
        return r < 0 ? r : write_hosts(hostname, err);
}

void identity_init(struct agent *a) {
        _cleanup_free_ char *id = NULL;
        _cleanup_close_ int fd = -1;
        size_t len;

        if (file_read_all(BOOT_ID, BOOT_ID_MAX, &id, &len) < 0)
                return;
        fd = open(NEW_BOOT_ID, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
        if (fd >= 0 && write_all(fd, id, len, 0) == 0 && mount(NEW_BOOT_ID, BOOT_ID, NULL, MS_BIND, NULL) == 0)
                a->boot_id_fd = TAKE_FD(fd);
        unlink(NEW_BOOT_ID);
}

static int renew_boot_id(int fd) {
        char id[UUID_LEN + 1];
        int r = fd < 0 ? -ENODEV : uuid_new(id);

        return r < 0 ? r : write_all(fd, id, UUID_LEN, 0); /* in the place of the old one */
}

/* Whether it is another one than before. */
static bool remember_machine_id(struct agent *a, const char *id) {
        LOCK(&a->lock);
        bool other = !str_eq(a->machine_id, id);

        snprintf(a->machine_id, sizeof(a->machine_id), "%s", id);
        return other;
}

int identity_set_machine_id(struct agent *a, const char *id, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(64);
        int r = buf_printf(&text, "%s\n", id);

        if (r < 0)
                return error_set_errno(err, r, "machine_id");
        r = put_file("/etc/machine-id", &text, 0444, OURS, err);
        if (r < 0 || !remember_machine_id(a, id))
                return r;
        r = renew_boot_id(a->boot_id_fd);
        if (r < 0)
                console_say("the machine keeps the boot id of the one it was copied from: %s", strerror(-r));
        return 0;
}

/* Renamed over what is there: a link into a service's folder, as images have it, would lead nowhere. */
int identity_set_dns(const struct configure_args *a, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(4096);
        int r = buf_reserve(&text, 1); /* there may be none */

        for (size_t i = 0; r == 0 && i < a->n_dns; i++)
                r = buf_printf(&text, "nameserver %s\n", a->dns[i]);
        return r < 0 ? error_set_errno(err, r, "dns") : put_file("/etc/resolv.conf", &text, 0644, OURS, err);
}
