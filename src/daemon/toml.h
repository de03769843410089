/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* TOML to JSON by toml++; the only C++ in the project is behind this function. C and C++ include this header. */

#include <stddef.h>

#include <jansson.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Parses TOML. *ret_json is an object; dates and times, which the configuration has no use for, are refused.
 * *ret_positions maps dotted keys ("vm.accel") to [line, column]. Both are owned by the caller. On a syntax error -1
 * is returned with *ret_line, *ret_column and a message (owned) in *ret_message; -2 is out of memory.
 */
int toml_to_json(const char *text, size_t len, json_t **ret_json, json_t **ret_positions, char **ret_message,
                 unsigned *ret_line, unsigned *ret_column);

#ifdef __cplusplus
}
#endif
