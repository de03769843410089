# SPDX-License-Identifier: Apache-2.0
"""Files between the host and a real VM."""

import hashlib
import os
import pathlib
import re
import threading
import time

import pytest
from conftest import make_host, wait_until
from mcp_client import ToolError

MIB = 1024 * 1024
GIB = 1024 * MIB
LONG = 600


def transfers(host):
    directory = host.state_dir / "transfers"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


@pytest.fixture
def folder(shared_host, workspace):
    """The transfer directory of a daemon that runs."""
    return transfers(shared_host)


def move(client, ws, direction, host_path, guest_path, timeout=LONG):
    return client.call("file_transfer", timeout=timeout, workspace_id=ws, direction=direction,
                       host_path=str(host_path), guest_path=guest_path)


def run(client, ws, command, timeout_secs=120):
    result = client.call("exec", workspace_id=ws, command=command, timeout_secs=timeout_secs, timeout=timeout_secs + 60)
    assert result["exit_code"] == 0, result
    return result["stdout"]


def refused(client, ws, direction, host_path, guest_path):
    with pytest.raises(ToolError) as caught:
        move(client, ws, direction, host_path, guest_path)
    return caught.value


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


def random_file(path, size):
    with open(path, "wb") as file:
        for at in range(0, size, 4 * MIB):
            file.write(os.urandom(min(4 * MIB, size - at)))
    return path


def temporary_files(client, ws, where):
    return run(client, ws, f"find {where} -name '.agentiso-*' | wc -l").strip()


def test_the_directory_is_private(shared_host, workspace, folder):
    assert folder.stat().st_mode & 0o777 == 0o700


def test_round_trip(shared_client, workspace, folder):
    source = random_file(folder / "in.bin", 20 * MIB + 12345)
    source.chmod(0o751)
    up = move(shared_client, workspace, "upload", source, "/tmp/t/deep/in.bin")
    assert up == {"direction": "upload", "host_path": str(source), "guest_path": "/tmp/t/deep/in.bin",
                  "bytes": 20 * MIB + 12345, "sha256": sha256(source), "mode": "0751"}
    assert run(shared_client, workspace, "sha256sum < /tmp/t/deep/in.bin; stat -c '%a %U' /tmp/t/deep/in.bin") == \
        f"{up['sha256']}  -\n751 root\n"

    run(shared_client, workspace, "chmod 4640 /tmp/t/deep/in.bin")
    down = move(shared_client, workspace, "download", "new/sub/out.bin", "/tmp/t/deep/in.bin")
    assert (down["bytes"], down["sha256"], down["mode"]) == (up["bytes"], up["sha256"], "0640")
    back = folder / "new/sub/out.bin"
    assert down["host_path"] == str(back) and sha256(back) == up["sha256"]
    assert back.stat().st_mode & 0o7777 == 0o640


def test_an_empty_file_and_one_that_is_replaced(shared_client, workspace, folder):
    (folder / "empty").write_bytes(b"")
    assert move(shared_client, workspace, "upload", "empty", "/tmp/empty")["bytes"] == 0
    (folder / "old").write_bytes(b"old content")
    down = move(shared_client, workspace, "download", "old", "/tmp/empty")
    assert down["sha256"] == hashlib.sha256(b"").hexdigest()
    assert (folder / "old").read_bytes() == b""


def test_a_sparse_file_stays_sparse(shared_client, workspace, folder):
    source = folder / "sparse.img"
    with open(source, "wb") as file:
        file.truncate(4 * GIB)
        for at in (0, GIB + 7, 4 * GIB - 5):
            os.pwrite(file.fileno(), b"mark%d" % (at % 10), at)
    started = time.monotonic()
    up = move(shared_client, workspace, "upload", "sparse.img", "/tmp/sparse.img")
    assert up["bytes"] == source.stat().st_size
    assert int(run(shared_client, workspace, "du -k /tmp/sparse.img").split()[0]) < 1024
    down = move(shared_client, workspace, "download", "sparse.out", "/tmp/sparse.img")
    elapsed = time.monotonic() - started
    assert elapsed < 300
    back = folder / "sparse.out"
    assert back.stat().st_size == up["bytes"] and back.stat().st_blocks * 512 < MIB
    with open(back, "rb") as file:
        assert os.pread(file.fileno(), 5, GIB + 7) == b"mark%d" % ((GIB + 7) % 10)
    assert down["sha256"] == up["sha256"] == sha256(source)


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_nothing_outside_can_be_reached(shared_client, workspace, folder, direction):
    outside = folder.parent / "outside"
    outside.write_text("secret")
    for name, target in (("link-out", "../outside"), ("absolute", str(outside)), ("dir-out", "..")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    run(shared_client, workspace, "echo evil > /tmp/evil; rm -f /tmp/got")
    for path in ("../outside", str(outside), f"{folder}/../outside", "/etc/passwd", "link-out", "absolute",
                 "dir-out/outside", "sub/../../outside", "/", str(folder), "a//b"):
        error = refused(shared_client, workspace, direction, path,
                        "/tmp/got" if direction == "upload" else "/tmp/evil")
        assert error.code == "invalid_argument", path
    error = refused(shared_client, workspace, direction, "/etc/passwd", "/tmp/evil")
    assert str(folder) in error.text
    assert outside.read_text() == "secret" and not (folder.parent / "new").exists()
    assert run(shared_client, workspace, "ls /tmp/got 2>/dev/null | wc -l") == "0\n"


def test_a_link_beneath_works(shared_client, workspace, folder):
    (folder / "real.txt").write_text("inside")
    (folder / "link.txt").symlink_to("real.txt")
    assert move(shared_client, workspace, "upload", folder / "link.txt", "/tmp/link.txt")["bytes"] == 6


def test_what_is_not_there_or_no_file_is_named(shared_client, workspace, folder):
    (folder / "results.json").write_text("{}")
    error = refused(shared_client, workspace, "upload", "result.json", "/tmp/x")
    assert error.code == "not_found" and "results.json" in error.text
    (folder / "directory").mkdir()
    error = refused(shared_client, workspace, "upload", "directory", "/tmp/x")
    assert error.code == "invalid_argument" and "tar" in error.text
    os.mkfifo(folder / "fifo")
    assert refused(shared_client, workspace, "upload", "fifo", "/tmp/x").code == "invalid_argument"
    assert refused(shared_client, workspace, "upload", "results.json", "/tmp").code == "invalid_argument"

    error = refused(shared_client, workspace, "download", "made/for/nothing", "/no/such/file")
    assert error.code == "not_found" and "file_list of /no/such" in error.text
    assert not (folder / "made").exists()
    for guest_path in ("/tmp", "/dev/null", "/proc/self/status"):
        assert refused(shared_client, workspace, "download", "x", guest_path).code == "invalid_argument", guest_path
    assert refused(shared_client, workspace, "download", "directory", "/etc/hostname").code == "invalid_argument"
    assert not (folder / "x").exists()


def cancel_in_the_middle(client, ws, direction, host_path, guest_path):
    """Cancels a transfer after its first progress in MiB; returns when the call cannot be under way any more."""
    seen = len(client.notifications)
    request_id, _ = client.start("tools/call", {
        "name": "file_transfer", "_meta": {"progressToken": direction},
        "arguments": {"workspace_id": ws, "direction": direction, "host_path": str(host_path),
                      "guest_path": guest_path}})

    def told():
        return [n for n in client.notifications[seen:] if n["method"] == "notifications/progress"
                and re.match(r"[1-9]\d* of \d+ MiB", n["params"].get("message", ""))]
    wait_until(told, 60, "progress in MiB")
    client.notify("notifications/cancelled", {"requestId": request_id})


def test_a_cancelled_upload_leaves_nothing(shared_client, workspace, folder):
    big = random_file(folder / "big.bin", 300 * MIB)
    cancel_in_the_middle(shared_client, workspace, "upload", big, "/tmp/cancel/big.bin")
    # The folder that was made for it goes too, after the file in it.
    wait_until(lambda: run(shared_client, workspace, "ls -d /tmp/cancel 2>/dev/null || echo gone") == "gone\n", 30,
               "the end of the upload")
    assert temporary_files(shared_client, workspace, "/tmp") == "0"
    big.unlink()


def test_a_cancelled_download_leaves_nothing(shared_client, workspace, folder):
    run(shared_client, workspace, "head -c 300M /dev/urandom > /tmp/big")
    before = sorted(folder.rglob("*"))
    cancel_in_the_middle(shared_client, workspace, "download", "made/big.out", "/tmp/big")
    wait_until(lambda: not (folder / "made").exists(), 30, "the end of the download")
    assert sorted(folder.rglob("*")) == before
    run(shared_client, workspace, "rm /tmp/big")


def test_a_full_disk_of_the_guest(shared_client, workspace, folder):
    small = random_file(folder / "small", 8 * MIB)
    run(shared_client, workspace, "mkdir -p /tmp/full && mount -t tmpfs -o size=4m none /tmp/full && echo old > "
        "/tmp/full/file")
    error = refused(shared_client, workspace, "upload", small, "/tmp/full/file")
    assert error.code == "no_space"
    assert run(shared_client, workspace, "cat /tmp/full/file; ls -A /tmp/full") == "old\nfile\n"
    run(shared_client, workspace, "umount /tmp/full")


def test_two_at_once(shared_client, workspace, folder):
    sources = [random_file(folder / f"two-{n}", 40 * MIB) for n in range(2)]
    results = [None, None]

    def one(n):
        results[n] = move(shared_client, workspace, "upload", sources[n], f"/tmp/two-{n}")
    threads = [threading.Thread(target=one, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    # Meanwhile a command is not held up.
    assert run(shared_client, workspace, "echo here") == "here\n"
    for thread in threads:
        thread.join(LONG)
    for n, source in enumerate(sources):
        assert results[n]["sha256"] == sha256(source)
        assert run(shared_client, workspace, f"sha256sum < /tmp/two-{n}").split()[0] == results[n]["sha256"]


def private_dirty(pid):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Private_Dirty:\s+(\d+) kB", text, re.MULTILINE).group(1)) * 1024


def test_the_daemon_does_not_grow(shared_host, shared_client, workspace, folder):
    source = random_file(folder / "large", 300 * MIB)
    (folder / "warm").write_bytes(os.urandom(MIB))
    move(shared_client, workspace, "upload", "warm", "/tmp/warm")
    move(shared_client, workspace, "download", "warm.out", "/tmp/warm")
    pid = shared_host.daemon_pid()
    before = highest = private_dirty(pid)
    done = threading.Event()

    def both():
        move(shared_client, workspace, "upload", source, "/tmp/large")
        move(shared_client, workspace, "download", "large.out", "/tmp/large")
        done.set()
    thread = threading.Thread(target=both)
    thread.start()
    while thread.is_alive():
        highest = max(highest, private_dirty(pid))
        thread.join(0.1)
    assert done.is_set()
    assert sha256(folder / "large.out") == sha256(source)
    assert highest - before < MIB
    run(shared_client, workspace, "rm /tmp/large")


def test_a_killed_daemon_leaves_no_part(host):
    client = host.client()
    ws = client.call("workspace_create")["workspace_id"]
    folder = transfers(host)
    run(client, ws, "head -c 300M /dev/urandom > /var/big")
    answer = client.start("tools/call", {
        "name": "file_transfer", "_meta": {"progressToken": "t"},
        "arguments": {"workspace_id": ws, "direction": "download", "host_path": "big", "guest_path": "/var/big"}})[1]
    wait_until(lambda: any(re.match(r"[1-9]\d* of", n["params"].get("message", "")) for n in client.notifications
                           if n["method"] == "notifications/progress"), 60, "progress in MiB")
    host.kill_daemon()
    message = answer.get(timeout=60)
    assert "error" in message or message["result"]["isError"]
    assert not (folder / "big").exists()
    # The next transfer there works, and what the dead daemon may have left is gone.
    (folder / ".agentiso-transfer-0123456789abcdef").write_text("left over")
    down = move(client, ws, "download", "big", "/var/big")
    assert sha256(folder / "big") == down["sha256"]
    assert [p.name for p in folder.iterdir()] == ["big"]


@pytest.fixture
def full_host():
    """A host on which more must stay free than there is."""
    yield from make_host("[storage]\nreserve_mb = 0\n[limits]\ntransfer_gb = 1\n")


def test_limits_of_the_host(full_host):
    client = full_host.client()
    ws = client.call("workspace_create")["workspace_id"]
    folder = transfers(full_host)
    with open(folder / "huge", "wb") as file:
        file.truncate(GIB + 1)
    error = refused(client, ws, "upload", "huge", "/tmp/huge")
    assert error.code == "quota_exceeded" and "limits.transfer_gb" in error.text
    run(client, ws, f"truncate -s {GIB + 1} /tmp/huge")
    assert refused(client, ws, "download", "out", "/tmp/huge").code == "quota_exceeded"

    # The next daemon must leave more free than there is.
    full_host.config.write_text(full_host.config.read_text().replace("reserve_mb = 0", "reserve_mb = 1073741824"))
    full_host.kill_daemon()
    run(client, ws, "echo content > /tmp/file")
    error = refused(client, ws, "download", "out", "/tmp/file")
    assert error.code == "no_space" and "1073741824 MiB" in error.text
    assert not (folder / "out").exists()
    # An upload takes nothing of the host's disk.
    (folder / "in").write_text("x")
    assert move(client, ws, "upload", "in", "/tmp/in")["bytes"] == 1
