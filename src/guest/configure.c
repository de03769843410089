/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What makes a machine this one and no other: clock, randomness, names, network. Also for a copy of a machine that goes
 * on from a saved state.
 *
 * The clock comes first and is read last, so that the host can tell from both how long its question was under way. The
 * new randomness comes next: no other part runs on with old. The secret comes last: a host that did not get everything
 * tries again with the one that it has.
 *
 * Randomness. RNDADDENTROPY mixes the bytes into the kernel's pool, RNDRESEEDCRNG makes a new key from that pool and
 * outdates what each CPU derived from the old one (crng_reseed()); it fails while the generator was never seeded.
 * Success of both is the proof that there is: the kernel tells neither the key nor how often there was a new one, and
 * reading other numbers than before proves nothing. From then on getrandom(2), /dev/urandom,
 * /proc/sys/kernel/random/uuid and AT_RANDOM differ from those of every other copy. What a process has made of older
 * numbers, and keeps to itself, is out of reach: Python's random, OpenSSL's generator in a process that ran before.
 */

#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "base/str.h"
#include "guest/agent.h"
#include "guest/args.h"
#include "guest/connection.h"
#include "guest/identity.h"
#include "guest/netlink.h"

#define CARD_MS 5000

static int reseed(const struct buf *bytes, struct error *err) {
        const size_t size = sizeof(struct rand_pool_info) + bytes->len;
        _cleanup_free_ struct rand_pool_info *info = malloc(size);
        _cleanup_close_ int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
        int r = 0;

        if (!info)
                return error_set_errno(err, ENOMEM, "entropy");
        info->entropy_count = (int) bytes->len * 8;
        info->buf_size = (int) bytes->len;
        if (bytes->len > 0)
                memcpy(info->buf, bytes->data, bytes->len);
        if (fd < 0 || ioctl(fd, RNDADDENTROPY, info) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
                r = error_set_errno(err, errno, "entropy: cannot seed the random number generator");
        explicit_bzero(info, size);
        return r;
}

static int set_entropy(const char *base64, bool *ret_reseeded, struct error *err) {
        _cleanup_buf_ struct buf bytes = BUF_INIT(ARGS_ENTROPY_MAX);
        int r = buf_reserve(&bytes, strlen(base64));

        if (r < 0)
                return error_set_errno(err, r, "entropy");
        if (base64_decode(&bytes, base64, strlen(base64)) < 0)
                return error_set(err, ERROR_INVALID_ARGUMENT, "entropy is not base64");
        r = reseed(&bytes, err);
        *ret_reseeded = r == 0 && bytes.len >= WIRE_ENTROPY_MIN;
        if (bytes.len > 0)
                explicit_bzero(bytes.data, bytes.len);
        return r;
}

static int set_clock(int64_t realtime_ns, struct error *err) {
        struct timespec ts = {.tv_sec = realtime_ns / NSEC_PER_SEC, .tv_nsec = realtime_ns % NSEC_PER_SEC};

        if (clock_settime(CLOCK_REALTIME, &ts) < 0)
                return error_set_errno(err, errno, "realtime_ns: cannot set the clock");
        return 0;
}

static int set_names(struct agent *agent, const struct configure_args *a, struct error *err) {
        int r = 0;

        if (a->hostname)
                r = identity_set_hostname(a->hostname, err);
        if (r == 0 && a->machine_id)
                r = identity_set_machine_id(agent, a->machine_id, err);
        if (r == 0 && a->has_dns)
                r = identity_set_dns(a, err);
        return r;
}

/* ---- the network, while the names are written: nothing of one is needed for the other ---- */

struct network {
        struct work work;
        const struct net_args *args;
        int initramfs_fd;
        int r;
        struct error err;
        pthread_mutex_t lock; /* guards done */
        pthread_cond_t changed;
        bool done;
};

static void network_main(struct work *work) {
        struct network *n = (struct network *) work; /* its first member */
        struct op op = op_timeout(CARD_MS);

        n->r = net_configure(n->args, n->initramfs_fd, &op, &n->err);
        LOCK(&n->lock);
        n->done = true;
        pthread_cond_signal(&n->changed);
}

static void network_begin(struct network *n, struct agent *agent, const struct net_args *args) {
        *n = (struct network){.work = {.run = network_main}, .args = args, .initramfs_fd = agent->initramfs_fd};
        pthread_mutex_init(&n->lock, NULL);
        cond_init(&n->changed);
        if (workers_run(&agent->request_workers, &n->work) < 0)
                network_main(&n->work);
}

static int network_end(struct network *n, struct error *err) {
        pthread_mutex_lock(&n->lock);
        while (!n->done)
                cond_wait_until(&n->changed, &n->lock, DEADLINE_NEVER);
        pthread_mutex_unlock(&n->lock);
        pthread_cond_destroy(&n->changed);
        pthread_mutex_destroy(&n->lock);
        error_move(err, &n->err);
        return n->r;
}

static int set_names_and_network(struct agent *agent, const struct configure_args *a, struct error *err) {
        _cleanup_error_ struct error names_err = ERROR_INIT;
        struct network n;
        int r, names;

        if (!a->has_network)
                return set_names(agent, a, err);
        network_begin(&n, agent, &a->network);
        names = set_names(agent, a, &names_err);
        r = network_end(&n, err);
        if (names < 0)
                error_move(err, &names_err);
        return names < 0 ? names : r;
}

static int answer(struct request *req, bool reseeded) {
        struct timespec now;
        int r = json_put(req->reply, "reseeded", json_boolean(reseeded));

        clock_gettime(CLOCK_REALTIME, &now);
        r |= json_put(req->reply, "realtime_ns", json_integer(now.tv_sec * NSEC_PER_SEC + now.tv_nsec));
        return r < 0 ? -ENOMEM : 0;
}

int handle_configure(struct request *req, struct error *err) {
        struct configure_args a;
        bool reseeded = false;
        int r = configure_args_parse(req->args, &a, err);

        if (r < 0)
                return r;
        if ((a.hostname || a.machine_id || a.has_dns) && !agent_root_mounted(req->agent))
                return error_set(
                        err, ERROR_NOT_RUNNING,
                        "hostname, machine_id and dns are files in the root file system: mount_root comes first");
        if (a.realtime_ns && (r = set_clock(a.realtime_ns, err)) < 0)
                return r;
        if (a.entropy && (r = set_entropy(a.entropy, &reseeded, err)) < 0)
                return r;
        (void) freezer_thaw(&req->agent->freezer);
        if ((r = set_names_and_network(req->agent, &a, err)) < 0)
                return r;
        if (a.session)
                connection_set_session(req->connection, a.session);
        return answer(req, reseeded);
}
