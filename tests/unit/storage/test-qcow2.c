/* SPDX-License-Identifier: Apache-2.0 */
/* The qcow2 backend with the real qemu-img: the life of a disk, foreign ids, full disks, rebuilt base images. */
#include <dirent.h>
#include <sys/stat.h>

#include "storage/disk-fixture.h"
#include "storage/qcow2-header.h"

#define ID "3d1d9e8a-58b1-4e1c-9a4f-0f2d8a7c1e55"
#define OTHER_ID "00000000-0000-4000-8000-000000000002"

/* What qemu-img reads at the start of a disk, through all that it stands on. */
static int disk_content(const char *path, char *ret, size_t n) {
        _cleanup_free_ char *raw = str_printf("%s.raw", path), *text = NULL;
        char *argv[] = {(char *) "qemu-img",
                        (char *) "dd",
                        (char *) "-O",
                        (char *) "raw",
                        (char *) "bs=512",
                        (char *) "count=1",
                        str_printf("if=%s", path),
                        str_printf("of=%s", raw),
                        NULL};
        struct op op = op_timeout(30000);
        int r = process_run(argv, &op, NULL, NULL, NULL);
        if (r >= 0)
                r = file_read_all(raw, 4096, &text, NULL);
        if (r >= 0)
                snprintf(ret, n, "%s", text);
        unlink(raw);
        free(argv[6]);
        free(argv[7]);
        return r;
}

static void test_life_of_a_disk(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_disk_info_ struct disk_info info = {0};
        _cleanup_strv_ struct strv ids = {0};
        struct op op = op_timeout(30000);
        char content[64] = "";

        CHECK_INT(storage_create(f.storage, ID, &f.image, 10 * GIB, &op, &err), 0);
        CHECK_INT(storage_info(f.storage, ID, &info, &err), 0);
        CHECK_STR(info.format, "qcow2");
        CHECK(info.path && info.path[0] == '/');
        CHECK_INT(info.virtual_bytes, 10 * GIB);
        CHECK(info.used_bytes > 0 && info.used_bytes < 2 * MIB);
        CHECK_INT(disk_content(info.path, content, sizeof(content)), 0);
        CHECK_STR(content, "first version");

        CHECK_INT(storage_create(f.storage, OTHER_ID, &f.image, 64 * MIB, &op, &err), 0);
        CHECK_INT(storage_list(f.storage, &ids, &err), 0);
        CHECK_INT(ids.n, 2);
        strv_free(&ids);
        ids = (struct strv){0};

        CHECK_INT(storage_destroy(f.storage, ID, &err), 0);
        CHECK_INT(storage_destroy(f.storage, ID, &err), 0);
        disk_info_clear(&info);
        CHECK_INT(storage_info(f.storage, ID, &info, &err), -EIO);
        CHECK_INT(err.code, ERROR_INTERNAL);
        CHECK(!strchr(error_message(&err), '/')); /* no path of the host */
        CHECK(err.hint && strstr(err.hint, "destroy the workspace"));
        CHECK_INT(storage_list(f.storage, &ids, &err), 0);
        REQUIRE(ids.n == 1);
        CHECK_STR(ids.v[0], OTHER_ID);
}

static void test_create_starts_over(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_disk_info_ struct disk_info info = {0};
        _cleanup_free_ char *half = str_printf("%s/" ID ".qcow2", f.disks), *tmp = str_printf("%s.tmp", half);
        struct op op = op_timeout(30000);
        REQUIRE(file_write_atomic(half, "half a disk", 11, 0600) == 0);
        REQUIRE(file_write_atomic(tmp, "less", 4, 0600) == 0);
        CHECK_INT(storage_create(f.storage, ID, &f.image, GIB, &op, NULL), 0);
        CHECK_INT(storage_info(f.storage, ID, &info, NULL), 0);
        CHECK_INT(info.virtual_bytes, GIB);
        CHECK(access(tmp, F_OK) < 0);
}

static void test_foreign_ids(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        struct op op = op_timeout(30000);
        static const char *const ids[] = {"",
                                          ".",
                                          "..",
                                          "../x",
                                          "a/b",
                                          "/tmp/x",
                                          "x.tmp",
                                          "a b",
                                          "\n",
                                          "base/x",
                                          "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
        for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                struct disk_info info = {0};
                CHECK_INT(storage_create(f.storage, ids[i], &f.image, GIB, &op, &err), -EINVAL);
                CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
                CHECK_INT(storage_info(f.storage, ids[i], &info, &err), -EINVAL);
                CHECK_INT(storage_destroy(f.storage, ids[i], &err), -EINVAL);
        }
        _cleanup_free_ char *outside = path_join(f.dir, "x.qcow2");
        CHECK(access(outside, F_OK) < 0);
}

static void test_too_small(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op_timeout(30000);
        f.image.min_disk_gb = 3;
        CHECK_INT(storage_create(f.storage, ID, &f.image, 63 * MIB, &op, &err), -EINVAL);
        CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
        CHECK(strstr(error_message(&err), "64 MiB"));
        CHECK(err.hint && strstr(err.hint, "disk_gb 3"));
}

static void test_reserve(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_storage_ struct storage *tight = NULL;
        _cleanup_strv_ struct strv ids = {0};
        struct op op = op_timeout(30000);
        REQUIRE(storage_open_qcow2(f.disks, UINT64_MAX / 4, &tight, NULL) == 0);
        CHECK_INT(storage_create(tight, ID, &f.image, GIB, &op, &err), -ENOSPC);
        CHECK_INT(err.code, ERROR_NO_SPACE);
        CHECK(err.hint && strstr(err.hint, "reserve_mb"));
        CHECK_INT(storage_list(tight, &ids, NULL), 0);
        CHECK_INT(ids.n, 0);
}

static void test_cancel(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_strv_ struct strv ids = {0};
        _cleanup_cancel_ struct cancel *cancel = cancel_new();
        struct op op = op_timeout(30000);
        op.cancel = cancel;
        cancel_fire(cancel);
        CHECK_INT(storage_create(f.storage, ID, &f.image, GIB, &op, &err), -ECANCELED);
        CHECK_INT(err.code, ERROR_CANCELLED);
        CHECK_INT(storage_list(f.storage, &ids, NULL), 0);
        CHECK_INT(ids.n, 0);
}

static unsigned count_bases(const struct fixture *f) {
        _cleanup_free_ char *dir = path_join(f->disks, "base");
        DIR *d = opendir(dir);
        unsigned n = 0;
        for (struct dirent *e; d && (e = readdir(d));)
                n += e->d_name[0] != '.';
        closedir(d);
        return n;
}

/* A disk keeps what it was made from, whatever happens to the image; and nothing is kept for nobody. */
static void test_rebuilt_image(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_disk_info_ struct disk_info old = {0}, new = {0};
        struct op op = op_timeout(30000);
        char content[64] = "";
        CHECK_INT(storage_create(f.storage, ID, &f.image, GIB, &op, NULL), 0);
        CHECK_INT(count_bases(&f), 1);

        image_clear(&f.image);
        REQUIRE(image_make(f.images, "base", 64 * MIB, 1, "second version") == 0);
        REQUIRE(image_find(f.images, "base", &f.image, NULL) == 0);
        CHECK_INT(storage_create(f.storage, OTHER_ID, &f.image, GIB, &op, NULL), 0);
        CHECK_INT(count_bases(&f), 2);
        REQUIRE(storage_info(f.storage, ID, &old, NULL) == 0 && storage_info(f.storage, OTHER_ID, &new, NULL) == 0);
        CHECK_INT(disk_content(old.path, content, sizeof(content)), 0);
        CHECK_STR(content, "first version");
        CHECK_INT(disk_content(new.path, content, sizeof(content)), 0);
        CHECK_STR(content, "second version");

        /* The next start keeps the version that a disk stands on. */
        CHECK_INT(storage_destroy(f.storage, ID, NULL), 0);
        storage_close(TAKE_PTR(f.storage));
        CHECK_INT(storage_open_qcow2(f.disks, 0, &f.storage, NULL), 0);
        REQUIRE(f.storage);
        CHECK_INT(count_bases(&f), 1);
        CHECK_INT(disk_content(new.path, content, sizeof(content)), 0);
        CHECK_STR(content, "second version");
}

static void test_state_folder_may_move(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        struct op op = op_timeout(30000);
        CHECK_INT(storage_create(f.storage, ID, &f.image, GIB, &op, NULL), 0);
        storage_close(TAKE_PTR(f.storage));
        _cleanup_free_ char *moved = path_join(f.dir, "elsewhere");
        REQUIRE(rename(f.disks, moved) == 0);
        REQUIRE(storage_open_qcow2(moved, 0, &f.storage, NULL) == 0);
        _cleanup_disk_info_ struct disk_info info = {0};
        char content[64] = "";
        CHECK_INT(storage_info(f.storage, ID, &info, NULL), 0);
        CHECK_INT(disk_content(info.path, content, sizeof(content)), 0);
        CHECK_STR(content, "first version");
}

static void test_open_removes_temporaries(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_free_ char *tmp = str_printf("%s/" ID ".qcow2.tmp", f.disks);
        _cleanup_free_ char *base_tmp = str_printf("%s/base/x.raw.tmp", f.disks);
        REQUIRE(file_write_atomic(tmp, "x", 1, 0600) == 0 && file_write_atomic(base_tmp, "x", 1, 0600) == 0);
        _cleanup_storage_ struct storage *again = NULL;
        CHECK_INT(storage_open_qcow2(f.disks, 0, &again, NULL), 0);
        CHECK(access(tmp, F_OK) < 0);
        CHECK(access(base_tmp, F_OK) < 0);
}

static void test_damaged_disk(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *path = str_printf("%s/" ID ".qcow2", f.disks);
        struct disk_info info = {0};
        struct op op = op_timeout(30000);
        REQUIRE(file_write_atomic(path, "short", 5, 0600) == 0);
        CHECK(storage_info(f.storage, ID, &info, &err) < 0);
        CHECK(strstr(error_message(&err), "damaged"));

        /* With a disk whose base cannot be known, no base is thrown away. */
        CHECK_INT(storage_create(f.storage, OTHER_ID, &f.image, GIB, &op, NULL), 0);
        CHECK_INT(storage_destroy(f.storage, OTHER_ID, NULL), 0);
        storage_close(TAKE_PTR(f.storage));
        REQUIRE(storage_open_qcow2(f.disks, 0, &f.storage, NULL) == 0);
        CHECK_INT(count_bases(&f), 1);
        CHECK_INT(storage_destroy(f.storage, ID, NULL), 0);
}

/* Bytes of a header, from the field's place on, in a file that is otherwise a good one. */
static int header_with(const char *path, size_t at, const void *bytes, size_t n, struct qcow2_header *ret) {
        unsigned char raw[4096] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3};
        raw[24 + 5] = 1; /* 64 KiB */
        memcpy(raw + at, bytes, n);
        int r = file_write_atomic(path, raw, sizeof(raw), 0600);
        if (r < 0)
                return r;
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        return qcow2_header_read(fd, ret);
}

static void test_headers(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "x");
        struct qcow2_header header;
        CHECK_INT(header_with(path, 0, "QFI\xfb", 4, &header), 0);
        CHECK_INT(header.virtual_bytes, 65536);
        CHECK_STR(header.backing, "");
        CHECK_INT(header_with(path, 0, "QFIx", 4, &header), -EBADMSG);
        CHECK_INT(header_with(path, 4, "\0\0\0\1", 4, &header), -EBADMSG);
        CHECK_INT(header_with(path, 8, "\0\0\0\0\0\0\2\0\0\0\0\5", 12, &header), 0);
        CHECK_INT(header_with(path, 8, "\0\0\0\0\0\0\2\0\0\0\4\0", 12, &header), -EBADMSG);     /* 1024 long */
        CHECK_INT(header_with(path, 8, "\0\0\0\0\0\0\x0f\xff\0\0\0\5", 12, &header), -EBADMSG); /* past the end */
        CHECK_INT(header_with(path, 8, "\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\5", 12, &header), -EBADMSG);
}

/* Another file system than the image's: it is copied, holes stay holes; a full one is reported and left clean. */
static void test_other_file_system(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_make(&f) == 0);
        _cleanup_scratch_ char *small = scratch_small(4096);
        REQUIRE(small);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_storage_ struct storage *s = NULL;
        _cleanup_disk_info_ struct disk_info info = {0};
        _cleanup_strv_ struct strv ids = {0};
        struct op op = op_timeout(30000);
        char content[64] = "";
        REQUIRE(storage_open_qcow2(small, 0, &s, NULL) == 0);
        CHECK_INT(storage_create(s, ID, &f.image, GIB, &op, &err), 0); /* 64 MiB of holes fit in 4 MiB */
        CHECK_INT(storage_info(s, ID, &info, &err), 0);
        CHECK_INT(disk_content(info.path, content, sizeof(content)), 0);
        CHECK_STR(content, "first version");

        /* Ballast that leaves less than an overlay takes. */
        _cleanup_free_ char *ballast = path_join(small, "ballast");
        scratch_fill(ballast);
        CHECK_INT(storage_create(s, OTHER_ID, &f.image, GIB, &op, &err), -ENOSPC);
        CHECK_INT(err.code, ERROR_NO_SPACE);
        CHECK(err.hint);
        printf("# %s\n", error_message(&err));
        CHECK_INT(storage_list(s, &ids, NULL), 0);
        CHECK_INT(ids.n, 1);
        /* Taking disks away works on a full file system. */
        CHECK_INT(storage_destroy(s, ID, NULL), 0);
}

int main(void) {
        RUN(test_life_of_a_disk);
        RUN(test_create_starts_over);
        RUN(test_foreign_ids);
        RUN(test_too_small);
        RUN(test_reserve);
        RUN(test_cancel);
        RUN(test_rebuilt_image);
        RUN(test_state_folder_may_move);
        RUN(test_open_removes_temporaries);
        RUN(test_damaged_disk);
        RUN(test_headers);
        RUN_ROOT(test_other_file_system);
        return tap_done();
}
