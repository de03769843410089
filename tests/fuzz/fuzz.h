/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A fuzz target is one file fuzz-NAME.c that defines the function below, and a folder corpus/NAME with seeds. `run`
 * builds it with libFuzzer; the ordinary build links it with replay.c into a test that runs the seeds. A target that
 * needs more than src/base and src/wire names its sources in one line of a comment, for `run`:
 *
 *     FUZZ_SOURCES: src/guest/a.c src/guest/b.c
 *
 * Targets check what they can about the result (ASSERT); the sanitizers find the rest.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ASSERT(cond)                                                                       \
        do {                                                                               \
                if (!(cond)) {                                                             \
                        fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond); \
                        abort();                                                           \
                }                                                                          \
        } while (0)
