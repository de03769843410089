/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Most of what a change costs is the wait until it is on the disk, and one wait can do for many. Whoever finds nobody
 * at work leads: it takes all changes that wait, makes them in one transaction, and wakes their callers. Those that
 * come meanwhile wait, and are the next lot. Nobody is delayed to gather more of them.
 *
 * A transaction in which one change fails is undone, and each of its changes is tried alone: so a failure is that of
 * one caller, with its own error, and the others do not learn of it.
 */

#include "base/thread.h"
#include "state/db-internal.h"

static int step(struct db *db, enum db_stmt which, struct change *c) {
        _cleanup_stmt_ sqlite3_stmt *s = db->stmts[which];
        int rc = sqlite3_step(s);
        if (rc == SQLITE_DONE)
                return 0;
        if ((rc & 0xff) == SQLITE_BUSY)
                sqlite3_busy_timeout(db->conn, 0); /* one wait for another program is enough for all: see settle() */
        return db_fail(db, rc, c->what, &c->err);
}

/* Makes the changes up to `end` in one transaction, or none of them; one of them then has the error. */
static int run(struct db *db, struct change *from, const struct change *end) {
        int r = step(db, STMT_BEGIN, from);
        if (r < 0)
                return r;
        for (struct change *c = from; c != end && r >= 0; c = c->next)
                r = c->apply(db, c->arg, &c->err);
        if (r >= 0)
                r = step(db, STMT_COMMIT, from);
        if (r < 0 && !sqlite3_get_autocommit(db->conn))
                sqlite3_exec(db->conn, "ROLLBACK", NULL, NULL, NULL);
        return r;
}

/*
 * When the disk is full, what the write-ahead log holds goes into the database and the log is written from its start
 * again, which takes no new space: so workspaces can still be stopped and destroyed, which is what makes room.
 */
static int run_alone(struct db *db, struct change *c) {
        int r = run(db, c, c->next);
        if (r >= 0 || c->err.code != ERROR_NO_SPACE ||
            sqlite3_wal_checkpoint_v2(db->conn, NULL, SQLITE_CHECKPOINT_RESTART, NULL, NULL) != SQLITE_OK)
                return r;
        return run(db, c, c->next);
}

/* When the database has become larger, its file grows now, while there is room, and not when run_alone() needs it to.
 * If that fails, the next change tries again; this one is safe in the log. */
static void grow(struct db *db) {
        int64_t pages = db->pages;
        {
                _cleanup_stmt_ sqlite3_stmt *s = db->stmts[STMT_PAGES];
                if (sqlite3_step(s) == SQLITE_ROW)
                        pages = sqlite3_column_int64(s, 0);
        }
        if (pages != db->pages &&
            sqlite3_wal_checkpoint_v2(db->conn, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL) == SQLITE_OK)
                db->pages = pages;
}

static void settle(struct db *db, struct change *list) {
        LOCK(&db->lock);
        bool together = list->next && run(db, list, NULL) >= 0;
        for (struct change *c = list; c && !together; c = c->next)
                c->result = run_alone(db, c);
        grow(db);
        sqlite3_busy_timeout(db->conn, DB_BUSY_MS);
}

static void enqueue(struct db *db, struct change *c) {
        *db->queue_end = c;
        db->queue_end = &c->next;
}

/* Takes the lead and all changes that wait. */
static struct change *lead(struct db *db) {
        struct change *list = db->queue;
        db->queue = NULL;
        db->queue_end = &db->queue;
        db->led = true;
        return list;
}

static void lead_done(struct db *db, struct change *list) {
        for (struct change *c = list, *next; c; c = next) {
                next = c->next; /* its caller may return as soon as the lock is let go, not before */
                c->settled = true;
        }
        db->led = false;
        pthread_cond_broadcast(&db->settled);
}

int db_commit(struct db *db, const char *what, change_fn apply, const void *arg, struct error *err) {
        struct change change = {.what = what, .apply = apply, .arg = arg};

        pthread_mutex_lock(&db->queue_lock);
        enqueue(db, &change);
        while (!change.settled && db->led)
                pthread_cond_wait(&db->settled, &db->queue_lock);
        if (!change.settled) {
                struct change *list = lead(db);
                pthread_mutex_unlock(&db->queue_lock);
                settle(db, list);
                pthread_mutex_lock(&db->queue_lock);
                lead_done(db, list);
        }
        pthread_mutex_unlock(&db->queue_lock);

        if (change.result < 0)
                error_move(err, &change.err);
        error_clear(&change.err);
        return change.result;
}
