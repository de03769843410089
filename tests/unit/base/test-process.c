/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/process.h"
#include "base/str.h"
#include "base/thread.h"
#include "tap.h"

#define ARGV(...) ((char *[]){__VA_ARGS__, NULL})
#define SH(script) ARGV((char *) "sh", (char *) "-c", (char *) (script))

static struct op op10(void) {
        return op_timeout(10000);
}

/* What a script prints, without the last line break. */
static char *output_of(const char *script) {
        struct buf out = BUF_INIT(1 << 20);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op10();

        int r = process_run(SH(script), &op, &out, NULL, &err);
        if (r < 0) {
                buf_free(&out);
                return str_printf("(%d: %s)", r, error_message(&err));
        }
        if (out.len > 0 && out.data[out.len - 1] == '\n')
                buf_truncate(&out, out.len - 1);
        return buf_steal(&out);
}

static void check_output(const char *script, const char *want) {
        _cleanup_free_ char *got = output_of(script);

        CHECK_STR(got, want);
}

static int count_fds(void) {
        int n = 0;

        for (int fd = 0; fd < 256; fd++)
                n += fcntl(fd, F_GETFD) >= 0;
        return n;
}

static void test_run_gathers(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(100), err_out = BUF_INIT(100);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op10();

        CHECK_INT(process_run(SH("echo out; echo err >&2"), &op, &out, &err_out, &err), 0);
        CHECK_STR(out.data, "out\n");
        CHECK_STR(err_out.data, "err\n");
        CHECK(!error_is_set(&err));
        CHECK_INT(process_run(SH("echo more"), NULL, &out, NULL, NULL), 0); /* appended; nothing else wanted */
        CHECK_STR(out.data, "out\nmore\n");
        check_output("cat | wc -c", "0"); /* standard input is empty */
}

/* More than any pipe holds, to a child that reads it, one that reads it again, and one that does not care. */
static void test_run_input(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(100);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_free_ char *input = calloc(1, 3000000);
        struct op op = op10();

        REQUIRE(input);
        memset(input, 'x', 3000000);
        CHECK_INT(process_run_input(SH("wc -c; wc -c < /dev/stdin"), input, 3000000, &op, &out, NULL, &err), 0);
        CHECK_STR(out.data, "3000000\n3000000\n");
        buf_clear(&out);
        CHECK_INT(process_run_input(SH("echo done"), input, 3000000, &op, &out, NULL, &err), 0);
        CHECK_STR(out.data, "done\n");
        buf_clear(&out);
        CHECK_INT(process_run_input(SH("cat; echo end"), "", 0, &op, &out, NULL, &err), 0);
        CHECK_STR(out.data, "end\n");
        CHECK(process_run_input(SH("read word; echo bad $word >&2; exit 3"), "input\n", 6, &op, NULL, NULL, &err) < 0);
        CHECK_STR(error_message(&err), "sh failed with exit code 3: bad input");
}

static void test_run_limits(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(1000), err_out = BUF_INIT(10);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op10();

        /* Far more than the pipes hold, on both, and the child is never held up. */
        CHECK_INT(process_run(SH("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; echo end"), &op, &out,
                              &err_out, &err),
                  0);
        CHECK_INT(out.len, 1000);
        CHECK_INT(err_out.len, 10);

        _cleanup_buf_ struct buf all = BUF_INIT(4 << 20);
        CHECK_INT(process_run(SH("head -c 3000000 /dev/zero"), &op, &all, NULL, &err), 0);
        CHECK_INT(all.len, 3000000);
}

static void check_run_error(const char *script, enum error_code code, const char *want) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op10();

        int r = process_run(SH(script), &op, NULL, NULL, &err);
        CHECK_INT(r, -error_code_errno(code));
        CHECK_INT(err.code, code);
        CHECK_STR(err.message, want);
}

static void test_run_errors(void) {
        check_run_error("exit 3", ERROR_INTERNAL, "sh failed with exit code 3");
        check_run_error("echo it broke >&2; exit 1", ERROR_INTERNAL, "sh failed with exit code 1: it broke");
        check_run_error("echo a >&2; echo >&2; printf 'b\\033[1m\\n' >&2; exit 1", ERROR_INTERNAL,
                        "sh failed with exit code 1: a; b [1m");
        check_run_error("for i in 1 2 3 4 5 6 7; do echo $i >&2; done; exit 1", ERROR_INTERNAL,
                        "sh failed with exit code 1: 3; 4; 5; 6; 7");
        check_run_error("printf 'x\\377' >&2; exit 1", ERROR_INTERNAL, "sh failed with exit code 1: x\xef\xbf\xbd");
        check_run_error("kill -KILL $$", ERROR_INTERNAL, "sh was ended by SIGKILL");
        check_run_error("echo last >&2; kill -SEGV $$", ERROR_INTERNAL, "sh was ended by SIGSEGV: last");

        _cleanup_error_ struct error err = ERROR_INIT;
        struct op op = op10();
        CHECK_INT(process_run(ARGV((char *) "no-such-program-at-all"), &op, NULL, NULL, &err), -ENOENT);
        CHECK_STR(err.message, "The program no-such-program-at-all is not installed or not in PATH");
        CHECK_INT(process_run(ARGV((char *) "/no/such/program"), &op, NULL, NULL, &err), -ENOENT);
        CHECK_STR(err.message, "Cannot start /no/such/program: No such file or directory");

        _cleanup_buf_ struct buf out = BUF_INIT(20000);
        CHECK_INT(process_run(SH("yes long line of text | head -c 10000 >&2; exit 1"), &op, NULL, &out, &err), -EIO);
        CHECK(strlen(err.message) < 1200);
        CHECK_INT(out.len, 10000);
}

static void test_run_deadline(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_buf_ struct buf out = BUF_INIT(100);
        struct op soon = op_timeout(200);
        int64_t start = monotonic_ns();

        CHECK_INT(process_run(SH("echo begun; sleep 30"), &soon, &out, NULL, &err), -ETIMEDOUT);
        CHECK(monotonic_ns() - start < 5 * NSEC_PER_SEC);
        CHECK_STR(err.message, "sh did not end in time and was killed");
        CHECK_INT(err.code, ERROR_TIMEOUT);
        CHECK_STR(out.data, "begun\n"); /* what it said until then is there */
        CHECK_INT(waitpid(-1, NULL, WNOHANG), -1);
        CHECK_INT(errno, ECHILD); /* reaped */

        /* One that never stops printing does not get around it. */
        soon = op_timeout(100);
        CHECK_INT(process_run(SH("yes"), &soon, &out, NULL, &err), -ETIMEDOUT);
}

static void *fire_later(void *arg) {
        struct op pause = op_timeout(50);

        wait_fd(-1, 0, &pause);
        cancel_fire(arg);
        return NULL;
}

static void test_run_cancel(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_cancel_ struct cancel *c = cancel_new();
        struct op op = op10();
        pthread_t thread;

        op.cancel = c;
        REQUIRE(thread_start(&thread, "cancel", fire_later, c) == 0);
        CHECK_INT(process_run(SH("sleep 30"), &op, NULL, NULL, &err), -ECANCELED);
        CHECK_INT(err.code, ERROR_CANCELLED);
        pthread_join(thread, NULL);
}

/* A process that the child leaves behind holds the pipes for long: nobody waits for it, nothing that the child itself
 * said is lost. */
static void test_run_grandchild(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(1 << 20);
        struct op op = op10();
        int64_t start = monotonic_ns();

        CHECK_INT(process_run(SH("sleep 20 & head -c 60000 /dev/zero; echo $! >&2"), &op, &out, NULL, NULL), 0);
        CHECK(monotonic_ns() - start < 5 * NSEC_PER_SEC);
        CHECK_INT(out.len, 60000);

        /* One that goes on printing does not keep us either. */
        start = monotonic_ns();
        CHECK_INT(process_run(SH("(timeout 5 yes &) ; sleep 0.1"), &op, &out, NULL, NULL), 0);
        CHECK(monotonic_ns() - start < 4 * NSEC_PER_SEC);
}

static void test_run_kills_the_group(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(100);
        struct op soon = op_timeout(300);

        CHECK_INT(process_run(SH("sleep 31 & echo $!; wait"), &soon, &out, NULL, NULL), -ETIMEDOUT);
        REQUIRE(out.len > 1);
        buf_truncate(&out, out.len - 1);
        uint64_t pid = 0;
        CHECK_INT(parse_u64(out.data, &pid), 0);
        /* It is not our child: init reaps it soon after it has died. */
        int fd = pidfd_of((pid_t) pid);
        if (fd >= 0) {
                struct op op = op10();
                CHECK(wait_fd(fd, POLLIN, &op) > 0);
                close_fd(fd);
        }
}

static void test_no_fd_leaks(void) {
        int before = count_fds();
        _cleanup_buf_ struct buf out = BUF_INIT(100);
        struct op op = op10(), none = op_timeout(0);

        process_run(SH("true"), &op, &out, &out, NULL);
        process_run(SH("false"), &op, &out, NULL, NULL);
        process_run(SH("sleep 9"), &none, &out, NULL, NULL);
        process_run(ARGV((char *) "/no/such/program"), &op, &out, &out, NULL);
        struct fd_map swap[] = {{0, 1}, {1, 0}};
        struct spawn s = {.argv = ARGV((char *) "/no/such/program"), .fds = swap, .n_fds = 2};
        pid_t pid;
        CHECK_INT(process_spawn(&s, &pid, NULL), -ENOENT);
        CHECK_INT(count_fds(), before);
}

/* Runs a script with a set of fds and returns how it ended. */
static int run_with_fds(const char *script, const struct fd_map *fds, size_t n) {
        struct spawn s = {.argv = SH(script), .fds = fds, .n_fds = n};
        struct process_result result = {.exit_code = -99};
        struct op op = op10();
        pid_t pid;

        int r = process_spawn(&s, &pid, NULL);
        if (r < 0)
                return r;
        r = process_wait(pid, &op, &result);
        return r < 0 ? r : result.exit_code;
}

static int open_with(const char *text) {
        int p[2];

        if (pipe2(p, O_CLOEXEC) < 0 || write(p[1], text, strlen(text)) < 0)
                abort();
        close(p[1]);
        return p[0];
}

static void test_fds_swap(void) {
        int a = open_with("AAA\n"), b = open_with("BBB\n");

        /* The numbers cross over: each is wanted where the other one stands. */
        struct fd_map fds[] = {{a, b}, {b, a}};
        _cleanup_free_ char *script = str_printf("read x <&%d; read y <&%d; test \"$x$y\" = AAABBB && exit 42", b, a);
        CHECK_INT(run_with_fds(script, fds, 2), 42);
        close(a);
        close(b);
}

static void test_fds_in_a_ring(void) {
        int a = open_with("AAA\n"), b = open_with("BBB\n"), c = open_with("CCC\n");

        struct fd_map fds[] = {{a, 0}, {b, a}, {c, b}, {a, c}, {STDOUT_FILENO, 9}, {STDERR_FILENO, 2}};
        _cleanup_free_ char *script =
                str_printf("read w; read x <&%d; read y <&%d; test \"$w$x$y\" = AAABBBCCC && exit 42", a, b);
        CHECK_INT(run_with_fds(script, fds, 6), 42);
        close(a);
        close(b);
        close(c);
}

static void test_fds_keep_their_number(void) {
        int a = open_with("AAA\n"); /* O_CLOEXEC here, and still there after the exec */

        struct fd_map fds[] = {{a, a}};
        _cleanup_free_ char *script = str_printf("read x <&%d; test \"$x\" = AAA && exit 42", a);
        CHECK_INT(run_with_fds(script, fds, 1), 42);
        CHECK_INT(fcntl(a, F_GETFD), FD_CLOEXEC);
        close(a);
}

static void test_fds_nothing_else(void) {
        /* Whoever started us may have left something open that is not O_CLOEXEC. */
        int leak = fcntl(0, F_DUPFD, 50), gap = fcntl(0, F_DUPFD, 4), given = open_with("A\n");

        struct fd_map fds[] = {{given, 9}};
        _cleanup_free_ char *script = str_printf("for n in 0 1 2; do\n"
                                                 "  test \"$(readlink /proc/$$/fd/$n)\" = /dev/null || exit 1\n"
                                                 "done\n"
                                                 "for n in 3 4 5 6 7 8 %d %d %d; do\n"
                                                 "  test ! -e /proc/$$/fd/$n || exit $n\n"
                                                 "done\n"
                                                 "read x <&9; test $x = A && exit 42",
                                                 leak, gap > 9 ? gap : leak, given > 9 ? given : leak);
        CHECK_INT(run_with_fds(script, fds, 1), 42);
        close(leak);
        close(gap);
        close(given);
}

static void test_fds_refused(void) {
        struct fd_map twice[] = {{0, 5}, {1, 5}}, negative[] = {{-1, 5}}, high[] = {{0, 100000}}, closed[] = {{200, 5}};

        CHECK_INT(run_with_fds("true", twice, 2), -EINVAL);
        CHECK_INT(run_with_fds("true", negative, 1), -EINVAL);
        CHECK_INT(run_with_fds("true", high, 1), -EINVAL);
        CHECK_INT(run_with_fds("true", closed, 1), -EBADF);
}

static void test_signals_are_reset(void) {
        sigset_t set, old;

        signal(SIGPIPE, SIG_IGN);
        signal(SIGQUIT, SIG_IGN);
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGUSR1);
        pthread_sigmask(SIG_BLOCK, &set, &old);
        /* Signals 32 and 33 are glibc's own: it keeps them ignored across posix_spawn(). */
        check_output("while read name value; do case $name in SigBlk: | SigIgn:)\n"
                     "  echo $name $((0x$value & ~0x180000000));;\n"
                     "esac; done < /proc/self/status",
                     "SigBlk: 0\nSigIgn: 0");
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        signal(SIGPIPE, SIG_DFL);
        signal(SIGQUIT, SIG_DFL);
}

static void test_workdir_env_session(void) {
        char *env[] = {(char *) "ONLY=this", NULL};
        char dir[] = "/tmp/agentiso-test-process-XXXXXX";
        struct op op = op10();
        struct process_result result;
        pid_t pid;

        REQUIRE(mkdtemp(dir));
        struct spawn s = {
                .argv = SH("test \"$ONLY\" = this && test -z \"$HOME\" && : > here"),
                .env = env,
                .workdir = dir,
                .new_session = true,
        };
        REQUIRE(process_spawn(&s, &pid, NULL) == 0);
        CHECK_INT(process_wait(pid, &op, &result), 0);
        CHECK_INT(result.exit_code, 0);
        _cleanup_free_ char *here = path_join(dir, "here");
        CHECK_INT(access(here, F_OK), 0);

        s.argv = SH("sleep 30");
        REQUIRE(process_spawn(&s, &pid, NULL) == 0);
        CHECK_INT(getsid(pid), pid);
        process_end(pid, 0);
        s.new_session = false;
        REQUIRE(process_spawn(&s, &pid, NULL) == 0);
        CHECK_INT(getsid(pid), getsid(0));
        process_end(pid, 0);

        _cleanup_error_ struct error err = ERROR_INIT;
        s.workdir = "/no/such/folder";
        CHECK_INT(process_spawn(&s, &pid, &err), -ENOENT);
        CHECK(strstr(error_message(&err), " in /no/such/folder: No such file or directory"));
        rm_rf(dir);
}

static pid_t start(const char *script) {
        struct spawn s = {.argv = SH(script), .fds = (struct fd_map[]){{1, 1}, {2, 2}}, .n_fds = 2};
        pid_t pid = -1;

        return process_spawn(&s, &pid, NULL) < 0 ? -1 : pid;
}

static void test_wait(void) {
        struct process_result result = {0};
        struct op now = op_timeout(0), op = op10();
        pid_t pid = start("exec sleep 30");

        REQUIRE(pid > 0);
        CHECK_INT(process_wait(pid, &now, &result), -ETIMEDOUT);
        kill(pid, SIGUSR1);
        CHECK_INT(process_wait(pid, &op, &result), 0);
        CHECK_INT(result.exit_code, -1);
        CHECK_INT(result.signal, SIGUSR1);
        CHECK(process_wait(pid, &op, &result) < 0); /* reaped already */

        pid = start("exit 200");
        CHECK_INT(process_wait(pid, &op, &result), 0);
        CHECK_INT(result.exit_code, 200);
        CHECK_INT(result.signal, 0);
        pid = start("exit 0");
        CHECK_INT(process_wait(pid, NULL, NULL), 0);
        CHECK_INT(process_wait(0, &op, NULL), -ESRCH);
        CHECK_INT(process_wait(-1, &op, NULL), -ESRCH);
}

static void test_end(void) {
        pid_t pid = start("trap 'exit 0' TERM; while :; do sleep 0.01; done");
        int64_t begin = monotonic_ns();

        REQUIRE(pid > 0);
        process_end(pid, 5000);
        CHECK(monotonic_ns() - begin < 4 * NSEC_PER_SEC); /* it did not need the whole grace */
        CHECK(kill(pid, 0) < 0 && errno == ESRCH);

        pid = start("trap '' TERM; while :; do sleep 1; done");
        REQUIRE(pid > 0);
        process_end(pid, 50);
        CHECK(kill(pid, 0) < 0 && errno == ESRCH);

        pid = start("kill -STOP $$; exec sleep 30"); /* stopped: it cannot act on SIGTERM */
        REQUIRE(pid > 0);
        process_end(pid, 50);
        CHECK(kill(pid, 0) < 0 && errno == ESRCH);
        process_end(-1, 50); /* nobody, and certainly not everybody */
        process_end(0, 50);
}

/* A daemon that has run out of fds can still get rid of its children. */
static void test_end_without_fds(void) {
        pid_t pid = start("exec sleep 30");
        struct rlimit limit, none;

        REQUIRE(pid > 0);
        getrlimit(RLIMIT_NOFILE, &limit);
        none = limit;
        none.rlim_cur = 0;
        setrlimit(RLIMIT_NOFILE, &none);
        int r = pidfd_of(pid);
        process_end(pid, 50);
        setrlimit(RLIMIT_NOFILE, &limit);
        CHECK_INT(r, -EMFILE);
        CHECK(kill(pid, 0) < 0 && errno == ESRCH);
}

static void test_identity(void) {
        struct proc_id id, self;
        struct op op = op10();
        pid_t pid = start("exec sleep 30");

        REQUIRE(pid > 0);
        CHECK_INT(proc_id_read(getpid(), &self), 0);
        CHECK_INT(self.pid, getpid());
        CHECK(self.start_ticks > 0 && uuid_valid(self.boot_id));
        CHECK_INT(proc_id_read(pid, &id), 0);
        CHECK(id.start_ticks >= self.start_ticks);

        _cleanup_close_ int fd = proc_id_open(&id);
        REQUIRE(fd >= 0);
        struct proc_id stranger = id;
        stranger.start_ticks++;
        CHECK_INT(proc_id_open(&stranger), -ESRCH);
        stranger = id;
        stranger.boot_id[0] = stranger.boot_id[0] == '0' ? '1' : '0';
        CHECK_INT(proc_id_open(&stranger), -ESRCH);

        CHECK_INT(pidfd_signal(fd, SIGTERM), 0);
        CHECK(wait_fd(fd, POLLIN, &op) > 0);
        CHECK_INT(proc_id_read(pid, &id), -ESRCH); /* dead, although not reaped yet */
        CHECK_INT(proc_id_open(&id), -ESRCH);
        process_end(pid, 0);
        CHECK_INT(proc_id_read(pid, &id), -ESRCH);
        CHECK_INT(pidfd_signal(fd, SIGTERM), -ESRCH);
        CHECK_INT(pidfd_of(-1), -ESRCH);
        CHECK_INT(proc_id_read(0, &id), -ESRCH);
}

/* A process may call itself what it likes. */
static void test_identity_of_an_odd_name(void) {
        char dir[] = "/tmp/agentiso-test-process-XXXXXX";
        struct proc_id id = {0};
        pid_t pid;

        REQUIRE(mkdtemp(dir));
        _cleanup_free_ char *odd = path_join(dir, ") Z 1 (x\n)");
        CHECK_INT(symlink("/bin/sleep", odd), 0);
        struct spawn s = {.argv = ARGV(odd, (char *) "30")};
        REQUIRE(process_spawn(&s, &pid, NULL) == 0);
        CHECK_INT(proc_id_read(pid, &id), 0);
        struct proc_id self = {0};
        CHECK_INT(proc_id_read(getpid(), &self), 0);
        CHECK(id.start_ticks >= self.start_ticks);
        process_end(pid, 0);
        rm_rf(dir);
}

static void *run_many(void *arg) {
        for (int i = 0; i < 10; i++) {
                _cleanup_buf_ struct buf out = BUF_INIT(100);
                struct op op = op_timeout(20000);

                if (process_run(SH("echo ok"), &op, &out, NULL, NULL) < 0 || !str_eq(out.data, "ok\n"))
                        return arg;
        }
        return NULL;
}

static void test_run_from_many_threads(void) {
        pthread_t threads[8];
        static char bad;

        for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
                REQUIRE(thread_start(&threads[i], "run", run_many, &bad) == 0);
        for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
                void *result = NULL;
                pthread_join(threads[i], &result);
                CHECK(!result);
        }
}

int main(void) {
        RUN(test_run_gathers);
        RUN(test_run_input);
        RUN(test_run_limits);
        RUN(test_run_errors);
        RUN(test_run_deadline);
        RUN(test_run_cancel);
        RUN(test_run_grandchild);
        RUN(test_run_kills_the_group);
        RUN(test_no_fd_leaks);
        RUN(test_fds_swap);
        RUN(test_fds_in_a_ring);
        RUN(test_fds_keep_their_number);
        RUN(test_fds_nothing_else);
        RUN(test_fds_refused);
        RUN(test_signals_are_reset);
        RUN(test_workdir_env_session);
        RUN(test_wait);
        RUN(test_end);
        RUN(test_end_without_fds);
        RUN(test_identity);
        RUN(test_identity_of_an_odd_name);
        RUN(test_run_from_many_threads);
        return tap_done();
}
