# SPDX-License-Identifier: Apache-2.0
"""Ports of the host that lead into guests: to any address of theirs, many at once, large, slow, half closed."""

import contextlib
import hashlib
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from guest import Guest
from host import wait_until
from mcp_client import ToolError

GIB = 1 << 30
CHUNK = os.urandom(1 << 20)
# Sends back what it gets, or what is asked for: "count" (bytes until the end), "give N".
SERVER = """
import socket, sys, threading
def serve(c):
    with c:
        head = c.recv(16, socket.MSG_WAITALL)
        word = head.strip().decode().split()
        if word[0] == 'give':
            block, n = bytes(1 << 16), int(word[1])
            while n > 0:
                n -= c.send(block[:min(n, len(block))])
            return
        n = 0
        while data := c.recv(1 << 18):
            n += len(data)
            if word[0] == 'echo':
                c.sendall(data)
        c.sendall(b'|%d' % n)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=512,
                                family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
print('ready', flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
ADDRESSES = {"0.0.0.0": 7001, "127.0.0.1": 7002, "::1": 7003}
# Stops all threads of the guest's agent until somebody connects to the port.
STOP_AGENT = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
SEIZE, INTERRUPT = 0x4206, 0x4207
def ptrace(request, tid):
    if libc.ptrace(request, tid, None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
listener = socket.create_server(('0.0.0.0', int(sys.argv[1])))
print('ready', flush=True)
listener.accept()
stopped = set()
while new := set(os.listdir('/proc/1/task')) - stopped:
    for tid in new:
        ptrace(SEIZE, int(tid))
        ptrace(INTERRUPT, int(tid))
        os.waitpid(int(tid), 0x40000000)  # __WALL
    stopped |= new
connection = listener.accept()[0]
connection.send(b'stopped')
connection.recv(1)
"""


def head(text):
    return text.encode().ljust(16)


def drain(connection):
    data = b""
    while chunk := connection.recv(1 << 18):
        data += chunk
    return data


@pytest.fixture(scope="module")
def installation(world):
    with world.agentiso() as host:
        yield host


@pytest.fixture(scope="module")
def net_client(installation):
    return installation.client()


@pytest.fixture(scope="module")
def guest(net_client):
    guest = Guest(net_client, "served", memory_mb=512, vcpus=2)
    guest.call("file_write", path="/root/server.py", content=SERVER)
    for address, port in ADDRESSES.items():
        job = guest.start(f"exec python3 /root/server.py {address} {port}")
        assert guest.output(job, wait_secs=20)["stdout"] == "ready\n"
    return guest


@pytest.fixture(scope="module")
def ports(guest):
    """The host's port for each address of the guest."""
    return {address: guest.call("port_forward", action="add", guest_port=port)["host_port"]
            for address, port in ADDRESSES.items()}


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_service_on_any_address_of_the_guest(world, ports, address):
    with world.connect(ports[address]) as connection:
        connection.sendall(head("echo") + b"there and back")
        # The end of one direction is passed on, and the other goes on.
        connection.shutdown(socket.SHUT_WR)
        assert drain(connection) == b"there and back|14"


def test_the_url_says_where(world, guest):
    made = guest.call("port_forward", action="add", guest_port=7999)
    assert made == {"workspace_id": guest.id, "guest_port": 7999, "host_port": made["host_port"],
                    "url": f"http://127.0.0.1:{made['host_port']}"}
    assert made["host_port"] >= 1024
    listed = guest.call("port_forward", action="list")["port_forwards"]
    assert {"guest_port": 7999, "host_port": made["host_port"], "url": made["url"], "listening": True} in listed
    assert guest.call("workspace_info")["network"]["port_forwards"] == listed
    # Nobody listens in the guest: a connection is reset, at once and not after a time-out.
    with world.connect(made["host_port"]) as connection, pytest.raises(ConnectionResetError):
        connection.sendall(b"x")
        assert connection.recv(1) != b""
    # A service that comes later is reached.
    job = guest.start("exec python3 /root/server.py 127.0.0.1 7999")
    assert guest.output(job, wait_secs=20)["stdout"] == "ready\n"
    with world.connect(made["host_port"]) as connection:
        connection.sendall(head("count") + b"12345")
        connection.shutdown(socket.SHUT_WR)
        assert drain(connection) == b"|5"
    removed = guest.call("port_forward", action="remove", guest_port=7999)
    assert removed["host_port"] == made["host_port"] and removed["removed"]
    with pytest.raises(ConnectionRefusedError):
        world.connect(made["host_port"])


def test_removing_ends_what_runs(world, guest, ports):
    port = ports["0.0.0.0"]
    with world.connect(port) as connection:
        connection.sendall(head("echo") + b"x")
        assert connection.recv(1) == b"x"
        guest.call("port_forward", action="remove", guest_port=ADDRESSES["0.0.0.0"])
        with pytest.raises(ConnectionResetError):
            assert connection.recv(1)
    again = guest.call("port_forward", action="add", guest_port=ADDRESSES["0.0.0.0"], host_port=port)
    assert again["host_port"] == port


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
def test_200_connections_at_once(world, ports, address):
    connections = [world.connect(ports[address]) for _ in range(200)]
    try:
        for i, connection in enumerate(connections):
            connection.settimeout(60)
            connection.sendall(head("echo") + b"%06d" % i)
        # All of them are open when the first one is answered.
        for i, connection in enumerate(connections):
            assert connection.recv(6, socket.MSG_WAITALL) == b"%06d" % i
    finally:
        for connection in connections:
            connection.close()


def test_a_gibibyte_each_way(world, ports):
    with world.connect(ports["0.0.0.0"]) as up:
        up.settimeout(120)
        up.sendall(head("count"))
        for _ in range(GIB // len(CHUNK)):
            up.sendall(CHUNK)
        up.shutdown(socket.SHUT_WR)
        assert drain(up) == b"|%d" % GIB
    with world.connect(ports["0.0.0.0"]) as down:
        down.settimeout(120)
        down.sendall(head(f"give {GIB}"))
        n = 0
        while data := down.recv(1 << 20):
            n += len(data)
        assert n == GIB


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
def test_what_comes_back_is_what_was_sent(world, ports, address):
    sent = hashlib.sha256(CHUNK * 32).hexdigest()
    got = hashlib.sha256()
    with world.connect(ports[address]) as connection:
        connection.settimeout(60)

        def send():
            connection.sendall(head("echo"))
            for _ in range(32):
                connection.sendall(CHUNK)
            connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        left = 32 * len(CHUNK)
        while left:
            data = connection.recv(min(left, 1 << 18))
            assert data, f"it ended with {left} bytes to come"
            left -= len(data)
            got.update(data)
        assert drain(connection) == b"|%d" % (32 * len(CHUNK))
        thread.join(10)
    assert got.hexdigest() == sent


def test_a_slow_reader_loses_nothing_and_holds_up_nobody(world, ports):
    with world.connect(ports["0.0.0.0"]) as slow:
        slow.sendall(head(f"give {64 << 20}"))
        # It reads nothing for as long as others work.
        for address in ("0.0.0.0", "127.0.0.1"):
            with world.connect(ports[address]) as other:
                other.sendall(head("count") + bytes(1 << 20))
                other.shutdown(socket.SHUT_WR)
                assert drain(other) == b"|%d" % (1 << 20)
        n = 0
        while data := slow.recv(1 << 20):
            n += len(data)
        assert n == 64 << 20


def test_other_operations_reset_nobody(world, guest, ports):
    """Those that claim the workspace and leave its machine as it is."""
    done, bad, served = threading.Event(), [], []

    def ask(address):
        while not done.is_set():
            try:
                with world.connect(ports[address], timeout=60) as connection:
                    connection.sendall(head("count") + b"1")
                    connection.shutdown(socket.SHUT_WR)
                    assert drain(connection) == b"|1"
                    served.append(address)
            except (OSError, AssertionError) as error:
                bad.append((address, repr(error)))

    threads = [threading.Thread(target=ask, args=(address,)) for address in ("0.0.0.0", "127.0.0.1")]
    for thread in threads:
        thread.start()
    try:
        for turn in range(3):
            guest.call("snapshot", action="create", name=f"while-served-{turn}")
            guest.policy(allowed_ports=[8000 + turn])
    finally:
        done.set()
        for thread in threads:
            thread.join(90)
        guest.policy(allowed_ports=[])
    assert not bad and set(served) == {"0.0.0.0", "127.0.0.1"}


@pytest.mark.parametrize("arguments, code, names", [
    ({"action": "add", "guest_port": 80, "host_port": 80}, "invalid_argument", "1024"),
    ({"action": "add", "guest_port": 0}, "invalid_argument", "guest_port"),
    ({"action": "add"}, "invalid_argument", "guest_port"),
    ({"action": "add", "guest_port": 7002}, "conflict", "7002"),
    ({"action": "remove", "guest_port": 9999}, "not_found", "9999"),
    ({"action": "open", "guest_port": 9999}, "invalid_argument", "action"),
])
def test_what_is_refused_is_named(guest, ports, arguments, code, names):
    before = guest.call("port_forward", action="list")
    with pytest.raises(ToolError) as caught:
        guest.call("port_forward", **arguments)
    assert caught.value.code == code and names in caught.value.text
    assert guest.call("port_forward", action="list") == before


def test_a_port_that_is_taken(world, guest, ports):
    with pytest.raises(ToolError) as caught:
        guest.call("port_forward", action="add", guest_port=7500, host_port=ports["::1"])
    assert caught.value.code == "conflict" and str(ports["::1"]) in caught.value.text
    with pytest.raises(ToolError) as caught:
        guest.call("port_forward", action="add", guest_port=7500, host_port=8099)  # the world's own service
    assert caught.value.code == "conflict" and "8099" in caught.value.text


def test_they_outlive_workspace_and_daemon(world, installation, guest, ports):
    before = guest.call("port_forward", action="list")
    installation.kill_daemon()
    assert guest.call("port_forward", action="list") == before

    def works():
        try:
            with world.connect(ports["127.0.0.1"]) as connection:
                connection.sendall(head("count") + b"1")
                connection.shutdown(socket.SHUT_WR)
                return drain(connection) == b"|1"
        except ConnectionError:
            return False

    assert works()
    guest.call("workspace_stop")
    with world.connect(ports["127.0.0.1"]) as connection, pytest.raises(ConnectionError):
        connection.sendall(b"x")
        assert connection.recv(1) != b""
    guest.call("workspace_start")
    assert guest.call("port_forward", action="list") == before
    guest.start("exec python3 /root/server.py 127.0.0.1 7002")
    wait_until(works, 30, "the service after the restart")


def test_they_go_with_the_workspace(world, net_client):
    short = Guest(net_client, "short")
    port = short.call("port_forward", action="add", guest_port=80)["host_port"]
    short.call("workspace_destroy")
    with pytest.raises(ConnectionRefusedError):
        world.connect(port)
    # And are free for another.
    with_it = Guest(net_client, "next")
    assert with_it.call("port_forward", action="list")["port_forwards"] == []
    assert with_it.call("port_forward", action="add", guest_port=80, host_port=port)["host_port"] == port
    with_it.call("workspace_destroy")


def test_forks_do_not_have_them(guest, net_client, ports):
    fork = net_client.call("workspace_fork", workspace_id=guest.name, new_name="fork-of-served")
    assert net_client.call("port_forward", workspace_id=fork["workspace_id"], action="list")["port_forwards"] == []
    net_client.call("workspace_destroy", workspace_id=fork["workspace_id"])


def test_a_guest_without_a_card_is_reached_by_its_agent(world, net_client):
    cardless = Guest(net_client, "cardless")
    cardless.serve(8000)
    port = cardless.call("port_forward", action="add", guest_port=8000)["host_port"]
    cardless.run("ip link set eth0 down")
    with world.connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.0 200")
    cardless.call("workspace_destroy")


def test_a_silent_agent_keeps_nothing_of_the_host(world, installation, guest, ports):
    """It is stopped by the guest's own root, and the clients have gone."""
    guest.call("file_write", path="/root/stop.py", content=STOP_AGENT)
    job = guest.start("exec python3 /root/stop.py 7100")
    assert guest.output(job, wait_secs=20)["stdout"] == "ready\n"
    switch = guest.call("port_forward", action="add", guest_port=7100)["host_port"]

    process = pathlib.Path(f"/proc/{installation.daemon_pid()}")

    def used():
        sockets = 0
        for fd in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                sockets += os.readlink(fd).startswith("socket:")
        return len(os.listdir(process / "task")), sockets

    before = used()
    with world.connect(switch), world.connect(switch) as stopped:
        assert stopped.recv(7, socket.MSG_WAITALL) == b"stopped"
        for i in range(40):
            with world.connect(ports["127.0.0.1"]) as connection:
                if i % 2:
                    connection.sendall(head("echo"))
        # The two of the switch, and what else the daemon does meanwhile.
        wait_until(lambda: all(now < then + 12 for now, then in zip(used(), before)), 60, "the connections' end")
        stopped.sendall(b"x")
    assert guest.run("echo back") == "back\n"
    guest.call("port_forward", action="remove", guest_port=7100)


def test_those_that_do_nothing_end_with_the_workspace(world, net_client):
    idle = Guest(net_client, "idle")
    ports = []
    for port, address in ((7001, "0.0.0.0"), (7002, "127.0.0.1")):
        # Accepts one after the other, and reads from none.
        job = idle.start(f"exec python3 -c \"import socket\ns = socket.create_server(('{address}', {port}))\n"
                         "print('ready', flush=True)\nkept = []\nwhile True: kept.append(s.accept())\"")
        assert idle.output(job, wait_secs=20)["stdout"] == "ready\n"
        ports.append(idle.call("port_forward", action="add", guest_port=port)["host_port"])
    silent = [world.connect(port) for port in ports]
    stuck = [world.connect(port) for port in ports]
    for connection in stuck:
        connection.settimeout(2)
        with pytest.raises(TimeoutError):
            while True:
                connection.sendall(CHUNK)
        connection.settimeout(20)
    idle.call("workspace_destroy")
    for connection in silent + stuck:
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_port_that_somebody_else_had_is_taken_back(world, installation, guest):
    port = guest.call("port_forward", action="add", guest_port=7600)["host_port"]
    installation.kill_daemon()
    taking = ("import socket,sys\ns = socket.create_server(('127.0.0.1', int(sys.argv[1])))\nprint('ready', flush=True)\n"
              "sys.stdin.read()\n")
    with subprocess.Popen([*world.host.prefix, sys.executable, "-c", taking, str(port)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"

        def listening():
            listed = guest.call("port_forward", action="list")["port_forwards"]
            return next(row["listening"] for row in listed if row["host_port"] == port)

        assert not listening()
        other.stdin.close()
        other.wait(10)

    def reset():
        try:
            with world.connect(port) as connection:  # nobody has asked for the list
                connection.sendall(b"x")
                return connection.recv(1) == b"never"
        except ConnectionRefusedError:
            return False
        except ConnectionResetError:
            return True

    wait_until(reset, 60, "the port")
    assert listening()
    guest.call("port_forward", action="remove", guest_port=7600)


def test_another_address_by_configuration_only(world):
    with world.agentiso('[network]\nbind = "198.51.100.1"\n') as host:
        guest = Guest(host.client(), "one")
        guest.serve(8000)
        made = guest.call("port_forward", action="add", guest_port=8000)
        assert made["url"] == f"http://198.51.100.1:{made['host_port']}"
        with world.connect(made["host_port"], "198.51.100.1") as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.0 200")
        with pytest.raises(ConnectionRefusedError):
            world.connect(made["host_port"])
