/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What must be known of the host. */

#include <stddef.h>
#include <stdint.h>

#define HOST_ADDRESSES_MAX 4096u

/* The IPv4 addresses of the host's interfaces, in host byte order. */
int host_addresses(uint32_t *ret, size_t max, size_t *ret_n);
/* A socket that becomes readable when they change; the content is of no interest. */
int host_watch(void);
