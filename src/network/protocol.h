/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Between the daemon and its helper in the namespace (network.h): one stream socket, one request at a time, each with
 * one answer. Both sides are the same program, so the messages are plain structures. A descriptor travels with the
 * first byte of an answer.
 *
 * The helper ends when the socket does.
 */

#include "network/card.h"
#include "network/host.h"
#include "network/network.h"

/* Descriptors that the helper is started with. */
#define HELPER_FD_SOCKET 3
#define HELPER_FD_USER_NS 4 /* what it joins; not there: the user namespace of the daemon has the privilege */
#define HELPER_FD_NET_NS 5

enum helper_op {
        /* struct helper_setup, then n_exceptions of struct network_range. The bridge (kept if it is there, with the
         * cards on it), the loopback interface, forwarding on, redirects off, and the tables of the packet filter.
         * Tables that are there with the same text are kept with what is in their sets: after a helper's death no
         * connection is cut before HELPER_CARDS and HELPER_POLICY follow. Others are replaced in one transaction, with
         * empty sets. Goes before all the others. */
        HELPER_SETUP,
        /* struct helper_cards: rules for the cards of these addresses (both slots); 0 for those that have them. */
        HELPER_CARDS,
        /* struct helper_tap: a new tap, with its static neighbour; it is down, and what is written to it fails (EIO),
         * as long as it is not on the bridge. Answer: its descriptor. -EBUSY: a machine has it. */
        HELPER_TAP,
        /* struct card: network_attach(). The tap of the other slot is down from then on. -ENODEV: there is no such tap.
         */
        HELPER_ATTACH,
        /* struct helper_policy, then n of struct helper_machine, then n_host addresses (uint32_t, host byte order). */
        HELPER_POLICY,
        /* uint32_t: forgets the connections of an address (conntrack). */
        HELPER_FORGET,
        /* int: a socket of this type (SOCK_STREAM, SOCK_DGRAM), not bound. Answer: its descriptor. */
        HELPER_SOCKET,
        /* int: the same, bound to port 53 of the gateway; a stream socket listens. Answer: its descriptor. */
        HELPER_NAMES,
        /* int: waits so many milliseconds (HELPER_UPLINK_MS at most) until the uplink is there, up, and has an address.
         */
        HELPER_UPLINK,
        _HELPER_OP_MAX,
};

struct helper_request {
        uint32_t op;
        uint32_t length; /* of what follows, bytes; at most HELPER_BODY_MAX */
};

struct helper_answer {
        int32_t result;  /* 0 or a negative errno */
        uint32_t length; /* of the error's text and its hint that follow, without NUL; at most HELPER_TEXT_MAX */
        uint32_t has_fd; /* 1: a descriptor comes with this answer */
};

#define HELPER_TEXT_MAX 4096u
#define HELPER_BODY_MAX (1024u * 1024u)
#define HELPER_HOSTS_MAX HOST_ADDRESSES_MAX
/* Time for each request on the helper's side; HELPER_UPLINK has its own. */
#define HELPER_MS 10000
#define HELPER_UPLINK_MS 5000

struct helper_setup {
        uint32_t network, gateway, prefix_len, n_exceptions;
};

struct helper_cards {
        uint32_t address, n;
};

struct helper_tap {
        struct card card;
        uint32_t attached; /* 0 or 1 */
};

struct helper_policy {
        uint32_t n, n_host;
};

struct helper_machine {
        uint32_t address;
        uint16_t internet, inter_vm; /* 0 or 1 */
        uint16_t n_ports, ports[NETWORK_PORTS_MAX];
};

/* Serves the socket until it ends; what `agentiso netns help` does. Returns an exit status. */
int helper_run(void);
/* Joins the namespaces at HELPER_FD_USER_NS and HELPER_FD_NET_NS if they are there, else makes new ones. Writes who it
 * is into the lock file at HELPER_FD_SOCKET (lockfile.h), which it holds locked as long as it lives, writes one byte to
 * descriptor 1, and sleeps until a signal ends it. `agentiso netns hold`. */
int holder_run(void);
