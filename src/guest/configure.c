/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What makes a machine this one and no other: names, clock, randomness, network. Also for a copy of a machine that goes
 * on from a memory image. The order is by importance: no other part runs on with old randomness.
 */

#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "base/file.h"
#include "base/str.h"
#include "guest/agent.h"
#include "guest/args.h"
#include "guest/netlink.h"

#define CARD_MS 5000
#define ETC_FILE_MAX (1024UL * 1024)
#define HOSTS_MARK "# agentiso"

static int set_entropy(const char *base64, struct error *err) {
        _cleanup_buf_ struct buf bytes = BUF_INIT(ARGS_ENTROPY_MAX);
        _cleanup_free_ struct rand_pool_info *info = NULL;
        _cleanup_close_ int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
        int r = base64_decode(&bytes, base64, strlen(base64));

        if (r < 0)
                return error_set(err, ERROR_INVALID_ARGUMENT, "entropy is not base64");
        info = malloc(sizeof(*info) + bytes.len);
        if (!info)
                return error_set_errno(err, ENOMEM, "entropy");
        info->entropy_count = (int) bytes.len * 8;
        info->buf_size = (int) bytes.len;
        if (bytes.len > 0)
                memcpy(info->buf, bytes.data, bytes.len);
        if (fd < 0 || ioctl(fd, RNDADDENTROPY, info) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
                return error_set_errno(err, errno, "entropy: cannot seed the random number generator");
        return 0;
}

static int set_clock(int64_t realtime_ns, struct error *err) {
        struct timespec ts = {.tv_sec = realtime_ns / NSEC_PER_SEC, .tv_nsec = realtime_ns % NSEC_PER_SEC};

        if (clock_settime(CLOCK_REALTIME, &ts) < 0)
                return error_set_errno(err, errno, "realtime_ns: cannot set the clock");
        return 0;
}

static int put_file(const char *path, const struct buf *text, mode_t mode, struct error *err) {
        int r = file_write_atomic(path, text->data ? text->data : "", text->len, mode);

        return r < 0 ? error_set_errno(err, r, "Cannot write %s", path) : 0;
}

/* All lines of /etc/hosts but ours, then ours. */
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
                r = buf_printf(&text, "127.0.1.1\t%s\t%s\n", hostname, HOSTS_MARK);
        if (r < 0)
                return error_set_errno(err, r, "hostname: /etc/hosts");
        return put_file("/etc/hosts", &text, 0644, err);
}

static int set_hostname(const char *hostname, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(ETC_FILE_MAX);
        int r;

        if (sethostname(hostname, strlen(hostname)) < 0)
                return error_set_errno(err, errno, "hostname: cannot set \"%s\"", hostname);
        r = buf_printf(&text, "%s\n", hostname);
        if (r < 0)
                return error_set_errno(err, r, "hostname");
        r = put_file("/etc/hostname", &text, 0644, err);
        return r < 0 ? r : write_hosts(hostname, err);
}

static int set_machine_id(const char *id, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(64);
        int r = buf_printf(&text, "%s\n", id);

        return r < 0 ? error_set_errno(err, r, "machine_id") : put_file("/etc/machine-id", &text, 0444, err);
}

/* Renamed over what is there: a link into a service's folder, as images have it, would lead nowhere. */
static int set_dns(const struct configure_args *a, struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(4096);
        int r = 0;

        for (size_t i = 0; r == 0 && i < a->n_dns; i++)
                r = buf_printf(&text, "nameserver %s\n", a->dns[i]);
        return r < 0 ? error_set_errno(err, r, "dns") : put_file("/etc/resolv.conf", &text, 0644, err);
}

int handle_configure(struct request *req, struct error *err) {
        struct configure_args a;
        struct op op = op_timeout(CARD_MS);
        int r = configure_args_parse(req->args, &a, err);

        if (r < 0)
                return r;
        if ((a.hostname || a.machine_id || a.has_dns) && !agent_root_mounted(req->agent))
                return error_set(
                        err, ERROR_NOT_RUNNING,
                        "hostname, machine_id and dns are files in the root file system: mount_root comes first");
        if (a.entropy && (r = set_entropy(a.entropy, err)) < 0)
                return r;
        if (a.realtime_ns && (r = set_clock(a.realtime_ns, err)) < 0)
                return r;
        if (a.hostname && (r = set_hostname(a.hostname, err)) < 0)
                return r;
        if (a.machine_id && (r = set_machine_id(a.machine_id, err)) < 0)
                return r;
        if (a.has_network && (r = net_configure(&a.network, &op, err)) < 0)
                return r;
        if (a.has_dns && (r = set_dns(&a, err)) < 0)
                return r;
        return 0;
}
