/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The network of all workspaces of one daemon: a private network namespace with a bridge, a tap for each machine and
 * one packet filter (rules.h). The host's own interfaces, rules and settings stay as they are.
 *
 * Processes. The *holder* (`agentiso netns hold`) made the namespace and sleeps in it, so the namespace outlives daemon
 * and helper; its lock file says who it is. The *helper* (`agentiso netns help`) joins it and does what needs the
 * privilege there: taps, rules, sockets. It ends with the daemon; when it ends alone, another one is started, which
 * finds the bridge and the taps as they were. Daemon and QEMU have no privilege over any network: they are given open
 * descriptors. *pasta* is the way to the internet; it runs while some workspace may use it, and survives the daemon,
 * too.
 *
 * Where no namespace can be made, the mode is NETWORK_USER: each machine has a process of its own between QEMU and the
 * host's sockets (usernet.h), which reaches nothing but, if it may, the internet; ports are forwarded through the
 * agent.
 *
 * network.c has what the core calls, supervise.c the holder and the helper, uplink.c pasta, taps.c the taps that are
 * prepared ahead, host.c what must be known of the host. One thread, the keeper, starts all of it, notices what ends
 * and starts it again, and prepares taps. Threads may call everything at once; waits are under an op.
 */

#include "base/deadline.h"
#include "base/error.h"
#include "network/card.h"

#define NETWORK_MACHINES_MAX 4096u
#define NETWORK_PORTS_MAX 32u      /* that one workspace opens to others */
#define NETWORK_EXCEPTIONS_MAX 32u /* ranges */
#define NETWORK_SPARES_MAX 32u     /* taps that are prepared ahead */

struct network;

struct network_range {
        uint32_t network; /* IPv4, host byte order */
        unsigned prefix_len;
};

enum network_mode {
        NETWORK_NAMESPACE,
        NETWORK_USER,
};

struct network_config {
        uint32_t network; /* of the workspaces, IPv4, host byte order; the first address is the gateway */
        unsigned prefix_len;
        const char *dir;                        /* of its own, made if it is not there */
        const char *program;                    /* agentiso itself */
        const struct network_range *exceptions; /* of the private ranges: may be reached with the internet */
        size_t n_exceptions;
        bool user_only; /* do not even try to make a namespace */
        bool required;  /* NETWORK_USER will not do: everything that needs a network fails and says why */
};

/* What a workspace may do. */
struct network_policy {
        uint32_t address;
        bool internet;
        bool inter_vm;         /* reach those, and be reached by those, that allow it as well */
        const uint16_t *ports; /* TCP and UDP, that every other workspace may reach */
        size_t n_ports;
};

/* Begins in the background: makes or joins the namespace. Copies the configuration. */
int network_open(const struct network_config *cfg, struct network **ret, struct error *err);
/* Ends the helper. The namespace and the uplink stay for the machines that run on, unless `end`: then nothing of it is
 * left. Accepts NULL. */
void network_close(struct network *net, bool end);
/* Waits until it is known. An error only when a namespace is required and cannot be had. */
int network_mode(struct network *net, const struct op *op, enum network_mode *ret, struct error *err);
/* Why there is no namespace, and what to do; unset when there is one. Waits like network_mode(). */
void network_why(struct network *net, const struct op *op, struct error *ret);

/* An open tap for a card, ready to be given to QEMU; it goes with its last descriptor. attached: it is on the bridge;
 * otherwise nothing passes until network_attach(). When it was expected, this is no more than taking it. */
int network_tap(struct network *net, const struct card *card, bool attached, const struct op *op, int *ret_fd,
                struct error *err);
/* Puts the card on the bridge, and the one of the other slot, if there is one, off it. 0 also when it was there. */
int network_attach(struct network *net, const struct card *card, const struct op *op, struct error *err);
/* Tells which addresses (slot 0) will probably be asked for next: taps for them are prepared in the background, in
 * place of those that were expected before. At most NETWORK_SPARES_MAX count. Does not block. */
void network_expect(struct network *net, const uint32_t *addresses, size_t n);
/* Which namespace it is: another number for another one. 0: there is none. */
uint64_t network_id(struct network *net);
/* Puts what the n workspaces may do in force, in place of what was before; returns when it is. An uplink that somebody
 * may use is started in the background. */
int network_apply(struct network *net, const struct network_policy *list, size_t n, const struct op *op,
                  struct error *err);
/* Starts the uplink, and returns when it is there; why it cannot be had otherwise. */
int network_uplink(struct network *net, const struct op *op, struct error *err);
/* Ends what is left of the connections of an address that gets another machine: from now on answers to them reach
 * nobody. */
int network_forget(struct network *net, uint32_t address, const struct op *op, struct error *err);
/* A non-blocking TCP connection from the gateway to a guest. -ECONNREFUSED: nobody listens there. */
int network_connect(struct network *net, uint32_t address, uint16_t port, const struct op *op, int *ret_fd,
                    struct error *err);

/* In NETWORK_USER (usernet.h), where a machine has a network of its own, at most with a way to the internet. */

/* The card of a machine whose folder this is: QEMU's end. It reaches nothing yet. */
int network_user_card(struct network *net, uint32_t address, const char *dir, int *ret_fd, struct error *err);
/* What that machine may do from now on. */
int network_user_policy(struct network *net, const char *dir, bool internet, const struct op *op, struct error *err);
