/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Lists of ports as text, ascending, each once: "80,443". Pure. */

#include "base/error.h"
#include "network/network.h"

/* At most NETWORK_PORTS_MAX, of which ret has room; how many there are. NULL and "": none. */
size_t ports_parse(const char *text, uint16_t ret[NETWORK_PORTS_MAX]);
/* Sorts, and drops what is there twice. Owned; NULL: out of memory. */
char *ports_text(const uint16_t *ports, size_t n);
