#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A demonstration session: drives an MCP server over stdio as an agent would, and prints each step with its time.

usage: demo.py COMMAND [ARGUMENT...]      the command that starts the server, e.g. agentiso serve
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "lib"))
from mcp_client import McpClient, ToolError  # noqa: E402

SCRIPT = """\
import platform
print("hello from Linux", platform.release())
"""


class Session:
    def __init__(self, client):
        self.client = client

    def step(self, what, tool, show=None, **arguments):
        began = time.monotonic()
        result = self.client.call(tool, **arguments)
        took = (time.monotonic() - began) * 1000
        print(f"  {took:7.0f} ms  {what}")
        if show:
            for line in str(show(result)).rstrip().splitlines():
                print(f"              {line}")
        return result


def expect(condition, what):
    if not condition:
        sys.exit(f"demonstration failed: {what}")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    began = time.monotonic()
    with McpClient(sys.argv[1:], name="agentiso-demo") as client:
        tools = client.request("tools/list")["tools"]
        print(f"  connected to {client.server['serverInfo']['name']} {client.server['serverInfo']['version']}: "
              f"{len(tools)} tools")
        session = Session(client)
        workspace = session.step("create a workspace", "workspace_create",
                                 lambda r: f"{r['name']}: {r['resources']['vcpus']} vCPUs, "
                                           f"{r['resources']['memory_mb']} MiB, start: {r['start']}")
        ws = workspace["workspace_id"]
        try:
            session.step("run a command", "exec", lambda r: r["stdout"], workspace_id=ws,
                         command="uname -sr; id -un; df -h / | tail -n 1")
            session.step("write a file", "file_write", workspace_id=ws, path="/workspace/hello.py", content=SCRIPT)
            session.step("run it", "exec", lambda r: r["stdout"], workspace_id=ws,
                         command="python3 /workspace/hello.py")
            session.step("edit it", "file_edit", lambda r: f"{r['replacements']} replacement", workspace_id=ws,
                         path="/workspace/hello.py", old_string="hello from", new_string="greetings from")
            text = session.step("read it", "file_read", str, workspace_id=ws, path="/workspace/hello.py")
            expect("greetings from" in text, "the edit is not in the file")
            session.step("list the folder", "file_list",
                         lambda r: "\n".join(f"{e['permissions']} {e['size']:5} {e['name']}" for e in r["entries"]),
                         workspace_id=ws, path="/workspace")
            failing = session.step("run a command that fails", "exec",
                                   lambda r: f"exit code {r['exit_code']}: {r['stderr']}", workspace_id=ws,
                                   command="ls /no/such/folder")
            expect(failing["exit_code"] != 0, "a failing command has exit code 0")
            session.step("stop the workspace", "workspace_stop", lambda r: r["state"], workspace_id=ws)
            session.step("start it again", "workspace_start", lambda r: r["state"], workspace_id=ws)
            after = session.step("the file is still there", "exec", lambda r: r["stdout"], workspace_id=ws,
                                 command="python3 /workspace/hello.py")
            expect("greetings from" in after["stdout"], "the file did not survive a stop and a start")
        except ToolError as error:
            print(f"  failed: {error}")
            logs = client.call("workspace_logs", workspace_id=ws)
            print(logs.get("console") or "", logs.get("stderr") or "")
            sys.exit(1)
        finally:
            session.step("destroy it", "workspace_destroy", workspace_id=ws)
    print(f"  all in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
