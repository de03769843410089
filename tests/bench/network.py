# SPDX-License-Identifier: Apache-2.0
"""What the network carries, and what it adds to a create. In the pretend world of tests/lib/netlab.py, as root.

Everything ends or begins in an emulated guest, whose own TCP over loopback is what it is compared with.
"""

import re
import statistics
import time

from measure import MIB, Host, Table, wait_until
from saved import NO_POOL, TEMPLATES, Machines, ms, spread

import netlab  # noqa: I001  measure.py puts tests/lib into the path

BYTES = 256 * MIB
RUNS = 3
CONNECTIONS = 200
CREATES = 15
PORT = 7001
AIM_CREATE_US = 2000

# In the guest: takes "give N" or "count", and does it.
SERVER = """
import socket, sys, threading
def serve(c):
    with c:
        word = c.recv(16, socket.MSG_WAITALL).split()
        if not word:
            return
        if word[0] == b'give':
            block, n = bytes(1 << 17), int(word[1])
            while n > 0:
                n -= c.send(block[:min(n, len(block))])
            return
        n = 0
        while data := c.recv(1 << 18):
            n += len(data)
        c.sendall(b'%d' % n)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=512)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
# In a guest: MB/s that it gets from, and brings to, such a server.
CLIENT = """
import socket, sys, time
def run(word, n):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 60) as s:
        began = time.perf_counter()
        s.sendall((word + (' %d' % n if word == 'give' else '')).encode().ljust(16))
        if word == 'count':
            block, left = bytes(1 << 17), n
            while left > 0:
                left -= s.send(block[:min(left, len(block))])
            s.shutdown(socket.SHUT_WR)
            assert int(s.recv(64)) == n
        else:
            got = 0
            while data := s.recv(1 << 18):
                got += len(data)
            assert got == n
        return n / 1e6 / (time.perf_counter() - began)
print(run('give', int(sys.argv[3])), run('count', int(sys.argv[3])))
"""
# In a guest: MB/s of a download from the pretend internet, and of an upload to its sink.
INTERNET = """
import socket, sys, time
n = int(sys.argv[2])
began = time.perf_counter()
with socket.create_connection((sys.argv[1], 80), 60) as s:
    s.sendall(b'GET /bytes/%d HTTP/1.0\\r\\n\\r\\n' % n)
    got = 0
    while data := s.recv(1 << 18):
        got += len(data)
assert got > n
down = n / 1e6 / (time.perf_counter() - began)
began = time.perf_counter()
with socket.create_connection((sys.argv[1], 9), 60) as s:
    block, left = bytes(1 << 17), n
    while left > 0:
        left -= s.send(block[:min(left, len(block))])
    s.shutdown(socket.SHUT_WR)
    assert int(s.recv(64)) == n
print(down, n / 1e6 / (time.perf_counter() - began))
"""


def rate_text(value):
    return f"{value:.0f} MB/s"


class Net(Machines):
    def guest(self, name, **policy):
        self.call("workspace_create", name=name)
        if policy:
            self.call("network_policy", workspace_id=name, **policy)
        for path, text in (("server", SERVER), ("client", CLIENT), ("internet", INTERNET)):
            self.call("file_write", workspace_id=name, path=f"/root/{path}.py", content=text)
        for address, port in (("0.0.0.0", PORT), ("127.0.0.1", PORT + 1)):
            self.call("exec_background", workspace_id=name, action="start",
                      command=f"exec python3 /root/server.py {address} {port}")
        wait_until(lambda: self.sh(name, "ss -ltnH").count(":700") == 2, 60, "the servers in the guest")
        return self.call("workspace_info", workspace_id=name)["ip"]

    def rates(self, name, script, *arguments):
        """Medians of (MB/s to the guest, MB/s from it)."""
        runs = [[float(word) for word in self.sh(name, f"python3 /root/{script}.py {' '.join(map(str, arguments))}",
                                                 timeout_secs=300).split()] for _ in range(RUNS)]
        return tuple(statistics.median(run[i] for run in runs) for i in (0, 1))


def through_forward(world, port):
    """Medians of (MB/s from the guest, MB/s to it)."""
    down, up = [], []
    block = bytes(1 << 18)
    for _ in range(RUNS):
        with world.connect(port) as c:
            c.settimeout(120)
            began = time.perf_counter()
            c.sendall(f"give {BYTES}".encode().ljust(16))
            got = 0
            while data := c.recv(1 << 20):
                got += len(data)
            assert got == BYTES
            down.append(BYTES / 1e6 / (time.perf_counter() - began))
        with world.connect(port) as c:
            c.settimeout(120)
            began = time.perf_counter()
            c.sendall(b"count".ljust(16))
            for _ in range(BYTES // len(block)):
                c.sendall(block)
            c.shutdown(1)
            assert int(c.recv(64)) == BYTES
            up.append(BYTES / 1e6 / (time.perf_counter() - began))
    return statistics.median(down), statistics.median(up)


def connection_rate(world, port):
    """Connections a second, one after another: made, one question answered, closed. The client is in the world too."""
    code = ("import socket, sys, time\n"
            "def one():\n"
            "    with socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20) as c:\n"
            "        c.sendall(b'count'.ljust(16)); c.shutdown(1); assert c.recv(8) == b'0'\n"
            "one()\n"
            "n = int(sys.argv[2]); began = time.perf_counter()\n"
            "for _ in range(n): one()\n"
            "print(n / (time.perf_counter() - began))\n")
    return float(world.host.run("python3", "-c", code, str(port), str(CONNECTIONS), timeout=120).stdout)


def bench_traffic(world, net):
    one, two = net.guest("one", allow_inter_vm=True, allow_internet=True), net.guest("two", allow_inter_vm=True)
    base_down, base_up = net.rates("one", "client", "127.0.0.1", PORT + 1, BYTES)
    net.table.add("TCP over loopback inside a guest", rate_text(base_down), "", "", "what the emulated guest itself can do")

    def add(what, rate, base, note=""):
        net.table.add(what, rate_text(rate), "", "", f"{rate / base:.2f} of loopback in the guest" + note)

    for name, port in (("guest's address", PORT), ("guest's loopback, by the agent", PORT + 1)):
        forward = net.call("port_forward", workspace_id="one", action="add", guest_port=port)["host_port"]
        down, up = through_forward(world, forward)
        add(f"guest to host by a port forward to the {name}", down, base_up)
        add(f"host to guest by a port forward to the {name}", up, base_down)
        rate = connection_rate(world, forward)
        net.table.add(f"connections by a port forward to the {name}", f"{rate:.0f} a second", "", "",
                      f"one after another, with a question and an answer; {CONNECTIONS} of them")
    down, up = net.rates("one", "internet", netlab.WEB, BYTES)
    add("internet to guest, by pasta", down, base_down)
    add("guest to internet, by pasta", up, base_up)
    down, up = net.rates("one", "client", two, PORT, BYTES)
    add("guest to guest, both allow it", down, base_down, "; two emulated guests work")
    del one


def bench_creates(build, image_dir, prefix, table):
    """The same creates with the private network and without; and what the log says of the cards."""
    medians = {}
    for mode in ("user", "namespace"):
        config = f'[log]\nlevel = "debug"\n[network]\nmode = "{mode}"\n{TEMPLATES}{NO_POOL}'
        with Host(build, image_dir, config, prefix=prefix) as host:
            machines = Machines(host, table)
            host.cli("image", "warm")
            machines.creates("template", 2)
            times, _ = machines.creates("template", CREATES)
            medians[mode] = statistics.median(times)
            machines.row(f"create by the image's template, network.mode \"{mode}\"", times)
            cards = [int(us) for us in re.findall(r"A machine has its card .*us=([0-9]+)", host.log())][-CREATES:]
    value = statistics.median(cards)
    table.add("what a card takes of a create", f"{value / 1000:.2f} ms", "",
              f"≤ {AIM_CREATE_US // 1000} ms: " + ("reached" if value <= AIM_CREATE_US else "missed"),
              f"of the daemon's log; {spread([us / 1000 for us in cards])} ms; the difference of the two lines above: "
              f"{ms(medians['namespace'] - medians['user'])}")


def run(build, image_dir):
    table = Table("what", "figure", "", "aim", "")
    why = netlab.missing()
    if why:
        table.add("the network", "not measured", "", "", why)
        table.print()
        return
    world = netlab.World()
    try:
        bench_creates(build, image_dir, world.host.prefix, table)
        config = "[templates]\nmax_gb = 0\n" + NO_POOL
        with Host(build, image_dir, config, prefix=world.host.prefix) as host:
            bench_traffic(world, Net(host, table))
    finally:
        world.close()
        table.print()
