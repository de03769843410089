/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/str.h"
#include "tap.h"

/* A socket that keeps the borders between writes: what is read at once was written at once. */
static int logged[2] = {-1, -1};
static char line[65536];

/* The line after its time, without the line break; "" when nothing was written. */
static const char *read_line(void) {
        ssize_t n = recv(logged[0], line, sizeof(line) - 1, MSG_DONTWAIT);

        if (n < 0)
                return "";
        line[n] = 0;
        if (n < TIME_TEXT_LEN + 1 || line[n - 1] != '\n' || strchr(line, '\n') != line + n - 1)
                return "not one line";
        line[n - 1] = 0;
        return line + TIME_TEXT_LEN + 1;
}

static void test_plain(void) {
        log_info("started");
        CHECK_STR(read_line(), "info  started");
        CHECK(line[4] == '-' && line[10] == 'T' && line[23] == 'Z');
        log_warn("slow", "ms", LOG_NUM(-1500), "vm", "web-1", "nothing", NULL);
        CHECK_STR(read_line(), "warn  slow ms=-1500 vm=web-1 nothing=-");
        log_error("x", "n", LOG_NUM(INT64_MIN));
        CHECK_STR(read_line(), "error x n=-9223372036854775808");
}

static void test_quotes(void) {
        log_info("m", "a", "two words", "b", "", "c", "say \"hi\"", "d", "k=v", "e", "-", "f", "C:\\x", "g",
                 "caf\xc3\xa9");
        CHECK_STR(read_line(),
                  "info  m a=\"two words\" b=\"\" c=\"say \\\"hi\\\"\" d=\"k=v\" e=\"-\" f=\"C:\\\\x\" g=caf\xc3\xa9");
}

static void test_cannot_forge(void) {
        log_info("guest says", "text", "x\n2026-01-02T03:04:05.678Z error forged\r\x1b[2J\t\x7f");
        CHECK_STR(read_line(),
                  "info  guest says text=\"x\\n2026-01-02T03:04:05.678Z error forged\\x0d\\x1b[2J\\t\\x7f\"");
        log_info("m", "bad", "\xff\xc3", "c1",
                 "\xc2\x9b"
                 "31m",
                 "bidi",
                 "\xe2\x80\xae"
                 "abc",
                 "ls", "\xe2\x80\xa8");
        CHECK_STR(read_line(), "info  m bad=\"\\xff\\xc3\" c1=\"\\xc2\\x9b31m\" bidi=\"\\xe2\\x80\\xaeabc\" "
                               "ls=\"\\xe2\\x80\\xa8\"");
        log_info("two\nlines", "key\n", "v");
        CHECK_STR(read_line(), "info  two\\nlines key\\n=v");
}

static void test_redacts(void) {
        log_info("m", "api_token", "abc", "Authorization", "Bearer x", "DB_PASSWORD", "p", "client_secret", "s", "env",
                 "A=1", "id", "7", "token", NULL);
        CHECK_STR(read_line(), "info  m api_token=[redacted] Authorization=[redacted] DB_PASSWORD=[redacted] "
                               "client_secret=[redacted] env=[redacted] id=7 token=-");
}

static void test_levels(void) {
        enum log_level level = LOG_WARN;

        CHECK_INT(log_level_parse("debug", &level), 0);
        CHECK_INT(level, LOG_DEBUG);
        CHECK_INT(log_level_parse("loud", &level), -EINVAL);
        CHECK_INT(log_level_parse(NULL, &level), -EINVAL);
        CHECK_INT(level, LOG_DEBUG);

        log_debug("hidden");
        CHECK_STR(read_line(), "");
        log_setup(LOG_DEBUG, logged[1]);
        log_debug("shown");
        CHECK_STR(read_line(), "debug shown");
        log_setup(LOG_ERROR, logged[1]);
        log_warn("hidden");
        CHECK_STR(read_line(), "");
        log_setup(LOG_INFO, logged[1]);
}

static void test_long_values_are_cut(void) {
        char text[40000];

        memset(text, 'x', sizeof(text) - 1);
        text[sizeof(text) - 1] = 0;
        log_info("m", "v", text, "after", "1");
        const char *s = read_line();
        CHECK(strlen(s) < 5000);
        CHECK(strstr(s, "xxx...\" after=1"));

        memset(text, 1, sizeof(text) - 1); /* every byte becomes four */
        log_info("m", "a", text, "b", text, "c", text);
        s = read_line();
        CHECK(strlen(s) > 10000 && strlen(s) < 20000);
        CHECK(str_starts_with(s, "info  m a=\"\\x01\\x01"));
}

static void test_keeps_errno(void) {
        log_setup(LOG_INFO, -1); /* writing fails */
        errno = E2BIG;
        log_info("lost");
        CHECK_INT(errno, E2BIG);
        log_setup(LOG_INFO, logged[1]);
}

int main(void) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, logged) < 0)
                return 1;
        log_setup(LOG_INFO, logged[1]);
        RUN(test_plain);
        RUN(test_quotes);
        RUN(test_cannot_forge);
        RUN(test_redacts);
        RUN(test_levels);
        RUN(test_long_values_are_cut);
        RUN(test_keeps_errno);
        return tap_done();
}
