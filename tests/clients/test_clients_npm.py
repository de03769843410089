# SPDX-License-Identifier: Apache-2.0
"""Clients that people use, as npm has them, with the real server and real virtual machines.

They are installed below the build folder as package-lock.json says, with the Node.js that is one of the packages: the
inspector needs a newer one than Debian 12 has. What comes is checked by the hashes in the lock file, and no script of a
package runs. To change a version: edit package.json and run here
`npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved`.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "lib"))
from host import BUILD, make_host  # noqa: E402

INSTALL_LIMIT = 900
SESSION_LIMIT = 600
INSPECTOR_LIMIT = 120


def run(argv, limit, **options):
    """Runs a command with everything that it starts; its output is in the error if it fails or takes too long."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True, **options) as child:
        try:
            out, err = child.communicate(timeout=limit)
            what = f"ended with {child.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            what = f"was still running after {limit} s"
    assert what == "ended with 0", f"{' '.join(map(str, argv))} {what}\nstdout:\n{out}\nstderr:\n{err}"
    return out, err


@pytest.fixture(scope="session")
def clients():
    """The folder with the clients and the session; what is installed is kept until the lock file changes."""
    directory = BUILD / "clients"
    directory.mkdir(parents=True, exist_ok=True)
    installed = directory / "installed.json"
    lock = (HERE / "package-lock.json").read_bytes()
    for file in HERE.glob("*.mjs"):
        shutil.copy(file, directory)
    if not installed.exists() or installed.read_bytes() != lock:
        installed.unlink(missing_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, directory)
        # Errors only: npm itself may run on a Node.js that is too old for the packages, which do not run on it.
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], INSTALL_LIMIT,
            cwd=directory)
        installed.write_bytes(lock)
    return directory


@pytest.fixture(scope="module")
def server():
    yield from make_host()


@pytest.fixture
def home(tmp_path):
    """An environment for the clients: the Node.js beside them, and a home of its own for what they keep."""
    return {"HOME": str(tmp_path), "PATH": f"{BUILD / 'clients' / 'node_modules' / '.bin'}:{os.environ['PATH']}"}


def inspect(clients, home, server, era, method, *options):
    return run(["mcp-inspector", "--cli", "--protocol-era", era, "--method", method, *options, "--format", "json", "--",
                *server.argv("serve")], INSPECTOR_LIMIT, env=home, cwd=clients)


def test_the_lock_file_holds_hashes_and_leaves_the_registry_open():
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    assert len(packages) > 100
    for name, package in packages.items():
        assert "resolved" not in package and (name == "" or package["integrity"].startswith("sha512-")), name


@pytest.mark.parametrize("client", ["v1", "v2-legacy", "v2-modern", "v2-auto"])
def test_a_session(clients, home, server, client):
    transfers = server.state_dir / "transfers"
    out, err = run(["node", "session.mjs", client, str(transfers), *server.argv("serve")], SESSION_LIMIT, env=home,
                   cwd=clients)
    assert out.endswith(f"{client}: done\n"), out
    assert err == ""


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_flags_no_tool(clients, home, server, era):
    out, err = inspect(clients, home, server, era, "tools/list", "--strict")
    listed = json.loads(out)
    assert "workspace_create" in [tool["name"] for tool in listed["result"]["tools"]]
    assert not listed.get("schemaFindings") and err == "", err


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_calls_a_tool(clients, home, server, era):
    out, err = inspect(clients, home, server, era, "tools/call", "--tool-name", "workspace_list",
                       "--tool-args-json", '{"name_prefix": "nobody"}')
    assert json.loads(out)["result"]["structuredContent"] == {"workspaces": []}
    assert err == ""
