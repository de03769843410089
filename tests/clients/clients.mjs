// SPDX-License-Identifier: Apache-2.0
// The clients that a session may run with.

import assert from "node:assert/strict";

import { Client as ClientV2 } from "@modelcontextprotocol/client";
import { StdioClientTransport as StdioV2 } from "@modelcontextprotocol/client/stdio";
import { Client as ClientV1 } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport as StdioV1 } from "@modelcontextprotocol/sdk/client/stdio.js";

const INFO = { name: "agentiso-tests", version: "1" };
const MODERN = ["modern", "2026-07-28"];
const LEGACY = ["legacy", "2025-11-25"];

async function v1(server, onerror) {
  const client = new ClientV1(INFO);
  const transport = new StdioV1(server);
  client.onerror = onerror;
  await client.connect(transport);
  return { client, transport, call: (params, options) => client.callTool(params, undefined, options) };
}

// `expected`: the era and the version that the client and the server must have agreed on.
async function v2(mode, expected, server, onerror) {
  const client = new ClientV2(INFO, { versionNegotiation: { mode } });
  const transport = new StdioV2(server);
  client.onerror = onerror;
  await client.connect(transport);
  assert.deepEqual([client.getProtocolEra(), client.getNegotiatedProtocolVersion()], expected);
  return { client, transport, call: (params, options) => client.callTool(params, options) };
}

// Each takes the server's command and a function for complaints, and gives { client, transport, call }.
export const CLIENTS = {
  v1,
  "v2-legacy": (server, onerror) => v2("legacy", LEGACY, server, onerror),
  "v2-modern": (server, onerror) => v2({ pin: MODERN[1] }, MODERN, server, onerror),
  "v2-auto": (server, onerror) => v2("auto", MODERN, server, onerror),
};
