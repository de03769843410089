/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/beneath.h"
#include "base/file.h"
#include "base/str.h"
#include "base/thread.h"
#include "tap.h"

#define RACES 3000
#define RACES_MAX 300000 /* until both ends of the race have been seen */

static char top[64];    /* of the test */
static char folder[80]; /* set aside for transfers */
static struct beneath b;

static const char *in_top(const char *name) {
        static char path[512];

        snprintf(path, sizeof(path), "%s/%s", top, name);
        return path;
}

static void put(const char *name, const char *text) {
        if (file_write_atomic(in_top(name), text, strlen(text), 0640) < 0)
                abort();
}

static void begin(void) {
        strcpy(top, "/tmp/agentiso-beneath-XXXXXX");
        if (!mkdtemp(top))
                abort();
        strcpy(folder, in_top("folder"));
        if (mkdir(folder, 0700) < 0 || mkdir(in_top("folder/sub"), 0700) < 0 || mkdir(in_top("outside"), 0700) < 0 ||
            symlink("folder", in_top("alias")) < 0 || beneath_open(folder, &b, NULL) < 0)
                abort();
        put("outside/secret", "secret");
        put("folder/plain", "content");
        put("folder/sub/inner", "inner");
}

/* Entries of a folder, without "." and "..". */
static size_t count(const char *name) {
        DIR *d = opendir(in_top(name));
        size_t n = 0;

        while (d && readdir(d))
                n++;
        if (d)
                closedir(d);
        return n - 2;
}

/* What the relative path of a path is, or "". */
static const char *relative(const struct beneath *where, const char *path) {
        static char text[BENEATH_PATH_MAX];
        _cleanup_free_ char *r = NULL;
        _cleanup_error_ struct error err = ERROR_INIT;

        if (beneath_relative(where, path, &r, &err) < 0) {
                CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
                return "";
        }
        snprintf(text, sizeof(text), "%s", r);
        return text;
}

static void test_names(void) {
        static const char *const wrong[] = {
                "",        "/",          ".",      "..",      "../outside/secret", "sub/../../outside/secret",
                "sub/..",  "sub//inner", "plain/", "./plain", "sub/./inner",       "/etc/passwd",
                "/folder", "//plain",
        };
        char text[BENEATH_PATH_MAX + 64];

        CHECK_STR(relative(&b, "plain"), "plain");
        CHECK_STR(relative(&b, "sub/inner"), "sub/inner");
        CHECK_STR(relative(&b, "..hidden/a..b"), "..hidden/a..b");
        snprintf(text, sizeof(text), "%s/sub/inner", folder);
        CHECK_STR(relative(&b, text), "sub/inner");
        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
                CHECK_STR(relative(&b, wrong[i]), "");

        /* The folder itself, a neighbour whose name begins with its name, and a way out of it. */
        CHECK_STR(relative(&b, folder), "");
        snprintf(text, sizeof(text), "%s-other/x", folder);
        CHECK_STR(relative(&b, text), "");
        snprintf(text, sizeof(text), "%s/../outside/secret", folder);
        CHECK_STR(relative(&b, text), "");

        memset(text, 'x', sizeof(text));
        text[NAME_MAX] = 0;
        CHECK_INT(strlen(relative(&b, text)), NAME_MAX);
        text[NAME_MAX] = 'x';
        text[NAME_MAX + 1] = 0;
        CHECK_STR(relative(&b, text), "");
        for (size_t i = 0; i < sizeof(text); i++)
                text[i] = i % 2 ? '/' : 'x';
        text[BENEATH_PATH_MAX + 1] = 0;
        CHECK_STR(relative(&b, text), "");
}

static void test_a_folder_behind_a_link(void) {
        _cleanup_beneath_ struct beneath alias = BENEATH_INIT;
        char text[1024];

        snprintf(text, sizeof(text), "%s//", in_top("alias"));
        REQUIRE(beneath_open(text, &alias, NULL) == 0);
        CHECK_STR(alias.real, folder);
        snprintf(text, sizeof(text), "%s/plain", in_top("alias"));
        CHECK_STR(relative(&alias, text), "plain");
        snprintf(text, sizeof(text), "%s/plain", folder);
        CHECK_STR(relative(&alias, text), "plain");

        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_beneath_ struct beneath none = BENEATH_INIT;
        CHECK(beneath_open(in_top("none"), &none, &err) < 0);
        CHECK_INT(err.code, ERROR_NOT_FOUND);
}

/* Opens a file for reading: its size, or minus the code of the error. */
static int64_t read_size(const char *name, struct error *err) {
        struct stat st;

        _cleanup_close_ int fd = beneath_read(&b, name, &st, err);
        if (fd >= 0)
                return st.st_size;
        CHECK(error_is_set(err));
        return -(int64_t) err->code;
}

static void expect_read(const char *name, int64_t want) {
        _cleanup_error_ struct error err = ERROR_INIT;
        int64_t got = read_size(name, &err);

        if (got != want)
                printf("# %s\n", name);
        CHECK_INT(got, want);
}

static void test_reading(void) {
        expect_read("plain", 7);
        expect_read("sub/inner", 5);
        expect_read("sub", -ERROR_INVALID_ARGUMENT);
        expect_read("none", -ERROR_NOT_FOUND);

        _cleanup_error_ struct error near = ERROR_INIT, far = ERROR_INIT, dir = ERROR_INIT;
        read_size("sub/innr", &near);
        CHECK(strstr(near.hint, "Did you mean sub/inner?"));
        read_size("sub/nothing-alike", &far);
        CHECK(strstr(far.hint, folder));
        read_size("sub", &dir);
        CHECK(strstr(error_message(&dir), "a directory") && strstr(dir.hint, "tar"));
}

static void test_links(void) {
        static const struct {
                const char *name, *target;
                int64_t want;
        } links[] = {
                {"to-plain", "plain", 7},
                {"to-inner", "sub/inner", 5},
                {"sub/up", "../plain", 7},
                {"sub/out", "../../outside/secret", -ERROR_INVALID_ARGUMENT},
                {"out", "../outside/secret", -ERROR_INVALID_ARGUMENT},
                {"absolute", "/etc/passwd", -ERROR_INVALID_ARGUMENT},
                {"magic", "/proc/self/root/etc/passwd", -ERROR_INVALID_ARGUMENT},
                {"loop", "loop", -ERROR_INVALID_ARGUMENT},
                {"dangling", "not-there", -ERROR_NOT_FOUND},
        };
        _cleanup_free_ char *inside = str_printf("%s/plain", folder);
        char path[512];

        for (size_t i = 0; i < ARRAY_SIZE(links); i++) {
                snprintf(path, sizeof(path), "%s/%s", folder, links[i].name);
                if (symlink(links[i].target, path) < 0)
                        abort();
                expect_read(links[i].name, links[i].want);
        }
        /* Even to a place in the folder: what is absolute is not followed. */
        if (symlink(inside, in_top("folder/absolute-inside")) < 0 || symlink("../outside", in_top("folder/dir")) < 0)
                abort();
        expect_read("absolute-inside", -ERROR_INVALID_ARGUMENT);
        expect_read("dir/secret", -ERROR_INVALID_ARGUMENT);
}

/* With the folder set to /proc/self, so that its magic links are beneath it. */
static void test_magic_links(void) {
        _cleanup_beneath_ struct beneath proc = BENEATH_INIT;
        struct stat st;

        REQUIRE(beneath_open("/proc/self", &proc, NULL) == 0);
        _cleanup_close_ int ok = beneath_read(&proc, "status", &st, NULL);
        CHECK(ok >= 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int root = beneath_read(&proc, "root/etc/passwd", &st, &err);
        CHECK(root < 0);
        CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
        _cleanup_close_ int exe = beneath_read(&proc, "exe", &st, &err);
        CHECK(exe < 0);
        CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
}

/* None of these may be waited for. */
static void test_what_is_no_file(void) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        _cleanup_close_ int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", folder);
        if (mkfifo(in_top("folder/fifo"), 0600) < 0 || bind(sock, (struct sockaddr *) &address, sizeof(address)) < 0)
                abort();
        expect_read("fifo", -ERROR_INVALID_ARGUMENT);
        expect_read("socket", -ERROR_INVALID_ARGUMENT);
        /* Needs root; without it there is nothing to be refused. */
        if (mknod(in_top("folder/device"), S_IFCHR | 0600, 5 << 8) == 0)
                expect_read("device", -ERROR_INVALID_ARGUMENT);
}

static int write_file(const char *name, const char *text, mode_t mode, bool commit, struct error *err) {
        _cleanup_beneath_file_ struct beneath_file f = BENEATH_FILE_INIT;

        int r = beneath_create(&b, name, &f, err);
        if (r < 0)
                return r;
        if (write(f.fd, text, strlen(text)) != (ssize_t) strlen(text))
                return -EIO;
        return commit ? beneath_commit(&f, mode, err) : 0;
}

static void expect_content(const char *name, const char *want) {
        _cleanup_free_ char *text = NULL;

        CHECK_INT(file_read_all(in_top(name), 100, &text, NULL), 0);
        CHECK_STR(text, want);
}

static void test_writing(void) {
        size_t before = count("folder");
        struct stat st;

        CHECK_INT(write_file("new", "one", 0644, true, NULL), 0);
        CHECK_INT(count("folder"), before + 1);
        expect_content("folder/new", "one");
        REQUIRE(stat(in_top("folder/new"), &st) == 0);
        CHECK_INT(st.st_mode & 07777, 0644);

        CHECK_INT(write_file("new", "two", 0400, true, NULL), 0);
        expect_content("folder/new", "two");
        CHECK_INT(count("folder"), before + 1);

        CHECK_INT(write_file("new", "three", 0644, false, NULL), 0);
        expect_content("folder/new", "two");
        CHECK_INT(count("folder"), before + 1);

        CHECK_INT(write_file("deep/er/file", "x", 0600, true, NULL), 0);
        expect_content("folder/deep/er/file", "x");
        /* Folders that were made for nothing go again, those that were there stay. */
        CHECK_INT(write_file("deep/a/b/c/file", "x", 0600, false, NULL), 0);
        CHECK_INT(count("folder/deep"), 1);
}

static void test_writing_is_refused(void) {
        static const struct {
                const char *name;
                enum error_code want;
        } wrong[] = {
                {"sub", ERROR_INVALID_ARGUMENT},
                {"plain/below", ERROR_INVALID_ARGUMENT},
                {"fifo", ERROR_INVALID_ARGUMENT},
                {"to-plain", ERROR_INVALID_ARGUMENT},
                {"out", ERROR_INVALID_ARGUMENT},
                {"dir/new", ERROR_INVALID_ARGUMENT},
                {"absolute/new", ERROR_INVALID_ARGUMENT},
                {BENEATH_TEMPORARY "0123456789abcdef", ERROR_INVALID_ARGUMENT},
        };
        size_t before = count("folder");

        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;

                CHECK(write_file(wrong[i].name, "evil", 0600, true, &err) < 0);
                CHECK_INT(err.code, wrong[i].want);
        }
        CHECK_INT(count("folder"), before);
        CHECK_INT(count("outside"), 1);
        expect_content("outside/secret", "secret");
        expect_content("folder/plain", "content");
}

static void test_left_over_files(void) {
        _cleanup_close_ int held =
                open(in_top("folder/" BENEATH_TEMPORARY "00000000000000aa"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

        REQUIRE(held >= 0 && flock(held, LOCK_EX) == 0);
        put("folder/" BENEATH_TEMPORARY "00000000000000bb", "left over");
        put("folder/" BENEATH_TEMPORARY "kept", "another name");
        put("folder/sub/" BENEATH_TEMPORARY "00000000000000cc", "left over");
        beneath_tidy(&b);
        CHECK(access(in_top("folder/" BENEATH_TEMPORARY "00000000000000aa"), F_OK) == 0);
        CHECK(access(in_top("folder/" BENEATH_TEMPORARY "00000000000000bb"), F_OK) < 0);
        CHECK(access(in_top("folder/" BENEATH_TEMPORARY "kept"), F_OK) == 0);
        CHECK_INT(write_file("sub/new", "x", 0600, true, NULL), 0);
        CHECK(access(in_top("folder/sub/" BENEATH_TEMPORARY "00000000000000cc"), F_OK) < 0);
}

static atomic_bool racing;

/* Exchanges folder/race, a directory, and folder/swap, a link to the outside, as fast as it goes. */
static void *swap_main(void *arg) {
        char dir[512], link[512];

        snprintf(dir, sizeof(dir), "%s/race", folder);
        snprintf(link, sizeof(link), "%s/swap", folder);
        while (atomic_load(&racing))
                if (renameat2(AT_FDCWD, dir, AT_FDCWD, link, RENAME_EXCHANGE) < 0)
                        abort();
        return NULL;
}

static void test_a_directory_that_becomes_a_link(void) {
        unsigned opened = 0, refused = 0;
        pthread_t thread;

        if (mkdir(in_top("folder/race"), 0700) < 0 || symlink("../outside", in_top("folder/swap")) < 0)
                abort();
        put("folder/race/secret", "harmless");
        atomic_store(&racing, true);
        REQUIRE(thread_start(&thread, "swap", swap_main, NULL) == 0);
        for (unsigned i = 0; i < RACES || (i < RACES_MAX && (opened == 0 || refused == 0)); i++) {
                struct stat st;

                _cleanup_close_ int fd = beneath_read(&b, "race/secret", &st, NULL);
                opened += fd >= 0;
                refused += fd < 0;
                CHECK(fd < 0 || st.st_size == 8);
                (void) write_file("race/made/file", "x", 0600, i % 2, NULL);
        }
        atomic_store(&racing, false);
        pthread_join(thread, NULL);
        /* Both have happened, or nothing was raced for. */
        CHECK(opened > 0 && refused > 0);
        CHECK_INT(count("outside"), 1);
        expect_content("outside/secret", "secret");
}

int main(void) {
        begin();
        RUN(test_names);
        RUN(test_a_folder_behind_a_link);
        RUN(test_reading);
        RUN(test_links);
        RUN(test_magic_links);
        RUN(test_what_is_no_file);
        RUN(test_writing);
        RUN(test_writing_is_refused);
        RUN(test_left_over_files);
        RUN(test_a_directory_that_becomes_a_link);
        beneath_close(&b);
        rm_rf(top);
        return tap_done();
}
