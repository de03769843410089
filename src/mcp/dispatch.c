/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "mcp/private.h"

static void tool_result_clear(struct tool_result *r) {
        json_decref(r->value);
        json_decref(r->meta);
        free(r->text);
        free(r->note);
}

/* What dispatch has to add to a result. */
struct remarks {
        json_t *warnings; /* array of texts */
        bool adopted;
        char id[UUID_LEN + 1];
};

/* Of TOOL_ACCESS_OWNER_EACH. */
struct id_list {
        const char **v; /* point into text */
        char (*text)[UUID_LEN + 1];
        size_t n;
};

static void id_list_clear(struct id_list *l) {
        free((void *) l->v);
        free(l->text);
}

static int push_text(json_t *content, json_t *text) {
        json_t *item = json_object();

        if (!item || json_put(item, "type", json_string("text")) < 0 || json_put(item, "text", text) < 0) {
                json_decref(item);
                return -ENOMEM;
        }
        return json_push(content, item);
}

/* Makes a result one that tells of a failure. */
static int mark_failed(json_t *result, enum error_code code) {
        _cleanup_json_ json_t *meta = json_object();

        if (!meta || json_put(meta, "code", json_string(error_code_name(code))) < 0 ||
            json_put(result, "isError", json_true()) < 0)
                return -ENOMEM;
        return json_put(result, "_meta", TAKE_PTR(meta));
}

json_t *dispatch_error_result(const struct error *e) {
        const char *message = error_message(e);
        size_t len = strlen(message);
        while (len > 0 && message[len - 1] == '\n')
                len--;
        /* What stands on lines of its own is quoted: no full stop is set behind it, and the hint begins a new line. */
        bool lines = memchr(message, '\n', len), ended = lines || (len > 0 && strchr(".?!", message[len - 1]));
        _cleanup_buf_ struct buf raw = BUF_INIT(RPC_MESSAGE_MAX / 4), text = BUF_INIT(RPC_MESSAGE_MAX / 2);
        _cleanup_json_ json_t *result = json_object(), *content = json_array();

        int r = buf_append(&raw, message, len);
        if (r == 0 && !ended)
                r = buf_append_byte(&raw, '.');
        if (r == 0 && e->hint)
                r = buf_printf(&raw, "%c%s", lines ? '\n' : ' ', e->hint);
        /* The message may quote what a guest said. */
        if (r == 0)
                r = utf8_sanitize(&text, raw.data, raw.len, NULL);
        if (r < 0 || !result || !content || push_text(content, json_text(text.data, text.len)) < 0 ||
            json_put(result, "content", TAKE_PTR(content)) < 0 || mark_failed(result, e->code) < 0)
                return NULL;
        return TAKE_PTR(result);
}

/* Adds warnings (to those of the handler) and the adoption to an object that the client sees. */
static int add_remarks(json_t *object, const struct remarks *rm) {
        json_t *there = json_object_get(object, "warnings");

        if (rm->adopted && json_put(object, "adopted", json_true()) < 0)
                return -ENOMEM;
        if (json_array_size(rm->warnings) == 0)
                return 0;
        return there ? json_array_extend(there, rm->warnings) : json_object_set(object, "warnings", rm->warnings);
}

static json_t *record_result(const struct tool_result *tr, const struct remarks *rm) {
        _cleanup_buf_ struct buf text = BUF_INIT(RPC_MESSAGE_MAX);
        _cleanup_json_ json_t *result = json_object(), *content = json_array();

        if (!result || !content || add_remarks(tr->value, rm) < 0 || json_write(tr->value, &text) < 0 ||
            push_text(content, json_text(text.data, text.len)) < 0 ||
            json_put(result, "content", TAKE_PTR(content)) < 0 ||
            json_object_set(result, "structuredContent", tr->value) < 0 ||
            (tr->failed != ERROR_NONE && mark_failed(result, tr->failed) < 0))
                return NULL;
        return TAKE_PTR(result);
}

/* An error keeps the warnings: the name of an ignored argument is often the reason. */
static json_t *failed_result(struct error *err, const struct remarks *rm) {
        size_t i;
        json_t *w;
        _cleanup_buf_ struct buf hint = BUF_INIT(RPC_MESSAGE_MAX / 8);
        int r = err->hint ? buf_append_str(&hint, err->hint) : 0;

        json_array_foreach (rm->warnings, i, w)
                r = r < 0 ? r : buf_printf(&hint, "%s%s", hint.len ? " " : "", json_string_value(w));
        if (r == 0 && json_array_size(rm->warnings) > 0)
                error_hint(err, "%s", hint.data);
        return dispatch_error_result(err);
}

/* The note of the handler, the warnings and the adoption as one text; empty when there are none. */
static int note_text(const struct tool_result *tr, const struct remarks *rm, struct buf *out) {
        size_t i;
        json_t *w;
        int r = tr->note ? buf_append_str(out, tr->note) : 0;

        json_array_foreach (rm->warnings, i, w)
                r = r < 0 ? r : buf_printf(out, "%s%s", out->len ? " " : "", json_string_value(w));
        if (r == 0 && rm->adopted)
                r = buf_printf(out, "%sThe workspace had lost its owner; this call adopted it.", out->len ? " " : "");
        return r;
}

static json_t *text_result(const struct tool_result *tr, const struct remarks *rm) {
        _cleanup_buf_ struct buf note = BUF_INIT(64u * 1024u);
        _cleanup_json_ json_t *result = json_object(), *content = json_array();
        _cleanup_json_ json_t *meta = tr->meta ? json_incref(tr->meta) : json_object();

        if (!result || !content || !meta || add_remarks(meta, rm) < 0 || note_text(tr, rm, &note) < 0 ||
            push_text(content, json_string(tr->text)) < 0 ||
            (note.len > 0 && push_text(content, json_text(note.data, note.len)) < 0) ||
            json_put(result, "content", TAKE_PTR(content)) < 0 || json_put(result, "_meta", TAKE_PTR(meta)) < 0)
                return NULL;
        return TAKE_PTR(result);
}

static json_t *render(const struct tool_entry *entry, const struct tool_result *tr, const struct remarks *rm) {
        json_t *result = tr->text ? text_result(tr, rm) : record_result(tr, rm);
        if (result)
                return result;

        /* Only a result that is too large gets here, or memory is out. */
        _cleanup_error_ struct error e = ERROR_INIT;
        error_set(&e, ERROR_INTERNAL, "The result of %s cannot be shown: it is too large", entry->tool->name);
        error_hint(&e, "Ask for less at a time.");
        return dispatch_error_result(&e);
}

static int check_args(const struct tool_entry *entry, const json_t *args, json_t *warnings, json_t **ret,
                      struct error *err) {
        int r = schema_check_args(entry->input, args, warnings, ret, err);
        if (r < 0 ? err->code != ERROR_INVALID_ARGUMENT : json_array_size(warnings) == 0)
                return r;

        _cleanup_buf_ struct buf keys = BUF_INIT(4096);
        if (schema_list_keys(entry->input, &keys) < 0 || keys.len == 0)
                return r;
        _cleanup_free_ char *list = str_printf("Arguments of %s: %s.", entry->tool->name, keys.data);
        if (!list)
                return r;
        if (r >= 0)
                return json_push(warnings, json_string(list)) < 0
                               ? error_set_errno(err, ENOMEM, "Cannot read the arguments")
                               : r;
        _cleanup_free_ char *first = err->hint ? str_printf("%s ", err->hint) : NULL;
        error_hint(err, "%s%s", first ? first : "", list);
        return r;
}

/* Whether the workspace could be used, and its id; nothing is adopted. */
static int may_use(struct core *core, const char *ref, const char *owner, char ret_id[UUID_LEN + 1],
                   struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        bool adopted;

        int r = ws_get(core, ref, owner, &view, err);
        if (r < 0)
                return r;
        memcpy(ret_id, view.row.id, UUID_LEN + 1);
        return view.owned || view.orphaned ? 0 : ws_authorize(core, ref, owner, false, ret_id, &adopted, err);
}

static int check_twice(const struct id_list *ids, size_t i, const json_t *refs, struct error *err) {
        for (size_t k = 0; k < i; k++) {
                if (!str_eq(ids->v[k], ids->v[i]))
                        continue;
                const char *a = json_string_value(json_array_get(refs, k));
                const char *b = json_string_value(json_array_get(refs, i));
                error_set(
                        err, ERROR_INVALID_ARGUMENT,
                        "Argument \"workspace_ids\" has the same workspace twice: items %zu (\"%s\") and %zu (\"%s\")",
                        k + 1, a, i + 1, b);
                error_hint(err, "Name each workspace once; join commands for one with &&.");
                return -EINVAL;
        }
        return 0;
}

/* All are checked before the first is adopted. */
static int authorize_each(struct core *core, const char *owner, const json_t *refs, struct id_list *ids,
                          bool *ret_adopted, struct error *err) {
        ids->n = json_array_size(refs);
        ids->v = (const char **) calloc(ids->n + 1, sizeof(*ids->v));
        ids->text = calloc(ids->n + 1, sizeof(*ids->text));
        if (!ids->v || !ids->text)
                return error_set_errno(err, ENOMEM, "Cannot look up the workspaces");
        for (size_t i = 0; i < ids->n; i++) {
                int r = may_use(core, json_string_value(json_array_get(refs, i)), owner, ids->text[i], err);
                ids->v[i] = ids->text[i];
                if (r >= 0)
                        r = check_twice(ids, i, refs, err);
                if (r < 0)
                        return r;
        }
        for (size_t i = 0; i < ids->n; i++) {
                char id[UUID_LEN + 1];
                bool adopted;

                int r = ws_authorize(core, ids->v[i], owner, true, id, &adopted, err);
                if (r < 0)
                        return r;
                *ret_adopted = *ret_adopted || adopted;
        }
        return 0;
}

static enum tool_access access_of(const struct tool *tool, const json_t *args) {
        const char *action = json_string_value(json_object_get(args, "action"));

        return tool->read_action && str_eq(action, tool->read_action) ? TOOL_ACCESS_READ : tool->access;
}

/* Access as the tool's row declares it. */
static int authorize(struct core *core, const char *owner, const struct tool_entry *entry, const json_t *args,
                     struct remarks *rm, struct id_list *ids, struct error *err) {
        const char *ref = json_string_value(json_object_get(args, "workspace_id"));

        switch (access_of(entry->tool, args)) {
        case TOOL_ACCESS_NONE:
                return 0;
        case TOOL_ACCESS_READ: {
                _cleanup_ws_view_ struct ws_view view = {0};
                int r = ws_get(core, ref, owner, &view, err);
                if (r == 0)
                        memcpy(rm->id, view.row.id, sizeof(rm->id));
                return r;
        }
        case TOOL_ACCESS_OWNER:
                return ws_authorize(core, ref, owner, true, rm->id, &rm->adopted, err);
        case TOOL_ACCESS_OWNER_NO_ADOPT:
                return ws_authorize(core, ref, owner, false, rm->id, &rm->adopted, err);
        case TOOL_ACCESS_OWNER_EACH:
                return authorize_each(core, owner, json_object_get(args, "workspace_ids"), ids, &rm->adopted, err);
        }
        return -EINVAL;
}

static int run(struct mcp_server *server, const char *owner, const struct tool_entry *entry, const json_t *given,
               const struct op *op, struct remarks *rm, struct tool_result *ret, struct error *err) {
        _cleanup_json_ json_t *args = NULL;
        _cleanup_(id_list_clear) struct id_list ids = {0};

        if (!rm->warnings)
                return error_set_errno(err, ENOMEM, "Cannot run %s", entry->tool->name);
        int r = check_args(entry, given, rm->warnings, &args, err);
        if (r < 0)
                return r;
        r = authorize(server->core, owner, entry, args, rm, &ids, err);
        if (r < 0)
                return r;

        struct tool_call call = {
                .core = server->core,
                .owner = owner,
                .workspace_id = *rm->id ? rm->id : NULL,
                .workspace_ids = ids.v,
                .n_workspaces = ids.n,
                .args = args,
                .op = op,
        };
        r = entry->tool->handler(&call, ret, err);
        if (r >= 0 && !ret->value && !ret->text)
                r = -ENOMEM;
        if (r < 0 && !error_is_set(err))
                error_set_errno(err, r, "%s failed", entry->tool->name);
        return r;
}

json_t *dispatch_run(struct mcp_server *server, const char *owner, const struct tool_entry *entry, const json_t *args,
                     const struct op *op) {
        _cleanup_json_ json_t *warnings = json_array();
        _cleanup_(tool_result_clear) struct tool_result result = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        struct remarks rm = {.warnings = warnings};

        int r = run(server, owner, entry, args, op, &rm, &result, &err);
        if (r >= 0)
                return render(entry, &result, &rm);
        if (err.code == ERROR_INTERNAL)
                log_warn("a tool failed", "tool", entry->tool->name, "error", error_message(&err));
        return failed_result(&err, &rm);
}
