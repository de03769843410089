/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/deadline.h"
#include "base/file.h"
#include "base/log.h"
#include "base/thread.h"
#include "state/db-internal.h"

#define DB_CHUNK (1024 * 1024) /* bytes by which the file grows: about 2000 workspaces */
#define DB_CHECK_MS 1000       /* for the integrity check at open; what it has not seen by then is taken on trust */
#define DB_CHECK_STEPS 10000   /* virtual machine instructions between two looks at the clock */

static int fail_no_space(struct db *db, const char *what, struct error *err) {
        int r = error_set(err, ERROR_NO_SPACE, "Cannot %s: the file system of %s is full", what, db->path);
        error_hint(err, "Free some disk space there, or destroy workspaces that are not needed, then try again.");
        return r;
}

static int fail_damaged(struct db *db, const char *detail, struct error *err) {
        int r = error_set(err, ERROR_INTERNAL, "The state store %s is damaged: %s", db->path, detail);
        error_hint(err, "It is left as it is. Put back a copy of it, or move it away to begin with an empty store.");
        return r;
}

int db_fail(struct db *db, int rc, const char *what, struct error *err) {
        int system_errno = sqlite3_system_errno(db->conn);

        switch (rc & 0xff) {
        case SQLITE_FULL:
                return fail_no_space(db, what, err);
        case SQLITE_IOERR:
        case SQLITE_CANTOPEN:
                if (system_errno == ENOSPC || system_errno == EDQUOT)
                        return fail_no_space(db, what, err);
                if (system_errno > 0)
                        return error_set_errno(err, system_errno, "Cannot %s in %s: %s", what, db->path,
                                               sqlite3_errmsg(db->conn));
                break;
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
                return fail_damaged(db, sqlite3_errmsg(db->conn), err);
        case SQLITE_NOMEM:
                return error_set_errno(err, ENOMEM, "Cannot %s in %s", what, db->path);
        case SQLITE_READONLY:
                return error_set_errno(err, EROFS, "Cannot %s in %s", what, db->path);
        case SQLITE_BUSY:
        case SQLITE_LOCKED: {
                int r = error_set(err, ERROR_CONFLICT, "Cannot %s: another program has %s locked", what, db->path);
                error_hint(err, "Close what has it open, for example a sqlite3 shell.");
                return r;
        }
        default:
                break;
        }
        return error_set(err, ERROR_INTERNAL, "Cannot %s in %s: %s", what, db->path, sqlite3_errmsg(db->conn));
}

int db_exec(struct db *db, const char *sql, const char *what, struct error *err) {
        int rc = sqlite3_exec(db->conn, sql, NULL, NULL, NULL);
        return rc == SQLITE_OK ? 0 : db_fail(db, rc, what, err);
}

int db_query_int(struct db *db, const char *sql, int64_t *ret, struct error *err) {
        sqlite3_stmt *stmt = NULL;
        int rc = sqlite3_prepare_v2(db->conn, sql, -1, &stmt, NULL);
        if (rc == SQLITE_OK)
                rc = sqlite3_step(stmt);
        int r = rc == SQLITE_ROW ? 0 : db_fail(db, rc, "read", err);
        if (r == 0)
                *ret = sqlite3_column_int64(stmt, 0);
        sqlite3_finalize(stmt);
        return r;
}

static int check_time(void *arg) {
        const deadline_t *deadline = arg;
        return deadline_passed(*deadline);
}

/* Looks for damage before anything is written. Ends early in a large store: the check is a net, not a proof. */
static int check_integrity(struct db *db, struct error *err) {
        deadline_t deadline = deadline_in_ms(DB_CHECK_MS);
        sqlite3_stmt *stmt = NULL;

        sqlite3_progress_handler(db->conn, DB_CHECK_STEPS, check_time, &deadline);
        int rc = sqlite3_prepare_v2(db->conn, "PRAGMA quick_check(1)", -1, &stmt, NULL);
        if (rc == SQLITE_OK)
                rc = sqlite3_step(stmt);
        int r = 0;
        if (rc == SQLITE_ROW) {
                const char *text = (const char *) sqlite3_column_text(stmt, 0);
                const char *last = text ? strrchr(text, '\n') : NULL; /* before it stands only a title */
                if (!str_eq(text, "ok"))
                        r = fail_damaged(db, last ? last + 1 : text ? text : "it cannot be read", err);
        } else if (rc != SQLITE_INTERRUPT)
                r = db_fail(db, rc, "check", err);
        sqlite3_finalize(stmt);
        sqlite3_progress_handler(db->conn, 0, NULL, NULL);
        return r;
}

/* WAL: readers and the writer do not wait for each other. FULL: a commit is on the disk when it returns. */
static int set_modes(struct db *db, struct error *err) {
        sqlite3_stmt *stmt = NULL;
        int rc = sqlite3_prepare_v2(db->conn, "PRAGMA journal_mode = WAL", -1, &stmt, NULL);
        if (rc == SQLITE_OK)
                rc = sqlite3_step(stmt);
        int r = 0;
        if (rc != SQLITE_ROW)
                r = db_fail(db, rc, "set the journal mode", err);
        else if (!str_eq((const char *) sqlite3_column_text(stmt, 0), "wal")) {
                r = error_set(err, ERROR_UNSUPPORTED, "The file system of %s cannot hold a write-ahead log", db->path);
                error_hint(err, "Set state_dir to a folder on a local disk.");
        }
        sqlite3_finalize(stmt);
        if (r < 0)
                return r;
        return db_exec(db, "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;",
                       "set the modes", err);
}

/* SQLite would make its files as the umask says. These are not for everybody's eyes; -wal and -shm take the mode of the
 * file that they belong to. */
static int make_private(const char *path, int flags) {
        _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | flags, 0600);
        return fd < 0 || fchmod(fd, 0600) < 0 ? -errno : 0;
}

int db_open_schema(const char *path, const struct migrations *m, struct db **ret, struct error *err) {
        int r = make_private(path, 0);
        if (r < 0)
                return error_set_errno(err, r, "Cannot open the state store %s", path);

        _cleanup_db_ struct db *db = calloc(1, sizeof(*db));
        if (!db || !(db->path = strdup(path)))
                return error_set_errno(err, ENOMEM, "Cannot open the state store %s", path);
        pthread_mutex_init(&db->lock, NULL);
        pthread_mutex_init(&db->queue_lock, NULL);
        cond_init(&db->settled);
        db->queue_end = &db->queue;
        int rc = sqlite3_open_v2(path, &db->conn, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
                                 NULL);
        if (rc != SQLITE_OK)
                return db->conn ? db_fail(db, rc, "open the state store", err)
                                : error_set_errno(err, ENOMEM, "Cannot open the state store %s", path);
        sqlite3_busy_timeout(db->conn, DB_BUSY_MS);
        /* Space is taken in advance and kept: the file grows by chunks, and the log stays when the last connection
         * closes. With that, rows can be changed and removed when the disk is full (run_alone() in commit.c). */
        int persist = 1, chunk = DB_CHUNK;
        sqlite3_file_control(db->conn, NULL, SQLITE_FCNTL_PERSIST_WAL, &persist);
        sqlite3_file_control(db->conn, NULL, SQLITE_FCNTL_CHUNK_SIZE, &chunk);

        r = check_integrity(db, err);
        if (r >= 0)
                r = set_modes(db, err);
        if (r >= 0)
                r = db_migrate(db, m, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(db);
        return 0;
}

static int prepare(struct db *db, int which, const char *sql, struct error *err) {
        if (!sql)
                return error_set_errno(err, ENOMEM, "Cannot open the state store %s", db->path);
        int rc = sqlite3_prepare_v3(db->conn, sql, -1, SQLITE_PREPARE_PERSISTENT, &db->stmts[which], NULL);
        return rc == SQLITE_OK ? 0 : db_fail(db, rc, "prepare a statement", err);
}

static int prepare_table(struct db *db, const struct table *t, struct error *err) {
        int r = 0;
        for (int i = 0; i < _ROW_STMT_MAX && r >= 0; i++) {
                _cleanup_free_ char *sql = db_row_sql(t, (enum row_stmt) i);
                r = prepare(db, (int) t->stmts + i, sql, err);
        }
        return r;
}

int db_open(const char *path, struct db **ret, struct error *err) {
        _cleanup_db_ struct db *db = NULL;
        int r = db_open_schema(path, &db_migrations, &db, err);
        if (r < 0)
                return r;
        /* IMMEDIATE: another program's lock is met here, and not in the middle. */
        r = prepare(db, STMT_BEGIN, "BEGIN IMMEDIATE", err);
        if (r >= 0)
                r = prepare(db, STMT_COMMIT, "COMMIT", err);
        if (r >= 0)
                r = prepare(db, STMT_PAGES, "PRAGMA page_count", err);
        if (r >= 0)
                r = prepare_table(db, &db_workspaces, err);
        if (r >= 0)
                r = prepare_table(db, &db_snapshots, err);
        if (r >= 0)
                r = prepare_table(db, &db_forwards, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(db);
        return 0;
}

void db_close(struct db *db) {
        if (!db)
                return;
        for (int i = 0; i < _STMT_MAX; i++)
                sqlite3_finalize(db->stmts[i]);
        sqlite3_close(db->conn);
        pthread_cond_destroy(&db->settled);
        pthread_mutex_destroy(&db->queue_lock);
        pthread_mutex_destroy(&db->lock);
        free(db->path);
        free(db);
}

static int vacuum_into(struct db *db, const char *path, struct error *err) {
        sqlite3_stmt *stmt = NULL;
        int rc = sqlite3_prepare_v2(db->conn, "VACUUM INTO ?", -1, &stmt, NULL);
        if (rc == SQLITE_OK)
                rc = sqlite3_bind_text(stmt, 1, path, -1, SQLITE_STATIC);
        if (rc == SQLITE_OK)
                rc = sqlite3_step(stmt);
        int r = rc == SQLITE_DONE ? 0 : db_fail(db, rc, "copy the state store", err);
        sqlite3_finalize(stmt);
        return r;
}

/* VACUUM INTO does not wait for the disk. */
static int sync_path(const char *path, int flags) {
        _cleanup_close_ int fd = open(path, flags | O_CLOEXEC);
        if (fd < 0 || fsync(fd) < 0)
                return -errno;
        return 0;
}

static int sync_parent(const char *path) {
        const char *slash = strrchr(path, '/');
        if (!slash)
                return sync_path(".", O_RDONLY | O_DIRECTORY);
        _cleanup_free_ char *parent = strndup(path, slash == path ? 1 : (size_t) (slash - path));
        return parent ? sync_path(parent, O_RDONLY | O_DIRECTORY) : -ENOMEM;
}

int db_backup_locked(struct db *db, const char *path, struct error *err) {
        _cleanup_free_ char *tmp = str_printf("%s.tmp", path);
        if (!tmp)
                return error_set_errno(err, ENOMEM, "Cannot copy the state store to %s", path);
        int r = make_private(tmp, O_TRUNC); /* VACUUM INTO takes an empty file */
        if (r < 0)
                return error_set_errno(err, r, "Cannot make %s", tmp);

        r = vacuum_into(db, tmp, err);
        if (r >= 0) {
                r = sync_path(tmp, O_RDONLY);
                if (r >= 0 && rename(tmp, path) < 0)
                        r = -errno;
                if (r >= 0)
                        r = sync_parent(path);
                if (r < 0)
                        error_set_errno(err, -r, "Cannot keep the copy of the state store as %s", path);
        }
        if (r < 0)
                unlink(tmp);
        return r;
}

int db_backup(struct db *db, const char *path, struct error *err) {
        LOCK(&db->lock);
        return db_backup_locked(db, path, err);
}
