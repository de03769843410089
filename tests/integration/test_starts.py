# SPDX-License-Identifier: Apache-2.0
"""What a machine begins with: a template, a machine of the pool, a boot; and what happens when one of them is no good."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
from conftest import IMAGE_DIR, make_host, wait_until
from mcp_client import ToolError
from saved import TEMPLATES, sh

POOL = TEMPLATES + "[pool]\nsize = 2\n"


@pytest.fixture
def cold_host():
    yield from make_host(TEMPLATES)


def make(client, **options):
    made = client.call("workspace_create", **options)
    return made["workspace_id"], made["start"]


def templates(host):
    """Folders with a template's memory, newest last."""
    found = [path.parent for path in (host.state_dir / "snapshots").glob("*/stamp")]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def test_the_first_boots_and_the_next_do_not(cold_host):
    client = cold_host.client()
    ws, start = make(client)
    assert start == "boot"
    wait_until(lambda: len(templates(cold_host)) == 2, 60, "the templates")
    other, start = make(client)
    assert start == "template"
    # It is a machine like the first.
    facts = "nproc; df -k --output=size / | tail -n 1; awk '/MemTotal/ {print $2}' /proc/meminfo; uname -r"
    assert sh(client, ws, facts) == sh(client, other, facts)
    # A stopped one is started from the template that fits any disk.
    client.call("workspace_stop", workspace_id=ws)
    assert client.call("workspace_start", workspace_id=ws)["start"] == "template"


def test_warm_makes_them_before(warm_host, client):
    assert len(templates(warm_host)) == 2
    again = warm_host.warm()
    assert len(templates(warm_host)) == 2, again.stdout
    ws, start = make(client, name="warm")
    assert start == "template"
    assert sh(client, ws, "hostname; cat /etc/machine-id; ls /root | wc -l") == f"warm\n{ws.replace('-', '')}\n0"
    client.call("workspace_destroy", workspace_id=ws)


def test_a_larger_disk(client):
    ws, start = make(client, disk_gb=13)
    assert start == "template"
    assert 12 * 1024 * 1024 < int(sh(client, ws, "df -k --output=size / | tail -n 1")) <= 13 * 1024 * 1024
    client.call("workspace_destroy", workspace_id=ws)
    ws, start = make(client, disk_gb=3)
    assert start == "template"
    assert 2.5 * 1024 * 1024 < int(sh(client, ws, "df -k --output=size / | tail -n 1")) <= 3 * 1024 * 1024
    client.call("workspace_destroy", workspace_id=ws)


def test_another_shape_gets_its_own(warm_host, client):
    ws, start = make(client, vcpus=1, memory_mb=256)
    assert start == "boot"
    client.call("workspace_destroy", workspace_id=ws)
    wait_until(lambda: len(templates(warm_host)) == 4, 90, "the templates of the shape")
    ws, start = make(client, vcpus=1, memory_mb=256)
    assert start == "template"
    assert sh(client, ws, "nproc") == "1"
    assert 150 * 1024 < int(sh(client, ws, "awk '/MemTotal/ {print $2}' /proc/meminfo")) <= 256 * 1024
    client.call("workspace_destroy", workspace_id=ws)


@pytest.mark.parametrize("damage", ["memory cut", "memory changed", "state lost", "state changed in place"])
def test_a_damaged_template_is_no_error(cold_host, damage):
    client = cold_host.client()
    cold_host.warm()
    for folder in templates(cold_host):
        stamp = (folder / "stamp").read_text()
        if damage == "memory cut":
            os.truncate(folder / "ram", 1 << 20)
        elif damage == "memory changed":
            with open(folder / "ram", "r+b") as f:
                f.seek(16 << 20)
                f.write(bytes(1 << 20))
        elif damage == "state lost":
            (folder / "state").unlink()
        else:  # of the same size, and with the same time: only QEMU finds out
            state = folder / "state"
            times = state.stat()
            state.write_bytes(b"\0" * times.st_size)
            os.utime(state, ns=(times.st_atime_ns, times.st_mtime_ns))
            assert (folder / "stamp").read_text() == stamp
    ws, start = make(client)
    assert start == "boot"
    assert sh(client, ws, "echo works") == "works"
    assert "template" in (cold_host.state_dir / "daemon.log").read_text()
    # What was damaged is gone; the files that are wrong on their face are made anew at once.
    if damage != "state changed in place":
        wait_until(lambda: len(templates(cold_host)) == 2, 60, "the templates")
        assert make(client)[1] == "template"


def test_templates_survive_the_daemon(cold_host):
    cold_host.warm()
    before = templates(cold_host)
    cold_host.cli("stop")
    client = cold_host.client()
    assert make(client)[1] == "template"
    cold_host.kill_daemon()
    assert make(client)[1] == "template"
    assert templates(cold_host) == before


def test_another_kernel_makes_others(tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copytree(IMAGE_DIR / "boot", images / "boot")
    (images / "debian-dev").symlink_to(os.path.realpath(IMAGE_DIR / "debian-dev"))
    monkeypatch.setenv("AGENTISO_IMAGE_DIR", str(images))
    for host in make_host(TEMPLATES):
        host.warm()
        before = set(templates(host))
        for path in (images / "boot").iterdir():
            os.utime(path)
        host.cli("stop")
        client = host.client()
        assert make(client)[1] == "boot"
        wait_until(lambda before=before, host=host: len(templates(host)) == 2 and not before & set(templates(host)),
                   90, "new templates in place of the old")
        assert make(client)[1] == "template"


def test_a_daemon_killed_while_it_makes_a_template(cold_host):
    client = cold_host.client()
    ws, _ = make(client)
    folders = cold_host.state_dir / "snapshots"
    wait_until(lambda: list(folders.glob("*/vm/qemu.pid")), 60, "a template in the making")
    cold_host.kill_daemon()
    assert sh(client, ws, "echo here") == "here"
    # Its machine is gone; what was begun is removed, or made by now.
    for folder in folders.iterdir():
        assert (folder / "stamp").exists() or not (folder / "vm").exists() or templates(cold_host) == [] \
            or folder in templates(cold_host)
    wait_until(lambda: len(cold_host.vm_pids()) == 1, what="one machine")
    make(client)
    wait_until(lambda: len(templates(cold_host)) == 2, 90, "the templates")
    wait_until(lambda: len(list(folders.iterdir())) == 2, what="nothing else")


def test_room_for_templates_is_limited():
    """One gigabyte holds the templates of few shapes."""
    for host in make_host("[templates]\nmax_gb = 1\n"):
        client = host.client()
        for memory in (256, 320, 384, 448, 512, 576):
            host.warm("--memory-mb", str(memory))
            total = sum(os.stat(p).st_blocks * 512 for p in (host.state_dir / "snapshots").glob("*/ram"))
            assert total <= (1 << 30) + (300 << 20)
        assert make(client, memory_mb=576)[1] == "template"
        assert len(templates(host)) < 12


def test_no_templates_by_configuration(host):
    client = host.client()
    assert make(client)[1] == "boot"
    assert make(client)[1] == "boot"
    assert not templates(host)
    done = host.cli("image", "warm", check=False)
    assert done.returncode != 0 and "templates.max_gb" in done.stderr


# --- the pool ---


def ready(host):
    """How many machines wait, and how many there should be."""
    pool = json.loads(host.cli("status", "--json").stdout)["pool"]
    return pool["ready"], pool["wanted"]


def machines(host):
    return len(host.qemu_pids())


def test_the_pool_is_filled_and_claimed():
    for host in make_host(POOL):
        host.warm()
        client = host.client()
        first, _ = make(client)
        wait_until(lambda host=host: ready(host) == (2, 2), 60, "a full pool")
        # Nobody sees them.
        assert [w["workspace_id"] for w in client.call("workspace_list")["workspaces"]] == [first]
        made = client.call("workspace_create", name="claimed")
        assert made["start"] == "pool" and made["from_pool"] is True
        assert made["resources"] == {"vcpus": 2, "memory_mb": 512, "disk_gb": 10}
        ws = made["workspace_id"]
        assert sh(client, ws, "hostname; cat /etc/machine-id") == f"claimed\n{ws.replace('-', '')}"
        asked = time.time()
        assert asked - 0.5 < int(sh(client, ws, "date +%s%N")) / 1e9 < time.time() + 0.5
        # Another shape does not come out of it.
        assert make(client, memory_mb=600)[1] != "pool"
        assert make(client, disk_gb=11)[1] == "template"
        with pytest.raises(ToolError) as caught:
            client.call("workspace_create", name="claimed")
        assert caught.value.code == "conflict" and ws in caught.value.text
        # A machine of the pool is a machine like any other.
        client.call("workspace_stop", workspace_id=ws)
        client.call("workspace_start", workspace_id=ws)
        assert sh(client, ws, "hostname") == "claimed"
        host.cli("stop")
        wait_until(lambda host=host: len(host.vm_pids()) == 4, 30, "an empty pool")


def test_a_crash_orphans_no_machine_of_the_pool():
    for host in make_host(POOL):
        host.warm()
        client = host.client()
        make(client)
        wait_until(lambda host=host: ready(host) == (2, 2), 60, "a full pool")
        before = set(host.vm_pids())
        host.kill_daemon()
        assert make(client)[1] == "pool"
        wait_until(lambda host=host: ready(host) == (2, 2), 60, "a full pool")
        assert len(before - set(host.vm_pids())) == 0
        # One of them that dies is replaced.
        mine = {host.qemu_pid(w["workspace_id"]) for w in client.call("workspace_list")["workspaces"]}
        waiting = next(pid for pid in host.vm_pids() if pid not in mine)
        os.kill(waiting, signal.SIGKILL)
        wait_until(lambda host=host, waiting=waiting: machines(host) == 4 and waiting not in host.vm_pids(), 60,
                   "another one")
        host.cli("stop", "--all")
        wait_until(lambda host=host: machines(host) == 0, 30, "the end of all")


def test_the_pool_keeps_its_bounds():
    for host in make_host(TEMPLATES + "[pool]\nsize = 5\nmemory_mb = 1100\n"):
        host.warm()
        client = host.client()
        make(client)
        wait_until(lambda host=host: ready(host) == (2, 2), 60, "as many as the memory is for")
        assert machines(host) == 3


def test_the_pool_makes_room():
    for host in make_host(POOL + "[limits]\nworkspaces = 4\n"):
        host.warm()
        client = host.client()
        make(client)
        wait_until(lambda host=host: ready(host) == (2, 2), 60, "a full pool")
        for _ in range(3):
            make(client, memory_mb=600)
        with pytest.raises(ToolError) as caught:
            make(client)
        assert caught.value.code == "quota_exceeded"


def test_a_host_short_of_memory_has_no_pool():
    for host in make_host(POOL + "min_free_mb = 64\n"):
        host.warm()
        client = host.client()
        make(client)
        wait_until(lambda host=host: ready(host) == (2, 2), 60, "a full pool")
        # No host has as much as that.
        host.config.write_text(host.config.read_text().replace("min_free_mb = 64", "min_free_mb = 1048576"))
        host.kill_daemon()
        assert len(client.call("workspace_list")["workspaces"]) == 1
        wait_until(lambda host=host: ready(host) == (0, 2), 60, "an empty pool")
        assert make(client)[1] == "template"
        assert machines(host) == 2


def test_many_creates_at_once():
    for host in make_host(POOL):
        host.warm()
        clients = [host.client() for _ in range(4)]
        made = []

        def create(client, made=made):
            made.append(make(client))

        threads = [threading.Thread(target=create, args=(c,)) for c in clients for _ in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(120)
        assert len(made) == len(set(made)) == 8 and {start for _, start in made} <= {"pool", "template"}


def test_a_machine_of_the_pool_keeps_the_next_daemon_from_nothing():
    for host in make_host("[templates]\nmax_gb = 8\n[pool]\nsize = 1\n"):
        client = host.client()
        host.warm()
        client.call("workspace_create")
        wait_until(lambda host=host: len(host.vm_pids()) == 2, 60, "the pool")
        wait_until(lambda host=host: json.loads(host.cli("status", "--json").stdout)["pool"]["ready"] == 1, 20,
                   "the machine")
        host.kill_daemon()
        client.call("workspace_list")
        # It looks at the cards of all machines in the background, and goes on to addresses that are free again.
        first = client.call("workspace_create", disk_gb=9)
        client.call("workspace_destroy", workspace_id=first["workspace_id"])
        for _ in range(20):
            other = client.call("workspace_create", disk_gb=9)
            if other["ip"] == first["ip"]:
                break
            client.call("workspace_destroy", workspace_id=other["workspace_id"])
        assert other["ip"] == first["ip"]
