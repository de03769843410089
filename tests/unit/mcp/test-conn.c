/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/io.h"
#include "base/str.h"
#include "base/thread.h"
#include "mcp/conn.h"
#include "mcp/server.h"
#include "tap.h"

#define LIMIT_MS 20000

/* Joins the lines that were read with '|', "!" for one that was too long. */
struct seen {
        struct buf text;
};

static void on_line(void *arg, char *text, size_t len) {
        struct seen *seen = arg;

        CHECK_INT(text[len], 0);
        (void) buf_append(&seen->text, text, len);
        (void) buf_append_byte(&seen->text, '|');
}

static void on_oversized(void *arg) {
        (void) buf_append_str(&((struct seen *) arg)->text, "!|");
}

struct writer {
        int fd;
        const char *data;
        size_t len, chunk;
};

static void *write_chunks(void *arg) {
        struct writer *w = arg;
        struct op op = op_timeout(LIMIT_MS);

        for (size_t i = 0; i < w->len; i += w->chunk)
                if (write_full(w->fd, w->data + i, MIN(w->chunk, w->len - i), &op) < 0)
                        break;
        (void) shutdown(w->fd, SHUT_WR);
        return NULL;
}

/* Sends data in chunks of that size, then ends; what conn_read() made of it. The caller's to free. */
static char *read_back(const char *data, size_t len, size_t chunk) {
        struct seen seen = {.text = BUF_INIT(64u * 1024u * 1024u)};
        struct conn_handler handler = {on_line, on_oversized, &seen};
        struct op op = op_timeout(LIMIT_MS);
        struct conn *c;
        pthread_t thread;
        int sv[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0 || conn_new(sv[0], &c, NULL) < 0)
                return NULL;
        struct writer w = {sv[1], data, len, chunk};
        CHECK_INT(thread_start(&thread, "writer", write_chunks, &w), 0);
        CHECK_INT(conn_read(c, &handler), 0);
        pthread_join(thread, NULL);
        conn_close(c, &op);
        conn_unref(c);
        close_fd(sv[1]);
        (void) buf_append_str(&seen.text, "");
        return buf_steal(&seen.text);
}

static void test_lines(void) {
        static const struct {
                const char *sent, *seen;
        } rows[] = {
                {"a\nb\n", "a|b|"},
                {"a\r\nb\r\n", "a|b|"},
                {"\n\n \t\r\na\n\n", "a|"},
                {"a\nb", "a|b|"},
                {"a", "a|"},
                {"", ""},
                {"\n", ""},
                {"a\r", "a|"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
                for (size_t chunk = 1; chunk < 9; chunk += 7) {
                        _cleanup_free_ char *got = read_back(rows[i].sent, strlen(rows[i].sent), chunk);
                        CHECK_STR(got, rows[i].seen);
                }
}

static void test_a_line_that_is_too_long(void) {
        size_t len = MCP_LINE_MAX + 300000;
        _cleanup_free_ char *data = malloc(len + 16);

        REQUIRE(data);
        memcpy(data, "first\n", 6);
        memset(data + 6, 'x', len - 6);
        memcpy(data + len, "\nlast\n", 6);
        _cleanup_free_ char *got = read_back(data, len + 6, 1u << 20);
        CHECK_STR(got, "first|!|last|");

        /* The same without an end: one report, nothing else. */
        _cleanup_free_ char *open = read_back(data + 6, len - 6, 1u << 20);
        CHECK_STR(open, "!|");
}

static void test_the_longest_line(void) {
        _cleanup_free_ char *data = malloc(MCP_LINE_MAX + 1);

        REQUIRE(data);
        memset(data, 'x', MCP_LINE_MAX);
        data[MCP_LINE_MAX] = '\n';
        _cleanup_free_ char *got = read_back(data, MCP_LINE_MAX + 1, 1u << 20);
        CHECK(got && strlen(got) == MCP_LINE_MAX + 1 && got[0] == 'x');
}

static int send_text(struct conn *c, enum conn_kind kind, char fill, size_t len) {
        char *text = malloc(len + 1);

        if (!text)
                return -ENOMEM;
        memset(text, fill, len);
        text[len] = 0;
        return conn_send(c, kind, text, len);
}

/* Fills the socket and the queue of a client that does not read; then reads all: how many of each kind arrive. */
static void test_progress_is_dropped_first(void) {
        struct op op = op_timeout(LIMIT_MS);
        struct conn *c;
        int sv[2];
        unsigned responses = 0, progress = 0, dropped = 0;

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
        REQUIRE(conn_new(sv[0], &c, NULL) == 0);
        for (int i = 0; i < 200; i++) {
                CHECK_INT(send_text(c, CONN_RESPONSE, 'r', 10000), 0);
                int r = send_text(c, CONN_PROGRESS, 'p', 1000);
                CHECK(r == 0 || r == -ENOBUFS);
                dropped += r != 0;
        }
        CHECK(dropped > 50);

        _cleanup_buf_ struct buf in = BUF_INIT(16u << 20);
        while (responses < 200 && buf_reserve(&in, 65536) == 0) {
                if (wait_fd(sv[1], POLLIN, &op) < 0)
                        break;
                ssize_t n = read(sv[1], in.data + in.len, 65536);
                if (n <= 0)
                        break;
                in.len += (size_t) n;
                responses = progress = 0;
                for (char *p = in.data, *nl; (nl = memchr(p, '\n', (size_t) (in.data + in.len - p))); p = nl + 1) {
                        CHECK(nl - p == (*p == 'r' ? 10000 : 1000));
                        *(*p == 'r' ? &responses : &progress) += 1;
                }
        }
        CHECK_INT(responses, 200);
        CHECK(progress <= 200 - dropped);
        conn_close(c, &op);
        conn_unref(c);
        close_fd(sv[1]);
}

static void test_close_flushes_and_ends_waiting(void) {
        struct conn *c;
        int sv[2];
        struct op now = op_timeout(50);

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
        REQUIRE(conn_new(sv[0], &c, NULL) == 0);
        /* More than the socket takes: close gives up after its time. */
        CHECK_INT(send_text(c, CONN_RESPONSE, 'r', 4u << 20), 0);
        conn_close(c, &now);
        CHECK_INT(send_text(c, CONN_RESPONSE, 'r', 10), -ENOTCONN);
        conn_unref(c);
        close_fd(sv[1]);
}

static void test_a_client_that_is_gone(void) {
        struct seen seen = {.text = BUF_INIT(1024)};
        struct conn_handler handler = {on_line, on_oversized, &seen};
        struct op op = op_timeout(LIMIT_MS);
        struct conn *c;
        int sv[2];

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
        REQUIRE(conn_new(sv[0], &c, NULL) == 0);
        close_fd(sv[1]);
        CHECK_INT(conn_read(c, &handler), -ECONNRESET);
        (void) send_text(c, CONN_RESPONSE, 'r', 10);
        CHECK_INT(send_text(c, CONN_RESPONSE, 'r', 10), -ENOTCONN);
        conn_close(c, &op);
        conn_unref(c);
        buf_free(&seen.text);
}

int main(void) {
        RUN(test_lines);
        RUN(test_a_line_that_is_too_long);
        RUN(test_the_longest_line);
        RUN(test_progress_is_dropped_first);
        RUN(test_close_flushes_and_ends_waiting);
        RUN(test_a_client_that_is_gone);
        return tap_done();
}
