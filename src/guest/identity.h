/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The names by which programs know a machine: in the kernel, and in files.
 *
 * The files are written again at each start, before anybody can use the machine, so they are not flushed: what a crash
 * leaves of them is never read. That of a copy of a machine is changed in place if that can be done without tearing it,
 * because making a file, and renaming it, is the most expensive thing that a machine does when it goes on from a saved
 * state (35 ms under emulation; this is 5). Else it is replaced whole, by a rename: a link into a service's folder, as
 * images have it, would lead nowhere.
 *
 * The boot id. The kernel makes it when somebody reads it first, and keeps it for good: all copies of a machine would
 * have the same. So a file of the agent is mounted over it, which is changed together with the machine id: a machine
 * that gets another one than it had is a copy. (systemd-nspawn does the same for containers.) Who mounts another /proc
 * sees the kernel's.
 */

#include "base/error.h"
#include "guest/args.h"

struct agent;

/* For the machine's first process, when /proc and /run are there: the boot id. */
void identity_init(struct agent *a);
/* sethostname(2), /etc/hostname, and our line of /etc/hosts. */
int identity_set_hostname(const char *hostname, struct error *err);
/* /etc/machine-id, and the boot id. */
int identity_set_machine_id(struct agent *a, const char *id, struct error *err);
/* /etc/resolv.conf. */
int identity_set_dns(const struct configure_args *a, struct error *err);
