/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "daemon/state-dir.h"
#include "tap.h"

static char dir[] = "/tmp/test-state-XXXXXX";

static void test_made_private(void) {
        _cleanup_free_ char *path = path_join(dir, "a/b");
        _cleanup_error_ struct error err = ERROR_INIT;
        struct stat st;

        REQUIRE(state_dir_prepare(path, &err) == 0);
        REQUIRE(stat(path, &st) == 0);
        CHECK_INT(st.st_mode & 07777, 0700);
        CHECK_INT(state_dir_prepare(path, &err), 0);
}

static void test_writable_by_others(void) {
        _cleanup_free_ char *path = path_join(dir, "open");
        _cleanup_error_ struct error err = ERROR_INIT;

        REQUIRE(mkdir(path, 0700) == 0 && chmod(path, 0775) == 0);
        CHECK(state_dir_prepare(path, &err) < 0);
        CHECK(strstr(error_message(&err), "can be written by others (mode 0775)"));
        CHECK(err.hint && strstr(err.hint, "chmod 700"));
}

static void test_of_another_user(void) {
        _cleanup_free_ char *path = path_join(dir, "other");
        _cleanup_error_ struct error err = ERROR_INIT;

        if (geteuid() != 0)
                return; /* only root can give a directory away */
        REQUIRE(mkdir(path, 0700) == 0 && chown(path, 12345, 12345) == 0);
        CHECK(state_dir_prepare(path, &err) < 0);
        CHECK(strstr(error_message(&err), "belongs to user 12345"));
}

static void test_not_a_directory(void) {
        _cleanup_free_ char *path = path_join(dir, "file");
        _cleanup_error_ struct error err = ERROR_INIT;

        REQUIRE(file_write_atomic(path, "x", 1, 0600) == 0);
        CHECK(state_dir_prepare(path, &err) < 0);
        CHECK(error_is_set(&err));
}

static void test_lock(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_close_ int fd = -1, second = -1;
        struct proc_id holder;
        char pid[32];

        CHECK_INT(state_dir_holder(dir, &holder), -ESRCH);
        REQUIRE(state_dir_lock(dir, &fd, &err) == 0);
        CHECK_INT(state_dir_holder(dir, &holder), 0);
        CHECK_INT(holder.pid, getpid());

        CHECK_INT(state_dir_lock(dir, &second, &err), -EWOULDBLOCK);
        snprintf(pid, sizeof(pid), "(pid %d)", (int) getpid());
        CHECK(strstr(error_message(&err), pid));
        CHECK(err.hint && strstr(err.hint, "agentiso stop"));
        CHECK_INT(second, -1);

        fd = close_fd(fd);
        CHECK_INT(state_dir_lock(dir, &second, NULL), 0);
}

/* The name of a process that has died, under whatever pid, is nobody's. */
static void test_holder_gone(void) {
        struct proc_id holder;
        int fd, status;
        pid_t pid = fork();

        if (pid == 0)
                _exit(state_dir_lock(dir, &fd, NULL) == 0 ? 0 : 1);
        REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
        CHECK_INT(status, 0);
        CHECK_INT(state_dir_holder(dir, &holder), -ESRCH);
}

static void test_holder_garbage(void) {
        static const char *const texts[] = {"", "x", "1", "1 2", "-5 7 x", "99999999999999999999 1 x\n"};
        _cleanup_free_ char *path = path_join(dir, "lock");
        struct proc_id holder;

        for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
                REQUIRE(file_write_atomic(path, texts[i], strlen(texts[i]), 0600) == 0);
                CHECK_INT(state_dir_holder(dir, &holder), -ESRCH);
        }
}

int main(void) {
        if (!mkdtemp(dir))
                return 1;
        RUN(test_made_private);
        RUN(test_writable_by_others);
        RUN(test_of_another_user);
        RUN(test_not_a_directory);
        RUN(test_lock);
        RUN(test_holder_gone);
        RUN(test_holder_garbage);
        (void) rm_rf(dir);
        return tap_done();
}
