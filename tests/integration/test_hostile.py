# SPDX-License-Identifier: Apache-2.0
"""Slow and hostile sides: clients that do not read, guests that stand still or lie. Others must not notice."""

import json
import os
import signal
import subprocess
import time

import pytest
from conftest import wait_until
from mcp_client import McpError, ToolError

# What root in a guest can do to the channel: take the agent's own descriptor of the port and write frames into it.
# usage: python3 - KIND; frames are `u32 length, u8 kind, u32 stream, payload`, see src/wire/wire.h.
FORGE = r"""
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
agent = os.pidfd_open(1)
port = next(int(fd) for fd in os.listdir("/proc/1/fd") if "vport" in os.readlink("/proc/1/fd/" + fd))
fd = libc.syscall(438, agent, port, 0)  # pidfd_getfd
assert fd >= 0, os.strerror(ctypes.get_errno())
def frame(kind, stream, payload):
    return struct.pack(">IBI", 5 + len(payload), kind, stream) + payload
OPEN, MSG, DATA, EOF, CREDIT, CLOSE = 2, 3, 4, 5, 6, 7
unknown = b"".join(frame(k, s, b"\1junk") for k in (MSG, DATA, EOF, CREDIT, CLOSE, 77) for s in (8, 9999, 2**31 + 1))
kinds = {
    # Passed over: nothing of it belongs to anybody.
    "unknown-streams": unknown,
    "unknown-kinds": b"".join(frame(k, 0, b"x" * 100) for k in range(20, 250, 5)),
    "opens": b"".join(frame(OPEN, 2 * n, b'{"type":"exec","command":"true"}') for n in range(500, 600)),
    "no-json": frame(MSG, 99999, b"{" * 5000),
    # These end the connection.
    "too-large": struct.pack(">IBI", 0xfffffff0, DATA, 1) + b"x" * 1000,
    "too-short": struct.pack(">I", 1) + b"x" * 100,
    "half-a-frame": struct.pack(">IBI", 500000, DATA, 1) + b"x" * 1000,
    "garbage": os.urandom(100000),
}
data = kinds[sys.argv[1]]
while data:
    try:
        data = data[os.write(fd, data):]
    except BlockingIOError:
        pass
"""


def run(client, ws, command, **options):
    return client.call("exec", workspace_id=ws, command=command, **options)


@pytest.fixture(scope="module")
def neighbour(shared_client):
    return shared_client.call("workspace_create", name="neighbour", vcpus=1, memory_mb=256)["workspace_id"]


def forge(client, ws, kind):
    client.call("file_write", workspace_id=ws, path="/tmp/forge.py", content=FORGE)
    # In the background and a moment later, so that no answer of this call is among the forged frames.
    client.call("exec_background", workspace_id=ws, action="start",
                command=f"sleep 0.3; python3 /tmp/forge.py {kind} && touch /tmp/forged-{kind}")


@pytest.mark.parametrize("kind", ["unknown-streams", "unknown-kinds", "opens", "no-json"])
def test_frames_that_belong_to_nobody_are_passed_over(shared_client, workspace, kind):
    forge(shared_client, workspace, kind)
    # One connection carries this call before, during and after the forged frames.
    result = run(shared_client, workspace,
                 f"for i in $(seq 300); do test -e /tmp/forged-{kind} && exit 0; sleep 0.1; done; exit 1", timeout_secs=60)
    assert result["exit_code"] == 0


@pytest.mark.parametrize("kind", ["too-large", "too-short", "half-a-frame", "garbage"])
def test_a_broken_channel_ends_its_calls_alone_and_is_made_anew(shared_client, workspace, neighbour, kind):
    _, other = shared_client.start("tools/call", {"name": "exec", "arguments": {
        "workspace_id": neighbour, "command": "sleep 3; echo undisturbed"}})
    forge(shared_client, workspace, kind)
    try:
        result = run(shared_client, workspace, "sleep 2; echo through", timeout_secs=20)
        # The frame may have swallowed an answer of the agent, or none was under way.
        assert result["stdout"] == "through\n"
    except ToolError as caught:
        assert caught.code in ("guest_unreachable", "timeout"), caught
    assert other.get(timeout=60)["result"]["structuredContent"]["stdout"] == "undisturbed\n"

    def works():
        try:
            return run(shared_client, workspace, "echo again", timeout_secs=10)["stdout"] == "again\n"
        except ToolError as caught:
            assert caught.code in ("guest_unreachable", "timeout"), caught
            return False
    wait_until(works, seconds=60, what="a new connection to the guest")


def test_a_guest_that_stands_still_ends_its_own_calls_only(shared_host, shared_client, workspace, neighbour):
    qemu = shared_host.qemu_pid(workspace)
    os.kill(qemu, signal.SIGSTOP)
    try:
        _, stuck = shared_client.start("tools/call", {"name": "exec", "arguments": {
            "workspace_id": workspace, "command": "echo hi", "timeout_secs": 1}})
        for _ in range(5):
            assert run(shared_client, neighbour, "echo fine")["stdout"] == "fine\n"
        message = stuck.get(timeout=60)["result"]
        assert message["isError"] and message["_meta"]["code"] in ("timeout", "guest_unreachable"), message
    finally:
        os.kill(qemu, signal.SIGCONT)
    wait_until(lambda: run(shared_client, workspace, "echo back")["stdout"] == "back\n")


def test_an_agent_whose_memory_is_destroyed(host):
    client = host.client()
    ws = client.call("workspace_create", name="broken", memory_mb=256)["workspace_id"]
    sane = client.call("workspace_create", name="sane", memory_mb=256)["workspace_id"]
    script = ("import re\n"
              "memory = open('/proc/1/mem', 'r+b', buffering=0)\n"
              "for line in open('/proc/1/maps'):\n"
              "    low, high, mode = re.match(r'(\\w+)-(\\w+) (\\S+)', line).groups()\n"
              "    if 'w' in mode:\n"
              "        try:\n"
              "            memory.seek(int(low, 16)); memory.write(b'\\xa5' * (int(high, 16) - int(low, 16)))\n"
              "        except OSError: pass\n")
    client.call("file_write", workspace_id=ws, path="/tmp/destroy.py", content=script)
    with pytest.raises(ToolError) as caught:
        run(client, ws, "python3 /tmp/destroy.py; sleep 20", timeout_secs=20)
    assert caught.value.code in ("guest_unreachable", "timeout", "not_running")
    assert run(client, sane, "echo sane")["stdout"] == "sane\n"
    wait_until(lambda: client.call("workspace_info", workspace_id=ws)["state"] == "stopped", seconds=60)
    with pytest.raises(ToolError) as caught:
        run(client, ws, "true")
    assert caught.value.code == "not_running" and "workspace_start" in caught.value.text
    assert client.call("workspace_start", workspace_id=ws)["state"] == "running"
    assert run(client, ws, "echo healed")["stdout"] == "healed\n"


def test_a_client_that_does_not_read_holds_up_nobody(shared_host, shared_client, neighbour):
    # Its own calls print more than pipe, queue and socket take.
    deaf = subprocess.Popen(shared_host.argv("serve"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        def send(message):
            deaf.stdin.write((json.dumps({"jsonrpc": "2.0", **message}) + "\n").encode())
            deaf.stdin.flush()
        send({"id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "deaf", "version": "1"}}})
        assert json.loads(deaf.stdout.readline())["id"] == 0
        send({"method": "notifications/initialized"})
        send({"id": 1, "method": "tools/call", "params": {"name": "workspace_create", "arguments": {
            "name": "deaf", "vcpus": 1, "memory_mb": 256}}})
        assert json.loads(deaf.stdout.readline())["id"] == 1
        for number in range(40):
            send({"id": 100 + number, "method": "tools/call", "params": {"name": "exec", "arguments": {
                "workspace_id": "deaf", "command": "head -c 400000 /dev/zero | tr '\\0' x", "max_output_bytes": 400000,
                "timeout_secs": 60}}})
        began = time.monotonic()
        for _ in range(10):
            assert run(shared_client, neighbour, "echo fine")["stdout"] == "fine\n"
        assert time.monotonic() - began < 60
        assert shared_client.call("workspace_list")["workspaces"]
    finally:
        deaf.kill()
        deaf.wait()
    # Its end is noticed, and the workspace can be taken over by whoever uses it.
    def adopted():
        try:
            return run(shared_client, "deaf", "echo mine")["stdout"] == "mine\n"
        except (ToolError, McpError) as caught:
            assert getattr(caught, "code", None) == "not_owner", caught
            return False
    wait_until(adopted, seconds=60, what="the adoption")


def test_a_thousand_commands_leave_the_daemon_as_it_was(shared_host, shared_client, neighbour):
    def facts():
        pid = shared_host.daemon_pid()
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        return private, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

    def many(count):
        for _ in range(count):
            assert run(shared_client, neighbour, "echo x")["exit_code"] == 0
    many(50)
    before = facts()
    many(300)
    after = wait_until(lambda: (now := facts())[1:] <= before[1:] and now, what="descriptors and threads as before")
    assert after[0] - before[0] < 512, f"private memory grew from {before[0]} to {after[0]} KiB"
