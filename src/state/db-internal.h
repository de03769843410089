/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of state/ share.
 *
 * schema.c: the migrations. One is the SQL that leads from schema version N to N + 1, at index N of a table. It is
 * never changed once it was released: a new one is appended. Each runs in one transaction together with the new
 * user_version, so a crash leaves the old or the new schema.
 *
 * rows.c: reads and writes rows of any table. A table is described by its columns: what SQL calls them, and where in
 * the struct their values stand. The statements, and how a row is bound, read, copied and cleared, all follow from
 * that. What would be refused when it is read is refused when it is written, so that nobody can write a row that then
 * keeps the daemon from starting. workspace-rows.c, snapshot-rows.c and forward-rows.c have the tables and their calls
 * of db.h.
 *
 * commit.c: makes changes last, those of several callers in one transaction.
 */

#include <pthread.h>
#include <sqlite3.h>

#include "state/db.h"

/* "agis": marks the file as ours (file(1), PRAGMA application_id). */
#define DB_APPLICATION_ID 0x61676973
#define DB_BUSY_MS 5000 /* for somebody with the sqlite3 shell; the daemon itself holds a lock on its folder */

struct migrations {
        const char *const *sql;
        unsigned n; /* also the schema version that they lead to */
};
extern const struct migrations db_migrations;

/* rows.c */

#define ROW_TEXT_MAX 4096u            /* bytes of a text, unless its column says otherwise */
#define ROW_REASON_MAX (1024u * 1024) /* of one that tells people why something happened */

enum column_kind {
        COLUMN_CHARS, /* char[] */
        COLUMN_TEXT,  /* char *, owned */
        COLUMN_BOOL,
        COLUMN_INT,
        COLUMN_UINT, /* also an enum */
        COLUMN_INT64,
};

/* A text may not be NULL or "" and must be UTF-8, unless these say otherwise. */
enum {
        COLUMN_FIXED = 1 << 0, /* an update leaves it as it is */
        COLUMN_UUID = 1 << 1,
        COLUMN_EMPTY = 1 << 2,     /* may be "" */
        COLUMN_NULL = 1 << 3,      /* may be NULL */
        COLUMN_ANY_BYTES = 1 << 4, /* need not be UTF-8 */
        COLUMN_GIVEN = 1 << 5,     /* when it is read, it decides about `given`: the first one of those that have it */
};

struct column {
        const char *name; /* in SQL */
        enum column_kind kind;
        unsigned flags;
        size_t at, size;          /* of the field in the struct */
        int64_t min, max;         /* of a number, max also of a text in bytes; max 0: what the field holds */
        const char *const *names; /* how the numbers 0..max of an enum are stored */
        size_t given;             /* where a bool says whether there is a value, which is NULL without; 0: there is */
};

#define COLUMN_KIND(pointer) \
        _Generic((pointer), char ** : COLUMN_TEXT, bool * : COLUMN_BOOL, int * : COLUMN_INT,     \
                 unsigned * : COLUMN_UINT, int64_t * : COLUMN_INT64, uint64_t * : COLUMN_INT64, \
                 default : COLUMN_CHARS)
/* A column whose kind follows from the field, so that they cannot disagree; then whatever else struct column has. */
#define COLUMN(type, field, sql_name, ...)                                                                  \
        {                                                                                                   \
                .name = (sql_name), .kind = COLUMN_KIND(&((type *) 0)->field), .at = offsetof(type, field), \
                .size = sizeof(((type *) 0)->field), ##__VA_ARGS__                                          \
        }

/* Statements of a table, made of its columns. */
enum row_stmt {
        ROW_INSERT,
        ROW_UPDATE,
        ROW_DELETE,
        ROW_LIST,
        _ROW_STMT_MAX,
};
enum db_stmt {
        STMT_BEGIN,
        STMT_COMMIT,
        STMT_PAGES,
        STMT_WORKSPACES, /* and the others of the table */
        STMT_SNAPSHOTS = STMT_WORKSPACES + _ROW_STMT_MAX,
        STMT_FORWARDS = STMT_SNAPSHOTS + _ROW_STMT_MAX,
        _STMT_MAX = STMT_FORWARDS + _ROW_STMT_MAX,
};

struct table {
        const char *name;             /* in SQL */
        const char *what;             /* a row of it, for people: "workspace" */
        const struct column *columns; /* the first one is the id */
        unsigned n_columns;
        size_t row_size;
        enum db_stmt stmts; /* its first one */
        /* Says which value of a row another one has already, with -EEXIST. */
        int (*taken)(struct db *db, const void *row, struct error *err);
};
extern const struct table db_workspaces, db_snapshots, db_forwards;

/* Changes rows of the connection, whose lock is held. It may be called again after what it did was undone. */
typedef int (*change_fn)(struct db *db, const void *arg, struct error *err);

/* One that shall last; on the stack of its caller, who waits for it. */
struct change {
        const char *what; /* for messages: "store the workspace" */
        change_fn apply;
        const void *arg;
        struct change *next;
        bool settled;
        int result;
        struct error err;
};

struct db {
        char *path; /* never changes */

        pthread_mutex_t lock; /* guards the connection and its statements, and `pages` */
        sqlite3 *conn;
        sqlite3_stmt *stmts[_STMT_MAX];
        int64_t pages; /* of the database, when the log was last written into it */

        pthread_mutex_t queue_lock; /* guards what follows; taken without `lock`, and `lock` without it */
        pthread_cond_t settled;     /* changes were settled; somebody may lead now */
        struct change *queue, **queue_end;
        bool led; /* a thread is making changes last */
};

void db_row_clear(const struct table *t, void *row);
/* On failure `to` is empty. */
int db_row_copy(const struct table *t, void *to, const void *from);
/* These change one row, in a transaction that db_commit() ends. */
int db_row_insert(struct db *db, const struct table *t, const void *row, struct error *err);
int db_row_update(struct db *db, const struct table *t, const void *row, struct error *err);
int db_row_delete(struct db *db, const struct table *t, const char *id, struct error *err);
/* All rows, oldest first, in an array. */
int db_row_list(struct db *db, const struct table *t, void **ret, size_t *ret_n, struct error *err);
void db_row_list_free(const struct table *t, void *rows, size_t n);
/* Finds the id of another row that has the same values as this one in the columns a and b. */
bool db_row_holder(struct db *db, const struct table *t, const void *row, const char *a, const char *b,
                   char ret[UUID_LEN + 1]);
/* The SQL of a statement of the table; owned, NULL: out of memory. */
char *db_row_sql(const struct table *t, enum row_stmt which);

/* commit.c */

/* Runs a change in a transaction, perhaps together with those of other threads. It lasts when this returns, or it left
 * no trace. */
int db_commit(struct db *db, const char *what, change_fn apply, const void *arg, struct error *err);

/* db.c */

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

/* Ends the use of a kept statement: its locks are let go and the bound texts forgotten. */
static inline void db_stmt_done(sqlite3_stmt **s) {
        sqlite3_reset(*s);
        sqlite3_clear_bindings(*s);
}
#define _cleanup_stmt_ _cleanup_(db_stmt_done)
