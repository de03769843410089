/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of one workspace on a real machine, step by step with times:
 *
 *     lifecycle-once IMAGE_DIR STATE_DIR [CREATES]
 *
 * create, commands, stop, start with the disk as it was, a restart of the daemon with the machine running, a kill -9 of
 * QEMU, a cancelled create, many threads at once, one name for fifty, destroy. Then CREATES workspaces that run at the
 * same time, a restart of the daemon with all of them, and the medians. STATE_DIR is empty or absent before.
 */
#include <signal.h>

#include "base/thread.h"
#include "workspace/real-core.h"

#define CREATES_MAX 100

/* Times in milliseconds. */
static int64_t create(struct real_core *c, const char *name, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        struct ws_create_args args = {.name = name};
        struct ws_started started;
        struct op op = op_timeout(180000);

        real_begin();
        real_step("create", ws_create(c->core, &args, c->owner, &op, &view, &started, err), err);
        REAL_CHECK(view.row.state == WS_RUNNING);
        REAL_CHECK(view.owned && !view.orphaned);
        REAL_CHECK(started.boot_time_ms > 0 && started.boot_time_ms <= real_ms());
        return started.boot_time_ms;
}

static int64_t destroy(struct real_core *c, const char *name, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        struct op op = op_timeout(60000);
        real_begin();
        real_step("destroy", ws_destroy(c->core, name, &op, &view, err), err);
        int64_t took = real_ms();
        _cleanup_ws_view_ struct ws_view none = {0};
        REAL_CHECK(ws_destroy(c->core, name, &op, &none, NULL) == -ENOENT);
        return took;
}

static void check_identity(struct real_core *c, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        _cleanup_free_ char *address = NULL, *machine = NULL;
        char out[256];

        real_begin();
        real_step("exec hostname", real_exec(c, "life.once", "hostname", out, sizeof(out), err), err);
        REAL_CHECK(str_eq(out, "life-once"));
        REAL_CHECK(ws_get(c->core, "life.once", NULL, &view, NULL) == 0);
        address = str_printf("ip -4 addr | grep -q 'inet %s/16' && ip link | grep -q '%s'", view.address, view.row.mac);
        real_begin();
        real_step("exec ip", real_exec(c, "life.once", address, out, sizeof(out), err), err);
        machine = str_printf("test $(cat /etc/machine-id) = $(echo %s | tr -d -)", view.row.id);
        REAL_CHECK(real_exec(c, "life.once", machine, out, sizeof(out), err) == 0);
        /* No address answers and none is routed to: it fails at once. */
        real_begin();
        int r = real_exec(c, "life.once", "timeout 5 bash -c '</dev/tcp/1.1.1.1/80'", out, sizeof(out), err);
        REAL_CHECK(r == 1);
        real_step("a connection to the internet fails", 0, err);
}

static void stop_and_start(struct real_core *c, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0}, again = {0}, started_view = {0}, twice = {0};
        _cleanup_error_ struct error not_running = ERROR_INIT;
        struct agent *agent = NULL;
        struct ws_started started;
        struct op op = op_timeout(180000);
        bool already = true;
        char out[256];

        REAL_CHECK(real_exec(c, "life.once", "echo kept > /root/kept", out, sizeof(out), err) == 0);
        real_begin();
        real_step("stop", ws_stop(c->core, "life.once", &op, &view, &already, err), err);
        REAL_CHECK(!already && view.row.state == WS_STOPPED && !view.row.last_error && !view.row.has_proc);
        REAL_CHECK(ws_stop(c->core, "life.once", &op, &again, &already, err) == 0 && already);
        REAL_CHECK(ws_agent(c->core, "life.once", &op, &agent, &not_running) < 0);
        REAL_CHECK(not_running.code == ERROR_NOT_RUNNING && strstr(not_running.hint, "workspace_start"));

        real_begin();
        real_step("start", ws_start(c->core, "life.once", &op, &started_view, &started, err), err);
        REAL_CHECK(!started.already && started_view.row.state == WS_RUNNING);
        REAL_CHECK(ws_start(c->core, "life.once", &op, &twice, &started, err) == 0 && started.already);
        REAL_CHECK(real_exec(c, "life.once", "cat /root/kept", out, sizeof(out), err) == 0);
        REAL_CHECK(str_eq(out, "kept"));
}

static void restart_daemon(struct real_core *c, struct error *err) {
        _cleanup_ws_view_ struct ws_view before = {0}, after = {0};
        char out[256];
        REAL_CHECK(real_exec(c, "life.once", "sleep 600 >/dev/null 2>&1 & echo $! > /run/sleeper", out, sizeof(out),
                             err) == 0);
        REAL_CHECK(ws_get(c->core, "life.once", NULL, &before, err) == 0);
        real_begin();
        real_close(c);
        real_step("close", 0, err);
        real_begin();
        real_step("open and recover", real_open(c, err), err);
        REAL_CHECK(ws_get(c->core, "life.once", c->owner, &after, err) == 0);
        REAL_CHECK(after.row.state == WS_RUNNING && after.row.proc.pid == before.row.proc.pid);
        REAL_CHECK(after.row.started_ms == before.row.started_ms);
        REAL_CHECK(after.orphaned && !after.owned);
        real_begin();
        real_step("first exec after it",
                  real_exec(c, "life.once", "kill -0 $(cat /run/sleeper)", out, sizeof(out), err), err);
        real_begin();
        real_step("second exec", real_exec(c, "life.once", "true", out, sizeof(out), err), err);
}

static void kill_qemu(struct real_core *c, struct error *err) {
        _cleanup_ws_view_ struct ws_view view = {0};
        _cleanup_error_ struct error reason = ERROR_INIT;
        _cleanup_buf_ struct buf console = BUF_INIT(1 << 20), errors = BUF_INIT(1 << 20);
        struct ws_started started;
        struct agent *agent = NULL;
        struct ws_usage usage;
        struct op op = op_timeout(180000);

        REAL_CHECK(ws_usage(c->core, "life.once", &usage, err) == 0);
        printf("disk %llu KiB of %llu MiB, memory %llu MiB private, %llu MiB shared, up %lld s\n",
               (unsigned long long) usage.disk_used_bytes >> 10, (unsigned long long) usage.disk_virtual_bytes >> 20,
               (unsigned long long) usage.memory_private_bytes >> 20,
               (unsigned long long) usage.memory_shared_bytes >> 20, (long long) usage.uptime_secs);
        REAL_CHECK(usage.memory_private_bytes > 0);
        REAL_CHECK(ws_get(c->core, "life.once", NULL, &view, err) == 0 && view.row.has_proc);
        REAL_CHECK(kill(view.row.proc.pid, SIGKILL) == 0);
        real_begin();
        /* The next use sees it, whether or not the reaper was there before. */
        while (ws_agent(c->core, "life.once", &op, &agent, &reason) >= 0)
                agent_unref(agent);
        real_step("its end is seen", 0, err);
        REAL_CHECK(reason.code == ERROR_NOT_RUNNING);
        printf("%.120s...\n", error_message(&reason));
        ws_view_clear(&view);
        REAL_CHECK(ws_get(c->core, "life.once", NULL, &view, err) == 0);
        REAL_CHECK(view.row.state == WS_STOPPED && view.row.last_error &&
                   str_starts_with(view.row.last_error, "QEMU ended by itself"));
        REAL_CHECK(ws_logs(c->core, "life.once", 100, &console, &errors, err) == 0 && console.len > 0);
        real_begin();
        ws_view_clear(&view);
        real_step("start after it", ws_start(c->core, "life.once", &op, &view, &started, err), err);
        REAL_CHECK(!view.row.last_error);
}

static void *cancel_later(void *arg) {
        struct op op = op_timeout(1000);
        (void) wait_fd(-1, 0, &op);
        cancel_fire(arg);
        return NULL;
}

static void cancel_create(struct real_core *c, struct error *err) {
        _cleanup_cancel_ struct cancel *cancel = cancel_new();
        _cleanup_ws_view_ struct ws_view view = {0};
        struct ws_create_args args = {.name = "cancelled"};
        struct ws_started started;
        struct op op = op_timeout(180000);
        pthread_t thread;

        op.cancel = cancel;
        unsigned before = real_count(c, "disks");
        REAL_CHECK(thread_start(&thread, "cancel", cancel_later, cancel) == 0);
        real_begin();
        REAL_CHECK(ws_create(c->core, &args, c->owner, &op, &view, &started, err) == -ECANCELED);
        real_step("create, cancelled after 1000 ms", 0, err);
        REAL_CHECK(real_ms() < 2000);
        pthread_join(thread, NULL);
        REAL_CHECK(err->code == ERROR_CANCELLED);
        error_clear(err);
        REAL_CHECK(ws_get(c->core, "cancelled", NULL, &view, NULL) == -ENOENT);
        REAL_CHECK(real_count(c, "disks") == before && real_count(c, "vms") == before);
}

enum part { PART_TOGGLE, PART_EXEC, PART_DESTROY };

struct player {
        struct real_core *c;
        enum part part;
        unsigned times;
        int last;
};

static void *play(void *arg) {
        struct player *p = arg;
        for (unsigned i = 0; i < p->times; i++) {
                _cleanup_ws_view_ struct ws_view view = {0};
                _cleanup_error_ struct error err = ERROR_INIT;
                struct ws_started started;
                struct op op = op_timeout(180000);
                bool already;
                char out[64];
                switch (p->part) {
                case PART_TOGGLE:
                        p->last = ws_stop(p->c->core, "life.once", &op, &view, &already, &err);
                        REAL_CHECK(p->last == 0 && view.row.state == WS_STOPPED);
                        ws_view_clear(&view);
                        p->last = ws_start(p->c->core, "life.once", &op, &view, &started, &err);
                        REAL_CHECK(p->last == 0 && view.row.state == WS_RUNNING);
                        break;
                case PART_EXEC:
                        p->last = real_exec(p->c, "life.once", "true", out, sizeof(out), &err);
                        REAL_CHECK(p->last == 0 || err.code == ERROR_NOT_RUNNING ||
                                   err.code == ERROR_GUEST_UNREACHABLE);
                        break;
                case PART_DESTROY:
                        p->last = ws_destroy(p->c->core, "life.once", &op, &view, &err);
                        REAL_CHECK(p->last == 0 || err.code == ERROR_NOT_FOUND);
                        break;
                }
        }
        return NULL;
}

static void play_all(struct player *players, unsigned n) {
        pthread_t threads[16];
        REAL_CHECK(n <= ARRAY_SIZE(threads));
        for (unsigned i = 0; i < n; i++)
                REAL_CHECK(thread_start(&threads[i], "player", play, &players[i]) == 0);
        for (unsigned i = 0; i < n; i++)
                pthread_join(threads[i], NULL);
}

static void everybody_at_once(struct real_core *c, struct error *err) {
        struct player users[] = {
                {c, PART_TOGGLE, 2, 0}, {c, PART_TOGGLE, 2, 0}, {c, PART_TOGGLE, 2, 0},
                {c, PART_EXEC, 20, 0},  {c, PART_EXEC, 20, 0},
        };
        struct player enders[] = {
                {c, PART_DESTROY, 1, 0},
                {c, PART_DESTROY, 1, 0},
                {c, PART_DESTROY, 1, 0},
                {c, PART_DESTROY, 1, 0},
        };
        real_begin();
        play_all(users, ARRAY_SIZE(users));
        real_step("start, stop and exec from five threads", 0, err);
        real_begin();
        play_all(enders, ARRAY_SIZE(enders));
        real_step("destroy from four threads", 0, err);
        unsigned won = 0;
        for (size_t i = 0; i < ARRAY_SIZE(enders); i++)
                won += enders[i].last == 0;
        REAL_CHECK(won == 1);
}

static void *create_wanted(void *arg) {
        struct player *p = arg;
        _cleanup_ws_view_ struct ws_view view = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        struct ws_create_args args = {.name = "wanted"};
        struct ws_started started;
        struct op op = op_timeout(180000);
        p->last = ws_create(p->c->core, &args, p->c->owner, &op, &view, &started, &err);
        REAL_CHECK(p->last == 0 || (err.code == ERROR_CONFLICT && strstr(error_message(&err), "wanted")));
        return NULL;
}

static void one_name_for_fifty(struct real_core *c, struct error *err) {
        struct player players[50];
        pthread_t threads[50];
        unsigned won = 0;

        real_begin();
        for (unsigned i = 0; i < 50; i++) {
                players[i] = (struct player){.c = c};
                REAL_CHECK(thread_start(&threads[i], "player", create_wanted, &players[i]) == 0);
        }
        for (unsigned i = 0; i < 50; i++) {
                pthread_join(threads[i], NULL);
                won += players[i].last == 0;
        }
        real_step("create of one name from fifty threads", 0, err);
        REAL_CHECK(won == 1 && real_count(c, "vms") == 1 && real_count(c, "disks") == 1);
        destroy(c, "wanted", err);
}

static int compare_times(const void *a, const void *b) {
        int64_t x = *(const int64_t *) a, y = *(const int64_t *) b;
        return x < y ? -1 : x > y;
}

static void print_median(const char *what, int64_t *times, unsigned n) {
        qsort(times, n, sizeof(*times), compare_times);
        printf("%-8s median %6lld ms, least %6lld, most %6lld of %u\n", what, (long long) times[n / 2],
               (long long) times[0], (long long) times[n - 1], n);
}

static void many(struct real_core *c, unsigned n, struct error *err) {
        int64_t created[CREATES_MAX], destroyed[CREATES_MAX];
        char name[16], out[64];
        for (unsigned i = 0; i < n; i++) {
                snprintf(name, sizeof(name), "more-%u", i);
                created[i] = create(c, name, err);
        }
        real_close(c);
        real_begin();
        real_step("open and recover them all", real_open(c, err), err);
        for (unsigned i = 0; i < n; i++) {
                snprintf(name, sizeof(name), "more-%u", i);
                REAL_CHECK(real_exec(c, name, "true", out, sizeof(out), err) == 0);
                destroyed[i] = destroy(c, name, err);
        }
        print_median("create", created, n);
        print_median("destroy", destroyed, n);
}

int main(int argc, char **argv) {
        struct real_core c = {.image_dir = argc > 1 ? argv[1] : NULL, .state_dir = argc > 2 ? argv[2] : NULL};
        _cleanup_error_ struct error err = ERROR_INIT;
        uint64_t creates = 0;

        if (argc < 3 || argc > 4 || (argc == 4 && parse_u64(argv[3], &creates) < 0) || creates > CREATES_MAX) {
                fprintf(stderr, "usage: lifecycle-once IMAGE_DIR STATE_DIR [CREATES]\n");
                return 2;
        }
        real_begin();
        real_step("probe", real_probe(&c, &err), &err);
        printf("%s\n", c.platform.accel_reason);
        real_begin();
        real_step("open", real_open(&c, &err), &err);
        create(&c, "life.once", &err);
        check_identity(&c, &err);
        stop_and_start(&c, &err);
        restart_daemon(&c, &err);
        kill_qemu(&c, &err);
        cancel_create(&c, &err);
        everybody_at_once(&c, &err);
        real_check_nothing_left(&c);
        one_name_for_fifty(&c, &err);
        if (creates > 0)
                many(&c, (unsigned) creates, &err);
        real_check_nothing_left(&c);
        real_close(&c);
        platform_clear(&c.platform);
        printf("all well\n");
        return 0;
}
