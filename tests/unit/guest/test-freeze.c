/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Freezing: with real file systems on loop devices, in namespaces of our own. The agent freezes nothing unless it is
 * the first process, so the tests run as one, in a root that is the file system to be frozen: none of the host's is in
 * sight.
 */

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include "fixture.h"

#define LOOP_MAJOR 7
#define LONG_MS 60000

static json_t *freeze_request(int64_t max_ms) {
        return json_of("{\"type\":\"freeze\",\"max_ms\":%lld}", (long long) max_ms);
}

static json_t *request_of(const char *type) {
        return json_of("{\"type\":\"%s\"}", type);
}

static void ask_type(const char *type, struct outcome *o) {
        ask(request_of(type), NULL, 0, o);
}

/* Freezes; whether the answer says that it is frozen. */
static int64_t freeze(int64_t max_ms) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(freeze_request(max_ms), NULL, 0, &o);
        return o.last ? member_int(o.last, "frozen") : -1;
}

static enum error_code thaw(void) {
        _cleanup_outcome_ struct outcome o = {0};

        ask_type("thaw", &o);
        CHECK(o.last || error_is_set(&o.error));
        return o.error.code;
}

static bool is_frozen(const char *path) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

        if (ioctl(fd, FIFREEZE, 0) < 0)
                return errno == EBUSY;
        ioctl(fd, FITHAW, 0);
        return false;
}

/* Waits, with a limit. */
static bool wait_thawed(void) {
        for (int i = 0; i < 1000; i++) {
                if (!is_frozen("/"))
                        return true;
                poll(NULL, 0, 10);
        }
        return false;
}

/* Whether a thread of ours waits without being able to be interrupted, as for a file system. */
static bool some_thread_is_stuck(void) {
        DIR *dir = opendir("/proc/self/task");
        struct dirent *de;
        bool stuck = false;

        while (dir && (de = readdir(dir))) {
                _cleanup_free_ char *path = str_printf("/proc/self/task/%s/stat", de->d_name), *stat = NULL;
                const char *end;

                if (file_read_all(path, 4096, &stat, NULL) == 0 && (end = strrchr(stat, ')')))
                        stuck |= end[2] == 'D';
        }
        if (dir)
                closedir(dir);
        return stuck;
}

static bool wait_stuck(void) {
        for (int i = 0; i < 1000; i++) {
                if (some_thread_is_stuck())
                        return true;
                poll(NULL, 0, 10);
        }
        return false;
}

static struct mux_stream *begin_write(const char *name) {
        json_t *o = request_of("file_write");
        struct op op = patience();

        json_object_set_new(o, "path", json_string(in_folder(name)));
        struct mux_stream *s = open_request(o);
        CHECK_INT(mux_send_data(s, WIRE_CH_IN, "text", 4, &op), 0);
        CHECK_INT(mux_send_eof(s, WIRE_CH_IN, &op), 0);
        return s;
}

/* ---- */

static void test_not_the_first_process(void) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(freeze_request(1000), NULL, 0, &o);
        CHECK_INT(o.error.code, ERROR_UNSUPPORTED);
        CHECK_INT(thaw(), ERROR_NOT_FOUND);
}

static void test_times(void) {
        static const int64_t wrong[] = {-1, 0, WIRE_FREEZE_MAX_MS + 1};
        _cleanup_outcome_ struct outcome none = {0};

        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                _cleanup_outcome_ struct outcome o = {0};

                ask(freeze_request(wrong[i]), NULL, 0, &o);
                CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
                CHECK(strstr(error_message(&o.error), "max_ms"));
        }
        ask_type("freeze", &none);
        CHECK_INT(none.error.code, ERROR_INVALID_ARGUMENT);
}

static void test_sync(void) {
        _cleanup_outcome_ struct outcome o = {0};

        ask_type("sync", &o);
        CHECK(o.last && !error_is_set(&o.error));
}

static void test_who_writes_waits_until_the_thaw(void) {
        _cleanup_outcome_ struct outcome o = {0}, info = {0}, again = {0};

        REQUIRE(freeze(LONG_MS) == 1);
        CHECK(is_frozen("/"));
        _cleanup_stream_ struct mux_stream *s = begin_write("waits");
        CHECK(wait_stuck());
        CHECK(access(in_folder("waits"), F_OK) < 0);
        /* Everything else goes on. */
        ask_type("info", &info);
        CHECK(member_int(info.last, "root_mounted") == 1);
        ask(freeze_request(1000), NULL, 0, &again);
        CHECK_INT(again.error.code, ERROR_CONFLICT);
        CHECK_INT(thaw(), ERROR_NONE);
        gather(s, &o);
        CHECK_INT(member_int(o.last, "bytes_written"), 4);
        CHECK(!is_frozen("/"));
        CHECK_INT(thaw(), ERROR_NOT_FOUND);
}

static void test_all_that_are_on_a_disk_are_frozen(void) {
        for (int i = 0; i < 3; i++) {
                REQUIRE(freeze(LONG_MS) == 1);
                CHECK(is_frozen("/") && is_frozen("/inner") && is_frozen("/with space"));
                CHECK(!is_frozen("/memory"));
                CHECK_INT(thaw(), ERROR_NONE);
                CHECK(!is_frozen("/") && !is_frozen("/inner") && !is_frozen("/with space"));
        }
}

static void test_they_thaw_when_the_time_is_over(void) {
        _cleanup_outcome_ struct outcome o = {0};

        REQUIRE(freeze(300) == 1);
        _cleanup_stream_ struct mux_stream *s = begin_write("late");
        CHECK(wait_thawed());
        gather(s, &o);
        CHECK_INT(member_int(o.last, "bytes_written"), 4);
        CHECK(!is_frozen("/inner"));
        CHECK_INT(thaw(), ERROR_NOT_FOUND);
}

static void test_they_thaw_when_the_host_is_lost(void) {
        struct mux *other_host, *other_guest;
        struct connection *other;

        /* Another connection that is lost does not matter. */
        other_host = TAKE_PTR(host);
        other_guest = TAKE_PTR(guest_mux);
        other = TAKE_PTR(connection);
        connect_host();
        REQUIRE(freeze(LONG_MS) == 1);
        mux_unref(other_host);
        mux_unref(other_guest);
        connection_unref(other);
        CHECK(is_frozen("/"));
        reconnect_host();
        CHECK(wait_thawed());
        CHECK_INT(thaw(), ERROR_NOT_FOUND);
        CHECK_INT(freeze(LONG_MS), 1);
        CHECK_INT(thaw(), ERROR_NONE);
}

/* A machine that goes on from a state in which it was frozen. */
static void test_an_identity_is_given_to_no_frozen_machine(void) {
        _cleanup_outcome_ struct outcome o = {0};

        REQUIRE(freeze(LONG_MS) == 1);
        ask_type("configure", &o);
        CHECK(o.last && member_int(o.last, "realtime_ns") > 0);
        CHECK(!is_frozen("/"));
        CHECK_INT(thaw(), ERROR_NOT_FOUND);
}

static void test_somebody_else_thaws(void) {
        _cleanup_close_ int fd = open("/", O_RDONLY | O_CLOEXEC);

        REQUIRE(freeze(LONG_MS) == 1);
        CHECK_INT(ioctl(fd, FITHAW, 0), 0);
        CHECK_INT(thaw(), ERROR_NOT_FOUND); /* what was done meanwhile was not done to a frozen one */
        CHECK(!is_frozen("/inner"));
}

static void test_somebody_else_has_frozen(void) {
        _cleanup_close_ int fd = open("/inner", O_RDONLY | O_CLOEXEC);

        REQUIRE(ioctl(fd, FIFREEZE, 0) == 0);
        CHECK_INT(freeze(LONG_MS), 1);
        CHECK(is_frozen("/"));
        CHECK_INT(thaw(), ERROR_NONE);
        CHECK(!is_frozen("/") && is_frozen("/inner")); /* that is not ours to thaw */
        CHECK_INT(ioctl(fd, FITHAW, 0), 0);
}

static void test_the_agent_ends_while_they_are_frozen(void) {
        REQUIRE(freeze(LONG_MS) == 1);
        fixture_clear();
        CHECK(!is_frozen("/"));
        fixture_begin();
}

/* ---- a root of its own ---- */

#define MAKE                                                                                             \
        "set -e; cd %s; truncate -s 24M outer.img; mkfs.ext4 -q -F outer.img; mkdir root; "              \
        "mount -o loop outer.img root; cd root; mkdir -p tmp dev proc inner memory 'with space' twice; " \
        "truncate -s 8M inner.img; mkfs.ext4 -q -F inner.img; mount -o loop inner.img inner; "           \
        "truncate -s 4M third.img; mkfs.ext4 -q -F -O ^has_journal third.img; "                          \
        "mount -o loop third.img 'with space'; mount -t tmpfs none memory; mount --bind inner twice; "   \
        "mount --bind /dev dev; mount -t proc proc proc"

static bool make_root(const char *where) {
        _cleanup_free_ char *make = str_printf(MAKE, where), *root = str_printf("%s/root", where);
        _cleanup_free_ char *command = make ? str_printf("( %s ) >/dev/null 2>&1", make) : NULL;
        struct stat st;

        return command && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && system(command) == 0 &&
               chroot(root) == 0 && chdir("/") == 0 && stat("/", &st) == 0 && major(st.st_dev) == LOOP_MAJOR;
}

static void run_as_first(const char *where) {
        if (getpid() != 1 || !make_root(where)) {
                printf("# no loop devices, or no mkfs.ext4: left out\n");
                return;
        }
        fixture_begin();
        RUN(test_sync);
        RUN(test_who_writes_waits_until_the_thaw);
        RUN(test_all_that_are_on_a_disk_are_frozen);
        RUN(test_they_thaw_when_the_time_is_over);
        RUN(test_they_thaw_when_the_host_is_lost);
        RUN(test_an_identity_is_given_to_no_frozen_machine);
        RUN(test_somebody_else_thaws);
        RUN(test_somebody_else_has_frozen);
        RUN(test_the_agent_ends_while_they_are_frozen);
        fixture_clear();
}

/* Waits for the child that fork() gave, unless this is it. */
static bool ends_well(pid_t pid) {
        int status = 1;

        return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

/* Without what is done at an exit: a sanitizer that looks for leaks needs a process that it may trace. */
static void leave(int status) {
        fflush(stdout);
        _exit(status);
}

/* In a child: who makes a namespace of processes can have no more threads. */
static int in_namespaces(const char *where, int found[2]) {
        _cleanup_free_ char *root = str_printf("%s/root", where);

        if (unshare(CLONE_NEWPID | CLONE_NEWNS) < 0)
                return 1;
        pid_t pid = fork();
        if (pid == 0) {
                run_as_first(where);
                found[0] = tap_count;
                found[1] = tap_failures;
                leave(0);
        }
        const bool well = ends_well(pid);
        (void) umount2(root, MNT_DETACH);
        return !well;
}

static bool try_as_first(void) {
        char where[] = "/tmp/agentiso-freeze-XXXXXX";
        int *found = mmap(NULL, 2 * sizeof(*found), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

        if (found == MAP_FAILED || !mkdtemp(where))
                return false;
        pid_t pid = fork();
        if (pid == 0)
                leave(in_namespaces(where, found));
        const bool well = ends_well(pid);
        tap_count = found[0];
        tap_failures = found[1];
        (void) rm_rf(where);
        return well;
}

int main(void) {
        setvbuf(stdout, NULL, _IOLBF, 0);
        if (geteuid() != 0) {
                printf("# only root can make namespaces: most is left out\n");
        } else if (!try_as_first()) {
                printf("Bail out! the first process of the namespaces did not end well\n");
                return 1;
        }
        fixture_begin();
        RUN(test_not_the_first_process);
        RUN(test_times);
        return fixture_end();
}
