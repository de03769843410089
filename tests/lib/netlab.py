# SPDX-License-Identifier: Apache-2.0
"""A pretend world for network tests: a namespace that plays the host, and one that plays the internet.

The daemon, QEMU and whatever they start run in the host's namespace, so the real host's interfaces, routes, rules and
names are neither used nor changed. The internet is 198.51.100.0/24 (RFC 5737), with a name server, and with a few
private addresses, which nobody may reach. Both namespaces go with the processes that hold them.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

from host import make_host, wait_readable, wait_until

INTERNET = pathlib.Path(__file__).with_name("internet.py")
HOST_ADDRESS = "198.51.100.1"
WEB = "198.51.100.10"
NAMES = "198.51.100.53"
# Where something listens that nobody may reach: in the internet's namespace, and routed there.
PRIVATE = ("10.20.0.5", "172.16.5.5", "192.168.7.5", "100.64.1.1", "169.254.169.254")
HOST_PORT = 8099  # of a service on the host, at all of its addresses
TOOLS = ("nsenter", "unshare", "ip", "nft", "pasta")


def missing():
    """What these tests need and is not here, or None."""
    absent = [tool for tool in TOOLS if not shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if absent:
        return f"needs {', '.join(absent)}"
    made = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return None if made.returncode == 0 else "may not make network namespaces"


class Namespace:
    """A network namespace (and a mount namespace) that a sleeping process holds."""

    def __init__(self, setup):
        self.process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec",
             f"{setup}\nip link set lo up\necho ready\nexec sleep infinity"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"
        self.prefix = ["nsenter", "--net", "--mount", "--target", str(self.process.pid), "--"]

    def run(self, *command, **options):
        options = {"check": True, "capture_output": True, "text": True, "timeout": 60, **options}
        return subprocess.run([*self.prefix, *command], **options)

    def sh(self, script):
        return self.run("sh", "-ec", script).stdout

    def close(self):
        self.process.kill()
        self.process.wait()


class World:
    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="agentiso-world-"))
        resolv = self.directory / "resolv.conf"
        resolv.write_text(f"nameserver {NAMES}\n")
        self.resolv_conf = resolv
        self.host = Namespace(f"mount --bind {resolv} /etc/resolv.conf")
        self.internet = Namespace("true")
        self.log = self.directory / "internet.log"
        self.servers = []
        try:
            self._connect()
            self._serve(self.internet, "internet", WEB, NAMES, *PRIVATE)
            self._serve(self.host, "host", str(HOST_PORT))
        except BaseException:
            self.close()
            raise

    def _connect(self):
        self.host.sh(f"ip link add up0 type veth peer name up1 netns {self.internet.process.pid}\n"
                     f"ip link set up0 addrgenmode none\nip addr add {HOST_ADDRESS}/24 dev up0\nip link set up0 up\n"
                     f"ip route add default via {WEB}")
        self.internet.sh("ip link set up1 up\n"
                         + "".join(f"ip addr add {a}/24 dev up1\n" for a in (WEB, NAMES))
                         + "".join(f"ip addr add {a}/32 dev lo\n" for a in PRIVATE))

    def _serve(self, namespace, *arguments):
        server = subprocess.Popen([*namespace.prefix, sys.executable, str(INTERNET), str(self.log), *arguments],
                                  stdout=subprocess.PIPE, text=True)
        self.servers.append(server)
        assert server.stdout.readline() == "ready\n"

    def _logged(self):
        if not self.log.exists():
            return []
        return [tuple(json.loads(line)) for line in self.log.read_text().splitlines()]

    def hits(self):
        """Every connection and datagram that a server got: [(server, local address, from)]."""
        return [h for h in self._logged() if not h[0].startswith("closed-")]

    def ends(self, server):
        """How many connections of this server's have ended."""
        return len([h for h in self._logged() if h[0] == f"closed-{server}"])

    def state(self):
        """What a program on the host may change of its network, as text: to be compared."""
        return {name: self.host.sh(script) for name, script in (
            ("rules", "nft list ruleset"), ("links", "ip -d link show"), ("addresses", "ip addr show"),
            ("routes", "ip route show table all; ip -6 route show table all; ip rule show"),
            # What is counted or read from hardware at each look says nothing.
            ("settings", "sysctl -a 2>/dev/null | grep -E '^net\\.' | grep -v -E 'nf_conntrack_count|random|stable_secret'"))}

    @contextlib.contextmanager
    def agentiso(self, config="", **options):
        """An agentiso whose host is this one."""
        for host in make_host(config, prefix=self.host.prefix, **options):
            yield host

    def connect(self, port, address="127.0.0.1", timeout=20):
        """A connection from the host; the socket is made in its namespace."""
        code = ("import socket,sys,array\n"
                "c=socket.create_connection((sys.argv[1],int(sys.argv[2])),float(sys.argv[3]))\n"
                "s=socket.socket(fileno=0)\n"
                "s.sendmsg([b'x'],[(socket.SOL_SOCKET,socket.SCM_RIGHTS,array.array('i',[c.fileno()]))])\n")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            done = subprocess.run([*self.host.prefix, sys.executable, "-c", code, address, str(port), str(timeout)],
                                  stdin=theirs, stderr=subprocess.PIPE, text=True, timeout=timeout + 10, check=False)
            if done.returncode != 0:
                raise ConnectionRefusedError(done.stderr.strip().splitlines()[-1])
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        connection = socket.socket(fileno=fds[0])
        connection.settimeout(timeout)
        return connection

    def close(self):
        for server in self.servers:
            server.send_signal(signal.SIGKILL)
            server.wait()
        self.host.close()
        self.internet.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def wait_hits(world, condition, seconds=20):
    return wait_until(lambda: [h for h in world.hits() if condition(h)], seconds, "a hit at a server")


# The processes of an installation's network.

def holder_pid(host):
    return int((host.state_dir / "net" / "namespace.lock").read_text().split()[0])


def child_of(pid, *words):
    """The children of a process whose arguments have these words in a row."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == pid and b"\0".join(w.encode() for w in words) in arguments:
                found.append(int(entry.name))
    return found


def helper_pid(host):
    return next(iter(child_of(host.daemon_pid(), "netns", "help")), None)


def pasta_pid(host):
    target = f"/proc/{holder_pid(host)}/ns/net".encode()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if target in arguments and b"--netns" in arguments:
                return int(entry.name)
    return None


def kill(pid):
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    wait_readable(pidfd, 10)
    os.close(pidfd)
