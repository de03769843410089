/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of many threads at once: shared transactions, and what becomes of the others when one fails. */
#include <sched.h>

#include "base/thread.h"
#include "state/db-internal.h"
#include "state/sample.h"
#include "state/scratch.h"

#define WRITERS 20
#define WAIT_MS 30000 /* far more than any of it takes */

struct writer {
        pthread_t thread;
        struct db *db;
        struct ws_row row;
        int result;
        struct error err;
};

static void writers_prepare(struct writer *w, struct db *db) {
        for (unsigned i = 0; i < WRITERS; i++) {
                char name[16];
                snprintf(name, sizeof(name), "ws-%u", i);
                w[i] = (struct writer){.db = db, .row = make_row(name, 100 + i), .result = 1};
        }
}

static void writers_clear(struct writer *w) {
        for (unsigned i = 0; i < WRITERS; i++) {
                ws_row_clear(&w[i].row);
                error_clear(&w[i].err);
        }
}

static void *insert(void *arg) {
        struct writer *w = arg;
        w->result = db_ws_insert(w->db, &w->row, &w->err);
        return NULL;
}

static void *update(void *arg) {
        struct writer *w = arg;
        w->result = db_ws_update(w->db, &w->row, &w->err);
        return NULL;
}

/* Whether one caller leads and so many wait for it. */
static bool waiting(struct db *db, unsigned n) {
        LOCK(&db->queue_lock);
        unsigned queued = 0;
        for (const struct change *c = db->queue; c; c = c->next)
                queued++;
        return db->led && queued == n;
}

/* False: they do not come. */
static bool wait_waiting(struct db *db, unsigned n) {
        deadline_t deadline = deadline_in_ms(WAIT_MS);
        while (!waiting(db, n)) {
                if (deadline_passed(deadline))
                        return false;
                sched_yield();
        }
        return true;
}

static int count_commit(void *arg) {
        (*(unsigned *) arg)++;
        return 0;
}

/*
 * Runs all writers so that the first one is in the middle of its transaction while the others come: those are the next
 * lot. Says how many transactions were committed.
 */
static unsigned run_writers(struct writer *w, void *(*fn)(void *) ) {
        struct db *db = w[0].db;
        unsigned commits = 0;
        {
                LOCK(&db->lock);
                sqlite3_commit_hook(db->conn, count_commit, &commits);
                for (unsigned i = 0; i < WRITERS; i++) {
                        CHECK_INT(thread_start(&w[i].thread, "writer", fn, &w[i]), 0);
                        CHECK(wait_waiting(db, i));
                }
        }
        for (unsigned i = 0; i < WRITERS; i++)
                pthread_join(w[i].thread, NULL);
        LOCK(&db->lock);
        sqlite3_commit_hook(db->conn, NULL, NULL);
        return commits;
}

static void check_rows(struct db *db, size_t n) {
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(db, &rows, NULL), 0);
        CHECK_INT(rows.n, n);
}

static void test_many_share_a_transaction(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_db_ struct db *db = NULL;
        REQUIRE(db_open(path, &db, NULL) == 0);
        struct writer w[WRITERS];
        writers_prepare(w, db);
        CHECK_INT(run_writers(w, insert), 2);
        for (unsigned i = 0; i < WRITERS; i++) {
                CHECK_INT(w[i].result, 0);
                w[i].row.started_ms = i + 1;
        }
        CHECK_INT(run_writers(w, update), 2);

        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(db, &rows, NULL), 0);
        CHECK_INT(rows.n, WRITERS);
        /* In the order in which they came. */
        for (unsigned i = 0; i < rows.n; i++) {
                CHECK_INT(w[i].result, 0);
                CHECK_STR(rows.v[i].name, w[i].row.name);
                CHECK_INT(rows.v[i].started_ms, i + 1);
        }
        writers_clear(w);
}

/* Three of them fail, each in its own way; they alone learn of it. */
static void test_failures_stay_apart(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db");
        _cleanup_db_ struct db *db = NULL;
        REQUIRE(db_open(path, &db, NULL) == 0);
        struct writer w[WRITERS];
        writers_prepare(w, db);
        str_replace(&w[3].row.name, "ws-11");
        w[5].row.slot = 5;
        w[7].row.address = w[2].row.address;
        run_writers(w, insert);
        for (unsigned i = 0; i < WRITERS; i++) {
                bool fails = i == 5 || i == 7 || i == 11; /* 3 came before 11 */
                CHECK_INT(w[i].result < 0, fails);
                CHECK_INT(error_is_set(&w[i].err), fails);
        }
        CHECK(strstr(error_message(&w[5].err), "slot"));
        CHECK_INT(w[7].result, -EEXIST);
        CHECK(strstr(error_message(&w[7].err), w[2].row.id));
        CHECK_INT(w[11].result, -EEXIST);
        CHECK(strstr(error_message(&w[11].err), w[3].row.id));
        check_rows(db, WRITERS - 3);
        writers_clear(w);
}

/* A lot that does not fit on the disk together: what fits alone is made, the rest is refused. */
static void test_full_disk(void) {
        _cleanup_scratch_ char *dir = scratch_small(4096);
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *ballast = path_join(dir, "ballast");
        _cleanup_db_ struct db *db = NULL;
        REQUIRE(db_open(path, &db, NULL) == 0);
        struct writer w[WRITERS];
        writers_prepare(w, db);
        for (unsigned i = 0; i < WRITERS; i++)
                CHECK_INT(db_ws_insert(db, &w[i].row, NULL), 0);
        scratch_fill(ballast);
        for (unsigned i = 0; i < WRITERS; i++)
                w[i].row.started_ms = i + 1;
        w[9].row.last_error = str_printf("%1000000d", 1);
        run_writers(w, update);
        for (unsigned i = 0; i < WRITERS; i++) {
                CHECK_INT(w[i].result < 0, i == 9);
                CHECK_INT(w[i].err.code, i == 9 ? ERROR_NO_SPACE : ERROR_NONE);
        }
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        CHECK_INT(db_ws_list(db, &rows, NULL), 0);
        CHECK_INT(rows.n, WRITERS);
        for (unsigned i = 0; i < rows.n; i++)
                CHECK_INT(rows.v[i].started_ms, i == 9 ? 0 : i + 1);
        writers_clear(w);
}

#define ROUNDS 25

struct walker {
        pthread_t thread;
        struct db *db;
        pthread_barrier_t *start;
        struct ws_row row;
        struct snap_row snap;
        unsigned failures;
};

static bool stored(const struct walker *w, bool with_snap, unsigned round) {
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        _cleanup_(snap_rows_clear) struct snap_rows snaps = {0};
        bool ws = false, snap = !with_snap;
        if (db_ws_list(w->db, &rows, NULL) < 0 || db_snap_list(w->db, &snaps, NULL) < 0)
                return false;
        for (size_t i = 0; i < rows.n; i++)
                ws |= str_eq(rows.v[i].id, w->row.id) && rows.v[i].started_ms == round;
        for (size_t i = 0; i < snaps.n; i++)
                snap |= str_eq(snaps.v[i].id, w->snap.id) && snaps.v[i].used_ms == round;
        return ws && snap;
}

/* Changes its own rows again and again; what a call has stored is there when it returns. */
static void *walk(void *arg) {
        struct walker *w = arg;
        pthread_barrier_wait(w->start);
        w->failures += db_ws_insert(w->db, &w->row, NULL) < 0;
        for (unsigned round = 1; round <= ROUNDS; round++) {
                w->row.started_ms = w->snap.used_ms = round;
                w->failures += db_snap_insert(w->db, &w->snap, NULL) < 0;
                w->failures += db_snap_update(w->db, &w->snap, &w->row, NULL) < 0;
                w->failures += !stored(w, true, round);
                w->failures += db_snap_delete(w->db, w->snap.id, NULL) < 0;
                w->failures += db_snap_delete(w->db, w->snap.id, NULL) != -ENOENT;
        }
        w->row.started_ms = ROUNDS + 1;
        w->failures += db_ws_update(w->db, &w->row, NULL) < 0;
        w->failures += !stored(w, false, ROUNDS + 1);
        w->failures += db_ws_delete(w->db, w->row.id, NULL) < 0;
        return NULL;
}

static void test_everything_at_once(void) {
        _cleanup_scratch_ char *dir = scratch_new();
        REQUIRE(dir);
        _cleanup_free_ char *path = path_join(dir, "state.db"), *copy = path_join(dir, "copy.db");
        _cleanup_db_ struct db *db = NULL;
        REQUIRE(db_open(path, &db, NULL) == 0);
        struct walker w[WRITERS];
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, WRITERS + 1);
        for (unsigned i = 0; i < WRITERS; i++) {
                char name[16];
                snprintf(name, sizeof(name), "ws-%u", i);
                w[i] = (struct walker){.db = db, .start = &start, .row = make_row(name, 100 + i)};
                w[i].snap = make_snap(w[i].row.id, "only");
                REQUIRE(thread_start(&w[i].thread, "walker", walk, &w[i]) == 0);
        }
        pthread_barrier_wait(&start);
        CHECK_INT(db_backup(db, copy, NULL), 0);
        for (unsigned i = 0; i < WRITERS; i++) {
                pthread_join(w[i].thread, NULL);
                CHECK_INT(w[i].failures, 0);
                ws_row_clear(&w[i].row);
                snap_row_clear(&w[i].snap);
        }
        pthread_barrier_destroy(&start);
        _cleanup_(snap_rows_clear) struct snap_rows snaps = {0};
        CHECK_INT(db_snap_list(db, &snaps, NULL), 0);
        CHECK_INT(snaps.n, 0);
        check_rows(db, 0);
}

int main(void) {
        RUN(test_many_share_a_transaction);
        RUN(test_failures_stay_apart);
        RUN(test_everything_at_once);
        RUN_ROOT(test_full_disk);
        return tap_done();
}
