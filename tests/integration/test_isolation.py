# SPDX-License-Identifier: Apache-2.0
"""What root in a guest can reach by sending whatever it likes: nothing at another guest, nothing on the host."""

import pathlib
import subprocess
import sys

import pytest

from guest import Guest
from netlab import HOST_ADDRESS, HOST_PORT, PRIVATE, WEB

ATTACKS = pathlib.Path(__file__).with_name("attacks.py")
NAMES = subprocess.run([sys.executable, ATTACKS, "list"], capture_output=True, text=True, check=True).stdout.split()
GATEWAY = "10.99.0.1"
SERVICE = 8000


class Card(Guest):
    """A guest with the attacks in it."""

    def __init__(self, client, name):
        super().__init__(client, name)
        self.mac = self.run("cat /sys/class/net/eth0/address").strip()
        self.call("file_write", path="/root/attacks.py", content=ATTACKS.read_text())


class Watch:
    """All frames that a guest gets."""

    def __init__(self, guest):
        self.guest = guest
        self.seen = 0
        self.job = guest.start("exec python3 /root/attacks.py watch")
        assert guest.output(self.job, wait_secs=20)["stdout"] == "ready\n"

    def frames(self):
        """Those since the last time."""
        frames = self.guest.output(self.job, stdout_offset=0)["stdout"].split()[1 + self.seen:]
        self.seen += len(frames)
        return [bytes.fromhex(frame) for frame in frames]


@pytest.fixture(scope="module")
def installation(world):
    with world.agentiso() as host:
        yield host


@pytest.fixture(scope="module")
def client(installation):
    return installation.client()


@pytest.fixture(scope="module")
def attacker(client):
    return Card(client, "attacker")


@pytest.fixture(scope="module")
def victim(client):
    guest = Card(client, "victim")
    guest.serve(SERVICE)
    return guest


@pytest.fixture(scope="module")
def forward(client, victim):
    return client.call("port_forward", workspace_id="victim", action="add", guest_port=SERVICE)["host_port"]


def answers(world, port):
    with world.connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(100).startswith(b"HTTP/1.0 200")


@pytest.fixture(scope="module")
def watch(victim):
    return Watch(victim)


@pytest.mark.parametrize("name", NAMES)
def test_no_frame_reaches_another_guest(world, attacker, victim, forward, watch, name):
    watch.frames()
    sent = int(attacker.run(f"python3 /root/attacks.py send {name} {victim.ip} {victim.mac} {GATEWAY}"))
    assert sent > 0
    # What the host sends comes after all that was sent before, and shows that frames are seen at all.
    assert answers(world, forward)
    frames = watch.frames()
    # Of the host: its own connection, and the answers of the gateway when the victim asks for it.
    wanted = [f for f in frames if f[12:14] == b"\x08\x00" and f[23] == 6]
    answered = [f for f in frames if f[12:14] == b"\x08\x06" and f[20:22] == b"\0\2" and f[6:12] == wanted[0][6:12]]
    assert wanted, "the watch has not even seen the host's own connection"
    assert not [f.hex() for f in frames if f not in wanted + answered]
    assert not [f.hex() for f in frames if b"AGENTISO-ATTACK" in f or f[6:12].hex(":") == attacker.mac]


def test_the_gateway_stays_the_gateway(attacker, victim):
    before = victim.run(f"ping -c 1 -W 5 {GATEWAY} >/dev/null; ip neigh show {GATEWAY}")
    for name in ("arp_spoofing_of_the_gateway", "forged_mac"):
        attacker.run(f"python3 /root/attacks.py send {name} {victim.ip} {victim.mac} {GATEWAY}")
    after = victim.run(f"ping -c 1 -W 5 {GATEWAY} >/dev/null; ip neigh show {GATEWAY}")
    assert before.split()[4] == after.split()[4] != attacker.mac


def test_nothing_answers_at_other_guests_and_the_gateway(attacker, victim):
    assert not attacker.connects(victim.ip, SERVICE)
    assert not [port for port in (22, 53, 80, 111, 5000, HOST_PORT) if attacker.connects(GATEWAY, port)]


def test_nothing_of_the_host_is_reached(world, attacker):
    before = len(world.hits())
    for address in (HOST_ADDRESS, WEB, *PRIVATE):
        for port in (53, 80, HOST_PORT):
            assert not attacker.connects(address, port)
    attacker.run("python3 -c \"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
                 f"for a in {(HOST_ADDRESS, WEB, *PRIVATE)!r}:\n"
                 f"  for p in (7, 53, {HOST_PORT}):\n"
                 "    try: s.sendto(b'x', (a, p))\n"
                 "    except OSError: pass\"")
    assert len(world.hits()) == before


def test_there_are_no_names_without_the_internet(world, attacker):
    before = len(world.hits())
    assert attacker.exec("getent hosts web.test")["exit_code"] == 2
    assert len(world.hits()) == before
    # Nor does anybody give addresses.
    attacker.run("python3 - <<'END'\n"
                 "import socket\n"
                 "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind(('eth0', 0)); s.settimeout(1)\n"
                 "import subprocess\n"
                 f"subprocess.run(['python3', '/root/attacks.py', 'send', 'dhcp', '{GATEWAY}', '52:54:00:00:00:01', '{GATEWAY}'], check=True)\n"
                 "try:\n"
                 "    while True:\n"
                 "        f, w = s.recvfrom(2048)\n"
                 "        assert w[2] == socket.PACKET_OUTGOING or f[23] != 17 or f[36:38] != b'\\0D', f.hex()\n"
                 "except socket.timeout: pass\n"
                 "END")
