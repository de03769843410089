/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fixture.h"

static void put(const char *name, const char *text) {
        if (file_write_atomic(in_folder(name), text, strlen(text), 0644) < 0)
                abort();
}

static json_t *request(const char *type, const char *path) {
        json_t *o = json_object();

        json_object_set_new(o, "type", json_string(type));
        json_object_set_new(o, "path", json_string(path));
        return o;
}

static json_t *with_int(json_t *o, const char *key, int64_t v) {
        json_object_set_new(o, key, json_integer(v));
        return o;
}

static json_t *with_str(json_t *o, const char *key, const char *v) {
        json_object_set_new(o, key, json_string(v));
        return o;
}

static json_t *with_true(json_t *o, const char *key) {
        json_object_set_new(o, key, json_true());
        return o;
}

static void write_file(const char *name, const char *text, struct outcome *o) {
        ask(request("file_write", in_folder(name)), text, strlen(text), o);
}

static void edit_file(const char *name, const char *old, const char *fresh, bool all, struct outcome *o) {
        _cleanup_free_ char *both = str_printf("%s%s", old, fresh);
        json_t *r = request("file_edit", in_folder(name));

        with_int(with_int(r, "old_len", (int64_t) strlen(old)), "new_len", (int64_t) strlen(fresh));
        if (all)
                with_true(r, "replace_all");
        ask(r, both, strlen(both), o);
}

/* Entries of the test's folder. */
static size_t count_files(void) {
        DIR *d = opendir(folder);
        size_t n = 0;

        while (d && readdir(d))
                n++;
        if (d)
                closedir(d);
        return n;
}

static void test_write_and_read(void) {
        _cleanup_outcome_ struct outcome w, r;
        struct stat st;

        write_file("a/b/c.txt", "hello\nworld\n", &w);
        CHECK_INT(member_int(w.last, "bytes_written"), 12);
        REQUIRE(stat(in_folder("a/b/c.txt"), &st) == 0);
        CHECK_INT(st.st_mode & 07777, 0644);
        REQUIRE(stat(in_folder("a/b"), &st) == 0);
        CHECK_INT(st.st_mode & 07777, 0755);

        ask(request("file_read", in_folder("a/b/c.txt")), NULL, 0, &r);
        CHECK_STR(r.out.data, "hello\nworld\n");
        CHECK(r.out_eof);
        CHECK_STR(member_str(r.first, "type"), "ok");
        CHECK_INT(member_int(r.first, "size"), 12);
        CHECK_STR(member_str(r.first, "mode"), "0644");
        CHECK_STR(member_str(r.first, "kind"), "file");
        CHECK_STR(member_str(r.last, "type"), "end");
        CHECK_INT(member_int(r.last, "bytes"), 12);
        CHECK_INT(member_int(r.last, "truncated"), 0);
}

static void test_write_mode_and_owner(void) {
        _cleanup_outcome_ struct outcome w, again, wrong;
        struct stat st;

        ask(with_str(request("file_write", in_folder("run.sh")), "mode", "0750"), "x", 1, &w);
        REQUIRE(stat(in_folder("run.sh"), &st) == 0);
        CHECK_INT(st.st_mode & 07777, 0750);

        bool root = chown(in_folder("run.sh"), 1234, 1235) == 0;
        write_file("run.sh", "y", &again);
        REQUIRE(stat(in_folder("run.sh"), &st) == 0);
        CHECK_INT(st.st_mode & 07777, 0750);
        CHECK(!root || (st.st_uid == 1234 && st.st_gid == 1235));

        ask(with_str(request("file_write", in_folder("run.sh")), "mode", "rwx"), "x", 1, &wrong);
        CHECK_INT(wrong.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(strstr(error_message(&wrong.error), "rwx"));
}

static void test_write_through_symlinks(void) {
        _cleanup_outcome_ struct outcome w, v;
        struct stat st;

        put("target", "old");
        if (symlink("target", in_folder("link1")) < 0 || symlink("link1", in_folder("link2")) < 0 ||
            symlink("not-yet", in_folder("dangling")) < 0)
                abort();
        write_file("link2", "new", &w);
        CHECK(lstat(in_folder("link2"), &st) == 0 && S_ISLNK(st.st_mode));
        _cleanup_free_ char *text = content("target");
        CHECK_STR(text, "new");
        write_file("dangling", "made", &v);
        _cleanup_free_ char *made = content("not-yet");
        CHECK_STR(made, "made");
        CHECK(lstat(in_folder("dangling"), &st) == 0 && S_ISLNK(st.st_mode));
}

static void test_write_refused(void) {
        _cleanup_outcome_ struct outcome dir, relative, fifo, loop, slash, below;
        size_t before;

        ask(request("file_write", folder), "x", 1, &dir);
        CHECK_INT(dir.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(strstr(error_message(&dir.error), "a directory"));
        ask(request("file_write", in_folder("name/")), "x", 1, &slash);
        CHECK_INT(slash.error.code, ERROR_INVALID_ARGUMENT);
        ask(request("file_write", "name"), "x", 1, &relative);
        CHECK_INT(relative.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(strstr(error_message(&relative.error), "absolute"));
        if (mkfifo(in_folder("fifo"), 0600) < 0 || symlink("loop", in_folder("loop")) < 0)
                abort();
        put("plain", "");
        before = count_files();
        ask(request("file_write", in_folder("fifo")), "x", 1, &fifo);
        CHECK(strstr(error_message(&fifo.error), "a named pipe"));
        ask(request("file_write", in_folder("loop")), "x", 1, &loop);
        CHECK(error_is_set(&loop.error));
        ask(request("file_write", in_folder("plain/below")), "x", 1, &below);
        CHECK(error_is_set(&below.error));
        CHECK_INT(count_files(), before);
}

static void test_append(void) {
        _cleanup_outcome_ struct outcome a, b, fifo;

        ask(with_true(request("file_write", in_folder("new/log")), "append"), "one\n", 4, &a);
        CHECK_INT(member_int(a.last, "bytes_written"), 4);
        ask(with_true(request("file_write", in_folder("new/log")), "append"), "two\n", 4, &b);
        _cleanup_free_ char *text = content("new/log");
        CHECK_STR(text, "one\ntwo\n");
        ask(with_true(request("file_write", in_folder("fifo")), "append"), "x", 1, &fifo);
        CHECK(strstr(error_message(&fifo.error), "a named pipe"));
}

static void test_write_cancelled_leaves_nothing(void) {
        struct mux_stream *s;
        struct op op = patience();
        size_t before;

        put("kept", "before");
        before = count_files();
        s = open_request(request("file_write", in_folder("kept")));
        CHECK_INT(mux_send_data(s, WIRE_CH_IN, "half", 4, &op), 0);
        for (int i = 0; i < 200 && count_files() == before; i++)
                poll(NULL, 0, 10);
        CHECK_INT(count_files(), before + 1);
        mux_stream_unref(s);
        for (int i = 0; i < 200 && count_files() != before; i++)
                poll(NULL, 0, 10);
        CHECK_INT(count_files(), before);
        _cleanup_free_ char *text = content("kept");
        CHECK_STR(text, "before");
}

/* Those that were there stay, and so does one that somebody uses by now. */
static void test_a_failed_write_removes_the_parents_it_made(void) {
        const char *path = in_folder("there/made/deep/file");
        json_t *r = with_int(request("file_write", path), "size", 100);
        _cleanup_outcome_ struct outcome o = {0}, p = {0};

        REQUIRE(mkdir(in_folder("there"), 0755) == 0);
        ask(r, "short", 5, &o);
        CHECK_INT(o.error.code, ERROR_INVALID_ARGUMENT);
        CHECK(access(in_folder("there/made"), F_OK) < 0);
        CHECK_INT(access(in_folder("there"), F_OK), 0);

        struct mux_stream *s = open_request(request("file_write", in_folder("there/used/deep/file")));
        CHECK(wait_for_file("there/used/deep"));
        put("there/used/other", "x");
        mux_stream_unref(s);
        CHECK(wait_requests());
        CHECK(access(in_folder("there/used/deep"), F_OK) < 0);
        CHECK_INT(access(in_folder("there/used/other"), F_OK), 0);
        ask(request("file_write", in_folder("there/made/file")), "x", 1, &p);
        CHECK_INT(access(in_folder("there/made/file"), F_OK), 0);
}

static void test_large_binary_file(void) {
        size_t n = 20 << 20;
        _cleanup_free_ char *data = malloc(n);
        _cleanup_outcome_ struct outcome w, r, part, behind;

        for (size_t i = 0; i < n; i++)
                data[i] = (char) (i ^ (i >> 8) ^ (i >> 16));
        ask(request("file_write", in_folder("large")), data, n, &w);
        CHECK_INT(member_int(w.last, "bytes_written"), n);
        ask(request("file_read", in_folder("large")), NULL, 0, &r);
        REQUIRE(r.out.len == n);
        CHECK(memcmp(r.out.data, data, n) == 0);

        ask(with_int(with_int(request("file_read", in_folder("large")), "offset", 12345678), "limit", 1000), NULL, 0,
            &part);
        REQUIRE(part.out.len == 1000);
        CHECK(memcmp(part.out.data, data + 12345678, 1000) == 0);
        CHECK_INT(member_int(part.last, "truncated"), 1);
        ask(with_int(request("file_read", in_folder("large")), "offset", (int64_t) n + 5), NULL, 0, &behind);
        CHECK_INT(behind.out.len, 0);
        CHECK_INT(member_int(behind.last, "bytes"), 0);
        CHECK_INT(member_int(behind.last, "truncated"), 0);
}

static void check_lines(int64_t start, int64_t count, const char *want, int64_t lines, bool truncated) {
        _cleanup_outcome_ struct outcome o;
        json_t *r = request("file_read", in_folder("lines"));

        if (start > 0)
                with_int(r, "start_line", start);
        if (count >= 0)
                with_int(r, "line_count", count);
        ask(r, NULL, 0, &o);
        CHECK_STR(o.out.data ? o.out.data : "", want);
        CHECK_INT(member_int(o.last, "lines"), lines);
        CHECK_INT(member_int(o.last, "truncated"), truncated);
}

static void test_read_lines(void) {
        _cleanup_outcome_ struct outcome both, zero;

        put("lines", "one\ntwo\n\nfour");
        check_lines(1, -1, "one\ntwo\n\nfour", 4, false);
        check_lines(2, 2, "two\n\n", 2, true);
        check_lines(3, 2, "\nfour", 2, false);
        check_lines(4, 1, "four", 1, false);
        check_lines(5, -1, "", 0, false);
        check_lines(0, 1, "one\n", 1, true);
        check_lines(1, 0, "", 0, true);
        put("lines", "one\ntwo\n");
        check_lines(1, 2, "one\ntwo\n", 2, false);
        check_lines(2, 5, "two\n", 1, false);

        ask(with_int(with_int(request("file_read", in_folder("lines")), "offset", 1), "start_line", 1), NULL, 0, &both);
        CHECK_INT(both.error.code, ERROR_INVALID_ARGUMENT);
        ask(with_int(request("file_read", in_folder("lines")), "start_line", 0), NULL, 0, &zero);
        CHECK_INT(zero.error.code, ERROR_INVALID_ARGUMENT);
}

static void test_read_lines_across_chunks(void) {
        _cleanup_buf_ struct buf text = BUF_INIT(4 << 20);
        _cleanup_outcome_ struct outcome o;

        for (int i = 1; i <= 200000; i++)
                buf_printf(&text, "line %d\n", i);
        if (file_write_atomic(in_folder("many"), text.data, text.len, 0644) < 0)
                abort();
        ask(with_int(with_int(request("file_read", in_folder("many")), "start_line", 123456), "line_count", 2), NULL, 0,
            &o);
        CHECK_STR(o.out.data, "line 123456\nline 123457\n");
        CHECK_INT(member_int(o.last, "truncated"), 1);
}

static void test_read_special(void) {
        _cleanup_outcome_ struct outcome dir, fifo, device, missing, proc;

        ask(request("file_read", folder), NULL, 0, &dir);
        CHECK(strstr(error_message(&dir.error), "a directory"));
        CHECK(dir.error.hint && strstr(dir.error.hint, "file_list"));
        ask(request("file_read", in_folder("fifo")), NULL, 0, &fifo);
        CHECK(strstr(error_message(&fifo.error), "a named pipe"));
        ask(request("file_read", "/dev/zero"), NULL, 0, &device);
        CHECK(strstr(error_message(&device.error), "a character device"));
        ask(request("file_read", in_folder("missing")), NULL, 0, &missing);
        CHECK_INT(missing.error.code, ERROR_NOT_FOUND);
        CHECK(strstr(error_message(&missing.error), "missing"));
        ask(request("file_read", "/proc/self/status"), NULL, 0, &proc);
        CHECK(proc.out.len > 100 && strstr(proc.out.data, "Pid:"));
}

static void test_edit(void) {
        _cleanup_outcome_ struct outcome first, all, grow;
        struct stat st;

        put("code.c", "int a;\nint b;\nint a;\n");
        chmod(in_folder("code.c"), 0755);
        bool root = chown(in_folder("code.c"), 1234, 1235) == 0;
        bool attribute = setxattr(in_folder("code.c"), "user.note", "kept", 4, 0) == 0;

        edit_file("code.c", "int a;", "long a;", false, &first);
        CHECK_INT(member_int(first.last, "replacements"), 1);
        CHECK_INT(member_int(first.last, "other_matches"), 1);
        _cleanup_free_ char *text = content("code.c");
        CHECK_STR(text, "long a;\nint b;\nint a;\n");
        REQUIRE(stat(in_folder("code.c"), &st) == 0);
        CHECK_INT(st.st_mode & 07777, 0755);
        CHECK(!root || (st.st_uid == 1234 && st.st_gid == 1235));
        char value[8] = "";
        CHECK(!attribute || (getxattr(in_folder("code.c"), "user.note", value, sizeof(value)) == 4));

        edit_file("code.c", "int", "", true, &all);
        CHECK_INT(member_int(all.last, "replacements"), 2);
        CHECK_INT(member_int(all.last, "other_matches"), 0);
        _cleanup_free_ char *text2 = content("code.c");
        CHECK_STR(text2, "long a;\n b;\n a;\n");

        put("as", "aaaaa");
        edit_file("as", "aa", "b", true, &grow);
        _cleanup_free_ char *text3 = content("as");
        CHECK_STR(text3, "bba");
}

static void test_edit_not_found(void) {
        _cleanup_outcome_ struct outcome o, nothing, missing, empty;

        put("code.py", "def f(x):\n\tif x == 1:\n\t\treturn x\n\treturn None\nother = 5\n");
        edit_file("code.py", "\n    if x == 1:\n", "?", false, &o);
        CHECK_INT(o.error.code, ERROR_NOT_FOUND);
        CHECK(strstr(error_message(&o.error), "2: \tif x == 1:"));
        CHECK(o.error.hint);
        edit_file("code.py", "@@@@@@@@@@@@", "?", false, &nothing);
        CHECK_INT(nothing.error.code, ERROR_NOT_FOUND);
        edit_file("nowhere.py", "x", "y", false, &missing);
        CHECK_INT(missing.error.code, ERROR_NOT_FOUND);
        CHECK(strstr(error_message(&missing.error), "nowhere.py"));
        edit_file("code.py", "", "y", false, &empty);
        CHECK_INT(empty.error.code, ERROR_INVALID_ARGUMENT);
}

static void test_edit_lengths_must_agree(void) {
        _cleanup_outcome_ struct outcome more, less;

        put("f", "abc");
        ask(with_int(with_int(request("file_edit", in_folder("f")), "old_len", 1), "new_len", 1), "abc", 3, &more);
        CHECK_INT(more.error.code, ERROR_INVALID_ARGUMENT);
        ask(with_int(with_int(request("file_edit", in_folder("f")), "old_len", 2), "new_len", 2), "abc", 3, &less);
        CHECK_INT(less.error.code, ERROR_INVALID_ARGUMENT);
        _cleanup_free_ char *text = content("f");
        CHECK_STR(text, "abc");
}

static void *edit_one(void *arg) {
        _cleanup_free_ char *old = str_printf("[%d]", *(int *) arg), *fresh = str_printf("(%d)", *(int *) arg);
        _cleanup_free_ char *both = str_printf("%s%s", old, fresh), *path = str_printf("%s/shared", folder);
        _cleanup_outcome_ struct outcome o;

        ask(with_int(with_int(request("file_edit", path), "old_len", (int64_t) strlen(old)), "new_len",
                     (int64_t) strlen(fresh)),
            both, strlen(both), &o);
        return NULL;
}

static void test_edits_at_once_are_all_there(void) {
        pthread_t t[8];
        int n[8];

        put("shared", "[0][1][2][3][4][5][6][7]");
        for (int i = 0; i < 8; i++) {
                n[i] = i;
                REQUIRE(thread_start(&t[i], "edit", edit_one, &n[i]) == 0);
        }
        for (int i = 0; i < 8; i++)
                pthread_join(t[i], NULL);
        _cleanup_free_ char *text = content("shared");
        CHECK_STR(text, "(0)(1)(2)(3)(4)(5)(6)(7)");
}

/* The names in a listing, each followed by a comma. */
static char *names_of(const struct outcome *o) {
        _cleanup_free_ char *text = strndup(o->out.data ? o->out.data : "", o->out.len);
        struct buf names = BUF_INIT(1 << 20);
        char *rest;

        buf_append(&names, "", 0);
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
                _cleanup_json_ json_t *e = json_of("%s", line);
                buf_printf(&names, "%s,", member_str(e, "name"));
        }
        char *s = buf_steal(&names);
        return s ? s : strdup("");
}

static void test_list(void) {
        _cleanup_outcome_ struct outcome flat, deep, cut, file, missing;

        if (mkdir_p(in_folder("tree/b/c"), 0755) < 0)
                abort();
        put("tree/z", "12345");
        chmod(in_folder("tree/z"), 0604);
        put("tree/.hidden", "");
        put("tree/b/c/deep", "");
        if (symlink("z", in_folder("tree/link")) < 0 || symlink("b", in_folder("tree/a-dir-link")) < 0)
                abort();

        ask(request("file_list", in_folder("tree")), NULL, 0, &flat);
        _cleanup_free_ char *names = names_of(&flat);
        CHECK_STR(names, ".hidden,a-dir-link,b,link,z,");
        CHECK_INT(member_int(flat.last, "count"), 5);
        CHECK_INT(member_int(flat.last, "truncated"), 0);
        CHECK(strstr(flat.out.data, "\"kind\":\"symlink\"") && strstr(flat.out.data, "\"target\":\"z\""));
        CHECK(strstr(flat.out.data, "\"name\":\"z\",\"kind\":\"file\",\"size\":5,\"permissions\":\"0604\""));

        ask(with_true(request("file_list", in_folder("tree")), "recursive"), NULL, 0, &deep);
        _cleanup_free_ char *all = names_of(&deep);
        CHECK_STR(all, ".hidden,a-dir-link,b,b/c,b/c/deep,link,z,");

        ask(with_int(with_true(request("file_list", in_folder("tree")), "recursive"), "max_entries", 4), NULL, 0, &cut);
        CHECK_INT(member_int(cut.last, "count"), 4);
        CHECK_INT(member_int(cut.last, "truncated"), 1);

        ask(request("file_list", in_folder("tree/z")), NULL, 0, &file);
        CHECK_INT(file.error.code, ERROR_INVALID_ARGUMENT);
        ask(request("file_list", in_folder("tree/none")), NULL, 0, &missing);
        CHECK_INT(missing.error.code, ERROR_NOT_FOUND);
}

static void test_list_odd_names(void) {
        _cleanup_outcome_ struct outcome o;

        if (mkdir_p(in_folder("odd"), 0755) < 0)
                abort();
        put("odd/a\nb", "");
        put("odd/\xff\xfe", "");
        ask(request("file_list", in_folder("odd")), NULL, 0, &o);
        _cleanup_free_ char *names = names_of(&o);
        CHECK_STR(names, "a\nb,\xef\xbf\xbd\xef\xbf\xbd,");
        CHECK(strstr(o.out.data, "\"name_base64\":\"//4=\""));
}

int main(void) {
        fixture_begin();
        RUN(test_write_and_read);
        RUN(test_write_mode_and_owner);
        RUN(test_write_through_symlinks);
        RUN(test_write_refused);
        RUN(test_append);
        RUN(test_write_cancelled_leaves_nothing);
        RUN(test_a_failed_write_removes_the_parents_it_made);
        RUN(test_large_binary_file);
        RUN(test_read_lines);
        RUN(test_read_lines_across_chunks);
        RUN(test_read_special);
        RUN(test_edit);
        RUN(test_edit_not_found);
        RUN(test_edit_lengths_must_agree);
        RUN(test_edits_at_once_are_all_there);
        RUN(test_list);
        RUN(test_list_odd_names);
        return fixture_end();
}
