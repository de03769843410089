# SPDX-License-Identifier: Apache-2.0
"""How workspaces begin: cold boots, templates, the pool, snapshots, forks; and what they take.

Each figure is the median of several calls by a client of `agentiso serve`, measured at the client; beside it stands
what the call itself says (boot_time_ms). A workspace that did not begin in the way that is measured ends the run.
"""

import json
import re
import statistics
import time

from measure import MIB, Host, Table, cpu_ms, host_available_mib, host_cpu_ms, smaps_kib, timed, wait_until

BOOTS = 5
CREATES = 9
STARTS = 5
SINGLE_FORKS = 9
MANY_FORKS = (10, 20)
MEMORY_FORKS = 5  # calls with many of them
DISK_FORKS = 3
RESTORES = 7
SNAPSHOTS = 5
IDLE_FORKS = 20
SETTLE_SECS = 10

POOL_SIZE = 2
POOL_LIMIT = 60  # seconds until it is full
DEFAULT_DISK_GB = 10
TOUCH_LIMIT = 100  # seconds
LOG_SHOWN = 4000  # characters
GIB = 1 << 30
ROOM = 8 * GIB  # for idle forks
GUEST_RESERVE = 40  # MiB that the guest keeps when so much is touched as fits
PAUSES = ((256, 10), (256, 200), (512, 64), (1024, 10), (1024, 200))  # MiB of the guest, MiB touched

TEMPLATES = "[templates]\nmax_gb = 8\n"
NO_POOL = "[pool]\nsize = 0\n"
NOTHING_SAVED = "[templates]\nmax_gb = 0\n" + NO_POOL

# The aims of this project for 2 cores under TCG, in milliseconds where they are no ratios.
AIM_IMAGE_TEMPLATE = 10
AIM_POOL = 50
AIM_PAUSE = 20
AIM_PAUSE_OF = (512, 64)
AIM_FORK = 80
AIM_FORKS = {20: 1500}
AIM_RESTORE = 100

# Leaves a process behind that holds so many MiB of random bytes, and ends once it does.
TOUCH = """
import os, signal, sys
ready, tell = os.pipe()
if os.fork() > 0:
    os.close(tell)
    sys.exit(0 if os.read(ready, 1) else "the process that should hold the memory has ended")
os.setsid()
for fd in (0, 1, 2):
    os.dup2(os.open("/dev/null", os.O_RDWR), fd)
held = bytearray(int(sys.argv[1]) << 20)
for at in range(0, len(held), 1 << 20):
    held[at:at + (1 << 20)] = os.urandom(1 << 20)
os.write(tell, b"1")
os.close(tell)
while True:
    signal.pause()
"""


def ms(value):
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def within(value, aim):
    return f"≤ {aim} ms: " + ("reached" if value <= aim else "missed")


def ratio(value, whole, aim):
    verdict = "reached" if value * aim <= whole else "missed"
    return f"≤ 1/{aim} of the cold boot: {verdict}, 1/{whole / value:.1f}"


def median(values):
    return statistics.median(values)


def spread(values):
    return f"median of {len(values)}; min {min(values):.0f}, max {max(values):.0f}"


class Machines:
    """A host, and the table that its figures go to."""

    def __init__(self, host, table):
        self.host = host
        self.table = table
        self.call = host.call

    def row(self, what, times, own=(), aim="", note=""):
        notes = spread(times) + (f"; {note}" if note else "")
        self.table.add(what, ms(median(times)), f"{median(own):.0f}" if own else "", aim, notes)

    def destroy(self, *workspaces):
        for ws in workspaces:
            self.call("workspace_destroy", workspace_id=ws)

    def begin(self, start, call):
        """Milliseconds and the result of a call that makes a machine run, in the given way."""
        began = time.perf_counter()
        result = call()
        took = (time.perf_counter() - began) * 1000
        if result["start"] != start:
            raise RuntimeError(f"a workspace began by {result['start']} where {start} is measured; the end of the "
                               f"daemon's log:\n{self.host.log()[-LOG_SHOWN:]}")
        return took, result

    def creates(self, start, count, **arguments):
        """([client ms], [boot_time_ms]) of workspaces, each made and destroyed."""
        times, own = [], []
        for _ in range(count):
            took, made = self.begin(start, lambda: self.call("workspace_create", **arguments))
            times.append(took)
            own.append(made["boot_time_ms"])
            self.destroy(made["workspace_id"])
        return times, own

    def new(self, touched=0, **arguments):
        """A workspace of a template, in which a command was run, and which holds so many MiB."""
        _, made = self.begin("template", lambda: self.call("workspace_create", **arguments))
        ws = made["workspace_id"]
        self.sh(ws, "true")
        if touched > 0:
            self.touch(ws, touched)
        return ws

    def touch(self, ws, mib):
        self.sh(ws, f"python3 - {mib}", stdin=TOUCH, timeout_secs=TOUCH_LIMIT)

    def sh(self, ws, command, **options):
        result = self.call("exec", workspace_id=ws, command=command, **options)
        if result["exit_code"] != 0:
            raise RuntimeError(f"`{command}` in the guest failed: {result}")
        return result["stdout"]

    def snapshot(self, ws, action, **arguments):
        return self.call("snapshot", workspace_id=ws, action=action, **arguments)

    def pause_ms(self, snapshot_id):
        """How long the machine stood still: the daemon's log has it to the microsecond."""
        found = re.search(f"Snapshot taken .*snapshot={snapshot_id}.* pause_us=([0-9]+)", self.host.log())
        if not found:
            raise RuntimeError(f"the daemon's log has nothing of the snapshot {snapshot_id}")
        return int(found.group(1)) / 1000

    def forks(self, ws, count, **arguments):
        """The ids of forks; every one must be there."""
        result = self.call("workspace_fork", workspace_id=ws, count=count, **arguments)
        if count == 1:
            return [result["workspace_id"]], result
        if result["success_count"] != count:
            raise RuntimeError(f"not all forks were made: {result['failures']}")
        return [worker["workspace_id"] for worker in result["workers"]], result


# --- how a workspace begins ---


def bench_cold(machines):
    """The median, to which others are compared."""
    times, own, first = [], [], []
    for _ in range(BOOTS):
        began = time.perf_counter()
        took, made = machines.begin("boot", lambda: machines.call("workspace_create"))
        machines.call("exec", workspace_id=made["workspace_id"], command="true")
        first.append((time.perf_counter() - began) * 1000)
        times.append(took)
        own.append(made["boot_time_ms"])
        machines.destroy(made["workspace_id"])
    machines.row("cold boot: workspace_create to a serving agent", times, own)
    machines.row("cold boot: workspace_create to the end of the first exec", first)
    return median(times)


def bench_universal(machines, cold):
    # The image's template has a disk of the default size, and nothing makes a disk smaller.
    times, own = machines.creates("template", CREATES, disk_gb=DEFAULT_DISK_GB - 1)
    machines.row("create by the universal template", times, own, "", f"1/{cold / median(times):.1f} of the cold boot")

    times, own = [], []
    ws = machines.new()
    for _ in range(STARTS):
        machines.call("workspace_stop", workspace_id=ws)
        took, started = machines.begin("template", lambda: machines.call("workspace_start", workspace_id=ws))
        times.append(took)
        own.append(started["boot_time_ms"])
    machines.destroy(ws)
    machines.row("start of a stopped workspace, by the universal template", times, own)


def bench_image(machines, cold):
    times, own = machines.creates("template", CREATES)
    machines.row("create by the image's template", times, own, ratio(median(times), cold, AIM_IMAGE_TEMPLATE))


def bench_pool(machines, cold):
    def is_full():
        pool = json.loads(machines.host.cli("status", "--json"))["pool"]
        return pool["ready"] == pool["wanted"] == POOL_SIZE

    times, own = [], []
    machines.destroy(machines.call("workspace_create")["workspace_id"])  # from now on it is filled
    for _ in range(CREATES):
        wait_until(is_full, POOL_LIMIT, "a full pool")
        took, made = machines.begin("pool", lambda: machines.call("workspace_create"))
        times.append(took)
        own.append(made["boot_time_ms"])
        machines.destroy(made["workspace_id"])
    machines.row("create from the pool", times, own, ratio(median(times), cold, AIM_POOL))


# --- forks ---


def fork_many(machines, ws, count, calls, **arguments):
    """([client ms], [share of all cores], [CPU ms of a fork's QEMU], [CPU ms of the daemon for each fork])."""
    times, busy, cpu, daemon = [], [], [], []
    daemon_pid = machines.host.daemon_pid()
    for _ in range(calls):
        busy_before, all_before = host_cpu_ms()
        daemon_before = cpu_ms(daemon_pid)
        began = time.perf_counter()
        made, _ = machines.forks(ws, count, **arguments)
        times.append((time.perf_counter() - began) * 1000)
        busy_after, all_after = host_cpu_ms()
        daemon.append((cpu_ms(daemon_pid) - daemon_before) / count)
        cpu.append(sum(cpu_ms(machines.host.qemu_pid(fork)) for fork in made) / count)
        busy.append((busy_after - busy_before) / max(all_after - all_before, 1))
        machines.destroy(*made)
    return times, busy, cpu, daemon


def bench_many_forks(machines, source, what, calls, aims, **arguments):
    for count in MANY_FORKS:
        ws = source()
        times, busy, cpu, daemon = fork_many(machines, ws, count, calls, **arguments)
        machines.destroy(ws)
        aim = within(median(times), aims[count]) if count in aims else ""
        machines.row(f"{count} forks {what}, in one call", times, (), aim,
                     f"{median(times) / count:.0f} ms each; cores {median(busy) * 100:.0f} % busy; CPU of each: "
                     f"{median(cpu):.0f} ms in its QEMU, {median(daemon):.1f} ms in the daemon")


def bench_one_fork(machines, source, what, start, aim=None, **arguments):
    times, own, pauses, cpu = [], [], [], []
    ws = source()
    for _ in range(SINGLE_FORKS):
        took, made = machines.begin(start, lambda: machines.call("workspace_fork", workspace_id=ws, **arguments))
        cpu.append(cpu_ms(machines.host.qemu_pid(made["workspace_id"])))
        times.append(took)
        own.append(made["boot_time_ms"])
        pauses.append(made.get("pause_ms", 0))
        machines.destroy(made["workspace_id"])
    machines.destroy(ws)
    stood = f"; the source stood still for {median(pauses):.0f} ms" if any(pauses) else ""
    machines.row(f"one fork {what}", times, own, within(median(times), aim) if aim else "",
                 f"{median(cpu):.0f} ms of CPU in its QEMU{stood}")


def bench_forks(machines):
    """Each line has a source of its own: every fork of a running one makes its chain of disks longer."""
    memory_mb, touched = AIM_PAUSE_OF

    def holding():
        return machines.new(touched, memory_mb=memory_mb)
    bench_one_fork(machines, machines.new, "with memory", "snapshot", AIM_FORK)
    bench_many_forks(machines, machines.new, "with memory", MEMORY_FORKS, AIM_FORKS)
    bench_one_fork(machines, machines.new, "without memory", "template", disk_only=True)
    bench_many_forks(machines, machines.new, "without memory", DISK_FORKS, {}, disk_only=True)
    what = f"with memory, {touched} MiB touched"
    bench_one_fork(machines, holding, what, "snapshot")
    bench_many_forks(machines, holding, what, DISK_FORKS, {})


# --- snapshots ---


def bench_pause(machines, memory_mb, touched):
    machines.host.cli("image", "warm", "--memory-mb", str(memory_mb))
    ws = machines.new(memory_mb=memory_mb)
    room = int(machines.sh(ws, "awk '/MemAvailable/ {print $2}' /proc/meminfo")) // 1024 - GUEST_RESERVE
    what = f"{memory_mb} MiB, {touched} MiB touched"
    if room < touched:
        what = f"{memory_mb} MiB, {room} MiB touched ({touched} do not fit)"
        touched = room
    machines.touch(ws, touched)
    pauses, times, saved = [], [], 0
    for number in range(SNAPSHOTS):
        began = time.perf_counter()
        made = machines.snapshot(ws, "create", name=f"pause-{number}", include_memory=True)
        times.append((time.perf_counter() - began) * 1000)
        pauses.append(machines.pause_ms(made["snapshot_id"]))
        saved = made["used_bytes"] / MIB
        if saved < touched:
            raise RuntimeError(f"a snapshot with {touched} MiB touched has {saved:.1f} MiB")
        machines.snapshot(ws, "delete", name=f"pause-{number}")
    machines.destroy(ws)
    aim = within(median(pauses), AIM_PAUSE) if (memory_mb, touched) == AIM_PAUSE_OF else ""
    machines.row(f"pause of the source for a memory snapshot: {what}", pauses, (), aim,
                 f"{saved:.0f} MiB saved; the whole call {ms(median(times))}")


def bench_restore(machines, ws, what, start, aim=None, **arguments):
    times, own = [], []
    for _ in range(RESTORES):
        took, back = machines.begin(start, lambda: machines.snapshot(ws, "restore", name="here", **arguments))
        times.append(took)
        own.append(back["boot_time_ms"])
    machines.row(f"restore of a running workspace, {what}", times, own, within(median(times), aim) if aim else "")


def bench_restores(machines):
    ws = machines.new()
    machines.snapshot(ws, "create", name="here", include_memory=True)
    bench_restore(machines, ws, "with memory", "snapshot", AIM_RESTORE)
    bench_restore(machines, ws, "disk only", "template", disk_only=True)
    machines.destroy(ws)
    memory_mb, touched = AIM_PAUSE_OF
    ws = machines.new(touched, memory_mb=memory_mb)
    machines.snapshot(ws, "create", name="here", include_memory=True)
    bench_restore(machines, ws, f"with memory, {touched} MiB touched", "snapshot")
    machines.destroy(ws)


# --- memory ---


def memory_used(machines, workspaces):
    """(private, shared) bytes of each."""
    infos = [machines.call("workspace_info", workspace_id=ws) for ws in workspaces]
    return [i["memory_used_bytes"] for i in infos], [i["memory_shared_bytes"] for i in infos]


def bench_memory(machines):
    source = machines.new()
    before = host_available_mib()
    forks, _ = machines.forks(source, IDLE_FORKS)
    at_once, _ = memory_used(machines, forks)
    pids = [machines.host.qemu_pid(ws) for ws in forks]
    cpu = sum(cpu_ms(pid) for pid in pids)
    time.sleep(SETTLE_SECS)
    cpu = sum(cpu_ms(pid) for pid in pids) - cpu
    private, shared = memory_used(machines, forks)
    after = host_available_mib()
    proportional = sum(smaps_kib(pid)["Pss"] for pid in pids) / 1024
    machines.destroy(source, *forks)

    def add(what, figure, note):
        machines.table.add(what, figure, "", "", note)

    mib = [p / MIB for p in private]
    add("memory of an idle fork", f"{median(mib):.1f} MiB",
        f"private pages of its QEMU; median of {len(mib)}, {SETTLE_SECS} s after the fork; min {min(mib):.1f}, max "
        f"{max(mib):.1f}; right after the fork {median(at_once) / MIB:.1f}")
    add(f"memory that {IDLE_FORKS} idle forks share", f"{max(shared) / MIB:.0f} MiB",
        f"once for all of them; all {IDLE_FORKS} and this together: {proportional:.0f} MiB (their Pss)")
    add(f"free memory of the host that {IDLE_FORKS} forks took", f"{before - after:.0f} MiB",
        f"{(before - after) / IDLE_FORKS:.1f} MiB each, the kernel's share and the files' included (MemAvailable)")
    fit = (ROOM - max(shared)) // (sum(private) / len(private))
    add("idle forks in 8 GiB", f"{fit:.0f}",
        f"computed: 8 GiB less the shared part, by the mean private memory of the {IDLE_FORKS}")
    add("CPU of an idle fork", f"{cpu / len(pids) / SETTLE_SECS / 10:.2f} % of a core",
        f"mean of {len(pids)} over {SETTLE_SECS} s")


# --- all of it ---


def bench_templates(machines, cold):
    took = timed(lambda: machines.host.cli("image", "warm"))
    machines.table.add("`agentiso image warm`: both templates of the default size", f"{took / 1000:.1f} s", "", "",
                       "one run; a daemon runs already")
    bench_universal(machines, cold)
    bench_image(machines, cold)


def warnings(host):
    """What went wrong on the way is no secret beside figures."""
    return [line for line in host.log().splitlines() if re.match(r"\S+ (warn|error) ", line)]


def run(build, image_dir):
    table = Table("what", "at the client", "`boot_time_ms`", "aim", "")
    found = []
    try:
        with Host(build, image_dir, NOTHING_SAVED) as host:
            cold = bench_cold(Machines(host, table))
            found += warnings(host)
        with Host(build, image_dir, TEMPLATES + NO_POOL) as host:
            machines = Machines(host, table)
            bench_templates(machines, cold)
            bench_forks(machines)
            for memory_mb, touched in PAUSES:
                bench_pause(machines, memory_mb, touched)
            bench_restores(machines)
            bench_memory(machines)
            found += warnings(host)
        with Host(build, image_dir, TEMPLATES + f"[pool]\nsize = {POOL_SIZE}\n") as host:
            host.cli("image", "warm")
            bench_pool(Machines(host, table), cold)
            found += warnings(host)
    finally:
        table.print()
        for line in found:
            print(f"\nThe daemon warned: {line}")
