/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The packet filter of user networking: what a guest sends is looked at frame by frame, before anything else sees it.
 *
 * Only ARP for the gateway and the name server and plain IPv4 from the guest's own MAC and address get as far as the
 * question where they may go; all else is dropped. Where they may not go is answered, with a reset or with ICMP
 * "prohibited", so that programs learn it at once; answers are limited in number. A datagram that takes fragments does
 * not get out.
 *
 * No state but the count of answers: the same is asked of every frame, so what is taken away is gone for connections
 * that run.
 */

#include <net/ethernet.h>

#include "network/card.h"
#include "network/host.h"
#include "network/network.h"

#define FILTER_FRAME_MAX (ETH_HLEN + ETH_DATA_LEN)
/* Ethernet, IP, ICMP, and what ICMP quotes: an IP header and 8 bytes. */
#define FILTER_ANSWER_MAX (ETH_HLEN + 20 + 8 + 20 + 8)
#define FILTER_ANSWERS_PER_SECOND 100u

struct user_filter {
        uint32_t address; /* of the guest; IPv4, host byte order, as all here */
        uint8_t mac[CARD_MAC_BYTES];
        struct network_range network; /* of all guests */
        uint32_t gateway, names;
        bool internet;
        struct network_range exceptions[NETWORK_EXCEPTIONS_MAX]; /* of the private ranges */
        size_t n_exceptions;
        uint32_t host[HOST_ADDRESSES_MAX]; /* the host's own addresses */
        size_t n_host;
        int64_t answers_until_ns; /* end of the second that they are counted in */
        unsigned n_answers;
};

enum verdict {
        VERDICT_PASS,
        VERDICT_DROP,
        VERDICT_ANSWER, /* dropped, and the guest is told */
};

/* A filter that lets nothing out; the host's addresses are still to be filled in. */
void user_filter_init(struct user_filter *f, const struct network_range *network, uint32_t address);
/* For VERDICT_ANSWER, and only then, *ret_n bytes are written to answer. now: of the monotonic clock. */
enum verdict user_filter_look(struct user_filter *f, const uint8_t *frame, size_t n, int64_t now_ns,
                              uint8_t answer[FILTER_ANSWER_MAX], size_t *ret_n);
