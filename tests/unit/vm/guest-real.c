/* SPDX-License-Identifier: Apache-2.0 */
/* Apart from the tests, because the two sides have each their own `struct agent`. */
#include "guest-real.h"

#include "guest-side.h"
#include "guest/connection.h"

struct guest_real {
        struct agent agent;
        struct connection *connection;
        struct guest_side *side;
};

struct guest_real *guest_real_start(int fd) {
        struct guest_real *g = calloc(1, sizeof(*g));

        if (!g || agent_init(&g->agent, NULL, NULL) < 0)
                abort();
        g->agent.root = ROOT_MOUNTED;
        g->connection = connection_new(&g->agent);
        if (!g->connection)
                abort();
        const struct mux_callbacks cb = connection_callbacks(g->connection);
        g->side = guest_side_start_with(fd, &cb);
        return g;
}

void guest_real_stop(struct guest_real *g) {
        guest_side_stop(g->side);
        connection_unref(g->connection);
        agent_free(&g->agent);
        free(g);
}
