# SPDX-License-Identifier: Apache-2.0
"""What the parts of the benchmark share: tables, clocks, and an agentiso of its own to measure."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "lib"))  # after this folder, which has a saved.py as well
from mcp_client import McpClient  # noqa: E402

MIB = 1 << 20
CLI_LIMIT = 180  # seconds, for a command of agentiso
CLOCK_OF_PROCESS = 2  # CPUCLOCK_SCHED: the run time of all threads


def timed(function):
    """Milliseconds that a call of it takes."""
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1000


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def smaps_kib(pid):
    """The fields of smaps_rollup, in KiB."""
    fields = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0])
    return fields


def memory_kib(pid):
    """Private and all resident memory."""
    fields = smaps_kib(pid)
    return fields["Private_Clean"] + fields["Private_Dirty"], fields["Rss"]


def cpu_ms(pid):
    """CPU time that a process has used so far."""
    return time.clock_gettime_ns((~pid << 3) | CLOCK_OF_PROCESS) / 1e6


def host_cpu_ms():
    """(busy, all) of all cores so far."""
    ticks = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    tick_ms = 1000 / os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) * tick_ms, sum(ticks) * tick_ms


def host_available_mib():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def wait_until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.05)


class Table:
    def __init__(self, *columns):
        self.columns = columns
        self.rows = []

    def add(self, *cells):
        row = list(cells) + [""] * (len(self.columns) - len(cells))
        self.rows.append(row)
        print("  " + row[0] + ": " + "; ".join(cell for cell in row[1:] if cell), file=sys.stderr)

    def print(self):
        print("\n| " + " | ".join(self.columns) + " |")
        print("|" + "---|" * len(self.columns))
        for row in self.rows:
            print("| " + " | ".join(row) + " |")
        sys.stdout.flush()


class Host:
    """A state directory with a daemon and a client. Nothing of it is left at the end, however that comes."""

    def __init__(self, build, image_dir, config="", prefix=()):
        self.prefix = list(prefix)  # of every command: enters the namespaces that it shall run in
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="agentiso-bench-"))
        self.state_dir = self.directory / "state"
        self.config = self.directory / "config.toml"
        self.config.write_text(f'[paths]\nstate_dir = "{self.state_dir}"\nimage_dir = "{image_dir}"\n{config}')
        self.agentiso = str(build / "agentiso")
        self.client = None

    def __enter__(self):
        try:
            self.client = McpClient([*self.prefix, self.agentiso, "serve", "--config", str(self.config)], name="agentiso-bench")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self.client:
                    self.client.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([*self.prefix, self.agentiso, "stop", "--all", "--config", str(self.config)], capture_output=True,
                               timeout=CLI_LIMIT, check=False)
            for pid in self._left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _left(self):
        """Processes of this state directory that did not end."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if str(self.directory).encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

    def call(self, tool, **arguments):
        return self.client.call(tool, **arguments)

    def cli(self, *command):
        done = subprocess.run([*self.prefix, self.agentiso, *command, "--config", str(self.config)], capture_output=True, text=True,
                              timeout=CLI_LIMIT, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"agentiso {' '.join(command)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def log(self):
        return (self.state_dir / "daemon.log").read_text()

    def daemon_pid(self):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.connect(str(self.state_dir / "agentiso.sock"))
            return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def qemu_pid(self, workspace_id):
        with contextlib.closing(sqlite3.connect(f"file:{self.state_dir}/state.db?mode=ro", uri=True)) as db:
            return db.execute("SELECT proc_pid FROM workspaces WHERE id = ?", (workspace_id,)).fetchone()[0]
