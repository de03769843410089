#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Cold boots under TCG, one row for each way of booting: what is the default, and what one change to it does.

    gcc -O2 -static -o init init.c
    ../build-boot DIR init
    ./boot-time.py DIR/boot [--runs 5] [--only WORD] [--disk disk.raw]

Each round boots every variant once, in random order, so that other load on the host falls on all alike. INIT is the time from
starting QEMU to the first line of PID 1, READY to the end of its loading modules for the agent channel, CPU what QEMU used until
READY (the figure that suffers least from other load), RAM what the guest touched of its memory. A boot that is not READY
after 20 s counts as stuck.
"""
import argparse
import ctypes
import mmap
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time

CMDLINE = "console=ttyS0 quiet reboot=t panic=-1 random.trust_cpu=on tsc=reliable cryptomgr.notests"
TIMEOUT = 20


def tsc_khz():
    """The rate of this host's time-stamp counter, which TCG shows to its guests. RDTSC; SHL RDX,32; OR RAX,RDX; RET"""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3")
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    best = []
    for _ in range(3):
        start, ticks = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), rdtsc()
        time.sleep(0.1)
        end, ticks = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), rdtsc() - ticks
        best.append(ticks * 1_000_000 // (end - start))
    return statistics.median(best)


def boot(folder, work, disk, change):
    v = {"machine": "microvm", "cpu": "max", "smp": "2", "kernel": "vmlinux", "initrd": "initramfs.img", "accel": "tcg,thread=multi",
         "cmdline": f"{CMDLINE} tsc_early_khz={change['khz']}", "add": "", "drop": "", **change}
    words = [word for word in v["cmdline"].split() if not v["drop"] or not word.startswith(v["drop"])] + v["add"].split()
    ram = os.path.join(work, "ram")
    if os.path.exists(ram):
        os.unlink(ram)
    initrd = v["initrd"] if v["initrd"].startswith("/") else os.path.join(folder, v["initrd"])
    command = [
        "qemu-system-x86_64", "-M", v["machine"] + ",memory-backend=m", "-accel", v["accel"], "-cpu", v["cpu"], "-m", "512", "-smp", v["smp"],
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
        "-object", f"memory-backend-file,id=m,size=512M,mem-path={ram},share=on",
        "-kernel", os.path.join(folder, v["kernel"]), "-initrd", initrd, "-append", " ".join(words),
        "-device", "virtio-serial-device", "-chardev", "null,id=a", "-device", "virtserialport,chardev=a,name=agentiso.0",
        "-device", "virtio-rng-device",
    ]
    if disk:
        command += ["-drive", f"if=none,id=d,file={disk},format=raw,snapshot=on", "-device", "virtio-blk-device,drive=d"]
    result, start = {}, time.monotonic()
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    timer = threading.Timer(TIMEOUT, os.kill, (qemu.pid, signal.SIGKILL))     # not qemu.kill: it reaps, and wait4 below counts
    timer.start()
    for line in qemu.stdout:
        fields = line.split()
        if len(fields) > 1 and fields[1] in (b"INIT", b"READY", b"END"):
            result[fields[1].decode()] = (time.monotonic() - start) * 1e3
        if fields[1:2] == [b"END" if disk else b"READY"]:
            break
    timer.cancel()
    os.kill(qemu.pid, signal.SIGKILL)
    _, _, usage = os.wait4(qemu.pid, 0)
    qemu.returncode = 0
    result["CPU"] = (usage.ru_utime + usage.ru_stime) * 1e3
    result["RAM"] = os.stat(ram).st_blocks / 2048
    return result if "READY" in result else None


def compressed(folder, work):
    """The same initramfs in every compression that the kernel can undo and that is installed."""
    source, found = os.path.join(folder, "initramfs.img"), {}
    for name, command in (("gzip -1", "gzip -1 -c"), ("lz4 -l", "lz4 -lc"), ("zstd -1", "zstd -1 -qc")):
        if shutil.which(name.split()[0]):
            path = os.path.join(work, "initrd." + name.split()[0])
            with open(path, "wb") as file:
                subprocess.run([*command.split(), source], stdout=file, stderr=subprocess.DEVNULL, check=True)
            found[f"initramfs {name}, {os.path.getsize(path) >> 10} KiB"] = {"initrd": path}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--disk", default="")
    args = parser.parse_args()
    khz = tsc_khz()
    with tempfile.TemporaryDirectory() as work:
        variants = {
            "default": {},
            "vmlinuz (as packaged)": {"kernel": "vmlinuz"},
            **compressed(args.folder, work),
            "without tsc_early_khz": {"drop": "tsc_early_khz"},
            "without tsc=reliable": {"drop": "tsc=reliable"},
            "without cryptomgr.notests": {"drop": "cryptomgr"},
            "+ pci=off": {"add": "pci=off"},
            "+ mitigations=off": {"add": "mitigations=off"},
            "+ init_on_alloc=0": {"add": "init_on_alloc=0"},
            "+ no_timer_check": {"add": "no_timer_check"},
            "+ 8250.nr_uarts=1": {"add": "8250.nr_uarts=1"},
            "+ rcupdate.rcu_expedited=1": {"add": "rcupdate.rcu_expedited=1"},
            "+ nokaslr": {"add": "nokaslr"},
            "+ audit=0": {"add": "audit=0"},
            "-smp 1": {"smp": "1"},
            "-M pic=off": {"machine": "microvm,pic=off"},
            "-M rtc=on": {"machine": "microvm,rtc=on"},
            "-M x-option-roms=off": {"machine": "microvm,x-option-roms=off"},
            "-cpu qemu64": {"cpu": "qemu64"},
            "tb-size=64": {"accel": "tcg,thread=multi,tb-size=64"},
        }
        variants = {name: change for name, change in variants.items() if args.only in name or name == "default"}
        runs = {name: [] for name in variants}
        for _ in range(args.runs):
            for name in random.sample(list(variants), len(variants)):
                runs[name].append(boot(args.folder, work, args.disk, {"khz": khz, **variants[name]}))
        print(f"{args.runs} runs each, host load {os.getloadavg()[0]:.1f}; ms: best / median")
        for name, results in runs.items():
            good = [result for result in results if result]
            row = [f"{key} {min(r[key] for r in good):5.0f} /{statistics.median(r[key] for r in good):5.0f}" for key in ("INIT", "READY", "CPU") if good]
            if good:
                row.append(f"RAM {statistics.median(r['RAM'] for r in good):4.0f} MiB")
            print(f"{name:32}", *row, f"stuck {results.count(None)}" if None in results else "", sep="  ", flush=True)


if __name__ == "__main__":
    main()
