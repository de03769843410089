/* SPDX-License-Identifier: Apache-2.0 */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/thread.h"
#include "state/db-internal.h"

#define ROWS_MAX 65536u   /* of a table: far above any limit of workspaces and snapshots; more is not our file */
#define ROW_SQL_MAX 8192u /* of a statement */

/* A parameter has the number of its column in the table, from 1, in every statement. */
#define ID_PARAM 1

static const void *field(const struct column *c, const void *row) {
        return (const char *) row + c->at;
}

static void *field_of(const struct column *c, void *row) {
        return (char *) row + c->at;
}

static const char *row_id(const struct table *t, const void *row) {
        return field(&t->columns[0], row);
}

static sqlite3_stmt *table_stmt(struct db *db, const struct table *t, enum row_stmt which) {
        return db->stmts[(unsigned) t->stmts + (unsigned) which];
}

static int sql_insert(const struct table *t, struct buf *sql) {
        int r = buf_printf(sql, "INSERT INTO %s (", t->name);
        for (unsigned i = 0; i < t->n_columns && r >= 0; i++)
                r = buf_printf(sql, "%s%s", i ? ", " : "", t->columns[i].name);
        for (unsigned i = 0; i < t->n_columns && r >= 0; i++)
                r = buf_printf(sql, "%s?%u", i ? ", " : ") VALUES (", i + 1);
        return r < 0 ? r : buf_append_byte(sql, ')');
}

static int sql_update(const struct table *t, struct buf *sql) {
        const char *before = "SET ";
        int r = buf_printf(sql, "UPDATE %s ", t->name);
        for (unsigned i = 0; i < t->n_columns && r >= 0; i++) {
                if (t->columns[i].flags & COLUMN_FIXED)
                        continue;
                r = buf_printf(sql, "%s%s = ?%u", before, t->columns[i].name, i + 1);
                before = ", ";
        }
        return r < 0 ? r : buf_printf(sql, " WHERE %s = ?%d", t->columns[0].name, ID_PARAM);
}

static int sql_list(const struct table *t, struct buf *sql) {
        int r = buf_append_str(sql, "SELECT ");
        for (unsigned i = 0; i < t->n_columns && r >= 0; i++)
                r = buf_printf(sql, "%s%s", i ? ", " : "", t->columns[i].name);
        return r < 0 ? r : buf_printf(sql, " FROM %s ORDER BY seq", t->name);
}

char *db_row_sql(const struct table *t, enum row_stmt which) {
        _cleanup_buf_ struct buf sql = BUF_INIT(ROW_SQL_MAX);
        int r = which == ROW_INSERT   ? sql_insert(t, &sql)
                : which == ROW_UPDATE ? sql_update(t, &sql)
                : which == ROW_LIST   ? sql_list(t, &sql)
                                      : buf_printf(&sql, "DELETE FROM %s WHERE id = ?%d", t->name, ID_PARAM);
        return r < 0 ? NULL : buf_steal(&sql);
}

void db_row_clear(const struct table *t, void *row) {
        for (unsigned i = 0; i < t->n_columns; i++)
                if (t->columns[i].kind == COLUMN_TEXT)
                        free(*(char **) field_of(&t->columns[i], row));
        memset(row, 0, t->row_size);
}

int db_row_copy(const struct table *t, void *to, const void *from) {
        memcpy(to, from, t->row_size);
        for (unsigned i = 0; i < t->n_columns; i++)
                if (t->columns[i].kind == COLUMN_TEXT)
                        *(char **) field_of(&t->columns[i], to) = NULL;
        for (unsigned i = 0; i < t->n_columns; i++) {
                const struct column *c = &t->columns[i];
                if (c->kind == COLUMN_TEXT && str_replace(field_of(c, to), *(char *const *) field(c, from)) < 0) {
                        db_row_clear(t, to);
                        return -ENOMEM;
                }
        }
        return 0;
}

static bool number_valid(const struct column *c, int64_t v) {
        static const int64_t greatest[] = {
                [COLUMN_BOOL] = 1,
                [COLUMN_INT] = INT_MAX,
                [COLUMN_UINT] = UINT_MAX,
                [COLUMN_INT64] = INT64_MAX,
        };
        return v >= c->min && v <= (c->max ? c->max : greatest[c->kind]);
}

/* Of n bytes with a NUL behind them. */
static bool text_valid(const struct column *c, const char *text, size_t n) {
        size_t max = c->kind == COLUMN_CHARS ? c->size - 1 : c->max ? (size_t) c->max : ROW_TEXT_MAX;
        if (n > max || memchr(text, 0, n))
                return false;
        if (n == 0)
                return c->flags & COLUMN_EMPTY;
        if (c->flags & COLUMN_UUID)
                return uuid_valid(text);
        return (c->flags & COLUMN_ANY_BYTES) || utf8_valid(text, n);
}

static bool is_text(const struct column *c) {
        return c->kind == COLUMN_CHARS || c->kind == COLUMN_TEXT;
}

static int64_t get_number(const struct column *c, const void *row) {
        const void *at = field(c, row);
        return c->kind == COLUMN_BOOL   ? *(const bool *) at
               : c->kind == COLUMN_INT  ? *(const int *) at
               : c->kind == COLUMN_UINT ? *(const unsigned *) at
                                        : *(const int64_t *) at;
}

static bool is_given(const struct column *c, const void *row) {
        return !c->given || *(const bool *) ((const char *) row + c->given);
}

/* Texts are bound without a copy: the row outlives the step. -EINVAL: nothing that the column may hold; -ENOMEM. */
static int bind_column(sqlite3_stmt *s, int param, const struct column *c, const void *row) {
        int rc;
        if (!is_given(c, row))
                rc = sqlite3_bind_null(s, param);
        else if (is_text(c)) {
                const char *text = c->kind == COLUMN_CHARS ? field(c, row) : *(const char *const *) field(c, row);
                if (text ? !text_valid(c, text, strlen(text)) : !(c->flags & COLUMN_NULL))
                        return -EINVAL;
                rc = sqlite3_bind_text(s, param, text, -1, SQLITE_STATIC);
        } else {
                int64_t v = get_number(c, row);
                if (!number_valid(c, v))
                        return -EINVAL;
                rc = c->names ? sqlite3_bind_text(s, param, c->names[v], -1, SQLITE_STATIC)
                              : sqlite3_bind_int64(s, param, v);
        }
        return rc == SQLITE_OK ? 0 : -ENOMEM;
}

/* Without the columns that an update leaves as they are, if `mutable`. */
static int bind_row(const struct table *t, sqlite3_stmt *s, const void *row, bool mutable, struct error *err) {
        for (unsigned i = 0; i < t->n_columns; i++) {
                const struct column *c = &t->columns[i];
                if (mutable && i > 0 && (c->flags & COLUMN_FIXED))
                        continue;
                int r = bind_column(s, (int) i + 1, c, row);
                if (r == -EINVAL)
                        return error_set(err, ERROR_INTERNAL, "Cannot store %s %s: its %s makes no sense", t->what,
                                         row_id(t, row), c->name);
                if (r < 0)
                        return error_set_errno(err, -r, "Cannot store %s %s", t->what, row_id(t, row));
        }
        return 0;
}

static int fail_row(struct db *db, const struct table *t, int rc, const char *verb, struct error *err) {
        char what[64];
        snprintf(what, sizeof(what), "%s the %s", verb, t->what);
        return db_fail(db, rc, what, err);
}

/* Runs an insert or an update. 1: a value that must be unique is another row's. */
static int write_row(struct db *db, const struct table *t, enum row_stmt which, const void *row, struct error *err) {
        _cleanup_stmt_ sqlite3_stmt *s = table_stmt(db, t, which);
        int r = bind_row(t, s, row, which == ROW_UPDATE, err);
        if (r < 0)
                return r;
        int rc = sqlite3_step(s);
        if (rc == SQLITE_CONSTRAINT_UNIQUE)
                return 1;
        return rc == SQLITE_DONE ? 0 : fail_row(db, t, rc, "store", err);
}

int db_row_insert(struct db *db, const struct table *t, const void *row, struct error *err) {
        int r = write_row(db, t, ROW_INSERT, row, err);
        return r > 0 ? t->taken(db, row, err) : r;
}

static int check_found(struct db *db, const struct table *t, const char *id, struct error *err) {
        if (sqlite3_changes(db->conn) == 1)
                return 0;
        return error_set(err, ERROR_NOT_FOUND, "The state store has no %s %s", t->what, id);
}

int db_row_update(struct db *db, const struct table *t, const void *row, struct error *err) {
        int r = write_row(db, t, ROW_UPDATE, row, err);
        if (r != 0)
                return r > 0 ? t->taken(db, row, err) : r;
        return check_found(db, t, row_id(t, row), err);
}

int db_row_delete(struct db *db, const struct table *t, const char *id, struct error *err) {
        _cleanup_stmt_ sqlite3_stmt *s = table_stmt(db, t, ROW_DELETE);
        int rc = sqlite3_bind_text(s, ID_PARAM, id, -1, SQLITE_STATIC);
        if (rc == SQLITE_OK)
                rc = sqlite3_step(s);
        return rc == SQLITE_DONE ? check_found(db, t, id, err) : fail_row(db, t, rc, "remove", err);
}

/* One that the table has. */
static const struct column *find_column(const struct table *t, const char *name) {
        const struct column *c = t->columns;
        while (!str_eq(c->name, name))
                c++;
        return c;
}

bool db_row_holder(struct db *db, const struct table *t, const void *row, const char *a, const char *b,
                   char ret[UUID_LEN + 1]) {
        const struct column *first = find_column(t, a), *second = find_column(t, b);
        sqlite3_stmt *s = NULL;
        bool found = false;
        _cleanup_free_ char *sql =
                str_printf("SELECT id FROM %s WHERE %s = ?1 AND %s = ?2 AND id <> ?3", t->name, a, b);
        if (sql && sqlite3_prepare_v2(db->conn, sql, -1, &s, NULL) == SQLITE_OK && bind_column(s, 1, first, row) == 0 &&
            bind_column(s, 2, second, row) == 0 && bind_column(s, 3, &t->columns[0], row) == 0 &&
            sqlite3_step(s) == SQLITE_ROW) {
                const char *id = (const char *) sqlite3_column_text(s, 0);
                found = id && snprintf(ret, UUID_LEN + 1, "%s", id) > 0;
        }
        sqlite3_finalize(s);
        return found;
}

/* -EINVAL: not what this program writes there; -ENOMEM. */
static int read_text(sqlite3_stmt *s, int at, const struct column *c, void *to) {
        if (sqlite3_column_type(s, at) == SQLITE_NULL)
                return c->kind == COLUMN_TEXT && (c->flags & COLUMN_NULL) ? 0 : -EINVAL;
        if (sqlite3_column_type(s, at) != SQLITE_TEXT)
                return -EINVAL;
        const char *text = (const char *) sqlite3_column_text(s, at);
        if (!text)
                return -ENOMEM;
        size_t n = (size_t) sqlite3_column_bytes(s, at);
        if (!text_valid(c, text, n))
                return -EINVAL;
        if (c->kind == COLUMN_TEXT)
                return str_replace(to, text);
        memcpy(to, text, n + 1);
        return 0;
}

static int read_name(sqlite3_stmt *s, int at, const struct column *c, unsigned *ret) {
        if (sqlite3_column_type(s, at) != SQLITE_TEXT)
                return -EINVAL;
        const char *text = (const char *) sqlite3_column_text(s, at);
        for (unsigned i = 0; i <= c->max; i++)
                if (str_eq(text, c->names[i])) {
                        *ret = i;
                        return 0;
                }
        return text ? -EINVAL : -ENOMEM;
}

static int read_number(sqlite3_stmt *s, int at, const struct column *c, void *to) {
        int64_t v = sqlite3_column_int64(s, at);
        if (sqlite3_column_type(s, at) != SQLITE_INTEGER || !number_valid(c, v))
                return -EINVAL;
        if (c->kind == COLUMN_BOOL)
                *(bool *) to = v;
        else if (c->kind == COLUMN_INT)
                *(int *) to = (int) v;
        else if (c->kind == COLUMN_UINT)
                *(unsigned *) to = (unsigned) v;
        else
                *(int64_t *) to = v;
        return 0;
}

static int read_nothing(sqlite3_stmt *s, int at) {
        return sqlite3_column_type(s, at) == SQLITE_NULL ? 0 : -EINVAL;
}

/* The row under the cursor, into zeros. -EINVAL with the name of the column, -ENOMEM: what was read must be cleared. */
static int read_row(sqlite3_stmt *s, const struct table *t, void *row, const char **ret_bad) {
        for (unsigned i = 0; i < t->n_columns; i++) {
                const struct column *c = &t->columns[i];
                int at = (int) i;
                void *to = (char *) row + c->at;
                if (c->flags & COLUMN_GIVEN)
                        *(bool *) ((char *) row + c->given) = sqlite3_column_type(s, at) != SQLITE_NULL;
                int r = !is_given(c, row) ? read_nothing(s, at)
                        : is_text(c)      ? read_text(s, at, c, to)
                        : c->names        ? read_name(s, at, c, to)
                                          : read_number(s, at, c, to);
                if (r < 0) {
                        *ret_bad = c->name;
                        return r;
                }
        }
        return 0;
}

/* Adds the row under the cursor to an array. */
static int list_add(void **rows, size_t *n, size_t *cap, sqlite3_stmt *s, const struct table *t, const char **ret_bad) {
        if (*n >= ROWS_MAX)
                return -E2BIG;
        if (*n == *cap) {
                size_t grown = *cap ? *cap * 2 : 16;
                void *v = reallocarray(*rows, grown, t->row_size);
                if (!v)
                        return -ENOMEM;
                *rows = v;
                *cap = grown;
        }
        void *row = (char *) *rows + *n * t->row_size;
        memset(row, 0, t->row_size);
        int r = read_row(s, t, row, ret_bad);
        if (r < 0)
                db_row_clear(t, row);
        else
                (*n)++;
        return r;
}

static int fail_strange(struct db *db, const struct table *t, sqlite3_stmt *s, const char *bad, struct error *err) {
        const char *id = (const char *) sqlite3_column_text(s, 0);
        int r = error_set(err, ERROR_INTERNAL, "The state store %s has a row for %s \"%s\" that makes no sense: its %s",
                          db->path, t->what, uuid_valid(id) ? id : "?", bad);
        error_hint(err, "It was written by another program or another version. Put back a copy of it.");
        return r;
}

void db_row_list_free(const struct table *t, void *rows, size_t n) {
        for (size_t i = 0; i < n; i++)
                db_row_clear(t, (char *) rows + i * t->row_size);
        free(rows);
}

static int list(struct db *db, const struct table *t, void **rows, size_t *n, struct error *err) {
        _cleanup_stmt_ sqlite3_stmt *s = table_stmt(db, t, ROW_LIST);
        size_t cap = 0;
        for (;;) {
                const char *bad = NULL;
                int rc = sqlite3_step(s);
                if (rc == SQLITE_DONE)
                        return 0;
                if (rc != SQLITE_ROW)
                        return fail_row(db, t, rc, "read", err);
                int r = list_add(rows, n, &cap, s, t, &bad);
                if (r == -EINVAL)
                        return fail_strange(db, t, s, bad, err);
                if (r < 0)
                        return error_set_errno(err, -r, "Cannot read the table %s of %s", t->name, db->path);
        }
}

int db_row_list(struct db *db, const struct table *t, void **ret, size_t *ret_n, struct error *err) {
        void *rows = NULL;
        size_t n = 0;
        LOCK(&db->lock);
        int r = list(db, t, &rows, &n, err);
        if (r < 0) {
                db_row_list_free(t, rows, n);
                return r;
        }
        *ret = rows;
        *ret_n = n;
        return 0;
}
