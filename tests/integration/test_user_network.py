# SPDX-License-Identifier: Apache-2.0
"""Where no network namespace can be made: nothing by default, the internet when asked, and nothing else ever."""

import os
import pathlib
import signal

import pytest

from guest import Guest
from host import wait_until
from mcp_client import ToolError
from netlab import HOST_ADDRESS, HOST_PORT, PRIVATE, WEB, wait_hits

USER = '[network]\nmode = "user"\n'
NOTHING = {"allow_internet": False, "allow_inter_vm": False, "allowed_ports": []}
# Sends without end, and says how that ended.
SENDER = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
print('connected', flush=True)
try:
    while True:
        s.sendall(bytes(65536))
except OSError as e:
    print('ended', type(e).__name__, flush=True)
"""
NAMES_OVER_TCP = ("python3 -c \"import socket, struct; s = socket.create_connection(('10.99.255.254', 53), 10); "
                  "q = bytes.fromhex('123401000001000000000000') + b'\\3web\\4test\\0\\0\\1\\0\\1'; "
                  "s.sendall(struct.pack('!H', len(q)) + q); print(s.recv(512)[-4:].hex())\"")


def processes(host):
    """{workspace: pid} of the processes behind its machines' networks."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if arguments[1:3] == ["netns", "user"] and arguments[6].startswith(str(host.state_dir / "vms")):
            found[pathlib.Path(arguments[6]).name] = int(entry.name)
    return found


@pytest.fixture(scope="module")
def installation(world):
    with world.agentiso(USER) as host:
        yield host


@pytest.fixture(scope="module")
def net_client(installation):
    return installation.client()


@pytest.fixture(scope="module")
def guest(net_client):
    return Guest(net_client, "one")


@pytest.fixture
def online(guest):
    assert guest.policy(allow_internet=True) == {**NOTHING, "allow_internet": True}
    yield guest
    assert guest.policy(allow_internet=False) == NOTHING


def test_a_workspace_may_do_nothing(world, guest):
    assert guest.policy() == NOTHING
    assert guest.run("ip -4 -o addr show dev eth0").split()[3] == f"{guest.ip}/32"
    assert guest.run("ip route") == ""
    assert not guest.connects(WEB, 80)
    assert guest.exec("getent hosts web.test")["exit_code"] == 2
    # Also for a guest that helps itself to a gateway and a name server.
    guest.run("ip route add default via 10.99.0.1 dev eth0 onlink")
    for address in (WEB, HOST_ADDRESS, "10.99.0.1", "10.99.255.254", *PRIVATE):
        for port in (53, 80, HOST_PORT):
            assert not guest.connects(address, port)
    guest.run("ip route del default")
    assert world.hits() == []


def test_the_internet_by_name_and_address(world, online):
    assert online.run("getent ahostsv4 web.test").split()[0] == WEB
    assert online.run("curl -sS -m 20 http://web.test/") == "hello\n"
    assert online.run("python3 -c \"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
                      f"s.settimeout(10); s.sendto(b'ask', ('{WEB}', 7)); print(s.recv(10))\"") == "b'ask'\n"
    assert online.run(NAMES_OVER_TCP) == "c633640a\n"
    assert [h for h in world.hits() if h[0] == "web" and h[2] == HOST_ADDRESS]


def test_a_large_download_arrives_whole(online):
    assert online.run(f"curl -sS -m 50 http://{WEB}/bytes/50000000 | sha256sum").split()[0] == \
        online.run("python3 -c \"b = bytes(range(256)) * 256; n = 50000000\n"
                   "import hashlib; h = hashlib.sha256()\n"
                   "for i in range(0, n, 65536): h.update(b[:min(65536, n - i)])\n"
                   "print(h.hexdigest())\"").strip()


def test_private_ranges_and_the_host_are_refused_even_then(world, online):
    before = [h for h in world.hits() if h[0] in ("private", "host")]
    for address in (*PRIVATE, HOST_ADDRESS, "10.99.0.1", "10.99.0.3", "10.99.255.254", "240.0.0.1"):
        for port in (80, HOST_PORT):
            assert not online.connects(address, port)
    online.run("python3 -c \"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
               f"for a in {(HOST_ADDRESS, '10.99.0.1', *PRIVATE)!r}:\n"
               f"  for p in (53, {HOST_PORT}):\n"
               "    try: s.sendto(b'x', (a, p))\n"
               "    except OSError: pass\"")
    assert online.connects(WEB, 80)
    assert [h for h in world.hits() if h[0] in ("private", "host")] == before


def test_taking_it_away_cuts_what_runs(world, guest):
    guest.policy(allow_internet=True)
    guest.call("file_write", path="/root/sender.py", content=SENDER)
    before = len(world.hits())
    job = guest.start(f"exec python3 /root/sender.py {WEB} 9")
    wait_hits(world, lambda h: h[0] == "sink")
    assert "connected" in guest.output(job, wait_secs=20)["stdout"]
    assert guest.policy(allow_internet=False) == NOTHING
    assert guest.run("ip route") == ""
    # It is told, and does not wait for a time-out.
    ended = guest.output(job, wait_secs=20)
    assert "ended Connection" in ended["stdout"], ended
    assert not guest.connects(WEB, 80)
    assert len(world.hits()) - before == 1


def test_what_there_is_not_is_refused_with_the_reason(guest):
    for change, name in (({"allow_inter_vm": True}, "allow_inter_vm"), ({"allowed_ports": [80]}, "allowed_ports"),
                         ({"allow_internet": True, "allow_inter_vm": True}, "allow_inter_vm")):
        with pytest.raises(ToolError) as caught:
            guest.policy(**change)
        assert caught.value.code == "unsupported" and name in caught.value.text and "network.mode" in caught.value.text
    assert guest.policy() == NOTHING


def test_created_with_it_and_started_again(net_client):
    second = Guest(net_client, "two", allow_internet=True)
    assert second.policy()["allow_internet"] and second.connects(WEB, 80)
    second.call("workspace_stop")
    second.call("workspace_start")
    assert second.connects(WEB, 80)
    # Changed while it does not run.
    second.call("workspace_stop")
    second.policy(allow_internet=False)
    second.call("workspace_start")
    assert not second.connects(WEB, 80)
    second.call("workspace_destroy")


def test_forks_and_restores_have_it(net_client, guest):
    guest.policy(allow_internet=True)
    guest.call("snapshot", action="create", name="online")
    fork = Guest(net_client, guest.call("workspace_fork", new_name="fork")["name"], create=False)
    assert fork.ip != guest.ip
    assert fork.policy()["allow_internet"] and fork.connects(WEB, 80)
    assert fork.policy(allow_internet=False) == NOTHING and not fork.connects(WEB, 80)
    assert guest.connects(WEB, 80)
    fork.call("workspace_destroy")
    guest.call("snapshot", action="restore", name="online")
    assert guest.connects(WEB, 80)
    # What may be done is the workspace's, not the snapshot's.
    guest.policy(allow_internet=False)
    guest.call("snapshot", action="restore", name="online")
    assert guest.policy() == NOTHING and not guest.connects(WEB, 80)


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
def test_ports_of_the_host_lead_into_the_guest(world, guest, address):
    port = 8200 if address == "0.0.0.0" else 8201
    guest.serve(port, address)
    made = guest.call("port_forward", action="add", guest_port=port)
    with world.connect(made["host_port"]) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
    guest.call("port_forward", action="remove", guest_port=port)


def test_another_daemon_finds_it_as_it_was(world, installation, guest):
    guest.policy(allow_internet=True)
    guest.call("file_write", path="/root/echo.py", content=(
        "import socket, sys\ns = socket.create_connection((sys.argv[1], 7), 20)\n"
        "for line in sys.stdin:\n    s.sendall(line.encode())\n    print(s.recv(100).decode(), end='', flush=True)\n"))
    job = guest.start(f"exec python3 /root/echo.py {WEB}")
    guest.call("exec_background", action="write", job_id=job, data="before\n")
    wait_until(lambda: "before" in guest.output(job, wait_secs=5)["stdout"], 30, "the echo")
    installation.kill_daemon()
    assert guest.policy()["allow_internet"] and guest.connects(WEB, 80)
    assert guest.policy(allow_internet=False) == NOTHING and not guest.connects(WEB, 80)


def test_its_process_is_the_machines_own(installation, net_client, guest):
    third = Guest(net_client, "three", allow_internet=True)
    both = processes(installation)
    assert set(both) >= {guest.id, third.id}
    os.kill(both[third.id], signal.SIGKILL)
    wait_until(lambda: not third.connects(WEB, 80), 20, "the end of its network")
    # It can be used all the same, and is told what to do.
    assert third.run("echo here") == "here\n"
    with pytest.raises(ToolError) as caught:
        third.policy(allow_internet=True)
    assert caught.value.code == "not_running" and "start" in caught.value.text
    third.call("workspace_stop")
    third.call("workspace_start")
    assert third.connects(WEB, 80)
    third.call("workspace_destroy")
    wait_until(lambda: third.id not in processes(installation), 20, "the end of its process")
    assert guest.policy(allow_internet=True)["allow_internet"] and guest.connects(WEB, 80)
    guest.policy(allow_internet=False)
