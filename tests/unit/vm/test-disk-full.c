/* SPDX-License-Identifier: Apache-2.0 */
/* A VM that is taken up again, whose QEMU and guest the test plays: what is said while nobody listened, and a host
 * whose disk is full. */
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/io.h"
#include "base/json.h"
#include "base/process.h"
#include "base/str.h"
#include "base/thread.h"
#include "guest-side.h"
#include "tap.h"
#include "vm/vm.h"

#define PATIENCE_MS 60000
#define FULL_DISK "/proc/version" /* on a file system that never has room */
#define FULL_EVENT                                                                            \
        "{\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"action\": \"stop\", \"nospace\": true," \
        " \"reason\": \"No space left on device\"}}\r\n"

static char dir[] = "/tmp/agentiso-vm-test-XXXXXX";

/* One VM: a process that only exists, its sockets, and who answers on them. */
struct played {
        pid_t pid;
        int qmp_listen, agent_listen, console_listen, fifo, qmp_fd;
        pthread_t qmp, agent;
        struct guest_side *guest;
        const char *status; /* that QEMU is in */
        atomic_int conts;
        struct vm *vm;
};

static void say(struct played *p, const char *text) {
        const struct op op = op_timeout(PATIENCE_MS);

        CHECK_INT(write_full(p->qmp_fd, text, strlen(text), &op), 0);
}

static void answer(struct played *p, const char *line) {
        _cleanup_json_ json_t *command = json_loads(line, 0, NULL);
        _cleanup_free_ char *status = NULL, *reply = NULL;
        const char *name = json_string_value(json_object_get(command, "execute"));

        p->conts += str_eq(name, "cont");
        status = str_eq(name, "query-status") ? str_printf("{\"status\": \"%s\"}", p->status) : strdup("{}");
        reply = str_printf("{\"return\": %s, \"id\": %lld}\r\n", status,
                           (long long) json_integer_value(json_object_get(command, "id")));
        say(p, reply);
}

static int take_client(int listener) {
        const struct op op = op_timeout(PATIENCE_MS);

        return wait_fd(listener, POLLIN, &op) < 0 ? -1 : accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
}

static void *qmp_main(void *arg) {
        struct played *p = arg;
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_buf_ struct buf line = BUF_INIT(1 << 16);
        char c;

        p->qmp_fd = take_client(p->qmp_listen);
        say(p, "{\"QMP\": {}}\r\n");
        while (read_full(p->qmp_fd, &c, 1, &op) >= 0) {
                buf_append(&line, &c, 1);
                if (c == '\n') {
                        answer(p, line.data);
                        buf_clear(&line);
                }
        }
        return NULL;
}

static void mute(struct mux_stream *s, const json_t *request) {
        const struct op op = op_timeout(PATIENCE_MS);
        struct mux_event e = MUX_EVENT_INIT;

        do
                if (mux_recv(s, &op, &e) < 0)
                        break;
        while (e.kind != MUX_CLOSED && e.kind != MUX_LOST);
        mux_event_clear(&e);
}

static void *agent_main(void *arg) {
        struct played *p = arg;
        int fd = take_client(p->agent_listen);

        if (fd >= 0)
                p->guest = guest_side_start(fd, mute);
        return NULL;
}

static int listen_at(const char *name) {
        _cleanup_free_ char *path = path_join(dir, name);

        return unix_listen(path, 4);
}

static void played_start(struct played *p, const char *status, const char *disk) {
        char *argv[] = {(char *) "sleep", (char *) "100", NULL};
        const struct spawn spawn = {.argv = argv};
        const struct vm_spec spec = {.id = "t", .dir = dir, .disk_path = disk};
        struct proc_id id;
        _cleanup_free_ char *fifo = path_join(dir, "stderr.fifo");

        *p = (struct played){.status = status, .qmp_fd = -1};
        REQUIRE(mkfifo(fifo, 0600) == 0 && (p->fifo = open(fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC)) >= 0);
        REQUIRE((p->qmp_listen = listen_at("qmp.sock")) >= 0 && (p->agent_listen = listen_at("agent.sock")) >= 0 &&
                (p->console_listen = listen_at("con.sock")) >= 0);
        REQUIRE(process_spawn(&spawn, &p->pid, NULL) == 0 && proc_id_read(p->pid, &id) == 0);
        REQUIRE(thread_start(&p->qmp, "qmp-played", qmp_main, p) == 0 &&
                thread_start(&p->agent, "guest-played", agent_main, p) == 0);
        REQUIRE(vm_attach(&spec, &id, NULL, &p->vm, NULL) == 0);
}

static void played_end(struct played *p) {
        int *const fds[] = {&p->qmp_listen, &p->agent_listen, &p->console_listen, &p->fifo};

        shutdown(p->agent_listen, SHUT_RDWR);
        pthread_join(p->agent, NULL);
        vm_kill(p->vm);
        vm_unref(p->vm);
        if (p->guest)
                guest_side_stop(p->guest);
        pthread_join(p->qmp, NULL);
        close_fd(p->qmp_fd);
        for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
                close_fd(*fds[i]);
}

static int call(struct agent *agent, int64_t ms, struct error *err) {
        const struct agent_exec_args args = {.command = "true", .max_output = 100};
        struct agent_exec_result result = {0};
        const struct op op = op_timeout(ms);

        return agent_exec(agent, &args, &op, &result, err);
}

static void test_what_qemu_said_is_heard(void) {
        struct played p;
        _cleanup_buf_ struct buf out = BUF_INIT(1 << 16);

        played_start(&p, "running", NULL);
        CHECK_INT(write(p.fifo, "a complaint\n", 12), 12);
        for (int i = 0; i < 500 && vm_stderr_tail(dir, 1, &out) >= 0 && out.len == 0; i++)
                usleep(10000);
        CHECK_STR(out.data, "a complaint\n");
        played_end(&p);
}

static void test_a_vm_that_stood_still_before(void) {
        struct played p;
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error e = ERROR_INIT;
        struct agent *agent = NULL;

        played_start(&p, "io-error", FULL_DISK);
        CHECK_INT(vm_agent(p.vm, &op, &agent, &e), -ENOSPC);
        CHECK_INT(e.code, ERROR_NO_SPACE);
        CHECK(e.hint && strstr(e.hint, "64 MiB"));
        CHECK_INT(p.conts, 0);
        played_end(&p);
}

static void test_it_goes_on_when_there_is_room(void) {
        struct played p;
        const struct op op = op_timeout(PATIENCE_MS);
        struct agent *agent = NULL;

        played_start(&p, "io-error", dir);
        CHECK_INT(vm_agent(p.vm, &op, &agent, NULL), 0);
        CHECK_INT(p.conts, 1);
        agent_unref(agent);

        /* By itself, too. */
        say(&p, FULL_EVENT);
        for (int i = 0; i < 1000 && p.conts < 2; i++)
                usleep(10000);
        CHECK_INT(p.conts, 2);
        played_end(&p);
}

static void test_a_call_under_way_says_why_it_failed(void) {
        struct played p;
        const struct op op = op_timeout(PATIENCE_MS);
        _cleanup_error_ struct error before = ERROR_INIT, full = ERROR_INIT;
        struct agent *agent = NULL;

        played_start(&p, "running", FULL_DISK);
        REQUIRE(vm_agent(p.vm, &op, &agent, NULL) == 0);
        CHECK_INT(call(agent, 50, &before), -ETIMEDOUT);
        CHECK_INT(before.code, ERROR_TIMEOUT);
        say(&p, FULL_EVENT);
        CHECK_INT(call(agent, 500, &full), -ENOSPC);
        CHECK_INT(full.code, ERROR_NO_SPACE);
        CHECK(strstr(error_message(&full), "disk of the host is full"));
        agent_unref(agent);
        played_end(&p);
}

int main(void) {
        if (!mkdtemp(dir))
                return 1;
        RUN(test_what_qemu_said_is_heard);
        RUN(test_a_vm_that_stood_still_before);
        RUN(test_it_goes_on_when_there_is_room);
        RUN(test_a_call_under_way_says_why_it_failed);
        rm_rf(dir);
        return tap_done();
}
