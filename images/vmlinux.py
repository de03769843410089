#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Take the kernel proper out of a bzImage, so that no guest spends its start on decompressing it.

    vmlinux.py BZIMAGE OUTPUT

A bzImage says in its header where its compressed payload is (Documentation/arch/x86/boot.rst); the payload is an ELF file.
QEMU enters such a file by its PVH note.
"""
import gzip
import lzma
import struct
import subprocess
import sys


class Failure(Exception):
    pass


def payload(image):
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", image, 0x206)[0] < 0x208:
        raise Failure("is no bzImage of boot protocol 2.08 or newer")
    start = (image[0x1F1] or 4) * 512 + 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    data = image[start + offset:start + offset + length]
    if len(data) != length or length < 8:
        raise Failure("is cut off")
    return data


def expand(data):
    """The size of the result follows the compressed data, in its last four bytes."""
    size, = struct.unpack("<I", data[-4:])
    if data.startswith(b"\x1f\x8b"):
        result = gzip.decompress(data)
    elif data.startswith(b"\xfd7zXZ\0"):
        result = lzma.LZMADecompressor().decompress(data)
    elif data.startswith(b"\x02\x21\x4c\x18"):
        result = subprocess.run(["lz4", "-dcq"], input=data[:-4], stdout=subprocess.PIPE, check=True).stdout
    elif data.startswith(b"\x28\xb5\x2f\xfd"):
        result = subprocess.run(["zstd", "-dcq"], input=data[:-4], stdout=subprocess.PIPE, check=True).stdout
    else:
        raise Failure(f"is compressed in a way that this recipe does not know ({data[:6].hex()})")
    if len(result) != size:
        raise Failure(f"holds a kernel of {len(result)} bytes where it says {size}")
    return result


def has_pvh_note(kernel):
    """An ELF note (owner "Xen", type 18) names the entry."""
    if kernel[:6] != b"\x7fELF\x02\x01":
        return False
    table, = struct.unpack_from("<Q", kernel, 32)
    entry_size, count = struct.unpack_from("<HH", kernel, 54)
    for i in range(count):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", kernel, table + i * entry_size)
        end = offset + size
        while kind == 4 and offset + 12 <= end:
            owner, data, note = struct.unpack_from("<III", kernel, offset)
            if note == 18 and kernel[offset + 12:offset + 12 + owner] == b"Xen\0":
                return True
            offset += 12 + (owner + 3) // 4 * 4 + (data + 3) // 4 * 4
    return False


def main():
    with open(sys.argv[1], "rb") as file:
        kernel = expand(payload(file.read()))
    if not has_pvh_note(kernel):
        raise Failure("holds a kernel without a PVH entry")
    with open(sys.argv[2], "wb") as file:
        file.write(kernel)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"vmlinux: {sys.argv[1]} {failure}")
    except FileNotFoundError as failure:
        sys.exit(f"vmlinux: {failure.filename} is missing; next: install it")
    except (OSError, EOFError, struct.error, lzma.LZMAError, subprocess.CalledProcessError) as failure:
        sys.exit(f"vmlinux: {sys.argv[1]}: {failure}")
