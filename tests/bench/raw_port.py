# SPDX-License-Identifier: Apache-2.0
"""What the agent's virtio port gives to `cat` in the guest: read(2) and write(2) between it and a file in memory.

The machine is the one of a workspace (its own command line, read from the running process), with the program of
images/bench/init.c in place of the agent and without a disk. See there for what goes over the port.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[2]
PIECE = 128 * 1024
LIMIT = 120


def build(directory, image_dir):
    """A boot folder whose initramfs holds the raw program."""
    init = directory / "init"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(init), str(ROOT / "images" / "bench" / "init.c")], check=True)
    images = directory / "raw-images"
    images.mkdir()
    for part in ("boot", "cache"):
        if (image_dir / part).exists():
            shutil.copytree(image_dir / part, images / part)
    subprocess.run([str(ROOT / "images" / "build-boot"), str(images), str(init)], check=True, capture_output=True)
    return images / "boot"


def arguments(qemu_pid, boot, sock):
    """The command line of a workspace's QEMU, turned into one for the raw program."""
    given = pathlib.Path(f"/proc/{qemu_pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    argv, words = [given[0]], iter(given[1:])
    for word in words:
        value = next(words) if not word.startswith(("-nodefaults", "-no-")) else None
        if word in ("-mon", "-serial", "-blockdev", "-pidfile", "-name", "-netdev", "-nic", "-sandbox"):
            continue
        if word == "-chardev" and not value.startswith("socket,id=agent"):
            continue
        if word == "-device" and value.startswith(("virtio-blk", "virtio-net")):
            continue
        if word == "-chardev":
            value = f"socket,id=agent,path={sock},server=on,wait=off"
        elif word == "-initrd":
            value = str(boot / "initramfs.img")
        elif word == "-append":
            value += " rawport=1"
        argv += [word] if value is None else [word, value]
    return argv + ["-serial", "null"]


class RawPort:
    def __init__(self, qemu_pid, directory, image_dir):
        path = directory / "raw.sock"
        argv = arguments(qemu_pid, build(directory, image_dir), path)
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        end = time.monotonic() + LIMIT
        while True:
            with contextlib.suppress(OSError):
                self.sock.connect(str(path))
                break
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"QEMU for the raw port ended: {self.process.stderr.read().decode()}")
            time.sleep(0.05)
        self.upload(1)  # the machine has booted

    def upload(self, size):
        """Seconds for size bytes from here to the guest."""
        piece = os.urandom(PIECE)
        began = time.perf_counter()
        self.sock.sendall(struct.pack("<cQ", b"r", size))
        for at in range(0, size, PIECE):
            self.sock.sendall(piece[:min(PIECE, size - at)])
        if self.sock.recv(1) != b"k":
            raise RuntimeError("the raw port was closed")
        return time.perf_counter() - began

    def download(self, size):
        """The beginning of what was uploaded last."""
        began = time.perf_counter()
        self.sock.sendall(struct.pack("<cQ", b"w", size))
        while size > 0:
            data = self.sock.recv(min(PIECE, size))
            if not data:
                raise RuntimeError("the raw port was closed")
            size -= len(data)
        return time.perf_counter() - began

    def close(self):
        self.sock.close()
        self.process.kill()
        self.process.wait()
