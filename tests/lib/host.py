# SPDX-License-Identifier: Apache-2.0
"""An agentiso installation of its own for tests with real virtual machines, driven as a client would.

A host has a daemon of its own in a temporary state directory; the images come from the build folder.
"""

import contextlib
import os
import pathlib
import select
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time

from mcp_client import McpClient

ROOT = pathlib.Path(__file__).parents[2]
BUILD = ROOT / os.environ.get("AGENTISO_BUILD", "build")
AGENTISO = BUILD / "agentiso"
# Sanitizer builds share the images of the ordinary one.
IMAGE_DIR = pathlib.Path(os.environ.get("AGENTISO_IMAGE_DIR", ROOT / "build" / "images"))


class Host:
    """One state directory, its daemon and its clients."""

    def __init__(self, directory, config, subdir, prefix=()):
        self.prefix = list(prefix)  # of every command: enters the namespaces that it shall run in
        self.state_dir = directory / subdir
        self.config = directory / "config.toml"
        # Nothing is started that a test does not ask for: it would be found among the processes that it counts.
        for section, off in (("templates", "max_gb = 0"), ("pool", "size = 0")):
            if f"[{section}]" not in config:
                config += f"\n[{section}]\n{off}\n"
        self.config.write_text(f'[paths]\nstate_dir = "{self.state_dir}"\nimage_dir = "{IMAGE_DIR}"\n{config}')
        self.clients = []

    def argv(self, *command):
        return [*self.prefix, str(AGENTISO), *command, "--config", str(self.config)]

    def client(self, **options):
        client = McpClient(self.argv("serve"), **options)
        self.clients.append(client)
        return client

    def cli(self, *command, check=True, timeout=60):
        done = subprocess.run(self.argv(*command), capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"agentiso {' '.join(command)} ended with {done.returncode}: {done.stderr}")
        return done

    def warm(self, *options):
        """Makes the templates of a shape and waits for them."""
        return self.cli("image", "warm", *options, timeout=120)

    def daemon_pid(self):
        """The pid of the daemon of this state directory, from the holder of its socket."""
        directory = os.open(self.state_dir, os.O_PATH)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.connect(f"/proc/self/fd/{directory}/agentiso.sock")
            os.close(directory)
            return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def kill_daemon(self):
        pid = self.daemon_pid()
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait_readable(pidfd, 10)
        os.close(pidfd)
        return pid

    def qemu_pid(self, workspace_id):
        with contextlib.closing(sqlite3.connect(f"file:{self.state_dir}/state.db?mode=ro", uri=True)) as db:
            row = db.execute("SELECT proc_pid FROM workspaces WHERE id = ?", (workspace_id,)).fetchone()
        return row[0] if row else None

    def qemu_pids(self):
        """Every QEMU whose command line names this state directory."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    arguments = (entry / "cmdline").read_bytes()
                    if b"qemu-system" in arguments.split(b"\0")[0] and str(self.state_dir).encode() in arguments:
                        found.append(int(entry.name))
        return found

    def pids(self):
        """Every process that was started for this state directory."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    arguments = (entry / "cmdline").read_bytes()
                    if str(self.state_dir).encode() in arguments:
                        found[int(entry.name)] = arguments.replace(b"\0", b" ").decode(errors="replace")[:200]
        return found

    def vm_pids(self):
        """The QEMU processes of workspaces, without one that probes the accelerator."""
        machines = str(self.state_dir / "vms").encode()
        return [pid for pid in self.qemu_pids() if machines in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]

    def disks(self):
        """The disks of workspaces; base images that they stand on are kept apart."""
        return [path for path in (self.state_dir / "disks").glob("*") if path.is_file()]

    def disk_ids(self):
        """(disks, nodes): their ids, as the links among the files say (src/storage/qcow2-private.h)."""
        folder = self.state_dir / "disks"
        links = {path.stem: os.readlink(path) for path in folder.glob("*.disk")}
        first = {path.name.removesuffix(".qcow2") for path in folder.glob("*.qcow2") if "." not in path.stem}
        disks = {i for i, target in links.items() if target != "none"} | (first - set(links))
        return disks, {path.stem for path in folder.glob("*.node")}

    def snapshot_folders(self):
        return sorted(path.name for path in (self.state_dir / "snapshots").glob("*") if path.is_dir())

    def close(self):
        for client in self.clients:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.close()
        self.cli("stop", "--all", check=False)
        for pid in self.qemu_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_readable(fd, seconds):
    assert select.select([fd], [], [], seconds)[0], f"nothing happened in {seconds} s"


def wait_until(condition, seconds=20, what="the condition"):
    """Polls for something that has no event to wait on; the limit fails the test."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true in {seconds} s")


def make_host(config="", subdir="state", prefix=()):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="agentiso-test-"))
    host = Host(directory, config, subdir, prefix)
    try:
        yield host
    finally:
        left = {}
        host.close()
        try:
            wait_until(lambda: not host.pids(), 20, "the end of all processes")
        except AssertionError:
            left = host.pids()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        log = host.state_dir / "daemon.log"
        if log.exists() and os.environ.get("AGENTISO_SHOW_LOG"):
            print(log.read_text(), file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)
        assert not left, f"processes were left: {left}"
