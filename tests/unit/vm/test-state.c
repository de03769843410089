/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Saving a machine whose QEMU is played by the test, above all when something goes wrong: whatever it is, the machine
 * must be let go on. Its process is real (mapper.h), so that there is a memory to copy.
 */
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/json.h"
#include "base/thread.h"
#include "mapper.h"
#include "vm/memory.h"
#include "vm/state.h"

#define PATIENCE_MS 60000
#define SHORT_MS 300
#define MEMORY_MB 4u
#define SAID_MAX 4096u
#define HALT_LOOKS 3
#define TOUCHED_PAGE 7u
#define DEVICES_BYTES 24000u

static char dir[] = "/tmp/agentiso-state-XXXXXX";
static char memory[64], state[64], pages[64], said[64];

/* What QEMU does with one command instead of saying "{}". */
struct reaction {
        const char *command;
        const char *reply; /* a member of the reply: "\"return\": ..."; NULL: none comes */
        const char *event; /* sent after it; NULL: none */
        bool dies;
        size_t devices;    /* bytes of the devices that it writes first */
        bool changes_disk; /* from then on it has the overlay as its disk */
};

#define COMPLETED "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\r\n"
#define FAILED "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"failed\"}}\r\n"
#define CANCELLED "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"cancelled\"}}\r\n"
#define REFUSAL "\"error\": {\"class\": \"GenericError\", \"desc\": \"out of order\"}"
#define DISK "\"return\": \"disk\""
#define FILES(file)                                                                             \
        "\"return\": [{\"node-name\": \"disk\", \"file\": \"json:{...}\"}, "                    \
        "{\"node-name\": \"other-file\", \"file\": \"/base\"}, {\"node-name\": \"disk-file\", " \
        "\"file\": \"" file "\"}]"

#define RUNNING "\"return\": {\"status\": \"running\"}"

static const struct reaction changed = {.command = "query-named-block-nodes", .reply = FILES("/overlay.qcow2")};
static const struct reaction halted = {.command = "query-status", .reply = "\"return\": {\"status\": \"postmigrate\"}"};
static const struct reaction usual[] = {
        {.command = "xen-save-devices-state", .reply = "\"return\": {}", .devices = DEVICES_BYTES},
        {.command = "add-fd", .reply = "\"return\": {\"fdset-id\": 7, \"fd\": 9}"},
        {.command = "query-status", .reply = RUNNING},
        {.command = "query-migrate", .reply = "\"return\": {\"error-desc\": \"the devices are shy\"}"},
        {.command = "qom-get", .reply = DISK},
        {.command = "query-named-block-nodes", .reply = FILES("/disk.qcow2")},
        {.command = "migrate", .reply = "\"return\": {}", .event = COMPLETED},
        {.command = "migrate_cancel", .reply = "\"return\": {}", .event = CANCELLED},
};

struct played {
        struct mapper process;
        int listen, agent, console, fd;
        int passed; /* the descriptor that came last, until it is taken back; -1: none */
        pthread_t thread;
        bool changed;                   /* its disk is on the overlay */
        bool lively;                    /* touches the guest's memory as soon as it is done with the devices */
        const struct reaction *special; /* comes before the usual ones; NULL: none */
        int halts;                      /* looks at the status after a migration until it says so; -1: runs */
        struct vm *vm;

        pthread_mutex_t lock;
        struct buf said; /* the commands that decide, each with a blank behind it */
};

static const struct reaction *reaction_to(struct played *p, const char *command) {
        if (str_eq(command, "migrate") && !(p->special && str_eq(p->special->command, command)))
                p->halts = HALT_LOOKS;
        else if (str_eq(command, "cont"))
                p->halts = -1;
        else if (str_eq(command, "query-status") && p->halts >= 0 && p->halts-- == 0)
                return &halted;
        if (p->special && str_eq(p->special->command, command)) {
                p->changed |= p->special->changes_disk;
                return p->special;
        }
        if (p->changed && str_eq(command, changed.command))
                return &changed;
        for (size_t i = 0; i < ARRAY_SIZE(usual); i++)
                if (str_eq(usual[i].command, command))
                        return &usual[i];
        return NULL;
}

static void say(struct played *p, const char *text) {
        const struct op op = op_timeout(PATIENCE_MS);

        (void) write_full(p->fd, text, strlen(text), &op);
}

/* What QEMU's main loop does with the memory of a guest that stands still: its channel moves on. */
static void touch_memory(struct played *p) {
        _cleanup_free_ char *path = str_printf("/proc/%d/mem", (int) p->process.pid);
        _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
        const char text[] = "changed";

        CHECK(pwrite(fd, text, sizeof(text), (off_t) p->process.address + TOUCHED_PAGE * MAPPER_PAGE) > 0);
}

/* Writes the devices where it was told to, and stands in it until they are taken. */
static void write_devices(struct played *p, json_t *command, size_t n) {
        const char *file = json_string_value(json_object_get(json_object_get(command, "arguments"), "filename"));
        _cleanup_free_ char *data = calloc(1, n);

        CHECK_STR(file, "/proc/self/fd/9");
        (void) (write(p->passed, data, n) == (ssize_t) n); /* not when nobody wants it any more */
        if (p->lively)
                touch_memory(p);
}

static void answer(struct played *p, const char *line) {
        static const char *const decide[] = {"stop",    "xen-save-devices-state", "blockdev-snapshot", "cont",
                                             "migrate", "migrate_cancel",         "blockdev-del",      "blockdev-add"};
        _cleanup_json_ json_t *command = json_loads(line, 0, NULL);
        const json_t *arguments = json_object_get(command, "arguments");
        const char *name = json_string_value(json_object_get(command, "execute"));
        /* QEMU undoes a `cont` that comes before its migration thread is done. */
        if (str_eq(name, "cont"))
                CHECK(p->halts < 0);
        const struct reaction *r = reaction_to(p, name);

        {
                LOCK(&p->lock);
                for (size_t i = 0; i < ARRAY_SIZE(decide); i++)
                        if (str_eq(decide[i], name))
                                (void) buf_printf(&p->said, "%s ", name);
                if (str_eq(name, "block_resize"))
                        (void) buf_printf(&p->said, "resize %s %lld ",
                                          json_string_value(json_object_get(arguments, "node-name")),
                                          (long long) json_integer_value(json_object_get(arguments, "size")));
        }
        if (str_eq(name, "remove-fd"))
                p->passed = close_fd(p->passed);
        if (r && r->dies) {
                (void) kill(p->process.pid, SIGKILL);
                p->fd = close_fd(p->fd);
                return;
        }
        if (r && r->devices > 0)
                write_devices(p, command, r->devices);
        if (r && !r->reply)
                return;
        _cleanup_free_ char *reply = str_printf("{%s, \"id\": %lld}\r\n%s", r ? r->reply : "\"return\": {}",
                                                (long long) json_integer_value(json_object_get(command, "id")),
                                                r && r->event ? r->event : "");
        say(p, reply);
}

/* One byte of a command, and the descriptor that came with it. */
static bool read_byte(struct played *p, char *ret) {
        const struct op op = op_timeout(PATIENCE_MS);
        char control[CMSG_SPACE(sizeof(int))];
        struct iovec iov = {.iov_base = ret, .iov_len = 1};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};

        if (wait_fd(p->fd, POLLIN, &op) < 0 || recvmsg(p->fd, &m, MSG_CMSG_CLOEXEC) != 1)
                return false;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        if (c && c->cmsg_type == SCM_RIGHTS) {
                close_fd(p->passed);
                memcpy(&p->passed, CMSG_DATA(c), sizeof(p->passed));
        }
        return true;
}

static void *qmp_main(void *arg) {
        struct played *p = arg;
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_buf_ struct buf line = BUF_INIT(1 << 16);
        char c;

        if (wait_fd(p->listen, POLLIN, &op) < 0)
                return NULL;
        p->fd = accept4(p->listen, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        say(p, "{\"QMP\": {}}\r\n");
        while (p->fd >= 0 && read_byte(p, &c)) {
                buf_append(&line, &c, 1);
                if (c == '\n') {
                        answer(p, line.data);
                        buf_clear(&line);
                }
        }
        return NULL;
}

static int listen_at(const char *name) {
        _cleanup_free_ char *path = path_join(dir, name);

        return unix_listen(path, 4);
}

static void played_start(struct played *p, const struct reaction *special, enum vm_memory_kind kind) {
        static const char *const runs[] = {"7-3", NULL};
        const struct vm_spec spec = {
                .id = "t",
                .dir = dir,
                .memory_mb = MEMORY_MB,
                .memory = kind,
                .memory_path = kind == VM_MEMORY_ANONYMOUS ? NULL : memory,
        };
        struct proc_id id;

        *p = (struct played){.special = special, .halts = -1, .fd = -1, .passed = -1, .said = BUF_INIT(SAID_MAX)};
        pthread_mutex_init(&p->lock, NULL);
        REQUIRE(mkfifo(said, 0600) == 0);
        REQUIRE((p->listen = listen_at("qmp.sock")) >= 0 && (p->agent = listen_at("agent.sock")) >= 0 &&
                (p->console = listen_at("con.sock")) >= 0);
        REQUIRE(mapper_start(&p->process, memory, MEMORY_MB << 20, runs) >= 0 &&
                proc_id_read(p->process.pid, &id) >= 0);
        REQUIRE(thread_start(&p->thread, "qmp-played", qmp_main, p) >= 0);
        REQUIRE(vm_attach(&spec, &id, NULL, &p->vm, NULL) >= 0);
}

static void played_end(struct played *p) {
        if (p->vm)
                vm_kill(p->vm);
        vm_unref(p->vm);
        pthread_join(p->thread, NULL);
        close_fd(p->passed);
        close_fd(p->fd);
        close_fd(p->listen);
        close_fd(p->agent);
        close_fd(p->console);
        close_fd(p->process.hold_fd);
        buf_free(&p->said);
        pthread_mutex_destroy(&p->lock);
}

static void check_said(struct played *p, const char *want) {
        LOCK(&p->lock);

        CHECK_STR(p->said.data, want);
}

static bool exists(const char *path) {
        return access(path, F_OK) == 0;
}

/* Takes a snapshot with a disk under these conditions; the files are there afterwards, or all gone. */
static int take(struct played *p, int64_t ms, struct vm_snapshot_result *ret, struct error *err) {
        const struct op op = op_timeout(ms);
        const struct vm_snapshot_args args = {
                .state_path = state, .pages_path = pages, .overlay_path = "/overlay.qcow2"};

        int r = vm_snapshot(p->vm, &args, &op, ret, err);
        if (r < 0) {
                printf("# %s\n", error_message(err));
                CHECK(!exists(state) && !exists(pages));
        } else {
                CHECK(exists(state));
                CHECK_INT(exists(pages), ret->kind == VM_STATE_DEVICES);
        }
        unlink(state);
        unlink(pages);
        return r;
}

static void test_snapshot(void) {
        struct vm_snapshot_result result = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct played p;

        played_start(&p, NULL, VM_MEMORY_PRIVATE);
        CHECK_INT(take(&p, PATIENCE_MS, &result, &e), 0);
        CHECK_INT(result.kind, VM_STATE_DEVICES);
        CHECK_INT(result.pages_bytes, (1 + 3) * MAPPER_PAGE);
        CHECK_INT(result.state_bytes, DEVICES_BYTES);
        CHECK(result.pause_ns > 0 && result.switched);
        check_said(&p, "blockdev-add stop xen-save-devices-state blockdev-snapshot cont ");
        played_end(&p);
}

/* The whole state is saved where the short way does not work, and the machine goes on in between. */
static void test_the_other_way(void) {
        static const struct reaction refuses[] = {
                {.command = "xen-save-devices-state", .reply = REFUSAL},
                {.command = "xen-save-devices-state",
                 .reply = "\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no Xen\"}"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(refuses); i++) {
                struct vm_snapshot_result result = {0};
                _cleanup_error_ struct error e = ERROR_INIT;
                struct played p;

                played_start(&p, &refuses[i], VM_MEMORY_PRIVATE);
                CHECK_INT(take(&p, PATIENCE_MS, &result, &e), 0);
                CHECK_INT(result.kind, VM_STATE_FULL);
                check_said(&p, "blockdev-add stop xen-save-devices-state cont blockdev-del "
                               "blockdev-add stop blockdev-snapshot migrate cont ");
                played_end(&p);
        }
}

/* QEMU's main loop runs on while the guest stands still, and what it does to the guest's memory after the devices were
 * saved must not be in the pages. */
static void test_devices_and_pages_are_of_one_instant(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        const struct vm_snapshot_args args = {.state_path = state, .pages_path = pages};
        struct vm_snapshot_result result = {0};
        struct played p;
        uint8_t want[MAPPER_PAGE];
        _cleanup_free_ char *got = NULL;
        size_t len = 0;

        played_start(&p, NULL, VM_MEMORY_PRIVATE);
        p.lively = true;
        CHECK_INT(vm_snapshot(p.vm, &args, &op, &result, NULL), 0);
        CHECK(!result.switched);
        REQUIRE(file_read_all(pages, 1 << 20, &got, &len) >= 0 && len == result.pages_bytes);
        memset(want, mapper_byte(TOUCHED_PAGE), sizeof(want));
        CHECK(memcmp(got + MAPPER_PAGE, want, sizeof(want)) == 0);
        unlink(state);
        unlink(pages);
        played_end(&p);
}

static void test_a_qemu_that_does_not_wait(void) {
        static const struct reaction hasty = {
                .command = "xen-save-devices-state", .reply = "\"return\": {}", .devices = 100};
        struct vm_snapshot_result result = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct played p;

        played_start(&p, &hasty, VM_MEMORY_PRIVATE);
        CHECK_INT(take(&p, PATIENCE_MS, &result, &e), 0);
        CHECK_INT(result.kind, VM_STATE_FULL);
        played_end(&p);
}

/* --- the disk alone --- */

static int take_disk(struct played *p, int64_t ms, struct vm_snapshot_result *ret, struct error *err) {
        const struct op op = op_timeout(ms);
        const struct vm_snapshot_args args = {.overlay_path = "/overlay.qcow2"};

        memset(ret, 0x55, sizeof(*ret));
        return vm_snapshot(p->vm, &args, &op, ret, err);
}

static void test_disk_alone(void) {
        struct vm_snapshot_result result;
        struct played p;

        played_start(&p, NULL, VM_MEMORY_ANONYMOUS);
        CHECK_INT(take_disk(&p, PATIENCE_MS, &result, NULL), 0);
        CHECK_INT(result.kind, VM_STATE_NONE);
        CHECK(result.switched && result.pause_ns == 0 && result.state_bytes == 0);
        check_said(&p, "blockdev-add blockdev-snapshot "); /* and nobody had to stand still */
        played_end(&p);
}

/* Whatever QEMU says or does not say, the caller learns which file the disk is on. */
static void test_disk_that_did_not_change_or_did(void) {
        static const struct reaction refuses = {.command = "blockdev-snapshot", .reply = REFUSAL},
                                     silent = {.command = "blockdev-snapshot"},
                                     silent_but_done = {.command = "blockdev-snapshot", .changes_disk = true},
                                     dies = {.command = "blockdev-snapshot", .dies = true},
                                     no_file = {.command = "blockdev-add", .reply = REFUSAL};
        static const struct {
                const struct reaction *special;
                enum error_code code;
                bool switched;
                const char *said;
        } cases[] = {
                {&no_file, ERROR_INTERNAL, false, "blockdev-add "},
                {&refuses, ERROR_INTERNAL, false, "blockdev-add blockdev-snapshot blockdev-del "},
                {&silent, ERROR_TIMEOUT, false, "blockdev-add blockdev-snapshot blockdev-del "},
                {&silent_but_done, ERROR_TIMEOUT, true, "blockdev-add blockdev-snapshot "},
                /* Nobody can tell; an overlay without content is as good as what is beneath it. */
                {&dies, ERROR_NOT_RUNNING, true, "blockdev-add blockdev-snapshot "},
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct vm_snapshot_result result;
                _cleanup_error_ struct error e = ERROR_INIT;
                struct played p;

                played_start(&p, cases[i].special, VM_MEMORY_PRIVATE);
                CHECK(take_disk(&p, cases[i].code == ERROR_TIMEOUT ? SHORT_MS : PATIENCE_MS, &result, &e) < 0);
                CHECK_INT(e.code, cases[i].code);
                CHECK_INT(result.switched, cases[i].switched);
                check_said(&p, cases[i].said);
                played_end(&p);
        }
}

static void test_snapshot_of_nothing(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        const struct vm_snapshot_args nothing = {0}, no_state = {.pages_path = pages, .overlay_path = "/overlay.qcow2"};
        struct vm_snapshot_result result;
        struct played p;

        played_start(&p, NULL, VM_MEMORY_PRIVATE);
        CHECK_INT(vm_snapshot(p.vm, &nothing, &op, &result, NULL), -EINVAL);
        CHECK_INT(vm_snapshot(p.vm, &no_state, &op, &result, NULL), -EINVAL);
        check_said(&p, NULL);
        played_end(&p);
}

static void test_disk_resize(void) {
        static const struct reaction refuses = {.command = "block_resize", .reply = REFUSAL};
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        struct played p;

        played_start(&p, NULL, VM_MEMORY_PRIVATE);
        CHECK_INT(vm_disk_resize(p.vm, 10ull << 30, &op, NULL), 0);
        check_said(&p, "resize disk 10737418240 ");
        p.special = &refuses;
        CHECK(vm_disk_resize(p.vm, 10ull << 30, &op, &e) < 0);
        CHECK_INT(e.code, ERROR_INTERNAL);
        CHECK_INT(vm_disk_resize(p.vm, UINT64_MAX, &op, NULL), -EINVAL);
        played_end(&p);
}

static void test_anonymous_memory(void) {
        struct vm_snapshot_result result = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct played p;

        played_start(&p, NULL, VM_MEMORY_ANONYMOUS);
        CHECK_INT(take(&p, PATIENCE_MS, &result, &e), 0);
        CHECK_INT(result.kind, VM_STATE_FULL);
        CHECK_INT(result.pages_bytes, 0);
        check_said(&p, "blockdev-add stop blockdev-snapshot migrate cont ");
        played_end(&p);
}

/* Each failure: what QEMU does, and how it goes on. */
static void test_the_machine_always_goes_on(void) {
        static const struct {
                struct reaction special;
                enum vm_memory_kind memory;
                enum error_code code;
                const char *said;
        } cases[] = {
                {{.command = "blockdev-add", .reply = REFUSAL}, VM_MEMORY_PRIVATE, ERROR_INTERNAL, "blockdev-add "},
                {{.command = "stop", .reply = REFUSAL},
                 VM_MEMORY_PRIVATE,
                 ERROR_INTERNAL,
                 "blockdev-add stop cont blockdev-del "},
                {{.command = "stop"}, VM_MEMORY_PRIVATE, ERROR_TIMEOUT, "blockdev-add stop cont blockdev-del "},
                {{.command = "xen-save-devices-state"},
                 VM_MEMORY_PRIVATE,
                 ERROR_TIMEOUT,
                 "blockdev-add stop xen-save-devices-state cont blockdev-del "},
                {{.command = "blockdev-snapshot", .reply = REFUSAL},
                 VM_MEMORY_PRIVATE,
                 ERROR_INTERNAL,
                 "blockdev-add stop xen-save-devices-state blockdev-snapshot cont blockdev-del "},
                {{.command = "blockdev-snapshot"},
                 VM_MEMORY_PRIVATE,
                 ERROR_TIMEOUT,
                 "blockdev-add stop xen-save-devices-state blockdev-snapshot cont blockdev-del "},
                {{.command = "migrate", .reply = REFUSAL},
                 VM_MEMORY_ANONYMOUS,
                 ERROR_INTERNAL,
                 "blockdev-add stop blockdev-snapshot migrate cont "},
                {{.command = "migrate", .reply = "\"return\": {}", .event = FAILED},
                 VM_MEMORY_ANONYMOUS,
                 ERROR_INTERNAL,
                 "blockdev-add stop blockdev-snapshot migrate cont "},
                {{.command = "migrate", .reply = "\"return\": {}"},
                 VM_MEMORY_ANONYMOUS,
                 ERROR_TIMEOUT,
                 "blockdev-add stop blockdev-snapshot migrate migrate_cancel cont "},
                {{.command = "migrate"},
                 VM_MEMORY_ANONYMOUS,
                 ERROR_TIMEOUT,
                 "blockdev-add stop blockdev-snapshot migrate migrate_cancel cont "},
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct vm_snapshot_result result = {0};
                _cleanup_error_ struct error e = ERROR_INIT;
                struct played p;

                played_start(&p, &cases[i].special, cases[i].memory);
                CHECK(take(&p, cases[i].code == ERROR_TIMEOUT ? SHORT_MS : PATIENCE_MS, &result, &e) < 0);
                CHECK_INT(e.code, cases[i].code);
                CHECK_INT(result.switched, strstr(cases[i].said, "blockdev-snapshot migrate") != NULL);
                CHECK(!strstr(error_message(&e), "stand still"));
                check_said(&p, cases[i].said);
                /* It can be saved again: whatever was in the way is gone. */
                p.special = NULL;
                error_clear(&e);
                CHECK_INT(take(&p, PATIENCE_MS, &result, &e), 0);
                played_end(&p);
        }
}

static void test_a_failed_migration_has_qemus_words(void) {
        static const struct reaction fails = {.command = "migrate", .reply = "\"return\": {}", .event = FAILED};
        struct vm_snapshot_result result = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct played p;

        played_start(&p, &fails, VM_MEMORY_ANONYMOUS);
        CHECK(take(&p, PATIENCE_MS, &result, &e) < 0);
        CHECK(strstr(error_message(&e), "the devices are shy"));
        played_end(&p);
}

static void test_a_machine_that_cannot_go_on_is_named(void) {
        static const struct reaction stuck = {.command = "cont", .reply = REFUSAL};
        struct vm_snapshot_result result = {0};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct played p;

        played_start(&p, &stuck, VM_MEMORY_PRIVATE);
        CHECK(take(&p, PATIENCE_MS, &result, &e) < 0);
        CHECK(strstr(error_message(&e), "may stand still"));
        CHECK(strstr(error_message(&e), "out of order"));
        CHECK(e.hint != NULL);
        played_end(&p);
}

static void test_a_qemu_that_ends_in_the_middle(void) {
        static const struct reaction dies[] = {
                {.command = "stop", .dies = true},
                {.command = "xen-save-devices-state", .dies = true},
                {.command = "cont", .dies = true},
        };

        for (size_t i = 0; i < ARRAY_SIZE(dies); i++) {
                struct vm_snapshot_result result = {0};
                _cleanup_error_ struct error e = ERROR_INIT;
                struct played p;

                played_start(&p, &dies[i], VM_MEMORY_PRIVATE);
                CHECK(take(&p, PATIENCE_MS, &result, &e) < 0);
                CHECK_INT(e.code, ERROR_NOT_RUNNING);
                CHECK(strstr(error_message(&e), "has ended while its state was saved"));
                CHECK(vm_has_exited(p.vm));
                played_end(&p);
        }
}

struct taking {
        struct played *p;
        struct cancel *cancel;
        pthread_t thread;
        int r;
};

static void *take_late(void *arg) {
        struct taking *t = arg;
        const struct op op = {.deadline = deadline_in_ms(PATIENCE_MS), .cancel = t->cancel};
        const struct vm_snapshot_args args = {.state_path = state, .pages_path = pages};
        struct vm_snapshot_result result;

        t->r = vm_snapshot(t->p->vm, &args, &op, &result, NULL);
        return NULL;
}

static void test_one_at_a_time(void) {
        static const struct reaction silent = {.command = "xen-save-devices-state"};
        const struct op op = op_timeout(PATIENCE_MS);
        const struct vm_snapshot_args args = {.state_path = "/nowhere", .pages_path = "/nowhere"};
        struct vm_snapshot_result result;
        _cleanup_error_ struct error e = ERROR_INIT;
        struct played p;
        struct taking first = {.p = &p, .cancel = cancel_new()};
        bool there = false;

        played_start(&p, &silent, VM_MEMORY_PRIVATE);
        REQUIRE(thread_start(&first.thread, "first", take_late, &first) >= 0);
        while (!there && op_check(&op) >= 0) {
                LOCK(&p.lock);
                there = p.said.len > 0 && strstr(p.said.data, "xen-save");
        }
        CHECK(vm_snapshot(p.vm, &args, &op, &result, &e) < 0);
        CHECK_INT(e.code, ERROR_CONFLICT);
        cancel_fire(first.cancel);
        pthread_join(first.thread, NULL);
        CHECK_INT(first.r, -ECANCELED);
        check_said(&p, "stop xen-save-devices-state cont ");
        cancel_unref(first.cancel);
        played_end(&p);
}

/* How the machine stood when its daemon was lost, and what the next one does about it. */
static void test_taken_up_again(void) {
        static const struct {
                const char *status, *said;
        } cases[] = {
                {"running", NULL},           {"paused", "cont "}, {"postmigrate", "cont "}, {"save-vm", "cont "},
                {"finish-migrate", "cont "}, {"io-error", NULL},  {"internal-error", NULL},
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                _cleanup_free_ char *reply = str_printf("\"return\": {\"status\": \"%s\"}", cases[i].status);
                const struct reaction status = {.command = "query-status", .reply = reply};
                struct played p;

                played_start(&p, &status, VM_MEMORY_PRIVATE);
                check_said(&p, cases[i].said);
                played_end(&p);
        }
}

static void test_one_without_a_guest_is_ended(void) {
        static const struct reaction loading = {.command = "query-status",
                                                .reply = "\"return\": {\"status\": \"inmigrate\"}"};
        const struct op op = op_timeout(PATIENCE_MS);
        static const char *const runs[] = {NULL};
        const struct vm_spec spec = {.id = "t", .dir = dir};
        struct played p = {.special = &loading, .halts = -1, .fd = -1, .passed = -1, .said = BUF_INIT(SAID_MAX)};
        _cleanup_error_ struct error e = ERROR_INIT;
        struct process_result how;
        struct proc_id id;

        pthread_mutex_init(&p.lock, NULL);
        REQUIRE(mkfifo(said, 0600) == 0);
        REQUIRE((p.listen = listen_at("qmp.sock")) >= 0 && (p.agent = listen_at("agent.sock")) >= 0 &&
                (p.console = listen_at("con.sock")) >= 0);
        REQUIRE(mapper_start(&p.process, memory, MEMORY_MB << 20, runs) >= 0 && proc_id_read(p.process.pid, &id) >= 0);
        REQUIRE(thread_start(&p.thread, "qmp-played", qmp_main, &p) >= 0);
        CHECK_INT(vm_attach(&spec, &id, NULL, &p.vm, &e), -ESRCH);
        CHECK_INT(e.code, ERROR_NOT_RUNNING);
        CHECK(process_wait(p.process.pid, &op, &how) < 0); /* it is dead, and was taken leave of */
        played_end(&p);
}

static void test_disk_file(void) {
        static const struct reaction none = {.command = "qom-get", .reply = "\"return\": \"\""},
                                     nameless = {.command = "query-named-block-nodes", .reply = "\"return\": []"};
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        _cleanup_free_ char *file = NULL;
        struct played p;

        played_start(&p, NULL, VM_MEMORY_PRIVATE);
        CHECK_INT(vm_disk_file(p.vm, &op, &file, NULL), 0);
        CHECK_STR(file, "/disk.qcow2");
        p.special = &none;
        CHECK(vm_disk_file(p.vm, &op, &file, &e) < 0);
        CHECK_INT(e.code, ERROR_NOT_FOUND);
        p.special = &nameless;
        CHECK(vm_disk_file(p.vm, &op, &file, &e) < 0);
        CHECK_INT(e.code, ERROR_INTERNAL);
        played_end(&p);
}

static void test_template(void) {
        const struct op op = op_timeout(PATIENCE_MS);
        static const struct reaction fails = {.command = "migrate", .reply = "\"return\": {}", .event = FAILED};
        struct played p;

        played_start(&p, NULL, VM_MEMORY_SHARED);
        CHECK_INT(vm_save_template(p.vm, state, &op, NULL), 0);
        CHECK(exists(state));
        check_said(&p, "stop migrate "); /* and never goes on: its memory must not change */
        /* A file that is there is somebody's. */
        CHECK_INT(vm_save_template(p.vm, state, &op, NULL), -EEXIST);
        CHECK(exists(state));
        unlink(state);
        played_end(&p);

        played_start(&p, &fails, VM_MEMORY_SHARED);
        CHECK(vm_save_template(p.vm, state, &op, NULL) < 0);
        CHECK(!exists(state));
        check_said(&p, "stop migrate cont ");
        played_end(&p);

        played_start(&p, NULL, VM_MEMORY_PRIVATE);
        CHECK(vm_save_template(p.vm, state, &op, NULL) < 0);
        check_said(&p, NULL);
        played_end(&p);
}

int main(int argc, char **argv) {
        if (argc > 1)
                return mapper_main(argc, argv);
        if (!mkdtemp(dir))
                return 1;
        snprintf(memory, sizeof(memory), "%s/memory", dir);
        snprintf(state, sizeof(state), "%s/state", dir);
        snprintf(pages, sizeof(pages), "%s/pages", dir);
        snprintf(said, sizeof(said), "%s/stderr.fifo", dir);
        _cleanup_close_ int fd = open(memory, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 || ftruncate(fd, MEMORY_MB << 20) < 0)
                return 1;
        RUN(test_snapshot);
        RUN(test_devices_and_pages_are_of_one_instant);
        RUN(test_a_qemu_that_does_not_wait);
        RUN(test_disk_alone);
        RUN(test_disk_that_did_not_change_or_did);
        RUN(test_snapshot_of_nothing);
        RUN(test_disk_resize);
        RUN(test_the_other_way);
        RUN(test_anonymous_memory);
        RUN(test_the_machine_always_goes_on);
        RUN(test_a_failed_migration_has_qemus_words);
        RUN(test_a_machine_that_cannot_go_on_is_named);
        RUN(test_a_qemu_that_ends_in_the_middle);
        RUN(test_one_at_a_time);
        RUN(test_taken_up_again);
        RUN(test_one_without_a_guest_is_ended);
        RUN(test_disk_file);
        RUN(test_template);
        rm_rf(dir);
        return tap_done();
}
