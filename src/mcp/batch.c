/* SPDX-License-Identifier: Apache-2.0 */
#include "mcp/batch.h"

#include <stdatomic.h>

#include "base/buf.h"
#include "base/thread.h"
#include "mcp/rpc.h"

struct batch {
        atomic_uint refs;
        struct conn *conn;
        pthread_mutex_t lock; /* guards out */
        struct buf out;       /* "[answer,answer" */
};

struct batch *batch_new(struct conn *conn) {
        struct batch *b = calloc(1, sizeof(*b));
        if (!b)
                return NULL;
        atomic_init(&b->refs, 1);
        b->conn = conn_ref(conn);
        b->out = BUF_INIT(2 * RPC_MESSAGE_MAX);
        pthread_mutex_init(&b->lock, NULL);
        return b;
}

struct batch *batch_ref(struct batch *b) {
        if (b)
                atomic_fetch_add(&b->refs, 1);
        return b;
}

/* Sends what is there. Called with the lock held, or by the last owner. */
static void flush(struct batch *b) {
        if (b->out.len == 0 || buf_append_byte(&b->out, ']') < 0)
                return;
        size_t len = b->out.len;
        char *text = buf_steal(&b->out);
        if (text)
                (void) conn_send(b->conn, CONN_RESPONSE, text, len);
}

void batch_unref(struct batch *b) {
        if (!b || atomic_fetch_sub(&b->refs, 1) > 1)
                return;
        flush(b);
        buf_free(&b->out);
        conn_unref(b->conn);
        pthread_mutex_destroy(&b->lock);
        free(b);
}

void batch_add(struct batch *b, char *text, size_t len) {
        LOCK(&b->lock);
        if (b->out.len > 0 && b->out.len + len + 2 > RPC_MESSAGE_MAX)
                flush(b);
        /* Both fit: a single answer is smaller than RPC_MESSAGE_MAX. */
        if (buf_append_byte(&b->out, b->out.len > 0 ? ',' : '[') == 0)
                (void) buf_append(&b->out, text, len);
        free(text);
}
