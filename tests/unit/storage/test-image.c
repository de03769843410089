/* SPDX-License-Identifier: Apache-2.0 */
/* Base images: what is found, what is listed, and what damaged ones say. */
#include <sys/stat.h>

#include "state/scratch.h"
#include "storage/image.h"
#include "storage/make-image.h"

#define MIB ((uint64_t) 1 << 20)

static void test_find(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_image_ struct image image = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        REQUIRE(image_make(dir, "debian-dev", 4 * MIB, 2, "x") == 0);
        CHECK_INT(image_find(dir, "debian-dev", &image, &err), 0);
        CHECK_STR(image.name, "debian-dev");
        CHECK_STR(image.format, "raw");
        CHECK_STR(image.key, "k");
        CHECK_STR(image.source, "a test");
        CHECK_STR(image.created_at, "2026-01-01T00:00:00Z");
        CHECK_INT(image.virtual_bytes, 4 * MIB);
        CHECK(image.used_bytes < 4 * MIB);
        CHECK_INT(image.min_disk_gb, 2);
        CHECK(image.path && image.path[0] == '/' && access(image.path, R_OK) == 0);
}

static void test_not_found_names_the_others(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_image_ struct image image = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        CHECK_INT(image_find(dir, "debian-dev", &image, &err), -ENOENT);
        CHECK_INT(err.code, ERROR_NOT_FOUND);
        CHECK(err.hint && strstr(err.hint, "agentiso image build"));

        REQUIRE(image_make(dir, "debian-dev", MIB, 1, "x") == 0);
        REQUIRE(image_make(dir, "alpine", MIB, 1, "x") == 0);
        CHECK_INT(image_find(dir, "debian-dvv", &image, &err), -ENOENT);
        CHECK(strstr(error_message(&err), "debian-dvv"));
        CHECK(err.hint && strstr(err.hint, "Did you mean debian-dev?"));
        CHECK(err.hint && strstr(err.hint, "alpine, debian-dev"));
        CHECK_INT(image_find("/nonexistent/images", "debian-dev", &image, &err), -ENOENT);
        CHECK_INT(err.code, ERROR_NOT_FOUND);
}

static void test_hostile_names(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        static const char *const names[] = {"",    ".",           "..",   "../images", "a/b",      "/etc",
                                            ".x",  "a\nb",        "a b",  "-rf\x7f",   "\xc3\xa4", "boot/../boot",
                                            "a:b", "json:{\"a\"", "a,b=c"};
        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                struct image image = {0};
                _cleanup_error_ struct error err = ERROR_INIT;
                CHECK(!image_name_valid(names[i]));
                CHECK_INT(image_find(dir, names[i], &image, &err), -EINVAL);
                CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
        }
        CHECK(image_name_valid("debian-dev_12.1"));
}

static void test_damaged(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        static const struct {
                const char *json, *says;
        } cases[] = {
                {"", "image.json is damaged"},
                {"[]", "no object"},
                {"{\"name\":\"x\"", "image.json is damaged"},
                {"{\"name\":\"x\",\"format\":\"raw\",\"min_disk_gb\":1}", "virtual_size_bytes"},
                {"{\"name\":\"y\",\"format\":\"raw\",\"virtual_size_bytes\":1048576,\"min_disk_gb\":1}", "\"y\""},
                {"{\"name\":\"x\",\"format\":\"vmdk\",\"virtual_size_bytes\":1048576,\"min_disk_gb\":1}", "vmdk"},
                {"{\"name\":\"x\",\"format\":\"raw\",\"virtual_size_bytes\":\"big\",\"min_disk_gb\":1}",
                 "virtual_size_bytes"},
                {"{\"name\":\"x\",\"format\":\"raw\",\"virtual_size_bytes\":-1,\"min_disk_gb\":1}", "-1"},
                {"{\"name\":\"x\",\"format\":\"raw\",\"virtual_size_bytes\":1048577,\"min_disk_gb\":1}", "1048577"},
                {"{\"name\":\"x\",\"format\":\"raw\",\"virtual_size_bytes\":2097152,\"min_disk_gb\":1}", "1048576"},
                {"{\"name\":\"x\",\"format\":\"raw\",\"virtual_size_bytes\":1048576,\"min_disk_gb\":-1}",
                 "min_disk_gb"},
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct image image = {0};
                _cleanup_(image_list_clear) struct image_list list = {0};
                _cleanup_error_ struct error err = ERROR_INIT;
                REQUIRE(image_make(dir, "x", MIB, 1, "x") == 0);
                REQUIRE(image_make(dir, "good", MIB, 1, "x") == 0);
                REQUIRE(image_write_json(dir, "x", cases[i].json) == 0);
                CHECK(image_find(dir, "x", &image, &err) < 0);
                CHECK(err.code != ERROR_NOT_FOUND);
                CHECK(strstr(error_message(&err), cases[i].says));
                CHECK(err.hint && strstr(err.hint, "again"));
                if (!tap_ok)
                        printf("# case %zu: %s\n", i, error_message(&err));
                /* It takes nothing from the others. */
                CHECK_INT(image_list_read(dir, &list, NULL), 0);
                CHECK_INT(list.n, 1);
        }
}

static void test_disk_missing_or_odd(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *disk = str_printf("%s/x/disk.raw", dir);
        struct image image = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        REQUIRE(image_make(dir, "x", MIB, 1, "x") == 0);
        CHECK(unlink(disk) == 0);
        CHECK(image_find(dir, "x", &image, &err) < 0);
        CHECK(strstr(error_message(&err), "disk.raw"));
        CHECK(mkdir(disk, 0755) == 0);
        CHECK(image_find(dir, "x", &image, &err) < 0);
        CHECK(strstr(error_message(&err), "regular file"));
}

static void test_list(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_(image_list_clear) struct image_list list = {0};
        CHECK_INT(image_list_read("/nonexistent/images", &list, NULL), 0);
        CHECK_INT(list.n, 0);

        _cleanup_free_ char *boot = path_join(dir, "boot"), *file = path_join(dir, "README");
        REQUIRE(mkdir(boot, 0755) == 0 && file_write_atomic(file, "x", 1, 0644) == 0);
        REQUIRE(image_make(dir, "zebra", MIB, 1, "x") == 0);
        REQUIRE(image_make(dir, "alpine", 2 * MIB, 1, "x") == 0);
        CHECK_INT(image_list_read(dir, &list, NULL), 0);
        REQUIRE(list.n == 2);
        CHECK_STR(list.v[0].name, "alpine");
        CHECK_INT(list.v[0].virtual_bytes, 2 * MIB);
        CHECK_STR(list.v[1].name, "zebra");
}

int main(void) {
        RUN(test_find);
        RUN(test_not_found_names_the_others);
        RUN(test_hostile_names);
        RUN(test_damaged);
        RUN(test_disk_missing_or_odd);
        RUN(test_list);
        return tap_done();
}
