/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The MCP server: any number of client connections over stream sockets, both protocol eras told apart message by
 * message, one thread per running tool call.
 *
 * A connection has a reader thread (framing, JSON, dispatch of quick requests) and a writer thread with a bounded
 * queue: progress is dropped first, responses never; a client that does not read for MCP_WRITE_STALL_MS loses its
 * connection, not anybody else's. Each connection is an owner (workspace.h): its end orphans what it made and cancels
 * its calls.
 */

#include "mcp/tool.h"

#define MCP_LINE_MAX (16u * 1024u * 1024u) /* bytes of one message from a client */
#define MCP_CONNECTIONS_MAX 256u
#define MCP_CALLS_PER_CONNECTION 64u
#define MCP_CALLS_MAX 512u
#define MCP_WRITE_STALL_MS 30000
#define MCP_PROGRESS_MS 5000

struct mcp_server;

/* Reads and checks all tool descriptions; borrows core. */
int mcp_server_new(struct core *core, const struct tool_group *const *groups, struct mcp_server **ret,
                   struct error *err);
/* Takes over a connected stream socket (also on failure) and serves it on threads of its own. */
int mcp_server_add(struct mcp_server *s, int fd, struct error *err);
/* Ends all connections, cancels and waits for their calls (bounded by op). True: all have ended and the server is
 * freed. False: some still run and use the server and the core; the caller must leave both alone and end the process.
 */
bool mcp_server_close(struct mcp_server *s, const struct op *op);

/* The exact bytes of tools/list's "tools" array, for the documentation generator and the tests. */
int mcp_tools_json(const struct tool_group *const *groups, json_t **ret, struct error *err);
