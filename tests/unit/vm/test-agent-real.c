/* SPDX-License-Identifier: Apache-2.0 */
/* The host's agent client against the guest's real request handlers. */
#include <signal.h>
#include <sys/socket.h>

#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "guest-real.h"
#include "tap.h"
#include "vm/agent.h"

#define PATIENCE_MS 60000

static struct agent *agent;
static char folder[] = "/tmp/agentiso-vm-test-XXXXXX";

static const struct op *patience(void) {
        static _Thread_local struct op op;

        op = op_timeout(PATIENCE_MS);
        return &op;
}

static const char *in_folder(const char *name) {
        static char path[200];

        snprintf(path, sizeof(path), "%s/%s", folder, name);
        return path;
}

static void test_real_exec(void) {
        _cleanup_json_ json_t *env = json_pack("{s:s}", "GREETING", "hi there");
        const struct agent_exec_args args = {
                .command = "echo \"$GREETING\"; pwd; cat >&2; exit 4",
                .workdir = "/tmp",
                .env = env,
                .stdin_data = "input",
                .stdin_len = 5,
                .timeout_ms = 30000,
                .max_output = 1000,
        };
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        _cleanup_error_ struct error e = ERROR_INIT;

        if (agent_exec(agent, &args, patience(), &r, &e) < 0)
                printf("# %s\n", error_message(&e));
        CHECK_STR(r.out.head.data, "hi there\n/tmp\n");
        CHECK_STR(r.err.head.data, "input");
        CHECK_INT(r.exit_code, 4);
}

static void test_real_timeout(void) {
        const struct agent_exec_args args = {.command = "echo part; sleep 60", .timeout_ms = 300, .max_output = 100};
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        CHECK_INT(agent_exec(agent, &args, patience(), &r, NULL), 0);
        CHECK(r.timed_out);
        CHECK_STR(r.out.head.data, "part\n");
}

static void test_real_big_input(void) {
        const size_t n = 3u << 20;
        _cleanup_free_ char *data = calloc(1, n);
        const struct agent_exec_args args = {
                .command = "cat", .stdin_data = data, .stdin_len = n, .timeout_ms = 30000, .max_output = 10};
        _cleanup_exec_result_ struct agent_exec_result r = {0};

        CHECK_INT(agent_exec(agent, &args, patience(), &r, NULL), 0);
        CHECK_INT(r.out.total, n);
        CHECK_INT(r.out.head.len + r.out.tail.len, 10);
        CHECK_INT(r.out.cut, n - 10);
}

static void test_real_yield(void) {
        const struct agent_exec_args args = {.command = "echo begun; sleep 60", .yield_ms = 300, .max_output = 100};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        uint64_t processes = 0;
        bool running = false;

        REQUIRE(agent_exec(agent, &args, patience(), &r, NULL) == 0);
        CHECK(r.job_id > 0);
        CHECK_STR(r.out.head.data, "begun\n");
        CHECK_INT(agent_job_kill(agent, r.job_id, SIGKILL, patience(), &running, &processes, NULL), 0);
        CHECK(processes >= 1);
}

static void test_real_job(void) {
        const struct agent_exec_args args = {.command = "cat; exit 3"};
        _cleanup_(agent_job_clear) struct agent_job job = {0};
        _cleanup_json_ json_t *list = NULL;
        uint64_t id = 0, written = 0, total = 0;

        REQUIRE(agent_job_start(agent, &args, NULL, patience(), &id, NULL) == 0);
        CHECK_INT(agent_job_write(agent, id, "text", 4, true, 10000, patience(), &written, NULL), 0);
        CHECK_INT(written, 4);
        struct agent_job_read_args read = {
                .job_id = id, .wait_ms = 10000, .out_offset = -1, .err_offset = -1, .max_output = 100};
        for (job.running = true; job.running;) {
                agent_job_clear(&job);
                REQUIRE(agent_job_read(agent, &read, patience(), &job, NULL) == 0);
                read.out_offset = 4; /* so that the next one waits for the end */
        }
        CHECK_INT(job.result.exit_code, 3);
        CHECK_INT(job.result.out.total, 4);
        agent_job_clear(&job);
        read.out_offset = 2;
        REQUIRE(agent_job_read(agent, &read, patience(), &job, NULL) == 0);
        CHECK_STR(job.result.out.head.data, "xt");
        CHECK_INT(agent_job_list(agent, 300, patience(), &list, &total, NULL), 0);
        const json_t *last = json_array_get(list, json_array_size(list) - 1);
        CHECK_INT(json_integer_value(json_object_get(last, "job_id")), id);
        CHECK_STR(json_string_value(json_object_get(last, "command")), "cat; exit 3");
        CHECK_INT(json_integer_value(json_object_get(last, "exit_code")), 3);
}

static void test_real_env(void) {
        _cleanup_json_ json_t *vars = json_pack("{s:s}", "TEST_SECRET", "a b"),
                              *unset = json_pack("[s]", "TEST_SECRET");
        _cleanup_json_ json_t *nothing = json_object();
        const struct agent_exec_args args = {.command = "echo \"$TEST_SECRET\"", .max_output = 100};
        _cleanup_exec_result_ struct agent_exec_result r = {0};
        uint64_t total = 0;

        REQUIRE(agent_set_env(agent, vars, NULL, patience(), &total, NULL) == 0);
        CHECK_INT(total, 1);
        CHECK_INT(agent_exec(agent, &args, patience(), &r, NULL), 0);
        CHECK_STR(r.out.head.data, "a b\n");
        CHECK_INT(agent_set_env(agent, nothing, unset, patience(), &total, NULL), 0);
        CHECK_INT(total, 0);
}

static void test_real_files(void) {
        _cleanup_buf_ struct buf out = BUF_INIT(1000);
        _cleanup_json_ json_t *list = NULL;
        _cleanup_error_ struct error e = ERROR_INIT;
        struct agent_read_result got = {0};
        uint64_t written = 0, replaced = 0, other = 0;
        bool truncated = true;

        CHECK_INT(agent_file_write(agent, in_folder("sub/f"), "one\ntwo\ntwo\n", 12, "0600", false, patience(),
                                   &written, NULL),
                  0);
        CHECK_INT(written, 12);
        CHECK_INT(agent_file_edit(agent, in_folder("sub/f"), "two", 3, "2", 1, false, patience(), &replaced, &other,
                                  NULL),
                  0);
        CHECK(replaced == 1 && other == 1);
        struct agent_read_args args = {.path = in_folder("sub/f"), .limit = 100, .start_line = 2, .line_count = 1};
        CHECK_INT(agent_file_read(agent, &args, patience(), &out, &got, &e), 0);
        CHECK_STR(out.data, "2\n");
        CHECK(got.truncated && got.size == 10);
        args.limit = 5;
        args.start_line = 1;
        args.line_count = 0;
        buf_clear(&out);
        CHECK_INT(agent_file_read(agent, &args, patience(), &out, &got, &e), 0);
        CHECK_STR(out.data, "one\n2");
        CHECK(got.truncated && got.bytes == 5);
        CHECK_INT(agent_file_list(agent, folder, true, 10, patience(), &list, &truncated, &e), 0);
        CHECK_INT(json_array_size(list), 2);
        CHECK(!truncated);
        const json_t *f = json_array_get(list, 1);
        CHECK_STR(json_string_value(json_object_get(f, "name")), "sub/f");
        CHECK_STR(json_string_value(json_object_get(f, "permissions")), "0600");
        CHECK_INT(json_string_length(json_object_get(f, "modified")), TIME_TEXT_LEN);

        args.path = in_folder("absent");
        CHECK_INT(agent_file_read(agent, &args, patience(), &out, &got, &e), -ENOENT);
        CHECK_INT(e.code, ERROR_NOT_FOUND);
        CHECK(agent_file_write(agent, "/proc/nothing", "x", 1, NULL, false, patience(), &written, &e) < 0);
}

/* Here the agent is not the first process of its machine: it must not freeze anything of that. */
static void test_real_freeze_is_refused(void) {
        _cleanup_error_ struct error e = ERROR_INIT;
        bool frozen = true;

        CHECK(agent_freeze(agent, 1000, patience(), &frozen, &e) < 0);
        CHECK_INT(e.code, ERROR_UNSUPPORTED);
        CHECK_INT(agent_thaw(agent, patience(), NULL), -ENOENT);
        CHECK_INT(agent_sync(agent, patience(), NULL), 0);
}

static void test_names_that_are_not_utf8(void) {
        _cleanup_json_ json_t *list = NULL;
        bool truncated = false;
        _cleanup_free_ char *path = str_printf("%s/odd/a\xff", folder), *dir = str_printf("%s/odd", folder);
        CHECK_INT(mkdir_p(dir, 0700), 0);
        CHECK_INT(file_write_atomic(path, "", 0, 0600), 0);
        REQUIRE(agent_file_list(agent, dir, false, 10, patience(), &list, &truncated, NULL) == 0);
        const json_t *f = json_array_get(list, 0);
        CHECK_STR(json_string_value(json_object_get(f, "name")), "a\xef\xbf\xbd");
        CHECK_STR(json_string_value(json_object_get(f, "name_base64")), "Yf8=");
}

int main(void) {
        struct guest_real *guest;
        int fds[2];

        if (!mkdtemp(folder) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                return 1;
        guest = guest_real_start(fds[1]);
        if (agent_open(fds[0], NULL, patience(), &agent, NULL) < 0)
                return 1;
        RUN(test_real_exec);
        RUN(test_real_timeout);
        RUN(test_real_big_input);
        RUN(test_real_yield);
        RUN(test_real_job);
        RUN(test_real_env);
        RUN(test_real_files);
        RUN(test_names_that_are_not_utf8);
        RUN(test_real_freeze_is_refused);
        agent_unref(agent);
        guest_real_stop(guest);
        rm_rf(folder);
        return tap_done();
}
