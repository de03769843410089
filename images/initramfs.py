#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Write the initramfs of the microVMs: the agent as /init, the virtio modules, a few empty directories. Nothing else.

    initramfs.py MODULES_DIR AGENT OUTPUT

MODULES_DIR is lib/modules/VERSION of an unpacked kernel package, after depmod. The output is an uncompressed newc cpio
archive that depends on the input bytes only: sorted names, owner 0:0, time 0. The device node /dev/console needs no
root, as it is just a header in the archive.
"""
import gzip
import lzma
import os
import stat
import struct
import subprocess
import sys

# What the agent loads, by the moment when it loads it. A module that is built into the kernel is left out; what a module
# depends on is put in front of it, in the same group.
WANTED = (
    ("core", ("virtio", "virtio_ring", "virtio_mmio")),
    ("channel", ("virtio_console", "vmw_vsock_virtio_transport")),
    ("disk", ("virtio_blk",)),
    ("net", ("virtio_net",)),
    ("rng", ("virtio_rng",)),
    ("diag", ("inet_diag", "tcp_diag", "udp_diag")),    # only when a machine has connections that are over
)
DIRECTORIES = ("dev", "mnt", "modules", "proc", "run", "sys")


class Failure(Exception):
    pass


def module_name(path):
    return os.path.basename(path).split(".ko", 1)[0].replace("-", "_")


def read_lines(directory, name):
    path = os.path.join(directory, name)
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError as error:
        raise Failure(f"cannot read {name} of the kernel package: {error.strerror} ({path})") from error


def load_order(directory):
    """[(group, module name, path below MODULES_DIR)] in the order of loading."""
    builtin = {module_name(line) for line in read_lines(directory, "modules.builtin")}
    depends = {}
    for line in read_lines(directory, "modules.dep"):
        path, _, rest = line.partition(":")
        depends[module_name(path)] = (path, rest.split())
    order, seen = [], set()
    for group, names in WANTED:
        for name in names:
            if name in builtin:
                continue
            if name not in depends:
                raise Failure(f"the kernel {os.path.basename(directory)} has no module {name}, neither built in nor as a file")
            path, needs = depends[name]
            for file in [*reversed(needs), path]:     # modules.dep: the last one named is needed first
                if module_name(file) not in seen:
                    seen.add(module_name(file))
                    order.append((group, module_name(file), file))
    return order


def module_bytes(path):
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".ko"):
        return data
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".gz"):
        return gzip.decompress(data)
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, check=True).stdout
    raise Failure(f"{path}: a compression of modules that this recipe does not know")


def check_agent(path, data):
    """There is no dynamic linker in the initramfs. (An ELF file asks for one by a segment of type 3.)"""
    if data[:6] != b"\x7fELF\x02\x01":
        raise Failure(f"the agent {path} is no program for x86-64")
    table, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    if any(struct.unpack_from("<I", data, table + i * size)[0] == 3 for i in range(count)):
        raise Failure(f"the agent {path} is not linked statically; next: link it with -static")


class Cpio:
    """newc: a header of 13 numbers of 8 hex digits, the name and the data each padded to 4 bytes."""

    def __init__(self, file):
        self.file, self.inode = file, 0

    def add(self, name, mode, data=b"", rdev=(0, 0)):
        self.inode += 1
        raw = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self.inode, mode, 0, 0, links, 0, len(data), 0, 0, *rdev, len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self.file.write(header + raw + bytes(-(len(header) + len(raw)) % 4))
        self.file.write(data + bytes(-len(data) % 4))

    def end(self):
        self.inode = -1
        self.add("TRAILER!!!", 0)


def main():
    if len(sys.argv) != 4:
        raise Failure("usage: initramfs.py MODULES_DIR AGENT OUTPUT")
    directory, agent, output = sys.argv[1:]
    with open(agent, "rb") as file:
        init = file.read()
    check_agent(agent, init)
    order = load_order(directory)
    entries = {name: (stat.S_IFDIR | 0o755, b"", (0, 0)) for name in DIRECTORIES}
    entries["dev/console"] = (stat.S_IFCHR | 0o600, b"", (5, 1))
    entries["init"] = (stat.S_IFREG | 0o755, init, (0, 0))
    entries["modules/order"] = (stat.S_IFREG | 0o644, "".join(f"{group} {name}.ko\n" for group, name, _ in order).encode(), (0, 0))
    for _, name, path in order:
        entries[f"modules/{name}.ko"] = (stat.S_IFREG | 0o644, module_bytes(os.path.join(directory, path)), (0, 0))
    with open(output, "wb") as file:
        cpio = Cpio(file)
        for name in sorted(entries):
            cpio.add(name, *entries[name])
        cpio.end()


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"initramfs.py: {failure}")
    except (OSError, struct.error, lzma.LZMAError, subprocess.CalledProcessError) as failure:
        sys.exit(f"initramfs.py: {failure}")
