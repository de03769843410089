/* SPDX-License-Identifier: Apache-2.0 */
/* Port forwards in the store. */
#include <string.h>

#include "sample.h"
#include "scratch.h"

#define WORKSPACE "11111111-2222-4333-8444-555555555555"
#define OTHER "22222222-2222-4333-8444-555555555555"

static struct forward_row make_forward(const char *workspace, unsigned guest_port, unsigned host_port) {
        struct forward_row row = {.guest_port = guest_port, .host_port = host_port, .created_ms = 1700000000789};

        uuid_new(row.id);
        snprintf(row.workspace, sizeof(row.workspace), "%s", workspace);
        return row;
}

static void check_same(const struct forward_row *got, const struct forward_row *want) {
        CHECK_STR(got->id, want->id);
        CHECK_STR(got->workspace, want->workspace);
        CHECK_INT(got->guest_port, want->guest_port);
        CHECK_INT(got->host_port, want->host_port);
        CHECK_INT(got->created_ms, want->created_ms);
}

static void test_round_trip(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_(forward_rows_clear) struct forward_rows rows = {0}, left = {0};
        const struct forward_row a = make_forward(WORKSPACE, 8080, 40000), b = make_forward(OTHER, 8080, 40001);
        struct db *db = NULL;

        REQUIRE(db_open(path, &db, NULL) == 0);
        CHECK_INT(db_forward_insert(db, &a, NULL), 0);
        CHECK_INT(db_forward_insert(db, &b, NULL), 0);
        db_close(db);
        REQUIRE(db_open(path, &db, NULL) == 0);
        CHECK_INT(db_forward_list(db, &rows, NULL), 0);
        REQUIRE(rows.n == 2);
        check_same(&rows.v[0], &a);
        check_same(&rows.v[1], &b);
        CHECK_INT(db_forward_delete(db, a.id, NULL), 0);
        CHECK_INT(db_forward_delete(db, a.id, NULL), -ENOENT);
        CHECK_INT(db_forward_list(db, &left, NULL), 0);
        REQUIRE(left.n == 1);
        check_same(&left.v[0], &b);
        db_close(db);
}

static void test_ports_are_taken_once(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_error_ struct error err = ERROR_INIT;
        const struct forward_row first = make_forward(WORKSPACE, 8080, 40000);
        const struct forward_row host = make_forward(OTHER, 8080, 40000), guest = make_forward(WORKSPACE, 8080, 40001);
        struct db *db = NULL;

        REQUIRE(db_open(path, &db, NULL) == 0);
        CHECK_INT(db_forward_insert(db, &first, NULL), 0);
        CHECK_INT(db_forward_insert(db, &host, &err), -EEXIST);
        CHECK(strstr(error_message(&err), "40000"));
        CHECK_INT(db_forward_insert(db, &guest, &err), -EEXIST);
        CHECK(strstr(error_message(&err), "8080"));
        db_close(db);
}

static void test_what_is_no_port(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        static const unsigned wrong[][2] = {{0, 40000}, {65536, 40000}, {80, 0}, {80, 65536}};
        struct db *db = NULL;

        REQUIRE(db_open(path, &db, NULL) == 0);
        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                const struct forward_row row = make_forward(WORKSPACE, wrong[i][0], wrong[i][1]);
                CHECK(db_forward_insert(db, &row, NULL) < 0);
        }
        db_close(db);
}

int main(void) {
        RUN(test_round_trip);
        RUN(test_ports_are_taken_once);
        RUN(test_what_is_no_port);
        return tap_done();
}
