# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: everything in one run on one machine, so that the ratios mean something.

usage: bench.py BUILD_DIR IMAGE_DIR

Prints a table in Markdown. docs/benchmarks.md explains each line and keeps figures with the machine they come from.
"""

import contextlib
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lib"))
from mcp_client import McpClient  # noqa: E402

BOOTS = 7
PINGS = 500
EXECS = 200

# The same work as one exec of `true`, timed where nothing but the guest takes part.
IN_GUEST = """
import subprocess, time
for _ in range(20): subprocess.run(["/bin/sh", "-c", "true"])
times = []
for _ in range(%d):
    began = time.perf_counter(); subprocess.run(["/bin/sh", "-c", "true"], close_fds=False)
    times.append(time.perf_counter() - began)
times.sort(); print(times[len(times) // 2] * 1000, times[len(times) * 99 // 100] * 1000)
"""


def timed(function):
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1000


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def memory_kib(pid):
    """Private and shared resident memory from smaps_rollup."""
    fields = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0])
    return (fields["Private_Clean"] + fields["Private_Dirty"], fields["Rss"])


class Table:
    def __init__(self):
        self.rows = []

    def add(self, what, value, note=""):
        self.rows.append((what, value, note))
        print(f"  {what}: {value} {note}", file=sys.stderr)

    def print(self):
        print("| what | figure | |\n|---|---|---|")
        for row in self.rows:
            print("| " + " | ".join(row) + " |")


def daemon_pid(state_dir):
    import socket
    import struct
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.connect(str(state_dir / "agentiso.sock"))
        return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def bench_boot(client, table):
    first_exec, created = [], []
    for number in range(BOOTS):
        began = time.perf_counter()
        ws = client.call("workspace_create", name=f"boot-{number}")
        created.append(ws["boot_time_ms"])
        client.call("exec", workspace_id=ws["workspace_id"], command="true")
        first_exec.append((time.perf_counter() - began) * 1000)
        client.call("workspace_destroy", workspace_id=ws["workspace_id"])
    table.add("cold boot: workspace_create to a serving agent", f"{statistics.median(created):.0f} ms",
              f"median of {BOOTS}; min {min(created):.0f}, max {max(created):.0f}")
    table.add("cold boot: workspace_create to the end of the first exec", f"{statistics.median(first_exec):.0f} ms",
              f"median of {BOOTS}")


def bench_exec(client, ws, table):
    for _ in range(20):
        client.call("exec", workspace_id=ws, command="true")
    execs = [timed(lambda: client.call("exec", workspace_id=ws, command="true")) for _ in range(EXECS)]
    guest = client.call("exec", workspace_id=ws, command="python3 -", stdin=IN_GUEST % EXECS)["stdout"].split()
    in_guest, in_guest_p99 = float(guest[0]), float(guest[1])
    client.call("exec", workspace_id=ws, command="mkdir /empty")
    no_child = [timed(lambda: client.call("file_list", workspace_id=ws, path="/empty")) for _ in range(EXECS)]
    p50 = statistics.median(execs)
    table.add("exec of `true`, at the client", f"{p50:.2f} ms", f"p99 {percentile(execs, 0.99):.2f} ms, {EXECS} calls")
    table.add("the same fork and exec inside the guest", f"{in_guest:.2f} ms",
              f"p99 {in_guest_p99:.2f} ms, by a Python program there")
    table.add("exec of `true`: outside that fork and exec", f"{p50 - in_guest:.2f} ms",
              f"client, serve, daemon, channel, agent; {p50 / in_guest:.2f} times the time in the guest")
    table.add("a call to the guest that starts no process", f"{statistics.median(no_child):.2f} ms",
              f"p99 {percentile(no_child, 0.99):.2f} ms; file_list of an empty folder: daemon and channel, and the "
              "agent's thread")


def main():
    build, image_dir = (pathlib.Path(p).resolve() for p in sys.argv[1:3])
    directory = pathlib.Path(tempfile.mkdtemp(prefix="agentiso-bench-"))
    state_dir = directory / "state"
    config = directory / "config.toml"
    config.write_text(f'[paths]\nstate_dir = "{state_dir}"\nimage_dir = "{image_dir}"\n')
    agentiso = str(build / "agentiso")
    table = Table()
    try:
        with McpClient([agentiso, "serve", "--config", str(config)], name="agentiso-bench") as client:
            client.request("ping")
            private, rss = memory_kib(daemon_pid(state_dir))
            table.add("daemon, idle, no workspace", f"{private / 1024:.1f} MiB private",
                      f"{rss / 1024:.1f} MiB resident")
            pings = [timed(lambda: client.request("ping")) for _ in range(PINGS)]
            table.add("MCP ping, round trip", f"{statistics.median(pings):.2f} ms",
                      f"p99 {percentile(pings, 0.99):.2f} ms, through serve and daemon")
            bench_boot(client, table)
            ws = client.call("workspace_create", name="bench")["workspace_id"]
            bench_exec(client, ws, table)
            private, rss = memory_kib(daemon_pid(state_dir))
            table.add("daemon with one workspace", f"{private / 1024:.1f} MiB private", f"{rss / 1024:.1f} MiB resident")
            info = client.call("workspace_info", workspace_id=ws)
            table.add("memory of one idle workspace", f"{info['memory_used_bytes'] / 2**20:.0f} MiB",
                      "private pages of its QEMU")
            client.call("workspace_destroy", workspace_id=ws)
    finally:
        subprocess.run([agentiso, "stop", "--all", "--config", str(config)], capture_output=True, check=False)
        shutil.rmtree(directory, ignore_errors=True)
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    print(f"\nOn {os.cpu_count()} cores, Linux {platform.release()}, {qemu.splitlines()[0]}, "
          f"{time.strftime('%Y-%m-%d')}:\n")
    table.print()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
