/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Standard input of WIRE_REQ_EXEC. All of it is there before the command starts: in a pipe if it fits into one, else in
 * a file in memory. So nobody has to feed the command, one that does not read holds up nothing, and one that becomes a
 * job keeps its input.
 */

#include "guest/agent.h"

struct exec_input {
        int fd;       /* to read from; -1: none */
        size_t bytes; /* taken from agent.inputs */
};
#define EXEC_INPUT_INIT ((struct exec_input){.fd = -1})

/* 0; 1: the host has left; else err is set, and nothing is taken. */
int exec_input_receive(struct request *r, struct exec_input *ret, struct error *err);
