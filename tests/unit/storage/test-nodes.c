/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes and clones: contents, sizes, who stands on whom, and what goes when. QEMU's own tools read and write. */
#include "base/thread.h"
#include "storage/disk-fixture.h"

#define D "d0000000-0000-4000-8000-000000000001"
#define E "d0000000-0000-4000-8000-000000000002"
#define N1 "00000000-0000-4000-8000-0000000000a1"
#define N2 "00000000-0000-4000-8000-0000000000a2"

static int remove_in(const struct fixture *f, const char *name) {
        _cleanup_free_ char *path = path_join(f->disks, name);
        return unlink(path) < 0 ? -errno : 0;
}

static bool is_there(const struct fixture *f, const char *name) {
        _cleanup_free_ char *path = path_join(f->disks, name);
        return faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static unsigned count_in(const struct fixture *f, const char *folder) {
        _cleanup_free_ char *path = path_join(f->disks, folder);
        DIR *d = opendir(path);
        unsigned n = 0;
        for (struct dirent *e; d && (e = readdir(d));)
                n += e->d_name[0] != '.';
        if (d)
                closedir(d);
        return n;
}

static unsigned count_ids(struct fixture *f, int (*list)(struct storage *, struct strv *, struct error *)) {
        _cleanup_strv_ struct strv ids = {0};
        return list(f->storage, &ids, NULL) < 0 ? 9999 : (unsigned) ids.n;
}

/* Ten snapshots of one disk, each with what was written before it and nothing of what came later. */
static void test_chain(void) {
        enum { LENGTH = 10, SHARED = 100 };
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        char node[40], clone[40];
        REQUIRE(create_disk(&f, D) == 0);
        for (unsigned i = 0; i < LENGTH; i++) {
                snprintf(node, sizeof(node), "node-%u", i);
                REQUIRE(disk_write(&f, D, 10 + i, (unsigned char) (i + 1)) == 0);
                REQUIRE(disk_write(&f, D, SHARED, (unsigned char) (i + 1)) == 0);
                REQUIRE(freeze_disk(&f, D, node) == 0);
        }
        CHECK_INT(disk_write(&f, D, SHARED, 99), 0);
        CHECK_INT(count_ids(&f, storage_list), 1);
        CHECK_INT(count_ids(&f, storage_node_list), LENGTH);

        for (unsigned i = 0; i < LENGTH; i++) {
                snprintf(node, sizeof(node), "node-%u", i);
                snprintf(clone, sizeof(clone), "clone-%u", i);
                REQUIRE(clone_disk(&f, node, clone) == 0);
                for (unsigned k = 0; k < LENGTH; k++)
                        CHECK(disk_has(&f, clone, 10 + k, k <= i ? (unsigned char) (k + 1) : 0));
                CHECK(disk_has(&f, clone, SHARED, (unsigned char) (i + 1)));
                /* What is written to a clone shows nowhere else. */
                CHECK_INT(disk_write(&f, clone, SHARED, (unsigned char) (200 + i)), 0);
        }
        for (unsigned i = 0; i < LENGTH; i++) {
                snprintf(clone, sizeof(clone), "clone-%u", i);
                CHECK(disk_has(&f, clone, SHARED, (unsigned char) (200 + i)));
        }
        CHECK(disk_has(&f, D, SHARED, 99));
        CHECK(disk_has(&f, D, 10, 1));
}

/* The whole of a clone is what the disk was, byte for byte. */
static void test_clone_is_the_same(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        REQUIRE(create_disk(&f, D) == 0 && disk_write(&f, D, 1, 7) == 0 && disk_write(&f, D, 1023, 8) == 0);
        _cleanup_free_ char *before = path_join(f.dir, "before.raw"), *source = disk_path(&f, D), *clone = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        char *convert[] = {
                (char *) "qemu-img", (char *) "convert", (char *) "-O", (char *) "raw", source, before, NULL};
        REQUIRE(process_run(convert, &op, NULL, NULL, NULL) == 0);
        REQUIRE(freeze_disk(&f, D, N1) == 0 && disk_write(&f, D, 1, 9) == 0 && clone_disk(&f, N1, E) == 0);
        clone = disk_path(&f, E);
        char *compare[] = {(char *) "qemu-img", (char *) "compare", (char *) "-f", (char *) "raw", before, clone, NULL};
        CHECK_INT(process_run(compare, &op, NULL, NULL, NULL), 0);
        char *check[] = {(char *) "qemu-img", (char *) "check", clone, NULL};
        CHECK_INT(process_run(check, &op, NULL, NULL, NULL), 0);
}

static void test_freeze_changes_the_path(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        REQUIRE(create_disk(&f, D) == 0);
        _cleanup_free_ char *before = disk_path(&f, D), *overlay = NULL, *during = NULL, *after = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        CHECK_INT(storage_freeze_begin(f.storage, D, N1, &overlay, &op, NULL), 0);
        REQUIRE(overlay && overlay[0] == '/');
        during = disk_path(&f, D);
        CHECK_STR(during, before);
        CHECK_INT(storage_freeze_end(f.storage, D, N1, true, NULL), 0);
        after = disk_path(&f, D);
        CHECK_STR(after, overlay);
        /* A file keeps its name for good: a machine may open it by that again. */
        CHECK(access(before, F_OK) == 0);
}

static void test_sizes(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op_timeout(FIXTURE_MS);
        struct node_info first, second;
        struct disk_info disk = {0};
        REQUIRE(create_disk(&f, D) == 0);
        REQUIRE(disk_write(&f, D, 1, 7) == 0 && freeze_disk(&f, D, N1) == 0);
        REQUIRE(disk_write(&f, D, 2, 8) == 0 && disk_write(&f, D, 3, 8) == 0 && freeze_disk(&f, D, N2) == 0);

        REQUIRE(storage_node_info(f.storage, N1, &first, &err) == 0);
        REQUIRE(storage_node_info(f.storage, N2, &second, &err) == 0);
        CHECK_INT(first.virtual_bytes, GIB);
        CHECK(first.used_bytes > MIB && first.used_bytes < 2 * MIB);
        CHECK(second.used_bytes > 2 * MIB && second.used_bytes < 3 * MIB);
        CHECK_INT(second.referenced_bytes, second.used_bytes + first.referenced_bytes);
        _cleanup_free_ char *base = path_join(f.images, "base/disk.raw");
        struct stat st;
        REQUIRE(stat(base, &st) == 0);
        CHECK_INT(first.referenced_bytes, first.used_bytes + (uint64_t) st.st_blocks * 512);

        /* The disk itself is empty again, and as large as ever. */
        REQUIRE(storage_info(f.storage, D, &disk, NULL) == 0);
        CHECK_INT(disk.virtual_bytes, GIB);
        CHECK(disk.used_bytes > 0 && disk.used_bytes < MIB);
        disk_info_clear(&disk);

        CHECK_INT(storage_clone(f.storage, N1, E, 5 * GIB, &op, &err), 0);
        REQUIRE(storage_info(f.storage, E, &disk, NULL) == 0);
        CHECK_INT(disk.virtual_bytes, 5 * GIB);
        CHECK(disk_has(&f, E, 1, 7) && disk_has(&f, E, 4500, 0));
        disk_info_clear(&disk);
        CHECK_INT(storage_destroy(f.storage, E, NULL), 0);
        CHECK_INT(storage_clone(f.storage, N1, E, GIB - 512, &op, &err), -EINVAL);
        CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
        CHECK(strstr(error_message(&err), N1));
        CHECK(err.hint && strstr(err.hint, "disk_gb 1 "));
        CHECK_INT(count_ids(&f, storage_list), 1);
}

static void test_what_is_not_there(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *overlay = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        struct node_info info;
        CHECK_INT(storage_node_info(f.storage, N1, &info, &err), -ENOENT);
        CHECK_INT(err.code, ERROR_NOT_FOUND);
        CHECK(strstr(error_message(&err), N1));
        CHECK_INT(storage_clone(f.storage, N1, D, 0, &op, &err), -ENOENT);
        CHECK_INT(err.code, ERROR_NOT_FOUND);
        CHECK_INT(storage_freeze_begin(f.storage, D, N1, &overlay, &op, &err), -EIO);
        CHECK(strstr(error_message(&err), D) && err.hint);
        CHECK_INT(storage_freeze_recover(f.storage, D, NULL, &err), 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, &err), 0);
        _cleanup_free_ char *tmp = path_join(f.disks, D ".qcow2.tmp");
        CHECK_INT(file_write_atomic(tmp, "half", 4, 0600), 0);
        CHECK_INT(storage_destroy(f.storage, D, &err), 0);
        CHECK_INT(count_files(&f), 0);
        static const char *const ids[] = {"", "..", "a/b", "x.node", "a b"};
        for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
                CHECK_INT(storage_clone(f.storage, ids[i], D, 0, &op, &err), -EINVAL);
                CHECK_INT(storage_freeze_begin(f.storage, D, ids[i], &overlay, &op, &err), -EINVAL);
                CHECK_INT(storage_freeze_begin(f.storage, ids[i], N1, &overlay, &op, &err), -EINVAL);
                CHECK_INT(storage_freeze_end(f.storage, D, ids[i], true, &err), -EINVAL);
                CHECK_INT(storage_freeze_recover(f.storage, ids[i], NULL, &err), -EINVAL);
                CHECK_INT(storage_node_info(f.storage, ids[i], &info, &err), -EINVAL);
                CHECK_INT(storage_node_destroy(f.storage, ids[i], &err), -EINVAL);
        }
        CHECK(!overlay);
}

static void test_destroy_is_refused(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        REQUIRE(create_disk(&f, D) == 0 && disk_write(&f, D, 1, 7) == 0 && freeze_disk(&f, D, N1) == 0);

        CHECK_INT(storage_node_destroy(f.storage, N1, &err), -EEXIST);
        CHECK_INT(err.code, ERROR_CONFLICT);
        CHECK(strstr(error_message(&err), "the disk " D) && err.hint);
        REQUIRE(freeze_disk(&f, D, N2) == 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, &err), -EEXIST);
        CHECK(strstr(error_message(&err), "the node " N2));
        REQUIRE(clone_disk(&f, N1, E) == 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, &err), -EEXIST);
        CHECK(strstr(error_message(&err), "the node " N2) && strstr(error_message(&err), "the disk " E));

        CHECK_INT(storage_destroy(f.storage, D, NULL), 0);
        CHECK_INT(storage_node_destroy(f.storage, N2, &err), 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, &err), -EEXIST);
        CHECK_INT(storage_destroy(f.storage, E, NULL), 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, &err), 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, &err), 0);
        CHECK_INT(count_files(&f), 0);
}

/* A disk that cannot be read may stand on anything. */
static void test_unreadable_disk_keeps_nodes(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *path = NULL;
        REQUIRE(create_disk(&f, D) == 0 && freeze_disk(&f, D, N1) == 0 && clone_disk(&f, N1, E) == 0);
        REQUIRE(storage_destroy(f.storage, D, NULL) == 0);
        path = disk_path(&f, E);
        REQUIRE(path && file_write_atomic(path, "short", 5, 0600) == 0);
        CHECK(storage_node_destroy(f.storage, N1, &err) < 0);
        CHECK(strstr(error_message(&err), N1) && strstr(error_message(&err), E));
        CHECK(err.hint && strstr(err.hint, E));
        CHECK_INT(storage_destroy(f.storage, E, NULL), 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, &err), 0);
        CHECK_INT(count_files(&f), 0);
}

/* Nodes outlive their disk, in any order, and the last one takes the rest along. */
static void test_nodes_without_disk(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct disk_info info = {0};
        struct op op = op_timeout(FIXTURE_MS);
        REQUIRE(create_disk(&f, D) == 0 && disk_write(&f, D, 1, 7) == 0 && freeze_disk(&f, D, N1) == 0);
        REQUIRE(disk_write(&f, D, 1, 8) == 0 && freeze_disk(&f, D, N2) == 0);
        CHECK_INT(storage_destroy(f.storage, D, NULL), 0);
        CHECK_INT(count_ids(&f, storage_list), 0);
        CHECK_INT(storage_info(f.storage, D, &info, &err), -EIO);
        CHECK(strstr(error_message(&err), "missing"));
        CHECK_INT(storage_destroy(f.storage, D, NULL), 0);
        CHECK_INT(count_ids(&f, storage_node_list), 2);

        /* Its id cannot be had again as long as a node is in its first file. */
        CHECK_INT(storage_create(f.storage, D, &f.image, GIB, &op, &err), -EEXIST);
        CHECK_INT(err.code, ERROR_CONFLICT);
        CHECK_INT(storage_clone(f.storage, N2, D, 0, &op, &err), -EEXIST);
        CHECK_INT(fixture_reopen(&f), 0);
        CHECK_INT(count_ids(&f, storage_list), 0);
        REQUIRE(clone_disk(&f, N1, E) == 0);
        CHECK(disk_has(&f, E, 1, 7));
        REQUIRE(storage_destroy(f.storage, E, NULL) == 0 && clone_disk(&f, N2, E) == 0);
        CHECK(disk_has(&f, E, 1, 8));

        CHECK_INT(storage_node_destroy(f.storage, N1, NULL), -EEXIST);
        CHECK_INT(storage_destroy(f.storage, E, NULL), 0);
        CHECK_INT(storage_node_destroy(f.storage, N2, NULL), 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, NULL), 0);
        CHECK_INT(count_files(&f), 0);
        CHECK_INT(storage_create(f.storage, D, &f.image, GIB, &op, &err), 0);
        CHECK(disk_has(&f, D, 1, 0));
}

static void test_frozen_disk_is_not_created_over(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *overlay = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        REQUIRE(create_disk(&f, D) == 0 && disk_write(&f, D, 1, 7) == 0);
        REQUIRE(storage_freeze_begin(f.storage, D, N1, &overlay, &op, NULL) == 0);
        CHECK_INT(storage_create(f.storage, D, &f.image, GIB, &op, &err), -EEXIST);
        CHECK(strstr(error_message(&err), D) && err.hint);
        REQUIRE(storage_freeze_end(f.storage, D, N1, true, NULL) == 0);
        CHECK_INT(storage_create(f.storage, D, &f.image, GIB, &op, &err), -EEXIST);
        CHECK(disk_has(&f, D, 1, 7));
}

/* The base image stays as long as a node stands on it, and no longer. */
static void test_base_of_a_node(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_free_ char *overlay = NULL, *clone = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        REQUIRE(create_disk(&f, D) == 0 && freeze_disk(&f, D, N1) == 0);
        CHECK_INT(storage_destroy(f.storage, D, NULL), 0);
        CHECK_INT(fixture_reopen(&f), 0);
        CHECK_INT(count_in(&f, "base"), 1);
        REQUIRE(clone_disk(&f, N1, E) == 0 && (clone = disk_path(&f, E)));
        CHECK_INT(qemu_io(clone, false, "read -P 0x66 0 1"), 0); /* the f of "first version" */
        REQUIRE(storage_freeze_begin(f.storage, E, N2, &overlay, &op, NULL) == 0);
        CHECK_INT(fixture_reopen(&f), 0);
        CHECK_INT(count_in(&f, "base"), 1);
        CHECK_INT(storage_destroy(f.storage, E, NULL), 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, NULL), 0);
        CHECK_INT(fixture_reopen(&f), 0);
        CHECK_INT(count_in(&f, "base"), 0);
        CHECK_INT(count_files(&f), 0);
}

static void test_missing_files_are_named(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct node_info info;
        struct op op = op_timeout(FIXTURE_MS);
        REQUIRE(create_disk(&f, D) == 0 && freeze_disk(&f, D, N1) == 0 && freeze_disk(&f, D, N2) == 0);
        _cleanup_free_ char *base_dir = path_join(f.disks, "base");
        REQUIRE(rm_rf(base_dir) == 0);
        CHECK_INT(storage_node_info(f.storage, N2, &info, &err), -EIO);
        CHECK(strstr(error_message(&err), "base/") && strstr(error_message(&err), N2) && err.hint);
        REQUIRE(remove_in(&f, D ".qcow2") == 0);
        CHECK_INT(storage_node_info(f.storage, N2, &info, &err), -EIO);
        CHECK(strstr(error_message(&err), D ".qcow2"));
        CHECK_INT(storage_node_info(f.storage, N1, &info, &err), -EIO);
        CHECK_INT(storage_clone(f.storage, N1, E, 0, &op, &err), -EIO);
        CHECK(strstr(error_message(&err), D ".qcow2") && err.hint);

        /* It can be destroyed all the same. */
        CHECK_INT(storage_destroy(f.storage, D, NULL), 0);
        CHECK_INT(storage_node_destroy(f.storage, N2, &err), 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, &err), 0);
        CHECK_INT(count_files(&f), 0);
}

/* A header that leads out of the folder, and files that stand on each other. */
static void test_bad_chains(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct node_info info;
        struct op op = op_timeout(FIXTURE_MS);
        REQUIRE(create_disk(&f, D) == 0 && freeze_disk(&f, D, N1) == 0);
        _cleanup_free_ char *path = path_join(f.disks, D ".qcow2");
        static const char *const backings[] = {"/etc/passwd", "../images/base/disk.raw", "base/../x", D ".qcow2"};
        for (size_t i = 0; i < ARRAY_SIZE(backings); i++) {
                char *argv[] = {(char *) "qemu-img",
                                (char *) "rebase",
                                (char *) "-u",
                                (char *) "-f",
                                (char *) "qcow2",
                                (char *) "-b",
                                (char *) backings[i],
                                (char *) "-F",
                                (char *) "raw",
                                path,
                                NULL};
                REQUIRE(process_run(argv, &op, NULL, NULL, NULL) == 0);
                CHECK_INT(storage_node_info(f.storage, N1, &info, &err), -EIO);
                CHECK(strstr(error_message(&err), "damaged"));
        }
}

/* A file under the name of a link, or a link to anything, is not followed. */
static void test_bad_links(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        struct node_info info;
        struct disk_info disk = {0};
        static const char *const targets[] = {"/etc/passwd", "../x.qcow2", "base/x", "none"};
        _cleanup_free_ char *node = path_join(f.disks, N1 ".node"), *link = path_join(f.disks, D ".disk");
        REQUIRE(create_disk(&f, D) == 0);
        for (size_t i = 0; i < ARRAY_SIZE(targets); i++) {
                REQUIRE(symlink(targets[i], node) == 0 && symlink(targets[i], link) == 0);
                CHECK(storage_node_info(f.storage, N1, &info, NULL) < 0);
                CHECK(storage_info(f.storage, D, &disk, NULL) < 0);
                CHECK_INT(storage_node_destroy(f.storage, N1, NULL), 0);
                CHECK(!is_there(&f, N1 ".node"));
                unlink(link);
        }
        REQUIRE(symlink("../x", link) == 0);
        CHECK_INT(storage_destroy(f.storage, D, NULL), 0);
        CHECK_INT(count_files(&f), 0);
}

/* --- many at once --- */

#define CLONES 20

struct cloner {
        struct fixture *f;
        pthread_barrier_t *start;
        const char *node;
        char id[40];
        int r;
        pthread_t thread;
};

static void *clone_in_thread(void *arg) {
        struct cloner *c = arg;
        pthread_barrier_wait(c->start);
        c->r = clone_disk(c->f, c->node, c->id);
        return NULL;
}

/* Starts them; all stand at the barrier until the caller comes. */
static void cloners_start(struct fixture *f, pthread_barrier_t *start, struct cloner *c, unsigned n) {
        pthread_barrier_init(start, NULL, n + 1);
        for (unsigned i = 0; i < n; i++) {
                c[i] = (struct cloner){.f = f, .start = start, .node = N1};
                snprintf(c[i].id, sizeof(c[i].id), "clone-%u", i);
                if (thread_start(&c[i].thread, "cloner", clone_in_thread, &c[i]) < 0)
                        abort(); /* the others would wait for ever */
        }
}

static void test_parallel_clones(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        struct cloner c[CLONES];
        pthread_barrier_t start;
        REQUIRE(create_disk(&f, D) == 0 && disk_write(&f, D, 1, 7) == 0 && freeze_disk(&f, D, N1) == 0);
        REQUIRE(fixture_reopen(&f) == 0); /* nothing is prepared */
        cloners_start(&f, &start, c, CLONES);
        pthread_barrier_wait(&start);
        for (unsigned i = 0; i < CLONES; i++) {
                pthread_join(c[i].thread, NULL);
                CHECK_INT(c[i].r, 0);
        }
        pthread_barrier_destroy(&start);
        CHECK_INT(count_ids(&f, storage_list), CLONES + 1);
        for (unsigned i = 0; i < CLONES; i++)
                CHECK(disk_has(&f, c[i].id, 1, 7));
        CHECK(disk_write(&f, c[0].id, 1, 8) == 0 && disk_has(&f, c[1].id, 1, 7));
}

/* A node goes away while it is cloned: a clone has it, or is refused. */
static void test_clone_against_destroy(void) {
        enum { ROUNDS = 30, THREADS = 4 };
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        REQUIRE(create_disk(&f, E) == 0);
        for (unsigned round = 0; round < ROUNDS; round++) {
                struct cloner c[THREADS];
                pthread_barrier_t start;
                unsigned made = 0;
                REQUIRE(create_disk(&f, D) == 0 && freeze_disk(&f, D, N1) == 0);
                REQUIRE(storage_destroy(f.storage, D, NULL) == 0);
                cloners_start(&f, &start, c, THREADS);
                pthread_barrier_wait(&start);
                int r = storage_node_destroy(f.storage, N1, NULL);
                for (unsigned i = 0; i < THREADS; i++) {
                        pthread_join(c[i].thread, NULL);
                        made += c[i].r == 0;
                        CHECK(c[i].r == 0 || c[i].r == -ENOENT);
                }
                pthread_barrier_destroy(&start);
                CHECK(r == 0 || r == -EEXIST);
                CHECK_INT(is_there(&f, D ".qcow2"), r != 0);
                CHECK_INT(made > 0, r != 0);
                for (unsigned i = 0; i < THREADS; i++)
                        CHECK_INT(storage_destroy(f.storage, c[i].id, NULL), 0);
                CHECK_INT(storage_node_destroy(f.storage, N1, NULL), 0);
        }
        CHECK_INT(count_files(&f), 1);
}

/* --- no room --- */

static void test_reserve(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *overlay = NULL;
        struct op op = op_timeout(FIXTURE_MS);
        REQUIRE(create_disk(&f, D) == 0 && freeze_disk(&f, D, N1) == 0);
        unsigned before = count_files(&f);
        storage_close(TAKE_PTR(f.storage));
        REQUIRE(storage_open_qcow2(f.disks, UINT64_MAX / 4, &f.storage, NULL) == 0);
        CHECK_INT(storage_clone(f.storage, N1, E, 0, &op, &err), -ENOSPC);
        CHECK_INT(err.code, ERROR_NO_SPACE);
        CHECK(err.hint && strstr(err.hint, "reserve_mb"));
        CHECK_INT(storage_freeze_begin(f.storage, D, N2, &overlay, &op, &err), -ENOSPC);
        CHECK_INT(err.code, ERROR_NO_SPACE);
        CHECK(!overlay);
        CHECK_INT(count_files(&f), before);
}

/* Begin and clone are refused and leave nothing; a freeze that has begun can be ended, either way. */
static void test_full_disk(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_scratch_ char *small = scratch_small(4096);
        REQUIRE(small);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *overlay = NULL, *other = NULL, *ballast = path_join(small, "ballast");
        struct op op = op_timeout(FIXTURE_MS);
        storage_close(TAKE_PTR(f.storage));
        free(f.disks);
        f.disks = strdup(small);
        REQUIRE(storage_open_qcow2(small, 0, &f.storage, NULL) == 0);
        REQUIRE(create_disk(&f, D) == 0 && create_disk(&f, E) == 0);
        REQUIRE(freeze_disk(&f, D, N1) == 0);
        REQUIRE(storage_freeze_begin(f.storage, D, N2, &overlay, &op, NULL) == 0);
        scratch_fill(ballast);
        unsigned before = count_files(&f);

        CHECK_INT(storage_clone(f.storage, N1, "third", 0, &op, &err), -ENOSPC);
        CHECK(err.code == ERROR_NO_SPACE && err.hint);
        CHECK_INT(storage_freeze_begin(f.storage, E, "third", &other, &op, &err), -ENOSPC);
        CHECK(err.code == ERROR_NO_SPACE && err.hint);
        CHECK_INT(count_files(&f), before);

        CHECK_INT(storage_freeze_end(f.storage, D, N2, true, &err), 0);
        _cleanup_free_ char *now = disk_path(&f, D);
        CHECK_STR(now, overlay);
        CHECK_INT(storage_destroy(f.storage, D, NULL), 0);
        CHECK_INT(storage_node_destroy(f.storage, N2, NULL), 0);
        CHECK_INT(storage_node_destroy(f.storage, N1, NULL), 0);
}

int main(void) {
        RUN(test_chain);
        RUN(test_clone_is_the_same);
        RUN(test_freeze_changes_the_path);
        RUN(test_sizes);
        RUN(test_what_is_not_there);
        RUN(test_destroy_is_refused);
        RUN(test_unreadable_disk_keeps_nodes);
        RUN(test_nodes_without_disk);
        RUN(test_frozen_disk_is_not_created_over);
        RUN(test_base_of_a_node);
        RUN(test_missing_files_are_named);
        RUN(test_bad_chains);
        RUN(test_bad_links);
        RUN(test_parallel_clones);
        RUN(test_clone_against_destroy);
        RUN(test_reserve);
        RUN_ROOT(test_full_disk);
        return tap_done();
}
