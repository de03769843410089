/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Rows that the tests of the store use, and what other programs do to its file. */

#include <sqlite3.h>

#include "state/db.h"
#include "tap.h"

static inline _unused_ struct ws_row make_row(const char *name, uint32_t address) {
        struct ws_row row = {
                .name = strdup(name),
                .base_image = strdup("debian-dev"),
                .owner = strdup("0b7f6c1e-0000-4000-8000-000000000001"),
                .vcpus = 2,
                .memory_mb = 512,
                .disk_gb = 10,
                .address = address,
                .created_ms = 1700000000123,
        };
        uuid_new(row.id);
        uuid_new(row.disk);
        snprintf(row.mac, sizeof(row.mac), "52:54:00:00:%02x:%02x", (address >> 8) & 0xff, address & 0xff);
        return row;
}

/* Of the disk alone. name: NULL for none. */
static inline _unused_ struct snap_row make_snap(const char *workspace, const char *name) {
        struct snap_row row = {
                .name = name ? strdup(name) : NULL,
                .state = SNAP_READY,
                .has_disk = true,
                .base_image = strdup("debian-dev"),
                .vcpus = 2,
                .memory_mb = 512,
                .disk_gb = 10,
                .created_ms = 1700000000456,
        };
        uuid_new(row.id);
        snprintf(row.workspace, sizeof(row.workspace), "%s", workspace);
        return row;
}

/* Changes the file behind the store's back, without regard for its constraints. */
static inline _unused_ void meddle(const char *path, const char *sql) {
        sqlite3 *other = NULL;
        char *why = NULL;
        CHECK_INT(sqlite3_open(path, &other), SQLITE_OK);
        CHECK_INT(sqlite3_exec(other, "PRAGMA ignore_check_constraints = ON", NULL, NULL, NULL), SQLITE_OK);
        CHECK_INT(sqlite3_exec(other, sql, NULL, NULL, &why), SQLITE_OK);
        if (why)
                printf("# %s: %s\n", sql, why);
        sqlite3_free(why);
        sqlite3_close(other);
}
