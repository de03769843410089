/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "base/buf.h"
#include "base/str.h"
#include "cli/lane.h"
#include "cli/pending.h"
#include "cli/scan.h"
#include "tap.h"

static struct scan_message seen[16];
static size_t n_seen;

static void remember(void *arg, const struct scan_message *m) {
        if (n_seen < ARRAY_SIZE(seen))
                seen[n_seen++] = *m;
}

/* Scans a line in pieces of every size. */
static void check_scan(const char *line, const char *id, const char *method, const char *request_id) {
        size_t len = strlen(line);

        for (size_t step = 1; step <= len; step++) {
                struct scan s;
                scan_reset(&s);
                n_seen = 0;
                for (size_t at = 0; at < len; at += step)
                        scan_feed(&s, line + at, MIN(step, len - at), remember, NULL);
                CHECK_INT(n_seen, 1);
                if (n_seen != 1)
                        return;
                CHECK_STR(seen[0].id, id);
                CHECK_STR(seen[0].method, method);
                CHECK_STR(seen[0].request_id, request_id);
        }
}

static void test_requests(void) {
        check_scan("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}", "1", "\"ping\"", "");
        check_scan("{\"method\" : \"tools/call\" , \"id\" : \"a-1\" , \"params\":{\"id\":5,\"method\":\"x\"}}\r",
                   "\"a-1\"", "\"tools/call\"", "");
        check_scan("{\"id\":-7,\"result\":{\"id\":9,\"l\":[{\"method\":\"m\"}]}}", "-7", "", "");
        check_scan("{\"id\":\"a\\\"},{\\\\\",\"method\":\"m\"}", "\"a\\\"},{\\\\\"", "\"m\"", "");
}

static void test_strings_hide_syntax(void) {
        check_scan("{\"params\":{\"content\":\"}]\\\",\\\"id\\\":4,{[\"},\"id\":3,\"method\":\"m\"}", "3", "\"m\"", "");
        check_scan("{\"x\":\"\\\\\",\"id\":3,\"method\":\"m\"}", "3", "\"m\"", "");
}

static void test_cancelled(void) {
        check_scan(
                "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":12,\"reason\":"
                "\"x\"}}",
                "", "\"notifications/cancelled\"", "12");
        check_scan("{\"params\":{\"a\":{\"requestId\":1},\"requestId\":\"q\"},\"method\":\"m\"}", "", "\"m\"", "\"q\"");
        check_scan("{\"result\":{\"requestId\":1},\"method\":\"m\"}", "", "\"m\"", "");
}

static void test_ids_that_are_none(void) {
        check_scan("{\"id\":null,\"method\":\"m\"}", "", "\"m\"", "");
        check_scan("{\"id\":1.5,\"method\":\"m\"}", "", "\"m\"", "");
        check_scan("{\"id\":{\"id\":1},\"method\":\"m\"}", "", "\"m\"", "");
        check_scan("{\"id\":[1],\"method\":\"m\"}", "", "\"m\"", "");
        check_scan("{\"id\":true,\"method\":\"m\"}", "", "\"m\"", "");
}

/* The daemon may spell a string otherwise than the client did. */
static void test_id_spelling(void) {
        check_scan("{\"id\":\"a\\/\\u0041\",\"method\":\"m\"}", "\"a/A\"", "\"m\"", "");
}

static void test_long_id(void) {
        char line[SCAN_VALUE_MAX + 100], digits[SCAN_VALUE_MAX + 2];

        memset(digits, '1', sizeof digits - 1);
        digits[sizeof digits - 1] = 0;
        snprintf(line, sizeof(line), "{\"id\":%s,\"method\":\"m\"}", digits);
        check_scan(line, "", "\"m\"", "");
        snprintf(line, sizeof(line), "{\"id\":%s,\"method\":\"m\"}", digits + 1);
        check_scan(line, digits + 1, "\"m\"", "");
}

static void test_batch(void) {
        static const char line[] = "[{\"id\":1,\"method\":\"a\"},{\"method\":\"b\"}, {\"id\":\"x\",\"result\":{}}]";
        struct scan s;

        scan_reset(&s);
        n_seen = 0;
        scan_feed(&s, line, strlen(line), remember, NULL);
        CHECK_INT(n_seen, 3);
        CHECK(scan_is_request(&seen[0]));
        CHECK(!scan_is_request(&seen[1]) && !scan_is_response(&seen[1]));
        CHECK(scan_is_response(&seen[2]));
        CHECK_STR(seen[2].id, "\"x\"");
}

static void test_garbage(void) {
        static const char *const lines[] = {"}}}}]]]]", "{{{{[[[[", "\"\"\"\\", "{\"id\"}",
                                            "{:,:}",    ",,,:::",   "{\"id\":"};
        struct scan s;

        for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
                scan_reset(&s);
                scan_feed(&s, lines[i], strlen(lines[i]), remember, NULL);
        }
        check_scan("]]}}{\"id\":1,\"method\":\"m\"}", "1", "\"m\"", "");
}

/* Lanes. */

static struct buf passed;
static size_t n_pieces, n_lines;

static void collect(void *arg, const char *data, size_t n, bool ends) {
        (void) buf_append(&passed, data, n);
        n_pieces++;
        n_lines += ends;
}

static const struct lane_ops ops = {.message = remember, .piece = collect};

static void begin_lane(void) {
        buf_free(&passed);
        passed = BUF_INIT(64u << 20);
        n_pieces = n_lines = n_seen = 0;
}

static void test_lane_holds_lines(void) {
        struct lane l = LANE_INIT;

        begin_lane();
        CHECK_INT(lane_feed(&l, "{\"id\":1", 7, &ops, NULL), 0);
        CHECK_INT(n_pieces, 0);
        CHECK(l.in_line);
        CHECK_INT(lane_feed(&l, ",\"method\":\"m\"}\n\nrest", 20, &ops, NULL), 0);
        CHECK_INT(n_lines, 2);
        CHECK_INT(n_pieces, 2);
        CHECK_INT(n_seen, 1);
        CHECK_STR(passed.data, "{\"id\":1,\"method\":\"m\"}\n\n");
        lane_reset(&l);
        CHECK(!l.in_line);
        lane_free(&l);
}

static void test_lane_long_line(void) {
        size_t n = 20u << 20, chunk = 64u << 10;
        struct lane l = LANE_INIT;
        char *line = malloc(n);

        REQUIRE(line);
        begin_lane();
        memset(line, 'x', n);
        memcpy(line, "{\"p\":\"", 6);
        memcpy(line + n - 26, "\",\"id\":77,\"method\":\"long\"}", 26);
        line[n - 1] = '}';
        for (size_t at = 0; at < n; at += chunk)
                CHECK_INT(lane_feed(&l, line + at, MIN(chunk, n - at), &ops, NULL), 0);
        CHECK(l.passing);
        CHECK_INT(lane_feed(&l, "\n", 1, &ops, NULL), 0);
        CHECK(!l.passing);
        CHECK_INT(n_lines, 1);
        CHECK(n_pieces > 5);
        CHECK_INT(passed.len, n + 1);
        CHECK(passed.len == n + 1 && memcmp(passed.data, line, n) == 0);
        CHECK_INT(n_seen, 1);
        CHECK_STR(seen[0].id, "77");
        lane_free(&l);
        free(line);
}

/* Pending requests. */

static void test_pending(void) {
        _cleanup_pending_ struct pending p = {0};
        char *id;

        pending_add(&p, "1", 0);
        pending_add(&p, "\"two\"", 100);
        pending_add(&p, "3", 200);
        CHECK(pending_has(&p, "\"two\""));
        pending_remove(&p, "9");
        CHECK_INT(p.n, 3);

        id = pending_take_before(&p, 150, "1");
        CHECK_STR(id, "\"two\"");
        free(id);
        CHECK(!pending_take_before(&p, 150, "1"));
        id = pending_take_before(&p, 150, NULL);
        CHECK_STR(id, "1");
        free(id);
        pending_remove(&p, "3");
        CHECK_INT(p.n, 0);
}

static void test_pending_limit(void) {
        _cleanup_pending_ struct pending p = {0};

        for (unsigned i = 0; i < PENDING_MAX + 10; i++)
                pending_add(&p, "1", i);
        CHECK_INT(p.n, PENDING_MAX);
}

int main(void) {
        RUN(test_requests);
        RUN(test_strings_hide_syntax);
        RUN(test_cancelled);
        RUN(test_ids_that_are_none);
        RUN(test_id_spelling);
        RUN(test_long_id);
        RUN(test_batch);
        RUN(test_garbage);
        RUN(test_lane_holds_lines);
        RUN(test_lane_long_line);
        RUN(test_pending);
        RUN(test_pending_limit);
        buf_free(&passed);
        return tap_done();
}
