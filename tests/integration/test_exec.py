# SPDX-License-Identifier: Apache-2.0
"""Commands in a real VM: output, ends, limits."""

import concurrent.futures
import time

import pytest
from mcp_client import ToolError

MIB = 1024 * 1024


def run(client, ws, command, **options):
    return client.call("exec", workspace_id=ws, command=command, **options)


def test_streams_are_apart_and_the_exit_code_is_told(shared_client, workspace):
    result = run(shared_client, workspace, "echo out; echo err >&2; exit 7")
    assert (result["stdout"], result["stderr"], result["exit_code"]) == ("out\n", "err\n", 7)
    assert result["timed_out"] is False and result["truncated"] is False
    assert (result["stdout_bytes"], result["stderr_bytes"]) == (4, 4)


def test_environment_workdir_and_stdin(shared_client, workspace):
    result = run(shared_client, workspace, 'pwd; echo "$COLOUR"; cat', workdir="/usr/lib",
                 env={"COLOUR": "deep blue $HOME"}, stdin="line one\nline two\n")
    assert result["stdout"] == "/usr/lib\ndeep blue $HOME\nline one\nline two\n"


def test_defaults_of_the_environment(shared_client, workspace):
    result = run(shared_client, workspace, "id -un; echo $HOME; echo $LANG; python3 -c 'print(\"ü\")'; cat")
    assert result["stdout"] == "root\n/root\nC.UTF-8\nü\n"


@pytest.mark.parametrize("name", ["PATH", "IFS", "ENV", "BASH_ENV", "LD_PRELOAD", "LD_LIBRARY_PATH"])
def test_dangerous_variables_are_refused(shared_client, workspace, name):
    with pytest.raises(ToolError) as caught:
        run(shared_client, workspace, "true", env={name: "x"})
    assert caught.value.code == "invalid_argument" and name in caught.value.text


def test_a_missing_workdir_is_named_and_nothing_runs(shared_client, workspace):
    with pytest.raises(ToolError) as caught:
        run(shared_client, workspace, "touch /tmp/ran", workdir="/no/such/dir")
    assert caught.value.code == "invalid_argument" and "/no/such/dir" in caught.value.text
    assert run(shared_client, workspace, "test -e /tmp/ran")["exit_code"] == 1


def test_eight_mebibytes_on_both_streams(shared_client, workspace):
    script = ("import sys, threading\n"
              "def w(f, c):\n"
              "    for i in range(128): f.write(c * 65536)\n"
              "    f.flush()\n"
              "t = threading.Thread(target=w, args=(sys.stderr, 'e')); t.start()\n"
              "w(sys.stdout, 'o'); t.join()\n")
    result = run(shared_client, workspace, "python3 -", stdin=script)
    assert result["exit_code"] == 0
    assert result["stdout_bytes"] == 8 * MIB and result["stderr_bytes"] == 8 * MIB
    assert result["truncated"] is True
    for stream, letter in (("stdout", "o"), ("stderr", "e")):
        assert result[stream].startswith(letter * 1000) and result[stream].endswith(letter * 1000)
        assert len(result[stream]) < MIB


def test_head_and_tail_are_kept_and_the_cut_is_counted(shared_client, workspace):
    result = run(shared_client, workspace, "seq 1 100000", max_output_bytes=1000)
    assert result["truncated"] is True
    assert result["stdout"].startswith("1\n2\n3\n") and result["stdout"].endswith("99999\n100000\n")
    missing = result["stdout_bytes"] - 1000
    assert str(missing) in result["stdout"].replace(",", "")


def test_a_background_child_that_holds_stdout_does_not_hold_the_call(shared_client, workspace):
    began = time.monotonic()
    result = run(shared_client, workspace, "sleep 300 & echo $!", timeout_secs=60)
    assert time.monotonic() - began < 30
    assert result["exit_code"] == 0 and result["timed_out"] is False
    pid = result["stdout"].strip()
    # It was started on purpose: it lives on.
    assert run(shared_client, workspace, f"kill -0 {pid} && kill {pid}")["exit_code"] == 0


def test_a_background_child_may_go_on_writing(shared_client, workspace):
    result = run(shared_client, workspace,
                 "(i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo tick $i; sleep 0.05; done; touch /tmp/lived) & echo started")
    assert result["exit_code"] == 0 and result["stdout"].startswith("started\n")
    assert run(shared_client, workspace,
               "for i in $(seq 200); do test -e /tmp/lived && exit 0; sleep 0.1; done; exit 1")["exit_code"] == 0


def test_a_timeout_kills_everything_and_returns_what_was_printed(shared_client, workspace):
    result = run(shared_client, workspace,
                 "echo partial; (setsid sleep 7777 &); sh -c 'trap \"\" TERM; sleep 7777' & sleep 7777",
                 timeout_secs=2)
    assert result["timed_out"] is True and result["stdout"] == "partial\n"
    assert 1900 <= result["duration_ms"] < 20000
    assert run(shared_client, workspace, "pgrep -f 'sleep 777[7]'")["exit_code"] == 1


def test_an_end_by_signal_is_told(shared_client, workspace):
    result = run(shared_client, workspace, "kill -SEGV $$")
    assert result["signal"] in (11, "SIGSEGV", "SEGV") and result["exit_code"] != 0


def test_output_that_is_no_text_is_valid_json_and_marked(shared_client, workspace):
    result = run(shared_client, workspace, r"printf 'a\xff\xfeb\000c\n'")
    assert result["exit_code"] == 0 and result["stdout_bytes"] == 7
    assert result["stdout"].startswith("a�") and result["stdout"].endswith("c\n")


def test_fifty_at_once(shared_client, workspace):
    def one(number):
        result = run(shared_client, workspace, f"echo {number}; sleep 1; echo {number} >&2; exit {number}")
        return result["stdout"], result["stderr"], result["exit_code"]

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        results = list(pool.map(one, range(50)))
    assert results == [(f"{n}\n", f"{n}\n", n) for n in range(50)]


def test_a_cancelled_command_is_killed_and_gets_no_response(shared_client, workspace):
    request_id, answer = shared_client.start("tools/call", {"name": "exec", "arguments": {
        "workspace_id": workspace, "command": "touch /tmp/cancel-began; sleep 8888"}})
    assert run(shared_client, workspace,
               "for i in $(seq 100); do test -e /tmp/cancel-began && exit 0; sleep 0.1; done; exit 1")["exit_code"] == 0
    shared_client.notify("notifications/cancelled", {"requestId": request_id, "reason": "test"})
    assert run(shared_client, workspace,
               "for i in $(seq 50); do pgrep -f 'sleep 888[8]' >/dev/null || exit 0; sleep 0.1; done; exit 1")["exit_code"] == 0
    assert answer.empty()


def test_progress_comes_when_a_token_is_given(shared_client, workspace):
    shared_client.notifications.clear()
    shared_client.request("tools/call", {"name": "exec", "_meta": {"progressToken": "p-1"}, "arguments": {
        "workspace_id": workspace, "command": "sleep 1"}})
    beats = [n["params"] for n in shared_client.notifications if n["method"] == "notifications/progress"]
    assert beats and all(b["progressToken"] == "p-1" for b in beats)
    values = [b["progress"] for b in beats]
    assert values == sorted(set(values))


def test_orphans_leave_no_zombies(shared_client, workspace):
    run(shared_client, workspace, "for i in $(seq 200); do (sh -c 'sleep 0.1 &' &); done")
    assert run(shared_client, workspace,
               "for i in $(seq 50); do ps -eo stat= | grep -q Z || exit 0; sleep 0.1; done; ps -ef; exit 1")["exit_code"] == 0


def test_a_long_command_line(shared_client, workspace):
    result = run(shared_client, workspace, "printf %s " + "x" * 100_000 + " | wc -c")
    assert result["stdout"].strip() == "100000"
