/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

#include "base/file.h"
#include "base/str.h"
#include "tap.h"

static char dir[] = "/tmp/agentiso-test-file-XXXXXX";

static char *in_dir(const char *name) {
        return path_join(dir, name);
}

static bool exists(const char *path) {
        struct stat st;

        return lstat(path, &st) == 0;
}

static int count_entries(const char *path) {
        DIR *d = opendir(path);
        int n = 0;

        while (d && readdir(d))
                n++;
        if (d)
                closedir(d);
        return n - 2; /* "." and ".." */
}

static void check_join(const char *a, const char *b, const char *want) {
        _cleanup_free_ char *got = path_join(a, b);

        CHECK_STR(got, want);
}

static void test_join(void) {
        check_join("a", "b", "a/b");
        check_join("a/", "b", "a/b");
        check_join("a//", "//b", "a/b");
        check_join("/", "b", "/b");
        check_join("/a", "b/c", "/a/b/c");
        check_join("", "b", "b");
}

static void test_read_all(void) {
        _cleanup_free_ char *path = in_dir("read"), *text = NULL, *none = NULL;
        size_t n = 99;

        CHECK_INT(file_read_all(path, 10, &none, &n), -ENOENT);
        CHECK_INT(file_write_atomic(path, "0123456789", 10, 0600), 0);
        CHECK_INT(file_read_all(path, 9, &none, &n), -EFBIG);
        CHECK(none == NULL && n == 99);
        CHECK_INT(file_read_all(path, 10, &text, &n), 0);
        CHECK_STR(text, "0123456789");
        CHECK_INT(n, 10);
        CHECK_INT(file_read_all(dir, 10, &none, NULL), -EISDIR);

        _cleanup_free_ char *empty = NULL, *proc = NULL;
        CHECK_INT(file_write_atomic(path, NULL, 0, 0600), 0);
        CHECK_INT(file_read_all(path, 0, &empty, &n), 0);
        CHECK_STR(empty, "");
        CHECK_INT(n, 0);
        CHECK_INT(file_read_all("/proc/self/status", 1 << 20, &proc, &n), 0); /* its size is said to be 0 */
        CHECK(n > 100 && strlen(proc) == n);
        CHECK_INT(file_read_all("/dev/zero", 100000, &none, &n), -EFBIG); /* no end, but a limit */
        CHECK_INT(file_read_all("/proc/self/status", 100, &none, &n), -EFBIG);

        /* A named pipe that nobody writes to holds nobody up. */
        _cleanup_free_ char *fifo = path_join(dir, "fifo"), *nothing = NULL;
        REQUIRE(mkfifo(fifo, 0600) == 0);
        CHECK_INT(file_read_all(fifo, 10, &nothing, &n), 0);
        CHECK_INT(n, 0);
        unlink(fifo);
}

static void test_write_atomic(void) {
        _cleanup_free_ char *sub = in_dir("w"), *path = in_dir("w/file"), *text = NULL;
        struct stat st;

        CHECK_INT(file_write_atomic(path, "x", 1, 0600), -ENOENT);
        CHECK_INT(mkdir_p(sub, 0700), 0);
        mode_t mask = umask(077);
        CHECK_INT(file_write_atomic(path, "old", 3, 0644), 0);
        umask(mask);
        REQUIRE(stat(path, &st) == 0);
        CHECK_INT(st.st_mode & 07777, 0644); /* whatever the umask */

        /* Who has the old file open keeps the old content. */
        _cleanup_close_ int old = open(path, O_RDONLY | O_CLOEXEC);
        CHECK_INT(file_write_atomic(path, "new content", 11, 0600), 0);
        char b[4] = "";
        CHECK_INT(read(old, b, 3), 3);
        CHECK_STR(b, "old");
        CHECK_INT(file_read_all(path, 100, &text, NULL), 0);
        CHECK_STR(text, "new content");
        CHECK_INT(count_entries(sub), 1);

        char longest[256];
        memset(longest, 'n', 255);
        longest[255] = 0;
        _cleanup_free_ char *long_path = path_join(sub, longest);
        CHECK_INT(file_write_atomic(long_path, "x", 1, 0600), 0);

        CHECK_INT(file_write_atomic(sub, "x", 1, 0600), -EISDIR); /* a folder is not replaced */
        _cleanup_free_ char *slash = in_dir("w/");
        CHECK_INT(file_write_atomic(slash, "x", 1, 0600), -EISDIR);
        CHECK_INT(count_entries(sub), 2); /* nothing temporary stays behind a failure */
        CHECK_INT(count_entries(dir), 2);
        rm_rf(sub);
}

static void test_mkdir_p(void) {
        _cleanup_free_ char *deep = in_dir("a/b//c/"), *file = in_dir("a/file"), *below = in_dir("a/file/x");
        _cleanup_free_ char *a = in_dir("a");
        struct stat st;

        CHECK_INT(mkdir_p(deep, 0750), 0);
        CHECK_INT(mkdir_p(deep, 0750), 0);
        REQUIRE(stat(a, &st) == 0);
        CHECK_INT(st.st_mode & 0777, 0750);
        CHECK_INT(mkdir_p("/", 0700), 0);
        CHECK_INT(mkdir_p("", 0700), -EINVAL);
        CHECK_INT(file_write_atomic(file, "", 0, 0600), 0);
        CHECK_INT(mkdir_p(file, 0700), -ENOTDIR);
        CHECK_INT(mkdir_p(below, 0700), -ENOTDIR);
}

static void test_rm_rf(void) {
        _cleanup_free_ char *tree = in_dir("t"), *deep = in_dir("t/1/2/3"), *file = in_dir("t/1/2/f");
        _cleanup_free_ char *outside = in_dir("outside"), *kept = in_dir("outside/kept");
        _cleanup_free_ char *link = in_dir("t/1/link"), *top = in_dir("top"), *slashed = in_dir("t//");

        CHECK_INT(rm_rf(tree), 0); /* not there */
        CHECK_INT(mkdir_p(deep, 0700), 0);
        CHECK_INT(mkdir_p(outside, 0700), 0);
        CHECK_INT(file_write_atomic(file, "x", 1, 0400), 0);
        CHECK_INT(file_write_atomic(kept, "x", 1, 0600), 0);
        CHECK_INT(symlink(outside, link), 0);
        CHECK_INT(symlink(outside, top), 0);
        CHECK_INT(rm_rf(file), 0);
        CHECK(!exists(file));
        CHECK_INT(rm_rf(slashed), 0);
        CHECK(!exists(tree));
        CHECK_INT(rm_rf(top), 0); /* the link, not what it leads to */
        CHECK(!exists(top));
        CHECK(exists(kept));
        CHECK_INT(rm_rf(outside), 0);
        CHECK_INT(rm_rf("/no/such/folder/at/all"), 0);
        CHECK_INT(rm_rf("/"), -EINVAL);
        CHECK_INT(rm_rf("."), -EINVAL);
        CHECK_INT(rm_rf(".."), -EINVAL);
        CHECK_INT(rm_rf(""), -EINVAL);
}

static void test_rm_rf_many(void) {
        _cleanup_free_ char *tree = in_dir("many");

        REQUIRE(mkdir_p(tree, 0700) == 0);
        for (int i = 0; i < 3000; i++) {
                _cleanup_free_ char *path = str_printf("%s/%d", tree, i);
                int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
                REQUIRE(fd >= 0);
                close_fd(fd);
        }
        CHECK_INT(rm_rf(tree), 0);
        CHECK(!exists(tree));
}

static void test_rm_rf_depth(void) {
        _cleanup_free_ char *tree = in_dir("deep");
        _cleanup_buf_ struct buf path = BUF_INIT(4096);
        struct stat st;

        REQUIRE(buf_append_str(&path, tree) == 0);
        for (int i = 0; i < 250; i++)
                REQUIRE(buf_append_str(&path, "/d") == 0);
        REQUIRE(mkdir_p(path.data, 0700) == 0);
        CHECK_INT(rm_rf(tree), 0);
        CHECK(!exists(tree));

        for (int i = 0; i < 20; i++)
                REQUIRE(buf_append_str(&path, "/d") == 0);
        REQUIRE(mkdir_p(path.data, 0700) == 0);
        CHECK_INT(rm_rf(tree), -ELOOP);
        CHECK_INT(stat(tree, &st), 0);
        _cleanup_free_ char *part = str_printf("%s/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d", tree);
        CHECK_INT(rm_rf(part), 0); /* from further down it is within the limit */
        CHECK_INT(rm_rf(tree), 0);
}

static bool write_proc(const char *path, const char *text) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t) strlen(text);
}

/* Mounts of our own, for an ordinary user inside a user namespace. False where the system forbids even that. */
static bool enter_mount_namespace(void) {
        if (geteuid() == 0) {
                if (unshare(CLONE_NEWNS) < 0)
                        return false;
        } else {
                _cleanup_free_ char *uid = str_printf("0 %u 1", geteuid()), *gid = str_printf("0 %u 1", getegid());

                if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 || !write_proc("/proc/self/setgroups", "deny") ||
                    !write_proc("/proc/self/uid_map", uid) || !write_proc("/proc/self/gid_map", gid))
                        return false;
        }
        /* In a chroot "/" is no mount point (EINVAL); whoever made it keeps its mounts to itself. */
        return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 || errno == EINVAL;
}

static void test_rm_rf_stops_at_mounts(void) {
        _cleanup_free_ char *tree = in_dir("m"), *target = in_dir("m/bind"), *other = in_dir("other");
        _cleanup_free_ char *kept = in_dir("other/kept"), *plain = in_dir("m/plain");

        REQUIRE(mkdir_p(target, 0700) == 0 && mkdir_p(other, 0700) == 0);
        REQUIRE(file_write_atomic(kept, "x", 1, 0600) == 0 && file_write_atomic(plain, "x", 1, 0600) == 0);
        if (!enter_mount_namespace()) {
                printf("# not checked: neither root nor user namespaces here\n");
        } else {
                /* A bind mount has the same device: comparing devices alone would walk through it. */
                REQUIRE(mount(other, target, NULL, MS_BIND, NULL) == 0);
                CHECK_INT(rm_rf(tree), -EXDEV);
                CHECK(exists(kept));
                CHECK(!exists(plain)); /* what can go is gone */
                CHECK_INT(rm_rf(target), -EXDEV);
                CHECK_INT(umount(target), 0);

                REQUIRE(mount("none", target, "tmpfs", 0, NULL) == 0);
                _cleanup_free_ char *inside = in_dir("m/bind/kept");
                CHECK_INT(file_write_atomic(inside, "x", 1, 0600), 0);
                CHECK_INT(rm_rf(tree), -EXDEV);
                CHECK(exists(inside));
                CHECK_INT(umount(target), 0);
        }
        CHECK_INT(rm_rf(tree), 0);
        CHECK_INT(rm_rf(other), 0);
}

static void test_lock(void) {
        _cleanup_free_ char *path = in_dir("lock");
        int fd = file_lock(path);

        REQUIRE(fd >= 0);
        CHECK_INT(fcntl(fd, F_GETFD), FD_CLOEXEC);
        CHECK_INT(file_lock(path), -EWOULDBLOCK);
        close_fd(fd);
        fd = file_lock(path);
        CHECK(fd >= 0);
        close_fd(fd);
}

static void test_disk_free(void) {
        uint64_t n = 0;

        CHECK_INT(disk_free_bytes("/", &n), 0);
        CHECK(n > 0);
        CHECK_INT(disk_free_bytes("/no/such/folder", &n), -ENOENT);
}

static void test_find_program(void) {
        _cleanup_free_ char *saved = strdup(getenv("PATH") ? getenv("PATH") : ""), *found = NULL, *none = NULL;
        _cleanup_free_ char *bin = in_dir("bin"), *program = in_dir("bin/agentiso-test-program");
        _cleanup_free_ char *data = in_dir("bin/agentiso-test-data"), *path = str_printf("relative::%s", bin);

        REQUIRE(mkdir_p(bin, 0700) == 0);
        CHECK_INT(file_write_atomic(program, "#!/bin/sh\n", 10, 0700), 0);
        CHECK_INT(file_write_atomic(data, "", 0, 0600), 0);
        setenv("PATH", path, 1);
        CHECK_INT(find_program("agentiso-test-program", &found), 0);
        CHECK_STR(found, program);
        CHECK_INT(find_program("agentiso-test-data", &none), -ENOENT); /* not executable */
        CHECK_INT(find_program("no-such-program-at-all", &none), -ENOENT);
        CHECK_INT(find_program("", &none), -ENOENT);
        CHECK_INT(find_program(data, &none), -ENOENT);
        CHECK_INT(find_program(bin, &none), -ENOENT); /* a folder is executable too */
        CHECK(!none);

        _cleanup_free_ char *sh = NULL, *given = NULL;
        CHECK_INT(find_program(program, &given), 0);
        CHECK_STR(given, program);
        unsetenv("PATH");
        CHECK_INT(find_program("sh", &sh), 0); /* the usual folders are searched also when PATH lacks them */
        CHECK(sh && sh[0] == '/');
        setenv("PATH", saved, 1);
}

int main(void) {
        if (!mkdtemp(dir))
                return 1;
        umask(022);
        RUN(test_join);
        RUN(test_read_all);
        RUN(test_write_atomic);
        RUN(test_mkdir_p);
        RUN(test_rm_rf);
        RUN(test_rm_rf_many);
        RUN(test_rm_rf_depth);
        RUN(test_lock);
        RUN(test_disk_free);
        RUN(test_find_program);
        RUN(test_rm_rf_stops_at_mounts);
        rm_rf(dir);
        return tap_done();
}
