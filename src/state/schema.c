/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/log.h"
#include "state/db-internal.h"

/* seq is the order of creation: the clock may be set back. The three proc columns are set together or not at all. */
static const char schema_1[] = "CREATE TABLE workspaces ("
                               "  seq INTEGER PRIMARY KEY,"
                               "  id TEXT NOT NULL UNIQUE,"
                               "  name TEXT NOT NULL UNIQUE,"
                               "  state TEXT NOT NULL,"
                               "  base_image TEXT NOT NULL,"
                               "  vcpus INTEGER NOT NULL CHECK (vcpus > 0),"
                               "  memory_mb INTEGER NOT NULL CHECK (memory_mb > 0),"
                               "  disk_gb INTEGER NOT NULL CHECK (disk_gb > 0),"
                               "  allow_internet INTEGER NOT NULL CHECK (allow_internet IN (0, 1)),"
                               "  address INTEGER NOT NULL UNIQUE,"
                               "  mac TEXT NOT NULL UNIQUE,"
                               "  owner TEXT NOT NULL,"
                               "  created_ms INTEGER NOT NULL,"
                               "  started_ms INTEGER NOT NULL,"
                               "  proc_pid INTEGER,"
                               "  proc_start INTEGER,"
                               "  proc_boot TEXT,"
                               "  last_error TEXT,"
                               "  CHECK ((proc_pid IS NULL) = (proc_start IS NULL)"
                               "     AND (proc_pid IS NULL) = (proc_boot IS NULL))"
                               ") STRICT;";

static const char *const migrations_sql[] = {schema_1};

const struct migrations db_migrations = {migrations_sql, (unsigned) ARRAY_SIZE(migrations_sql)};

/* Whether the file may be taken for ours: a version, or nothing at all in it. */
static int check_identity(struct db *db, int64_t version, struct error *err) {
        int64_t application = 0, tables = 0;
        int r = db_query_int(db, "PRAGMA application_id", &application, err);
        if (r < 0)
                return r;
        if (application == DB_APPLICATION_ID)
                return 0;
        r = db_query_int(db, "SELECT count(*) FROM sqlite_schema", &tables, err);
        if (r < 0)
                return r;
        if (application == 0 && version == 0 && tables == 0)
                return 0;
        r = error_set(err, ERROR_CONFLICT, "%s is an SQLite database, but not one of agentiso", db->path);
        error_hint(err, "Move it away, or set state_dir to another folder.");
        return r;
}

static int apply(struct db *db, const char *sql, unsigned version, struct error *err) {
        char mark[96];
        snprintf(mark, sizeof(mark), "PRAGMA application_id = %d; PRAGMA user_version = %u;", DB_APPLICATION_ID,
                 version);

        int r = db_exec(db, "BEGIN IMMEDIATE", "begin a change of the schema", err);
        if (r < 0)
                return r;
        r = db_exec(db, sql, "change the schema", err);
        if (r >= 0)
                r = db_exec(db, mark, "set the schema version", err);
        if (r >= 0)
                r = db_exec(db, "COMMIT", "commit the new schema", err);
        if (r < 0 && !sqlite3_get_autocommit(db->conn))
                sqlite3_exec(db->conn, "ROLLBACK", NULL, NULL, NULL);
        return r;
}

int db_migrate(struct db *db, const struct migrations *m, struct error *err) {
        int64_t version = 0;
        int r = db_query_int(db, "PRAGMA user_version", &version, err);
        if (r >= 0)
                r = check_identity(db, version, err);
        if (r < 0)
                return r;
        if (version < 0 || version > m->n) {
                r = error_set(
                        err, ERROR_UNSUPPORTED,
                        "%s has schema version %lld, and this agentiso knows versions up to %u: a newer one wrote it",
                        db->path, (long long) version, m->n);
                error_hint(err,
                           "Use the newer agentiso, or put back the copy that it made before it changed the file: "
                           "%s.v%u.bak.",
                           db->path, m->n);
                return r;
        }
        if (version == m->n)
                return 0;
        if (version > 0) {
                _cleanup_free_ char *copy = str_printf("%s.v%lld.bak", db->path, (long long) version);
                if (!copy)
                        return error_set_errno(err, ENOMEM, "Cannot copy %s", db->path);
                r = db_backup_locked(db, copy, err);
                if (r < 0)
                        return r;
                log_info("The state store gets a newer schema; the old one is kept", "copy", copy);
        }
        for (unsigned v = (unsigned) version; v < m->n; v++) {
                r = apply(db, m->sql[v], v + 1, err);
                if (r < 0) {
                        error_prefix(err, "Schema version %u", v + 1);
                        return r;
                }
        }
        return 0;
}
