/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Empty overlays: the same bytes as qemu-img's own, qemu-img started once for each kind, and what happens to those who
 * wait when the one who makes a prototype fails. "qemu-img" is a script that counts and, when told so, fails or waits.
 */
#include "base/io.h"
#include "base/thread.h"
#include "state/scratch.h"
#include "storage/disk-fixture.h"
#include "storage/qcow2-header.h"
#include "storage/qcow2-overlay.h"

struct tools {
        char *dir, *qemu_img; /* the script */
        struct overlays *overlays;
        int started; /* a byte comes whenever qemu-img has started and waits, because a file "closed" is there */
};

static void tools_done(struct tools *t) {
        overlays_free(t->overlays);
        close_fd(t->started);
        free(t->qemu_img);
        scratch_remove(&t->dir);
}
#define _cleanup_tools_ _cleanup_(tools_done)

static char *tool(const struct tools *t, const char *name) {
        return path_join(t->dir, name);
}

static int tools_make(struct tools *t) {
        _cleanup_free_ char *real = NULL, *script = NULL, *fifo = NULL, *gate = NULL;
        t->started = -1;
        t->dir = scratch_new();
        int r = t->dir ? find_program("qemu-img", &real) : -errno;
        if (r < 0)
                return r;
        t->qemu_img = tool(t, "qemu-img");
        fifo = tool(t, "started");
        gate = tool(t, "gate");
        script = str_printf("#!/bin/sh\n"
                            "cd %s || exit 1\n"
                            "echo run >> runs\n"
                            "[ ! -e closed ] || { printf x > started; read -r line < gate; }\n"
                            "[ ! -e broken ] || { echo 'no overlays today' >&2; exit 1; }\n"
                            "exec %s \"$@\"\n",
                            t->dir, real);
        r = file_write_atomic(t->qemu_img, script, strlen(script), 0700);
        if (r >= 0 && (mkfifo(fifo, 0600) < 0 || mkfifo(gate, 0600) < 0))
                r = -errno;
        if (r >= 0)
                r = t->started = open(fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        return r < 0 ? r : overlays_new(t->dir, t->qemu_img, &t->overlays);
}

/* How often qemu-img was started. */
static unsigned count_runs(const struct tools *t) {
        _cleanup_free_ char *path = tool(t, "runs"), *text = NULL;
        unsigned n = 0;
        if (file_read_all(path, 4096, &text, NULL) < 0)
                return 0;
        for (const char *p = text; (p = strchr(p, '\n')); p++)
                n++;
        return n;
}

static void set(const struct tools *t, const char *what, bool on) {
        _cleanup_free_ char *path = tool(t, what);
        if (on)
                CHECK_INT(file_write_atomic(path, "", 0, 0600), 0);
        else
                CHECK_INT(unlink(path), 0);
}

static int make(const struct tools *t, const char *name, uint64_t bytes, struct error *err) {
        const struct overlay what = {.backing = "below.qcow2", .format = "qcow2", .virtual_bytes = bytes};
        struct op op = op_timeout(FIXTURE_MS);
        return overlay_write(t->overlays, name, &what, &op, err);
}

static unsigned count_temporaries(const struct tools *t) {
        DIR *d = opendir(t->dir);
        unsigned n = 0;
        for (struct dirent *e; d && (e = readdir(d));)
                n += strstr(e->d_name, ".tmp") != NULL;
        if (d)
                closedir(d);
        return n;
}

/* --- the bytes --- */

/* Whether the two files have the same bytes and length. */
static bool same_content(const char *a, const char *b) {
        char *argv[] = {(char *) "cmp", (char *) a, (char *) b, NULL};
        struct op op = op_timeout(FIXTURE_MS);
        return process_run(argv, &op, NULL, NULL, NULL) == 0;
}

static void test_same_bytes_as_qemu_img(void) {
        static const uint64_t sizes[] = {MIB, 64 * MIB + 512, 10 * GIB, 100 * GIB, 5000 * GIB};
        static const char *const formats[] = {"raw", "qcow2"};
        char longest[QCOW2_BACKING_MAX + 1];
        memset(longest, 'n', QCOW2_BACKING_MAX);
        longest[QCOW2_BACKING_MAX] = 0;
        const char *const names[] = {"x", "d0000000-0000-4000-8000-000000000001.qcow2", longest};
        _cleanup_tools_ struct tools t = {0};
        REQUIRE(tools_make(&t) == 0);
        _cleanup_free_ char *ours = tool(&t, "ours"), *theirs = tool(&t, "theirs");
        for (size_t s = 0; s < ARRAY_SIZE(sizes); s++)
                for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
                        for (size_t n = 0; n < ARRAY_SIZE(names); n++) {
                                const struct overlay what = {
                                        .backing = names[n], .format = formats[i], .virtual_bytes = sizes[s]};
                                struct op op = op_timeout(FIXTURE_MS);
                                char size[24];
                                snprintf(size, sizeof(size), "%" PRIu64, sizes[s]);
                                char *argv[] = {(char *) "qemu-img",
                                                (char *) "create",
                                                (char *) "-q",
                                                (char *) "-u",
                                                (char *) "-f",
                                                (char *) "qcow2",
                                                (char *) "-F",
                                                (char *) formats[i],
                                                (char *) "-b",
                                                (char *) names[n],
                                                theirs,
                                                size,
                                                NULL};
                                REQUIRE(process_run(argv, &op, NULL, NULL, NULL) == 0);
                                REQUIRE(overlay_write(t.overlays, "ours", &what, &op, NULL) == 0);
                                CHECK(same_content(ours, theirs));
                        }
        CHECK_INT(count_runs(&t), ARRAY_SIZE(sizes) * ARRAY_SIZE(formats));
        CHECK_INT(count_temporaries(&t), 0);
}

static void test_takes_little_and_replaces(void) {
        _cleanup_tools_ struct tools t = {0};
        struct qcow2_header header = {0};
        struct stat st;
        REQUIRE(tools_make(&t) == 0);
        _cleanup_free_ char *path = tool(&t, "o");
        static const char old[MIB] = "more than an overlay";
        REQUIRE(file_write_atomic(path, old, sizeof(old), 0600) == 0);
        CHECK_INT(make(&t, "o", 10 * GIB, NULL), 0);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        REQUIRE(fd >= 0 && fstat(fd, &st) == 0);
        CHECK(st.st_size < 256 * 1024 && st.st_blocks * 512 <= 64 * 1024);
        CHECK_INT(st.st_mode & 07777, 0600);
        CHECK_INT(qcow2_header_read(fd, &header), 0);
        CHECK_INT(header.virtual_bytes, 10 * GIB);
        CHECK_STR(header.backing, "below.qcow2");
}

/* --- the table --- */

static void test_least_used_goes(void) {
        _cleanup_tools_ struct tools t = {0};
        REQUIRE(tools_make(&t) == 0);
        for (unsigned i = 1; i <= PROTOTYPES_MAX; i++)
                REQUIRE(make(&t, "o", i * MIB, NULL) == 0);
        CHECK_INT(count_runs(&t), PROTOTYPES_MAX);
        CHECK_INT(make(&t, "o", 1 * MIB, NULL), 0);
        CHECK_INT(count_runs(&t), PROTOTYPES_MAX);
        CHECK_INT(make(&t, "o", 100 * MIB, NULL), 0); /* in the place of 2 MiB */
        CHECK_INT(count_runs(&t), PROTOTYPES_MAX + 1);
        CHECK_INT(make(&t, "o", 1 * MIB, NULL), 0);
        CHECK_INT(make(&t, "o", 3 * MIB, NULL), 0);
        CHECK_INT(count_runs(&t), PROTOTYPES_MAX + 1);
        CHECK_INT(make(&t, "o", 2 * MIB, NULL), 0);
        CHECK_INT(count_runs(&t), PROTOTYPES_MAX + 2);
}

static void test_failure_is_told_and_not_kept(void) {
        _cleanup_tools_ struct tools t = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        REQUIRE(tools_make(&t) == 0);
        _cleanup_free_ char *path = tool(&t, "o");
        set(&t, "broken", true);
        CHECK(make(&t, "o", GIB, &err) < 0);
        CHECK(strstr(error_message(&err), "no overlays today"));
        CHECK(access(path, F_OK) < 0);
        set(&t, "broken", false);
        CHECK_INT(make(&t, "o", GIB, NULL), 0);
        CHECK_INT(count_temporaries(&t), 0);
}

/* A backing file that was replaced by another one, of the same name: there is nothing that could be out of date. */
static void test_node_of_the_same_name(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        struct op op = op_timeout(FIXTURE_MS);
        for (unsigned i = 1; i <= 3; i++) {
                struct disk_info info = {0};
                REQUIRE(storage_create(f.storage, "disk", &f.image, i * GIB, &op, NULL) == 0);
                REQUIRE(disk_write(&f, "disk", 1, (unsigned char) i) == 0);
                REQUIRE(freeze_disk(&f, "disk", "node") == 0 && clone_disk(&f, "node", "clone") == 0);
                CHECK(disk_has(&f, "clone", 1, (unsigned char) i));
                REQUIRE(storage_info(f.storage, "clone", &info, NULL) == 0);
                CHECK_INT(info.virtual_bytes, i * GIB);
                disk_info_clear(&info);
                REQUIRE(storage_destroy(f.storage, "clone", NULL) == 0 &&
                        storage_destroy(f.storage, "disk", NULL) == 0);
                REQUIRE(storage_node_destroy(f.storage, "node", NULL) == 0);
        }
}

/* --- many at once --- */

struct maker {
        const struct tools *t;
        struct cancel *cancel;
        char name[16];
        int r;
        pthread_t thread;
};

static void *make_in_thread(void *arg) {
        struct maker *m = arg;
        const struct overlay what = {.backing = "below.qcow2", .format = "qcow2", .virtual_bytes = GIB};
        struct op op = op_timeout(FIXTURE_MS);
        op.cancel = m->cancel;
        m->r = overlay_write(m->t->overlays, m->name, &what, &op, NULL);
        return NULL;
}

static int maker_start(struct maker *m, const struct tools *t, unsigned n) {
        *m = (struct maker){.t = t, .cancel = cancel_new()};
        snprintf(m->name, sizeof(m->name), "o%u", n);
        return m->cancel ? thread_start(&m->thread, "maker", make_in_thread, m) : -ENOMEM;
}

static int maker_join(struct maker *m) {
        pthread_join(m->thread, NULL);
        cancel_unref(m->cancel);
        return m->r;
}

static void test_one_makes_all_wait(void) {
        enum { MAKERS = 20 };
        _cleanup_tools_ struct tools t = {0};
        struct maker m[MAKERS];
        REQUIRE(tools_make(&t) == 0);
        for (unsigned i = 0; i < MAKERS; i++)
                REQUIRE(maker_start(&m[i], &t, i) == 0);
        for (unsigned i = 0; i < MAKERS; i++)
                CHECK_INT(maker_join(&m[i]), 0);
        CHECK_INT(count_runs(&t), 1);
        _cleanup_free_ char *first = tool(&t, "o0");
        for (unsigned i = 1; i < MAKERS; i++) {
                _cleanup_free_ char *other = tool(&t, m[i].name);
                CHECK(same_content(first, other));
        }
}

/* One that makes a prototype and cannot go on, and one that waits for it. */
static int make_pair(const struct tools *t, struct maker *first, struct maker *second) {
        struct op op = op_timeout(FIXTURE_MS);
        char byte;
        set(t, "closed", true);
        int r = maker_start(first, t, 1);
        if (r >= 0)
                r = read_full(t->started, &byte, 1, &op);
        set(t, "closed", false);
        return r < 0 ? r : maker_start(second, t, 2);
}

static void test_who_waits_may_leave(void) {
        _cleanup_tools_ struct tools t = {0};
        struct maker first, second;
        struct op op = op_timeout(FIXTURE_MS);
        REQUIRE(tools_make(&t) == 0);
        REQUIRE(make_pair(&t, &first, &second) == 0);
        cancel_fire(second.cancel);
        CHECK_INT(maker_join(&second), -ECANCELED);
        _cleanup_free_ char *gate = tool(&t, "gate"), *path = tool(&t, "o2");
        CHECK(access(path, F_OK) < 0);
        _cleanup_close_ int fd = open(gate, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        CHECK_INT(write_full(fd, "\n", 1, &op), 0);
        CHECK_INT(maker_join(&first), 0);
        CHECK_INT(count_runs(&t), 1);
}

static void test_another_one_takes_over(void) {
        _cleanup_tools_ struct tools t = {0};
        struct maker first, second;
        REQUIRE(tools_make(&t) == 0);
        REQUIRE(make_pair(&t, &first, &second) == 0);
        cancel_fire(first.cancel);
        CHECK_INT(maker_join(&first), -ECANCELED);
        CHECK_INT(maker_join(&second), 0);
        CHECK_INT(count_runs(&t), 2);
        CHECK_INT(count_temporaries(&t), 0);
}

int main(void) {
        RUN(test_same_bytes_as_qemu_img);
        RUN(test_takes_little_and_replaces);
        RUN(test_least_used_goes);
        RUN(test_failure_is_told_and_not_kept);
        RUN(test_node_of_the_same_name);
        RUN(test_one_makes_all_wait);
        RUN(test_who_waits_may_leave);
        RUN(test_another_one_takes_over);
        return tap_done();
}
