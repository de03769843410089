#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Read and publish the folders of an image store.

    store.py get FILE FIELD                       print a field of a JSON file, nothing if there is none
    store.py publish NEW TARGET FILE FIELD=TEXT FIELD:=NUMBER ...
                                                  write NEW/FILE, make NEW durable, let it take the place of TARGET

Besides the fields named, FILE gets created_at and id, which no other build has, not even one of the same recipe.

TARGET is there at every moment if it was there before: old and new folder trade places in one step (renameat2 with
RENAME_EXCHANGE). The old folder is then at NEW, for the caller to remove.
"""
import ctypes
import errno
import json
import os
import sys
import time
import uuid

AT_FDCWD, RENAME_EXCHANGE = -100, 2


def get(path, field):
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file).get(field, "")
    except (OSError, ValueError, AttributeError):
        return
    print(value)


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(one, other):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one)


def replace(new, target):
    if not os.path.lexists(target):
        os.rename(new, target)
        return
    try:
        exchange(new, target)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        old = new + ".old"          # a file system without the exchange: there is an instant with neither
        os.rename(target, old)
        os.rename(new, target)
        os.rename(old, new)


def publish(new, target, name, *words):
    record = {"id": uuid.uuid4().hex}
    for word in words:
        field, _, value = word.partition("=")
        if field.endswith(":"):
            record[field[:-1]] = int(value)
        else:
            record[field] = value
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    record["created_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch) if epoch.isdigit() else None))
    with open(os.path.join(new, name), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2, sort_keys=True)
        file.write("\n")
    for entry in os.scandir(new):
        sync(entry.path)
    os.chmod(new, 0o755)
    sync(new)
    replace(new, target)
    sync(os.path.dirname(target))


if __name__ == "__main__":
    try:
        {"get": get, "publish": publish}[sys.argv[1]](*sys.argv[2:])
    except OSError as failure:
        sys.exit(f"store.py: {failure.strerror}: {failure.filename}")
