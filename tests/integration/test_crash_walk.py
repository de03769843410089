# SPDX-License-Identifier: Apache-2.0
"""Kill -9 of the daemon at many moments of everything that has to do with saved states, with real machines.

Each time the next daemon must find a world that is whole: what was acknowledged is there, what was not has left
nothing, and the source has neither lost a write nor stood still.
"""

import contextlib
import sqlite3
import time

import pytest
from conftest import wait_until
from saved import COUNTER, count, names, sh, snapshot

STEPS = 6
OPERATIONS = {
    "disk snapshot": ("snapshot", {"action": "create", "name": "new"}),
    "memory snapshot": ("snapshot", {"action": "create", "name": "new", "include_memory": True}),
    "restore with memory": ("snapshot", {"action": "restore", "name": "alive"}),
    "restore of the disk": ("snapshot", {"action": "restore", "name": "disk"}),
    "delete": ("snapshot", {"action": "delete", "name": "old"}),
    "fork": ("workspace_fork", {"count": 2}),
    "fork of a snapshot": ("workspace_fork", {"count": 2, "snapshot_name": "disk"}),
}


def rows(host, query):
    with contextlib.closing(sqlite3.connect(f"file:{host.state_dir}/state.db?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


def check_files(host):
    """Rows, files and processes are about the same things."""
    workspaces = rows(host, "SELECT id, disk, state FROM workspaces")
    snapshots = rows(host, "SELECT id, state, has_disk, memory FROM snapshots")
    assert {state for _, _, state in workspaces} <= {"running", "stopped"}
    # One that is being deleted is there only for what others need of it.
    assert {state for _, state, _, _ in snapshots} <= {"ready", "deleting"}
    assert all(has_disk or memory != "none" for _, _, has_disk, memory in snapshots)
    assert host.disk_ids() == ({disk for _, disk, _ in workspaces}, {i for i, _, has_disk, _ in snapshots if has_disk})
    assert {p.name for p in (host.state_dir / "vms").iterdir()} == {i for i, _, _ in workspaces}
    with_memory = {i for i, _, _, memory in snapshots if memory != "none"}
    assert with_memory <= set(host.snapshot_folders()) <= {i for i, *_ in snapshots}
    for i in set(host.snapshot_folders()) - with_memory:
        assert not list((host.state_dir / "snapshots" / i).iterdir())
    assert len(host.vm_pids()) == sum(state == "running" for _, _, state in workspaces)


def check_world(host, client, ws):
    first = count(client, ws)
    wait_until(lambda: count(client, ws) > first, what="the counter of the source")
    assert sh(client, ws, "cat /root/kept") == "kept"
    for other in client.call("workspace_list")["workspaces"]:
        if other["workspace_id"] != ws:
            assert sh(client, other["workspace_id"], "cat /root/kept") == "kept"
    check_files(host)


def prepare(client, ws):
    """What each operation starts from: three snapshots, no forks, a counter that runs."""
    for other in client.call("workspace_list")["workspaces"]:
        if other["workspace_id"] != ws:
            client.call("workspace_destroy", workspace_id=other["workspace_id"])
    there = names(client, ws)
    if "new" in there:
        snapshot(client, ws, "delete", name="new")
    if "alive" not in there:
        sh(client, ws, COUNTER)
        sh(client, ws, "echo kept > /root/kept")
        snapshot(client, ws, "create", name="alive", include_memory=True)
        snapshot(client, ws, "create", name="disk")
    if "old" not in there:
        snapshot(client, ws, "create", name="old", include_memory=True)
    if sh(client, ws, "test -e /dev/shm/n || echo none") == "none":
        snapshot(client, ws, "restore", name="alive")


@pytest.mark.parametrize("what", OPERATIONS)
def test_killed_at_any_moment(warm_host, client, what):
    tool, arguments = OPERATIONS[what]
    ws = client.call("workspace_create")["workspace_id"]
    prepare(client, ws)
    began = time.monotonic()
    client.call(tool, workspace_id=ws, **arguments)
    took = time.monotonic() - began
    for step in range(STEPS + 1):
        prepare(client, ws)
        before = names(client, ws)
        _, answer = client.start("tools/call", {"name": tool, "arguments": {"workspace_id": ws, **arguments}})
        time.sleep(took * step / STEPS)  # the moment itself is what is tried
        warm_host.kill_daemon()
        answer.get(timeout=60)  # a result, or that the daemon is gone
        if what == "restore of the disk" and sh(client, ws, "test -e /dev/shm/n || echo none") == "none":
            snapshot(client, ws, "restore", name="alive")
        check_world(warm_host, client, ws)
        changed = set(names(client, ws)) ^ set(before)
        assert changed <= {"create": {"new"}, "delete": {"old"}}.get(arguments.get("action"), set())
        # Another start changes nothing.
        warm_host.kill_daemon()
        check_world(warm_host, client, ws)
    for w in client.call("workspace_list")["workspaces"]:
        client.call("workspace_destroy", workspace_id=w["workspace_id"])
    check_files(warm_host)
