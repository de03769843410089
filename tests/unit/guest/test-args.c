/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>

#include "base/deadline.h"
#include "base/str.h"
#include "guest/args.h"
#include "guest/job_args.h"
#include "guest/nearest.h"
#include "tap.h"
#include "wire/wire.h"

static json_t *parse(const char *text) {
        json_t *j = NULL;

        if (json_parse(text, strlen(text), 1 << 20, 16, &j, NULL) < 0)
                abort();
        return j;
}

/* A configure request with this must be refused, and the message must hold `says`. */
static void refused(const char *text, const char *says) {
        _cleanup_json_ json_t *j = parse(text);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct configure_args a;

        CHECK(configure_args_parse(j, &a, &err) < 0);
        CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
        CHECK(strstr(error_message(&err), says));
}

static void test_configure(void) {
        _cleanup_json_ json_t *j = parse(
                "{\"hostname\":\"ws-1.x_y\",\"machine_id\":\"0123456789abcdef0123456789abcdef\",\"realtime_ns\":5,"
                "\"network\":{\"mac\":\"02:00:0a:63:00:02\",\"address\":\"10.99.0.2\",\"prefix_len\":16,"
                "\"gateway\":\"10.99.0.1\"},\"dns\":[\"10.99.0.1\",\"::1\"]}");
        struct configure_args a;

        REQUIRE(configure_args_parse(j, &a, NULL) == 0);
        CHECK_STR(a.hostname, "ws-1.x_y");
        CHECK_INT(a.realtime_ns, 5);
        CHECK(a.has_network && a.network.has_mac && a.network.has_gateway);
        CHECK_INT(a.network.mac[2], 0x0a);
        CHECK_INT(a.network.prefix_len, 16);
        CHECK_INT(ntohl(a.network.address.s_addr), 0x0a630002);
        CHECK_INT(a.n_dns, 2);

        refused("{\"hostname\":\"a b\"}", "a b");
        refused("{\"hostname\":\"\"}", "hostname");
        refused("{\"hostname\":\"-x\"}", "hostname");
        refused("{\"hostname\":\"0123456789012345678901234567890123456789012345678901234567890123x\"}", "hostname");
        refused("{\"machine_id\":\"0123\"}", "machine_id");
        refused("{\"machine_id\":\"0123456789ABCDEF0123456789abcdef\"}", "machine_id");
        refused("{\"realtime_ns\":-1}", "realtime_ns");
        refused("{\"network\":[]}", "network");
        refused("{\"network\":{\"address\":\"10.0.0\",\"prefix_len\":8}}", "10.0.0");
        refused("{\"network\":{\"address\":\"10.0.0.1\"}}", "prefix_len");
        refused("{\"network\":{\"address\":\"10.0.0.1\",\"prefix_len\":33}}", "33");
        refused("{\"network\":{\"address\":\"10.0.0.1\",\"prefix_len\":8,\"gateway\":\"x\"}}", "gateway");
        refused("{\"network\":{\"address\":\"10.0.0.1\",\"prefix_len\":8,\"mac\":\"01:00:00:00:00:01\"}}", "multicast");
        refused("{\"network\":{\"address\":\"10.0.0.1\",\"prefix_len\":8,\"mac\":\"02:00:00:00:00\"}}", "mac");
        refused("{\"session\":\"0123456789abcdef\"}", "session");
        refused("{\"session\":\"0123456789ABCDEF0123456789abcdef\"}", "session");
        refused("{\"session\":5}", "session");
        refused("{\"dns\":[\"name\"]}", "dns[0]");
        refused("{\"dns\":[\"1.1.1.1\",\"1.1.1.1\",\"1.1.1.1\",\"1.1.1.1\"]}", "dns");
}

static void test_freeze(void) {
        static const char *const wrong[] = {"{}", "{\"max_ms\":0}", "{\"max_ms\":60001}", "{\"max_ms\":\"5\"}"};
        _cleanup_json_ json_t *right = parse("{\"max_ms\":60000}");
        struct freeze_args a;

        CHECK_INT(freeze_args_parse(right, &a, NULL), 0);
        CHECK_INT(a.max_ms, WIRE_FREEZE_MAX_MS);
        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                _cleanup_json_ json_t *j = parse(wrong[i]);
                _cleanup_error_ struct error err = ERROR_INIT;

                CHECK(freeze_args_parse(j, &a, &err) < 0);
                CHECK(strstr(error_message(&err), "max_ms"));
        }
}

static void test_mount_root(void) {
        static const char *const wrong[] = {
                "{\"device\":\"vda\"}", "{\"device\":\"/dev/../etc\"}", "{\"device\":\"/dev/\"}",
                "{\"device\":5}",       "{\"disk_bytes\":0}",           "{\"disk_bytes\":\"10G\"}",
        };
        struct mount_root_args a;

        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                _cleanup_json_ json_t *j = parse(wrong[i]);
                CHECK(mount_root_args_parse(j, &a, NULL) < 0);
        }
        _cleanup_json_ json_t *j = parse("{\"grow\":true}");
        REQUIRE(mount_root_args_parse(j, &a, NULL) == 0);
        CHECK_STR(a.device, "/dev/vda");
        CHECK(a.grow);
}

/* An exec request with these members besides the two that are needed. */
static int parse_exec(const char *members, struct exec_args *ret, json_t **keep) {
        _cleanup_free_ char *text =
                str_printf("{\"command\":\"x\",\"max_output\":10%s%s}", *members ? "," : "", members);

        json_decref(*keep);
        *keep = parse(text);
        return exec_args_parse(*keep, ret, NULL);
}

static void test_exec(void) {
        static const char *const wrong[] = {
                "\"timeout_ms\":0",  "\"env\":[]",  "\"env\":{\"A\":1}", "\"yield_ms\":0",
                "\"progress_ms\":1", "\"stdin\":1", "\"workdir\":\"a\"", "\"timeout_ms\":\"1\"",
        };
        _cleanup_json_ json_t *keep = NULL, *none = parse("{\"command\":\"x\"}");
        _cleanup_json_ json_t *large = parse("{\"command\":\"x\",\"max_output\":524289}");
        struct exec_args a;

        REQUIRE(parse_exec("\"env\":null,\"workdir\":null,\"timeout_ms\":null", &a, &keep) == 0);
        CHECK(!a.command.env && !a.command.workdir && a.command.timeout_ms == 0 && !a.has_stdin);
        CHECK(a.yield_ms == 0 && a.progress_ms == 0 && a.max_output == 10);
        CHECK(exec_args_parse(none, &a, NULL) < 0);
        CHECK(exec_args_parse(large, &a, NULL) < 0);
        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
                CHECK(parse_exec(wrong[i], &a, &keep) < 0);
}

static void test_jobs(void) {
        _cleanup_json_ json_t *start = parse("{\"command\":\"x\",\"pty\":true,\"cols\":132}");
        _cleanup_json_ json_t *size = parse("{\"command\":\"x\",\"cols\":132}");
        _cleanup_json_ json_t *wide = parse("{\"command\":\"x\",\"pty\":true,\"cols\":1001}");
        _cleanup_json_ json_t *whole = parse("{\"job_id\":7,\"wait_ms\":0,\"max_output\":0}");
        _cleanup_json_ json_t *zero = parse("{\"job_id\":0,\"wait_ms\":0,\"max_output\":0}");
        _cleanup_json_ json_t *long_wait = parse("{\"job_id\":7,\"wait_ms\":600001,\"max_output\":0}");
        _cleanup_json_ json_t *kill = parse("{\"job_id\":7,\"signal\":15}");
        _cleanup_json_ json_t *no_signal = parse("{\"job_id\":7,\"signal\":65}");
        _cleanup_json_ json_t *list = parse("{\"max\":301}");
        struct job_start_args s;
        struct job_read_args r;
        struct job_kill_args k;
        int64_t max;

        REQUIRE(job_start_args_parse(start, &s, NULL) == 0);
        CHECK(s.pty && s.cols == 132 && s.rows == -1);
        CHECK(job_start_args_parse(size, &s, NULL) < 0);
        CHECK(job_start_args_parse(wide, &s, NULL) < 0);
        REQUIRE(job_read_args_parse(whole, &r, NULL) == 0);
        CHECK(r.id == 7 && r.out_offset == -1 && r.err_offset == -1);
        CHECK(job_read_args_parse(zero, &r, NULL) < 0);
        CHECK(job_read_args_parse(long_wait, &r, NULL) < 0);
        REQUIRE(job_kill_args_parse(kill, &k, NULL) == 0);
        CHECK_INT(k.sig, 15);
        CHECK(job_kill_args_parse(no_signal, &k, NULL) < 0);
        CHECK(job_list_args_parse(list, &max, NULL) < 0);
}

static void nearest(const char *file, const char *wanted, const char *want) {
        _cleanup_buf_ struct buf out = BUF_INIT(4096);

        CHECK(nearest_lines(file, strlen(file), wanted, strlen(wanted), &out) >= 0);
        CHECK_STR(out.data ? out.data : "", want);
}

static void test_nearest(void) {
        nearest("a\nfoo(bar);\nb\n", "foo(baz);", "2: foo(bar);\n");
        nearest("  foo\nx\nfoo \nfoO\nfo\n", "\n \nfoo\nrest", "1:   foo\n3: foo \n4: foO\n");
        nearest("nothing here\n", "@@@@", "");
        nearest("", "x", "");
        nearest("x", "\n\n  ", "");
        nearest("no line feed at the end", "no line feed at the END", "1: no line feed at the end\n");
}

/* The search is bounded however the file looks. */
static void test_nearest_large(void) {
        _cleanup_buf_ struct buf file = BUF_INIT(8 << 20), out = BUF_INIT(4096);
        int64_t start = monotonic_ns();

        for (int i = 0; i < 40000; i++)
                buf_printf(&file, "%0100d abcdefghijklmnopqrstuvwxyz\n", i);
        CHECK(nearest_lines(file.data, file.len, "zyxwvutsrqponmlkjihgfedcba 0000000000000000000000", 49, &out) >= 0);
        CHECK((monotonic_ns() - start) / NSEC_PER_MSEC < 5000);
}

int main(void) {
        RUN(test_configure);
        RUN(test_freeze);
        RUN(test_mount_root);
        RUN(test_exec);
        RUN(test_jobs);
        RUN(test_nearest);
        RUN(test_nearest_large);
        return tap_done();
}
