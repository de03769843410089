/* SPDX-License-Identifier: Apache-2.0 */

/* What is below the requests: the channel, the reaper, the drainer, the killing without cgroups. */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "base/io.h"
#include "fixture.h"
#include "guest/channel.h"
#include "guest/tree.h"
#include "wire/handshake.h"

struct server {
        pthread_t thread;
        int fd;
        int result;
};

static void *serve(void *arg) {
        struct server *s = arg;
        struct op op = patience();

        s->result = channel_serve_once(&agent, s->fd, -1, &op);
        return NULL;
}

static int start_server(struct server *s) {
        int fds[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                abort();
        s->fd = fds[0];
        if (thread_start(&s->thread, "server", serve, s) < 0)
                abort();
        return fds[1];
}

static void test_handshake_behind_garbage(void) {
        struct server s;
        int fd = start_server(&s);
        struct op op = patience();
        struct mux *m = NULL;
        _cleanup_json_ json_t *hello = NULL, *info = NULL, *request = json_of("{\"type\":\"info\"}");
        _cleanup_free_ char *garbage = malloc(300000);

        memset(garbage, 'a', 300000);
        CHECK_INT(write_full(fd, garbage, 300000, &op), 0);
        REQUIRE(handshake_host(fd, &op, NULL) == 0);
        REQUIRE(mux_start(fd, MUX_HOST, NULL, 0, NULL, NULL, &m, NULL) == 0);
        CHECK_INT(mux_hello(m, &op, &hello, NULL), 0);
        CHECK_STR(member_str(hello, "agent"), AGENTISO_VERSION);
        CHECK_INT(mux_call(m, request, &op, &info, NULL), 0);
        CHECK_STR(member_str(info, "version"), AGENTISO_VERSION);
        mux_unref(m);
        pthread_join(s.thread, NULL);
        CHECK_INT(s.result, 0);
}

static void test_host_that_goes_away_in_the_handshake(void) {
        struct server s;
        int fd = start_server(&s);

        close_fd(fd);
        pthread_join(s.thread, NULL);
        CHECK_INT(s.result, -ENODATA);
}

static pid_t fork_child(struct child **ret, int exit_code, bool stay) {
        pid_t pid = reaper_fork(agent.reaper, -1, ret);

        if (pid == 0) {
                setsid();
                if (stay)
                        pause();
                _exit(exit_code);
        }
        return pid;
}

static void wait_child(struct child *c) {
        struct op op = patience();

        wait_fd(child_fd(c), POLLIN, &op);
}

static void test_children_that_end_at_once(void) {
        struct child_result r;

        for (int i = 0; i < 50; i++) {
                struct child *c = NULL;

                REQUIRE(fork_child(&c, i, false) > 0);
                wait_child(c);
                CHECK(child_ended(c, &r));
                CHECK_INT(r.exit_code, i);
                CHECK_INT(child_signal_group(c, SIGKILL), -ESRCH);
                child_release(c);
        }
}

static void test_orphans_are_reaped(void) {
        struct child *c = NULL;
        pid_t pid;

        prctl(PR_SET_CHILD_SUBREAPER, 1);
        pid = reaper_fork(agent.reaper, -1, &c);
        if (pid == 0) {
                for (int i = 0; i < 20; i++)
                        if (fork() == 0)
                                _exit(3);
                _exit(0);
        }
        wait_child(c);
        child_release(c);
        CHECK_INT(reaper_wait_alone(agent.reaper, deadline_in_ms(5000)), 0);
        prctl(PR_SET_CHILD_SUBREAPER, 0);
}

static void test_a_released_child_is_reaped(void) {
        struct child *c = NULL;
        pid_t pid = fork_child(&c, 0, true);

        REQUIRE(pid > 0);
        CHECK_INT(reaper_wait_alone(agent.reaper, deadline_in_ms(50)), -ETIMEDOUT);
        child_release(c);
        kill(pid, SIGKILL);
        CHECK_INT(reaper_wait_alone(agent.reaper, deadline_in_ms(5000)), 0);
}

/* The leader's own children, a new session among them, and a fork bomb's worth of depth. */
static void test_tree_kill(void) {
        struct child *c = NULL;
        struct child_result r;
        pid_t pid = reaper_fork(agent.reaper, -1, &c);

        if (pid == 0) {
                setsid();
                for (int i = 0; i < 10; i++) {
                        if (fork() == 0) {
                                if (i % 2)
                                        setsid();
                                if (fork() == 0)
                                        pause();
                                pause();
                        }
                }
                pause();
        }
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        poll(NULL, 0, 200);
        CHECK_INT(tree_kill(c, deadline_in_ms(5000), NULL), 0);
        wait_child(c);
        CHECK(child_ended(c, &r));
        CHECK_INT(r.signal, SIGKILL);
        child_release(c);
        CHECK_INT(reaper_wait_alone(agent.reaper, deadline_in_ms(5000)), 0);
        prctl(PR_SET_CHILD_SUBREAPER, 0);
}

static void test_drainer(void) {
        int fds[2];
        char line[1000] = {0};
        struct op op = patience();

        REQUIRE(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
        drainer_add(agent.drainer, fds[0]);
        /* Far more than the pipe holds. */
        for (int i = 0; i < 1000; i++)
                CHECK_INT(write_full(fds[1], line, sizeof(line), &op), 0);
        close_fd(fds[1]);
}

int main(void) {
        fixture_begin();
        RUN(test_handshake_behind_garbage);
        RUN(test_host_that_goes_away_in_the_handshake);
        RUN(test_children_that_end_at_once);
        RUN(test_orphans_are_reaped);
        RUN(test_a_released_child_is_reaped);
        RUN(test_tree_kill);
        RUN(test_drainer);
        return fixture_end();
}
