/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Workspaces as several tools show them. All functions return NULL when out of memory. */

#include "mcp/tool.h"

/* workspace_id, name and state, with which most results begin. */
json_t *view_brief(const struct ws_view *v);
json_t *view_resources(const struct ws_row *row);
/* Where a fork comes from. */
json_t *view_origin(const struct ws_origin *origin);
json_t *view_time(int64_t realtime_ms);
/* What a workspace may reach. */
json_t *view_policy(const struct ws_row *row);
/* Where a port of the host is reached. */
json_t *view_url(const struct core *core, uint16_t host_port);
json_t *view_forwards(const struct core *core, const struct ws_forward *list, size_t n);
/* Null for NULL. */
json_t *view_text_or_null(const char *text);
