/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/process.h"
#include "tap.h"
#include "vm/console.h"
#include "vm/vm.h"

static char dir[] = "/tmp/agentiso-vm-test-XXXXXX";

static int64_t file_size(const char *name) {
        _cleanup_free_ char *path = path_join(dir, name);
        struct stat st;

        return stat(path, &st) < 0 ? -errno : st.st_size;
}

static void write_log(bool fresh, const char *text) {
        struct capped_log c = CAPPED_LOG_INIT;

        CHECK_INT(capped_log_open(&c, dir, CONSOLE_LOG, CONSOLE_LOG_OLD, CONSOLE_KEEP, fresh), 0);
        CHECK_INT(capped_log_write(&c, text, strlen(text)), 0);
        capped_log_close(&c);
}

static void check_tail(unsigned lines, const char *want) {
        _cleanup_buf_ struct buf out = BUF_INIT(1 << 20);

        CHECK_INT(vm_console_tail(dir, lines, &out), 0);
        CHECK_STR(out.data ? out.data : "", want);
}

static void test_no_log(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(100);

        CHECK_INT(vm_console_tail(dir, 10, &out), -ENOENT);
        CHECK_INT(vm_stderr_tail(dir, 10, &out), -ENOENT);
}

static void test_last_lines(void) {
        write_log(true, "one\r\ntwo\nthree");
        check_tail(2, "two\nthree");
        check_tail(100, "one\ntwo\nthree");
        check_tail(0, "");
        write_log(false, "\n");
        check_tail(1, "three\n");
}

static void test_what_does_not_fit_is_cut_in_front(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(7);

        write_log(true, "a long line with caf\xc3\xa9 noir");
        CHECK_INT(vm_console_tail(dir, 1, &out), 0);
        CHECK_STR(out.data, "\xc3\xa9 noir");
        CHECK_INT(vm_console_tail(dir, 1, &out), 0); /* full */
        buf_truncate(&out, 1);
        CHECK_INT(vm_console_tail(dir, 1, &out), 0);
        CHECK_STR(out.data, "\xc3 noir"); /* and not half of what comes first */
}

static void test_a_new_run_keeps_the_one_before(void) {
        write_log(true, "first run\n");
        write_log(true, "second run\n");
        check_tail(10, "first run\nsecond run\n");
        CHECK_INT(file_size(CONSOLE_LOG), 11);
}

static void test_text_of_the_guest_is_made_harmless(void) {
        write_log(true, "");
        write_log(true, "\033[2J\033[31mred\033[0m\033]0;title\a \033c\a\b\177 caf\xc3\xa9 \xff\xfe end\ttab\n");
        check_tail(1, "red  caf\xc3\xa9 \xef\xbf\xbd\xef\xbf\xbd end\ttab\n");
}

static void test_growth_is_bounded(void) {
        struct capped_log c = CAPPED_LOG_INIT;
        char line[100];
        unsigned n = 0;

        REQUIRE(capped_log_open(&c, dir, CONSOLE_LOG, CONSOLE_LOG_OLD, CONSOLE_KEEP, true) == 0);
        for (; n < 20000; n++) {
                int len = snprintf(line, sizeof(line), "line %u of a guest that talks without end\n", n);
                CHECK_INT(capped_log_write(&c, line, (size_t) len), 0);
        }
        capped_log_close(&c);
        CHECK(file_size(CONSOLE_LOG) <= CONSOLE_KEEP);
        CHECK_INT(file_size(CONSOLE_LOG_OLD), CONSOLE_KEEP);
        check_tail(1, "line 19999 of a guest that talks without end\n");

        _cleanup_buf_ struct buf out = BUF_INIT(1 << 20);
        CHECK_INT(vm_console_tail(dir, UINT32_MAX, &out), 0);
        CHECK(out.len >= CONSOLE_KEEP);
}

static void test_find_by_folder(void) {
        char *argv[] = {(char[]){"/bin/sh"}, (char[]){"-c"}, (char[]){"read x"}, (char[]){"-pidfile"}, NULL, NULL};
        int ends[2];
        pid_t pid;
        struct proc_id found;
        _cleanup_free_ char *pidfile = path_join(dir, "qemu.pid");

        REQUIRE(pipe(ends) == 0);
        argv[4] = pidfile;
        const struct fd_map in = {.from = ends[0], .to = 0};
        const struct spawn s = {.argv = argv, .fds = &in, .n_fds = 1};
        CHECK_INT(vm_find(dir, &found), -ESRCH);
        REQUIRE(process_spawn(&s, &pid, NULL) == 0);
        CHECK_INT(vm_find(dir, &found), 0);
        CHECK_INT(found.pid, pid);
        CHECK_INT(vm_find("/tmp", &found), -ESRCH);

        uint64_t private = 0, shared = 0;
        CHECK_INT(vm_memory(&found, &private, &shared), 0);
        CHECK(private > 4096 && private < (1u << 30) && shared > 4096);
        found.start_ticks++;
        CHECK_INT(vm_memory(&found, &private, &shared), -ESRCH);

        process_end(pid, 0);
        close(ends[0]);
        close(ends[1]);
        CHECK_INT(vm_find(dir, &found), -ESRCH);
}

int main(void) {
        if (!mkdtemp(dir))
                return 1;
        RUN(test_no_log);
        RUN(test_last_lines);
        RUN(test_what_does_not_fit_is_cut_in_front);
        RUN(test_a_new_run_keeps_the_one_before);
        RUN(test_text_of_the_guest_is_made_harmless);
        RUN(test_growth_is_bounded);
        RUN(test_find_by_folder);
        rm_rf(dir);
        return tap_done();
}
