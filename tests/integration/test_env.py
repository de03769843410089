# SPDX-License-Identifier: Apache-2.0
"""Variables for all commands of a workspace, which hold secrets: where they are, and where they are not."""

import pathlib
import subprocess

import pytest
from mcp_client import ToolError

SECRET = "sk-0f8d2b91c7a64e35-not-for-disks"


def run(client, ws, command, **options):
    return client.call("exec", workspace_id=ws, command=command, **options)


def set_env(client, ws, variables, **options):
    return client.call("set_env", workspace_id=ws, vars=variables, **options)


def test_variables_are_there_for_all_later_commands(shared_client, workspace):
    result = set_env(shared_client, workspace, {"ONE": "1", "TWO": "two words"})
    assert result["count"] == 2 and result["status"] == "set"
    assert run(shared_client, workspace, 'echo "$ONE $TWO"')["stdout"] == "1 two words\n"
    assert run(shared_client, workspace, 'echo "$ONE $TWO"', env={"ONE": "own"})["stdout"] == "own two words\n"
    set_env(shared_client, workspace, {"ONE": "changed"})
    job = shared_client.call("exec_background", workspace_id=workspace, action="start", command='echo "$ONE $TWO"')
    news = shared_client.call("exec_background", workspace_id=workspace, action="poll", job_id=job["job_id"], wait_secs=20)
    assert news["stdout"] == "changed two words\n"
    set_env(shared_client, workspace, {"THREE": "3"}, unset=["TWO"])
    assert run(shared_client, workspace, 'echo "${TWO-gone} $THREE"')["stdout"] == "gone 3\n"


@pytest.mark.parametrize("name", ["PATH", "IFS", "ENV", "BASH_ENV", "LD_PRELOAD", "9LIVES", "A-B", ""])
def test_a_refused_name_sets_nothing(shared_client, workspace, name):
    with pytest.raises(ToolError) as caught:
        set_env(shared_client, workspace, {"GOOD": "x", name: SECRET})
    assert caught.value.code == "invalid_argument" and SECRET not in caught.value.text
    assert run(shared_client, workspace, 'echo "${GOOD-unset}"')["stdout"] == "unset\n"


def files_with(directory, needle):
    """Files that hold the text, disks included; sparse files are read as they are."""
    found = subprocess.run(["grep", "-rlaF", "--", needle, str(directory)], capture_output=True, text=True, timeout=300,
                           check=False)
    return found.stdout.split()


def processes_with(needle):
    """Processes of this host, other than the tests' own, that show the text in their command line or environment."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        for what in ("cmdline", "environ"):
            try:
                if needle.encode() in (entry / what).read_bytes():
                    found.append(f"{entry.name}/{what}")
            except OSError:
                pass
    return found


def test_a_secret_is_nowhere_but_in_the_guests_memory(host):
    (host.config).write_text(host.config.read_text() + '\n[log]\nlevel = "debug"\n')
    client = host.client()
    ws = client.call("workspace_create", name="vault")["workspace_id"]
    set_env(client, ws, {"API_KEY": SECRET})
    # One in a single command's own env, one in a refused call, one in a job.
    assert run(client, ws, 'test -n "$API_KEY" && test -n "$OTHER"', env={"OTHER": SECRET})["exit_code"] == 0
    with pytest.raises(ToolError):
        set_env(client, ws, {"LD_X": SECRET})
    client.call("exec_background", workspace_id=ws, action="start", command="sleep 600", env={"OTHER": SECRET})
    run(client, ws, "sync")
    assert processes_with(SECRET) == []
    assert files_with(host.state_dir, SECRET) == []
    # A restart of the daemon keeps it, as it is the guest that holds it; a restart of the machine does not.
    host.kill_daemon()
    client = host.client()
    assert run(client, ws, 'echo "$API_KEY"')["stdout"].strip() == SECRET
    client.call("workspace_stop", workspace_id=ws)
    assert files_with(host.state_dir, SECRET) == []
    client.call("workspace_start", workspace_id=ws)
    assert run(client, ws, 'echo "${API_KEY-gone}"')["stdout"] == "gone\n"
