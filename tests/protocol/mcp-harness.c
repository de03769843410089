/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The MCP server with its real tools and a real core, but without virtual machines: QEMU's path leads nowhere. What the
 * protocol tests need beside the product's own program:
 *
 *     mcp-harness [--listen SOCKET] [--test-tools] [--workspaces N]
 *
 * Without --listen, standard input and output are one client. With it, every connection to SOCKET is one, until
 * standard input ends. --test-tools adds tools that wait, report progress and give results of any size. --workspaces
 * puts N stopped workspaces ws-000... into the store.
 */

#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/file.h"
#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "base/thread.h"
#include "mcp/server.h"

#define TEST_TIMEOUT_MS 60000
#define CLOSE_MS 5000
#define COPY_CHUNK 65536

static const char test_json[] =
        "[{\"name\":\"test_wait\",\"description\":\"Waits, reporting progress.\",\"inputSchema\":{\"type\":\"object\","
        "\"properties\":{\"ms\":{\"type\":\"integer\",\"minimum\":0,\"default\":0},\"reports\":{\"type\":\"integer\","
        "\"minimum\":0,\"default\":0}}},\"annotations\":{}},"
        "{\"name\":\"test_big\",\"description\":\"Gives a long text.\",\"inputSchema\":{\"type\":\"object\","
        "\"properties\":{\"bytes\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":4194304}},\"required\":[\"bytes\"]},"
        "\"annotations\":{}},"
        "{\"name\":\"test_fail\",\"description\":\"Fails.\",\"inputSchema\":{\"type\":\"object\",\"properties\":{"
        "\"message\":{\"type\":\"string\"},\"hint\":{\"type\":\"string\"}},\"required\":[\"message\",\"hint\"]},"
        "\"annotations\":{}},"
        "{\"name\":\"test_outcome\",\"description\":\"Gives a record that tells of a failure.\",\"inputSchema\":{"
        "\"type\":\"object\",\"properties\":{}},\"outputSchema\":{\"type\":\"object\",\"properties\":{\"failures\":{"
        "\"type\":\"integer\"}},\"required\":[\"failures\"]},\"annotations\":{}},"
        "{\"name\":\"test_each\",\"description\":\"Names the workspaces of the "
        "call.\",\"inputSchema\":{\"type\":\"object\","
        "\"properties\":{\"workspace_ids\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}}},"
        "\"required\":[\"workspace_ids\"]},\"annotations\":{}}]";

/* Waits `ms` milliseconds; reports progress `reports` times before that. */
static int test_wait(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        int64_t ms = 0, reports = 0;

        int r = json_get_int(call->args, "ms", &ms, err);
        if (r >= 0)
                r = json_get_int(call->args, "reports", &reports, err);
        if (r < 0)
                return r;
        for (int64_t i = 0; i < reports; i++)
                op_progress(call->op, "report %d \xe2\x82\xac %0300d", (int) i, 0);
        struct op op = op_sub(call->op, ms);
        r = wait_fd(-1, 0, &op);
        if (r != -ETIMEDOUT)
                return error_set_errno(err, r, "waiting");
        ret->value = json_pack("{s:I}", "waited_ms", (json_int_t) ms);
        return 0;
}

static int test_big(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        int64_t bytes = 0;

        int r = json_get_int(call->args, "bytes", &bytes, err);
        if (r < 0)
                return r;
        ret->text = malloc((size_t) bytes + 1);
        if (!ret->text)
                return -ENOMEM;
        memset(ret->text, 'x', (size_t) bytes);
        ret->text[bytes] = 0;
        return 0;
}

/* Fails with this message and this hint. */
static int test_fail(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        const char *message = NULL, *hint = NULL;

        (void) ret;
        int r = json_get_str(call->args, "message", &message, err);
        if (r >= 0)
                r = json_get_str(call->args, "hint", &hint, err);
        if (r < 0)
                return r;
        error_set(err, ERROR_CONFLICT, "%s", message);
        error_hint(err, "%s", hint);
        return -EINVAL;
}

/* A record, though all of it failed. */
static int test_outcome(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        (void) call;
        (void) err;
        ret->value = json_pack("{s:i}", "failures", 3);
        ret->failed = ERROR_NO_SPACE;
        return 0;
}

/* The names of the workspaces that dispatch lets through, in their order. */
static int test_each(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_json_ json_t *names = json_array();

        for (size_t i = 0; i < call->n_workspaces; i++) {
                _cleanup_ws_view_ struct ws_view view = {0};

                int r = ws_get(call->core, call->workspace_ids[i], call->owner, &view, err);
                if (r < 0)
                        return r;
                if (json_push(names, view.owned ? json_string(view.row.name) : json_null()) < 0)
                        return -ENOMEM;
        }
        ret->value = json_pack("{s:O}", "names", names);
        return 0;
}

static const struct tool test_tools[] = {
        {"test_wait", TOOL_ACCESS_NONE, TEST_TIMEOUT_MS, test_wait},
        {"test_big", TOOL_ACCESS_NONE, TEST_TIMEOUT_MS, test_big},
        {"test_fail", TOOL_ACCESS_NONE, TEST_TIMEOUT_MS, test_fail},
        {"test_outcome", TOOL_ACCESS_NONE, TEST_TIMEOUT_MS, test_outcome},
        {"test_each", TOOL_ACCESS_OWNER_EACH, TEST_TIMEOUT_MS, test_each},
};
static const struct tool_group test_group = {test_json, test_tools, ARRAY_SIZE(test_tools)};

#define GROUPS_MAX 16

/* The product's groups, and those of the tests. */
static void collect_groups(const struct tool_group *ret[GROUPS_MAX + 2], bool with_tests) {
        size_t n = 0;

        for (; tool_groups[n] && n < GROUPS_MAX; n++)
                ret[n] = tool_groups[n];
        if (with_tests)
                ret[n++] = &test_group;
        ret[n] = NULL;
}

struct harness {
        char *dir;
        struct db *db;
        struct storage *storage;
        struct core *core;
        struct mcp_server *server;
};

static int add_workspace(struct db *db, unsigned i, struct error *err) {
        _cleanup_ws_row_ struct ws_row row = {
                .name = str_printf("ws-%03u", i),
                .state = WS_STOPPED,
                .base_image = strdup("none"),
                .vcpus = 1,
                .memory_mb = 128,
                .disk_gb = 1,
                .address = 0x0a630002u + i,
                .owner = strdup("nobody"),
                .created_ms = 1000000000000 + i / 3, /* some at the same moment */
        };

        int r = uuid_new(row.id);
        if (r < 0)
                return r;
        memcpy(row.disk, row.id, sizeof(row.disk));
        (void) snprintf(row.mac, sizeof(row.mac), "02:00:0a:63:%02x:%02x", i / 256 % 256, i % 256);
        return db_ws_insert(db, &row, err);
}

static int open_stores(struct harness *h, unsigned workspaces, struct error *err) {
        _cleanup_free_ char *db_path = path_join(h->dir, "state.db"), *disks = path_join(h->dir, "disks");

        if (!db_path || !disks)
                return -ENOMEM;
        int r = db_open(db_path, &h->db, err);
        for (unsigned i = 0; r >= 0 && i < workspaces; i++)
                r = add_workspace(h->db, i, err);
        if (r >= 0)
                r = storage_open_qcow2(disks, 0, &h->storage, err);
        return r;
}

static int harness_open(struct harness *h, unsigned workspaces, const struct tool_group *const *groups,
                        struct error *err) {
        static const struct platform platform = {
                .qemu = (char *) "/nonexistent/qemu",
                .qemu_version = (char *) "0",
                .kernel = (char *) "/nonexistent/vmlinuz",
                .initramfs = (char *) "/nonexistent/initramfs.img",
                .accel = ACCEL_TCG,
        };
        struct op op = op_timeout(TEST_TIMEOUT_MS);

        int r = open_stores(h, workspaces, err);
        if (r < 0)
                return r;
        _cleanup_free_ char *images = path_join(h->dir, "images");
        struct core_config cfg = {
                .state_dir = h->dir,
                .image_dir = images,
                .default_image = "none",
                .default_vcpus = 2,
                .default_memory_mb = 512,
                .default_disk_gb = 10,
                .limits = {.max_vcpus = 8, .max_memory_mb = 8192, .max_disk_gb = 100, .max_workspaces = 1000},
                .max_snapshots = 20,
                .network = 0x0a630000u,
                .prefix_len = 16,
                .boot_timeout_ms = 10000,
        };
        r = images ? mkdir_p(images, 0700) : -ENOMEM;
        if (r >= 0)
                r = core_open(&cfg, h->db, h->storage, &platform, &h->core, err);
        if (r >= 0)
                r = core_recover(h->core, &op, err);
        return r < 0 ? r : mcp_server_new(h->core, groups, &h->server, err);
}

static void harness_close(struct harness *h) {
        struct op op = op_timeout(CLOSE_MS);

        mcp_server_close(h->server, &op);
        core_close(h->core);
        storage_close(h->storage);
        db_close(h->db);
        (void) rm_rf(h->dir);
}

/* Copies until the end of `from`; blocking on both sides. */
static void copy(int from, int to) {
        char buf[COPY_CHUNK];
        struct op op = OP_INIT_NEVER;
        ssize_t n;

        while ((n = read(from, buf, sizeof(buf))) > 0)
                if (write_full(to, buf, (size_t) n, &op) < 0)
                        return;
}

static void *copy_input(void *arg) {
        int sock = (int) (intptr_t) arg;

        copy(STDIN_FILENO, sock);
        (void) shutdown(sock, SHUT_WR);
        return NULL;
}

/* The socket stays open: when the server ends the connection, the copier may still sit on standard input. */
static int serve_stdio(struct harness *h, struct error *err) {
        int sv[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
                return error_set_errno(err, errno, "socketpair");
        int r = mcp_server_add(h->server, sv[1], err);
        if (r >= 0)
                r = thread_start_detached("input", copy_input, (void *) (intptr_t) sv[0]);
        if (r >= 0)
                copy(sv[0], STDOUT_FILENO);
        return r;
}

static int serve_socket(struct harness *h, const char *path, struct error *err) {
        _cleanup_close_ int fd = unix_listen(path, 256);

        if (fd < 0)
                return error_set_errno(err, fd, "listening on %s", path);
        printf("ready\n");
        fflush(stdout);
        for (;;) {
                struct pollfd p[] = {{.fd = fd, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};

                if (poll(p, ARRAY_SIZE(p), -1) < 0 && errno != EINTR)
                        return error_set_errno(err, errno, "poll");
                if (p[1].revents)
                        return 0;
                int client = p[0].revents ? accept4(fd, NULL, NULL, SOCK_CLOEXEC) : -1;
                if (client >= 0)
                        (void) mcp_server_add(h->server, client, NULL);
        }
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                {"listen", required_argument, NULL, 'l'},
                {"test-tools", no_argument, NULL, 't'},
                {"workspaces", required_argument, NULL, 'w'},
                {0},
        };
        const struct tool_group *groups[GROUPS_MAX + 2];
        const char *path = NULL, *tmp = getenv("TMPDIR");
        bool with_tests = false;
        uint64_t workspaces = 0;
        int c;

        while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
                if (c == 'l')
                        path = optarg;
                else if (c == 't')
                        with_tests = true;
                else if (c != 'w' || parse_u64(optarg, &workspaces) < 0 || workspaces > 1000)
                        return 2;
        }
        signal(SIGPIPE, SIG_IGN);
        log_setup(LOG_WARN, STDERR_FILENO);
        collect_groups(groups, with_tests);

        _cleanup_free_ char *dir = str_printf("%s/mcp-harness-XXXXXX", tmp ? tmp : "/tmp");
        if (!dir || !mkdtemp(dir))
                return 1;
        struct harness h = {.dir = dir};
        _cleanup_error_ struct error err = ERROR_INIT;
        int r = harness_open(&h, (unsigned) workspaces, groups, &err);
        if (r >= 0)
                r = path ? serve_socket(&h, path, &err) : serve_stdio(&h, &err);
        if (r < 0)
                fprintf(stderr, "mcp-harness: %s\n", error_message(&err));
        harness_close(&h);
        return r < 0;
}
