/* SPDX-License-Identifier: Apache-2.0 */
#include "talk.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/json.h"
#include "base/str.h"

#define PATIENCE_MS 60000
#define INPUT_MAX (32u << 20)

struct agent *agent;
const char *script;

static struct guest_side *guest;
static int raw_fd = -1;
static json_t *request_copy;
static struct buf input;
static bool input_end;

const struct op *patience(void) {
        static _Thread_local struct op op;

        op = op_timeout(PATIENCE_MS);
        return &op;
}

bool begin(guest_play play) {
        int fds[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                return false;
        raw_fd = fcntl(fds[1], F_DUPFD_CLOEXEC, 0);
        guest = guest_side_start(fds[1], play);
        return agent_open(fds[0], NULL, patience(), &agent, NULL) >= 0;
}

void end(void) {
        agent_unref(agent);
        agent = NULL;
        guest_side_stop(guest);
        raw_fd = close_fd(raw_fd);
        json_decref(request_copy);
        request_copy = NULL;
        buf_free(&input);
        input_end = false;
}

void hang_up(void) {
        guest_side_hang_up(guest);
        raw_fd = close_fd(raw_fd);
}

int guest_raw_fd(void) {
        return raw_fd;
}

bool stopped_for(int64_t ms, const struct buf *late) {
        const struct timespec pause = {.tv_sec = ms / MSEC_PER_SEC, .tv_nsec = ms % MSEC_PER_SEC * NSEC_PER_MSEC};
        const pid_t parent = getpid();
        int status = -1;

        pid_t pid = fork();
        if (pid == 0) {
                kill(parent, SIGSTOP);
                ssize_t n = write(raw_fd, late->data, late->len);
                nanosleep(&pause, NULL);
                kill(parent, SIGCONT);
                _exit(n == (ssize_t) late->len ? 0 : 1);
        }
        return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

void tell(struct mux_stream *s, const char *text) {
        _cleanup_json_ json_t *msg = NULL;

        if (json_parse(text, strlen(text), 1 << 20, 16, &msg, NULL) < 0)
                abort();
        (void) mux_send_msg(s, msg, patience());
}

void send_text(struct mux_stream *s, enum wire_channel ch, const char *text) {
        (void) mux_send_data(s, ch, text, strlen(text), patience());
}

void until_closed(struct mux_stream *s) {
        for (;;) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

                if (mux_recv(s, patience(), &e) < 0 || e.kind == MUX_CLOSED || e.kind == MUX_LOST)
                        return;
        }
}

void play_script(struct mux_stream *s, const json_t *request) {
        _cleanup_free_ char *copy = strdup(script);
        char *save = NULL;

        for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                if (*line == '!') {
                        send_text(s, WIRE_CH_OUT, line + 1);
                } else if (*line == '?') {
                        send_text(s, WIRE_CH_ERR, line + 1);
                } else if (*line == '+') {
                        _cleanup_free_ char *news = str_printf("%s\n", line + 1);
                        send_text(s, WIRE_CH_NEWS, news);
                } else if (*line == '=') {
                        send_text(s, WIRE_CH_IN, line + 1);
                } else if (*line == '.') {
                        (void) mux_send_eof(s, WIRE_CH_OUT, patience());
                        (void) mux_send_eof(s, WIRE_CH_ERR, patience());
                } else {
                        tell(s, line);
                }
        }
}

void play_listener(struct mux_stream *s, const json_t *request) {
        json_decref(request_copy);
        request_copy = json_deep_copy(request);
        buf_free(&input);
        input = BUF_INIT(INPUT_MAX);
        input_end = false;
        const bool more = json_is_true(json_object_get(request, "stdin")) || json_object_get(request, "eof");
        while (more && !input_end) {
                _cleanup_mux_event_ struct mux_event e = MUX_EVENT_INIT;

                if (mux_recv(s, patience(), &e) < 0 || e.kind == MUX_CLOSED || e.kind == MUX_LOST)
                        return;
                if (e.channel != WIRE_CH_IN)
                        abort();
                if (e.kind == MUX_DATA && buf_append(&input, e.data.data, e.data.len) < 0)
                        abort();
                input_end = e.kind == MUX_EOF;
        }
        play_script(s, request);
}

const json_t *seen_request(void) {
        return request_copy;
}

const struct buf *seen_input(void) {
        return &input;
}

bool seen_input_end(void) {
        return input_end;
}
