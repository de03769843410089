/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The name of a process in its lock file.
 *
 * Who holds the flock on such a file also writes who it is into it: pid, start time and boot id. So one that wants the
 * lock can say who is in its way, and the holder can be found without it. Only the flock decides who holds it; a name
 * may be there that nobody has any more, and lockfile_holder() knows that.
 */

#include "base/process.h"

/* Writes the name of this process, or of another one, into the open file, in place of what was there. */
int lockfile_write_name(int fd);
int lockfile_write(int fd, const struct proc_id *id);
/* Who wrote its name last and still lives. -ESRCH: nobody. */
int lockfile_holder(const char *path, struct proc_id *ret);
