# SPDX-License-Identifier: Apache-2.0
"""Calls and commands of the tests of templates, snapshots and forks."""

import pytest
from mcp_client import ToolError

TEMPLATES = "[templates]\nmax_gb = 8\n"
# Counts in memory, and says so in a tmpfs.
COUNTER = ("setsid python3 -c 'import time\nn = 0\nwhile True:\n n += 1\n open(\"/dev/shm/n.new\", \"w\").write(str(n))\n"
           " import os; os.rename(\"/dev/shm/n.new\", \"/dev/shm/n\")\n time.sleep(0.3)' >/dev/null 2>&1 &\n"
           "echo $! > /dev/shm/pid; until test -e /dev/shm/n; do sleep 0.1; done")


def sh(client, ws, command, **options):
    result = client.call("exec", workspace_id=ws, command=command, **options)
    assert result["exit_code"] == 0, result
    return result["stdout"].strip()


def snapshot(client, ws, action, **arguments):
    return client.call("snapshot", workspace_id=ws, action=action, **arguments)


def names(client, ws):
    return [s["name"] for s in snapshot(client, ws, "list")["snapshots"]]


def refused(code, client, ws, action, **arguments):
    with pytest.raises(ToolError) as caught:
        snapshot(client, ws, action, **arguments)
    assert caught.value.code == code, caught.value.text
    return caught.value.text


def count(client, ws):
    return int(sh(client, ws, "cat /dev/shm/n"))
