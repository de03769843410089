# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: everything in one run on one machine, so that the ratios mean something.

usage: bench.py BUILD_DIR IMAGE_DIR

Prints a table in Markdown. docs/benchmarks.md explains each line and keeps figures with the machine they come from.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lib"))
from mcp_client import McpClient  # noqa: E402
from raw_port import RawPort  # noqa: E402

BOOTS = 7
PINGS = 500
EXECS = 200
AT_ONCE = 16
MANY_EXECS = 1000
TRANSFER_MIB = 256
TRANSFERS = 5
MIB = 1 << 20

# The same work as execs of `true`, COUNT of them by THREADS threads, timed where nothing but the guest takes part: what
# /bin/sh takes from fork to its end, at the median and for 99 of 100, in milliseconds; then all of it.
IN_GUEST = """
import concurrent.futures, subprocess, time
def one(_):
    began = time.perf_counter()
    subprocess.run(["/bin/sh", "-c", "true"], close_fds=False)
    return (time.perf_counter() - began) * 1000
with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    list(pool.map(one, range(20)))
    began = time.perf_counter()
    times = sorted(pool.map(one, range(COUNT)))
    total = (time.perf_counter() - began) * 1000
print(times[len(times) // 2], times[len(times) * 99 // 100], total)
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


def qemu_pid(state_dir):
    with contextlib.closing(sqlite3.connect(f"file:{state_dir}/state.db?mode=ro", uri=True)) as db:
        return db.execute("SELECT proc_pid FROM workspaces WHERE proc_pid NOTNULL").fetchone()[0]


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


def in_guest(client, ws, threads):
    script = IN_GUEST.replace("THREADS", str(threads)).replace("COUNT", str(EXECS))
    result = client.call("exec", workspace_id=ws, command="python3 -", stdin=script, timeout_secs=600)
    return [float(word) for word in result["stdout"].split()]


def bench_exec(client, ws, table):
    def true():
        client.call("exec", workspace_id=ws, command="true")
    for _ in range(20):
        true()
    execs, own = [], []
    for _ in range(EXECS):
        began = time.perf_counter()
        own.append(client.call("exec", workspace_id=ws, command="true")["duration_ms"] + 0.5)  # it is rounded down
        execs.append((time.perf_counter() - began) * 1000)
    guest, guest_p99, _ = in_guest(client, ws, 1)
    client.call("exec", workspace_id=ws, command="mkdir /empty")
    no_child = [timed(lambda: client.call("file_list", workspace_id=ws, path="/empty")) for _ in range(EXECS)]
    p50 = statistics.median(execs)
    table.add("exec of `true`, at the client", f"{p50:.2f} ms", f"p99 {percentile(execs, 0.99):.2f} ms, {EXECS} calls")
    table.add("the same fork and exec inside the guest", f"{guest:.2f} ms", f"p99 {guest_p99:.2f} ms, by a Python program there")
    table.add("exec of `true`: outside that fork and exec", f"{p50 - guest:.2f} ms",
              f"client, serve, daemon, channel, agent; {p50 / guest:.2f} times the time in the guest")
    table.add("exec of `true`: outside the command's own time", f"{statistics.mean(execs) - statistics.mean(own):.2f} ms",
              "mean; own time: from fork to the end of the process, as the agent measures it")
    table.add("a call to the guest that starts no process", f"{statistics.median(no_child):.2f} ms",
              f"p99 {percentile(no_child, 0.99):.2f} ms; file_list of an empty folder: daemon and channel, and the "
              "agent's thread")

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        began = time.perf_counter()
        execs = list(pool.map(lambda _: timed(true), range(EXECS)))
        total = (time.perf_counter() - began) * 1000
    p50 = statistics.median(execs)
    guest, guest_p99, guest_total = in_guest(client, ws, AT_ONCE)
    table.add(f"exec of `true`, {AT_ONCE} at once", f"{p50:.1f} ms",
              f"p99 {percentile(execs, 0.99):.1f} ms; {EXECS * 1000 / total:.1f} a second")
    table.add("the same inside the guest", f"{guest:.1f} ms",
              f"p99 {guest_p99:.1f} ms; {EXECS * 1000 / guest_total:.1f} a second: we reach {guest_total / total:.2f} of it")


def bench_growth(client, ws, state_dir, table):
    def facts():
        pid = daemon_pid(state_dir)
        return memory_kib(pid)[0], len(os.listdir(f"/proc/{pid}/fd"))

    client.call("exec", workspace_id=ws, command="true")
    before = facts()
    for _ in range(MANY_EXECS):
        client.call("exec", workspace_id=ws, command="echo x")
    after = facts()
    table.add(f"growth of the daemon over {MANY_EXECS} execs", f"{after[0] - before[0]:+d} KiB private memory",
              f"{after[1] - before[1]:+d} file descriptors")


def bench_transfer(client, ws, state_dir, transfers, raw, table):
    size = TRANSFER_MIB * MIB
    (transfers / "up").write_bytes(os.urandom(size))
    client.call("exec", workspace_id=ws, command="mkdir -p /mem && mount -t tmpfs -o size=900m tmpfs /mem")
    peak = memory_kib(daemon_pid(state_dir))[0]

    def move(direction, host, guest):
        return timed(lambda: client.call("file_transfer", workspace_id=ws, direction=direction, host_path=host,
                                         guest_path=guest)) / 1000
    for place, folder in (("from and to memory at both ends", "/mem"), ("the guest's end on its disk, flushed", "/root")):
        for direction in ("upload", "download"):
            host = "up" if direction == "upload" else "down"
            rates, raws = [], []
            for _ in range(TRANSFERS):
                raws.append(size / 1e6 / getattr(raw, direction)(size))
                rates.append(size / 1e6 / move(direction, host, f"{folder}/moved"))
            rate, bare = statistics.median(rates), statistics.median(raws)
            table.add(f"{direction} of {TRANSFER_MIB} MiB, {place}", f"{rate:.0f} MB/s",
                      f"`cat` through the raw port from and to memory, in the same minute: {bare:.0f} MB/s; {rate / bare:.2f} of it")
        client.call("exec", workspace_id=ws, command=f"rm -f {folder}/moved")
    table.add("daemon's private memory after the transfers", f"{memory_kib(daemon_pid(state_dir))[0] - peak:+d} KiB", "")


def main():
    build, image_dir = (pathlib.Path(p).resolve() for p in sys.argv[1:3])
    directory = pathlib.Path(tempfile.mkdtemp(prefix="agentiso-bench-"))
    state_dir = directory / "state"
    config = directory / "config.toml"
    # In memory, so that the transfers measure the channel and not a disk.
    transfers = pathlib.Path(tempfile.mkdtemp(prefix="agentiso-bench-", dir="/dev/shm"))
    config.write_text(f'[paths]\nstate_dir = "{state_dir}"\nimage_dir = "{image_dir}"\ntransfer_dir = "{transfers}"\n')
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
            ws = client.call("workspace_create", name="bench", memory_mb=1024)["workspace_id"]
            bench_exec(client, ws, table)
            bench_growth(client, ws, state_dir, table)
            raw = RawPort(qemu_pid(state_dir), directory, image_dir)
            try:
                bench_transfer(client, ws, state_dir, transfers, raw, table)
            finally:
                raw.close()
            private, rss = memory_kib(daemon_pid(state_dir))
            table.add("daemon with one workspace", f"{private / 1024:.1f} MiB private", f"{rss / 1024:.1f} MiB resident")
            info = client.call("workspace_info", workspace_id=ws)
            table.add("memory of one idle workspace", f"{info['memory_used_bytes'] / 2**20:.0f} MiB",
                      "private pages of its QEMU")
            client.call("workspace_destroy", workspace_id=ws)
    finally:
        subprocess.run([agentiso, "stop", "--all", "--config", str(config)], capture_output=True, check=False)
        for folder in (directory, transfers):
            shutil.rmtree(folder, ignore_errors=True)
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    print(f"\nOn {os.cpu_count()} cores, Linux {platform.release()}, {qemu.splitlines()[0]}, "
          f"{time.strftime('%Y-%m-%d')}:\n")
    table.print()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
