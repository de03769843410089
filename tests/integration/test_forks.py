# SPDX-License-Identifier: Apache-2.0
"""Forks: machines that go on from one instant, and are different machines all the same."""

import os
import signal
import time

import pytest
from conftest import wait_until
from mcp_client import ToolError
from saved import COUNTER, count, names, refused, sh, snapshot

FORKS = 20
DEPTH = 10
# What no two machines may have alike, a line each, from processes that start now.
IDENTITY = """
cat /proc/sys/kernel/random/uuid
openssl rand -hex 16
python3 -c 'import random, secrets, uuid; print(random.random()); print(secrets.token_hex(16)); print(uuid.uuid4())'
cat /etc/machine-id
hostname
cat /sys/class/net/*/address | grep -v 00:00:00:00:00:00
ip -4 -o addr show scope global | awk '{print $4}'
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
"""


@pytest.fixture
def source(client):
    workspace = client.call("workspace_create", name="source")["workspace_id"]
    yield workspace
    for w in client.call("workspace_list")["workspaces"]:
        client.call("workspace_destroy", workspace_id=w["workspace_id"])


def fork(client, ws, **arguments):
    return client.call("workspace_fork", workspace_id=ws, **arguments)


def workers(result):
    assert result["failure_count"] == 0, result["failures"]
    return [w["workspace_id"] for w in result["workers"]]


def test_twenty_forks_of_one_instant(client, source):
    sh(client, source, COUNTER)
    sh(client, source, "echo in-memory > /dev/shm/note; echo on-disk > /root/note; exec 3</root/note; "
                       "setsid sleep 1000 <&3 >/dev/null 2>&1 & echo $! > /dev/shm/holder")
    sh(client, source, "rm /root/note")  # open in the process alone
    client.call("set_env", workspace_id=source, vars={"KEPT": "carried"})
    job = client.call("exec_background", workspace_id=source, action="start",
                      command="i=0; while :; do i=$((i+1)); echo line $i; sleep 2; done")["job_id"]
    holder = sh(client, source, "cat /dev/shm/holder")
    before = count(client, source)
    made = fork(client, source, count=FORKS)
    after = count(client, source)
    assert made["requested_count"] == made["success_count"] == FORKS, made["failures"]
    assert [w["name"] for w in made["workers"]] == [f"worker-{i + 1}" for i in range(FORKS)]
    ids = workers(made)

    seen = [sh(client, ws, IDENTITY).splitlines() for ws in ids + [source]]
    for line in zip(*seen):
        assert len(set(line)) == FORKS + 1, line
    assert [s[6] for s in seen[:FORKS]] == [f"worker-{i + 1}" for i in range(FORKS)]
    assert [s[5] for s in seen] == [ws.replace("-", "") for ws in ids + [source]]
    assert [s[8].split("/")[0] for s in seen[:FORKS]] == [w["ip"] for w in made["workers"]]

    for ws in ids[:4] + ids[-2:]:
        assert sh(client, ws, f"cat /dev/shm/note /proc/{holder}/fd/0; echo $KEPT") == "in-memory\non-disk\ncarried"
        first = count(client, ws)
        assert first > before
        wait_until(lambda ws=ws, first=first: count(client, ws) > first, what="a fork's counter")
        # Its job is the source's, with all of its output.
        poll = client.call("exec_background", workspace_id=ws, action="poll", job_id=job, stdout_offset=0)
        assert poll["running"] is True and poll["stdout"].startswith("line 1\n")
        asked = time.time()
        clock = int(sh(client, ws, "date +%s%N")) / 1e9
        assert asked - 0.5 < clock < time.time() + 0.5
    wait_until(lambda: count(client, source) > after, what="the source's counter")
    # They are of their own from there on.
    sh(client, ids[0], "echo mine > /root/mine; kill $(cat /dev/shm/pid)")
    assert sh(client, ids[1], "test -e /root/mine || kill -0 $(cat /dev/shm/pid) && echo alone") == "alone"


def test_one_fork_says_where_it_comes_from(client, source):
    one = fork(client, source, new_name="copy")
    assert one["name"] == "copy" and one["state"] == "running" and one["workspace_id"] != source
    assert one["forked_from"]["source_workspace_id"] == source
    assert one["forked_from"]["source_workspace_name"] == "source"
    assert client.call("workspace_info", workspace_id="copy")["forked_from"] == one["forked_from"]
    assert "forked_from" not in client.call("workspace_info", workspace_id=source)
    other = fork(client, source)
    assert other["name"].startswith("fork-") and len(other["name"]) == len("fork-") + 8


def test_forks_of_snapshots(client, source):
    sh(client, source, COUNTER)
    sh(client, source, "echo one > /root/state")
    snapshot(client, source, "create", name="alive", include_memory=True)
    snapshot(client, source, "create", name="disk")
    sh(client, source, "echo two > /root/state; kill $(cat /dev/shm/pid)")
    alive = workers(fork(client, source, snapshot_name="alive", count=3, name_prefix="alive"))
    disk = workers(fork(client, source, snapshot_name="disk", count=2, name_prefix="disk"))
    bare = fork(client, source, snapshot_name="alive", disk_only=True)["workspace_id"]
    for ws in alive:
        assert sh(client, ws, "cat /root/state") == "one"
        first = count(client, ws)
        wait_until(lambda ws=ws, first=first: count(client, ws) > first, what="a fork's counter")
    for ws in [*disk, bare]:
        assert sh(client, ws, "cat /root/state; test -e /dev/shm/n || echo fresh") == "one\nfresh"

    listed = {s["name"]: s for s in snapshot(client, source, "list")["snapshots"]}
    assert sorted(listed["disk"]["forks"]) == ["disk-1", "disk-2"]
    assert len(listed["alive"]["forks"]) == 4 and not set(listed["alive"]["forks"]) & {"disk-1", "disk-2"}
    text = refused("conflict", client, source, "delete", name="disk")
    assert "disk-1" in text and "disk-2" in text
    for ws in disk:
        client.call("workspace_destroy", workspace_id=ws)
    assert snapshot(client, source, "delete", name="disk")["deleted"] is True


def test_a_stopped_source(client, source):
    sh(client, source, "echo kept > /root/kept")
    client.call("workspace_stop", workspace_id=source)
    made = fork(client, source, count=2)
    for ws in workers(made):
        assert sh(client, ws, "cat /root/kept") == "kept"
    assert client.call("workspace_info", workspace_id=source)["state"] == "stopped"


def test_forks_of_forks(client, source):
    sh(client, source, COUNTER)
    sh(client, source, "echo 0 > /root/depth; echo 0 > /dev/shm/depth")
    at = source
    for depth in range(1, DEPTH + 1):
        before = count(client, at)
        at = fork(client, at, new_name=f"depth-{depth}")["workspace_id"]
        assert sh(client, at, "cat /root/depth /dev/shm/depth") == f"{depth - 1}\n{depth - 1}"
        assert count(client, at) >= before
        sh(client, at, f"echo {depth} > /root/depth; echo {depth} > /dev/shm/depth; "
                       f"head -c 300000 /dev/urandom > /root/blob-{depth}")
    # The ones in the middle may go.
    for depth in range(1, DEPTH):
        client.call("workspace_destroy", workspace_id=f"depth-{depth}")
    assert sh(client, at, "cat /root/depth; cat /root/blob-* | wc -c") == f"{DEPTH}\n{DEPTH * 300000}"
    client.call("workspace_stop", workspace_id=at)
    client.call("workspace_start", workspace_id=at)
    assert sh(client, at, "cat /root/depth; cat /root/blob-* | wc -c") == f"{DEPTH}\n{DEPTH * 300000}"


def test_a_source_that_is_forked_again_and_again(client, source):
    """Each live fork leaves a file below the source's disk."""
    sh(client, source, "echo kept > /root/kept")
    for i in range(40):
        made = fork(client, source)["workspace_id"]
        if i == 39:
            assert sh(client, made, "cat /root/kept") == "kept"
        client.call("workspace_destroy", workspace_id=made)
    client.call("workspace_stop", workspace_id=source)
    client.call("workspace_start", workspace_id=source)
    assert sh(client, source, "cat /root/kept") == "kept"
    snapshot(client, source, "create", name="late", include_memory=True)
    assert snapshot(client, source, "restore", name="late")["has_memory"] is True


def test_one_of_twenty_fails(client, source):
    client.call("workspace_create", name="worker-7")
    made = fork(client, source, count=FORKS)
    assert made["success_count"] == FORKS - 1 and made["failure_count"] == 1
    assert [w["name"] for w in made["workers"]] == [f"worker-{i + 1}" for i in range(FORKS) if i != 6]
    failure = made["failures"][0]
    assert failure["index"] in (6, 7) and failure["name"] == "worker-7" and "worker-7" in failure["error"]
    assert sh(client, made["workers"][10]["workspace_id"], "hostname") == made["workers"][10]["name"]


def test_bad_requests(client, source):
    for arguments, code in (
            ({"count": 0}, "invalid_argument"), ({"count": 21}, "invalid_argument"),
            ({"snapshot_name": "none"}, "not_found"), ({"new_name": "source"}, "conflict"),
            ({"new_name": "a/b"}, "invalid_argument"), ({"name_prefix": "a b", "count": 2}, "invalid_argument")):
        with pytest.raises(ToolError) as caught:
            fork(client, source, **arguments)
        assert caught.value.code == code, (arguments, caught.value.text)
    assert [w["name"] for w in client.call("workspace_list")["workspaces"]] == ["source"]


def test_a_source_that_goes_leaves_its_forks(warm_host, client, source):
    folders = set(warm_host.snapshot_folders())
    disks = set(warm_host.disks())
    snapshot(client, source, "create", name="base", include_memory=True)
    sh(client, source, COUNTER)
    kept = fork(client, source, new_name="kept")["workspace_id"]
    other = fork(client, source, snapshot_name="base", new_name="other")["workspace_id"]
    client.call("workspace_destroy", workspace_id=source)
    first = count(client, kept)
    wait_until(lambda: count(client, kept) > first, what="the counter")
    client.call("workspace_stop", workspace_id=kept)
    client.call("workspace_start", workspace_id=kept)
    assert sh(client, other, "echo here") == "here" and names(client, other) == []
    for ws in (kept, other):
        client.call("workspace_destroy", workspace_id=ws)
    # Nothing of the three is left.
    assert set(warm_host.snapshot_folders()) <= folders
    assert set(warm_host.disks()) < disks


def test_forks_survive_the_daemon(warm_host, client, source):
    sh(client, source, COUNTER)
    ids = workers(fork(client, source, count=3))
    warm_host.kill_daemon()
    for ws in [*ids, source]:
        first = count(client, ws)
        wait_until(lambda ws=ws, first=first: count(client, ws) > first, what="a counter")
    # And can be forked, though another daemon started them.
    again = fork(client, ids[0], new_name="again")["workspace_id"]
    first = count(client, again)
    wait_until(lambda: count(client, again) > first, what="the counter")
    assert sh(client, again, "hostname") == "again"


def test_the_source_dies_while_it_is_forked(warm_host, client, source):
    sh(client, source, "echo kept > /root/kept; sync")
    os.kill(warm_host.qemu_pid(source), signal.SIGSTOP)
    pid = warm_host.qemu_pid(source)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ToolError) as caught:
        fork(client, source, count=2)
        fork(client, source, count=2, name_prefix="second")
        raise AssertionError("a fork of a machine that is gone")
    assert caught.value.code in ("not_running", "internal", "guest_unreachable", "conflict"), caught.value.text


def test_a_cancelled_fork_leaves_nothing(warm_host, client, source):
    before, _ = warm_host.disk_ids()
    message, _ = client.start("tools/call",
                              {"name": "workspace_fork", "arguments": {"workspace_id": source, "count": 20}})
    wait_until(lambda: len(warm_host.vm_pids()) > 1, what="the first fork")
    client.notify("notifications/cancelled", {"requestId": message})
    wait_until(lambda: len(warm_host.vm_pids()) == 1, 60, "the end of the forks")
    wait_until(lambda: [w["name"] for w in client.call("workspace_list")["workspaces"]] == ["source"], 60, "the end")
    sh(client, source, "true")
    assert warm_host.disk_ids()[0] == before


def test_memory_is_said_apart(client, source):
    made = workers(fork(client, source, count=2))
    info = client.call("workspace_info", workspace_id=made[0])
    assert info["memory_used_bytes"] > 0 and info["memory_shared_bytes"] > 0
