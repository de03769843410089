/* SPDX-License-Identifier: Apache-2.0 */

/* The agent on a system that is full, read-only in parts, busy or tampered with: in a mount namespace of our own. */

#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "job_fixture.h"

static json_t *write_request(const char *name) {
        json_t *o = json_of("{\"type\":\"file_write\"}");

        json_object_set_new(o, "path", json_string(in_folder(name)));
        return o;
}

static void test_a_full_file_system(void) {
        _cleanup_free_ char *data = calloc(1, 1 << 20);
        _cleanup_outcome_ struct outcome o = {0};

        REQUIRE(mkdir(in_folder("small"), 0700) == 0);
        REQUIRE(mount("tmpfs", in_folder("small"), "tmpfs", 0, "size=64k") == 0);
        ask(write_request("small/new/file"), data, 1 << 20, &o);
        CHECK_INT(o.error.code, ERROR_NO_SPACE);
        CHECK(o.error.hint && strstr(o.error.hint, "df -h"));
        CHECK(access(in_folder("small/new"), F_OK) < 0);
        umount(in_folder("small"));
}

static void test_a_read_only_file_system(void) {
        _cleanup_outcome_ struct outcome o = {0};

        REQUIRE(mkdir(in_folder("fixed"), 0700) == 0);
        REQUIRE(mount("tmpfs", in_folder("fixed"), "tmpfs", MS_RDONLY, NULL) == 0);
        ask(write_request("fixed/file"), "x", 1, &o);
        CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(o.error.hint && strstr(o.error.hint, "another path"));
        umount(in_folder("fixed"));
}

/* A named pipe at the place of /dev/null: opening it for reading would wait for ever. */
static void test_another_dev_null(void) {
        _cleanup_outcome_ struct outcome o = {0};

        REQUIRE(mkfifo(in_folder("pipe"), 0600) == 0);
        REQUIRE(mount(in_folder("pipe"), "/dev/null", NULL, MS_BIND, NULL) == 0);
        ask(command_with("cat; echo read", "timeout_ms", json_integer(5000)), NULL, 0, &o);
        umount("/dev/null");
        CHECK_STR(o.out.data, "read\n");
}

/* The agent runs before its commands; they are what every command is. */
static void test_priority(void) {
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        if (setpriority(PRIO_PROCESS, 0, -10) < 0) {
                printf("# no right to raise a priority: left out\n");
                return;
        }
        reconnect_host(); /* the threads that are started from now on inherit it */
        ask(command("nice"), NULL, 0, &o);
        ask(command_with("nice", "stdin", json_true()), "", 0, &p);
        setpriority(PRIO_PROCESS, 0, 0);
        reconnect_host();
        CHECK_STR(o.out.data, "0\n");
        CHECK_STR(p.out.data, "0\n");
}

int main(void) {
        if (geteuid() != 0) {
                printf("1..0 # SKIP only root can mount\n");
                return 0;
        }
        if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
                printf("Bail out! no mounts of our own: %s\n", strerror(errno));
                return 1;
        }
        fixture_begin();
        RUN(test_a_full_file_system);
        RUN(test_a_read_only_file_system);
        RUN(test_another_dev_null);
        RUN(test_priority);
        return fixture_end();
}
