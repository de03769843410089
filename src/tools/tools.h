/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The groups of tools and methods, one pair of files each: <group>.json describes them, <group>.c runs them. */

#include "mcp/tool.h"

extern const struct tool_group lifecycle_tools, fork_tools, exec_tools, job_tools, env_tools, parallel_tools,
        file_tools, snapshot_tools, network_tools, host_methods;

/* The descriptions, embedded at build time (embed.py). */
extern const char lifecycle_json[], fork_json[], exec_json[], jobs_json[], env_json[], parallel_json[], files_json[],
        snapshots_json[], network_json[], host_json[];
