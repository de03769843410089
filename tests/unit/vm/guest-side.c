/* SPDX-License-Identifier: Apache-2.0 */
#include "guest-side.h"

#include <sys/socket.h>

#include "base/io.h"
#include "base/thread.h"
#include "wire/handshake.h"

#define PATIENCE_MS 60000

struct guest_side {
        int fd;
        guest_play play;
        guest_greet greet;
        struct mux_callbacks cb;
        pthread_t thread;
        bool joined;
        struct mux *mux; /* when joined */

        pthread_mutex_t lock; /* guards busy */
        pthread_cond_t idle;
        unsigned busy; /* streams being played */
};

struct playing {
        struct guest_side *g;
        struct mux_stream *stream;
        json_t *request;
};

static void *play_main(void *arg) {
        struct playing *p = arg;
        struct guest_side *g = p->g;

        g->play(p->stream, p->request);
        mux_stream_unref(p->stream);
        json_decref(p->request);
        free(p);
        LOCK(&g->lock);
        g->busy--;
        pthread_cond_broadcast(&g->idle);
        return NULL;
}

static void opened(void *arg, struct mux_stream *stream, json_t *request) {
        struct guest_side *g = arg;

        struct playing *p = malloc(sizeof(*p));
        if (!p)
                abort();
        *p = (struct playing){g, stream, request};
        {
                LOCK(&g->lock);
                g->busy++;
        }
        if (thread_start_detached("play", play_main, p) < 0)
                abort();
}

/* The handshake, byte by byte, so that nothing behind it is taken. */
static void *shake_hands(void *arg) {
        struct guest_side *g = arg;
        const struct op op = op_timeout(PATIENCE_MS);
        struct handshake_scanner scanner = {0};
        uint8_t answer[HANDSHAKE_LEN], byte;
        size_t used;

        do
                if (read_full(g->fd, &byte, 1, &op) < 0)
                        return NULL;
        while (handshake_scan(&scanner, &byte, 1, &used, answer) == 0);
        if (write_full(g->fd, answer, sizeof(answer), &op) >= 0)
                (void) mux_start(take_fd(&g->fd), MUX_GUEST, NULL, 0, NULL, &g->cb, &g->mux, NULL);
        return NULL;
}

static struct guest_side *start(int fd) {
        struct guest_side *g = calloc(1, sizeof(*g));

        if (!g)
                abort();
        g->fd = fd;
        pthread_mutex_init(&g->lock, NULL);
        cond_init(&g->idle);
        return g;
}

static struct guest_side *serve(struct guest_side *g) {
        if (thread_start(&g->thread, "guest", shake_hands, g) < 0)
                abort();
        return g;
}

struct guest_side *guest_side_start(int fd, guest_play play) {
        struct guest_side *g = start(fd);

        g->play = play;
        g->cb = (struct mux_callbacks){.opened = opened, .arg = g};
        return serve(g);
}

static void greeted(void *arg, json_t *theirs, json_t *ours) {
        struct guest_side *g = arg;

        g->greet(theirs, ours);
}

struct guest_side *guest_side_start_greeting(int fd, guest_play play, guest_greet greet) {
        struct guest_side *g = start(fd);

        g->play = play;
        g->greet = greet;
        g->cb = (struct mux_callbacks){.opened = opened, .greeted = greeted, .arg = g};
        return serve(g);
}

struct guest_side *guest_side_start_with(int fd, const struct mux_callbacks *cb) {
        struct guest_side *g = start(fd);

        g->cb = *cb;
        return serve(g);
}

/* Waits for the handshake's thread. */
static void join(struct guest_side *g) {
        if (!g->joined)
                pthread_join(g->thread, NULL);
        g->joined = true;
}

void guest_side_hang_up(struct guest_side *g) {
        join(g);
        mux_shutdown(g->mux, -ESHUTDOWN);
}

void guest_side_stop(struct guest_side *g) {
        join(g);
        if (g->mux)
                mux_shutdown(g->mux, -ESHUTDOWN);
        {
                LOCK(&g->lock);
                while (g->busy > 0)
                        pthread_cond_wait(&g->idle, &g->lock);
        }
        mux_unref(g->mux);
        close_fd(g->fd);
        pthread_cond_destroy(&g->idle);
        pthread_mutex_destroy(&g->lock);
        free(g);
}
