# SPDX-License-Identifier: Apache-2.0
"""One command in many workspaces at once."""

import time

import pytest
from conftest import wait_until
from mcp_client import ToolError


def run(client, ws, command, **options):
    return client.call("exec", workspace_id=ws, command=command, **options)


@pytest.fixture(scope="module")
def three(shared_client):
    return [shared_client.call("workspace_create", name=f"p{n}", vcpus=1, memory_mb=256)["workspace_id"]
            for n in range(3)]


def test_one_command_for_all(shared_client, three):
    result = shared_client.call("exec_parallel", workspace_ids=three, commands="hostname; exit 0")
    assert [r["workspace_id"] for r in result["results"]] == three
    assert [r["stdout"] for r in result["results"]] == ["p0\n", "p1\n", "p2\n"]
    assert [r["workspace_name"] for r in result["results"]] == ["p0", "p1", "p2"]
    assert {k: result["summary"][k] for k in ("total", "succeeded", "failed", "timed_out")} == \
        {"total": 3, "succeeded": 3, "failed": 0, "timed_out": 0}


def test_a_command_each_and_one_that_fails(shared_client, three):
    result = shared_client.call("exec_parallel", workspace_ids=["p0", three[1], "p2"], timeout_secs=3,
                                commands=["echo a", "echo b >&2; exit 3", "echo c; sleep 600"], env={"X": "y"})
    first, second, third = result["results"]
    assert (first["exit_code"], first["stdout"]) == (0, "a\n")
    assert (second["exit_code"], second["stderr"]) == (3, "b\n")
    assert third["timed_out"] is True and third["stdout"] == "c\n"
    assert {k: result["summary"][k] for k in ("total", "succeeded", "failed", "timed_out")} == \
        {"total": 3, "succeeded": 1, "failed": 2, "timed_out": 1}


def test_they_run_at_the_same_time(shared_client, three):
    result = shared_client.call("exec_parallel", workspace_ids=three, commands="sleep 5", timeout_secs=60)
    # One after the other, they would take the sum of their times at least, on a machine of any speed.
    elapsed = result["summary"]["elapsed_ms"]
    assert 5000 <= elapsed < sum(r["duration_ms"] for r in result["results"])


def test_all_are_checked_before_any_starts(shared_client, three):
    for wrong, code in (([three[0], "nobody"], "not_found"), ([three[0], three[0]], "invalid_argument")):
        with pytest.raises(ToolError) as caught:
            shared_client.call("exec_parallel", workspace_ids=wrong, commands="touch /tmp/ran")
        assert caught.value.code == code
    shared_client.call("workspace_stop", workspace_id=three[2])
    with pytest.raises(ToolError) as caught:
        shared_client.call("exec_parallel", workspace_ids=three, commands="touch /tmp/ran")
    assert caught.value.code == "not_running" and "p2" in caught.value.text
    shared_client.call("workspace_start", workspace_id=three[2])
    with pytest.raises(ToolError) as caught:
        shared_client.call("exec_parallel", workspace_ids=three, commands=["touch /tmp/ran", "true"])
    assert caught.value.code == "invalid_argument" and "commands" in caught.value.text
    for ws in three:
        assert run(shared_client, ws, "test -e /tmp/ran")["exit_code"] == 1


def test_a_strangers_workspace_is_refused(shared_host, shared_client, three):
    other = shared_host.client()
    theirs = other.call("workspace_create", name="theirs", vcpus=1, memory_mb=256)["workspace_id"]
    with pytest.raises(ToolError) as caught:
        shared_client.call("exec_parallel", workspace_ids=[three[0], theirs], commands="touch /tmp/ran2")
    assert caught.value.code == "not_owner"
    assert run(shared_client, three[0], "test -e /tmp/ran2")["exit_code"] == 1


def test_a_cancel_kills_in_all(shared_client, three):
    request_id, answer = shared_client.start("tools/call", {"name": "exec_parallel", "arguments": {
        "workspace_ids": three, "commands": "touch /tmp/up; sleep 5533"}})
    for ws in three:
        wait_until(lambda ws=ws: run(shared_client, ws, "test -e /tmp/up")["exit_code"] == 0)
    shared_client.notify("notifications/cancelled", {"requestId": request_id})
    began = time.monotonic()
    for ws in three:
        wait_until(lambda ws=ws: run(shared_client, ws, "pgrep -f 'sleep 553[3]'")["exit_code"] == 1)
    assert time.monotonic() - began < 15 and answer.empty()
