/* SPDX-License-Identifier: Apache-2.0 */

/* Folders of cgroups that come and go; and, where this machine has cgroups of version 2 and lets us, commands that do
 * to theirs what they like. */

#include <dirent.h>
#include <fcntl.h>

#include "job_fixture.h"

/* ---- folders ---- */

static size_t count_folders(const char *path) {
        DIR *dir = opendir(path);
        struct dirent *de;
        size_t n = 0;

        while (dir && (de = readdir(dir)))
                n += strncmp(de->d_name, "exec-", 5) == 0;
        if (dir)
                closedir(dir);
        return n;
}

/* In a folder that is no cgroup, a file does what a process does: it keeps the folder. */
static void occupy(const struct cgroup *c, bool busy) {
        if (busy)
                close_fd(openat(c->fd, "process", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        else
                unlinkat(c->fd, "process", 0);
}

static void come_and_go(struct cgroups *g, size_t times) {
        for (size_t i = 0; i < times; i++) {
                struct cgroup c = CGROUP_INIT;

                REQUIRE(cgroup_create(g, &c) == 0);
                cgroup_release(g, &c);
        }
}

/* Also those that could not be remembered are removed once they can be. */
static void test_more_are_left_over_than_are_remembered(void) {
        enum { MANY = CGROUPS_STALE_MAX + 40 };
        struct cgroups g = CGROUPS_INIT;
        static int held[MANY];
        char path[128];

        REQUIRE(file_write_atomic(in_folder("cgroup.procs"), "", 0, 0600) == 0);
        REQUIRE(cgroups_open(&g, folder) == 0);
        snprintf(path, sizeof(path), "%s/agentiso", folder);
        for (size_t i = 0; i < MANY; i++) {
                struct cgroup c = CGROUP_INIT;

                REQUIRE(cgroup_create(&g, &c) == 0);
                occupy(&c, true);
                held[i] = fcntl(c.fd, F_DUPFD_CLOEXEC, 0);
                cgroup_release(&g, &c);
        }
        CHECK_INT(g.n_stale, CGROUPS_STALE_MAX);
        CHECK_INT(count_folders(path), MANY + g.n_spare);
        /* While they are busy, looking for them harms nothing. */
        come_and_go(&g, 30);
        CHECK_INT(count_folders(path), MANY + g.n_spare);
        for (size_t i = 0; i < MANY; i++) {
                occupy(&(struct cgroup){.fd = held[i]}, false);
                close_fd(held[i]);
        }
        come_and_go(&g, 30);
        CHECK_INT(count_folders(path), g.n_spare);
        CHECK_INT(g.lost_max, 0);
        cgroups_close(&g);
        CHECK_INT(count_folders(path), 0);
}

/* ---- commands ---- */

static const char *mount_point;

static void check_born_in_one(void) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(command("cat /proc/self/cgroup"), NULL, 0, &o);
        CHECK_INT(member_int(o.last, "exit_code"), 0);
        CHECK(o.out.data && strstr(o.out.data, "/agentiso/exec-"));
        CHECK(wait_requests());
}

/* The folders that wait to be used have been removed by somebody. */
static void test_removed_folders(void) {
        char pattern[300];

        check_born_in_one();
        CHECK(agent.cgroups.n_spare > 0);
        for (size_t i = 0; i < agent.cgroups.n_spare; i++) {
                snprintf(pattern, sizeof(pattern), "%s/agentiso/%s", mount_point, agent.cgroups.spare[i].name);
                CHECK_INT(rmdir(pattern), 0);
        }
        check_born_in_one();
        check_born_in_one();
}

/* A shell that has left, with a child in a session of its own. */
static int64_t start_deserter(const char *tag) {
        _cleanup_free_ char *text =
                str_printf("echo $$ > %s/cgroup.procs; setsid sleep %s & echo $! > %s/pid; echo left; sleep %s",
                           mount_point, tag, folder, tag);
        int64_t id = start_job(text);

        CHECK(wait_output(id, "left"));
        CHECK(wait_runs(tag, true));
        return id;
}

static void test_a_shell_that_left_is_killed(void) {
        int64_t id = start_deserter("4880");
        _cleanup_outcome_ struct outcome o = {0};

        signal_job(id, SIGKILL, &o);
        CHECK_INT(member_int(o.last, "running"), 0);
        CHECK_INT(member_int(o.last, "processes"), 3);
        CHECK(!runs("4880"));
}

static void test_a_shell_that_left_is_signalled(void) {
        int64_t id = start_deserter("4881");
        _cleanup_outcome_ struct outcome o = {0}, end = {0};
        _cleanup_free_ char *text = NULL;

        signal_job(id, SIGTERM, &o);
        CHECK_INT(member_int(o.last, "processes"), 1);
        REQUIRE(read_end(id, &end));
        CHECK_INT(member_int(end.last, "signal"), SIGTERM);
        text = content("pid");
        CHECK(strtol(text, NULL, 10) > 1 && kill((pid_t) strtol(text, NULL, 10), SIGKILL) == 0);
}

static void test_a_child_that_left_is_killed(void) {
        _cleanup_free_ char *text =
                str_printf("sh -c 'echo $$ > %s/cgroup.procs; echo left; exec sleep 4882'; true", mount_point);
        int64_t id = start_job(text);

        CHECK(wait_output(id, "left"));
        CHECK(wait_runs("4882", true));
        kill_job(id);
        CHECK(wait_runs("4882", false));
}

static void run_commands(void) {
        char parent[256];

        mount_point = cgroup_folder();
        if (!mount_point) {
                printf("# no cgroups of version 2 that we may use here: what needs them is left out\n");
                return;
        }
        fixture_begin_in(mount_point);
        RUN(test_removed_folders);
        RUN(test_a_shell_that_left_is_killed);
        RUN(test_a_shell_that_left_is_signalled);
        RUN(test_a_child_that_left_is_killed);
        fixture_clear();
        snprintf(parent, sizeof(parent), "%s/agentiso", mount_point);
        CHECK_INT(rmdir(parent), 0);
        CHECK_INT(rmdir(mount_point), 0);
}

int main(void) {
        fixture_begin();
        RUN(test_more_are_left_over_than_are_remembered);
        fixture_clear();
        run_commands();
        return tap_done();
}
