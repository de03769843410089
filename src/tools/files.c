/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "tools/output.h"
#include "tools/tools.h"
#include "tools/transfer.h"

#define FILE_TIMEOUT_MS 120000
#define READ_DEFAULT (256u * 1024u)     /* bytes, when no limit is given */
#define READ_MIN 7u                     /* the rest of a character, and a whole one: a smaller read may show nothing */
#define CHAR_MAX_LEN 4u                 /* bytes of a character of UTF-8 */
#define WRITE_MAX (16u * 1024u * 1024u) /* bytes of decoded content: a message has no more */
/* What the rest of a listing's message may take. */
#define LIST_BUDGET RESULT_BUDGET

static int get_agent(const struct tool_call *call, struct agent **ret, struct error *err) {
        return ws_agent(call->core, call->workspace_id, call->op, ret, err);
}

int explain_not_found(int r, const char *path, struct error *err) {
        const char *slash = strrchr(path, '/');

        if (r < 0 && err->code == ERROR_NOT_FOUND && !err->hint && slash)
                error_hint(err, "file_list of %.*s shows what is there.", (int) MAX(slash - path, 1), path);
        return r;
}

struct read_request {
        struct agent_read_args args; /* its limit may be larger than what is asked for */
        size_t limit;                /* bytes to show */
        bool limited;                /* the caller gave it */
        bool base64;
};

static int read_request(const struct tool_call *call, struct read_request *ret, struct error *err) {
        int64_t offset = -1, limit = 0, start_line = 0, line_count = 0;
        const char *path = NULL, *encoding = NULL;

        int r = json_get_str(call->args, "path", &path, err);
        if (r >= 0)
                r = json_opt_int(call->args, "offset", &offset, err);
        if (r >= 0)
                r = json_opt_int(call->args, "limit", &limit, err);
        if (r >= 0)
                r = json_opt_int(call->args, "start_line", &start_line, err);
        if (r >= 0)
                r = json_opt_int(call->args, "line_count", &line_count, err);
        if (r >= 0)
                r = json_get_str(call->args, "encoding", &encoding, err);
        if (r < 0)
                return r;
        if (offset >= 0 && (start_line > 0 || line_count > 0)) {
                error_set(err, ERROR_INVALID_ARGUMENT,
                          "Argument \"offset\" counts bytes, start_line and line_count lines: "
                          "give one kind only");
                return -EINVAL;
        }
        if (line_count > 0 && start_line == 0)
                start_line = 1;
        uint64_t shown = limit > 0 ? (uint64_t) limit : READ_DEFAULT;
        bool base64 = str_eq(encoding, "base64");
        uint64_t read = MAX(shown, (uint64_t) (base64 ? 1 : READ_MIN));
        *ret = (struct read_request){
                .args = {.path = path,
                         .offset = offset > 0 ? (uint64_t) offset : 0,
                         .limit = read,
                         .start_line = (uint64_t) start_line,
                         .line_count = (uint64_t) line_count},
                .limit = (size_t) shown,
                .limited = limit > 0,
                .base64 = base64,
        };
        return 0;
}

/* The part of what was read that is shown: whole characters or lines, and no more than a message takes. */
struct shown {
        const char *start;
        size_t skipped; /* bytes before it that belong to a character before the offset */
        size_t len;
        bool truncated;
        bool over_budget; /* a message takes less than was asked for */
};

/* Bytes of the first character; of what is none, enough to see that. */
static size_t first_character(const char *s, size_t n) {
        size_t len = 1;

        while (len < MIN(n, (size_t) CHAR_MAX_LEN) && !utf8_valid(s, len))
                len++;
        return len;
}

/* Ends what is cut behind its last line, so that reading on from the next one shows nothing twice. */
static void end_with_line(struct shown *s) {
        const char *nl = s->truncated && s->len > 0 ? memrchr(s->start, '\n', s->len) : NULL;

        if (nl)
                s->len = (size_t) (nl + 1 - s->start);
}

/* Passes over what belongs to a character before the offset. */
static void skip_rest_of_character(struct shown *s) {
        while (s->len > 0 && s->skipped < CHAR_MAX_LEN - 1 && ((unsigned char) *s->start & 0xc0) == 0x80) {
                s->start++;
                s->len--;
                s->skipped++;
        }
}

static struct shown choose_text(const struct read_request *rq, const struct buf *data, bool more) {
        struct shown s = {.start = data->len > 0 ? data->data : "", .len = data->len};

        if (rq->args.offset > 0)
                skip_rest_of_character(&s);
        size_t room = rq->limit > s.skipped ? rq->limit - s.skipped : 0;
        size_t all = s.len, want = MIN(all, room);
        size_t fit = text_fit_head(TEXT_ONCE, s.start, want, RESULT_BUDGET);
        s.over_budget = fit < want;
        s.len = more || fit < all ? utf8_floor(s.start, fit) : fit;
        /* However little is asked for, reading on must lead somewhere. */
        if (s.len == 0 && all > 0)
                s.len = first_character(s.start, all);
        s.truncated = more || s.len < all;
        if (rq->args.start_line > 0)
                end_with_line(&s);
        return s;
}

static size_t count_newlines(const char *s, size_t n) {
        size_t count = 0;

        for (size_t i = 0; i < n; i++)
                count += s[i] == '\n';
        return count;
}

/* A line that does not fit in one answer can only be read by bytes. */
static char *long_line_note(uint64_t line, size_t len) {
        if (line == 1)
                return str_printf("Line 1 is longer than this answer. To read on, call file_read with offset %zu, "
                                  "without start_line.",
                                  len);
        return str_printf("Line %" PRIu64 " is longer than this answer. Read the rest with offset and limit; head -n "
                          "%" PRIu64 " FILE | wc -c prints the offset where the line begins.",
                          line, line - 1);
}

/* Where to go on, and a note unless what the caller asked for is there in full. */
static int describe_rest(const struct read_request *rq, const struct shown *s, uint64_t size, struct tool_result *ret) {
        size_t lines = count_newlines(s->start, s->len);
        bool by_line = rq->args.start_line > 0;
        uint64_t next = by_line ? rq->args.start_line + lines : rq->args.offset + s->skipped + s->len;
        bool stuck = by_line && lines == 0;
        bool complete = by_line ? lines == rq->args.line_count : rq->limited && !s->over_budget;

        if (!stuck &&
            json_put(ret->meta, by_line ? "next_start_line" : "next_offset", json_integer((json_int_t) next)) < 0)
                return -ENOMEM;
        if (complete && !stuck)
                return 0;
        ret->note =
                stuck ? long_line_note(next, s->len)
                      : str_printf("This is a part: %zu of the file's %" PRIu64 " bytes. To read on, call file_read "
                                   "with %s %" PRIu64 ".",
                                   s->len, size, by_line ? "start_line" : "offset", next);
        return ret->note ? 0 : -ENOMEM;
}

static int describe_read(const struct read_request *rq, const struct shown *s, uint64_t size, struct tool_result *ret) {
        uint64_t first = rq->args.offset + s->skipped;
        json_t *meta = ret->meta = json_object();

        if (!meta || json_put(meta, "size", json_integer((json_int_t) size)) < 0 ||
            json_put(meta, "bytes", json_integer((json_int_t) s->len)) < 0 ||
            json_put(meta, "truncated", json_boolean(s->truncated)) < 0)
                return -ENOMEM;
        if (rq->args.start_line == 0 && json_put(meta, "offset", json_integer((json_int_t) first)) < 0)
                return -ENOMEM;
        if (s->truncated)
                return describe_rest(rq, s, size, ret);
        if (s->len > 0 || size == 0 || (first == 0 && rq->args.start_line <= 1))
                return 0;
        /* An empty answer alone would look like an empty file. */
        if (rq->args.start_line > 0)
                ret->note = str_printf("The file, of %" PRIu64 " bytes, ends before line %" PRIu64 ".", size,
                                       rq->args.start_line);
        else
                ret->note = str_printf("The file has %" PRIu64 " bytes: there is nothing at offset %" PRIu64 ".", size,
                                       first);
        return ret->note ? 0 : -ENOMEM;
}

static int not_text(const char *path, struct error *err) {
        error_set(err, ERROR_INVALID_ARGUMENT, "%s is not UTF-8 text", path);
        error_hint(err,
                   "Call file_read again with \"encoding\": \"base64\", look at it with exec (file, strings, od), or "
                   "bring it to the host with file_transfer.");
        return -EINVAL;
}

static int show_text(const struct read_request *rq, const struct buf *data, const struct agent_read_result *res,
                     struct tool_result *ret, struct error *err) {
        struct shown s = choose_text(rq, data, res->truncated);

        if (!utf8_valid(s.start, s.len) || memchr(s.start, 0, s.len))
                return not_text(rq->args.path, err);
        ret->text = strndup(s.start, s.len);
        return ret->text ? describe_read(rq, &s, res->size, ret) : -ENOMEM;
}

static int show_base64(const struct read_request *rq, const struct buf *data, const struct agent_read_result *res,
                       struct tool_result *ret) {
        struct shown s = {.start = data->len > 0 ? data->data : "", .len = data->len, .truncated = res->truncated};
        _cleanup_buf_ struct buf out = BUF_INIT(RESULT_BUDGET);

        if (rq->args.start_line > 0)
                end_with_line(&s);
        int r = base64_encode(&out, s.start, s.len);
        if (r < 0)
                return r;
        ret->text = out.len > 0 ? buf_steal(&out) : strdup("");
        return ret->text ? describe_read(rq, &s, res->size, ret) : -ENOMEM;
}

static int file_read(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_buf_ struct buf data = {0};
        struct agent_read_result res = {0};
        struct read_request rq;

        int r = read_request(call, &rq, err);
        if (r >= 0)
                r = get_agent(call, &agent, err);
        if (r < 0)
                return r;
        data = BUF_INIT((size_t) rq.args.limit);
        r = agent_file_read(agent, &rq.args, call->op, &data, &res, err);
        if (r < 0)
                return explain_not_found(r, rq.args.path, err);
        return rq.base64 ? show_base64(&rq, &data, &res, ret) : show_text(&rq, &data, &res, ret, err);
}

static int decode_content(const char *encoding, const char *content, struct buf *out, struct error *err) {
        if (!str_eq(encoding, "base64"))
                return buf_append_str(out, content);
        int r = base64_decode(out, content, strlen(content));
        if (r == -EINVAL) {
                error_set(err, ERROR_INVALID_ARGUMENT, "Argument \"content\" is not valid base64");
                error_hint(err, "Use the alphabet A-Z a-z 0-9 + / with = at the end and no line breaks (RFC 4648).");
        }
        return r;
}

static int file_write(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_buf_ struct buf data = BUF_INIT(WRITE_MAX);
        const char *path = NULL, *content = NULL, *mode = NULL, *encoding = NULL;
        bool append = false;
        uint64_t written = 0;

        int r = json_get_str(call->args, "path", &path, err);
        if (r >= 0)
                r = json_get_str(call->args, "content", &content, err);
        if (r >= 0)
                r = json_opt_str(call->args, "mode", &mode, err);
        if (r >= 0)
                r = json_get_str(call->args, "encoding", &encoding, err);
        if (r >= 0)
                r = json_get_bool(call->args, "append", &append, err);
        if (r >= 0)
                r = decode_content(encoding, content, &data, err);
        if (r >= 0)
                r = get_agent(call, &agent, err);
        if (r < 0)
                return r;
        r = agent_file_write(agent, path, data.data, data.len, mode, append, call->op, &written, err);
        if (r < 0)
                return r;
        ret->value = json_pack("{s:s, s:I}", "path", path, "bytes_written", (json_int_t) written);
        return 0;
}

static int file_edit(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        const char *path = NULL, *old_text = NULL, *new_text = NULL;
        uint64_t replacements = 0, other = 0;
        bool all = false;

        int r = json_get_str(call->args, "path", &path, err);
        if (r >= 0)
                r = json_get_str(call->args, "old_string", &old_text, err);
        if (r >= 0)
                r = json_get_str(call->args, "new_string", &new_text, err);
        if (r >= 0)
                r = json_get_bool(call->args, "replace_all", &all, err);
        if (r < 0)
                return r;
        if (str_eq(old_text, new_text)) {
                error_set(err, ERROR_INVALID_ARGUMENT,
                          "Arguments \"old_string\" and \"new_string\" are the same: nothing "
                          "would change");
                return -EINVAL;
        }
        r = get_agent(call, &agent, err);
        if (r < 0)
                return r;
        r = agent_file_edit(agent, path, old_text, strlen(old_text), new_text, strlen(new_text), all, call->op,
                            &replacements, &other, err);
        if (r < 0)
                return explain_not_found(r, path, err);
        ret->value = json_pack("{s:s, s:I, s:I}", "path", path, "replacements", (json_int_t) replacements,
                               "other_matches", (json_int_t) other);
        return 0;
}

/* How many of the entries a message can hold. */
static int count_fitting(const json_t *entries, size_t *ret) {
        size_t cost = 0, n = 0, i;
        json_t *entry;

        json_array_foreach ((json_t *) entries, i, entry) {
                _cleanup_buf_ struct buf text = BUF_INIT(RESULT_BUDGET);

                int r = json_write(entry, &text);
                if (r < 0)
                        return r;
                /* As structured content, inside the text, and a comma in both. */
                cost += text.len + text_cost(TEXT_ONCE, text.data, text.len) + 2;
                if (cost > LIST_BUDGET)
                        break;
                n++;
        }
        *ret = n;
        return 0;
}

static int file_list(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_json_ json_t *entries = NULL;
        const char *path = NULL;
        bool recursive = false, truncated = false;
        int64_t max_entries = 0;
        size_t fitting;

        int r = json_get_str(call->args, "path", &path, err);
        if (r >= 0)
                r = json_get_bool(call->args, "recursive", &recursive, err);
        if (r >= 0)
                r = json_get_int(call->args, "max_entries", &max_entries, err);
        if (r >= 0)
                r = get_agent(call, &agent, err);
        if (r >= 0) {
                r = agent_file_list(agent, path, recursive, (unsigned) max_entries, call->op, &entries, &truncated,
                                    err);
                r = explain_not_found(r, path, err);
        }
        if (r >= 0)
                r = count_fitting(entries, &fitting);
        if (r < 0)
                return r;
        while (json_array_size(entries) > fitting) {
                (void) json_array_remove(entries, json_array_size(entries) - 1);
                truncated = true;
        }
        ret->value = json_pack("{s:O, s:b}", "entries", entries, "truncated", (int) truncated);
        return 0;
}

static const struct tool tools[] = {
        {"file_read", TOOL_ACCESS_OWNER, FILE_TIMEOUT_MS, file_read},
        {"file_write", TOOL_ACCESS_OWNER, FILE_TIMEOUT_MS, file_write},
        {"file_edit", TOOL_ACCESS_OWNER, FILE_TIMEOUT_MS, file_edit},
        {"file_list", TOOL_ACCESS_OWNER, FILE_TIMEOUT_MS, file_list},
        {"file_transfer", TOOL_ACCESS_OWNER, FILE_TIMEOUT_MS, file_transfer},
};

const struct tool_group file_tools = {.json = files_json, .tools = tools, .n_tools = ARRAY_SIZE(tools)};
