/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of a running process as files: which pages, which content, and files that are not as they ought to be. */
#include <sys/stat.h>

#include "base/file.h"
#include "base/thread.h"
#include "mapper.h"
#include "tap.h"
#include "vm/memory.h"

#define PATIENCE_MS 60000
#define MEMORY_BYTES (1024u * MAPPER_PAGE)
#define LARGE_PAGES 20000u /* for several threads */

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
                r = page_copy_finish(c, true, ret_bytes, &e);
        if (r < 0)
                printf("# %s\n", error_message(&e));
        return r;
}

static int build(struct error *e) {
        const struct op op = op_timeout(PATIENCE_MS);

        return memory_image_build(base, pages, image, false, &op, e);
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

static void test_many_pages(void) {
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

/* Bytes of this process that are in memory. */
static uint64_t resident(void) {
        _cleanup_free_ char *text = NULL;
        unsigned long long size = 0, pages_in = 0;

        CHECK(file_read_all("/proc/self/statm", 4096, &text, NULL) >= 0 &&
              sscanf(text, "%llu %llu", &size, &pages_in) == 2);
        return pages_in * MAPPER_PAGE;
}

/* What a copy takes is given back with it. */
static void test_memory_is_given_back(void) {
        static const char *const runs[] = {"5-20000", NULL};
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_close_ int fd = open(pages, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        const uint64_t n = LARGE_PAGES + 100;
        struct page_copy *c = NULL;
        struct mapper m;

        make_base(base, n);
        REQUIRE(mapper_start(&m, base, n * MAPPER_PAGE, runs) >= 0);
        const uint64_t before = resident();
        REQUIRE(page_copy_begin(m.pid, base, n * MAPPER_PAGE, fd, &c, NULL) >= 0);
        CHECK_INT(page_copy_take(c, &op, NULL), 0);
        CHECK(resident() > before + LARGE_PAGES * MAPPER_PAGE / 2); /* so it is seen here */
        page_copy_free(c);
        CHECK(resident() < before + LARGE_PAGES * MAPPER_PAGE / 4);
        mapper_end(&m);
}

static bool own_every_third(uint64_t page) {
        return page % 3 == 0;
}

/* Runs that no thread's part begins or ends with. */
static void test_scattered_pages(void) {
        static const char *const runs[] = {"every-3", NULL};
        const uint64_t n = LARGE_PAGES;
        struct mapper m;
        uint64_t bytes = 0;

        make_base(base, n);
        REQUIRE(mapper_start(&m, base, n * MAPPER_PAGE, runs) >= 0);
        CHECK_INT(copy_pages(m.pid, n * MAPPER_PAGE, &bytes), 0);
        mapper_end(&m);
        CHECK_INT(build(NULL), 0);
        check_image(n, own_every_third);
}

/* More than there is room for: the rest goes to the file at once. */
static void test_pages_that_came_after_the_beginning(void) {
        static const char *const runs[] = {NULL};
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_close_ int fd = open(pages, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        _cleanup_page_copy_ struct page_copy *c = NULL;
        const uint64_t n = LARGE_PAGES + 100;
        _cleanup_free_ char *data = malloc(LARGE_PAGES * (size_t) MAPPER_PAGE), *path = NULL;
        struct mapper m;
        uint64_t bytes = 0;

        make_base(base, n);
        REQUIRE(data && mapper_start(&m, base, n * MAPPER_PAGE, runs) >= 0);
        CHECK_INT(page_copy_begin(m.pid, base, n * MAPPER_PAGE, fd, &c, NULL), 0);
        for (uint64_t i = 0; i < LARGE_PAGES; i++)
                memset(data + i * MAPPER_PAGE, mapper_byte(5 + i), MAPPER_PAGE);
        path = str_printf("/proc/%d/mem", (int) m.pid);
        _cleanup_close_ int memory = open(path, O_RDWR | O_CLOEXEC);
        CHECK_INT(pwrite(memory, data, LARGE_PAGES * (size_t) MAPPER_PAGE, (off_t) (m.address + 5 * MAPPER_PAGE)),
                  LARGE_PAGES * (size_t) MAPPER_PAGE);
        CHECK_INT(page_copy_take(c, &op, NULL), 0);
        mapper_end(&m);
        CHECK_INT(page_copy_finish(c, false, &bytes, NULL), 0);
        CHECK_INT(bytes, (1 + LARGE_PAGES) * MAPPER_PAGE);
        CHECK_INT(build(NULL), 0);
        check_image(n, own_large);
}

/* --- pages into a process --- */

static int lay(const struct mapper *m, uint64_t bytes, struct error *e) {
        const struct op op = op_timeout(PATIENCE_MS);

        return pages_apply(m->pid, base, bytes, pages, &op, e);
}

/* The pages of one process in another that has some of its own: both are copied from there. */
static void test_pages_over_a_mapping(void) {
        static const char *const runs[] = {"0-1", "10-5", NULL}, *const others[] = {"16-1", "1000-1", NULL};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct mapper from, to;
        uint64_t bytes = 0;
        struct stat before, after;

        make_base(base, 1024);
        CHECK(stat(base, &before) == 0);
        REQUIRE(mapper_start(&from, base, MEMORY_BYTES, runs) >= 0);
        CHECK_INT(copy_pages(from.pid, MEMORY_BYTES, &bytes), 0);
        mapper_end(&from);
        REQUIRE(mapper_start(&to, base, MEMORY_BYTES, others) >= 0);
        CHECK_INT(lay(&to, MEMORY_BYTES, &e), 0);
        CHECK_INT(copy_pages(to.pid, MEMORY_BYTES, &bytes), 0);
        CHECK_INT(bytes, (1 + 8) * MAPPER_PAGE);
        mapper_end(&to);
        CHECK_INT(build(&e), 0);
        check_image(1024, own_few);
        CHECK(stat(base, &after) == 0 && before.st_mtim.tv_sec == after.st_mtim.tv_sec &&
              before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
}

/* The most that one read or write carries is not the most that there is. */
static void test_many_pages_over_a_mapping(void) {
        static const char *const runs[] = {"5-20000", NULL}, *const none[] = {NULL};
        const uint64_t n = LARGE_PAGES + 100;
        struct mapper from, to;
        uint64_t bytes = 0;

        make_base(base, n);
        REQUIRE(mapper_start(&from, base, n * MAPPER_PAGE, runs) >= 0);
        CHECK_INT(copy_pages(from.pid, n * MAPPER_PAGE, &bytes), 0);
        mapper_end(&from);
        REQUIRE(mapper_start(&to, base, n * MAPPER_PAGE, none) >= 0);
        CHECK_INT(lay(&to, n * MAPPER_PAGE, NULL), 0);
        CHECK_INT(copy_pages(to.pid, n * MAPPER_PAGE, &bytes), 0);
        mapper_end(&to);
        CHECK_INT(build(NULL), 0);
        check_image(n, own_large);
}

static void *drop_and_lay(void *arg) {
        static struct error e;
        struct mapper *m = arg;

        unprivileged_thread();
        error_clear(&e);
        int r = lay(m, MEMORY_BYTES, &e);
        CHECK(r == -EPERM || r == -EACCES);
        printf("# %s\n", error_message(&e));
        error_clear(&e);
        return NULL;
}

static void test_a_process_that_may_not_be_written(void) {
        static const char *const runs[] = {"3-2", NULL}, *const hidden[] = {MAPPER_HIDDEN, NULL};
        struct mapper from, to;
        uint64_t bytes = 0;
        pthread_t thread;

        make_base(base, 1024);
        REQUIRE(mapper_start(&from, base, MEMORY_BYTES, runs) >= 0);
        CHECK_INT(copy_pages(from.pid, MEMORY_BYTES, &bytes), 0);
        mapper_end(&from);
        REQUIRE(mapper_start(&to, base, MEMORY_BYTES, hidden) >= 0);
        REQUIRE(thread_start(&thread, "lay", drop_and_lay, &to) >= 0);
        pthread_join(thread, NULL);
        mapper_end(&to);
}

static void test_pages_that_nobody_maps(void) {
        static const char *const runs[] = {"3-2", NULL};
        struct op op = op_timeout(PATIENCE_MS);
        struct mapper m;
        uint64_t bytes = 0;

        make_base(base, 1024);
        make_base(image, 1024);
        REQUIRE(mapper_start(&m, base, MEMORY_BYTES, runs) >= 0);
        CHECK_INT(copy_pages(m.pid, MEMORY_BYTES, &bytes), 0);
        CHECK_INT(pages_apply(m.pid, image, MEMORY_BYTES, pages, &op, NULL), -ENOENT);
        CHECK(pages_apply(m.pid, base, 2 * MEMORY_BYTES, pages, &op, NULL) < 0);
        op.cancel = cancel_new();
        cancel_fire(op.cancel);
        CHECK_INT(pages_apply(m.pid, base, MEMORY_BYTES, pages, &op, NULL), -ECANCELED);
        cancel_unref(op.cancel);
        mapper_end(&m);
        CHECK(lay(&m, MEMORY_BYTES, NULL) < 0); /* it is gone */
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

/* Neither way takes them, and the process keeps what it has. */
static void check_damaged(const struct mapper *m) {
        _cleanup_error_ struct error e = ERROR_INIT, again = ERROR_INIT;

        CHECK(build(&e) < 0 && error_is_set(&e));
        CHECK(lay(m, MEMORY_BYTES, &again) < 0 && error_is_set(&again));
}

static void test_damaged_pages(void) {
        static const char *const none[] = {NULL};
        struct mapper m;
        uint64_t bytes = 0;
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
        REQUIRE(mapper_start(&m, base, MEMORY_BYTES, none) >= 0);
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
                write_pages(&bad[i], 5, 2, 2);
                check_damaged(&m);
        }
        for (size_t i = 0; i < ARRAY_SIZE(runs); i++) {
                write_pages(&good, runs[i].first, runs[i].count, 2);
                check_damaged(&m);
        }
        CHECK_INT(file_write_atomic(pages, &good, 20, 0600), 0);
        check_damaged(&m);
        CHECK(access(image, F_OK) < 0);
        CHECK_INT(copy_pages(m.pid, MEMORY_BYTES, &bytes), 0);
        CHECK_INT(bytes, MAPPER_PAGE);
        mapper_end(&m);
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
        CHECK_INT(memory_image_build(base, pages, out, true, &op, NULL), -ECANCELED);
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
        RUN(test_many_pages);
        RUN(test_memory_is_given_back);
        RUN(test_scattered_pages);
        RUN(test_pages_that_came_after_the_beginning);
        RUN(test_a_process_that_ends_meanwhile);
        RUN(test_what_is_not_mapped);
        RUN(test_pages_over_a_mapping);
        RUN(test_many_pages_over_a_mapping);
        RUN(test_a_process_that_may_not_be_written);
        RUN(test_pages_that_nobody_maps);
        RUN(test_damaged_pages);
        RUN(test_a_cancelled_build_leaves_nothing);
        rm_rf(dir);
        return tap_done();
}
