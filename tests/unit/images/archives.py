#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Write the archives that test-import.sh imports: archives.py KIND FILE SHELL_PROGRAM

Sound ones look like a small distribution whose /bin/sh is a link, as with Alpine; the others are what an attacker, or a
broken download, would bring.
"""
import io
import random
import sys
import tarfile

kind, path, program = sys.argv[1:]
archive = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)


def add(name, data=None, *, mode=0o644, uid=0, gid=0, link=None, hard=None, type=None, pax=None):
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid, member.mtime = mode, uid, gid, 1700000000
    member.pax_headers = pax or {}
    if type is not None:
        member.type = type
        member.devmajor, member.devminor = 1, 3
    elif link is not None:
        member.type, member.linkname = tarfile.SYMTYPE, link
    elif hard is not None:
        member.type, member.linkname = tarfile.LNKTYPE, hard
    elif data is None:
        member.type = tarfile.DIRTYPE
    else:
        member.size = len(data)
    archive.addfile(member, io.BytesIO(data) if data is not None else None)


def shell():
    with open(program, "rb") as file:
        add("bin/busybox", file.read(), mode=0o755)
    add("bin/sh", link="/bin/busybox")


def sound(text=b"one\n"):
    add("./", mode=0o700)
    add("./bin", mode=0o755)
    shell()
    add("./etc", mode=0o755)
    add("./etc/shadow", b"root::19000:0:::::\nbin:!::0:::::\n", mode=0o640, gid=42)
    add("./etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    add("./etc/resolv.conf", link="/run/elsewhere/resolv.conf")
    add("./etc/version", text)
    add("./home/user", mode=0o750, uid=1000, gid=1001)
    add("./home/user/set-uid", b"x" * 5000, mode=0o4755, uid=1000, gid=1001)
    add("./home/user/hard", hard="home/user/set-uid")
    add("./home/user/capable", b"y", mode=0o755, pax={"SCHILY.xattr.user.note": "kept"})
    add("./dev/null", type=tarfile.CHRTYPE, mode=0o666)
    add("./var/pipe", type=tarfile.FIFOTYPE)


if kind == "sound":
    sound()
elif kind == "other":
    sound(b"two\n")
elif kind == "big":                 # some seconds to import, so that it can be killed
    sound(b"three\n")
    noise = random.Random(1).randbytes(1 << 20)
    for i in range(300):
        add(f"srv/{i}", noise)
elif kind == "dotdot":
    shell()
    add("../escaped", b"out\n")
elif kind == "dotdot-inside":
    shell()
    add("bin/../../escaped", b"out\n")
elif kind == "absolute":
    shell()
    add("/tmp/agentiso-escaped", b"out\n")
elif kind.startswith("link:"):      # a link that leads out, and a file behind it; also the places that are furnished
    shell()
    out = kind.removeprefix("link:")
    add("way", link=out)
    add("way/escaped", b"out\n")
    add("up", link="../../../../../../../../../../.." + out)
    add("up/escaped", b"out\n")
    add("etc", link=out)
    add("etc/passwd", b"root::0:0::/:/bin/sh\n")
    add("workspace", link=out)
elif kind.startswith("hard:"):      # a second name for a file of the host
    shell()
    add("etc/stolen", hard=kind.removeprefix("hard:").lstrip("/"))
elif kind == "no-shell":
    add("bin/ls", b"#!/bin/true\n", mode=0o755)
elif kind == "shell-is-folder":
    add("bin/sh/x", b"")
elif kind == "dangling-shell":
    add("bin/sh", link="/bin/none")
elif kind == "other-processor":
    add("bin/sh", b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xb7\0" + bytes(44), mode=0o755)
elif kind == "loop":
    add("bin", link="bin")
    add("bin/sh", b"x", mode=0o755)
elif kind == "long-header":         # claims a name of 8 GiB
    shell()
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    archive.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
else:
    sys.exit(f"no kind {kind}")
archive.close()
