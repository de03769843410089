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
COUNTER = """\
setsid python3 -c 'import time
count = 0
while True:
    count += 1
    open("/dev/shm/count", "w").write(str(count))
    time.sleep(0.1)' >/dev/null 2>&1 &
echo counting
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
        made = [ws]
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
            session.step("start something that keeps its state in memory", "exec", lambda r: r["stdout"],
                         workspace_id=ws, command=COUNTER)
            session.step("save disk and memory", "snapshot",
                         lambda r: f"the machine stood still for {r['pause_ms']:.0f} ms", workspace_id=ws,
                         action="create", name="good", include_memory=True)
            session.step("break everything", "exec", lambda r: r["stdout"], workspace_id=ws,
                         command="rm -rf /workspace /usr/bin/python3; pkill -f count; ls /workspace")
            session.step("go back", "snapshot", lambda r: r["state"], workspace_id=ws, action="restore", name="good")
            after = session.step("the file is there, and the process counts on", "exec", lambda r: r["stdout"],
                                 workspace_id=ws, command="python3 /workspace/hello.py; cat /dev/shm/count")
            expect("greetings from" in after["stdout"], "the restore did not bring the file back")
            forks = session.step("fork the running machine into three", "workspace_fork",
                                 lambda r: "\n".join(f"{w['name']} {w['ip']}" for w in r["workers"]),
                                 workspace_id=ws, count=3, name_prefix="try")["workers"]
            made += [fork["workspace_id"] for fork in forks]
            expect(len(forks) == 3, "there are not three forks")
            session.step("run something in each", "exec_parallel",
                         lambda r: "\n".join(f"{one['workspace_name']}: {one['stdout'].strip()}" for one in r["results"]),
                         workspace_ids=[fork["workspace_id"] for fork in forks],
                         commands="echo $(hostname) counts at $(cat /dev/shm/count)")
        except ToolError as error:
            print(f"  failed: {error}")
            logs = client.call("workspace_logs", workspace_id=ws)
            print(logs.get("console") or "", logs.get("stderr") or "")
            sys.exit(1)
        finally:
            for one in made:
                session.step("destroy a workspace", "workspace_destroy", workspace_id=one)
    print(f"  all in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
