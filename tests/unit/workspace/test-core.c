/* SPDX-License-Identifier: Apache-2.0 */
/* The core without a machine: what it refuses and how it says so, owners, creations that fail, full disks. */
#include "base/thread.h"
#include "workspace/fixture.h"

static int create(struct fixture *f, const struct ws_create_args *args, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        struct ws_started started;
        struct op op = op_timeout(30000);
        return ws_create(f->core, args, "somebody", &op, &view, &started, err);
}

static int begin(struct fixture *f) {
        int r = fixture_prepare(f, NULL);
        return r < 0 ? r : fixture_open(f, NULL);
}

/* Nothing of a workspace is anywhere. */
static void check_nothing_left(struct fixture *f) {
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        _cleanup_(ws_views_clear) struct ws_views views = {0};
        CHECK_INT(db_ws_list(f->db, &rows, NULL), 0);
        CHECK_INT(rows.n, 0);
        CHECK_INT(ws_list(f->core, NULL, &views, NULL), 0);
        CHECK_INT(views.n, 0);
        CHECK_INT(fixture_count(f, "vms"), 0);
        CHECK_INT(fixture_count(f, "disks"), 0);
}

static void test_refused_arguments(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(begin(&f) == 0);
        char long_name[200];
        memset(long_name, 'a', sizeof(long_name));
        long_name[129] = '\0';
        static const char uuid[] = "3d1d9e8a-58b1-4e1c-9a4f-0f2d8a7c1e55";
        static const bool yes = true;
        const struct {
                struct ws_create_args args;
                enum error_code code;
                const char *message, *hint;
        } cases[] = {
                {{.name = ""}, ERROR_INVALID_ARGUMENT, "name", "1 to 128"},
                {{.name = "a b"}, ERROR_INVALID_ARGUMENT, "a b", "A-Z"},
                {{.name = "../x"}, ERROR_INVALID_ARGUMENT, "../x", "A-Z"},
                {{.name = long_name}, ERROR_INVALID_ARGUMENT, "aaaa", "1 to 128"},
                {{.name = uuid}, ERROR_INVALID_ARGUMENT, uuid, "UUID"},
                {{.vcpus = 9}, ERROR_QUOTA_EXCEEDED, "vcpus 9", "8 or less"},
                {{.memory_mb = 64}, ERROR_INVALID_ARGUMENT, "memory_mb 64", "128"},
                {{.memory_mb = 9000}, ERROR_QUOTA_EXCEEDED, "memory_mb 9000", "8192 or less"},
                {{.disk_gb = 101}, ERROR_QUOTA_EXCEEDED, "disk_gb 101", "100 or less"},
                {{.disk_gb = 1}, ERROR_INVALID_ARGUMENT, "disk_gb 1", "disk_gb 2 or more"},
                {{.allow_internet = &yes}, ERROR_UNSUPPORTED, "no network", "agentiso check"},
                {{.base_image = "tinny"}, ERROR_NOT_FOUND, "tinny", "Did you mean tiny?"},
                {{.base_image = "../../etc"}, ERROR_INVALID_ARGUMENT, "../../etc", NULL},
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                _cleanup_error_ struct error err = ERROR_INIT;
                CHECK(create(&f, &cases[i].args, &err) < 0);
                CHECK_STR(error_code_name(err.code), error_code_name(cases[i].code));
                CHECK(strstr(error_message(&err), cases[i].message));
                CHECK(!cases[i].hint || (err.hint && strstr(err.hint, cases[i].hint)));
                if (!tap_ok)
                        printf("# case %zu: %s (%s)\n", i, error_message(&err), err.hint ? err.hint : "");
        }
        check_nothing_left(&f);
}

static void test_failed_boot_leaves_nothing(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(begin(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct ws_create_args args = {.name = "doomed"};
        CHECK(create(&f, &args, &err) < 0);
        CHECK(strstr(error_message(&err), "\"doomed\" could not be started"));
        printf("# %s\n", error_message(&err));
        check_nothing_left(&f);
        /* Name and address are free again. */
        error_clear(&err);
        CHECK(create(&f, &args, &err) < 0);
        CHECK(err.code != ERROR_CONFLICT);
        check_nothing_left(&f);
}

static void test_cancelled_create_leaves_nothing(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(begin(&f) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ws_view_ struct ws_view view = {0};
        _cleanup_cancel_ struct cancel *cancel = cancel_new();
        struct ws_create_args args = {0};
        struct ws_started started;
        struct op op = op_timeout(30000);
        op.cancel = cancel;
        cancel_fire(cancel);
        CHECK_INT(ws_create(f.core, &args, "somebody", &op, &view, &started, &err), -ECANCELED);
        CHECK_INT(err.code, ERROR_CANCELLED);
        check_nothing_left(&f);
}

static void test_failed_start_says_why(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1];
        REQUIRE(fixture_prepare(&f, NULL) == 0 && fixture_open(&f, NULL) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, false, id) == 0);
        fixture_close(&f);
        REQUIRE(fixture_open(&f, NULL) == 0);

        _cleanup_error_ struct error err = ERROR_INIT, late = ERROR_INIT;
        _cleanup_ws_view_ struct ws_view view = {0};
        struct ws_started started;
        struct agent *agent = NULL;
        struct op op = op_timeout(30000);
        CHECK(ws_start(f.core, "alpha", &op, &view, &started, &err) < 0);
        CHECK_INT(ws_get(f.core, "alpha", NULL, &view, NULL), 0);
        CHECK_INT(view.row.state, WS_STOPPED);
        CHECK(view.row.last_error && strstr(view.row.last_error, "could not be started"));
        CHECK(!view.row.has_proc);
        /* Whoever wants to use it learns the reason and the next step. */
        CHECK(ws_agent(f.core, "alpha", &op, &agent, &late) < 0);
        CHECK_INT(late.code, ERROR_NOT_RUNNING);
        CHECK(strstr(error_message(&late), "could not be started"));
        CHECK(late.hint && strstr(late.hint, "workspace_start"));
        /* Stopping it is no news. */
        bool already = false;
        _cleanup_ws_view_ struct ws_view stopped = {0};
        CHECK_INT(ws_stop(f.core, "alpha", &op, &stopped, &already, NULL), 0);
        CHECK(already);
        CHECK_INT(stopped.row.state, WS_STOPPED);
}

static void test_references(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1], other[UUID_LEN + 1];
        REQUIRE(begin(&f) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, true, id) == 0);
        REQUIRE(fixture_leave(&f, "beta", WS_STOPPED, 3, true, other) == 0);
        fixture_close(&f);
        REQUIRE(fixture_open(&f, NULL) == 0);

        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ws_view_ struct ws_view by_name = {0}, by_id = {0}, none = {0};
        CHECK_INT(ws_get(f.core, "alpha", NULL, &by_name, NULL), 0);
        CHECK_INT(ws_get(f.core, id, NULL, &by_id, NULL), 0);
        CHECK_STR(by_name.row.id, id);
        CHECK_STR(by_id.row.name, "alpha");
        CHECK_STR(by_id.address, "10.99.0.2");
        CHECK_INT(ws_get(f.core, "alpa", NULL, &none, &err), -ENOENT);
        CHECK_INT(err.code, ERROR_NOT_FOUND);
        CHECK(strstr(error_message(&err), "alpa"));
        CHECK(err.hint && strstr(err.hint, "\"alpha\"") && strstr(err.hint, "workspace_list"));
        CHECK_INT(ws_get(f.core, "", NULL, &none, &err), -ENOENT);

        struct ws_create_args args = {.name = "alpha"};
        CHECK_INT(create(&f, &args, &err), -EEXIST);
        CHECK_INT(err.code, ERROR_CONFLICT);
        CHECK(strstr(error_message(&err), id));

        _cleanup_(ws_views_clear) struct ws_views views = {0};
        CHECK_INT(ws_list(f.core, NULL, &views, NULL), 0);
        REQUIRE(views.n == 2);
        CHECK_STR(views.v[0].row.name, "alpha");
        CHECK_STR(views.v[1].row.name, "beta");
}

static void test_count_limit(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1];
        REQUIRE(begin(&f) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, true, id) == 0);
        fixture_close(&f);
        f.cfg.limits.max_workspaces = 1;
        REQUIRE(fixture_open(&f, NULL) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct ws_create_args args = {0};
        CHECK(create(&f, &args, &err) < 0);
        CHECK_INT(err.code, ERROR_QUOTA_EXCEEDED);
        CHECK(strstr(error_message(&err), "the limit is 1"));
        CHECK(err.hint && strstr(err.hint, "workspace_destroy"));
}

static void test_addresses_run_out(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1];
        REQUIRE(begin(&f) == 0);
        for (unsigned i = 2; i < 6; i++) {
                char name[8];
                snprintf(name, sizeof(name), "ws%u", i);
                REQUIRE(fixture_leave(&f, name, WS_STOPPED, i, true, id) == 0);
        }
        fixture_close(&f);
        f.cfg.prefix_len = 29;
        REQUIRE(fixture_open(&f, NULL) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct ws_create_args args = {0};
        CHECK(create(&f, &args, &err) < 0);
        CHECK_INT(err.code, ERROR_QUOTA_EXCEEDED);
        CHECK(strstr(error_message(&err), "All 4 addresses of the network 10.99.0.0/29"));
        CHECK(err.hint && strstr(err.hint, "network_cidr"));
}

static void test_wrong_configuration(void) {
        _cleanup_fixture_ struct fixture f = {0};
        REQUIRE(fixture_prepare(&f, NULL) == 0);
        _cleanup_error_ struct error err = ERROR_INIT;
        f.cfg.prefix_len = 30;
        CHECK(fixture_open(&f, &err) < 0);
        CHECK(strstr(error_message(&err), "10.99.0.0/30"));
        fixture_close(&f);
        f.cfg.prefix_len = 16;
        f.cfg.network |= 5;
        CHECK(fixture_open(&f, &err) < 0);
        CHECK(err.hint && strstr(err.hint, "10.99.0.0/16"));
        fixture_close(&f);
        f.cfg.network &= ~5u;
}

static void test_owners(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1], found[UUID_LEN + 1], a[UUID_LEN + 1], b[UUID_LEN + 1];
        REQUIRE(begin(&f) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, true, id) == 0);
        fixture_close(&f);
        REQUIRE(fixture_open(&f, NULL) == 0);
        CHECK_INT(core_owner_add(f.core, a), 0);
        CHECK_INT(core_owner_add(f.core, b), 0);
        CHECK(!str_eq(a, b));

        _cleanup_error_ struct error err = ERROR_INIT;
        bool adopted = false;
        /* After a restart it is an orphan. Who may not adopt is refused; the first who may has it. */
        {
                _cleanup_ws_view_ struct ws_view view = {0};
                CHECK_INT(ws_get(f.core, "alpha", a, &view, NULL), 0);
                CHECK(view.orphaned && !view.owned);
        }
        CHECK_INT(ws_authorize(f.core, "alpha", a, false, found, &adopted, &err), -EPERM);
        CHECK_INT(err.code, ERROR_NOT_OWNER);
        CHECK(!adopted);
        CHECK_INT(ws_authorize(f.core, "alpha", a, true, found, &adopted, &err), 0);
        CHECK(adopted);
        CHECK_STR(found, id);
        CHECK_INT(ws_authorize(f.core, id, a, true, found, &adopted, &err), 0);
        CHECK(!adopted);
        /* The other one is refused while the first is there, and told what to do. */
        CHECK_INT(ws_authorize(f.core, "alpha", b, true, found, &adopted, &err), -EPERM);
        CHECK_INT(err.code, ERROR_NOT_OWNER);
        CHECK(err.hint && strstr(err.hint, "adopts it"));
        {
                _cleanup_ws_view_ struct ws_view mine = {0}, theirs = {0};
                CHECK_INT(ws_get(f.core, "alpha", a, &mine, NULL), 0);
                CHECK(mine.owned && !mine.orphaned);
                CHECK_INT(ws_get(f.core, "alpha", b, &theirs, NULL), 0);
                CHECK(!theirs.owned && !theirs.orphaned);
        }
        core_owner_gone(f.core, a);
        CHECK_INT(ws_authorize(f.core, "alpha", b, true, found, &adopted, &err), 0);
        CHECK(adopted);
        CHECK_INT(ws_authorize(f.core, "alpa", b, true, found, &adopted, &err), -ENOENT);
        /* The store knows. */
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(f.db, &rows, NULL), 0);
        REQUIRE(rows.n == 1);
        CHECK_STR(rows.v[0].owner, b);
}

#define RACERS 50

struct racer {
        struct fixture *f;
        pthread_barrier_t *start;
        int result;
        char owner[UUID_LEN + 1];
        bool adopted;
};

static void *race_adopt(void *arg) {
        struct racer *r = arg;
        char id[UUID_LEN + 1];
        pthread_barrier_wait(r->start);
        r->result = ws_authorize(r->f->core, "alpha", r->owner, true, id, &r->adopted, NULL);
        return NULL;
}

static void *race_create(void *arg) {
        struct racer *r = arg;
        struct ws_create_args args = {.name = "wanted"};
        _cleanup_error_ struct error err = ERROR_INIT;
        pthread_barrier_wait(r->start);
        r->result = create(r->f, &args, &err);
        return NULL;
}

static void run_race(struct fixture *f, struct racer *racers, void *(*fn)(void *) ) {
        pthread_t threads[RACERS];
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, RACERS);
        for (unsigned i = 0; i < RACERS; i++) {
                racers[i].f = f;
                racers[i].start = &start;
                if (thread_start(&threads[i], "racer", fn, &racers[i]) < 0)
                        abort();
        }
        for (unsigned i = 0; i < RACERS; i++)
                pthread_join(threads[i], NULL);
        pthread_barrier_destroy(&start);
}

static void test_adoption_race(void) {
        _cleanup_fixture_ struct fixture f = {0};
        struct racer racers[RACERS] = {0};
        char id[UUID_LEN + 1];
        REQUIRE(begin(&f) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, true, id) == 0);
        fixture_close(&f);
        REQUIRE(fixture_open(&f, NULL) == 0);
        for (unsigned i = 0; i < RACERS; i++)
                REQUIRE(core_owner_add(f.core, racers[i].owner) == 0);
        run_race(&f, racers, race_adopt);
        unsigned adopted = 0, refused = 0;
        for (unsigned i = 0; i < RACERS; i++) {
                adopted += racers[i].result == 0 && racers[i].adopted;
                refused += racers[i].result == -EPERM;
        }
        CHECK_INT(adopted, 1);
        CHECK_INT(refused, RACERS - 1);
}

/* All of them fail, in turn or by the name; whoever fails leaves nothing, whatever the others do. */
static void test_creation_race(void) {
        _cleanup_fixture_ struct fixture f = {0};
        struct racer racers[RACERS] = {0};
        REQUIRE(begin(&f) == 0);
        run_race(&f, racers, race_create);
        unsigned conflicts = 0;
        for (unsigned i = 0; i < RACERS; i++) {
                CHECK(racers[i].result < 0);
                conflicts += racers[i].result == -EEXIST;
        }
        CHECK(conflicts > 0);
        check_nothing_left(&f);
}

static void *race_destroy(void *arg) {
        struct racer *r = arg;
        _cleanup_ws_view_ struct ws_view view = {0};
        struct op op = op_timeout(30000);
        pthread_barrier_wait(r->start);
        r->result = ws_destroy(r->f->core, "alpha", &op, &view, NULL);
        return NULL;
}

static void test_destruction_race(void) {
        _cleanup_fixture_ struct fixture f = {0};
        struct racer racers[RACERS] = {0};
        char id[UUID_LEN + 1];
        REQUIRE(begin(&f) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, false, id) == 0);
        fixture_close(&f);
        REQUIRE(fixture_open(&f, NULL) == 0);
        run_race(&f, racers, race_destroy);
        unsigned won = 0, not_found = 0;
        for (unsigned i = 0; i < RACERS; i++) {
                won += racers[i].result == 0;
                not_found += racers[i].result == -ENOENT;
        }
        CHECK_INT(won, 1);
        CHECK_INT(not_found, RACERS - 1);
        check_nothing_left(&f);
}

static void test_usage_and_logs_of_a_stopped_one(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1];
        REQUIRE(begin(&f) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, false, id) == 0);
        fixture_close(&f);
        REQUIRE(fixture_open(&f, NULL) == 0);
        struct ws_usage usage;
        CHECK_INT(ws_usage(f.core, "alpha", &usage, NULL), 0);
        CHECK_INT(usage.disk_virtual_bytes, (uint64_t) 10 << 30);
        CHECK(usage.disk_used_bytes > 0);
        CHECK_INT(usage.memory_private_bytes, 0);
        CHECK_INT(usage.uptime_secs, 0);
        _cleanup_buf_ struct buf console = BUF_INIT(1 << 20), errors = BUF_INIT(1 << 20);
        CHECK_INT(ws_logs(f.core, "alpha", 100, &console, &errors, NULL), 0);
        CHECK_INT(console.len, 0);
        CHECK_INT(errors.len, 0);
        CHECK_INT(ws_logs(f.core, "beta", 100, &console, &errors, NULL), -ENOENT);
}

/* A disk that is full to the last byte does not keep anybody from making room. */
static void test_destroy_on_a_full_disk(void) {
        _cleanup_fixture_ struct fixture f = {0};
        char id[UUID_LEN + 1];
        char *small = scratch_small(8192);
        REQUIRE(small); /* or else the disk that is filled below would be the machine's own */
        REQUIRE(fixture_prepare(&f, small) == 0);
        REQUIRE(fixture_open(&f, NULL) == 0);
        REQUIRE(fixture_leave(&f, "alpha", WS_STOPPED, 2, false, id) == 0);
        fixture_close(&f);
        REQUIRE(fixture_open(&f, NULL) == 0);
        _cleanup_free_ char *ballast = path_join(f.dir, "ballast");
        scratch_fill(ballast);

        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ws_view_ struct ws_view view = {0};
        struct ws_create_args args = {0};
        struct op op = op_timeout(30000);
        CHECK(create(&f, &args, &err) < 0);
        CHECK_INT(err.code, ERROR_NO_SPACE);
        CHECK_INT(ws_destroy(f.core, "alpha", &op, &view, NULL), 0);
        check_nothing_left(&f);
}

int main(void) {
        RUN(test_refused_arguments);
        RUN(test_failed_boot_leaves_nothing);
        RUN(test_cancelled_create_leaves_nothing);
        RUN(test_failed_start_says_why);
        RUN(test_references);
        RUN(test_count_limit);
        RUN(test_addresses_run_out);
        RUN(test_wrong_configuration);
        RUN(test_owners);
        RUN(test_adoption_race);
        RUN(test_creation_race);
        RUN(test_destruction_race);
        RUN(test_usage_and_logs_of_a_stopped_one);
        RUN_ROOT(test_destroy_on_a_full_disk);
        return tap_done();
}
