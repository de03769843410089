/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <stdint.h>

/* Reduces this process, which has one thread, and whatever it starts to these capabilities (a mask of 1 << CAP_...), as
 * far as it has them. It never gets others again. */
int privilege_keep(uint64_t capabilities);
