/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* A core with real machines, for the tools that need them: state below STATE_DIR, images in IMAGE_DIR. A step that
 * fails ends the program with the error. */

#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "workspace/workspace.h"

struct real_core {
        const char *image_dir, *state_dir;
        struct platform platform;
        struct db *db;
        struct storage *storage;
        struct core *core;
        char owner[UUID_LEN + 1];
};

static int64_t real_began;

static inline void real_begin(void) {
        real_began = monotonic_ns();
}

static inline int64_t real_ms(void) {
        return (monotonic_ns() - real_began) / NSEC_PER_MSEC;
}

/* Prints the step with its time, or why it failed and ends. */
static inline void real_step(const char *what, int r, const struct error *err) {
        printf("%-44s %6lld ms%s\n", what, (long long) real_ms(), r < 0 ? "  FAILED" : "");
        fflush(stdout);
        if (r < 0) {
                printf("%s: %s\n%s\n", error_is_set(err) ? error_code_name(err->code) : strerror(-r),
                       error_message(err), error_is_set(err) && err->hint ? err->hint : "");
                exit(1);
        }
}

#define REAL_CHECK(cond)                                                          \
        do {                                                                      \
                if (!(cond)) {                                                    \
                        printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #cond); \
                        exit(1);                                                  \
                }                                                                 \
        } while (0)

/* Opens store, disks and core, and recovers, as a start of the daemon does. */
static inline int real_open(struct real_core *c, struct error *err) {
        _cleanup_free_ char *db_path = path_join(c->state_dir, "state.db"), *disks = path_join(c->state_dir, "disks");
        struct core_config cfg = {
                .state_dir = c->state_dir,
                .image_dir = c->image_dir,
                .default_image = "debian-dev",
                .default_vcpus = 2,
                .default_memory_mb = 512,
                .default_disk_gb = 10,
                .limits = {.max_vcpus = 8, .max_memory_mb = 8192, .max_disk_gb = 100, .max_workspaces = 100},
                .network = 0x0a630000, /* 10.99.0.0 */
                .prefix_len = 16,
                .boot_timeout_ms = 120000,
        };
        struct op op = op_timeout(120000);

        int r = mkdir_p(c->state_dir, 0700);
        if (r >= 0)
                r = db_open(db_path, &c->db, err);
        if (r >= 0)
                r = storage_open_qcow2(disks, 0, &c->storage, err);
        if (r >= 0)
                r = core_open(&cfg, c->db, c->storage, &c->platform, &c->core, err);
        if (r >= 0)
                r = core_recover(c->core, &op, err);
        return r < 0 ? r : core_owner_add(c->core, c->owner);
}

/* Lets go of everything; machines run on. */
static inline void real_close(struct real_core *c) {
        core_close(c->core);
        storage_close(c->storage);
        db_close(c->db);
        c->core = NULL;
        c->storage = NULL;
        c->db = NULL;
}

static inline int real_probe(struct real_core *c, struct error *err) {
        _cleanup_free_ char *cache = path_join(c->state_dir, "accel.cache"),
                            *scratch = path_join(c->state_dir, "probe");
        struct platform_args args = {
                .image_dir = c->image_dir, .cache_file = cache, .scratch_dir = scratch, .accel = ACCEL_AUTO};
        struct op op = op_timeout(60000);
        int r = mkdir_p(c->state_dir, 0700);
        return r < 0 ? r : platform_probe(&args, &op, &c->platform, err);
}

/* Runs a command and gives back the first line that it prints. */
static inline int real_exec(struct real_core *c, const char *ref, const char *command, char *out, size_t size,
                            struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        _cleanup_exec_result_ struct agent_exec_result result = {0};
        struct agent_exec_args args = {.command = command, .max_output = 65536, .timeout_ms = 60000};
        struct op op = op_timeout(90000);

        int r = ws_agent(c->core, ref, &op, &agent, err);
        if (r >= 0)
                r = agent_exec(agent, &args, &op, &result, err);
        if (r < 0)
                return r;
        snprintf(out, size, "%.*s", (int) strcspn(result.out.head.data ? result.out.head.data : "", "\n"),
                 result.out.head.data ? result.out.head.data : "");
        return result.exit_code;
}

static inline unsigned real_count(const struct real_core *c, const char *folder) {
        _cleanup_free_ char *path = path_join(c->state_dir, folder);
        DIR *d = opendir(path);
        unsigned n = 0;
        for (struct dirent *e; d && (e = readdir(d));)
                n += e->d_name[0] != '.' && !str_eq(e->d_name, "base");
        if (d)
                closedir(d);
        return n;
}

static inline void real_check_nothing_left(struct real_core *c) {
        _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
        REAL_CHECK(db_ws_list(c->db, &rows, NULL) == 0);
        REAL_CHECK(rows.n == 0);
        REAL_CHECK(real_count(c, "vms") == 0);
        REAL_CHECK(real_count(c, "disks") == 0);
}
