/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/console.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>

#include "base/thread.h"

#define LINE_LEN_MAX 400

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static int tokens = CONSOLE_BURST;
static int64_t refilled_ns;

void console_open(void) {
        /* Not blocking: a console that nobody empties must not stop PID 1. */
        int fd = open("/dev/console", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

        if (fd < 0)
                fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        for (int to = 0; fd >= 0 && to < 3; to++)
                dup2(fd, to);
        if (fd > 2)
                close_fd(fd);
}

static bool may_speak(void) {
        int64_t now = monotonic_ns(), earned;
        LOCK(&lock);

        earned = (now - refilled_ns) / (CONSOLE_INTERVAL_MS * NSEC_PER_MSEC);
        if (earned > 0) {
                tokens = (int) MIN((int64_t) CONSOLE_BURST, tokens + earned);
                refilled_ns = now;
        }
        if (tokens == 0)
                return false;
        tokens--;
        return true;
}

static void speak(const char *fmt, va_list ap) _printf_(1, 0);
static void speak(const char *fmt, va_list ap) {
        char line[LINE_LEN_MAX];
        const char prefix[] = "agentiso-guest: ";
        size_t n = sizeof(prefix) - 1;

        memcpy(line, prefix, n);
        vsnprintf(line + n, sizeof(line) - n - 2, fmt, ap);
        n = strlen(line);
        /* The text may hold what the workload chose: it must not forge lines. */
        for (size_t i = 0; i < n; i++)
                if ((unsigned char) line[i] < ' ' || line[i] == 0x7f)
                        line[i] = '?';
        line[n++] = '\r';
        line[n++] = '\n';
        if (write(STDERR_FILENO, line, n) < 0)
                return; /* there is nobody left to tell */
}

void console_say(const char *fmt, ...) {
        va_list ap;

        if (!may_speak())
                return;
        va_start(ap, fmt);
        speak(fmt, ap);
        va_end(ap);
}

void console_die(const char *fmt, ...) {
        va_list ap;

        va_start(ap, fmt);
        speak(fmt, ap);
        va_end(ap);
        sync();
        reboot(RB_AUTOBOOT);
        _exit(1);
}
