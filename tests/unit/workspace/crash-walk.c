/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kill -9 of the daemon at many moments of each operation, with real machines:
 *
 *     crash-walk IMAGE_DIR STATE_DIR [STEPS]
 *
 * For each operation a child process opens the state, says "begin", does it, and says "done". It is killed STEPS times
 * (8), at moments spread over the time that the operation takes. Each time the next start must find a consistent
 * world: what was acknowledged is there, what was not is whole or gone, rows, folders, disks and processes match, and
 * another recovery changes nothing.
 */
#include <fcntl.h>
#include <signal.h>

#include "base/io.h"
#include "base/process.h"
#include "workspace/real-core.h"

#define NAME "walker"
#define STEPS_MAX 100

enum operation { OP_CREATE, OP_START, OP_STOP, OP_DESTROY, _OP_MAX };
static const char *const operation_names[_OP_MAX] = {"create", "start", "stop", "destroy"};

static int run_operation(struct real_core *c, enum operation what, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        struct ws_create_args args = {.name = NAME};
        struct ws_started started;
        struct op op = op_timeout(180000);
        bool already;

        switch (what) {
        case OP_CREATE:
                return ws_create(c->core, &args, c->owner, &op, &view, &started, err);
        case OP_START:
                return ws_start(c->core, NAME, &op, &view, &started, err);
        case OP_STOP:
                return ws_stop(c->core, NAME, &op, &view, &already, err);
        default:
                return ws_destroy(c->core, NAME, &op, &view, err);
        }
}

static int child_main(struct real_core *c, const char *name) {
        _cleanup_error_ struct error err = ERROR_INIT;
        enum operation what = OP_CREATE;
        while (what < _OP_MAX && !str_eq(operation_names[what], name))
                what++;
        int r = real_open(c, &err);
        if (r >= 0) {
                (void) !write(STDOUT_FILENO, "b", 1);
                r = run_operation(c, what, &err);
        }
        if (r < 0)
                fprintf(stderr, "%s: %s\n", name, error_message(&err));
        else
                (void) !write(STDOUT_FILENO, "d", 1);
        real_close(c);
        return r < 0;
}

/* Runs an operation in a child; after_ms < 0: to its end, else it is killed so long after it began. *ret_done: it was
 * acknowledged before the end. The time that it took. */
static int64_t run_child(struct real_core *c, enum operation what, int64_t after_ms, bool *ret_done) {
        char *argv[] = {(char *) "/proc/self/exe", (char *) c->image_dir,          (char *) c->state_dir,
                        (char *) "child",          (char *) operation_names[what], NULL};
        int pipes[2];
        pid_t pid;
        REAL_CHECK(pipe2(pipes, O_CLOEXEC) == 0);
        struct fd_map fds[] = {{.from = pipes[1], .to = 1}, {.from = STDERR_FILENO, .to = 2}};
        struct spawn spawn = {.argv = argv, .fds = fds, .n_fds = 2};
        REAL_CHECK(process_spawn(&spawn, &pid, NULL) == 0);
        close(pipes[1]);

        struct op limit = op_timeout(180000);
        char word = 0;
        REAL_CHECK(read_full(pipes[0], &word, 1, &limit) == 0 && word == 'b');
        int64_t began = monotonic_ns();
        struct op moment = after_ms < 0 ? limit : op_timeout(after_ms);
        *ret_done = read_full(pipes[0], &word, 1, &moment) == 0;
        int64_t took = (monotonic_ns() - began) / NSEC_PER_MSEC;
        if (after_ms >= 0)
                kill(pid, SIGKILL);
        struct process_result result;
        REAL_CHECK(process_wait(pid, &limit, &result) == 0);
        /* What it said in its last moment counts, too. */
        if (!*ret_done)
                *ret_done = read(pipes[0], &word, 1) == 1;
        close(pipes[0]);
        return took;
}

/* How many QEMUs run for the state folder. */
static unsigned count_machines(const struct real_core *c) {
        _cleanup_free_ char *absolute = realpath(c->state_dir, NULL);
        DIR *d = opendir("/proc");
        unsigned n = 0;
        for (struct dirent *e; d && (e = readdir(d));) {
                _cleanup_free_ char *path = str_printf("/proc/%s/cmdline", e->d_name), *text = NULL;
                size_t len = 0;
                if (e->d_name[0] < '0' || e->d_name[0] > '9' || file_read_all(path, 65536, &text, &len) < 0 || len == 0)
                        continue;
                n += strstr(text, "qemu-system") && memmem(text, len, absolute, strlen(absolute));
        }
        closedir(d);
        return n;
}

/* Whether the workspace is there, after a recovery that must make everything match. */
static bool check_world(struct real_core *c, enum ws_state *ret_state) {
        _cleanup_error_ struct error err = ERROR_INIT;
        for (int i = 0; i < 2; i++) {
                _cleanup_(ws_rows_clear) struct ws_rows rows = {0};
                if (real_open(c, &err) < 0) {
                        printf("%s\n", error_message(&err));
                        exit(1);
                }
                REAL_CHECK(db_ws_list(c->db, &rows, NULL) == 0);
                REAL_CHECK(rows.n <= 1);
                REAL_CHECK(real_count(c, "vms") == rows.n);
                REAL_CHECK(real_count(c, "disks") == rows.n);
                enum ws_state state = rows.n ? rows.v[0].state : WS_DESTROYING;
                REAL_CHECK(!rows.n || state == WS_RUNNING || state == WS_STOPPED);
                REAL_CHECK(count_machines(c) == (state == WS_RUNNING));
                if (state == WS_RUNNING) {
                        char out[64];
                        REAL_CHECK(real_exec(c, NAME, "true", out, sizeof(out), &err) == 0);
                }
                REAL_CHECK(i == 0 || state == *ret_state);
                *ret_state = state;
                real_close(c);
        }
        return *ret_state != WS_DESTROYING;
}

/* Brings about what the operation starts from. */
static void prepare(struct real_core *c, enum operation what) {
        static const enum ws_state wanted[_OP_MAX] = {[OP_CREATE] = WS_DESTROYING,
                                                      [OP_START] = WS_STOPPED,
                                                      [OP_STOP] = WS_RUNNING,
                                                      [OP_DESTROY] = WS_RUNNING};
        enum ws_state state;
        bool done;
        check_world(c, &state);
        if (state == wanted[what])
                return;
        if (wanted[what] == WS_DESTROYING)
                run_child(c, OP_DESTROY, -1, &done);
        else if (state == WS_DESTROYING)
                run_child(c, OP_CREATE, -1, &done);
        else
                run_child(c, wanted[what] == WS_RUNNING ? OP_START : OP_STOP, -1, &done);
        REAL_CHECK(done);
        check_world(c, &state);
        if (state != wanted[what]) /* made and running, but wanted stopped */
                run_child(c, OP_STOP, -1, &done);
}

static void walk(struct real_core *c, enum operation what, unsigned steps) {
        static const enum ws_state goal[_OP_MAX] = {[OP_CREATE] = WS_RUNNING,
                                                    [OP_START] = WS_RUNNING,
                                                    [OP_STOP] = WS_STOPPED,
                                                    [OP_DESTROY] = WS_DESTROYING};
        bool done;
        prepare(c, what);
        int64_t took = run_child(c, what, -1, &done);
        REAL_CHECK(done);
        for (unsigned i = 0; i <= steps; i++) {
                enum ws_state state;
                prepare(c, what);
                int64_t at = took * i / steps;
                run_child(c, what, at, &done);
                int64_t began = monotonic_ns();
                check_world(c, &state);
                printf("%-8s killed after %6lld ms%s: then %s (checked in %lld ms)\n", operation_names[what],
                       (long long) at, done ? ", acknowledged" : "",
                       state == WS_DESTROYING ? "gone" : ws_state_name(state),
                       (long long) ((monotonic_ns() - began) / NSEC_PER_MSEC));
                fflush(stdout);
                REAL_CHECK(!done || state == goal[what]);
        }
}

int main(int argc, char **argv) {
        struct real_core c = {.image_dir = argc > 1 ? argv[1] : NULL, .state_dir = argc > 2 ? argv[2] : NULL};
        _cleanup_error_ struct error err = ERROR_INIT;
        uint64_t steps = 8;

        if (argc < 3 || (argc == 4 && parse_u64(argv[3], &steps) < 0) || steps < 1 || steps > STEPS_MAX) {
                fprintf(stderr, "usage: crash-walk IMAGE_DIR STATE_DIR [STEPS]\n");
                return 2;
        }
        bool child = argc == 5 && str_eq(argv[3], "child");
        log_setup(LOG_ERROR, STDERR_FILENO);
        if (real_probe(&c, &err) < 0) {
                fprintf(stderr, "%s\n", error_message(&err));
                return 1;
        }
        if (child)
                return child_main(&c, argv[4]);
        for (int what = 0; what < _OP_MAX; what++)
                walk(&c, (enum operation) what, (unsigned) steps);
        printf("all well\n");
        platform_clear(&c.platform);
        return 0;
}
