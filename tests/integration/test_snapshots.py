# SPDX-License-Identifier: Apache-2.0
"""Snapshots: of disks and of machines with their memory, restored, listed, deleted; and what must not be lost."""

import os
import signal
import subprocess
import threading

import pytest
from conftest import make_host, wait_until
from mcp_client import ToolError
from saved import COUNTER, TEMPLATES, count, names, refused, sh, snapshot

@pytest.fixture
def ws(client):
    workspace = client.call("workspace_create")["workspace_id"]
    yield workspace
    client.call("workspace_destroy", workspace_id=workspace)


def test_a_disk_comes_back_exactly(client, ws):
    sh(client, ws, "head -c 3000000 /dev/urandom > /root/blob; sha256sum /root/blob > /root/sum; echo one > /root/state")
    made = snapshot(client, ws, "create", name="one")
    assert made["name"] == "one" and made["workspace_id"] == ws and made["has_memory"] is False
    assert made["pause_ms"] >= 0
    # The source goes on, on a disk of which the snapshot does not learn.
    sh(client, ws, "echo two > /root/state; rm /root/blob; echo more > /root/more; sync")

    back = snapshot(client, ws, "restore", name="one")
    assert back["state"] == "running" and back["has_memory"] is False and back["boot_time_ms"] > 0
    assert sh(client, ws, "cat /root/state; cd / && sha256sum -c --quiet /root/sum && echo whole") == "one\nwhole"
    assert sh(client, ws, "test -e /root/more || echo gone") == "gone"
    # Frozen when it was taken, so there was nothing to recover when it was mounted.
    assert "recover" not in sh(client, ws, "dmesg | grep -i 'ext4' | tail -n 5 || true").lower()
    # As often as one likes.
    sh(client, ws, "rm -rf /root/state")
    snapshot(client, ws, "restore", name="one")
    assert sh(client, ws, "cat /root/state") == "one"


def test_processes_go_on_from_the_instant(client, ws):
    sh(client, ws, COUNTER)
    sh(client, ws, "echo before > /root/file")
    client.call("set_env", workspace_id=ws, vars={"KEPT": "in memory"})
    pid = sh(client, ws, "cat /dev/shm/pid")
    made = snapshot(client, ws, "create", name="alive", include_memory=True)
    assert made["has_memory"] is True and made["pause_ms"] >= 0
    saved = count(client, ws)
    sh(client, ws, "kill $(cat /dev/shm/pid); echo after > /root/file; rm /dev/shm/n")

    back = snapshot(client, ws, "restore", name="alive")
    assert back["has_memory"] is True and back["state"] == "running" and back["start"] == "snapshot"
    now = wait_until(lambda: count(client, ws), what="the counter")
    assert sh(client, ws, "cat /root/file; cat /dev/shm/pid; kill -0 $(cat /dev/shm/pid) && echo $KEPT") \
        == f"before\n{pid}\nin memory"
    wait_until(lambda: count(client, ws) > now, what="the counter going on")
    assert now <= saved + 200
    # The clock is that of now, not that of then.
    assert abs(int(sh(client, ws, "date +%s")) - int(os.popen("date +%s").read())) <= 1


def test_a_machine_with_memory_restored_after_a_stop(client, ws):
    sh(client, ws, COUNTER)
    snapshot(client, ws, "create", name="alive", include_memory=True)
    client.call("workspace_stop", workspace_id=ws)
    assert "stopped" in refused("not_running", client, ws, "create", name="again", include_memory=True)
    back = snapshot(client, ws, "restore", name="alive")
    assert back["state"] == "running" and back["has_memory"] is True
    first = count(client, ws)
    wait_until(lambda: count(client, ws) > first, what="the counter going on")
    # Its disk alone: no process.
    back = snapshot(client, ws, "restore", name="alive", disk_only=True)
    assert back["has_memory"] is False and back["state"] == "running"
    assert sh(client, ws, "test -e /dev/shm/n || echo fresh") == "fresh"


def test_stopped_workspaces(client, ws):
    sh(client, ws, "echo one > /root/state")
    client.call("workspace_stop", workspace_id=ws)
    snapshot(client, ws, "create", name="cold")
    client.call("workspace_start", workspace_id=ws)
    sh(client, ws, "echo two > /root/state")
    client.call("workspace_stop", workspace_id=ws)
    back = snapshot(client, ws, "restore", name="cold")
    assert back["state"] == "stopped" and back["has_memory"] is False
    assert client.call("workspace_start", workspace_id=ws)["state"] == "running"
    assert sh(client, ws, "cat /root/state") == "one"


def test_nothing_newer_is_lost(client, ws):
    for name in ("a", "b", "c"):
        sh(client, ws, f"echo {name} > /root/state")
        snapshot(client, ws, "create", name=name, include_memory=name == "b")
    snapshot(client, ws, "restore", name="a")
    assert sh(client, ws, "cat /root/state") == "a"
    sh(client, ws, "echo branch > /root/state")
    snapshot(client, ws, "create", name="branch")
    listed = {s["name"]: s for s in snapshot(client, ws, "list")["snapshots"]}
    assert {name: s["parent"] for name, s in listed.items()} \
        == {"a": None, "b": "a", "c": "b", "branch": "a"}
    assert [name for name, s in listed.items() if s["has_memory"]] == ["b"]
    assert all(0 < s["used_bytes"] <= s["referenced_bytes"] for s in listed.values())
    assert all(s["forks"] == [] for s in listed.values())
    assert listed["b"]["used_bytes"] > listed["c"]["used_bytes"]
    for name in ("c", "b", "branch", "a"):
        snapshot(client, ws, "restore", name=name)
        assert sh(client, ws, "cat /root/state") == name
    info = client.call("workspace_info", workspace_id=ws)
    assert [s["name"] for s in info["snapshots"]] == ["a", "b", "c", "branch"]


def test_sizes_are_those_of_the_content(client, ws):
    snapshot(client, ws, "create", name="empty")
    sh(client, ws, "head -c 20000000 /dev/urandom > /root/blob")
    snapshot(client, ws, "create", name="full")
    sizes = {s["name"]: s for s in snapshot(client, ws, "list")["snapshots"]}
    assert 20000000 <= sizes["full"]["used_bytes"] < 40000000
    assert sizes["empty"]["used_bytes"] < 20000000
    assert sizes["full"]["referenced_bytes"] > sizes["empty"]["referenced_bytes"] + 20000000 - 5000000


def test_deletion(client, warm_host):
    ws = client.call("workspace_create")["workspace_id"]
    before = set(warm_host.disks())
    folders = warm_host.snapshot_folders()
    for name in ("a", "b"):
        sh(client, ws, f"head -c 5000000 /dev/urandom > /root/{name}")
        snapshot(client, ws, "create", name=name, include_memory=True)
    assert len(warm_host.snapshot_folders()) == len(folders) + 2
    # Its disk is needed by what came later, its memory by nobody.
    gone = snapshot(client, ws, "delete", name="a")
    assert gone["deleted"] is True and gone["name"] == "a" and gone["freed_bytes"] > 0
    assert names(client, ws) == ["b"]
    text = refused("not_found", client, ws, "restore", name="a")
    assert "\"a\"" in text
    assert sh(client, ws, "wc -c < /root/a") == "5000000"
    snapshot(client, ws, "restore", name="b")
    assert sh(client, ws, "cat /root/a /root/b | wc -c") == "10000000"
    snapshot(client, ws, "delete", name="b")
    assert warm_host.snapshot_folders() == folders
    # The name is free again.
    snapshot(client, ws, "create", name="a")
    snapshot(client, ws, "delete", name="a")
    client.call("workspace_destroy", workspace_id=ws)
    assert set(warm_host.disks()) < before


def test_bad_requests_change_nothing(client, ws):
    snapshot(client, ws, "create", name="here")
    assert "here" in refused("conflict", client, ws, "create", name="here")
    assert "here" in refused("not_found", client, ws, "restore", name="her")
    refused("not_found", client, ws, "delete", name="there")
    for name in ("", "a/b", "a b", "x" * 129):
        refused("invalid_argument", client, ws, "create", name=name)
    refused("invalid_argument", client, ws, "create")
    refused("invalid_argument", client, ws, "melt", name="here")
    assert names(client, ws) == ["here"]


def test_a_limit_of_snapshots():
    for host in make_host(TEMPLATES + "[limits]\nsnapshots = 2\n"):
        client = host.client()
        ws = client.call("workspace_create")["workspace_id"]
        snapshot(client, ws, "create", name="a")
        snapshot(client, ws, "create", name="b")
        text = refused("quota_exceeded", client, ws, "create", name="c")
        assert "2" in text and "limits.snapshots" in text
        snapshot(client, ws, "delete", name="a")
        snapshot(client, ws, "create", name="c")


def find_snapshot(host, client, ws, name):
    ids = {s["name"]: s["snapshot_id"] for s in snapshot(client, ws, "list")["snapshots"]}
    return host.state_dir / "snapshots" / ids[name]


def test_a_restore_that_fails_leaves_everything(client, ws, warm_host):
    sh(client, ws, COUNTER)
    snapshot(client, ws, "create", name="bad", include_memory=True)
    sh(client, ws, "echo newer > /root/newer")
    state = find_snapshot(warm_host, client, ws, "bad") / "state"
    content = bytearray(state.read_bytes())
    content[100:400] = bytes(300)
    state.write_bytes(content)
    disks = set(warm_host.disks())
    qemu = warm_host.qemu_pid(ws)
    refused("internal", client, ws, "restore", name="bad")
    assert warm_host.qemu_pid(ws) == qemu and set(warm_host.disks()) == disks
    assert sh(client, ws, "cat /root/newer; kill -0 $(cat /dev/shm/pid) && echo alive") == "newer\nalive"
    first = count(client, ws)
    wait_until(lambda: count(client, ws) > first, what="the counter going on")
    # The disk of it is good.
    snapshot(client, ws, "restore", name="bad", disk_only=True)
    assert sh(client, ws, "test -e /root/newer || echo gone") == "gone"


def test_a_source_that_dies_in_the_middle(client, warm_host):
    ws = client.call("workspace_create")["workspace_id"]
    sh(client, ws, "echo kept > /root/kept; sync")
    qemu = warm_host.qemu_pid(ws)
    failures = []

    def save():
        for i in range(50):
            try:
                snapshot(client, ws, "create", name=f"s{i}", include_memory=True)
            except ToolError as e:
                failures.append(e.text)
                return

    thread = threading.Thread(target=save)
    thread.start()
    wait_until(lambda: len(names(client, ws)) >= 2, what="two snapshots")
    os.kill(qemu, signal.SIGKILL)
    thread.join(60)
    assert not thread.is_alive() and len(failures) == 1, failures
    # What was acknowledged is there, what was not is not, and the disk is whole.
    good = names(client, ws)
    assert good == [f"s{i}" for i in range(len(good))]
    assert client.call("workspace_start", workspace_id=ws)["state"] == "running"
    assert sh(client, ws, "cat /root/kept") == "kept"
    assert snapshot(client, ws, "restore", name=good[-1])["has_memory"] is True
    assert sh(client, ws, "cat /root/kept") == "kept"
    client.call("workspace_destroy", workspace_id=ws)


def test_a_daemon_that_is_killed_in_the_middle():
    for host in make_host(TEMPLATES):
        client = host.client()
        host.warm()
        before = set(host.disks())
        ws = client.call("workspace_create")["workspace_id"]
        sh(client, ws, COUNTER)
        acknowledged = []

        def save(client=client, ws=ws, acknowledged=acknowledged):
            for i in range(200):
                sh(client, ws, f"echo {i} > /root/state; sync")
                snapshot(client, ws, "create", name=f"s{i % 10}-{i}", include_memory=i % 2 == 0)
                acknowledged.append(f"s{i % 10}-{i}")
                if i >= 3:
                    snapshot(client, ws, "delete", name=acknowledged.pop(0))

        for _ in range(4):
            thread = threading.Thread(target=lambda: pytest.raises(Exception, save))
            thread.start()
            seen = len(acknowledged)
            wait_until(lambda seen=seen: len(acknowledged) != seen or len(acknowledged) >= 3, 60, "a snapshot")
            host.kill_daemon()
            thread.join(60)
            assert not thread.is_alive()
            acknowledged[:] = names(client, ws)
            # It has never stood still for good, nor lost a write.
            assert sh(client, ws, "kill -0 $(cat /dev/shm/pid) && echo alive") == "alive"
            first = count(client, ws)
            wait_until(lambda first=first: count(client, ws) > first, what="the counter going on")
            for name in list(acknowledged):
                snapshot(client, ws, "delete", name=name)
            acknowledged.clear()
        client.call("workspace_stop", workspace_id=ws)
        client.call("workspace_start", workspace_id=ws)
        assert sh(client, ws, "cat /root/state").isdigit()
        client.call("workspace_destroy", workspace_id=ws)
        assert set(host.disks()) <= before


def test_a_machine_that_was_booted(host):
    """Without a template, its own pages cannot be told from others': the whole state is written instead."""
    client = host.client()
    made = client.call("workspace_create")
    ws = made["workspace_id"]
    assert made["start"] == "boot"
    sh(client, ws, COUNTER)
    snapshot(client, ws, "create", name="whole", include_memory=True)
    at = count(client, ws)
    wait_until(lambda: count(client, ws) > at, what="the counter of the source")
    sh(client, ws, "kill $(cat /dev/shm/pid); rm /dev/shm/n")
    assert snapshot(client, ws, "restore", name="whole")["has_memory"] is True
    first = count(client, ws)
    wait_until(lambda: count(client, ws) > first, what="the counter going on")
    for fork in client.call("workspace_fork", workspace_id=ws, count=2)["workers"]:
        first = count(client, fork["workspace_id"])
        wait_until(lambda fork=fork, first=first: count(client, fork["workspace_id"]) > first, what="a fork's counter")
        assert sh(client, fork["workspace_id"], "hostname") == fork["name"]


@pytest.fixture
def small_host(tmp_path):
    """A host whose state lies on a small file system."""
    if os.geteuid() != 0:
        pytest.skip("a small file system must be mounted")
    for host in make_host(TEMPLATES + "[storage]\nreserve_mb = 0\n"):
        host.state_dir.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200m,mode=700", "none", host.state_dir], check=True)
        try:
            yield host
        finally:
            host.close()
            subprocess.run(["umount", host.state_dir], check=True)


def test_full_disk(small_host):
    client = small_host.client()
    small_host.warm()
    ws = client.call("workspace_create")["workspace_id"]
    sh(client, ws, COUNTER)
    snapshot(client, ws, "create", name="before", include_memory=True)
    filler = small_host.state_dir / "filler"
    with open(filler, "wb") as f:
        free = os.statvfs(small_host.state_dir)
        f.write(bytes(free.f_bavail * free.f_bsize - (3 << 20)))
    folders = small_host.snapshot_folders()
    assert "MiB" in refused("no_space", client, ws, "create", name="more", include_memory=True)
    with pytest.raises(ToolError) as caught:
        client.call("workspace_fork", workspace_id=ws, count=3)
    assert caught.value.code == "no_space", caught.value.text
    assert names(client, ws) == ["before"] and small_host.snapshot_folders() == folders
    first = count(client, ws)
    wait_until(lambda: count(client, ws) > first, what="the counter going on")
    filler.unlink()
    snapshot(client, ws, "create", name="more", include_memory=True)
    assert snapshot(client, ws, "restore", name="before")["has_memory"] is True
    assert client.call("workspace_fork", workspace_id=ws, count=2)["failure_count"] == 0
