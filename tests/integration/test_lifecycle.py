# SPDX-License-Identifier: Apache-2.0
"""The life of workspaces: create, stop, start, list, destroy; clients, crashes of the daemon and of QEMU."""

import contextlib
import os
import re
import signal
import threading
import time

import pytest
from conftest import make_host, wait_readable, wait_until
from mcp_client import McpError, ToolError

UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")


def sh(client, ws, command, **options):
    return client.call("exec", workspace_id=ws, command=command, **options)


def test_the_whole_life_of_a_workspace(host):
    client = host.client()
    created = client.call("workspace_create", name="life", vcpus=1, memory_mb=384, disk_gb=3)
    ws = created["workspace_id"]
    assert UUID.match(ws) and created["name"] == "life" and created["state"] == "running"
    assert created["resources"] == {"vcpus": 1, "memory_mb": 384, "disk_gb": 3}
    assert created["start"] == "boot" and created["from_pool"] is False and created["boot_time_ms"] > 0
    assert re.match(r"^10\.99\.\d+\.\d+$", created["ip"])

    # What was asked for is what the guest has.
    facts = sh(client, ws, "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo; df -k --output=size / | tail -n 1; "
                           "hostname; cat /etc/machine-id; date +%s")["stdout"].split()
    assert facts[0] == "1"
    assert 300 * 1024 < int(facts[1]) <= 384 * 1024
    assert 2.7 * 1024 * 1024 < int(facts[2]) <= 3 * 1024 * 1024
    assert facts[3] == "life" and facts[4] == ws.replace("-", "")
    assert abs(int(facts[5]) - time.time()) < 5

    info = client.call("workspace_info", workspace_id="life")
    assert info["workspace_id"] == ws and info["base_image"] == "debian-dev" and info["ip"] == created["ip"]
    assert info["network"] == {"allow_internet": False, "allow_inter_vm": False, "allowed_ports": [],
                               "port_forwards": []}
    assert info["snapshots"] == [] and info["uptime_secs"] >= 0
    assert info["memory_used_bytes"] > 0 and 0 < info["disk_used_bytes"] <= info["disk_volsize_bytes"] == 3 << 30

    sh(client, ws, "echo kept > /root/kept; echo kept-too > /tmp/kept; echo lost > /run/lost")
    stopped = client.call("workspace_stop", workspace_id=ws)
    assert stopped["state"] == "stopped"
    assert client.call("workspace_stop", workspace_id=ws)["state"] == "stopped"
    assert host.qemu_pids() == []
    with pytest.raises(ToolError) as caught:
        sh(client, ws, "true")
    assert caught.value.code == "not_running" and "workspace_start" in caught.value.text

    assert client.call("workspace_start", workspace_id="life")["state"] == "running"
    assert client.call("workspace_start", workspace_id="life")["state"] == "running"
    after = sh(client, ws, "cat /root/kept /tmp/kept; ls /run/lost; cat /etc/machine-id")
    assert after["stdout"].split() == ["kept", "kept-too", ws.replace("-", "")]

    gone = client.call("workspace_destroy", workspace_id=ws)
    assert gone["destroyed"] is True and gone["name"] == "life" and gone["workspace_id"] == ws
    assert client.call("workspace_list")["workspaces"] == []
    assert host.qemu_pids() == []
    left = [p for p in host.state_dir.glob("**/*") if ws in str(p)]
    assert left == []
    with pytest.raises(ToolError) as caught:
        client.call("workspace_info", workspace_id=ws)
    assert caught.value.code == "not_found"


def test_a_clean_stop_leaves_a_clean_file_system(host):
    client = host.client()
    ws = client.call("workspace_create", name="clean")["workspace_id"]
    sh(client, ws, "dd if=/dev/urandom of=/root/blob bs=1M count=20 status=none; sha256sum /root/blob > /root/sum")
    client.call("workspace_stop", workspace_id=ws)
    client.call("workspace_start", workspace_id=ws)
    assert sh(client, ws, "sha256sum -c /root/sum")["exit_code"] == 0
    console = client.call("workspace_logs", workspace_id=ws, log_type="console", max_lines=500)["console"]
    assert "recovery" not in console.lower(), console


def test_a_cancelled_stop_loses_nothing(host):
    client = host.client()
    ws = client.call("workspace_create", name="stopping")["workspace_id"]
    sh(client, ws, "dd if=/dev/urandom of=/root/blob bs=1M count=50 status=none; sha256sum /root/blob > /root/sum")
    request_id, _ = client.start("tools/call", {"name": "workspace_stop", "arguments": {"workspace_id": ws}})
    client.notify("notifications/cancelled", {"requestId": request_id})
    wait_until(lambda: client.call("workspace_info", workspace_id=ws)["state"] in ("stopped", "running"))
    assert client.call("workspace_start", workspace_id=ws)["state"] == "running"
    assert sh(client, ws, "sha256sum -c /root/sum")["exit_code"] == 0


def test_names(host):
    client = host.client()
    unnamed = client.call("workspace_create")
    assert re.match(r"^ws-[0-9a-f]{8}$", unnamed["name"])
    with pytest.raises(ToolError) as caught:
        client.call("workspace_create", name=unnamed["name"])
    assert caught.value.code == "conflict" and unnamed["workspace_id"] in caught.value.text
    with pytest.raises(ToolError) as caught:
        client.call("workspace_info", workspace_id=unnamed["name"][:-1] + "x")
    assert caught.value.code == "not_found" and unnamed["name"] in caught.value.text
    listed = client.call("workspace_list", name_prefix="ws-")["workspaces"]
    assert [w["name"] for w in listed] == [unnamed["name"]]
    assert listed[0]["owned"] is True and listed[0]["orphaned"] is False
    assert client.call("workspace_list", state_filter="stopped")["workspaces"] == []


@pytest.mark.parametrize("wrong, names", [
    ({"base_image": "debian-dve"}, "debian-dev"),
    ({"vcpus": 9}, "8"), ({"memory_mb": 9000}, "8192"), ({"disk_gb": 101}, "100"), ({"disk_gb": 0}, "disk_gb"),
    ({"name": "no spaces"}, "no spaces"),
])
def test_a_create_that_cannot_be_leaves_nothing(shared_host, shared_client, wrong, names):
    before = shared_client.call("workspace_list")["workspaces"]
    with pytest.raises(ToolError) as caught:
        shared_client.call("workspace_create", **wrong)
    assert names in caught.value.text
    assert shared_client.call("workspace_list")["workspaces"] == before
    assert len(shared_host.disks()) == len(before)


def test_a_cancelled_create_leaves_nothing(host):
    client = host.client()
    request_id, answer = client.start("tools/call", {"name": "workspace_create", "arguments": {"name": "never"}})
    wait_until(host.vm_pids, what="a QEMU process")
    client.notify("notifications/cancelled", {"requestId": request_id})
    wait_until(lambda: not host.qemu_pids(), what="the end of QEMU")
    wait_until(lambda: not host.disks(), what="the end of the disk")
    assert client.call("workspace_list")["workspaces"] == []
    assert answer.empty()


def test_two_clients_at_once(host):
    one, two = host.client(), host.client()
    first = one.call("workspace_create", name="of-one")["workspace_id"]
    second = two.call("workspace_create", name="of-two")["workspace_id"]
    results = {}

    def work(client, ws, key):
        results[key] = [sh(client, ws, f"echo {key} {i}")["stdout"] for i in range(10)]

    threads = [threading.Thread(target=work, args=a) for a in ((one, first, "one"), (two, second, "two"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {key: [f"{key} {i}\n" for i in range(10)] for key in ("one", "two")}

    # Each sees the other's and cannot touch it.
    assert {w["name"]: w["owned"] for w in two.call("workspace_list")["workspaces"]} == {"of-one": False,
                                                                                        "of-two": True}
    with pytest.raises(ToolError) as caught:
        sh(two, "of-one", "true")
    assert caught.value.code == "not_owner"
    # Once its owner is gone, it is adopted by the first call that uses it.
    one.close()
    wait_until(lambda: next(w for w in two.call("workspace_list")["workspaces"] if w["name"] == "of-one")["orphaned"])
    assert sh(two, "of-one", "echo mine now")["stdout"] == "mine now\n"
    assert all(w["owned"] for w in two.call("workspace_list")["workspaces"])


def test_the_daemon_dies_and_the_machine_goes_on(host):
    client = host.client()
    ws = client.call("workspace_create", name="survivor")["workspace_id"]
    sh(client, ws, "nohup sh -c 'while :; do echo tick >> /run/ticks; sleep 0.1; done' >/dev/null 2>&1 & echo $! > /run/pid")
    qemu = host.qemu_pids()
    assert len(qemu) == 1
    _, unanswered = client.start("tools/call", {"name": "exec", "arguments": {
        "workspace_id": ws, "command": "echo began > /run/began; sleep 3; echo done > /run/done"}})
    wait_until(lambda: sh(client, ws, "cat /run/began")["exit_code"] == 0)
    first = host.kill_daemon()
    # The call that was under way is answered with an error, not left to hang.
    assert "error" in unanswered.get(timeout=30)
    # The same client goes on: a new daemon, the same machine with the same processes.
    assert sh(client, ws, "kill -0 $(cat /run/pid)")["exit_code"] == 0
    assert host.daemon_pid() != first and host.qemu_pids() == qemu
    # The command whose call was lost ran to its end.
    assert sh(client, ws, "for i in $(seq 100); do test -e /run/done && exit 0; sleep 0.1; done; exit 1")["exit_code"] == 0
    listed = client.call("workspace_list")["workspaces"]
    assert [(w["name"], w["state"]) for w in listed] == [("survivor", "running")]


def test_many_machines_are_taken_up_again(host):
    client = host.client()
    ids = [client.call("workspace_create", memory_mb=256)["workspace_id"] for _ in range(3)]
    client.call("workspace_stop", workspace_id=ids[2])
    pids = sorted(host.qemu_pids())
    host.kill_daemon()
    states = {w["workspace_id"]: w["state"] for w in client.call("workspace_list")["workspaces"]}
    assert states == {ids[0]: "running", ids[1]: "running", ids[2]: "stopped"}
    assert sorted(host.qemu_pids()) == pids
    for ws in ids[:2]:
        assert sh(client, ws, "echo ok")["stdout"] == "ok\n"


def test_qemu_is_killed_while_the_daemon_runs(host):
    client = host.client()
    ws = client.call("workspace_create", name="victim")["workspace_id"]
    sh(client, ws, "echo kept > /root/kept; sync")
    _, waiting = client.start("tools/call", {"name": "exec", "arguments": {"workspace_id": ws, "command": "sleep 600"}})
    wait_until(lambda: sh(client, ws, "pgrep -f 'sleep 60[0]'")["exit_code"] == 0)
    os.kill(host.qemu_pids()[0], signal.SIGKILL)
    answer = waiting.get(timeout=30)
    assert answer["result"]["isError"] is True
    wait_until(lambda: client.call("workspace_info", workspace_id=ws)["state"] == "stopped")
    with pytest.raises(ToolError) as caught:
        sh(client, ws, "true")
    assert caught.value.code == "not_running"
    assert client.call("workspace_start", workspace_id=ws)["state"] == "running"
    assert sh(client, ws, "cat /root/kept")["stdout"] == "kept\n"


def test_qemu_is_killed_while_no_daemon_runs(host):
    client = host.client()
    ws = client.call("workspace_create", name="victim")["workspace_id"]
    qemu = host.qemu_pids()[0]
    pidfd = os.pidfd_open(qemu)
    host.kill_daemon()
    os.kill(qemu, signal.SIGKILL)
    wait_readable(pidfd, 10)
    os.close(pidfd)
    assert client.call("workspace_info", workspace_id=ws)["state"] == "stopped"
    assert client.call("workspace_start", workspace_id=ws)["state"] == "running"


def test_the_daemon_dies_in_the_middle_of_a_create(host):
    client = host.client()
    _, answer = client.start("tools/call", {"name": "workspace_create", "arguments": {"name": "half"}})
    wait_until(host.vm_pids, what="a QEMU process")
    host.kill_daemon()
    assert "error" in answer.get(timeout=30)
    # It was never acknowledged: nothing of it is left.
    assert client.call("workspace_list")["workspaces"] == []
    assert host.qemu_pids() == []
    assert host.disks() == [] and list((host.state_dir / "vms").glob("*")) == []
    assert client.call("workspace_create", name="half")["state"] == "running"


def test_a_kernel_panic_is_told_with_the_console(host):
    client = host.client()
    ws = client.call("workspace_create", name="panic")["workspace_id"]
    with contextlib.suppress(ToolError):
        sh(client, ws, "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger", timeout_secs=20)
    wait_until(lambda: client.call("workspace_info", workspace_id=ws)["state"] == "stopped")
    with pytest.raises(ToolError) as caught:
        sh(client, ws, "true")
    assert caught.value.code == "not_running" and "panic" in caught.value.text.lower()
    logs = client.call("workspace_logs", workspace_id=ws, log_type="console")
    assert "panic" in logs["console"].lower() and "stderr" not in logs


FLOOD = r"""
import ctypes, os, threading, time
libc = ctypes.CDLL(None, use_errno=True)
fd = next(int(n) for n in os.listdir("/proc/1/fd") if "vport" in os.readlink(f"/proc/1/fd/{n}"))
stolen = libc.syscall(438, os.pidfd_open(1), fd, 0)   # pidfd_getfd(2): root in the guest may take the agent's own port
assert stolen >= 0, os.strerror(ctypes.get_errno())
open("/run/flooding", "w").close()
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        os.write(stolen, os.urandom(65536))
    except BlockingIOError:
        time.sleep(0.001)
"""


def test_a_guest_that_floods_the_channel_harms_only_itself(host):
    client = host.client()
    bad = client.call("workspace_create", name="bad")["workspace_id"]
    good = client.call("workspace_create", name="good")["workspace_id"]
    client.call("file_write", workspace_id=bad, path="/root/flood.py", content=FLOOD)
    with contextlib.suppress(ToolError):
        sh(client, bad, "setsid python3 /root/flood.py > /root/flood.log 2>&1 &")
    # Calls into the flooding guest may fail, with a clear code; the other workspace does not notice.
    for _ in range(20):
        assert sh(client, good, "echo fine")["stdout"] == "fine\n"
        try:
            sh(client, bad, "true", timeout_secs=5)
        except ToolError as error:
            assert error.code in ("guest_unreachable", "timeout"), error
    # When the flood is over, the workspace is usable again.

    def usable():
        try:
            return sh(client, bad, "cat /root/flood.log; test -e /run/flooding", timeout_secs=10)
        except ToolError:
            return None
    result = wait_until(usable, 60, "an answer from the flooding guest")
    assert result["exit_code"] == 0, result


def test_the_console_is_capped(host):
    client = host.client()
    ws = client.call("workspace_create", name="chatty")["workspace_id"]
    sh(client, ws, "yes chatterchatterchatterchatterchatterchatterchatterchatter | head -c 2000000 > /dev/ttyS0; "
                   "echo the-end > /dev/ttyS0", timeout_secs=100)
    logs = list((host.state_dir / "vms" / ws).glob("console.log*"))
    assert logs and sum(p.stat().st_size for p in logs) <= 600 * 1024
    assert "the-end" in client.call("workspace_logs", workspace_id=ws, log_type="console")["console"]


def test_the_root_account_is_locked_and_nothing_listens(shared_client, workspace):
    assert sh(shared_client, workspace, "getent shadow root | cut -d: -f2")["stdout"].strip() in ("*", "!", "!*")
    listening = sh(shared_client, workspace, "ss -Hltun")
    assert listening["stdout"] == ""


def test_the_guest_reaches_nothing(shared_client, workspace):
    result = sh(shared_client, workspace,
                "curl -s -m 3 http://10.99.0.1/; echo $?; curl -s -m 3 http://198.51.100.1/; echo $?")
    assert all(code in ("7", "28") for code in result["stdout"].split()), result


def test_a_state_directory_with_a_long_path():
    # Longer than the address of a unix socket can be.
    for host in make_host(subdir="x" * 100):
        client = host.client()
        ws = client.call("workspace_create", name="deep")["workspace_id"]
        assert sh(client, ws, "echo fine")["stdout"] == "fine\n"
        host.kill_daemon()
        assert sh(client, ws, "echo again")["stdout"] == "again\n"


def test_an_unknown_tool_is_named(shared_client):
    with pytest.raises(McpError) as caught:
        shared_client.call("workspace_creat")
    assert caught.value.code == -32602 and "workspace_create" in str(caught.value)
