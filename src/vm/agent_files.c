/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "vm/agent_private.h"

#define LIST_LINE_MAX (128u * 1024u)         /* one entry: a path and a link's target, escaped as JSON */
#define LIST_BYTES_MAX (32u * 1024u * 1024u) /* a whole listing */
#define LIST_DEPTH_MAX 2u
#define MODIFIED_MS_MAX 253402300799999 /* the last millisecond of the year 9999 */

/* --- reading --- */

static const char read_doing[] = "reading the file";

/* The guest counts either bytes or lines; a limit of bytes for a reading by lines is kept here. */
static json_t *read_request(const struct agent_read_args *args) {
        _cleanup_json_ json_t *request = json_pack("{s:s, s:s}", "type", WIRE_REQ_FILE_READ, "path", args->path);
        int r = 0;

        if (!request)
                return NULL;
        if (args->start_line > 0) {
                r = json_put(request, "start_line", json_integer((json_int_t) args->start_line));
                if (r >= 0 && args->line_count > 0)
                        r = json_put(request, "line_count", json_integer((json_int_t) args->line_count));
        } else {
                r = json_put(request, "limit", json_integer((json_int_t) MIN(args->limit, (uint64_t) INT64_MAX)));
                if (r >= 0 && args->offset > 0)
                        r = json_put(request, "offset", json_integer((json_int_t) args->offset));
        }
        return r < 0 ? NULL : TAKE_PTR(request);
}

static int append_content(struct buf *out, const char *data, size_t n, struct error *err) {
        int r = buf_append(out, data, n);

        if (r == -ENOBUFS) {
                error_set(err, ERROR_INVALID_ARGUMENT, "The content is larger than %zu bytes", out->max);
                error_hint(err, "Read it in parts, with offset and limit.");
                return -EFBIG;
        }
        return r < 0 ? error_set_errno(err, r, "Failed while %s", read_doing) : 0;
}

/* Appends what comes until the end message and takes that into account; or, by lines, until the limit. */
static int read_content(struct mux_stream *s, const struct agent_read_args *args, const struct op *op, struct buf *out,
                        struct agent_read_result *ret, struct error *err) {
        const size_t start = out->len;

        for (;;) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
                _cleanup_error_ struct error detail = ERROR_INIT;

                int r = agent_next(s, read_doing, op, &e, err);
                if (r < 0)
                        return r;
                if (e.kind == MUX_EOF)
                        continue;
                if (e.kind == MUX_MSG) {
                        if (!agent_is(e.msg, WIRE_MSG_END) ||
                            agent_get_count(e.msg, "bytes", &ret->bytes, &detail) < 0 ||
                            json_get_bool(e.msg, "truncated", &ret->truncated, &detail) < 0 ||
                            ret->bytes != out->len - start)
                                return agent_protocol_error(read_doing, &detail, err);
                        return 0;
                }
                const uint64_t room = args->limit - (out->len - start);
                if (e.channel != WIRE_CH_OUT || (e.data.len > room && args->start_line == 0))
                        return agent_protocol_error(read_doing, NULL, err);
                r = append_content(out, e.data.data, (size_t) MIN((uint64_t) e.data.len, room), err);
                if (r < 0)
                        return r;
                if (e.data.len > room) {
                        ret->bytes = out->len - start;
                        ret->truncated = true;
                        return 0;
                }
        }
}

int agent_file_read(struct agent *a, const struct agent_read_args *args, const struct op *op, struct buf *out,
                    struct agent_read_result *ret, struct error *err) {
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_json_ json_t *request = read_request(args), *ok = NULL;
        _cleanup_error_ struct error detail = ERROR_INIT;
        struct agent_read_result result = {0};
        const size_t start = out->len;

        int r = agent_request(a, request, read_doing, op, &s, err);
        if (r < 0)
                return r;
        r = agent_expect(s, WIRE_MSG_OK, read_doing, op, &ok, err);
        if (r < 0)
                return r;
        if (agent_get_count(ok, "size", &result.size, &detail) < 0)
                return agent_protocol_error(read_doing, &detail, err);
        r = read_content(s, args, op, out, &result, err);
        if (r < 0) {
                buf_truncate(out, start);
                return r;
        }
        *ret = result;
        return 0;
}

/* --- writing --- */

int agent_file_write(struct agent *a, const char *path, const void *data, size_t n, const char *mode, bool append,
                     const struct op *op, uint64_t *ret_written, struct error *err) {
        static const char doing[] = "writing the file";
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *ok = NULL;
        _cleanup_json_ json_t *request = json_pack("{s:s, s:s, s:s*, s:b}", "type", WIRE_REQ_FILE_WRITE, "path", path,
                                                   "mode", mode, "append", (int) append);
        uint64_t written = 0;

        int r = agent_request(a, request, doing, op, &s, err);
        if (r < 0)
                return r;
        r = agent_send(s, data, n, true, doing, op, err);
        if (r < 0)
                return r;
        r = agent_expect(s, WIRE_MSG_OK, doing, op, &ok, err);
        if (r < 0)
                return r;
        if (agent_get_count(ok, "bytes_written", &written, &detail) < 0 || written != n)
                return agent_protocol_error(doing, &detail, err);
        *ret_written = written;
        return 0;
}

int agent_file_edit(struct agent *a, const char *path, const char *old_text, size_t old_len, const char *new_text,
                    size_t new_len, bool replace_all, const struct op *op, uint64_t *ret_replacements,
                    uint64_t *ret_other, struct error *err) {
        static const char doing[] = "editing the file";
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *ok = NULL;
        _cleanup_json_ json_t *request =
                json_pack("{s:s, s:s, s:I, s:I, s:b}", "type", WIRE_REQ_FILE_EDIT, "path", path, "old_len",
                          (json_int_t) old_len, "new_len", (json_int_t) new_len, "replace_all", (int) replace_all);
        uint64_t replacements = 0, other = 0;

        int r = agent_request(a, request, doing, op, &s, err);
        if (r < 0)
                return r;
        r = agent_send(s, old_text, old_len, false, doing, op, err);
        if (r >= 0)
                r = agent_send(s, new_text, new_len, true, doing, op, err);
        if (r < 0)
                return r;
        r = agent_expect(s, WIRE_MSG_OK, doing, op, &ok, err);
        if (r < 0)
                return r;
        if (agent_get_count(ok, "replacements", &replacements, &detail) < 0 ||
            agent_get_count(ok, "other_matches", &other, &detail) < 0)
                return agent_protocol_error(doing, &detail, err);
        *ret_replacements = replacements;
        *ret_other = other;
        return 0;
}

/* --- listing --- */

static const char list_doing[] = "listing the directory";

/* Whether a text stands in a list of allowed ones. */
static bool kind_known(const char *kind) {
        static const char *const kinds[] = {"file", "directory", "symlink", "other"};

        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
                if (str_eq(kind, kinds[i]))
                        return true;
        return false;
}

static bool permissions_valid(const char *s) {
        return strlen(s) == 4 && strspn(s, "01234567") == 4;
}

/* Makes the entry for the caller from one line of the guest: only known members, each checked. */
static int parse_entry(const char *line, size_t len, json_t **ret, struct error *err) {
        _cleanup_json_ json_t *in = NULL;
        const char *name = NULL, *kind = NULL, *permissions = NULL, *target = NULL, *name_base64 = NULL;
        uint64_t size = 0;
        int64_t modified_ms = 0;
        char modified[TIME_TEXT_LEN + 1];

        int r = json_parse(line, len, LIST_LINE_MAX, LIST_DEPTH_MAX, &in, err);
        if (r < 0 || (r = json_get_str(in, "name", &name, err)) < 0 || (r = json_get_str(in, "kind", &kind, err)) < 0 ||
            (r = json_get_str(in, "permissions", &permissions, err)) < 0 ||
            (r = json_get_int(in, "modified_ms", &modified_ms, err)) < 0 ||
            (r = agent_get_count(in, "size", &size, err)) < 0 || (r = json_opt_str(in, "target", &target, err)) < 0 ||
            (r = json_opt_str(in, "name_base64", &name_base64, err)) < 0)
                return r;
        if (!kind_known(kind) || !permissions_valid(permissions))
                return error_set(err, ERROR_INVALID_ARGUMENT, "an entry of unknown kind or permissions");

        time_text(MAX(0, MIN(modified_ms, MODIFIED_MS_MAX)), modified);
        *ret = json_pack("{s:s, s:s*, s:s, s:I, s:s, s:s, s:s*}", "name", name, "name_base64", name_base64, "kind",
                         kind, "size", (json_int_t) size, "permissions", permissions, "modified", modified, "target",
                         target);
        return *ret ? 0 : error_set_errno(err, ENOMEM, "Failed while %s", list_doing);
}

/* Takes all complete lines out of `text`; what is left is the beginning of one. */
static int take_lines(struct buf *text, unsigned max_entries, json_t *entries, struct error *err) {
        size_t done = 0;
        const char *end;

        while (done < text->len && (end = memchr(text->data + done, '\n', text->len - done))) {
                const char *line = text->data + done;
                json_t *entry = NULL;

                if (json_array_size(entries) >= max_entries)
                        return error_set(err, ERROR_INVALID_ARGUMENT, "more entries than were asked for");
                int r = parse_entry(line, (size_t) (end - line), &entry, err);
                if (r < 0)
                        return r;
                r = json_push(entries, entry);
                if (r < 0)
                        return error_set_errno(err, r, "Failed while %s", list_doing);
                done += (size_t) (end - line) + 1;
        }
        buf_consume(text, done);
        return 0;
}

static int list_entries(struct mux_stream *s, unsigned max_entries, const struct op *op, json_t *entries, json_t **ret,
                        struct error *err) {
        _cleanup_buf_ struct buf text = BUF_INIT(LIST_LINE_MAX + WIRE_FRAME_MAX);
        size_t total = 0;

        for (;;) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;
                _cleanup_error_ struct error detail = ERROR_INIT;

                int r = agent_next(s, list_doing, op, &e, err);
                if (r < 0)
                        return r;
                if (e.kind == MUX_EOF)
                        continue;
                if (e.kind == MUX_MSG) {
                        if (!agent_is(e.msg, WIRE_MSG_END) || text.len > 0)
                                return agent_protocol_error(list_doing, NULL, err);
                        *ret = TAKE_PTR(e.msg);
                        return 0;
                }
                total += e.data.len;
                if (e.channel != WIRE_CH_OUT || total > LIST_BYTES_MAX)
                        return agent_protocol_error(list_doing, NULL, err);
                r = buf_append(&text, e.data.data, e.data.len);
                if (r >= 0)
                        r = take_lines(&text, max_entries, entries, &detail);
                if (r == -ENOMEM)
                        return error_set_errno(err, ENOMEM, "Failed while %s", list_doing);
                if (r < 0 || text.len > LIST_LINE_MAX)
                        return agent_protocol_error(list_doing, &detail, err);
        }
}

int agent_file_list(struct agent *a, const char *path, bool recursive, unsigned max_entries, const struct op *op,
                    json_t **ret, bool *ret_truncated, struct error *err) {
        _cleanup_stream_ struct mux_stream *s = NULL;
        _cleanup_error_ struct error detail = ERROR_INIT;
        _cleanup_json_ json_t *entries = json_array(), *end = NULL;
        _cleanup_json_ json_t *request =
                json_pack("{s:s, s:s, s:b, s:I}", "type", WIRE_REQ_FILE_LIST, "path", path, "recursive",
                          (int) recursive, "max_entries", (json_int_t) max_entries);
        bool truncated = false;
        uint64_t count = 0;

        if (!entries)
                return error_set_errno(err, ENOMEM, "Failed while %s", list_doing);
        int r = agent_request(a, request, list_doing, op, &s, err);
        if (r < 0)
                return r;
        r = list_entries(s, max_entries, op, entries, &end, err);
        if (r < 0)
                return r;
        if (agent_get_count(end, "count", &count, &detail) < 0 || count != json_array_size(entries) ||
            json_get_bool(end, "truncated", &truncated, &detail) < 0)
                return agent_protocol_error(list_doing, &detail, err);
        *ret = TAKE_PTR(entries);
        *ret_truncated = truncated;
        return 0;
}
