/* SPDX-License-Identifier: Apache-2.0 */
/* The process that keeps the namespaces: its lock, its privileges, its end. */
#include <sys/file.h>

#include "fixture.h"

static char dir[] = "/tmp/test-holder-XXXXXX";
static char *lock_path;

static void test_says_who_it_is(void) {
        _cleanup_close_ int lock = file_lock(lock_path);
        struct proc_id id;
        struct holder h;

        CHECK_INT(lockfile_holder(lock_path, &id), -ESRCH);
        REQUIRE(lock >= 0);
        REQUIRE(holder_start(lock, &h) == 0);
        lock = close_fd(lock); /* it goes on holding the lock that was ours */
        CHECK_INT(file_lock(lock_path), -EWOULDBLOCK);
        REQUIRE(lockfile_holder(lock_path, &id) == 0);
        CHECK_INT(id.pid, h.pid);
        CHECK(says(&h, "ip -o link", "lo"));

        CHECK_INT(kill(h.pid, SIGTERM), 0);
        CHECK_INT(exit_status(h.pid), 128 + SIGTERM);
        CHECK_INT(lockfile_holder(lock_path, &id), -ESRCH);
        lock = file_lock(lock_path);
        CHECK(lock >= 0);
        holder_end(&h);
}

static void test_two_are_refused(void) {
        _cleanup_close_ int lock = open(lock_path, O_RDWR | O_CLOEXEC), other = open(lock_path, O_RDWR | O_CLOEXEC);
        struct holder first, second;
        struct proc_id id;

        REQUIRE(lock >= 0 && other >= 0);
        REQUIRE(holder_start(lock, &first) == 0); /* it takes a lock that nobody has */
        CHECK_INT(holder_start(other, &second), -ENODATA);
        CHECK_INT(exit_status(second.pid), 1);
        REQUIRE(lockfile_holder(lock_path, &id) == 0);
        CHECK_INT(id.pid, first.pid);
        holder_end(&first);
}

static void test_has_no_lock(void) {
        struct holder h;
        _cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);

        CHECK_INT(holder_start(null, &h), -ENODATA);
        CHECK_INT(exit_status(h.pid), 1);
        CHECK_INT(holder_start(-1, &h), -ENODATA);
        CHECK_INT(exit_status(h.pid), 1);
}

/* The value of a line of /proc/PID/status. */
static bool status_says(pid_t pid, const char *line) {
        _cleanup_free_ char *text = NULL;
        char path[64];

        snprintf(path, sizeof(path), "/proc/%d/status", (int) pid);
        return file_read_all(path, 65536, &text, NULL) == 0 && strstr(text, line);
}

static void test_has_no_privileges_and_no_files(void) {
        _cleanup_close_ int lock = file_lock(lock_path);
        struct holder h;
        char path[64];
        struct stat st;
        struct op op = op_timeout(10000);

        REQUIRE(lock >= 0 && holder_start(lock, &h) == 0);
        CHECK(status_says(h.pid, "\nCapEff:\t0000000000000000\n"));
        CHECK(status_says(h.pid, "\nCapPrm:\t0000000000000000\n"));
        CHECK(status_says(h.pid, "\nCapBnd:\t0000000000000000\n"));
        CHECK(status_says(h.pid, "\nNoNewPrivs:\t1\n"));
        /* Standard output was the last to go; holder_start() may have come before that. */
        snprintf(path, sizeof(path), "/proc/%d/fd/1", (int) h.pid);
        while (stat(path, &st) == 0 && !S_ISCHR(st.st_mode) && op_check(&op) == 0)
                sched_yield();
        CHECK(S_ISCHR(st.st_mode));
        snprintf(path, sizeof(path), "/proc/%d/fd/4", (int) h.pid);
        CHECK(lstat(path, &st) < 0);
        holder_end(&h);
}

int main(void) {
        SKIP_WITHOUT_NAMESPACES();
        if (!mkdtemp(dir) || !(lock_path = path_join(dir, "netns")))
                return 1;
        RUN(test_says_who_it_is);
        RUN(test_two_are_refused);
        RUN(test_has_no_lock);
        RUN(test_has_no_privileges_and_no_files);
        free(lock_path);
        rm_rf(dir);
        return tap_done();
}
