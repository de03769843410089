/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The platform (vm/platform.h), found out in the background.
 *
 * Booting a kernel to try KVM takes seconds, QEMU or the boot files can be missing, and none of that may keep the
 * daemon from serving: clients list tools and look at workspaces meanwhile. The probe runs on a thread of its own; who
 * needs the platform waits for the answer under his own op. After a failure the next who asks has it tried again, so
 * that installing QEMU or building an image needs no restart of the daemon.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "daemon/config.h"
#include "vm/platform.h"

/* Limit of one probe: PROBE_KVM_MS and the start of a few programs on a busy machine. */
#define PROBE_MS 20000

struct probe;

/* Borrows cfg. Nothing is probed yet. */
int probe_new(const struct config *cfg, struct probe **ret, struct error *err);
/* Begins to probe, so that the answer is there when it is needed. */
void probe_begin(struct probe *p);
/* The platform, owned by the probe and unchanged until its end. On failure err says what is missing. */
int probe_get(struct probe *p, const struct op *op, const struct platform **ret, struct error *err);
/* Ends a probe that runs. Nobody may be in probe_get() any more. Accepts NULL. */
void probe_free(struct probe *p);
