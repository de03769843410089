/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of state/ share: the connection, the migrations and the mapping of SQLite's results to errors.
 *
 * A migration is the SQL that leads from schema version N to N + 1, at index N of a table. It is never changed once it
 * was released: a new one is appended. Each runs in one transaction together with the new user_version, so a crash
 * leaves the old or the new schema.
 */

#include <pthread.h>
#include <sqlite3.h>

#include "state/db.h"

/* "agis": marks the file as ours (file(1), PRAGMA application_id). */
#define DB_APPLICATION_ID 0x61676973

struct migrations {
        const char *const *sql;
        unsigned n; /* also the schema version that they lead to */
};
extern const struct migrations db_migrations;

enum db_stmt {
        STMT_WS_INSERT,
        STMT_WS_UPDATE,
        STMT_WS_DELETE,
        STMT_WS_LIST,
        STMT_WS_BY_NAME,
        STMT_WS_BY_ADDRESS,
        _STMT_MAX,
};
extern const char *const db_stmt_sql[_STMT_MAX];

struct db {
        pthread_mutex_t lock; /* guards the connection and its statements */
        sqlite3 *conn;
        sqlite3_stmt *stmts[_STMT_MAX];
        char *path; /* never changes */
};

/* db_open() with other migrations than the released ones: for their tests. Statements are not prepared. */
int db_open_schema(const char *path, const struct migrations *m, struct db **ret, struct error *err);
/* Brings the schema up to date, after a copy of the file. Refuses what it does not know. */
int db_migrate(struct db *db, const struct migrations *m, struct error *err);
/* db_backup() for a caller that holds the lock. */
int db_backup_locked(struct db *db, const char *path, struct error *err);

/* Runs SQL without results. 0 or a negative errno with `what` ("cannot <what>") in the message. */
int db_exec(struct db *db, const char *sql, const char *what, struct error *err);
/* One integer from a PRAGMA or a SELECT. */
int db_query_int(struct db *db, const char *sql, int64_t *ret, struct error *err);
/* Turns the last result of the connection into an error: a full disk, a damaged file, a lock, anything else. */
int db_fail(struct db *db, int rc, const char *what, struct error *err);
