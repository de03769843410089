# SPDX-License-Identifier: Apache-2.0
"""The internet, other workspaces and open ports: off by default, on when asked, off again at once."""

import pytest

from guest import Guest
from host import wait_until
from mcp_client import ToolError
from netlab import HOST_ADDRESS, HOST_PORT, PRIVATE, WEB, wait_hits

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


@pytest.fixture(scope="module")
def installation(world):
    with world.agentiso() as host:
        yield host


@pytest.fixture(scope="module")
def net_client(installation):
    return installation.client()


@pytest.fixture(scope="module")
def guest(net_client):
    return Guest(net_client, "one")


@pytest.fixture(scope="module")
def other(net_client):
    return Guest(net_client, "two")


@pytest.fixture
def online(guest):
    assert guest.policy(allow_internet=True)["allow_internet"]
    yield guest
    guest.policy(allow_internet=False)


def test_a_workspace_has_an_address_and_may_do_nothing(guest):
    assert guest.policy() == NOTHING
    assert guest.call("workspace_info")["network"] == {**NOTHING, "port_forwards": []}
    assert guest.run("ip -4 -o addr show dev eth0").split()[3] == f"{guest.ip}/32"
    assert not guest.connects(WEB, 80)
    assert guest.exec("getent hosts web.test")["exit_code"] == 2


def test_the_internet_by_name_and_address(world, online):
    assert online.run("getent ahostsv4 web.test").split()[0] == WEB
    assert online.run("curl -sS -m 20 http://web.test/") == "hello\n"
    # UDP, there and back.
    assert online.run("python3 -c \"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
                      f"s.settimeout(10); s.sendto(b'ask', ('{WEB}', 7)); print(s.recv(10))\"") == "b'ask'\n"
    # A name that is too long for UDP or asked over TCP.
    assert online.run("python3 -c \"import socket, struct; s = socket.create_connection(('10.99.0.1', 53), 10); "
                      "q = bytes.fromhex('123401000001000000000000') + b'\\3web\\4test\\0\\0\\1\\0\\1'; "
                      "s.sendall(struct.pack('!H', len(q)) + q); print(s.recv(512)[-4:].hex())\"") == "c633640a\n"
    assert [h for h in world.hits() if h[0] == "web" and h[2] == HOST_ADDRESS]


def test_a_large_download_arrives_whole(online):
    assert online.run(f"curl -sS -m 50 http://{WEB}/bytes/50000000 | sha256sum").split()[0] == \
        online.run("python3 -c \"b = bytes(range(256)) * 256; n = 50000000\n"
                   "import hashlib; h = hashlib.sha256()\n"
                   "for i in range(0, n, 65536): h.update(b[:min(65536, n - i)])\n"
                   "print(h.hexdigest())\"").strip()


def test_private_ranges_and_the_host_are_refused_even_then(world, online):
    before = [h for h in world.hits() if h[0] in ("private", "host")]
    for address in (*PRIVATE, HOST_ADDRESS, "10.99.0.1", "224.0.0.1", "240.0.0.1"):
        for port in (80, HOST_PORT):
            assert not online.connects(address, port)
    online.run("python3 -c \"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
               f"for a in {(HOST_ADDRESS, *PRIVATE)!r}:\n"
               f"  for p in (53, {HOST_PORT}):\n"
               "    try: s.sendto(b'x', (a, p))\n"
               "    except OSError: pass\"")
    assert online.connects(WEB, 80)
    assert [h for h in world.hits() if h[0] in ("private", "host")] == before


def test_addresses_that_the_host_gets_later_are_refused_too(world, online):
    address = "198.51.100.77"
    world.internet.sh(f"ip addr add {address}/24 dev up1")
    assert online.connects(address, 80) is False  # nobody listens there; it is no address of the host yet
    world.internet.sh(f"ip addr del {address}/24 dev up1")
    world.host.sh(f"ip addr add {address}/24 dev up0")
    before = len([h for h in world.hits() if h[0] == "host"])
    try:
        online.run("for i in $(seq 50); do curl -s -m 2 http://%s:%d/ >/dev/null; [ $? = 7 ] && exit 0; sleep 0.1; done; "
                   "exit 1" % (address, HOST_PORT))
        assert not online.connects(address, HOST_PORT)
    finally:
        world.host.sh(f"ip addr del {address}/24 dev up0")
    assert len([h for h in world.hits() if h[0] == "host"]) - before <= 1


def test_taking_it_away_cuts_what_runs(world, guest):
    guest.policy(allow_internet=True)
    guest.call("file_write", path="/root/sender.py", content=SENDER)
    before = len(world.hits())
    job = guest.start(f"exec python3 /root/sender.py {WEB} 9")
    wait_hits(world, lambda h: h[0] == "sink")
    assert "connected" in guest.output(job, wait_secs=20)["stdout"]
    assert guest.policy(allow_internet=False) == NOTHING
    # It is told, and does not wait for a time-out.
    ended = guest.output(job, wait_secs=20)
    assert "ended Connection" in ended["stdout"], ended
    assert not guest.connects(WEB, 80)
    result = guest.exec("getent hosts web.test")
    assert result["exit_code"] == 2 and result["duration_ms"] < 4000, result
    assert len(world.hits()) - before == 1


def test_it_belongs_to_the_workspace(net_client, guest, other):
    guest.policy(allow_internet=True)
    assert not other.connects(WEB, 80)
    guest.call("workspace_stop")
    guest.call("workspace_start")
    assert guest.policy()["allow_internet"]
    assert guest.connects(WEB, 80)
    guest.policy(allow_internet=False)


def test_workspaces_reach_each_other_only_if_both_want(guest, other):
    other.serve(8000)
    assert not guest.connects(other.ip, 8000)
    guest.policy(allow_inter_vm=True)
    assert not guest.connects(other.ip, 8000)
    other.policy(allow_inter_vm=True)
    assert guest.connects(other.ip, 8000)
    guest.serve(8003)
    assert other.connects(guest.ip, 8003)
    guest.policy(allow_inter_vm=False)
    assert not guest.connects(other.ip, 8000)
    assert other.policy(allow_inter_vm=False) == NOTHING


def test_open_ports_are_for_all_others(guest, other):
    other.serve(8001)
    assert other.policy(allowed_ports=[8002, 8001, 8001])["allowed_ports"] == [8001, 8002]
    assert guest.connects(other.ip, 8001)
    assert not guest.connects(other.ip, 8000)
    # The other way round nothing was opened, not even from that port.
    guest.serve(8000)
    assert not other.connects(guest.ip, 8000)
    assert other.exec("python3 -c \"import socket; s = socket.socket(); s.settimeout(5); s.bind(('', 8002)); "
                      f"exit(0 if s.connect_ex(('{guest.ip}', 8000)) == 0 else 1)\"")["exit_code"] == 1
    assert other.policy(allowed_ports=[]) == NOTHING
    assert not guest.connects(other.ip, 8001)


@pytest.mark.parametrize("wrong", [{"allowed_ports": [0]}, {"allowed_ports": [65536]}, {"allowed_ports": ["http"]},
                                   {"allowed_ports": list(range(1, 34))}, {"allow_internet": "maybe"}])
def test_wrong_policies_change_nothing(guest, wrong):
    with pytest.raises(ToolError) as caught:
        guest.policy(**wrong)
    assert caught.value.code == "invalid_argument" and next(iter(wrong)) in caught.value.text
    assert guest.policy() == NOTHING


QUIET_SENDER = SENDER.replace("try:", "import os, time\nwhile not os.path.exists('/root/go'): time.sleep(0.1)\ntry:", 1)


def test_who_is_silent_while_it_is_cut_is_told_later(guest):
    # With the last one that may, the uplink goes as well.
    guest.policy(allow_internet=True)
    guest.call("file_write", path="/root/sender.py", content=QUIET_SENDER)
    job = guest.start(f"exec python3 /root/sender.py {WEB} 9")
    assert "connected" in guest.output(job, wait_secs=20)["stdout"]
    guest.policy(allow_internet=False)
    guest.run("touch /root/go")
    ended = guest.output(job, wait_secs=15)
    assert "ended Connection" in ended["stdout"], ended


def test_created_with_the_internet_and_gone_with_the_workspace(world, net_client):
    third = Guest(net_client, "three", allow_internet=True)
    assert third.policy()["allow_internet"] and third.connects(WEB, 80)
    third.call("workspace_destroy")
    # Its address goes to another one when its connections are forgotten, and nothing with it.
    for n in range(20):
        fourth = Guest(net_client, f"four-{n}")
        if fourth.ip == third.ip:
            break
        fourth.call("workspace_destroy")
    assert fourth.ip == third.ip
    assert fourth.policy() == NOTHING and not fourth.connects(WEB, 80)
    fourth.call("workspace_destroy")


def test_exceptions_of_the_private_ranges(world):
    with world.agentiso('[network]\nallow_private = "10.20.0.0/16, 198.51.100.1/32"\n') as host:
        guest = Guest(host.client(), "one")
        allowed, *others = PRIVATE
        assert not guest.connects(allowed, 80)
        guest.policy(allow_internet=True)
        assert guest.connects(allowed, 80)
        assert not [address for address in others if guest.connects(address, 80)]
        # The host itself is no exception, whatever the configuration says.
        assert not guest.connects(HOST_ADDRESS, HOST_PORT)


def test_the_default_policy_is_configured(world):
    with world.agentiso("[defaults]\nallow_internet = true\n") as host:
        client = host.client()
        assert Guest(client, "one").policy()["allow_internet"]
        assert not Guest(client, "two", allow_internet=False).policy()["allow_internet"]


# Echoes once, then says nothing until it is told to go on.
SILENT = """
import os, socket, sys
os.mkfifo('/root/go')
s = socket.create_connection((sys.argv[1], 7), 20)
s.sendall(b'first')
assert s.recv(5, socket.MSG_WAITALL) == b'first'
print('connected', flush=True)
open('/root/go').read()
try:
    s.sendall(b'later')
    print('received', s.recv(5), flush=True)
except OSError as e:
    print('ended', type(e).__name__, flush=True)
"""


def test_a_server_learns_that_a_silent_connection_was_cut(world, installation):
    client = installation.client()
    silent, busy = (Guest(client, name, allow_internet=True) for name in ("silent", "busy"))
    for guest in (silent, busy):
        guest.call("file_write", path="/root/silent.py", content=SILENT)
    ends, jobs = world.ends("echo"), {}
    for guest in (silent, busy):
        jobs[guest] = guest.start(f"exec python3 /root/silent.py {WEB}")
        assert "connected" in guest.output(jobs[guest], wait_secs=20)["stdout"]
    assert world.ends("echo") == ends
    silent.policy(allow_internet=False)
    wait_until(lambda: world.ends("echo") == ends + 1, 10, "the end of the connection at the server")
    # It may again, and the connection of before is gone all the same, for it and for the server.
    silent.policy(allow_internet=True)
    assert silent.connects(WEB, 80)
    connections = len([h for h in world.hits() if h[0] == "echo"])
    for guest, said in ((silent, "ended Connection"), (busy, "received b'later'")):
        guest.run("echo >/root/go")
        job = jobs[guest]
        wait_until(lambda guest=guest, job=job, said=said: said in guest.output(job, stdout_offset=0)["stdout"], 20, said)
    assert len([h for h in world.hits() if h[0] == "echo"]) == connections
    for guest in (silent, busy):
        guest.call("workspace_destroy")
    # The one that has ended by itself, after the one that was cut.
    wait_until(lambda: world.ends("echo") == ends + 2, 10, "the end of the other connection")


# What a name server might do for the host, and must not for a guest: the answers' codes, over UDP and TCP.
FORBIDDEN = """
import socket, struct
question = b'\\3web\\4test\\0'
for flags, questions, kind in ((0x2800, 1, 6), (0x2000, 1, 6), (0x0100, 1, 252), (0x0100, 1, 251), (0x0100, 2, 1)):
    query = struct.pack('!6H', 7, flags, questions, 0, 0, 0) + (question + struct.pack('!2H', kind, 1)) * questions
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(10)
        udp.sendto(query, ('10.99.0.1', 53))
        print(udp.recv(512)[3] & 15, end=' ')
    with socket.create_connection(('10.99.0.1', 53), 10) as tcp:
        tcp.sendall(struct.pack('!H', len(query)) + query)
        print(tcp.recv(512)[5] & 15, end=' ')
"""


def test_only_questions_are_asked_in_the_hosts_name(world, online):
    online.call("file_write", path="/root/forbidden.py", content=FORBIDDEN)
    before = len([h for h in world.hits() if h[0] == "names"])
    assert online.run("python3 /root/forbidden.py").split() == ["5"] * 10
    assert len([h for h in world.hits() if h[0] == "names"]) == before
    assert online.run("getent ahostsv4 web.test").split()[0] == WEB
