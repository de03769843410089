# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of the command line.

Each test has a state directory of its own below /tmp (short, as unix sockets need it), and the daemon that lives at the
end of the test is ended by its pid. The program under test is $AGENTISO, else build/agentiso.
"""
import ctypes
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
AGENTISO = os.environ.get("AGENTISO", str(ROOT / "build" / "agentiso"))


def wait_for(condition, seconds=10):
    """Waits until condition() is true and returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Host:
    """A state directory with its environment, and the programs that run over it."""

    def __init__(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="agi-", dir="/tmp"))
        self.state = self.root
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTISO_")}
        self.env["AGENTISO_STATE_DIR"] = str(self.state)
        self.env["AGENTISO_IMAGE_DIR"] = str(self.state / "images")
        self.children = []

    def run(self, *args, timeout=60, program=AGENTISO, **kwargs):
        return subprocess.run([program, *args], env=self.env, capture_output=True, text=True, timeout=timeout,
                              stdin=subprocess.DEVNULL, **kwargs)

    def popen(self, *args, program=AGENTISO, **kwargs):
        child = subprocess.Popen([program, *args], env=self.env, **kwargs)
        self.children.append(child)
        return child

    def daemon_pid(self):
        """The pid of the daemon that listens, or None."""
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(str(self.state / "agentiso.sock"))
            except OSError:
                return None
            return struct.unpack("3i", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def start_daemon(self, program=AGENTISO):
        child = self.popen("daemon", program=program, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: self.daemon_pid() or child.poll() is not None)
        assert child.poll() is None, child.stderr.read()
        return child

    def kill_daemon(self):
        """Kills the daemon and waits for the end of its last thread: until then its listener may still take a client,
        which nobody serves."""
        pid = wait_for(self.daemon_pid)
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        ended, _, _ = select.select([pidfd], [], [], 10)
        os.close(pidfd)
        assert ended, "the daemon lives on"
        return pid

    def close(self):
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait(10)
        for pid in adopted():
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)  # a test that failed may have left it stopped
            wait_for(lambda: os.waitpid(pid, os.WNOHANG)[0])
        shutil.rmtree(self.root)


def adopted():
    """Our children that no Popen object stands for: daemons that a serve has started and left to us (see below)."""
    pids = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8") as f:
                if int(f.read().rpartition(")")[2].split()[1]) == os.getpid():
                    pids.append(int(entry))
        except OSError:
            pass  # no process, or one that has just gone
    return pids


def state(path):
    """The state letter in a stat file of /proc; Z when it is gone."""
    try:
        with open(path, encoding="utf-8") as f:
            return f.read().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def alive(pid):
    return state(f"/proc/{pid}/stat") != "Z"


def freeze(pid):
    """Stops a process and waits until none of its threads runs any more."""
    os.kill(pid, signal.SIGSTOP)
    tasks = pathlib.Path(f"/proc/{pid}/task")
    wait_for(lambda: all(state(task / "stat") == "T" for task in tasks.iterdir()))


class Serve:
    """An MCP client at the ends of `agentiso serve`."""

    def __init__(self, host, *args, **kwargs):
        self.child = host.popen(*args, "serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                **kwargs)
        self.pending = b""

    def send(self, message):
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        self.child.stdin.write(data)
        self.child.stdin.flush()

    def line(self, seconds=15):
        end = time.monotonic() + seconds
        while b"\n" not in self.pending:
            ready, _, _ = select.select([self.child.stdout], [], [], max(0, end - time.monotonic()))
            assert ready, f"no line within {seconds} s"
            data = os.read(self.child.stdout.fileno(), 65536)
            assert data, "serve closed its output"
            self.pending += data
        line, _, self.pending = self.pending.partition(b"\n")
        return line

    def receive(self, seconds=15):
        return json.loads(self.line(seconds))

    def quiet(self, seconds=0.3):
        """Asserts that nothing comes."""
        assert not self.pending
        assert not select.select([self.child.stdout], [], [], seconds)[0]

    def request(self, method, params=None, id=1):
        self.send({"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}})
        return self.receive()

    def initialize(self):
        answer = self.request("initialize", {"protocolVersion": "2025-06-18", "capabilities": {},
                                             "clientInfo": {"name": "test", "version": "1"}}, id="init")
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        self.ping("ready")  # by now the daemon has it all
        return answer

    def ping(self, id=99):
        answer = self.request("ping", id=id)
        assert answer == {"jsonrpc": "2.0", "id": id, "result": {}}, answer

    def rest(self):
        """Closes the input; everything that still comes, and the exit status."""
        self.child.stdin.close()
        data = self.pending + self.child.stdout.read()
        return data, self.child.wait(5)


@pytest.fixture(scope="session", autouse=True)
def subreaper():
    """Orphans below us become our children, so that none outlives its test, however young it is."""
    PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
    assert ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@pytest.fixture
def host():
    h = Host()
    yield h
    h.close()


@pytest.fixture
def serve(host):
    return Serve(host)
