# SPDX-License-Identifier: Apache-2.0
"""Jobs in a real VM: commands that run without anybody waiting, and commands that became such."""

import re
import time

import pytest
from conftest import wait_until
from mcp_client import ToolError

MIB = 1024 * 1024


class Job:
    """A job as a client follows it: what came so far, and the offsets to go on from."""

    def __init__(self, client, ws, job_id):
        self.client, self.ws, self.job_id = client, ws, job_id
        self.out = self.err = ""
        self.offsets = {"stdout_offset": 0, "stderr_offset": 0}

    def call(self, action, **options):
        return self.client.call("exec_background", workspace_id=self.ws, action=action, job_id=self.job_id, **options)

    def poll(self, wait_secs=0, **options):
        news = self.call("poll", wait_secs=wait_secs, **self.offsets, **options)
        self.out += news["stdout"]
        self.err += news["stderr"]
        self.offsets = {key: news[key] for key in self.offsets}
        return news

    def wait_end(self, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            news = self.poll(wait_secs=5)
            if not news["running"] and news["stdout_offset"] == news["stdout_bytes"] \
                    and news["stderr_offset"] == news["stderr_bytes"]:
                return news
        raise AssertionError(f"job {self.job_id} did not end in {seconds} s; so far: {self.out!r}")

    def wait_for(self, pattern, seconds=60):
        """Reads on until the output matches; what came before the match is dropped."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = re.search(pattern, self.out)
            if found:
                self.out = self.out[found.end():]
                return found
            self.poll(wait_secs=2)
        raise AssertionError(f"{pattern!r} did not come in {seconds} s; so far: {self.out!r}")

    def write(self, data, **options):
        return self.call("write", data=data, **options)


def start(client, ws, command, **options):
    started = client.call("exec_background", workspace_id=ws, action="start", command=command, **options)
    assert started["status"] == "started"
    return Job(client, ws, started["job_id"])


def run(client, ws, command, **options):
    return client.call("exec", workspace_id=ws, command=command, **options)


@pytest.fixture(scope="module", autouse=True)
def unlimited(shared_client, workspace):
    """A command without timeout_secs, begun before all other tests of the module: see the last one."""
    began = time.monotonic()
    _, answer = shared_client.start("tools/call", {"name": "exec", "arguments": {
        "workspace_id": workspace, "command": "echo early; while [ ! -e /tmp/unlimited ]; do sleep 0.2; done; echo late"}})
    return began, answer


def test_a_job_is_started_followed_and_ends(shared_client, workspace):
    job = start(shared_client, workspace, "echo one; echo oops >&2; read line; echo \"got $line\"; exit 3",
                workdir="/usr/lib", env={"A": "b"})
    job.wait_for("one\n")
    first = job.poll()
    assert first["job_id"] == job.job_id and first["running"] is True and first["exit_code"] is None
    assert job.write("hello\n")["bytes_written"] == 6
    last = job.wait_end()
    assert last["running"] is False and last["exit_code"] == 3
    assert job.out == "got hello\n" and job.err == "oops\n"


def test_environment_and_workdir(shared_client, workspace):
    job = start(shared_client, workspace, 'pwd; echo "$COLOUR"', workdir="/usr/lib", env={"COLOUR": "blue"})
    job.wait_end()
    assert job.out == "/usr/lib\nblue\n"


def test_a_poll_waits_for_news_and_not_longer(shared_client, workspace):
    job = start(shared_client, workspace, "read a; echo answer; read b")
    began = time.monotonic()
    assert job.poll(wait_secs=1)["stdout"] == "" and time.monotonic() - began >= 1
    _, waiting = shared_client.start("tools/call", {"name": "exec_background", "arguments": {
        "workspace_id": workspace, "action": "poll", "job_id": job.job_id, "wait_secs": 50, "stdout_offset": 0,
        "stderr_offset": 0}})
    job.write("go\n")
    # Far less than the 50 seconds: the news ended the wait.
    assert waiting.get(timeout=30)["result"]["structuredContent"]["stdout"] == "answer\n"
    job.call("kill")
    assert job.wait_end()["exit_code"] == 137


def test_a_poll_without_offsets_gives_all_again(shared_client, workspace):
    job = start(shared_client, workspace, "echo first; read x; echo second")
    job.wait_for("first")
    again = [job.call("poll")["stdout"] for _ in range(2)]
    assert again == ["first\n", "first\n"]
    job.write("x\n")
    job.wait_end()
    assert job.call("poll")["stdout"] == "first\nsecond\n"


def test_a_kill_reaches_the_whole_tree(shared_client, workspace):
    job = start(shared_client, workspace,
                "(setsid sleep 6611 &); sh -c 'trap \"\" TERM INT HUP; sleep 6611' & echo up; sleep 6611")
    job.wait_for("up\n")
    killed = job.call("kill")
    assert killed["status"] == "killed" and killed["signal"] == 9
    ended = job.wait_end()
    assert ended["exit_code"] == 137 and ended["signal"] == 9 and ended["signal_name"] == "SIGKILL"
    assert run(shared_client, workspace, "pgrep -f 'sleep 661[1]'")["exit_code"] == 1


def test_a_signal_can_be_chosen_and_is_named(shared_client, workspace):
    job = start(shared_client, workspace, "trap 'echo caught; exit 5' USR1; echo up; while :; do sleep 0.1; done")
    job.wait_for("up\n")
    job.call("kill", signal=10)
    assert job.wait_end()["exit_code"] == 5 and "caught" in job.out
    job = start(shared_client, workspace, "exec sleep 600")
    job.call("kill", signal=15)
    ended = job.wait_end()
    assert ended["exit_code"] == 143 and ended["signal_name"] == "SIGTERM"


def test_closing_the_input_ends_a_reader(shared_client, workspace):
    job = start(shared_client, workspace, "wc -l")
    job.write("a\nb\n")
    job.write("c\n", eof=True)
    job.wait_end()
    assert job.out == "3\n"
    with pytest.raises(ToolError) as caught:
        job.write("more")
    assert caught.value.code in ("conflict", "not_running", "invalid_argument")


def test_a_job_that_does_not_read_does_not_hold_a_write(shared_client, workspace):
    job = start(shared_client, workspace, "sleep 600")
    result = job.write("x" * 300_000)
    assert 0 < result["bytes_written"] < 300_000 and result["complete"] is False
    job.call("kill")


def test_three_hundred_mebibytes_of_output_neither_stop_nor_fill_the_guest(shared_client, workspace):
    before = int(run(shared_client, workspace, "awk '/MemAvailable/ {print $2}' /proc/meminfo")["stdout"])
    job = start(shared_client, workspace, f"seq 1 10000000 | head -c {300 * MIB - 4}; yes | head -c {300 * MIB}; echo end")
    last = job.wait_end(400)
    after = int(run(shared_client, workspace, "awk '/MemAvailable/ {print $2}' /proc/meminfo")["stdout"])
    assert last["exit_code"] == 0 and last["stdout_bytes"] > 300 * MIB
    assert before - after < 20 * 1024, "the guest's memory must not hold the output"
    whole = job.call("poll")
    assert whole["stdout"].startswith("1\n2\n3\n") and whole["stdout"].endswith("y\nend\n") and whole["truncated"]
    assert "bytes cut" in whole["stdout"]


def test_jobs_are_listed(shared_client, workspace):
    running = start(shared_client, workspace, "echo listed-running; sleep 600")
    ended = start(shared_client, workspace, "echo listed-ended; exit 4")
    ended.wait_end()
    listed = shared_client.call("exec_background", workspace_id=workspace, action="list")
    jobs = {j["job_id"]: j for j in listed["jobs"]}
    assert jobs[running.job_id]["running"] is True and jobs[running.job_id]["exit_code"] is None
    assert jobs[ended.job_id]["running"] is False and jobs[ended.job_id]["exit_code"] == 4
    assert jobs[ended.job_id]["command"] == "echo listed-ended; exit 4"
    assert re.match(r"\d{4}-\d\d-\d\dT", jobs[ended.job_id]["started_at"])
    running.call("kill")


def test_an_exec_that_ended_is_not_listed(shared_client, workspace):
    run(shared_client, workspace, "echo never-a-job")
    listed = shared_client.call("exec_background", workspace_id=workspace, action="list")["jobs"]
    assert not [j for j in listed if "never-a-job" in j["command"]]


@pytest.mark.parametrize("action", ["poll", "kill", "write", "resize"])
def test_an_unknown_job_is_named(shared_client, workspace, action):
    options = {"write": {"data": "x"}, "resize": {"cols": 80, "rows": 24}}.get(action, {})
    with pytest.raises(ToolError) as caught:
        shared_client.call("exec_background", workspace_id=workspace, action=action, job_id=424242, **options)
    assert caught.value.code == "not_found" and "424242" in caught.value.text and "list" in caught.value.text


@pytest.mark.parametrize("action, missing", [
    ("start", "command"), ("poll", "job_id"), ("kill", "job_id"), ("write", "job_id"), ("resize", "cols")])
def test_what_an_action_needs_is_named(shared_client, workspace, action, missing):
    with pytest.raises(ToolError) as caught:
        shared_client.call("exec_background", workspace_id=workspace, action=action,
                           **({"job_id": 1} if missing == "cols" else {}))
    assert caught.value.code == "invalid_argument" and missing in caught.value.text


def test_characters_are_not_torn_between_polls(shared_client, workspace):
    job = start(shared_client, workspace, r"printf 'a\xc3'; read x; printf '\xa4b'; read x; printf '\xc3'")
    job.wait_for("a")
    job.write("\n")
    job.wait_for("äb")
    job.write("\n")
    job.wait_end()
    # It never became a character: shown as one that is invalid, once the job has ended.
    assert job.out == "�"


def test_a_python_prompt_on_a_terminal(shared_client, workspace):
    job = start(shared_client, workspace, "python3 -i", pty=True)
    job.wait_for(r">>> ")
    job.write("import os; print(os.isatty(0), os.isatty(1), 6 * 7)\r")
    job.wait_for(r"True True 42")
    job.wait_for(r">>> ")
    job.write("import os; print(os.get_terminal_size())\r")
    job.wait_for(r"columns=80, lines=24")
    job.call("resize", cols=132, rows=50)
    job.write("print(os.get_terminal_size())\r")
    job.wait_for(r"columns=132, lines=50")
    # Ctrl-C interrupts what runs, not the prompt.
    job.write("while True: pass\r\r")
    job.wait_for(r"\.\.\. ")
    job.write("\x03")
    job.wait_for(r"KeyboardInterrupt")
    job.write("exit(7)\r")
    assert job.wait_end()["exit_code"] == 7


def test_vim_on_a_terminal(shared_client, workspace):
    job = start(shared_client, workspace, "vim /tmp/edited.txt", pty=True, cols=100, rows=30)
    job.wait_for(r"edited\.txt")
    job.write("ifirst line\rsecond line\x1b")
    job.wait_for(r"second line")
    job.write(":1s/first/changed/\r:wq\r")
    assert job.wait_end()["exit_code"] == 0
    assert shared_client.call("file_read", workspace_id=workspace, path="/tmp/edited.txt") == \
        "changed line\nsecond line\n"


def test_top_on_a_terminal(shared_client, workspace):
    job = start(shared_client, workspace, "top -d 1", pty=True, cols=90, rows=20)
    job.wait_for(r"load average")
    job.wait_for(r"PID")
    job.wait_for(r"load average")
    job.write("q")
    assert job.wait_end()["exit_code"] == 0


def test_the_end_of_file_on_a_terminal(shared_client, workspace):
    job = start(shared_client, workspace, "cat; echo done", pty=True)
    job.write("typed\n")
    job.wait_for(r"typed\r\ntyped\r\n")
    job.write("", eof=True)
    job.wait_end()
    assert "done" in job.out


def test_a_resize_needs_a_terminal(shared_client, workspace):
    job = start(shared_client, workspace, "sleep 600")
    with pytest.raises(ToolError) as caught:
        job.call("resize", cols=80, rows=24)
    assert "pty" in caught.value.text
    job.call("kill")


def test_colours_are_left_alone_unless_asked(shared_client, workspace):
    command = r"printf '\033[1;31mred\033[0m \033]0;title\007plain\n'"
    assert run(shared_client, workspace, command)["stdout"] == "\x1b[1;31mred\x1b[0m \x1b]0;title\x07plain\n"
    assert run(shared_client, workspace, command, strip_ansi=True)["stdout"] == "red plain\n"


def test_an_exec_yields_and_goes_on_as_a_job(shared_client, workspace):
    result = run(shared_client, workspace, "echo before; cat; sleep 4; echo after; exit 9", yield_secs=2, stdin="input\n")
    assert result["running"] is True and result["exit_code"] is None and result["timed_out"] is False
    assert result["stdout"] == "before\ninput\n"
    job = Job(shared_client, workspace, result["job_id"])
    job.offsets = {key: result[key] for key in ("stdout_offset", "stderr_offset")}
    assert job.wait_end()["exit_code"] == 9
    assert job.out == "after\n"


def test_a_timeout_goes_on_to_count_after_the_yield(shared_client, workspace):
    result = run(shared_client, workspace, "echo up; sleep 6622", yield_secs=1, timeout_secs=3)
    job = Job(shared_client, workspace, result["job_id"])
    ended = job.wait_end(30)
    assert ended["timed_out"] is True
    assert run(shared_client, workspace, "pgrep -f 'sleep 662[2]'")["exit_code"] == 1


def test_a_large_input_is_given_whole_also_to_one_that_does_not_read(shared_client, workspace):
    text = "0123456789abcde\n" * (8 * MIB // 16)
    assert run(shared_client, workspace, "sleep 1; wc -c", stdin=text)["stdout"].strip() == str(8 * MIB)
    assert run(shared_client, workspace, "echo ignored", stdin=text)["stdout"] == "ignored\n"
    # It yields, and what it has not read yet is still there for it.
    result = run(shared_client, workspace, "sleep 3; md5sum", stdin=text, yield_secs=1)
    job = Job(shared_client, workspace, result["job_id"])
    job.wait_end()
    import hashlib
    assert job.out.split()[0] == hashlib.md5(text.encode()).hexdigest()


def test_the_newest_line_is_told_while_a_command_runs(shared_client, workspace):
    shared_client.notifications.clear()
    shared_client.request("tools/call", {"name": "exec", "_meta": {"progressToken": "line"}, "arguments": {
        "workspace_id": workspace, "timeout_secs": 60,
        "command": "for i in $(seq 12); do echo \"compiling part $i\"; sleep 1; done"}})
    beats = [n["params"]["message"] for n in shared_client.notifications if n["method"] == "notifications/progress"]
    assert [b for b in beats if "compiling part" in b], beats


def test_jobs_survive_the_daemon_and_are_read_by_another_client(host):
    first = host.client()
    ws = first.call("workspace_create", name="kept")["workspace_id"]
    job = start(first, ws, "echo before; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo after; exit 6")
    job.wait_for("before\n")
    # A command that somebody waits for: the daemon is killed under it.
    first.start("tools/call", {"name": "exec", "arguments": {
        "workspace_id": ws, "command": "echo waited-for > /tmp/began; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo kept output"}})
    wait_until(lambda: run(first, ws, "test -e /tmp/began")["exit_code"] == 0)
    host.kill_daemon()

    second = host.client()
    jobs = second.call("exec_background", workspace_id="kept", action="list")["jobs"]
    again = Job(second, ws, job.job_id)
    assert again.poll()["stdout"] == "before\n"
    lost = next(j for j in jobs if "waited-for" in j["command"])
    assert lost["running"] is True
    run(second, ws, "touch /tmp/go")
    assert again.wait_end()["exit_code"] == 6 and again.out == "before\nafter\n"
    lost = Job(second, ws, lost["job_id"])
    assert lost.wait_end()["exit_code"] == 0 and lost.out == "kept output\n"


def test_two_hundred_at_once_and_one_too_many(host):
    client = host.client()
    ws = client.call("workspace_create", name="many", memory_mb=1024)["workspace_id"]
    jobs = [start(client, ws, f"echo {n}; exec sleep 600") for n in range(200)]
    with pytest.raises(ToolError) as caught:
        start(client, ws, "true")
    assert caught.value.code == "quota_exceeded" and "200" in caught.value.text
    jobs[0].call("kill")
    jobs[0].wait_end()
    assert run(client, ws, "echo room")["stdout"] == "room\n"
    jobs[199].wait_for("199\n")


def test_an_exec_without_a_time_limit_becomes_a_job_after_45_seconds(shared_client, workspace, unlimited):
    began, answer = unlimited
    result = answer.get(timeout=90)["result"]["structuredContent"]
    assert time.monotonic() - began >= 45
    assert result["running"] is True and result["stdout"] == "early\n" and result["exit_code"] is None
    job = Job(shared_client, workspace, result["job_id"])
    run(shared_client, workspace, "touch /tmp/unlimited")
    assert job.wait_end()["exit_code"] == 0 and job.out == "early\nlate\n"
