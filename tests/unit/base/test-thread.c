/* SPDX-License-Identifier: Apache-2.0 */
#include <semaphore.h>
#include <signal.h>
#include <sys/prctl.h>

#include "base/thread.h"
#include "tap.h"

struct seen {
        char name[16];
        sigset_t mask;
        sem_t done;
};

static void *look(void *arg) {
        struct seen *seen = arg;

        prctl(PR_GET_NAME, seen->name);
        pthread_sigmask(SIG_SETMASK, NULL, &seen->mask);
        sem_post(&seen->done);
        return arg;
}

static void check_seen(const struct seen *seen) {
        CHECK_STR(seen->name, "a-name-that-is-");
        CHECK(sigismember(&seen->mask, SIGTERM) && sigismember(&seen->mask, SIGINT));
        CHECK(sigismember(&seen->mask, SIGCHLD) && sigismember(&seen->mask, SIGUSR1));
        CHECK(!sigismember(&seen->mask, SIGSEGV));
}

static void test_start(void) {
        struct seen seen = {0};
        pthread_t thread;
        void *result = NULL;

        sem_init(&seen.done, 0, 0);
        REQUIRE(thread_start(&thread, "a-name-that-is-too-long", look, &seen) == 0);
        pthread_join(thread, &result);
        CHECK(result == &seen);
        check_seen(&seen);

        sigset_t mask;
        pthread_sigmask(SIG_SETMASK, NULL, &mask);
        CHECK(!sigismember(&mask, SIGTERM)); /* ours is as it was */
}

static void test_start_detached(void) {
        struct seen seen = {0};

        sem_init(&seen.done, 0, 0);
        REQUIRE(thread_start_detached("a-name-that-is-too-long", look, &seen) == 0);
        sem_wait(&seen.done);
        check_seen(&seen);
}

static void test_cond_timeout(void) {
        pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
        pthread_cond_t c;

        cond_init(&c);
        LOCK(&m);
        deadline_t d = deadline_in_ms(20);
        int r;
        while ((r = cond_wait_until(&c, &m, d)) == 0)
                ;
        CHECK_INT(r, -ETIMEDOUT);
        CHECK(deadline_passed(d));
        CHECK_INT(cond_wait_until(&c, &m, d), -ETIMEDOUT);
}

struct box {
        pthread_mutex_t lock;
        pthread_cond_t changed;
        bool full; /* guarded by lock */
};

static void *fill(void *arg) {
        struct box *box = arg;

        LOCK(&box->lock);
        box->full = true;
        pthread_cond_signal(&box->changed);
        return NULL;
}

static void test_cond_wake(void) {
        struct box box = {.lock = PTHREAD_MUTEX_INITIALIZER};
        pthread_t thread;

        for (int i = 0; i < 2; i++) {
                box.full = false;
                cond_init(&box.changed);
                REQUIRE(thread_start(&thread, "fill", fill, &box) == 0);
                {
                        LOCK(&box.lock);
                        while (!box.full)
                                if (cond_wait_until(&box.changed, &box.lock,
                                                    i == 0 ? DEADLINE_NEVER : deadline_in_ms(10000)) < 0)
                                        break;
                        CHECK(box.full);
                }
                pthread_join(thread, NULL);
                CHECK_INT(pthread_mutex_trylock(&box.lock), 0); /* LOCK() ended with its block */
                pthread_mutex_unlock(&box.lock);
                pthread_cond_destroy(&box.changed);
        }
}

int main(void) {
        RUN(test_start);
        RUN(test_start_detached);
        RUN(test_cond_timeout);
        RUN(test_cond_wake);
        return tap_done();
}
