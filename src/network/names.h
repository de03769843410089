/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Names for the guests: relays DNS between the gateway's port 53 and the name servers of the host.
 *
 * The daemon makes the host's side of it in its own namespace, so a name server on loopback (127.0.0.53) is reached,
 * and the guests need no way to it. The server sees the host ask, which may have rights there that no guest has: only
 * one question for records passes. Another operation (an update, a notification), a transfer of a zone, or a message
 * with more or less than one question is answered with REFUSED (RFC 1035, 4.1). Nothing else is looked into.
 *
 * Each query over UDP has a socket of its own, whose port the kernel chooses at random; an answer must come from the
 * server that was asked and have the query's id. Over TCP one message is read whole, passed on as it came, and answered
 * before the next one is read; each connection of a guest has one of its own to the server.
 *
 * One thread does all of UDP; a connection over TCP has a thread. What a guest asks too much pushes out what it asked
 * before (UDP) or is refused (TCP); when all guests together ask too much, what is pushed out is the oldest query, or
 * connection, of the guest that has most. A query with no server to answer it gets SERVFAIL at once, so that programs
 * in the guest do not wait.
 */

#include <stdint.h>

#define NAMES_QUERIES_MAX 512u      /* in flight */
#define NAMES_QUERIES_EACH_MAX 128u /* of one guest */
#define NAMES_MESSAGE_MAX 65535u
#define NAMES_SERVERS_MAX 3u /* of resolv.conf, as the C library has it */
#define NAMES_SERVER_MS 2000
#define NAMES_CONNECTIONS_MAX 64u
#define NAMES_CONNECTIONS_EACH_MAX 8u
/* Over TCP: for a query to come, for servers to answer it, and for the guest to take the answer; and for all of a
 * connection. */
#define NAMES_MESSAGE_MS 10000
#define NAMES_CONNECTION_MS 60000

struct names;

struct names_config {
        /* How guests reach it: bound, the one of TCP listens. */
        int udp_fd, tcp_fd;
        /* Only its lines with `nameserver` count; it is read again when it changed. */
        const char *resolv_conf;
        uint16_t server_port; /* 0: that of DNS */
        int64_t server_ms;    /* for a server's answer, and for a connection to it; 0: NAMES_SERVER_MS */
        /* 0: NAMES_MESSAGE_MS, NAMES_CONNECTION_MS */
        int64_t message_ms, connection_ms;
};

/* Takes both sockets over if it succeeds. */
int names_start(const struct names_config *cfg, struct names **ret);
/* Ends everything and returns when it is gone. Accepts NULL. */
void names_stop(struct names *n);
