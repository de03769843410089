/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Whether guests really run under KVM, and how fast the host's time stamp counter runs. */

#include "vm/platform.h"

enum probe_answer {
        PROBE_WORKS,
        PROBE_FAILS,  /* a guest does not come up: this stays so until something of the host changes */
        PROBE_ABSENT, /* /dev/kvm cannot be opened: cheap to find out again, and may change at any moment */
};

/* Boots the kernel under KVM in a folder below scratch_dir, with a limit of PROBE_KVM_MS. The folder
 * belongs to one prober at a time: what an earlier one left there is ended and removed. *ret_reason (owned): one
 * sentence. Negative only when op ended or the host had no memory or room to try. */
int probe_kvm(const struct platform *p, const char *scratch_dir, const struct op *op, enum probe_answer *ret,
              char **ret_reason, struct error *err);
/* 0 when it opens; *ret_reason (owned) says why not. -ENOMEM. */
int probe_kvm_device(bool *ret_open, char **ret_reason);
/* 0 where it cannot be told. Takes some 20 ms. */
unsigned probe_tsc_khz(void);
