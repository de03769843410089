#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Unpack an archive of a root file system into an empty folder, and give it what every guest needs.

    rootfs.py ARCHIVE FOLDER          prints: number of entries, bytes they take, number of device nodes left out

ARCHIVE is a tar file, plain or compressed by gzip, bzip2, xz or zstd (found out by content), and comes from anybody. So the
process locks itself into FOLDER (chroot) before it makes the first file: whatever names and links the archive holds, they
resolve in there. It runs as root, or as root of a user namespace; nothing of the archive is ever executed. An archive with an
absolute name or a `..` is refused all the same, as no tool makes such a root file system.
"""
import collections
import os
import resource
import stat
import subprocess
import sys
import tarfile

MAX_ENTRIES = 4_000_000
MAX_BYTES = 64 << 30
MIN_FREE = 512 << 20            # on the disk of the image folder, for everything else that lives there
MAX_AFTER_END = 64 << 20        # padding behind the end mark
MAX_MEMORY = 2 << 30            # a header may claim any size
BLOCK = 4096
CHUNK = 1 << 20
ZEROS = bytes(CHUNK)
MAGIC = (
    (b"\x1f\x8b", ["gzip", "-dc"]),
    (b"BZh", ["bzip2", "-dc"]),
    (b"\xfd7zXZ\0", ["xz", "-dc"]),
    (b"\x28\xb5\x2f\xfd", ["zstd", "-dcq"]),
)
DIRECTORIES = (("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777), ("workspace", 0o755), ("etc", 0o755))
EM_386, EM_X86_64 = 3, 62


class Failure(Exception):
    pass


class Tail:
    """A stream that remembers the end of what it gave: tarfile takes any end of the data for the end of the archive."""

    def __init__(self, file):
        self.file, self.last, self.count = file, collections.deque(maxlen=3), 0

    def read(self, size):
        data = self.file.read(size)
        if data:
            self.last.append(data)
            self.count += len(data)
        return data

    def has_end_mark(self, offset):
        data = b"".join(self.last)
        start = offset - (self.count - len(data))
        return start >= 0 and data[start:start + tarfile.BLOCKSIZE] == bytes(tarfile.BLOCKSIZE)


def open_archive(path):
    """(stream, decompressing process or None)"""
    file = open(path, "rb")         # noqa: SIM115 - lives as long as the process
    start = os.pread(file.fileno(), 8, 0)       # a child continues at the file's position: leave it at 0
    for magic, command in MAGIC:
        if start.startswith(magic):
            try:
                process = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE)
            except FileNotFoundError as error:
                raise Failure(f"the archive is compressed by {command[0]}, which is not installed; next: install it") from error
            return Tail(process.stdout), process
    return Tail(file), None


def clean_name(name):
    if name.startswith("/"):
        raise Failure(f"it holds the absolute name {name!r}")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Failure(f"it holds the name {name!r}, which leads out of it")
    return "/".join(parts)


def make_way(path):
    """Make the folders above a path, and remove what is at it unless that is a folder."""
    parent = os.path.dirname(path)
    if parent:
        os.makedirs("/" + parent, mode=0o755, exist_ok=True)
    try:
        if not stat.S_ISDIR(os.lstat("/" + path).st_mode):
            os.unlink("/" + path)
    except FileNotFoundError:
        pass


def write_file(source, path):
    with open("/" + path, "xb") as file:
        while data := source.read(CHUNK):
            if data == ZEROS[:len(data)]:
                file.seek(len(data), os.SEEK_CUR)
            else:
                file.write(data)
        file.truncate()


def dress(member, path):
    """Owner, mode, attributes and times, in an order in which none undoes another."""
    full = "/" + path
    os.lchown(full, member.uid, member.gid)
    if not member.issym():
        os.chmod(full, member.mode & 0o7777)
    for header, value in member.pax_headers.items():
        if header in ("SCHILY.xattr.security.capability",) or header.startswith("SCHILY.xattr.user."):
            os.setxattr(full, header.removeprefix("SCHILY.xattr."), value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
    if not member.isdir():
        os.utime(full, (member.mtime, member.mtime), follow_symlinks=False)


class Unpacker:
    def __init__(self):
        self.entries, self.bytes, self.skipped, self.folders = 0, 0, set(), []
        self.look_again = 0

    def count(self, member):
        self.entries += 1
        self.bytes += BLOCK + (member.size + BLOCK - 1) // BLOCK * BLOCK if member.isreg() else BLOCK
        if self.entries > MAX_ENTRIES:
            raise Failure(f"it holds more than {MAX_ENTRIES} files")
        if self.bytes > MAX_BYTES:
            raise Failure(f"its content is larger than {MAX_BYTES >> 30} GiB")

        if self.bytes >= self.look_again:
            disk = os.statvfs("/")
            free = disk.f_bavail * disk.f_frsize - MIN_FREE
            if free < member.size:
                raise Failure(f"the disk has no room for it; next: free some space (it holds {self.bytes >> 20} MiB or more)")
            self.look_again = self.bytes + free // 4

    def add(self, archive, member):
        path = clean_name(member.name)
        if member.ischr() or member.isblk():
            self.skipped.add(path)
            return
        if not path:                # the root itself: its mode is ours, its owner is root
            return
        self.count(member)
        if member.isdir():
            if not os.path.isdir("/" + path):       # a link to a folder stays, as with usr-merged systems
                make_way(path)
                os.mkdir("/" + path)
            if not os.path.islink("/" + path):
                dress(member, path)
                self.folders.append((path, member.mtime))
            return
        make_way(path)
        if member.islnk():
            target = clean_name(member.linkname)
            if target in self.skipped:
                return
            os.link("/" + target, "/" + path, follow_symlinks=False)
            return
        if member.issym():
            os.symlink(member.linkname, "/" + path)
        elif member.isfifo():
            os.mkfifo("/" + path)
        elif member.isreg():
            write_file(archive.extractfile(member), path)
        else:
            raise Failure(f"{member.name!r} is of a kind ({member.type!r}) that a root file system does not have")
        dress(member, path)

    def finish(self):
        for path, time in reversed(self.folders):
            try:
                os.utime("/" + path, (time, time))
            except FileNotFoundError:
                pass                # a later entry took its place


def unpack(stream):
    unpacker = Unpacker()
    with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, errors="surrogateescape") as archive:
        while True:
            member = archive.next()
            if member is None:
                break
            try:
                unpacker.add(archive, member)
            except OSError as error:
                raise Failure(f"{member.name!r}: {error.strerror}") from error
            archive.members = []    # tarfile would keep them all
    if not stream.has_end_mark(archive.offset):
        raise Failure(f"it is cut off or damaged after {unpacker.entries} entries: no end mark")
    unpacker.finish()
    return unpacker


def finish_stream(stream, process):
    """The compressor checks its own sum at the very end."""
    rest = 0
    while data := stream.read(CHUNK):
        rest += len(data)
        if rest > MAX_AFTER_END:
            raise Failure("there is much more data behind its end mark")
    if process and process.wait() != 0:
        raise Failure(f"{process.args[0]} calls it damaged or cut off")


def replace_file(path, text, mode=0o644):
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "x", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.chmod(path, mode)


def read_text(path):
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1 << 20)
    except FileNotFoundError:
        return None


def lock_root():
    """Nobody logs in as root by a password: the agent needs none."""
    for path in ("/etc/passwd", "/etc/shadow"):
        text = read_text(path)
        if text is None:
            continue
        old = os.stat(path)
        lines = text.splitlines(keepends=True)
        for i, line in enumerate(lines):
            fields = line.split(":")
            if fields[0] == "root" and len(fields) > 1 and not (path == "/etc/passwd" and fields[1] == "x"):
                fields[1] = "*"
                lines[i] = ":".join(fields)
        if "".join(lines) != text:
            replace_file(path, "".join(lines), stat.S_IMODE(old.st_mode))
            os.chown(path, old.st_uid, old.st_gid)


def check_shell():
    try:
        info = os.stat("/bin/sh")
    except OSError as error:
        raise Failure(f"this is no root file system: it has no /bin/sh ({error.strerror})") from error
    if not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o111:
        raise Failure("this is no root file system: its /bin/sh is no program")
    with open("/bin/sh", "rb") as file:
        head = file.read(20)
    if head.startswith(b"\x7fELF") and int.from_bytes(head[18:20], "little") not in (EM_386, EM_X86_64):
        raise Failure("its programs are for another processor than x86-64; next: take the archive for x86_64 (amd64)")


def furnish():
    """What the agent and its users rely on, in any distribution."""
    for path, mode in DIRECTORIES:
        if not os.path.isdir("/" + path):
            if os.path.lexists("/" + path):
                raise Failure(f"this is no root file system: its /{path} is no folder")
            os.mkdir("/" + path)
            os.chmod("/" + path, mode)
    os.chmod("/", 0o755)
    os.chmod("/tmp", 0o1777)
    lock_root()
    replace_file("/etc/resolv.conf", "")
    replace_file("/etc/machine-id", "")
    for path, text in (
        ("/etc/passwd", "root:*:0:0:root:/root:/bin/sh\n"),
        ("/etc/group", "root:x:0:\n"),
        ("/etc/hostname", "agentiso\n"),
        ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 agentiso\n"),
    ):
        if not os.path.exists(path):
            replace_file(path, text)


def main():
    if len(sys.argv) != 3:
        raise Failure("usage: rootfs.py ARCHIVE FOLDER")
    name = os.path.basename(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    os.umask(0o022)
    stream, process = open_archive(sys.argv[1])
    b"".decode("utf-8", "surrogateescape")      # codecs are looked up in files that are out of reach soon
    os.chroot(sys.argv[2])
    os.chdir("/")
    try:
        unpacker = unpack(stream)
        finish_stream(stream, process)
        check_shell()
        furnish()
    except Failure as failure:
        raise Failure(f"'{name}': {failure}") from failure
    except OSError as error:
        raise Failure(f"'{name}': {error.strerror}: {error.filename}") from error
    except (tarfile.TarError, EOFError, ValueError, RecursionError, MemoryError) as error:
        if process and process.poll() not in (None, 0):
            raise Failure(f"'{name}': {process.args[0]} calls it damaged or cut off") from error
        raise Failure(f"'{name}': it is no tar archive, or a damaged one: {error}") from error
    finally:
        if process and process.poll() is None:
            process.kill()
    print(unpacker.entries, unpacker.bytes, len(unpacker.skipped))


if __name__ == "__main__":
    try:
        main()
    except Failure as problem:
        sys.exit(f"rootfs: {problem}")
    except OSError as problem:
        sys.exit(f"rootfs: {problem.strerror}: {problem.filename}")
