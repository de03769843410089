# SPDX-License-Identifier: Apache-2.0
"""The network when parts of it die, and what is left of it on the host: nothing."""

import os
import pathlib
import threading

import pytest

from guest import Guest
from host import wait_until
from netlab import WEB, helper_pid, holder_pid, kill, pasta_pid, wait_hits

# Sends a number every tenth of a second over one connection, and says what came back, and if it ever broke.
CLOCK = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], 7), 20)
for i in range(int(sys.argv[2])):
    s.sendall(b'%06d' % i)
    assert s.recv(6, socket.MSG_WAITALL) == b'%06d' % i
    print(i, flush=True)
    time.sleep(0.1)
print('whole', flush=True)
"""


@pytest.fixture
def installation(world):
    with world.agentiso() as host:
        yield host


def test_nothing_is_left_and_nothing_was_changed(world):
    before = world.state()
    with world.agentiso() as host:
        client = host.client()
        guest = Guest(client, "one", allow_internet=True)
        guest.call("port_forward", action="add", guest_port=80)
        assert guest.connects(WEB, 80)
        pids = [holder_pid(host), helper_pid(host), pasta_pid(host)]
        assert all(pids)
        during = world.state()
        assert during == before, "the host's own network was changed"
        client.close()
        host.cli("stop", "--all")
        for pid in pids:
            wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), 10, f"the end of {pid}")
    assert world.state() == before


def test_daemon_and_qemu_have_no_privilege_over_a_network(world, installation):
    guest = Guest(installation.client(), "one", allow_internet=True)
    namespaces = {}
    for name, pid in (("daemon", installation.daemon_pid()), ("qemu", installation.qemu_pid(guest.id)),
                      ("helper", helper_pid(installation)), ("world", world.host.process.pid)):
        namespaces[name] = os.readlink(f"/proc/{pid}/ns/net"), os.readlink(f"/proc/{pid}/ns/user")
    # QEMU has the open tap, and is in no namespace in which that is an interface.
    assert namespaces["qemu"] == namespaces["daemon"] == namespaces["world"]
    assert namespaces["helper"][0] != namespaces["world"][0] and namespaces["helper"][1] != namespaces["world"][1]
    status = pathlib.Path(f"/proc/{helper_pid(installation)}/status").read_text()
    capabilities = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    assert capabilities == 1 << 13 | 1 << 12 | 1 << 10, "CAP_NET_RAW, _ADMIN and _BIND_SERVICE, in its own namespace"


@pytest.mark.parametrize("victim", ["helper", "holder", "daemon", "helper and daemon"])
def test_connections_go_on_when_a_part_dies(world, installation, victim):
    guest = Guest(installation.client(), "one", allow_internet=True)
    guest.call("file_write", path="/root/clock.py", content=CLOCK)
    job = guest.start(f"exec python3 /root/clock.py {WEB} 60")
    wait_hits(world, lambda h: h[0] == "echo")
    assert "0\n" in guest.output(job, wait_secs=20)["stdout"]
    helper, holder = helper_pid(installation), holder_pid(installation)
    if "helper" in victim:
        kill(helper)
    if victim == "holder":
        kill(holder)
    if "daemon" in victim:
        installation.kill_daemon()
    # Whoever needs it finds it mended: a policy is changed, and another workspace gets its card.
    other = Guest(guest.client, "two", allow_internet=True)
    assert other.connects(WEB, 80)
    if victim != "holder":
        assert holder_pid(installation) == holder
    else:
        wait_until(lambda: holder_pid(installation) != holder, 10, "another holder")
    if victim == "helper":
        assert helper_pid(installation) not in (None, helper)
    wait_until(lambda: "whole" in guest.output(job, stdout_offset=0)["stdout"], 40, "the end of the clock")
    assert guest.policy()["allow_internet"]
    guest.policy(allow_internet=False)
    assert not guest.connects(WEB, 80)


def test_the_uplink_comes_back(world, installation):
    guest = Guest(installation.client(), "one", allow_internet=True)
    first = pasta_pid(installation)
    kill(first)
    wait_until(lambda: pasta_pid(installation) not in (None, first), 20, "another uplink")
    wait_until(lambda: guest.connects(WEB, 80), 20, "the internet")
    # Nobody may use it any more: then there is none.
    guest.policy(allow_internet=False)
    wait_until(lambda: pasta_pid(installation) is None, 10, "the end of the uplink")


def test_a_host_without_a_way_out_says_so(world, installation):
    guest = Guest(installation.client(), "one")
    world.host.sh(f"ip route del default via {WEB}")
    try:
        with pytest.raises(Exception, match="internet cannot be reached.*(route|interface)") as caught:
            guest.policy(allow_internet=True)
        assert caught.value.code == "unsupported"
        assert not guest.policy()["allow_internet"]
    finally:
        world.host.sh(f"ip route add default via {WEB}")
    assert guest.policy(allow_internet=True)["allow_internet"]
    assert guest.connects(WEB, 80)


def test_a_restored_workspace_has_its_network_and_not_its_connections(world, installation):
    guest = Guest(installation.client(), "one", allow_internet=True)
    guest.call("file_write", path="/root/clock.py", content=CLOCK)
    job = guest.start(f"python3 /root/clock.py {WEB} 600; echo over")
    wait_hits(world, lambda h: h[0] == "echo")
    assert "0\n" in guest.output(job, wait_secs=20)["stdout"]
    guest.call("snapshot", action="create", name="then", include_memory=True)
    restored = guest.call("snapshot", action="restore", name="then")
    assert restored["has_memory"]
    # Its connection is over, and it is told at once.
    wait_until(lambda: "over" in guest.output(job, stdout_offset=0)["stdout"], 20, "the end of the connection")
    assert "Connection" in guest.output(job, stdout_offset=0)["stderr"]
    assert guest.connects(WEB, 80) and guest.run("getent ahostsv4 web.test").startswith(WEB)


def test_twenty_forks_have_twenty_networks(world):
    with world.agentiso('[templates]\nmax_gb = 8\n') as host:
        host.warm("--memory-mb", "256", "--vcpus", "1")
        client = host.client()
        source = Guest(client, "source", allow_internet=True)
        source.serve(8000)
        source.call("file_write", path="/root/clock.py", content=CLOCK)
        job = source.start(f"python3 /root/clock.py {WEB} 3000; echo over")
        assert "0\n" in source.output(job, wait_secs=20)["stdout"]
        made = client.call("workspace_fork", workspace_id="source", count=20, name_prefix="fork", timeout=400)
        assert made["success_count"] == 20, made
        forks = [Guest(client, worker["name"], create=False) for worker in made["workers"]]
        assert len({f.ip for f in forks} | {source.ip}) == 21
        results = {}

        def look(fork):
            results[fork.name] = (
                fork.run("cat /sys/class/net/eth0/address; ip -4 -o addr show dev eth0").split(),
                fork.run("curl -sS -m 40 http://web.test/"))

        threads = [threading.Thread(target=look, args=(fork,)) for fork in forks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert len(results) == 20
        assert len({words[0] for words, _ in results.values()}) == 20
        for fork in forks:
            words, page = results[fork.name]
            assert f"{fork.ip}/32" in words and f"{source.ip}/32" not in words
            assert page == "hello\n"
            wait_until(lambda fork=fork: "over" in fork.output(job, stdout_offset=0)["stdout"], 30,
                       "the end of the source's connection in a fork")
        # The source's own connection goes on, and no fork reaches another.
        assert "over" not in source.output(job, stdout_offset=0)["stdout"]
        assert not forks[0].connects(forks[1].ip, 8000)
        # Each is reached from the host.
        for fork in forks[:3]:
            port = fork.call("port_forward", action="add", guest_port=8000)["host_port"]
            with world.connect(port) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.0 200")
