/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Says on standard error when the daemon at the other end of a socket runs another program file than this process: an
 * upgrade replaces the file, and a daemon that runs already goes on with the old one until it is stopped. */
void upgrade_warn(int fd);
