# SPDX-License-Identifier: Apache-2.0
"""The commands but serve: help, configuration errors, check, status, stop, image, mcp-config, daemon."""
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time

import pytest

from conftest import AGENTISO, ROOT, alive, wait_for

COMMANDS = ["serve", "daemon", "check", "status", "logs", "stop", "image", "mcp-config", "netns"]
SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(host, name):
    page = host.run("help", name)
    assert page.returncode == 0 and page.stderr == ""
    lines = page.stdout.splitlines()
    for section in SECTIONS:
        assert section in lines, f"{name} lacks {section}"
    assert lines[1].startswith(f"    agentiso {name} - ")
    assert max(map(len, lines)) <= 112
    assert host.run(name, "--help").stdout == page.stdout


def test_general_help(host):
    page = host.run("--help")
    assert page.returncode == 0
    for name in COMMANDS:
        assert f"    {name} " in page.stdout
    assert host.run("help").stdout == page.stdout
    nothing = host.run()
    assert nothing.returncode == 2


def test_manual_is_in_the_docs(host):
    manual = (ROOT / "docs" / "cli.md").read_text()
    for name in COMMANDS:
        assert host.run("help", name).stdout in manual, f"docs/cli.md is out of date for {name}"


def test_short_help(host):
    assert host.run("-h").stdout == host.run("--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_short_help_of_each_command(host, name):
    answer = host.run(name, "-h")
    assert answer.returncode == 0 and answer.stdout == host.run("help", name).stdout


def test_general_help_says_how_to_begin(host):
    steps = host.run("--help").stdout.partition("FIRST STEPS\n")[2].partition("\n\n")[0]
    for step in ("agentiso image build", "agentiso check", "agentiso mcp-config"):
        assert step in steps


def test_version(host):
    for option in ("--version", "-V"):
        answer = host.run(option)
        assert answer.returncode == 0 and answer.stdout.startswith("agentiso ")


def test_unknown_command(host):
    answer = host.run("statsu")
    assert answer.returncode == 2 and answer.stdout == ""
    assert "unknown command 'statsu'; did you mean 'status'?" in answer.stderr
    assert "did you mean 'help'?" in host.run("hlp").stderr


@pytest.mark.parametrize("args, who", [(["--nonsense"], "agentiso"), (["status", "--nonsense"], "agentiso status"),
                                       (["logs", "-x"], "agentiso logs")])
def test_unknown_option_names_the_command(host, args, who):
    assert host.run(*args).stderr.startswith(f"{who}: ")


@pytest.mark.parametrize("args", [["status", "--nonsense"], ["status", "extra"], ["serve", "extra"], ["image"],
                                  ["image", "paint"], ["image", "list", "x"], ["image", "import", "x"],
                                  ["image", "build", "../x"], ["image", "build", "--json"], ["image", "warm", "x"],
                                  ["image", "warm", "--json"], ["image", "warm", "--vcpus", "0"],
                                  ["image", "warm", "--vcpus", "two"], ["image", "warm", "--memory-mb", "1048577"],
                                  ["image", "warm", "--memory-mb"], ["image", "warm", "--image", "../x"],
                                  ["image", "list", "--vcpus", "2"], ["image", "build", "--image", "x"], ["logs"],
                                  ["logs", "a", "b"], ["logs", "-n", "0", "a"], ["logs", "-n", "many", "a"],
                                  ["mcp-config", "--client", "emacs"], ["--nonsense"], ["help", "nonsense"]])
def test_wrong_usage(host, args):
    answer = host.run(*args)
    assert answer.returncode == 2
    assert answer.stdout == "" and answer.stderr


def test_configuration_error_has_a_position(host):
    path = host.state / "config.toml"
    path.write_text("[vm]\nacel = \"kvm\"\n")
    for args in (["--config", str(path), "status"], ["status", "--config", str(path)]):
        answer = host.run(*args)
        assert answer.returncode == 1
        assert f"{path}:2:1: unknown key 'vm.acel'; did you mean 'vm.accel'?" in answer.stderr
    host.env["AGENTISO_CONFIG"] = str(path)
    assert f"{path}:2:1: " in host.run("daemon").stderr


def test_status_without_daemon(host):
    answer = host.run("status")
    assert answer.returncode == 3 and answer.stdout == ""
    assert "no daemon runs" in answer.stderr
    assert host.daemon_pid() is None
    assert host.run("logs", "x").returncode == 3
    assert host.run("stop").returncode == 3


def test_status_empty(host):
    daemon = host.start_daemon()
    table = host.run("status")
    assert table.returncode == 0
    titles, *state = table.stdout.splitlines()
    assert titles.split() == ["NAME", "ID", "STATE", "CPUS", "MEMORY", "PRIVATE", "SHARED", "DISK", "IP", "UPTIME",
                              "OWNER"]
    answer = json.loads(host.run("status", "--json").stdout)
    pool = answer["pool"]
    assert pool["ready"] == 0, "nothing boots before somebody asks for a workspace"
    assert answer == {"daemon_pid": daemon.pid, "workspaces": [], "pool": pool, "templates": [], "templates_bytes": 0}
    assert state == ["", f"pool: 0 of {pool['wanted']} ready", "templates: 0, 0 B on disk"]


def test_status_asks_an_older_daemon_for_what_it_knows(host):
    """One from before there were templates. It is played here, and knows its tools only."""
    answers = {"initialize": {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {}},
               "tools/call": {"content": [], "structuredContent": {"workspaces": []}}}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host.state / "agentiso.sock"))
        listener.listen()
        status = host.popen("status", "--json", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                request = json.loads(line)
                if "id" not in request:
                    continue
                known = answers.get(request["method"])
                outcome = {"result": known} if known else {"error": {"code": -32601, "message": "Unknown method"}}
                stream.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], **outcome}) + "\n")
                stream.flush()
                if not known:
                    break
            out, _ = status.communicate(timeout=20)
    assert status.returncode == 0 and json.loads(out)["workspaces"] == [] and "pool" not in json.loads(out)


def test_logs_of_nothing(host):
    host.start_daemon()
    answer = host.run("logs", "nobody")
    assert answer.returncode == 1 and answer.stdout == ""
    assert "nobody" in answer.stderr and "agentiso status" in answer.stderr
    assert "workspace_" not in answer.stderr, "tools are nothing for a shell"


def test_status_tells_of_a_daemon_from_before_an_upgrade(host):
    program = host.state / "agentiso"
    shutil.copy(AGENTISO, program)
    host.start_daemon(program)
    assert host.run("status", program=program).stderr == ""
    said = host.run("status").stderr
    assert str(program) in said and "agentiso stop" in said
    program.unlink()
    shutil.copy(AGENTISO, program)
    said = host.run("status", program=program).stderr
    assert "earlier" in said and "agentiso stop" in said and str(host.daemon_pid()) in said


def test_daemon_makes_private_files(host):
    host.env["AGENTISO_STATE_DIR"] = str(host.state / "below")
    host.state = host.state / "below"
    os.umask(0)
    try:
        host.start_daemon()
    finally:
        os.umask(0o022)
    assert stat.S_IMODE(host.state.stat().st_mode) == 0o700
    for path in host.state.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_second_daemon_names_the_first(host):
    first = host.start_daemon()
    second = host.run("daemon")
    assert second.returncode == 1
    assert f"another agentiso daemon (pid {first.pid}) runs" in second.stderr
    assert first.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_daemon_ends_by_signal(host, number):
    daemon = host.start_daemon()
    begin = time.monotonic()
    daemon.send_signal(number)
    assert daemon.wait(5) == 0
    assert time.monotonic() - begin < 2
    assert not (host.state / "agentiso.sock").exists()


def test_daemon_refuses_an_open_directory(host):
    host.state.chmod(0o777)
    answer = host.run("daemon")
    assert answer.returncode == 1
    assert "can be written by others" in answer.stderr and "chmod 700" in answer.stderr


def test_daemon_replaces_a_stale_socket(host):
    host.start_daemon()
    first = host.kill_daemon()
    assert (host.state / "agentiso.sock").exists()
    assert host.start_daemon().pid != first


def test_stop(host):
    daemon = host.start_daemon()
    answer = host.run("stop")
    assert answer.returncode == 0 and answer.stdout == f"daemon {daemon.pid} ended\n"
    assert daemon.wait(5) == 0
    assert host.daemon_pid() is None


def test_stop_all_without_workspaces(host):
    daemon = host.start_daemon()
    assert host.run("stop", "--all").returncode == 0
    assert daemon.wait(5) == 0
    assert host.run("stop", "--all").returncode == 0, "nothing left to stop is no error"


def test_check_names_what_is_missing(host):
    answer = host.run("check", "--json")
    document = json.loads(answer.stdout)
    rows = {row["name"]: row for row in document["checks"]}
    assert answer.returncode == 1 and document["ok"] is False
    assert {row["status"] for row in rows.values()} <= {"ok", "warn", "fail"}
    assert rows["boot files"]["status"] == "fail" and rows["boot files"]["fix"] == "agentiso image build"
    assert rows["base image"]["status"] == "fail" and "debian-dev" in rows["base image"]["reason"]
    assert rows["state directory"]["status"] == "ok"
    assert rows["daemon"]["status"] == "ok" and "none runs" in rows["daemon"]["reason"]
    for row in rows.values():
        assert row["reason"] and "\n" not in row["reason"]
        if row["status"] != "ok":
            assert row["fix"]
    assert host.daemon_pid() is None, "check starts no daemon"


def test_check_lines(host):
    host.start_daemon()
    lines = host.run("check").stdout.splitlines()
    findings = [line for line in lines if not line.startswith(" ")]
    assert len(findings) == 18
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in findings)
    assert findings[-1].endswith(f"pid {host.daemon_pid()}")


def test_check_reports_a_missing_program(host):
    path = host.state / "config.toml"
    path.write_text("[vm]\nqemu = \"/nonexistent/qemu\"\n")
    answer = host.run("--config", str(path), "check", "--json")
    rows = {row["name"]: row for row in json.loads(answer.stdout)["checks"]}
    assert answer.returncode == 1
    assert rows["qemu"]["status"] == "fail" and "/nonexistent/qemu" in rows["qemu"]["reason"]
    assert rows["qemu"]["fix"].endswith("apt-get install qemu-system-x86")
    assert rows["accelerator"]["status"] == "fail"


def test_check_reports_a_broken_configuration(host):
    path = host.state / "config.toml"
    path.write_text("[vm\n")
    answer = host.run("--config", str(path), "check")
    assert answer.returncode == 1
    assert answer.stdout.startswith("fail  configuration") and f"{path}:" in answer.stdout


def test_image_list_empty(host):
    answer = host.run("image", "list")
    assert answer.returncode == 0 and answer.stdout == ""
    assert "agentiso image build" in answer.stderr
    assert json.loads(host.run("image", "list", "--json").stdout) == {"images": []}


def test_image_list_asks_a_daemon_for_the_templates(host):
    host.start_daemon()
    assert json.loads(host.run("image", "list", "--json").stdout) == {"images": [], "templates": []}
    assert host.run("image", "list").stdout == "", "no table of nothing"


def test_image_warm_starts_a_daemon(host):
    """Without an image it fails there; tests/integration has it done."""
    answer = host.run("image", "warm")
    assert answer.returncode == 1 and answer.stdout == ""
    assert answer.stderr.startswith("agentiso: ") and "\033" not in answer.stderr, "progress is for terminals"
    first = host.daemon_pid()
    assert first, "it stays, as one that serve has started"
    assert host.run("image", "warm", "--image", "none-such", "--vcpus", "1", "--memory-mb", "256").returncode == 1
    assert host.daemon_pid() == first


def test_image_warm_shows_progress_on_a_terminal(host):
    ours, theirs = os.openpty()
    child = host.popen("image", "warm", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while data := os.read(ours, 4096):
            shown += data
    os.close(ours)
    assert child.wait(20) == 1
    progress, _, error = shown.rpartition(b"\r\033[K")
    assert b"making templates" in progress and error.startswith(b"agentiso: ")
    assert b"agentiso/" not in progress


def test_image_warm_without_templates(host):
    path = host.state / "config.toml"
    path.write_text("[templates]\nmax_gb = 0\n")
    answer = host.run("--config", str(path), "image", "warm")
    assert answer.returncode == 1 and "templates.max_gb" in answer.stderr
    assert host.daemon_pid(), "the daemon that it started has read the same configuration"


def test_image_warm_tells_why_no_daemon_starts(host):
    host.state.chmod(0o777)
    answer = host.run("image", "warm")
    assert answer.returncode == 1 and "can be written by others" in answer.stderr
    host.state.chmod(0o700)
    (host.state / "agentiso.sock").mkdir()
    answer = host.run("image", "warm")
    assert answer.returncode == 1 and "agentiso.sock" in answer.stderr


def test_image_warm_many_at_once_start_one_daemon(host):
    children = [host.popen("image", "warm", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for child in children:
        _, err = child.communicate(timeout=60)
        assert child.returncode == 1 and "cannot be started" not in err, err
    assert host.daemon_pid()


def fake_recipes(host, script):
    recipes = host.state / "recipes"
    recipes.mkdir()
    for name in ("build-boot", "build-image", "import-image"):
        (recipes / name).write_text(f"#!/bin/sh\n{script}")
        (recipes / name).chmod(0o755)
    host.env["AGENTISO_IMAGES_DIR"] = str(recipes)
    # The guest agent is looked for beside the program.
    program = shutil.copy(AGENTISO, host.state / "agentiso")
    (host.state / "agentiso-guest").touch()
    return lambda *args: host.run(*args, program=program, cwd=host.state)


def test_image_build_runs_the_recipes(host):
    run = fake_recipes(host, 'echo "${0##*/} $*"')
    answer = run("image", "build")
    assert answer.returncode == 0, answer.stderr
    boot, image = answer.stdout.splitlines()
    images = host.env["AGENTISO_IMAGE_DIR"]
    assert boot == f"build-boot {images} {host.state}/agentiso-guest"
    assert image == f"build-image {images} debian-dev"
    assert run("image", "build", "other").stdout.splitlines()[1] == f"build-image {images} other"

    archive = host.state / "a.tar"
    archive.write_text("")
    answer = run("image", "import", "alpine", "a.tar")
    assert answer.stdout.splitlines()[1] == f"import-image {images} alpine {archive}"
    assert run("image", "import", "alpine", "missing.tar").returncode == 1


def test_image_build_fails_with_the_recipe(host):
    run = fake_recipes(host, "echo no network >&2; exit 7")
    answer = run("image", "build")
    assert answer.returncode == 1
    assert "no network" in answer.stderr and "build-boot failed with exit code 7" in answer.stderr


def test_mcp_config(host):
    answer = json.loads(host.run("mcp-config").stdout)
    server = answer["mcpServers"]["agentiso"]
    assert os.path.isabs(server["command"]) and server["args"] == ["serve"]
    config = host.state / "it's.toml"
    config.write_text("")
    opencode = json.loads(host.run("--config", str(config), "mcp-config", "--client", "opencode").stdout)
    assert opencode["mcp"]["agentiso"]["command"] == [server["command"], "--config", str(config), "serve"]
    for client in ("claude", "gemini"):
        line = host.run("--config", str(config), "mcp-config", "--client", client).stdout
        words = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
        assert words.stdout.splitlines()[-3:] == ["--config", str(config), "serve"]
    codex = host.run("mcp-config", "--client", "codex").stdout
    assert codex == f'[mcp_servers.agentiso]\ncommand = "{server["command"]}"\nargs = ["serve"]\n'


def test_output_to_a_full_device(host):
    with open("/dev/full", "w", encoding="utf-8") as full:
        answer = subprocess.run([AGENTISO, "--help"], stdout=full, stderr=subprocess.PIPE, text=True,
                                env=host.env, timeout=10)
    assert answer.returncode == 1 and "No space left" in answer.stderr


def test_daemon_survives_a_client_that_says_nothing(host):
    daemon = host.start_daemon()
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(host.state / "agentiso.sock"))
        assert host.run("status").returncode == 0
    wait_for(lambda: alive(daemon.pid))
    assert host.run("status").returncode == 0
