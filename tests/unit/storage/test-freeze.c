/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Freezing against crashes and with a real QEMU.
 *
 * A crash is a child process that ends before one of the calls that change files: the first, the second, ... until the
 * operation is through. Then the storage is opened again, as the next daemon does. meson.build lets the calls of the
 * storage come here first (--wrap of the linker).
 */
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/io.h"
#include "storage/disk-fixture.h"

#define D "d0000000-0000-4000-8000-000000000001"
#define E "d0000000-0000-4000-8000-000000000002"
#define N1 "00000000-0000-4000-8000-0000000000a1"
#define N2 "00000000-0000-4000-8000-0000000000a2"
#define CRASHED 99
#define STEPS_MAX 100 /* no operation has as many */

/* --- crashes --- */

static int steps_left = -1; /* -1: no crash */

static unsigned steps_taken;

static void step(void) {
        steps_taken++;
        if (steps_left >= 0 && steps_left-- == 0)
                _exit(CRASHED);
}

#define WRAP(name, parameters, arguments)       \
        int __real_##name parameters;           \
        int __wrap_##name parameters;           \
        int __wrap_##name parameters {          \
                step();                         \
                return __real_##name arguments; \
        }
WRAP(renameat, (int od, const char *o, int nd, const char *n), (od, o, nd, n))
WRAP(unlinkat, (int d, const char *n, int flags), (d, n, flags))
WRAP(symlinkat, (const char *t, int d, const char *n), (t, d, n))
WRAP(fsync, (int fd), (fd))
WRAP(ftruncate64, (int fd, off_t n), (fd, n))

/* Whether fn ended before its n-th change. A failure of it fails the test. */
static bool crash_at(unsigned n, int (*fn)(struct fixture *), struct fixture *f) {
        int status = 0;
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
                steps_left = (int) n;
                _exit(fn(f) < 0 ? 1 : 0);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
                status = -1;
        else
                status = WEXITSTATUS(status);
        CHECK(status == 0 || status == CRASHED);
        return status == CRASHED;
}

/* --- what is looked at --- */

static char *path_of(const struct fixture *f, const char *name) {
        return path_join(f->disks, name);
}

static bool has_disk(struct fixture *f, const char *id) {
        _cleanup_strv_ struct strv ids = {0};
        bool found = false;
        CHECK_INT(storage_list(f->storage, &ids, NULL), 0);
        for (size_t i = 0; i < ids.n; i++)
                found |= str_eq(ids.v[i], id);
        return found;
}

static bool has_node(struct fixture *f, const char *node) {
        struct node_info info;
        return storage_node_info(f->storage, node, &info, NULL) == 0;
}

/* A node of D in which only the first MiB was written. */
static void check_node(struct fixture *f, const char *node) {
        CHECK_INT(clone_disk(f, node, E), 0);
        CHECK(disk_has(f, E, 1, 7));
        CHECK(disk_has(f, E, 2, 0));
        CHECK_INT(storage_destroy(f->storage, E, NULL), 0);
}

/* Takes everything away, as the core does with what has no row; nothing must be left. */
static void check_all_goes(struct fixture *f) {
        if (has_disk(f, D))
                CHECK_INT(storage_destroy(f->storage, D, NULL), 0);
        CHECK(!has_disk(f, D));
        for (int round = 0; round < 3; round++) { /* nodes that stand on each other */
                _cleanup_strv_ struct strv nodes = {0};
                CHECK_INT(storage_node_list(f->storage, &nodes, NULL), 0);
                for (size_t i = 0; i < nodes.n; i++)
                        (void) storage_node_destroy(f->storage, nodes.v[i], NULL);
        }
        CHECK_INT(count_files(f), 0);
}

/* --- a freeze --- */

static enum machine {
        NO_MACHINE,
        STAYS,   /* a machine that does not change over */
        CHANGES, /* one that does, and writes */
        DIES,    /* the same; it is gone when the next daemon comes */
        MACHINES,
} machine; /* of this round; the children know it, too */

static int freeze(struct fixture *f) {
        _cleanup_free_ char *overlay = NULL, *mark = path_join(f->dir, "changed");
        struct op op = op_timeout(FIXTURE_MS);
        int r = storage_freeze_begin(f->storage, D, N1, &overlay, &op, NULL);
        if (r >= 0 && machine >= CHANGES) {
                int left = steps_left;
                steps_left = -1;
                r = qemu_io(overlay, true, "write -P 8 2M 1M");
                if (r >= 0)
                        r = file_write_atomic(mark, "", 0, 0600);
                steps_left = left;
        }
        return r < 0 ? r : storage_freeze_end(f->storage, D, N1, machine != STAYS, NULL);
}

static bool changed_over(const struct fixture *f) {
        _cleanup_free_ char *mark = path_join(f->dir, "changed");
        return access(mark, F_OK) == 0;
}

/* What the machine has open when the next daemon asks. */
static const char *open_file(const struct fixture *f) {
        switch (machine) {
        case STAYS:
                return "/somewhere/" D ".qcow2";
        case CHANGES:
                return changed_over(f) ? "/somewhere/" D "." N1 ".over.qcow2" : "/somewhere/" D ".qcow2";
        default:
                return NULL;
        }
}

static int recover(struct fixture *f) {
        return storage_freeze_recover(f->storage, D, open_file(f), NULL);
}

/* After the recovery: nothing that was written is lost, and the node is there if, and only if, the disk stands on it.
 */
static void check_recovered(struct fixture *f, bool ended) {
        _cleanup_free_ char *path = disk_path(f, D), *first = path_of(f, D ".qcow2");
        bool changed = changed_over(f), node = has_node(f, N1);
        CHECK(disk_has(f, D, 1, 7));
        CHECK(disk_has(f, D, 2, changed ? 8 : 0));
        CHECK_INT(node, !str_eq(path, first));
        if (machine == STAYS || (machine == CHANGES && !changed))
                CHECK(!node);
        if (changed || (ended && machine == NO_MACHINE))
                CHECK(node);
        if (node)
                check_node(f, N1);
        CHECK(has_disk(f, D) && !has_disk(f, N1));
        /* It goes on as if nothing had been. */
        CHECK_INT(freeze_disk(f, D, N2), 0);
        CHECK(disk_has(f, D, 1, 7));
}

static void prepare(struct fixture *f) {
        _cleanup_free_ char *mark = path_join(f->dir, "changed");
        unlink(mark);
        CHECK_INT(create_disk(f, D), 0);
        CHECK_INT(disk_write(f, D, 1, 7), 0);
}

static void test_crash_in_freeze(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        for (machine = NO_MACHINE; machine < MACHINES; machine++) {
                unsigned n = 0;
                for (bool crashed = true; crashed && n < STEPS_MAX; n++) {
                        prepare(&f);
                        crashed = crash_at(n, freeze, &f);
                        REQUIRE(fixture_reopen(&f) == 0);
                        CHECK_INT(recover(&f), 0);
                        CHECK_INT(recover(&f), 0);
                        check_recovered(&f, !crashed);
                        check_all_goes(&f);
                        if (!tap_ok) {
                                printf("#   machine %d, step %u\n", (int) machine, n);
                                return;
                        }
                }
                CHECK(n > 8 && n < STEPS_MAX);
        }
}

static int begin_only(struct fixture *f) {
        _cleanup_free_ char *overlay = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        return storage_freeze_begin(f->storage, D, N1, &overlay, &op, NULL);
}

/* The daemon dies once more, while it recovers. */
static void test_crash_in_recovery(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        for (machine = NO_MACHINE; machine < MACHINES; machine++) {
                unsigned n = 0;
                for (bool crashed = true; crashed && n < STEPS_MAX; n++) {
                        _cleanup_free_ char *overlay = path_of(&f, D "." N1 ".over.qcow2"),
                                            *mark = path_join(f.dir, "changed");
                        prepare(&f);
                        REQUIRE(begin_only(&f) == 0);
                        if (machine >= CHANGES)
                                REQUIRE(qemu_io(overlay, true, "write -P 8 2M 1M") == 0 &&
                                        file_write_atomic(mark, "", 0, 0600) == 0);
                        REQUIRE(fixture_reopen(&f) == 0);
                        crashed = crash_at(n, recover, &f);
                        REQUIRE(fixture_reopen(&f) == 0);
                        CHECK_INT(recover(&f), 0);
                        check_recovered(&f, true);
                        check_all_goes(&f);
                }
                CHECK(n > 2 && n < STEPS_MAX);
        }
}

/* --- the other operations --- */

static int destroy_disk(struct fixture *f) {
        return storage_destroy(f->storage, D, NULL);
}
static int destroy_node(struct fixture *f) {
        return storage_node_destroy(f->storage, N1, NULL);
}
static int make_clone(struct fixture *f) {
        return clone_disk(f, N1, E);
}

static int make_plain(struct fixture *f) {
        return create_disk(f, D);
}
static int make_begun(struct fixture *f) {
        int r = create_disk(f, D);
        return r < 0 ? r : begin_only(f);
}
/* The node has its link, the disk has not. */
static int make_half(struct fixture *f) {
        _cleanup_free_ char *link = path_of(f, N1 ".node");
        int r = make_begun(f);
        return r < 0 ? r : symlink(D ".qcow2", link) < 0 ? -errno : 0;
}
static int make_frozen(struct fixture *f) {
        int r = create_disk(f, D);
        if (r >= 0)
                r = disk_write(f, D, 1, 7);
        return r < 0 ? r : freeze_disk(f, D, N1);
}
/* Frozen twice, and once more begun. */
static int make_chain(struct fixture *f) {
        _cleanup_free_ char *overlay = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        int r = make_frozen(f);
        if (r >= 0)
                r = freeze_disk(f, D, N2);
        return r < 0 ? r : storage_freeze_begin(f->storage, D, "third", &overlay, &op, NULL);
}
static int make_lonely_node(struct fixture *f) {
        int r = make_frozen(f);
        return r < 0 ? r : destroy_disk(f);
}

static void test_crash_in_destroy(void) {
        static const struct {
                int (*make)(struct fixture *);
                bool node; /* N1 is one that was finished */
        } disks[] = {
                {make_plain, false}, {make_begun, false}, {make_half, false}, {make_frozen, true}, {make_chain, true}};
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        for (size_t i = 0; i < ARRAY_SIZE(disks); i++) {
                unsigned n = 0;
                for (bool crashed = true; crashed && n < STEPS_MAX; n++) {
                        REQUIRE(disks[i].make(&f) == 0);
                        crashed = crash_at(n, destroy_disk, &f);
                        REQUIRE(fixture_reopen(&f) == 0);
                        CHECK(crashed || !has_disk(&f, D));
                        if (has_disk(&f, D))
                                CHECK_INT(destroy_disk(&f), 0);
                        CHECK_INT(has_node(&f, N1), disks[i].node);
                        if (disks[i].node)
                                check_node(&f, N1);
                        else
                                CHECK_INT(count_files(&f), 0);
                        check_all_goes(&f);
                }
                CHECK(n > 1 && n < STEPS_MAX);
        }
}

static void test_crash_in_node_destroy(void) {
        static int (*const makes[])(struct fixture *) = {make_lonely_node, make_half};
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        unsigned n = 0;
        for (bool crashed = true; crashed && n < STEPS_MAX; n++) {
                REQUIRE(makes[0](&f) == 0);
                crashed = crash_at(n, destroy_node, &f);
                REQUIRE(fixture_reopen(&f) == 0);
                if (has_disk(&f, D)) /* what is left of its file may be told as that of the disk that began with it */
                        CHECK_INT(destroy_disk(&f), 0);
                CHECK_INT(destroy_node(&f), 0);
                CHECK_INT(count_files(&f), 0);
        }
        CHECK(n > 2 && n < STEPS_MAX);

        /* A node that was made by half: the freeze goes first, and the disk stays. */
        REQUIRE(makes[1](&f) == 0);
        CHECK_INT(destroy_node(&f), -EEXIST);
        _cleanup_free_ char *overlay = path_of(&f, D "." N1 ".over.qcow2");
        REQUIRE(unlink(overlay) == 0);
        CHECK_INT(destroy_node(&f), 0);
        CHECK(!has_node(&f, N1) && has_disk(&f, D));
        CHECK(disk_has(&f, D, 1, 0));
        REQUIRE(fixture_reopen(&f) == 0);
        check_all_goes(&f);
}

static void test_crash_in_clone(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        unsigned n = 0;
        for (bool crashed = true; crashed && n < STEPS_MAX; n++) {
                REQUIRE(make_frozen(&f) == 0);
                unsigned before = count_files(&f);
                crashed = crash_at(n, make_clone, &f);
                REQUIRE(fixture_reopen(&f) == 0);
                CHECK(crashed || has_disk(&f, E));
                if (has_disk(&f, E))
                        check_node(&f, N1); /* clones anew, over what is there */
                CHECK_INT(count_files(&f), before);
                check_all_goes(&f);
        }
        CHECK(n > 4 && n < STEPS_MAX);
}

/* --- recovery --- */

/* The machine has something open that is no file of this disk: nothing may be thrown away for that. */
static void test_strange_open_file(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        static const char *const files[] = {"", "/x/" E ".qcow2", "/x/" D "." N2 ".over.qcow2", "json:{\"file\": {}}"};
        REQUIRE(make_begun(&f) == 0);
        unsigned before = count_files(&f);
        for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                CHECK_INT(storage_freeze_recover(f.storage, D, files[i], &err), -EEXIST);
                CHECK_INT(err.code, ERROR_CONFLICT);
                CHECK(strstr(error_message(&err), D));
                CHECK_INT(count_files(&f), before);
        }
        CHECK_INT(storage_freeze_recover(f.storage, D, D ".qcow2", NULL), 0);
        CHECK(!has_node(&f, N1));
        /* With nothing under way nobody asks. */
        CHECK_INT(storage_freeze_recover(f.storage, D, "/x/" E ".qcow2", NULL), 0);
}

static void test_one_freeze_at_a_time(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *overlay = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        REQUIRE(make_begun(&f) == 0);
        unsigned before = count_files(&f);
        CHECK_INT(storage_freeze_begin(f.storage, D, N2, &overlay, &op, &err), -EEXIST);
        CHECK(strstr(error_message(&err), D) && strstr(error_message(&err), N1) && err.hint);
        CHECK_INT(storage_freeze_begin(f.storage, D, N1, &overlay, &op, &err), -EEXIST);
        CHECK_INT(count_files(&f), before);
        CHECK_INT(storage_freeze_end(f.storage, D, N2, true, &err), -ENOENT);
        CHECK(strstr(error_message(&err), N2));
        CHECK_INT(storage_freeze_end(f.storage, D, N1, true, &err), 0);
        CHECK_INT(storage_freeze_begin(f.storage, D, N1, &overlay, &op, &err), -EEXIST);
        CHECK(strstr(error_message(&err), N1) && err.hint);
        /* Somebody has removed the node's link: the overlay that the disk is in is not written anew. */
        _cleanup_free_ char *link = path_of(&f, N1 ".node");
        REQUIRE(disk_write(&f, D, 1, 7) == 0 && unlink(link) == 0);
        CHECK_INT(storage_freeze_begin(f.storage, D, N1, &overlay, &op, &err), -EEXIST);
        CHECK(disk_has(&f, D, 1, 7));
        CHECK(!overlay);
}

static void test_end_may_be_repeated(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        REQUIRE(make_begun(&f) == 0);
        CHECK_INT(storage_freeze_end(f.storage, D, N1, false, NULL), 0);
        CHECK_INT(storage_freeze_end(f.storage, D, N1, false, NULL), 0);
        CHECK_INT(count_files(&f), 1);
        REQUIRE(begin_only(&f) == 0);
        CHECK_INT(storage_freeze_end(f.storage, D, N1, true, NULL), 0);
        CHECK_INT(storage_freeze_end(f.storage, D, N1, true, NULL), 0);
        /* Too late: other things may stand on it by now. */
        CHECK_INT(storage_freeze_end(f.storage, D, N1, false, NULL), -EEXIST);
        CHECK(has_node(&f, N1));
        REQUIRE(freeze_disk(&f, D, N2) == 0);
        CHECK_INT(storage_freeze_end(f.storage, D, N1, false, NULL), -EEXIST);
        CHECK(has_node(&f, N1) && has_node(&f, N2));
        CHECK(disk_has(&f, D, 1, 0));
        check_all_goes(&f);
}

/* The end of a freeze is two renames and what makes them last: nothing that a full file system could refuse. */
static void test_end_makes_nothing(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        REQUIRE(make_begun(&f) == 0);
        steps_taken = 0;
        CHECK_INT(storage_freeze_end(f.storage, D, N1, true, NULL), 0);
        CHECK_INT(steps_taken, 4);
}

/* A storage with an overlay too many was not left so by us: it is not guessed which one has what was written. */
static void test_two_overlays(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *one = path_of(&f, D "." N1 ".over.qcow2"), *two = path_of(&f, D "." N2 ".over.qcow2");
        REQUIRE(make_begun(&f) == 0);
        REQUIRE(link(one, two) == 0);
        CHECK_INT(storage_freeze_recover(f.storage, D, NULL, &err), -EEXIST);
        CHECK(access(one, F_OK) == 0 && access(two, F_OK) == 0);
        CHECK_INT(storage_freeze_recover(f.storage, D, two, NULL), 0);
        CHECK(!has_node(&f, N1) && has_node(&f, N2));
        check_all_goes(&f);
}

/* The disk of a begun freeze was removed on the host: what is left goes with the next destroy. */
static void test_overlay_without_disk(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_free_ char *first = path_of(&f, D ".qcow2");
        REQUIRE(make_begun(&f) == 0);
        REQUIRE(unlink(first) == 0);
        REQUIRE(fixture_reopen(&f) == 0);
        CHECK(has_disk(&f, D));
        CHECK_INT(destroy_disk(&f), 0);
        CHECK_INT(count_files(&f), 0);
}

/* --- with QEMU --- */

struct qemu {
        pid_t pid;
        int fd;
        char node[32]; /* QEMU's name for the disk now */
};

static void qemu_end(struct qemu *q) {
        close_fd(q->fd);
        if (q->pid > 0)
                process_end(q->pid, 0);
}
#define _cleanup_qemu_ _cleanup_(qemu_end)

static int read_line(struct qemu *q, char *line, size_t max) {
        struct op op = op_timeout(FIXTURE_MS);
        for (size_t n = 0; n + 1 < max; n++) {
                int r = read_full(q->fd, line + n, 1, &op);
                if (r < 0)
                        return r;
                line[n + 1] = 0;
                if (line[n] == '\n')
                        return 0;
        }
        return -EFBIG;
}

/* One command; expected is a part of its answer. */
static int qmp(struct qemu *q, const char *expected, const char *fmt, ...) _printf_(3, 4);
static int qmp(struct qemu *q, const char *expected, const char *fmt, ...) {
        char command[2048], line[8192] = "";
        struct op op = op_timeout(FIXTURE_MS);
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(command, sizeof(command), fmt, ap);
        va_end(ap);
        int r = write_full(q->fd, command, strlen(command), &op);
        do
                r = r < 0 ? r : read_line(q, line, sizeof(line));
        while (r >= 0 && !str_starts_with(line, "{\"return\"") && !str_starts_with(line, "{\"error\""));
        if (r >= 0 && strstr(line, expected))
                return 0;
        printf("# %s -> %s\n", command, line);
        return r < 0 ? r : -EIO;
}

static int qemu_start(struct qemu *q, const char *disk) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        q->fd = pair[0];
        _cleanup_close_ int theirs = pair[1];
        _cleanup_free_ char *file = str_printf("driver=file,node-name=disk-file,filename=%s,discard=unmap", disk);
        char *argv[] = {(char *) "qemu-system-x86_64",
                        (char *) "-M",
                        (char *) "none",
                        (char *) "-nodefaults",
                        (char *) "-display",
                        (char *) "none",
                        (char *) "-blockdev",
                        file,
                        (char *) "-blockdev",
                        (char *) "driver=qcow2,node-name=disk,file=disk-file,discard=unmap",
                        (char *) "-chardev",
                        (char *) "socket,id=qmp,fd=3",
                        (char *) "-mon",
                        (char *) "chardev=qmp,mode=control",
                        NULL};
        const struct fd_map fds[] = {{2, 2}, {theirs, 3}};
        const struct spawn spawn = {.argv = argv, .fds = fds, .n_fds = ARRAY_SIZE(fds)};
        int r = process_spawn(&spawn, &q->pid, NULL);
        snprintf(q->node, sizeof(q->node), "disk");
        return r < 0 ? r : qmp(q, "{}", "{\"execute\": \"qmp_capabilities\"}\n");
}

static int qemu_write(struct qemu *q, unsigned mib, unsigned byte) {
        return qmp(q, "{\"return\": \"\"}",
                   "{\"execute\": \"human-monitor-command\", \"arguments\": {\"command-line\": "
                   "\"qemu-io %s \\\"write -P %u %uM 1M\\\"\"}}\n",
                   q->node, byte, mib);
}

/* It writes back what it has. */
static int qemu_quit(struct qemu *q) {
        struct op op = op_timeout(FIXTURE_MS);
        struct process_result result;
        int r = qmp(q, "{}", "{\"execute\": \"quit\"}\n");
        if (r >= 0)
                r = process_wait(q->pid, &op, &result);
        if (r >= 0)
                q->pid = 0;
        return r < 0 ? r : result.exit_code == 0 ? 0 : -EIO;
}

/* As vm_snapshot() does it. */
static int qemu_change_over(struct qemu *q, const char *overlay, const char *node) {
        int r = qmp(q, "{}",
                    "{\"execute\": \"blockdev-add\", \"arguments\": {\"driver\": \"qcow2\", \"node-name\": \"%s\", "
                    "\"backing\": null, \"file\": {\"driver\": \"file\", \"filename\": \"%s\"}}}\n",
                    node, overlay);
        if (r >= 0)
                r = qmp(q, "{}",
                        "{\"execute\": \"blockdev-snapshot\", \"arguments\": {\"node\": \"%s\", \"overlay\": "
                        "\"%s\"}}\n",
                        q->node, node);
        snprintf(q->node, sizeof(q->node), "%s", node);
        return r;
}

/* A machine that runs on: each node can be opened by others at once, which QEMU's locks forbid as long as the machine
 * may write to its file. */
static void test_running_machine(void) {
        enum { ROUNDS = 4 };
        _cleanup_fixture_ struct fixture f = {0};
        _cleanup_qemu_ struct qemu q = {.fd = -1};
        REQUIRE(fixture_make(&f) == 0 && create_disk(&f, D) == 0);
        _cleanup_free_ char *disk = disk_path(&f, D), *last = NULL;
        REQUIRE(qemu_start(&q, disk) == 0);
        for (unsigned i = 0; i < ROUNDS; i++) {
                char node[32], clone_id[32];
                struct op op = op_timeout(FIXTURE_MS);
                snprintf(node, sizeof(node), "node-%u", i);
                snprintf(clone_id, sizeof(clone_id), "clone-%u", i);
                free(TAKE_PTR(last));
                REQUIRE(qemu_write(&q, 5, 10 + i) == 0);
                REQUIRE(storage_freeze_begin(f.storage, D, node, &last, &op, NULL) == 0);
                REQUIRE(qemu_change_over(&q, last, node) == 0);
                REQUIRE(storage_freeze_end(f.storage, D, node, true, NULL) == 0);
                REQUIRE(qemu_write(&q, 6, 20 + i) == 0);
                REQUIRE(clone_disk(&f, node, clone_id) == 0);
                CHECK(disk_has(&f, clone_id, 5, (unsigned char) (10 + i)));
                CHECK(disk_has(&f, clone_id, 6, i == 0 ? 0 : (unsigned char) (20 + i - 1)));
                CHECK_INT(disk_write(&f, clone_id, 5, 99), 0);
        }
        /* The daemon dies after the machine has changed over, and the next one asks it. */
        struct op op = op_timeout(FIXTURE_MS);
        free(TAKE_PTR(last));
        REQUIRE(storage_freeze_begin(f.storage, D, N1, &last, &op, NULL) == 0);
        REQUIRE(qemu_change_over(&q, last, "last") == 0);
        REQUIRE(qemu_write(&q, 7, 77) == 0);
        REQUIRE(fixture_reopen(&f) == 0);
        CHECK_INT(storage_freeze_recover(f.storage, D, last, NULL), 0);
        REQUIRE(qemu_write(&q, 8, 88) == 0);
        REQUIRE(qemu_quit(&q) == 0);
        CHECK(disk_has(&f, D, 5, 10 + ROUNDS - 1));
        CHECK(disk_has(&f, D, 6, 20 + ROUNDS - 1));
        CHECK(disk_has(&f, D, 7, 77));
        CHECK(disk_has(&f, D, 8, 88));
        REQUIRE(clone_disk(&f, N1, E) == 0);
        CHECK(disk_has(&f, E, 6, 20 + ROUNDS - 1) && disk_has(&f, E, 7, 0));
}

int main(void) {
        RUN(test_crash_in_freeze);
        RUN(test_crash_in_recovery);
        RUN(test_crash_in_destroy);
        RUN(test_crash_in_node_destroy);
        RUN(test_crash_in_clone);
        RUN(test_strange_open_file);
        RUN(test_one_freeze_at_a_time);
        RUN(test_end_may_be_repeated);
        RUN(test_end_makes_nothing);
        RUN(test_two_overlays);
        RUN(test_overlay_without_disk);
        RUN(test_running_machine);
        return tap_done();
}
