/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Between a daemon and the process of a machine's user networking (usernet.h): one connection for each request, with
 * one answer. The process may be older than the daemon, so each request names the version of all that follows.
 */

#include "network/network.h"

/* Descriptors that the process is started with. */
#define USERNET_FD_QEMU 3    /* QEMU's frames, each behind its length: 4 bytes, big-endian */
#define USERNET_FD_CONTROL 4 /* a listening unix socket */

#define USERNET_VERSION 1u
/* From the connection to the whole of the request; the next one waits as long. */
#define USERNET_REQUEST_MS 2000

/* Followed by the exceptions. */
struct usernet_request {
        uint32_t version;
        uint32_t internet; /* 0 or 1 */
        uint32_t n_exceptions;
};

struct usernet_answer {
        int32_t result; /* 0 or a negative errno */
};

/* What `agentiso netns user` does; its arguments are text. Goes on in the background and returns an exit status: 0 when
 * all is well. */
int usernet_run(const char *address, const char *network, const char *prefix_len);
