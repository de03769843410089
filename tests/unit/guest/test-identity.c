/* SPDX-License-Identifier: Apache-2.0 */

/* A machine's names, in namespaces of our own: an /etc and a /run of the test, and its own host name. */

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "fixture.h"
#include "guest/identity.h"

#define FIRST_ID "0123456789abcdef0123456789abcdef"
#define SECOND_ID "fedcba9876543210fedcba9876543210"
#define BOOT_ID "/proc/sys/kernel/random/boot_id"

static char *file(const char *path) {
        char *s = NULL;

        return file_read_all(path, 1 << 20, &s, NULL) < 0 ? strdup("(none)") : s;
}

static void check_file(const char *path, const char *want) {
        _cleanup_free_ char *got = file(path);

        CHECK_STR(got, want);
}

static void put(const char *path, const char *text, mode_t mode) {
        CHECK_INT(file_write_atomic(path, text, strlen(text), mode), 0);
}

/* No temporary file is left. */
static void check_no_others(void) {
        CHECK(access("/etc/hostname.agentiso-new", F_OK) < 0 && access("/etc/hosts.agentiso-new", F_OK) < 0 &&
              access("/etc/machine-id.agentiso-new", F_OK) < 0);
}

static unsigned mode_of(const char *path) {
        struct stat st;

        return lstat(path, &st) < 0 ? 0 : st.st_mode & (S_IFMT | 07777);
}

static void test_hostname(void) {
        static const char *const names[] = {"first", "a-much-longer-name.of-a-machine_", "x", "first", "first"};
        char name[HOSTNAME_MAX + 1];

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_free_ char *want = str_printf("%s\n", names[i]), *hosts = NULL, *ours = NULL;

                CHECK_INT(identity_set_hostname(names[i], NULL), 0);
                CHECK(gethostname(name, sizeof(name)) == 0 && str_eq(name, names[i]));
                check_file("/etc/hostname", want);
                hosts = file("/etc/hosts");
                ours = str_printf("127.0.1.1\t%s ", names[i]);
                CHECK(strstr(hosts, ours) && strstr(hosts, "127.0.0.1\tlocalhost\n"));
                /* One line of ours, the last. */
                const char *line = strstr(hosts, "127.0.1.1");
                CHECK(line && !strstr(line + 1, "127.0.1.1") && str_eq(strchr(line, '#'), "# agentiso\n"));
                CHECK_INT(mode_of("/etc/hostname"), S_IFREG | 0644);
        }
        check_no_others();
}

static void test_the_lines_of_others_in_hosts(void) {
        _cleanup_free_ char *after = NULL, *again = NULL;

        put("/etc/hosts", "10.0.0.1 db\n127.0.1.1\told\t# agentiso\n10.0.0.2 cache # not agentiso's\n", 0644);
        CHECK_INT(identity_set_hostname("fresh", NULL), 0);
        after = file("/etc/hosts");
        CHECK(str_starts_with(after, "10.0.0.1 db\n10.0.0.2 cache # not agentiso's\n127.0.1.1\tfresh "));
        CHECK(!strstr(after, "old"));
        CHECK_INT(identity_set_hostname("again", NULL), 0);
        again = file("/etc/hosts");
        CHECK(strstr(again, "10.0.0.1 db\n") && strstr(again, "again") && !strstr(again, "fresh"));
        CHECK_INT(strlen(again), strlen(after));
        check_no_others();
}

/* More than is changed in place. */
static void test_a_large_hosts(void) {
        _cleanup_buf_ struct buf text = BUF_INIT(1 << 20);
        _cleanup_free_ char *after = NULL;

        for (int i = 0; i < 1000; i++)
                CHECK_INT(buf_printf(&text, "10.1.%d.%d host-%d\n", i / 250, i % 250, i), 0);
        put("/etc/hosts", text.data, 0644);
        CHECK_INT(identity_set_hostname("small", NULL), 0);
        after = file("/etc/hosts");
        CHECK(strncmp(after, text.data, text.len) == 0 && str_starts_with(after + text.len, "127.0.1.1\tsmall "));
        unlink("/etc/hosts");
}

/* A link, a file with two names or another mode: what is behind it is not ours to write to. */
static void test_files_that_are_more_than_files(void) {
        put("/etc/other", "theirs\n", 0644);
        unlink("/etc/hostname");
        CHECK_INT(symlink("/etc/other", "/etc/hostname"), 0);
        CHECK_INT(identity_set_hostname("one", NULL), 0);
        CHECK_INT(mode_of("/etc/hostname"), S_IFREG | 0644);
        check_file("/etc/hostname", "one\n");
        check_file("/etc/other", "theirs\n");

        unlink("/etc/hostname");
        CHECK_INT(link("/etc/other", "/etc/hostname"), 0);
        CHECK_INT(identity_set_hostname("two", NULL), 0);
        check_file("/etc/hostname", "two\n");
        check_file("/etc/other", "theirs\n");

        CHECK_INT(chmod("/etc/hostname", 0600), 0);
        CHECK_INT(identity_set_hostname("three", NULL), 0);
        CHECK_INT(mode_of("/etc/hostname"), S_IFREG | 0644);
        check_file("/etc/hostname", "three\n");

        /* One that would block, and what an agent left that did not get further. */
        unlink("/etc/hostname");
        CHECK_INT(mkfifo("/etc/hostname", 0644), 0);
        put("/etc/hostname.agentiso-new", "half", 0600);
        CHECK_INT(identity_set_hostname("four", NULL), 0);
        check_file("/etc/hostname", "four\n");
        check_no_others();
}

static void test_a_file_that_cannot_be_written(void) {
        _cleanup_error_ struct error err = ERROR_INIT;

        unlink("/etc/machine-id");
        CHECK_INT(mkdir("/etc/machine-id", 0755), 0);
        CHECK(identity_set_machine_id(&agent, SECOND_ID, &err) < 0);
        CHECK(strstr(error_message(&err), "/etc/machine-id"));
        check_no_others();
        rmdir("/etc/machine-id");
}

/* A machine that gets another id is a copy, and gets another boot id; else it keeps it. */
static void test_machine_id_and_boot_id(void) {
        _cleanup_free_ char *kernels = file(BOOT_ID), *first = NULL, *same = NULL, *second = NULL;
        static const char want[] = FIRST_ID "\n";

        identity_init(&agent);
        CHECK(agent.boot_id_fd >= 0);
        check_file(BOOT_ID, kernels);
        CHECK_INT(identity_set_machine_id(&agent, FIRST_ID, NULL), 0);
        check_file("/etc/machine-id", want);
        CHECK_INT(mode_of("/etc/machine-id"), S_IFREG | 0444);
        first = file(BOOT_ID);
        CHECK_INT(strlen(first), UUID_LEN + 1);
        CHECK(!str_eq(first, kernels));
        CHECK_INT(identity_set_machine_id(&agent, FIRST_ID, NULL), 0);
        same = file(BOOT_ID);
        CHECK_STR(same, first);
        CHECK_INT(identity_set_machine_id(&agent, SECOND_ID, NULL), 0);
        check_file("/etc/machine-id", SECOND_ID "\n");
        second = file(BOOT_ID);
        CHECK(!str_eq(second, first));
        second[strcspn(second, "\n")] = '\0';
        CHECK(uuid_valid(second));
        umount2(BOOT_ID, MNT_DETACH);
        check_file(BOOT_ID, kernels);
}

static void test_dns(void) {
        struct configure_args a = {.has_dns = true, .n_dns = 2, .dns = {"10.99.0.1", "::1"}};

        CHECK_INT(symlink("/run/gone/resolv.conf", "/etc/resolv.conf"), 0);
        CHECK_INT(identity_set_dns(&a, NULL), 0);
        check_file("/etc/resolv.conf", "nameserver 10.99.0.1\nnameserver ::1\n");
        a.n_dns = 1;
        CHECK_INT(identity_set_dns(&a, NULL), 0);
        check_file("/etc/resolv.conf", "nameserver 10.99.0.1\n");
        a.n_dns = 0;
        CHECK_INT(identity_set_dns(&a, NULL), 0);
        check_file("/etc/resolv.conf", "");
}

/* Through the request, with the parts in one answer. */
static void test_configure(void) {
        _cleanup_outcome_ struct outcome o = {0}, late = {0};

        ask(json_of("{\"type\":\"configure\",\"hostname\":\"whole\",\"machine_id\":\"" FIRST_ID "\"}"), NULL, 0, &o);
        CHECK(o.last && member_int(o.last, "reseeded") == 0 && member_int(o.last, "realtime_ns") > 0);
        check_file("/etc/hostname", "whole\n");
        check_file("/etc/machine-id", FIRST_ID "\n");
        agent.root = ROOT_NONE;
        ask(json_of("{\"type\":\"configure\",\"hostname\":\"early\"}"), NULL, 0, &late);
        CHECK_INT(late.error.code, ERROR_NOT_RUNNING);
        check_file("/etc/hostname", "whole\n");
        agent.root = ROOT_MOUNTED;
}

/* Whether a request with so many bytes is answered with "reseeded"; -1: a sandbox forbids it. */
static int64_t reseeded(size_t n) {
        static const char zeros[64];
        _cleanup_buf_ struct buf text = BUF_INIT(1024);
        _cleanup_outcome_ struct outcome o = {0};

        CHECK_INT(base64_encode(&text, zeros, n), 0);
        ask(json_of("{\"type\":\"configure\",\"entropy\":\"%s\"}", text.data ? text.data : ""), NULL, 0, &o);
        if (o.last)
                return member_int(o.last, "reseeded");
        CHECK(strstr(error_message(&o.error), "entropy"));
        return -1;
}

static void test_entropy(void) {
        _cleanup_outcome_ struct outcome o = {0};
        int64_t enough = reseeded(64);

        if (enough >= 0) {
                CHECK_INT(enough, 1);
                CHECK_INT(reseeded(WIRE_ENTROPY_MIN), 1);
                CHECK_INT(reseeded(WIRE_ENTROPY_MIN - 1), 0);
        } else {
                printf("# no right to seed the generator\n");
        }
        ask(json_of("{\"type\":\"configure\",\"entropy\":\"!\"}"), NULL, 0, &o);
        CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
}

int main(void) {
        if (geteuid() != 0) {
                printf("1..0 # SKIP only root can mount\n");
                return 0;
        }
        if (unshare(CLONE_NEWNS | CLONE_NEWUTS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
            mount("tmpfs", "/etc", "tmpfs", 0, NULL) < 0 || mount("tmpfs", "/run", "tmpfs", 0, NULL) < 0) {
                printf("Bail out! no mounts of our own: %s\n", strerror(errno));
                return 1;
        }
        fixture_begin();
        RUN(test_hostname);
        RUN(test_the_lines_of_others_in_hosts);
        RUN(test_a_large_hosts);
        RUN(test_files_that_are_more_than_files);
        RUN(test_a_file_that_cannot_be_written);
        RUN(test_machine_id_and_boot_id);
        RUN(test_dns);
        RUN(test_configure);
        RUN(test_entropy);
        return fixture_end();
}
