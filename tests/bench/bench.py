# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: everything in one run on one machine, so that the ratios mean something.

usage: bench.py BUILD_DIR IMAGE_DIR [PART...]

The parts are "calls" (what calls to a running workspace cost; this file), "saved" (how workspaces begin: boots,
templates, pool, snapshots, forks; saved.py) and "network" (what it carries, and what it adds to a create; network.py);
without one, all. Prints tables in Markdown. docs/benchmarks.md explains
each line and keeps figures with the machine they come from.
"""

import concurrent.futures
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import network
import saved
from measure import MIB, Host, Table, memory_kib, percentile, timed
from raw_port import RawPort

PINGS = 500
EXECS = 200
AT_ONCE = 16
MANY_EXECS = 1000
TRANSFER_MIB = 256
TRANSFERS = 5
BUSY_LOAD = 0.5  # the load of a machine that is not idle

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
    table.add("the same fork and exec inside the guest", f"{guest:.2f} ms",
              f"p99 {guest_p99:.2f} ms, by a Python program there")
    table.add("exec of `true`: outside that fork and exec", f"{p50 - guest:.2f} ms",
              f"client, serve, daemon, channel, agent; {p50 / guest:.2f} times the time in the guest")
    table.add("exec of `true`: outside the command's own time",
              f"{statistics.mean(execs) - statistics.mean(own):.2f} ms",
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
              f"p99 {guest_p99:.1f} ms; {EXECS * 1000 / guest_total:.1f} a second: we reach {guest_total / total:.2f} "
              "of it")


def bench_growth(host, ws, table):
    def facts():
        pid = host.daemon_pid()
        return memory_kib(pid)[0], len(os.listdir(f"/proc/{pid}/fd"))

    host.call("exec", workspace_id=ws, command="true")
    before = facts()
    for _ in range(MANY_EXECS):
        host.call("exec", workspace_id=ws, command="echo x")
    after = facts()
    table.add(f"growth of the daemon over {MANY_EXECS} execs", f"{after[0] - before[0]:+d} KiB private memory",
              f"{after[1] - before[1]:+d} file descriptors")


def bench_transfer(host, ws, transfers, raw, table):
    size = TRANSFER_MIB * MIB
    (transfers / "up").write_bytes(os.urandom(size))
    host.call("exec", workspace_id=ws, command="mkdir -p /mem && mount -t tmpfs -o size=900m tmpfs /mem")
    peak = memory_kib(host.daemon_pid())[0]

    def move(direction, host_path, guest_path):
        return timed(lambda: host.call("file_transfer", workspace_id=ws, direction=direction, host_path=host_path,
                                       guest_path=guest_path)) / 1000
    for place, folder in (("from and to memory at both ends", "/mem"),
                          ("the guest's end on its disk, flushed", "/root")):
        for direction in ("upload", "download"):
            host_path = "up" if direction == "upload" else "down"
            rates, raws = [], []
            for _ in range(TRANSFERS):
                raws.append(size / 1e6 / getattr(raw, direction)(size))
                rates.append(size / 1e6 / move(direction, host_path, f"{folder}/moved"))
            rate, bare = statistics.median(rates), statistics.median(raws)
            table.add(f"{direction} of {TRANSFER_MIB} MiB, {place}", f"{rate:.0f} MB/s",
                      f"`cat` through the raw port from and to memory, in the same minute: {bare:.0f} MB/s; "
                      f"{rate / bare:.2f} of it")
        host.call("exec", workspace_id=ws, command=f"rm -f {folder}/moved")
    table.add("daemon's private memory after the transfers", f"{memory_kib(host.daemon_pid())[0] - peak:+d} KiB", "")


def bench_calls(host, transfers, image_dir, table):
    host.client.request("ping")
    private, rss = memory_kib(host.daemon_pid())
    table.add("daemon, idle, no workspace", f"{private / 1024:.1f} MiB private", f"{rss / 1024:.1f} MiB resident")
    pings = [timed(lambda: host.client.request("ping")) for _ in range(PINGS)]
    table.add("MCP ping, round trip", f"{statistics.median(pings):.2f} ms",
              f"p99 {percentile(pings, 0.99):.2f} ms, through serve and daemon")
    ws = host.call("workspace_create", name="bench", memory_mb=1024)["workspace_id"]
    bench_exec(host.client, ws, table)
    bench_growth(host, ws, table)
    raw = RawPort(host.qemu_pid(ws), host.directory, image_dir)
    try:
        bench_transfer(host, ws, transfers, raw, table)
    finally:
        raw.close()
    private, rss = memory_kib(host.daemon_pid())
    table.add("daemon with one workspace", f"{private / 1024:.1f} MiB private", f"{rss / 1024:.1f} MiB resident")
    info = host.call("workspace_info", workspace_id=ws)
    table.add("memory of the workspace that all this was done in", f"{info['memory_used_bytes'] / MIB:.0f} MiB",
              "private pages of its QEMU")


def calls(build, image_dir):
    table = Table("what", "figure", "")
    # In memory, so that the transfers measure the channel and not a disk.
    transfers = pathlib.Path(tempfile.mkdtemp(prefix="agentiso-bench-", dir="/dev/shm"))
    # A machine that has booted, for the raw port copies its command line; and nothing in the background.
    alone = f'transfer_dir = "{transfers}"\n[templates]\nmax_gb = 0\n[pool]\nsize = 0\n'
    try:
        with Host(build, image_dir, alone) as host:
            bench_calls(host, transfers, image_dir, table)
    finally:
        shutil.rmtree(transfers, ignore_errors=True)
        table.print()


PARTS = {"calls": calls, "saved": saved.run, "network": network.run}


def ended(number, _frame):
    print(f"bench.py: ended by {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(128 + number)


def main(arguments):
    build, image_dir = (pathlib.Path(p).resolve() for p in arguments[:2])
    signal.signal(signal.SIGTERM, ended)  # so that nothing is left then either
    signal.signal(signal.SIGHUP, ended)
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    load = os.getloadavg()[0]
    print(f"On {os.cpu_count()} cores, Linux {platform.release()}, {qemu.splitlines()[0]}, "
          f"{time.strftime('%Y-%m-%d')}, load {load:.2f} before:", flush=True)
    if load > BUSY_LOAD:
        print("Something else is running: these figures are not worth keeping.", flush=True)
    for part in arguments[2:] or PARTS:
        print(f"{part}:", file=sys.stderr)
        PARTS[part](build, image_dir)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not set(sys.argv[3:]) <= set(PARTS):
        sys.exit(__doc__)
    main(sys.argv[1:])
