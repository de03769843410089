/* SPDX-License-Identifier: Apache-2.0 */

/* What file_read shows of what a guest, played here, has read, and how it says where to go on. */

#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tap.h"
#include "tools/tools.h"

#define READS_MAX 1000u /* until a file must have come to its end */

struct agent {
        int unused;
};

static struct agent the_agent;
static const char *content; /* of the file */
static size_t content_len;

int ws_agent(struct core *core, const char *ref, const struct op *op, struct agent **ret, struct error *err) {
        *ret = &the_agent;
        return 0;
}

const struct core_transfer *core_transfer(const struct core *core) {
        return NULL;
}

void agent_unref(struct agent *a) {
}

/* The beginning of the line of that number. */
static size_t line_start(uint64_t line) {
        size_t at = 0;

        while (line > 1 && at < content_len)
                line -= content[at++] == '\n';
        return at;
}

int agent_file_read(struct agent *a, const struct agent_read_args *args, const struct op *op, struct buf *out,
                    struct agent_read_result *ret, struct error *err) {
        size_t start = args->start_line > 0 ? line_start(args->start_line) : MIN(args->offset, (uint64_t) content_len);
        size_t end = args->line_count > 0 ? line_start(args->start_line + args->line_count) : content_len;

        end = MIN(end, start + (size_t) args->limit);
        CHECK_INT(buf_append(out, content + start, end - start), 0);
        *ret = (struct agent_read_result){.size = content_len, .bytes = end - start, .truncated = end < content_len};
        return 0;
}

int agent_file_write(struct agent *a, const char *path, const void *data, size_t n, const char *mode, bool append,
                     const struct op *op, uint64_t *ret_written, struct error *err) {
        return -ENOSYS;
}

int agent_file_edit(struct agent *a, const char *path, const char *old_text, size_t old_len, const char *new_text,
                    size_t new_len, bool replace_all, const struct op *op, uint64_t *ret_replacements,
                    uint64_t *ret_other, struct error *err) {
        return -ENOSYS;
}

int agent_file_list(struct agent *a, const char *path, bool recursive, unsigned max_entries, const struct op *op,
                    json_t **ret, bool *ret_truncated, struct error *err) {
        return -ENOSYS;
}

int agent_upload(struct agent *a, int fd, const char *guest_path, unsigned mode, const struct op *op,
                 struct agent_transfer *ret, struct error *err) {
        return -ENOSYS;
}

int agent_download(struct agent *a, const char *guest_path, int fd, uint64_t max_bytes, uint64_t disk_bytes,
                   const struct op *op, struct agent_transfer *ret, struct error *err) {
        return -ENOSYS;
}

static void result_clear(struct tool_result *r) {
        free(r->text);
        free(r->note);
        json_decref(r->meta);
        *r = (struct tool_result){0};
}
#define _cleanup_result_ _cleanup_(result_clear)

/* Reads the file with these arguments, given as the members of an object. */
static int read_as(const char *encoding, const char *members, struct tool_result *ret, struct error *err) {
        struct op op = op_timeout(20000);
        _cleanup_free_ char *text =
                str_printf("{\"path\":\"/f\",\"encoding\":\"%s\"%s%s}", encoding, *members ? "," : "", members);
        _cleanup_json_ json_t *args = text ? json_loads(text, 0, NULL) : NULL;
        const struct tool_call call = {.owner = "me", .workspace_id = "w", .args = args, .op = &op};

        CHECK(args != NULL);
        return file_tools.tools[0].handler(&call, ret, err);
}

static int read_file(const char *members, struct tool_result *ret, struct error *err) {
        return read_as("utf-8", members, ret, err);
}

static void use(const char *text, size_t n) {
        content = text;
        content_len = n;
}

static json_int_t meta(const struct tool_result *r, const char *key) {
        const json_t *v = json_object_get(r->meta, key);

        return json_is_integer(v) ? json_integer_value(v) : -1;
}

/* n bytes of lines of `width` bytes each; the caller's to free. */
static char *lines_of(size_t n, size_t width) {
        char *s = malloc(n + 1);

        if (!s)
                return NULL;
        for (size_t i = 0; i < n; i++)
                s[i] = i % width == width - 1 ? '\n' : 'a';
        s[n] = 0;
        return s;
}

static void test_a_note_unless_all_that_was_asked_for_is_there(void) {
        /* 400000 bytes; a control character takes six bytes of a message. */
        _cleanup_free_ char *lines = lines_of(400000, 100), *dense = malloc(400001);
        static const struct {
                const char *args;
                bool dense, note;
        } rows[] = {
                {"", false, true},
                {"\"line_count\":5", false, false},
                {"\"line_count\":3999", false, true},
                {"\"line_count\":3900,\"limit\":524288", false, false},
                {"\"line_count\":3900,\"limit\":1000", false, true},
                {"\"start_line\":2,\"limit\":1000", false, true},
                {"\"limit\":1000", false, false},
                {"\"limit\":390000", false, false},
                {"\"offset\":10,\"limit\":1000", false, false},
                {"\"offset\":10", false, true},
                {"\"limit\":390000", true, true},
                {"\"limit\":390001", true, true},
                {"\"limit\":524288", true, true},
                {"\"limit\":1000", true, false},
        };

        REQUIRE(lines && dense);
        memset(dense, 1, 400000);
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                _cleanup_result_ struct tool_result r = {0};

                use(rows[i].dense ? dense : lines, 400000);
                REQUIRE(read_file(rows[i].args, &r, NULL) == 0);
                CHECK(json_is_true(json_object_get(r.meta, "truncated")));
                CHECK_INT(r.note != NULL, rows[i].note);
                CHECK(!r.note || strstr(r.note, "To read on, call file_read with"));
                if ((r.note != NULL) != rows[i].note)
                        printf("# with %s\n", rows[i].args);
        }
}

static void test_less_an_unfinished_character_is_all_that_was_asked_for(void) {
        _cleanup_result_ struct tool_result r = {0};

        use("\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac", 9);
        REQUIRE(read_file("\"limit\":5", &r, NULL) == 0);
        CHECK_STR(r.text, "\xe2\x82\xac");
        CHECK(!r.note);
        CHECK_INT(meta(&r, "next_offset"), 3);
}

static void test_lines_are_cut_behind_a_newline(void) {
        _cleanup_result_ struct tool_result by_default = {0}, by_limit = {0}, last = {0};
        _cleanup_free_ char *lines = lines_of(400000, 100);

        REQUIRE(lines);
        use(lines, 400000);
        REQUIRE(read_file("\"start_line\":1", &by_default, NULL) == 0);
        CHECK_INT(strlen(by_default.text), 262100);
        CHECK_INT(meta(&by_default, "bytes"), 262100);
        CHECK_INT(meta(&by_default, "next_start_line"), 2622);
        REQUIRE(read_file("\"start_line\":3,\"limit\":250", &by_limit, NULL) == 0);
        CHECK_INT(strlen(by_limit.text), 200);
        CHECK_INT(meta(&by_limit, "next_start_line"), 5);
        _cleanup_result_ struct tool_result bytes = {0};
        use("one\ntwo\nthree\n", 14);
        REQUIRE(read_as("base64", "\"start_line\":1,\"limit\":6", &bytes, NULL) == 0);
        CHECK_STR(bytes.text, "b25lCg==");
        CHECK_INT(meta(&bytes, "next_start_line"), 2);
        /* Nothing is cut from what ends with the file. */
        use("one\ntwo", 7);
        REQUIRE(read_file("\"start_line\":1", &last, NULL) == 0);
        CHECK_STR(last.text, "one\ntwo");
}

static void test_reading_on_by_lines_shows_each_once(void) {
        _cleanup_free_ char *lines = lines_of(5000, 70);
        _cleanup_buf_ struct buf all = BUF_INIT(10000);
        json_int_t at = 1;

        REQUIRE(lines);
        use(lines, 5000);
        for (unsigned i = 0; at > 0 && i < READS_MAX; i++) {
                _cleanup_free_ char *args = str_printf("\"start_line\":%d,\"limit\":333", (int) at);
                _cleanup_result_ struct tool_result r = {0};

                REQUIRE(read_file(args, &r, NULL) == 0);
                CHECK_INT(buf_append_str(&all, r.text), 0);
                at = meta(&r, "next_start_line");
        }
        CHECK_STR(all.data, lines);
}

static void test_a_line_that_is_longer_than_the_answer(void) {
        _cleanup_result_ struct tool_result first = {0}, second = {0};

        use("aaaaaaaaaaaa\nbbbbbbbbbbbb\nc\n", 28);
        REQUIRE(read_file("\"start_line\":1,\"limit\":8", &first, NULL) == 0);
        CHECK_STR(first.text, "aaaaaaaa");
        CHECK(meta(&first, "next_start_line") < 0);
        CHECK(first.note && strstr(first.note, "offset 8"));
        REQUIRE(read_file("\"start_line\":2,\"limit\":8", &second, NULL) == 0);
        CHECK_STR(second.text, "bbbbbbbb");
        CHECK(second.note && strstr(second.note, "Line 2") && strstr(second.note, "head -n 1 "));
}

static void test_each_read_gets_on_however_little_it_asks_for(void) {
        static const char text[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";

        use(text, strlen(text));
        for (int limit = 1; limit <= 9; limit++) {
                _cleanup_buf_ struct buf all = BUF_INIT(1000);
                json_int_t at = 0;

                for (unsigned i = 0; at >= 0 && i < READS_MAX; i++) {
                        _cleanup_free_ char *args = str_printf("\"offset\":%d,\"limit\":%d", (int) at, limit);
                        _cleanup_result_ struct tool_result r = {0};

                        REQUIRE(read_file(args, &r, NULL) == 0);
                        CHECK_INT(buf_append_str(&all, r.text), 0);
                        CHECK(meta(&r, "next_offset") < 0 || meta(&r, "next_offset") > at);
                        /* More than asked for only where a single character is. */
                        CHECK(strlen(r.text) <= (size_t) limit || ((unsigned char) r.text[0] >= 0xc0 && limit < 4));
                        at = meta(&r, "next_offset");
                }
                CHECK_STR(all.data, text);
        }
        for (int offset = 1; offset < (int) strlen(text); offset++) {
                _cleanup_free_ char *args = str_printf("\"offset\":%d,\"limit\":1", offset);
                _cleanup_result_ struct tool_result r = {0};

                REQUIRE(read_file(args, &r, NULL) == 0);
                json_int_t next = meta(&r, "next_offset");
                CHECK(next < 0 ? strchr(r.text, 'z') != NULL : next > offset);
        }
}

static void test_what_is_no_text_is_refused_however_little_is_asked_for(void) {
        static const char *const bad[] = {"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",
                                          "\xff\xfe\xfd\xfc\xfb\xfa\xff\xff",
                                          "\xe2\x82\xe2\x82\xe2\x82\xe2\x82\xe2\x82"};

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                _cleanup_error_ struct error err = ERROR_INIT, inside = ERROR_INIT;
                _cleanup_result_ struct tool_result r = {0};

                use(bad[i], strlen(bad[i]));
                CHECK(read_file("\"limit\":1", &r, &err) < 0);
                CHECK(err.hint && strstr(err.hint, "base64"));
                CHECK(read_file("\"offset\":1,\"limit\":1", &r, &inside) < 0);
        }
}

int main(void) {
        RUN(test_a_note_unless_all_that_was_asked_for_is_there);
        RUN(test_less_an_unfinished_character_is_all_that_was_asked_for);
        RUN(test_lines_are_cut_behind_a_newline);
        RUN(test_reading_on_by_lines_shows_each_once);
        RUN(test_a_line_that_is_longer_than_the_answer);
        RUN(test_each_read_gets_on_however_little_it_asks_for);
        RUN(test_what_is_no_text_is_refused_however_little_is_asked_for);
        return tap_done();
}
