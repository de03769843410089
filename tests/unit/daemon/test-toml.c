/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "base/json.h"
#include "daemon/toml.h"
#include "tap.h"

struct parsed {
        int r;
        json_t *json, *positions;
        char *message;
        unsigned line, column;
};

static struct parsed parse(const char *text) {
        struct parsed p = {0};
        p.r = toml_to_json(text, strlen(text), &p.json, &p.positions, &p.message, &p.line, &p.column);
        return p;
}

static void parsed_clear(struct parsed *p) {
        json_decref(p->json);
        json_decref(p->positions);
        free(p->message);
}

static void test_values(void) {
        _cleanup_(parsed_clear) struct parsed p =
                parse("top = true\n[a]\ns = \"x\"\nn = -5\nf = 1.5\nlist = [1, \"two\", [3]]\n[a.b]\nk = 'v'\n");

        REQUIRE(p.r == 0);
        char *text = json_dumps(p.json, JSON_SORT_KEYS | JSON_COMPACT);
        CHECK_STR(text,
                  "{\"a\":{\"b\":{\"k\":\"v\"},\"f\":1.5,\"list\":[1,\"two\",[3]],\"n\":-5,\"s\":\"x\"},\"top\":true}");
        free(text);
}

static void test_positions(void) {
        _cleanup_(parsed_clear) struct parsed p = parse("x = 1\n\n[vm]\n  accel = \"kvm\"\n");
        json_int_t line = 0, column = 0;

        REQUIRE(p.r == 0);
        CHECK(json_unpack(json_object_get(p.positions, "vm.accel"), "[I,I]", &line, &column) == 0);
        CHECK_INT(line, 4);
        CHECK_INT(column, 3);
        CHECK(json_unpack(json_object_get(p.positions, "x"), "[I,I]", &line, &column) == 0);
        CHECK_INT(line, 1);
        CHECK_INT(column, 1);
}

static void test_syntax_error(void) {
        _cleanup_(parsed_clear) struct parsed p = parse("a = 1\nb = = 2\n");

        CHECK_INT(p.r, -1);
        CHECK_INT(p.line, 2);
        CHECK_INT(p.column, 5);
        CHECK(p.message && p.message[0]);
}

static void test_duplicate_key(void) {
        _cleanup_(parsed_clear) struct parsed p = parse("a = 1\na = 2\n");

        CHECK_INT(p.r, -1);
        CHECK_INT(p.line, 2);
}

static void test_refused_values(void) {
        static const char *const texts[] = {"\nd = 2026-01-02\n", "\nd = 07:32:00\n", "\nd = inf\n", "\nd = nan\n"};

        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
                _cleanup_(parsed_clear) struct parsed p = parse(texts[i]);
                CHECK_INT(p.r, -1);
                CHECK_INT(p.line, 2);
                CHECK(p.message && strstr(p.message, "'d'"));
        }
}

static void test_deep_nesting(void) {
        char text[2000] = "a = ";
        _cleanup_(parsed_clear) struct parsed p = {0};

        for (int i = 0; i < 100; i++)
                strcat(text, "[");
        for (int i = 0; i < 100; i++)
                strcat(text, "]");
        p = parse(text);
        CHECK_INT(p.r, -1);
        CHECK(p.message && p.message[0]);
}

static void test_bad_bytes(void) {
        _cleanup_(parsed_clear) struct parsed p = parse("a = \"\xff\xfe\"\n");
        CHECK_INT(p.r, -1);
        CHECK_INT(p.line, 1);
}

static void test_empty(void) {
        _cleanup_(parsed_clear) struct parsed p = parse("");
        CHECK_INT(p.r, 0);
        CHECK_INT(json_object_size(p.json), 0);
}

int main(void) {
        RUN(test_values);
        RUN(test_positions);
        RUN(test_syntax_error);
        RUN(test_duplicate_key);
        RUN(test_refused_values);
        RUN(test_deep_nesting);
        RUN(test_bad_bytes);
        RUN(test_empty);
        return tap_done();
}
