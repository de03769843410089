/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/tools.h"

const struct tool_group *const tool_groups[] = {
        &lifecycle_tools, &fork_tools,     &exec_tools,    &job_tools,    &env_tools, &parallel_tools,
        &file_tools,      &snapshot_tools, &network_tools, &host_methods, NULL,
};
