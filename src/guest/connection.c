/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/connection.h"

#include <string.h>

struct connection *connection_new(struct agent *a) {
        struct connection *c = calloc(1, sizeof(*c));

        if (c)
                *c = (struct connection){.agent = a, .refs = 1};
        return c;
}

struct connection *connection_ref(struct connection *c) {
        atomic_fetch_add(&c->refs, 1);
        return c;
}

void connection_unref(struct connection *c) {
        if (!c || atomic_fetch_sub(&c->refs, 1) > 1)
                return;
        explicit_bzero(c->session, sizeof(c->session));
        free(c);
}

/* Takes as long whatever the difference is. */
static bool same(const char *a, const char *b) {
        unsigned differences = 0;

        for (size_t i = 0; i < WIRE_SESSION_LEN; i++)
                differences |= (unsigned char) (a[i] ^ b[i]);
        return differences == 0;
}

bool connection_trusted(struct connection *c) {
        struct agent *a = c->agent;
        LOCK(&a->lock);

        return !a->has_session || same(a->session, c->session);
}

void connection_set_session(struct connection *c, const char *session) {
        struct agent *a = c->agent;
        LOCK(&a->lock);

        memcpy(a->session, session, sizeof(a->session));
        memcpy(c->session, session, sizeof(c->session));
        a->has_session = true;
}

static void greeted(void *arg, json_t *theirs, json_t *ours) {
        struct connection *c = arg;
        const json_t *session = json_object_get(theirs, "session");

        if (json_string_length(session) == WIRE_SESSION_LEN) {
                LOCK(&c->agent->lock);
                memcpy(c->session, json_string_value(session), sizeof(c->session));
        }
        json_object_del(theirs, "session");
        /* Without memory for that the host is not told, and learns it from its first request. */
        (void) json_object_set_new(ours, "agent", json_string(AGENTISO_VERSION));
        (void) json_object_set_new(ours, "session_ok", json_boolean(connection_trusted(c)));
}

static void opened(void *arg, struct mux_stream *stream, json_t *request) {
        dispatch_opened(arg, stream, request);
}

static void lost(void *arg, int err) {
        struct connection *c = arg;

        freezer_lost(&c->agent->freezer, c);
}

struct mux_callbacks connection_callbacks(struct connection *c) {
        return (struct mux_callbacks){.greeted = greeted, .opened = opened, .lost = lost, .arg = c};
}
