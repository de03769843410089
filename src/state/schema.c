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

/*
 * The workspaces get their snapshots and templates. The table is made anew: a column that is added to one cannot both
 * be NOT NULL and take its value from another column. An existing disk has the name of its workspace.
 *
 * Snapshots do not refer to workspaces by a foreign key: one stays for as long as something stands on it, also when its
 * workspace is gone. NULL names do not collide.
 */
static const char schema_2[] = "CREATE TABLE workspaces_2 ("
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
                               "  pooled INTEGER NOT NULL CHECK (pooled IN (0, 1)),"
                               "  disk TEXT NOT NULL UNIQUE," /* two machines on one disk would ruin it */
                               "  parent TEXT NOT NULL,"
                               "  memory_base TEXT NOT NULL,"
                               "  slot INTEGER NOT NULL CHECK (slot IN (0, 1)),"
                               "  session TEXT,"
                               "  origin_id TEXT NOT NULL,"
                               "  origin_name TEXT,"
                               "  origin_snapshot TEXT,"
                               "  created_ms INTEGER NOT NULL,"
                               "  started_ms INTEGER NOT NULL,"
                               "  proc_pid INTEGER,"
                               "  proc_start INTEGER,"
                               "  proc_boot TEXT,"
                               "  last_error TEXT,"
                               "  CHECK (pooled = 0 OR owner = ''),"
                               "  CHECK (origin_id <> '' OR (origin_name IS NULL AND origin_snapshot IS NULL)),"
                               "  CHECK ((proc_pid IS NULL) = (proc_start IS NULL)"
                               "     AND (proc_pid IS NULL) = (proc_boot IS NULL))"
                               ") STRICT;"
                               "INSERT INTO workspaces_2 (seq, id, name, state, base_image, vcpus, memory_mb, disk_gb,"
                               "  allow_internet, address, mac, owner, pooled, disk, parent, memory_base, slot,"
                               "  origin_id, created_ms, started_ms, proc_pid, proc_start, proc_boot, last_error)"
                               " SELECT seq, id, name, state, base_image, vcpus, memory_mb, disk_gb,"
                               "  allow_internet, address, mac, owner, 0, id, '', '', 0,"
                               "  '', created_ms, started_ms, proc_pid, proc_start, proc_boot, last_error"
                               " FROM workspaces;"
                               "DROP TABLE workspaces;"
                               "ALTER TABLE workspaces_2 RENAME TO workspaces;"

                               "CREATE TABLE snapshots ("
                               "  seq INTEGER PRIMARY KEY,"
                               "  id TEXT NOT NULL UNIQUE,"
                               "  workspace TEXT NOT NULL,"
                               "  name TEXT,"
                               "  state TEXT NOT NULL,"
                               "  has_disk INTEGER NOT NULL CHECK (has_disk IN (0, 1)),"
                               "  memory TEXT NOT NULL,"
                               "  parent TEXT NOT NULL,"
                               "  memory_base TEXT NOT NULL,"
                               "  memory_key TEXT,"
                               "  base_image TEXT,"
                               "  vcpus INTEGER NOT NULL CHECK (vcpus >= 0),"
                               "  memory_mb INTEGER NOT NULL CHECK (memory_mb >= 0),"
                               "  disk_gb INTEGER NOT NULL CHECK (disk_gb >= 0),"
                               "  session TEXT,"
                               "  created_ms INTEGER NOT NULL,"
                               "  used_ms INTEGER NOT NULL,"
                               "  pause_us INTEGER NOT NULL CHECK (pause_us >= 0),"
                               "  file_bytes INTEGER NOT NULL CHECK (file_bytes >= 0),"
                               "  UNIQUE (workspace, name),"
                               "  CHECK (memory = 'pages' OR memory_base = ''),"
                               "  CHECK (base_image IS NOT NULL OR workspace = '')"
                               ") STRICT;";

static const char schema_3[] = "ALTER TABLE workspaces ADD COLUMN allow_inter_vm INTEGER NOT NULL DEFAULT 0"
                               "  CHECK (allow_inter_vm IN (0, 1));"
                               "ALTER TABLE workspaces ADD COLUMN allowed_ports TEXT;"
                               "ALTER TABLE workspaces ADD COLUMN network_ns INTEGER NOT NULL DEFAULT 0;"

                               "CREATE TABLE port_forwards ("
                               "  seq INTEGER PRIMARY KEY,"
                               "  id TEXT NOT NULL UNIQUE,"
                               "  workspace TEXT NOT NULL,"
                               "  guest_port INTEGER NOT NULL CHECK (guest_port BETWEEN 1 AND 65535),"
                               "  host_port INTEGER NOT NULL UNIQUE CHECK (host_port BETWEEN 1 AND 65535),"
                               "  created_ms INTEGER NOT NULL,"
                               "  UNIQUE (workspace, guest_port)"
                               ") STRICT;";

static const char *const migrations_sql[] = {schema_1, schema_2, schema_3};

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
