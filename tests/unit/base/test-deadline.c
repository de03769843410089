/* SPDX-License-Identifier: Apache-2.0 */
#include <limits.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include "base/deadline.h"
#include "base/thread.h"
#include "tap.h"

static void test_arithmetic(void) {
        CHECK_INT(deadline_poll_ms(DEADLINE_NEVER), -1);
        CHECK(!deadline_passed(DEADLINE_NEVER));
        CHECK(deadline_passed(deadline_in_ms(-5)));
        CHECK_INT(deadline_poll_ms(deadline_in_ms(0)), 0);
        CHECK_INT(deadline_poll_ms(deadline_in_ms(INT64_MAX)), -1); /* too far to count: never */
        CHECK_INT(deadline_poll_ms(deadline_in_ms(100LL * 365 * 86400 * 1000)), INT_MAX);

        int ms = deadline_poll_ms(deadline_in_ms(60000));
        CHECK(ms > 59000 && ms <= 60000);
        /* Part of a millisecond counts as a whole one, or the wait would end before the deadline and spin. */
        CHECK_INT(deadline_poll_ms((deadline_t){.at_ns = monotonic_ns() + NSEC_PER_SEC / 2}), 500);

        deadline_t a = {.at_ns = 5}, b = {.at_ns = 9};
        CHECK_INT(deadline_min(a, b).at_ns, 5);
        CHECK_INT(deadline_min(b, a).at_ns, 5);
        CHECK_INT(deadline_min(DEADLINE_NEVER, a).at_ns, 5);

        struct timespec ts = deadline_timespec((deadline_t){.at_ns = 3 * NSEC_PER_SEC + 7});
        CHECK_INT(ts.tv_sec, 3);
        CHECK_INT(ts.tv_nsec, 7);
}

static void test_op(void) {
        struct op never = OP_INIT_NEVER;
        CHECK_INT(op_check(&never), 0);
        CHECK_INT(op_check(NULL), 0);

        struct op late = op_timeout(0);
        CHECK_INT(op_check(&late), -ETIMEDOUT);

        _cleanup_cancel_ struct cancel *c = cancel_new();
        REQUIRE(c);
        struct op op = op_timeout(60000);
        op.cancel = c;
        CHECK_INT(op_check(&op), 0);
        /* A step takes over the token, and its deadline can only be earlier. */
        struct op sub = op_sub(&op, 0);
        CHECK_INT(op_check(&sub), -ETIMEDOUT);
        sub = op_sub(&op, 3600000);
        CHECK_INT(sub.deadline.at_ns, op.deadline.at_ns);
        CHECK(sub.cancel == c);
        cancel_fire(c);
        CHECK_INT(op_check(&sub), -ECANCELED);
}

static void keep_line(void *arg, const char *message) {
        strcpy(arg, message);
}

static void test_progress(void) {
        char line[1024] = "";
        struct op op = OP_INIT_NEVER;

        op_progress(&op, "nobody listens");
        op_progress(NULL, "nobody listens");
        op.progress = keep_line;
        op.progress_arg = line;
        op_progress(&op, "step %d", 2);
        CHECK_STR(line, "step 2");

        char text[601];
        for (size_t i = 0; i < 600; i += 2)
                memcpy(text + i, "\xc3\xa9", 2);
        text[600] = 0;
        op_progress(&op, "x%s", text);
        CHECK_INT(strlen(line), 199); /* not in the middle of a character */
}

static void test_wait_ready_and_timeout(void) {
        _cleanup_close_ int fd = eventfd(0, EFD_CLOEXEC);
        REQUIRE(fd >= 0);

        struct op now = op_timeout(0), soon = op_timeout(30);
        CHECK_INT(wait_fd(fd, POLLOUT, &now), POLLOUT); /* what is ready is ready, even with no time left */
        CHECK_INT(wait_fd(fd, POLLIN, &now), -ETIMEDOUT);

        int64_t start = monotonic_ns();
        CHECK_INT(wait_fd(fd, POLLIN, &soon), -ETIMEDOUT);
        CHECK(monotonic_ns() >= soon.deadline.at_ns);
        CHECK(monotonic_ns() - start < 5 * NSEC_PER_SEC);
        soon = op_timeout(10);
        CHECK_INT(wait_fd(-1, 0, &soon), -ETIMEDOUT);
        CHECK_INT(wait_fd(9999, POLLIN, &now), -EBADF);
}

static void *fire_later(void *arg) {
        struct op pause = op_timeout(20);

        wait_fd(-1, 0, &pause);
        cancel_fire(arg);
        return NULL;
}

static void test_cancel_wakes_waiters(void) {
        _cleanup_cancel_ struct cancel *c = cancel_new();
        pthread_t thread;

        REQUIRE(c);
        CHECK(!cancel_fired(c));
        struct op op = op_timeout(10000);
        op.cancel = c;
        REQUIRE(thread_start(&thread, "fire", fire_later, c) == 0);
        CHECK_INT(wait_fd(-1, 0, &op), -ECANCELED);
        CHECK_INT(wait_fd(-1, 0, &op), -ECANCELED); /* it stays */
        pthread_join(thread, NULL);
        cancel_fire(c);
        CHECK(cancel_fired(c));

        /* A peer that always has something to say cannot outlast a cancel. */
        _cleanup_close_ int fd = eventfd(1, EFD_CLOEXEC);
        CHECK_INT(wait_fd(fd, POLLIN, &op), -ECANCELED);
}

static void test_no_token(void) {
        CHECK(!cancel_fired(NULL));
        CHECK_INT(cancel_fd(NULL), -1);
        cancel_fire(NULL);
        cancel_unref(NULL);
        CHECK(cancel_ref(NULL) == NULL);
        struct cancel_hook hook = {0};
        cancel_hook(NULL, &hook);
        cancel_unhook(NULL, &hook);
}

static void count(void *arg) {
        atomic_fetch_add((atomic_int *) arg, 1);
}

static void test_hooks(void) {
        _cleanup_cancel_ struct cancel *c = cancel_new();
        atomic_int n = 0;
        struct cancel_hook hooks[3];

        REQUIRE(c);
        for (size_t i = 0; i < ARRAY_SIZE(hooks); i++) {
                hooks[i] = (struct cancel_hook){.fn = count, .arg = &n};
                cancel_hook(c, &hooks[i]);
        }
        cancel_unhook(c, &hooks[1]);
        cancel_unhook(c, &hooks[1]);
        cancel_fire(c);
        CHECK_INT(n, 2);
        cancel_fire(c);
        CHECK_INT(n, 2);

        cancel_hook(c, &hooks[1]); /* too late to wait: at once */
        CHECK_INT(n, 3);
        for (size_t i = 0; i < ARRAY_SIZE(hooks); i++)
                cancel_unhook(c, &hooks[i]);
        CHECK_INT(n, 3);
}

struct slow {
        sem_t entered, leave;
        atomic_bool done;
};

static void slow_hook(void *arg) {
        struct slow *s = arg;

        sem_post(&s->entered);
        sem_wait(&s->leave);
        atomic_store(&s->done, true);
}

static void *fire(void *arg) {
        cancel_fire(arg);
        return NULL;
}

static void *post_later(void *arg) {
        struct op pause = op_timeout(30);

        wait_fd(-1, 0, &pause);
        sem_post(arg);
        return NULL;
}

static void test_unhook_waits_for_a_running_hook(void) {
        _cleanup_cancel_ struct cancel *c = cancel_new();
        struct slow s = {0};
        struct cancel_hook hook = {.fn = slow_hook, .arg = &s};
        pthread_t firing, posting;

        REQUIRE(c);
        sem_init(&s.entered, 0, 0);
        sem_init(&s.leave, 0, 0);
        cancel_hook(c, &hook);
        REQUIRE(thread_start(&firing, "fire", fire, c) == 0);
        sem_wait(&s.entered);
        REQUIRE(thread_start(&posting, "post", post_later, &s.leave) == 0);
        cancel_unhook(c, &hook);
        CHECK(atomic_load(&s.done)); /* from here on the hook's memory may go */
        pthread_join(firing, NULL);
        pthread_join(posting, NULL);
}

/* Many owners of short-lived hooks against one cancel: each hook runs at most once and never after its removal. */
static void *hook_often(void *arg) {
        struct cancel *c = arg;

        for (int i = 0; i < 2000; i++) {
                atomic_int n = 0;
                struct cancel_hook hook = {.fn = count, .arg = &n};

                cancel_hook(c, &hook);
                cancel_unhook(c, &hook);
                if (n > 1)
                        return (void *) "twice";
        }
        cancel_unref(c);
        return NULL;
}

static void test_hook_race(void) {
        struct cancel *c = cancel_new();
        pthread_t threads[4];

        REQUIRE(c);
        for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
                REQUIRE(thread_start(&threads[i], "hook", hook_often, cancel_ref(c)) == 0);
        struct op pause = op_timeout(1);
        wait_fd(-1, 0, &pause);
        cancel_fire(c);
        cancel_unref(c); /* not the last reference: the threads hold theirs */
        for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
                void *bad = NULL;
                pthread_join(threads[i], &bad);
                CHECK(!bad);
        }
}

int main(void) {
        RUN(test_arithmetic);
        RUN(test_op);
        RUN(test_progress);
        RUN(test_wait_ready_and_timeout);
        RUN(test_cancel_wakes_waiters);
        RUN(test_no_token);
        RUN(test_hooks);
        RUN(test_unhook_waits_for_a_running_hook);
        RUN(test_hook_race);
        return tap_done();
}
