/* SPDX-License-Identifier: Apache-2.0 */

/* The tools that save, copy and describe workspaces, on a core that is played here: what they ask of it, and what they
 * make of its answers. */

#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "mcp/tool.h"
#include "tap.h"
#include "tools/tools.h"

#define CALL_TIMEOUT_MS 20000
#define MESSAGE_MAX (1024u * 1024u)
#define CREATED_MS 1767323045678
#define CREATED_TEXT "2026-01-02T03:04:05.678Z"

/* What the core was asked. */
static char *seen_image;
static bool seen_memory, seen_disk_only;
static struct ws_fork_args seen_fork;
static unsigned seen_vcpus, seen_memory_mb, made_before;

/* What it answers. */
static int64_t pause_us;
static bool restored_runs, restored_memory, listed_many, is_fork, was_running;
static enum ws_start_kind start_kind;
static unsigned fork_failures; /* of the first forks */

const char *ws_state_name(enum ws_state s) {
        return s == WS_RUNNING ? "running" : "stopped";
}

const char *ws_start_kind_name(enum ws_start_kind k) {
        static const char *const names[] = {"boot", "template", "pool", "snapshot"};

        return names[k];
}

int ws_forward_list(struct core *core, const char *ref, struct ws_forward **ret, size_t *ret_n, struct error *err) {
        const struct ws_forward one = {.guest_port = 8080, .host_port = 40123, .listening = true};

        (void) core, (void) ref, (void) err;
        *ret = malloc(sizeof(one));
        **ret = one;
        *ret_n = 1;
        return 0;
}

void core_forward_bind(const struct core *core, char ret[16]) {
        (void) core;
        snprintf(ret, 16, "127.0.0.1");
}

static struct ws_view view_of(const char *name, enum ws_state state) {
        struct ws_view v = {.row = {.name = strdup(name),
                                    .base_image = strdup("debian-dev"),
                                    .vcpus = 2,
                                    .memory_mb = 512,
                                    .disk_gb = 10,
                                    .state = state,
                                    .created_ms = CREATED_MS},
                            .owned = true};

        (void) snprintf(v.row.id, sizeof(v.row.id), "id-of-%.20s", name);
        (void) snprintf(v.address, sizeof(v.address), "10.99.0.2");
        return v;
}

static void set_origin(struct ws_view *v, const char *snapshot) {
        (void) snprintf(v->row.origin.workspace_id, sizeof(v->row.origin.workspace_id), "id-of-source");
        v->row.origin.workspace_name = strdup("source");
        v->row.origin.snapshot_name = snapshot ? strdup(snapshot) : NULL;
}

void ws_view_clear(struct ws_view *v) {
        free(v->row.name);
        free(v->row.base_image);
        free(v->row.origin.workspace_name);
        free(v->row.origin.snapshot_name);
        *v = (struct ws_view){0};
}

int ws_create(struct core *core, const struct ws_create_args *args, const char *owner, const struct op *op,
              struct ws_view *ret, struct ws_started *ret_started, struct error *err) {
        *ret = view_of(args->name, WS_RUNNING);
        *ret_started = (struct ws_started){.kind = start_kind, .boot_time_ms = 7};
        return 0;
}

int ws_start(struct core *core, const char *ref, const struct op *op, struct ws_view *ret,
             struct ws_started *ret_started, struct error *err) {
        *ret = view_of(ref, WS_RUNNING);
        *ret_started = (struct ws_started){.kind = start_kind, .boot_time_ms = 7, .already = was_running};
        return 0;
}

int ws_get(struct core *core, const char *ref, const char *owner, struct ws_view *ret, struct error *err) {
        *ret = view_of(ref, WS_RUNNING);
        if (is_fork)
                set_origin(ret, "base");
        return 0;
}

int ws_usage(struct core *core, const char *ref, struct ws_usage *ret, struct error *err) {
        *ret = (struct ws_usage){.memory_private_bytes = 1000, .memory_shared_bytes = 5000, .uptime_secs = 3};
        return 0;
}

/* Not used here. */
int ws_stop(struct core *core, const char *ref, const struct op *op, struct ws_view *ret, bool *ret_already,
            struct error *err) {
        return -ENOSYS;
}
int ws_destroy(struct core *core, const char *ref, const struct op *op, struct ws_view *ret, struct error *err) {
        return -ENOSYS;
}
int ws_list(struct core *core, const char *owner, struct ws_views *ret, struct error *err) {
        return -ENOSYS;
}
void ws_views_clear(struct ws_views *l) {
}
int ws_logs(struct core *core, const char *ref, unsigned max_lines, struct buf *console, struct buf *qemu_stderr,
            struct error *err) {
        return -ENOSYS;
}

void snap_view_clear(struct snap_view *v) {
        free(v->row.name);
        free(v->parent_name);
        strv_free(&v->forks);
        *v = (struct snap_view){0};
}

void snap_views_clear(struct snap_views *l) {
        for (size_t i = 0; i < l->n; i++)
                snap_view_clear(&l->v[i]);
        free(l->v);
        *l = (struct snap_views){0};
}

static struct snap_view snapshot_of(const char *name, const char *parent, enum snap_memory memory) {
        struct snap_view v = {.row = {.name = strdup(name), .memory = memory, .created_ms = CREATED_MS},
                              .parent_name = parent ? strdup(parent) : NULL,
                              .used_bytes = 111,
                              .referenced_bytes = 222};

        (void) snprintf(v.row.id, sizeof(v.row.id), "snap-%.20s", name);
        return v;
}

int ws_snapshot_create(struct core *core, const char *ref, const char *name, bool include_memory, const struct op *op,
                       struct snap_view *ret, struct error *err) {
        seen_memory = include_memory;
        *ret = snapshot_of(name, NULL, include_memory ? SNAP_MEMORY_PAGES : SNAP_MEMORY_NONE);
        ret->row.pause_us = pause_us;
        return 0;
}

#define MANY 100
#define MANY_FORKS 50

static void add_many(struct snap_views *l) {
        char name[128 + 1];

        memset(name, 'n', 128);
        name[128] = 0;
        for (l->n = 0; l->n < MANY; l->n++) {
                l->v[l->n] = snapshot_of(name, name, SNAP_MEMORY_NONE);
                for (size_t i = 0; i < MANY_FORKS; i++)
                        CHECK_INT(strv_add(&l->v[l->n].forks, name), 0);
        }
}

int ws_snapshot_list(struct core *core, const char *ref, struct snap_views *ret, struct error *err) {
        ret->v = calloc(MANY, sizeof(*ret->v));
        if (listed_many) {
                add_many(ret);
                return 0;
        }
        ret->v[0] = snapshot_of("first", NULL, SNAP_MEMORY_NONE);
        ret->v[1] = snapshot_of("second", "first", SNAP_MEMORY_WHOLE);
        ret->n = 2;
        return strv_add(&ret->v[1].forks, "fork-a") | strv_add(&ret->v[1].forks, "fork-b");
}

int ws_snapshot_restore(struct core *core, const char *ref, const char *name, bool disk_only, const struct op *op,
                        struct ws_view *ret, struct ws_started *ret_started, bool *ret_memory, struct error *err) {
        seen_disk_only = disk_only;
        *ret = view_of(ref, restored_runs ? WS_RUNNING : WS_STOPPED);
        *ret_started = (struct ws_started){.kind = start_kind, .boot_time_ms = restored_runs ? 40 : 0};
        *ret_memory = restored_memory;
        return 0;
}

int ws_snapshot_delete(struct core *core, const char *ref, const char *name, const struct op *op, uint64_t *ret_freed,
                       struct error *err) {
        if (str_eq(name, "needed")) {
                error_set(err, ERROR_CONFLICT, "Forks need it");
                return -EBUSY;
        }
        *ret_freed = 4096;
        return 0;
}

void ws_forks_clear(struct ws_forks *f) {
        for (size_t i = 0; i < f->n; i++) {
                free(f->v[i].name);
                ws_view_clear(&f->v[i].view);
                error_clear(&f->v[i].error);
        }
        free(f->v);
        free(f->snapshot_name);
        *f = (struct ws_forks){0};
}

static void make_fork(struct ws_fork *f, size_t number, const struct ws_fork_args *args) {
        f->name = args->count == 1 ? strdup(args->new_name ? args->new_name : "fork-0")
                                   : str_printf("%s-%zu", args->name_prefix ? args->name_prefix : "worker", number);
        f->started = (struct ws_started){.kind = WS_START_SNAPSHOT, .boot_time_ms = 50};
        if (number <= fork_failures) {
                f->r = error_set(&f->error, number == 1 ? ERROR_NO_SPACE : ERROR_TIMEOUT, "No room for %s", f->name);
                error_hint(&f->error, "Make some.");
                return;
        }
        f->view = view_of(f->name, WS_RUNNING);
        set_origin(&f->view, args->snapshot_name);
}

int ws_fork(struct core *core, const char *ref, const struct ws_fork_args *args, const char *owner, const struct op *op,
            struct ws_forks *ret, struct error *err) {
        seen_fork = *args;
        CHECK_STR(owner, "me");
        ret->v = calloc(args->count, sizeof(*ret->v));
        for (ret->n = 0; ret->n < args->count; ret->n++)
                make_fork(&ret->v[ret->n], ret->n + 1, args);
        ret->snapshot_name = args->snapshot_name ? strdup(args->snapshot_name) : NULL;
        ret->pause_us = pause_us;
        return 0;
}

void core_templates_clear(struct core_templates *l) {
        for (size_t i = 0; i < l->n; i++)
                free(l->v[i].base_image);
        free(l->v);
        *l = (struct core_templates){0};
}

int core_templates_list(struct core *core, struct core_templates *ret, struct error *err) {
        unsigned n = made_before + (seen_vcpus ? 1 : 0);

        ret->v = calloc(n + 1, sizeof(*ret->v));
        for (ret->n = 0; ret->n < n; ret->n++) {
                struct core_template *t = &ret->v[ret->n];

                *t = (struct core_template){.vcpus = 2, .memory_mb = 512, .bytes = 1000, .created_ms = CREATED_MS};
                (void) snprintf(t->id, sizeof(t->id), "template-%zu", ret->n);
                t->base_image = ret->n ? strdup("debian-dev") : NULL;
        }
        return 0;
}

int core_warm(struct core *core, const char *base_image, unsigned vcpus, unsigned memory_mb, const struct op *op,
              unsigned *ret_built, struct error *err) {
        (void) str_replace(&seen_image, base_image);
        seen_vcpus = vcpus;
        seen_memory_mb = memory_mb;
        *ret_built = vcpus ? 1 : 0;
        return 0;
}

void core_pool_state(struct core *core, unsigned *ret_ready, unsigned *ret_wanted) {
        *ret_ready = 1;
        *ret_wanted = 2;
}

static struct tool_result last;

/* Calls a tool. Its record, borrowed until the next call, or NULL and the error. */
static const json_t *call(const struct tool_group *group, const char *name, const char *args, struct error *err) {
        _cleanup_json_ json_t *parsed = json_loads(args, 0, NULL);
        struct op op = op_timeout(CALL_TIMEOUT_MS);
        const struct tool_call c = {.owner = "me", .workspace_id = "a", .args = parsed, .op = &op};

        CHECK(parsed);
        json_decref(last.value);
        last = (struct tool_result){0};
        for (size_t i = 0; i < group->n_tools; i++) {
                if (!str_eq(group->tools[i].name, name))
                        continue;
                int r = group->tools[i].handler(&c, &last, err);
                CHECK_INT(r < 0, last.value == NULL);
                return last.value;
        }
        CHECK_STR(name, "the name of a tool of this group");
        return NULL;
}

static const char *get(const json_t *v, const char *key) {
        return json_string_value(json_object_get(v, key));
}

static json_int_t number(const json_t *v, const char *key) {
        return json_is_integer(json_object_get(v, key)) ? json_integer_value(json_object_get(v, key)) : -1;
}

static bool is_true(const json_t *v, const char *key) {
        return json_is_true(json_object_get(v, key));
}

static const json_t *item(const json_t *v, const char *key, size_t i) {
        return json_array_get(json_object_get(v, key), i);
}

static const char *warning(const json_t *v) {
        CHECK_INT(json_array_size(json_object_get(v, "warnings")), 1);
        return json_string_value(item(v, "warnings", 0));
}

static const json_t *snapshot(const char *args) {
        return call(&snapshot_tools, "snapshot", args, NULL);
}

static void test_a_snapshot_is_made(void) {
        static const struct { int64_t pause_us, pause_ms; } rows[] = {{0, 0}, {1, 1}, {13000, 13}, {13001, 14}};

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                pause_us = rows[i].pause_us;
                const json_t *v = snapshot("{\"action\":\"create\",\"name\":\"n\",\"include_memory\":true}");
                CHECK_INT(number(v, "pause_ms"), rows[i].pause_ms);
                CHECK(seen_memory && is_true(v, "has_memory"));
                CHECK_STR(get(v, "snapshot_id"), "snap-n");
                CHECK_STR(get(v, "name"), "n");
                CHECK_STR(get(v, "workspace_id"), "a");
                CHECK_STR(get(v, "created_at"), CREATED_TEXT);
                CHECK_INT(number(v, "used_bytes"), 111);
        }
        const json_t *v = snapshot("{\"action\":\"create\",\"name\":\"n\"}");
        CHECK(!seen_memory && json_is_false(json_object_get(v, "has_memory")));
}

static void test_a_restore(void) {
        restored_runs = restored_memory = true;
        start_kind = WS_START_SNAPSHOT;
        const json_t *v = snapshot("{\"action\":\"restore\",\"name\":\"n\"}");
        CHECK(!seen_disk_only && is_true(v, "has_memory"));
        CHECK_STR(get(v, "workspace_id"), "id-of-a");
        CHECK_STR(get(v, "name"), "a");
        CHECK_STR(get(v, "state"), "running");
        CHECK_STR(get(v, "start"), "snapshot");
        CHECK_INT(number(v, "boot_time_ms"), 40);

        /* What did not start has no start. */
        restored_runs = restored_memory = false;
        start_kind = WS_START_BOOT;
        v = snapshot("{\"action\":\"restore\",\"name\":\"n\",\"disk_only\":true}");
        CHECK(seen_disk_only && json_is_false(json_object_get(v, "has_memory")));
        CHECK_STR(get(v, "state"), "stopped");
        CHECK(!json_object_get(v, "start"));
        CHECK_INT(number(v, "boot_time_ms"), 0);
}

static void test_a_listing(void) {
        const json_t *v = snapshot("{\"action\":\"list\"}");
        const json_t *first = item(v, "snapshots", 0), *second = item(v, "snapshots", 1);

        CHECK_INT(json_array_size(json_object_get(v, "snapshots")), 2);
        CHECK_STR(get(first, "name"), "first");
        CHECK(json_is_null(json_object_get(first, "parent")) && json_is_false(json_object_get(first, "has_memory")));
        CHECK_INT(json_array_size(json_object_get(first, "forks")), 0);
        CHECK_STR(get(second, "parent"), "first");
        CHECK(is_true(second, "has_memory"));
        CHECK_STR(get(second, "created_at"), CREATED_TEXT);
        CHECK_INT(number(second, "used_bytes"), 111);
        CHECK_INT(number(second, "referenced_bytes"), 222);
        CHECK_STR(json_string_value(item(second, "forks", 1)), "fork-b");
        CHECK(!json_object_get(second, "forks_not_shown"));
}

/* As many snapshots as may be configured, with names as long as they can be. */
static void test_a_long_listing_fits_a_message(void) {
        listed_many = true;
        const json_t *v = snapshot("{\"action\":\"list\"}");
        listed_many = false;
        _cleanup_buf_ struct buf text = BUF_INIT(MESSAGE_MAX);
        size_t hidden = 0, shown = 0;

        CHECK_INT(json_array_size(json_object_get(v, "snapshots")), MANY);
        for (size_t i = 0; i < MANY; i++) {
                const json_t *s = item(v, "snapshots", i), *not_shown = json_object_get(s, "forks_not_shown");
                shown += json_array_size(json_object_get(s, "forks"));
                hidden += not_shown ? (size_t) json_integer_value(not_shown) : 0;
        }
        CHECK_INT(shown + hidden, MANY * MANY_FORKS);
        CHECK(shown > 500 && hidden > 0);
        /* It stands in a message twice, once of these with escapes. */
        CHECK_INT(json_write(v, &text), 0);
        size_t quotes = 0;
        for (size_t i = 0; i < text.len; i++)
                quotes += text.data[i] == '"';
        CHECK(2 * text.len + quotes < MESSAGE_MAX - 4096);
}

static void test_a_snapshot_is_deleted(void) {
        _cleanup_error_ struct error err = ERROR_INIT;
        const json_t *v = snapshot("{\"action\":\"delete\",\"name\":\"n\"}");

        CHECK_STR(get(v, "name"), "n");
        CHECK(is_true(v, "deleted"));
        CHECK_INT(number(v, "freed_bytes"), 4096);
        CHECK(!call(&snapshot_tools, "snapshot", "{\"action\":\"delete\",\"name\":\"needed\"}", &err));
        CHECK_INT(err.code, ERROR_CONFLICT);
}

static void test_what_an_action_needs_and_takes(void) {
        static const char *const nameless[] = {"create", "restore", "delete"};

        for (size_t i = 0; i < ARRAY_SIZE(nameless); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                _cleanup_free_ char *args = str_printf("{\"action\":\"%s\"}", nameless[i]);
                CHECK(!call(&snapshot_tools, "snapshot", args, &err));
                CHECK_INT(err.code, ERROR_INVALID_ARGUMENT);
                CHECK(strstr(error_message(&err), "\"name\"") && err.hint);
        }
        CHECK(strstr(warning(snapshot("{\"action\":\"create\",\"name\":\"n\",\"disk_only\":true}")), "\"disk_only\""));
        CHECK(strstr(warning(snapshot("{\"action\":\"restore\",\"name\":\"n\",\"include_memory\":true}")),
                     "\"include_memory\""));
        CHECK(strstr(warning(snapshot("{\"action\":\"list\",\"name\":\"n\"}")), "\"name\""));
        CHECK(!json_object_get(snapshot("{\"action\":\"list\"}"), "warnings"));
}

static const json_t *fork_it(const char *args, struct error *err) {
        return call(&fork_tools, "workspace_fork", args, err);
}

static void test_one_fork(void) {
        pause_us = 0;
        const json_t *v = fork_it("{\"count\":1,\"snapshot_name\":\"base\",\"new_name\":\"copy\"}", NULL);
        const json_t *from = json_object_get(v, "forked_from");

        CHECK_INT(seen_fork.count, 1);
        CHECK(!seen_fork.disk_only);
        CHECK_STR(get(v, "workspace_id"), "id-of-copy");
        CHECK_STR(get(v, "name"), "copy");
        CHECK_STR(get(v, "state"), "running");
        CHECK_STR(get(v, "ip"), "10.99.0.2");
        CHECK_STR(get(v, "start"), "snapshot");
        CHECK_INT(number(v, "boot_time_ms"), 50);
        CHECK_STR(get(from, "source_workspace_id"), "id-of-source");
        CHECK_STR(get(from, "source_workspace_name"), "source");
        CHECK_STR(get(from, "snapshot_name"), "base");
        CHECK(!json_object_get(v, "pause_ms") && !json_object_get(v, "warnings") && !json_object_get(v, "workers"));

        pause_us = 11500;
        v = fork_it("{\"disk_only\":true,\"name_prefix\":\"p\"}", NULL);
        CHECK(seen_fork.disk_only && seen_fork.count == 1 && !seen_fork.snapshot_name);
        CHECK(json_is_null(json_object_get(json_object_get(v, "forked_from"), "snapshot_name")));
        CHECK_INT(number(v, "pause_ms"), 12);
        CHECK(strstr(warning(v), "\"name_prefix\""));
}

static void test_one_fork_that_fails_is_an_error(void) {
        _cleanup_error_ struct error err = ERROR_INIT;

        fork_failures = 1;
        CHECK(!fork_it("{\"count\":1}", &err));
        fork_failures = 0;
        CHECK_INT(err.code, ERROR_NO_SPACE);
        CHECK_STR(error_message(&err), "No room for fork-0");
        CHECK_STR(err.hint, "Make some.");
}

static void test_several_forks(void) {
        pause_us = 0;
        fork_failures = 1;
        const json_t *v = fork_it("{\"count\":3,\"snapshot_name\":\"base\",\"name_prefix\":\"try\"}", NULL);
        const json_t *failure = item(v, "failures", 0), *worker = item(v, "workers", 1);

        CHECK_INT(last.failed, ERROR_NONE);
        CHECK_STR(get(v, "source_workspace_id"), "a");
        CHECK_STR(get(v, "snapshot_name"), "base");
        CHECK_INT(number(v, "requested_count"), 3);
        CHECK_INT(number(v, "success_count"), 2);
        CHECK_INT(number(v, "failure_count"), 1);
        CHECK_INT(json_array_size(json_object_get(v, "workers")), 2);
        CHECK_STR(get(worker, "workspace_id"), "id-of-try-3");
        CHECK_STR(get(worker, "name"), "try-3");
        CHECK_STR(get(worker, "ip"), "10.99.0.2");
        CHECK_INT(number(failure, "index"), 1);
        CHECK_STR(get(failure, "name"), "try-1");
        CHECK_STR(get(failure, "error"), "No room for try-1. Make some.");
        CHECK_STR(get(failure, "code"), "no_space");
        CHECK(!json_object_get(v, "pause_ms") && !json_object_get(v, "warnings"));

        pause_us = 1;
        fork_failures = 0;
        v = fork_it("{\"count\":2,\"new_name\":\"copy\"}", NULL);
        CHECK(!seen_fork.snapshot_name && json_is_null(json_object_get(v, "snapshot_name")));
        CHECK_INT(number(v, "pause_ms"), 1);
        CHECK_STR(get(item(v, "workers", 0), "name"), "worker-1");
        CHECK_INT(json_array_size(json_object_get(v, "failures")), 0);
        CHECK(strstr(warning(v), "\"new_name\""));
}

static void test_forks_that_all_fail(void) {
        fork_failures = 2;
        const json_t *v = fork_it("{\"count\":2}", NULL);
        fork_failures = 0;

        CHECK_INT(last.failed, ERROR_NO_SPACE);
        CHECK_INT(number(v, "success_count"), 0);
        CHECK_INT(number(v, "failure_count"), 2);
        CHECK_INT(json_array_size(json_object_get(v, "workers")), 0);
        CHECK_INT(number(item(v, "failures", 1), "index"), 2);
        CHECK_STR(get(item(v, "failures", 1), "code"), "timeout");
}

static void test_what_is_known_of_a_workspace(void) {
        const json_t *v = call(&lifecycle_tools, "workspace_info", "{}", NULL);
        const json_t *second = item(v, "snapshots", 1);

        CHECK_INT(number(v, "memory_used_bytes"), 1000);
        CHECK_INT(number(v, "memory_shared_bytes"), 5000);
        CHECK(!json_object_get(v, "forked_from"));
        CHECK_INT(json_array_size(json_object_get(v, "snapshots")), 2);
        CHECK_STR(get(second, "snapshot_id"), "snap-second");
        CHECK_STR(get(second, "name"), "second");
        CHECK_STR(get(second, "created_at"), CREATED_TEXT);
        CHECK(is_true(second, "has_memory"));

        is_fork = true;
        v = call(&lifecycle_tools, "workspace_info", "{}", NULL);
        is_fork = false;
        CHECK_STR(get(json_object_get(v, "forked_from"), "source_workspace_name"), "source");
        CHECK_STR(get(json_object_get(v, "forked_from"), "snapshot_name"), "base");
}

static void test_how_a_workspace_came_up(void) {
        static const enum ws_start_kind kinds[] = {WS_START_BOOT, WS_START_TEMPLATE, WS_START_POOL};

        for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
                start_kind = kinds[i];
                const json_t *v = call(&lifecycle_tools, "workspace_create", "{\"name\":\"n\"}", NULL);
                CHECK_STR(get(v, "start"), ws_start_kind_name(kinds[i]));
                CHECK_INT(is_true(v, "from_pool"), kinds[i] == WS_START_POOL);
        }
        start_kind = WS_START_TEMPLATE;
        CHECK_STR(get(call(&lifecycle_tools, "workspace_start", "{}", NULL), "start"), "template");
        was_running = true;
        const json_t *v = call(&lifecycle_tools, "workspace_start", "{}", NULL);
        was_running = false;
        CHECK(!json_object_get(v, "start") && is_true(v, "already_running"));
}

static void test_what_is_kept_ready(void) {
        seen_vcpus = 0;
        made_before = 2;
        const json_t *v = call(&host_methods, "agentiso/state", "{}", NULL);
        const json_t *any = item(v, "templates", 0), *mounted = item(v, "templates", 1);

        CHECK_INT(number(json_object_get(v, "pool"), "ready"), 1);
        CHECK_INT(number(json_object_get(v, "pool"), "wanted"), 2);
        CHECK_INT(number(v, "templates_bytes"), 2000);
        CHECK_INT(json_array_size(json_object_get(v, "templates")), 2);
        CHECK(json_is_null(json_object_get(any, "base_image")));
        CHECK_STR(get(mounted, "base_image"), "debian-dev");
        CHECK_STR(get(mounted, "created_at"), CREATED_TEXT);
        CHECK_INT(number(mounted, "memory_mb"), 512);
}

static void test_templates_are_made(void) {
        seen_vcpus = 0;
        made_before = 1;
        const json_t *v = call(&host_methods, "agentiso/warm", "{}", NULL);
        CHECK_INT(number(v, "built"), 0);
        CHECK_INT(json_array_size(json_object_get(v, "templates")), 0);
        CHECK(!seen_image && seen_memory_mb == 0);

        v = call(&host_methods, "agentiso/warm", "{\"base_image\":\"x\",\"vcpus\":4,\"memory_mb\":256}", NULL);
        CHECK_INT(number(v, "built"), 1);
        CHECK_STR(seen_image, "x");
        CHECK_INT(seen_vcpus, 4);
        CHECK_INT(seen_memory_mb, 256);
        /* Only what was not there before. */
        CHECK_INT(json_array_size(json_object_get(v, "templates")), 1);
        CHECK_STR(get(item(v, "templates", 0), "template_id"), "template-1");
        seen_vcpus = 0;
}

int main(void) {
        RUN(test_a_snapshot_is_made);
        RUN(test_a_restore);
        RUN(test_a_listing);
        RUN(test_a_long_listing_fits_a_message);
        RUN(test_a_snapshot_is_deleted);
        RUN(test_what_an_action_needs_and_takes);
        RUN(test_one_fork);
        RUN(test_one_fork_that_fails_is_an_error);
        RUN(test_several_forks);
        RUN(test_forks_that_all_fail);
        RUN(test_what_is_known_of_a_workspace);
        RUN(test_how_a_workspace_came_up);
        RUN(test_what_is_kept_ready);
        RUN(test_templates_are_made);
        json_decref(last.value);
        free(seen_image);
        return tap_done();
}
