/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of port forwards and the ports that are listened on: both or neither. The workspace does not run. */
#include <signal.h>
#include <stdatomic.h>

#include "base/thread.h"
#include "network/loopback.h"
#include "workspace/core-internal.h"
#include "workspace/fixture.h"

#define ROUNDS 600
#define GUEST_PORT 8000u

/* A core with a stopped workspace "served", as after a start of the daemon; with host_port, that has a row already. */
static int begin(struct fixture *f, unsigned host_port) {
        struct op op = op_timeout(30000);
        struct forward_row row = {.guest_port = GUEST_PORT, .host_port = host_port};

        int r = fixture_prepare(f, NULL);
        f->cfg.forward_bind = INADDR_LOOPBACK;
        if (r >= 0)
                r = fixture_open(f, NULL);
        if (r >= 0)
                r = fixture_leave(f, "served", WS_STOPPED, 2, false, row.workspace);
        if (r >= 0 && host_port != 0)
                r = uuid_new(row.id) < 0 ? -EIO : db_forward_insert(f->db, &row, NULL);
        if (r < 0)
                return r;
        fixture_close(f);
        r = fixture_open(f, NULL);
        return r < 0 ? r : core_recover(f->core, &op, NULL);
}

static int add(struct fixture *f, struct ws_forward *ret) {
        struct op op = op_timeout(30000);

        return ws_forward_add(f->core, "served", GUEST_PORT, 0, &op, ret, NULL);
}

static int remove_it(struct fixture *f, struct ws_forward *ret) {
        struct op op = op_timeout(30000);

        return ws_forward_remove(f->core, "served", GUEST_PORT, &op, ret, NULL);
}

/* Of the only one. */
static bool is_listed_as_listening(struct fixture *f) {
        _cleanup_free_ struct ws_forward *list = NULL;
        size_t n = 0;

        CHECK_INT(ws_forward_list(f->core, "served", &list, &n, NULL), 0);
        CHECK_INT(n, 1);
        return n == 1 && list[0].listening;
}

struct looker {
        struct fixture *f;
        void (*look)(struct fixture *f);
        atomic_bool *done;
        pthread_t thread;
};

static void list_once(struct fixture *f) {
        _cleanup_free_ struct ws_forward *list = NULL;
        size_t n = 0;

        CHECK_INT(ws_forward_list(f->core, "served", &list, &n, NULL), 0);
}

static void retry_once(struct fixture *f) {
        core_retry_forwards(f->core);
}

static void *look_main(void *arg) {
        struct looker *l = arg;

        while (!*l->done)
                l->look(l->f);
        return NULL;
}

/* Others look at the forwards while one comes and goes: none of its ports is left. */
static void check_nothing_left(void (*look)(struct fixture *f)) {
        _cleanup_fixture_ struct fixture f = {0};
        struct looker lookers[4];
        uint16_t ports[ROUNDS] = {0};
        atomic_bool done = false;
        int wrong = 0, left = 0;
        REQUIRE(begin(&f, 0) == 0);

        for (size_t i = 0; i < ARRAY_SIZE(lookers); i++) {
                lookers[i] = (struct looker){.f = &f, .look = look, .done = &done};
                REQUIRE(thread_start(&lookers[i].thread, "looker", look_main, &lookers[i]) == 0);
        }
        for (int i = 0; i < ROUNDS; i++) {
                struct ws_forward made = {0}, gone = {0};

                wrong += add(&f, &made) < 0 || remove_it(&f, &gone) < 0 || gone.host_port != made.host_port;
                ports[i] = made.host_port;
        }
        done = true;
        for (size_t i = 0; i < ARRAY_SIZE(lookers); i++)
                pthread_join(lookers[i].thread, NULL);
        CHECK_INT(wrong, 0);
        for (int i = 0; i < ROUNDS; i++) {
                int client = connected(INADDR_LOOPBACK, ports[i]);
                left += client >= 0;
                close_fd(client);
        }
        CHECK_INT(left, 0);
}

static void test_listing_leaves_no_port(void) {
        check_nothing_left(list_once);
}

static void test_retrying_leaves_no_port(void) {
        check_nothing_left(retry_once);
}

/* Somebody else has the port when the daemon starts. */
static void test_a_port_is_taken_back(void) {
        _cleanup_fixture_ struct fixture f = {0};
        int foreign = bound(SOCK_STREAM, INADDR_LOOPBACK, 0);
        const uint16_t port = port_of(foreign);
        REQUIRE(begin(&f, port) == 0);

        CHECK(!is_listed_as_listening(&f));
        CHECK(core_forwards_wanted(f.core));
        core_retry_forwards(f.core);
        CHECK(!is_listed_as_listening(&f));
        close(foreign);

        core_retry_forwards(f.core);
        CHECK(is_listed_as_listening(&f));
        CHECK(!core_forwards_wanted(f.core));
        int client = connected(INADDR_LOOPBACK, port);
        CHECK(client >= 0);
        CHECK(receives_reset(client)); /* the workspace does not run */
        close_fd(client);

        struct ws_forward gone = {0};
        CHECK_INT(remove_it(&f, &gone), 0);
        CHECK_INT(gone.host_port, port);
        CHECK(!core_forwards_wanted(f.core));
        CHECK(connected(INADDR_LOOPBACK, port) < 0);
}

int main(void) {
        signal(SIGPIPE, SIG_IGN);
        RUN(test_listing_leaves_no_port);
        RUN(test_retrying_leaves_no_port);
        RUN(test_a_port_is_taken_back);
        return tap_done();
}
