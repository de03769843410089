/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The row file_transfer of the group in files.c, and what the two files share. */

#include "mcp/tool.h"

int file_transfer(const struct tool_call *call, struct tool_result *ret, struct error *err);

/* Says where to look when a path of the guest is not there. Returns r. */
int explain_not_found(int r, const char *path, struct error *err);
