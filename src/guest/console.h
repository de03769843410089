/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Messages for whoever reads the machine's console: few and short. The console is a file on the host, so what the
 * workload can provoke is rate limited: CONSOLE_BURST lines, then one each CONSOLE_INTERVAL_MS.
 */

#include "base/util.h"

#define CONSOLE_BURST 30
#define CONSOLE_INTERVAL_MS 2000

/* Makes standard input, output and error what they should be for PID 1: /dev/console, or else /dev/null. */
void console_open(void);
void console_say(const char *fmt, ...) _printf_(1, 2);
/* For PID 1, which must not return: says why and restarts, which ends QEMU (-no-reboot). */
_Noreturn void console_die(const char *fmt, ...) _printf_(1, 2);
