/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Real machines for the programs that try templates, snapshots and forks. All their files are in machines_dir, and they
 * say what they measure as TAP comments.
 */

#include "base/str.h"
#include "tap.h"
#include "vm/state.h"

#define BOOT_MS 60000
#define STEP_MS 60000
#define MEMORY_MB 512u

extern char machines_dir[];
extern const char *base_disk; /* of the image; not changed */
extern struct platform platform;

/* argv: IMAGE_DIR [IMAGE] [kvm|tcg|auto]. 0, or the exit status. */
int machines_begin(int argc, char **argv);
void machines_end(void);

/* A path in machines_dir. */
char *at(const char *name);
double ms_since(int64_t ns);

int make_overlay(const char *path, const char *backing, const char *format, unsigned gib);

struct machine {
        const char *name;
        const char *backing, *backing_format; /* of its disk */
        unsigned disk_gib;                    /* 0: as large as that */
        enum vm_memory_kind memory;
        const char *memory_path;
        enum vm_state_kind state;
        const char *state_path, *pages_path;
        const char *session;
        bool quiet; /* says nothing of its time */
};

/* Starts a machine on a new overlay, or NULL; says how long it took to the agent's first answer. */
struct vm *start(const struct machine *m, struct error *err);
void end(struct vm *vm); /* accepts NULL */

/* A template "t.ram" and "t.state", with its root mounted or without a disk driver; what its disk was, owned. */
char *make_template(bool mounted);
/* Of that template. */
struct vm *child_of_template(const char *name, struct error *err);

/* The output of a command, without its last newline; NULL when it could not be run. */
char *run(struct vm *vm, const char *command);
static inline void expect(struct vm *vm, const char *command, const char *want) {
        _cleanup_free_ char *got = run(vm, command);

        CHECK_STR(got, want);
}

int mount_root(struct vm *vm);
/* Mounts the root and gives an identity. */
int settle(struct vm *vm, const char *hostname);

/* A command that starts a process which counts; it says "counting". */
extern const char counter[];
int64_t count_of(struct vm *vm);
/* The process runs, and what it counts grows. */
static inline void check_counts(struct vm *vm) {
        const struct op op = op_timeout(STEP_MS);
        int64_t first = count_of(vm), next = first;

        while (next >= 0 && next <= first && op_check(&op) >= 0)
                next = count_of(vm);
        CHECK(first > 0 && next > first);
        expect(vm, "kill -0 $(cat /run/counter) && cat /run/mark /root/mark", "marked\nmarked");
}

struct saved {
        char *state, *pages, *overlay, *memory; /* overlay: the disk that was frozen */
        const char *session;                    /* borrowed: the agent's secret in it */
        struct vm_snapshot_result result;
};
void saved_clear(struct saved *s);
#define _cleanup_saved_ _cleanup_(saved_clear)
bool save(struct vm *vm, const char *name, bool full, struct saved *s);

/* A fork that maps s->memory, or the template's memory with the pages laid over it. */
struct vm *fork_of(const struct saved *s, const char *name);
struct vm *fork_by_pages(const struct saved *s, const char *name);
