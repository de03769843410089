/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of a running process as files: which pages, which content, and files that are not as they ought to be. */
#include <sys/stat.h>

#include "base/file.h"
#include "mapper.h"
#include "tap.h"
#include "vm/memory.h"

#define PATIENCE_MS 60000
#define MEMORY_BYTES (1024u * MAPPER_PAGE)
#define LARGE_PAGES 20000u /* more than PAGES_BUFFER_MAX holds */

static char dir[] = "/tmp/agentiso-memory-XXXXXX";
static char base[64], pages[64], image[64];

/* What the base has in page n: nothing in every other one. */
static uint8_t base_byte(uint64_t page) {
        return page % 2 ? (uint8_t) (1 + page % 100) : 0;
}

static void make_base(const char *path, uint64_t n_pages) {
        _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        uint8_t page[MAPPER_PAGE];

        CHECK(fd >= 0 && ftruncate(fd, (off_t) (n_pages * MAPPER_PAGE)) == 0);
        for (uint64_t i = 0; i < n_pages; i++) {
                memset(page, base_byte(i), sizeof(page));
                if (base_byte(i))
                        CHECK(pwrite(fd, page, sizeof(page), (off_t) (i * MAPPER_PAGE)) == MAPPER_PAGE);
        }
}

static int copy_pages(pid_t pid, uint64_t bytes, uint64_t *ret_bytes) {
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_close_ int fd = open(pages, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        _cleanup_page_copy_ struct page_copy *c = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;

        int r = page_copy_begin(pid, base, bytes, fd, &c, &e);
        if (r >= 0)
                r = page_copy_take(c, &op, &e);
        if (r >= 0)
                r = page_copy_finish(c, ret_bytes, &e);
        if (r < 0)
                printf("# %s\n", error_message(&e));
        return r;
}

static int build(struct error *e) {
        const struct op op = op_timeout(PATIENCE_MS);

        return memory_image_build(base, pages, image, &op, e);
}

/* Every page of the image is the process's own or the base's. */
static void check_image(uint64_t n_pages, bool (*is_own)(uint64_t page)) {
        _cleanup_close_ int fd = open(image, O_RDONLY | O_CLOEXEC);
        uint64_t wrong = 0;
        struct stat st;

        REQUIRE(fd >= 0 && fstat(fd, &st) == 0);
        CHECK_INT(st.st_size, n_pages * MAPPER_PAGE);
        CHECK_INT(st.st_mode & 0777, 0600);
        for (uint64_t i = 0; i < n_pages; i++) {
                uint8_t got[MAPPER_PAGE], want[MAPPER_PAGE];

                memset(want, is_own(i) ? mapper_byte(i) : base_byte(i), sizeof(want));
                wrong += pread(fd, got, sizeof(got), (off_t) (i * MAPPER_PAGE)) != MAPPER_PAGE ||
                         memcmp(got, want, sizeof(got)) != 0;
        }
        CHECK_INT(wrong, 0);
}

static bool own_few(uint64_t page) {
        return page == 0 || (page >= 10 && page < 15) || page == 16 || page == 1000;
}

static void test_own_pages_over_the_base(void) {
        static const char *const runs[] = {"0-1", "10-5", "16-1", "1000-1", NULL};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct mapper m;
        uint64_t bytes = 0;
        struct stat st;

        make_base(base, 1024);
        REQUIRE(mapper_start(&m, base, MEMORY_BYTES, runs) >= 0);
        CHECK_INT(copy_pages(m.pid, MEMORY_BYTES, &bytes), 0);
        mapper_end(&m);
        CHECK(stat(pages, &st) == 0);
        CHECK_INT(st.st_size, bytes);
        CHECK_INT(bytes, (1 + 8) * MAPPER_PAGE); /* the header, and nothing that was only read */
        CHECK_INT(build(&e), 0);
        check_image(1024, own_few);
        /* What is a hole in the base stays one, as far as the file system can tell. */
        CHECK(stat(image, &st) == 0 && st.st_blocks * 512 < 900 * (int64_t) MAPPER_PAGE);
}

static bool own_none(uint64_t page) {
        return false;
}

static void test_nothing_of_its_own(void) {
        static const char *const runs[] = {NULL};
        struct mapper m;
        uint64_t bytes = 0;

        REQUIRE(mapper_start(&m, base, MEMORY_BYTES, runs) >= 0);
        CHECK_INT(copy_pages(m.pid, MEMORY_BYTES, &bytes), 0);
        mapper_end(&m);
        CHECK_INT(bytes, MAPPER_PAGE);
        CHECK_INT(build(NULL), 0);
        check_image(1024, own_none);
}

static bool own_large(uint64_t page) {
        return page >= 5 && page < 5 + LARGE_PAGES;
}

static void test_more_than_the_buffer_holds(void) {
        static const char *const runs[] = {"5-20000", NULL};
        const uint64_t n = LARGE_PAGES + 100;
        struct mapper m;
        uint64_t bytes = 0;

        make_base(base, n);
        REQUIRE(mapper_start(&m, base, n * MAPPER_PAGE, runs) >= 0);
        CHECK_INT(copy_pages(m.pid, n * MAPPER_PAGE, &bytes), 0);
        mapper_end(&m);
        CHECK_INT(bytes, (1 + LARGE_PAGES) * MAPPER_PAGE);
        CHECK_INT(build(NULL), 0);
        check_image(n, own_large);
}

static void test_a_process_that_ends_meanwhile(void) {
        static const char *const runs[] = {"3-2", NULL};
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_close_ int fd = open(pages, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        _cleanup_page_copy_ struct page_copy *c = NULL;
        struct mapper m;

        make_base(base, 1024);
        REQUIRE(mapper_start(&m, base, MEMORY_BYTES, runs) >= 0);
        CHECK_INT(page_copy_begin(m.pid, base, MEMORY_BYTES, fd, &c, NULL), 0);
        mapper_end(&m);
        /* The process is gone: nothing that was found before may pass for its memory. */
        CHECK(c && page_copy_take(c, &op, NULL) < 0);
}

static void test_what_is_not_mapped(void) {
        static const char *const runs[] = {NULL};
        _cleanup_page_copy_ struct page_copy *c = NULL;
        struct mapper m;

        make_base(image, 1024);
        REQUIRE(mapper_start(&m, base, MEMORY_BYTES, runs) >= 0);
        CHECK_INT(page_copy_begin(m.pid, image, MEMORY_BYTES, -1, &c, NULL), -ENOENT);
        CHECK_INT(page_copy_begin(m.pid, base, 2 * MEMORY_BYTES, -1, &c, NULL), -ENOENT);
        mapper_end(&m);
        CHECK(!c);
}

/* Writes a pages file with this header and one run. */
static void write_pages(const struct pages_header *header, uint64_t first, uint64_t count, size_t n_pages) {
        const struct pages_run run = {.first = first, .count = count};
        _cleanup_free_ char *data = calloc(1 + n_pages, MAPPER_PAGE);

        memcpy(data, header, sizeof(*header));
        memcpy(data + sizeof(*header), &run, sizeof(run));
        CHECK_INT(file_write_atomic(pages, data, (1 + n_pages) * MAPPER_PAGE, 0600), 0);
}

static void test_damaged_pages(void) {
        struct pages_header good = {.magic = PAGES_MAGIC,
                                    .page_bytes = MAPPER_PAGE,
                                    .memory_bytes = MEMORY_BYTES,
                                    .n_runs = 1,
                                    .n_pages = 2,
                                    .data_offset = MAPPER_PAGE};
        struct pages_header bad[9];
        static const struct {
                uint64_t first, count;
        } runs[] = {{1023, 2}, {1024, 2}, {UINT64_MAX, 2}, {5, 0}, {5, 3}, {5, UINT64_MAX}, {UINT64_MAX - 1, 2}};

        make_base(base, 1024);
        write_pages(&good, 5, 2, 2);
        CHECK_INT(build(NULL), 0);
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                bad[i] = good;
        bad[0].magic[3] = 'x';
        bad[1].page_bytes = 0;
        bad[2].memory_bytes = UINT64_MAX;
        bad[3].n_runs = 3;
        bad[4].n_pages = 3;
        bad[5].data_offset = UINT64_MAX - MAPPER_PAGE + 1;
        bad[6].data_offset = 0;
        bad[7].n_runs = UINT64_MAX / 8;
        bad[8].memory_bytes = MEMORY_BYTES * 2; /* of another base */
        unlink(image);
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                _cleanup_error_ struct error e = ERROR_INIT;

                write_pages(&bad[i], 5, 2, 2);
                CHECK(build(&e) < 0 && error_is_set(&e));
        }
        for (size_t i = 0; i < ARRAY_SIZE(runs); i++) {
                write_pages(&good, runs[i].first, runs[i].count, 2);
                CHECK(build(NULL) < 0);
        }
        CHECK_INT(file_write_atomic(pages, &good, 20, 0600), 0);
        CHECK(build(NULL) < 0);
        CHECK(access(image, F_OK) < 0);
}

static void test_a_cancelled_build_leaves_nothing(void) {
        struct op op = op_timeout(PATIENCE_MS);
        static const char *const runs[] = {"3-2", NULL};
        struct mapper m;
        uint64_t bytes;
        _cleanup_free_ char *folder = path_join(dir, "out"), *out = path_join(folder, "image");

        make_base(base, 1024);
        REQUIRE(mkdir_p(folder, 0700) == 0 && mapper_start(&m, base, MEMORY_BYTES, runs) >= 0);
        CHECK_INT(copy_pages(m.pid, MEMORY_BYTES, &bytes), 0);
        mapper_end(&m);
        op.cancel = cancel_new();
        cancel_fire(op.cancel);
        CHECK_INT(memory_image_build(base, pages, out, &op, NULL), -ECANCELED);
        cancel_unref(op.cancel);
        CHECK_INT(rmdir(folder), 0);
}

int main(int argc, char **argv) {
        if (argc > 1)
                return mapper_main(argc, argv);
        if (!mkdtemp(dir))
                return 1;
        snprintf(base, sizeof(base), "%s/base", dir);
        snprintf(pages, sizeof(pages), "%s/pages", dir);
        snprintf(image, sizeof(image), "%s/image", dir);
        RUN(test_own_pages_over_the_base);
        RUN(test_nothing_of_its_own);
        RUN(test_more_than_the_buffer_holds);
        RUN(test_a_process_that_ends_meanwhile);
        RUN(test_what_is_not_mapped);
        RUN(test_damaged_pages);
        RUN(test_a_cancelled_build_leaves_nothing);
        rm_rf(dir);
        return tap_done();
}
