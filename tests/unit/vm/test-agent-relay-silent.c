/* SPDX-License-Identifier: Apache-2.0 */
/* Connections through an agent that keeps silent: no thread waits for it for ever, also where op would. */
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/thread.h"
#include "network/loopback.h"
#include "talk.h"

static sem_t asked; /* by the guest, once for each request */
static sem_t go;    /* the guest goes on */

struct link {
        int client, accepted;
        struct cancel *cancel;
        atomic_bool ended;
        int result;
        struct error error;
        pthread_t thread;
};

static void *relay_main(void *arg) {
        struct link *l = arg;
        struct op op = OP_INIT_NEVER;

        op.cancel = l->cancel;
        l->result = agent_relay(agent, 80, l->accepted, &op, &l->error);
        l->ended = true;
        l->accepted = close_fd(l->accepted);
        return NULL;
}

static void link_begin(struct link *l) {
        int listening = bound(SOCK_STREAM, INADDR_LOOPBACK, 0);

        *l = (struct link){.client = connected(INADDR_LOOPBACK, port_of(listening)), .cancel = cancel_new()};
        l->accepted = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        close(listening);
        if (l->accepted < 0 || !l->cancel || thread_start(&l->thread, "relay", relay_main, l) < 0)
                abort();
        sem_wait(&asked);
}

static int link_wait(struct link *l) {
        pthread_join(l->thread, NULL);
        return l->result;
}

static void link_clear(struct link *l) {
        l->client = close_fd(l->client);
        cancel_unref(l->cancel);
        error_clear(&l->error);
}

/* Says nothing at all. */
static void play_silent(struct mux_stream *s, const json_t *request) {
        sem_post(&asked);
        until_closed(s);
}

static void test_no_answer(void) {
        struct link l;
        REQUIRE(begin(play_silent));

        link_begin(&l);
        CHECK_INT(link_wait(&l), -ETIMEDOUT);
        CHECK_INT(l.error.code, ERROR_TIMEOUT);
        link_clear(&l);
        end();
}

static void test_the_client_breaks_before_the_answer(void) {
        struct link l;
        REQUIRE(begin(play_silent));

        link_begin(&l);
        close_with_reset(TAKE_FD(l.client));
        CHECK_INT(link_wait(&l), -ECONNRESET);
        link_clear(&l);
        end();
}

/* One that has left looks like one that waits for its answer. It is not given as long as one that is surely there. */
static void test_the_client_closes_before_the_answer(void) {
        struct link patient, left;
        REQUIRE(begin(play_silent));

        link_begin(&patient);
        link_begin(&left);
        CHECK(send_all(left.client, "x", 1));
        left.client = close_fd(left.client);
        CHECK_INT(link_wait(&left), -ETIMEDOUT);
        link_clear(&left);
        CHECK(!patient.ended);
        cancel_fire(patient.cancel);
        CHECK_INT(link_wait(&patient), -ECANCELED);
        link_clear(&patient);
        end();
}

/* Takes its time, answers, takes all that comes, and says its word. */
static void play_late(struct mux_stream *s, const json_t *request) {
        struct mux_event e = MUX_EVENT_INIT;

        sem_post(&asked);
        sem_wait(&go);
        tell(s, "{\"type\":\"ok\"}");
        do
                if (mux_recv(s, patience(), &e) < 0)
                        return;
        while (e.kind == MUX_DATA);
        mux_event_clear(&e);
        send_text(s, WIRE_CH_OUT, "answer");
        (void) mux_send_eof(s, WIRE_CH_OUT, patience());
}

static void test_the_client_ends_its_direction_before_the_answer(void) {
        struct link l;
        REQUIRE(begin(play_late));

        link_begin(&l);
        CHECK(send_all(l.client, "question", 8));
        shutdown(l.client, SHUT_WR);
        CHECK(wait_fd(l.accepted, POLLRDHUP, patience()) > 0);
        sem_post(&go);
        CHECK(receives(l.client, "answer"));
        CHECK(receives_end(l.client));
        CHECK_INT(link_wait(&l), 0);
        link_clear(&l);
        end();
}

/* Both directions end, and the stream stays open. */
static void play_unfinished(struct mux_stream *s, const json_t *request) {
        sem_post(&asked);
        tell(s, "{\"type\":\"ok\"}");
        send_text(s, WIRE_CH_OUT, "all");
        (void) mux_send_eof(s, WIRE_CH_OUT, patience());
        until_closed(s);
}

static void test_no_end(void) {
        struct link l;
        REQUIRE(begin(play_unfinished));

        link_begin(&l);
        shutdown(l.client, SHUT_WR);
        CHECK(receives(l.client, "all"));
        CHECK_INT(link_wait(&l), 0);
        link_clear(&l);
        end();
}

/* The client never says a word, and the program reads none: no limit but that of all ends it, and a cut does. */
static void play_open(struct mux_stream *s, const json_t *request) {
        sem_post(&asked);
        tell(s, "{\"type\":\"ok\"}");
        send_text(s, WIRE_CH_OUT, "open");
        sem_wait(&go);
}

static void check_cut(bool client_sends) {
        struct link l;
        char much[65536] = "";
        REQUIRE(begin(play_open));

        link_begin(&l);
        CHECK(receives(l.client, "open"));
        struct pollfd room = {.fd = l.client, .events = POLLOUT};
        while (client_sends && poll(&room, 1, 300) > 0)
                (void) send(l.client, much, sizeof(much), MSG_DONTWAIT | MSG_NOSIGNAL);
        CHECK(!l.ended);
        cancel_fire(l.cancel);
        CHECK_INT(link_wait(&l), -ECANCELED);
        CHECK(receives_reset(l.client));
        link_clear(&l);
        sem_post(&go);
        end();
}

static void test_cut_of_a_silent_client(void) {
        check_cut(false);
}

static void test_cut_of_a_program_that_does_not_read(void) {
        check_cut(true);
}

int main(void) {
        signal(SIGPIPE, SIG_IGN);
        sem_init(&asked, 0, 0);
        sem_init(&go, 0, 0);
        RUN(test_no_answer);
        RUN(test_the_client_breaks_before_the_answer);
        RUN(test_the_client_closes_before_the_answer);
        RUN(test_the_client_ends_its_direction_before_the_answer);
        RUN(test_no_end);
        RUN(test_cut_of_a_silent_client);
        RUN(test_cut_of_a_program_that_does_not_read);
        return tap_done();
}
