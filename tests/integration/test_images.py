# SPDX-License-Identifier: Apache-2.0
"""An imported root file system becomes a base image and boots: here one with nothing but a static busybox."""

import io
import pathlib
import shutil
import subprocess
import tarfile

import pytest
from conftest import IMAGE_DIR, make_host


@pytest.fixture
def rootfs(tmp_path):
    """A small root like a minimal distribution's: busybox, no glibc, no bash."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is on the list of test packages"
    tar_path = tmp_path / "mini.tar.gz"
    with tarfile.open(tar_path, "w:gz") as tar:
        for name in ("bin", "etc", "root", "usr"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(pathlib.Path(busybox).resolve(), "bin/busybox")
        for name in ("sh", "ls", "cat", "echo", "uname", "ps", "id", "hostname", "sleep", "df"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name, text in (("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("etc/os-release", "ID=mini\n")):
            data = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return tar_path


@pytest.fixture
def image_dir(tmp_path):
    """A folder of images with the real boot files, so that the import does not touch the shared one."""
    directory = tmp_path / "images"
    directory.mkdir()
    for name in ("boot", "debian-dev"):
        (directory / name).symlink_to(IMAGE_DIR / name)
    return directory


def test_an_imported_root_boots(rootfs, image_dir):
    for host in make_host():
        host.config.write_text(f'[paths]\nstate_dir = "{host.state_dir}"\nimage_dir = "{image_dir}"\n')
        host.cli("image", "import", "mini", str(rootfs), timeout=120)
        assert "mini" in host.cli("image", "list").stdout
        client = host.client()
        ws = client.call("workspace_create", name="tiny", base_image="mini", disk_gb=2)["workspace_id"]
        result = client.call("exec", workspace_id=ws, command="cat /etc/os-release; hostname; id")
        assert result["stdout"].startswith("ID=mini\ntiny\nuid=0"), result
        client.call("file_write", workspace_id=ws, path="/workspace/a/b", content="x\n")
        client.call("workspace_stop", workspace_id=ws)
        client.call("workspace_start", workspace_id=ws)
        assert client.call("file_read", workspace_id=ws, path="/workspace/a/b") == "x\n"


def test_an_archive_that_is_no_root_is_refused(image_dir, tmp_path):
    bad = tmp_path / "bad.tar"
    with tarfile.open(bad, "w") as tar:
        tar.add(__file__, "just-a-file.py")
    for host in make_host():
        host.config.write_text(f'[paths]\nstate_dir = "{host.state_dir}"\nimage_dir = "{image_dir}"\n')
        done = host.cli("image", "import", "nothing", str(bad), check=False, timeout=120)
        assert done.returncode != 0 and "/bin/sh" in done.stderr
        assert "nothing" not in host.cli("image", "list").stdout
        assert subprocess.run(["ls", "-A", str(image_dir)], capture_output=True, text=True,
                              check=True).stdout.count("nothing") == 0
