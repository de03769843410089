/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The far end of an agent's channel, in this process: the real request handlers of the guest. Once at a time. */

struct guest_real;

/* Answers the handshake on fd (taken) and serves it until guest_real_stop(). */
struct guest_real *guest_real_start(int fd);
void guest_real_stop(struct guest_real *g);
