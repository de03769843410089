/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The state directory and its lock.
 *
 * One daemon owns a state directory: it holds an flock on <state_dir>/lock from before it touches anything there until
 * its end. The file also names the holder (pid, start time and boot id), so that a second daemon can say who is in its
 * way and a client can tell a daemon that is starting from none at all. Only the flock decides; the name is for people.
 */

#include "base/error.h"
#include "base/process.h"

/* Makes the directory (0700) and checks that nobody else could have put anything into it. */
int state_dir_prepare(const char *dir, struct error *err);
/* A lock whose holder has died may stay for the moment that the kernel needs to close its files. */
#define STATE_DIR_LOCK_MS 2000

/* Takes the lock and writes our name into it: the fd that holds it. -EWOULDBLOCK (conflict): err names the
 * holder. Waits up to STATE_DIR_LOCK_MS for a lock that nobody alive seems to hold. */
int state_dir_lock(const char *dir, int *ret_fd, struct error *err);
/* Who wrote its name last and still lives. -ESRCH: nobody. */
int state_dir_holder(const char *dir, struct proc_id *ret);
