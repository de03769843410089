/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* TCP sockets on loopback for tests. Those that are returned wait at most LIMIT_MS in every call. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#include "base/deadline.h"
#include "tap.h"

#define LIMIT_MS 20000
#define LOOPBACK(n) (INADDR_LOOPBACK + (n) -1U)

static inline struct sockaddr_in loopback(uint32_t address, uint16_t port) {
        return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
}

static inline void limit_waits(int fd) {
        const struct timeval limit = {.tv_sec = LIMIT_MS / 1000};

        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

static inline uint16_t port_of(int fd) {
        struct sockaddr_in in = {0};
        socklen_t len = sizeof(in);

        getsockname(fd, (struct sockaddr *) &in, &len);
        return ntohs(in.sin_port);
}

/* A bound socket, or -1; a stream socket listens. Port 0: assigned. */
static inline int bound(int type, uint32_t address, uint16_t port) {
        const struct sockaddr_in in = loopback(address, port);
        int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

        limit_waits(fd);
        if (bind(fd, (const struct sockaddr *) &in, sizeof(in)) < 0 || (type == SOCK_STREAM && listen(fd, 512) < 0))
                return close_fd(fd);
        return fd;
}

static inline int connected(uint32_t address, uint16_t port) {
        const struct sockaddr_in in = loopback(address, port);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        limit_waits(fd);
        return connect(fd, (const struct sockaddr *) &in, sizeof(in)) < 0 ? close_fd(fd) : fd;
}

static inline int accepted(int listener) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

        limit_waits(fd);
        return fd;
}

static inline bool send_all(int fd, const void *data, size_t n) {
        return send(fd, data, n, MSG_NOSIGNAL) == (ssize_t) n;
}

/* Whether exactly this text comes next. */
static inline bool receives(int fd, const char *text) {
        char got[256] = "";
        size_t n = strlen(text);

        return n < sizeof(got) && recv(fd, got, n, MSG_WAITALL) == (ssize_t) n && memcmp(got, text, n) == 0;
}

static inline bool receives_end(int fd) {
        char c;

        return recv(fd, &c, 1, 0) == 0;
}

static inline bool receives_reset(int fd) {
        char c;

        return recv(fd, &c, 1, 0) < 0 && errno == ECONNRESET;
}

/* Closes with a reset. */
static inline void close_with_reset(int fd) {
        const struct linger linger = {.l_onoff = 1};

        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
        close(fd);
}

/* What the process used of its processors while this thread slept for ms: a thread that waits as it should uses
 * nothing, however slow the machine is. */
static inline int64_t busy_ms(int64_t ms) {
        const struct timespec nap = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
        struct timespec before, after;

        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
        nanosleep(&nap, NULL);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
        return (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000;
}
